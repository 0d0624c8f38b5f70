//! The netlink socket: one `sendmsg` for a whole transaction, then every answer.
//!
//! The kernel works off a batch inside `sendmsg`; when the call returns, all
//! answers stand in the receive queue. They are read without waiting. The
//! socket belongs to the network namespace of the thread that opened it, for ever.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::Error;
use crate::message::{Encoded, Op};
use crate::model::Family;

/// Room for answers: only failing messages answer, plus the last and the batch's ends.
const RECEIVE_BYTES: libc::c_int = 4 << 20;
/// One answer fits well: original messages are not echoed (`NETLINK_CAP_ACK`).
const ANSWER_BYTES: usize = 16 << 10;
/// Failures kept from one transaction; the first names the cause.
const FAILURES_KEPT: usize = 8;
/// Bookkeeping the kernel charges to the send buffer beside the payload.
const SEND_MARGIN: usize = 64 << 10;

/// An open `NETLINK_NETFILTER` socket.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    send_buffer: usize,
}

/// A refused message.
struct Failure {
    seq: u32,
    errno: i32,
    detail: Option<String>,
}

impl Socket {
    /// Opens a socket in the current thread's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        // SAFETY: plain system call; the descriptor is checked and owned at once.
        let fd = unsafe {
            let fd = libc::socket(
                libc::AF_NETLINK,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                libc::NETLINK_NETFILTER,
            );
            if fd < 0 {
                return Err(Error::Socket("open", io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(fd)
        };
        let socket = Self { fd, send_buffer: 0 };
        // SAFETY: an all-zero sockaddr_nl is valid: port and groups chosen by the kernel.
        let address: libc::sockaddr_nl = unsafe {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            address.nl_family = libc::AF_NETLINK as u16;
            address
        };
        // SAFETY: the address outlives the call and has the given size.
        let bound = unsafe {
            libc::bind(
                socket.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_nl>() as u32,
            )
        };
        if bound < 0 {
            return Err(Error::Socket("bind", io::Error::last_os_error()));
        }
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BYTES)?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        Ok(socket)
    }

    fn option(&self, level: i32, name: i32, value: libc::c_int) -> Result<(), Error> {
        // SAFETY: passes a pointer to an int with its size.
        let done = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        if done < 0 {
            Err(Error::Socket("configure", io::Error::last_os_error()))
        } else {
            Ok(())
        }
    }

    /// Sends a transaction and reads its answers.
    pub(crate) fn transact(&mut self, encoded: &Encoded, ops: &[Op], table: &str) -> Result<(), Error> {
        let pages: Vec<&[u8]> = encoded.batch.iter().collect();
        self.send(&pages)?;
        let mut failures = Vec::new();
        let last = encoded.sequence.last().map(|(seq, _)| *seq);
        let mut acknowledged = false;
        let complete = self.answers(|seq, errno, detail| {
            if errno != 0 && failures.len() < FAILURES_KEPT {
                failures.push(Failure { seq, errno, detail });
            } else if errno == 0 && Some(seq) == last {
                acknowledged = true;
            }
        })?;
        if let Some(failure) = failures.first() {
            let object = match encoded
                .sequence
                .binary_search_by_key(&failure.seq, |(seq, _)| *seq)
            {
                Ok(found) => ops[encoded.sequence[found].1].to_string(),
                Err(_) => "commit the transaction".to_owned(),
            };
            return Err(Error::Refused {
                table: table.to_owned(),
                object,
                detail: failure
                    .detail
                    .as_ref()
                    .map(|d| format!(" ({d})"))
                    .unwrap_or_default(),
                source: io::Error::from_raw_os_error(failure.errno),
            });
        }
        if acknowledged && complete {
            Ok(())
        } else {
            Err(Error::Unanswered(table.to_owned()))
        }
    }

    /// Whether a table exists.
    pub(crate) fn table_exists(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        const NFNL_SUBSYS_NFTABLES: u16 = 10;
        const NFTA_TABLE_NAME: u16 = 1;
        let family = match family {
            Family::Ip => libc::NFPROTO_IPV4,
            Family::Ip6 => libc::NFPROTO_IPV6,
            Family::Inet => libc::NFPROTO_INET,
            Family::Bridge => libc::NFPROTO_BRIDGE,
        };
        let mut name = table.as_bytes().to_vec();
        name.push(0);
        let mut body = vec![family as u8, 0, 0, 0]; // nfgenmsg
        body.extend_from_slice(&(4 + name.len() as u16).to_ne_bytes());
        body.extend_from_slice(&NFTA_TABLE_NAME.to_ne_bytes());
        body.extend_from_slice(&name);
        body.resize(body.len().next_multiple_of(4), 0);
        let kind = NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_GETTABLE as u16;
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend_from_slice(&(16 + body.len() as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
        message.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]); // sequence number, port
        message.extend_from_slice(&body);
        self.send(&[&message])?;
        let mut outcome = None;
        self.answers(|_, errno, _| outcome = Some(errno))?;
        match outcome {
            Some(0) => Ok(true),
            Some(libc::ENOENT) => Ok(false),
            Some(errno) => Err(Error::Socket(
                "look for a table",
                io::Error::from_raw_os_error(errno),
            )),
            None => Err(Error::Unanswered(table.to_owned())),
        }
    }

    fn send(&mut self, pages: &[&[u8]]) -> Result<(), Error> {
        let total: usize = pages.iter().map(|p| p.len()).sum();
        if pages.len() > libc::UIO_MAXIOV as usize || total > libc::c_int::MAX as usize / 4 {
            return Err(Error::TooLarge(total));
        }
        if total + SEND_MARGIN > self.send_buffer {
            let wanted = (total + SEND_MARGIN).next_power_of_two();
            self.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted as libc::c_int)?;
            self.send_buffer = wanted;
        }
        let mut vector: Vec<libc::iovec> = pages
            .iter()
            .map(|p| libc::iovec {
                iov_base: p.as_ptr() as *mut _,
                iov_len: p.len(),
            })
            .collect();
        // SAFETY: all-zero is a valid msghdr and sockaddr_nl (the kernel's address).
        let (mut message, mut kernel): (libc::msghdr, libc::sockaddr_nl) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        kernel.nl_family = libc::AF_NETLINK as u16;
        message.msg_name = (&raw mut kernel).cast();
        message.msg_namelen = size_of::<libc::sockaddr_nl>() as u32;
        message.msg_iov = vector.as_mut_ptr();
        message.msg_iovlen = vector.len() as _;
        loop {
            // SAFETY: everything the header points to outlives the call.
            let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &message, 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(Error::Socket("send a transaction", error));
            }
        }
    }

    /// Reads what stands in the queue; false when the kernel had to discard answers.
    fn answers(&self, mut each: impl FnMut(u32, i32, Option<String>)) -> Result<bool, Error> {
        let mut buffer = vec![0u8; ANSWER_BYTES];
        let mut complete = true;
        loop {
            // SAFETY: the buffer has the length given.
            let got = unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            if got < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(complete),
                    Some(libc::EINTR) => continue,
                    Some(libc::ENOBUFS) => complete = false,
                    _ => return Err(Error::Socket("read answers", error)),
                }
                continue;
            }
            let mut rest = &buffer[..got as usize];
            while let Some((message, tail)) = split_message(rest) {
                if let Some((seq, errno, detail)) = parse_error(message) {
                    each(seq, errno, detail);
                }
                rest = tail;
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn split_message(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    if len < 16 || len > bytes.len() {
        return None;
    }
    Some((&bytes[..len], &bytes[len.next_multiple_of(4).min(bytes.len())..]))
}

/// `(sequence number, errno, the kernel's words)` of an NLMSG_ERROR.
fn parse_error(message: &[u8]) -> Option<(u32, i32, Option<String>)> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    if u16_at(message, 4)? != libc::NLMSG_ERROR as u16 {
        return None;
    }
    let flags = u16_at(message, 6)?;
    let seq = u32_at(message, 8)?;
    let errno = -(u32_at(message, 16)? as i32);
    let mut detail = None;
    if flags & libc::NLM_F_ACK_TLVS as u16 != 0 {
        // Header, errno, the original header; attributes follow (the message itself is capped away).
        let mut at = 36;
        while let (Some(len), Some(kind)) = (u16_at(message, at), u16_at(message, at + 2)) {
            if (len as usize) < 4 || at + len as usize > message.len() {
                break;
            }
            if kind & 0x3fff == NLMSGERR_ATTR_MSG {
                let text = &message[at + 4..at + len as usize];
                detail = Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
            }
            at += (len as usize).next_multiple_of(4);
        }
    }
    Some((seq, errno, detail))
}
