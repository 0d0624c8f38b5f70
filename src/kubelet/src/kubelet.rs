//! The whole: finds out what there is, then hands every change to the worker it concerns.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use skiff_base::backoff::Backoff;
use skiff_base::lifecycle::Shutdown;
use skiff_client::informer::Selection;
use skiff_client::{Change, Informer, Recorder};
use skiff_cri::{Container, Runtime, RuntimeEvent, Sandbox};
use tokio::task::JoinSet;

use crate::cgroup::convert::Limits;
use crate::cgroup::{Cgroups, Layout, convert};
use crate::config::Config;
use crate::node::{self, machine};
use crate::pod::shared::Shared;
use crate::pod::spec;
use crate::pod::worker::{Inbox, Worker, pod_of};
use crate::resources::{self, Qos};
use crate::server::Server;
use crate::volumes::mounts;

/// First wait for a runtime that does not answer.
const RUNTIME_RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest wait for a runtime that does not answer.
const RUNTIME_RETRY_MAX: Duration = Duration::from_secs(5);

/// Wait before a worker that ended by a bug is replaced.
const WORKER_RESTART: Duration = Duration::from_secs(5);

/// Why a kubelet cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A folder cannot be made.
    #[error("create {path}: {source}")]
    Folder {
        /// The folder.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It runs already.
    #[error("kubelet of node {0} runs already")]
    Running(String),
}

/// A pod as the HTTP API sees it.
#[derive(Clone)]
pub struct PodEntry {
    /// The object as last seen.
    pub pod: Arc<Pod>,
    /// Its sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Its containers, newest attempt first within a name.
    pub containers: Vec<Container>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

impl PodEntry {
    /// The newest container of a name; with `previous` the one before it.
    pub fn container(&self, name: &str, previous: bool) -> Option<&Container> {
        self.containers
            .iter()
            .filter(|container| container.name == name)
            .nth(usize::from(previous))
    }

    /// The name of the container meant when none is named: the annotated default or the first one.
    pub fn default_container(&self) -> Option<&str> {
        let annotations = self.pod.metadata.annotations.as_ref();
        let named = annotations.and_then(|map| map.get("kubectl.kubernetes.io/default-container"));
        let spec = self.pod.spec.as_ref()?;
        let exists = |name: &String| spec.containers.iter().any(|container| container.name == *name);
        named
            .filter(|name| exists(name))
            .or(spec.containers.first().map(|c| &c.name))
            .map(String::as_str)
    }

    /// The sandbox containers run in now.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|sandbox| sandbox.ready)
    }
}

/// A node's kubelet.
pub struct Kubelet {
    config: Config,
    shared: OnceLock<Arc<Shared>>,
    pub(crate) server: Server,
}

