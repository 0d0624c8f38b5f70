//! Which traffic leaves with the node's own address.
//!
//! Only what comes from this node's pods (or from the gateway address, on behalf of the node itself) and leaves the
//! cluster: not pod to pod, on any node; not what stays on our own links; not multicast. Service traffic is seen
//! here only after it was given its endpoint as destination, so an endpoint that is a pod is never masqueraded here.

use std::sync::Arc;

use ipnet::IpNet;

use skiff_nft::Key;
use skiff_nft::{Chain, Content, Family, Hook, NftTable, Owner, Rule, Section, Statement, Value};

use crate::Error;

/// The rules, as values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqueradeRules {
    /// Sources: the node's pod networks.
    pub pod_cidrs: Vec<IpNet>,
    /// Destinations that are not translated: the cluster's pod networks.
    pub cluster_cidrs: Vec<IpNet>,
    /// Outgoing links that are not translated: the bridge and the VXLAN device.
    pub links: Vec<String>,
}

/// Whoever writes the packet filter.
pub trait Firewall: Send + Sync {
    /// Has exactly these rules.
    fn ensure(&self, rules: &MasqueradeRules) -> Result<(), Error>;
    /// Has none of them.
    fn remove(&self) -> Result<(), Error>;
}

/// For clusters whose pods are routed by the network around them, and for tests.
#[derive(Debug, Default)]
pub struct NoFirewall;

impl Firewall for NoFirewall {
    fn ensure(&self, _: &MasqueradeRules) -> Result<(), Error> {
        Ok(())
    }

    fn remove(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The chain's name after the owner's prefix.
const CHAIN: &str = "masquerade";

/// Multicast is never translated: the answer could not be.
const MULTICAST: &str = "224.0.0.0/4";

/// The overlay's section of the table all components share.
pub struct TableFirewall {
    section: Section,
}

impl TableFirewall {
    /// Writes to this table (of family `ip`).
    pub fn new(table: &NftTable) -> Self {
        Self {
            section: table.section(Owner::Overlay),
        }
    }
}

/// The rules as a section of the table.
fn content(chain: &Arc<str>, rules: &MasqueradeRules) -> Content {
    let (source, destination) = (Family::Ip.source(), Family::Ip.destination());
    let multicast: IpNet = MULTICAST.parse().unwrap_or_default();
    let ipv4 = |nets: &[IpNet]| {
        nets.iter()
            .copied()
            .filter(|net| net.addr().is_ipv4())
            .collect::<Vec<_>>()
    };
    let stays = rules.links.iter().map(|link| {
        Rule::new()
            .is(Value::InterfaceOut, Key::new().interface(link))
            .return_()
    });
    let inside = ipv4(&rules.cluster_cidrs).into_iter().chain([multicast]);
    let inside = inside.map(|net| Rule::new().in_network(destination.clone(), net).return_());
    let leaves = ipv4(&rules.pod_cidrs).into_iter().map(|net| {
        Rule::new()
            .in_network(source.clone(), net)
            .then(Statement::Masquerade { random: true })
    });
    let mut content = Content::default();
    let all: Vec<Rule> = stays.chain(inside).chain(leaves).collect();
    content.ruleset.chains.insert(chain.clone(), Chain::from(all));
    content.hooks.insert(Hook::NatPostrouting, chain.clone());
    content
}

impl Firewall for TableFirewall {
    fn ensure(&self, rules: &MasqueradeRules) -> Result<(), Error> {
        let chain = self.section.name(CHAIN);
        self.section
            .replace(&content(&chain, rules))
            .map(drop)
            .map_err(Error::Firewall)
    }

    fn remove(&self) -> Result<(), Error> {
        self.section
            .replace(&Content::default())
            .map(drop)
            .map_err(Error::Firewall)
    }
}
