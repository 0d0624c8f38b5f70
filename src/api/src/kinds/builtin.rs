//! The table of built-in kinds: what a Kubernetes 1.36 server serves with default settings.
//!
//! `k(group, version, Kind, plural, scope)` starts a row with the standard verbs; the methods behind it state
//! what is special. The singular name and the list kind follow from the kind.

use super::{
    Kind, PROXY_VERBS, STANDARD_VERBS, STORAGE_ROOT, SelectableField, Str, Subresource, Traits, VIEW_VERBS,
};
use std::borrow::Cow;

const NAMESPACED: bool = true;
const CLUSTER: bool = false;

fn strs(list: &[&'static str]) -> Vec<Str> {
    list.iter().map(|s| Cow::Borrowed(*s)).collect()
}

fn prefix(group: &str, plural: &str) -> String {
    if group.is_empty() {
        format!("{STORAGE_ROOT}{plural}/")
    } else {
        format!("{STORAGE_ROOT}{group}/{plural}/")
    }
}

fn k(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List").into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        verbs: strs(STANDARD_VERBS),
        subresources: Vec::new(),
        storage: (group.into(), version.into()),
        prefix: prefix(group, plural).into(),
        fields: Vec::new(),
        traits: Traits {
            unconditional_update: true,
            ..Traits::default()
        },
        columns: Vec::new(),
        hash_published: true,
        custom: None,
    }
}