impl Kubelet {
    /// A kubelet that does nothing until it is run.
    pub fn new(config: Config) -> Arc<Kubelet> {
        Arc::new(Kubelet {
            config,
            shared: OnceLock::new(),
            server: Server::default(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What runs containers.
    pub fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.config.runtime
    }

    /// A pod by name, with its containers as last observed.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry> {
        let shown = self.shared.get()?.shown.read();
        // While a pod is replaced by a namesake both are here; the one that is not being deleted is meant.
        shown
            .values()
            .filter(|shown| spec::name(&shown.pod) == name && spec::namespace(&shown.pod) == namespace)
            .min_by_key(|shown| shown.pod.metadata.deletion_timestamp.is_some())
            .map(|shown| PodEntry {
                pod: shown.pod.clone(),
                sandboxes: shown.sandboxes.clone(),
                containers: shown.containers.clone(),
                ips: shown.ips.clone(),
            })
    }

    /// All pods of the node.
    pub fn pods(&self) -> Vec<PodEntry> {
        let Some(shared) = self.shared.get() else {
            return Vec::new();
        };
        let shown = shared.shown.read();
        let entry = |shown: &crate::pod::shared::Shown| PodEntry {
            pod: shown.pod.clone(),
            sandboxes: shown.sandboxes.clone(),
            containers: shown.containers.clone(),
            ips: shown.ips.clone(),
        };
        shown.values().map(entry).collect()
    }

    /// Runs until `shutdown`. Containers live on.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), KubeletError> {
        let config = &self.config;
        for dir in [
            config.dirs.root.join("pods"),
            config.dirs.pod_logs.clone(),
            config.dirs.container_logs.clone(),
        ] {
            std::fs::create_dir_all(&dir).map_err(|source| KubeletError::Folder {
                path: dir.clone(),
                source,
            })?;
        }
        if let Err(error) = mounts::make_shared(&config.dirs.root) {
            tracing::warn!(%error, "mounts made inside containers will not reach other containers");
        }
        let facts = machine::read(&config.dirs.root);
        let memory = i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX);
        let capacity = machine::capacity(&facts, config.max_pods);
        let allocatable = machine::allocatable(&capacity, &config.reserved);
        let cgroups = Cgroups::new(Layout::detect(&config.dirs.cgroup_mount), &config.cgroup_root);
        let cpu = allocatable.get("cpu").and_then(resources::milli).unwrap_or(0);
        let all = Limits {
            cpu_shares: Some(convert::shares(cpu)),
            ..Limits::default()
        };
        let least = Limits {
            cpu_shares: Some(convert::MIN_SHARES),
            ..Limits::default()
        };
        let groups = [
            (cgroups.all_pods(), all),
            (cgroups.class(Qos::Burstable), least),
            (cgroups.class(Qos::BestEffort), least),
        ];
        for (group, limits) in groups {
            if let Err(error) = cgroups.ensure(&group, &limits) {
                tracing::warn!(%error, "pods of one class are not kept apart from others");
            }
        }
        let recorder = Recorder::new(config.client.clone(), "kubelet", &config.node_name, &shutdown);
        let nodes = config
            .informers
            .get_with::<Node>(Selection::named(None, &config.node_name));
        let keeper = node::NodeKeeper::new(
            config.clone(),
            facts,
            capacity,
            allocatable.clone(),
            recorder.clone(),
            nodes.clone(),
        );
        shutdown.spawn_until_cancelled("node status", keeper.run());
        let pods = config
            .informers
            .get_with::<Pod>(Selection::fields(format!("spec.nodeName={}", config.node_name)));
        let services = config.informers.get::<Service>();
        let Some(name) = self.runtime_name(&shutdown).await else {
            return Ok(());
        };
        let shared = Arc::new(Shared::new(
            config.clone(),
            recorder,
            name,
            services,
            cgroups,
            allocatable,
            memory,
        ));
        if self.shared.set(shared.clone()).is_err() {
            return Err(KubeletError::Running(config.node_name.clone()));
        }
        follow_node(&shared, nodes, &shutdown);
        Dispatch::new(shared, pods, shutdown.clone()).run().await;
        Ok(())
    }

