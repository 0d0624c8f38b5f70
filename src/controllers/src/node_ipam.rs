//! Gives every node its share of the cluster's pod addresses.
//!
//! Which shares are taken is read from the nodes themselves; a single worker
//! assigns the lowest free one, so no two nodes can get the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::informer::key_of;
use skiff_client::{Change, Informer, WorkQueue};

use crate::{Context, Error, is_gone};

/// Starts the loop.
pub fn start(context: &Context) {
    let nodes: Informer<Node> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&nodes, &queue, |change| match change {
        Change::Applied { new, .. } if pod_cidr(new).is_none() => vec![key_of(&**new)],
        _ => Vec::new(),
    });
    // Assigned but not yet seen in the informer.
    let assigned: Arc<Mutex<BTreeSet<(String, Ipv4Net)>>> = Arc::default();
    let (ready, context_) = (nodes.clone(), Arc::new(context.clone()));
    context.work(
        "node addresses",
        queue,
        1,
        async move { ready.synced().await },
        move |name| {
            let (context, nodes, assigned) = (context_.clone(), nodes.clone(), assigned.clone());
            async move {
                let Some(node) = nodes.get(&name) else {
                    return Ok(None);
                };
                if pod_cidr(&node).is_some() {
                    return Ok(None);
                }
                let IpNet::V4(cluster) = context.config.cluster_cidr else {
                    return Err(Error::Other("the cluster CIDR must be IPv4".to_owned()));
                };
                let seen: Vec<(String, Ipv4Net)> = nodes
                    .list()
                    .iter()
                    .filter_map(|node| Some((key_of(&**node), pod_cidr(node)?)))
                    .collect();
                let free = {
                    let mut assigned = assigned.lock();
                    assigned
                        .retain(|(name, _)| nodes.get(name).is_some_and(|node| pod_cidr(&node).is_none()));
                    let taken: BTreeSet<Ipv4Net> = seen
                        .iter()
                        .chain(assigned.iter().filter(|(other, _)| *other != name))
                        .map(|(_, net)| *net)
                        .collect();
                    let free = lowest_free(cluster, context.config.node_mask, &taken);
                    assigned.extend(free.map(|net| (name.clone(), net)));
                    free
                };
                let Some(free) = free else {
                    let about = kube::Resource::object_ref(&*node, &());
                    context.recorder.normal(
                        &about,
                        "CIDRNotAvailable",
                        format!("Node {name} status is now: CIDRNotAvailable"),
                    );
                    return Err(Error::Other(format!(
                        "no free address range in {cluster} for node {name}"
                    )));
                };
                let patch = Patch::Merge(json!({"spec": {"podCIDR": free, "podCIDRs": [free]}}));
                match Api::<Node>::all(context.client.clone())
                    .patch(&name, &PatchParams::default(), &patch)
                    .await
                {
                    Err(error) if !is_gone(&error) => Err(error.into()),
                    _ => Ok(None),
                }
            }
        },
    );
}

fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()
}

fn lowest_free(cluster: Ipv4Net, mask: u8, taken: &BTreeSet<Ipv4Net>) -> Option<Ipv4Net> {
    let overlaps = |net: &Ipv4Net| {
        taken
            .iter()
            .any(|other| other.contains(net) || net.contains(other))
    };
    cluster.subnets(mask).ok()?.find(|net| !overlaps(net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_share_is_given() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("network");
        let mut taken: BTreeSet<Ipv4Net> = [net("10.42.0.0/24"), net("10.42.2.0/23")].into();
        let next = |taken: &BTreeSet<Ipv4Net>| lowest_free(net("10.42.0.0/16"), 24, taken);
        assert_eq!(next(&taken), Some(net("10.42.1.0/24")));
        taken.insert(net("10.42.1.0/24"));
        assert_eq!(next(&taken), Some(net("10.42.4.0/24")));
        taken.insert(net("10.42.0.0/16"));
        assert_eq!(next(&taken), None);
    }
}
