//! From the model's statements to nftables expressions and registers.
//!
//! The machine has sixteen 32-bit registers. A rule needs few at a time: the
//! fields of a key are loaded one behind the other from register 0, a lookup
//! reads them there and may write its result over them. A statement starts
//! again at register 0, since nothing is carried from one to the next.

use std::ffi::{CStr, CString, c_void};
use std::net::IpAddr;
use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl_sys as sys;

use crate::model::{Base, Compare, Family, Key, NatTarget, Reject, Statement, Value, Verdict};

/// Sixteen words: the most a key can take.
const REGISTER_WORDS: u32 = 16;
/// The number of the first 32-bit register (`NFT_REG32_00`).
const FIRST_REGISTER: u32 = 8;

/// One attribute's content.
#[derive(Debug, Clone, PartialEq)]
enum Attribute {
    U8(u8),
    U32(u32),
    U64(u64),
    Text(CString),
    Bytes(Vec<u8>),
}

/// One nftables expression: its name and attributes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Raw {
    name: &'static CStr,
    attributes: Vec<(u32, Attribute)>,
}

impl Raw {
    fn new(name: &'static CStr) -> Self {
        Self {
            name,
            attributes: Vec::new(),
        }
    }

    fn u32(mut self, attribute: u32, value: u32) -> Self {
        self.attributes.push((attribute, Attribute::U32(value)));
        self
    }

    fn bytes(mut self, attribute: u32, value: &[u8]) -> Self {
        self.attributes
            .push((attribute, Attribute::Bytes(value.to_vec())));
        self
    }

    fn text(mut self, attribute: u32, value: &str) -> Self {
        // Names were checked for NUL when they entered the model; a log prefix is cut at one.
        let text = value.split('\0').next().unwrap_or_default();
        self.attributes
            .push((attribute, Attribute::Text(CString::new(text).unwrap_or_default())));
        self
    }
}

impl Expression for Raw {
    fn to_expr(&self, _rule: &nftnl::Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string; nftnl_expr_alloc returns null when the
        // name is unknown or memory ran out, which is checked before use. The
        // setters copy what they are given, with its true length.
        unsafe {
            let Some(expr) = NonNull::new(sys::nftnl_expr_alloc(self.name.as_ptr())) else {
                std::process::abort(); // out of memory, as the allocator would
            };
            for (attribute, value) in &self.attributes {
                let attribute = *attribute as u16;
                match value {
                    Attribute::U8(v) => sys::nftnl_expr_set_u8(expr.as_ptr(), attribute, *v),
                    Attribute::U32(v) => sys::nftnl_expr_set_u32(expr.as_ptr(), attribute, *v),
                    Attribute::U64(v) => sys::nftnl_expr_set_u64(expr.as_ptr(), attribute, *v),
                    Attribute::Text(v) => {
                        sys::nftnl_expr_set_str(expr.as_ptr(), attribute, v.as_ptr());
                    }
                    Attribute::Bytes(v) => {
                        let data = v.as_ptr().cast::<c_void>();
                        sys::nftnl_expr_set(expr.as_ptr(), attribute, data, v.len() as u32);
                    }
                }
            }
            expr
        }
    }
}

/// A statement that cannot be expressed, with the reason.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LowerError {
    /// A key larger than the registers.
    #[error("a key needs more than {REGISTER_WORDS} registers")]
    KeyTooLong,
    /// A map's result in the middle of a key.
    #[error("the result of map {0} can only be the last field of a key")]
    MapInKey(String),
    /// An address of the wrong family.
    #[error("address {0} does not belong to the table's family")]
    WrongFamily(IpAddr),
}

pub(crate) struct Lowering {
    family: Family,
    out: Vec<Raw>,
}

/// The expressions of a rule.
pub(crate) fn lower(family: Family, steps: &[Statement]) -> Result<Vec<Raw>, LowerError> {
    let mut lowering = Lowering {
        family,
        out: Vec::new(),
    };
    for step in steps {
        lowering.statement(step)?;
    }
    Ok(lowering.out)
}

fn register(word: u32) -> u32 {
    FIRST_REGISTER + word
}

