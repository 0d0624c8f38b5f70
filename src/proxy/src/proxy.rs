//! The loop: changes of Services and EndpointSlices into the kernel.
//!
//! A change only makes a service's name dirty. Names are collected for
//! [`COALESCE`] after the first one, then every dirty service is planned anew
//! from the informers' present state and all differences go to the kernel in one transaction per
//! address family, on a blocking thread. A failed transaction stays pending and is tried again with back-off.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use skiff_base::backoff::Backoff;
use skiff_base::clock::{self, Clock};
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics;
use skiff_client::informer::{Change, Changes, Informer, Informers, key_of};
use skiff_nft::{Family, Guard, NftTable, Owner, Section};
use tokio::time::Instant;

use crate::ledger::Ledger;
use crate::plan::plan;
use crate::service::{NodeInfo, SERVICE_NAME_LABEL, ports};
use crate::{conntrack, sysctl};

/// How long changes are collected after the first one: the events of one
/// rollout step come within this, and it is nothing beside the time an
/// endpoint took to become ready.
pub const COALESCE: Duration = Duration::from_millis(5);
/// Names handled before the kernel is written even if more keep coming.
const MAX_BATCH: usize = 20_000;
/// Delays between tries when the kernel refuses.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// What the proxy is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node it works for.
    pub node: NodeInfo,
    /// One table per address family to serve.
    pub tables: Vec<NftTable>,
}

/// The service proxy of a node.
pub struct Proxy {
    config: Config,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    clock: Arc<dyn Clock>,
}

/// One address family's book and its place in the kernel.
struct FamilyState {
    family: Family,
    section: Section,
    ledger: Ledger,
}

/// What the loop knows; moved to a blocking thread and back.
struct State {
    node: NodeInfo,
    services: Informer<Service>,
    /// Slices by service, by slice.
    slices: HashMap<String, BTreeMap<String, Arc<EndpointSlice>>>,
    dirty: BTreeSet<String>,
    families: Vec<FamilyState>,
    clock: Arc<dyn Clock>,
}

impl Proxy {
    /// A proxy fed by these informers.
    pub fn new(config: Config, informers: &Informers) -> Self {
        Self::with(config, informers.get(), informers.get())
    }

    /// A proxy fed by given informers of its two kinds.
    pub fn with(config: Config, services: Informer<Service>, slices: Informer<EndpointSlice>) -> Self {
        Self {
            config,
            services,
            slices,
            clock: clock::system(),
        }
    }

    /// Runs until shutdown. The rules stay in the kernel, so that services outlive a restart.
    pub async fn run(self, shutdown: Shutdown) {
        let synced = async {
            self.services.synced().await;
            self.slices.synced().await;
        };
        tokio::select! {
            () = synced => {}
            () = shutdown.cancelled() => return,
        }
        let (mut services, mut slices) = (self.services.subscribe(), self.slices.subscribe());
        let mut state = State::new(&self);
        let _guards = guards(&self.config.tables).await;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        // Everything present goes into the first transaction; it is due even when there is nothing.
        let mut due = Some(Instant::now());
        loop {
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = wait => {
                    state.drain(&mut services, &mut slices);
                    let (returned, failed) = match tokio::task::spawn_blocking(move || state.apply()).await {
                        Ok(done) => done,
                        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                        Err(_) => return, // the runtime is going down
                    };
                    state = returned;
                    due = failed.then(|| Instant::now() + backoff.next());
                    if !failed {
                        backoff.reset();
                    }
                    continue;
                }
                change = services.next() => match change {
                    Some(change) => state.service(&change),
                    None => return,
                },
                change = slices.next() => match change {
                    Some(change) => state.slice(&change),
                    None => return,
                },
            }
            let soon = Instant::now() + COALESCE;
            due = Some(due.map_or(soon, |at| at.min(soon)));
        }
    }
}

impl State {
    fn new(proxy: &Proxy) -> Self {
        let node = proxy.config.node.clone();
        let family = |table: &NftTable| FamilyState {
            family: table.family(),
            section: table.section(Owner::Proxy),
            ledger: Ledger::new(table.family(), &node),
        };
        let families = proxy.config.tables.iter().map(family).collect();
        let (services, clock) = (proxy.services.clone(), proxy.clock.clone());
        Self {
            node,
            services,
            slices: HashMap::new(),
            dirty: BTreeSet::new(),
            families,
            clock,
        }
    }

    fn service(&mut self, change: &Change<Service>) {
        self.dirty.insert(key_of(change.object().as_ref()));
    }

