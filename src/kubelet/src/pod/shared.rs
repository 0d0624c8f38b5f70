//! What the workers of a node share, and what one action may use.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use parking_lot::{Mutex, RwLock};
use skiff_base::clock::Clock;
use skiff_client::{Informer, Recorder};
use skiff_cri::{Container, Sandbox};
use tokio::sync::Semaphore;

use super::spec;
use super::state::{Notes, Observed, Verdict, labels};
use crate::admission::{self, Offer};
use crate::cgroup::{Cgroups, convert};
use crate::config::Config;
use crate::env::Referred;
use crate::fields::PodFacts;
use crate::objects::{Lease, ObjectError, Objects};
use crate::resources::{self, Qos};
use crate::tokens::Tokens;
use crate::volumes::Ready;

/// Images fetched at the same time; more would only slow each other on a thin line.
const MAX_PULLS: usize = 3;

/// What is known of a pod to those outside its worker.
#[derive(Clone)]
pub struct Shown {
    /// The object as last seen.
    pub pod: Arc<Pod>,
    /// Its sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// Its containers, newest attempt first within a name.
    pub containers: Vec<Container>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// What the workers of a node share.
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// Leases on ConfigMaps and Secrets.
    pub objects: Objects,
    /// Service account tokens.
    pub tokens: Tokens,
    /// Control groups.
    pub cgroups: Cgroups,
    /// Events.
    pub recorder: Recorder,
    /// Prefix of container ids in the API.
    pub runtime_name: String,
    /// Services, for the variables that name them.
    pub services: Informer<Service>,
    /// What pods may use in all.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Memory of the node in bytes.
    pub node_memory: i64,
    /// Limits how many images are fetched at once.
    pub pulls: Semaphore,
    /// What admission looks at.
    pub offer: RwLock<Offer>,
    /// Pods by UID, for the HTTP API, admission and statistics.
    pub shown: RwLock<HashMap<String, Shown>>,
    /// Sum of cpu requests the burstable class was last given.
    burstable: Mutex<Option<convert::Limits>>,
}

impl Shared {
    /// What all workers share.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: Config,
        recorder: Recorder,
        runtime_name: String,
        services: Informer<Service>,
        cgroups: Cgroups,
        allocatable: BTreeMap<String, Quantity>,
        node_memory: i64,
    ) -> Shared {
        let offer = Offer {
            node: None,
            allocatable: allocatable.clone(),
            allowed_unsafe_sysctls: config.allowed_unsafe_sysctls.clone(),
        };
        Shared {
            objects: Objects::new(config.informers.clone()),
            tokens: Tokens::new(config.client.clone(), config.clock.clone()),
            cgroups,
            recorder,
            runtime_name,
            services,
            allocatable,
            node_memory,
            pulls: Semaphore::new(MAX_PULLS),
            offer: RwLock::new(offer),
            shown: RwLock::default(),
            burstable: Mutex::default(),
            config,
        }
    }

    /// The clock.
    pub fn clock(&self) -> &dyn Clock {
        &*self.config.clock
    }

    /// Addresses of the node as text.
    pub fn host_ips(&self) -> Vec<String> {
        self.config.node_ips.iter().map(ToString::to_string).collect()
    }

    /// Whether a sandbox was made by this node's kubelet.
    pub fn owns(&self, sandbox: &Sandbox) -> bool {
        sandbox
            .config
            .annotations
            .get(labels::NODE)
            .is_none_or(|node| *node == self.config.node_name)
    }

    /// Why a pod may not run here.
    pub fn refuse(&self, pod: &Pod) -> Option<Verdict> {
        let uid = spec::uid(pod);
        let shown = self.shown.read();
        let others = shown
            .values()
            .map(|shown| &*shown.pod)
            .filter(|other| spec::uid(other) != uid && !spec::ended(other));
        admission::refuse(pod, &self.offer.read(), others)
    }

    /// Shows a pod to those outside its worker.
    pub fn show(&self, pod: &Arc<Pod>, observed: &Observed, notes: &Notes) {
        let shown = Shown {
            pod: pod.clone(),
            sandboxes: observed.sandboxes.clone(),
            containers: observed.containers.clone(),
            ips: notes
                .network
                .as_ref()
                .map(|network| network.ips.clone())
                .unwrap_or_default(),
        };
        self.shown.write().insert(spec::uid(pod).to_owned(), shown);
    }

    /// The pod has left.
    pub fn hide(&self, uid: &str) {
        self.shown.write().remove(uid);
    }

    /// Gives the burstable class the weight its pods ask for.
    pub(super) fn weigh_classes(&self) {
        let limits = {
            let shown = self.shown.read();
            convert::burstable_limits(shown.values().map(|s| &*s.pod).filter(|pod| !spec::ended(pod)))
        };
        let mut last = self.burstable.lock();
        if *last != Some(limits) {
            match self.cgroups.ensure(&self.cgroups.class(Qos::Burstable), &limits) {
                Ok(()) => *last = Some(limits),
                Err(error) => tracing::warn!(%error, "burstable pods keep their old weight"),
            }
        }
    }
}

/// What one action may use.
pub struct Job {
    /// Shared by all pods.
    pub shared: Arc<Shared>,
    /// The pod when the action began.
    pub pod: Arc<Pod>,
    /// Leases on ConfigMaps.
    pub config_maps: BTreeMap<String, Lease<ConfigMap>>,
    /// Leases on Secrets.
    pub secrets: BTreeMap<String, Lease<Secret>>,
    /// Volumes in place.
    pub volumes: Arc<BTreeMap<String, Ready>>,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
}

impl Job {
    /// The pod's folder.
    pub fn dir(&self) -> PathBuf {
        self.shared.config.dirs.pod(spec::uid(&self.pod))
    }

    /// What fields and limits refer to.
    pub fn facts(&self) -> PodFacts {
        PodFacts {
            ips: self.ips.iter().map(ToString::to_string).collect(),
            host_ips: self.shared.host_ips(),
            allocatable: self.shared.allocatable.clone(),
        }
    }

    /// The objects the pod refers to, as they are now.
    pub async fn referred(&self) -> Result<Referred, ObjectError> {
        let mut referred = Referred::default();
        for (name, lease) in &self.config_maps {
            if let Some(map) = lease.get().await? {
                referred.config_maps.insert(name.clone(), map);
            }
        }
        for (name, lease) in &self.secrets {
            if let Some(secret) = lease.get().await? {
                referred.secrets.insert(name.clone(), secret);
            }
        }
        Ok(referred)
    }

    /// Records an event about the pod.
    pub fn warn(&self, reason: &str, message: impl Into<String>) {
        self.shared
            .recorder
            .warning(&spec::reference(&self.pod, None), reason, message);
    }

    pub(super) fn group(&self) -> String {
        self.shared
            .cgroups
            .pod(resources::qos(&self.pod), spec::uid(&self.pod))
    }
}
