//! What the operator decides about the pod network.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// How packets travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Inside UDP: works wherever nodes reach each other.
    #[default]
    Vxlan,
    /// Plain routes to the peers: no overhead, but all nodes must share one network segment.
    HostGw,
}

impl Backend {
    /// The name used in node annotations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }

    /// The inverse of [`Backend::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Vxlan, Self::HostGw]
            .into_iter()
            .find(|b| b.as_str() == text)
    }
}

/// The configuration of the overlay on one node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this machine's Node object.
    pub node_name: String,
    /// The cluster's pod networks. Traffic inside them is never translated.
    pub cluster_cidrs: Vec<IpNet>,
    /// The cluster's service networks: routed to the bridge, so that a machine without a default route reaches them.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses this node answers itself (cluster DNS); put on the bridge.
    pub local_addresses: Vec<IpAddr>,
    /// The node's address towards its peers; found out when not given.
    pub node_ip: Option<IpAddr>,
    /// The interface towards the peers; found out when not given.
    pub interface: Option<String>,
    /// How packets travel between nodes.
    pub backend: Backend,
    /// VXLAN network identifier.
    pub vni: u32,
    /// VXLAN UDP port.
    pub port: u16,
    /// Largest packet of a pod; from the underlying interface when not given.
    pub mtu: Option<u32>,
    /// Give traffic that leaves the cluster the node's own address.
    pub masquerade: bool,
    /// Folder of the address store.
    pub state_dir: PathBuf,
}

impl Config {
    /// The defaults for a node: VXLAN 1 on port 8472, pods 10.42.0.0/16, services 10.43.0.0/16, masquerading on.
    pub fn new(node_name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let net = |a, b| IpNet::from(ipnet::Ipv4Net::new_assert([a, b, 0, 0].into(), 16));
        Self {
            node_name: node_name.into(),
            cluster_cidrs: vec![net(10, 42)],
            service_cidrs: vec![net(10, 43)],
            local_addresses: Vec::new(),
            node_ip: None,
            interface: None,
            backend: Backend::Vxlan,
            vni: 1,
            port: 8472,
            mtu: None,
            masquerade: true,
            state_dir: state_dir.into(),
        }
    }
}
