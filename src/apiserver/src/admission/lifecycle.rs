//! Namespaces that are missing or going, and owners that may not be blocked.

use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;
use skiff_store::Precondition;

use super::{Attempt, Operation};
use crate::authz::Attributes;

/// Namespaces that may not be deleted.
const PERMANENT: &[&str] = &["default", "kube-system", "kube-public"];

/// Nothing is created in a namespace that is missing or being deleted. The
/// namespace must still be as it was when the object is committed.
pub fn namespace(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    conditions: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    if attempt.is("", "namespaces") && attempt.operation == Operation::Delete {
        let name = old.map(meta::name).unwrap_or_default();
        if PERMANENT.contains(&name) {
            return Err(attempt.forbidden(name, "this namespace may not be deleted"));
        }
        return Ok(());
    }
    if attempt.operation != Operation::Create || !call.kind.namespaced || call.kind.traits.review {
        return Ok(());
    }
    let namespace = call.info.namespace.as_str();
    let server = attempt.server;
    let key = server.core("namespaces").key("", namespace);
    let Some(entry) = server.store.get(&key) else {
        return Err(Status::not_found("namespaces", namespace));
    };
    if crate::scan::get(&entry.value, &["metadata", "deletionTimestamp"]).is_some() {
        let name = object.map(meta::name).unwrap_or_default();
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = format!("namespace {namespace} is being terminated");
        let status = attempt.forbidden(name, &why);
        return Err(status.with_cause("NamespaceTerminating", cause, "metadata.namespace"));
    }
    conditions.push(Precondition::Revision {
        key,
        mod_revision: entry.mod_revision,
    });
    Ok(())
}

/// Who makes an object block the deletion of its owner must be able to update
/// the owner's finalizers.
pub fn owner_references(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let Some(object) = object else { return Ok(()) };
    let blocking = |o: &Value| -> Vec<Value> {
        meta::owner_references(o)
            .iter()
            .filter(|r| r["blockOwnerDeletion"] == true)
            .cloned()
            .collect()
    };
    let before = old.map(blocking).unwrap_or_default();
    let call = attempt.call;
    let server = attempt.server;
    for owner in blocking(object).iter().filter(|r| !before.contains(r)) {
        let version = owner["apiVersion"].as_str().unwrap_or_default();
        let kinds = server.kinds();
        let Some(kind) = kinds.of(version, owner["kind"].as_str().unwrap_or_default()) else {
            continue;
        };
        let attributes = Attributes {
            verb: "update",
            group: &kind.group,
            resource: &kind.plural,
            subresource: "finalizers",
            namespace: if kind.namespaced { &call.info.namespace } else { "" },
            name: owner["name"].as_str().unwrap_or_default(),
            is_resource: true,
            ..Attributes::default()
        };
        if server.authorizer.decide(&call.user, &attributes).is_err() {
            let why = "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>";
            return Err(attempt.forbidden(meta::name(object), why));
        }
    }
    Ok(())
}
