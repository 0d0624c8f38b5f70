//! The ruleset as plain data: chains of rules, sets and maps with elements.
//!
//! The model says what nftables means (an address of a packet, a lookup in a
//! map) and leaves registers and netlink to [`crate::lower`] and
//! [`crate::message`]. Keys and data are the bytes as they stand in nftables
//! registers: network order for addresses and ports, host order for marks and
//! indexes, every field of a concatenation padded to four bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A chain's or set's name, shared between the places that mention it.
pub type Name = Arc<str>;

/// The protocol family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 packets.
    Ip,
    /// IPv6 packets.
    Ip6,
    /// Both.
    Inet,
    /// Frames crossing a bridge.
    Bridge,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ip } else { Self::Ip6 }
    }

    /// The source address of a packet of this family.
    pub fn source(self) -> Value {
        if self == Self::Ip6 {
            Value::Ip6Source
        } else {
            Value::Ip4Source
        }
    }

    /// The destination address of a packet of this family.
    pub fn destination(self) -> Value {
        if self == Self::Ip6 {
            Value::Ip6Destination
        } else {
            Value::Ip4Destination
        }
    }

    /// The address type of this family.
    pub fn address(self) -> Type {
        if self == Self::Ip6 { Type::Ipv6 } else { Type::Ipv4 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}

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

/// What becomes of the packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// End this base chain, go on with the next hook.
    Accept,
    /// Discard.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Go on with the next rule.
    Continue,
    /// Walk a chain and come back.
    Jump(Name),
    /// Walk a chain and then return to the caller of this one.
    Goto(Name),
}

impl Verdict {
    /// The chain it leads to.
    pub fn target(&self) -> Option<&Name> {
        match self {
            Self::Jump(name) | Self::Goto(name) => Some(name),
            _ => None,
        }
    }
}

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

/// A comparison, in network order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterEqual,
}

/// Where a translated connection goes to or comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatTarget {
    /// A fixed address and perhaps port.
    Fixed(IpAddr, Option<u16>),
    /// `address . port` from a map.
    Map {
        /// The fields of the key.
        key: Vec<Value>,
        /// The map.
        map: Name,
    },
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP port unreachable.
    PortUnreachable,
    /// ICMP administratively prohibited.
    Prohibited,
    /// TCP reset (TCP only).
    TcpReset,
}

/// One step of a rule. A rule stops at the first step that does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Compare with fixed bytes.
    Match(Value, Compare, Key),
    /// Member of a set, or (negated) not.
    InSet {
        /// The fields of the key.
        key: Vec<Value>,
        /// The set.
        set: Name,
        /// Matches when it is not a member.
        negate: bool,
    },
    /// Take the verdict a map holds for a key.
    VerdictMap {
        /// The fields of the key.
        key: Vec<Value>,
        /// The map.
        map: Name,
    },
    /// Translate the destination.
    Dnat(NatTarget),
    /// Translate the source.
    Snat(NatTarget),
    /// Translate the source to the address of the outgoing interface.
    Masquerade {
        /// Choose ports at random.
        random: bool,
    },
    /// Translate the destination to this machine.
    Redirect(Option<u16>),
    /// Set the packet's mark.
    SetMark(Value),
    /// Set the connection's mark.
    SetCtMark(Value),
    /// Add a key to a dynamic set or refresh its timeout.
    Update {
        /// The set.
        set: Name,
        /// The fields of the key.
        key: Vec<Value>,
        /// Life time in milliseconds; the set's own when absent.
        timeout_ms: Option<u64>,
    },
    /// Count packets and bytes.
    Counter,
    /// Write to the kernel log.
    Log(String),
    /// Refuse with an answer.
    Reject(Reject),
    /// Do not track the connection.
    Notrack,
    /// Decide.
    Verdict(Verdict),
}

/// A rule: its steps in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The steps.
    pub steps: Vec<Statement>,
    /// Shown by `nft list`.
    pub comment: Option<Name>,
}

