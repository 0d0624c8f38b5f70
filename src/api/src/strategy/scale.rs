//! The `scale` subresource: one small object for everything that has replicas.

use crate::meta;
use crate::selector::LabelSelector;
use serde_json::{Value, json};

/// The `autoscaling/v1` Scale of a workload. A plain label map (ReplicationController) works as a selector too.
pub fn of(workload: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::at(workload, "metadata").and_then(|m| m.get(field)) {
            metadata[field] = value.clone();
        }
    }
    let selector = match meta::at(workload, "spec.selector") {
        Some(s) if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            LabelSelector::from_object(Some(s)).unwrap_or_else(|_| LabelSelector::nothing())
        }
        Some(s) => LabelSelector::from_map(s.as_object()),
        None => LabelSelector::nothing(),
    };
    let mut spec = json!({});
    if let Some(replicas) = meta::int_at(workload, "spec.replicas").filter(|n| *n != 0) {
        spec["replicas"] = replicas.into();
    }
    let mut status = json!({"replicas": meta::int_at(workload, "status.replicas").unwrap_or(0)});
    let text = selector.to_string();
    if !text.is_empty() {
        status["selector"] = text.into();
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec, "status": status})
}

/// Writes the wanted replicas of a Scale into the workload.
pub fn apply(scale: &Value, workload: &mut Value) {
    meta::set(
        workload,
        "spec.replicas",
        meta::int_at(scale, "spec.replicas").unwrap_or(0),
    );
}
