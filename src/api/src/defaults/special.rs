//! Defaults that look at more than one field.

use super::is_empty;
use crate::kinds::Kind;
use crate::meta;
use crate::quantity::Quantity;
use base64::Engine as _;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Runs before the rules: what the rules build on.
pub(super) fn before(kind: &Kind, obj: &mut Value) {
    match (&*kind.group, &*kind.kind) {
        ("", "Secret") => merge_string_data(obj),
        ("", "Service") if meta::at(obj, "spec").is_none() => meta::set(obj, "spec", Map::new()),
        ("batch", "Job") => job(obj),
        _ => {}
    }
}

/// Runs after the rules.
pub(super) fn after(kind: &Kind, obj: &mut Value) {
    match (&*kind.group, &*kind.kind) {
        ("", "Pod") => pod(obj),
        ("", "Service") => service(obj),
        ("", "ReplicationController") => replication_controller(obj),
        ("", "Namespace") => {
            let name = meta::name(obj).to_owned();
            if !name.is_empty() {
                meta::set_label(obj, "kubernetes.io/metadata.name", &name);
            }
        }
        ("", "Node") if is_empty(obj, "status.allocatable") && !is_empty(obj, "status.capacity") => {
            let capacity = meta::at(obj, "status.capacity").cloned().unwrap_or_default();
            meta::set(obj, "status.allocatable", capacity);
        }
        ("", "LimitRange") => each(obj, "/spec/limits", limit_range_item),
        ("networking.k8s.io", "NetworkPolicy") if is_empty(obj, "spec.policyTypes") => {
            let egress = meta::at(obj, "spec.egress").is_some_and(|e| !e.is_null());
            let types = if egress {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
            meta::set(obj, "spec.policyTypes", types);
        }
        ("autoscaling", "HorizontalPodAutoscaler") if kind.version == "v2" => autoscaler(obj),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(obj),
        _ => {}
    }
}

fn each(obj: &mut Value, pointer: &str, f: impl FnMut(&mut Value)) {
    if let Some(Value::Array(items)) = obj.pointer_mut(pointer) {
        items.iter_mut().for_each(f);
    }
}

/// `stringData` is write-only: it becomes `data`.
fn merge_string_data(secret: &mut Value) {
    if let Some(Value::Object(plain)) = meta::remove(secret, "stringData") {
        let data = meta::object_mut(secret, "data");
        for (key, value) in plain {
            let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or(""));
            data.insert(key, encoded.into());
        }
    }
}

/// The pull policy an image gets by its tag: what may change is pulled every time.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, "latest")), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

/// The service account has two names for one field; both are always shown.
pub fn service_account(pod_spec: &mut Value) {
    let name = match meta::str_at(pod_spec, "serviceAccountName") {
        "" => meta::str_at(pod_spec, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        meta::set(pod_spec, "serviceAccountName", name.as_str());
        meta::set(pod_spec, "serviceAccount", name);
    }
}

pub(super) fn pod_spec_before(spec: &mut Value) {
    service_account(spec);
    each(spec, "/volumes", |volume| {
        let lonely = volume
            .as_object()
            .is_some_and(|v| v.iter().all(|(k, v)| k == "name" || v.is_null()));
        if lonely {
            meta::set(volume, "emptyDir", Map::new());
        }
        let image = meta::str_at(volume, "image.reference").to_owned();
        if !image.is_empty() && is_empty(volume, "image.pullPolicy") {
            meta::set(volume, "image.pullPolicy", pull_policy(&image));
        }
    });
}

pub(super) fn pod_spec_after(spec: &mut Value) {
    for list in ["/containers", "/initContainers", "/ephemeralContainers"] {
        each(spec, list, |container| {
            if is_empty(container, "imagePullPolicy") {
                let policy = pull_policy(meta::str_at(container, "image"));
                meta::set(container, "imagePullPolicy", policy);
            }
        });
    }
}

/// What holds for pods but not for templates of pods.
fn pod(obj: &mut Value) {
    let host_network = meta::bool_at(obj, "spec.hostNetwork");
    for list in ["/spec/containers", "/spec/initContainers"] {
        each(obj, list, |container| {
            requests_from_limits(container);
            if host_network {
                each(container, "/ports", |port| {
                    if meta::int_at(port, "hostPort").unwrap_or(0) == 0 {
                        let number = meta::at(port, "containerPort").cloned().unwrap_or_default();
                        meta::set(port, "hostPort", number);
                    }
                });
            }
        });
    }
    if !is_empty(obj, "spec.resources.limits") {
        let sums = container_requests(obj);
        let requests = meta::object_mut(obj, "spec.resources.requests");
        for (name, sum) in sums {
            requests.entry(name).or_insert_with(|| sum.to_string().into());
        }
        if let Some(spec) = obj.get_mut("spec") {
            requests_from_limits(spec);
        }
    }
}

/// What the containers of a pod ask for together: all that run side by side, or one init container if it asks
/// for more.
fn container_requests(pod: &Value) -> BTreeMap<String, Quantity> {
    const POD_LEVEL: [&str; 2] = ["cpu", "memory"];
    let amounts = |c: &Value| -> Vec<(String, Quantity)> {
        let requests = meta::object_at(c, "resources.requests").into_iter().flatten();
        requests
            .filter(|(name, _)| POD_LEVEL.contains(&name.as_str()))
            .filter_map(|(name, v)| Some((name.clone(), Quantity::from_value(v).ok()?)))
            .collect()
    };
    let add = |sums: &mut BTreeMap<String, Quantity>, c: &Value| {
        for (name, q) in amounts(c) {
            let sum = sums.entry(name).or_insert(Quantity::ZERO);
            *sum = sum.plus(&q);
        }
    };
    let mut together = BTreeMap::new();
    for c in meta::list_at(pod, "spec.containers") {
        add(&mut together, c);
    }
    // Sidecars run beside everything that comes after them.
    let (mut sidecars, mut peak) = (BTreeMap::new(), BTreeMap::<String, Quantity>::new());
    for c in meta::list_at(pod, "spec.initContainers") {
        let mut now = sidecars.clone();
        add(&mut now, c);
        if meta::str_at(c, "restartPolicy") == "Always" {
            sidecars = now.clone();
            add(&mut together, c);
        }
        for (name, q) in now {
            let most = peak.entry(name).or_insert(q);
            *most = (*most).max(q);
        }
    }
    for (name, q) in peak {
        let sum = together.entry(name).or_insert(q);
        *sum = (*sum).max(q);
    }
    together
}

/// A limit without a request is a request of the same amount.
fn requests_from_limits(holder: &mut Value) {
    let Some(limits) = meta::object_at(holder, "resources.limits").cloned() else {
        return;
    };
    if limits.is_empty() {
        return;
    }
    let requests = meta::object_mut(holder, "resources.requests");
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

fn service(obj: &mut Value) {
    if meta::str_at(obj, "spec.sessionAffinity") == "None" {
        meta::remove(obj, "spec.sessionAffinityConfig");
    }
    each(obj, "/spec/ports", |port| {
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::String(s)) => s.is_empty(),
            Some(Value::Number(n)) => n.as_i64() == Some(0),
            Some(_) => false,
        };
        if unset && let Some(number) = port.get("port").cloned() {
            meta::set(port, "targetPort", number);
        }
    });
    let exposed = meta::str_at(obj, "spec.type") == "ClusterIP" && !is_empty(obj, "spec.externalIPs");
    if exposed && is_empty(obj, "spec.externalTrafficPolicy") {
        meta::set(obj, "spec.externalTrafficPolicy", "Cluster");
    }
}

