//! Configuration, sockets and the loop that follows the cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::Name;
use hickory_server::Server;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;
use skiff_base::backoff::Backoff;
use skiff_base::clock::{self, Clock};
use skiff_base::lifecycle::Shutdown;
use skiff_client::{Change, Informer, Informers};
use tokio::sync::watch;

use crate::forward::Forwarder;
use crate::index::{Index, Key};
use crate::server::{Handler, bind};
use crate::zone::Zone;

/// A TCP connection without a question for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Answers waiting to be sent on one TCP connection.
const TCP_ANSWERS: usize = 32;
/// First and longest wait before port 53 is tried again.
const BIND_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// What the operator decides about cluster DNS.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster domain.
    pub domain: String,
    /// Where questions arrive: the DNS service's address.
    pub listen: Vec<SocketAddr>,
    /// Pod and service networks: names of their addresses are never asked of anybody else.
    pub networks: Vec<IpNet>,
    /// How long answers may be remembered by clients.
    pub ttl_seconds: u32,
    /// The file that lists the node's own name servers, for all other questions.
    pub resolv_conf: PathBuf,
    /// Fixed name servers instead of those in the file.
    pub upstreams: Vec<IpAddr>,
}

impl Config {
    /// The defaults for the DNS service's addresses: `cluster.local`, five seconds, the node's own `resolv.conf`.
    pub fn new(addresses: Vec<IpAddr>) -> Self {
        let net = |a, b| IpNet::from(ipnet::Ipv4Net::new_assert([a, b, 0, 0].into(), 16));
        Self {
            domain: "cluster.local".into(),
            listen: addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, 53))
                .collect(),
            networks: vec![net(10, 42), net(10, 43)],
            ttl_seconds: 5,
            resolv_conf: "/etc/resolv.conf".into(),
            upstreams: Vec::new(),
        }
    }
}

/// Why there is no name server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster domain is not a domain name.
    #[error("cluster domain {0:?} is not a domain name")]
    BadDomain(String),
    /// An address could not be bound.
    #[error("cannot listen for DNS on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The sockets stopped working.
    #[error("the DNS server stopped: {0}")]
    Stopped(String),
}

/// The name server of one node.
pub struct Dns {
    config: Config,
    zone: Zone,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    namespaces: Informer<Namespace>,
    clock: Arc<dyn Clock>,
    index: Arc<RwLock<Index>>,
    complete: watch::Sender<bool>,
    ready: watch::Sender<bool>,
}

impl Dns {
    /// A name server that follows the cluster. Nothing happens before [`Dns::run`].
    pub fn new(config: Config, informers: &Informers) -> Result<Self, Error> {
        Self::with_informers(config, informers.get(), informers.get(), informers.get())
    }

    /// The same with informers of the caller's.
    pub fn with_informers(
        config: Config,
        services: Informer<Service>,
        slices: Informer<EndpointSlice>,
        namespaces: Informer<Namespace>,
    ) -> Result<Self, Error> {
        let mut domain = Name::from_ascii(&config.domain)
            .map_err(|_| Error::BadDomain(config.domain.clone()))?
            .to_lowercase();
        domain.set_fqdn(true);
        if domain.is_root() {
            return Err(Error::BadDomain(config.domain.clone()));
        }
        let zone = Zone {
            domain,
            networks: config.networks.clone(),
            servers: config.listen.iter().map(SocketAddr::ip).collect(),
            ttl_seconds: config.ttl_seconds,
        };
        Ok(Self {
            config,
            zone,
            services,
            slices,
            namespaces,
            clock: clock::system(),
            index: Arc::default(),
            complete: watch::Sender::new(false),
            ready: watch::Sender::new(false),
        })
    }

    /// Whether questions about the cluster are answered.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Answers questions until shutdown; tries again as long as the address cannot be bound.
    pub async fn run(&self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(BIND_RETRY.0, BIND_RETRY.1);
        tokio::join!(self.follow(&shutdown), async {
            while !shutdown.is_cancelled() {
                let Err(error) = self.serve(&shutdown).await else {
                    return;
                };
                let delay = backoff.next();
                tracing::warn!(%error, retry_ms = delay.as_millis(), "no cluster DNS on this node");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        });
    }

    async fn serve(&self, shutdown: &Shutdown) -> Result<(), Error> {
        let config = &self.config;
        let own = config.listen.iter().map(SocketAddr::ip).collect();
        let forwarder = Forwarder::new(
            config.resolv_conf.clone(),
            config.upstreams.clone(),
            own,
            self.clock.clone(),
        );
        let mut server = Server::new(Handler::new(self.index.clone(), self.zone.clone(), forwarder));
        for address in &self.config.listen {
            let (udp, tcp) = bind(*address).map_err(|source| Error::Listen {
                address: *address,
                source,
            })?;
            server.register_socket(udp);
            server.register_listener(tcp, TCP_IDLE, TCP_ANSWERS);
        }
        tracing::info!(listen = ?self.config.listen, domain = %self.zone.domain, "cluster DNS answers");
        let mut complete = self.complete.subscribe();
        let announce = async {
            if complete.wait_for(|complete| *complete).await.is_ok() {
                self.ready.send_replace(true);
            }
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            () = shutdown.cancelled() => None,
            result = server.block_until_done() => Some(result),
            () = announce => None,
        };
        self.ready.send_replace(false);
        match ended {
            None => server
                .shutdown_gracefully()
                .await
                .map_err(|error| Error::Stopped(error.to_string())),
            Some(Ok(())) => Err(Error::Stopped("all sockets are closed".into())),
            Some(Err(error)) => Err(Error::Stopped(error.to_string())),
        }
    }

    async fn follow(&self, shutdown: &Shutdown) {
        let (mut services, mut slices, mut namespaces) = (
            self.services.subscribe(),
            self.slices.subscribe(),
            self.namespaces.subscribe(),
        );
        let synced = async {
            self.services.synced().await;
            self.slices.synced().await;
            self.namespaces.synced().await;
        };
        tokio::pin!(synced);
        let mut waiting = true;
        loop {
            tokio::select! {
                // Changes first, so that everything listed is in the index before it counts as complete.
                biased;
                () = shutdown.cancelled() => return,
                Some(change) = services.next() => {
                    let mut index = self.index.write();
                    match change {
                        Change::Applied { new, .. } => index.apply_service(&new),
                        Change::Deleted(old) => index.remove_service(&key(&old.metadata)),
                    }
                }
                Some(change) = slices.next() => {
                    let mut index = self.index.write();
                    match change {
                        Change::Applied { new, .. } => index.apply_slice(&new),
                        Change::Deleted(old) => index.remove_slice(&key(&old.metadata)),
                    }
                }
                Some(change) = namespaces.next() => {
                    let mut index = self.index.write();
                    match change {
                        Change::Applied { new, .. } => index.apply_namespace(&new),
                        Change::Deleted(old) => index.remove_namespace(&key(&old.metadata).1),
                    }
                }
                () = &mut synced, if waiting => {
                    waiting = false;
                    self.index.write().set_synced();
                    self.complete.send_replace(true);
                }
                else => return,
            }
        }
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
