//! The `scale` subresource: one small object for everything that has replicas.

use crate::kinds::Kind;
use crate::meta;
use crate::selector::LabelSelector;
use serde_json::{Value, json};

/// The `autoscaling/v1` Scale of a workload. A plain label map (ReplicationController) works as a selector too.
pub fn of(kind: &Kind, workload: &Value) -> Value {
    if let Some(paths) = kind.custom.as_ref().and_then(|c| c.scale.as_ref()) {
        let mut scale = head(workload);
        if let Some(replicas) = meta::int_at(workload, &paths.spec).filter(|n| *n != 0) {
            scale["spec"]["replicas"] = replicas.into();
        }
        scale["status"] = json!({"replicas": meta::int_at(workload, &paths.status).unwrap_or(0)});
        let selector = meta::str_at(workload, &paths.selector);
        if !paths.selector.is_empty() && !selector.is_empty() {
            scale["status"]["selector"] = selector.into();
        }
        return scale;
    }
    let mut scale = head(workload);
    let selector = match meta::at(workload, "spec.selector") {
        Some(s) if s.get("matchLabels").is_some() || s.get("matchExpressions").is_some() => {
            LabelSelector::from_object(Some(s)).unwrap_or_else(|_| LabelSelector::nothing())
        }
        Some(s) => LabelSelector::from_map(s.as_object()),
        None => LabelSelector::nothing(),
    };
    if let Some(replicas) = meta::int_at(workload, "spec.replicas").filter(|n| *n != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    let mut status = json!({"replicas": meta::int_at(workload, "status.replicas").unwrap_or(0)});
    let text = selector.to_string();
    if !text.is_empty() {
        status["selector"] = text.into();
    }
    scale["status"] = status;
    scale
}

fn head(workload: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::at(workload, "metadata").and_then(|m| m.get(field)) {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": {}})
}

/// Writes the wanted replicas of a Scale into the workload.
pub fn apply(kind: &Kind, scale: &Value, workload: &mut Value) {
    let custom = kind.custom.as_ref().and_then(|c| c.scale.as_ref());
    meta::set(
        workload,
        custom.map_or("spec.replicas", |paths| &paths.spec),
        meta::int_at(scale, "spec.replicas").unwrap_or(0),
    );
}
