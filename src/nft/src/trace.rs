//! A packet's way through a ruleset, without a kernel.
//!
//! The tracer interprets the model: it loads values, looks up sets and maps,
//! follows verdicts and applies translations to a connection's first packet. It
//! knows the hooks in the order of [`crate::hooks`], the addresses of the
//! node, and dynamic sets with their timeouts. Randomness is an argument.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::hooks::Hook;
use crate::model::{
    Compare, Datum, Element, Family, Key, Name, NatTarget, Reject, Ruleset, Set, Statement, Value, Verdict,
    address_type, ct_state, ct_status,
};
use crate::set::interface_bytes;

/// Calls nested deeper than the kernel allows.
const MAX_DEPTH: usize = 16;

/// The first packet of a connection, as it meets the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Where it came in; `None` for the node's own.
    pub interface_in: Option<String>,
    /// Where it would go out.
    pub interface_out: Option<String>,
    /// The packet's mark.
    pub mark: u32,
}

impl Packet {
    /// A TCP connection from one address to another's port.
    pub fn tcp(source: IpAddr, destination: IpAddr, port: u16) -> Self {
        Self {
            source,
            source_port: 40_000,
            destination,
            port,
            protocol: 6,
            interface_in: Some("eth0".into()),
            interface_out: Some("eth0".into()),
            mark: 0,
        }
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Delivered or sent on.
    Accepted,
    /// Discarded.
    Dropped,
    /// Refused with an answer.
    Rejected(Reject),
}

/// The outcome of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What became of it.
    pub fate: Fate,
    /// The packet with its translations.
    pub packet: Packet,
    /// Whether the source was replaced by the node's own.
    pub masqueraded: bool,
    /// The chains entered, in order.
    pub path: Vec<Name>,
}

/// The node a packet passes through, and the state its rules keep.
pub struct Tracer<'a> {
    ruleset: &'a Ruleset,
    family: Family,
    local: Vec<IpAddr>,
    now: Duration,
    dynamic: HashMap<Name, HashMap<Key, Duration>>,
    round_robin: u32,
    random: Box<dyn FnMut(u32) -> u32 + 'a>,
}

struct Walk {
    packet: Packet,
    dnat: bool,
    snat: bool,
    masqueraded: bool,
    ct_mark: u32,
    path: Vec<Name>,
    rejected: Option<Reject>,
}

enum Outcome {
    /// The chain's end, or a return.
    End,
    Accept,
    Drop,
    Reject(Reject),
}

impl<'a> Tracer<'a> {
    /// A tracer on a node with these addresses; `random(n)` gives a number below n.
    pub fn new(
        family: Family,
        ruleset: &'a Ruleset,
        local: Vec<IpAddr>,
        random: impl FnMut(u32) -> u32 + 'a,
    ) -> Self {
        Self {
            ruleset,
            family,
            local,
            now: Duration::ZERO,
            dynamic: HashMap::new(),
            round_robin: 0,
            random: Box::new(random),
        }
    }

    /// Lets time pass for dynamic sets.
    pub fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// Traces a connection that arrives from outside the node's own stack.
    pub fn arriving(&mut self, packet: Packet) -> Trace {
        let mut walk = Walk::new(packet);
        for hook in [Hook::Raw, Hook::PreNat, Hook::NatPrerouting] {
            if let Some(fate) = self.hook(hook, &mut walk) {
                return walk.end(fate);
            }
        }
        if self.is_local(walk.packet.destination) {
            let fate = self.hook(Hook::FilterInput, &mut walk).unwrap_or(Fate::Accepted);
            return walk.end(fate);
        }
        for hook in [Hook::FilterForward, Hook::NatPostrouting] {
            if let Some(fate) = self.hook(hook, &mut walk) {
                return walk.end(fate);
            }
        }
        walk.end(Fate::Accepted)
    }

    /// Traces a connection that the node itself opens. One to the node itself
    /// comes back through the loopback link; translation is not done twice.
    pub fn leaving(&mut self, mut packet: Packet) -> Trace {
        packet.interface_in = None;
        let mut walk = Walk::new(packet);
        let out = [
            Hook::RawOutput,
            Hook::PreNatOutput,
            Hook::NatOutput,
            Hook::FilterOutput,
            Hook::NatPostrouting,
        ];
        let back = [Hook::Raw, Hook::PreNat, Hook::FilterInput];
        for hook in out {
            if let Some(fate) = self.hook(hook, &mut walk) {
                return walk.end(fate);
            }
        }
        if self.is_local(walk.packet.destination) {
            walk.packet.interface_in = Some("lo".into());
            for hook in back {
                if let Some(fate) = self.hook(hook, &mut walk) {
                    return walk.end(fate);
                }
            }
        }
        walk.end(Fate::Accepted)
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local.contains(&address)
    }

    /// The fate when the hook ends the packet's way.
    fn hook(&mut self, hook: Hook, walk: &mut Walk) -> Option<Fate> {
        let name: Name = hook.chain_name().into();
        self.ruleset.chains.get(&name)?;
        match self.chain(&name, walk, 0) {
            Outcome::End | Outcome::Accept => None,
            Outcome::Drop => Some(Fate::Dropped),
            Outcome::Reject(how) => Some(Fate::Rejected(how)),
        }
    }

