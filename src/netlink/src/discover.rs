//! Which address of this machine is the node's: asked for, by the default route, or the first that fits.

use std::net::{IpAddr, Ipv4Addr};

use crate::{Address, Error, Link, Netlink, Route};

/// What the operator fixed; all empty means: find out.
#[derive(Clone, Debug, Default)]
pub struct NodeAddressQuery {
    /// Use this address; a link must have it.
    pub address: Option<IpAddr>,
    /// Use the first address of this link.
    pub interface: Option<String>,
    /// Names (exact, or a prefix ending in `*`) of links never chosen: our own bridge, VXLAN device and veths.
    pub exclude: Vec<String>,
}

/// The node's address and the link that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The address.
    pub address: IpAddr,
    /// Name of the link.
    pub link: String,
    /// Its index.
    pub index: u32,
    /// Its MTU.
    pub mtu: u32,
}

/// Decides from what the kernel shows. In order: the address asked for; the link asked for; the link of the default
/// route with the lowest metric (its preferred source first); the first link that is up and has a global address
/// (so a machine without a default route works); the loopback address (so a machine without any network works).
pub fn choose_node_address(
    query: &NodeAddressQuery,
    links: &[Link],
    addresses: &[Address],
    routes: &[Route],
) -> Result<NodeAddress, Error> {
    let result = |link: &Link, address| NodeAddress {
        address,
        link: link.name.clone(),
        index: link.index,
        mtu: link.mtu,
    };
    let usable = |a: &&Address| a.net.addr().is_ipv4() && a.global && !a.net.addr().is_loopback();
    let first_of = |link: &Link| {
        addresses
            .iter()
            .filter(usable)
            .find(|a| a.link == link.index)
            .map(|a| result(link, a.net.addr()))
    };
    let excluded = |link: &&Link| {
        query
            .exclude
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => link.name.starts_with(prefix),
                None => link.name == *pattern,
            })
    };
    if let Some(wanted) = query.address {
        return addresses
            .iter()
            .filter(|a| a.net.addr() == wanted)
            .find_map(|a| links.iter().find(|l| l.index == a.link))
            .map(|link| result(link, wanted))
            .ok_or_else(|| Error::NoNodeAddress(format!("no interface has the address {wanted}")));
    }
    if let Some(name) = &query.interface {
        let link = links
            .iter()
            .find(|l| l.name == *name)
            .ok_or_else(|| Error::NoLink { name: name.clone() })?;
        return first_of(link)
            .ok_or_else(|| Error::NoNodeAddress(format!("interface {name} has no global IPv4 address")));
    }
    let mut defaults: Vec<&Route> = routes
        .iter()
        .filter(|r| r.is_default() && r.destination.addr().is_ipv4())
        .collect();
    defaults.sort_by_key(|r| r.metric);
    for route in defaults {
        let Some(link) = links.iter().find(|l| l.index == route.link && !excluded(l)) else {
            continue;
        };
        if let Some(source) = route.source {
            return Ok(result(link, source));
        }
        if let Some(found) = first_of(link) {
            return Ok(found);
        }
    }
    let mut others: Vec<&Link> = links
        .iter()
        .filter(|l| l.up && !l.loopback && !excluded(l))
        .collect();
    // Hardware and virtual machine cards first: they have no kind.
    others.sort_by_key(|l| (l.kind.is_some(), l.index));
    if let Some(found) = others.into_iter().find_map(first_of) {
        return Ok(found);
    }
    let loopback = links.iter().find(|l| l.loopback);
    match loopback {
        // An address given to loopback on purpose is better than 127.0.0.1.
        Some(link) => Ok(first_of(link).unwrap_or_else(|| result(link, Ipv4Addr::LOCALHOST.into()))),
        None => Err(Error::NoNodeAddress(
            "this machine has no network interface".into(),
        )),
    }
}

impl Netlink {
    /// Finds the node's address, see [`choose_node_address`].
    pub async fn node_address(&self, query: &NodeAddressQuery) -> Result<NodeAddress, Error> {
        let (links, addresses, routes) = (self.links().await?, self.addresses().await?, self.routes().await?);
        choose_node_address(query, &links, &addresses, &routes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            up: true,
            carrier: true,
            loopback: name == "lo",
            mtu: 1500,
            mac: None,
            master: None,
            hairpin: None,
            vxlan: None,
        }
    }

