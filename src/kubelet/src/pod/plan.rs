//! What to do next for a pod: a pure function of the object, the runtime's state and the notes.
//!
//! The order of a start: sandbox and volumes side by side; then init containers one by one (a sidecar counts as done
//! once it is started); then all containers. A stop runs backwards: containers together, sidecars in reverse order,
//! sandbox, leftovers, and for a deleted pod the API object last. Whatever waits for a moment in time puts it into
//! [`Plan::wake`]; whatever waits for anything else is looked at again when that changes.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use skiff_cri::{Container, ContainerState};

use super::spec::{self, Kind, Spec};
use super::state::{
    ImageNote, Notes, Observed, RESTART_BACKOFF_FIRST_S, Subject, Verdict, labels, next_backoff,
};

/// A kill under way is shortened only when the new deadline is earlier by more than this: clocks are not exact.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a sandbox and connect it.
    RunSandbox {
        /// Counts the sandboxes of the pod.
        attempt: u32,
    },
    /// Connect a sandbox that exists already, or learn its addresses.
    Attach {
        /// Sandbox id.
        sandbox: String,
    },
    /// Disconnect and stop a sandbox; its containers' records stay.
    StopSandbox {
        /// Sandbox id.
        sandbox: String,
    },
    /// Disconnect and remove a sandbox with its containers.
    RemoveSandbox {
        /// Sandbox id.
        sandbox: String,
    },
    /// Put volumes and files in place.
    SetUpVolumes,
    /// Look for an image, fetch it if the policy says so.
    EnsureImage {
        /// Container name.
        container: String,
    },
    /// Create and start a container.
    Start {
        /// Container name.
        container: String,
        /// Restart count.
        attempt: u32,
        /// Back-off after this container's exit, in seconds.
        backoff_s: u64,
        /// Image id.
        image: String,
        /// A record of an earlier, unfinished try that is in the way.
        replaces: Option<String>,
    },
    /// End a running container.
    Kill {
        /// Container id.
        id: String,
        /// Container name.
        name: String,
        /// SIGKILL at this time.
        deadline: SystemTime,
        /// Why, as the event says it.
        message: String,
        /// Run the preStop hook first.
        hook: bool,
    },
    /// Remove the record of an ended container.
    Remove {
        /// Container id.
        id: String,
    },
    /// The pod must fail.
    Fail(Verdict),
    /// Give up work under way that makes no sense any more.
    Abort(Subject),
    /// Remove volumes, files and control groups.
    CleanUp,
    /// Remove the pod from the API.
    Finish,
}

impl Action {
    /// What the action works on; `None` for those that take no time.
    pub fn subject(&self) -> Option<Subject> {
        Some(match self {
            Action::RunSandbox { .. }
            | Action::Attach { .. }
            | Action::StopSandbox { .. }
            | Action::RemoveSandbox { .. } => Subject::Sandbox,
            Action::SetUpVolumes => Subject::Volumes,
            Action::EnsureImage { container } => Subject::Image(container.clone()),
            Action::Start { container, .. } => Subject::Start(container.clone()),
            Action::Kill { id, .. } => Subject::Kill(id.clone()),
            Action::Remove { id } => Subject::Remove(id.clone()),
            Action::CleanUp => Subject::CleanUp,
            Action::Finish => Subject::Finish,
            Action::Fail(_) | Action::Abort(_) => return None,
        })
    }
}

/// What to do now and when to look again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Steps, to be begun in this order; they may run side by side.
    pub actions: Vec<Action>,
    /// The next moment something is due.
    pub wake: Option<SystemTime>,
}

impl Plan {
    fn wake_at(&mut self, at: SystemTime) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Whether and when an ended container starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Not again.
    Never,
    /// At once.
    Now {
        /// Back-off the next one is created with.
        backoff_s: u64,
    },
    /// After a back-off.
    At {
        /// When.
        at: SystemTime,
        /// How long the back-off is.
        delay: Duration,
        /// Back-off the next one is created with.
        backoff_s: u64,
    },
}

