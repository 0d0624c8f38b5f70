//! Everything a node runs: containerd, kubelet, pod network, service proxy, DNS.
//!
//! A server's own node and an agent start the same components; they differ
//! only in how their client and their tunnel reach the server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use skiff_client::{Client, Informers};
use skiff_cri::Runtime;
use skiff_cri::containerd::{self, Containerd, Daemon, DaemonConfig};
use skiff_dns::Dns;
use skiff_kubelet::{Dirs, Kubelet, NetworkError, PodAttach, PodNetwork};
use skiff_netlink::Netlink;
use skiff_nft::{Family, NftTable, Owner};
use skiff_overlay::{AttachOptions, Backend, Overlay, TableFirewall};
use skiff_proxy::{HostPort, HostPorts, NodeInfo, Protocol};
use skiff_tunnel::{BoxIo, LocalDialer};
use tokio::sync::OnceCell;

use crate::commands::selfimage;
use crate::options::NodeOptions;

/// Version of skiff.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Version of the Kubernetes API served, as nodes report it.
pub const KUBERNETES_VERSION: &str = concat!("v1.36.1+skiff", env!("CARGO_PKG_VERSION"));
/// The one nftables table skiff owns.
pub const NFT_TABLE: &str = "skiff";

/// How long the rules of an earlier run serve at most until new ones replace them.
const RULES_WAIT: Duration = Duration::from_secs(30);

/// How long the first report of a restarted node waits for its network.
const NETWORK_WAIT: Duration = Duration::from_secs(5);

/// What all nodes of a cluster agree on. Agents learn it from the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Addresses of pods.
    pub cluster_cidr: IpNet,
    /// Addresses of services.
    pub service_cidr: IpNet,
    /// Address of the cluster's DNS.
    pub dns: IpAddr,
    /// Domain of the cluster.
    pub domain: String,
}

/// The settings of a node with all defaults filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the Node object.
    pub name: String,
    /// All data of this machine.
    pub data: PathBuf,
    /// What does not survive a reboot.
    pub run: PathBuf,
    /// Container logs.
    pub log: PathBuf,
    /// Control group below which pods run.
    pub cgroup_root: String,
    /// Upstream name servers.
    pub resolv_conf: PathBuf,
    options: NodeOptions,
    labels: BTreeMap<String, String>,
    taints: Vec<k8s_openapi::api::core::v1::Taint>,
    backend: Backend,
    address: Option<IpAddr>,
}

impl Settings {
    /// Fills in defaults and checks what was given.
    pub fn new(options: NodeOptions) -> anyhow::Result<Self> {
        let name = match &options.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()
                .context("cannot read the host name: set --node-name")?
                .to_string_lossy()
                .to_lowercase(),
        };
        let valid = !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|part| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                    && !part.starts_with('-')
                    && !part.ends_with('-')
            });
        if !valid {
            bail!(
                "node-name {name:?} is not a DNS name (lower-case letters, digits, '-' and '.'): set --node-name"
            );
        }
        let labels = options
            .node_label
            .iter()
            .map(|text| label(text))
            .collect::<anyhow::Result<_>>()?;
        let taints = options
            .node_taint
            .iter()
            .map(|text| taint(text))
            .collect::<anyhow::Result<_>>()?;
        let backend = options.overlay_backend.as_deref().unwrap_or("vxlan");
        let backend = Backend::parse(backend)
            .with_context(|| format!("overlay-backend {backend:?} is neither vxlan nor host-gw"))?;
        let address = options
            .node_ip
            .as_deref()
            .map(|text| {
                text.parse::<IpAddr>()
                    .with_context(|| format!("node-ip {text:?} is not an IP address"))
            })
            .transpose()?;
        let path = |given: &Option<PathBuf>, default: &str| given.clone().unwrap_or_else(|| default.into());
        Ok(Self {
            name,
            data: path(&options.data_dir, "/var/lib/skiff"),
            run: path(&options.run_dir, "/run/skiff"),
            log: path(&options.log_dir, "/var/log"),
            cgroup_root: options.cgroup_root.clone().unwrap_or_else(|| "/".to_owned()),
            resolv_conf: path(&options.resolv_conf, "/etc/resolv.conf"),
            labels,
            taints,
            backend,
            address,
            options,
        })
    }

    /// Data of the node itself.
    pub fn agent_dir(&self) -> PathBuf {
        self.data.join("agent")
    }

    /// Data of the control plane.
    pub fn server_dir(&self) -> PathBuf {
        self.data.join("server")
    }

    /// How containerd is run.
    pub fn containerd(&self) -> DaemonConfig {
        DaemonConfig::new(
            &self.agent_dir(),
            &self.run,
            std::env::var_os("PATH").unwrap_or_default(),
        )
    }

    /// The address of this node towards the others, as it is now.
    pub async fn node_ip(&self) -> anyhow::Result<IpAddr> {
        let query = skiff_overlay::node_address_query(self.address, self.options.interface.clone());
        let found = Netlink::open()?
            .node_address(&query)
            .await
            .context("cannot find this node's address: set --node-ip")?;
        Ok(found.address)
    }
}

