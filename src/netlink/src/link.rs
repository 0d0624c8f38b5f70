//! Links: bridge, veth pair, VXLAN; their state and membership.

use std::net::IpAddr;

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};

use crate::error::gone_is_fine;
use crate::{Error, MacAddr, NetNs, Netlink};

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it, unique in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `bridge`, `veth`, `vxlan`, ...; none for hardware and loopback.
    pub kind: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier.
    pub carrier: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Largest packet.
    pub mtu: u32,
    /// Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// Index of the bridge (or bond) it is a port of.
    pub master: Option<u32>,
    /// As a bridge port: frames may leave by the port they came in.
    pub hairpin: Option<bool>,
    /// The parameters of a VXLAN device.
    pub vxlan: Option<VxlanInfo>,
}

/// The parameters of a VXLAN device that decide whether it can be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VxlanInfo {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source address of encapsulated packets.
    pub local: Option<IpAddr>,
    /// Learns forwarding entries from traffic.
    pub learning: bool,
}

/// A bridge to have.
#[derive(Clone, Debug)]
pub struct BridgeSpec {
    /// Name of the link.
    pub name: String,
    /// A fixed MAC: otherwise a bridge takes the lowest of its ports, and changes it when ports come and go.
    pub mac: MacAddr,
    /// Largest packet.
    pub mtu: u32,
}

/// A VXLAN device to have: no learning, not bound to an underlying device (routing picks it, so it survives a
/// change of uplink).
#[derive(Clone, Debug)]
pub struct VxlanSpec {
    /// Name of the link.
    pub name: String,
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source address of encapsulated packets.
    pub local: IpAddr,
    /// Its own MAC, known to the peers.
    pub mac: MacAddr,
    /// Largest packet.
    pub mtu: u32,
}

/// A veth pair to make, one end here and one directly in another namespace.
#[derive(Clone, Debug)]
pub struct VethSpec<'a> {
    /// Name of the end in the handle's namespace.
    pub name: String,
    /// Bridge to put that end on.
    pub master: Option<u32>,
    /// Name of the other end.
    pub peer_name: String,
    /// MAC of the other end; the kernel picks one when there is none.
    pub peer_mac: Option<MacAddr>,
    /// Namespace of the other end.
    pub peer_namespace: &'a NetNs,
    /// Largest packet, both ends.
    pub mtu: u32,
}

fn parse_vxlan(data: &[InfoVxlan]) -> VxlanInfo {
    let mut info = VxlanInfo::default();
    for item in data {
        match item {
            InfoVxlan::Id(vni) => info.vni = *vni,
            InfoVxlan::Port(port) => info.port = *port,
            InfoVxlan::Local(ip) => info.local = Some((*ip).into()),
            InfoVxlan::Local6(ip) => info.local = Some((*ip).into()),
            InfoVxlan::Learning(learning) => info.learning = *learning,
            _ => {}
        }
    }
    info
}

