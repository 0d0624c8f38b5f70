//! Both sides together: over a pipe in memory, and over TLS on loopback.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use skiff_base::clock;
use skiff_base::lifecycle::Shutdown;
use skiff_pki::tls::{ClientAuth, HotCertificate, client_config, server_config};
use skiff_pki::{ClusterPki, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agent::{AgentConfig, State};
use crate::*;

const SOON: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3_600);

/// A kubelet that sends everything back, and an end when it gets one.
fn echo_dialer() -> Arc<LocalDialer> {
    LocalDialer::new(
        |io| {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(io);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        },
        |ip| ip == Ipv4Addr::LOCALHOST,
    )
}

/// A registry with one node on a pipe in memory.
fn connected(dialer: Arc<dyn TargetDialer>) -> (Registry, Shutdown) {
    let shutdown = Shutdown::new();
    let registry = Registry::new(shutdown.clone());
    attach(&registry, "n1", dialer);
    (registry, shutdown)
}

fn attach(registry: &Registry, node: &'static str, dialer: Arc<dyn TargetDialer>) {
    let (ours, theirs) = tokio::io::duplex(256 << 10);
    tokio::spawn(agent::serve(theirs, dialer));
    let registry = registry.clone();
    tokio::spawn(async move { registry.register(node, ours).await });
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(31) ^ seed) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_at_a_time_keep_their_bytes_apart() {
    let (registry, _shutdown) = connected(echo_dialer());
    assert!(registry.wait_connected("n1", SOON).await);
    let mut streams = JoinSet::new();
    for i in 0..100 {
        let registry = registry.clone();
        streams.spawn(async move {
            let io = registry.dial("n1", "kubelet").await.unwrap();
            let (mut read, mut write) = tokio::io::split(io);
            let sent = pattern(i, 200_000 + i);
            let copy = sent.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&copy).await.unwrap();
                // Half-close: the answer still comes.
                write.shutdown().await.unwrap();
            });
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.unwrap();
            writer.await.unwrap();
            assert!(got == sent, "stream {i}");
        });
    }
    while let Some(result) = streams.join_next().await {
        result.unwrap();
    }
}

#[tokio::test]
async fn a_stalled_stream_is_bounded_and_holds_up_no_other() {
    /// A kubelet that writes for ever and counts what it got rid of.
    struct Firehose(Arc<AtomicUsize>);
    impl TargetDialer for Firehose {
        fn dial(&self, target: Target) -> BoxFuture<'_, io::Result<BoxIo>> {
            let sent = self.0.clone();
            Box::pin(async move {
                let (ours, mut theirs) = tokio::io::duplex(8 << 10);
                tokio::spawn(async move {
                    if target != Target::Kubelet {
                        let _ = theirs.write_all(b"other").await;
                        return;
                    }
                    while theirs.write_all(&[7; 4_096]).await.is_ok() {
                        sent.fetch_add(4_096, Ordering::Relaxed);
                    }
                });
                Ok(Box::new(ours) as BoxIo)
            })
        }
    }
    let sent = Arc::new(AtomicUsize::new(0));
    let (registry, _shutdown) = connected(Arc::new(Firehose(sent.clone())));
    assert!(registry.wait_connected("n1", SOON).await);
    let mut stalled = registry.dial("n1", "kubelet").await.unwrap();
    // Until it no longer moves: the reader is asleep.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::Relaxed) || before == 0 {
        before = sent.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        before < 1 << 20,
        "{before} bytes are in flight for a reader that does not read"
    );
    let mut other = registry.dial("n1", "127.0.0.1:1").await.unwrap();
    let mut text = String::new();
    other.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "other");
    let mut some = vec![0; 3 << 20];
    stalled.read_exact(&mut some).await.unwrap();
    assert!(some.iter().all(|b| *b == 7));
}

