//! The ruleset as plain data: chains of rules, sets and maps with elements.
//!
//! The model says what nftables means (an address of a packet, a lookup in a
//! map) and leaves registers and netlink to [`crate::lower`] and
//! [`crate::message`]. What a rule looks at is in [`crate::value`], sets and
//! their keys in [`crate::set`]; both are re-exported here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use crate::set::{Datum, Element, Holds, Key, Set, SetType, Type};
pub use crate::value::{Base, Value, address_type, ct_state, ct_status};

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

/// Chains and sets by name: a whole table, or one owner's part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// The chains.
    pub chains: BTreeMap<Name, Chain>,
    /// The sets and maps.
    pub sets: BTreeMap<Name, Set>,
}
