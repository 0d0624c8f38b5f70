//! The loop of one pod: take what changed, plan, begin actions, publish the status, sleep.
//!
//! Inputs arrive through an [`Inbox`] that keeps only the newest of each sort, so a slow worker never grows a queue.
//! Actions run as tasks of a [`JoinSet`]; their results are inputs like any other.

mod health;
mod inbox;
mod jobs;
mod publish;
mod references;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use skiff_base::lifecycle::Shutdown;
use skiff_cri::{ContainerState, RuntimeError, Sandbox};
use tokio::task::{AbortHandle, Id, JoinSet};

pub use inbox::Inbox;
pub use references::References;

use super::apply::Done;
use super::plan::plan;
use super::shared::Shared;
use super::spec::{self, Spec};
use super::state::{Notes, Observed, Subject, labels};
use super::writer::Writer;
use super::{message, start};
use crate::probes::{ProbeKind, ProbeResult};
use crate::volumes::Ready;

/// First wait after a failed sandbox, volume or start.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest wait after a failed sandbox, volume or start.
const RETRY_MAX: Duration = Duration::from_secs(120);
/// Wait before the runtime is asked again after it could not be reached.
const OBSERVE_RETRY: Duration = Duration::from_secs(1);
/// Grace of a pod whose object vanished without one.
const GONE_GRACE_S: i64 = 1;
/// Planning steps in a row without a pause; more would mean a plan that never settles.
const MAX_STEPS: usize = 16;
/// Longest sleep: guards against a wall clock that jumps.
const MAX_SLEEP: Duration = Duration::from_secs(600);

/// One pod's worker.
pub struct Worker {
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    pod: Arc<Pod>,
    specs: Arc<Vec<Spec>>,
    observed: Observed,
    notes: Notes,
    references: References,
    volumes: Arc<BTreeMap<String, Ready>>,
    jobs: JoinSet<Done>,
    handles: HashMap<Subject, AbortHandle>,
    subjects: HashMap<Id, Subject>,
    probes: HashMap<(String, ProbeKind), AbortHandle>,
    writer: Writer,
    published: Option<PodStatus>,
    /// Version of the object that was known when that was sent.
    published_at: Option<String>,
    announced: BTreeSet<String>,
    /// The runtime was asked at least once.
    seen: bool,
    /// The runtime could not be asked since something changed.
    stale: bool,
}

impl Worker {
    /// A worker for a pod; `gone` when only the runtime still knows it.
    pub fn new(
        shared: Arc<Shared>,
        inbox: Arc<Inbox>,
        pod: Arc<Pod>,
        gone: bool,
        shutdown: &Shutdown,
    ) -> Worker {
        let writer = Writer::start(shared.config.client.clone(), pod.clone(), shutdown);
        Worker {
            specs: Arc::new(spec::specs(&pod)),
            notes: Notes {
                gone,
                ..Notes::default()
            },
            published: pod.status.clone(),
            published_at: pod.metadata.resource_version.clone(),
            shared,
            inbox,
            pod,
            observed: Observed::default(),
            references: References::default(),
            volumes: Arc::default(),
            jobs: JoinSet::new(),
            handles: HashMap::new(),
            subjects: HashMap::new(),
            probes: HashMap::new(),
            writer,
            announced: BTreeSet::new(),
            seen: false,
            stale: true,
        }
    }

    /// Runs until the pod has left the node or the kubelet stops.
    pub async fn run(mut self, shutdown: Shutdown) {
        let now = self.shared.clock().now();
        self.notes.first_seen = Some(now);
        self.refer();
        self.observe().await;
        loop {
            let wake = self.settle().await;
            if self.over() {
                break;
            }
            let now = self.shared.clock().now();
            let sleep = wake.map(|at| at.duration_since(now).unwrap_or_default().min(MAX_SLEEP));
            tokio::select! {
                () = shutdown.cancelled() => {
                    // Containers live on; so does what this worker knows, in their labels.
                    self.jobs.abort_all();
                    break;
                }
                () = self.inbox.wake.notified() => self.take().await,
                Some(done) = self.jobs.join_next_with_id(), if !self.jobs.is_empty() => self.finish(done).await,
                () = tokio::time::sleep(sleep.unwrap_or(MAX_SLEEP)), if sleep.is_some() => {
                    if self.stale {
                        self.observe().await;
                    }
                }
            }
        }
        for probe in self.probes.values() {
            probe.abort();
        }
    }

    /// The node is free of the pod and nothing of it is left to say.
    fn over(&self) -> bool {
        self.notes.cleaned
            && self.notes.purged
            && self.observed.sandboxes.is_empty()
            && self.notes.in_flight.is_empty()
            && (self.notes.gone || self.notes.finished)
    }

    /// Plans and begins actions until there is nothing to begin; returns when to look again.
    async fn settle(&mut self) -> Option<SystemTime> {
        if self.stale {
            // Whoever does not know what runs must not start anything.
            return Some(self.shared.clock().now() + OBSERVE_RETRY);
        }
        for _ in 0..MAX_STEPS {
            let now = self.shared.clock().now();
            self.stop_clock(now);
            let plan = plan(&self.pod, &self.specs, &self.observed, &self.notes, now);
            let mut begun = false;
            for action in plan.actions {
                begun |= self.begin(action);
            }
            if !begun {
                self.probe();
                self.publish();
                return [plan.wake, self.notes.renew_at].into_iter().flatten().min();
            }
        }
        tracing::error!(pod = spec::full_name(&self.pod), "plan does not settle");
        self.publish();
        Some(self.shared.clock().now() + RETRY_FIRST)
    }