/// Whether policy starts an ended container again, whatever the moment.
fn wants_restart(pod: &Pod, spec: &Spec, exit_code: i32) -> bool {
    for rule in spec.container.restart_policy_rules.iter().flatten() {
        if let Some(codes) = &rule.exit_codes {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if listed == (codes.operator == "In") && rule.action.starts_with("Restart") {
                return true;
            }
        }
    }
    match spec.kind {
        Kind::Ephemeral { .. } => false,
        Kind::Sidecar => true,
        Kind::Init => exit_code != 0 && own_policy(pod, spec) != "Never",
        Kind::Main => match own_policy(pod, spec) {
            "Never" => false,
            "OnFailure" => exit_code != 0,
            _ => true,
        },
    }
}

fn own_policy<'a>(pod: &'a Pod, spec: &'a Spec) -> &'a str {
    spec.container
        .restart_policy
        .as_deref()
        .unwrap_or_else(|| spec::restart_policy(pod))
}

/// Whether and when an ended container starts again. `sandbox` is the one it would start in.
pub fn restart(
    pod: &Pod,
    spec: &Spec,
    container: &Container,
    sandbox: Option<&str>,
    now: SystemTime,
) -> Restart {
    let ContainerState::Exited {
        exit_code,
        finished_at,
        ..
    } = container.state
    else {
        return Restart::Now { backoff_s: 0 };
    };
    if !wants_restart(pod, spec, exit_code) {
        return Restart::Never;
    }
    if sandbox.is_some_and(|sandbox| sandbox != container.sandbox) {
        // The pod moved to a new sandbox (a reboot): what ended then did not crash.
        return Restart::Now {
            backoff_s: RESTART_BACKOFF_FIRST_S,
        };
    }
    let (delay, backoff_s) = next_backoff(container);
    // A wall clock that jumped must not stretch the wait: never longer than the delay from now.
    let at = finished_at.checked_add(delay).unwrap_or(now).min(now + delay);
    if delay.is_zero() || at <= now {
        Restart::Now { backoff_s }
    } else {
        Restart::At { at, delay, backoff_s }
    }
}

/// Whether every container has ended for good, or an init container failed for good.
pub fn complete(pod: &Pod, specs: &[Spec], observed: &Observed) -> bool {
    let ended = |spec: &Spec| match observed
        .latest(&spec.container.name)
        .map(|container| &container.state)
    {
        Some(ContainerState::Exited { exit_code, .. }) => {
            (!wants_restart(pod, spec, *exit_code)).then_some(*exit_code)
        }
        _ => None,
    };
    let mut mains = specs.iter().filter(|spec| spec.kind == Kind::Main).peekable();
    if mains.peek().is_none() {
        return false;
    }
    if mains.all(|spec| ended(spec).is_some()) {
        return true;
    }
    let main_exists = specs
        .iter()
        .any(|spec| spec.kind == Kind::Main && observed.latest(&spec.container.name).is_some());
    !main_exists
        && specs
            .iter()
            .any(|spec| spec.kind == Kind::Init && ended(spec).is_some_and(|exit_code| exit_code != 0))
}

/// The moment `activeDeadlineSeconds` is used up.
fn active_deadline(pod: &Pod, notes: &Notes) -> Option<SystemTime> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let begun = pod
        .status
        .as_ref()
        .and_then(|status| status.start_time.as_ref())
        .map(|time| time.0.into());
    let begun: SystemTime = begun.or(notes.first_seen)?;
    begun.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

/// When a pod that stops must have stopped.
pub fn stop_deadline(notes: &Notes, now: SystemTime) -> SystemTime {
    notes.stop.map_or(now, |(deadline, _)| deadline)
}

/// Decides.
pub fn plan(pod: &Pod, specs: &[Spec], observed: &Observed, notes: &Notes, now: SystemTime) -> Plan {
    let deleted = notes.gone || pod.metadata.deletion_timestamp.is_some();
    if deleted || notes.verdict.is_some() || spec::ended(pod) || complete(pod, specs, observed) {
        return stop(specs, observed, notes, deleted, now);
    }
    let mut plan = Plan::default();
    if let Some(deadline) = active_deadline(pod, notes) {
        if deadline <= now {
            plan.actions.push(Action::Fail(Verdict {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            }));
            return plan;
        }
        plan.wake_at(deadline);
    }
    let ready = prepare(&mut plan, observed, notes, now);
    let mut starts = Starts {
        pod,
        observed,
        notes,
        now,
        ready,
        plan,
    };
    starts.containers(specs);
    starts.forget(specs);
    starts.plan
}

