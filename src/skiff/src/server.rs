//! `skiff server`: store, API, controllers, scheduler, and a node of its own.
//!
//! Started in order, each step only when the one before is done: checks, port,
//! store, keys, API, what the API needs to be useful, the node. Stopped in the
//! opposite order; running pods stay.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};
use skiff_apiserver::{ApiServer, NodeDialer, UserInfo};
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use skiff_client::{Client, Informers, Recorder};
use skiff_pki::tls::{self, ClientAuth, HotCertificate};
use skiff_pki::{CertificateInfo, ClusterPki, Credentials, Identity, Renewal};
use skiff_store::Store;
use skiff_tunnel::Registry;

use crate::commands::status::Record;
use crate::node::{Cluster, Settings};
use crate::options::{NodeOptions, ServerOptions};
use crate::supervisor::Supervisor;
use crate::{addons, inprocess, node, notify, preflight};

/// Lifetime of certificates that skiff renews by itself.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Where the administrator's kubeconfig goes.
pub const KUBECONFIG: &str = "/etc/skiff/skiff.yaml";
/// Shortest pause between two looks at a certificate's age.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// How long tasks get to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Bytes in flight between the server and its own node's kubelet.
const LOCAL_TUNNEL_BYTES: usize = 256 * 1024;

/// The settings of a server with all defaults filled in.
struct Plan {
    listen: SocketAddr,
    advertise: SocketAddr,
    cluster: Cluster,
    service_cidr: Ipv4Net,
    node_ports: std::ops::RangeInclusive<u16>,
    kubeconfig: PathBuf,
    names: Vec<String>,
}

/// Runs until told to stop.
pub async fn run(node: NodeOptions, options: ServerOptions) -> anyhow::Result<()> {
    let clock = skiff_base::clock::system();
    let settings = Settings::new(node)?;
    if options.disable_agent {
        preflight::writable(&settings.data)?;
    } else {
        preflight::node(&settings.data)?;
    }
    let plan = plan(&options, &settings).await?;
    let listener = preflight::listen(plan.listen).await?;
    Record {
        role: "server".to_owned(),
        version: node::VERSION.to_owned(),
        pid: std::process::id(),
        node: (!options.disable_agent).then(|| settings.name.clone()),
        server: format!("https://{}", plan.advertise),
        kubeconfig: Some(plan.kubeconfig.clone()),
        agent_dir: settings.agent_dir(),
    }
    .write(&settings.run)?;
    let shutdown = Shutdown::new();
    let outcome = start(&settings, &options, plan, listener, clock, &shutdown).await;
    let store = match outcome {
        Ok(store) => store,
        Err(error) => {
            shutdown.drain(DRAIN).await;
            return Err(error);
        }
    };
    wait_for_stop(&shutdown).await;
    notify::notify("STOPPING=1");
    if !shutdown.drain(DRAIN).await {
        tracing::warn!("some tasks did not end in time");
    }
    store.close().await;
    Ok(())
}

/// Resolves on SIGTERM or SIGINT, or when a component gave up.
pub async fn wait_for_stop(shutdown: &Shutdown) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return shutdown.cancelled().await;
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("stopping: SIGTERM"),
        _ = interrupt.recv() => tracing::info!("stopping: SIGINT"),
        () = shutdown.cancelled() => {}
    }
}

