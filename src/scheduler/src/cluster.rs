//! The nodes and what runs on them, at the moment of a decision.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use crate::resources::{Amounts, pod_requests};

/// Requests assumed for a container that states none, when nodes are compared.
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// See [`DEFAULT_MILLI_CPU`].
pub const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

/// A node and the pods that count against it.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node's name.
    pub name: String,
    /// The node's labels.
    pub labels: BTreeMap<String, String>,
    /// Taints as they are.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
    /// What pods may use together.
    pub allocatable: Amounts,
    /// What its pods ask for together.
    pub requested: Amounts,
    /// The same with defaults for containers that ask for nothing.
    pub weighed: Amounts,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
    /// Names of images it has, with their sizes in bytes.
    pub images: HashMap<String, i64>,
}

/// All nodes.
#[derive(Debug, Default, Clone)]
pub struct Cluster {
    /// In order of their names.
    pub nodes: Vec<NodeInfo>,
}

/// Whether a pod has ended for good and uses nothing any more.
pub fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Requests for weighing: containers that ask for no CPU or memory count with a default.
pub fn weighed_requests(pod: &Pod) -> Amounts {
    let mut amounts = pod_requests(pod);
    let containers = i64::try_from(pod.spec.as_ref().map_or(0, |spec| spec.containers.len())).unwrap_or(0);
    for (name, default) in [("cpu", DEFAULT_MILLI_CPU), ("memory", DEFAULT_MEMORY_BYTES)] {
        let amount = amounts.0.entry(name.to_owned()).or_insert(0);
        if *amount == 0 {
            *amount = default * containers;
        }
    }
    amounts
}

impl Cluster {
    /// `assumed`: decisions that the pods do not show yet.
    pub fn new(nodes: &[Arc<Node>], pods: &[Arc<Pod>], assumed: &[(Arc<Pod>, String)]) -> Self {
        let mut by_name: BTreeMap<String, NodeInfo> =
            nodes.iter().map(|node| (name_of(node), info(node))).collect();
        let bound = pods
            .iter()
            .filter_map(|pod| Some((pod, pod.spec.as_ref()?.node_name.as_deref()?)));
        let decided = assumed.iter().map(|(pod, node)| (pod, node.as_str()));
        for (pod, node) in bound.chain(decided).filter(|(pod, _)| !is_finished(pod)) {
            if let Some(node) = by_name.get_mut(node) {
                node.requested.add(&pod_requests(pod));
                node.weighed.add(&weighed_requests(pod));
                node.pods.push(pod.clone());
            }
        }
        Self {
            nodes: by_name.into_values().collect(),
        }
    }
}

fn name_of(node: &Node) -> String {
    node.metadata.name.clone().unwrap_or_default()
}

fn info(node: &Node) -> NodeInfo {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.as_ref();
    let images = status
        .iter()
        .flat_map(|status| status.images.iter().flatten())
        .flat_map(|image| {
            image
                .names
                .iter()
                .flatten()
                .map(|name| (name.clone(), image.size_bytes.unwrap_or(0)))
        })
        .collect();
    NodeInfo {
        name: name_of(node),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: spec.taints.unwrap_or_default(),
        unschedulable: spec.unschedulable == Some(true),
        allocatable: Amounts::of(status.and_then(|status| status.allocatable.as_ref())),
        requested: Amounts::default(),
        weighed: Amounts::default(),
        pods: Vec::new(),
        images,
    }
}
