//! Pods: first status, quality of service, and the parts that their subresources may change.

use crate::meta;
use crate::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) fn on_create(pod: &mut Value) {
    // Admission may have chosen the account after the defaults were set.
    if let Some(spec) = pod.get_mut("spec") {
        crate::defaults::service_account(spec);
    }
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if !meta::list_at(pod, "spec.schedulingGates").is_empty() {
        status["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    meta::set(pod, "status", status);
    merge_label_keys(pod);
}

/// `matchLabelKeys` say "with my own value of these labels": from here on they are plain requirements.
fn merge_label_keys(pod: &mut Value) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let labels = meta::labels(pod).cloned().unwrap_or_default();
    let merge = |term: &mut Value| {
        if meta::object_at(term, "labelSelector").is_none() {
            return;
        }
        for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            let keys: Vec<String> = meta::list_at(term, field)
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect();
            for key in keys {
                let Some(value) = labels.get(&key) else { continue };
                let requirement = json!({"key": key, "operator": operator, "values": [value]});
                let list = meta::object_mut(term, "labelSelector")
                    .entry("matchExpressions")
                    .or_insert(json!([]));
                if let Some(list) = list.as_array_mut().filter(|l| !l.contains(&requirement)) {
                    list.push(requirement);
                }
            }
        }
    };
    let each = |pod: &mut Value, pointer: &str, inner: Option<&str>| {
        for item in pod
            .pointer_mut(pointer)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            match inner {
                None => merge(item),
                Some(field) => item.get_mut(field).into_iter().for_each(merge),
            }
        }
    };
    for side in ["podAffinity", "podAntiAffinity"] {
        each(pod, &format!("/spec/affinity/{side}/{REQUIRED}"), None);
        each(
            pod,
            &format!("/spec/affinity/{side}/{PREFERRED}"),
            Some("podAffinityTerm"),
        );
    }
    each(pod, "/spec/topologySpreadConstraints", None);
}

/// A status written by a client that does not know all fields keeps what the server remembers.
pub(super) fn on_status_update(new: &mut Value, old: &Value) {
    if !meta::is_deleting(old) {
        meta::remove(new, "metadata.deletionTimestamp");
        meta::remove(new, "metadata.deletionGracePeriodSeconds");
    }
    for field in ["status.qosClass", "status.observedGeneration"] {
        if meta::at(new, field).is_none_or(|v| v.is_null() || v == "" || v == 0) {
            meta::copy(old, new, field);
        }
    }
    let known: Vec<(String, Value)> = meta::list_at(old, "status.conditions")
        .iter()
        .filter_map(|c| {
            Some((
                meta::str_at(c, "type").to_owned(),
                c.get("observedGeneration")?.clone(),
            ))
        })
        .collect();
    for condition in new
        .pointer_mut("/status/conditions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if meta::int_at(condition, "observedGeneration").unwrap_or(0) == 0
            && let Some((_, generation)) = known.iter().find(|(t, _)| t == meta::str_at(condition, "type"))
        {
            meta::set(condition, "observedGeneration", generation.clone());
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the CPU and memory of all containers.
pub fn qos_class(pod: &Value) -> &'static str {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let class = |resources: &[&Value]| {
        let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
        let mut guaranteed = true;
        for r in resources {
            let read = |list: &str, name: &str| {
                let q = Quantity::from_value(r.get(list)?.get(name)?).ok()?;
                (q.sign() > 0).then_some(q)
            };
            for name in COUNTED {
                if let Some(q) = read("requests", name) {
                    let sum = requests.entry(name).or_insert(Quantity::ZERO);
                    *sum = sum.plus(&q);
                }
                match read("limits", name) {
                    Some(q) => {
                        let sum = limits.entry(name).or_insert(Quantity::ZERO);
                        *sum = sum.plus(&q);
                    }
                    None => guaranteed = false,
                }
            }
        }
        match (
            requests.is_empty() && limits.is_empty(),
            guaranteed && requests == limits,
        ) {
            (true, _) => "BestEffort",
            (_, true) => "Guaranteed",
            _ => "Burstable",
        }
    };
    if let Some(whole) = meta::at(pod, "spec.resources") {
        return class(&[whole]);
    }
    const NONE: &Value = &Value::Null;
    let containers = meta::list_at(pod, "spec.initContainers")
        .iter()
        .chain(meta::list_at(pod, "spec.containers"));
    class(
        &containers
            .map(|c| c.get("resources").unwrap_or(NONE))
            .collect::<Vec<_>>(),
    )
}

/// Everything but the named spec fields is as stored.
pub(super) fn only(new: &mut Value, old: &Value, spec_fields: &[&str]) {
    let version = meta::resource_version(new).to_owned();
    let managed = meta::at(new, "metadata.managedFields").cloned();
    let mut result = old.clone();
    for field in spec_fields {
        meta::copy(new, &mut result, &format!("spec.{field}"));
    }
    meta::set_resource_version(&mut result, &version);
    if let Some(managed) = managed {
        meta::set(&mut result, "metadata.managedFields", managed);
    }
    *new = result;
}

/// Everything but the resources of containers is as stored.
pub(super) fn only_resources(new: &mut Value, old: &Value) {
    let asked = new.clone();
    only(new, old, &["resources"]);
    for list in ["containers", "initContainers"] {
        let wanted = meta::list_at(&asked, &format!("spec.{list}"));
        let Some(containers) = new
            .pointer_mut(&format!("/spec/{list}"))
            .and_then(Value::as_array_mut)
        else {
            continue;
        };
        for container in containers {
            let name = meta::str_at(container, "name").to_owned();
            if let Some(from) = wanted.iter().find(|c| meta::str_at(c, "name") == name) {
                meta::copy(from, container, "resources");
                meta::copy(from, container, "resizePolicy");
            }
        }
    }
}
