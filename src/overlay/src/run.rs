//! The loop that keeps this node's network in step with the cluster's nodes.
//!
//! Level-triggered: a wake-up carries no information except that something changed, among Nodes or in the kernel.
//! Every pass looks at everything and does what is missing; our own changes cause one more pass that finds nothing
//! to do. Dataplane first: a server that does not answer delays annotations and conditions, never packets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use skiff_base::backoff::Backoff;
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics;
use skiff_client::{Client, Informer, Informers};
use skiff_netlink::{Changes, Netlink, NodeAddress, NodeAddressQuery, choose_node_address};
use tokio::sync::watch;

use crate::addresses::AddressStore;
use crate::attach::{self, AttachOptions, is_pod_link};
use crate::cache::Known;
use crate::error::Collected;
use crate::fabric::{BRIDGE, Fabric, settle_node_address};
use crate::firewall::{Firewall, MasqueradeRules};
use crate::{Backend, Config, Error, interface_name, node};

/// Changes within this time are one pass: a burst of pod starts changes links several times each.
const SETTLE: Duration = Duration::from_millis(100);
/// First and longest wait after a failed pass.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long an attachment waits for the node's network: longer than a first pass takes, shorter than callers wait.
const READY_WAIT: Duration = Duration::from_secs(20);

/// How to look for the node's address: as told, and never among the overlay's own links.
pub fn node_address_query(address: Option<IpAddr>, interface: Option<String>) -> NodeAddressQuery {
    let exclude = vec![BRIDGE.into(), "skiff.*".into(), "sk*".into()];
    NodeAddressQuery {
        address,
        interface,
        exclude,
    }
}

/// The node's network as attachments need it.
struct Up {
    fabric: Fabric,
    store: AddressStore,
}

/// The pod network of one node.
pub struct Overlay {
    config: Config,
    client: Client,
    nodes: Informer<Node>,
    firewall: Arc<dyn Firewall>,
    up: watch::Sender<Option<Arc<Up>>>,
    ready: watch::Sender<bool>,
    node_address: watch::Sender<Option<NodeAddress>>,
    saved: Mutex<Option<Known>>,
    refused: Mutex<Vec<(String, &'static str)>>,
}

impl Overlay {
    /// An overlay that follows the cluster's Nodes. Nothing happens before [`Overlay::run`].
    pub fn new(config: Config, client: Client, informers: &Informers, firewall: Arc<dyn Firewall>) -> Self {
        Self::with_nodes(config, client, informers.get::<Node>(), firewall)
    }

    /// The same with an informer of the caller's.
    pub fn with_nodes(
        config: Config,
        client: Client,
        nodes: Informer<Node>,
        firewall: Arc<dyn Firewall>,
    ) -> Self {
        Self {
            config,
            client,
            nodes,
            firewall,
            up: watch::Sender::new(None),
            ready: watch::Sender::new(false),
            node_address: watch::Sender::new(None),
            saved: Mutex::new(None),
            refused: Mutex::default(),
        }
    }

    /// Whether pods can be attached and reach their peers.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// The address towards the peers, once known; follows changes.
    pub fn node_address(&self) -> watch::Receiver<Option<NodeAddress>> {
        self.node_address.subscribe()
    }

