//! The columns of every built-in kind.

use super::cells as c;
use super::network as n;
use super::pods as p;
use super::workloads as w;
use crate::kinds::Kind;
use serde_json::Value;
use std::time::SystemTime;

/// Where a cell comes from.
#[derive(Clone, Copy)]
pub(super) enum Cell {
    /// `metadata.name`.
    Name,
    /// Time since creation.
    Age,
    /// Time of creation.
    Created,
    /// A field, and what to show without it.
    Path(&'static str, &'static str),
    /// The number of items of a list or map.
    Count(&'static str),
    /// A function of the object.
    Map(fn(&Value, SystemTime) -> Value),
}

/// One column.
#[derive(Clone, Copy)]
pub(super) struct Column {
    pub name: &'static str,
    pub kind: &'static str,
    pub wide: bool,
    pub cell: Cell,
}

impl Column {
    const fn int(mut self) -> Column {
        self.kind = "integer";
        self
    }
    const fn wide(mut self) -> Column {
        self.wide = true;
        self
    }
}

const fn col(name: &'static str, cell: Cell) -> Column {
    Column {
        name,
        kind: "string",
        wide: false,
        cell,
    }
}
const fn path(name: &'static str, path: &'static str, default: &'static str) -> Column {
    col(name, Cell::Path(path, default))
}
const fn number(name: &'static str, p: &'static str) -> Column {
    path(name, p, "").int()
}
const fn map(name: &'static str, f: fn(&Value, SystemTime) -> Value) -> Column {
    col(name, Cell::Map(f))
}

const NAME: Column = col("Name", Cell::Name);
const AGE: Column = col("Age", Cell::Age);
const CREATED: Column = Column {
    name: "Created At",
    kind: "date",
    wide: false,
    cell: Cell::Created,
};
const CONTAINERS: Column = map("Containers", w::containers).wide();
const IMAGES: Column = map("Images", w::images).wide();
const SELECTOR: Column = map("Selector", w::selector).wide();
const NONE: &str = "<none>";
const UNSET: &str = "<unset>";

const REPLICAS: &[Column] = &[
    NAME,
    number("Desired", "spec.replicas"),
    number("Current", "status.replicas"),
    number("Ready", "status.readyReplicas"),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

const BINDING: &[Column] = &[
    NAME,
    map("Role", c::role),
    AGE,
    map("Users", c::users).wide(),
    map("Groups", c::groups).wide(),
    map("ServiceAccounts", c::service_accounts).wide(),
];

const WEBHOOKS: &[Column] = &[NAME, col("Webhooks", Cell::Count("webhooks")).int(), AGE];

const EVENT: &[Column] = &[
    map("Last Seen", c::event_last_seen),
    path("Type", "type", ""),
    path("Reason", "reason", ""),
    map("Object", c::event_object),
    path("Subobject", "involvedObject.fieldPath", "").wide(),
    map("Source", c::event_source).wide(),
    map("Message", c::event_message),
    map("First Seen", c::event_first_seen).wide(),
    map("Count", c::event_count).int().wide(),
    NAME_WIDE,
];
const NAME_WIDE: Column = col("Name", Cell::Name).wide();

/// Kinds without a row here.
const PLAIN: &[Column] = &[NAME, AGE];

const TABLE: &[(&str, &str, &[Column])] = &[
    (
        "",
        "Pod",
        &[
            NAME,
            map("Ready", p::ready),
            map("Status", p::status),
            map("Restarts", p::restarts),
            AGE,
            map("IP", p::address).wide(),
            path("Node", "spec.nodeName", NONE).wide(),
            path("Nominated Node", "status.nominatedNodeName", NONE).wide(),
            map("Readiness Gates", p::readiness_gates).wide(),
        ],
    ),
    (
        "",
        "Node",
        &[
            NAME,
            map("Status", c::node_status),
            map("Roles", c::node_roles),
            AGE,
            path("Version", "status.nodeInfo.kubeletVersion", ""),
            map("Internal-IP", c::node_internal).wide(),
            map("External-IP", c::node_external).wide(),
            path("OS-Image", "status.nodeInfo.osImage", "<unknown>").wide(),
            path("Kernel-Version", "status.nodeInfo.kernelVersion", "<unknown>").wide(),
            path(
                "Container-Runtime",
                "status.nodeInfo.containerRuntimeVersion",
                "<unknown>",
            )
            .wide(),
        ],
    ),
    (
        "",
        "Service",
        &[
            NAME,
            path("Type", "spec.type", ""),
            map("Cluster-IP", n::service_cluster_ip),
            map("External-IP", n::service_external_ip),
            map("Port(s)", n::service_ports),
            AGE,
            map("Selector", n::service_selector).wide(),
        ],
    ),
    ("", "Endpoints", &[NAME, map("Endpoints", n::endpoints), AGE]),
    ("", "Event", EVENT),
    ("events.k8s.io", "Event", EVENT),
    ("", "Namespace", &[NAME, path("Status", "status.phase", ""), AGE]),
    (
        "",
        "Secret",
        &[
            NAME,
            path("Type", "type", ""),
            col("Data", Cell::Count("data")).int(),
            AGE,
        ],
    ),
    (
        "",
        "ConfigMap",
        &[NAME, map("Data", c::config_entries).int(), AGE],
    ),
    (
        "",
        "ServiceAccount",
        &[NAME, col("Secrets", Cell::Count("secrets")).int(), AGE],
    ),
    ("", "ReplicationController", REPLICAS),
    (
        "",
        "PodTemplate",
        &[
            NAME,
            map("Containers", w::containers),
            map("Images", w::images),
            map("Pod Labels", w::template_labels),
        ],
    ),
    (
        "",
        "PersistentVolume",
        &[
            NAME,
            path("Capacity", "spec.capacity.storage", ""),
            map("Access Modes", c::volume_access),
            path("Reclaim Policy", "spec.persistentVolumeReclaimPolicy", ""),
            map("Status", c::phase),
            map("Claim", c::volume_claim),
            path("StorageClass", "spec.storageClassName", ""),
            path("VolumeAttributesClass", "spec.volumeAttributesClassName", UNSET),
            path("Reason", "status.reason", ""),
            AGE,
            path("VolumeMode", "spec.volumeMode", UNSET).wide(),
        ],
    ),
    (
        "",
        "PersistentVolumeClaim",
        &[
            NAME,
            map("Status", c::phase),
            path("Volume", "spec.volumeName", ""),
            map("Capacity", c::claim_capacity),
            map("Access Modes", c::claim_access),
            path("StorageClass", "spec.storageClassName", ""),
            path("VolumeAttributesClass", "spec.volumeAttributesClassName", UNSET),
            AGE,
            path("VolumeMode", "spec.volumeMode", UNSET).wide(),
        ],
    ),
    (
        "",
        "ResourceQuota",
        &[
            NAME,
            map("Request", c::quota_requests),
            map("Limit", c::quota_limits),
            AGE,
        ],
    ),
    ("", "LimitRange", &[NAME, CREATED]),
    (
        "",
        "ComponentStatus",
        &[
            NAME,
            map("Status", c::component_status),
            map("Message", c::component_message),
            map("Error", c::component_error),
        ],
    ),
    (
        "apps",
        "Deployment",
        &[
            NAME,
            map("Ready", w::ready_of_replicas),
            number("Up-to-date", "status.updatedReplicas"),
            number("Available", "status.availableReplicas"),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    ("apps", "ReplicaSet", REPLICAS),
    (
        "apps",
        "StatefulSet",
        &[NAME, map("Ready", w::ready_of_replicas), AGE, CONTAINERS, IMAGES],
    ),
    (
        "apps",
        "DaemonSet",
        &[
            NAME,
            number("Desired", "status.desiredNumberScheduled"),
            number("Current", "status.currentNumberScheduled"),
            number("Ready", "status.numberReady"),
            number("Up-to-date", "status.updatedNumberScheduled"),
            number("Available", "status.numberAvailable"),
            map("Node Selector", w::template_node_selector),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    (
        "apps",
        "ControllerRevision",
        &[
            NAME,
            map("Controller", w::controller),
            number("Revision", "revision"),
            AGE,
        ],
    ),
    (
        "batch",
        "Job",
        &[
            NAME,
            map("Status", w::job_status),
            map("Completions", w::job_completions),
            map("Duration", w::job_duration),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    (
        "batch",
        "CronJob",
        &[
            NAME,
            path("Schedule", "spec.schedule", ""),
            path("Timezone", "spec.timeZone", NONE),
            map("Suspend", w::cron_suspend),
            col("Active", Cell::Count("status.active")).int(),
            map("Last Schedule", w::cron_last),
            AGE,
            map("Containers", w::cron_containers).wide(),
            map("Images", w::cron_images).wide(),
            map("Selector", w::cron_selector).wide(),
        ],
    ),
    (
        "autoscaling",
        "HorizontalPodAutoscaler",
        &[
            NAME,
            map("Reference", w::autoscaler_reference),
            map("Targets", w::autoscaler_targets),
            path("MinPods", "spec.minReplicas", UNSET),
            number("MaxPods", "spec.maxReplicas"),
            number("Replicas", "status.currentReplicas"),
            AGE,
        ],
    ),
    (
        "networking.k8s.io",
        "Ingress",
        &[
            NAME,
            path("Class", "spec.ingressClassName", NONE),
            map("Hosts", n::ingress_hosts),
            map("Address", n::balancer_address),
            map("Ports", n::ingress_ports),
            AGE,
        ],
    ),
    (
        "networking.k8s.io",
        "IngressClass",
        &[
            NAME,
            path("Controller", "spec.controller", ""),
            map("Parameters", n::ingress_parameters),
            AGE,
        ],
    ),
    (
        "networking.k8s.io",
        "NetworkPolicy",
        &[NAME, map("Pod-Selector", w::policy_selector), AGE],
    ),
    (
        "networking.k8s.io",
        "IPAddress",
        &[NAME, map("ParentRef", n::address_parent), AGE],
    ),
    (
        "networking.k8s.io",
        "ServiceCIDR",
        &[NAME, map("CIDRs", n::service_cidrs), AGE],
    ),
    (
        "discovery.k8s.io",
        "EndpointSlice",
        &[
            NAME,
            path("AddressType", "addressType", ""),
            map("Ports", n::slice_ports),
            map("Endpoints", n::slice_endpoints),
            AGE,
        ],
    ),
    (
        "policy",
        "PodDisruptionBudget",
        &[
            NAME,
            path("Min Available", "spec.minAvailable", "N/A"),
            path("Max Unavailable", "spec.maxUnavailable", "N/A"),
            number("Allowed Disruptions", "status.disruptionsAllowed"),
            AGE,
        ],
    ),
    ("rbac.authorization.k8s.io", "Role", &[NAME, CREATED]),
    ("rbac.authorization.k8s.io", "ClusterRole", &[NAME, CREATED]),
    ("rbac.authorization.k8s.io", "RoleBinding", BINDING),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", BINDING),
    (
        "certificates.k8s.io",
        "CertificateSigningRequest",
        &[
            NAME,
            AGE,
            path("SignerName", "spec.signerName", ""),
            path("Requestor", "spec.username", ""),
            map("RequestedDuration", c::csr_duration),
            map("Condition", c::csr_condition),
        ],
    ),
    (
        "coordination.k8s.io",
        "Lease",
        &[NAME, path("Holder", "spec.holderIdentity", ""), AGE],
    ),
    (
        "storage.k8s.io",
        "StorageClass",
        &[
            map("Name", c::class_name),
            path("Provisioner", "provisioner", ""),
            path("ReclaimPolicy", "reclaimPolicy", "Delete"),
            path("VolumeBindingMode", "volumeBindingMode", "Immediate"),
            path("AllowVolumeExpansion", "allowVolumeExpansion", "false"),
            AGE,
        ],
    ),
    (
        "storage.k8s.io",
        "VolumeAttributesClass",
        &[
            map("Name", c::class_name),
            path("DriverName", "driverName", ""),
            AGE,
        ],
    ),
    (
        "storage.k8s.io",
        "CSINode",
        &[NAME, col("Drivers", Cell::Count("spec.drivers")).int(), AGE],
    ),
    (
        "storage.k8s.io",
        "CSIDriver",
        &[
            NAME,
            path("AttachRequired", "spec.attachRequired", "true"),
            path("PodInfoOnMount", "spec.podInfoOnMount", "false"),
            path("StorageCapacity", "spec.storageCapacity", "false"),
            map("TokenRequests", c::csi_tokens),
            path("RequiresRepublish", "spec.requiresRepublish", "false"),
            map("Modes", c::csi_modes),
            AGE,
        ],
    ),
    (
        "storage.k8s.io",
        "CSIStorageCapacity",
        &[
            NAME,
            path("StorageClassName", "storageClassName", ""),
            path("Capacity", "capacity", UNSET),
        ],
    ),
    (
        "storage.k8s.io",
        "VolumeAttachment",
        &[
            NAME,
            path("Attacher", "spec.attacher", ""),
            path("PV", "spec.source.persistentVolumeName", ""),
            path("Node", "spec.nodeName", ""),
            path("Attached", "status.attached", "false"),
            AGE,
        ],
    ),
    (
        "scheduling.k8s.io",
        "PriorityClass",
        &[
            NAME,
            number("Value", "value"),
            path("Global-Default", "globalDefault", "false"),
            AGE,
            path("PreemptionPolicy", "preemptionPolicy", ""),
        ],
    ),
    (
        "node.k8s.io",
        "RuntimeClass",
        &[NAME, path("Handler", "handler", ""), AGE],
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        WEBHOOKS,
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        WEBHOOKS,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        &[
            NAME,
            col("Validations", Cell::Count("spec.validations")).int(),
            map("ParamKind", c::param_kind),
            AGE,
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicy",
        &[
            NAME,
            col("Mutations", Cell::Count("spec.mutations")).int(),
            map("ParamKind", c::param_kind),
            AGE,
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        &[
            NAME,
            path("PolicyName", "spec.policyName", ""),
            map("ParamRef", c::param_ref),
            AGE,
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicyBinding",
        &[
            NAME,
            path("PolicyName", "spec.policyName", ""),
            map("ParamRef", c::param_ref),
            AGE,
        ],
    ),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        &[NAME, CREATED],
    ),
    (
        "apiregistration.k8s.io",
        "APIService",
        &[
            NAME,
            map("Service", c::api_service),
            map("Available", c::api_available),
            AGE,
        ],
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "FlowSchema",
        &[
            NAME,
            path("PriorityLevel", "spec.priorityLevelConfiguration.name", ""),
            number("MatchingPrecedence", "spec.matchingPrecedence"),
            path("DistinguisherMethod", "spec.distinguisherMethod.type", NONE),
            AGE,
            map("MissingPL", c::flow_dangling),
        ],
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "PriorityLevelConfiguration",
        &[
            NAME,
            path("Type", "spec.type", ""),
            map("NominalConcurrencyShares", c::level_shares),
            path("Queues", "spec.limited.limitResponse.queuing.queues", NONE),
            path("HandSize", "spec.limited.limitResponse.queuing.handSize", NONE),
            path(
                "QueueLengthLimit",
                "spec.limited.limitResponse.queuing.queueLengthLimit",
                NONE,
            ),
            AGE,
        ],
    ),
    (
        "resource.k8s.io",
        "ResourceClaim",
        &[NAME, map("State", c::claim_state), AGE],
    ),
    (
        "resource.k8s.io",
        "ResourceSlice",
        &[
            NAME,
            path("Node", "spec.nodeName", NONE),
            path("Driver", "spec.driver", ""),
            path("Pool", "spec.pool.name", ""),
            AGE,
        ],
    ),
];

/// The columns of a kind.
pub(super) fn of(kind: &Kind) -> &'static [Column] {
    TABLE
        .iter()
        .find(|(g, k, _)| kind.group == *g && kind.kind == *k)
        .map_or(PLAIN, |(_, _, columns)| columns)
}

#[cfg(test)]
pub(super) fn kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.iter().map(|(g, k, _)| (*g, *k))
}
