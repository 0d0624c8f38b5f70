//! The one error type of this crate: what was attempted, and what the kernel said.

use std::io;
use std::path::PathBuf;

/// Why a network verb failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refused a request.
    #[error("cannot {what}: {source}")]
    Refused {
        /// The request in words, naming the object.
        what: String,
        /// The kernel's errno.
        #[source]
        source: io::Error,
    },
    /// The connection to the kernel is gone or answered something that is no answer.
    #[error("netlink failed to {what}: {source}")]
    Protocol {
        /// The request in words.
        what: String,
        /// The transport's complaint.
        #[source]
        source: rtnetlink::Error,
    },
    /// A table kept changing while it was read.
    #[error("cannot {what}: the table kept changing while it was read")]
    Unstable {
        /// The request in words.
        what: String,
    },
    /// A link that must exist does not.
    #[error("network interface {name} does not exist")]
    NoLink {
        /// Name or index of the link.
        name: String,
    },
    /// A network namespace could not be opened, made, entered or removed.
    #[error("cannot {verb} network namespace {}: {source}", path.display())]
    Namespace {
        /// What was attempted.
        verb: &'static str,
        /// The namespace's file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// The thread running code in a namespace ended without a result.
    #[error("the thread working in network namespace {} died", path.display())]
    ThreadDied {
        /// The namespace's file.
        path: PathBuf,
    },
    /// A sysctl could not be read or written.
    #[error("cannot {verb} sysctl {key}: {source}")]
    Sysctl {
        /// `read` or `write`.
        verb: &'static str,
        /// Path below /proc/sys.
        key: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// No address of this machine fits what was asked for.
    #[error("no node address: {0}")]
    NoNodeAddress(String),
}

impl Error {
    /// The kernel's errno, when there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Open(source)
            | Self::Refused { source, .. }
            | Self::Namespace { source, .. }
            | Self::Sysctl { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The object named in the request does not exist.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::NoLink { .. })
            || matches!(
                self.errno(),
                Some(libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL | libc::ENXIO)
            )
    }

    /// The object named in the request exists already.
    pub fn is_present(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }
}

/// Turns "it is already gone" into success.
pub(crate) fn gone_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_gone() => Ok(()),
        other => other,
    }
}