#[tokio::test]
async fn refusals_come_back_as_errors_with_a_reason() {
    let (registry, _shutdown) = connected(echo_dialer());
    assert!(registry.wait_connected("n1", SOON).await);
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    for (node, target, kind, part) in [
        (
            "n2",
            "kubelet",
            io::ErrorKind::NotConnected,
            "node n2: not connected",
        ),
        (
            "n1",
            "10.0.0.1:80",
            io::ErrorKind::PermissionDenied,
            "pod network",
        ),
        ("n1", "kubelet:80", io::ErrorKind::InvalidInput, "neither"),
        ("n1", "", io::ErrorKind::InvalidInput, "neither"),
        ("n1", &closed, io::ErrorKind::ConnectionRefused, "refused"),
    ] {
        let error = registry.dial(node, target).await.err().unwrap();
        assert_eq!(error.kind(), kind, "{target}: {error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = registry
        .dial("n1", &listener.local_addr().unwrap().to_string())
        .await
        .unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.write_all(b"hello").await.unwrap();
    drop(peer);
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
}

#[tokio::test]
async fn the_newest_connection_of_a_node_wins() {
    let (registry, shutdown) = connected(echo_dialer());
    assert!(registry.wait_connected("n1", SOON).await);
    let mut old = registry.dial("n1", "kubelet").await.unwrap();
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let newer = tokio::spawn(agent::serve(theirs, echo_dialer()));
    let register = tokio::spawn({
        let registry = registry.clone();
        async move { registry.register("n1", ours).await }
    });
    let mut byte = [0];
    let ended = tokio::time::timeout(SOON, old.read(&mut byte)).await.unwrap();
    assert!(!matches!(ended, Ok(1)), "streams of the older connection end");
    let mut new = registry.dial("n1", "kubelet").await.unwrap();
    new.write_all(b"x").await.unwrap();
    new.read_exact(&mut byte).await.unwrap();
    assert_eq!(registry.nodes(), ["n1"]);
    shutdown.cancel();
    tokio::time::timeout(SOON, register)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let _ = tokio::time::timeout(SOON, newer).await.unwrap();
    assert!(!registry.connected("n1") && registry.nodes().is_empty());
}

/// The peer neither answers nor closes: only pings can tell.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_noticed_in_twenty_seconds() {
    let (ours, theirs) = tokio::io::duplex(256 << 10);
    let serving = tokio::spawn(agent::serve(theirs, echo_dialer()));
    // A wire in the middle that can be cut without anybody being told.
    let (far, near) = tokio::io::duplex(256 << 10);
    let cut = Shutdown::new();
    let wire = cut.clone();
    tokio::spawn(async move {
        let (mut ours, mut far) = (ours, far);
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut ours, &mut far) => {}
            () = wire.cancelled() => std::future::pending().await,
        }
    });
    let registry = Registry::new(Shutdown::new());
    let register = tokio::spawn({
        let registry = registry.clone();
        async move { registry.register("n1", near).await }
    });
    assert!(registry.wait_connected("n1", SOON).await);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(registry.connected("n1"), "an idle connection stays");
    cut.cancel();
    let begin = tokio::time::Instant::now();
    assert!(register.await.unwrap().is_err());
    assert!(serving.await.unwrap().is_err());
    assert!(begin.elapsed() <= KEEP_ALIVE_INTERVAL + KEEP_ALIVE_TIMEOUT + Duration::from_secs(2));
    assert!(!registry.connected("n1"));
}

/// A server as it is in the cluster: mutual TLS, HTTP/1.1, the node from the certificate.
struct Server {
    registry: Registry,
    shutdown: Shutdown,
}

