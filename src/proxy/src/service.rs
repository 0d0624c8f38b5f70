//! What a Service and its EndpointSlices ask for, freed of API types.
//!
//! One [`ServicePort`] per port and address family. Which endpoints are usable
//! follows Kubernetes: the ready ones; when there is none, those that
//! terminate but still serve, so that a rolling restart loses nothing. Hints
//! narrow the ready ones down to those meant for this node or its zone.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort as ApiPort};
use k8s_openapi::api::discovery::v1::{EndpointHints, EndpointSlice, ForNode, ForZone};
use skiff_nft::Family;

/// The label that names a slice's service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// A service with this label is another proxy's business.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` when absent.
const DEFAULT_AFFINITY_SECONDS: u64 = 10_800;

/// A transport protocol services can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// From the API's name; absent means TCP.
    pub fn parse(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// The node the proxy works for.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Its name, as in endpoints' `nodeName`.
    pub name: String,
    /// Its zone (label `topology.kubernetes.io/zone`).
    pub zone: Option<String>,
    /// Addresses of all pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// Addresses of all services.
    pub service_cidrs: Vec<IpNet>,
    /// Service addresses the node answers itself (its name server): left alone.
    pub local_addresses: Vec<IpAddr>,
}

/// The endpoints of a port, by who may use them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// For traffic that may go to any node.
    pub cluster: BTreeSet<SocketAddr>,
    /// For traffic that must stay on this node.
    pub local: BTreeSet<SocketAddr>,
    /// Those of the above that are on this node.
    pub here: BTreeSet<IpAddr>,
}

impl Endpoints {
    /// None anywhere.
    pub fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.local.is_empty()
    }
}

/// One port of a service in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on cluster, external and load balancer addresses.
    pub port: u16,
    /// The cluster address.
    pub cluster_ip: IpAddr,
    /// The port on every node.
    pub node_port: Option<u16>,
    /// `spec.externalIPs`
    pub external_ips: BTreeSet<IpAddr>,
    /// Addresses a load balancer gave.
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// Who may use the load balancer addresses; empty: everybody.
    pub source_ranges: Vec<IpNet>,
    /// `internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`
    pub external_local: bool,
    /// Life time of session affinity.
    pub affinity: Option<Duration>,
    /// Where it leads.
    pub endpoints: Endpoints,
}

/// The ports of a service in a family; none when it is not for the proxy.
pub fn ports<'a>(
    family: Family,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeInfo,
) -> Vec<ServicePort> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let labelled = service
        .metadata
        .labels
        .as_ref()
        .is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    if labelled || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let addresses = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let Some(cluster_ip) = family_addresses(family, addresses).next() else {
        return Vec::new(); // headless, or not of this family
    };
    let ingress = service
        .status
        .iter()
        .flat_map(|s| &s.load_balancer)
        .flat_map(|l| l.ingress.iter().flatten());
    // "Proxy" means the load balancer's address must not be short-circuited.
    let ingress = ingress
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref());
    let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    let load_balancer_ips: BTreeSet<IpAddr> = if load_balancer {
        family_addresses(family, ingress).collect()
    } else {
        BTreeSet::new()
    };
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let ranges = ranges.filter_map(|r| r.trim().parse::<IpNet>().ok());
    let source_ranges: Vec<IpNet> = ranges.filter(|r| Family::of(r.addr()) == family).collect();
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref());
        let seconds = config
            .and_then(|c| c.timeout_seconds)
            .and_then(|s| u64::try_from(s).ok());
        Duration::from_secs(seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS).max(1))
    });
    let (namespace, name) = (
        service.metadata.namespace.as_deref(),
        service.metadata.name.as_deref(),
    );
    spec.ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            let port_name = port.name.as_deref().unwrap_or_default();
            Some(ServicePort {
                name: format!(
                    "{}/{}:{port_name}",
                    namespace.unwrap_or_default(),
                    name.unwrap_or_default()
                ),
                protocol,
                port: u16::try_from(port.port).ok()?,
                cluster_ip,
                node_port: node_port(port),
                external_ips: family_addresses(family, spec.external_ips.iter().flatten()).collect(),
                load_balancer_ips: load_balancer_ips.clone(),
                source_ranges: source_ranges.clone(),
                internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
                external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
                affinity,
                endpoints: endpoints(family, port_name, protocol, slices.clone(), node),
            })
        })
        .collect()
}

