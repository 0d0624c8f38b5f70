//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};

use crate::error::gone_is_fine;
use crate::{Error, Netlink};

/// One address of one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link that has it.
    pub link: u32,
    /// The address with the prefix length of its network.
    pub net: IpNet,
    /// Usable from other machines (not link-local, not host-only).
    pub global: bool,
}

fn parse(message: &AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // On point-to-point links `Address` is the other end.
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address {
        link: message.header.index,
        net,
        global: message.header.scope == AddressScope::Universe,
    })
}

fn build(link: u32, net: IpNet) -> AddressMessage {
    match net.addr() {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link)
            .address(ip, net.prefix_len())
            .build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(link)
            .address(ip, net.prefix_len())
            .build(),
    }
}

impl Netlink {
    /// All addresses of all links, in the kernel's order (by link, primary first).
    pub async fn addresses(&self) -> Result<Vec<Address>, Error> {
        let found = self
            .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()), || {
                "list addresses".into()
            })
            .await?;
        Ok(found
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewAddress(message) => parse(message),
                _ => None,
            })
            .collect())
    }

    /// Adds an address, or leaves it when the link has it.
    pub async fn add_address(&self, link: u32, net: IpNet) -> Result<(), Error> {
        self.ack(
            RouteNetlinkMessage::NewAddress(build(link, net)),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("add address {net} to interface {link}"),
        )
        .await
    }

    /// Adds an address without the route to its network that the kernel would make for it.
    pub async fn add_address_without_route(&self, link: u32, net: IpNet) -> Result<(), Error> {
        let mut message = build(link, net);
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
        self.ack(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("add address {net} to interface {link}"),
        )
        .await
    }

    /// Removes an address; fine when the link does not have it.
    pub async fn delete_address(&self, link: u32, net: IpNet) -> Result<(), Error> {
        gone_is_fine(
            self.ack(RouteNetlinkMessage::DelAddress(build(link, net)), 0, || {
                format!("remove address {net} from interface {link}")
            })
            .await,
        )
    }

    /// Gives the link exactly these global addresses (IPv6 link-local ones are the kernel's business); tells whether
    /// anything changed.
    pub async fn ensure_addresses(&self, link: u32, wanted: &[IpNet]) -> Result<bool, Error> {
        let mut changed = false;
        let on_link = |all: Vec<Address>| {
            all.into_iter()
                .filter(move |a| a.link == link && (a.global || a.net.addr().is_ipv4()))
        };
        for extra in on_link(self.addresses().await?).filter(|a| !wanted.contains(&a.net)) {
            self.delete_address(link, extra.net).await?;
            changed = true;
        }
        // Removing a primary address can take secondary ones with it: look again before adding.
        let present: Vec<IpNet> = on_link(self.addresses().await?).map(|a| a.net).collect();
        for net in wanted.iter().filter(|net| !present.contains(net)) {
            self.add_address(link, *net).await?;
            changed = true;
        }
        Ok(changed)
    }
}
