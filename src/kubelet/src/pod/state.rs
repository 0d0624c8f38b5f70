//! What a worker knows about its pod besides the object.
//!
//! [`Observed`] is what the runtime says. [`Notes`] is what happened in this process: errors with the time of the
//! next try, probe results, work under way. Notes may be lost at any time; the plan then finds its way from what it
//! observes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::PodStatus;
use skiff_cri::{Container, ContainerState, Sandbox};

/// Labels and annotations by which sandboxes and containers are recognised after a restart.
pub mod labels {
    /// Pod name.
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    /// Pod namespace.
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// Pod UID.
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    /// Container name.
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// Annotation: restart count.
    pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    /// Annotation: the image as the pod names it.
    pub const IMAGE: &str = "skiff.io/image";
    /// Annotation: seconds to wait after this container's exit before the next one starts.
    pub const BACKOFF_S: &str = "skiff.io/restart-backoff-seconds";
    /// Annotation: the termination message file on the host.
    pub const MESSAGE_FILE: &str = "skiff.io/termination-message-file";
    /// Annotation: `terminationMessagePolicy`.
    pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Annotation of a sandbox: which kubelet root it belongs to (several nodes may share a runtime).
    pub const NODE: &str = "skiff.io/node";
    /// Annotation: grace in seconds, for pods whose object is gone.
    pub const GRACE_S: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// First delay of a container that keeps ending.
pub const RESTART_BACKOFF_FIRST_S: u64 = 10;
/// Longest delay of a container that keeps ending.
pub const RESTART_BACKOFF_MAX_S: u64 = 300;
/// A container that ran this long starts over without delay.
pub const RESTART_BACKOFF_RESET_S: u64 = 600;

/// How long an image error is shown before the wait for the next try is.
const ERROR_SHOWN: Duration = Duration::from_secs(5);

/// What the runtime has for a pod.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, newest attempt first within a name.
    pub containers: Vec<Container>,
}

impl Observed {
    /// Sorts what belongs to a pod.
    pub fn new(mut sandboxes: Vec<Sandbox>, mut containers: Vec<Container>) -> Observed {
        sandboxes.sort_by_key(|sandbox| std::cmp::Reverse((sandbox.config.attempt, sandbox.created_at)));
        containers.sort_by(|a, b| {
            a.name
                .cmp(&b.name)
                .then((b.attempt, b.created_at).cmp(&(a.attempt, a.created_at)))
        });
        Observed {
            sandboxes,
            containers,
        }
    }

    /// The sandbox containers start in.
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of a name.
    pub fn latest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// All containers of a name, newest first.
    pub fn history<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers
            .iter()
            .filter(move |container| container.name == name)
    }

    /// Containers with a live process.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers
            .iter()
            .filter(|container| container.state == ContainerState::Running)
    }
}

/// A thing of a pod that at most one action works on at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The sandbox and its network.
    Sandbox,
    /// Volumes and files.
    Volumes,
    /// Fetching the image of a container, by name.
    Image(String),
    /// Starting a container, by name.
    Start(String),
    /// Ending a container, by id.
    Kill(String),
    /// Removing a container's record, by id.
    Remove(String),
    /// Removing what the pod left on the node.
    CleanUp,
    /// Removing the pod from the API.
    Finish,
}

/// Something that failed and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Reason as the API shows it.
    pub reason: String,
    /// Message as the API shows it.
    pub message: String,
    /// When to try again.
    pub retry_at: SystemTime,
    /// How long was waited for that.
    pub delay: Duration,
}

impl Failure {
    /// A failure after `previous`: the delay doubles up to `max`.
    pub fn after(
        previous: Option<&Failure>,
        now: SystemTime,
        first: Duration,
        max: Duration,
        reason: &str,
        message: String,
    ) -> Failure {
        let delay = previous.map_or(first, |failure| (failure.delay * 2).clamp(first, max));
        Failure {
            reason: reason.to_owned(),
            message,
            retry_at: now + delay,
            delay,
        }
    }

