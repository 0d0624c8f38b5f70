//! Finds a node for every pod that has none.
//!
//! Pods wait in a queue of names. One at a time is taken and judged against
//! all nodes: [`filter`] says where it can run and why not elsewhere, [`score`]
//! says where it runs best. The decision is remembered at once ([`Assumed`]) so
//! that the next pod sees it, and the binding is written in the background:
//! many bindings share one commit of the store.
//!
//! A pod that fits nowhere is told so (condition `PodScheduled=False`, event
//! `FailedScheduling`) and waits until something changes that could help it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use parking_lot::Mutex;
use serde_json::json;
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics;
use skiff_client::informer::{key_of, split_key};
use skiff_client::{Change, Client, Informer, Informers, Recorder, WorkQueue};

pub mod affinity;
pub mod cluster;
pub mod filter;
pub mod resources;
pub mod score;

use cluster::Cluster;

/// The scheduler pods name when they name none.
pub const NAME: &str = "default-scheduler";

/// What the scheduler is given.
#[derive(Clone)]
pub struct Context {
    /// Bindings go through this.
    pub client: Client,
    /// Pods and nodes come from these.
    pub informers: Informers,
    /// Records events as the scheduler.
    pub recorder: Recorder,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// When to stop.
    pub shutdown: Shutdown,
}

/// Decisions that the informer does not show yet: pod uid to node.
#[derive(Debug, Default)]
struct Assumed(Mutex<HashMap<String, (Arc<Pod>, String)>>);

/// Starts the scheduler. It ends with `context.shutdown`.
pub fn start(context: &Context) {
    let pods: Informer<Pod> = context.informers.get();
    let nodes: Informer<Node> = context.informers.get();
    let scheduler = Arc::new(Scheduler {
        context: context.clone(),
        pods: pods.clone(),
        nodes: nodes.clone(),
        queue: WorkQueue::new(),
        assumed: Assumed::default(),
        unschedulable: Mutex::default(),
    });
    let feed = scheduler.clone();
    let mut changes = pods.subscribe();
    context
        .shutdown
        .spawn_until_cancelled("scheduler pods", async move {
            while let Some(change) = changes.next().await {
                feed.pod_changed(&change);
            }
        });
    let feed = scheduler.clone();
    let mut changes = nodes.subscribe();
    context
        .shutdown
        .spawn_until_cancelled("scheduler nodes", async move {
            while let Some(change) = changes.next().await {
                if node_change_matters(&change) {
                    feed.wake_unschedulable();
                }
            }
        });
    let shutdown = context.shutdown.clone();
    context.shutdown.spawn("scheduler", async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = async { pods.synced().await; nodes.synced().await; } => {}
        }
        let queue = scheduler.queue.clone();
        queue
            .run(1, &shutdown, |key| {
                let scheduler = scheduler.clone();
                async move { scheduler.schedule(&key).await }
            })
            .await;
    });
}

/// Heartbeats are no reason to judge all waiting pods again.
fn node_change_matters(change: &Change<Node>) -> bool {
    match change {
        Change::Applied { old: Some(old), new } => {
            let allocatable =
                |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || allocatable(old) != allocatable(new)
        }
        Change::Applied { old: None, .. } => true,
        Change::Deleted(_) => false,
    }
}

fn is_waiting(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|spec| {
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
            && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
    }) && pod.metadata.deletion_timestamp.is_none()
        && !cluster::is_finished(pod)
}

struct Scheduler {
    context: Context,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    queue: WorkQueue<String>,
    assumed: Assumed,
    unschedulable: Mutex<BTreeSet<String>>,
}

