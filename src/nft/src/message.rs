//! Operations on a table and their netlink messages.
//!
//! Objects are built with `nftnl`; what it cannot say (verdicts and data in
//! elements, ranges, timeouts) goes through `nftnl-sys`. No message asks for
//! an acknowledgement except the last one: the kernel reports every failing
//! message whether asked or not, and tens of thousands of "all right" would not
//! fit any receive buffer.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::ptr::NonNull;

use nftnl::{MsgType, NlMsg, ProtoFamily};
use nftnl_sys as sys;

use crate::Error;
use crate::lower::{lower, verdict_code};
use crate::model::{
    Attachment, ChainKind, Datum, Element, Family, Holds, HookPoint, Key, Name, Rule, SetType, Type,
};

/// Elements in one message: its attribute length is 16 bits, an element takes
/// at most about 210 bytes (names are limited to [`crate::table::NAME_MAX`]).
const ELEMENTS_PER_MESSAGE: usize = 250;
/// Page of a batch. A page is one entry of the I/O vector, which may have 1024
/// entries: batches up to 256 MB.
const PAGE_BYTES: u32 = 256 * 1024;
/// Keys a dynamic set may hold; it is filled by packets, so it needs a limit.
const DYNAMIC_SET_SIZE: u32 = 65_535;

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Make the table.
    AddTable,
    /// Delete the table with everything in it.
    DeleteTable,
    /// Make a chain.
    AddChain(Name, Option<Attachment>),
    /// Delete every rule of a chain.
    FlushChain(Name),
    /// Append a rule.
    AddRule(Name, Rule),
    /// Delete an empty chain nothing leads to.
    DeleteChain(Name),
    /// Make a set or map.
    AddSet(Name, SetType),
    /// Delete a set with its elements.
    DeleteSet(Name),
    /// Add elements.
    AddElements(Name, SetType, Vec<(Key, Element)>),
    /// Delete elements.
    DeleteElements(Name, SetType, Vec<(Key, Element)>),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => write!(f, "add table"),
            Self::DeleteTable => write!(f, "delete table"),
            Self::AddChain(name, _) => write!(f, "add chain {name}"),
            Self::FlushChain(name) => write!(f, "flush chain {name}"),
            Self::AddRule(name, rule) => write!(f, "add rule to chain {name}: {:?}", rule.steps),
            Self::DeleteChain(name) => write!(f, "delete chain {name}"),
            Self::AddSet(name, _) => write!(f, "add set {name}"),
            Self::DeleteSet(name) => write!(f, "delete set {name}"),
            Self::AddElements(name, _, e) => write!(f, "add {} elements to {name}", e.len()),
            Self::DeleteElements(name, _, e) => write!(f, "delete {} elements of {name}", e.len()),
        }
    }
}

/// A batch ready to send, and which operation each sequence number stands for.
pub(crate) struct Encoded {
    pub(crate) batch: nftnl::FinalizedBatch,
    /// `(sequence number, index of the operation)`, ascending.
    pub(crate) sequence: Vec<(u32, usize)>,
}

/// A message whose acknowledgement flag and sequence number are under control.
struct Tracked<'a, M> {
    message: M,
    last: bool,
    seq: &'a Cell<u32>,
}

// SAFETY: writes what the inner message writes, and then changes a field of its header.
unsafe impl<M: NlMsg> NlMsg for Tracked<'_, M> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, kind: MsgType) {
        self.seq.set(seq);
        // SAFETY: the caller's promise on `buf` is passed on; every message begins with a header.
        unsafe {
            self.message.write(buf, seq, kind);
            let header = &mut *buf.cast::<libc::nlmsghdr>();
            header.nlmsg_flags &= !(libc::NLM_F_ACK as u16);
            if self.last {
                header.nlmsg_flags |= libc::NLM_F_ACK as u16;
            }
        }
    }
}

fn name_of(name: &str) -> Result<CString, Error> {
    CString::new(name).map_err(|_| Error::BadName(name.into()))
}

fn protocol_family(family: Family) -> ProtoFamily {
    match family {
        Family::Ip => ProtoFamily::Ipv4,
        Family::Ip6 => ProtoFamily::Ipv6,
        Family::Inet => ProtoFamily::Inet,
        Family::Bridge => ProtoFamily::Bridge,
    }
}

