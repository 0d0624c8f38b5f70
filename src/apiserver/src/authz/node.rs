//! What a kubelet may do: see to its own node and to what its pods need.
//!
//! A user `system:node:NAME` in group `system:nodes` may read the secrets, config
//! maps, claims, volumes and service accounts its pods refer to. That is
//! answered from the pods in the store at the moment of asking, so it needs no
//! graph of its own. What a node may write is narrowed further by the
//! admission plugin `NodeRestriction`.

use serde_json::Value;
use skiff_store::Store;

use super::Attributes;
use crate::identity::UserInfo;
use crate::scan;

/// Verbs on resources that every node has, whatever pods it runs: group,
/// resource, subresource, verbs.
const ALWAYS: &[(&str, &str, &str, &[&str])] = &[
    ("authentication.k8s.io", "tokenreviews", "", &["create"]),
    ("authorization.k8s.io", "subjectaccessreviews", "", &["create"]),
    (
        "authorization.k8s.io",
        "localsubjectaccessreviews",
        "",
        &["create"],
    ),
    ("", "services", "", &["get", "list", "watch"]),
    ("", "nodes", "", &["create"]),
    ("", "events", "", &["create", "patch", "update"]),
    ("events.k8s.io", "events", "", &["create", "patch", "update"]),
    ("", "pods", "", &["create"]),
    ("", "pods", "eviction", &["create"]),
    ("", "endpoints", "", &["get"]),
    (
        "certificates.k8s.io",
        "certificatesigningrequests",
        "",
        &["create", "get", "list", "watch"],
    ),
    ("storage.k8s.io", "csidrivers", "", &["get", "list", "watch"]),
    ("node.k8s.io", "runtimeclasses", "", &["get", "list", "watch"]),
];

/// The node authorizer.
pub struct NodeAuthorizer {
    store: Store,
}

impl NodeAuthorizer {
    /// Answers from what `store` holds.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// True: allowed. False: not a node's business, ask others. Error: a node
    /// asked for what is not its own.
    pub fn authorize(&self, user: &UserInfo, request: &Attributes<'_>) -> Result<bool, String> {
        let Some(node) = user.node_name() else {
            return Ok(false);
        };
        if !request.is_resource {
            return Ok(false);
        }
        let a = request;
        let always = ALWAYS.iter().any(|(group, resource, sub, verbs)| {
            *group == a.group && *resource == a.resource && *sub == a.subresource && verbs.contains(&a.verb)
        });
        if always {
            return Ok(true);
        }
        let read = matches!(a.verb, "get" | "list" | "watch");
        let related = match (a.group, a.resource, a.subresource) {
            ("", "nodes", "") if read => {
                a.name == node || (a.name.is_empty() && selects(a.field_selector, "metadata.name", node))
            }
            ("", "nodes", "" | "status") => matches!(a.verb, "patch" | "update") && a.name == node,
            ("", "pods", "") if read => {
                if a.name.is_empty() {
                    selects(a.field_selector, "spec.nodeName", node)
                } else {
                    self.pod_on_node(a.namespace, a.name, node)
                }
            }
            ("", "pods", "" | "status") => {
                let verbs: &[&str] = if a.subresource.is_empty() {
                    &["delete"]
                } else {
                    &["patch", "update"]
                };
                verbs.contains(&a.verb) && self.pod_on_node(a.namespace, a.name, node)
            }
            ("", "secrets", "") => self.reads_named(a, read, node, "secret"),
            ("", "configmaps", "") => self.reads_named(a, read, node, "configmap"),
            ("", "persistentvolumeclaims", "" | "status") => {
                let verb =
                    a.verb == "get" || (a.subresource == "status" && matches!(a.verb, "patch" | "update"));
                verb && self.pods_need(a.namespace, node, |pod| refers(pod, "claim", a.name))
            }
            ("", "persistentvolumes", "") => a.verb == "get" && self.volume_needed(a.name, node),
            ("", "serviceaccounts", "") => {
                a.verb == "get" && self.pods_need(a.namespace, node, |pod| service_account(pod) == a.name)
            }
            ("", "serviceaccounts", "token") => {
                a.verb == "create" && self.pods_need(a.namespace, node, |pod| service_account(pod) == a.name)
            }
            ("coordination.k8s.io", "leases", "") => {
                let verb = matches!(a.verb, "create" | "get" | "update" | "patch" | "delete");
                verb && a.namespace == "kube-node-lease" && (a.name == node || a.verb == "create")
            }
            ("storage.k8s.io", "csinodes", "") => {
                let verb = matches!(a.verb, "create" | "get" | "update" | "patch" | "delete");
                verb && (a.name == node || a.verb == "create")
            }
            _ => return Ok(false),
        };
        if related {
            Ok(true)
        } else {
            Err(format!(
                "no relationship found between node '{node}' and this object"
            ))
        }
    }

    fn reads_named(&self, a: &Attributes<'_>, read: bool, node: &str, what: &str) -> bool {
        let name = if a.name.is_empty() {
            selected(a.field_selector, "metadata.name")
        } else {
            Some(a.name)
        };
        let Some(name) = name else { return false };
        read && self.pods_need(a.namespace, node, |pod| refers(pod, what, name))
    }

