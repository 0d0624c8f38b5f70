//! From a service's ports to what it contributes to the section. Pure.
//!
//! The unit is a [`Front`]: an address and port, or a node port, that clients
//! connect to. Two services can claim one front (an external address used
//! twice); [`crate::ledger`] decides who gets it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use skiff_nft::{Datum, Element, Key, Name, Owner, Rule, SetType, Verdict};

use crate::rules::{LOCAL_BASE, Names, Rules, Shared};
use crate::service::{NodeInfo, Protocol, ServicePort};

/// What clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Front {
    /// A cluster, external or load balancer address.
    Address(IpAddr, Protocol, u16),
    /// A port on every address of the node.
    NodePort(Protocol, u16),
}

/// Where a front's verdict leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A chain shared with other services.
    Shared(Shared),
    /// A chain of the service's own.
    Own(Name),
}

/// What one front needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrontPlan {
    /// Where the verdict map sends it; `None` when there is no endpoint.
    pub target: Option<Target>,
    /// Endpoints anywhere, for a shared chain.
    pub cluster: Vec<SocketAddr>,
    /// Endpoints on this node, for a shared chain.
    pub local: Vec<SocketAddr>,
    /// What is not translated is refused: rejected (true) or dropped.
    pub refused: Option<bool>,
    /// The chain that checks sources before.
    pub guard: Option<Name>,
}

/// What a service contributes in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServicePlan {
    /// By front.
    pub fronts: BTreeMap<Front, FrontPlan>,
    /// Its cluster addresses.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Its endpoints on this node.
    pub hairpin: BTreeSet<IpAddr>,
    /// Chains of its own.
    pub chains: BTreeMap<Name, Vec<Rule>>,
    /// Sets of its own.
    pub sets: BTreeMap<Name, SetType>,
}

/// The contribution of a service.
pub fn plan(rules: &Rules, ports: &[ServicePort], node: &NodeInfo) -> ServicePlan {
    let mut plan = ServicePlan::default();
    for port in ports {
        add_port(rules, port, node, &mut plan);
    }
    plan
}

fn add_port(rules: &Rules, port: &ServicePort, node: &NodeInfo, plan: &mut ServicePlan) {
    let ends = &port.endpoints;
    let in_cluster = |a: &&IpAddr| node.cluster_cidrs.iter().any(|net| net.contains(*a));
    let here = ends.here.iter();
    plan.hairpin
        .extend(here.filter(|a| node.cluster_cidrs.is_empty() || in_cluster(a)));
    let limit = LOCAL_BASE as usize;
    let cluster: Vec<SocketAddr> = ends.cluster.iter().copied().take(limit).collect();
    let local: Vec<SocketAddr> = ends.local.iter().copied().take(limit).collect();
    let (n, l) = (cluster.len() as u32, local.len() as u32);
    let sticky = port
        .affinity
        .map(|timeout| Sticky::new(rules, port, timeout, plan));

    if !node.local_addresses.contains(&port.cluster_ip) {
        plan.cluster_ips.insert(port.cluster_ip);
        let inside = if port.internal_local { &local } else { &cluster };
        let front = if inside.is_empty() {
            FrontPlan {
                refused: Some(ends.is_empty()),
                ..FrontPlan::default()
            }
        } else {
            let target = match &sticky {
                Some(sticky) => {
                    let mut chain = rules.mark_outsiders();
                    chain.push(Rule::new().goto(sticky.chain(port.internal_local)));
                    sticky.own("in", chain, plan)
                }
                None => Target::Shared(Shared::Cluster(inside.len() as u32)),
            };
            FrontPlan {
                target: Some(target),
                cluster: inside.clone(),
                ..FrontPlan::default()
            }
        };
        plan.fronts
            .insert(Front::Address(port.cluster_ip, port.protocol, port.port), front);
    }

    let guard = (!port.source_ranges.is_empty() && !port.load_balancer_ips.is_empty()).then(|| {
        let name: Name = format!("{}guard-{}", Owner::Proxy.prefix(), short(&port.name, "")).into();
        plan.chains.insert(name.clone(), rules.guard(&port.source_ranges));
        name
    });
    let outside = |address_front: bool, plan: &mut ServicePlan| -> FrontPlan {
        if ends.is_empty() {
            return FrontPlan {
                refused: Some(true),
                ..FrontPlan::default()
            };
        }
        if !port.external_local {
            let target = match &sticky {
                Some(sticky) => {
                    let chain = vec![rules.mark_all(), Rule::new().goto(sticky.chain(false))];
                    sticky.own("out", chain, plan)
                }
                None if address_front => Target::Shared(Shared::External(n)),
                None => Target::Shared(Shared::NodePort(n)),
            };
            return FrontPlan {
                target: Some(target),
                cluster: cluster.clone(),
                ..FrontPlan::default()
            };
        }
        let target = match &sticky {
            Some(sticky) => {
                let everywhere = sticky.chain(false);
                let mut chain = rules.inside_goes_everywhere(|rule| vec![rule.goto(everywhere)]);
                if l > 0 {
                    chain.push(Rule::new().goto(sticky.chain(true)));
                }
                sticky.own("stay", chain, plan)
            }
            None if address_front => Target::Shared(Shared::ExternalLocal(n, l)),
            None => Target::Shared(Shared::NodePortLocal(n, l)),
        };
        FrontPlan {
            target: Some(target),
            cluster: cluster.clone(),
            local: local.clone(),
            refused: local.is_empty().then_some(false),
            guard: None,
        }
    };
    if let Some(node_port) = port.node_port {
        let front = outside(false, plan);
        plan.fronts
            .insert(Front::NodePort(port.protocol, node_port), front);
    }
    for address in port.external_ips.iter().chain(&port.load_balancer_ips) {
        let mut front = outside(true, plan);
        if port.load_balancer_ips.contains(address) {
            front.guard.clone_from(&guard);
        }
        plan.fronts
            .entry(Front::Address(*address, port.protocol, port.port))
            .or_insert(front);
    }
}

