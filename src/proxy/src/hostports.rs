//! Ports of the node that lead to one pod.
//!
//! ```text
//! hostport-nat:  ip daddr . meta l4proto . th dport  → address . port from @hostport-at
//!                (destination local, not loopback) meta l4proto . th dport → @hostport-any
//! ```
//!
//! A connection that a pod makes to its own host port is masqueraded, like the hairpin of a service.
//! State is derived: after a restart the pod network brings all mappings with [`HostPorts::restore`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use parking_lot::Mutex;
use skiff_nft::model::address_type;
use skiff_nft::{
    Compare, Content, Datum, Element, Error, Family, Hook, Key, NatTarget, NftTable, Owner, Rule, Section,
    Set, SetType, Statement, Type, Value,
};

use crate::service::Protocol;

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The node's address; any when absent.
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The pod's address and port.
    pub pod: SocketAddr,
}

/// The host ports of all pods on this node.
#[derive(Debug)]
pub struct HostPorts {
    sections: Vec<Section>,
    sandboxes: Mutex<BTreeMap<String, Vec<HostPort>>>,
}

impl HostPorts {
    /// Host ports in these tables, one per address family. Writes nothing yet.
    pub fn new(tables: &[NftTable]) -> Self {
        let sections = tables.iter().map(|t| t.section(Owner::HostPorts)).collect();
        Self {
            sections,
            sandboxes: Mutex::default(),
        }
    }

    /// Sets the mappings of all sandboxes at once, forgetting others.
    pub fn restore(&self, sandboxes: BTreeMap<String, Vec<HostPort>>) -> Result<(), Error> {
        let mut current = self.sandboxes.lock();
        self.apply(&sandboxes)?;
        *current = sandboxes;
        Ok(())
    }

    /// Sets the mappings of one sandbox. Blocks for a netlink exchange.
    pub fn set(&self, sandbox: &str, mappings: &[HostPort]) -> Result<(), Error> {
        let mut current = self.sandboxes.lock();
        if current.get(sandbox).map(Vec::as_slice).unwrap_or_default() == mappings {
            return Ok(());
        }
        let mut wanted = current.clone();
        if mappings.is_empty() {
            wanted.remove(sandbox);
        } else {
            wanted.insert(sandbox.to_owned(), mappings.to_vec());
        }
        self.apply(&wanted)?;
        *current = wanted;
        Ok(())
    }

    /// Removes the mappings of a sandbox.
    pub fn remove(&self, sandbox: &str) -> Result<(), Error> {
        self.set(sandbox, &[])
    }

    fn apply(&self, sandboxes: &BTreeMap<String, Vec<HostPort>>) -> Result<(), Error> {
        let all: BTreeSet<HostPort> = sandboxes.values().flatten().copied().collect();
        for section in &self.sections {
            section.replace(&content(section, &all))?;
        }
        Ok(())
    }
}

fn content(section: &Section, mappings: &BTreeSet<HostPort>) -> Content {
    let family = section.table().family();
    let ours: Vec<&HostPort> = mappings
        .iter()
        .filter(|m| Family::of(m.pod.ip()) == family)
        .collect();
    let mut content = Content::default();
    if ours.is_empty() {
        return content;
    }
    let (any, at) = (section.name("any"), section.name("at"));
    let (hairpin, nat, post) = (
        section.name("hairpin"),
        section.name("nat"),
        section.name("postrouting"),
    );
    let address = family.address();
    let target = [address, Type::Port];
    let mut any_set = Set::new(SetType::map([Type::Protocol, Type::Port], target));
    let mut at_set = Set::new(SetType::map([address, Type::Protocol, Type::Port], target));
    let mut hairpin_set = Set::new(SetType::set([address, address]));
    for mapping in ours {
        let pod = Datum::Data(Key::address(mapping.pod.ip()).port(mapping.pod.port()));
        let (number, port) = (mapping.protocol.number(), mapping.host_port);
        // 0.0.0.0 means any address, as in the API. The first mapping of a port keeps it.
        match mapping.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(ip) => at_set
                .elements
                .entry(Key::address(ip).protocol(number).port(port)),
            None => any_set.elements.entry(Key::new().protocol(number).port(port)),
        }
        .or_insert(pod.into());
        hairpin_set.elements.insert(
            Key::address(mapping.pod.ip()).ip(mapping.pod.ip()),
            Element::default(),
        );
    }
    let loopback = match family {
        Family::Ip6 => IpNet::new(Ipv6Addr::LOCALHOST.into(), 128),
        _ => IpNet::new(Ipv4Addr::LOCALHOST.into(), 8),
    }
    .expect("a loopback network");
    let local = || {
        let mut rule = Rule::new()
            .is(Value::DestinationType, Key::new().number(address_type::LOCAL))
            .in_network(family.destination(), loopback);
        if let Some(Statement::Match(_, compare, _)) = rule.steps.last_mut() {
            *compare = Compare::NotEqual;
        }
        rule
    };
    let to = |key: Vec<Value>, map| Statement::Dnat(NatTarget::Map { key, map });
    let by_address = vec![family.destination(), Value::Protocol, Value::DestinationPort];
    let rules = vec![
        local().then(to(by_address, at.clone())),
        local().then(to(vec![Value::Protocol, Value::DestinationPort], any.clone())),
    ];
    content.ruleset.chains.insert(nat.clone(), rules.into());
    let pair = vec![family.source(), family.destination()];
    let masquerade = Rule::new()
        .within(pair, &hairpin)
        .then(Statement::Masquerade { random: true });
    content
        .ruleset
        .chains
        .insert(post.clone(), vec![masquerade].into());
    content
        .ruleset
        .sets
        .extend([(any, any_set), (at, at_set), (hairpin, hairpin_set)]);
    content.hooks.insert(Hook::NatPrerouting, nat.clone());
    content.hooks.insert(Hook::NatOutput, nat);
    content.hooks.insert(Hook::NatPostrouting, post);
    content
}