struct Encoder<'a> {
    family: Family,
    table: &'a nftnl::Table,
    batch: nftnl::Batch,
    seq: Cell<u32>,
    sequence: Vec<(u32, usize)>,
}

impl Encoder<'_> {
    fn add(&mut self, message: impl NlMsg, kind: MsgType, index: usize, last: bool) {
        self.batch.add(
            &Tracked {
                message,
                last,
                seq: &self.seq,
            },
            kind,
        );
        self.sequence.push((self.seq.get(), index));
    }
}

/// Encodes a transaction.
pub(crate) fn encode(family: Family, table: &str, ops: &[Op]) -> Result<Encoded, Error> {
    let proto = protocol_family(family);
    let table = nftnl::Table::new(name_of(table)?, proto);
    let mut out = Encoder {
        family,
        table: &table,
        batch: nftnl::Batch::with_page_size(PAGE_BYTES),
        seq: Cell::new(0),
        sequence: Vec::with_capacity(ops.len()),
    };
    let mut set_id = 0;
    for (i, op) in ops.iter().enumerate() {
        let last = i + 1 == ops.len();
        match op {
            Op::AddTable => out.add(Borrowed(&table), MsgType::Add, i, last),
            Op::DeleteTable => out.add(Borrowed(&table), MsgType::Del, i, last),
            Op::AddChain(name, attachment) => {
                let mut chain = nftnl::Chain::new(name_of(name)?, out.table);
                if let Some(attachment) = attachment {
                    attach(&mut chain, attachment);
                }
                out.add(chain, MsgType::Add, i, last);
            }
            Op::DeleteChain(name) => {
                out.add(
                    nftnl::Chain::new(name_of(name)?, out.table),
                    MsgType::Del,
                    i,
                    last,
                );
            }
            Op::FlushChain(name) => {
                // A rule message without a handle means every rule of the chain.
                let chain = nftnl::Chain::new(name_of(name)?, out.table);
                out.add(nftnl::Rule::new(&chain), MsgType::Del, i, last);
            }
            Op::AddRule(name, rule) => {
                let chain = nftnl::Chain::new(name_of(name)?, out.table);
                let mut message = nftnl::Rule::new(&chain);
                if let Some(comment) = &rule.comment {
                    let comment = name_of(comment)?;
                    message
                        .set_comment(&comment)
                        .map_err(|_| Error::BadName(format!("{comment:?}")))?;
                }
                let lowered = lower(out.family, &rule.steps).map_err(|source| Error::Rule {
                    chain: name.to_string(),
                    source,
                })?;
                for expression in &lowered {
                    message.add_expr(expression);
                }
                out.add(message, MsgType::Add, i, last);
            }
            Op::AddSet(name, kind) => {
                set_id += 1;
                out.add(
                    SetMessage::declare(&table, family, name, kind, set_id)?,
                    MsgType::Add,
                    i,
                    last,
                );
            }
            Op::DeleteSet(name) => {
                out.add(
                    SetMessage::named(&table, family, name, false)?,
                    MsgType::Del,
                    i,
                    last,
                );
            }
            Op::AddElements(name, kind, elements) | Op::DeleteElements(name, kind, elements) => {
                let message_type = if matches!(op, Op::AddElements(..)) {
                    MsgType::Add
                } else {
                    MsgType::Del
                };
                let chunks = elements.chunks(ELEMENTS_PER_MESSAGE);
                let count = chunks.len();
                for (n, chunk) in chunks.enumerate() {
                    let mut message = SetMessage::named(&table, family, name, true)?;
                    for (key, element) in chunk {
                        message.element(kind, key, element, message_type == MsgType::Add)?;
                    }
                    out.add(message, message_type, i, last && n + 1 == count);
                }
            }
        }
    }
    Ok(Encoded {
        batch: out.batch.finalize(),
        sequence: out.sequence,
    })
}

fn attach(chain: &mut nftnl::Chain<'_>, attachment: &Attachment) {
    let hook = match attachment.point {
        HookPoint::Prerouting => nftnl::Hook::PreRouting,
        HookPoint::Input => nftnl::Hook::In,
        HookPoint::Forward => nftnl::Hook::Forward,
        HookPoint::Output => nftnl::Hook::Out,
        HookPoint::Postrouting => nftnl::Hook::PostRouting,
    };
    chain.set_hook(hook, attachment.priority);
    chain.set_type(match attachment.kind {
        ChainKind::Filter => nftnl::ChainType::Filter,
        ChainKind::Nat => nftnl::ChainType::Nat,
    });
    chain.set_policy(if attachment.drop_by_default {
        nftnl::Policy::Drop
    } else {
        nftnl::Policy::Accept
    });
}