    fn chain(&mut self, name: &Name, walk: &mut Walk, depth: usize) -> Outcome {
        assert!(depth < MAX_DEPTH, "calls nested too deeply: {:?}", walk.path);
        let ruleset = self.ruleset;
        let chain = ruleset
            .chains
            .get(name)
            .unwrap_or_else(|| panic!("no chain {name}"));
        walk.path.push(name.clone());
        for rule in &chain.rules {
            match self.rule(&rule.steps, walk) {
                None | Some(Verdict::Continue) => {}
                Some(Verdict::Accept) => return Outcome::Accept,
                Some(Verdict::Drop) => {
                    return walk.rejected.take().map_or(Outcome::Drop, Outcome::Reject);
                }
                Some(Verdict::Return) => return Outcome::End,
                Some(Verdict::Goto(next)) => return self.chain(&next, walk, depth + 1),
                Some(Verdict::Jump(next)) => match self.chain(&next, walk, depth + 1) {
                    Outcome::End => {}
                    other => return other,
                },
            }
        }
        Outcome::End
    }

    /// The verdict of a rule that matched and decides.
    fn rule(&mut self, steps: &[Statement], walk: &mut Walk) -> Option<Verdict> {
        for step in steps {
            match step {
                Statement::Match(value, compare, wanted) => {
                    let got = self.load(value, walk)?;
                    let size = value
                        .size()
                        .unwrap_or(got.bytes().len())
                        .min(wanted.bytes().len());
                    let order = got.bytes()[..size].cmp(&wanted.bytes()[..size]);
                    let matches = match compare {
                        Compare::Equal => order.is_eq(),
                        Compare::NotEqual => order.is_ne(),
                        Compare::Less => order.is_lt(),
                        Compare::LessEqual => order.is_le(),
                        Compare::Greater => order.is_gt(),
                        Compare::GreaterEqual => order.is_ge(),
                    };
                    if !matches {
                        return None;
                    }
                }
                Statement::InSet { key, set, negate } => {
                    let key = self.key(key, walk)?;
                    if self.contains(set, &key) == *negate {
                        return None;
                    }
                }
                Statement::VerdictMap { key, map } => {
                    let key = self.key(key, walk)?;
                    match &lookup(self.set(map), &key)?.datum {
                        Datum::Verdict(verdict) => return Some(verdict.clone()),
                        _ => panic!("{map} holds no verdicts"),
                    }
                }
                Statement::Dnat(target) => {
                    let (address, port) = self.target(target, walk)?;
                    walk.packet.destination = address;
                    walk.packet.port = port.unwrap_or(walk.packet.port);
                    walk.dnat = true;
                    return Some(Verdict::Accept);
                }
                Statement::Snat(target) => {
                    let (address, port) = self.target(target, walk)?;
                    walk.packet.source = address;
                    walk.packet.source_port = port.unwrap_or(walk.packet.source_port);
                    walk.snat = true;
                    return Some(Verdict::Accept);
                }
                Statement::Masquerade { .. } => {
                    walk.masqueraded = true;
                    walk.snat = true;
                    return Some(Verdict::Accept);
                }
                Statement::Redirect(port) => {
                    if let Some(local) = self.local.first() {
                        walk.packet.destination = *local;
                    }
                    walk.packet.port = port.unwrap_or(walk.packet.port);
                    walk.dnat = true;
                    return Some(Verdict::Accept);
                }
                Statement::SetMark(value) => walk.packet.mark = number(&self.load(value, walk)?),
                Statement::SetCtMark(value) => walk.ct_mark = number(&self.load(value, walk)?),
                Statement::Update { set, key, timeout_ms } => {
                    let key = self.key(key, walk)?;
                    let declared = self.set(set).kind.dynamic_timeout_ms;
                    let timeout = timeout_ms.or(declared).expect("a dynamic set has a timeout");
                    let until = self.now + Duration::from_millis(timeout);
                    self.dynamic.entry(set.clone()).or_default().insert(key, until);
                }
                Statement::Reject(how) => {
                    walk.rejected = Some(*how);
                    return Some(Verdict::Drop);
                }
                Statement::Counter | Statement::Log(_) | Statement::Notrack => {}
                Statement::Verdict(verdict) => return Some(verdict.clone()),
            }
        }
        None
    }

