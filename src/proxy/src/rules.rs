//! The rules of the proxy's section: fixed chains, shared chains, tables of names.
//!
//! # Scheme
//!
//! A connection's destination is looked up once, in a verdict map:
//!
//! ```text
//! svc-nat:   ip daddr . meta l4proto . th dport vmap @svc-ips
//!            fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @svc-nodeports
//! ```
//!
//! The verdict leads to a chain that is shared by all services with the same
//! number of endpoints and the same policy, and that chain takes the endpoint
//! from one map for all services, by a random index:
//!
//! ```text
//! svc-ips:          10.43.0.7 . tcp . 80 : goto svc-cluster-3
//! svc-endpoints:    10.43.0.7 . tcp . 80 . 0 : 10.42.0.5 . 8080
//!                   10.43.0.7 . tcp . 80 . 1 : 10.42.1.9 . 8080
//!                   10.43.0.7 . tcp . 80 . 2 : 10.42.1.12 . 8080
//! svc-cluster-3:    ip saddr != 10.42.0.0/16 jump svc-mark
//!                   dnat to ip daddr . meta l4proto . th dport . numgen random mod 3 map @svc-endpoints
//!                   dnat to ip daddr . meta l4proto . th dport . numgen random mod 1 map @svc-endpoints
//! ```
//!
//! So a service is a few elements, not chains of its own: ten thousand load as
//! one transaction of elements, and a service that gains an endpoint costs two
//! or three of them. The last rule of `svc-cluster-3` is for the packet that
//! looks up the verdict before a change and the endpoint after it, when index
//! 2 is gone: index 0 is always there.
//!
//! Endpoints that only traffic staying on the node may use stand in the same map from
//! index [`LOCAL_BASE`] on. Session affinity needs a memory per
//! endpoint; such a service has its own chains and dynamic sets.
//!
//! Rejected: a chain per service (more objects, slower to load, the endpoints
//! repeated for each address), anonymous maps in rules (the kernel names them by
//! linear search: minutes for ten thousand).
//!
//! # Masquerade
//!
//! A connection is marked with [`MASQUERADE_MARK`] when the answer would not come back through
//! this node otherwise: from outside the pod network to a cluster address, and
//! from anywhere to an external address whose endpoint may be on another node. The
//! mark is consumed in postrouting. A pod that reaches itself through a service is
//! found there by `ip saddr . ip daddr @svc-hairpin`, which holds the node's own endpoints.
//!
//! # No endpoint
//!
//! Such an address is not translated, and the filter chains refuse it:
//! `svc-refused-ips` and `svc-refused-nodeports` say whether to reject (no
//! endpoint at all: the client should know) or to drop (none on this node, where
//! the policy wants one: a load balancer should notice and go elsewhere). A port no service has on a cluster address is
//! rejected, an unassigned service address dropped. Service addresses the node
//! answers itself (its name server) are not touched anywhere.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use skiff_nft::model::{address_type, ct_state};
use skiff_nft::{
    Compare, Edit, Family, Hook, Key, Name, NatTarget, Owner, Reject, Rule, SetType, Statement, Type, Value,
    Verdict,
};

use crate::service::{NodeInfo, Protocol};

/// The bit of the packet mark that asks for masquerade; the one Kubernetes uses.
pub const MASQUERADE_MARK: u32 = 0x4000;
/// First index of the endpoints on this node; also the most endpoints a port can have.
pub const LOCAL_BASE: u32 = 1 << 16;

/// The names in the section, made once.
#[derive(Debug, Clone)]
pub struct Names {
    /// Verdicts by address, protocol, port.
    pub ips: Name,
    /// Verdicts by protocol, port on the node's addresses.
    pub node_ports: Name,
    /// Endpoints by address, protocol, port, index.
    pub endpoints: Name,
    /// Endpoints by protocol, port, index.
    pub node_port_endpoints: Name,
    /// Verdicts for addresses without endpoints.
    pub refused_ips: Name,
    /// Verdicts for node ports without endpoints.
    pub refused_node_ports: Name,
    /// Load balancer addresses with source ranges.
    pub guarded: Name,
    /// All cluster addresses.
    pub cluster_ips: Name,
    /// Pairs of an endpoint's address with itself.
    pub hairpin: Name,
    /// The chain that marks for masquerade.
    pub mark: Name,
    /// The chain that rejects.
    pub reject: Name,
}

