//! The overlay's view of Node objects: what a node tells its peers, and what is read of theirs.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_base::clock;
use skiff_client::Client;

use crate::peers::Peer;
use crate::{Backend, Error};

/// The address peers send encapsulated packets to.
pub const ANNOTATION_PUBLIC_IP: &str = "skiff.io/public-ip";
/// The MAC of the node's VXLAN device.
pub const ANNOTATION_VXLAN_MAC: &str = "skiff.io/vxlan-mac";
/// The backend the node uses.
pub const ANNOTATION_BACKEND: &str = "skiff.io/overlay-backend";

/// The node condition the overlay answers for.
const CONDITION: &str = "NetworkUnavailable";

/// The pod networks of a node; `podCIDRs` wins over the older `podCIDR`.
pub(crate) fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let list = spec.pod_cidrs.as_deref().unwrap_or_default();
    let single = spec.pod_cidr.as_slice();
    let texts = if list.is_empty() { single } else { list };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// What a node says about itself, once it has said all of it.
pub(crate) fn peer(node: &Node) -> Option<Peer> {
    let annotations = node.metadata.annotations.as_ref()?;
    let get = |key: &str| annotations.get(key).map(String::as_str);
    let pod_cidrs = pod_cidrs(node);
    Some(Peer {
        name: node.metadata.name.clone()?,
        public_ip: get(ANNOTATION_PUBLIC_IP)?.parse().ok()?,
        mac: get(ANNOTATION_VXLAN_MAC).and_then(|text| text.parse().ok()),
        pod_cidrs: (!pod_cidrs.is_empty()).then_some(pod_cidrs)?,
    })
}

/// What this node tells its peers.
pub(crate) fn annotations(
    public_ip: std::net::IpAddr,
    mac: Option<skiff_netlink::MacAddr>,
    backend: Backend,
) -> BTreeMap<&'static str, Option<String>> {
    BTreeMap::from([
        (ANNOTATION_PUBLIC_IP, Some(public_ip.to_string())),
        (ANNOTATION_VXLAN_MAC, mac.map(|mac| mac.to_string())),
        (ANNOTATION_BACKEND, Some(backend.as_str().to_owned())),
    ])
}

/// Writes the annotations of the own node unless they are there already.
pub(crate) async fn publish(
    client: &Client,
    node: &Node,
    wanted: &BTreeMap<&'static str, Option<String>>,
) -> Result<(), Error> {
    let present = node.metadata.annotations.as_ref();
    let differs = wanted
        .iter()
        .any(|(key, value)| present.and_then(|p| p.get(*key)) != value.as_ref());
    if !differs {
        return Ok(());
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let patch = json!({"metadata": {"annotations": wanted}});
    let api: Api<Node> = Api::all(client.clone());
    let done = api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    done.map(drop).map_err(|source| failed(name, source))
}

/// Says on the own node that its network works, unless it says so already.
pub(crate) async fn report_ready(client: &Client, node: &Node, backend: Backend) -> Result<(), Error> {
    let conditions = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    if conditions
        .iter()
        .any(|c| c.type_ == CONDITION && c.status == "False")
    {
        return Ok(());
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let now = jiff::Timestamp::try_from(clock::system().now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    // The API's times have no fraction.
    let now = jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string();
    let patch = json!({"status": {"conditions": [{
        "type": CONDITION,
        "status": "False",
        "reason": "PodNetworkReady",
        "message": format!("the pod network of this node is up ({})", backend.as_str()),
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }]}});
    let api: Api<Node> = Api::all(client.clone());
    let done = api
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await;
    done.map(drop).map_err(|source| failed(name, source))
}

fn failed(node: &str, source: kube::Error) -> Error {
    Error::Api {
        node: node.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_peer_is_one_only_when_complete() {
        let full = json!({
            "metadata": {"name": "b", "annotations": {
                ANNOTATION_PUBLIC_IP: "192.0.2.2", ANNOTATION_VXLAN_MAC: "02:00:00:00:00:02",
            }},
            "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]},
        });
        let found = peer(&node(full.clone())).unwrap();
        assert_eq!(
            (found.name.as_str(), found.public_ip.to_string().as_str()),
            ("b", "192.0.2.2")
        );
        assert_eq!(found.pod_cidrs, ["10.42.1.0/24".parse::<IpNet>().unwrap()]);
        for pointer in [
            "/spec",
            "/metadata/annotations",
            "/metadata/annotations/skiff.io~1public-ip",
        ] {
            let mut part = full.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = if parent.is_empty() {
                Some(&mut part)
            } else {
                part.pointer_mut(parent)
            };
            parent
                .unwrap()
                .as_object_mut()
                .unwrap()
                .remove(&key.replace("~1", "/"))
                .unwrap();
            assert_eq!(peer(&node(part)), None, "without {pointer}");
        }
        let mut bad = full.clone();
        bad["metadata"]["annotations"][ANNOTATION_PUBLIC_IP] = json!("nonsense");
        assert_eq!(peer(&node(bad)), None);
        let mut old = full;
        old["spec"] = json!({"podCIDR": "10.42.7.0/24"});
        assert_eq!(pod_cidrs(&node(old)), ["10.42.7.0/24".parse::<IpNet>().unwrap()]);
    }
}
