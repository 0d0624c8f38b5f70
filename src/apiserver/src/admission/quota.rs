//! LimitRange and ResourceQuota.
//!
//! Usage of a quota is counted from the objects in the store at the moment of
//! asking; the controller only publishes it in the quota's status. In a
//! namespace with quotas creations are counted and committed one at a time.

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_api::meta;
use skiff_api::quantity::Quantity;
use skiff_api::status::Status;
use skiff_store::Precondition;

use super::{Attempt, Operation};

type Amounts = BTreeMap<String, Quantity>;

fn amounts(value: &Value) -> Amounts {
    let entries = value.as_object().into_iter().flatten();
    entries
        .filter_map(|(k, v)| Some((k.clone(), Quantity::from_value(v).ok()?)))
        .collect()
}

fn ranges(attempt: &Attempt<'_>) -> Vec<Value> {
    let kind = attempt.server.core("limitranges");
    attempt.server.objects(kind, Some(&attempt.call.info.namespace))
}

fn container_lists(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|l| pod["spec"][l].as_array().into_iter().flatten())
}

/// Containers that ask for nothing get what the namespace's LimitRanges say.
pub fn limit_defaults(attempt: &Attempt<'_>, pod: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !attempt.creates("", "pods") {
        return Ok(());
    }
    for range in ranges(attempt) {
        for item in meta::list_at(&range, "spec.limits")
            .iter()
            .filter(|i| i["type"] == "Container")
        {
            for list in ["initContainers", "containers"] {
                let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else {
                    continue;
                };
                for container in containers {
                    for (default, field) in [("default", "limits"), ("defaultRequest", "requests")] {
                        let Some(values) = item[default].as_object() else {
                            continue;
                        };
                        let own = meta::object_mut(container, &format!("resources.{field}"));
                        for (name, value) in values {
                            own.entry(name.clone()).or_insert_with(|| value.clone());
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Containers, pods and claims must lie within the namespace's LimitRanges.
pub fn limits(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    _: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let Some(object) = object else { return Ok(()) };
    let (pod, claim) = (
        attempt.creates("", "pods"),
        attempt.creates("", "persistentvolumeclaims"),
    );
    if !pod && !claim {
        return Ok(());
    }
    let mut errors = Vec::new();
    for range in ranges(attempt) {
        for item in meta::list_at(&range, "spec.limits") {
            match item["type"].as_str() {
                Some("Container") if pod => {
                    for container in container_lists(object) {
                        let resources = &container["resources"];
                        check(
                            item,
                            "Container",
                            &amounts(&resources["requests"]),
                            &amounts(&resources["limits"]),
                            &mut errors,
                        );
                    }
                }
                Some("Pod") if pod => check(
                    item,
                    "Pod",
                    &pod_total(object, "requests"),
                    &pod_total(object, "limits"),
                    &mut errors,
                ),
                Some("PersistentVolumeClaim") if claim => {
                    let requests = amounts(&object["spec"]["resources"]["requests"]);
                    check(item, "PersistentVolumeClaim", &requests, &requests, &mut errors);
                }
                _ => {}
            }
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let why = if errors.len() == 1 {
        errors.remove(0)
    } else {
        format!("[{}]", errors.join(", "))
    };
    Err(attempt.forbidden(meta::name(object), &why))
}

fn shown(q: &Quantity) -> String {
    q.to_string()
}

fn check(item: &Value, what: &str, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (name, min) in amounts(&item["min"]) {
        match requests.get(&name) {
            None => errors.push(format!(
                "minimum {name} usage per {what} is {}.  No request is specified",
                shown(&min)
            )),
            Some(have) if have.minus(&min).sign() < 0 => errors.push(format!(
                "minimum {name} usage per {what} is {}, but request is {}",
                shown(&min),
                shown(have)
            )),
            Some(_) => {}
        }
    }
    for (name, max) in amounts(&item["max"]) {
        match limits.get(&name) {
            None => errors.push(format!(
                "maximum {name} usage per {what} is {}.  No limit is specified",
                shown(&max)
            )),
            Some(have) if have.minus(&max).sign() > 0 => errors.push(format!(
                "maximum {name} usage per {what} is {}, but limit is {}",
                shown(&max),
                shown(have)
            )),
            Some(_) => {}
        }
    }
}

/// Sum over containers, or the largest init container if that is more.
fn pod_total(pod: &Value, field: &str) -> Amounts {
    let mut total = Amounts::new();
    for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
        for (name, amount) in amounts(&container["resources"][field]) {
            let sum = total.get(&name).map_or_else(|| amount, |t| t.plus(&amount));
            total.insert(name, sum);
        }
    }
    for container in pod["spec"]["initContainers"].as_array().into_iter().flatten() {
        for (name, amount) in amounts(&container["resources"][field]) {
            if total.get(&name).is_none_or(|t| amount.minus(t).sign() > 0) {
                total.insert(name, amount);
            }
        }
    }
    total
}

/// What one object adds to a quota, by the quota's resource names.
pub fn usage(kind: &skiff_api::kinds::Kind, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    let one = Quantity::units(1);
    let count = if kind.group.is_empty() {
        format!("count/{}", kind.plural)
    } else {
        format!("count/{}.{}", kind.plural, kind.group)
    };
    used.insert(count, one);
    if kind.group.is_empty() {
        match &*kind.plural {
            "pods" => {
                if matches!(meta::str_at(object, "status.phase"), "Succeeded" | "Failed") {
                    return used;
                }
                used.insert("pods".to_owned(), one);
                for (field, prefix) in [("requests", "requests."), ("limits", "limits.")] {
                    for (name, amount) in pod_total(object, field) {
                        if field == "requests" {
                            used.insert(name.clone(), amount);
                        }
                        used.insert(format!("{prefix}{name}"), amount);
                    }
                }
            }
            "services" => {
                used.insert("services".to_owned(), one);
                match meta::str_at(object, "spec.type") {
                    "LoadBalancer" => {
                        used.insert("services.loadbalancers".to_owned(), one);
                        let ports = meta::list_at(object, "spec.ports").len() as i64;
                        used.insert("services.nodeports".to_owned(), Quantity::units(ports));
                    }
                    "NodePort" => {
                        let ports = meta::list_at(object, "spec.ports").len() as i64;
                        used.insert("services.nodeports".to_owned(), Quantity::units(ports));
                    }
                    _ => {}
                }
            }
            "persistentvolumeclaims" => {
                used.insert("persistentvolumeclaims".to_owned(), one);
                if let Some(size) = amounts(&object["spec"]["resources"]["requests"]).remove("storage") {
                    used.insert("requests.storage".to_owned(), size);
                }
            }
            "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
                used.insert(kind.plural.to_string(), one);
            }
            _ => {}
        }
    }
    used
}

/// A namespace holds no more than its quotas allow.
pub fn quota(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    _: Option<&Value>,
    conditions: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    let Some(object) = object else { return Ok(()) };
    if attempt.operation != Operation::Create || !call.kind.namespaced || !call.sub_name().is_empty() {
        return Ok(());
    }
    let server = attempt.server;
    let namespace = call.info.namespace.as_str();
    let quota_kind = server.core("resourcequotas");
    let snapshot = server.store.snapshot();
    let prefix = quota_kind.prefix_in(Some(namespace));
    for entry in snapshot.range(&prefix, None) {
        let Ok(quota) = serde_json::from_slice::<Value>(&entry.value) else {
            continue;
        };
        let has_scopes =
            !meta::list_at(&quota, "spec.scopes").is_empty() || quota["spec"]["scopeSelector"].is_object();
        if has_scopes && call.kind.plural != "pods" {
            continue;
        }
        if has_scopes && !in_scopes(&quota, object) {
            continue;
        }
        let hard = amounts(&quota["spec"]["hard"]);
        let wanted = usage(&call.kind, object);
        let relevant: Vec<&String> = hard.keys().filter(|k| wanted.contains_key(*k)).collect();
        let computed = [
            "cpu",
            "memory",
            "requests.cpu",
            "requests.memory",
            "limits.cpu",
            "limits.memory",
        ];
        if call.kind.plural == "pods" && call.kind.group.is_empty() {
            let missing: Vec<&str> = computed
                .into_iter()
                .filter(|c| hard.contains_key(*c) && !wanted.contains_key(*c))
                .collect();
            if !missing.is_empty() {
                let why = format!(
                    "failed quota: {}: must specify {}",
                    meta::name(&quota),
                    missing.join(",")
                );
                return Err(attempt.forbidden(meta::name(object), &why));
            }
        }
        if relevant.is_empty() {
            continue;
        }
        let mut used = Amounts::new();
        for other in snapshot.range(&call.kind.prefix_in(Some(namespace)), None) {
            let Ok(other) = serde_json::from_slice::<Value>(&other.value) else {
                continue;
            };
            if has_scopes && !in_scopes(&quota, &other) {
                continue;
            }
            for (name, amount) in usage(&call.kind, &other) {
                let sum = used.get(&name).map_or_else(|| amount, |u| u.plus(&amount));
                used.insert(name, sum);
            }
        }
        let over: Vec<&String> = relevant
            .into_iter()
            .filter(|name| {
                let have = used
                    .get(*name)
                    .map_or_else(|| wanted[*name], |u| u.plus(&wanted[*name]));
                have.minus(&hard[*name]).sign() > 0
            })
            .collect();
        if !over.is_empty() {
            let list = |of: &Amounts| {
                let items: Vec<String> = over
                    .iter()
                    .map(|n| format!("{n}={}", of.get(*n).map_or_else(|| "0".to_owned(), shown)))
                    .collect();
                items.join(",")
            };
            let why = format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                meta::name(&quota),
                list(&wanted),
                list(&used),
                list(&hard)
            );
            return Err(attempt.forbidden(meta::name(object), &why));
        }
        conditions.push(Precondition::Revision {
            key: entry.key.to_string(),
            mod_revision: entry.mod_revision,
        });
    }
    Ok(())
}

fn in_scopes(quota: &Value, pod: &Value) -> bool {
    let terminating = meta::int_at(pod, "spec.activeDeadlineSeconds").is_some();
    let best_effort = container_lists(pod).all(|c| {
        ["requests", "limits"]
            .iter()
            .all(|f| amounts(&c["resources"][f]).is_empty())
    });
    let class = meta::str_at(pod, "spec.priorityClassName");
    let scope = |name: &str, operator: &str, values: &[Value]| match name {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => match operator {
            "In" => values.iter().any(|v| v == class),
            "NotIn" => !values.iter().any(|v| v == class),
            "DoesNotExist" => class.is_empty(),
            _ => !class.is_empty(),
        },
        _ => false,
    };
    let plain = meta::list_at(quota, "spec.scopes")
        .iter()
        .all(|s| scope(s.as_str().unwrap_or_default(), "Exists", &[]));
    let selected = meta::list_at(quota, "spec.scopeSelector.matchExpressions")
        .iter()
        .all(|e| {
            scope(
                e["scopeName"].as_str().unwrap_or_default(),
                e["operator"].as_str().unwrap_or_default(),
                meta::list_at(e, "values"),
            )
        });
    plain && selected
}
