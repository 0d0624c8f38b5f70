//! The agent's outbound connection over which servers reach it.
//!
//! ```text
//! agent ──TLS──► server:6443   GET /v1-skiff/connect, Upgrade: skiff-tunnel ──► 101
//! agent ◄─────── server        HTTP/2 with the roles reversed: CONNECT kubelet
//!                                                             CONNECT 10.42.1.7:80
//! ```
//!
//! Nothing ever connects to an agent: nodes behind NAT and firewalls are
//! reached like all others. Every CONNECT is one byte stream with its own flow
//! control, so a stalled `kubectl logs -f` holds up nobody else.
//!
//! Both sides ping; a peer that is gone is noticed within twenty seconds
//! ([`KEEP_ALIVE_INTERVAL`] + [`KEEP_ALIVE_TIMEOUT`]). The agent then connects
//! again, for ever, with back-off; the server takes a node's newest connection
//! and drops the one before.
//!
//! The server authenticates the agent before it calls [`accept`]; the agent's
//! [`TargetDialer`] decides what the server may reach.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub mod agent;
mod cut;
mod server;

pub use agent::{LocalDialer, TargetDialer};
pub use server::{AcceptError, Registry, accept};

/// Where an agent asks for its tunnel.
pub const CONNECT_PATH: &str = "/v1-skiff/connect";
/// The protocol it asks for.
pub const PROTOCOL: &str = "skiff-tunnel";
/// How often an idle connection is probed.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer to a probe may take.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Streams at a time through one node: more than the logs, execs and forwards people keep open.
const MAX_STREAMS: u32 = 256;
/// Bytes in flight for one stream: a megabyte a second at 100 ms there and back.
const STREAM_WINDOW: u32 = 128 << 10;
/// Every stream may be stalled with a full window and the connection still moves.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes queued for sending on one stream.
const SEND_BUFFER: usize = 128 << 10;
/// Longest explanation read from a refused CONNECT.
const MAX_REASON_BYTES: usize = 1_024;

/// A two-way byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Any two-way byte stream.
pub type BoxIo = Box<dyn Io>;

/// What a stream leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// The kubelet's API in the agent itself.
    Kubelet,
    /// An address dialled from the node.
    Address(SocketAddr),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "kubelet" {
            return Ok(Self::Kubelet);
        }
        text.parse()
            .map(Self::Address)
            .map_err(|_| format!("{text:?} is neither \"kubelet\" nor an address with a port"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubelet => f.write_str("kubelet"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