    /// Keeps the deadline of a stop: the first moment it was asked for plus the grace, shortened by a shorter grace.
    fn stop_clock(&mut self, now: SystemTime) {
        let metadata = &self.pod.metadata;
        let grace = if metadata.deletion_timestamp.is_some() {
            metadata
                .deletion_grace_period_seconds
                .unwrap_or_else(|| spec::grace_s(&self.pod))
                .max(GONE_GRACE_S)
        } else if self.notes.gone {
            self.orphan_grace()
        } else if self.notes.verdict.is_some() || spec::ended(&self.pod) {
            spec::grace_s(&self.pod)
        } else {
            let done = super::plan::complete(&self.pod, &self.specs, &self.observed);
            if !done {
                self.notes.stop = None;
                return;
            }
            spec::grace_s(&self.pod)
        };
        let grace = if self.notes.gone {
            grace.min(self.orphan_grace())
        } else {
            grace
        };
        let deadline = now + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        match self.notes.stop {
            Some((_, old)) if old == grace => {}
            Some((old, _)) => self.notes.stop = Some((old.min(deadline), grace)),
            None => self.notes.stop = Some((deadline, grace)),
        }
    }

    /// Grace of a pod whose object is gone: forced deletions are quick, lost objects get what the pod was made with.
    fn orphan_grace(&self) -> i64 {
        let recorded = self.observed.sandboxes.first().and_then(|sandbox| {
            sandbox
                .config
                .annotations
                .get(labels::GRACE_S)
                .and_then(|text| text.parse().ok())
        });
        match (&self.pod.metadata.deletion_grace_period_seconds, recorded) {
            (Some(seconds), _) => (*seconds).max(GONE_GRACE_S),
            (None, Some(seconds)) => seconds,
            (None, None) => GONE_GRACE_S,
        }
    }

    /// Takes what arrived.
    async fn take(&mut self) {
        let state = self.inbox.take();
        if let Some(pod) = state.pod {
            let labels_changed = self.pod.metadata.labels != pod.metadata.labels
                || self.pod.metadata.annotations != pod.metadata.annotations;
            self.notes.volumes_dirty |= labels_changed;
            if self.pod.spec != pod.spec {
                self.specs = Arc::new(spec::specs(&pod));
                self.notes.images.clear();
            }
            self.pod = pod;
            self.refer();
        }
        self.notes.gone |= state.gone;
        if state.objects {
            self.notes.volumes_dirty = true;
            self.notes.volumes_failure = None;
            self.notes
                .start_failures
                .retain(|_, failure| failure.reason != start::CONFIG_ERROR);
        }
        for ((id, kind), result) in state.probes {
            let note = self.notes.probes.entry(id).or_default();
            match (kind, result) {
                (ProbeKind::Startup, ProbeResult::Success) => note.started = true,
                (ProbeKind::Readiness, result) => note.ready = result == ProbeResult::Success,
                (ProbeKind::Liveness, ProbeResult::Success) => {}
                (_, ProbeResult::Dead { message, grace_s }) => note.dead = Some((message, grace_s)),
                (_, ProbeResult::Failure) => {}
            }
        }
        if state.runtime || self.stale {
            self.observe().await;
        }
    }

    /// Asks the runtime what there is of this pod.
    async fn observe(&mut self) {
        let uid = spec::uid(&self.pod);
        let runtime = &self.shared.config.runtime;
        let answer =
            async { Ok::<_, RuntimeError>((runtime.sandboxes().await?, runtime.containers().await?)) };
        let (mut sandboxes, mut containers) = match answer.await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(pod = spec::full_name(&self.pod), %error, "runtime not read");
                self.stale = true;
                return;
            }
        };
        self.stale = false;
        let first = !std::mem::replace(&mut self.seen, true);
        sandboxes.retain(|sandbox| sandbox.config.uid == uid && self.shared.owns(sandbox));
        containers.retain(|container| sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox));
        self.observed = Observed::new(sandboxes, containers);
        self.messages();
        let ids: BTreeSet<&String> = self
            .observed
            .containers
            .iter()
            .map(|container| &container.id)
            .collect();
        self.notes.probes.retain(|id, _| ids.contains(id));
        self.notes.started.retain(|id| ids.contains(id));
        self.notes.messages.retain(|id, _| ids.contains(id));
        self.announced
            .retain(|id| ids.contains(id) || id.starts_with(publish::IMAGE_KEY));
        if first {
            self.adopt();
            self.admit();
        }
        self.shared.show(&self.pod, &self.observed, &self.notes);
    }

    /// Reads the termination messages of containers that have just ended.
    fn messages(&mut self) {
        for container in &self.observed.containers {
            if matches!(container.state, ContainerState::Exited { .. })
                && !self.notes.messages.contains_key(&container.id)
            {
                self.notes
                    .messages
                    .insert(container.id.clone(), message::termination_message(container));
            }
        }
    }

    /// Asks once whether the pod may run here. What runs already is never put out again.
    fn admit(&mut self) {
        let known = !self.observed.sandboxes.is_empty() || self.notes.gone || spec::ended(&self.pod);
        let begun = self
            .pod
            .status
            .as_ref()
            .is_some_and(|status| status.start_time.is_some());
        if known || begun || self.pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        if let Some(verdict) = self.shared.refuse(&self.pod) {
            self.shared.recorder.warning(
                &spec::reference(&self.pod, None),
                &verdict.reason,
                verdict.message.clone(),
            );
            self.notes.verdict = Some(verdict);
        }
    }

    /// The object is on its way out: logs and records go too.
    fn dying(&self) -> bool {
        self.notes.gone || self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// The pod a sandbox belongs to, as far as its record tells.
pub fn pod_of(sandbox: &Sandbox) -> Pod {
    spec::remembered(
        &sandbox.config.namespace,
        &sandbox.config.name,
        &sandbox.config.uid,
    )
}
