//! This node's links, and the entries for its peers, in the kernel.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use skiff_netlink::{Address, BridgeSpec, Link, MacAddr, Netlink, NodeAddress, PROTOCOL_KERNEL, VxlanSpec};

use crate::attach::is_pod_link;
use crate::error::Collected;
use crate::peers::{Action, Entries, Local, Peer, plan, wanted};
use crate::{Backend, Config, Error, addresses, sysctls};

/// The bridge pods are on.
pub const BRIDGE: &str = "skiff0";

/// Marks our routes in the kernel, so that they can be found and removed again.
pub const ROUTE_PROTOCOL: u8 = 115;

/// What encapsulation adds to a packet: outer Ethernet-less IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14.
const VXLAN_OVERHEAD_BYTES: u32 = 50;
/// The same over IPv6.
const VXLAN_OVERHEAD_IPV6_BYTES: u32 = 70;
/// Assumed for a node on loopback: its 64 KiB would be a surprise as soon as there is a real network.
const LOOPBACK_MTU_BYTES: u32 = 1500;
/// IPv4 needs no less from any link.
const MIN_MTU_BYTES: u32 = 576;

/// The VXLAN device's name.
pub fn vxlan_name(vni: u32) -> String {
    format!("skiff.{vni}")
}

/// The links of this node, made.
#[derive(Clone, Debug)]
pub(crate) struct Fabric {
    pub(crate) netlink: Netlink,
    pub(crate) bridge: Link,
    pub(crate) vxlan: Option<Link>,
    pub(crate) net: Ipv4Net,
    pub(crate) mtu: u32,
    local: Local,
}

/// The node's IPv4 pod network, checked.
pub(crate) fn usable_net(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet]) -> Result<Ipv4Net, Error> {
    let bad = |cidr: String, reason| Error::BadPodCidr { cidr, reason };
    let Some(net) = pod_cidrs.iter().find_map(|net| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    }) else {
        return Err(match pod_cidrs.first() {
            Some(cidr) => bad(cidr.to_string(), "only IPv4 pod networks work so far"),
            None => Error::NotReady,
        });
    };
    if net.prefix_len() > 30 {
        return Err(bad(net.to_string(), "it has no room for a gateway and a pod"));
    }
    if !cluster_cidrs.iter().any(|cidr| cidr.contains(&IpNet::V4(net))) {
        return Err(bad(
            net.to_string(),
            "it is not part of the cluster's pod network",
        ));
    }
    Ok(net)
}

/// The largest packet of a pod.
pub(crate) fn pod_mtu(config: &Config, node: &NodeAddress) -> u32 {
    let under = if node.address.is_loopback() {
        node.mtu.min(LOOPBACK_MTU_BYTES)
    } else {
        node.mtu
    };
    let overhead = match (config.backend, node.address) {
        (Backend::HostGw, _) => 0,
        (Backend::Vxlan, IpAddr::V4(_)) => VXLAN_OVERHEAD_BYTES,
        (Backend::Vxlan, IpAddr::V6(_)) => VXLAN_OVERHEAD_IPV6_BYTES,
    };
    config
        .mtu
        .unwrap_or_else(|| under.saturating_sub(overhead))
        .max(MIN_MTU_BYTES)
}

impl Fabric {
    /// Has the bridge and the VXLAN device, with their addresses and switches.
    pub(crate) async fn ensure(
        netlink: &Netlink,
        config: &Config,
        node: &NodeAddress,
        pod_cidrs: &[IpNet],
    ) -> Result<Self, Error> {
        let net = usable_net(pod_cidrs, &config.cluster_cidrs)?;
        let mtu = pod_mtu(config, node);
        let seed = |link: &str| MacAddr::derived(&format!("{}/{link}", config.node_name));
        let bridge = BridgeSpec {
            name: BRIDGE.into(),
            mac: seed(BRIDGE),
            mtu,
        };
        let bridge = netlink.ensure_bridge(&bridge).await?;
        adopt_pod_links(netlink, bridge.index).await?;
        let gateway = IpNet::V4(Ipv4Net::new_assert(addresses::gateway(net), net.prefix_len()));
        let local = config.local_addresses.iter().map(|address| IpNet::from(*address));
        let on_bridge: Vec<IpNet> = std::iter::once(gateway).chain(local).collect();
        netlink.ensure_addresses(bridge.index, &on_bridge).await?;

        let name = vxlan_name(config.vni);
        let vxlan = match config.backend {
            Backend::HostGw => {
                netlink.delete_link(&name).await?;
                None
            }
            Backend::Vxlan => {
                refuse_taken_vni(netlink, config, &name).await?;
                let spec = VxlanSpec {
                    name: name.clone(),
                    vni: config.vni,
                    port: config.port,
                    local: node.address,
                    mac: seed(&name),
                    mtu,
                };
                let link = netlink.ensure_vxlan(&spec).await?;
                netlink
                    .ensure_addresses(link.index, &[host_address(net.network())])
                    .await?;
                Some(link)
            }
        };
        let names: Vec<&str> = std::iter::once(BRIDGE)
            .chain(vxlan.as_ref().map(|_| name.as_str()))
            .collect();
        sysctls::ensure(&config.state_dir, &names)?;
        let uplink_nets = networks_on(&netlink.addresses().await?, node.index);
        let local = Local {
            backend: config.backend,
            vxlan: vxlan.as_ref().map_or(0, |link| link.index),
            uplink: node.index,
            uplink_nets,
            node_ip: node.address,
            pod_cidrs: pod_cidrs.to_vec(),
            cluster_cidrs: config.cluster_cidrs.clone(),
            bridge: bridge.index,
            service_cidrs: config
                .service_cidrs
                .iter()
                .copied()
                .filter(|net| net.addr().is_ipv4())
                .collect(),
        };
        Ok(Self {
            netlink: netlink.clone(),
            bridge,
            vxlan,
            net,
            mtu,
            local,
        })
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        addresses::gateway(self.net)
    }

