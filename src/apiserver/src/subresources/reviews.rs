//! Reviews: who am I, whose token is this, may they do that? Answered, never stored.

use std::collections::BTreeMap;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::{FieldError, Status};

use crate::authz::Attributes;
use crate::authz::rules::Rule;
use crate::identity::{MASTERS, UserInfo};
use crate::server::{ApiServer, Call, method_not_allowed};
use crate::{Body, codec, respond};

impl ApiServer {
    /// Answers a review.
    pub(super) fn review(&self, call: &Call, body: &[u8]) -> Result<Response<Body>, Status> {
        let mut review = self.decode(call, body)?;
        let status = match &*call.kind.plural {
            "selfsubjectreviews" => json!({ "userInfo": call.user.to_json() }),
            "tokenreviews" => self.token_review(&review)?,
            "selfsubjectaccessreviews" => self.access(&call.user, &review, "")?,
            "subjectaccessreviews" => self.access(&subject(&review)?, &review, "")?,
            "localsubjectaccessreviews" => {
                let namespace = call.info.namespace.as_str();
                let asked = meta::str_at(&review, "spec.resourceAttributes.namespace");
                if asked != namespace {
                    let text = format!("must match metadata.namespace: {namespace:?}");
                    let error = FieldError::invalid("spec.resourceAttributes.namespace", asked, text);
                    return Err(Status::invalid(&call.kind.group_kind(), "", &[error]));
                }
                self.access(&subject(&review)?, &review, namespace)?
            }
            "selfsubjectrulesreviews" => {
                self.rules_review(&call.user, meta::str_at(&review, "spec.namespace"))
            }
            _ => return Err(method_not_allowed()),
        };
        review["status"] = status;
        Ok(respond::encoded(
            StatusCode::CREATED,
            call.accept,
            codec::to_bytes(&review),
        ))
    }

    fn token_review(&self, review: &Value) -> Result<Value, Status> {
        let token = meta::str_at(review, "spec.token");
        if token.is_empty() {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        let mut audiences: Vec<String> = meta::list_at(review, "spec.audiences")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if audiences.is_empty() {
            audiences = self.authenticator.audiences().to_vec();
        }
        Ok(match self.authenticator.review(token, &audiences) {
            Ok((user, shared)) => {
                json!({ "authenticated": true, "user": user.to_json(), "audiences": shared })
            }
            Err(reason) => json!({ "error": reason, "user": {} }),
        })
    }

    fn access(&self, user: &UserInfo, review: &Value, namespace: &str) -> Result<Value, Status> {
        let spec = &review["spec"];
        let text = |v: &Value, field: &str| v[field].as_str().unwrap_or_default().to_owned();
        let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
        let decision = match (resource.is_object(), path.is_object()) {
            (true, false) => {
                let [verb, group, plural, sub, name, ns] =
                    ["verb", "group", "resource", "subresource", "name", "namespace"]
                        .map(|f| text(resource, f));
                let fields = resource["fieldSelector"]["rawSelector"]
                    .as_str()
                    .unwrap_or_default();
                self.authorizer.decide(
                    user,
                    &Attributes {
                        verb: &verb,
                        group: &group,
                        resource: &plural,
                        subresource: &sub,
                        namespace: if namespace.is_empty() { &ns } else { namespace },
                        name: &name,
                        is_resource: true,
                        path: "",
                        field_selector: fields,
                    },
                )
            }
            (false, true) => {
                let (verb, path) = (text(path, "verb"), text(path, "path"));
                self.authorizer.decide(
                    user,
                    &Attributes {
                        verb: &verb,
                        path: &path,
                        ..Attributes::default()
                    },
                )
            }
            _ => {
                return Err(Status::bad_request(
                    "exactly one of nonResourceAttributes or resourceAttributes must be specified",
                ));
            }
        };
        Ok(match decision {
            Ok(()) => json!({ "allowed": true }),
            Err(reason) if reason.is_empty() => json!({ "allowed": false }),
            Err(reason) => json!({ "allowed": false, "reason": reason }),
        })
    }

    fn rules_review(&self, user: &UserInfo, namespace: &str) -> Value {
        let mut rules = self.authorizer.rbac.rules_for(user, namespace);
        if user.in_group(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.push(Rule {
                verbs: all(),
                api_groups: all(),
                resources: all(),
                ..Rule::default()
            });
            rules.push(Rule {
                verbs: all(),
                non_resource_urls: all(),
                ..Rule::default()
            });
        }
        let (mut resource, mut other) = (Vec::new(), Vec::new());
        for rule in rules {
            let is_path = !rule.non_resource_urls.is_empty();
            if let Ok(value) = serde_json::to_value(rule) {
                if is_path {
                    other.push(value)
                } else {
                    resource.push(value)
                }
            }
        }
        let incomplete = user.node_name().is_some();
        let mut status =
            json!({ "resourceRules": resource, "nonResourceRules": other, "incomplete": incomplete });
        if incomplete {
            status["evaluationError"] = "node authorizer does not support user rule resolution".into();
        }
        status
    }
}

/// The user a SubjectAccessReview asks about.
fn subject(review: &Value) -> Result<UserInfo, Status> {
    let spec = &review["spec"];
    let groups: Vec<String> = meta::list_at(spec, "groups")
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let username = spec["user"].as_str().unwrap_or_default().to_owned();
    if username.is_empty() && groups.is_empty() {
        return Err(Status::bad_request(
            "at least one of user or group must be specified",
        ));
    }
    let extra: BTreeMap<String, Vec<String>> =
        serde_json::from_value(spec["extra"].clone()).unwrap_or_default();
    Ok(UserInfo {
        username,
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups,
        extra,
    })
}