fn parse(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu: 0,
        mac: None,
        master: None,
        hairpin: None,
        vxlan: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => link.mac = MacAddr::from_bytes(bytes),
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(parse_vxlan(data)),
                        LinkInfo::PortData(InfoPortData::BridgePort(data)) => {
                            link.hairpin = data.iter().find_map(|item| match item {
                                InfoBridgePort::HairpinMode(on) => Some(*on),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link
}

fn new_link(name: &str, mtu: u32, mac: Option<MacAddr>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Mtu(mtu));
    if let Some(mac) = mac {
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
    }
    message
}

fn with_kind(mut message: LinkMessage, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
    let mut info = vec![LinkInfo::Kind(kind)];
    info.extend(data.map(LinkInfo::Data));
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

impl Netlink {
    /// Every link of the namespace.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let found = self
            .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), || {
                "list interfaces".into()
            })
            .await?;
        Ok(found
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(parse(message)),
                _ => None,
            })
            .collect())
    }

    /// The link with this name, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self
            .get(RouteNetlinkMessage::GetLink(message), || {
                format!("look up interface {name}")
            })
            .await
        {
            Ok(found) => Ok(found.iter().find_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(parse(message)),
                _ => None,
            })),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link with this name, or an error naming it.
    pub async fn require_link(&self, name: &str) -> Result<Link, Error> {
        self.link(name).await?.ok_or_else(|| Error::NoLink {
            name: name.to_owned(),
        })
    }

    async fn create_link(&self, name: &str, message: LinkMessage) -> Result<Link, Error> {
        self.ack(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            || format!("create interface {name}"),
        )
        .await?;
        self.require_link(name).await
    }

    async fn change_link(
        &self,
        index: u32,
        verb: &str,
        change: impl FnOnce(&mut LinkMessage),
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        change(&mut message);
        // RTM_NEWLINK without NLM_F_CREATE changes an existing link; unlike RTM_SETLINK it takes port data too.
        self.ack(RouteNetlinkMessage::NewLink(message), 0, || {
            format!("{verb} interface {index}")
        })
        .await
    }

    /// Sets a link up or down.
    pub async fn set_up(&self, index: u32, up: bool) -> Result<(), Error> {
        self.change_link(index, if up { "set up" } else { "set down" }, |message| {
            message.header.change_mask = LinkFlags::Up;
            if up {
                message.header.flags = LinkFlags::Up;
            }
        })
        .await
    }

    /// Sets the largest packet.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), Error> {
        self.change_link(index, "set the MTU of", |m| {
            m.attributes.push(LinkAttribute::Mtu(mtu))
        })
        .await
    }

    /// Sets the Ethernet address.
    pub async fn set_mac(&self, index: u32, mac: MacAddr) -> Result<(), Error> {
        self.change_link(index, "set the MAC of", |m| {
            m.attributes.push(LinkAttribute::Address(mac.0.to_vec()))
        })
        .await
    }

    /// Puts a link on a bridge, or takes it off.
    pub async fn set_master(&self, index: u32, bridge: Option<u32>) -> Result<(), Error> {
        self.change_link(index, "set the bridge of", |m| {
            m.attributes.push(LinkAttribute::Controller(bridge.unwrap_or(0)));
        })
        .await
    }

    /// Lets frames leave a bridge port by the way they came: a pod that reaches itself through a Service needs it.
    pub async fn set_hairpin(&self, index: u32, on: bool) -> Result<(), Error> {
        self.change_link(index, "set hairpin mode of", |m| {
            m.attributes.push(LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(on)])),
            ]));
        })
        .await
    }

    /// Deletes the link; tells whether there was one.
    pub async fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let Some(link) = self.link(name).await? else {
            return Ok(false);
        };
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        gone_is_fine(
            self.ack(RouteNetlinkMessage::DelLink(message), 0, || {
                format!("delete interface {name}")
            })
            .await,
        )?;
        Ok(true)
    }

    async fn settle(&self, link: Link, mtu: u32, mac: MacAddr) -> Result<Link, Error> {
        if link.mac != Some(mac) {
            self.set_mac(link.index, mac).await?;
        }
        if link.mtu != mtu {
            self.set_mtu(link.index, mtu).await?;
        }
        if !link.up {
            self.set_up(link.index, true).await?;
        }
        Ok(Link {
            mac: Some(mac),
            mtu,
            up: true,
            ..link
        })
    }

    /// Has this bridge, up. A link of another kind with the name is replaced.
    pub async fn ensure_bridge(&self, spec: &BridgeSpec) -> Result<Link, Error> {
        let present = self.link(&spec.name).await?;
        let link = match present {
            Some(link) if link.kind.as_deref() == Some("bridge") => link,
            other => {
                if other.is_some() {
                    self.delete_link(&spec.name).await?;
                }
                let message = with_kind(
                    new_link(&spec.name, spec.mtu, Some(spec.mac)),
                    InfoKind::Bridge,
                    None,
                );
                self.create_link(&spec.name, message).await?
            }
        };
        self.settle(link, spec.mtu, spec.mac).await
    }

    /// Has this VXLAN device, up. A device whose fixed parameters differ is replaced.
    pub async fn ensure_vxlan(&self, spec: &VxlanSpec) -> Result<Link, Error> {
        let wanted = VxlanInfo {
            vni: spec.vni,
            port: spec.port,
            local: Some(spec.local),
            learning: false,
        };
        let link = match self.link(&spec.name).await? {
            Some(link) if link.vxlan.as_ref() == Some(&wanted) => link,
            other => {
                if other.is_some() {
                    self.delete_link(&spec.name).await?;
                }
                let data = InfoData::Vxlan(vec![
                    InfoVxlan::Id(spec.vni),
                    InfoVxlan::Port(spec.port),
                    match spec.local {
                        IpAddr::V4(ip) => InfoVxlan::Local(ip),
                        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
                    },
                    InfoVxlan::Learning(false),
                ]);
                let message = with_kind(
                    new_link(&spec.name, spec.mtu, Some(spec.mac)),
                    InfoKind::Vxlan,
                    Some(data),
                );
                self.create_link(&spec.name, message).await?
            }
        };
        self.settle(link, spec.mtu, spec.mac).await
    }

    /// Makes a veth pair in one request: no moment exists in which the far end is visible here. Both ends start
    /// down. Fails when either name is taken.
    pub async fn create_veth(&self, spec: &VethSpec<'_>) -> Result<Link, Error> {
        let mut peer = new_link(&spec.peer_name, spec.mtu, spec.peer_mac);
        peer.attributes
            .push(LinkAttribute::NetNsFd(spec.peer_namespace.raw_fd()));
        let mut near = new_link(&spec.name, spec.mtu, None);
        if let Some(bridge) = spec.master {
            near.attributes.push(LinkAttribute::Controller(bridge));
        }
        let message = with_kind(near, InfoKind::Veth, Some(InfoData::Veth(InfoVeth::Peer(peer))));
        self.create_link(&spec.name, message).await
    }
}
