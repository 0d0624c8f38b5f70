//! The Kubernetes HTTP API: authentication, authorization, admission, handlers, watch, discovery.
//!
//! One implementation per verb over the table of kinds. A request travels
//!
//! ```text
//! serve → ApiServer::handle → authenticate → impersonate → authorize
//!   → reading (get, list) | watching | writing (create, update, patch) | deleting | subresources
//! ```
//!
//! Objects are stored as the very JSON bytes that go on the wire, so reading
//! copies bytes and does not parse. A write is parsed once, admitted,
//! completed, checked and committed in one transaction together with
//! everything that must be true of it (its namespace exists and is not being
//! deleted, its addresses and ports are free).
//!
//! Components in the same process call [`ApiServer::handle`] with a
//! [`UserInfo`] in the request's extensions and need no TLS and no credentials.

// A refusal is a whole `Status`; it is made once a request and moved a few times.
#![allow(clippy::result_large_err)]

mod admission;
mod auth;
mod authz;
mod bootstrap;
mod codec;
mod definitions;
mod deleting;
mod discovery;
mod events;
mod follow;
mod health;
mod identity;
mod managed;
mod negotiate;
mod patching;
mod reading;
mod request;
mod respond;
mod scan;
mod selecting;
mod serve;
mod server;
mod services;
mod subresources;
mod watching;
mod writing;

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

pub use identity::{MASTERS, NODES, PeerCertificate, UserInfo};
pub use request::MAX_BODY_BYTES;
pub use serve::{Handler, RemoteAddr, serve};
pub use server::{ApiServer, Config, StartError};

/// Any error that can cross a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of requests and responses.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// A byte stream to somewhere.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Io for T {}
/// A byte stream to somewhere, boxed.
pub type BoxIo = Box<dyn Io>;

/// Reaches into nodes.
pub trait NodeDialer: Send + Sync + 'static {
    /// Opens a byte stream to `target` as seen from `node`: `kubelet` for its
    /// HTTP API, or an address and port.
    fn dial(&self, node: &str, target: &str) -> BoxFuture<'static, io::Result<BoxIo>>;
}

/// A dialer for servers that have no nodes: every dial fails.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoNodes;

impl NodeDialer for NoNodes {
    fn dial(&self, node: &str, _target: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let text = format!("node {node} is not connected");
        Box::pin(async move { Err(io::Error::new(io::ErrorKind::NotConnected, text)) })
    }
}

/// A body of known bytes.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    use http_body_util::BodyExt;
    http_body_util::Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}
