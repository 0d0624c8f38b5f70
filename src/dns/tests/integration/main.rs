//! The name server over real sockets, in a network namespace of its own with no way out. Needs root.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use skiff_base::lifecycle::Shutdown;
use skiff_client::Informer;
use skiff_dns::{Config, Dns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 43, 0, 10)), 53);
const PATIENCE: Duration = Duration::from_secs(20);

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Runs a test on a thread in a new namespace that has nothing but a loopback device. The namespace ends with it.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("root is needed for network namespaces");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

struct Running {
    services: Informer<Service>,
    shutdown: Shutdown,
    dns: Arc<Dns>,
    _resolv: tempfile::NamedTempFile,
}

/// A small cluster and a name server whose upstreams are the ones given.
fn start(resolv_conf: &str) -> Running {
    let resolv = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolv.path(), resolv_conf).unwrap();
    let service = |name: &str, spec| {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}))
            .unwrap()
    };
    let services: Informer<Service> = Informer::fixed([
        service("api", json!({"clusterIP": "10.43.7.7", "ports": [{"port": 80}]})),
        service("web", json!({"clusterIP": "None"})),
        service(
            "ext",
            json!({"type": "ExternalName", "externalName": "www.example.com"}),
        ),
        service(
            "loop",
            json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"}),
        ),
    ]);
    let endpoints: Vec<_> = (0..200)
        .map(|n| json!({"addresses": [format!("10.42.1.{n}")]}))
        .collect();
    let slices: Informer<EndpointSlice> = Informer::fixed([serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "endpoints": endpoints,
    }))
    .unwrap()]);
    let namespaces: Informer<Namespace> =
        Informer::fixed([serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap()]);
    let mut config = Config::new(vec![SERVER.ip()]);
    config.resolv_conf = resolv.path().to_owned();
    let dns = Arc::new(Dns::with_informers(config, services.clone(), slices, namespaces).unwrap());
    let shutdown = Shutdown::new();
    tokio::spawn({
        let (dns, shutdown) = (dns.clone(), shutdown.clone());
        async move { dns.run(shutdown).await }
    });
    Running {
        services,
        shutdown,
        dns,
        _resolv: resolv,
    }
}

async fn ready(running: &Running) {
    tokio::time::timeout(PATIENCE, running.dns.ready().wait_for(|ready| *ready))
        .await
        .unwrap()
        .unwrap();
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

async fn udp(message: Message) -> (Message, usize) {
    let work = async {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        socket.connect(SERVER).await.unwrap();
        socket.send(&message.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let size = socket.recv(&mut buffer).await.unwrap();
        (Message::from_vec(&buffer[..size]).unwrap(), size)
    };
    tokio::time::timeout(PATIENCE, work).await.expect("no answer")
}

async fn tcp(message: Message) -> Message {
    let work = async {
        let mut stream = TcpStream::connect(SERVER).await.unwrap();
        let bytes = message.to_vec().unwrap();
        stream
            .write_u16(u16::try_from(bytes.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let size = stream.read_u16().await.unwrap();
        let mut buffer = vec![0; usize::from(size)];
        stream.read_exact(&mut buffer).await.unwrap();
        Message::from_vec(&buffer).unwrap()
    };
    tokio::time::timeout(PATIENCE, work).await.expect("no answer")
}

fn addresses(message: &Message) -> Vec<String> {
    let address = |record: &Record| match &record.data {
        RData::A(a) => Some(a.0.to_string()),
        _ => None,
    };
    message.answers.iter().filter_map(address).collect()
}

#[test]
fn it_answers_over_udp_and_tcp_and_follows_changes() {
    in_namespace(|| async {
        // The server starts before its address exists.
        let running = start("");
        ready(&running).await;
        ip("addr add 10.43.0.10/32 dev lo");
        let ask = || question("API.shop.svc.cluster.local.", RecordType::A, None);
        let (answer, _) = udp(ask()).await;
        assert_eq!(addresses(&answer), ["10.43.7.7"]);
        assert_eq!(answer.metadata.id, 4711);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert!(
            answer.queries[0]
                .name()
                .eq_case(&Name::from_ascii("API.shop.svc.cluster.local.").unwrap())
        );
        assert_eq!(addresses(&tcp(ask()).await), ["10.43.7.7"]);

        let (absent, _) = udp(question("absent.shop.svc.cluster.local.", RecordType::A, None)).await;
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(absent.authorities[0].record_type(), RecordType::SOA);
        let (no_data, _) = udp(question("api.shop.svc.cluster.local.", RecordType::AAAA, None)).await;
        assert_eq!(
            (no_data.metadata.response_code, no_data.authorities.len()),
            (ResponseCode::NoError, 1)
        );
        let (looped, _) = udp(question("loop.shop.svc.cluster.local.", RecordType::A, None)).await;
        assert_eq!(looped.metadata.response_code, ResponseCode::ServFail);

        let new =
            json!({"metadata": {"namespace": "shop", "name": "new"}, "spec": {"clusterIP": "10.43.7.8"}});
        running.services.apply(serde_json::from_value(new).unwrap());
        let appears = async {
            while addresses(
                &udp(question("new.shop.svc.cluster.local.", RecordType::A, None))
                    .await
                    .0,
            )
            .is_empty()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, appears)
            .await
            .expect("a new Service gets a name");
        running.shutdown.cancel();
    });
}

#[test]
fn large_answers_are_truncated_to_what_the_client_takes() {
    in_namespace(|| async {
        ip("addr add 10.43.0.10/32 dev lo");
        let running = start("");
        ready(&running).await;
        let name = "web.shop.svc.cluster.local.";
        for (edns, limit) in [(None, 512), (Some(1000), 1000), (Some(4096), 1232)] {
            let (answer, size) = udp(question(name, RecordType::A, edns)).await;
            assert!(answer.metadata.truncation, "{edns:?}");
            assert!(size <= limit, "{size} bytes for a client that takes {limit}");
            assert_eq!(answer.edns.is_some(), edns.is_some());
        }
        let answer = tcp(question(name, RecordType::A, None)).await;
        assert!(!answer.metadata.truncation);
        assert_eq!(addresses(&answer).len(), 200);
        // Clients take the first address: it is not always the same.
        let first: std::collections::BTreeSet<_> = [
            udp(question(name, RecordType::A, None)).await.0,
            udp(question(name, RecordType::A, None)).await.0,
        ]
        .iter()
        .map(|answer| addresses(answer)[0].clone())
        .collect();
        assert_eq!(first.len(), 2);
    });
}

/// A name server that says the same address for every name, and NXDOMAIN for `absent.*`.
async fn upstream(address: &str) {
    let socket = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (size, from) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..size]).unwrap();
            let query = asked.queries[0].clone();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.metadata.recursion_available = true;
            if query.name().to_ascii().starts_with("absent") {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else {
                let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 99)));
                answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
            }
            answer.add_query(query);
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
}

