//! Permanent neighbour entries (address → MAC) and forwarding entries of a VXLAN device (MAC → remote endpoint).

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::error::gone_is_fine;
use crate::{Error, MacAddr, Netlink};

/// A permanent neighbour: this address has this MAC on this link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
}

/// A forwarding entry of a VXLAN device: frames for this MAC go to this endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// Index of the VXLAN device.
    pub link: u32,
    /// Destination MAC of the frame.
    pub mac: MacAddr,
    /// Where the encapsulated packet is sent.
    pub remote: IpAddr,
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some((*ip).into()),
        NeighbourAddress::Inet6(ip) => Some((*ip).into()),
        // In the bridge family the decoder leaves the bytes as they are.
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

fn parts(message: &NeighbourMessage) -> Option<(IpAddr, MacAddr)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(found) => address = ip(found),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddr::from_bytes(bytes),
            _ => {}
        }
    }
    Some((address?, mac?))
}

fn build_neighbour(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = neighbour.link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(neighbour.address.into()),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    message
}

fn build_fdb(entry: &FdbEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(entry.remote.into()),
    ];
    message
}

impl Netlink {
    async fn dump_neighbours(&self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        let found = self
            .dump(RouteNetlinkMessage::GetNeighbour(message), || {
                "list neighbours".into()
            })
            .await?;
        Ok(found
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewNeighbour(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    /// The permanent neighbours of a link.
    pub async fn neighbours(&self, link: u32) -> Result<Vec<Neighbour>, Error> {
        let found = self.dump_neighbours(AddressFamily::Unspec).await?;
        Ok(found
            .iter()
            .filter(|m| m.header.ifindex == link && m.header.state == NeighbourState::Permanent)
            .filter_map(|m| parts(m).map(|(address, mac)| Neighbour { link, address, mac }))
            .collect())
    }

    /// Makes or corrects a permanent neighbour.
    pub async fn replace_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewNeighbour(build_neighbour(neighbour));
        self.ack(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("set neighbour {}", neighbour.address)
        })
        .await
    }

    /// Removes a neighbour; fine when it is gone.
    pub async fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(build_neighbour(neighbour));
        gone_is_fine(
            self.ack(message, 0, || format!("remove neighbour {}", neighbour.address))
                .await,
        )
    }

    /// The forwarding entries of a VXLAN device that have a remote endpoint.
    pub async fn fdb(&self, link: u32) -> Result<Vec<FdbEntry>, Error> {
        let found = self.dump_neighbours(AddressFamily::Bridge).await?;
        Ok(found
            .iter()
            .filter(|m| m.header.ifindex == link)
            .filter_map(|m| parts(m).map(|(remote, mac)| FdbEntry { link, mac, remote }))
            .collect())
    }

    /// Makes or corrects a forwarding entry of a VXLAN device.
    pub async fn replace_fdb(&self, entry: &FdbEntry) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewNeighbour(build_fdb(entry));
        self.ack(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("set forwarding entry {}", entry.mac)
        })
        .await
    }

    /// Removes a forwarding entry; fine when it is gone.
    pub async fn delete_fdb(&self, entry: &FdbEntry) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelNeighbour(build_fdb(entry));
        gone_is_fine(
            self.ack(message, 0, || format!("remove forwarding entry {}", entry.mac))
                .await,
        )
    }
}