impl Default for Names {
    fn default() -> Self {
        let name = |rest: &str| -> Name { format!("{}{rest}", Owner::Proxy.prefix()).into() };
        Self {
            ips: name("ips"),
            node_ports: name("nodeports"),
            endpoints: name("endpoints"),
            node_port_endpoints: name("nodeport-endpoints"),
            refused_ips: name("refused-ips"),
            refused_node_ports: name("refused-nodeports"),
            guarded: name("guarded"),
            cluster_ips: name("cluster-ips"),
            hairpin: name("hairpin"),
            mark: name("mark"),
            reject: name("reject"),
        }
    }
}

/// A chain shared by all services it fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shared {
    /// A cluster address with that many endpoints.
    Cluster(u32),
    /// An external address whose traffic may go to any node.
    External(u32),
    /// A node port whose traffic may go to any node.
    NodePort(u32),
    /// An external address whose traffic stays here: all endpoints, those here.
    ExternalLocal(u32, u32),
    /// A node port whose traffic stays here.
    NodePortLocal(u32, u32),
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = Owner::Proxy.prefix();
        match self {
            Self::Cluster(n) => write!(f, "{prefix}cluster-{n}"),
            Self::External(n) => write!(f, "{prefix}external-{n}"),
            Self::NodePort(n) => write!(f, "{prefix}nodeport-{n}"),
            Self::ExternalLocal(n, l) => write!(f, "{prefix}external-{n}-local-{l}"),
            Self::NodePortLocal(n, l) => write!(f, "{prefix}nodeport-{n}-local-{l}"),
        }
    }
}

impl Shared {
    /// The chain's name.
    pub fn name(self) -> Name {
        self.to_string().into()
    }
}

/// Builds the rules for one address family.
#[derive(Debug, Clone)]
pub struct Rules {
    family: Family,
    cluster: Vec<IpNet>,
    services: Vec<IpNet>,
    /// Service addresses that exist on the node itself.
    answered: Vec<IpAddr>,
    /// The names used.
    pub names: Names,
}

impl Rules {
    /// Rules for a family on a node.
    pub fn new(family: Family, node: &NodeInfo) -> Self {
        let ours = |nets: &[IpNet]| -> Vec<IpNet> {
            nets.iter()
                .filter(|n| Family::of(n.addr()) == family)
                .copied()
                .collect()
        };
        Self {
            family,
            cluster: ours(&node.cluster_cidrs),
            services: ours(&node.service_cidrs),
            answered: node
                .local_addresses
                .iter()
                .filter(|a| Family::of(**a) == family)
                .copied()
                .collect(),
            names: Names::default(),
        }
    }

    /// The address family.
    pub fn family(&self) -> Family {
        self.family
    }

    fn address_key(&self) -> Vec<Value> {
        vec![self.family.destination(), Value::Protocol, Value::DestinationPort]
    }

