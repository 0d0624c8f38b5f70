//! What the server does to an object before it is validated and stored.
//!
//! Clients write the desired state, controllers write the status, and the server owns the rest. The general
//! rules follow from a kind's [`Traits`](crate::kinds::Traits): status is dropped on create and kept on a main
//! update, a status update keeps everything else, `metadata.generation` counts changes of the desired state,
//! and system metadata cannot be changed. What is special about single kinds stands in the tables and small
//! functions below.
//!
//! Order of a create: [`meta::fill_system_fields`](crate::meta::fill_system_fields), then
//! [`prepare_for_create`], then validation. Order of an update: [`prepare_for_update`], then [`stamp`], then
//! validation.

mod pod;
pub mod scale;
mod service;

use crate::kinds::Kind;
use crate::meta;
use serde_json::{Map, Value, json};
use std::time::SystemTime;

pub use pod::qos_class;

/// Grace that a pod has to stop when nobody says otherwise.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Kinds created with the status that the client sends: a node registers itself together with its status.
const STATUS_ON_CREATE: &[(&str, &str)] = &[("", "Node")];

/// Metadata that a status update keeps from the stored object, by kind; `*` is everything a client can set.
const STATUS_KEEPS: &[(&str, &str, &[&str])] = &[
    ("apps", "Deployment", &["labels"]),
    ("", "Pod", &["ownerReferences"]),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        CLIENT_METADATA,
    ),
    ("apiregistration.k8s.io", "APIService", CLIENT_METADATA),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        CLIENT_METADATA,
    ),
    ("flowcontrol.apiserver.k8s.io", "FlowSchema", CLIENT_METADATA),
    (
        "flowcontrol.apiserver.k8s.io",
        "PriorityLevelConfiguration",
        CLIENT_METADATA,
    ),
    ("resource.k8s.io", "ResourceClaim", CLIENT_METADATA),
    ("storage.k8s.io", "VolumeAttachment", CLIENT_METADATA),
];

const CLIENT_METADATA: &[&str] = &["labels", "annotations", "finalizers", "ownerReferences"];

fn is(kind: &Kind, group: &str, name: &str) -> bool {
    kind.group == group && kind.kind == name
}

/// Prepares a new object; uid and creationTimestamp are already set.
pub fn prepare_for_create(kind: &Kind, obj: &mut Value) {
    if kind.traits.review {
        return;
    }
    if kind.traits.status && !STATUS_ON_CREATE.iter().any(|(g, k)| is(kind, g, k)) {
        meta::remove(obj, "status");
        if !kind.traits.custom {
            meta::set(obj, "status", Map::new());
        }
    }
    if kind.traits.generation {
        meta::set_generation(obj, 1);
    }
    match (&*kind.group, &*kind.kind) {
        ("", "Pod") => pod::on_create(obj),
        ("", "Service") => {
            service::on_create(obj);
            meta::set(obj, "status", json!({"loadBalancer": {}}));
        }
        ("", "Namespace") => {
            let finalizers = meta::object_mut(obj, "spec")
                .entry("finalizers")
                .or_insert_with(|| json!([]));
            if let Some(list) = finalizers.as_array_mut()
                && !list.iter().any(|f| f == "kubernetes")
            {
                list.push("kubernetes".into());
            }
            meta::set(obj, "status", json!({"phase": "Active"}));
        }
        ("", "PersistentVolume" | "PersistentVolumeClaim") => {
            meta::set(obj, "status", json!({"phase": "Pending"}))
        }
        ("networking.k8s.io", "Ingress") => meta::set(obj, "status", json!({"loadBalancer": {}})),
        ("apps", "DaemonSet") if meta::annotation(obj, TEMPLATE_GENERATION).is_none() => {
            meta::set_annotation(obj, TEMPLATE_GENERATION, "1");
        }
        ("batch", "Job") => job_selector(obj),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => record_stored_version(obj),
        _ => {}
    }
}

/// Prepares a changed object, through the main resource or a subresource.
pub fn prepare_for_update(kind: &Kind, subresource: Option<&str>, new: &mut Value, old: &Value) {
    keep_system_metadata(new, old);
    match subresource {
        Some("status") => keep_all_but_status(kind, new, old),
        Some("ephemeralcontainers") => pod::only(new, old, &["ephemeralContainers"]),
        Some("resize") => pod::only_resources(new, old),
        Some("finalize") => {
            // A namespace's finalizers are the one part of its spec, and this is the one way to change them.
            meta::copy(old, new, "status");
        }
        Some("approval") => {
            let conditions = meta::at(new, "status.conditions").cloned();
            meta::copy(old, new, "spec");
            meta::copy(old, new, "status");
            match conditions {
                Some(conditions) => meta::set(new, "status.conditions", conditions),
                None => drop(meta::remove(new, "status.conditions")),
            }
        }
        _ => main_update(kind, new, old),
    }
    if kind.traits.generation && desired_state_changed(kind, new, old) {
        meta::set_generation(new, meta::generation(old) + 1);
    }
}