async fn start_server(listener: TcpListener, pki: &ClusterPki) -> Server {
    let issued = pki.issue_server("server", &["127.0.0.1".into()], HOUR).unwrap();
    let certificate = HotCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
    let clients = ClientAuth::Required(pki.client_ca_pem().into());
    let tls = Arc::new(server_config(certificate, &clients, clock::system()).unwrap());
    let shutdown = Shutdown::new();
    let registry = Registry::new(shutdown.clone());
    let (inner, stop) = (registry.clone(), shutdown.clone());
    shutdown.spawn_until_cancelled("accept", async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else {
                continue;
            };
            let (tls, registry) = (tls.clone(), inner.clone());
            stop.spawn_until_cancelled("connection", async move {
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(tcp).await else {
                    return;
                };
                let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
                let identity = Identity::from_der(&leaf).unwrap();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let node = identity
                        .common_name
                        .strip_prefix("system:node:")
                        .map(str::to_owned);
                    let answer = match node {
                        Some(node) => accept(&registry, &node, request),
                        None => Ok(Response::builder()
                            .status(StatusCode::FORBIDDEN)
                            .body(())
                            .unwrap()),
                    };
                    let answer =
                        answer.unwrap_or_else(|e| Response::builder().status(e.status()).body(()).unwrap());
                    async move { Ok::<_, hyper::Error>(answer.map(|()| Full::<Bytes>::default())) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                let _ = http
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    });
    Server { registry, shutdown }
}

fn agent_config(pki: &ClusterPki, server: String, user: &str) -> (AgentConfig, watch::Receiver<State>) {
    let issued = pki
        .issue_client(&Identity::new(user, &["system:nodes"]), HOUR)
        .unwrap();
    let certificate = HotCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
    let tls = client_config(pki.server_ca_pem(), Some(certificate), clock::system()).unwrap();
    let (state, receiver) = watch::channel(State::Idle);
    (
        AgentConfig {
            server,
            server_name: None,
            tls,
            state,
        },
        receiver,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_a_big_transfer_and_a_restart_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ClusterPki::load_or_create(dir.path(), clock::system()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = start_server(listener, &pki).await;
    let (config, mut state) = agent_config(&pki, address.to_string(), "system:node:n1");
    let agent = Shutdown::new();
    let running = tokio::spawn(agent::run(config, echo_dialer(), agent.clone()));
    assert!(server.registry.wait_connected("n1", SOON).await);
    assert_eq!(
        *state.wait_for(|s| *s == State::Connected).await.unwrap(),
        State::Connected
    );

    let io = server.registry.dial("n1", "kubelet").await.unwrap();
    let (mut read, mut write) = tokio::io::split(io);
    let sent = pattern(1, 16 << 20);
    let copy = sent.clone();
    tokio::spawn(async move {
        write.write_all(&copy).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.unwrap();
    assert!(got == sent);

    assert!(server.shutdown.drain(SOON).await);
    state.wait_for(|s| matches!(s, State::Failed(_))).await.unwrap();
    // The port may be in TIME_WAIT only on the other side; tokio's listener reuses addresses.
    let server = start_server(TcpListener::bind(address).await.unwrap(), &pki).await;
    assert!(
        server.registry.wait_connected("n1", SOON).await,
        "{:?}",
        *state.borrow()
    );
    let mut stream = server.registry.dial("n1", "kubelet").await.unwrap();
    stream.write_all(b"again").await.unwrap();
    let mut five = [0; 5];
    stream.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"again");
    agent.cancel();
    running.await.unwrap();
    server.shutdown.drain(SOON).await;
}

#[tokio::test]
async fn an_agent_says_why_it_cannot_connect() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pki = ClusterPki::load_or_create(ours.path(), clock::system()).unwrap();
    let stranger = ClusterPki::load_or_create(other.path(), clock::system()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = start_server(listener, &pki).await;
    let reason = |config: AgentConfig, mut state: watch::Receiver<State>| async move {
        let stop = Shutdown::new();
        let running = tokio::spawn(agent::run(config, echo_dialer(), stop.clone()));
        let failed = tokio::time::timeout(SOON, state.wait_for(|s| matches!(s, State::Failed(_))))
            .await
            .unwrap();
        let failed = format!("{:?}", *failed.unwrap());
        stop.cancel();
        running.await.unwrap();
        failed
    };
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    for (pki, address, user, want) in [
        (&pki, closed, "system:node:n1", "refused"),
        (&pki, address.clone(), "somebody", "does not accept"),
        (
            &stranger,
            address.clone(),
            "system:node:n1",
            "another certificate authority",
        ),
        (&pki, "no port".to_owned(), "system:node:n1", "not a host name"),
    ] {
        let (config, state) = agent_config(pki, address, user);
        let reason = reason(config, state).await;
        assert!(reason.contains(want), "{reason}");
    }
    // A certificate of another cluster, shown to the right server.
    let (mut config, state) = agent_config(&stranger, address, "system:node:n1");
    let foreign = stranger
        .issue_client(&Identity::new("system:node:n1", &[]), HOUR)
        .unwrap();
    let foreign = HotCertificate::new(&foreign.cert_pem, &foreign.key_pem).unwrap();
    config.tls = client_config(pki.server_ca_pem(), Some(foreign), clock::system()).unwrap();
    let reason = reason(config, state).await;
    assert!(reason.contains("does not know the authority"), "{reason}");
    server.shutdown.drain(SOON).await;
}

#[tokio::test]
async fn only_proper_requests_become_tunnels() {
    let registry = Registry::new(Shutdown::new());
    let request = |method: &str, path: &str, upgrade: &str| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", upgrade)
    };
    for (request, want) in [
        (request("POST", CONNECT_PATH, PROTOCOL), AcceptError::Method),
        (request("GET", "/", PROTOCOL), AcceptError::Method),
        (request("GET", CONNECT_PATH, "websocket"), AcceptError::Protocol),
        (request("GET", CONNECT_PATH, PROTOCOL), AcceptError::Version),
    ] {
        assert_eq!(
            accept(&registry, "n1", request.body(()).unwrap()).unwrap_err(),
            want
        );
    }
}

#[tokio::test]
async fn a_dialer_that_never_answers_does_not_hold_the_caller() {
    struct Never(Mutex<usize>);
    impl TargetDialer for Never {
        fn dial(&self, _: Target) -> BoxFuture<'_, io::Result<BoxIo>> {
            *self.0.lock() += 1;
            Box::pin(std::future::pending())
        }
    }
    tokio::time::pause();
    let never = Arc::new(Never(Mutex::new(0)));
    let (registry, _shutdown) = connected(never.clone());
    assert!(registry.wait_connected("n1", SOON).await);
    let error = registry.dial("n1", "kubelet").await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    assert_eq!(*never.0.lock(), 1);
}
