//! Puts the table back when somebody else deletes it.
//!
//! `nft flush ruleset` and the restart of a distribution's firewall service
//! delete every table. The kernel announces each deletion; a thread listens
//! and has the table written again from the model. Our own rebuilds announce a
//! deletion too; then the table is there when it is looked for, and nothing happens.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;

use crate::Error;
use crate::table::NftTable;

/// `NFNLGRP_NFTABLES`: announcements of changes of nftables.
const GROUP_NFTABLES: libc::c_int = 7;
/// Room for the announcements of one large transaction; when it overflows the table is looked for anyway.
const RECEIVE_BYTES: libc::c_int = 1 << 20;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE`
const DELETE_TABLE: u16 = 10 << 8 | 2;

/// Guards a table until it is dropped.
#[derive(Debug)]
pub struct Guard {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl NftTable {
    /// Starts guarding this table, in the current thread's network namespace (the one it was opened in).
    pub fn guard(&self) -> Result<Guard, Error> {
        let socket = listen().map_err(|e| Error::Socket("listen", e))?;
        // SAFETY: a plain system call; the descriptor is checked and owned at once.
        let stop = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(Error::Socket("listen", io::Error::last_os_error()));
            }
            OwnedFd::from_raw_fd(fd)
        };
        let stopped = stop.try_clone().map_err(|e| Error::Socket("listen", e))?;
        let table = self.clone();
        let thread = std::thread::Builder::new()
            .name("nft-guard".into())
            .spawn(move || watch(&table, &socket, &stopped))
            .map_err(|e| Error::Socket("listen", e))?;
        Ok(Guard {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let one = 1u64;
        // SAFETY: writes the eight bytes an eventfd takes.
        unsafe { libc::write(self.stop.as_raw_fd(), (&raw const one).cast(), 8) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain system calls; every pointer has the size given beside it.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as u16;
        let size = size_of::<libc::sockaddr_nl>() as u32;
        if libc::bind(fd, (&raw const address).cast(), size) < 0 {
            return Err(io::Error::last_os_error());
        }
        let options = [
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BYTES),
            (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, GROUP_NFTABLES),
        ];
        for (level, name, value) in options {
            let size = size_of::<libc::c_int>() as u32;
            if libc::setsockopt(fd, level, name, (&raw const value).cast(), size) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(socket)
    }
}

fn watch(table: &NftTable, socket: &OwnedFd, stop: &OwnedFd) {
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let wait = |fd: &OwnedFd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut waits = [wait(socket), wait(stop)];
        // SAFETY: two descriptors that outlive the call.
        if unsafe { libc::poll(waits.as_mut_ptr(), 2, -1) } < 0 {
            if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return;
        }
        if waits[1].revents != 0 {
            return;
        }
        if !deleted(socket, &mut buffer) {
            continue;
        }
        match table.ensure() {
            Ok(true) => tracing::warn!("somebody deleted our nftables table; it was written again"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "our nftables table is gone and cannot be written again"),
        }
    }
}

/// Reads every announcement; true when a table may have been deleted.
fn deleted(socket: &OwnedFd, buffer: &mut [u8]) -> bool {
    let mut found = false;
    loop {
        // SAFETY: the buffer has the length given.
        let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        if got <= 0 {
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::ENOBUFS) => found = true,
                Some(libc::EINTR) => {}
                _ => return found,
            }
            continue;
        }
        let mut rest = &buffer[..got as usize];
        while let [a, b, c, d, low, high, ..] = *rest {
            let len = u32::from_ne_bytes([a, b, c, d]) as usize;
            found |= u16::from_ne_bytes([low, high]) == DELETE_TABLE;
            if len < 16 || len > rest.len() {
                break;
            }
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
    }
}
