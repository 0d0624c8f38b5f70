//! What may change in a pod that exists: nearly nothing.

use super::Errors;
use super::check::{self, dot, items};
use super::pod;
use crate::status::FieldError;
use crate::strategy::same;
use crate::{meta, names};
use serde_json::Value;

const ONLY: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// The main update.
pub(super) fn pod(errors: &mut Errors, new: &Value, old: &Value) {
    // The allowed changes are undone in a copy; whatever still differs is refused.
    let mut rest = new.get("spec").cloned().unwrap_or_default();
    let before = old.get("spec").unwrap_or(&Value::Null);
    for list in ["containers", "initContainers"] {
        let (a, b) = (
            meta::list_at(&rest, list).len(),
            meta::list_at(before, list).len(),
        );
        if a != b {
            let text = if list == "containers" {
                "pod updates may not add or remove containers"
            } else {
                "pod updates may not add or remove init containers"
            };
            errors.push(FieldError::forbidden(dot("spec", list), text));
            return;
        }
        let images: Vec<_> = meta::list_at(before, list)
            .iter()
            .map(|c| c.get("image").cloned())
            .collect();
        let containers = rest
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten();
        for (i, (container, image)) in containers.zip(images).enumerate() {
            if meta::str_at(container, "image").is_empty() {
                errors.push(FieldError::required(format!("spec.{list}[{i}].image"), ""));
            }
            meta::set(container, "image", image.unwrap_or_default());
        }
    }
    deadline(errors, &rest, before);
    meta::copy(before, &mut rest, "activeDeadlineSeconds");
    tolerations(errors, &rest, before);
    meta::copy(before, &mut rest, "tolerations");
    let gated = !meta::list_at(before, "schedulingGates").is_empty();
    gates(errors, &rest, before);
    meta::copy(before, &mut rest, "schedulingGates");
    if gated {
        // A pod that waits at a gate may still be narrowed to fewer nodes.
        let kept = |b: &meta::Object| {
            let now = meta::object_at(&rest, "nodeSelector");
            b.iter().all(|(k, v)| now.and_then(|n| n.get(k)) == Some(v))
        };
        if meta::object_at(before, "nodeSelector").is_none_or(kept) {
            meta::copy(before, &mut rest, "nodeSelector");
        }
        if meta::at(before, "affinity").is_none() {
            meta::remove(&mut rest, "affinity");
        }
    }
    let negative = meta::int_at(before, "terminationGracePeriodSeconds").is_some_and(|s| s < 0);
    if negative && meta::int_at(&rest, "terminationGracePeriodSeconds") == Some(1) {
        meta::copy(before, &mut rest, "terminationGracePeriodSeconds");
    }
    if !same(Some(&rest), Some(before)) {
        errors.push(FieldError::forbidden("spec", ONLY));
    }
}

fn deadline(errors: &mut Errors, new: &Value, old: &Value) {
    check::between(errors, new, "spec", "activeDeadlineSeconds", 1, i32::MAX.into());
    let (new, old) = (
        meta::int_at(new, "activeDeadlineSeconds"),
        meta::int_at(old, "activeDeadlineSeconds"),
    );
    let path = "spec.activeDeadlineSeconds";
    match (new, old) {
        (Some(n), Some(o)) if n > o => {
            errors.push(FieldError::invalid(
                path,
                n,
                "must be less than or equal to previous value",
            ));
        }
        (None, Some(_)) => {
            let text = "must not update from a positive integer to nil value";
            errors.push(FieldError::invalid(path, Value::Null, text));
        }
        _ => {}
    }
}

fn tolerations(errors: &mut Errors, new: &Value, old: &Value) {
    let strip = |t: &Value| {
        let mut t = t.clone();
        // How long to stay may change; what is tolerated may only grow.
        meta::remove(&mut t, "tolerationSeconds");
        t
    };
    let now: Vec<_> = meta::list_at(new, "tolerations").iter().map(strip).collect();
    let kept = meta::list_at(old, "tolerations")
        .iter()
        .map(strip)
        .all(|t| now.contains(&t));
    if !kept {
        let text = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", text));
    }
}

fn gates(errors: &mut Errors, new: &Value, old: &Value) {
    let known: Vec<_> = meta::list_at(old, "schedulingGates")
        .iter()
        .map(|g| meta::str_at(g, "name"))
        .collect();
    for (path, gate) in items(new, "spec", "schedulingGates") {
        let name = meta::str_at(gate, "name");
        if !known.contains(&name) {
            let text = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(FieldError::forbidden(path, text));
        }
    }
}

/// Ephemeral containers may be added, and stay.
pub(super) fn ephemeral_containers(errors: &mut Errors, new: &Value, old: &Value) {
    const PATH: &str = "spec.ephemeralContainers";
    pod::spec(errors, new.get("spec").unwrap_or(&Value::Null), "spec");
    let now = meta::list_at(new, PATH);
    for container in meta::list_at(old, PATH) {
        let name = meta::str_at(container, "name");
        match now.iter().find(|c| meta::str_at(c, "name") == name) {
            None => errors.push(FieldError::forbidden(
                PATH,
                "existing ephemeral containers may not be removed\n",
            )),
            Some(same_name) if !same(Some(same_name), Some(container)) => errors.push(FieldError::forbidden(
                PATH,
                format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
}

/// Resources may change while the quality of service stays.
pub(super) fn resize(errors: &mut Errors, new: &Value, old: &Value) {
    pod::spec(errors, new.get("spec").unwrap_or(&Value::Null), "spec");
    let (before, after) = (crate::strategy::qos_class(old), crate::strategy::qos_class(new));
    if before != after {
        let text = format!("Pod QOS Class may not change as a result of resizing (from {before} to {after})");
        errors.push(FieldError::invalid("spec", after, text));
    }
    for (list, path) in [
        ("spec.containers", "spec.containers"),
        ("spec.initContainers", "spec.initContainers"),
    ] {
        for (i, (a, b)) in meta::list_at(new, list)
            .iter()
            .zip(meta::list_at(old, list))
            .enumerate()
        {
            for part in ["requests", "limits"] {
                let field = format!("resources.{part}");
                let before = meta::object_at(b, &field);
                let now = meta::object_at(a, &field);
                let names = before
                    .into_iter()
                    .flatten()
                    .chain(now.into_iter().flatten())
                    .map(|(k, _)| k);
                for name in names {
                    let changed = before.and_then(|m| m.get(name)) != now.and_then(|m| m.get(name));
                    if changed && name != "cpu" && name != "memory" {
                        errors.push(FieldError::forbidden(
                            format!("{path}[{i}].resources"),
                            "only cpu and memory resources are mutable",
                        ));
                    }
                }
            }
        }
    }
}

/// What the node reports.
pub(super) fn status(errors: &mut Errors, new: &Value, old: &Value) {
    if meta::str_at(new, "spec.nodeName") != meta::str_at(old, "spec.nodeName") {
        errors.push(FieldError::forbidden(
            "status.nodeName",
            "may not be changed directly",
        ));
    }
    for list in ["status.podIPs", "status.hostIPs"] {
        for (path, ip) in items(new, "", list) {
            check::name(errors, &dot(&path, "ip"), meta::str_at(ip, "ip"), names::ip);
        }
    }
}
