//! What a kubelet is given: names, folders, and the hands it works with.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Taint;
use skiff_base::clock::Clock;
use skiff_client::{Client, Informers};
use skiff_cri::Runtime;
use tokio::sync::watch;

/// Everything a kubelet needs from its surroundings.
#[derive(Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// Addresses of the node, the primary one first.
    pub node_ips: Vec<IpAddr>,
    /// Client of the API.
    pub client: Client,
    /// Shared watches.
    pub informers: Informers,
    /// What runs containers.
    pub runtime: Arc<dyn Runtime>,
    /// What connects sandboxes.
    pub network: Arc<dyn PodNetwork>,
    /// True while the pod network works; a node without it is not ready.
    pub network_ready: watch::Receiver<bool>,
    /// Folders.
    pub dirs: Dirs,
    /// Group below which `kubepods` is made, for example `/` or `/node-a`.
    pub cgroup_root: String,
    /// Addresses of the cluster's DNS service.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// Most pods at a time.
    pub max_pods: u32,
    /// Most processes in a pod.
    pub pod_pids_limit: Option<i64>,
    /// Port of the HTTP API as written into the Node.
    pub port: i32,
    /// Labels set on the Node at registration, besides the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// Taints set on the Node at registration.
    pub node_taints: Vec<Taint>,
    /// Held back for the system, by resource name (`cpu`, `memory`, `ephemeral-storage`).
    pub reserved: BTreeMap<String, String>,
    /// Version reported by the node, for example `v1.36.0+skiff`.
    pub version: String,
    /// Sysctls pods may set besides the safe ones; a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// A configuration with the defaults of a cluster.
    pub fn new(
        node_name: impl Into<String>,
        client: Client,
        informers: Informers,
        runtime: Arc<dyn Runtime>,
        network: Arc<dyn PodNetwork>,
        network_ready: watch::Receiver<bool>,
    ) -> Config {
        Config {
            node_name: node_name.into(),
            node_ips: Vec::new(),
            client,
            informers,
            runtime,
            network,
            network_ready,
            dirs: Dirs::default(),
            cgroup_root: "/".into(),
            cluster_dns: vec![IpAddr::from([10, 43, 0, 10])],
            cluster_domain: "cluster.local".into(),
            max_pods: 110,
            pod_pids_limit: None,
            port: 10250,
            node_labels: BTreeMap::new(),
            node_taints: Vec::new(),
            reserved: BTreeMap::new(),
            version: "v1.36.0+skiff".into(),
            allowed_unsafe_sysctls: Vec::new(),
            clock: skiff_base::clock::system(),
        }
    }
}

/// Where a kubelet keeps things.
#[derive(Clone, Debug)]
pub struct Dirs {
    /// Pods' volumes and files: `<root>/pods/<uid>`.
    pub root: PathBuf,
    /// Container logs: `<pod_logs>/<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub pod_logs: PathBuf,
    /// Links to container logs by a flat name, for log shippers.
    pub container_logs: PathBuf,
    /// Folder that holds seccomp profiles of type Localhost.
    pub seccomp: PathBuf,
    /// The node's `resolv.conf`.
    pub host_resolv_conf: PathBuf,
    /// The node's `hosts`.
    pub host_hosts: PathBuf,
    /// Mount point of the control groups.
    pub cgroup_mount: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Dirs {
            root: "/var/lib/skiff/agent/kubelet".into(),
            pod_logs: "/var/log/pods".into(),
            container_logs: "/var/log/containers".into(),
            seccomp: "/var/lib/skiff/agent/kubelet/seccomp".into(),
            host_resolv_conf: "/etc/resolv.conf".into(),
            host_hosts: "/etc/hosts".into(),
            cgroup_mount: "/sys/fs/cgroup".into(),
        }
    }
}

impl Dirs {
    /// All folders below one, for several nodes on one machine.
    pub fn below(base: impl Into<PathBuf>) -> Dirs {
        let base = base.into();
        Dirs {
            root: base.join("kubelet"),
            pod_logs: base.join("logs/pods"),
            container_logs: base.join("logs/containers"),
            seccomp: base.join("kubelet/seccomp"),
            ..Dirs::default()
        }
    }

    /// The folder of one pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    /// The folder of a pod's logs.
    pub fn pod_log(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs.join(format!("{namespace}_{name}_{uid}"))
    }
}

/// A port of the node that leads to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Address on the node; `None` for all.
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

/// A sandbox to be connected.
#[derive(Clone, Debug)]
pub struct PodAttach {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Id of the sandbox: the key for [`PodNetwork::detach`].
    pub sandbox_id: String,
    /// The sandbox's network namespace.
    pub netns: PathBuf,
    /// Ports of the node to forward.
    pub host_ports: Vec<HostPort>,
    /// Bits a second into the pod.
    pub ingress_bandwidth: Option<u64>,
    /// Bits a second out of the pod.
    pub egress_bandwidth: Option<u64>,
}

/// Why a sandbox could not be connected or disconnected.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NetworkError(pub String);

/// What gives pods addresses.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a sandbox. Attaching again what is attached keeps everything and returns the same addresses: that is
    /// how a restarted kubelet learns them.
    async fn attach(&self, request: &PodAttach) -> Result<Vec<IpAddr>, NetworkError>;
    /// Disconnects a sandbox and frees its addresses; one that is not attached is fine.
    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError>;
}

/// Sandboxes with nothing but loopback, for nodes without a pod network.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoNetwork;

#[async_trait]
impl PodNetwork for NoNetwork {
    async fn attach(&self, _: &PodAttach) -> Result<Vec<IpAddr>, NetworkError> {
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }

    async fn detach(&self, _: &str) -> Result<(), NetworkError> {
        Ok(())
    }
}
