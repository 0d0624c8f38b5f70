//! Translation between served and stored versions.
//!
//! Only two kinds have more than one form: `Event` (core and `events.k8s.io`, stored as the core form) and
//! `HorizontalPodAutoscaler` (v1 and v2, stored as v2). What v1 of the autoscaler cannot say travels in the
//! annotations that Kubernetes uses for it, so that a round trip through v1 loses nothing.

use crate::kinds::Kind;
use crate::meta;
use serde_json::{Map, Value, json};

/// Field names of an event: core form, `events.k8s.io` form.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// From the version of `kind` to the stored version.
pub fn to_storage(kind: &Kind, obj: &mut Value) {
    if !kind.is_storage_version() {
        match (&*kind.group, &*kind.kind) {
            ("events.k8s.io", "Event") => rename(obj, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core))),
            ("autoscaling", "HorizontalPodAutoscaler") => autoscaler_to_v2(obj),
            _ => {}
        }
        meta::set(obj, "apiVersion", kind.storage_api_version().into_owned());
    }
}

/// From the stored version to the version of `kind`.
pub fn from_storage(kind: &Kind, obj: &mut Value) {
    if !kind.is_storage_version() {
        match (&*kind.group, &*kind.kind) {
            ("events.k8s.io", "Event") => rename(obj, EVENT_FIELDS.iter().copied()),
            ("autoscaling", "HorizontalPodAutoscaler") => autoscaler_to_v1(obj),
            _ => {}
        }
        meta::set(obj, "apiVersion", kind.api_version().into_owned());
    }
}

fn rename<'a>(obj: &mut Value, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = obj.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

/// The CPU utilization that v1 keeps in a field of its own.
fn cpu_utilization(metric: &Value, target: &str) -> Option<Value> {
    let resource = metric.get("resource")?;
    let cpu = meta::str_at(metric, "type") == "Resource" && meta::str_at(resource, "name") == "cpu";
    let value = meta::at(resource, target)?.get("averageUtilization")?;
    cpu.then(|| value.clone())
}

fn autoscaler_to_v1(obj: &mut Value) {
    let metrics = take_list(obj, "spec.metrics");
    let mut others = Vec::new();
    let mut cpu = None;
    for metric in metrics {
        match cpu_utilization(&metric, "target") {
            Some(value) if cpu.is_none() => cpu = Some(value),
            _ => others.push(source_to_v1(&metric, "target", "target")),
        }
    }
    if let Some(cpu) = cpu {
        meta::set(obj, "spec.targetCPUUtilizationPercentage", cpu);
    }
    annotate(obj, METRICS, Value::Array(others));

    let mut current = Vec::new();
    let mut cpu = None;
    for metric in take_list(obj, "status.currentMetrics") {
        if cpu.is_none() {
            cpu = cpu_utilization(&metric, "current");
        }
        current.push(source_to_v1(&metric, "current", "current"));
    }
    if let Some(cpu) = cpu {
        meta::set(obj, "status.currentCPUUtilizationPercentage", cpu);
    }
    annotate(obj, CURRENT_METRICS, Value::Array(current));
    let conditions = take_list(obj, "status.conditions");
    annotate(obj, CONDITIONS, Value::Array(conditions));
    if let Some(behavior) = meta::remove(obj, "spec.behavior") {
        annotate(obj, BEHAVIOR, behavior);
    }
    if meta::at(obj, "status").is_some_and(|s| s.get("desiredReplicas").is_none()) {
        meta::set(obj, "status.desiredReplicas", 0);
    }
}