impl Lowering {
    fn push(&mut self, raw: Raw) {
        self.out.push(raw);
    }

    fn payload(&mut self, base: Base, offset: u32, len: u32, word: u32) {
        let base = match base {
            Base::Link => 0,
            Base::Network => 1,
            Base::Transport => 2,
        };
        self.push(
            Raw::new(c"payload")
                .u32(sys::NFTNL_EXPR_PAYLOAD_DREG, register(word))
                .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, base)
                .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
                .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, len),
        );
    }

    fn meta(&mut self, key: i32, word: u32) {
        self.push(
            Raw::new(c"meta")
                .u32(sys::NFTNL_EXPR_META_KEY, key as u32)
                .u32(sys::NFTNL_EXPR_META_DREG, register(word)),
        );
    }

    fn ct(&mut self, key: i32, word: u32) {
        self.push(
            Raw::new(c"ct")
                .u32(sys::NFTNL_EXPR_CT_KEY, key as u32)
                .u32(sys::NFTNL_EXPR_CT_DREG, register(word)),
        );
    }

    fn numgen(&mut self, kind: i32, modulus: u32, offset: u32, word: u32) {
        self.push(
            Raw::new(c"numgen")
                .u32(sys::NFTNL_EXPR_NG_DREG, register(word))
                .u32(sys::NFTNL_EXPR_NG_MODULUS, modulus)
                .u32(sys::NFTNL_EXPR_NG_TYPE, kind as u32)
                .u32(sys::NFTNL_EXPR_NG_OFFSET, offset),
        );
    }

    fn fib_type(&mut self, flags: u32, word: u32) {
        const RESULT_ADDRESS_TYPE: u32 = 3;
        self.push(
            Raw::new(c"fib")
                .u32(sys::NFTNL_EXPR_FIB_DREG, register(word))
                .u32(sys::NFTNL_EXPR_FIB_RESULT, RESULT_ADDRESS_TYPE)
                .u32(sys::NFTNL_EXPR_FIB_FLAGS, flags),
        );
    }

    fn immediate(&mut self, bytes: &[u8], word: u32) {
        self.push(
            Raw::new(c"immediate")
                .u32(sys::NFTNL_EXPR_IMM_DREG, register(word))
                .bytes(sys::NFTNL_EXPR_IMM_DATA, bytes),
        );
    }

    fn load(&mut self, value: &Value, word: u32) -> Result<(), LowerError> {
        let words = value.size().unwrap_or(4).div_ceil(4) as u32;
        if word + words > REGISTER_WORDS {
            return Err(LowerError::KeyTooLong);
        }
        match value {
            Value::Ip4Source => self.payload(Base::Network, 12, 4, word),
            Value::Ip4Destination => self.payload(Base::Network, 16, 4, word),
            Value::Ip6Source => self.payload(Base::Network, 8, 16, word),
            Value::Ip6Destination => self.payload(Base::Network, 24, 16, word),
            Value::SourcePort => self.payload(Base::Transport, 0, 2, word),
            Value::DestinationPort => self.payload(Base::Transport, 2, 2, word),
            Value::Payload { base, offset, len } => self.payload(*base, *offset, *len, word),
            Value::Protocol => self.meta(libc::NFT_META_L4PROTO, word),
            Value::NfProto => self.meta(libc::NFT_META_NFPROTO, word),
            Value::Mark => self.meta(libc::NFT_META_MARK, word),
            Value::InterfaceIn => self.meta(libc::NFT_META_IIFNAME, word),
            Value::InterfaceOut => self.meta(libc::NFT_META_OIFNAME, word),
            Value::CtMark => self.ct(libc::NFT_CT_MARK, word),
            Value::CtState => self.ct(libc::NFT_CT_STATE, word),
            Value::CtStatus => self.ct(libc::NFT_CT_STATUS, word),
            Value::CtDirection => self.ct(libc::NFT_CT_DIRECTION, word),
            Value::SourceType => self.fib_type(1, word),
            Value::DestinationType => self.fib_type(2, word),
            Value::Random { modulus, offset } => self.numgen(libc::NFT_NG_RANDOM, *modulus, *offset, word),
            Value::RoundRobin { modulus, offset } => {
                self.numgen(libc::NFT_NG_INCREMENTAL, *modulus, *offset, word);
            }
            Value::Constant(key) => self.immediate(key.bytes(), word),
            Value::Bitwise { value, mask, xor } => {
                self.load(value, word)?;
                self.push(
                    Raw::new(c"bitwise")
                        .u32(sys::NFTNL_EXPR_BITWISE_SREG, register(word))
                        .u32(sys::NFTNL_EXPR_BITWISE_DREG, register(word))
                        .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.len() as u32)
                        .bytes(sys::NFTNL_EXPR_BITWISE_MASK, mask)
                        .bytes(sys::NFTNL_EXPR_BITWISE_XOR, xor),
                );
            }
            Value::Map { key, map } => {
                self.fields(key, word)?;
                self.push(
                    Raw::new(c"lookup")
                        .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register(word))
                        .u32(sys::NFTNL_EXPR_LOOKUP_DREG, register(word))
                        .text(sys::NFTNL_EXPR_LOOKUP_SET, map),
                );
            }
        }
        Ok(())
    }

    fn fields(&mut self, key: &[Value], first: u32) -> Result<(), LowerError> {
        let mut word = first;
        for (i, value) in key.iter().enumerate() {
            self.load(value, word)?;
            match value.size() {
                Some(size) => word += size.div_ceil(4) as u32,
                None if i + 1 == key.len() => {}
                None => {
                    let Value::Map { map, .. } = value else {
                        unreachable!("only maps have no size")
                    };
                    return Err(LowerError::MapInKey(map.to_string()));
                }
            }
        }
        Ok(())
    }

    fn verdict(&mut self, verdict: &Verdict) {
        let (code, chain) = verdict_code(verdict);
        let mut raw = Raw::new(c"immediate")
            .u32(sys::NFTNL_EXPR_IMM_DREG, libc::NFT_REG_VERDICT as u32)
            .u32(sys::NFTNL_EXPR_IMM_VERDICT, code as u32);
        if let Some(chain) = chain {
            raw = raw.text(sys::NFTNL_EXPR_IMM_CHAIN, chain);
        }
        self.push(raw);
    }

    fn nat(&mut self, kind: u32, target: &NatTarget) -> Result<(), LowerError> {
        let address_words = if self.family == Family::Ip6 { 4 } else { 1 };
        let mut words = address_words;
        let mut port = true;
        match target {
            NatTarget::Fixed(address, fixed_port) => {
                if self.family != Family::of(*address) && self.family != Family::Inet {
                    return Err(LowerError::WrongFamily(*address));
                }
                let key = Key::address(*address);
                words = key.bytes().len() as u32 / 4;
                self.immediate(key.bytes(), 0);
                port = fixed_port.is_some();
                if let Some(fixed_port) = fixed_port {
                    self.immediate(&fixed_port.to_be_bytes(), words);
                }
            }
            NatTarget::Map { key, map } => {
                self.load(
                    &Value::Map {
                        key: key.clone(),
                        map: map.clone(),
                    },
                    0,
                )?;
            }
        }
        let family = if words == 4 {
            libc::NFPROTO_IPV6
        } else {
            libc::NFPROTO_IPV4
        };
        let mut raw = Raw::new(c"nat")
            .u32(sys::NFTNL_EXPR_NAT_TYPE, kind)
            .u32(sys::NFTNL_EXPR_NAT_FAMILY, family as u32)
            .u32(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, register(0));
        if port {
            raw = raw.u32(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, register(words));
        }
        self.push(raw);
        Ok(())
    }

    fn statement(&mut self, step: &Statement) -> Result<(), LowerError> {
        match step {
            Statement::Match(value, compare, key) => {
                self.load(value, 0)?;
                let operator = match compare {
                    Compare::Equal => libc::NFT_CMP_EQ,
                    Compare::NotEqual => libc::NFT_CMP_NEQ,
                    Compare::Less => libc::NFT_CMP_LT,
                    Compare::LessEqual => libc::NFT_CMP_LTE,
                    Compare::Greater => libc::NFT_CMP_GT,
                    Compare::GreaterEqual => libc::NFT_CMP_GTE,
                };
                // The key is padded to whole registers; the comparison is of the value's own size.
                let size = value.size().unwrap_or(key.bytes().len()).min(key.bytes().len());
                self.push(
                    Raw::new(c"cmp")
                        .u32(sys::NFTNL_EXPR_CMP_SREG, register(0))
                        .u32(sys::NFTNL_EXPR_CMP_OP, operator as u32)
                        .bytes(sys::NFTNL_EXPR_CMP_DATA, &key.bytes()[..size]),
                );
            }
            Statement::InSet { key, set, negate } => {
                self.fields(key, 0)?;
                let raw = Raw::new(c"lookup")
                    .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register(0))
                    .text(sys::NFTNL_EXPR_LOOKUP_SET, set);
                self.push(if *negate {
                    raw.u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, 1)
                } else {
                    raw
                });
            }
            Statement::VerdictMap { key, map } => {
                self.fields(key, 0)?;
                self.push(
                    Raw::new(c"lookup")
                        .u32(sys::NFTNL_EXPR_LOOKUP_SREG, register(0))
                        .u32(sys::NFTNL_EXPR_LOOKUP_DREG, libc::NFT_REG_VERDICT as u32)
                        .text(sys::NFTNL_EXPR_LOOKUP_SET, map),
                );
            }
            Statement::Dnat(target) => self.nat(libc::NFT_NAT_DNAT as u32, target)?,
            Statement::Snat(target) => self.nat(libc::NFT_NAT_SNAT as u32, target)?,
            Statement::Masquerade { random } => {
                const FULLY_RANDOM: u32 = 1 << 4;
                let raw = Raw::new(c"masq");
                self.push(if *random {
                    raw.u32(sys::NFTNL_EXPR_MASQ_FLAGS, FULLY_RANDOM)
                } else {
                    raw
                });
            }
            Statement::Redirect(port) => {
                let mut raw = Raw::new(c"redir");
                if let Some(port) = port {
                    self.immediate(&port.to_be_bytes(), 0);
                    raw = raw.u32(sys::NFTNL_EXPR_REDIR_REG_PROTO_MIN, register(0));
                }
                self.push(raw);
            }
            Statement::SetMark(value) => {
                self.load(value, 0)?;
                self.push(
                    Raw::new(c"meta")
                        .u32(sys::NFTNL_EXPR_META_KEY, libc::NFT_META_MARK as u32)
                        .u32(sys::NFTNL_EXPR_META_SREG, register(0)),
                );
            }
            Statement::SetCtMark(value) => {
                self.load(value, 0)?;
                self.push(
                    Raw::new(c"ct")
                        .u32(sys::NFTNL_EXPR_CT_KEY, libc::NFT_CT_MARK as u32)
                        .u32(sys::NFTNL_EXPR_CT_SREG, register(0)),
                );
            }
            Statement::Update { set, key, timeout_ms } => {
                const OPERATION_UPDATE: u32 = 1;
                self.fields(key, 0)?;
                let mut raw = Raw::new(c"dynset")
                    .u32(sys::NFTNL_EXPR_DYNSET_SREG_KEY, register(0))
                    .u32(sys::NFTNL_EXPR_DYNSET_OP, OPERATION_UPDATE)
                    .text(sys::NFTNL_EXPR_DYNSET_SET_NAME, set);
                if let Some(timeout) = timeout_ms {
                    raw.attributes
                        .push((sys::NFTNL_EXPR_DYNSET_TIMEOUT, Attribute::U64(*timeout)));
                }
                self.push(raw);
            }
            Statement::Counter => self.push(Raw::new(c"counter")),
            Statement::Log(prefix) => {
                self.push(Raw::new(c"log").text(sys::NFTNL_EXPR_LOG_PREFIX, prefix));
            }
            Statement::Reject(reject) => {
                // Types: 0 ICMP of the table's family, 1 TCP reset, 2 ICMP of either family.
                let (kind, code) = match (reject, self.family) {
                    (Reject::TcpReset, _) => (1, 0),
                    (Reject::PortUnreachable, Family::Ip) => (0, 3),
                    (Reject::PortUnreachable, Family::Ip6) => (0, 4),
                    (Reject::PortUnreachable, _) => (2, 1),
                    (Reject::Prohibited, Family::Ip) => (0, 13),
                    (Reject::Prohibited, Family::Ip6) => (0, 1),
                    (Reject::Prohibited, _) => (2, 3),
                };
                let mut raw = Raw::new(c"reject").u32(sys::NFTNL_EXPR_REJECT_TYPE, kind);
                raw.attributes
                    .push((sys::NFTNL_EXPR_REJECT_CODE, Attribute::U8(code)));
                self.push(raw);
            }
            Statement::Notrack => self.push(Raw::new(c"notrack")),
            Statement::Verdict(verdict) => self.verdict(verdict),
        }
        Ok(())
    }
}

