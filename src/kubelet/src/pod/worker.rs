//! The loop of one pod: take what changed, plan, begin actions, publish the status, sleep.
//!
//! Inputs arrive through an [`Inbox`] that keeps only the newest of each sort, so a slow worker never grows a queue.
//! Actions run as tasks of a [`JoinSet`]; their results are inputs like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret};
use parking_lot::Mutex;
use skiff_base::lifecycle::Shutdown;
use skiff_cri::{ContainerState, RuntimeError, Sandbox};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinSet};

use super::apply::{Done, Job, Shared};
use super::plan::{Action, plan};
use super::spec::{self, Kind, Spec};
use super::state::{Failure, ImageNote, Network, Notes, Observed, ProbeNote, Subject, labels};
use super::status::{Facts, OWN_CONDITIONS, status};
use super::writer::Writer;
use super::{apply, image, kill, start};
use crate::env;
use crate::objects::Lease;
use crate::probes::{self, ProbeKind, ProbeResult};
use crate::volumes::{self, Ready};

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

/// What may have changed since the worker last looked.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<InboxState>,
    wake: Notify,
}

#[derive(Default)]
struct InboxState {
    pod: Option<Arc<Pod>>,
    gone: bool,
    runtime: bool,
    objects: bool,
    probes: BTreeMap<(String, ProbeKind), ProbeResult>,
}

impl Inbox {
    fn put(&self, change: impl FnOnce(&mut InboxState)) {
        change(&mut self.state.lock());
        self.wake.notify_one();
    }

    /// The object is now this.
    pub fn pod(&self, pod: Arc<Pod>) {
        self.put(|state| state.pod = Some(pod));
    }

    /// The object is gone from the API.
    pub fn gone(&self) {
        self.put(|state| state.gone = true);
    }

    /// The runtime's state of this pod changed.
    pub fn runtime(&self) {
        self.put(|state| state.runtime = true);
    }

    /// A ConfigMap, Secret or service the pod uses changed.
    pub fn objects(&self) {
        self.put(|state| state.objects = true);
    }

    /// A probe came to a conclusion.
    pub fn probe(&self, id: String, kind: ProbeKind, result: ProbeResult) {
        self.put(|state| {
            state.probes.insert((id, kind), result);
        });
    }
}