/// Sandbox, network and volumes. True when containers may start.
fn prepare(plan: &mut Plan, observed: &Observed, notes: &Notes, now: SystemTime) -> bool {
    let mut due = |failure: Option<&super::state::Failure>| match failure {
        Some(failure) if failure.retry_at > now => {
            plan.wake_at(failure.retry_at);
            false
        }
        _ => true,
    };
    let stale = !notes.volumes_ready || notes.volumes_dirty || notes.renew_at.is_some_and(|at| at <= now);
    let volumes_due = stale
        && !notes.busy(&Subject::Volumes)
        && !notes.busy(&Subject::CleanUp)
        && due(notes.volumes_failure.as_ref());
    let sandbox_due = !notes.busy(&Subject::Sandbox) && due(notes.sandbox_failure.as_ref());
    let mut connected = false;
    match observed.sandbox() {
        Some(sandbox) => {
            connected = notes
                .network
                .as_ref()
                .is_some_and(|network| network.sandbox == sandbox.id);
            if !connected && sandbox_due {
                plan.actions.push(Action::Attach {
                    sandbox: sandbox.id.clone(),
                });
            }
        }
        None => {
            // What runs in a broken sandbox has no network: end it first.
            let mut running = observed.running().peekable();
            if running.peek().is_some() {
                for container in running.filter(|container| !notes.busy(&Subject::Kill(container.id.clone())))
                {
                    plan.actions.push(Action::Kill {
                        id: container.id.clone(),
                        name: container.name.clone(),
                        deadline: now,
                        message: "Pod sandbox changed, it will be killed and re-created.".into(),
                        hook: false,
                    });
                }
            } else if sandbox_due {
                let attempt = observed
                    .sandboxes
                    .first()
                    .map_or(0, |sandbox| sandbox.config.attempt + 1);
                plan.actions.push(Action::RunSandbox { attempt });
            }
        }
    }
    if volumes_due {
        plan.actions.push(Action::SetUpVolumes);
    }
    connected && notes.volumes_ready
}

struct Starts<'a> {
    pod: &'a Pod,
    observed: &'a Observed,
    notes: &'a Notes,
    now: SystemTime,
    /// Sandbox, network and volumes are there.
    ready: bool,
    plan: Plan,
}