fn node_port(port: &ApiPort) -> Option<u16> {
    port.node_port
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
}

fn family_addresses<'a>(
    family: Family,
    texts: impl Iterator<Item = &'a String>,
) -> impl Iterator<Item = IpAddr> {
    texts
        .filter_map(|t| t.parse::<IpAddr>().ok())
        .filter(move |a| Family::of(*a) == family)
}

/// An endpoint as it stands in a slice.
struct Candidate<'a> {
    address: SocketAddr,
    ready: bool,
    /// Terminating, but serving still.
    leaving: bool,
    here: bool,
    hints: Option<&'a EndpointHints>,
}

impl Candidate<'_> {
    fn nodes(&self) -> &[ForNode] {
        self.hints
            .and_then(|h| h.for_nodes.as_deref())
            .unwrap_or_default()
    }

    fn zones(&self) -> &[ForZone] {
        self.hints
            .and_then(|h| h.for_zones.as_deref())
            .unwrap_or_default()
    }

    fn hinted_for_node(&self, node: &NodeInfo) -> bool {
        self.nodes().iter().any(|n| n.name == node.name)
    }

    fn hinted_for_zone(&self, node: &NodeInfo) -> bool {
        self.zones().iter().any(|z| Some(&z.name) == node.zone.as_ref())
    }
}

fn endpoints<'a>(
    family: Family,
    port_name: &str,
    protocol: Protocol,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node: &NodeInfo,
) -> Endpoints {
    let mut all = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|p| {
            p.name.as_deref().unwrap_or_default() == port_name
                && Protocol::parse(p.protocol.as_deref()) == Some(protocol)
        });
        for port in ports.filter_map(|p| p.port.and_then(|n| u16::try_from(n).ok())) {
            let endpoints = slice.endpoints.iter().flatten();
            all.extend(endpoints.filter_map(|endpoint| {
                // The addresses of an endpoint are interchangeable: the first is used.
                let address = endpoint.addresses.first()?.parse::<IpAddr>().ok()?;
                if Family::of(address) != family {
                    return None;
                }
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
                let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
                Some(Candidate {
                    address: SocketAddr::new(address, port),
                    ready,
                    leaving: serving && terminating,
                    here: endpoint.node_name.as_deref() == Some(node.name.as_str()),
                    hints: endpoint.hints.as_ref(),
                })
            }));
        }
    }
    let pick = |want: &dyn Fn(&Candidate<'_>) -> bool| -> BTreeSet<SocketAddr> {
        all.iter().filter(|c| want(c)).map(|c| c.address).collect()
    };
    let or = |first: BTreeSet<SocketAddr>, second: &dyn Fn() -> BTreeSet<SocketAddr>| {
        if first.is_empty() { second() } else { first }
    };
    // Hints count when every ready endpoint has one of the kind and some are for us: the node's before the zone's.
    let ready: Vec<&Candidate<'_>> = all.iter().filter(|c| c.ready).collect();
    let by_node =
        ready.iter().all(|c| !c.nodes().is_empty()) && ready.iter().any(|c| c.hinted_for_node(node));
    let by_zone =
        ready.iter().all(|c| !c.zones().is_empty()) && ready.iter().any(|c| c.hinted_for_zone(node));
    let preferred = |c: &Candidate<'_>| match (by_node, by_zone) {
        (true, _) => c.hinted_for_node(node),
        (false, true) => c.hinted_for_zone(node),
        (false, false) => true,
    };
    let cluster = or(pick(&|c| c.ready && preferred(c)), &|| pick(&|c| c.leaving));
    let local = or(pick(&|c| c.ready && c.here), &|| pick(&|c| c.leaving && c.here));
    let here = all
        .iter()
        .filter(|c| c.here && (cluster.contains(&c.address) || local.contains(&c.address)));
    let here = here.map(|c| c.address.ip()).collect();
    Endpoints { cluster, local, here }
}