    fn slice(&mut self, change: &Change<EndpointSlice>) {
        let slice = change.object();
        let key = key_of(slice.as_ref());
        if let Change::Applied { old: Some(old), .. } = change
            && let Some(service) = owner_of(old)
            && owner_of(slice).as_ref() != Some(&service)
        {
            self.forget(&service, &key);
        }
        let Some(service) = owner_of(slice) else { return };
        match change {
            Change::Applied { new, .. } => {
                self.slices
                    .entry(service.clone())
                    .or_default()
                    .insert(key, new.clone());
                self.dirty.insert(service);
            }
            Change::Deleted(_) => self.forget(&service, &key),
        }
    }

    fn forget(&mut self, service: &str, slice: &str) {
        if let Some(slices) = self.slices.get_mut(service) {
            slices.remove(slice);
            if slices.is_empty() {
                self.slices.remove(service);
            }
        }
        self.dirty.insert(service.to_owned());
    }

    fn drain(&mut self, services: &mut Changes<Service>, slices: &mut Changes<EndpointSlice>) {
        while self.dirty.len() < MAX_BATCH {
            let (service, slice) = (services.try_next(), slices.try_next());
            if service.is_none() && slice.is_none() {
                return;
            }
            if let Some(change) = service {
                self.service(&change);
            }
            if let Some(change) = slice {
                self.slice(&change);
            }
        }
    }

    /// Plans what is dirty and writes what differs. True when it must be tried again.
    fn apply(mut self) -> (Self, bool) {
        let started = self.clock.monotonic();
        for key in std::mem::take(&mut self.dirty) {
            let service = self.services.get(&key);
            let slices = self.slices.get(&key);
            for state in &mut self.families {
                let plan = match &service {
                    Some(service) => {
                        let slices = slices.iter().flat_map(|s| s.values()).map(Arc::as_ref);
                        let ports = ports(state.family, service, slices, &self.node);
                        plan(state.ledger.rules(), &ports, &self.node)
                    }
                    None => crate::plan::ServicePlan::default(),
                };
                let created = service
                    .as_ref()
                    .and_then(|s| s.metadata.creation_timestamp.as_ref());
                state
                    .ledger
                    .set(created.map_or(i64::MAX, |t| t.0.as_second()), &key, plan);
            }
        }
        let mut failed = false;
        for state in &mut self.families {
            failed |= !state.write();
        }
        metrics::global()
            .histogram(
                "skiff_proxy_apply_seconds",
                "time to bring service changes to the kernel",
                &BUCKETS,
            )
            .observe((self.clock.monotonic() - started).as_secs_f64());
        (self, failed)
    }
}

const BUCKETS: [f64; 8] = [0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0];

impl FamilyState {
    fn write(&mut self) -> bool {
        if self.ledger.edit().is_empty() {
            return true;
        }
        if let Err(error) = sysctl::ensure(self.family) {
            tracing::warn!(%error, cause = ?std::error::Error::source(&error), "services may not be reachable");
        }
        match self.section.apply(self.ledger.edit()) {
            Ok(applied) => {
                tracing::debug!(?applied, "services are in the kernel");
                let stale = self.ledger.applied();
                match conntrack::forget(self.family, &stale) {
                    Ok(0) => {}
                    Ok(forgotten) => {
                        tracing::debug!(forgotten, "connections to vanished endpoints forgotten")
                    }
                    Err(error) => tracing::warn!(%error, "cannot forget connections to vanished endpoints"),
                }
                true
            }
            Err(error) => {
                metrics::global()
                    .counter(
                        "skiff_proxy_apply_failures_total",
                        "service changes the kernel refused",
                    )
                    .inc();
                tracing::error!(%error, "cannot bring service changes to the kernel; trying again");
                false
            }
        }
    }
}

/// Has deleted tables put back. Without a guard the proxy still works, so a failure is only told.
async fn guards(tables: &[NftTable]) -> Vec<Guard> {
    let tables = tables.to_vec();
    let started = tokio::task::spawn_blocking(move || {
        tables.iter().map(NftTable::guard).collect::<Result<Vec<_>, _>>()
    });
    match started.await {
        Ok(Ok(guards)) => guards,
        Ok(Err(error)) => {
            tracing::warn!(%error, "a deleted nftables table will only be noticed at the next change");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// `namespace/name` of the service a slice belongs to.
fn owner_of(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(format!("{}/{name}", slice.metadata.namespace.as_deref()?))
}
