//! A pod's containers as one list, and small questions about a pod. Pure.

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Lifecycle, ObjectReference, Pod, PodStatus, Probe,
};
use serde_json::json;

use crate::resources;

/// Grace of a pod that names none.
pub const DEFAULT_GRACE_S: i64 = 30;

/// What part a container plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to completion before the next one.
    Init,
    /// An init container that keeps running.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// Added later for debugging; may name a container whose processes it sees.
    Ephemeral {
        /// `targetContainerName`.
        target: Option<String>,
    },
}

/// One container of a pod.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its definition; ephemeral containers are converted.
    pub container: Container,
    /// Its part.
    pub kind: Kind,
}

impl Spec {
    /// Whether it belongs to `initContainers`.
    pub fn is_init(&self) -> bool {
        matches!(self.kind, Kind::Init | Kind::Sidecar)
    }

    /// Where the container stands in the pod, as events name it.
    pub fn field_path(&self) -> String {
        let list = match self.kind {
            Kind::Init | Kind::Sidecar => "initContainers",
            Kind::Main => "containers",
            Kind::Ephemeral { .. } => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.container.name)
    }

    /// The probe of one kind.
    pub fn probe(&self, kind: crate::probes::ProbeKind) -> Option<&Probe> {
        match kind {
            crate::probes::ProbeKind::Startup => self.container.startup_probe.as_ref(),
            crate::probes::ProbeKind::Liveness => self.container.liveness_probe.as_ref(),
            crate::probes::ProbeKind::Readiness => self.container.readiness_probe.as_ref(),
        }
    }

    /// The hooks.
    pub fn lifecycle(&self) -> Option<&Lifecycle> {
        self.container.lifecycle.as_ref()
    }
}

/// All containers: init, main, ephemeral, in order.
pub fn specs(pod: &Pod) -> Vec<Spec> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut list = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        let kind = if resources::is_sidecar(container) {
            Kind::Sidecar
        } else {
            Kind::Init
        };
        list.push(Spec {
            container: container.clone(),
            kind,
        });
    }
    for container in &spec.containers {
        list.push(Spec {
            container: container.clone(),
            kind: Kind::Main,
        });
    }
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        // The two types share every field but the target, so the JSON form converts one into the other.
        let container = serde_json::to_value(ephemeral).and_then(serde_json::from_value);
        if let Ok(container) = container {
            let target = ephemeral
                .target_container_name
                .clone()
                .filter(|name| !name.is_empty());
            list.push(Spec {
                container,
                kind: Kind::Ephemeral { target },
            });
        }
    }
    list
}

/// `metadata.uid`.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// `metadata.name`.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// `metadata.namespace`.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`: how messages name a pod.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// Whether the pod lives in the node's network namespace.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false)
}

/// `restartPolicy`, `Always` when absent.
pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref())
        .unwrap_or("Always")
}

/// `terminationGracePeriodSeconds` of the spec.
pub fn grace_s(pod: &Pod) -> i64 {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_S)
}

/// Whether the API says that the pod has ended.
pub fn ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The status the API holds for a container.
pub fn old_status<'a>(status: Option<&'a PodStatus>, name: &str) -> Option<&'a ContainerStatus> {
    let status = status?;
    [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ]
    .into_iter()
    .flatten()
    .flatten()
    .find(|status| status.name == name)
}

/// A reference to the pod for events; with a path it points at one container.
pub fn reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

/// A pod that exists no more in the API, as far as the labels of its sandbox tell.
pub fn remembered(namespace: &str, name: &str, uid: &str) -> Pod {
    let value =
        json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}, "spec": {"containers": []}});
    serde_json::from_value(value).unwrap_or_default()
}