impl Scheduler {
    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let gone = matches!(change, Change::Deleted(_));
        if (bound || gone)
            && let Some(uid) = &pod.metadata.uid
        {
            self.assumed.0.lock().remove(uid);
        }
        if gone || (bound && cluster::is_finished(pod)) {
            self.unschedulable.lock().remove(&key_of(&**pod));
            if bound {
                self.wake_unschedulable();
            }
        } else if is_waiting(pod) {
            // Our own note that it does not fit is no reason to look again.
            let spec_changed = match change {
                Change::Applied { old: Some(old), new } => {
                    old.spec != new.spec || old.metadata.labels != new.metadata.labels
                }
                _ => true,
            };
            if spec_changed {
                self.queue.add(key_of(&**pod));
            }
        } else if bound {
            // It may be what another pod wants to be near of.
            if matches!(change, Change::Applied { old: Some(old), .. } if old.spec.as_ref().is_some_and(|s| s.node_name.is_none()))
            {
                self.wake_unschedulable();
            }
        }
    }

    fn wake_unschedulable(&self) {
        for key in std::mem::take(&mut *self.unschedulable.lock()) {
            self.queue.add(key);
        }
    }

    async fn schedule(self: &Arc<Self>, key: &str) -> Result<Option<Duration>, kube::Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| is_waiting(pod)) else {
            return Ok(None);
        };
        if pod
            .metadata
            .uid
            .as_ref()
            .is_some_and(|uid| self.assumed.0.lock().contains_key(uid))
        {
            return Ok(None);
        }
        let started = self.context.clock.monotonic();
        let assumed: Vec<(Arc<Pod>, String)> = self.assumed.0.lock().values().cloned().collect();
        let cluster = Cluster::new(&self.nodes.list(), &self.pods.list(), &assumed);
        let decision = decide(&pod, &cluster);
        let seconds = self
            .context
            .clock
            .monotonic()
            .saturating_duration_since(started)
            .as_secs_f64();
        metrics::global()
            .histogram(
                "scheduler_scheduling_algorithm_duration_seconds",
                "Time to choose a node.",
                &[0.0001, 0.001, 0.01, 0.1, 1.0],
            )
            .observe(seconds);
        match decision {
            Ok(node) => self.bind(pod, node),
            Err(reason) => {
                self.unschedulable.lock().insert(key.to_owned());
                self.tell(&pod, &reason).await?;
            }
        }
        Ok(None)
    }

    /// Writes the binding in the background; the decision counts from now on.
    fn bind(self: &Arc<Self>, pod: Arc<Pod>, node: String) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        self.assumed
            .0
            .lock()
            .insert(uid.clone(), (pod.clone(), node.clone()));
        let this = self.clone();
        self.context.shutdown.spawn("bind", async move {
            let key = key_of(&*pod);
            let (namespace, name) = split_key(&key);
            let about = pod.object_ref(&());
            match this.write_binding(namespace.unwrap_or_default(), name, &uid, &node).await {
                Ok(()) => {
                    let message = format!("Successfully assigned {key} to {node}");
                    this.context.recorder.normal(&about, "Scheduled", message);
                }
                Err(error) => {
                    this.assumed.0.lock().remove(&uid);
                    let gone = matches!(&error, kube::Error::Api(status) if status.code == 404 || status.code == 409);
                    if !gone {
                        tracing::warn!(pod = %key, %node, %error, "binding failed");
                        this.context.recorder.warning(&about, "FailedScheduling", format!("Binding rejected: {}", skiff_client::message(&error)));
                        this.queue.add_after(key, Duration::from_secs(1));
                    }
                }
            }
        });
    }

    async fn write_binding(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        node: &str,
    ) -> Result<(), kube::Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                uid: Some(uid.to_owned()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace);
        api.create_subresource::<_, serde_json::Value>("binding", name, &PostParams::default(), &binding)
            .await
            .map(drop)
    }

    async fn tell(&self, pod: &Pod, reason: &str) -> Result<(), kube::Error> {
        let condition = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .find(|condition| condition.type_ == "PodScheduled");
        self.context
            .recorder
            .warning(&pod.object_ref(&()), "FailedScheduling", reason);
        if condition.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(reason)) {
            return Ok(());
        }
        let now = jiff::Timestamp::try_from(self.context.clock.now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let patch = json!({"status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": reason,
            "lastTransitionTime": Time(now),
        }]}});
        let key = key_of(pod);
        let (namespace, name) = split_key(&key);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace.unwrap_or_default());
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        }
    }
}

/// The best node for a pod, or why there is none, in the words of Kubernetes:
/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`
pub fn decide(pod: &Pod, cluster: &Cluster) -> Result<String, String> {
    if cluster.nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let request = filter::Request::new(pod, cluster);
    let mut reasons: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    let mut feasible = Vec::new();
    for node in &cluster.nodes {
        let why_not = filter::why_not(&request, node);
        if why_not.is_empty() {
            feasible.push(node);
        }
        for reason in why_not {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    if feasible.is_empty() {
        let list: Vec<String> = reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        return Err(format!(
            "0/{} nodes are available: {}.",
            cluster.nodes.len(),
            list.join(", ")
        ));
    }
    let best = score::best(&request, &feasible);
    Ok(best.name.clone())
}

#[cfg(test)]
mod tests;