fn replication_controller(obj: &mut Value) {
    let Some(labels) = meta::at(obj, "spec.template.metadata.labels").cloned() else {
        return;
    };
    for path in ["spec.selector", "metadata.labels"] {
        if is_empty(obj, path) {
            meta::set(obj, path, labels.clone());
        }
    }
}

fn job(obj: &mut Value) {
    if meta::at(obj, "spec").is_none() {
        return;
    }
    let has = |field: &str| meta::at(obj, field).is_some_and(|v| !v.is_null());
    let (completions, parallelism) = (has("spec.completions"), has("spec.parallelism"));
    let (backoff, per_index) = (has("spec.backoffLimit"), has("spec.backoffLimitPerIndex"));
    let replacement = if has("spec.podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    if !completions && !parallelism {
        meta::set(obj, "spec.completions", 1);
    }
    if !parallelism {
        meta::set(obj, "spec.parallelism", 1);
    }
    if !backoff {
        meta::set(obj, "spec.backoffLimit", if per_index { i32::MAX } else { 6 });
    }
    if is_empty(obj, "spec.podReplacementPolicy") {
        meta::set(obj, "spec.podReplacementPolicy", replacement);
    }
    if is_empty(obj, "metadata.labels")
        && let Some(labels) = meta::at(obj, "spec.template.metadata.labels").cloned()
    {
        meta::set(obj, "metadata.labels", labels);
    }
}

fn limit_range_item(item: &mut Value) {
    if meta::str_at(item, "type") != "Container" {
        return;
    }
    for (to, from) in [
        ("default", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "min"),
    ] {
        let Some(amounts) = meta::object_at(item, from).cloned() else {
            continue;
        };
        let target = meta::object_mut(item, to);
        for (name, amount) in amounts {
            target.entry(name).or_insert(amount);
        }
    }
}

fn autoscaler(obj: &mut Value) {
    if is_empty(obj, "spec.metrics") && meta::at(obj, "spec").is_some() {
        meta::set(
            obj,
            "spec.metrics",
            json!([{"type": "Resource", "resource":
                {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
        );
    }
    if meta::at(obj, "spec.behavior").is_none_or(Value::is_null) {
        return;
    }
    let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]});
    let down =
        json!({"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]});
    for (direction, defaults) in [("scaleUp", up), ("scaleDown", down)] {
        let rules = meta::object_mut(obj, &format!("spec.behavior.{direction}"));
        for (field, value) in defaults.as_object().into_iter().flatten() {
            rules.entry(field.clone()).or_insert_with(|| value.clone());
        }
    }
}

fn definition(obj: &mut Value) {
    let kind = meta::str_at(obj, "spec.names.kind").to_owned();
    if kind.is_empty() {
        return;
    }
    if is_empty(obj, "spec.names.singular") {
        meta::set(obj, "spec.names.singular", kind.to_lowercase());
    }
    if is_empty(obj, "spec.names.listKind") {
        meta::set(obj, "spec.names.listKind", format!("{kind}List"));
    }
}