/// `&M` as a message, so that a borrowed `nftnl` object can be wrapped.
struct Borrowed<'a, M>(&'a M);

// SAFETY: writes exactly what the borrowed message writes.
unsafe impl<M: NlMsg> NlMsg for Borrowed<'_, M> {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, kind: MsgType) {
        // SAFETY: the caller's promise on `buf` is passed on.
        unsafe { self.0.write(buf, seq, kind) }
    }
}

/// A set's declaration, deletion, or some of its elements.
struct SetMessage {
    set: NonNull<sys::nftnl_set>,
    family: u16,
    elements: bool,
}

impl SetMessage {
    fn named(table: &nftnl::Table, family: Family, name: &str, elements: bool) -> Result<Self, Error> {
        let name = name_of(name)?;
        // SAFETY: null is checked; the setters copy the strings.
        unsafe {
            let Some(set) = NonNull::new(sys::nftnl_set_alloc()) else {
                std::process::abort()
            };
            let message = Self {
                set,
                family: protocol_family(family) as u16,
                elements,
            };
            let table = table.get_name();
            sys::nftnl_set_set_str(set.as_ptr(), sys::NFTNL_SET_TABLE as u16, table.as_ptr());
            sys::nftnl_set_set_str(set.as_ptr(), sys::NFTNL_SET_NAME as u16, name.as_ptr());
            message.u32(sys::NFTNL_SET_FAMILY, u32::from(message.family));
            Ok(message)
        }
    }

    fn u32(&self, attribute: u32, value: u32) {
        // SAFETY: the set is alive as long as self.
        unsafe { sys::nftnl_set_set_u32(self.set.as_ptr(), attribute as u16, value) }
    }

    fn declare(
        table: &nftnl::Table,
        family: Family,
        name: &str,
        kind: &SetType,
        id: u32,
    ) -> Result<Self, Error> {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        const TIMEOUT: u32 = 16;
        const EVAL: u32 = 32;
        const CONCAT: u32 = 128;
        const VERDICT_TYPE: u32 = 0xffff_ff00;
        let message = Self::named(table, family, name, false)?;
        let mut flags = 0;
        message.u32(sys::NFTNL_SET_ID, id);
        message.u32(sys::NFTNL_SET_KEY_TYPE, type_code(&kind.key));
        message.u32(sys::NFTNL_SET_KEY_LEN, size(&kind.key));
        match &kind.holds {
            Holds::Nothing => {}
            Holds::Verdicts => {
                flags |= MAP;
                message.u32(sys::NFTNL_SET_DATA_TYPE, VERDICT_TYPE);
                message.u32(sys::NFTNL_SET_DATA_LEN, 16);
            }
            Holds::Data(types) => {
                flags |= MAP;
                message.u32(sys::NFTNL_SET_DATA_TYPE, type_code(types));
                message.u32(sys::NFTNL_SET_DATA_LEN, size(types));
            }
        }
        if kind.interval {
            flags |= INTERVAL;
            if kind.key.len() > 1 {
                flags |= CONCAT;
                let lengths: Vec<u8> = kind.key.iter().map(|t| t.size() as u8).collect();
                // SAFETY: the data is copied with its length.
                unsafe {
                    sys::nftnl_set_set_data(
                        message.set.as_ptr(),
                        sys::NFTNL_SET_DESC_CONCAT as u16,
                        lengths.as_ptr().cast(),
                        lengths.len() as u32,
                    );
                }
            }
        }
        if let Some(timeout) = kind.dynamic_timeout_ms {
            flags |= TIMEOUT | EVAL;
            // SAFETY: the set is alive.
            unsafe {
                sys::nftnl_set_set_u64(message.set.as_ptr(), sys::NFTNL_SET_TIMEOUT as u16, timeout);
            }
            message.u32(sys::NFTNL_SET_DESC_SIZE, DYNAMIC_SET_SIZE);
        }
        message.u32(sys::NFTNL_SET_FLAGS, flags);
        Ok(message)
    }

