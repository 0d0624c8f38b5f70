//! The agent's side: keep a connection to a server, and serve its streams.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use skiff_base::backoff::Backoff;
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::server::chain;
use crate::{
    BoxIo, CONNECT_PATH, CONNECTION_WINDOW, Io, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_TIMEOUT, MAX_STREAMS,
    PROTOCOL, SEND_BUFFER, STREAM_WINDOW, Target,
};

/// How long a target on the node may take to answer.
const TARGET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting to the server may take, handshakes included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that lasted this long was a good one: the next failure begins with short waits again.
const GOOD_CONNECTION: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// Long enough for a thousand agents not to keep a server from starting, short enough for people.
const LAST_RETRY: Duration = Duration::from_secs(15);
/// Bytes between the tunnel and the kubelet in the same process.
const KUBELET_BUFFER: usize = 64 << 10;

/// Decides which targets the server may reach, and reaches them.
pub trait TargetDialer: Send + Sync + 'static {
    /// Opens a stream. `PermissionDenied` says that the target is never allowed.
    fn dial(&self, target: Target) -> BoxFuture<'_, io::Result<BoxIo>>;
}

/// What [`LocalDialer`] hands the kubelet's streams to.
pub type KubeletHook = Box<dyn Fn(BoxIo) + Send + Sync>;
/// Whether an address may be dialled.
pub type AllowAddress = Box<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// The dialer of a node: its kubelet in this process, and the addresses it is told to allow.
pub struct LocalDialer {
    kubelet: KubeletHook,
    allow: AllowAddress,
}

impl LocalDialer {
    /// `kubelet` takes the other end of every stream to the kubelet (and must
    /// not block); `allow` says which addresses belong to pods.
    pub fn new(
        kubelet: impl Fn(BoxIo) + Send + Sync + 'static,
        allow: impl Fn(IpAddr) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            kubelet: Box::new(kubelet),
            allow: Box::new(allow),
        })
    }
}

impl std::fmt::Debug for LocalDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalDialer")
    }
}

impl TargetDialer for LocalDialer {
    fn dial(&self, target: Target) -> BoxFuture<'_, io::Result<BoxIo>> {
        Box::pin(async move {
            match target {
                Target::Kubelet => {
                    let (ours, theirs) = tokio::io::duplex(KUBELET_BUFFER);
                    (self.kubelet)(Box::new(theirs));
                    Ok(Box::new(ours) as BoxIo)
                }
                Target::Address(address) if (self.allow)(address.ip()) => {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(Box::new(stream) as BoxIo)
                }
                Target::Address(_) => Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "the address is not in this node's pod network",
                )),
            }
        })
    }
}

/// Serves the streams of one connection until it ends.
pub async fn serve(io: impl Io, dialer: Arc<dyn TargetDialer>) -> io::Result<()> {
    let service = service_fn(move |request| {
        let dialer = dialer.clone();
        async move { Ok::<_, Infallible>(connect(request, &*dialer).await) }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .serve_connection(TokioIo::new(io), service)
        .await
        .map_err(io::Error::other)
}

/// One CONNECT.
async fn connect(request: Request<Incoming>, dialer: &dyn TargetDialer) -> Response<Full<Bytes>> {
    if request.method() != Method::CONNECT {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT is served here");
    }
    let authority = request.uri().authority().map_or("", http::uri::Authority::as_str);
    let target: Target = match authority.parse() {
        Ok(target) => target,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    match timeout(TARGET_TIMEOUT, dialer.dial(target)).await {
        Ok(Ok(io)) => {
            let upgrade = hyper::upgrade::on(request);
            tokio::spawn(splice(upgrade, io, target));
            Response::new(Full::default())
        }
        Ok(Err(error)) => {
            let status = match error.kind() {
                io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
                io::ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
                io::ErrorKind::WouldBlock => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_GATEWAY,
            };
            refuse(status, error.to_string())
        }
        Err(_) => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            format!("no answer within {TARGET_TIMEOUT:?}"),
        ),
    }
}

fn refuse(status: StatusCode, reason: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(reason.into()));
    *response.status_mut() = status;
    response
}

/// Carries bytes both ways; the end of one direction is passed on and the other goes on.
async fn splice(upgrade: hyper::upgrade::OnUpgrade, mut io: BoxIo, target: Target) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%target, error = %chain(&error), "the stream did not open"),
    };
    if let Err(error) = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut io).await {
        tracing::debug!(%target, %error, "stream ended");
    }
}

