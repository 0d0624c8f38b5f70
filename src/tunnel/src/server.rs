//! The server's side: which nodes are connected, and streams to them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics::{self, Counter, Gauge};
use tokio::sync::watch;

use crate::cut::Cuttable;
use crate::{
    BoxIo, CONNECT_PATH, CONNECTION_WINDOW, Io, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, MAX_REASON_BYTES,
    PROTOCOL, SEND_BUFFER, STREAM_WINDOW, Target,
};

/// How long a stream may take to open: the agent's own dial limit and a way back.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);

struct Node {
    id: u64,
    sender: SendRequest<Empty<Bytes>>,
    /// Ends this connection alone.
    stop: Shutdown,
}

struct Inner {
    nodes: Mutex<(u64, HashMap<String, Node>)>,
    /// Moves whenever a node comes or goes.
    changed: watch::Sender<u64>,
    shutdown: Shutdown,
    connected: Gauge,
    dials: Counter,
    dial_failures: Counter,
}

/// The nodes that are connected to this server. Clones share it.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("nodes", &self.nodes()).finish()
    }
}

impl Registry {
    /// No nodes yet. All connections end with `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        let m = metrics::global();
        Self(Arc::new(Inner {
            nodes: Mutex::default(),
            changed: watch::channel(0).0,
            shutdown,
            connected: m.gauge("skiff_tunnel_nodes", "Nodes connected to this server."),
            dials: m.counter("skiff_tunnel_dials_total", "Streams opened to nodes."),
            dial_failures: m.counter(
                "skiff_tunnel_dial_failures_total",
                "Streams to nodes that did not open.",
            ),
        }))
    }

    /// Serves a node's connection until it ends or a newer one of the same
    /// node takes its place.
    pub async fn register(&self, node: &str, io: impl Io) -> io::Result<()> {
        // Everything of this connection ends with it: replaced, shut down or done.
        let stop = self.0.shutdown.child();
        let _stop = stop.token().clone().drop_guard();
        let io = Cuttable::new(io, stop.token().clone());
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .handshake(TokioIo::new(io))
            .await
            .map_err(io::Error::other)?;
        let id = self.insert(node, sender, stop.clone());
        // Also when this future is dropped half-way.
        let _remove = OnDrop(|| self.remove(node, id));
        tracing::info!(node, "node connected");
        let result = tokio::select! {
            result = connection => result.map_err(io::Error::other),
            () = stop.cancelled() => Ok(()),
        };
        match &result {
            Ok(()) => tracing::info!(node, "node disconnected"),
            Err(error) => tracing::warn!(node, error = %chain(error), "node connection lost"),
        }
        result
    }

    fn insert(&self, node: &str, sender: SendRequest<Empty<Bytes>>, stop: Shutdown) -> u64 {
        let mut nodes = self.0.nodes.lock();
        nodes.0 += 1;
        let id = nodes.0;
        if let Some(older) = nodes.1.insert(node.to_owned(), Node { id, sender, stop }) {
            tracing::info!(node, "a newer connection takes the place of the node's older one");
            older.stop.cancel();
        }
        self.note(nodes.1.len());
        id
    }

    fn remove(&self, node: &str, id: u64) {
        let mut nodes = self.0.nodes.lock();
        if nodes.1.get(node).is_some_and(|current| current.id == id) {
            nodes.1.remove(node);
        }
        self.note(nodes.1.len());
    }

    fn note(&self, count: usize) {
        self.0.connected.set(count as f64);
        self.0.changed.send_modify(|version| *version += 1);
    }

    /// Whether a node is connected now.
    pub fn connected(&self, node: &str) -> bool {
        self.0
            .nodes
            .lock()
            .1
            .get(node)
            .is_some_and(|node| !node.sender.is_closed())
    }

    /// The names of the connected nodes, sorted.
    pub fn nodes(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.nodes.lock().1.keys().cloned().collect();
        names.sort();
        names
    }

    /// Waits for a node to connect; false when it does not in time.
    pub async fn wait_connected(&self, node: &str, timeout: Duration) -> bool {
        let mut changed = self.0.changed.subscribe();
        let wait = async {
            while !self.connected(node) {
                if changed.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(timeout, wait).await.unwrap_or(false)
    }

    /// Opens a stream to `target` (`kubelet` or `address:port`) through a node.
    pub async fn dial(&self, node: &str, target: &str) -> io::Result<BoxIo> {
        self.0.dials.inc();
        let dialled = match tokio::time::timeout(DIAL_TIMEOUT, self.open(node, target)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("node {node}: no answer to the request for {target} within {DIAL_TIMEOUT:?}"),
            )),
        };
        dialled.inspect_err(|_| self.0.dial_failures.inc())
    }

    async fn open(&self, node: &str, target: &str) -> io::Result<BoxIo> {
        let fail = |kind, what: String| io::Error::new(kind, format!("node {node}: {what}"));
        let target: Target = target
            .parse()
            .map_err(|error| fail(io::ErrorKind::InvalidInput, error))?;
        let sender = self.0.nodes.lock().1.get(node).map(|node| node.sender.clone());
        let Some(mut sender) = sender else {
            return Err(fail(
                io::ErrorKind::NotConnected,
                "not connected to this server".into(),
            ));
        };
        let lost = |error: hyper::Error| {
            fail(
                io::ErrorKind::ConnectionReset,
                format!("the connection to it was lost: {}", chain(&error)),
            )
        };
        sender.ready().await.map_err(lost)?;
        let uri = Uri::builder()
            .authority(target.to_string())
            .build()
            .map_err(io::Error::other)?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let response = sender.send_request(request).await.map_err(lost)?;
        let status = response.status();
        if status.is_success() {
            let upgraded = hyper::upgrade::on(response).await.map_err(lost)?;
            return Ok(Box::new(TokioIo::new(upgraded)));
        }
        let body = Limited::new(response.into_body(), MAX_REASON_BYTES)
            .collect()
            .await;
        let reason = body
            .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
            .unwrap_or_default();
        Err(fail(kind_of(status), format!("{target}: {reason}")))
    }
}