/// Leases on the objects a pod refers to.
#[derive(Default)]
pub struct References {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, Lease<ConfigMap>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Lease<Secret>>,
    followers: HashMap<(&'static str, String), tokio::task::JoinHandle<()>>,
}

impl Drop for References {
    fn drop(&mut self) {
        for follower in self.followers.values() {
            follower.abort();
        }
    }
}

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
        let state = std::mem::take(&mut *self.inbox.state.lock());
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
        self.announced.retain(|id| ids.contains(id));
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
                    .insert(container.id.clone(), start::termination_message(container));
            }
        }
    }

    /// Containers found running belong to an earlier life of this process: they are started, and as ready as the API
    /// says they were until a probe says otherwise.
    fn adopt(&mut self) {
        for container in self.observed.running() {
            let id = format!("{}://{}", self.shared.runtime_name, container.id);
            let old = spec::old_status(self.pod.status.as_ref(), &container.name)
                .filter(|old| old.container_id.as_ref() == Some(&id));
            let Some(spec) = self
                .specs
                .iter()
                .find(|spec| spec.container.name == container.name)
            else {
                continue;
            };
            self.notes.started.insert(container.id.clone());
            let started =
                spec.container.startup_probe.is_none() || old.is_some_and(|old| old.started == Some(true));
            let ready = spec.container.readiness_probe.is_none() || old.is_some_and(|old| old.ready);
            self.notes.probes.insert(
                container.id.clone(),
                ProbeNote {
                    started,
                    ready,
                    dead: None,
                },
            );
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

    /// Leases the objects the pod refers to and follows their changes.
    fn refer(&mut self) {
        let namespace = spec::namespace(&self.pod).to_owned();
        let (maps, secrets) = volumes::referred_names(&self.pod);
        let (mut maps, mut secrets): (BTreeSet<String>, BTreeSet<String>) =
            (maps.into_iter().collect(), secrets.into_iter().collect());
        for spec in self.specs.iter() {
            let (more_maps, more_secrets) = env::referred_names(&spec.container);
            maps.extend(more_maps);
            secrets.extend(more_secrets);
        }
        let pull = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        secrets.extend(pull.map(|reference| reference.name.clone()));
        if self.notes.gone || spec::ended(&self.pod) {
            maps.clear();
            secrets.clear();
        }
        maps.remove("");
        secrets.remove("");
        let references = &mut self.references;
        references.config_maps.retain(|name, _| maps.contains(name));
        references.secrets.retain(|name, _| secrets.contains(name));
        references.followers.retain(|(kind, name), follower| {
            let keep = if *kind == "configmap" {
                maps.contains(name)
            } else {
                secrets.contains(name)
            };
            if !keep {
                follower.abort();
            }
            keep
        });
        for name in maps {
            if !references.config_maps.contains_key(&name) {
                let lease = self.shared.objects.lease::<ConfigMap>(&namespace, &name);
                let inbox = self.inbox.clone();
                let mut changes = lease.changes();
                let follower = tokio::spawn(async move {
                    while changes.next().await.is_some() {
                        inbox.objects();
                    }
                });
                references.followers.insert(("configmap", name.clone()), follower);
                references.config_maps.insert(name, lease);
            }
        }
        for name in secrets {
            if !references.secrets.contains_key(&name) {
                let lease = self.shared.objects.lease::<Secret>(&namespace, &name);
                let inbox = self.inbox.clone();
                let mut changes = lease.changes();
                let follower = tokio::spawn(async move {
                    while changes.next().await.is_some() {
                        inbox.objects();
                    }
                });
                references.followers.insert(("secret", name.clone()), follower);
                references.secrets.insert(name, lease);
            }
        }
    }

    fn job(&self) -> Job {
        Job {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            config_maps: self.references.config_maps.clone(),
            secrets: self.references.secrets.clone(),
            volumes: self.volumes.clone(),
            ips: self
                .notes
                .network
                .as_ref()
                .map(|network| network.ips.clone())
                .unwrap_or_default(),
        }
    }

    fn spec(&self, name: &str) -> Option<Spec> {
        self.specs
            .iter()
            .find(|spec| spec.container.name == name)
            .cloned()
    }

    /// Begins an action. True when the plan should be asked again at once.
    fn begin(&mut self, action: Action) -> bool {
        let now = self.shared.clock().now();
        let job = self.job();
        let Some(subject) = action.subject() else {
            return match action {
                Action::Fail(verdict) => {
                    self.shared.recorder.normal(
                        &spec::reference(&self.pod, None),
                        &verdict.reason,
                        verdict.message.clone(),
                    );
                    self.notes.verdict = Some(verdict);
                    true
                }
                Action::Abort(subject) => {
                    if let Some(handle) = self.handles.get(&subject) {
                        handle.abort();
                    }
                    false
                }
                _ => false,
            };
        };
        if matches!(
            action,
            Action::RemoveSandbox { .. } | Action::CleanUp | Action::Finish
        ) {
            self.keep_final_status();
        }
        let mut deadline = None;
        let handle = match action {
            Action::RunSandbox { attempt } => self.jobs.spawn(apply::run_sandbox(job, attempt)),
            Action::Attach { sandbox } => {
                let sandbox = self.observed.sandboxes.iter().find(|s| s.id == sandbox).cloned();
                let Some(sandbox) = sandbox else { return false };
                self.jobs.spawn(apply::attach(job, sandbox))
            }
            Action::StopSandbox { sandbox } => self.jobs.spawn(apply::stop_sandbox(job, sandbox)),
            Action::RemoveSandbox { sandbox } => self.jobs.spawn(apply::remove_sandbox(job, sandbox)),
            Action::SetUpVolumes => {
                self.notes.volumes_dirty = false;
                self.notes.renew_at = None;
                self.jobs.spawn(apply::set_up_volumes(job))
            }
            Action::EnsureImage { container } => {
                let Some(spec) = self.spec(&container) else {
                    return false;
                };
                let previous = match self.notes.images.get(&container) {
                    Some(ImageNote::Failed(failure)) => Some(failure.clone()),
                    _ => None,
                };
                self.jobs.spawn(image::ensure(job, spec, previous))
            }
            Action::Start {
                container,
                attempt,
                backoff_s,
                image,
                replaces,
            } => {
                let (Some(spec), Some(sandbox)) = (self.spec(&container), self.observed.sandbox().cloned())
                else {
                    return false;
                };
                let target = match &spec.kind {
                    Kind::Ephemeral { target: Some(target) } => {
                        self.observed.latest(target).map(|container| container.id.clone())
                    }
                    _ => None,
                };
                let request = start::Request {
                    spec,
                    sandbox,
                    attempt,
                    backoff_s,
                    image,
                    replaces,
                    target,
                };
                let inbox = self.inbox.clone();
                self.jobs
                    .spawn(start::start(job, request, move || inbox.runtime()))
            }
            Action::Kill {
                id,
                name,
                deadline: at,
                message,
                hook,
            } => {
                deadline = Some(at);
                let hook = hook && !self.handles.contains_key(&subject);
                if let Some(earlier) = self.handles.remove(&subject) {
                    earlier.abort();
                }
                let spec = self.spec(&name);
                self.jobs.spawn(kill::kill(
                    job,
                    kill::Request {
                        id,
                        name,
                        spec,
                        deadline: at,
                        message,
                        hook,
                    },
                ))
            }
            Action::Remove { id } => {
                let log = self
                    .observed
                    .containers
                    .iter()
                    .find(|c| c.id == id)
                    .and_then(|c| c.log_path.clone());
                self.jobs.spawn(apply::remove_container(job, id, log))
            }
            Action::CleanUp => self.jobs.spawn(apply::clean_up(job, self.dying())),
            Action::Finish => {
                let writer = self.writer.clone();
                self.jobs.spawn(apply::finish(job, writer))
            }
            Action::Fail(_) | Action::Abort(_) => return false,
        };
        let _ = now;
        self.subjects.insert(handle.id(), subject.clone());
        self.handles.insert(subject.clone(), handle);
        self.notes.in_flight.insert(subject, deadline);
        true
    }

    /// The object is on its way out: logs and records go too.
    fn dying(&self) -> bool {
        self.notes.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Containers are about to be removed: the status computed now is the last that knows them.
    fn keep_final_status(&mut self) {
        if self.notes.final_status.is_none() && self.dying() {
            self.notes.final_status = Some(Box::new(self.compute()));
        }
    }

    /// Takes the result of a task.
    async fn finish(&mut self, done: Result<(Id, Done), tokio::task::JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(subject) = self.subjects.remove(&id) else {
            return;
        };
        if self.handles.get(&subject).is_none_or(|handle| handle.id() != id) {
            return;
        }
        self.handles.remove(&subject);
        self.notes.in_flight.remove(&subject);
        let now = self.shared.clock().now();
        match done {
            Ok((_, done)) => self.result(&subject, done, now),
            Err(error) if error.is_panic() => {
                tracing::error!(pod = spec::full_name(&self.pod), ?subject, "task ended by a bug");
                let failure = Failure::after(
                    None,
                    now,
                    RETRY_MAX,
                    RETRY_MAX,
                    "InternalError",
                    "internal error".into(),
                );
                self.fail(&subject, failure);
            }
            Err(_) => {}
        }
        if !matches!(subject, Subject::Image(_) | Subject::Volumes | Subject::Finish) {
            self.observe().await;
        }
    }

    fn fail(&mut self, subject: &Subject, failure: Failure) {
        match subject {
            Subject::Volumes => self.notes.volumes_failure = Some(failure),
            Subject::Start(name) => {
                self.notes.start_failures.insert(name.clone(), failure);
            }
            Subject::Image(name) => {
                self.notes.images.insert(name.clone(), ImageNote::Failed(failure));
            }
            _ => self.notes.sandbox_failure = Some(failure),
        }
    }

    fn result(&mut self, subject: &Subject, done: Done, now: SystemTime) {
        let retry = |previous: Option<&Failure>, reason: &str, message: String| {
            Failure::after(previous, now, RETRY_FIRST, RETRY_MAX, reason, message)
        };
        match done {
            Done::Connected { sandbox, ips } => {
                self.notes.sandbox_failure = None;
                self.notes.network = Some(Network { sandbox, ips });
            }
            Done::Disconnected { sandbox } => {
                self.notes.sandbox_failure = None;
                if self
                    .notes
                    .network
                    .as_ref()
                    .is_some_and(|network| network.sandbox == sandbox)
                {
                    self.notes.network = None;
                }
            }
            Done::Volumes(Ok((volumes, renew_at))) => {
                self.volumes = Arc::new(volumes);
                self.notes.volumes_ready = true;
                self.notes.volumes_failure = None;
                self.notes.renew_at = renew_at;
            }
            Done::Volumes(Err(message)) => {
                let failure = retry(self.notes.volumes_failure.as_ref(), "FailedMount", message);
                if self.notes.volumes_ready {
                    // Running containers keep the files they have; try again later.
                    self.notes.renew_at = Some(failure.retry_at);
                }
                self.notes.volumes_failure = Some(failure);
            }
            Done::Image(Ok(image)) => {
                if let Subject::Image(name) = subject {
                    self.notes.images.insert(name.clone(), ImageNote::Present(image));
                }
            }
            Done::Image(Err(failure)) => self.fail(subject, failure),
            Done::Started { id } => {
                if let Subject::Start(name) = subject {
                    self.notes.start_failures.remove(name);
                    self.notes.images.remove(name);
                    self.begun(name, id);
                }
            }
            Done::NotStarted {
                reason,
                message,
                created,
            } => {
                if let Subject::Start(name) = subject {
                    self.notes.images.remove(name);
                    let failure = retry(self.notes.start_failures.get(name), &reason, message);
                    // A container that was created counts as ended: its restart waits by the crash-loop rules.
                    if !created {
                        self.notes.start_failures.insert(name.clone(), failure);
                    } else {
                        self.notes.start_failures.remove(name);
                    }
                }
            }
            Done::Cleaned(Ok(())) => {
                self.notes.cleaned = true;
                self.notes.volumes_ready = false;
                self.notes.sandbox_failure = None;
            }
            Done::Cleaned(Err(message)) | Done::SandboxFailed(message) => {
                let failure = retry(
                    self.notes.sandbox_failure.as_ref(),
                    "FailedCreatePodSandBox",
                    message,
                );
                self.notes.sandbox_failure = Some(failure);
            }
            Done::Finished => self.notes.finished = true,
            Done::Nothing => {}
        }
    }

    /// A container was started: its probes begin.
    fn begun(&mut self, name: &str, id: String) {
        let Some(spec) = self.spec(name) else { return };
        self.notes.started.insert(id.clone());
        let note = ProbeNote {
            started: spec.container.startup_probe.is_none(),
            ready: spec.container.readiness_probe.is_none(),
            dead: None,
        };
        self.notes.probes.entry(id).or_insert(note);
    }

    /// Runs exactly the probes that should run.
    fn probe(&mut self) {
        let mut wanted: HashMap<(String, ProbeKind), (Spec, Option<SystemTime>)> = HashMap::new();
        let stopping = self.notes.stop.is_some();
        for container in self
            .observed
            .running()
            .filter(|container| self.notes.started.contains(&container.id))
        {
            let Some(spec) = self
                .specs
                .iter()
                .find(|spec| spec.container.name == container.name)
            else {
                continue;
            };
            let note = self.notes.probes.get(&container.id);
            let started = note.is_none_or(|note| note.started);
            let dead = note.is_some_and(|note| note.dead.is_some());
            for kind in ProbeKind::ALL {
                let due = match kind {
                    ProbeKind::Startup => !started && !dead,
                    ProbeKind::Liveness => started && !dead && !stopping,
                    ProbeKind::Readiness => started && !(stopping && self.dying()),
                };
                if due && spec.probe(kind).is_some() {
                    wanted.insert((container.id.clone(), kind), (spec.clone(), container.started_at));
                }
            }
        }
        self.probes.retain(|key, handle| {
            let keep = wanted.contains_key(key);
            if !keep {
                handle.abort();
            }
            keep
        });
        for ((id, kind), (spec, started_at)) in wanted {
            if self.probes.contains_key(&(id.clone(), kind)) {
                continue;
            }
            let Some(probe) = spec.probe(kind).cloned() else {
                continue;
            };
            let host = if spec::host_network(&self.pod) {
                self.shared.config.node_ips.first().copied()
            } else {
                self.notes
                    .network
                    .as_ref()
                    .and_then(|network| network.ips.first().copied())
            };
            let was_ready = self.notes.probes.get(&id).is_some_and(|note| note.ready);
            let target = probes::Target {
                runtime: self.shared.config.runtime.clone(),
                id: id.clone(),
                host,
                container: spec.container.clone(),
            };
            let inbox = self.inbox.clone();
            let recorder = self.shared.recorder.clone();
            let reference = spec::reference(&self.pod, Some(spec.field_path()));
            let running_for = started_at
                .and_then(|at| self.shared.clock().now().duration_since(at).ok())
                .unwrap_or_default();
            let task_id = id.clone();
            let handle = tokio::spawn(async move {
                probes::run(
                    kind,
                    probe,
                    target,
                    running_for,
                    was_ready,
                    &recorder,
                    &reference,
                    |result| {
                        inbox.probe(task_id.clone(), kind, result);
                    },
                )
                .await;
            });
            self.probes.insert((id, kind), handle.abort_handle());
        }
    }

    fn compute(&self) -> PodStatus {
        let facts = Facts {
            host_ips: self.shared.host_ips(),
            runtime: self.shared.runtime_name.clone(),
        };
        let pod = self.pod_as_published();
        status(
            &pod,
            &self.specs,
            &self.observed,
            &self.notes,
            &facts,
            self.shared.clock().now(),
        )
    }

    /// The pod with the status sent last: what the watch shows may be older. Others' conditions, and an end others
    /// declared, come from the watch.
    fn pod_as_published(&self) -> Pod {
        let mut pod = (*self.pod).clone();
        let Some(published) = &self.published else {
            return pod;
        };
        let seen = pod.status.take().unwrap_or_default();
        let mut status = published.clone();
        let own = |type_: &str| OWN_CONDITIONS.contains(&type_);
        let mut conditions = status.conditions.take().unwrap_or_default();
        conditions.retain(|condition| own(&condition.type_));
        conditions.extend(
            seen.conditions
                .into_iter()
                .flatten()
                .filter(|condition| !own(&condition.type_)),
        );
        status.conditions = Some(conditions);
        if spec::ended(&self.pod) {
            (status.phase, status.reason, status.message) = (seen.phase, seen.reason, seen.message);
        }
        pod.status = Some(status);
        pod
    }

    /// Sends the status when it differs from the last one sent.
    fn publish(&mut self) {
        self.shared.show(&self.pod, &self.observed, &self.notes);
        if self.notes.gone || self.notes.finished {
            return;
        }
        let new = match &self.notes.final_status {
            Some(status) => (**status).clone(),
            None => self.compute(),
        };
        self.announce(&new);
        if self.published.as_ref().is_some_and(|old| same(old, &new)) {
            return;
        }
        self.published = Some(new.clone());
        self.writer.send(self.pod.clone(), new);
    }

    /// Tells once for each ended container that its restart is put off.
    fn announce(&mut self, new: &PodStatus) {
        let lists = [&new.init_container_statuses, &new.container_statuses];
        for status in lists.into_iter().flatten().flatten() {
            let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
            let Some(id) = status
                .container_id
                .as_deref()
                .and_then(|id| id.split("://").nth(1))
            else {
                continue;
            };
            if waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff")
                && self.announced.insert(id.to_owned())
            {
                let path = self
                    .specs
                    .iter()
                    .find(|spec| spec.container.name == status.name)
                    .map(Spec::field_path);
                self.shared.recorder.warning(
                    &spec::reference(&self.pod, path),
                    "BackOff",
                    format!(
                        "Back-off restarting failed container {} in pod {}",
                        status.name,
                        spec::full_name(&self.pod)
                    ),
                );
            }
        }
    }
}

/// Whether two statuses say the same in everything this kubelet writes.
fn same(old: &PodStatus, new: &PodStatus) -> bool {
    let strip = |status: &PodStatus| {
        let mut status = status.clone();
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| OWN_CONDITIONS.contains(&condition.type_.as_str()));
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    strip(old) == strip(new)
}

/// The pod a sandbox belongs to, as far as its record tells.
pub fn pod_of(sandbox: &Sandbox) -> Pod {
    spec::remembered(
        &sandbox.config.namespace,
        &sandbox.config.name,
        &sandbox.config.uid,
    )
}
