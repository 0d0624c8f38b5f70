//! The Node object: registration, status, lease.
//!
//! [`machine`] reads what the machine is, [`conditions`] decides how it is (pure), this file tells the API: the status
//! at once when it changes and every five minutes when it does not, the lease every ten seconds. An existing object is
//! adopted: labels, taints and conditions of others stay.

pub mod conditions;
pub mod lease;
pub mod machine;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_base::backoff::Backoff;
use skiff_client::{Change, Informer, Recorder};
use skiff_cri::RuntimeVersion;

use crate::config::Config;
use conditions::Health;
use machine::Machine;

/// How often a status is written that has not changed.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// How often the node looks at itself; also the period of the lease.
const CHECK: Duration = Duration::from_secs(10);
/// How long a node that was ready may take to find its network after a restart of this process.
const RESTART_GRACE: Duration = Duration::from_secs(10);
/// First wait after a failed write.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest wait after failed writes: short, for a node that comes back must be ready soon.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Conflicts answered at once before waiting.
const CONFLICTS_MAX: usize = 3;
/// Most images listed in the status; more would bloat every heartbeat.
const MAX_IMAGES: usize = 50;

/// Keeps the Node object in step with the machine.
pub struct NodeKeeper {
    config: Config,
    machine: Machine,
    capacity: BTreeMap<String, Quantity>,
    allocatable: BTreeMap<String, Quantity>,
    recorder: Recorder,
    version: Option<RuntimeVersion>,
    images: Vec<ContainerImage>,
    /// When a status was last written, and whether it said ready.
    written: Option<(std::time::Instant, bool)>,
    /// The object as last written or read.
    node: Option<Node>,
    watched: Informer<Node>,
}

impl NodeKeeper {
    /// Nothing is known of the API's object yet.
    pub fn new(
        config: Config,
        machine: Machine,
        capacity: BTreeMap<String, Quantity>,
        allocatable: BTreeMap<String, Quantity>,
        recorder: Recorder,
        watched: Informer<Node>,
    ) -> NodeKeeper {
        NodeKeeper {
            config,
            machine,
            capacity,
            allocatable,
            recorder,
            version: None,
            images: Vec::new(),
            written: None,
            node: None,
            watched,
        }
    }

    fn api(&self) -> Api<Node> {
        Api::all(self.config.client.clone())
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut lease = lease::LeaseKeeper::new(
            self.config.client.clone(),
            &self.config.node_name,
            self.config.clock.clone(),
        );
        let mut network = self.config.network_ready.clone();
        // A restart of this process is no reason to call a node down whose pods go on: what was said stays said until
        // the network is known again.
        if let Ok(node) = self.current().await
            && node.status.as_ref().is_some_and(conditions::is_ready)
        {
            let _ = tokio::time::timeout(RESTART_GRACE, network.wait_for(|ready| *ready)).await;
        }
        network.mark_unchanged();
        let mut changes = self.watched.subscribe();
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut ticks = tokio::time::interval(CHECK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut wait = None;
            if let Err(error) = self.step().await {
                tracing::warn!(node = self.config.node_name, %error, "node status not written");
                wait = Some(backoff.next());
            } else {
                let uid = self.node.as_ref().and_then(|node| node.metadata.uid.clone());
                match lease.renew(uid.as_deref()).await {
                    Ok(()) => backoff.reset(),
                    Err(error) => {
                        tracing::warn!(node = self.config.node_name, %error, "lease not renewed");
                        wait = Some(backoff.next());
                    }
                }
            }
            tokio::select! {
                () = async { tokio::time::sleep(wait.unwrap_or_default()).await }, if wait.is_some() => {}
                _ = ticks.tick(), if wait.is_none() => {}
                Ok(()) = network.changed() => {}
                Some(change) = changes.next(), if wait.is_none() => {
                    if let Change::Deleted(_) = change {
                        self.node = None;
                    }
                }
            }
        }
    }