fn label(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text
        .split_once('=')
        .with_context(|| format!("node-label {text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn taint(text: &str) -> anyhow::Result<k8s_openapi::api::core::v1::Taint> {
    let (rest, effect) = text
        .rsplit_once(':')
        .with_context(|| format!("node-taint {text:?} is not KEY=VALUE:EFFECT"))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        bail!("node-taint {text:?}: the effect must be NoSchedule, PreferNoSchedule or NoExecute");
    }
    let (key, value) = rest
        .split_once('=')
        .map_or((rest, None), |(key, value)| (key, Some(value.to_owned())));
    Ok(k8s_openapi::api::core::v1::Taint {
        key: key.to_owned(),
        value,
        effect: effect.to_owned(),
        time_added: None,
    })
}

/// A running node.
pub struct Node {
    /// Serves the streams of the tunnel.
    pub dialer: Arc<LocalDialer>,
}

/// Starts everything a node runs; it ends with `shutdown`, its pods do not.
/// `client` acts as the node; `informers` may be shared with others.
pub async fn start(
    settings: &Settings,
    cluster: &Cluster,
    client: Client,
    informers: Informers,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> anyhow::Result<Node> {
    let node_ip = settings.node_ip().await?;
    let runtime = start_runtime(settings, &clock, shutdown).await?;
    import_folder(settings, &runtime).await;

    let table = NftTable::open(
        Family::Ip,
        NFT_TABLE,
        &[Owner::Proxy, Owner::HostPorts, Owner::Overlay],
    )
    .context("cannot use nftables: is the kernel built with nf_tables?")?;
    skiff_proxy::sysctl::ensure(Family::Ip)?;
    let mut overlay = skiff_overlay::Config::new(&settings.name, settings.agent_dir().join("network"));
    overlay.cluster_cidrs = vec![cluster.cluster_cidr];
    overlay.service_cidrs = vec![cluster.service_cidr];
    overlay.local_addresses = vec![cluster.dns];
    overlay.node_ip = settings.address;
    overlay.interface = settings.options.interface.clone();
    overlay.backend = settings.backend;
    let overlay = Arc::new(Overlay::new(
        overlay,
        client.clone(),
        &informers,
        Arc::new(TableFirewall::new(&table)),
    ));
    let (running, stop) = (overlay.clone(), shutdown.clone());
    shutdown.spawn("overlay", async move { running.run(stop).await });

    let proxy = skiff_proxy::Config {
        node: NodeInfo {
            name: settings.name.clone(),
            zone: None,
            cluster_cidrs: vec![cluster.cluster_cidr],
            service_cidrs: vec![cluster.service_cidr],
            local_addresses: vec![cluster.dns],
        },
        tables: vec![table.clone()],
    };
    let proxy = skiff_proxy::Proxy::new(proxy, &informers);
    shutdown.spawn("proxy", proxy.run(shutdown.clone()));
    let waiting = table.clone();
    shutdown.spawn_until_cancelled("nftables", async move {
        // The rules of an earlier run stay until all owners have brought
        // theirs; a server that is away must not hold up new host ports.
        tokio::time::sleep(RULES_WAIT).await;
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || waiting.release()).await {
            tracing::warn!(%error, "cannot write the nftables rules");
        }
    });

    let mut dns = skiff_dns::Config::new(vec![cluster.dns]);
    dns.domain = cluster.domain.clone();
    dns.networks = vec![cluster.cluster_cidr, cluster.service_cidr];
    dns.resolv_conf = settings.resolv_conf.clone();
    let dns = Dns::new(dns, &informers)?;
    let stop = shutdown.clone();
    shutdown.spawn("dns", async move { dns.run(stop).await });

    let living = runtime
        .sandboxes()
        .await?
        .into_iter()
        .map(|sandbox| sandbox.id)
        .collect();
    let ports_file = settings.agent_dir().join("hostports.json");
    let network = Arc::new(Network::new(overlay.clone(), &table, ports_file, living)?);
    let mut config = skiff_kubelet::Config::new(
        &settings.name,
        client,
        informers,
        runtime,
        network,
        overlay.ready(),
    );
    config.node_ips = vec![node_ip];
    config.dirs = Dirs {
        root: settings.agent_dir().join("kubelet"),
        pod_logs: settings.log.join("pods"),
        container_logs: settings.log.join("containers"),
        seccomp: settings.agent_dir().join("kubelet/seccomp"),
        host_resolv_conf: settings.resolv_conf.clone(),
        ..Dirs::default()
    };
    config.cgroup_root = settings.cgroup_root.clone();
    config.cluster_dns = vec![cluster.dns];
    config.cluster_domain = cluster.domain.clone();
    config.max_pods = settings.options.max_pods.unwrap_or(config.max_pods);
    config.node_labels = settings.labels.clone();
    config.node_taints = settings.taints.clone();
    config.version = KUBERNETES_VERSION.to_owned();
    config.clock = clock;
    let kubelet = Kubelet::new(config);
    let known = settings.agent_dir().join("network/network.json").exists();
    let mut network_up = overlay.ready();
    let (running, stop) = (kubelet.clone(), shutdown.clone());
    shutdown.spawn("kubelet", async move {
        if known {
            // A node that was here before must not be called not ready, and its
            // pods out of service, for the moment the network takes to be found.
            let _ = tokio::time::timeout(NETWORK_WAIT, network_up.wait_for(|up| *up)).await;
        }
        if let Err(error) = running.run(stop.clone()).await {
            tracing::error!(%error, "the kubelet ended");
            stop.cancel();
        }
    });

    let (streams, pods) = (shutdown.clone(), cluster.cluster_cidr);
    let dialer = LocalDialer::new(
        move |io: BoxIo| {
            let kubelet = kubelet.clone();
            streams.spawn_until_cancelled("kubelet connection", async move {
                kubelet.serve_connection(io).await;
            });
        },
        move |address| pods.contains(&address) || address == node_ip || address.is_loopback(),
    );
    Ok(Node { dialer })
}

/// Starts (or finds) containerd and connects to it.
async fn start_runtime(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> anyhow::Result<Arc<dyn Runtime>> {
    Daemon::ensure(settings.containerd(), shutdown).await?;
    let config = runtime_config(settings)?;
    Ok(Containerd::connect(config, clock.clone(), shutdown).await?)
}

/// How the node's containerd is used.
pub fn runtime_config(settings: &Settings) -> anyhow::Result<containerd::Config> {
    let mut config = containerd::Config::new(&settings.containerd(), &settings.run);
    config.helper_binary = std::env::current_exe().ok();
    config.registries = crate::commands::images::registries()?;
    config.local_images = vec![containerd::LocalImage {
        reference: selfimage::NAME.to_owned(),
        make: selfimage::write,
    }];
    Ok(config)
}

/// Archives in the images folder are there before the first pod is.
async fn import_folder(settings: &Settings, runtime: &Arc<dyn Runtime>) {
    let folder = settings.agent_dir().join("images");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return;
    };
    let mut archives: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    archives.retain(|path| path.is_file());
    archives.sort();
    for archive in archives {
        match runtime.import_image(&archive).await {
            Ok(images) => {
                let names: Vec<String> = images.into_iter().flat_map(|image| image.repo_tags).collect();
                tracing::info!(archive = %archive.display(), images = %names.join(", "), "imported");
            }
            Err(error) => tracing::warn!(archive = %archive.display(), %error, "not imported"),
        }
    }
}

/// Joins sandboxes to the overlay and opens their host ports.
struct Network {
    overlay: Arc<Overlay>,
    host_ports: HostPorts,
    /// What is open, by sandbox; on disk so that a restart closes nothing.
    record: Mutex<BTreeMap<String, Vec<OpenPort>>>,
    file: PathBuf,
    /// Sandboxes found at start: the addresses of all others are free again.
    living: BTreeSet<String>,
    reclaimed: OnceCell<()>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OpenPort {
    host_ip: Option<IpAddr>,
    host_port: u16,
    protocol: String,
    pod_ip: IpAddr,
    container_port: u16,
}

impl OpenPort {
    fn mapping(&self) -> Option<HostPort> {
        Some(HostPort {
            host_ip: self.host_ip.filter(|ip| !ip.is_unspecified()),
            host_port: self.host_port,
            protocol: Protocol::parse(Some(&self.protocol))?,
            pod: SocketAddr::new(self.pod_ip, self.container_port),
        })
    }
}

impl Network {
    fn new(
        overlay: Arc<Overlay>,
        table: &NftTable,
        file: PathBuf,
        living: BTreeSet<String>,
    ) -> anyhow::Result<Self> {
        let mut record: BTreeMap<String, Vec<OpenPort>> = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        };
        record.retain(|sandbox, _| living.contains(sandbox));
        let host_ports = HostPorts::new(std::slice::from_ref(table));
        let mappings = |ports: &Vec<OpenPort>| ports.iter().filter_map(OpenPort::mapping).collect();
        host_ports.restore(
            record
                .iter()
                .map(|(id, ports)| (id.clone(), mappings(ports)))
                .collect(),
        )?;
        Ok(Self {
            overlay,
            host_ports,
            record: Mutex::new(record),
            file,
            living,
            reclaimed: OnceCell::new(),
        })
    }

    fn set(&self, sandbox: &str, ports: Vec<OpenPort>) -> Result<(), NetworkError> {
        let mappings: Vec<HostPort> = ports.iter().filter_map(OpenPort::mapping).collect();
        self.host_ports
            .set(sandbox, &mappings)
            .map_err(|error| NetworkError(format!("host ports: {error}")))?;
        let mut record = self.record.lock();
        let before = if ports.is_empty() {
            record.remove(sandbox)
        } else {
            record.insert(sandbox.to_owned(), ports)
        };
        if before.as_ref() != record.get(sandbox) {
            let bytes = serde_json::to_vec(&*record).unwrap_or_default();
            let temporary = self.file.with_extension("tmp");
            std::fs::write(&temporary, bytes)
                .and_then(|()| std::fs::rename(&temporary, &self.file))
                .map_err(|error| NetworkError(format!("{}: {error}", self.file.display())))?;
        }
        Ok(())
    }
}

#[async_trait]
impl PodNetwork for Network {
    async fn attach(&self, request: &PodAttach) -> Result<Vec<IpAddr>, NetworkError> {
        let failed = |error: skiff_overlay::Error| NetworkError(error.to_string());
        self.reclaimed
            .get_or_try_init(|| self.overlay.retain(&self.living))
            .await
            .map_err(failed)?;
        let addresses = self
            .overlay
            .attach(&request.netns, &request.sandbox_id, &AttachOptions::default())
            .await
            .map_err(failed)?;
        let addresses: Vec<IpAddr> = addresses.into_iter().map(|net| net.addr()).collect();
        let open = request.host_ports.iter().filter_map(|port| {
            Some(OpenPort {
                host_ip: port.host_ip,
                host_port: port.host_port,
                protocol: port.protocol.clone(),
                pod_ip: *addresses.first()?,
                container_port: port.container_port,
            })
        });
        self.set(&request.sandbox_id, open.collect())?;
        Ok(addresses)
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let ports = self.set(sandbox_id, Vec::new());
        self.overlay
            .detach(sandbox_id)
            .await
            .map_err(|error| NetworkError(error.to_string()))?;
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let with = |change: fn(&mut NodeOptions)| {
            let mut options = NodeOptions {
                node_name: Some("a".to_owned()),
                ..NodeOptions::default()
            };
            change(&mut options);
            Settings::new(options).map_err(|error| error.to_string())
        };
        assert_eq!(
            with(|_| {}).map(|settings| settings.data),
            Ok(PathBuf::from("/var/lib/skiff"))
        );
        assert!(
            with(|o| o.node_name = Some("Bad_Name".to_owned())).is_err_and(|e| e.contains("--node-name"))
        );
        assert!(with(|o| o.node_ip = Some("x".to_owned())).is_err_and(|e| e.contains("not an IP address")));
        assert!(
            with(|o| o.overlay_backend = Some("ipip".to_owned()))
                .is_err_and(|e| e.contains("vxlan nor host-gw"))
        );
        assert!(
            with(|o| o.node_taint = vec!["a=b:Never".to_owned()]).is_err_and(|e| e.contains("NoExecute"))
        );
        let taints = with(|o| o.node_taint = vec!["a=b:NoSchedule".to_owned(), "c:NoExecute".to_owned()])
            .map(|s| s.taints);
        assert_eq!(
            taints.map(|taints| taints
                .iter()
                .map(|t| (t.key.clone(), t.value.clone()))
                .collect::<Vec<_>>()),
            Ok(vec![
                ("a".to_owned(), Some("b".to_owned())),
                ("c".to_owned(), None)
            ])
        );
    }
}