impl Starts<'_> {
    /// The newest record of a container in the sandbox of now.
    fn current(&self, name: &str) -> Option<&Container> {
        let sandbox = self.observed.sandbox()?;
        self.observed
            .latest(name)
            .filter(|container| container.sandbox == sandbox.id)
    }

    fn containers(&mut self, specs: &[Spec]) {
        let is_main = |spec: &&Spec| spec.kind == Kind::Main;
        let initialised = specs
            .iter()
            .filter(is_main)
            .any(|spec| self.current(&spec.container.name).is_some());
        for spec in specs.iter().filter(|spec| spec.is_init()) {
            let done = if spec.kind == Kind::Sidecar {
                self.sidecar(spec)
            } else {
                initialised || self.init(spec)
            };
            if !done && !initialised {
                return;
            }
        }
        for spec in specs.iter().filter(is_main) {
            self.keep_running(spec);
        }
        if initialised {
            for spec in specs
                .iter()
                .filter(|spec| matches!(spec.kind, Kind::Ephemeral { .. }))
            {
                let known = spec::old_status(self.pod.status.as_ref(), &spec.container.name)
                    .is_some_and(|status| status.container_id.is_some());
                if !known && self.observed.latest(&spec.container.name).is_none() {
                    self.start(spec, 0, None);
                }
            }
        }
    }

    /// True once the init container has succeeded.
    fn init(&mut self, spec: &Spec) -> bool {
        match self
            .current(&spec.container.name)
            .map(|container| &container.state)
        {
            Some(ContainerState::Exited { exit_code: 0, .. }) => return true,
            Some(ContainerState::Running) => {}
            _ => self.keep_running(spec),
        }
        false
    }

    /// True once the sidecar is started.
    fn sidecar(&mut self, spec: &Spec) -> bool {
        self.keep_running(spec);
        match self.current(&spec.container.name) {
            Some(container) if container.state == ContainerState::Running => {
                self.notes.started.contains(&container.id)
                    && self
                        .notes
                        .probes
                        .get(&container.id)
                        .is_none_or(|probe| probe.started)
            }
            _ => false,
        }
    }

    /// Starts what does not run and should, ends what runs and should not.
    fn keep_running(&mut self, spec: &Spec) {
        let name = &spec.container.name;
        let Some(container) = self.observed.latest(name).cloned() else {
            return self.start(spec, 0, None);
        };
        match container.state {
            ContainerState::Running => self.check(spec, &container),
            ContainerState::Created => {
                let backoff = super::state::backoff_of(&container);
                self.start(spec, backoff, Some(&container));
            }
            ContainerState::Exited { .. } => {
                let sandbox = self.observed.sandbox().map(|sandbox| sandbox.id.as_str());
                let mut decision = restart(self.pod, spec, &container, sandbox, self.now);
                if spec.kind == Kind::Init && sandbox.is_some_and(|sandbox| sandbox != container.sandbox) {
                    // Init containers run again in a new sandbox, whatever they ended with before.
                    decision = Restart::Now {
                        backoff_s: RESTART_BACKOFF_FIRST_S,
                    };
                }
                match decision {
                    Restart::Never => {}
                    Restart::At { at, .. } => self.plan.wake_at(at),
                    Restart::Now { backoff_s } => self.start(spec, backoff_s, None),
                }
            }
        }
    }

    /// Ends a running container whose probe failed or whose image changed.
    fn check(&mut self, spec: &Spec, container: &Container) {
        let name = &spec.container.name;
        let image = spec.container.image.as_deref().unwrap_or_default();
        let own_grace;
        let message = if let Some((message, grace)) = self
            .notes
            .probes
            .get(&container.id)
            .and_then(|probe| probe.dead.clone())
        {
            own_grace = grace;
            message
        } else if container
            .annotations
            .get(labels::IMAGE)
            .is_some_and(|old| old != image)
        {
            own_grace = None;
            format!("Container {name} definition changed, will be restarted")
        } else {
            return;
        };
        if self.notes.busy(&Subject::Kill(container.id.clone())) {
            return;
        }
        let grace = own_grace.unwrap_or_else(|| spec::grace_s(self.pod));
        self.plan.actions.push(Action::Kill {
            id: container.id.clone(),
            name: name.clone(),
            deadline: self.now + Duration::from_secs(u64::try_from(grace).unwrap_or(0)),
            message,
            hook: true,
        });
    }

    /// Fetches the image, then starts; waits for what failed before.
    fn start(&mut self, spec: &Spec, backoff_s: u64, replaces: Option<&Container>) {
        let name = &spec.container.name;
        let subject = Subject::Start(name.clone());
        if !self.ready || self.notes.busy(&subject) {
            return;
        }
        if let Some(failure) = self.notes.start_failures.get(name)
            && failure.retry_at > self.now
        {
            return self.plan.wake_at(failure.retry_at);
        }
        let image = match self.notes.images.get(name) {
            Some(ImageNote::Present(image)) => image.clone(),
            Some(ImageNote::Failed(failure)) if failure.retry_at > self.now => {
                // The reason shown changes from the error to the wait after a while.
                let shown_until = failure.shown_until();
                if shown_until > self.now {
                    self.plan.wake_at(shown_until);
                }
                return self.plan.wake_at(failure.retry_at);
            }
            _ => {
                if !self.notes.busy(&Subject::Image(name.clone())) {
                    self.plan.actions.push(Action::EnsureImage {
                        container: name.clone(),
                    });
                }
                return;
            }
        };
        self.plan.actions.push(Action::Start {
            container: name.clone(),
            attempt: next_attempt(self.pod, self.observed, name),
            backoff_s,
            image,
            replaces: replaces.map(|container| container.id.clone()),
        });
    }

    /// Removes records nobody needs: one ended container a name is kept for its log and last state.
    fn forget(&mut self, specs: &[Spec]) {
        for spec in specs {
            let mut ended = 0;
            for container in self.observed.history(&spec.container.name) {
                if !matches!(container.state, ContainerState::Exited { .. }) {
                    continue;
                }
                ended += 1;
                let subject = Subject::Remove(container.id.clone());
                if ended > 1 && !self.notes.busy(&subject) {
                    self.plan.actions.push(Action::Remove {
                        id: container.id.clone(),
                    });
                }
            }
        }
        // An old sandbox goes when nothing in it is the newest of its name.
        if self.notes.busy(&Subject::Sandbox) || self.observed.sandbox().is_none() {
            return;
        }
        let stale = self.observed.sandboxes.iter().skip(1).find(|sandbox| {
            !self.observed.containers.iter().any(|container| {
                container.sandbox == sandbox.id
                    && self
                        .observed
                        .latest(&container.name)
                        .is_some_and(|latest| latest.id == container.id)
            })
        });
        if let Some(sandbox) = stale {
            self.plan.actions.push(Action::RemoveSandbox {
                sandbox: sandbox.id.clone(),
            });
        }
    }
}