    fn element(&mut self, kind: &SetType, key: &Key, element: &Element, add: bool) -> Result<(), Error> {
        const INTERVAL_END: u32 = 1;
        let concat = kind.key.len() > 1;
        // A range over one field is two elements, over several one with two keys.
        let upper = element.end.as_ref().unwrap_or(key);
        self.raw_element(
            key,
            (kind.interval && concat).then_some(upper),
            &element.datum,
            0,
            add,
        )?;
        if kind.interval
            && !concat
            && let Some(after) = successor(upper, kind.key[0])
        {
            self.raw_element(&after, None, &Datum::Member, INTERVAL_END, add)?;
        }
        Ok(())
    }

    fn raw_element(
        &mut self,
        key: &Key,
        end: Option<&Key>,
        datum: &Datum,
        flags: u32,
        with_datum: bool,
    ) -> Result<(), Error> {
        let chain = match datum {
            Datum::Verdict(verdict) => verdict.target().map(|n| name_of(n)).transpose()?,
            _ => None,
        };
        // SAFETY: null is checked; setters copy data with its length; adding
        // the element gives it to the set, which frees it.
        unsafe {
            let elem = sys::nftnl_set_elem_alloc();
            if elem.is_null() {
                std::process::abort();
            }
            let bytes = |attribute: u32, data: &[u8]| {
                sys::nftnl_set_elem_set(elem, attribute as u16, data.as_ptr().cast(), data.len() as u32);
            };
            bytes(sys::NFTNL_SET_ELEM_KEY, key.bytes());
            if let Some(end) = end {
                bytes(sys::NFTNL_SET_ELEM_KEY_END, end.bytes());
            }
            if flags != 0 {
                sys::nftnl_set_elem_set_u32(elem, sys::NFTNL_SET_ELEM_FLAGS as u16, flags);
            }
            match datum {
                Datum::Data(data) if with_datum => bytes(sys::NFTNL_SET_ELEM_DATA, data.bytes()),
                Datum::Verdict(verdict) if with_datum => {
                    let (code, _) = verdict_code(verdict);
                    sys::nftnl_set_elem_set_u32(elem, sys::NFTNL_SET_ELEM_VERDICT as u16, code as u32);
                    if let Some(chain) = &chain {
                        sys::nftnl_set_elem_set_str(
                            elem,
                            sys::NFTNL_SET_ELEM_CHAIN as u16,
                            chain.as_ptr().cast::<c_char>(),
                        );
                    }
                }
                _ => {}
            }
            sys::nftnl_set_elem_add(self.set.as_ptr(), elem);
        }
        Ok(())
    }
}

impl Drop for SetMessage {
    fn drop(&mut self) {
        // SAFETY: allocated in `named`, freed once.
        unsafe { sys::nftnl_set_free(self.set.as_ptr()) }
    }
}

// SAFETY: a declaration is small; elements are limited to ELEMENTS_PER_MESSAGE.
unsafe impl NlMsg for SetMessage {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, kind: MsgType) {
        let (message, flags) = match (kind, self.elements) {
            (MsgType::Add, false) => (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            (MsgType::Del, false) => (libc::NFT_MSG_DELSET, 0),
            (MsgType::Add, true) => (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_EXCL),
            (MsgType::Del, true) => (libc::NFT_MSG_DELSETELEM, 0),
        };
        // SAFETY: the caller's buffer takes the largest message; the set is alive.
        unsafe {
            let header =
                sys::nftnl_nlmsg_build_hdr(buf.cast(), message as u16, self.family, flags as u16, seq);
            if self.elements {
                sys::nftnl_set_elems_nlmsg_build_payload(header, self.set.as_ptr());
            } else {
                sys::nftnl_set_nlmsg_build_payload(header, self.set.as_ptr());
            }
        }
    }
}

/// A concatenation's type is its fields' types, six bits each.
fn type_code(types: &[Type]) -> u32 {
    types.iter().fold(0, |code, t| code << 6 | t.code())
}

fn size(types: &[Type]) -> u32 {
    match types {
        [one] => one.size() as u32,
        many => many.iter().map(|t| t.size().next_multiple_of(4) as u32).sum(),
    }
}

/// The key after this one; `None` when it was the last.
fn successor(key: &Key, field: Type) -> Option<Key> {
    let mut bytes = key.bytes().to_vec();
    for byte in bytes[..field.size()].iter_mut().rev() {
        let (next, overflow) = byte.overflowing_add(1);
        *byte = next;
        if !overflow {
            return Some(bytes.into());
        }
    }
    None
}