/// The kernel's number for a verdict, and its chain.
pub(crate) fn verdict_code(verdict: &Verdict) -> (i32, Option<&str>) {
    match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Continue => (libc::NFT_CONTINUE, None),
        Verdict::Return => (libc::NFT_RETURN, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Name, Rule};

    fn dnat(address: &str) -> Statement {
        Statement::Dnat(NatTarget::Fixed(address.parse().unwrap(), Some(80)))
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let map: Name = "m".into();
        let of_map = || Value::Map {
            key: vec![Value::Mark],
            map: map.clone(),
        };
        let long = vec![
            Value::Ip6Source,
            Value::Ip6Destination,
            Value::InterfaceIn,
            Value::InterfaceOut,
        ];
        assert_eq!(
            lower(Family::Ip6, &Rule::new().within(long.clone(), &map).steps).map(|r| r.len()),
            Ok(5)
        );
        let too_long = [long, vec![Value::Mark]].concat();
        let cases = [
            (
                Family::Ip6,
                Rule::new().within(too_long, &map),
                LowerError::KeyTooLong,
            ),
            (
                Family::Ip,
                Rule::new().within(vec![of_map(), Value::Mark], &map),
                LowerError::MapInKey("m".into()),
            ),
            (
                Family::Ip,
                Rule::new().then(dnat("fd00::1")),
                LowerError::WrongFamily("fd00::1".parse().unwrap()),
            ),
            (
                Family::Ip6,
                Rule::new().then(dnat("10.0.0.1")),
                LowerError::WrongFamily("10.0.0.1".parse().unwrap()),
            ),
        ];
        for (family, rule, error) in cases {
            assert_eq!(lower(family, &rule.steps), Err(error));
        }
        assert_eq!(
            lower(
                Family::Ip,
                &Rule::new().within(vec![Value::Mark, of_map()], &map).steps
            )
            .map(|r| r.len()),
            Ok(4)
        );
        assert!(lower(Family::Inet, &[dnat("fd00::1"), dnat("10.0.0.1")]).is_ok());
    }

    #[test]
    fn fields_of_a_key_lie_one_behind_the_other() {
        let rule = Rule::new().within(
            vec![Value::Ip6Source, Value::Protocol, Value::SourcePort],
            &"s".into(),
        );
        let raws = lower(Family::Ip6, &rule.steps).unwrap();
        let register = |raw: &Raw, attribute: u32| {
            raw.attributes
                .iter()
                .find(|(a, _)| *a == attribute)
                .map(|(_, value)| value.clone())
        };
        assert_eq!(
            register(&raws[0], sys::NFTNL_EXPR_PAYLOAD_DREG),
            Some(Attribute::U32(8))
        );
        assert_eq!(
            register(&raws[1], sys::NFTNL_EXPR_META_DREG),
            Some(Attribute::U32(12))
        );
        assert_eq!(
            register(&raws[2], sys::NFTNL_EXPR_PAYLOAD_DREG),
            Some(Attribute::U32(13))
        );
        assert_eq!(
            register(&raws[3], sys::NFTNL_EXPR_LOOKUP_SREG),
            Some(Attribute::U32(8))
        );
    }
}