    /// The entries of ours that are in the kernel.
    async fn observed(&self) -> Result<Entries, Error> {
        let routes = self
            .netlink
            .routes()
            .await?
            .into_iter()
            .filter(|r| r.protocol == ROUTE_PROTOCOL);
        let mut entries = Entries {
            routes: routes.collect(),
            ..Entries::default()
        };
        if let Some(link) = &self.vxlan {
            entries.neighbours = self.netlink.neighbours(link.index).await?.into_iter().collect();
            entries.fdb = self.netlink.fdb(link.index).await?.into_iter().collect();
        }
        Ok(entries)
    }

    /// The steps that bring the kernel's entries in line with these peers, and the peers that cannot have any.
    pub(crate) async fn plan(
        &self,
        peers: &[Peer],
    ) -> Result<(Vec<Action>, Vec<(String, &'static str)>), Error> {
        let (goal, refused) = wanted(&self.local, peers);
        Ok((plan(&goal, &self.observed().await?), refused))
    }

    /// Carries the steps out; goes on after a failure, so that one bad peer does not keep the others away.
    pub(crate) async fn apply(&self, actions: &[Action]) -> Result<(), Error> {
        let netlink = &self.netlink;
        let mut collected = Collected::default();
        for action in actions {
            collected.add(match action {
                Action::SetNeighbour(neighbour) => netlink.replace_neighbour(neighbour).await,
                Action::SetFdb(entry) => netlink.replace_fdb(entry).await,
                Action::SetRoute(route) => netlink.replace_route(route).await,
                Action::DeleteRoute(route) => netlink.delete_route(route).await,
                Action::DeleteNeighbour(neighbour) => netlink.delete_neighbour(neighbour).await,
                Action::DeleteFdb(entry) => netlink.delete_fdb(entry).await,
            });
        }
        collected.finish(|| "updating peers".into())
    }
}

/// Puts pod links back on the bridge: it may have been deleted and made anew while pods went on.
async fn adopt_pod_links(netlink: &Netlink, bridge: u32) -> Result<(), Error> {
    for link in netlink
        .links()
        .await?
        .iter()
        .filter(|l| is_pod_link(l) && l.master != Some(bridge))
    {
        netlink.set_master(link.index, Some(bridge)).await?;
        netlink.set_hairpin(link.index, true).await?;
    }
    Ok(())
}

/// An address alone, as a network of one.
fn host_address(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, 32))
}

fn networks_on(addresses: &[Address], link: u32) -> Vec<IpNet> {
    addresses
        .iter()
        .filter(|a| a.link == link && a.global)
        .map(|a| a.net.trunc())
        .collect()
}

/// The kernel refuses a second device with the same identifier and port with a bare "file exists": name the culprit.
async fn refuse_taken_vni(netlink: &Netlink, config: &Config, name: &str) -> Result<(), Error> {
    let taken = netlink.links().await?.into_iter().find(|link| {
        link.name != name
            && link
                .vxlan
                .as_ref()
                .is_some_and(|v| v.vni == config.vni && v.port == config.port)
    });
    match taken {
        Some(link) => Err(Error::VniTaken {
            vni: config.vni,
            port: config.port,
            link: link.name,
        }),
        None => Ok(()),
    }
}