    /// Looks at the machine and writes what must be written.
    async fn step(&mut self) -> Result<(), kube::Error> {
        self.look().await;
        for _ in 0..CONFLICTS_MAX {
            match self.write().await {
                // Deleted, or changed by others: read it (or make it) again.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    self.node = Some(self.register().await?);
                }
                other => return other,
            }
        }
        self.write().await
    }

    /// The newest object known: what was written last, or what the watch shows since.
    async fn current(&mut self) -> Result<Node, kube::Error> {
        let version = |node: &Node| {
            node.metadata
                .resource_version
                .as_deref()
                .and_then(|v| v.parse::<u64>().ok())
        };
        let watched = self.watched.get(&self.config.node_name);
        if let Some(watched) = watched
            && self
                .node
                .as_ref()
                .is_some_and(|node| version(&watched) > version(node))
        {
            self.node = Some((*watched).clone());
        }
        match &self.node {
            Some(node) => Ok(node.clone()),
            None => {
                let node = self.register().await?;
                self.node = Some(node.clone());
                Ok(node)
            }
        }
    }

    async fn write(&mut self) -> Result<(), kube::Error> {
        let node = self.current().await?;
        let monotonic = self.config.clock.monotonic();
        let base = node.status.unwrap_or_default();
        let wanted = self.status(&base, self.config.clock.now());
        let beat = self
            .written
            .is_none_or(|(at, _)| monotonic.duration_since(at) >= HEARTBEAT);
        if !beat && conditions::same(&base, &wanted) {
            return Ok(());
        }
        let body = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "status": &wanted,
        });
        let params = PatchParams::default();
        let node = self
            .api()
            .patch_status(&self.config.node_name, &params, &Patch::Merge(&body))
            .await?;
        let ready = conditions::is_ready(&wanted);
        if ready && !self.written.is_some_and(|(_, was_ready)| was_ready) {
            let message = format!("Node {} status is now: NodeReady", self.config.node_name);
            self.recorder.normal(&self.reference(), "NodeReady", message);
        }
        self.node = Some(node);
        self.written = Some((monotonic, ready));
        Ok(())
    }

    fn reference(&self) -> k8s_openapi::api::core::v1::ObjectReference {
        k8s_openapi::api::core::v1::ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.config.node_name.clone()),
            uid: Some(self.config.node_name.clone()),
            ..Default::default()
        }
    }

    async fn look(&mut self) {
        self.version = self.config.runtime.version().await.ok();
        if let Ok(mut images) = self.config.runtime.images().await {
            images.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
            self.images = images
                .into_iter()
                .take(MAX_IMAGES)
                .map(|image| ContainerImage {
                    names: Some(
                        image
                            .repo_digests
                            .into_iter()
                            .chain(image.repo_tags)
                            .take(5)
                            .collect(),
                    ),
                    size_bytes: i64::try_from(image.size_bytes).ok(),
                })
                .collect();
        }
    }

    /// Labels every node carries.
    fn labels(&self) -> BTreeMap<String, String> {
        let arch = machine::architecture();
        let mut labels: BTreeMap<String, String> = [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/arch", arch),
            ("kubernetes.io/os", "linux"),
            ("beta.kubernetes.io/arch", arch),
            ("beta.kubernetes.io/os", "linux"),
            ("node.kubernetes.io/instance-type", "skiff"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        labels.extend(self.config.node_labels.clone());
        labels
    }

    /// Finds the object or makes it; labels that are missing or wrong are set.
    async fn register(&self) -> Result<Node, kube::Error> {
        let api = self.api();
        let name = self.config.node_name.clone();
        let node = match api.get_opt(&name).await? {
            Some(node) => node,
            None => {
                let fresh = Node {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        labels: Some(self.labels()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(NodeSpec {
                        taints: Some(self.config.node_taints.clone()).filter(|taints| !taints.is_empty()),
                        ..NodeSpec::default()
                    }),
                    status: Some(self.status(&NodeStatus::default(), self.config.clock.now())),
                };
                match api.create(&PostParams::default(), &fresh).await {
                    Ok(node) => {
                        self.recorder
                            .normal(&self.reference(), "Starting", "Starting kubelet.");
                        node
                    }
                    Err(kube::Error::Api(status)) if status.code == 409 => api.get(&name).await?,
                    Err(error) => return Err(error),
                }
            }
        };
        let have = node.metadata.labels.clone().unwrap_or_default();
        let wrong: BTreeMap<String, String> = self
            .labels()
            .into_iter()
            .filter(|(key, value)| have.get(key) != Some(value))
            .collect();
        if wrong.is_empty() {
            return Ok(node);
        }
        let body = json!({"metadata": {"labels": wrong}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&body))
            .await
    }

    /// The status as it should be, built on what the API has.
    fn status(&self, base: &NodeStatus, now: SystemTime) -> NodeStatus {
        let mut addresses: Vec<NodeAddress> = self
            .config
            .node_ips
            .iter()
            .map(|ip| NodeAddress {
                type_: "InternalIP".into(),
                address: ip.to_string(),
            })
            .collect();
        addresses.push(NodeAddress {
            type_: "Hostname".into(),
            address: self.config.node_name.clone(),
        });
        let health = Health {
            runtime: self.version.is_some(),
            network: *self.config.network_ready.borrow(),
            memory_available: machine::memory_available(),
            disk: machine::disk(&self.config.dirs.root),
            pids: machine::pids(),
        };
        let old: &[NodeCondition] = base.conditions.as_deref().unwrap_or_default();
        let version = self.version.as_ref().map_or_else(
            || {
                base.node_info
                    .as_ref()
                    .map(|info| info.container_runtime_version.clone())
                    .unwrap_or_default()
            },
            |version| format!("{}://{}", version.name, version.version),
        );
        NodeStatus {
            addresses: Some(addresses),
            capacity: Some(self.capacity.clone()),
            allocatable: Some(self.allocatable.clone()),
            conditions: Some(conditions::conditions(&health, old, now)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint {
                    port: self.config.port,
                }),
            }),
            node_info: Some(NodeSystemInfo {
                architecture: machine::architecture().into(),
                boot_id: self.machine.boot_id.clone(),
                container_runtime_version: version,
                kernel_version: self.machine.kernel.clone(),
                kube_proxy_version: String::new(),
                kubelet_version: self.config.version.clone(),
                machine_id: self.machine.machine_id.clone(),
                operating_system: "linux".into(),
                os_image: self.machine.os_image.clone(),
                system_uuid: self.machine.system_uuid.clone(),
                ..NodeSystemInfo::default()
            }),
            images: Some(self.images.clone()),
            ..NodeStatus::default()
        }
    }
}
