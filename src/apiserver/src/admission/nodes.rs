//! Nodes: what kubelets may write, how new nodes start, what pods tolerate.

use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::Status;
use skiff_store::Precondition;

use super::{Attempt, Operation};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// How long pods stay on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels below these domains that a kubelet may set on its node.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
];

/// Pods leave failed nodes after five minutes unless they say otherwise.
pub fn default_tolerations(attempt: &Attempt<'_>, pod: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !attempt.creates("", "pods") {
        return Ok(());
    }
    for key in [NOT_READY, UNREACHABLE] {
        let tolerated = meta::list_at(pod, "spec.tolerations").iter().any(|t| {
            let same_key = t["key"].as_str().is_none_or(|k| k.is_empty() || k == key);
            let same_effect = t["effect"]
                .as_str()
                .is_none_or(|e| e.is_empty() || e == "NoExecute");
            same_key && same_effect
        });
        if tolerated {
            continue;
        }
        if !pod["spec"]["tolerations"].is_array() {
            pod["spec"]["tolerations"] = json!([]);
        }
        if let Some(list) = pod["spec"]["tolerations"].as_array_mut() {
            list.push(json!({ "key": key, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS }));
        }
    }
    Ok(())
}

/// A new node takes no pods until it is known to be ready.
pub fn taint_new(attempt: &Attempt<'_>, node: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !attempt.creates("", "nodes") {
        return Ok(());
    }
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    if !node["spec"]["taints"].is_array() {
        node["spec"]["taints"] = json!([]);
    }
    if let Some(taints) = node["spec"]["taints"].as_array_mut()
        && !taints
            .iter()
            .any(|t| t["key"] == NOT_READY && t["effect"] == "NoSchedule")
    {
        taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
    }
    Ok(())
}

/// A kubelet writes to its own node and to the pods on it, nothing else.
pub fn restriction(
    attempt: &Attempt<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    _: &mut Vec<Precondition>,
) -> Result<(), Status> {
    let call = attempt.call;
    let Some(node) = call.user.node_name() else {
        return Ok(());
    };
    let name = call.info.name.as_str();
    let refuse = |why: String| Err(attempt.forbidden(name, &why));
    match (&*call.kind.group, &*call.kind.plural, call.sub_name()) {
        ("", "nodes", sub) => {
            let target = object.or(old).map(meta::name).unwrap_or(name);
            if target != node {
                return refuse(format!("node {node:?} is not allowed to modify node {target:?}"));
            }
            if sub.is_empty()
                && let Some(object) = object
            {
                return own_node(attempt, node, object, old);
            }
            Ok(())
        }
        ("", "pods", "") => match (attempt.operation, object, old) {
            (Operation::Create, Some(pod), _) => {
                if meta::annotation(pod, MIRROR).is_none() {
                    return refuse(format!(
                        "pod does not have \"{MIRROR}\" annotation, node {node:?} can only create mirror pods"
                    ));
                }
                if meta::str_at(pod, "spec.nodeName") != node {
                    return refuse(format!(
                        "node {node:?} can only create pods with spec.nodeName set to itself"
                    ));
                }
                for field in ["configMap", "secret", "persistentVolumeClaim"] {
                    if meta::list_at(pod, "spec.volumes")
                        .iter()
                        .any(|v| v.get(field).is_some_and(|f| !f.is_null()))
                    {
                        return refuse(format!(
                            "node {node:?} can not create pods that reference {field}s"
                        ));
                    }
                }
                Ok(())
            }
            (Operation::Delete, _, Some(pod)) => on_node(attempt, node, pod, "delete"),
            _ => refuse(format!(
                "unexpected operation, node {node:?} can only create and delete mirror pods"
            )),
        },
        ("", "pods", "status") => match (object, old) {
            (Some(new), Some(old)) => {
                if meta::labels(new) != meta::labels(old) {
                    return refuse(format!("node {node:?} cannot update labels through pod status"));
                }
                on_node(attempt, node, old, "update status for")
            }
            _ => Ok(()),
        },
        ("", "pods", "eviction") => match attempt.server.object("pods", &call.info.namespace, name) {
            Some(pod) => on_node(attempt, node, &pod, "evict"),
            None => Err(Status::not_found("pods", name)),
        },
        ("coordination.k8s.io", "leases", "") => {
            if call.info.namespace != "kube-node-lease" {
                return refuse(format!(
                    "can only access leases in the \"kube-node-lease\" system namespace, not {:?}",
                    call.info.namespace
                ));
            }
            let target = object.or(old).map(meta::name).unwrap_or(name);
            if target != node {
                return refuse(format!(
                    "can only access node lease with the same name as the requesting node, {node:?}"
                ));
            }
            Ok(())
        }
        ("storage.k8s.io", "csinodes", "") => {
            let target = object.or(old).map(meta::name).unwrap_or(name);
            if target == node {
                Ok(())
            } else {
                refuse(format!(
                    "can only access CSINode with the same name as the requesting node, {node:?}"
                ))
            }
        }
        _ => Ok(()),
    }
}