async fn plan(options: &ServerOptions, settings: &Settings) -> anyhow::Result<Plan> {
    let parse_ip = |key: &str, text: &str| {
        text.parse::<IpAddr>()
            .with_context(|| format!("{key} {text:?} is not an IP address"))
    };
    let parse_net = |key: &str, text: &str| {
        text.parse::<Ipv4Net>()
            .with_context(|| format!("{key} {text:?} is not an IPv4 network such as 10.42.0.0/16"))
    };
    let bind = parse_ip(
        "bind-address",
        options.bind_address.as_deref().unwrap_or("0.0.0.0"),
    )?;
    let port = options.https_listen_port.unwrap_or(6443);
    let advertise = match &options.advertise_address {
        Some(text) => parse_ip("advertise-address", text)?,
        None => settings.node_ip().await?,
    };
    let cluster_cidr = parse_net(
        "cluster-cidr",
        options.cluster_cidr.as_deref().unwrap_or("10.42.0.0/16"),
    )?;
    let service_cidr = parse_net(
        "service-cidr",
        options.service_cidr.as_deref().unwrap_or("10.43.0.0/16"),
    )?;
    if cluster_cidr.contains(&service_cidr) || service_cidr.contains(&cluster_cidr) {
        anyhow::bail!(
            "cluster-cidr {cluster_cidr} and service-cidr {service_cidr} overlap: choose separate networks"
        );
    }
    let nth = |n: u32| IpAddr::V4(Ipv4Addr::from(u32::from(service_cidr.network()) + n));
    let dns = match &options.cluster_dns {
        Some(text) => parse_ip("cluster-dns", text)?,
        None => nth(10),
    };
    let domain = options
        .cluster_domain
        .clone()
        .unwrap_or_else(|| "cluster.local".to_owned());
    let range = options
        .service_node_port_range
        .as_deref()
        .unwrap_or("30000-32767");
    let node_ports = range
        .split_once('-')
        .and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?))
        .filter(|range: &std::ops::RangeInclusive<u16>| !range.is_empty() && *range.start() > 0)
        .with_context(|| format!("service-node-port-range {range:?} is not FROM-TO"))?;
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
    ]
    .map(str::to_owned)
    .into();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(settings.name.clone());
    names.extend([nth(1), advertise, IpAddr::V4(Ipv4Addr::LOCALHOST)].map(|ip| ip.to_string()));
    if !bind.is_unspecified() {
        names.push(bind.to_string());
    }
    names.extend(options.tls_san.iter().cloned());
    names.sort();
    names.dedup();
    Ok(Plan {
        listen: SocketAddr::new(bind, port),
        advertise: SocketAddr::new(advertise, port),
        cluster: Cluster {
            cluster_cidr: IpNet::V4(cluster_cidr),
            service_cidr: IpNet::V4(service_cidr),
            dns,
            domain,
        },
        service_cidr,
        node_ports,
        kubeconfig: options
            .write_kubeconfig
            .clone()
            .unwrap_or_else(|| KUBECONFIG.into()),
        names,
    })
}

/// Reaches nodes through their tunnels.
struct TunnelDialer(Registry);

impl NodeDialer for TunnelDialer {
    fn dial(
        &self,
        node: &str,
        target: &str,
    ) -> futures::future::BoxFuture<'static, std::io::Result<skiff_apiserver::BoxIo>> {
        let (registry, node, target) = (self.0.clone(), node.to_owned(), target.to_owned());
        Box::pin(async move { Ok(Box::new(registry.dial(&node, &target).await?) as skiff_apiserver::BoxIo) })
    }
}

/// Signs node certificates with the cluster's client CA.
struct Signer(Arc<ClusterPki>);

impl skiff_controllers::CertificateSigner for Signer {
    fn subject(&self, request_pem: &str) -> Option<(String, Vec<String>)> {
        let info = skiff_pki::CsrInfo::from_pem(request_pem).ok()?;
        Some((info.subject.common_name, info.subject.organizations))
    }

    fn sign_client(
        &self,
        request_pem: &str,
        common_name: &str,
        organizations: &[String],
    ) -> Result<String, String> {
        let check = |info: &skiff_pki::CsrInfo| {
            if info.subject.common_name == common_name && info.subject.organizations == organizations {
                Ok(())
            } else {
                Err("the request changed after it was approved".to_owned())
            }
        };
        self.0
            .sign_client_csr(request_pem, CERTIFICATE_LIFETIME, check)
            .map_err(|error| error.to_string())
    }
}

