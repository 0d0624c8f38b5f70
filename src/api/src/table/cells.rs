//! Cells that are more than one field: shared helpers, nodes, events, storage and the rest.

use super::{human_duration, since};
use crate::meta;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
/// Items shown of long lists.
const SHOWN: usize = 3;

pub(super) fn or_none(text: String) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

pub(super) fn join(list: &[Value], path: &str, separator: &str) -> String {
    list.iter()
        .map(|v| meta::str_at(v, path))
        .collect::<Vec<_>>()
        .join(separator)
}

pub(super) fn pairs(map: Option<&meta::Object>) -> String {
    let one = |(k, v): (&String, &Value)| format!("{k}={}", v.as_str().unwrap_or(""));
    map.into_iter().flatten().map(one).collect::<Vec<_>>().join(",")
}

/// A few items and how many more there are.
pub(super) fn few(items: &[String], separator: &str) -> String {
    if items.len() > SHOWN {
        format!(
            "{} + {} more...",
            items[..SHOWN].join(separator),
            items.len() - SHOWN
        )
    } else {
        items.join(separator)
    }
}

pub(super) fn node_status(node: &Value, _: SystemTime) -> Value {
    let ready = meta::list_at(node, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Ready");
    let word = match ready.map(|c| meta::str_at(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if meta::bool_at(node, "spec.unschedulable") {
        format!("{word},SchedulingDisabled").into()
    } else {
        word.into()
    }
}

pub(super) fn node_roles(node: &Value, _: SystemTime) -> Value {
    let mut roles = BTreeSet::new();
    for (key, value) in meta::labels(node).into_iter().flatten() {
        if let Some(role) = key
            .strip_prefix("node-role.kubernetes.io/")
            .filter(|r| !r.is_empty())
        {
            roles.insert(role);
        } else if let ("kubernetes.io/role", Some(role)) =
            (key.as_str(), value.as_str().filter(|r| !r.is_empty()))
        {
            roles.insert(role);
        }
    }
    or_none(roles.into_iter().collect::<Vec<_>>().join(","))
}

fn node_address(node: &Value, kind: &str) -> Value {
    let found = meta::list_at(node, "status.addresses")
        .iter()
        .find(|a| meta::str_at(a, "type") == kind);
    or_none(found.map_or("", |a| meta::str_at(a, "address")).to_owned())
}

pub(super) fn node_internal(node: &Value, _: SystemTime) -> Value {
    node_address(node, "InternalIP")
}

pub(super) fn node_external(node: &Value, _: SystemTime) -> Value {
    node_address(node, "ExternalIP")
}

fn event_time(event: &Value, path: &str, fallback: &str, now: SystemTime) -> String {
    match meta::str_at(event, path) {
        "" => since(meta::str_at(event, fallback), now),
        time => since(time, now),
    }
}

pub(super) fn event_first_seen(event: &Value, now: SystemTime) -> Value {
    event_time(event, "firstTimestamp", "eventTime", now).into()
}

pub(super) fn event_last_seen(event: &Value, now: SystemTime) -> Value {
    if meta::at(event, "series").is_some_and(|s| !s.is_null()) {
        return since(meta::str_at(event, "series.lastObservedTime"), now).into();
    }
    match meta::str_at(event, "lastTimestamp") {
        "" => event_first_seen(event, now),
        time => since(time, now).into(),
    }
}

pub(super) fn event_count(event: &Value, _: SystemTime) -> Value {
    let count = meta::int_at(event, "series.count")
        .or_else(|| meta::int_at(event, "count"))
        .unwrap_or(0);
    count.max(1).into()
}

pub(super) fn event_object(event: &Value, _: SystemTime) -> Value {
    let kind = meta::str_at(event, "involvedObject.kind").to_lowercase();
    match meta::str_at(event, "involvedObject.name") {
        "" => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

pub(super) fn event_source(event: &Value, _: SystemTime) -> Value {
    let pick = |a: &str, b: &str| match meta::str_at(event, a) {
        "" => meta::str_at(event, b).to_owned(),
        text => text.to_owned(),
    };
    let component = pick("source.component", "reportingComponent");
    let host = pick("source.host", "reportingInstance");
    if host.is_empty() {
        component.into()
    } else {
        format!("{component}, {host}").into()
    }
}

pub(super) fn event_message(event: &Value, _: SystemTime) -> Value {
    meta::str_at(event, "message").trim().into()
}

fn access_modes(modes: &[Value]) -> Value {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let present = SHORT.iter().filter(|(long, _)| modes.iter().any(|m| m == long));
    present
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
        .into()
}

pub(super) fn volume_access(volume: &Value, _: SystemTime) -> Value {
    access_modes(meta::list_at(volume, "spec.accessModes"))
}

/// A claim has what its volume has only once it has a volume.
pub(super) fn claim_access(claim: &Value, _: SystemTime) -> Value {
    let bound = !meta::str_at(claim, "spec.volumeName").is_empty();
    if bound {
        access_modes(meta::list_at(claim, "status.accessModes"))
    } else {
        "".into()
    }
}

pub(super) fn claim_capacity(claim: &Value, _: SystemTime) -> Value {
    let bound = !meta::str_at(claim, "spec.volumeName").is_empty();
    if bound {
        meta::str_at(claim, "status.capacity.storage").into()
    } else {
        "".into()
    }
}

pub(super) fn phase(obj: &Value, _: SystemTime) -> Value {
    if meta::is_deleting(obj) {
        "Terminating".into()
    } else {
        meta::str_at(obj, "status.phase").into()
    }
}

pub(super) fn volume_claim(volume: &Value, _: SystemTime) -> Value {
    match meta::str_at(volume, "spec.claimRef.name") {
        "" => "".into(),
        name => format!("{}/{name}", meta::str_at(volume, "spec.claimRef.namespace")).into(),
    }
}

pub(super) fn class_name(class: &Value, _: SystemTime) -> Value {
    const MARKS: [&str; 2] = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    let default = MARKS
        .iter()
        .any(|mark| meta::annotation(class, mark) == Some("true"));
    let name = meta::name(class);
    if default {
        format!("{name} (default)").into()
    } else {
        name.into()
    }
}

pub(super) fn csi_tokens(driver: &Value, _: SystemTime) -> Value {
    let audiences = join(meta::list_at(driver, "spec.tokenRequests"), "audience", ",");
    if audiences.is_empty() {
        UNSET.into()
    } else {
        audiences.into()
    }
}

pub(super) fn csi_modes(driver: &Value, _: SystemTime) -> Value {
    let modes = meta::list_at(driver, "spec.volumeLifecycleModes")
        .iter()
        .filter_map(Value::as_str);
    or_none(modes.collect::<Vec<_>>().join(","))
}

pub(super) fn config_entries(config: &Value, _: SystemTime) -> Value {
    let count = |field| meta::object_at(config, field).map_or(0, serde_json::Map::len);
    (count("data") + count("binaryData")).into()
}

fn quota(obj: &Value, limits: bool) -> Value {
    let used = meta::object_at(obj, "status.used");
    let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or("0").to_owned();
    let hard = meta::object_at(obj, "status.hard").into_iter().flatten();
    let lines = hard
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, amount)| {
            format!(
                "{name}: {}/{}",
                text(used.and_then(|u| u.get(name))),
                text(Some(amount))
            )
        });
    lines.collect::<Vec<_>>().join(", ").into()
}

pub(super) fn quota_requests(obj: &Value, _: SystemTime) -> Value {
    quota(obj, false)
}

pub(super) fn quota_limits(obj: &Value, _: SystemTime) -> Value {
    quota(obj, true)
}

fn component(obj: &Value, field: &str) -> String {
    let healthy = meta::list_at(obj, "conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Healthy");
    healthy.map_or("", |c| meta::str_at(c, field)).to_owned()
}

pub(super) fn component_status(obj: &Value, _: SystemTime) -> Value {
    match component(obj, "status").as_str() {
        "True" => "Healthy".into(),
        "False" => "Unhealthy".into(),
        _ => "Unknown".into(),
    }
}

pub(super) fn component_message(obj: &Value, _: SystemTime) -> Value {
    component(obj, "message").into()
}

pub(super) fn component_error(obj: &Value, _: SystemTime) -> Value {
    component(obj, "error").into()
}

pub(super) fn role(binding: &Value, _: SystemTime) -> Value {
    format!(
        "{}/{}",
        meta::str_at(binding, "roleRef.kind"),
        meta::str_at(binding, "roleRef.name")
    )
    .into()
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = meta::list_at(binding, "subjects")
        .iter()
        .filter(|s| meta::str_at(s, "kind") == kind);
    let text = |s: &Value| match kind {
        "ServiceAccount" => format!("{}/{}", meta::str_at(s, "namespace"), meta::str_at(s, "name")),
        _ => meta::str_at(s, "name").to_owned(),
    };
    of_kind.map(text).collect::<Vec<_>>().join(", ").into()
}

pub(super) fn users(binding: &Value, _: SystemTime) -> Value {
    subjects(binding, "User")
}

pub(super) fn groups(binding: &Value, _: SystemTime) -> Value {
    subjects(binding, "Group")
}

pub(super) fn service_accounts(binding: &Value, _: SystemTime) -> Value {
    subjects(binding, "ServiceAccount")
}

pub(super) fn csr_condition(csr: &Value, _: SystemTime) -> Value {
    let has = |kind| {
        meta::list_at(csr, "status.conditions")
            .iter()
            .any(|c| meta::str_at(c, "type") == kind)
    };
    let mut text = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !meta::str_at(csr, "status.certificate").is_empty() {
        text.push_str(",Issued");
    }
    text.into()
}

pub(super) fn csr_duration(csr: &Value, _: SystemTime) -> Value {
    match meta::int_at(csr, "spec.expirationSeconds").and_then(|s| u64::try_from(s).ok()) {
        Some(seconds) => human_duration(Duration::from_secs(seconds)).into(),
        None => NONE.into(),
    }
}

pub(super) fn param_kind(policy: &Value, _: SystemTime) -> Value {
    match meta::at(policy, "spec.paramKind") {
        Some(p) => format!("{}/{}", meta::str_at(p, "apiVersion"), meta::str_at(p, "kind")).into(),
        None => UNSET.into(),
    }
}

pub(super) fn param_ref(binding: &Value, _: SystemTime) -> Value {
    match meta::at(binding, "spec.paramRef") {
        Some(p) => match (meta::str_at(p, "namespace"), meta::str_at(p, "name")) {
            ("", name) => name.into(),
            (namespace, "") => format!("{namespace}/*").into(),
            (namespace, name) => format!("{namespace}/{name}").into(),
        },
        None => UNSET.into(),
    }
}

pub(super) fn api_service(obj: &Value, _: SystemTime) -> Value {
    match meta::at(obj, "spec.service").filter(|s| !s.is_null()) {
        Some(s) => format!("{}/{}", meta::str_at(s, "namespace"), meta::str_at(s, "name")).into(),
        None => "Local".into(),
    }
}

pub(super) fn api_available(obj: &Value, _: SystemTime) -> Value {
    let found = meta::list_at(obj, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Available");
    match found.map(|c| (meta::str_at(c, "status"), meta::str_at(c, "reason"))) {
        None => "Unknown".into(),
        Some(("True", _)) => "True".into(),
        Some((status, reason)) => format!("{status} ({reason})").into(),
    }
}

pub(super) fn flow_dangling(schema: &Value, _: SystemTime) -> Value {
    let found = meta::list_at(schema, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Dangling");
    found.map_or("?", |c| meta::str_at(c, "status")).into()
}

pub(super) fn level_shares(level: &Value, _: SystemTime) -> Value {
    let shares = [
        "spec.limited.nominalConcurrencyShares",
        "spec.exempt.nominalConcurrencyShares",
    ];
    let found = shares.iter().find_map(|path| meta::int_at(level, path));
    found.map_or_else(|| NONE.into(), |n| n.to_string().into())
}

pub(super) fn claim_state(claim: &Value, _: SystemTime) -> Value {
    let mut states = Vec::new();
    if meta::is_deleting(claim) {
        states.push("deleted");
    }
    if meta::at(claim, "status.allocation").is_none_or(Value::is_null) {
        if states.is_empty() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        states.push(if meta::list_at(claim, "status.reservedFor").is_empty() {
            ""
        } else {
            "reserved"
        });
    }
    states
        .into_iter()
        .filter(|s| !s.is_empty())
        .collect::<Vec<_>>()
        .join(",")
        .into()
}