fn main_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.traits.status {
        meta::copy(old, new, "status");
    }
    match (&*kind.group, &*kind.kind) {
        ("", "Service") => service::on_update(new, old),
        ("", "Namespace") => meta::copy(old, new, "spec"),
        ("certificates.k8s.io", "CertificateSigningRequest") => meta::copy(old, new, "spec"),
        ("apps", "DaemonSet") => {
            let before = meta::annotation(old, TEMPLATE_GENERATION)
                .and_then(|t| t.parse::<i64>().ok())
                .unwrap_or(1);
            let changed = !same(meta::at(new, "spec.template"), meta::at(old, "spec.template"));
            meta::set_annotation(
                new,
                TEMPLATE_GENERATION,
                &(before + i64::from(changed)).to_string(),
            );
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => record_stored_version(new),
        _ => {}
    }
}

/// What no client can change: identity, birth, death and generation.
fn keep_system_metadata(new: &mut Value, old: &Value) {
    for field in [
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let path = format!("metadata.{field}");
        match field {
            // Setting these is for the delete path alone; validation refuses them on living objects.
            "deletionTimestamp" | "deletionGracePeriodSeconds" if meta::at(old, &path).is_none() => {}
            _ => meta::copy(old, new, &path),
        }
    }
    if meta::uid(new).is_empty() {
        meta::copy(old, new, "metadata.uid");
    }
    meta::remove(new, "metadata.selfLink");
}

fn keep_all_but_status(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.traits.custom {
        // Custom resources: status and field ownership are all that such an update can change.
        let status = meta::remove(new, "status");
        let version = meta::resource_version(new).to_owned();
        let managed = meta::at(new, "metadata.managedFields").cloned();
        let api_version = new.get("apiVersion").cloned();
        *new = old.clone();
        if let Some(api_version) = api_version {
            meta::set(new, "apiVersion", api_version);
        }
        match status {
            Some(status) => meta::set(new, "status", status),
            None => drop(meta::remove(new, "status")),
        }
        if let Some(managed) = managed {
            meta::set(new, "metadata.managedFields", managed);
        }
        meta::set_resource_version(new, &version);
        return;
    }
    meta::copy(old, new, "spec");
    let keeps = STATUS_KEEPS
        .iter()
        .find(|(g, k, _)| is(kind, g, k))
        .map_or(&[][..], |(_, _, f)| f);
    for field in keeps {
        meta::copy(old, new, &format!("metadata.{field}"));
    }
    if is(kind, "", "Pod") {
        pod::on_status_update(new, old);
    }
    if is(kind, "certificates.k8s.io", "CertificateSigningRequest") {
        keep_decisions(new, old);
    }
}

/// A signer may add conditions through `status`, but the decision belongs to `approval`.
fn keep_decisions(new: &mut Value, old: &Value) {
    let decided = |c: &&Value| matches!(meta::str_at(c, "type"), "Approved" | "Denied");
    let mut conditions: Vec<Value> = meta::list_at(old, "status.conditions")
        .iter()
        .filter(decided)
        .cloned()
        .collect();
    let others = meta::list_at(new, "status.conditions")
        .iter()
        .filter(|c| !decided(c))
        .cloned();
    conditions.extend(others);
    if conditions.is_empty() {
        meta::remove(new, "status.conditions");
    } else {
        meta::set(new, "status.conditions", conditions);
    }
}