/// The way back from the agent's answer to an error.
fn kind_of(status: StatusCode) -> io::ErrorKind {
    match status {
        StatusCode::FORBIDDEN => io::ErrorKind::PermissionDenied,
        StatusCode::BAD_GATEWAY => io::ErrorKind::ConnectionRefused,
        StatusCode::GATEWAY_TIMEOUT => io::ErrorKind::TimedOut,
        StatusCode::SERVICE_UNAVAILABLE => io::ErrorKind::WouldBlock,
        _ => io::ErrorKind::Other,
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Why a request for a tunnel is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AcceptError {
    /// Another method or path.
    #[error("{CONNECT_PATH} is asked for with GET")]
    Method,
    /// No or another protocol in the `Upgrade` header: 426.
    #[error("{CONNECT_PATH} wants the headers Connection: Upgrade and Upgrade: {PROTOCOL}")]
    Protocol,
    /// The request came by something that cannot be upgraded (HTTP/2): 426.
    #[error("{CONNECT_PATH} works over HTTP/1.1 only")]
    Version,
}

impl AcceptError {
    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Protocol | Self::Version => StatusCode::UPGRADE_REQUIRED,
        }
    }
}

fn says(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// Answers an agent's request for its tunnel and serves it in the background.
/// The caller has made sure that the request comes from `node`, and gives the
/// answer a body of its own kind.
pub fn accept<B>(
    registry: &Registry,
    node: &str,
    mut request: Request<B>,
) -> Result<Response<()>, AcceptError> {
    if request.method() != Method::GET || request.uri().path() != CONNECT_PATH {
        return Err(AcceptError::Method);
    }
    let headers = request.headers();
    if !says(headers, header::UPGRADE, PROTOCOL) || !says(headers, header::CONNECTION, "upgrade") {
        return Err(AcceptError::Protocol);
    }
    if request.extensions().get::<hyper::upgrade::OnUpgrade>().is_none() {
        return Err(AcceptError::Version);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (inner, node) = (registry.clone(), node.to_owned());
    registry.0.shutdown.spawn("tunnel", async move {
        match upgrade.await {
            // The reason was logged.
            Ok(upgraded) => drop(inner.register(&node, TokioIo::new(upgraded)).await),
            Err(error) => {
                tracing::warn!(node, error = %chain(&error), "the node's connection did not become a tunnel")
            }
        }
    });
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(header::UPGRADE, header::HeaderValue::from_static(PROTOCOL));
    Ok(response)
}