impl Kind {
    fn short(mut self, names: &[&'static str]) -> Kind {
        self.short_names = strs(names);
        self
    }
    fn category(mut self, name: &'static str) -> Kind {
        self.categories.push(name.into());
        self
    }
    fn only(mut self, verbs: &[&'static str]) -> Kind {
        self.verbs = strs(verbs);
        self
    }
    /// Created and answered, never stored.
    fn review(mut self) -> Kind {
        self.verbs = strs(&["create"]);
        self.traits = Traits {
            review: true,
            ..Traits::default()
        };
        self.hash_published = false;
        self
    }
    fn status(mut self) -> Kind {
        self.traits.status = true;
        self.view("status")
    }
    fn generation(mut self) -> Kind {
        self.traits.generation = true;
        self
    }
    fn conditional(mut self) -> Kind {
        self.traits.unconditional_update = false;
        self
    }
    fn create_on_update(mut self) -> Kind {
        self.traits.create_on_update = true;
        self
    }
    /// A subresource that shows the parent itself.
    fn view(self, name: &'static str) -> Kind {
        let kind = self.kind.clone();
        self.sub_of(name, kind, VIEW_VERBS)
    }
    fn sub(self, name: &'static str, kind: &'static str, verbs: &[&'static str]) -> Kind {
        self.sub_of(name, kind.into(), verbs)
    }
    fn sub_of(mut self, name: &'static str, kind: Str, verbs: &[&'static str]) -> Kind {
        let (group, version) = (self.group.clone(), self.version.clone());
        self.subresources.push(Subresource {
            name: name.into(),
            group,
            version,
            kind,
            foreign: false,
            verbs: strs(verbs),
        });
        self
    }
    /// A subresource that speaks an object of another group.
    fn foreign(
        mut self,
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        verbs: &[&'static str],
    ) -> Kind {
        self.subresources.push(Subresource {
            name: name.into(),
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            foreign: true,
            verbs: strs(verbs),
        });
        self
    }
    fn scale(self) -> Kind {
        self.foreign("scale", "autoscaling", "v1", "Scale", VIEW_VERBS)
    }
    /// Stored as another version of the same kind.
    fn stored_as(mut self, group: &'static str, version: &'static str) -> Kind {
        self.prefix = prefix(group, &self.plural).into();
        self.storage = (group.into(), version.into());
        self
    }
    /// Selectable fields as `label`, `label=default` or `label@path=default`.
    fn fields(mut self, specs: &[&'static str]) -> Kind {
        for spec in specs {
            let (head, default) = spec.split_once('=').unwrap_or((spec, ""));
            let (label, path) = head.split_once('@').unwrap_or((head, head));
            self.fields.push(SelectableField {
                label: label.into(),
                path: path.into(),
                default: default.into(),
            });
        }
        self
    }
}

/// Every built-in row, in discovery order.
pub(super) fn rows() -> Vec<Kind> {
    let mut rows = core();
    for group in [
        registration(),
        apps(),
        events(),
        reviews(),
        autoscaling(),
        batch(),
        certificates(),
        networking(),
        policy(),
        rbac(),
        storage(),
        admission(),
        extensions(),
        scheduling(),
        coordination(),
        node(),
        discovery(),
        resource(),
        flowcontrol(),
    ] {
        rows.extend(group);
    }
    for row in &mut rows {
        row.subresources.sort_by(|a, b| a.name.cmp(&b.name));
    }
    rows
}

const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source@source.component",
    "type",
];

/// The labels of `events.k8s.io`; paths are those of the stored core event.
const REGARDING_FIELDS: &[&str] = &[
    "regarding.kind@involvedObject.kind",
    "regarding.namespace@involvedObject.namespace",
    "regarding.name@involvedObject.name",
    "regarding.uid@involvedObject.uid",
    "regarding.apiVersion@involvedObject.apiVersion",
    "regarding.resourceVersion@involvedObject.resourceVersion",
    "regarding.fieldPath@involvedObject.fieldPath",
    "reason",
    "reportingController@reportingComponent",
    "type",
];

fn core() -> Vec<Kind> {
    let c = |kind, plural, scope| k("", "v1", kind, plural, scope);
    let mut pods = c("Pod", "pods", NAMESPACED)
        .short(&["po"])
        .category("all")
        .status()
        .generation()
        .sub("attach", "PodAttachOptions", &["create", "get"])
        .sub("binding", "Binding", &["create"])
        .view("ephemeralcontainers")
        .foreign("eviction", "policy", "v1", "Eviction", &["create"])
        .sub("exec", "PodExecOptions", &["create", "get"])
        .sub("log", "Pod", &["get"])
        .sub("portforward", "PodPortForwardOptions", &["create", "get"])
        .sub("proxy", "PodProxyOptions", PROXY_VERBS)
        .view("resize")
        .fields(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork=false",
            "status.phase",
            "status.podIP",
            "status.podIPs@status.podIPs.ip",
            "status.nominatedNodeName",
        ]);
    pods.traits.graceful = true;
    let mut components = c("ComponentStatus", "componentstatuses", CLUSTER)
        .short(&["cs"])
        .only(&["get", "list"]);
    components.hash_published = false;
    vec![
        c("Binding", "bindings", NAMESPACED).review(),
        components,
        c("ConfigMap", "configmaps", NAMESPACED).short(&["cm"]),
        c("Endpoints", "endpoints", NAMESPACED).short(&["ep"]),
        c("Event", "events", NAMESPACED)
            .short(&["ev"])
            .create_on_update()
            .fields(EVENT_FIELDS),
        c("LimitRange", "limitranges", NAMESPACED)
            .short(&["limits"])
            .create_on_update(),
        c("Namespace", "namespaces", CLUSTER)
            .short(&["ns"])
            .only(&["create", "delete", "get", "list", "patch", "update", "watch"])
            .status()
            .sub("finalize", "Namespace", &["update"])
            .fields(&["status.phase"]),
        c("Node", "nodes", CLUSTER)
            .short(&["no"])
            .status()
            .sub("proxy", "NodeProxyOptions", PROXY_VERBS)
            .fields(&["spec.unschedulable=false"]),
        c("PersistentVolumeClaim", "persistentvolumeclaims", NAMESPACED)
            .short(&["pvc"])
            .status(),
        c("PersistentVolume", "persistentvolumes", CLUSTER)
            .short(&["pv"])
            .status(),
        pods,
        c("PodTemplate", "podtemplates", NAMESPACED).generation(),
        c("ReplicationController", "replicationcontrollers", NAMESPACED)
            .short(&["rc"])
            .category("all")
            .status()
            .generation()
            .scale()
            .fields(&["status.replicas=0"]),
        c("ResourceQuota", "resourcequotas", NAMESPACED)
            .short(&["quota"])
            .status(),
        c("Secret", "secrets", NAMESPACED).fields(&["type"]),
        c("ServiceAccount", "serviceaccounts", NAMESPACED)
            .short(&["sa"])
            .foreign(
                "token",
                "authentication.k8s.io",
                "v1",
                "TokenRequest",
                &["create"],
            ),
        c("Service", "services", NAMESPACED)
            .short(&["svc"])
            .category("all")
            .status()
            .sub("proxy", "ServiceProxyOptions", PROXY_VERBS)
            .fields(&["spec.clusterIP", "spec.type"]),
    ]
}

fn registration() -> Vec<Kind> {
    vec![
        k(
            "apiregistration.k8s.io",
            "v1",
            "APIService",
            "apiservices",
            CLUSTER,
        )
        .category("api-extensions")
        .status()
        .conditional(),
    ]
}

fn apps() -> Vec<Kind> {
    let a = |kind, plural| k("apps", "v1", kind, plural, NAMESPACED);
    vec![
        a("ControllerRevision", "controllerrevisions"),
        a("DaemonSet", "daemonsets")
            .short(&["ds"])
            .category("all")
            .status()
            .generation(),
        a("Deployment", "deployments")
            .short(&["deploy"])
            .category("all")
            .status()
            .generation()
            .scale(),
        a("ReplicaSet", "replicasets")
            .short(&["rs"])
            .category("all")
            .status()
            .generation()
            .scale()
            .fields(&["status.replicas=0"]),
        a("StatefulSet", "statefulsets")
            .short(&["sts"])
            .category("all")
            .status()
            .generation()
            .scale(),
    ]
}

fn events() -> Vec<Kind> {
    vec![
        k("events.k8s.io", "v1", "Event", "events", NAMESPACED)
            .short(&["ev"])
            .create_on_update()
            .stored_as("", "v1")
            .fields(REGARDING_FIELDS),
    ]
}

fn reviews() -> Vec<Kind> {
    let authn = |kind, plural| k("authentication.k8s.io", "v1", kind, plural, CLUSTER).review();
    let authz = |kind, plural, scope| k("authorization.k8s.io", "v1", kind, plural, scope).review();
    vec![
        authn("SelfSubjectReview", "selfsubjectreviews"),
        authn("TokenReview", "tokenreviews"),
        authz(
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            NAMESPACED,
        ),
        authz("SelfSubjectAccessReview", "selfsubjectaccessreviews", CLUSTER),
        authz("SelfSubjectRulesReview", "selfsubjectrulesreviews", CLUSTER),
        authz("SubjectAccessReview", "subjectaccessreviews", CLUSTER),
    ]
}

fn autoscaling() -> Vec<Kind> {
    ["v2", "v1"]
        .map(|version| {
            k(
                "autoscaling",
                version,
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
                NAMESPACED,
            )
            .short(&["hpa"])
            .category("all")
            .status()
            .generation()
            .stored_as("autoscaling", "v2")
        })
        .into()
}

fn batch() -> Vec<Kind> {
    vec![
        k("batch", "v1", "CronJob", "cronjobs", NAMESPACED)
            .short(&["cj"])
            .category("all")
            .status()
            .generation(),
        k("batch", "v1", "Job", "jobs", NAMESPACED)
            .category("all")
            .status()
            .generation()
            .fields(&["status.successful@status.succeeded=0"]),
    ]
}

fn certificates() -> Vec<Kind> {
    vec![
        k(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            CLUSTER,
        )
        .short(&["csr"])
        .status()
        .view("approval")
        .fields(&["spec.signerName"]),
    ]
}

fn networking() -> Vec<Kind> {
    let n = |kind, plural, scope| k("networking.k8s.io", "v1", kind, plural, scope);
    vec![
        n("IngressClass", "ingressclasses", CLUSTER).generation(),
        n("Ingress", "ingresses", NAMESPACED)
            .short(&["ing"])
            .status()
            .generation(),
        n("IPAddress", "ipaddresses", CLUSTER).short(&["ip"]),
        n("NetworkPolicy", "networkpolicies", NAMESPACED)
            .short(&["netpol"])
            .generation(),
        n("ServiceCIDR", "servicecidrs", CLUSTER).status(),
    ]
}

fn policy() -> Vec<Kind> {
    vec![
        k(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            NAMESPACED,
        )
        .short(&["pdb"])
        .status()
        .generation()
        .conditional(),
    ]
}

fn rbac() -> Vec<Kind> {
    let r =
        |kind, plural, scope| k("rbac.authorization.k8s.io", "v1", kind, plural, scope).create_on_update();
    vec![
        r("ClusterRoleBinding", "clusterrolebindings", CLUSTER),
        r("ClusterRole", "clusterroles", CLUSTER),
        r("RoleBinding", "rolebindings", NAMESPACED),
        r("Role", "roles", NAMESPACED),
    ]
}

fn storage() -> Vec<Kind> {
    let s = |kind, plural, scope| k("storage.k8s.io", "v1", kind, plural, scope);
    vec![
        s("CSIDriver", "csidrivers", CLUSTER).conditional().generation(),
        s("CSINode", "csinodes", CLUSTER).conditional(),
        s("CSIStorageCapacity", "csistoragecapacities", NAMESPACED).conditional(),
        s("StorageClass", "storageclasses", CLUSTER).short(&["sc"]),
        s("VolumeAttachment", "volumeattachments", CLUSTER)
            .status()
            .conditional(),
        s("VolumeAttributesClass", "volumeattributesclasses", CLUSTER).short(&["vac"]),
    ]
}

fn admission() -> Vec<Kind> {
    let a = |kind, plural| {
        k("admissionregistration.k8s.io", "v1", kind, plural, CLUSTER)
            .category("api-extensions")
            .generation()
            .conditional()
    };
    vec![
        a("MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
        a(
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings",
        ),
        a("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        a("ValidatingAdmissionPolicy", "validatingadmissionpolicies").status(),
        a(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
        a(
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
        ),
    ]
}

fn extensions() -> Vec<Kind> {
    vec![
        k(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            CLUSTER,
        )
        .short(&["crd", "crds"])
        .category("api-extensions")
        .status()
        .generation()
        .conditional(),
    ]
}

fn scheduling() -> Vec<Kind> {
    vec![
        k(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            CLUSTER,
        )
        .short(&["pc"])
        .generation(),
    ]
}

fn coordination() -> Vec<Kind> {
    vec![
        k("coordination.k8s.io", "v1", "Lease", "leases", NAMESPACED)
            .create_on_update()
            .conditional(),
    ]
}

fn node() -> Vec<Kind> {
    vec![k("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", CLUSTER).conditional()]
}

fn discovery() -> Vec<Kind> {
    vec![
        k(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            NAMESPACED,
        )
        .generation(),
    ]
}

fn resource() -> Vec<Kind> {
    let r = |kind, plural, scope| k("resource.k8s.io", "v1", kind, plural, scope);
    vec![
        r("DeviceClass", "deviceclasses", CLUSTER).generation(),
        r("ResourceClaim", "resourceclaims", NAMESPACED).status(),
        r("ResourceClaimTemplate", "resourceclaimtemplates", NAMESPACED),
        r("ResourceSlice", "resourceslices", CLUSTER)
            .generation()
            .fields(&["spec.nodeName", "spec.driver"]),
    ]
}

fn flowcontrol() -> Vec<Kind> {
    let f = |kind, plural| {
        k("flowcontrol.apiserver.k8s.io", "v1", kind, plural, CLUSTER)
            .status()
            .generation()
            .conditional()
    };
    vec![
        f("FlowSchema", "flowschemas"),
        f("PriorityLevelConfiguration", "prioritylevelconfigurations"),
    ]
}