    fn address(link: u32, net: &str) -> Address {
        let net: ipnet::IpNet = net.parse().unwrap();
        Address {
            link,
            net,
            global: !net.addr().is_loopback(),
        }
    }

    fn default_route(link: u32, metric: u32, source: Option<&str>) -> Route {
        let mut route = Route::new("0.0.0.0/0".parse().unwrap(), link, 4);
        route.gateway = Some("192.168.1.1".parse().unwrap());
        route.metric = metric;
        route.source = source.map(|s| s.parse().unwrap());
        route
    }

    #[test]
    #[allow(clippy::type_complexity)]
    fn the_table() {
        let links = [
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "wlan0", None),
            link(4, "docker0", Some("bridge")),
            link(5, "skiff0", Some("bridge")),
        ];
        let lo = address(1, "127.0.0.1/8");
        let eth = address(2, "192.168.1.5/24");
        let eth_second = address(2, "192.168.1.6/24");
        let wlan = address(3, "10.9.0.7/16");
        let docker = address(4, "172.17.0.1/16");
        let ours = address(5, "10.42.0.1/24");
        let all = [
            lo.clone(),
            eth.clone(),
            eth_second.clone(),
            wlan.clone(),
            docker.clone(),
            ours.clone(),
        ];
        let none = NodeAddressQuery {
            exclude: vec!["skiff*".into()],
            ..Default::default()
        };
        let by_address = |ip: &str| NodeAddressQuery {
            address: Some(ip.parse().unwrap()),
            ..Default::default()
        };
        let by_link = |name: &str| NodeAddressQuery {
            interface: Some(name.into()),
            ..Default::default()
        };
        // name, query, addresses, routes, expected
        let table: &[(&str, NodeAddressQuery, &[Address], &[Route], Result<&str, &str>)] = &[
            (
                "address",
                by_address("192.168.1.6"),
                &all,
                &[],
                Ok("192.168.1.6 eth0"),
            ),
            (
                "absent address",
                by_address("1.2.3.4"),
                &all,
                &[],
                Err("no interface has the address 1.2.3.4"),
            ),
            (
                "interface",
                by_link("wlan0"),
                &all,
                &[default_route(2, 0, None)],
                Ok("10.9.0.7 wlan0"),
            ),
            (
                "absent interface",
                by_link("eth9"),
                &all,
                &[],
                Err("eth9 does not exist"),
            ),
            (
                "bare interface",
                by_link("wlan0"),
                std::slice::from_ref(&lo),
                &[],
                Err("wlan0 has no global"),
            ),
            (
                "default route",
                none.clone(),
                &all,
                &[default_route(3, 0, None)],
                Ok("10.9.0.7 wlan0"),
            ),
            (
                "lowest metric",
                none.clone(),
                &all,
                &[default_route(3, 600, None), default_route(2, 100, None)],
                Ok("192.168.1.5 eth0"),
            ),
            (
                "preferred source",
                none.clone(),
                &all,
                &[default_route(2, 0, Some("192.168.1.6"))],
                Ok("192.168.1.6 eth0"),
            ),
            (
                "no default route",
                none.clone(),
                &all,
                &[],
                Ok("192.168.1.5 eth0"),
            ),
            (
                "cards before bridges",
                none.clone(),
                &[docker.clone(), wlan.clone()],
                &[],
                Ok("10.9.0.7 wlan0"),
            ),
            (
                "never our own",
                none.clone(),
                &[lo.clone(), ours.clone()],
                &[default_route(5, 0, None)],
                Ok("127.0.0.1 lo"),
            ),
            (
                "loopback only",
                none.clone(),
                std::slice::from_ref(&lo),
                &[],
                Ok("127.0.0.1 lo"),
            ),
            (
                "address on loopback",
                none,
                &[lo.clone(), address(1, "10.0.0.9/32")],
                &[],
                Ok("10.0.0.9 lo"),
            ),
        ];
        for (name, query, addresses, routes, expected) in table {
            let got = choose_node_address(query, &links, addresses, routes);
            match (got, expected) {
                (Ok(found), Ok(text)) => {
                    assert_eq!(&format!("{} {}", found.address, found.link), text, "{name}")
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{name}: {error}"),
                (got, _) => panic!("{name}: got {got:?}, expected {expected:?}"),
            }
        }
    }
}
