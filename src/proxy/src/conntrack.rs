//! Forgetting connections that would keep going to endpoints that are gone.
//!
//! Translation is decided by a connection's first packet. TCP ends by itself;
//! a UDP "connection" lives as long as packets keep coming, so a client that
//! talks to a vanished endpoint would do so for ever, and one that began
//! before there was any endpoint would never be translated. The kernel's table is
//! read once per batch of changes and the entries concerned are deleted.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use skiff_nft::Family;

use crate::ledger::Stale;
use crate::plan::Front;

const SUBSYSTEM: u16 = 1 << 8; // NFNL_SUBSYS_CTNETLINK
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const HEADER: usize = 20; // nlmsghdr and nfgenmsg
/// The kernel packs dumps into pieces of at most 32 KB.
const RECEIVE_BYTES: usize = 64 << 10;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    port: u16,
}

/// A connection the kernel remembers.
struct Entry {
    original: Tuple,
    reply: Tuple,
    /// The attributes that name it: original tuple and id, as the kernel wrote them.
    name: Vec<u8>,
}

/// Deletes the entries that `stale` describes; returns how many.
pub fn forget(family: Family, stale: &BTreeSet<Stale>) -> io::Result<usize> {
    if stale.is_empty() {
        return Ok(0);
    }
    let socket = open()?;
    let doomed = dump(&socket, family, |entry| stale.iter().any(|s| matches(s, entry)))?;
    for name in &doomed {
        delete(&socket, family, name)?;
    }
    Ok(doomed.len())
}

fn matches(stale: &Stale, entry: &Entry) -> bool {
    let (Stale::Endpoint(front, _) | Stale::Untranslated(front)) = stale;
    let (protocol, port, address) = match front {
        Front::Address(address, protocol, port) => (protocol, port, Some(*address)),
        Front::NodePort(protocol, port) => (protocol, port, None),
    };
    let original = &entry.original;
    let same_front = original.protocol == protocol.number()
        && original.port == *port
        && (address.is_none() || address == original.destination);
    same_front
        && match stale {
            Stale::Endpoint(_, gone) => entry.reply.source == Some(*gone),
            Stale::Untranslated(_) => entry.reply.source == original.destination,
        }
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call; the descriptor is checked and owned at once.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: &OwnedFd, kind: u16, flags: i32, family: Family, attributes: &[u8]) -> io::Result<()> {
    let number = if family == Family::Ip6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let mut message = Vec::with_capacity(HEADER + attributes.len());
    message.extend_from_slice(&((HEADER + attributes.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[number as u8, 0, 0, 0]);
    message.extend_from_slice(attributes);
    // SAFETY: all-zero is a valid address (the kernel's), completed with the family.
    let mut kernel: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    kernel.nl_family = libc::AF_NETLINK as u16;
    // SAFETY: the buffers outlive the call and have the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
            (&raw const kernel).cast(),
            size_of::<libc::sockaddr_nl>() as u32,
        )
    };
    if sent < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn receive<'b>(socket: &OwnedFd, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    loop {
        // SAFETY: the buffer has the length given.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if got >= 0 {
            return Ok(&buffer[..got as usize]);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn dump(socket: &OwnedFd, family: Family, keep: impl Fn(&Entry) -> bool) -> io::Result<Vec<Vec<u8>>> {
    send(socket, GET, libc::NLM_F_DUMP, family, &[])?;
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut kept = Vec::new();
    loop {
        let mut rest = receive(socket, &mut buffer)?;
        while let Some((kind, message, tail)) = message(rest) {
            rest = tail;
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(kept),
                libc::NLMSG_ERROR => return answer(message),
                _ => {}
            }
            let entry = message.get(HEADER..).map(entry);
            kept.extend(entry.filter(|e| keep(e)).map(|e| e.name));
        }
    }
}

fn answer<T: Default>(message: &[u8]) -> io::Result<T> {
    let code = message
        .get(16..20)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(T::default())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

fn delete(socket: &OwnedFd, family: Family, name: &[u8]) -> io::Result<()> {
    send(socket, DELETE, libc::NLM_F_ACK, family, name)?;
    let mut buffer = vec![0; RECEIVE_BYTES];
    let got = receive(socket, &mut buffer)?;
    match message(got).map(|(_, message, _)| answer::<()>(message)) {
        // Gone by itself in the meantime.
        Some(Err(e)) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Some(result) => result,
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// `(type, whole message, what follows)`
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if len < 16 || len > bytes.len() {
        return None;
    }
    let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
    Some((
        kind,
        &bytes[..len],
        &bytes[len.next_multiple_of(4).min(bytes.len())..],
    ))
}

/// Calls `each` with type, payload and the whole of every attribute.
fn attributes<'b>(mut bytes: &'b [u8], mut each: impl FnMut(u16, &'b [u8], &'b [u8])) {
    while bytes.len() >= 4 {
        let len = u16::from_ne_bytes([bytes[0], bytes[1]]) as usize;
        if len < 4 || len > bytes.len() {
            return;
        }
        let kind = u16::from_ne_bytes([bytes[2], bytes[3]]) & 0x3fff;
        let padded = len.next_multiple_of(4).min(bytes.len());
        each(kind, &bytes[4..len], &bytes[..padded]);
        bytes = &bytes[padded..];
    }
}

fn entry(bytes: &[u8]) -> Entry {
    let mut entry = Entry {
        original: Tuple::default(),
        reply: Tuple::default(),
        name: Vec::new(),
    };
    attributes(bytes, |kind, payload, whole| match kind {
        TUPLE_ORIGINAL => {
            entry.original = tuple(payload);
            entry.name.extend_from_slice(whole);
        }
        TUPLE_REPLY => entry.reply = tuple(payload),
        ID => entry.name.extend_from_slice(whole),
        _ => {}
    });
    entry
}

fn tuple(bytes: &[u8]) -> Tuple {
    const IP: u16 = 1;
    const PROTOCOL: u16 = 2;
    let mut tuple = Tuple::default();
    attributes(bytes, |kind, payload, _| match kind {
        IP => attributes(payload, |kind, payload, _| match kind {
            1 | 3 => tuple.source = address(payload),
            2 | 4 => tuple.destination = address(payload),
            _ => {}
        }),
        PROTOCOL => attributes(payload, |kind, payload, _| match (kind, payload) {
            (1, [number, ..]) => tuple.protocol = *number,
            (3, [high, low]) => tuple.port = u16::from_be_bytes([*high, *low]),
            _ => {}
        }),
        _ => {}
    });
    tuple
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
