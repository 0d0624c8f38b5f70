//! Rules that objects must obey, in the words Kubernetes uses.
//!
//! A rule set is a function over one JSON value that pushes [`FieldError`]s with paths. [`check`] holds the
//! small pieces all of them are made of; `meta` knows object metadata, and one module per area knows its
//! kinds. Defaults are in place when validation runs, so a missing value is a missing value.

mod check;
mod cluster;
mod config;
mod container;
mod extension;
mod network;
mod object_meta;
mod pod;
mod pod_update;
mod resources;
mod storage;
mod volume;
mod workload;

use crate::kinds::Kind;
use crate::status::FieldError;
use serde_json::Value;

pub use check::label_selector;

/// Complaints found so far.
pub type Errors = Vec<FieldError>;

type Create = fn(&mut Errors, &Value);
type Update = fn(&mut Errors, &Value, &Value);

/// What is checked on every write, and what only a change can break.
const RULES: &[(&str, &str, Create, Update)] = &[
    ("", "Pod", pod::pod, pod_update::pod),
    ("", "PodTemplate", workload::pod_template, no_update),
    (
        "",
        "ReplicationController",
        workload::replication_controller,
        no_update,
    ),
    ("", "Service", network::service, network::service_update),
    ("", "Endpoints", network::endpoints, no_update),
    ("", "ConfigMap", config::config_map, config::config_map_update),
    ("", "Secret", config::secret, config::secret_update),
    ("", "Namespace", cluster::namespace, no_update),
    ("", "Node", cluster::node, cluster::node_update),
    ("", "Event", cluster::event, no_update),
    (
        "",
        "ResourceQuota",
        cluster::resource_quota,
        cluster::resource_quota_update,
    ),
    ("", "LimitRange", cluster::limit_range, no_update),
    ("", "PersistentVolume", storage::volume, storage::volume_update),
    ("", "PersistentVolumeClaim", storage::claim, storage::claim_update),
    (
        "apps",
        "Deployment",
        workload::deployment,
        workload::selector_update,
    ),
    (
        "apps",
        "ReplicaSet",
        workload::replica_set,
        workload::selector_update,
    ),
    (
        "apps",
        "DaemonSet",
        workload::daemon_set,
        workload::selector_update,
    ),
    (
        "apps",
        "StatefulSet",
        workload::stateful_set,
        workload::stateful_set_update,
    ),
    (
        "apps",
        "ControllerRevision",
        workload::revision,
        workload::revision_update,
    ),
    ("batch", "Job", workload::job, workload::job_update),
    ("batch", "CronJob", workload::cron_job, no_update),
    (
        "autoscaling",
        "HorizontalPodAutoscaler",
        workload::autoscaler,
        no_update,
    ),
    (
        "policy",
        "PodDisruptionBudget",
        workload::disruption_budget,
        no_update,
    ),
    ("networking.k8s.io", "Ingress", network::ingress, no_update),
    (
        "networking.k8s.io",
        "IngressClass",
        network::ingress_class,
        network::ingress_class_update,
    ),
    (
        "networking.k8s.io",
        "NetworkPolicy",
        network::network_policy,
        no_update,
    ),
    (
        "discovery.k8s.io",
        "EndpointSlice",
        network::endpoint_slice,
        network::endpoint_slice_update,
    ),
    ("rbac.authorization.k8s.io", "Role", cluster::role, no_update),
    (
        "rbac.authorization.k8s.io",
        "ClusterRole",
        cluster::cluster_role,
        no_update,
    ),
    (
        "rbac.authorization.k8s.io",
        "RoleBinding",
        cluster::role_binding,
        cluster::binding_update,
    ),
    (
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        cluster::cluster_role_binding,
        cluster::binding_update,
    ),
    (
        "certificates.k8s.io",
        "CertificateSigningRequest",
        cluster::certificate_request,
        cluster::certificate_update,
    ),
    ("coordination.k8s.io", "Lease", cluster::lease, no_update),
    (
        "scheduling.k8s.io",
        "PriorityClass",
        cluster::priority_class,
        cluster::priority_class_update,
    ),
    (
        "node.k8s.io",
        "RuntimeClass",
        cluster::runtime_class,
        cluster::runtime_class_update,
    ),
    (
        "storage.k8s.io",
        "StorageClass",
        storage::class,
        storage::class_update,
    ),
    (
        "storage.k8s.io",
        "VolumeAttachment",
        storage::attachment,
        storage::attachment_update,
    ),
    ("storage.k8s.io", "CSIDriver", storage::csi_driver, no_update),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        extension::webhooks,
        no_update,
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        extension::webhooks,
        no_update,
    ),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        extension::definition,
        extension::definition_update,
    ),
    (
        "apiregistration.k8s.io",
        "APIService",
        extension::api_service,
        no_update,
    ),
];

fn no_update(_: &mut Errors, _: &Value, _: &Value) {}

fn rules(kind: &Kind) -> Option<(Create, Update)> {
    if kind.traits.custom {
        return None;
    }
    // Both forms of an event obey the rules of the stored one, which the conversion has made of it.
    let group = if kind.kind == "Event" { "" } else { &kind.group };
    RULES
        .iter()
        .find(|(g, k, ..)| group == *g && kind.kind == *k)
        .map(|(_, _, c, u)| (*c, *u))
}

/// Checks a new object.
pub fn create(kind: &Kind, obj: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    object_meta::create(&mut errors, kind, obj);
    if let Some((create, _)) = rules(kind) {
        create(&mut errors, obj);
    }
    if kind.group.is_empty() && kind.kind == "Pod" {
        pod::on_create(&mut errors, obj);
    }
    if let Some(custom) = &kind.custom {
        custom.validate(&mut errors, obj);
    }
    errors
}

/// Checks a changed object, through the main resource or a subresource.
pub fn update(kind: &Kind, subresource: Option<&str>, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    object_meta::create(&mut errors, kind, new);
    object_meta::update(&mut errors, new, old);
    if let Some(custom) = &kind.custom {
        custom.validate(&mut errors, new);
    }
    match (subresource, rules(kind)) {
        (None, Some((create, update))) => {
            // A pod's spec hardly changes; judging it again would refuse pods made under older rules.
            if !(kind.group.is_empty() && kind.kind == "Pod") {
                create(&mut errors, new);
            }
            update(&mut errors, new, old);
        }
        (Some("ephemeralcontainers"), _) => pod_update::ephemeral_containers(&mut errors, new, old),
        (Some("resize"), _) => pod_update::resize(&mut errors, new, old),
        (Some("approval"), _) => cluster::certificate_approval(&mut errors, new, old),
        (Some("status"), _) if kind.kind == "Pod" => pod_update::status(&mut errors, new, old),
        _ => {}
    }
    errors
}

#[cfg(test)]
mod tests;
