//! Whether a pod may run here at all. Pure.
//!
//! The scheduler has answered these questions before; they are asked again for pods that name their node themselves
//! and for races between schedulers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::state::Verdict;
use crate::resources;

/// Sysctls that cannot harm other pods.
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What the node offers.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    /// The Node object, once it is known.
    pub node: Option<Node>,
    /// What pods may use in all.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Sysctls allowed besides the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
}

/// Why a pod is refused, or `None` to let it in. `others` are the pods admitted before.
pub fn refuse<'a>(pod: &Pod, offer: &Offer, others: impl Iterator<Item = &'a Pod>) -> Option<Verdict> {
    let verdict = |reason: &str, message: String| {
        Some(Verdict {
            reason: reason.into(),
            message,
        })
    };
    let spec = pod.spec.as_ref()?;
    if let Some(os) = &spec.os
        && os.name != "linux"
    {
        return verdict(
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS".into(),
        );
    }
    for sysctl in spec
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten())
    {
        let name = sysctl.name.replace('/', ".");
        let extra = offer
            .allowed_unsafe_sysctls
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => *pattern == name,
            });
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !extra {
            return verdict(
                "SysctlForbidden",
                format!("forbidden sysctl: {name:?} not allowlisted"),
            );
        }
        let host = spec.host_network == Some(true) && name.starts_with("net.")
            || spec.host_ipc == Some(true)
                && (name.starts_with("kernel.shm") || name.starts_with("kernel.msg"));
        if host {
            return verdict(
                "SysctlForbidden",
                format!("forbidden sysctl: {name:?} not allowed with host namespace"),
            );
        }
    }
    if let Some(node) = &offer.node {
        if !matches_node(pod, node) {
            let message = "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node \
                           affinity/selector";
            return verdict("NodeAffinity", message.into());
        }
        if !spec.tolerations.iter().flatten().any(tolerates_all_execute) {
            let tolerations = spec.tolerations.as_deref().unwrap_or_default();
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            for taint in taints.filter(|taint| taint.effect == "NoExecute") {
                if !tolerations.iter().any(|toleration| tolerates(toleration, taint)) {
                    return verdict(
                        "NodeTaint",
                        format!(
                            "Pod was rejected: Predicate TaintToleration failed: taint {} not tolerated",
                            taint.key
                        ),
                    );
                }
            }
        }
    }
    fits(pod, offer, others)
}

fn fits<'a>(pod: &Pod, offer: &Offer, others: impl Iterator<Item = &'a Pod>) -> Option<Verdict> {
    let others: Vec<&Pod> = others.collect();
    let read = |name: &str| {
        let quantity = offer.allocatable.get(name)?;
        if name == "cpu" {
            resources::milli(quantity)
        } else {
            resources::whole(quantity)
        }
    };
    let full = |name: &str, requested: i64, used: i64, capacity: i64| Verdict {
        reason: format!("OutOf{name}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {requested}, used: {used}, \
             capacity: {capacity}"
        ),
    };
    if let Some(capacity) = read("pods") {
        let used = i64::try_from(others.len()).unwrap_or(i64::MAX);
        if used + 1 > capacity {
            return Some(full("pods", 1, used, capacity));
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        let requested = resources::pod_request(pod, name);
        let Some(capacity) = read(name).filter(|_| requested > 0) else {
            continue;
        };
        let used = others
            .iter()
            .map(|pod| resources::pod_request(pod, name))
            .fold(0i64, i64::saturating_add);
        if used.saturating_add(requested) > capacity {
            return Some(full(name, requested, used, capacity));
        }
    }
    let ports = |pod: &Pod| -> Vec<(String, i32)> {
        resources::all_containers(pod)
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| {
                let host_port = port.host_port.filter(|port| *port > 0)?;
                Some((port.protocol.clone().unwrap_or_else(|| "TCP".into()), host_port))
            })
            .collect()
    };
    let wanted = ports(pod);
    if others
        .iter()
        .flat_map(|other| ports(other))
        .any(|port| wanted.contains(&port))
    {
        return Some(Verdict {
            reason: "NodePorts".into(),
            message: "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the \
                      requested pod ports"
                .into(),
        });
    }
    None
}

