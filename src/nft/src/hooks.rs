//! The base chains: which hooks, which priorities, and why.
//!
//! A packet meets the hooks in this order; the kernel's own stages are in brackets.
//!
//! ```text
//! arriving:  Raw -300 → [conntrack -200] → PreNat -110 → NatPrerouting -100 → [routing]
//!              → to this machine:  FilterInput 0
//!              → through it:       FilterForward 0 → NatPostrouting 100
//! leaving:   [routing] → RawOutput -300 → [conntrack -200] → PreNatOutput -110 → NatOutput -100
//!              → [routing again] → FilterOutput 0 → NatPostrouting 100
//! ```
//!
//! * **Raw** (-300) is the only place before connection tracking; `notrack` must stand here.
//! * **PreNat** (-110) sees the address and port the client dialled, with the
//!   connection known but not yet translated. A decision about the *service*
//!   (source ranges of a load balancer) is only possible here, because after
//!   NAT only the endpoint is left. NAT chains cannot do it: they see nothing
//!   but the first packet of a connection, and `drop` there is unusual.
//! * **NatPrerouting/NatOutput** (-100, `dstnat`) choose the endpoint. Output is needed for the node itself
//!   and for pods in the host network; the kernel routes again after translating.
//! * **FilterInput/Forward/Output** (0, `filter`) see what NAT left. A packet
//!   whose destination still is a service address has no endpoint: it is refused
//!   here, not in a NAT chain, because `reject` needs the filter hooks. Policies between pods belong here too, since
//!   they speak of pods' addresses, which is what stands in the packet after translation.
//! * **NatPostrouting** (100, `srcnat`) rewrites sources, when the outgoing interface is known.
//!
//! Priorities are the conventional ones, so that other tables' chains interleave
//! as their authors expect. A `drop` anywhere is final, an `accept` only ends one
//! base chain: other tables can still refuse what ours lets through, and the
//! other way round, whatever the order.
//!
//! Within a base chain the owners' sections are called in the order of [`Owner`]. A section that is done with a
//! packet returns, so the next owner sees it too; NAT decides once, so the first translation wins.

use crate::model::{Attachment, ChainKind, HookPoint};

/// A base chain of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Arriving packets before connection tracking.
    Raw,
    /// Leaving packets before connection tracking.
    RawOutput,
    /// Arriving packets before destination translation.
    PreNat,
    /// Leaving packets before destination translation.
    PreNatOutput,
    /// Destination translation of arriving connections.
    NatPrerouting,
    /// Destination translation of the node's own connections.
    NatOutput,
    /// Packets to this machine.
    FilterInput,
    /// Packets through this machine.
    FilterForward,
    /// Packets from this machine.
    FilterOutput,
    /// Source translation.
    NatPostrouting,
}

impl Hook {
    /// Every base chain.
    pub const ALL: [Self; 10] = [
        Self::Raw,
        Self::RawOutput,
        Self::PreNat,
        Self::PreNatOutput,
        Self::NatPrerouting,
        Self::NatOutput,
        Self::FilterInput,
        Self::FilterForward,
        Self::FilterOutput,
        Self::NatPostrouting,
    ];

    /// The base chain's name in the table.
    pub fn chain_name(self) -> &'static str {
        match self {
            Self::Raw => "raw-prerouting",
            Self::RawOutput => "raw-output",
            Self::PreNat => "prenat-prerouting",
            Self::PreNatOutput => "prenat-output",
            Self::NatPrerouting => "nat-prerouting",
            Self::NatOutput => "nat-output",
            Self::FilterInput => "filter-input",
            Self::FilterForward => "filter-forward",
            Self::FilterOutput => "filter-output",
            Self::NatPostrouting => "nat-postrouting",
        }
    }

    /// Where it is attached.
    pub fn attachment(self) -> Attachment {
        let (kind, point, priority) = match self {
            Self::Raw => (ChainKind::Filter, HookPoint::Prerouting, -300),
            Self::RawOutput => (ChainKind::Filter, HookPoint::Output, -300),
            Self::PreNat => (ChainKind::Filter, HookPoint::Prerouting, -110),
            Self::PreNatOutput => (ChainKind::Filter, HookPoint::Output, -110),
            Self::NatPrerouting => (ChainKind::Nat, HookPoint::Prerouting, -100),
            Self::NatOutput => (ChainKind::Nat, HookPoint::Output, -100),
            Self::FilterInput => (ChainKind::Filter, HookPoint::Input, 0),
            Self::FilterForward => (ChainKind::Filter, HookPoint::Forward, 0),
            Self::FilterOutput => (ChainKind::Filter, HookPoint::Output, 0),
            Self::NatPostrouting => (ChainKind::Nat, HookPoint::Postrouting, 100),
        };
        Attachment {
            kind,
            point,
            priority,
            drop_by_default: false,
        }
    }
}

/// Who owns a section of the table; the order is the order of the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The node's name server.
    Dns,
    /// Services.
    Proxy,
    /// Ports of the node that lead to pods.
    HostPorts,
    /// Network policies.
    Policy,
    /// The pod network (masquerade).
    Overlay,
}

impl Owner {
    /// Every owner, in order.
    pub const ALL: [Self; 5] = [
        Self::Dns,
        Self::Proxy,
        Self::HostPorts,
        Self::Policy,
        Self::Overlay,
    ];

    /// What the names of the owner's chains and sets begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Dns => "dns-",
            Self::Proxy => "svc-",
            Self::HostPorts => "hostport-",
            Self::Policy => "policy-",
            Self::Overlay => "overlay-",
        }
    }
}
