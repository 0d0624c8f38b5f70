//! The status of a pod as the API shows it: a pure function of what the plan sees.
//!
//! Reasons, messages and the way phases follow from container states are Kubernetes' own; what the runtime has
//! forgotten (a container removed with its sandbox) is taken over from the status the API holds already.

mod conditions;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use skiff_cri::{Container, ContainerState};

use crate::pod::plan::{self, Restart, restart};
use crate::pod::spec::{self, Kind, Spec};
use crate::pod::state::{ImageNote, Notes, Observed, Subject};
use crate::resources;

/// The conditions this kubelet writes; all others belong to somebody else and are left alone.
pub const OWN_CONDITIONS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// A moment as the API writes it: whole seconds.
pub fn api_time(at: SystemTime) -> Time {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// What the status needs besides pod, runtime and notes.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Addresses of the node.
    pub host_ips: Vec<String>,
    /// Prefix of container ids, for example `containerd`.
    pub runtime: String,
}

/// The status of a pod.
pub fn status(
    pod: &Pod,
    specs: &[Spec],
    observed: &Observed,
    notes: &Notes,
    facts: &Facts,
    now: SystemTime,
) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let stopping = notes.gone
        || pod.metadata.deletion_timestamp.is_some()
        || notes.verdict.is_some()
        || spec::ended(pod)
        || plan::complete(pod, specs, observed);
    let terminal = stopping && observed.running().next().is_none() && no_starts(notes);
    let view = View {
        pod,
        specs,
        observed,
        notes,
        facts,
        now,
        old: &old,
        terminal,
    };
    let has_init = specs.iter().any(Spec::is_init);
    let waiting = if has_init {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let list = |keep: &dyn Fn(&Spec) -> bool| -> Option<Vec<ContainerStatus>> {
        let list: Vec<ContainerStatus> = specs
            .iter()
            .filter(|spec| keep(spec))
            .map(|spec| view.container(spec, waiting))
            .collect();
        (!list.is_empty()).then_some(list)
    };
    let init = list(&|spec| spec.is_init());
    let mains = list(&|spec| spec.kind == Kind::Main);
    let ephemeral = list(&|spec| matches!(spec.kind, Kind::Ephemeral { .. }));
    let phase = view.phase(
        init.as_deref().unwrap_or_default(),
        mains.as_deref().unwrap_or_default(),
    );
    let mut status = PodStatus {
        phase: Some(phase.into()),
        qos_class: old
            .qos_class
            .clone()
            .or_else(|| Some(resources::qos(pod).as_str().into())),
        start_time: old
            .start_time
            .clone()
            .or_else(|| Some(api_time(notes.first_seen.unwrap_or(now)))),
        observed_generation: pod.metadata.generation,
        nominated_node_name: old.nominated_node_name.clone(),
        resource_claim_statuses: old.resource_claim_statuses.clone(),
        ..PodStatus::default()
    };
    match &notes.verdict {
        Some(verdict) => {
            status.reason = Some(verdict.reason.clone());
            status.message = Some(verdict.message.clone());
        }
        None => {
            status.reason = old.reason.clone();
            status.message = old.message.clone();
        }
    }
    status.host_ip = facts.host_ips.first().cloned();
    status.host_ips = Some(
        facts
            .host_ips
            .iter()
            .map(|ip| HostIP { ip: ip.clone() })
            .collect::<Vec<_>>(),
    )
    .filter(|list| !list.is_empty());
    view.addresses(&mut status);
    status.conditions = Some(view.conditions(
        phase,
        init.as_deref().unwrap_or_default(),
        mains.as_deref().unwrap_or_default(),
    ));
    status.init_container_statuses = init;
    status.container_statuses = mains;
    status.ephemeral_container_statuses = ephemeral;
    status
}

/// Whether no container is being started right now.
fn no_starts(notes: &Notes) -> bool {
    !notes
        .in_flight
        .keys()
        .any(|subject| matches!(subject, Subject::Start(_)))
}

struct View<'a> {
    pod: &'a Pod,
    specs: &'a [Spec],
    observed: &'a Observed,
    notes: &'a Notes,
    facts: &'a Facts,
    now: SystemTime,
    old: &'a PodStatus,
    /// Nothing runs and nothing will.
    terminal: bool,
}

