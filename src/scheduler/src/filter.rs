//! Where a pod can run, and why not elsewhere.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint, Toleration};

use crate::affinity::{self, Domains};
use crate::cluster::{Cluster, NodeInfo};
use crate::resources::{Amounts, pod_requests};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A pod with everything about it that does not depend on the node.
pub struct Request<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its spec.
    pub spec: PodSpec,
    /// What it asks for.
    pub requests: Amounts,
    /// Counts of pods by topology domain for its affinity and spreading terms.
    pub domains: Domains,
}

impl<'a> Request<'a> {
    /// Prepares a pod to be compared with every node.
    pub fn new(pod: &'a Pod, cluster: &Cluster) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        Self {
            pod,
            requests: pod_requests(pod),
            domains: Domains::count(pod, &spec, cluster),
            spec,
        }
    }
}

/// The reasons why a pod cannot run on a node; empty: it can.
pub fn why_not(request: &Request<'_>, node: &NodeInfo) -> Vec<String> {
    let spec = &request.spec;
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node.unschedulable && !tolerations.iter().any(|t| tolerates(t, &unschedulable_taint())) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if let Some(taint) = untolerated(&node.taints, tolerations, &["NoSchedule", "NoExecute"]) {
        let value = taint
            .value
            .clone()
            .filter(|value| !value.is_empty())
            .map(|v| format!(": {v}"))
            .unwrap_or_default();
        return vec![format!(
            "node(s) had untolerated taint {{{}{}}}",
            taint.key,
            if value.is_empty() { ": ".to_owned() } else { value }
        )];
    }
    if !affinity::node_matches(spec, node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    if ports_conflict(spec, node) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    let mut reasons = lacking(&request.requests, node);
    if reasons.is_empty() {
        reasons.extend(request.domains.why_not(node));
    }
    reasons
}

fn unschedulable_taint() -> Taint {
    Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    }
}

/// The first taint with one of these effects that is not tolerated.
pub fn untolerated<'t>(
    taints: &'t [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'t Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let value = |value: &Option<String>| value.clone().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && match toleration.operator.as_deref() {
            Some("Exists") => key.is_empty() || key == taint.key,
            _ => key == taint.key && value(&toleration.value) == value(&taint.value),
        }
}

fn lacking(requests: &Amounts, node: &NodeInfo) -> Vec<String> {
    let mut reasons = Vec::new();
    let pods = node.allocatable.get("pods");
    if i64::try_from(node.pods.len()).unwrap_or(i64::MAX) >= pods {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in &requests.0 {
        if *amount > 0 && node.requested.get(name) + amount > node.allocatable.get(name) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

/// Host ports as (address, protocol, port).
fn host_ports(spec: &PodSpec) -> Vec<(String, String, i32)> {
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port
                .host_ip
                .clone()
                .filter(|ip| !ip.is_empty())
                .unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((
                ip,
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                number,
            ))
        })
        .collect()
}

fn ports_conflict(spec: &PodSpec, node: &NodeInfo) -> bool {
    let wanted = host_ports(spec);
    if wanted.is_empty() {
        return false;
    }
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    let taken: Vec<_> = node
        .pods
        .iter()
        .filter_map(|pod| pod.spec.as_ref())
        .flat_map(host_ports)
        .collect();
    wanted.iter().any(|(ip, protocol, port)| {
        taken.iter().any(|(other_ip, other_protocol, other_port)| {
            port == other_port && protocol == other_protocol && (ip == other_ip || any(ip) || any(other_ip))
        })
    })
}

/// Labels of a pod, empty when it has none.
pub fn labels(pod: &Pod) -> BTreeMap<String, String> {
    pod.metadata.labels.clone().unwrap_or_default()
}