/// The chains and sets of a port with session affinity.
struct Sticky {
    base: String,
    everywhere: Name,
    here: Name,
}

impl Sticky {
    fn new(rules: &Rules, port: &ServicePort, timeout: std::time::Duration, plan: &mut ServicePlan) -> Self {
        let prefix = Owner::Proxy.prefix();
        let base = short(&port.name, "");
        let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let ends = &port.endpoints;
        let name = |kind: &str, endpoint: &SocketAddr| -> Name {
            format!("{prefix}{kind}-{}", short(&port.name, &endpoint.to_string())).into()
        };
        for endpoint in ends.cluster.union(&ends.local) {
            let (set, chain) = (name("seen", endpoint), name("to", endpoint));
            plan.chains
                .insert(chain, rules.remember(&set, port.protocol, *endpoint));
            plan.sets
                .insert(set, SetType::dynamic([rules.family().address()], milliseconds));
        }
        let mut choose = |kind: &str, from: &BTreeSet<SocketAddr>| -> Name {
            let chain: Name = format!("{prefix}{kind}-{base}").into();
            if !from.is_empty() {
                let pairs: Vec<_> = from.iter().map(|e| (name("seen", e), name("to", e))).collect();
                plan.chains.insert(chain.clone(), rules.sticky(&pairs));
            }
            chain
        };
        let (everywhere, here) = (choose("any", &ends.cluster), choose("here", &ends.local));
        Self {
            base,
            everywhere,
            here,
        }
    }

    fn chain(&self, only_here: bool) -> &Name {
        if only_here { &self.here } else { &self.everywhere }
    }

    fn own(&self, kind: &str, rules: Vec<Rule>, plan: &mut ServicePlan) -> Target {
        let name: Name = format!("{}{kind}-{}", Owner::Proxy.prefix(), self.base).into();
        plan.chains.insert(name.clone(), rules);
        Target::Own(name)
    }
}

impl Front {
    fn key(&self) -> Key {
        match self {
            Self::Address(address, protocol, port) => {
                Key::address(*address).protocol(protocol.number()).port(*port)
            }
            Self::NodePort(protocol, port) => Key::new().protocol(protocol.number()).port(*port),
        }
    }

    /// The elements a front's plan puts into the section's sets.
    pub fn elements(&self, names: &Names, rules: &Rules, plan: &FrontPlan) -> Vec<(Name, Key, Element)> {
        let (verdicts, endpoints, refused) = match self {
            Self::Address(..) => (&names.ips, &names.endpoints, &names.refused_ips),
            Self::NodePort(..) => (
                &names.node_ports,
                &names.node_port_endpoints,
                &names.refused_node_ports,
            ),
        };
        let mut out = Vec::new();
        let verdict = |chain: Name| Element::from(Datum::Verdict(Verdict::Goto(chain)));
        match &plan.target {
            Some(Target::Own(chain)) => out.push((verdicts.clone(), self.key(), verdict(chain.clone()))),
            Some(Target::Shared(shared)) => {
                out.push((verdicts.clone(), self.key(), verdict(shared.name())));
                let cluster = plan.cluster.iter().zip(0u32..);
                let local = plan.local.iter().zip(LOCAL_BASE..);
                for (endpoint, index) in cluster.chain(local) {
                    let data = Key::address(endpoint.ip()).port(endpoint.port());
                    out.push((
                        endpoints.clone(),
                        self.key().number(index),
                        Datum::Data(data).into(),
                    ));
                }
            }
            None => {}
        }
        if let Some(reject) = plan.refused {
            out.push((
                refused.clone(),
                self.key(),
                Datum::Verdict(rules.refusal(reject)).into(),
            ));
        }
        if let Some(guard) = &plan.guard {
            out.push((names.guarded.clone(), self.key(), verdict(guard.clone())));
        }
        out
    }
}

impl FrontPlan {
    /// The shared chain it leads to.
    pub fn shared(&self) -> Option<Shared> {
        match self.target {
            Some(Target::Shared(shared)) => Some(shared),
            _ => None,
        }
    }
}

/// A name that fits: the readable end cut, then 64 bits of the whole (FNV-1a).
fn short(name: &str, detail: &str) -> String {
    let bytes = name.bytes().chain([0]).chain(detail.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    let readable = name.chars().map(|c| {
        if c.is_ascii_alphanumeric() || c == '-' {
            c
        } else {
            '.'
        }
    });
    format!("{}-{hash:016x}", readable.take(60).collect::<String>())
}