/// How an agent reaches its server.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// `host:port`.
    pub server: String,
    /// The name the server's certificate is checked for; the host of `server` when none.
    pub server_name: Option<String>,
    /// Trust and the agent's certificate (exchange it through its resolver). ALPN is set here.
    pub tls: rustls::ClientConfig,
    /// Where the state of the connection is told.
    pub state: watch::Sender<State>,
}

/// The state of an agent's connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// Not tried yet.
    #[default]
    Idle,
    /// Up.
    Connected,
    /// Not up, and why; being tried again.
    Failed(String),
}

/// Keeps a connection to the server until shutdown.
pub async fn run(config: AgentConfig, dialer: Arc<dyn TargetDialer>, shutdown: Shutdown) {
    let reconnects = metrics::global().counter("skiff_tunnel_connects_total", "Connections made to servers.");
    let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
    let mut last_reason = String::new();
    loop {
        let begin = Instant::now();
        let outcome = tokio::select! {
            outcome = attempt(&config, dialer.clone(), &reconnects) => outcome,
            () = shutdown.cancelled() => return,
        };
        if begin.elapsed() >= GOOD_CONNECTION {
            backoff.reset();
        }
        let reason = outcome
            .err()
            .unwrap_or_else(|| "the server closed the connection".into());
        let wait = backoff.next();
        // Once for each new reason, not for each try.
        if reason != last_reason {
            tracing::warn!(
                server = config.server,
                reason,
                "no connection to the server, trying again"
            );
            last_reason.clone_from(&reason);
        }
        config.state.send_replace(State::Failed(reason));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// One connection from beginning to end.
async fn attempt(
    config: &AgentConfig,
    dialer: Arc<dyn TargetDialer>,
    connects: &metrics::Counter,
) -> Result<(), String> {
    let io = match timeout(CONNECT_TIMEOUT, open(config)).await {
        Ok(io) => io?,
        Err(_) => return Err(format!("{}: no answer within {CONNECT_TIMEOUT:?}", config.server)),
    };
    connects.inc();
    tracing::info!(server = config.server, "connected to the server");
    config.state.send_replace(State::Connected);
    serve(io, dialer)
        .await
        .map_err(|error| format!("{}: {}", config.server, chain(&error)))
}

async fn open(config: &AgentConfig) -> Result<BoxIo, String> {
    let server = &config.server;
    let host = server.rsplit_once(':').map_or(server.as_str(), |(host, _)| host);
    let name = config
        .server_name
        .as_deref()
        .unwrap_or(host)
        .trim_matches(['[', ']'])
        .to_owned();
    let name = ServerName::try_from(name).map_err(|_| format!("{server}: not a host name or address"))?;
    let mut tls = config.tls.clone();
    // The upgrade exists in HTTP/1.1 only.
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tcp = dial_server(server).await?;
    tcp.set_nodelay(true)
        .map_err(|error| format!("{server}: {error}"))?;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .map_err(|error| {
            let reason = skiff_pki::explain(&error).unwrap_or_else(|| chain(&error));
            format!("{server}: {reason}")
        })?;
    upgrade(stream, server).await
}

async fn dial_server(server: &str) -> Result<TcpStream, String> {
    // Literal addresses need no resolver.
    let connected = match server.parse::<SocketAddr>() {
        Ok(address) => TcpStream::connect(address).await,
        Err(_) => TcpStream::connect(server).await,
    };
    connected.map_err(|error| format!("{server}: {error}"))
}

/// Asks for the tunnel on a fresh connection.
async fn upgrade(io: impl Io, server: &str) -> Result<BoxIo, String> {
    let fail = |error: hyper::Error| {
        format!(
            "{server}: {}",
            skiff_pki::explain(&error).unwrap_or_else(|| chain(&error))
        )
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(fail)?;
    let task = tokio::spawn(connection.with_upgrades());
    let request = Request::get(CONNECT_PATH)
        .header(header::HOST, server)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, PROTOCOL)
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("{server}: {error}"))?;
    let result = async {
        let response = sender.send_request(request).await.map_err(fail)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => hyper::upgrade::on(response).await.map_err(fail),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(format!(
                "{server}: the server does not accept this node's certificate"
            )),
            status => Err(format!("{server}: the server answered {status}")),
        }
    }
    .await;
    if result.is_err() {
        task.abort();
    }
    result.map(|upgraded| Box::new(TokioIo::new(upgraded)) as BoxIo)
}
