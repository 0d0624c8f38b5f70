//! May this user do this? Members of `system:masters` may do anything; then
//! the node authorizer and RBAC are asked in turn, and one yes is enough.

pub mod node;
pub mod rbac;
pub mod rules;

use skiff_api::status::Status;
use skiff_store::Store;

use self::node::NodeAuthorizer;
use self::rbac::Rbac;
use crate::identity::{MASTERS, UserInfo};

/// What a request asks to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// Verb, such as `get`, `list` or `impersonate`.
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Resource, plural.
    pub resource: &'a str,
    /// Subresource, often empty.
    pub subresource: &'a str,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: &'a str,
    /// Object name, empty when there is none.
    pub name: &'a str,
    /// Whether this is about a resource; otherwise about `path`.
    pub is_resource: bool,
    /// The URL path.
    pub path: &'a str,
    /// The field selector as given.
    pub field_selector: &'a str,
}

impl Attributes<'_> {
    /// `resource.group`, as errors name it.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}.{}", self.resource, self.group)
        }
    }
}

/// The chain of authorizers.
pub struct Authorizer {
    node: NodeAuthorizer,
    /// RBAC alone, for escalation checks.
    pub rbac: Rbac,
}

impl Authorizer {
    /// Authorizes by what `store` holds.
    pub fn new(store: Store) -> Self {
        Self {
            node: NodeAuthorizer::new(store.clone()),
            rbac: Rbac::new(store),
        }
    }

    /// Whether the user may do it; the error says why not, often nothing.
    pub fn decide(&self, user: &UserInfo, request: &Attributes<'_>) -> Result<(), String> {
        if user.in_group(MASTERS) {
            return Ok(());
        }
        let mut reasons = Vec::new();
        match self.node.authorize(user, request) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(reason) => reasons.push(reason),
        }
        match self.rbac.authorize(user, request) {
            Ok(()) => return Ok(()),
            Err(reason) if reason.is_empty() => {}
            Err(reason) => reasons.push(reason),
        }
        Err(reasons.join(", "))
    }

    /// As [`Authorizer::decide`], with the refusal clients know.
    pub fn require(&self, user: &UserInfo, request: &Attributes<'_>) -> Result<(), Status> {
        self.decide(user, request)
            .map_err(|reason| refusal(user, request, &reason))
    }
}

/// The 403 for a request.
pub fn refusal(user: &UserInfo, request: &Attributes<'_>, reason: &str) -> Status {
    let mut why = format!("User {:?} cannot {} ", user.username, request.verb);
    if request.is_resource {
        let sub = if request.subresource.is_empty() {
            String::new()
        } else {
            format!("/{}", request.subresource)
        };
        why.push_str(&format!(
            "resource \"{}{sub}\" in API group {:?}",
            request.resource, request.group
        ));
        if request.namespace.is_empty() {
            why.push_str(" at the cluster scope");
        } else {
            why.push_str(&format!(" in the namespace {:?}", request.namespace));
        }
    } else {
        why.push_str(&format!("path {:?}", request.path));
    }
    if !reason.is_empty() {
        why.push_str(": ");
        why.push_str(reason);
    }
    let resource = if request.is_resource {
        request.group_resource()
    } else {
        String::new()
    };
    Status::forbidden(&resource, request.name, &why)
}