    /// Waits for the runtime and asks its name.
    async fn runtime_name(&self, shutdown: &Shutdown) -> Option<String> {
        let mut backoff = Backoff::new(RUNTIME_RETRY_FIRST, RUNTIME_RETRY_MAX);
        loop {
            match self.config.runtime.version().await {
                Ok(version) => return Some(version.name),
                Err(error) => tracing::info!(%error, "waiting for the container runtime"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }
}

/// Keeps what admission knows of the Node in step.
fn follow_node(shared: &Arc<Shared>, nodes: Informer<Node>, shutdown: &Shutdown) {
    let shared = shared.clone();
    let mut changes = nodes.subscribe();
    shutdown.spawn_until_cancelled("node watch", async move {
        while let Some(change) = changes.next().await {
            shared.offer.write().node = match change {
                Change::Applied { new, .. } => Some((*new).clone()),
                Change::Deleted(_) => None,
            };
        }
    });
}

struct Entry {
    inbox: Arc<Inbox>,
    /// The worker has ended; the object may still be there for its finalizers.
    ended: bool,
    gone: bool,
}

/// Hands changes to workers.
struct Dispatch {
    shared: Arc<Shared>,
    pods: Informer<Pod>,
    shutdown: Shutdown,
    workers: HashMap<String, Entry>,
    tasks: JoinSet<String>,
    uids: HashMap<tokio::task::Id, String>,
}

impl Dispatch {
    fn new(shared: Arc<Shared>, pods: Informer<Pod>, shutdown: Shutdown) -> Dispatch {
        Dispatch {
            shared,
            pods,
            shutdown,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            uids: HashMap::new(),
        }
    }

    async fn run(mut self) {
        // Subscribed before the first look, so that nothing falls between.
        let mut events = self.shared.config.runtime.events();
        tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = self.pods.synced() => {}
        }
        let mut changes = self.pods.subscribe();
        self.orphans().await;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                change = changes.next() => match change {
                    Some(change) => self.change(change),
                    None => break,
                },
                event = events.next() => match event {
                    Some(event) => self.event(&event),
                    None => {
                        events = self.shared.config.runtime.events();
                        self.event(&RuntimeEvent::Resync);
                        tokio::time::sleep(RUNTIME_RETRY_FIRST).await;
                    }
                },
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
            }
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn start(&mut self, pod: Arc<Pod>, gone: bool) {
        self.start_after(Duration::ZERO, pod, gone);
    }

    fn start_after(&mut self, delay: Duration, pod: Arc<Pod>, gone: bool) {
        let uid = spec::uid(&pod).to_owned();
        let inbox = Arc::new(Inbox::default());
        self.workers.insert(
            uid.clone(),
            Entry {
                inbox: inbox.clone(),
                ended: false,
                gone,
            },
        );
        let worker = Worker::new(self.shared.clone(), inbox, pod, gone, &self.shutdown);
        let shutdown = self.shutdown.clone();
        let task = self.tasks.spawn({
            let uid = uid.clone();
            async move {
                tokio::time::sleep(delay).await;
                worker.run(shutdown).await;
                uid
            }
        });
        self.uids.insert(task.id(), uid);
    }

    fn change(&mut self, change: Change<Pod>) {
        match change {
            Change::Applied { old, new } => {
                if let Some(old) = old.filter(|old| old.metadata.uid != new.metadata.uid) {
                    self.gone(old);
                }
                match self.workers.get(spec::uid(&new)) {
                    Some(entry) => entry.inbox.pod(new),
                    None if spec::uid(&new).is_empty() => {}
                    None => self.start(new, false),
                }
            }
            Change::Deleted(last) => self.gone(last),
        }
    }

    fn gone(&mut self, last: Arc<Pod>) {
        let uid = spec::uid(&last);
        if let Some(entry) = self.workers.get_mut(uid) {
            entry.gone = true;
            if entry.ended {
                self.workers.remove(uid);
            } else {
                entry.inbox.pod(last);
                entry.inbox.gone();
            }
        }
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, String), tokio::task::JoinError>) {
        match ended {
            Ok((id, uid)) => {
                self.uids.remove(&id);
                if self.shutdown.is_cancelled() {
                    return;
                }
                self.shared.hide(&uid);
                if let Some(entry) = self.workers.get_mut(&uid) {
                    entry.ended = true;
                    if entry.gone {
                        self.workers.remove(&uid);
                    }
                }
            }
            Err(error) => {
                // A bug in one worker must not leave its pod alone: a new one adopts what there is.
                let Some(uid) = self.uids.remove(&error.id()) else {
                    return;
                };
                tracing::error!(%error, uid, "a pod's worker ended by a bug; starting another");
                let pod = self.pods.list().into_iter().find(|pod| spec::uid(pod) == uid);
                let shown = self.shared.shown.read().get(&uid).map(|shown| shown.pod.clone());
                let gone = pod.is_none();
                if let Some(pod) = pod.or(shown).filter(|_| !self.shutdown.is_cancelled()) {
                    self.start_after(WORKER_RESTART, pod, gone);
                }
            }
        }
    }

    fn event(&self, event: &RuntimeEvent) {
        let sandbox = match event {
            RuntimeEvent::ContainerStarted { sandbox, .. }
            | RuntimeEvent::ContainerExited { sandbox, .. }
            | RuntimeEvent::ContainerOom { sandbox, .. } => sandbox,
            RuntimeEvent::Resync => {
                for entry in self.workers.values() {
                    entry.inbox.runtime();
                }
                return;
            }
        };
        let shown = self.shared.shown.read();
        let uid = shown
            .iter()
            .find(|(_, shown)| shown.sandboxes.iter().any(|s| s.id == *sandbox))
            .map(|(uid, _)| uid);
        if let Some(entry) = uid.and_then(|uid| self.workers.get(uid)) {
            entry.inbox.runtime();
        }
    }

    /// Pods that were deleted while this process was away: sandboxes, folders and groups nobody asks for.
    async fn orphans(&mut self) {
        let known: HashSet<String> = self
            .pods
            .list()
            .iter()
            .map(|pod| spec::uid(pod).to_owned())
            .collect();
        let mut backoff = Backoff::new(RUNTIME_RETRY_FIRST, RUNTIME_RETRY_MAX);
        let sandboxes = loop {
            match self.shared.config.runtime.sandboxes().await {
                Ok(sandboxes) => break sandboxes,
                Err(error) => tracing::warn!(%error, "sandboxes not listed"),
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        };
        let shared = self.shared.clone();
        for sandbox in sandboxes.iter().filter(|sandbox| shared.owns(sandbox)) {
            let uid = &sandbox.config.uid;
            if !uid.is_empty() && !known.contains(uid) && !self.workers.contains_key(uid) {
                self.start(Arc::new(pod_of(sandbox)), true);
            }
        }
        let folders = std::fs::read_dir(self.shared.config.dirs.root.join("pods"))
            .into_iter()
            .flatten()
            .flatten();
        let folders = folders.filter_map(|entry| entry.file_name().into_string().ok());
        let groups = self.shared.cgroups.pods().into_iter().map(|(_, uid)| uid);
        let leftovers: HashSet<String> = folders.chain(groups).collect();
        for uid in leftovers {
            if !known.contains(&uid) && !self.workers.contains_key(&uid) {
                self.start(Arc::new(spec::remembered("", "", &uid)), true);
            }
        }
    }
}