impl View<'_> {
    fn addresses(&self, status: &mut PodStatus) {
        let ips: Vec<String> = match &self.notes.network {
            Some(network) => network.ips.iter().map(ToString::to_string).collect(),
            None if spec::host_network(self.pod) && self.observed.sandbox().is_some() => {
                self.facts.host_ips.clone()
            }
            None => Vec::new(),
        };
        if ips.is_empty() {
            // An ended pod keeps the address it had; one that starts has none yet.
            if self.terminal || self.observed.sandbox().is_some() {
                status.pod_ip = self.old.pod_ip.clone();
                status.pod_ips = self.old.pod_ips.clone();
            }
            return;
        }
        status.pod_ip = ips.first().cloned();
        status.pod_ips = Some(ips.into_iter().map(|ip| PodIP { ip }).collect());
    }

    fn terminated(&self, container: &Container) -> Option<ContainerStateTerminated> {
        let ContainerState::Exited {
            exit_code,
            finished_at,
            reason,
            message,
        } = &container.state
        else {
            return None;
        };
        let message = self
            .notes
            .messages
            .get(&container.id)
            .cloned()
            .or_else(|| Some(message.clone()));
        Some(ContainerStateTerminated {
            container_id: Some(self.id(container)),
            exit_code: *exit_code,
            finished_at: Some(api_time(*finished_at)),
            message: message.filter(|message| !message.is_empty()),
            reason: Some(if reason.is_empty() {
                if *exit_code == 0 {
                    "Completed".into()
                } else {
                    "Error".into()
                }
            } else {
                reason.clone()
            }),
            signal: None,
            started_at: Some(api_time(container.started_at.unwrap_or(SystemTime::UNIX_EPOCH))),
        })
    }

    fn id(&self, container: &Container) -> String {
        format!("{}://{}", self.facts.runtime, container.id)
    }

    fn container(&self, spec: &Spec, default_waiting: &str) -> ContainerStatus {
        let name = &spec.container.name;
        let latest = self.observed.latest(name);
        let old = spec::old_status(Some(self.old), name);
        let mut status = ContainerStatus {
            name: name.clone(),
            image: spec.container.image.clone().unwrap_or_default(),
            ready: false,
            started: Some(false),
            ..ContainerStatus::default()
        };
        match latest {
            Some(container) => {
                status.restart_count = i32::try_from(container.attempt).unwrap_or(i32::MAX);
                status.image_id = container.image_id.clone();
                status.container_id = Some(self.id(container));
            }
            None => {
                if let Some(old) = old {
                    status.restart_count = old.restart_count;
                    status.image_id = old.image_id.clone();
                    status.container_id = old.container_id.clone();
                }
            }
        }
        // The state before this one: an older record, or what the API remembers.
        let earlier = self
            .observed
            .history(name)
            .skip(1)
            .find_map(|container| self.terminated(container))
            .or_else(|| self.remembered_last(old, latest));
        let waiting = |reason: &str, message: Option<String>| ApiState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.into()),
                message,
            }),
            ..ApiState::default()
        };
        let mut last = earlier;
        let trouble = self.trouble(spec);
        let state = match latest.map(|container| (container, &container.state)) {
            Some((container, ContainerState::Running)) => {
                let probe = self.notes.probes.get(&container.id);
                let begun = self.notes.started.contains(&container.id);
                let started = begun && probe.is_none_or(|probe| probe.started);
                status.started = Some(started);
                status.ready = match spec.kind {
                    Kind::Main | Kind::Sidecar => started && probe.is_none_or(|probe| probe.ready),
                    Kind::Init | Kind::Ephemeral { .. } => false,
                };
                self.running_details(spec, container, &mut status);
                ApiState {
                    running: Some(ContainerStateRunning {
                        started_at: container.started_at.map(api_time),
                    }),
                    ..ApiState::default()
                }
            }
            Some((container, ContainerState::Exited { exit_code, .. })) => {
                let terminated = self.terminated(container);
                status.ready = spec.kind == Kind::Init && *exit_code == 0;
                if let Some((reason, message)) = trouble.filter(|_| !self.terminal) {
                    last = terminated;
                    waiting(&reason, Some(message))
                } else if let Some(message) = self.backing_off(spec, container) {
                    last = terminated;
                    waiting("CrashLoopBackOff", Some(message))
                } else {
                    ApiState {
                        terminated,
                        ..ApiState::default()
                    }
                }
            }
            Some((_, ContainerState::Created)) => match trouble {
                Some((reason, message)) => waiting(&reason, Some(message)),
                None => waiting(default_waiting, None),
            },
            None => match trouble {
                Some((reason, message)) if !self.terminal => waiting(&reason, Some(message)),
                _ => match old
                    .and_then(|old| old.state.as_ref())
                    .and_then(|state| state.terminated.clone())
                {
                    Some(terminated) if self.kept(spec, &terminated) => {
                        status.ready = spec.kind == Kind::Init && terminated.exit_code == 0;
                        ApiState {
                            terminated: Some(terminated),
                            ..ApiState::default()
                        }
                    }
                    _ if self.terminal && old.is_some_and(|old| old.container_id.is_some()) => ApiState {
                        terminated: Some(lost(old.and_then(|old| old.container_id.clone()))),
                        ..ApiState::default()
                    },
                    _ => waiting(default_waiting, None),
                },
            },
        };
        status.state = Some(state);
        status.last_state = Some(ApiState {
            terminated: last,
            ..ApiState::default()
        });
        status
    }

    /// Whether the end the API remembers still says how things are: nothing will start the container again.
    fn kept(&self, spec: &Spec, terminated: &ContainerStateTerminated) -> bool {
        self.terminal
            || matches!(spec.kind, Kind::Ephemeral { .. })
            || spec.kind == Kind::Init && terminated.exit_code == 0 && self.observed.sandbox().is_some()
    }

    fn remembered_last(
        &self,
        old: Option<&ContainerStatus>,
        latest: Option<&Container>,
    ) -> Option<ContainerStateTerminated> {
        let old = old?;
        let same = latest.is_some_and(|latest| old.container_id.as_deref() == Some(&self.id(latest)));
        let state = old.state.as_ref();
        let last = old.last_state.as_ref().and_then(|state| state.terminated.clone());
        if same {
            return last
                .filter(|last| latest.is_none_or(|latest| last.container_id != Some(self.id(latest))));
        }
        // The API knows an earlier container whose record is gone.
        if let Some(terminated) = state.and_then(|state| state.terminated.clone()) {
            return (!self.terminal).then_some(terminated);
        }
        if state.is_some_and(|state| state.running.is_some()) && !self.terminal {
            return Some(lost(old.container_id.clone()));
        }
        last
    }

    /// What keeps a container from starting: image or creation errors.
    fn trouble(&self, spec: &Spec) -> Option<(String, String)> {
        let name = &spec.container.name;
        if let Some(failure) = self.notes.start_failures.get(name) {
            return Some((failure.reason.clone(), failure.message.clone()));
        }
        if let Some(ImageNote::Failed(failure)) = self.notes.images.get(name) {
            if failure.reason == "ErrImagePull" && self.now >= failure.shown_until() {
                let image = spec.container.image.as_deref().unwrap_or_default();
                let message = format!(
                    "Back-off pulling image {image:?}: ErrImagePull: {}",
                    failure.message
                );
                return Some(("ImagePullBackOff".into(), message));
            }
            return Some((failure.reason.clone(), failure.message.clone()));
        }
        None
    }

    /// The message of a back-off, when an ended container waits for its next start.
    fn backing_off(&self, spec: &Spec, container: &Container) -> Option<String> {
        if self.terminal || self.notes.busy(&Subject::Start(spec.container.name.clone())) {
            return None;
        }
        if self.pod.metadata.deletion_timestamp.is_some() || self.notes.verdict.is_some() {
            return None;
        }
        let sandbox = self.observed.sandbox().map(|sandbox| sandbox.id.as_str());
        match restart(self.pod, spec, container, sandbox, self.now) {
            Restart::At { delay, .. } => {
                Some(backoff_message(self.pod, &spec.container.name, delay.as_secs()))
            }
            _ => None,
        }
    }

    fn running_details(&self, spec: &Spec, container: &Container, status: &mut ContainerStatus) {
        let resources = spec.container.resources.clone().unwrap_or_default();
        status.allocated_resources = resources.requests.clone();
        status.resources = Some(resources);
        status.user = container.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: i64::from(user.uid),
                gid: i64::from(user.gid),
                supplemental_groups: Some(user.groups.iter().map(|group| i64::from(*group)).collect()),
            }),
        });
        let mounts: Vec<VolumeMountStatus> = spec
            .container
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| VolumeMountStatus {
                mount_path: mount.mount_path.clone(),
                name: mount.name.clone(),
                read_only: mount.read_only,
                recursive_read_only: mount.read_only.unwrap_or(false).then(|| {
                    mount
                        .recursive_read_only
                        .clone()
                        .unwrap_or_else(|| "Disabled".into())
                }),
                ..VolumeMountStatus::default()
            })
            .collect();
        status.volume_mounts = (!mounts.is_empty()).then_some(mounts);
    }

    fn phase(&self, init: &[ContainerStatus], mains: &[ContainerStatus]) -> &'static str {
        let old = self.old.phase.as_deref();
        if old == Some("Failed") || self.notes.verdict.is_some() && self.terminal {
            return "Failed";
        }
        if old == Some("Succeeded") {
            return "Succeeded";
        }
        let phase = self.phase_by_containers(init, mains);
        if matches!(phase, "Succeeded" | "Failed") && self.observed.running().next().is_some() {
            // Sidecars still run: the pod has ended only when they have.
            return if old == Some("Pending") {
                "Pending"
            } else {
                "Running"
            };
        }
        phase
    }

    fn phase_by_containers(&self, init: &[ContainerStatus], mains: &[ContainerStatus]) -> &'static str {
        let state = |status: &ContainerStatus| status.state.clone().unwrap_or_default();
        let last_ended = |status: &ContainerStatus| {
            status
                .last_state
                .as_ref()
                .is_some_and(|state| state.terminated.is_some())
        };
        let (mut pending_init, mut failed_init) = (0, 0);
        for (status, spec) in init.iter().zip(self.specs.iter().filter(|spec| spec.is_init())) {
            let state = state(status);
            if spec.kind == Kind::Sidecar {
                if status.started != Some(true) && state.terminated.is_none() {
                    pending_init += 1;
                }
            } else if let Some(terminated) = state.terminated {
                failed_init += i32::from(terminated.exit_code != 0);
            } else {
                pending_init += 1;
            }
        }
        let (mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
        for status in mains {
            let state = state(status);
            if state.running.is_some() {
                running += 1;
            } else if let Some(terminated) = state.terminated {
                stopped += 1;
                succeeded += i32::from(terminated.exit_code == 0);
            } else if last_ended(status) {
                stopped += 1;
            } else {
                waiting += 1;
            }
        }
        let begun = running + stopped > 0;
        if self.terminal {
            // Never started counts as failed: nothing of it succeeded.
            return if stopped > 0 && stopped == succeeded && waiting == 0 {
                "Succeeded"
            } else {
                "Failed"
            };
        }
        if failed_init > 0 && spec::restart_policy(self.pod) == "Never" {
            return "Failed";
        }
        if (pending_init > 0 || failed_init > 0) && !begun || waiting > 0 {
            return "Pending";
        }
        if running > 0 {
            return "Running";
        }
        if stopped > 0 {
            return match spec::restart_policy(self.pod) {
                "Always" => "Running",
                _ if stopped == succeeded => "Succeeded",
                "Never" => "Failed",
                _ => "Running",
            };
        }
        "Pending"
    }
}

/// The text of a crash-loop back-off.
pub fn backoff_message(pod: &Pod, container: &str, seconds: u64) -> String {
    let (minutes, rest) = (seconds / 60, seconds % 60);
    let delay = if minutes > 0 {
        format!("{minutes}m{rest}s")
    } else {
        format!("{seconds}s")
    };
    format!(
        "back-off {delay} restarting failed container={container} pod={}",
        spec::full_name(pod)
    )
}

/// The end of a container nobody saw.
fn lost(container_id: Option<String>) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id,
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..ContainerStateTerminated::default()
    }
}