async fn start(
    settings: &Settings,
    options: &ServerOptions,
    plan: Plan,
    listener: tokio::net::TcpListener,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> anyhow::Result<Store> {
    let directory = settings.server_dir();
    let (at, store_options) = (
        directory.join("db"),
        skiff_store::Options {
            clock: clock.clone(),
            ..Default::default()
        },
    );
    let store = tokio::task::spawn_blocking(move || Store::open(&at, store_options)).await??;
    let pki = Arc::new(ClusterPki::load_or_create(&directory.join("tls"), clock.clone())?);
    let tunnels = Registry::new(shutdown.child());
    let api = ApiServer::start(
        skiff_apiserver::Config {
            store: store.clone(),
            service_account_key: pki.service_account_key().clone(),
            older_service_account_keys: Vec::new(),
            issuer: format!("https://kubernetes.default.svc.{}", plan.cluster.domain),
            service_cidr: plan.service_cidr,
            node_ports: plan.node_ports.clone(),
            advertise: plan.advertise,
            client_ca_pem: pki.client_ca_pem().to_owned(),
            nodes: Arc::new(TunnelDialer(tunnels.clone())),
            clock: clock.clone(),
        },
        shutdown.clone(),
    )
    .await?;
    let certificate = serve(&plan, &pki, &api, &tunnels, listener, &clock, shutdown)?;
    renew(
        certificate,
        plan.names.clone(),
        pki.clone(),
        clock.clone(),
        shutdown,
    );
    let admin = inprocess::client(&api, UserInfo::component("system:skiff"));
    write_kubeconfig(&plan, &pki, &*clock)?;
    crate::join::ensure_server_token(&admin, &pki, &directory.join("node-token")).await?;
    addons::apply(&admin, &plan.cluster)
        .await
        .context("cannot apply the packaged objects")?;
    // Pods, nodes and services are watched once for all components of this process.
    let manager = inprocess::client(&api, UserInfo::component("system:kube-controller-manager"));
    let informers = Informers::new(manager, shutdown.clone());
    start_controllers(&api, &plan, &informers, pki.clone(), &clock, shutdown);
    tracing::info!(address = %plan.listen, kubeconfig = %plan.kubeconfig.display(), "the API is ready");

    if !options.disable_agent {
        let user = UserInfo::new(
            format!("system:node:{}", settings.name),
            &[skiff_apiserver::NODES],
        );
        let client = inprocess::client(&api, user);
        let node = node::start(settings, &plan.cluster, client, informers, clock, shutdown).await?;
        let (server_end, node_end) = tokio::io::duplex(LOCAL_TUNNEL_BYTES);
        let (registry, name) = (tunnels, settings.name.clone());
        shutdown.spawn_until_cancelled("local tunnel", async move {
            drop(registry.register(&name, server_end).await)
        });
        shutdown.spawn_until_cancelled("local tunnel", async move {
            drop(skiff_tunnel::agent::serve(node_end, node.dialer).await);
        });
    }
    notify::notify("READY=1");
    Ok(store)
}

fn serve(
    plan: &Plan,
    pki: &Arc<ClusterPki>,
    api: &Arc<ApiServer>,
    tunnels: &Registry,
    listener: tokio::net::TcpListener,
    clock: &Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> anyhow::Result<Arc<HotCertificate>> {
    let issued = pki.issue_server("skiff-server", &plan.names, CERTIFICATE_LIFETIME)?;
    let certificate = HotCertificate::new(&issued.cert_pem, &issued.key_pem)?;
    let clients = ClientAuth::Optional(pki.client_ca_pem().to_owned());
    let trust = Arc::new(tls::server_config(certificate.clone(), &clients, clock.clone())?);
    let supervisor = Arc::new(Supervisor {
        api: api.clone(),
        tunnels: tunnels.clone(),
        cluster: plan.cluster.clone(),
        ca_pem: pki.server_ca_pem().to_owned(),
    });
    let (sender, receiver) = tokio::sync::watch::channel(trust);
    let stop = shutdown.clone();
    shutdown.spawn("listener", async move {
        skiff_apiserver::serve(listener, receiver, supervisor, stop).await;
        drop(sender);
    });
    Ok(certificate)
}

/// Exchanges the server's certificate while running, long before it ends.
fn renew(
    certificate: Arc<HotCertificate>,
    names: Vec<String>,
    pki: Arc<ClusterPki>,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) {
    shutdown.spawn_until_cancelled("certificate renewal", async move {
        loop {
            let age = certificate
                .leaf()
                .and_then(|leaf| CertificateInfo::from_der(&leaf).ok());
            if let Some(Renewal::After(left)) = age.map(|info| info.renewal(clock.now())) {
                tokio::time::sleep(left.max(RENEWAL_PAUSE)).await;
                continue;
            }
            let renewed = pki
                .issue_server("skiff-server", &names, CERTIFICATE_LIFETIME)
                .and_then(|issued| certificate.replace(&issued.cert_pem, &issued.key_pem));
            match renewed {
                Ok(()) => tracing::info!("renewed the server's certificate"),
                Err(error) => tracing::warn!(%error, "cannot renew the server's certificate"),
            }
            tokio::time::sleep(RENEWAL_PAUSE).await;
        }
    });
}

fn start_controllers(
    api: &Arc<ApiServer>,
    plan: &Plan,
    informers: &Informers,
    pki: Arc<ClusterPki>,
    clock: &Arc<dyn Clock>,
    shutdown: &Shutdown,
) {
    let recorder = |client: &Client, name: &str| Recorder::new(client.clone(), name, "", shutdown);
    let client = informers.client().clone();
    skiff_controllers::start(&skiff_controllers::Context {
        recorder: recorder(&client, "controller-manager"),
        client,
        informers: informers.clone(),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
        config: Arc::new(skiff_controllers::Config {
            cluster_cidr: plan.cluster.cluster_cidr,
            node_mask: 24,
            ca_pem: pki.server_ca_pem().to_owned(),
            signer: Arc::new(Signer(pki)),
        }),
    });
    let client = inprocess::client(api, UserInfo::new("system:kube-scheduler", &[]));
    skiff_scheduler::start(&skiff_scheduler::Context {
        recorder: recorder(&client, "default-scheduler"),
        client,
        informers: informers.clone(),
        clock: clock.clone(),
        shutdown: shutdown.clone(),
    });
}

/// Writes the administrator's kubeconfig, unless the one there is still good.
fn write_kubeconfig(plan: &Plan, pki: &ClusterPki, clock: &dyn Clock) -> anyhow::Result<()> {
    let host = if plan.listen.ip().is_unspecified() {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        plan.listen.ip()
    };
    let server = format!("https://{}", SocketAddr::new(host, plan.listen.port()));
    if is_current(&plan.kubeconfig, &server, pki, clock) {
        return Ok(());
    }
    let identity = Identity::new("system:admin", &[skiff_apiserver::MASTERS]);
    let issued = pki.issue_client(&identity, CERTIFICATE_LIFETIME)?;
    let credentials = Credentials::Certificate {
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    };
    let text = skiff_pki::kubeconfig("default", &server, pki.server_ca_pem(), &credentials);
    if let Some(folder) = plan.kubeconfig.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    skiff_pki::write_private(&plan.kubeconfig, text.as_bytes()).with_context(|| {
        format!(
            "cannot write the kubeconfig {}: choose another with --write-kubeconfig",
            plan.kubeconfig.display()
        )
    })
}

fn is_current(path: &Path, server: &str, pki: &ClusterPki, clock: &dyn Clock) -> bool {
    use base64::Engine;
    let Ok(text) = std::fs::read_to_string(path) else {
        return false;
    };
    let decode = |encoded: &str| {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(encoded.trim())
            .ok()?;
        String::from_utf8(bytes).ok()
    };
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
    };
    let same_ca =
        field("certificate-authority-data").and_then(decode).as_deref() == Some(pki.server_ca_pem());
    let leaf = field("client-certificate-data").and_then(decode);
    let fresh = leaf
        .and_then(|pem| CertificateInfo::from_pem(&pem).ok())
        .is_some_and(|info| matches!(info.renewal(clock.now()), Renewal::After(_)));
    same_ca && fresh && text.contains(server)
}