    /// Declares the sets and maps, the chains every service needs, and where they are called.
    pub fn base(&self, edit: &mut Edit) {
        let n = &self.names;
        let address = self.family.address();
        let by_address = [address, Type::Protocol, Type::Port];
        let by_port = [Type::Protocol, Type::Port];
        let target = [address, Type::Port];
        edit.set(&n.ips, SetType::verdicts(by_address));
        edit.set(&n.node_ports, SetType::verdicts(by_port));
        edit.set(
            &n.endpoints,
            SetType::map([address, Type::Protocol, Type::Port, Type::Mark], target),
        );
        edit.set(
            &n.node_port_endpoints,
            SetType::map([Type::Protocol, Type::Port, Type::Mark], target),
        );
        edit.set(&n.refused_ips, SetType::verdicts(by_address));
        edit.set(&n.refused_node_ports, SetType::verdicts(by_port));
        edit.set(&n.guarded, SetType::verdicts(by_address));
        edit.set(&n.cluster_ips, SetType::set([address]));
        edit.set(&n.hairpin, SetType::set([address, address]));

        let chain = |rest: &str| -> Name { format!("{}{rest}", Owner::Proxy.prefix()).into() };
        let local = Key::new().number(address_type::LOCAL);
        let loopback: IpNet = match self.family {
            Family::Ip6 => IpNet::new(Ipv6Addr::LOCALHOST.into(), 128),
            _ => IpNet::new(Ipv4Addr::LOCALHOST.into(), 8),
        }
        .expect("a loopback network");
        let nat = chain("nat");
        let mut not_loopback = Rule::new()
            .is(Value::DestinationType, local)
            .in_network(self.family.destination(), loopback);
        if let Some(Statement::Match(_, compare, _)) = not_loopback.steps.last_mut() {
            *compare = Compare::NotEqual;
        }
        edit.chain(
            &nat,
            vec![
                Rule::new().vmap(self.address_key(), &n.ips),
                not_loopback.vmap(vec![Value::Protocol, Value::DestinationPort], &n.node_ports),
            ],
        );
        edit.hook(Hook::NatPrerouting, &nat);
        edit.hook(Hook::NatOutput, &nat);

        edit.chain(
            &n.mark,
            vec![Rule::new().then(Statement::SetMark(Value::Mark.or(MASQUERADE_MARK)))],
        );
        let post = chain("postrouting");
        edit.chain(
            &post,
            vec![
                Rule::new()
                    .any_bit(Value::Mark, MASQUERADE_MARK)
                    .then(Statement::SetMark(Value::Mark.and(!MASQUERADE_MARK)))
                    .then(Statement::Masquerade { random: true }),
                Rule::new()
                    .within(vec![self.family.source(), self.family.destination()], &n.hairpin)
                    .then(Statement::Masquerade { random: true }),
            ],
        );
        edit.hook(Hook::NatPostrouting, &post);

        edit.chain(
            &n.reject,
            vec![Rule::new().then(Statement::Reject(Reject::PortUnreachable))],
        );
        let (refused, input) = (chain("refused"), chain("input"));
        let new = || Rule::new().any_bit(Value::CtState, ct_state::NEW);
        let here = self.answered.iter();
        let mut rules: Vec<Rule> = here
            .map(|a| {
                Rule::new()
                    .is(self.family.destination(), Key::address(*a))
                    .return_()
            })
            .collect();
        rules.extend([
            new().vmap(self.address_key(), &n.refused_ips),
            Rule::new()
                .within(vec![self.family.destination()], &n.cluster_ips)
                .then(Statement::Reject(Reject::PortUnreachable)),
        ]);
        rules.extend(
            self.services
                .iter()
                .map(|net| Rule::new().in_network(self.family.destination(), *net).drop()),
        );
        edit.chain(&refused, rules);
        edit.chain(
            &input,
            vec![
                new().vmap(self.address_key(), &n.refused_ips),
                new().vmap(
                    vec![Value::Protocol, Value::DestinationPort],
                    &n.refused_node_ports,
                ),
            ],
        );
        edit.hook(Hook::FilterInput, &input);
        edit.hook(Hook::FilterForward, &refused);
        edit.hook(Hook::FilterOutput, &refused);

        let guard = chain("guard");
        edit.chain(&guard, vec![new().vmap(self.address_key(), &n.guarded)]);
        edit.hook(Hook::PreNat, &guard);
        edit.hook(Hook::PreNatOutput, &guard);
    }

    /// Marks what comes from outside the pod network.
    pub fn mark_outsiders(&self) -> Vec<Rule> {
        if self.cluster.is_empty() {
            return Vec::new(); // without knowing the pods, nobody can be called an outsider
        }
        // One rule that must find the source in none of the networks.
        let mut rule = Rule::new();
        for net in &self.cluster {
            rule = rule.in_network(self.family.source(), *net);
            if let Some(Statement::Match(_, compare, _)) = rule.steps.last_mut() {
                *compare = Compare::NotEqual;
            }
        }
        vec![rule.jump(&self.names.mark)]
    }

    /// Marks everything.
    pub fn mark_all(&self) -> Rule {
        Rule::new().jump(&self.names.mark)
    }