    fn pod_on_node(&self, namespace: &str, name: &str, node: &str) -> bool {
        self.store
            .get(&format!("/registry/pods/{namespace}/{name}"))
            .is_some_and(|pod| scan::string(&pod.value, &["spec", "nodeName"]).as_deref() == Some(node))
    }

    fn pods_need(&self, namespace: &str, node: &str, need: impl Fn(&Value) -> bool) -> bool {
        if namespace.is_empty() {
            return false;
        }
        let snapshot = self.store.snapshot();
        let prefix = format!("/registry/pods/{namespace}/");
        snapshot.range(&prefix, None).any(|entry| {
            scan::string(&entry.value, &["spec", "nodeName"]).as_deref() == Some(node)
                && serde_json::from_slice::<Value>(&entry.value).is_ok_and(|pod| need(&pod))
        })
    }

    fn volume_needed(&self, volume: &str, node: &str) -> bool {
        let Some(entry) = self.store.get(&format!("/registry/persistentvolumes/{volume}")) else {
            return false;
        };
        let claim = |field| scan::string(&entry.value, &["spec", "claimRef", field]);
        let (Some(namespace), Some(name)) = (claim("namespace"), claim("name")) else {
            return false;
        };
        self.pods_need(&namespace, node, |pod| refers(pod, "claim", &name))
    }
}

fn service_account(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().unwrap_or("default")
}

/// Whether a field selector demands `field=value`.
fn selects(selector: &str, field: &str, value: &str) -> bool {
    selected(selector, field) == Some(value)
}

/// The value a field selector demands of `field`.
fn selected<'a>(selector: &'a str, field: &str) -> Option<&'a str> {
    selector.split(',').find_map(|term| {
        let rest = term.trim().strip_prefix(field)?;
        let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
        (!value.is_empty()).then_some(value)
    })
}

/// Whether a pod refers to a secret, config map or claim of this name.
fn refers(pod: &Value, what: &str, name: &str) -> bool {
    let spec = &pod["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is = |value: &Value| value.as_str() == Some(name);
    let volumes = list(&spec["volumes"]);
    if what == "claim" {
        let generated = |v: &Value| {
            v.get("ephemeral").is_some()
                && format!(
                    "{}-{}",
                    pod["metadata"]["name"].as_str().unwrap_or_default(),
                    v["name"].as_str().unwrap_or_default()
                ) == name
        };
        return volumes
            .iter()
            .any(|v| is(&v["persistentVolumeClaim"]["claimName"]) || generated(v));
    }
    let (volume, volume_name, env, env_from) = match what {
        "secret" => ("secret", "secretName", "secretKeyRef", "secretRef"),
        _ => ("configMap", "name", "configMapKeyRef", "configMapRef"),
    };
    let in_volume = |v: &Value| {
        is(&v[volume][volume_name])
            || list(&v["projected"]["sources"])
                .iter()
                .any(|source| is(&source[volume]["name"]))
            || (what == "secret"
                && [
                    "cephfs",
                    "rbd",
                    "flexVolume",
                    "scaleIO",
                    "iscsi",
                    "storageos",
                    "csi",
                ]
                .iter()
                .any(|kind| {
                    is(&v[*kind]["secretRef"]["name"]) || is(&v[*kind]["nodePublishSecretRef"]["name"])
                }))
            || (what == "secret" && is(&v["azureFile"]["secretName"]))
    };
    let in_container = |c: &Value| {
        list(&c["env"]).iter().any(|e| is(&e["valueFrom"][env]["name"]))
            || list(&c["envFrom"]).iter().any(|e| is(&e[env_from]["name"]))
    };
    volumes.iter().any(in_volume)
        || ["containers", "initContainers", "ephemeralContainers"]
            .iter()
            .any(|field| list(&spec[*field]).iter().any(in_container))
        || (what == "secret" && list(&spec["imagePullSecrets"]).iter().any(|s| is(&s["name"])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_a_pod_may_hold_them() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "mounted"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "ca"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "d", "ephemeral": {}}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}],
                "envFrom": [{"configMapRef": {"name": "all"}}]}]}});
        for (what, name) in [
            ("secret", "pull"),
            ("secret", "mounted"),
            ("secret", "env"),
            ("configmap", "ca"),
            ("configmap", "all"),
            ("claim", "data"),
            ("claim", "p-d"),
        ] {
            assert!(refers(&pod, what, name), "{what} {name}");
        }
        assert!(!refers(&pod, "secret", "all") && !refers(&pod, "configmap", "env"));
    }

    #[test]
    fn selectors_must_demand_the_value() {
        assert!(selects("spec.nodeName=a", "spec.nodeName", "a"));
        assert!(selects(
            "status.phase=Running,spec.nodeName==a",
            "spec.nodeName",
            "a"
        ));
        assert!(!selects("spec.nodeName!=a", "spec.nodeName", "a"));
        assert!(!selects("spec.nodeName=", "spec.nodeName", ""));
    }
}