impl Rule {
    /// A rule without steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step.
    pub fn then(mut self, step: Statement) -> Self {
        self.steps.push(step);
        self
    }

    /// Adds an equality.
    pub fn is(self, value: Value, key: Key) -> Self {
        self.then(Statement::Match(value, Compare::Equal, key))
    }

    /// Adds an inequality.
    pub fn is_not(self, value: Value, key: Key) -> Self {
        self.then(Statement::Match(value, Compare::NotEqual, key))
    }

    /// Adds "one of these bits is set" on a 32-bit number in host order.
    pub fn any_bit(self, value: Value, bits: u32) -> Self {
        self.is_not(value.and(bits), Key::new().number(0))
    }

    /// Adds membership in a set.
    pub fn within(self, key: Vec<Value>, set: &Name) -> Self {
        self.then(Statement::InSet {
            key,
            set: set.clone(),
            negate: false,
        })
    }

    /// Adds absence from a set.
    pub fn outside(self, key: Vec<Value>, set: &Name) -> Self {
        self.then(Statement::InSet {
            key,
            set: set.clone(),
            negate: true,
        })
    }

    /// Adds a verdict map lookup.
    pub fn vmap(self, key: Vec<Value>, map: &Name) -> Self {
        self.then(Statement::VerdictMap {
            key,
            map: map.clone(),
        })
    }

    /// Adds a prefix match on an address of the network's family.
    pub fn in_network(self, value: Value, network: ipnet::IpNet) -> Self {
        let prefix = network.trunc();
        if prefix.prefix_len() == prefix.max_prefix_len() {
            return self.is(value, Key::address(prefix.addr()));
        }
        let mask = Key::address(prefix.netmask()).bytes().to_vec();
        let xor = vec![0; mask.len()];
        self.is(
            Value::Bitwise {
                value: Box::new(value),
                mask,
                xor,
            },
            Key::address(prefix.addr()),
        )
    }

    /// Adds a jump.
    pub fn jump(self, chain: &Name) -> Self {
        self.then(Statement::Verdict(Verdict::Jump(chain.clone())))
    }

    /// Adds a goto.
    pub fn goto(self, chain: &Name) -> Self {
        self.then(Statement::Verdict(Verdict::Goto(chain.clone())))
    }

    /// Adds `accept`.
    pub fn accept(self) -> Self {
        self.then(Statement::Verdict(Verdict::Accept))
    }

    /// Adds `drop`.
    pub fn drop(self) -> Self {
        self.then(Statement::Verdict(Verdict::Drop))
    }

    /// Adds `return`.
    pub fn return_(self) -> Self {
        self.then(Statement::Verdict(Verdict::Return))
    }

    /// Adds a counter.
    pub fn counter(self) -> Self {
        self.then(Statement::Counter)
    }

    /// Sets the comment.
    pub fn comment(mut self, text: &str) -> Self {
        self.comment = Some(text.into());
        self
    }
}

/// What kind of base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Filters.
    Filter,
    /// Sees only the first packet of a connection and may translate it.
    Nat,
}

/// Where in the kernel's packet path a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookPoint {
    /// Before routing.
    Prerouting,
    /// To this machine.
    Input,
    /// Through this machine.
    Forward,
    /// From this machine.
    Output,
    /// After routing.
    Postrouting,
}

/// How a chain is attached to the packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// The kind of chain.
    pub kind: ChainKind,
    /// The place.
    pub point: HookPoint,
    /// Lower runs earlier.
    pub priority: i32,
    /// Drop instead of accept at the end.
    pub drop_by_default: bool,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Set for a base chain.
    pub attachment: Option<Attachment>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

impl From<Vec<Rule>> for Chain {
    fn from(rules: Vec<Rule>) -> Self {
        Self {
            attachment: None,
            rules,
        }
    }
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

/// Chains and sets by name: a whole table, or one owner's part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// The chains.
    pub chains: BTreeMap<Name, Chain>,
    /// The sets and maps.
    pub sets: BTreeMap<Name, Set>,
}
