//! Acting as someone else, by `Impersonate-*` headers, for those who may.

use http::HeaderMap;
use skiff_api::status::Status;

use crate::authz::{Attributes, Authorizer};
use crate::identity::{ANONYMOUS, AUTHENTICATED, SERVICE_ACCOUNTS, UNAUTHENTICATED, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user to act as, when the headers name one and `user` may do that.
pub fn impersonate(
    headers: &HeaderMap,
    user: &UserInfo,
    authorizer: &Authorizer,
) -> Result<Option<UserInfo>, Status> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .filter(|v| !v.is_empty())
    };
    let groups: Vec<String> = headers
        .get_all(GROUP)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .map(str::to_owned)
        .collect();
    let mut extra: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let key = percent_encoding::percent_decode_str(key)
                .decode_utf8_lossy()
                .into_owned();
            extra.push((key, value.to_str().unwrap_or_default().to_owned()));
        }
    }
    let uid = text(UID);
    let Some(name) = text(USER) else {
        if groups.is_empty() && extra.is_empty() && uid.is_none() {
            return Ok(None);
        }
        return Err(Status::bad_request(
            "requested headers without impersonating a user",
        ));
    };
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        authorizer.require(
            user,
            &Attributes {
                verb: "impersonate",
                group,
                resource,
                subresource,
                namespace,
                name,
                is_resource: true,
                ..Attributes::default()
            },
        )
    };
    let mut target = UserInfo {
        username: name.to_owned(),
        groups,
        ..UserInfo::default()
    };
    match target.as_service_account() {
        Some((namespace, account)) => ask("", "serviceaccounts", "", namespace, account)?,
        None => ask("", "users", "", "", name)?,
    }
    for group in &target.groups {
        ask("", "groups", "", "", group)?;
    }
    for (key, value) in extra {
        ask("authentication.k8s.io", "userextras", &key, "", &value)?;
        target.extra.entry(key).or_default().push(value);
    }
    if let Some(uid) = uid {
        ask("authentication.k8s.io", "uids", "", "", uid)?;
        target.uid = uid.to_owned();
    }
    if target.groups.is_empty()
        && let Some((namespace, _)) = target.as_service_account()
    {
        target.groups = vec![
            SERVICE_ACCOUNTS.to_owned(),
            format!("{SERVICE_ACCOUNTS}:{namespace}"),
        ];
    }
    let implied = if target.username == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !target.in_group(AUTHENTICATED) && !target.in_group(UNAUTHENTICATED) {
        target.groups.push(implied.to_owned());
    }
    Ok(Some(target))
}