/// The restart count of the next container of a name.
pub fn next_attempt(pod: &Pod, observed: &Observed, name: &str) -> u32 {
    match observed.latest(name) {
        Some(container) if container.state == ContainerState::Created => container.attempt,
        Some(container) => container.attempt + 1,
        None => spec::old_status(pod.status.as_ref(), name)
            .filter(|status| status.container_id.is_some())
            .map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0) + 1),
    }
}

/// Ends a pod. A deleted one leaves nothing behind; one that ended keeps the records of its containers.
fn stop(specs: &[Spec], observed: &Observed, notes: &Notes, deleted: bool, now: SystemTime) -> Plan {
    let mut plan = Plan::default();
    for subject in notes.in_flight.keys() {
        if matches!(subject, Subject::Volumes | Subject::Image(_) | Subject::Start(_)) {
            plan.actions.push(Action::Abort(subject.clone()));
        }
    }
    let deadline = stop_deadline(notes, now);
    let order = |container: &Container| {
        specs
            .iter()
            .position(|spec| spec.kind == Kind::Sidecar && spec.container.name == container.name)
    };
    let (sidecars, others): (Vec<&Container>, Vec<&Container>) = observed
        .running()
        .partition(|container| order(container).is_some());
    let targets = if others.is_empty() {
        sidecars
            .into_iter()
            .max_by_key(|container| order(container))
            .into_iter()
            .collect()
    } else {
        others
    };
    for container in &targets {
        let late = match notes.in_flight.get(&Subject::Kill(container.id.clone())) {
            None => true,
            Some(current) => current.is_some_and(|current| current > deadline + DEADLINE_SLACK),
        };
        if late {
            plan.actions.push(Action::Kill {
                id: container.id.clone(),
                name: container.name.clone(),
                deadline,
                message: format!("Stopping container {}", container.name),
                hook: deadline > now,
            });
        }
    }
    if !targets.is_empty() || !notes.in_flight.is_empty() {
        return plan;
    }
    let retry = notes
        .sandbox_failure
        .as_ref()
        .filter(|failure| failure.retry_at > now);
    if let Some(failure) = retry {
        plan.wake_at(failure.retry_at);
        return plan;
    }
    if deleted {
        if let Some(sandbox) = observed.sandboxes.first() {
            plan.actions.push(Action::RemoveSandbox {
                sandbox: sandbox.id.clone(),
            });
        } else if !notes.cleaned || !notes.purged {
            plan.actions.push(Action::CleanUp);
        } else if !notes.gone && !notes.finished {
            plan.actions.push(Action::Finish);
        }
    } else if let Some(sandbox) = observed.sandboxes.iter().find(|sandbox| sandbox.ready) {
        plan.actions.push(Action::StopSandbox {
            sandbox: sandbox.id.clone(),
        });
    } else if !notes.cleaned {
        plan.actions.push(Action::CleanUp);
    }
    plan
}