fn on_node(attempt: &Attempt<'_>, node: &str, pod: &Value, what: &str) -> Result<(), Status> {
    if meta::str_at(pod, "spec.nodeName") == node {
        return Ok(());
    }
    let why = format!("node {node:?} can only {what} pods with spec.nodeName set to itself");
    Err(attempt.forbidden(meta::name(pod), &why))
}

fn own_node(attempt: &Attempt<'_>, node: &str, object: &Value, old: Option<&Value>) -> Result<(), Status> {
    let refuse = |why: String| Err(attempt.forbidden(node, &why));
    let Some(old) = old else {
        let bad = refused_labels(object, None);
        return if bad.is_empty() {
            Ok(())
        } else {
            refuse(format!(
                "is not allowed to set the following labels: {}",
                bad.join(", ")
            ))
        };
    };
    if meta::at(object, "spec.taints") != meta::at(old, "spec.taints") {
        return refuse(format!("node {node:?} is not allowed to modify taints"));
    }
    if object["spec"]["configSource"] != old["spec"]["configSource"] {
        return refuse(format!(
            "node {node:?} cannot update configSource to a new non-null configSource"
        ));
    }
    if meta::owner_references(object) != meta::owner_references(old) {
        return refuse(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    let bad = refused_labels(object, Some(old));
    if !bad.is_empty() {
        return refuse(format!("is not allowed to modify labels: {}", bad.join(", ")));
    }
    Ok(())
}

/// Changed labels of Kubernetes' own domains that are not a kubelet's to set.
fn refused_labels(object: &Value, old: Option<&Value>) -> Vec<String> {
    let empty = serde_json::Map::new();
    let new = meta::labels(object).unwrap_or(&empty);
    let before = old.and_then(meta::labels).unwrap_or(&empty);
    let mut bad: Vec<String> = new
        .iter()
        .filter(|(k, v)| before.get(*k) != Some(v))
        .map(|(k, _)| k)
        .chain(before.keys().filter(|k| !new.contains_key(*k)))
        .filter(|key| {
            let domain = key.split_once('/').map_or("", |(d, _)| d);
            let reserved = ["kubernetes.io", "k8s.io"]
                .iter()
                .any(|d| domain == *d || domain.ends_with(&format!(".{d}")));
            let free = ["node.kubernetes.io", "kubelet.kubernetes.io"]
                .iter()
                .any(|d| domain == *d || domain.ends_with(&format!(".{d}")));
            let restricted = domain == "node-restriction.kubernetes.io"
                || domain.ends_with(".node-restriction.kubernetes.io");
            restricted || (reserved && !free && !OWN_LABELS.contains(&key.as_str()))
        })
        .cloned()
        .collect();
    bad.sort();
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_set_their_own_labels_only() {
        let with = |labels: Value| json!({"metadata": {"labels": labels}});
        let fine =
            with(json!({"kubernetes.io/hostname": "a", "example.com/x": "1", "node.kubernetes.io/y": "2"}));
        assert!(refused_labels(&fine, None).is_empty());
        let role = with(
            json!({"node-role.kubernetes.io/control-plane": "", "node-restriction.kubernetes.io/z": ""}),
        );
        assert_eq!(refused_labels(&role, None).len(), 2);
        assert!(refused_labels(&role, Some(&role)).is_empty());
        assert_eq!(refused_labels(&with(json!({})), Some(&role)).len(), 2);
    }
}