fn tolerates_all_execute(toleration: &k8s_openapi::api::core::v1::Toleration) -> bool {
    toleration.key.as_deref().unwrap_or_default().is_empty()
        && toleration.operator.as_deref() == Some("Exists")
        && toleration
            .effect
            .as_deref()
            .is_none_or(|effect| effect.is_empty() || effect == "NoExecute")
}

fn tolerates(
    toleration: &k8s_openapi::api::core::v1::Toleration,
    taint: &k8s_openapi::api::core::v1::Taint,
) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => key.is_empty() || key == taint.key,
            _ => {
                key == taint.key
                    && toleration.value.as_deref().unwrap_or_default()
                        == taint.value.as_deref().unwrap_or_default()
            }
        }
}

fn matches_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    if spec
        .node_selector
        .iter()
        .flatten()
        .any(|(key, value)| labels.get(key) != Some(value))
    {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let Some(required) = required else { return true };
    let name = BTreeMap::from([(
        "metadata.name".to_owned(),
        node.metadata.name.clone().unwrap_or_default(),
    )]);
    required.node_selector_terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|requirement| holds(requirement, labels))
            && fields.iter().all(|requirement| holds(requirement, &name))
    })
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let have = labels.get(&requirement.key);
    let number = |text: &String| text.parse::<i64>().ok();
    let compare = |order: fn(&i64, &i64) -> bool| {
        have.and_then(number)
            .zip(values.first().and_then(number))
            .is_some_and(|(a, b)| order(&a, &b))
    };
    match requirement.operator.as_str() {
        "In" => have.is_some_and(|have| values.contains(have)),
        "NotIn" => have.is_none_or(|have| !values.contains(have)),
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn refusals() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd", "size": "5"}},
            "spec": {"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]},
        }))
        .unwrap();
        let offer = Offer {
            node: Some(node),
            allocatable: BTreeMap::from([
                ("cpu".into(), Quantity("2".into())),
                ("pods".into(), Quantity("2".into())),
            ]),
            allowed_unsafe_sysctls: vec!["net.core.*".into()],
        };
        let tolerate = json!([{"operator": "Exists"}]);
        let cpu = |cpu: &str| {
            json!({"tolerations": tolerate, "containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80}],
                "resources": {"requests": {"cpu": cpu}}}]})
        };
        let affinity = |op: &str, values: serde_json::Value| {
            json!({"tolerations": tolerate, "containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "size", "operator": op, "values": values}]}]}}}})
        };
        let sysctl = |name: &str| {
            json!({"tolerations": tolerate, "containers": [],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}})
        };
        let one = pod(cpu("1"));
        let table = [
            (
                pod(json!({"containers": [], "tolerations": tolerate})),
                vec![],
                None,
            ),
            (pod(json!({"containers": []})), vec![], Some("NodeTaint")),
            (
                pod(
                    json!({"containers": [], "tolerations": [{"key": "k", "value": "v", "effect": "NoExecute"}]}),
                ),
                vec![],
                None,
            ),
            (
                pod(json!({"containers": [], "tolerations": tolerate, "nodeSelector": {"disk": "hdd"}})),
                vec![],
                Some("NodeAffinity"),
            ),
            (
                pod(json!({"containers": [], "tolerations": tolerate, "nodeSelector": {"disk": "ssd"}})),
                vec![],
                None,
            ),
            (pod(affinity("Gt", json!(["4"]))), vec![], None),
            (pod(affinity("Gt", json!(["5"]))), vec![], Some("NodeAffinity")),
            (pod(cpu("2")), vec![], None),
            (pod(cpu("2")), vec![&one], Some("OutOfcpu")),
            (pod(cpu("1")), vec![&one], Some("NodePorts")),
            (pod(cpu("1m")), vec![&one, &one], Some("OutOfpods")),
            (pod(sysctl("net.ipv4.tcp_syncookies")), vec![], None),
            (pod(sysctl("net.core.somaxconn")), vec![], None),
            (pod(sysctl("vm.swappiness")), vec![], Some("SysctlForbidden")),
        ];
        for (pod, others, expected) in table {
            let got = refuse(&pod, &offer, others.into_iter());
            assert_eq!(
                got.as_ref().map(|verdict| verdict.reason.as_str()),
                expected,
                "{:?}",
                pod.spec
            );
        }
    }
}