    /// Traffic that stays here, seen from inside the cluster: pods and the node
    /// itself may use every endpoint. `all` are the rules that go there.
    pub fn inside_goes_everywhere(&self, all: impl Fn(Rule) -> Vec<Rule>) -> Vec<Rule> {
        let local = Key::new().number(address_type::LOCAL);
        let mut rules = Vec::new();
        for net in &self.cluster {
            rules.extend(all(Rule::new().in_network(self.family.source(), *net)));
        }
        rules.push(
            Rule::new()
                .is(Value::SourceType, local.clone())
                .jump(&self.names.mark),
        );
        rules.extend(all(Rule::new().is(Value::SourceType, local)));
        rules
    }

    /// Translation to one of `count` endpoints from `base` on, behind the given conditions.
    fn translate(&self, conditions: Rule, by_port: bool, count: u32, base: u32) -> Vec<Rule> {
        let rule = |modulus| {
            let (mut key, map) = if by_port {
                (
                    vec![Value::Protocol, Value::DestinationPort],
                    &self.names.node_port_endpoints,
                )
            } else {
                (self.address_key(), &self.names.endpoints)
            };
            key.push(Value::Random {
                modulus,
                offset: base,
            });
            conditions.clone().then(Statement::Dnat(NatTarget::Map {
                key,
                map: map.clone(),
            }))
        };
        match count {
            0 => Vec::new(),
            1 => vec![rule(1)],
            _ => vec![rule(count), rule(1)],
        }
    }

    /// The rules of a shared chain.
    pub fn shared(&self, chain: Shared) -> Vec<Rule> {
        let always = Rule::new;
        match chain {
            Shared::Cluster(n) => {
                let mut rules = self.mark_outsiders();
                rules.extend(self.translate(always(), false, n, 0));
                rules
            }
            Shared::External(n) | Shared::NodePort(n) => {
                let mut rules = vec![self.mark_all()];
                rules.extend(self.translate(always(), matches!(chain, Shared::NodePort(_)), n, 0));
                rules
            }
            Shared::ExternalLocal(n, l) | Shared::NodePortLocal(n, l) => {
                let by_port = matches!(chain, Shared::NodePortLocal(..));
                let mut rules = self.inside_goes_everywhere(|rule| self.translate(rule, by_port, n, 0));
                rules.extend(self.translate(always(), by_port, l, LOCAL_BASE));
                rules
            }
        }
    }

    /// A chain that lets the given sources pass and drops the rest.
    pub fn guard(&self, ranges: &[IpNet]) -> Vec<Rule> {
        let pass = ranges.iter().map(|net| {
            if net.prefix_len() == 0 {
                Rule::new().return_()
            } else {
                Rule::new().in_network(self.family.source(), *net).return_()
            }
        });
        pass.chain([Rule::new().drop()]).collect()
    }

    /// Translation to a fixed endpoint that remembers the client.
    pub fn remember(&self, set: &Name, protocol: Protocol, endpoint: SocketAddr) -> Vec<Rule> {
        let key = vec![self.family.source()];
        let target = NatTarget::Fixed(endpoint.ip(), Some(endpoint.port()));
        vec![
            Rule::new().then(Statement::Update {
                set: set.clone(),
                key,
                timeout_ms: None,
            }),
            Rule::new()
                .is(Value::Protocol, Key::new().protocol(protocol.number()))
                .then(Statement::Dnat(target)),
        ]
    }

    /// Goes to the endpoint that remembers the client, else to a random one.
    pub fn sticky(&self, ends: &[(Name, Name)]) -> Vec<Rule> {
        let known = ends
            .iter()
            .map(|(set, chain)| Rule::new().within(vec![self.family.source()], set).goto(chain));
        let left = |i: usize| (ends.len() - i) as u32;
        let random = ends.iter().enumerate().map(|(i, (_, chain))| match left(i) {
            1 => Rule::new().goto(chain),
            n => Rule::new()
                .is(
                    Value::Random {
                        modulus: n,
                        offset: 0,
                    },
                    Key::new().number(0),
                )
                .goto(chain),
        });
        known.chain(random).collect()
    }

    /// The verdict for an address without endpoints.
    pub fn refusal(&self, reject: bool) -> Verdict {
        if reject {
            Verdict::Goto(self.names.reject.clone())
        } else {
            Verdict::Drop
        }
    }
}