/// The node's address, given the one used so far. An address that is still on a link stays, whatever happened to
/// routes (a cable pulled from the uplink must not move the overlay); one that is gone is replaced, but not by
/// loopback: the network may come back.
pub(crate) fn settle_node_address(
    previous: Option<&NodeAddress>,
    found: Result<NodeAddress, skiff_netlink::Error>,
    links: &[Link],
    addresses: &[Address],
) -> Result<NodeAddress, skiff_netlink::Error> {
    let Some(previous) = previous else { return found };
    let present = addresses
        .iter()
        .filter(|a| a.net.addr() == previous.address)
        .find_map(|a| links.iter().find(|l| l.index == a.link));
    if let Some(link) = present
        && !previous.address.is_loopback()
    {
        return Ok(NodeAddress {
            address: previous.address,
            link: link.name.clone(),
            index: link.index,
            mtu: link.mtu,
        });
    }
    match found {
        Ok(found) if previous.address.is_loopback() || !found.address.is_loopback() => Ok(found),
        _ => Ok(previous.clone()),
    }
}

/// Routes that belong to a pod's only interface: the gateway on the link, everything else behind it.
pub(crate) fn pod_routes(link: u32, gateway: Ipv4Addr) -> [skiff_netlink::Route; 2] {
    let to_gateway = skiff_netlink::Route::new(host_address(gateway), link, PROTOCOL_KERNEL);
    let mut default = skiff_netlink::Route::new(IpNet::V4(Ipv4Net::default()), link, ROUTE_PROTOCOL);
    default.gateway = Some(gateway.into());
    [
        skiff_netlink::Route {
            protocol: ROUTE_PROTOCOL,
            ..to_gateway
        },
        default,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn which_pod_networks_are_usable() {
        let cluster = nets(&["10.42.0.0/16"]);
        let table: &[(&[&str], Result<&str, &str>)] = &[
            (&["10.42.3.0/24"], Ok("10.42.3.0/24")),
            (&["fd00::/64", "10.42.3.0/24"], Ok("10.42.3.0/24")),
            (&[], Err("not ready")),
            (&["fd00::/64"], Err("only IPv4")),
            (&["10.42.3.4/31"], Err("no room")),
            (&["10.99.3.0/24"], Err("not part of the cluster")),
        ];
        for (given, expected) in table {
            match (usable_net(&nets(given), &cluster), expected) {
                (Ok(net), Ok(text)) => assert_eq!(&net.to_string(), text),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{given:?}: {error}"),
                (got, _) => panic!("{given:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn mtu_is_found_not_assumed() {
        let node = |ip: &str, mtu| NodeAddress {
            address: ip.parse().unwrap(),
            link: "eth0".into(),
            index: 2,
            mtu,
        };
        let mut config = Config::new("n", "/nowhere");
        assert_eq!(pod_mtu(&config, &node("192.0.2.1", 1500)), 1450);
        assert_eq!(pod_mtu(&config, &node("192.0.2.1", 9000)), 8950);
        assert_eq!(pod_mtu(&config, &node("fd00::1", 1500)), 1430);
        assert_eq!(pod_mtu(&config, &node("127.0.0.1", 65536)), 1450);
        config.backend = Backend::HostGw;
        assert_eq!(pod_mtu(&config, &node("192.0.2.1", 1500)), 1500);
        config.mtu = Some(1400);
        assert_eq!(pod_mtu(&config, &node("192.0.2.1", 1500)), 1400);
    }

    #[test]
    fn the_node_address_is_sticky() {
        let node = |ip: &str, index| NodeAddress {
            address: ip.parse().unwrap(),
            link: format!("eth{index}"),
            index,
            mtu: 1500,
        };
        let link = |index: u32| Link {
            index,
            name: format!("eth{index}"),
            kind: None,
            up: true,
            carrier: true,
            loopback: false,
            mtu: 1500,
            mac: None,
            master: None,
            hairpin: None,
            vxlan: None,
        };
        let address = |index, net: &str| Address {
            link: index,
            net: net.parse().unwrap(),
            global: true,
        };
        let links = [link(1), link(2)];
        let both = [address(1, "192.0.2.1/24"), address(2, "198.51.100.1/24")];
        let (a, b, lo) = (
            node("192.0.2.1", 1),
            node("198.51.100.1", 2),
            node("127.0.0.1", 0),
        );
        let settle = |previous, found: &NodeAddress, addresses: &[Address]| {
            settle_node_address(previous, Ok(found.clone()), &links, addresses).unwrap()
        };
        assert_eq!(settle(None, &a, &both), a, "the first one found");
        assert_eq!(
            settle(Some(&a), &b, &both),
            a,
            "the default route moved, the address did not"
        );
        assert_eq!(settle(Some(&a), &b, &both[1..]), b, "a new lease");
        assert_eq!(settle(Some(&a), &lo, &[]), a, "no network for a moment");
        assert_eq!(settle(Some(&lo), &a, &both), a, "the network came up late");
    }
}
