//! Sets and maps: their types, keys and elements.
//!
//! Keys and data are the bytes as they stand in nftables registers: network
//! order for addresses and ports, host order for marks and indexes, every field
//! of a concatenation padded to four bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::Verdict;

/// The type of one field of a set's key or data, as `nft` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `ether_addr`
    Ether,
    /// `inet_proto`
    Protocol,
    /// `inet_service`
    Port,
    /// `mark`: any 32-bit number in host order
    Mark,
    /// `ifname`
    Interface,
}

impl Type {
    /// The number `nft` knows the type by.
    pub fn code(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ether => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Interface => 41,
        }
    }

    /// Length in bytes, without padding.
    pub fn size(self) -> usize {
        match self {
            Self::Ipv4 | Self::Mark => 4,
            Self::Ipv6 | Self::Interface => 16,
            Self::Ether => 6,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

/// The bytes of a key or of data, field after field.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key(Vec<u8>);

impl Key {
    /// No fields yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A key of one address.
    pub fn address(address: IpAddr) -> Self {
        Self::new().ip(address)
    }

    /// Appends bytes as one field, padded.
    pub fn field(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an address.
    pub fn ip(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.field(&a.octets()),
            IpAddr::V6(a) => self.field(&a.octets()),
        }
    }

    /// Appends an IP protocol number.
    pub fn protocol(self, number: u8) -> Self {
        self.field(&[number])
    }

    /// Appends a port.
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Appends a 32-bit number in host order.
    pub fn number(self, number: u32) -> Self {
        self.field(&number.to_ne_bytes())
    }

    /// Appends an interface name.
    pub fn interface(self, name: &str) -> Self {
        self.field(&interface_bytes(name))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, chunk) in self.0.chunks(4).enumerate() {
            write!(f, "{}", if i > 0 { "." } else { "" })?;
            for b in chunk {
                write!(f, "{b:02x}")?;
            }
        }
        Ok(())
    }
}

/// An interface name as the 16 bytes the kernel compares (cut at 15).
pub(crate) fn interface_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

/// What a set maps its keys to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Holds {
    /// Nothing: a plain set.
    #[default]
    Nothing,
    /// Verdicts.
    Verdicts,
    /// Data of these types.
    Data(Vec<Type>),
}

/// A set's or map's declaration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetType {
    /// The fields of the key.
    pub key: Vec<Type>,
    /// What the keys lead to.
    pub holds: Holds,
    /// Elements are ranges.
    pub interval: bool,
    /// Filled by rules; elements live this long. The model holds no elements of it.
    pub dynamic_timeout_ms: Option<u64>,
}

impl SetType {
    /// A plain set.
    pub fn set(key: impl Into<Vec<Type>>) -> Self {
        Self {
            key: key.into(),
            ..Self::default()
        }
    }

    /// A map to verdicts.
    pub fn verdicts(key: impl Into<Vec<Type>>) -> Self {
        Self {
            key: key.into(),
            holds: Holds::Verdicts,
            ..Self::default()
        }
    }

    /// A map to data.
    pub fn map(key: impl Into<Vec<Type>>, data: impl Into<Vec<Type>>) -> Self {
        Self {
            key: key.into(),
            holds: Holds::Data(data.into()),
            ..Self::default()
        }
    }

    /// A set of ranges.
    pub fn intervals(key: impl Into<Vec<Type>>) -> Self {
        Self {
            key: key.into(),
            interval: true,
            ..Self::default()
        }
    }

    /// A set filled by [`Statement::Update`].
    pub fn dynamic(key: impl Into<Vec<Type>>, timeout_ms: u64) -> Self {
        Self {
            key: key.into(),
            dynamic_timeout_ms: Some(timeout_ms),
            ..Self::default()
        }
    }
}

/// What an element holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Datum {
    /// A member of a plain set.
    #[default]
    Member,
    /// The entry of a verdict map.
    Verdict(Verdict),
    /// The entry of a data map.
    Data(Key),
}

/// An element, kept under its key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// The last key of a range, inclusive.
    pub end: Option<Key>,
    /// What it holds.
    pub datum: Datum,
}

impl From<Datum> for Element {
    fn from(datum: Datum) -> Self {
        Self { end: None, datum }
    }
}

/// A set or map with its elements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// The declaration.
    pub kind: SetType,
    /// The elements by (first) key.
    pub elements: BTreeMap<Key, Element>,
}

impl Set {
    /// An empty set.
    pub fn new(kind: SetType) -> Self {
        Self {
            kind,
            elements: BTreeMap::new(),
        }
    }

    /// Adds every address of a network (for interval sets).
    pub fn add_network(&mut self, network: ipnet::IpNet) {
        let end = Some(Key::address(network.broadcast()));
        self.elements.insert(
            Key::address(network.network()),
            Element {
                end,
                datum: Datum::Member,
            },
        );
    }
}
