//! Probes of a pod's containers: what is adopted, what begins, which run.

use std::collections::HashMap;
use std::time::SystemTime;

use super::Worker;
use crate::pod::spec::{self, Spec};
use crate::pod::state::ProbeNote;
use crate::probes::{self, ProbeKind};

impl Worker {
    /// Containers found running belong to an earlier life of this process: they are started, and as ready as the API
    /// says they were until a probe says otherwise.
    pub(super) fn adopt(&mut self) {
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

    /// A container was started: its probes begin.
    pub(super) fn begun(&mut self, name: &str, id: String) {
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
    pub(super) fn probe(&mut self) {
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
                // After a restart containers run before the pod's address is known again: the probe waits for it.
                let Some(network) = &self.notes.network else {
                    continue;
                };
                network.ips.first().copied()
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
}
