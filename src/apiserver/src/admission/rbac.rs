//! Nobody grants rights they do not hold.
//!
//! Writing a role needs every right in it, or the verb `escalate` on roles;
//! writing a binding needs every right of its role, or the verb `bind` on it.

use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;
use skiff_store::Precondition;

use super::{Attempt, Operation};
use crate::authz::Attributes;
use crate::authz::rbac::RoleKey;
use crate::authz::rules::{Rule, uncovered};
use crate::identity::MASTERS;

const GROUP: &str = "rbac.authorization.k8s.io";

/// The escalation check.
pub fn escalation(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    let Some(object) = object.filter(|_| call.kind.group == GROUP && attempt.operation != Operation::Delete)
    else {
        return Ok(());
    };
    if call.user.in_group(MASTERS) {
        return Ok(());
    }
    let rbac = &attempt.server.authorizer.rbac;
    let namespace = call.info.namespace.as_str();
    let may = |verb: &str, resource: &str, name: &str| {
        let attributes = Attributes {
            verb,
            group: GROUP,
            resource,
            name,
            namespace,
            is_resource: true,
            ..Attributes::default()
        };
        attempt.server.authorizer.decide(&call.user, &attributes).is_ok()
    };
    let wanted: Vec<Rule> = match &*call.kind.plural {
        "roles" | "clusterroles" => {
            let unchanged = old.is_some_and(|old| {
                old["rules"] == object["rules"] && old["aggregationRule"] == object["aggregationRule"]
            });
            if unchanged || may("escalate", &call.kind.plural, meta::name(object)) {
                return Ok(());
            }
            let aggregates = object["aggregationRule"].is_object()
                && old.is_none_or(|old| old["aggregationRule"] != object["aggregationRule"]);
            if aggregates {
                // What it will contain is not known yet, so everything must be held.
                let all = || vec!["*".to_owned()];
                vec![
                    Rule {
                        verbs: all(),
                        api_groups: all(),
                        resources: all(),
                        ..Rule::default()
                    },
                    Rule {
                        verbs: all(),
                        non_resource_urls: all(),
                        ..Rule::default()
                    },
                ]
            } else {
                serde_json::from_value(object["rules"].clone()).unwrap_or_default()
            }
        }
        "rolebindings" | "clusterrolebindings" => {
            let unchanged = old.is_some_and(|old| {
                old["roleRef"] == object["roleRef"] && old["subjects"] == object["subjects"]
            });
            let role = meta::str_at(object, "roleRef.name");
            let cluster = meta::str_at(object, "roleRef.kind") == "ClusterRole";
            let resource = if cluster { "clusterroles" } else { "roles" };
            if unchanged || may("bind", resource, role) {
                return Ok(());
            }
            let of = if cluster { "" } else { namespace };
            let key = RoleKey {
                namespace: of.to_owned(),
                name: role.to_owned(),
            };
            match rbac.role(&key) {
                Some(rules) => rules.to_vec(),
                None => return Err(Status::not_found(&format!("{resource}.{GROUP}"), role)),
            }
        }
        _ => return Ok(()),
    };
    let missing = uncovered(&rbac.rules_for(&call.user, namespace), &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let listed: Vec<String> = missing.iter().map(Rule::describe).collect();
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.username,
        call.user.groups,
        listed.join("\n")
    );
    Err(attempt.forbidden(meta::name(object), &why))
}
