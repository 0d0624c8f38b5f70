//! What a rule can look at: headers, metadata, connection state, numbers, maps.

use crate::model::{Key, Name};

/// Which header a raw payload expression counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Ethernet.
    Link,
    /// IP.
    Network,
    /// TCP, UDP, SCTP.
    Transport,
}

/// Something a rule can look at: loads bytes into registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `ip saddr`
    Ip4Source,
    /// `ip daddr`
    Ip4Destination,
    /// `ip6 saddr`
    Ip6Source,
    /// `ip6 daddr`
    Ip6Destination,
    /// `th sport`
    SourcePort,
    /// `th dport`
    DestinationPort,
    /// `meta l4proto`
    Protocol,
    /// `meta nfproto`
    NfProto,
    /// `meta mark`
    Mark,
    /// `meta iifname`
    InterfaceIn,
    /// `meta oifname`
    InterfaceOut,
    /// `ct mark`
    CtMark,
    /// `ct state`, as bits of [`ct_state`]
    CtState,
    /// `ct status`, as bits of [`ct_status`]
    CtStatus,
    /// `ct direction`: 0 original, 1 reply
    CtDirection,
    /// `fib saddr type`
    SourceType,
    /// `fib daddr type`
    DestinationType,
    /// `numgen random mod M offset O`
    Random {
        /// How many different numbers.
        modulus: u32,
        /// The smallest.
        offset: u32,
    },
    /// `numgen inc mod M offset O`
    RoundRobin {
        /// How many different numbers.
        modulus: u32,
        /// The smallest.
        offset: u32,
    },
    /// Any bytes of a header.
    Payload {
        /// The header.
        base: Base,
        /// First byte.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Fixed bytes.
    Constant(Key),
    /// `(value & mask) ^ xor`
    Bitwise {
        /// What is changed.
        value: Box<Value>,
        /// Bits kept.
        mask: Vec<u8>,
        /// Bits then flipped.
        xor: Vec<u8>,
    },
    /// What a map holds for a key; the rule does not match when it holds nothing.
    Map {
        /// The fields of the key.
        key: Vec<Value>,
        /// The map.
        map: Name,
    },
}

impl Value {
    /// `value | bits` of a 32-bit number in host order.
    pub fn or(self, bits: u32) -> Self {
        Self::Bitwise {
            value: Box::new(self),
            mask: (!bits).to_ne_bytes().into(),
            xor: bits.to_ne_bytes().into(),
        }
    }

    /// `value & bits` of a 32-bit number in host order.
    pub fn and(self, bits: u32) -> Self {
        Self::Bitwise {
            value: Box::new(self),
            mask: bits.to_ne_bytes().into(),
            xor: vec![0; 4],
        }
    }

    /// The bytes it loads; `None` for a map, whose declaration says so.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Self::Protocol | Self::NfProto | Self::CtDirection => 1,
            Self::SourcePort | Self::DestinationPort => 2,
            Self::Ip6Source | Self::Ip6Destination | Self::InterfaceIn | Self::InterfaceOut => 16,
            Self::Payload { len, .. } => *len as usize,
            Self::Constant(key) => key.bytes().len(),
            Self::Bitwise { mask, .. } => mask.len(),
            Self::Map { .. } => return None,
            _ => 4,
        })
    }
}

/// Bits of [`Value::CtState`].
pub mod ct_state {
    /// Not matching any connection.
    pub const INVALID: u32 = 1;
    /// Part of a connection seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to another connection.
    pub const RELATED: u32 = 4;
    /// The first packets of a connection.
    pub const NEW: u32 = 8;
    /// Exempted by `notrack`.
    pub const UNTRACKED: u32 = 64;
}

/// Bits of [`Value::CtStatus`].
pub mod ct_status {
    /// The source was translated.
    pub const SNAT: u32 = 1 << 4;
    /// The destination was translated.
    pub const DNAT: u32 = 1 << 5;
}

/// Values of [`Value::SourceType`] and [`Value::DestinationType`].
pub mod address_type {
    /// An address of this machine.
    pub const LOCAL: u32 = 2;
    /// A broadcast address.
    pub const BROADCAST: u32 = 3;
}
