//! Routes of the main table.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::gone_is_fine;
use crate::{Error, Netlink};

/// Protocol number of routes the kernel made by itself, for the network of an address.
pub const PROTOCOL_KERNEL: u8 = 2;

/// A unicast route of the main table with one next hop.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where it leads; the default route is `0.0.0.0/0` or `::/0`.
    pub destination: IpNet,
    /// The next hop, or none when the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing link.
    pub link: u32,
    /// The gateway is on this link even when no address says so.
    pub onlink: bool,
    /// Lower wins.
    pub metric: u32,
    /// The source address this machine uses on it.
    pub source: Option<IpAddr>,
    /// Who made it; lets an owner find its own routes again.
    pub protocol: u8,
}

impl Route {
    /// A route to a network through a link.
    pub fn new(destination: IpNet, link: u32, protocol: u8) -> Self {
        let destination = destination.trunc();
        Self {
            destination,
            gateway: None,
            link,
            onlink: false,
            metric: 0,
            source: None,
            protocol,
        }
    }

    /// The default route of a family, for comparison.
    pub fn is_default(&self) -> bool {
        self.destination.prefix_len() == 0
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn parse(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let mut destination = unspecified;
    let mut route = Route {
        destination: IpNet::new(unspecified, 0).ok()?,
        gateway: None,
        link: 0,
        onlink: header.flags.contains(RouteFlags::Onlink),
        metric: 0,
        source: None,
        protocol: header.protocol.into(),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.link = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    let ours = table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && header.kind == RouteType::Unicast
        && route.link != 0;
    ours.then_some(route)
}

fn build(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = match route.destination {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = RouteType::Unicast;
    header.scope = match route.gateway {
        None if route.destination.addr().is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    header.destination_prefix_length = route.destination.prefix_len();
    if route.onlink {
        header.flags |= RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if !route.is_default() {
        attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    }
    if let Some(gateway) = route.gateway {
        attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    attributes.push(RouteAttribute::Oif(route.link));
    message
}

impl Netlink {
    /// Every unicast route with one next hop in the main table.
    pub async fn routes(&self) -> Result<Vec<Route>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let found = match self
                .dump(RouteNetlinkMessage::GetRoute(message), || "list routes".into())
                .await
            {
                // A kernel without IPv6 has no such table.
                Err(error) if family == AddressFamily::Inet6 && error.errno() == Some(libc::EAFNOSUPPORT) => {
                    continue;
                }
                other => other?,
            };
            routes.extend(found.iter().filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(message) => parse(message),
                _ => None,
            }));
        }
        Ok(routes)
    }

    /// Makes the route, replacing one with the same destination and metric.
    pub async fn replace_route(&self, route: &Route) -> Result<(), Error> {
        self.ack(
            RouteNetlinkMessage::NewRoute(build(route)),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("set the route to {}", route.destination),
        )
        .await
    }

    /// Removes exactly this route; fine when it is gone.
    pub async fn delete_route(&self, route: &Route) -> Result<(), Error> {
        gone_is_fine(
            self.ack(RouteNetlinkMessage::DelRoute(build(route)), 0, || {
                format!("remove the route to {}", route.destination)
            })
            .await,
        )
    }
}