    fn set(&self, name: &Name) -> &'a Set {
        self.ruleset
            .sets
            .get(name)
            .unwrap_or_else(|| panic!("no set {name}"))
    }

    fn contains(&self, set: &Name, key: &Key) -> bool {
        let declared = self.set(set);
        if declared.kind.dynamic_timeout_ms.is_some() {
            return self
                .dynamic
                .get(set)
                .and_then(|s| s.get(key))
                .is_some_and(|until| *until > self.now);
        }
        lookup(declared, key).is_some()
    }

    fn target(&mut self, target: &NatTarget, walk: &mut Walk) -> Option<(IpAddr, Option<u16>)> {
        match target {
            NatTarget::Fixed(address, port) => Some((*address, *port)),
            NatTarget::Map { key, map } => {
                let key = self.key(key, walk)?;
                let Datum::Data(data) = &lookup(self.set(map), &key)?.datum else {
                    panic!("{map} holds no data")
                };
                Some(split_target(self.family, data))
            }
        }
    }

    fn key(&mut self, fields: &[Value], walk: &mut Walk) -> Option<Key> {
        let mut key = Key::new();
        for field in fields {
            key = key.field(self.load(field, walk)?.bytes());
        }
        Some(key)
    }

    fn load(&mut self, value: &Value, walk: &mut Walk) -> Option<Key> {
        let packet = &walk.packet;
        let new = Key::new();
        Some(match value {
            Value::Ip4Source | Value::Ip6Source => new.ip(packet.source),
            Value::Ip4Destination | Value::Ip6Destination => new.ip(packet.destination),
            Value::SourcePort => new.port(packet.source_port),
            Value::DestinationPort => new.port(packet.port),
            Value::Protocol => new.protocol(packet.protocol),
            Value::NfProto => new.protocol(if packet.source.is_ipv4() { 2 } else { 10 }),
            Value::Mark => new.number(packet.mark),
            Value::InterfaceIn => new.field(&interface_bytes(packet.interface_in.as_deref()?)),
            Value::InterfaceOut => new.field(&interface_bytes(packet.interface_out.as_deref()?)),
            Value::CtMark => new.number(walk.ct_mark),
            Value::CtState => new.number(ct_state::NEW),
            Value::CtStatus => {
                let dnat = if walk.dnat { ct_status::DNAT } else { 0 };
                let snat = if walk.snat { ct_status::SNAT } else { 0 };
                new.number(dnat | snat)
            }
            Value::CtDirection => new.protocol(0),
            Value::SourceType => new.number(self.type_of(packet.source)),
            Value::DestinationType => new.number(self.type_of(packet.destination)),
            Value::Random { modulus, offset } => {
                let number = (self.random)(*modulus);
                assert!(number < *modulus, "the random source went past its bound");
                new.number(number + offset)
            }
            Value::RoundRobin { modulus, offset } => {
                self.round_robin = self.round_robin.wrapping_add(1);
                new.number(self.round_robin % modulus + offset)
            }
            Value::Payload { .. } => panic!("the tracer has no raw headers"),
            Value::Constant(key) => key.clone(),
            Value::Bitwise { value, mask, xor } => {
                let loaded = self.load(value, walk)?;
                let bytes = loaded
                    .bytes()
                    .iter()
                    .zip(mask)
                    .zip(xor)
                    .map(|((b, m), x)| (b & m) ^ x);
                bytes.collect::<Vec<u8>>().into()
            }
            Value::Map { key, map } => {
                let key = self.key(key, walk)?;
                match &lookup(self.set(map), &key)?.datum {
                    Datum::Data(data) => data.clone(),
                    _ => panic!("{map} holds no data"),
                }
            }
        })
    }

    fn type_of(&self, address: IpAddr) -> u32 {
        const UNICAST: u32 = 1;
        if self.is_local(address) {
            address_type::LOCAL
        } else {
            UNICAST
        }
    }
}

impl Walk {
    fn new(packet: Packet) -> Self {
        let (dnat, snat, masqueraded) = (false, false, false);
        Self {
            packet,
            dnat,
            snat,
            masqueraded,
            ct_mark: 0,
            path: Vec::new(),
            rejected: None,
        }
    }

    fn end(self, fate: Fate) -> Trace {
        Trace {
            fate,
            packet: self.packet,
            masqueraded: self.masqueraded,
            path: self.path,
        }
    }
}

fn number(key: &Key) -> u32 {
    key.bytes()
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

fn split_target(family: Family, data: &Key) -> (IpAddr, Option<u16>) {
    let bytes = data.bytes();
    let (address, rest) = if family == Family::Ip6 {
        let octets: [u8; 16] = bytes[..16].try_into().expect("sixteen bytes");
        (IpAddr::from(octets), &bytes[16..])
    } else {
        let octets: [u8; 4] = bytes[..4].try_into().expect("four bytes");
        (IpAddr::from(octets), &bytes[4..])
    };
    let port = rest.get(..2).map(|p| u16::from_be_bytes([p[0], p[1]]));
    (address, port)
}

fn lookup<'s>(set: &'s Set, key: &Key) -> Option<&'s Element> {
    if !set.kind.interval {
        return set.elements.get(key);
    }
    let inside = |first: &Key, last: &Key| {
        let (mut at, key, first, last) = (0, key.bytes(), first.bytes(), last.bytes());
        set.kind.key.iter().all(|field| {
            let range = at..at + field.size();
            at += field.size().next_multiple_of(4);
            first[range.clone()] <= key[range.clone()] && key[range.clone()] <= last[range]
        })
    };
    let candidates: &BTreeMap<Key, Element> = &set.elements;
    candidates
        .iter()
        .find(|(first, e)| inside(first, e.end.as_ref().unwrap_or(first)))
        .map(|(_, e)| e)
}
