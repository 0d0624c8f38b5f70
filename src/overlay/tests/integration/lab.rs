//! The lab: a LAN namespace with a bridge, a namespace per node, and just enough of an API for Node objects.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::client::Body;
use serde_json::{Value, json};
use skiff_base::lifecycle::Shutdown;
use skiff_client::{Client, Informer};
use skiff_netlink::{BridgeSpec, MacAddr, NetNs, Netlink, VethSpec};
use skiff_nft::{Family, NftTable};
use skiff_overlay::{AttachOptions, Backend, Config, Overlay, TableFirewall};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

/// Longer than anything here takes on a busy machine; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Lab {
    dir: tempfile::TempDir,
    pub lan: NetNs,
    pub lan_ip: IpAddr,
    pub nodes: Informer<NodeObject>,
    backend: Backend,
    shutdown: Shutdown,
}

pub struct Node {
    pub name: String,
    pub ip: IpAddr,
    pub ns: NetNs,
    pub overlay: Arc<Overlay>,
    pub state_dir: PathBuf,
    shutdown: Shutdown,
    task: Option<tokio::task::JoinHandle<()>>,
}

pub struct Pod {
    pub ip: IpAddr,
    pub ns: NetNs,
    pub path: PathBuf,
}

/// Answers PATCH of a node (and its status) by merging it into the informer's object, as the real API would.
fn fake_client(nodes: Informer<NodeObject>) -> Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let nodes = nodes.clone();
        async move {
            let name = request
                .uri()
                .path()
                .split('/')
                .nth(4)
                .unwrap_or_default()
                .to_owned();
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            let patch: Value = serde_json::from_slice(&bytes).unwrap();
            let mut object = serde_json::to_value(nodes.get(&name).unwrap().as_ref()).unwrap();
            merge(&mut object, &patch);
            nodes.apply(serde_json::from_value(object.clone()).unwrap());
            Ok::<_, Infallible>(http::Response::new(Body::from(
                serde_json::to_vec(&object).unwrap(),
            )))
        }
    });
    Client::new(service, "default")
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let object = into.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            merge(object.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl Lab {
    pub async fn new(backend: Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lan = NetNs::create(dir.path().join("lan")).unwrap();
        let netlink = Netlink::open_in(&lan).unwrap();
        let bridge = BridgeSpec {
            name: "br0".into(),
            mac: MacAddr::derived("lan"),
            mtu: 1500,
        };
        let bridge = netlink.ensure_bridge(&bridge).await.unwrap();
        let lan_ip: IpAddr = "192.0.2.254".parse().unwrap();
        netlink
            .ensure_addresses(bridge.index, &["192.0.2.254/24".parse().unwrap()])
            .await
            .unwrap();
        let objects = ["a", "b"].iter().enumerate().map(|(n, name)| {
            let cidr = format!("10.42.{n}.0/24");
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            }))
            .unwrap()
        });
        let nodes = Informer::fixed(objects);
        let lab = Self {
            dir,
            lan,
            lan_ip,
            nodes,
            backend,
            shutdown: Shutdown::new(),
        };
        for (n, name) in ["a", "b"].iter().enumerate() {
            let ns = NetNs::create(lab.file(name)).unwrap();
            let spec = VethSpec {
                name: format!("port-{name}"),
                master: Some(bridge.index),
                peer_name: "eth0".into(),
                peer_mac: None,
                peer_namespace: &ns,
                mtu: 1500,
            };
            let port = netlink.create_veth(&spec).await.unwrap();
            netlink.set_up(port.index, true).await.unwrap();
            let inside = Netlink::open_in(&ns).unwrap();
            inside
                .set_up(inside.require_link("lo").await.unwrap().index, true)
                .await
                .unwrap();
            let eth0 = inside.require_link("eth0").await.unwrap().index;
            inside
                .ensure_addresses(eth0, &[format!("192.0.2.{}/24", n + 1).parse().unwrap()])
                .await
                .unwrap();
            inside.set_up(eth0, true).await.unwrap();
        }
        lab
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn namespace(&self, name: &str) -> NetNs {
        NetNs::open(self.file(name)).unwrap()
    }

    pub async fn node(&self, name: &str) -> Node {
        self.start(name, self.nodes.clone()).await
    }

    pub async fn restart(&self, node: Node) -> Node {
        self.start(&node.name, self.nodes.clone()).await
    }

    /// With an informer that never gets its first list.
    pub async fn restart_without_server(&self, node: Node) -> Node {
        let silent = tower::service_fn(|_: http::Request<Body>| async {
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(http::Response::new(Body::empty()))
        });
        let client = Client::new(silent, "default");
        let informers = skiff_client::Informers::new(client, self.shutdown.child());
        self.start(&node.name, informers.get::<NodeObject>()).await
    }

    async fn start(&self, name: &str, nodes: Informer<NodeObject>) -> Node {
        let ns = self.namespace(name);
        let shutdown = self.shutdown.child();
        let state_dir = self.file(&format!("{name}-state"));
        let mut config = Config::new(name, &state_dir);
        config.backend = self.backend;
        config.local_addresses = vec!["10.43.0.10".parse().unwrap()];
        let (send, receive) = tokio::sync::oneshot::channel();
        let task = tokio::spawn({
            let (ns, shutdown) = (ns.clone(), shutdown.clone());
            async move {
                let body = move || async move {
                    let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
                    let firewall = Arc::new(TableFirewall::new(&table));
                    let client = fake_client(nodes.clone());
                    let overlay = Arc::new(Overlay::with_nodes(config, client, nodes, firewall));
                    send.send(overlay.clone()).ok().unwrap();
                    overlay.run(shutdown).await;
                };
                ns.run_async(body).await.unwrap();
            }
        });
        let overlay = receive.await.unwrap();
        tokio::time::timeout(PATIENCE, overlay.ready().wait_for(|ready| *ready))
            .await
            .expect("ready")
            .unwrap();
        let ip = if name == "a" { "192.0.2.1" } else { "192.0.2.2" }
            .parse()
            .unwrap();
        Node {
            name: name.into(),
            ip,
            ns,
            overlay,
            state_dir,
            shutdown,
            task: Some(task),
        }
    }

    /// Waits until every node has entries for every other.
    pub async fn peers_known(&self, nodes: &[&Node]) {
        for node in nodes {
            eventually("entries for the peers", async || {
                let entries = node.entries().await;
                nodes
                    .iter()
                    .filter(|other| other.name != node.name)
                    .all(|other| entries.contains(&other.ip.to_string()))
            })
            .await;
        }
    }

    pub fn forget(&self, name: &str) {
        let node = self.nodes.get(name).unwrap();
        self.nodes.remove(node.as_ref().clone());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
        for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            if entry.path().is_file()
                && let Err(error) = NetNs::remove(entry.path())
            {
                eprintln!("{error}");
            }
        }
    }
}