#[test]
fn other_names_are_forwarded_and_aliases_followed() {
    in_namespace(|| async {
        ip("addr add 10.43.0.10/32 dev lo");
        upstream("127.0.0.53:53").await;
        // Our own address in the list would be a loop.
        let running = start("nameserver 10.43.0.10\nnameserver 127.0.0.53\n");
        ready(&running).await;
        let (answer, _) = udp(question("www.debian.org.", RecordType::A, Some(1232))).await;
        assert_eq!(addresses(&answer), ["192.0.2.99"]);
        assert!(!answer.metadata.authoritative);
        let (answer, _) = udp(question("ext.shop.svc.cluster.local.", RecordType::A, None)).await;
        assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);
        assert_eq!(addresses(&answer), ["192.0.2.99"]);
        let (answer, _) = udp(question("absent.example.com.", RecordType::A, None)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    });
}

#[test]
fn without_an_upstream_the_answer_is_a_quick_failure_and_the_cluster_goes_on() {
    in_namespace(|| async {
        ip("addr add 10.43.0.10/32 dev lo");
        for resolv_conf in ["", "nameserver 203.0.113.1\n"] {
            let running = start(resolv_conf);
            ready(&running).await;
            let before = Instant::now();
            let (answer, _) = udp(question("www.debian.org.", RecordType::A, None)).await;
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
            assert!(
                before.elapsed() < Duration::from_secs(1),
                "{:?} for {resolv_conf:?}",
                before.elapsed()
            );
            assert_eq!(
                addresses(
                    &udp(question("api.shop.svc.cluster.local.", RecordType::A, None))
                        .await
                        .0
                )
                .len(),
                1
            );
            running.shutdown.cancel();
            tokio::time::timeout(PATIENCE, running.dns.ready().wait_for(|ready| !*ready))
                .await
                .unwrap()
                .unwrap();
        }
    });
}

#[test]
fn a_silent_upstream_costs_only_the_first_questions() {
    in_namespace(|| async {
        ip("addr add 10.43.0.10/32 dev lo");
        let silent = UdpSocket::bind("127.0.0.53:53").await.unwrap();
        let running = start("nameserver 127.0.0.53\n");
        ready(&running).await;
        let ask = |n: u32| async move {
            udp(question(&format!("n{n}.example.com."), RecordType::A, None))
                .await
                .0
        };
        let (a, b, c) = tokio::join!(ask(1), ask(2), ask(3));
        for answer in [a, b, c] {
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        }
        let before = Instant::now();
        assert_eq!(ask(4).await.metadata.response_code, ResponseCode::ServFail);
        assert!(
            before.elapsed() < Duration::from_millis(500),
            "{:?}",
            before.elapsed()
        );
        drop(silent);
    });
}
