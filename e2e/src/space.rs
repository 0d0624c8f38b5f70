//! A pair of namespaces (network and mount) held open by an anchor process.
//!
//! The anchor is a `cat` that waits for the end of its input, whose other end
//! this process holds: it goes when this process goes, however that happens.
//! Programs enter between fork and exec, so the process started is the program
//! itself. Sockets that tests use from outside are made by a thread that has
//! entered; a socket keeps the namespace it was made in.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::cgroup::Group;

/// Connections that wait to be accepted by a listener of a test.
const BACKLOG: u32 = 16;

/// Namespaces of a node or of the LAN.
#[derive(Debug)]
pub struct Space {
    anchor: Child,
    net: Arc<File>,
    mount: Arc<File>,
    group: Group,
}

impl Space {
    /// Makes namespaces whose processes are members of `group`.
    pub fn create(group: Group) -> anyhow::Result<Self> {
        let mut command = Command::new("cat");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let door = group.door()?;
        // SAFETY: only async-signal-safe system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                join(&door)?;
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
                Ok(())
            });
        }
        let anchor = command
            .spawn()
            .context("cannot make namespaces: the tests need root")?;
        let open = |kind: &str| {
            let path = format!("/proc/{}/ns/{kind}", anchor.id());
            File::open(&path).map(Arc::new).with_context(|| path)
        };
        let (net, mount) = (open("net")?, open("mnt")?);
        Ok(Self {
            anchor,
            net,
            mount,
            group,
        })
    }

    /// The process to name where a tool wants a namespace by process.
    pub fn pid(&self) -> u32 {
        self.anchor.id()
    }

    /// The group its processes are members of.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Lets a command run inside.
    pub fn enter(&self, command: &mut Command) -> anyhow::Result<()> {
        let (net, mount, door) = (self.net.clone(), self.mount.clone(), self.group.door()?);
        // SAFETY: only async-signal-safe system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                join(&door)?;
                setns(&*net, CloneFlags::CLONE_NEWNET)?;
                setns(&*mount, CloneFlags::CLONE_NEWNS)?;
                Ok(())
            });
        }
        Ok(())
    }

    /// Something that makes sockets inside, usable from anywhere.
    pub fn sockets(&self) -> Sockets {
        Sockets {
            net: self.net.clone(),
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}

fn join(door: &File) -> io::Result<()> {
    // SAFETY: the buffer is one byte long and the descriptor is open.
    let written = unsafe { libc::write(door.as_raw_fd(), b"0".as_ptr().cast(), 1) };
    if written == 1 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes sockets inside a network namespace.
#[derive(Debug, Clone)]
pub struct Sockets {
    net: Arc<File>,
}

impl Sockets {
    fn make(&self) -> io::Result<OwnedFd> {
        let net = self.net.clone();
        // A thread of its own, since it cannot be trusted to anybody afterwards.
        let thread = std::thread::Builder::new()
            .name("socket".to_owned())
            .spawn(move || {
                setns(&*net, CloneFlags::CLONE_NEWNET)?;
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?)
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the socket thread panicked")))
    }

    /// Listens inside.
    pub fn listen(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let stream = std::net::TcpStream::from(self.make()?);
        let socket = tokio::net::TcpSocket::from_std_stream(stream);
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }

    /// Connects from inside to an address as seen inside.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let stream = std::net::TcpStream::from(self.make()?);
        tokio::net::TcpSocket::from_std_stream(stream)
            .connect(address)
            .await
    }
}