    /// Keeps the network in step until shutdown. Links stay: pods go on while the agent restarts.
    pub async fn run(&self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while !shutdown.is_cancelled() {
            let Err(error) = self.follow(&shutdown, &mut backoff).await else {
                return;
            };
            tracing::warn!(%error, "pod network: cannot follow the kernel's tables");
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    async fn follow(&self, shutdown: &Shutdown, backoff: &mut Backoff) -> Result<(), Error> {
        let netlink = Netlink::open()?;
        let mut kernel = Netlink::subscribe()?;
        let mut nodes = self.nodes.subscribe();
        loop {
            // Everything that happened so far is covered by the pass that starts now.
            while nodes.try_next().is_some() {}
            let retry = match self.pass(&netlink).await {
                Ok(()) => {
                    backoff.reset();
                    None
                }
                Err(error) => {
                    let delay = backoff.next();
                    tracing::warn!(%error, retry_ms = delay.as_millis(), "pod network is not as it should be");
                    Some(delay)
                }
            };
            let timer = async {
                match retry {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                change = nodes.next() => if change.is_none() { return Ok(()) },
                change = Changes::next(&mut kernel) => if change.is_none() { return Err(Error::WatchEnded) },
                () = timer => {}
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// What the API says, or what it said last while it has not answered yet.
    fn known(&self) -> Option<Known> {
        if !self.nodes.is_synced() {
            return Known::load(&self.config.state_dir);
        }
        let own = self.nodes.get(&self.config.node_name);
        let pod_cidrs = own.map(|n| node::pod_cidrs(&n)).unwrap_or_default();
        if pod_cidrs.is_empty() {
            // Not registered yet, or registered anew: running pods keep what they have.
            return self.saved.lock().clone();
        }
        let peers = self
            .nodes
            .list()
            .iter()
            .filter(|n| n.metadata.name.as_deref() != Some(self.config.node_name.as_str()))
            .filter_map(|n| node::peer(n))
            .collect();
        Some(Known { pod_cidrs, peers })
    }

    async fn pass(&self, netlink: &Netlink) -> Result<(), Error> {
        let Some(known) = self.known() else { return Ok(()) };
        let address = self.find_address(netlink).await?;
        let fabric = Fabric::ensure(netlink, &self.config, &address, &known.pod_cidrs).await?;
        self.node_address.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&address);
            *current = Some(address.clone());
            changed
        });
        let mut collected = Collected::default();
        collected.add(self.masquerade(&known.pod_cidrs, &fabric));
        let (actions, refused) = fabric.plan(&known.peers).await?;
        self.report_refused(refused);
        if !actions.is_empty() {
            tracing::info!(
                steps = actions.len(),
                peers = known.peers.len(),
                "updating the ways to other nodes"
            );
        }
        collected.add(fabric.apply(&actions).await);
        metrics::global()
            .gauge(
                "skiff_overlay_peers",
                "Other nodes whose pods this node has a way to.",
            )
            .set((known.peers.len() - self.refused.lock().len().min(known.peers.len())) as f64);
        let mac = fabric.vxlan.as_ref().and_then(|link| link.mac);
        self.set_up(fabric)?;
        collected.add(self.save(&known));
        collected.add(self.tell(&address, mac).await);
        collected.finish(|| "updating the pod network".into())
    }

    /// Logs why a peer cannot be reached, when that changes and not with every pass.
    fn report_refused(&self, refused: Vec<(String, &'static str)>) {
        let mut before = self.refused.lock();
        for (name, reason) in refused.iter().filter(|item| !before.contains(item)) {
            tracing::warn!(node = %name, reason, "no way to the pods of this node");
        }
        *before = refused;
    }

    async fn find_address(&self, netlink: &Netlink) -> Result<NodeAddress, Error> {
        let query = node_address_query(self.config.node_ip, self.config.interface.clone());
        let (links, addresses, routes) = (
            netlink.links().await?,
            netlink.addresses().await?,
            netlink.routes().await?,
        );
        let found = choose_node_address(&query, &links, &addresses, &routes);
        let previous = self.node_address.borrow().clone();
        Ok(settle_node_address(previous.as_ref(), found, &links, &addresses)?)
    }

    fn masquerade(&self, pod_cidrs: &[IpNet], fabric: &Fabric) -> Result<(), Error> {
        if !self.config.masquerade {
            return self.firewall.remove();
        }
        let vxlan = fabric.vxlan.as_ref().map(|link| link.name.clone());
        self.firewall.ensure(&MasqueradeRules {
            pod_cidrs: pod_cidrs.to_vec(),
            cluster_cidrs: self.config.cluster_cidrs.clone(),
            links: ["lo".to_owned(), BRIDGE.to_owned()]
                .into_iter()
                .chain(vxlan)
                .collect(),
        })
    }

    /// Hands the links to attachments. The address store stays open while the node's network is the same.
    fn set_up(&self, fabric: Fabric) -> Result<(), Error> {
        let same = |up: &Up| {
            up.store.net() == fabric.net
                && up.fabric.bridge.index == fabric.bridge.index
                && up.fabric.mtu == fabric.mtu
        };
        if !self.up.borrow().as_deref().is_some_and(same) {
            let store = AddressStore::open(&self.config.state_dir.join("addresses"), fabric.net)?;
            self.up.send_replace(Some(Arc::new(Up { fabric, store })));
        }
        self.ready
            .send_if_modified(|ready| !std::mem::replace(ready, true));
        Ok(())
    }

    fn save(&self, known: &Known) -> Result<(), Error> {
        let mut saved = self.saved.lock();
        if saved.as_ref() != Some(known) {
            known.save(&self.config.state_dir)?;
            *saved = Some(known.clone());
        }
        Ok(())
    }

    async fn tell(&self, address: &NodeAddress, mac: Option<skiff_netlink::MacAddr>) -> Result<(), Error> {
        if !self.nodes.is_synced() {
            return Ok(());
        }
        let Some(own) = self.nodes.get(&self.config.node_name) else {
            return Ok(());
        };
        let mac = (self.config.backend == Backend::Vxlan).then_some(mac).flatten();
        let wanted = node::annotations(address.address, mac, self.config.backend);
        node::publish(&self.client, &own, &wanted).await?;
        node::report_ready(&self.client, &own, self.config.backend).await
    }

    async fn wait_up(&self) -> Result<Arc<Up>, Error> {
        let mut up = self.up.subscribe();
        let waited = tokio::time::timeout(READY_WAIT, up.wait_for(Option::is_some)).await;
        match waited {
            Ok(Ok(up)) => up.clone().ok_or(Error::NotReady),
            _ => Err(Error::NotReady),
        }
    }

    /// Gives the sandbox an address and an interface in its namespace. Asking again for the same sandbox gives the
    /// same address.
    pub async fn attach(&self, netns: &Path, id: &str, options: &AttachOptions) -> Result<Vec<IpNet>, Error> {
        let up = self.wait_up().await?;
        attach::attach(&up.fabric, &up.store, netns, id, options).await
    }

    /// Takes the sandbox's interface and address away; fine when it has none.
    pub async fn detach(&self, id: &str) -> Result<(), Error> {
        let up = self.up.borrow().clone();
        match up {
            Some(up) => attach::detach(&up.fabric.netlink, Some(&up.store), id).await,
            // The address goes with the next `retain`.
            None => attach::detach(&Netlink::open()?, None, id).await,
        }
    }

    /// The addresses of a sandbox, without asking the kernel.
    pub fn addresses(&self, id: &str) -> Vec<IpAddr> {
        let up = self.up.borrow();
        up.as_ref()
            .and_then(|up| up.store.get(id))
            .map(|net| net.addr())
            .into_iter()
            .collect()
    }

    /// Gives back the addresses and links of every sandbox that is not in `living`: to be called at start, when the
    /// runtime has said which sandboxes there are.
    pub async fn retain(&self, living: &BTreeSet<String>) -> Result<(), Error> {
        let up = self.wait_up().await?;
        let mut collected = Collected::default();
        match up.store.retain(living) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => tracing::info!(
                addresses = gone.len(),
                "reclaimed addresses of sandboxes that are gone"
            ),
            Err(error) => collected.add::<Error>(Err(error)),
        }
        let names: BTreeSet<String> = living.iter().map(|id| interface_name(id)).collect();
        for link in up
            .fabric
            .netlink
            .links()
            .await?
            .iter()
            .filter(|l| is_pod_link(l) && !names.contains(&l.name))
        {
            collected.add(up.fabric.netlink.delete_link(&link.name).await.map(drop));
        }
        collected.finish(|| "reclaiming sandboxes".into())
    }
}