/// Whether two optional values mean the same: nothing, `null` and an empty list are one.
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let present = |v: &&Value| !(v.is_null() || v.as_array().is_some_and(Vec::is_empty));
    match (a.filter(present), b.filter(present)) {
        (None, None) => true,
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            a.iter().all(|(k, v)| same(Some(v), b.get(k)))
                && b.keys().all(|k| a.contains_key(k) || same(None, b.get(k)))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

fn desired_state_changed(kind: &Kind, new: &Value, old: &Value) -> bool {
    let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else {
        return false;
    };
    let desired = |k: &&String| {
        !matches!(k.as_str(), "apiVersion" | "kind" | "metadata")
            && (k.as_str() != "status" || !kind.traits.status)
    };
    let changed = a
        .keys()
        .chain(b.keys())
        .filter(desired)
        .any(|k| !same(a.get(k), b.get(k)));
    let annotations = || {
        !same(
            meta::at(new, "metadata.annotations"),
            meta::at(old, "metadata.annotations"),
        )
    };
    let labels = || !same(meta::at(new, "metadata.labels"), meta::at(old, "metadata.labels"));
    changed
        || is(kind, "apps", "Deployment") && annotations()
        || is(kind, "discovery.k8s.io", "EndpointSlice") && labels()
}

/// Jobs find their pods by uid unless the user takes care of the selector.
fn job_selector(obj: &mut Value) {
    if meta::bool_at(obj, "spec.manualSelector") {
        return;
    }
    let (name, uid) = (meta::name(obj).to_owned(), meta::uid(obj).to_owned());
    let labels = meta::object_mut(obj, "spec.template.metadata.labels");
    for (key, value) in [
        ("controller-uid", &uid),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels.entry(key).or_insert_with(|| value.as_str().into());
    }
    let selector = meta::object_mut(obj, "spec.selector.matchLabels");
    selector
        .entry("batch.kubernetes.io/controller-uid")
        .or_insert_with(|| uid.into());
}

/// A definition remembers every version in which objects may be stored.
fn record_stored_version(obj: &mut Value) {
    let storage = meta::list_at(obj, "spec.versions")
        .iter()
        .find(|v| meta::bool_at(v, "storage"));
    let Some(name) = storage.map(|v| meta::str_at(v, "name").to_owned()) else {
        return;
    };
    let stored = meta::object_mut(obj, "status")
        .entry("storedVersions")
        .or_insert_with(|| json!([]));
    if let Some(list) = stored.as_array_mut()
        && !list.iter().any(|v| *v == name)
    {
        list.push(name.into());
    }
}

/// Sets times that only the server's clock can give: conditions of certificate requests.
pub fn stamp(kind: &Kind, new: &mut Value, old: &Value, now: SystemTime) {
    if !is(kind, "certificates.k8s.io", "CertificateSigningRequest") {
        return;
    }
    let before = meta::list_at(old, "status.conditions").to_vec();
    let Some(conditions) = new
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    for condition in conditions {
        let kind = meta::str_at(condition, "type").to_owned();
        let status = meta::str_at(condition, "status").to_owned();
        if meta::str_at(condition, "lastUpdateTime").is_empty() {
            meta::set(condition, "lastUpdateTime", meta::timestamp(now));
        }
        if meta::str_at(condition, "lastTransitionTime").is_empty() {
            let kept = before
                .iter()
                .find(|c| meta::str_at(c, "type") == kind && meta::str_at(c, "status") == status)
                .map(|c| meta::str_at(c, "lastTransitionTime").to_owned())
                .filter(|t| !t.is_empty());
            meta::set(
                condition,
                "lastTransitionTime",
                kept.unwrap_or_else(|| meta::timestamp(now)),
            );
        }
    }
}

/// How long an object has to stop: 0 means it goes at once.
pub fn grace_period(kind: &Kind, obj: &Value, requested: Option<i64>) -> i64 {
    if !kind.traits.graceful {
        return 0;
    }
    let grace = requested
        .or_else(|| meta::int_at(obj, "spec.terminationGracePeriodSeconds"))
        .unwrap_or(DEFAULT_GRACE_SECONDS)
        // A negative grace is "as short as possible".
        .pipe(|g| if g < 0 { 1 } else { g });
    // Nothing runs for a pod without a node, and nothing is left to stop in one that has ended.
    let idle = meta::str_at(obj, "spec.nodeName").is_empty()
        || matches!(meta::str_at(obj, "status.phase"), "Failed" | "Succeeded");
    if idle { 0 } else { grace }
}

trait Pipe: Sized {
    fn pipe<T>(self, f: impl FnOnce(Self) -> T) -> T {
        f(self)
    }
}
impl Pipe for i64 {}

/// Marks the begin of deletion. The deadline of an object already on its way out only moves closer.
pub fn mark_deleting(obj: &mut Value, now: SystemTime, grace_seconds: i64) -> bool {
    let deadline = now + std::time::Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
    if meta::is_deleting(obj) {
        let current = meta::deletion_grace(obj).unwrap_or(0);
        if grace_seconds >= current {
            return false;
        }
        let began = meta::parse_timestamp(meta::deletion_timestamp(obj)).and_then(|t| {
            t.checked_sub(std::time::Duration::from_secs(
                u64::try_from(current).unwrap_or(0),
            ))
        });
        let shorter = std::time::Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
        let deadline = began.map_or(deadline, |b| b + shorter);
        meta::set_deletion_timestamp(obj, &meta::timestamp(deadline));
        meta::set(obj, "metadata.deletionGracePeriodSeconds", grace_seconds);
        return true;
    }
    meta::set_deletion_timestamp(obj, &meta::timestamp(deadline));
    meta::set(obj, "metadata.deletionGracePeriodSeconds", grace_seconds);
    let generation = meta::generation(obj);
    if generation > 0 {
        meta::set_generation(obj, generation + 1);
    }
    true
}

#[cfg(test)]
mod tests;