impl Node {
    /// Links (by index), routes, neighbours and forwarding entries, as text.
    pub async fn entries(&self) -> String {
        let netlink = Netlink::open_in(&self.ns).unwrap();
        let mut lines = Vec::new();
        for link in netlink
            .links()
            .await
            .unwrap()
            .iter()
            .filter(|l| l.name.starts_with("skiff"))
        {
            lines.push(format!(
                "{} {} {:?} {}",
                link.index, link.name, link.mac, link.mtu
            ));
            for neighbour in netlink.neighbours(link.index).await.unwrap() {
                lines.push(format!("{neighbour:?}"));
            }
            for entry in netlink.fdb(link.index).await.unwrap() {
                lines.push(format!("{entry:?}"));
            }
        }
        for route in netlink
            .routes()
            .await
            .unwrap()
            .iter()
            .filter(|r| r.protocol == skiff_overlay::ROUTE_PROTOCOL)
        {
            lines.push(format!(
                "{} via {:?} dev {} onlink {}",
                route.destination, route.gateway, route.link, route.onlink
            ));
        }
        lines.sort();
        lines.join("\n")
    }

    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }
}

impl Pod {
    pub async fn attach(lab: &Lab, node: &Node, id: &str) -> Self {
        let path = lab.file(&format!("pod-{}-{id}", node.name));
        let ns = NetNs::create(&path).unwrap();
        let addresses = node
            .overlay
            .attach(&path, id, &AttachOptions::default())
            .await
            .unwrap();
        Self {
            ip: addresses[0].addr(),
            ns,
            path,
        }
    }
}

/// Sends a megabyte from one namespace to another and back; gives the client's address as the server saw it.
pub async fn exchange(client: &NetNs, _from: IpAddr, server: &NetNs, to: IpAddr) -> IpAddr {
    const BYTES: usize = 1 << 20;
    let (send, receive) = tokio::sync::oneshot::channel();
    let serve = {
        let server = server.clone();
        tokio::spawn(async move {
            server
                .run_async(move || async move {
                    let listener = TcpListener::bind(SocketAddr::new(to, 0)).await.unwrap();
                    send.send(listener.local_addr().unwrap()).unwrap();
                    let (mut stream, peer) = listener.accept().await.unwrap();
                    let mut data = vec![0; BYTES];
                    stream.read_exact(&mut data).await.unwrap();
                    stream.write_all(&data).await.unwrap();
                    stream.shutdown().await.unwrap();
                    peer.ip()
                })
                .await
                .unwrap()
        })
    };
    let address = receive.await.unwrap();
    let talk = client.run_async(move || async move {
        let work = async {
            let mut stream = TcpSocket::new_v4().unwrap().connect(address).await.unwrap();
            let data = vec![7; BYTES];
            stream.write_all(&data).await.unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).await.unwrap();
            assert_eq!(back.len(), BYTES);
        };
        tokio::time::timeout(PATIENCE, work).await.expect("no answer")
    });
    talk.await
        .unwrap_or_else(|error| panic!("no connection to {address}: {error}"));
    serve.await.unwrap()
}

/// Waits until something holds that has no event to wait for.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"));
}
