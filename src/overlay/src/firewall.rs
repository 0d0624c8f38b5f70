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

#[cfg(test)]
mod tests {
    use skiff_nft::Ruleset;
    use skiff_nft::trace::{Packet, Tracer};

    use super::*;

    /// The section with the base chain that calls it, as the table would have it.
    fn ruleset(rules: &MasqueradeRules) -> Ruleset {
        let chain: Arc<str> = "overlay-masquerade".into();
        let content = content(&chain, rules);
        let mut ruleset = content.ruleset;
        for (hook, chain) in content.hooks {
            let base = Chain {
                attachment: Some(hook.attachment()),
                rules: vec![Rule::new().jump(&chain)],
            };
            ruleset.chains.insert(hook.chain_name().into(), base);
        }
        ruleset
    }

    #[test]
    fn only_what_leaves_the_cluster_is_translated() {
        let ruleset = ruleset(&MasqueradeRules {
            pod_cidrs: vec!["10.42.1.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            links: vec!["lo".into(), "skiff0".into(), "skiff.1".into()],
        });
        // source, destination, outgoing link, translated
        let table = [
            ("10.42.1.5", "192.0.2.9", "eth0", true),
            ("10.42.1.1", "192.0.2.9", "eth0", true),
            ("10.42.1.5", "10.42.2.7", "eth0", false),
            ("10.42.1.5", "10.42.2.7", "skiff.1", false),
            ("10.42.1.5", "192.0.2.9", "skiff0", false),
            ("10.42.1.5", "224.0.0.251", "eth0", false),
            ("10.42.2.5", "192.0.2.9", "eth0", false),
            ("192.0.2.1", "192.0.2.9", "eth0", false),
        ];
        for (source, destination, link, translated) in table {
            let mut packet = Packet::tcp(source.parse().unwrap(), destination.parse().unwrap(), 80);
            packet.interface_out = Some(link.into());
            let mut tracer = Tracer::new(Family::Ip, &ruleset, Vec::new(), |_| 0);
            let trace = tracer.arriving(packet);
            assert_eq!(
                trace.masqueraded, translated,
                "{source} -> {destination} by {link}"
            );
        }
    }
}
