//! The conditions of a pod.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::{View, api_time};
use crate::pod::spec::Kind;

impl View<'_> {
    pub(super) fn conditions(
        &self,
        phase: &str,
        init: &[ContainerStatus],
        mains: &[ContainerStatus],
    ) -> Vec<PodCondition> {
        let was_connected = || {
            let mut old = self.old.conditions.iter().flatten();
            old.any(|condition| condition.type_ == "PodReadyToStartContainers" && condition.status == "True")
        };
        let connected = !self.terminal
            && self
                .observed
                .sandbox()
                .is_some_and(|sandbox| match &self.notes.network {
                    Some(network) => network.sandbox == sandbox.id,
                    // An adopted sandbox is as it was until its network was asked.
                    None => self.notes.sandbox_failure.is_none() && was_connected(),
                });
        let verdict = |ok: bool, reason: &str, message: String| {
            if ok {
                ("True", None, None)
            } else {
                (
                    "False",
                    Some(reason.to_owned()),
                    Some(message).filter(|message| !message.is_empty()),
                )
            }
        };
        // Initialized.
        let begun = mains.iter().any(|status| {
            status
                .state
                .as_ref()
                .is_some_and(|state| state.running.is_some() || state.terminated.is_some())
                || status
                    .last_state
                    .as_ref()
                    .is_some_and(|state| state.terminated.is_some())
        });
        let incomplete: Vec<&str> = init
            .iter()
            .zip(self.specs.iter().filter(|spec| spec.is_init()))
            .filter(|(status, spec)| match spec.kind {
                Kind::Sidecar => status.started != Some(true),
                _ => !status.ready,
            })
            .map(|(status, _)| status.name.as_str())
            .collect();
        let initialized = if phase == "Succeeded" {
            ("True", Some("PodCompleted".to_owned()), None)
        } else {
            verdict(
                incomplete.is_empty() || begun,
                "ContainersNotInitialized",
                format!("containers with incomplete status: [{}]", incomplete.join(" ")),
            )
        };
        // ContainersReady, Ready.
        let sidecars = init.iter().zip(self.specs.iter().filter(|spec| spec.is_init()));
        let sidecars = sidecars
            .filter(|(_, spec)| spec.kind == Kind::Sidecar)
            .map(|(status, _)| status);
        let unready: Vec<&str> = sidecars
            .chain(mains.iter())
            .filter(|status| !status.ready)
            .map(|status| status.name.as_str())
            .collect();
        let containers_ready = match phase {
            "Succeeded" => ("False", Some("PodCompleted".to_owned()), None),
            "Failed" => ("False", Some("PodFailed".to_owned()), None),
            _ => verdict(
                unready.is_empty(),
                "ContainersNotReady",
                format!("containers with unready status: [{}]", unready.join(" ")),
            ),
        };
        let ready = if containers_ready.0 == "True" {
            self.gates()
        } else {
            containers_ready.clone()
        };
        let sandbox = if connected {
            ("True", None, None)
        } else {
            ("False", None, None)
        };
        [
            ("PodReadyToStartContainers", sandbox),
            ("Initialized", initialized),
            ("Ready", ready),
            ("ContainersReady", containers_ready),
            ("PodScheduled", ("True", None, None)),
        ]
        .into_iter()
        .map(|(type_, (status, reason, message))| self.condition(type_, status, reason, message))
        .collect()
    }

    /// Readiness gates: conditions somebody else writes.
    fn gates(&self) -> (&'static str, Option<String>, Option<String>) {
        let gates = self
            .pod
            .spec
            .as_ref()
            .and_then(|spec| spec.readiness_gates.as_deref())
            .unwrap_or_default();
        let mut problems = Vec::new();
        for gate in gates {
            let type_ = &gate.condition_type;
            match self
                .old
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == *type_)
            {
                None => problems.push(format!(
                    "corresponding condition of pod readiness gate {type_:?} does not exist."
                )),
                Some(condition) if condition.status != "True" => problems.push(format!(
                    "the status of pod readiness gate {type_:?} is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => {}
            }
        }
        if problems.is_empty() {
            ("True", None, None)
        } else {
            (
                "False",
                Some("ReadinessGatesNotReady".into()),
                Some(problems.join(", ")),
            )
        }
    }

    fn condition(
        &self,
        type_: &str,
        status: &str,
        reason: Option<String>,
        message: Option<String>,
    ) -> PodCondition {
        let old = self
            .old
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == type_);
        let since = old
            .filter(|old| old.status == status)
            .and_then(|old| old.last_transition_time.clone())
            .unwrap_or_else(|| api_time(self.now));
        PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason,
            message,
            last_probe_time: None,
            last_transition_time: Some(since),
            observed_generation: self.pod.metadata.generation,
        }
    }
}