    /// Until when an error is shown as such; later the wait is shown.
    pub fn shown_until(&self) -> SystemTime {
        let shown = ERROR_SHOWN.min(self.delay / 2);
        self.retry_at.checked_sub(self.delay).unwrap_or(self.retry_at) + shown
    }
}

/// The image of a container that is about to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageNote {
    /// On the node, by id.
    Present(String),
    /// Not to be had right now.
    Failed(Failure),
}

/// Probe results of one running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeNote {
    /// The startup probe succeeded (or there is none).
    pub started: bool,
    /// The readiness probe succeeded (or there is none).
    pub ready: bool,
    /// A liveness or startup probe failed for good: the message of the kill, and the probe's own grace.
    pub dead: Option<(String, Option<i64>)>,
}

/// Connection of the current sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The sandbox these addresses belong to.
    pub sandbox: String,
    /// Addresses, the primary one first.
    pub ips: Vec<IpAddr>,
}

/// Why a pod must end though nobody deleted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

/// Everything a worker remembers.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// The object is gone from the API.
    pub gone: bool,
    /// Set when the pod must fail: rejected, or over its deadline.
    pub verdict: Option<Verdict>,
    /// Volumes and files are in place.
    pub volumes_ready: bool,
    /// Something volumes are made from has changed since.
    pub volumes_dirty: bool,
    /// When volumes must be made anew though nothing changed.
    pub renew_at: Option<SystemTime>,
    /// Why they are not.
    pub volumes_failure: Option<Failure>,
    /// The sandbox's network.
    pub network: Option<Network>,
    /// Why there is no sandbox.
    pub sandbox_failure: Option<Failure>,
    /// Images by container name.
    pub images: BTreeMap<String, ImageNote>,
    /// Failed creations and starts by container name.
    pub start_failures: BTreeMap<String, Failure>,
    /// Probe results by container id.
    pub probes: BTreeMap<String, ProbeNote>,
    /// Containers whose start (with its hook) ended in this process or that were adopted, by id.
    pub started: BTreeSet<String>,
    /// Work under way, with the deadline of kills.
    pub in_flight: BTreeMap<Subject, Option<SystemTime>>,
    /// While the pod stops: the deadline and the grace it was computed from.
    pub stop: Option<(SystemTime, i64)>,
    /// The object was removed from the API (or only finalizers hold it).
    pub finished: bool,
    /// The node is free of the pod: volumes and groups are gone.
    pub cleaned: bool,
    /// Its logs are gone as well.
    pub purged: bool,
    /// The last status of a pod that is being removed, kept while its containers go.
    pub final_status: Option<Box<PodStatus>>,
    /// When this worker first saw the pod.
    pub first_seen: Option<SystemTime>,
    /// Messages read from ended containers, by id.
    pub messages: BTreeMap<String, String>,
}

impl Notes {
    /// Whether an action is under way.
    pub fn busy(&self, subject: &Subject) -> bool {
        self.in_flight.contains_key(subject)
    }
}

/// The back-off a container was created with.
pub fn backoff_of(container: &Container) -> u64 {
    container
        .annotations
        .get(labels::BACKOFF_S)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// How long the next start waits after `finished_at`, and the back-off the next container is created with.
pub fn next_backoff(container: &Container) -> (Duration, u64) {
    let ContainerState::Exited { finished_at, .. } = container.state else {
        return (Duration::ZERO, 0);
    };
    let begun = container.started_at.unwrap_or(container.created_at);
    let ran = finished_at.duration_since(begun).unwrap_or_default();
    let delay = backoff_of(container).min(RESTART_BACKOFF_MAX_S);
    if delay == 0 || ran >= Duration::from_secs(RESTART_BACKOFF_RESET_S) {
        return (Duration::ZERO, RESTART_BACKOFF_FIRST_S);
    }
    (Duration::from_secs(delay), (delay * 2).min(RESTART_BACKOFF_MAX_S))
}