fn autoscaler_to_v2(obj: &mut Value) {
    let mut metrics: Vec<Value> = Vec::new();
    if let Some(Value::Array(items)) = unannotate(obj, METRICS) {
        metrics.extend(items.iter().map(|m| source_to_v2(m, "target", "target")));
    }
    if let Some(cpu) = meta::remove(obj, "spec.targetCPUUtilizationPercentage") {
        metrics.push(json!({"type": "Resource", "resource":
            {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": cpu}}}));
    }
    if !metrics.is_empty() {
        meta::set(obj, "spec.metrics", metrics);
    }
    let cpu = meta::remove(obj, "status.currentCPUUtilizationPercentage");
    match unannotate(obj, CURRENT_METRICS) {
        Some(Value::Array(items)) => {
            let items: Vec<Value> = items
                .iter()
                .map(|m| source_to_v2(m, "current", "current"))
                .collect();
            meta::set(obj, "status.currentMetrics", items);
        }
        _ => {
            if let Some(cpu) = cpu {
                meta::set(
                    obj,
                    "status.currentMetrics",
                    json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": cpu}}}]),
                );
            }
        }
    }
    if let Some(conditions) = unannotate(obj, CONDITIONS) {
        meta::set(obj, "status.conditions", conditions);
    }
    if let Some(behavior) = unannotate(obj, BEHAVIOR) {
        meta::set(obj, "spec.behavior", behavior);
    }
}

fn take_list(obj: &mut Value, path: &str) -> Vec<Value> {
    match meta::remove(obj, path) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

fn annotate(obj: &mut Value, key: &str, value: Value) {
    let empty = value.as_array().is_some_and(Vec::is_empty) || value.is_null();
    if !empty {
        meta::set_annotation(obj, key, &value.to_string());
    }
}

fn unannotate(obj: &mut Value, key: &str) -> Option<Value> {
    let annotations = obj.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    if annotations.is_empty() {
        meta::remove(obj, "metadata.annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

/// Member of a metric that holds its source, by type.
const SOURCES: &[(&str, &str)] = &[
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("Pods", "pods"),
    ("Object", "object"),
    ("External", "external"),
];

/// `{metric: {name, selector}, target: {averageValue}}` → `{metricName, selector, targetAverageValue}`.
fn source_to_v1(metric: &Value, values: &str, prefix: &str) -> Value {
    let kind = meta::str_at(metric, "type");
    let Some((_, member)) = SOURCES.iter().find(|(k, _)| *k == kind) else {
        return metric.clone();
    };
    let mut out: Map<String, Value> = metric
        .get(member)
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    if let Some(Value::Object(id)) = out.remove("metric") {
        for (field, value) in id {
            let name = match (field.as_str(), kind) {
                ("name", _) => "metricName",
                ("selector", "External") => "metricSelector",
                (other, _) => other,
            };
            out.insert(name.to_owned(), value);
        }
    }
    let numbers = match out.remove(values) {
        Some(Value::Object(n)) => n,
        _ => Map::new(),
    };
    if let Some(target) = out.remove("describedObject") {
        out.insert("target".into(), target);
    }
    for (field, value) in numbers {
        let name = match (field.as_str(), kind) {
            ("type", _) => continue,
            ("averageValue", "Object") => "averageValue".to_owned(),
            (f, _) => format!("{prefix}{}{}", f[..1].to_uppercase(), &f[1..]),
        };
        out.insert(name, value);
    }
    json!({"type": kind, *member: out})
}

/// The reverse of [`source_to_v1`].
fn source_to_v2(metric: &Value, values: &str, prefix: &str) -> Value {
    let kind = meta::str_at(metric, "type");
    let Some((_, member)) = SOURCES.iter().find(|(k, _)| *k == kind) else {
        return metric.clone();
    };
    let source = metric
        .get(member)
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let (mut out, mut id, mut numbers) = (Map::new(), Map::new(), Map::new());
    for (field, value) in source {
        match field.as_str() {
            "metricName" => id.insert("name".into(), value),
            "selector" | "metricSelector" => id.insert("selector".into(), value),
            "target" => out.insert("describedObject".into(), value),
            "averageValue" => numbers.insert("averageValue".into(), value),
            f => match f.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
                Some(rest) => numbers.insert(format!("{}{}", rest[..1].to_lowercase(), &rest[1..]), value),
                None => out.insert(field, value),
            },
        };
    }
    if values == "target" {
        let zero = numbers.get("value").is_some_and(|v| v == "0") && numbers.contains_key("averageValue");
        if zero {
            numbers.remove("value");
        }
        let target = ["averageUtilization", "averageValue"]
            .iter()
            .find(|f| numbers.contains_key(**f));
        let target = match target {
            Some(&"averageUtilization") => "Utilization",
            Some(_) => "AverageValue",
            None => "Value",
        };
        numbers.insert("type".into(), target.into());
    }
    if !id.is_empty() {
        out.insert("metric".into(), id.into());
    }
    out.insert(values.to_owned(), numbers.into());
    json!({"type": kind, *member: out})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kinds;

    #[test]
    fn events_translate_both_ways() {
        let kind = Kinds::builtin().of("events.k8s.io/v1", "Event").unwrap();
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod"}, "note": "hello", "reason": "R", "deprecatedCount": 3,
            "reportingController": "c"});
        let mut obj = new.clone();
        to_storage(kind, &mut obj);
        assert_eq!(
            obj,
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
                "message": "hello", "reason": "R", "count": 3, "reportingComponent": "c"})
        );
        from_storage(kind, &mut obj);
        assert_eq!(obj, new);
    }

    #[test]
    fn autoscalers_survive_a_round_trip_through_v1() {
        let kind = Kinds::builtin()
            .of("autoscaling/v1", "HorizontalPodAutoscaler")
            .unwrap();
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}, "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "p"}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
                {"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"},
                    "metric": {"name": "o"}, "target": {"type": "Value", "value": "10"}}},
                {"type": "External", "external": {"metric": {"name": "e", "selector": {"matchLabels": {"a": "b"}}},
                    "target": {"type": "Value", "value": "7"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
            ]},
            "status": {"desiredReplicas": 1, "currentReplicas": 1,
                "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 11, "averageValue": "5m"}}}]}});
        let mut obj = v2.clone();
        from_storage(kind, &mut obj);
        assert_eq!(obj["apiVersion"], "autoscaling/v1");
        assert_eq!(obj["spec"]["targetCPUUtilizationPercentage"], 80);
        assert_eq!(obj["status"]["currentCPUUtilizationPercentage"], 11);
        assert!(obj["spec"].get("metrics").is_none());
        to_storage(kind, &mut obj);
        assert_eq!(obj, v2);
    }
}
