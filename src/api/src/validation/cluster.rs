//! What the cluster is made of: namespaces, nodes, events, quotas, permissions, certificates, leases, classes.

use super::Errors;
use super::check::{
    self, dot, has, immutable, items, name, not_negative, one_of, positive, required, required_one_of,
};
use super::resources;
use crate::status::FieldError;
use crate::strategy::same;
use crate::{meta, names};
use base64::Engine as _;
use serde_json::Value;

const NULL: &Value = &Value::Null;
const RBAC: &str = "rbac.authorization.k8s.io";
/// Highest priority a user may give; the system keeps what is above.
const PRIORITY_MAX: i64 = 1_000_000_000;
const SYSTEM_PRIORITIES: &[(&str, i64)] = &[
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];
/// Shortest certificate that can be asked for.
const CERTIFICATE_MIN_SECONDS: i64 = 600;

fn spec(obj: &Value) -> &Value {
    obj.get("spec").unwrap_or(NULL)
}

pub(super) fn namespace(errors: &mut Errors, obj: &Value) {
    for (path, finalizer) in items(obj, "", "spec.finalizers") {
        name(
            errors,
            &path,
            finalizer.as_str().unwrap_or(""),
            names::qualified_name,
        );
    }
}

pub(super) fn node(errors: &mut Errors, obj: &Value) {
    let mut seen = Vec::new();
    for (path, taint) in items(obj, "", "spec.taints") {
        let (key, effect) = (meta::str_at(taint, "key"), meta::str_at(taint, "effect"));
        name(errors, &dot(&path, "key"), key, names::qualified_name);
        name(
            errors,
            &dot(&path, "value"),
            meta::str_at(taint, "value"),
            names::label_value,
        );
        required_one_of(
            errors,
            taint,
            &path,
            "effect",
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        );
        if seen.contains(&(key, effect)) {
            let mut value = taint.clone();
            meta::remove(&mut value, "timeAdded");
            let mut e = FieldError::duplicate(&path, value);
            e.detail = "taints must be unique by key and effect pair".into();
            errors.push(e);
        }
        seen.push((key, effect));
    }
    for (path, cidr) in items(obj, "", "spec.podCIDRs") {
        name(errors, &path, cidr.as_str().unwrap_or(""), names::cidr);
    }
    for list in ["status.capacity", "status.allocatable"] {
        resources::amounts(errors, meta::object_at(obj, list), list);
    }
}

pub(super) fn node_update(errors: &mut Errors, new: &Value, old: &Value) {
    for (field, text) in [
        (
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ),
        (
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ),
    ] {
        let set = meta::at(old, field).is_some_and(|v| v.as_str() != Some("") && !same(Some(v), None));
        if set && !same(meta::at(new, field), meta::at(old, field)) {
            errors.push(FieldError::forbidden(field, text));
        }
    }
}

pub(super) fn event(errors: &mut Errors, obj: &Value) {
    let (own, about) = (
        meta::namespace(obj),
        meta::str_at(obj, "involvedObject.namespace"),
    );
    // Events about cluster-wide objects live in the default namespace.
    let fits = if about.is_empty() {
        matches!(own, "" | "default" | "kube-system")
    } else {
        own == about
    };
    if !fits {
        let text = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", about, text));
    }
}

pub(super) fn resource_quota(errors: &mut Errors, obj: &Value) {
    resources::amounts(errors, meta::object_at(obj, "spec.hard"), "spec.hard");
    const SCOPES: &[&str] = &[
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    for (path, scope) in items(obj, "", "spec.scopes") {
        if !scope.as_str().is_some_and(|s| SCOPES.contains(&s)) {
            errors.push(FieldError::invalid(path, scope.clone(), "unsupported scope"));
        }
    }
    for (path, e) in items(obj, "", "spec.scopeSelector.matchExpressions") {
        required_one_of(errors, e, &path, "scopeName", SCOPES);
        required_one_of(
            errors,
            e,
            &path,
            "operator",
            &["DoesNotExist", "Exists", "In", "NotIn"],
        );
    }
}

pub(super) fn resource_quota_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "spec.scopes");
}

pub(super) fn limit_range(errors: &mut Errors, obj: &Value) {
    let mut seen = Vec::new();
    for (path, item) in items(obj, "", "spec.limits") {
        let kind = meta::str_at(item, "type");
        required(errors, item, &path, "type");
        if seen.contains(&kind) {
            errors.push(FieldError::duplicate(dot(&path, "type"), kind));
        }
        seen.push(kind);
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            if kind == "Pod" && list.starts_with("default") && has(item, list) {
                let text = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(dot(&path, list), text));
            }
            resources::amounts(errors, meta::object_at(item, list), &dot(&path, list));
        }
        ordered(errors, item, &path);
    }
}

/// min ≤ defaultRequest ≤ default ≤ max.
fn ordered(errors: &mut Errors, item: &Value, path: &str) {
    let read = |list: &str, resource: &str| {
        let value = meta::object_at(item, list)?.get(resource)?;
        crate::quantity::Quantity::from_value(value).ok()
    };
    let lists = ["min", "defaultRequest", "default", "max"];
    for (i, low) in lists.iter().enumerate() {
        for high in &lists[i + 1..] {
            for resource in meta::object_at(item, low).into_iter().flatten().map(|(k, _)| k) {
                if let (Some(a), Some(b)) = (read(low, resource), read(high, resource))
                    && a > b
                {
                    let text = format!("{low} value {a} is greater than {high} value {b}");
                    errors.push(FieldError::invalid(
                        format!("{path}.{low}[{resource}]"),
                        a.to_string(),
                        text,
                    ));
                }
            }
        }
    }
}

// ---- permissions ----

fn policy_rules(errors: &mut Errors, obj: &Value, namespaced: bool) {
    for (path, rule) in items(obj, "", "rules") {
        let filled = |field| !meta::list_at(rule, field).is_empty();
        if !filled("verbs") {
            let text = "verbs must contain at least one value";
            errors.push(FieldError::required(dot(&path, "verbs"), text));
        }
        if filled("nonResourceURLs") {
            let urls = meta::at(rule, "nonResourceURLs").cloned().unwrap_or_default();
            let at = dot(&path, "nonResourceURLs");
            if namespaced {
                let text = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(&at, urls.clone(), text));
            }
            if filled("apiGroups") || filled("resources") || filled("resourceNames") {
                let text = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(&at, urls, text));
            }
            continue;
        }
        if !filled("apiGroups") {
            let text = "resource rules must supply at least one api group";
            errors.push(FieldError::required(dot(&path, "apiGroups"), text));
        }
        if !filled("resources") {
            let text = "resource rules must supply at least one resource";
            errors.push(FieldError::required(dot(&path, "resources"), text));
        }
    }
}

pub(super) fn role(errors: &mut Errors, obj: &Value) {
    policy_rules(errors, obj, true);
}

pub(super) fn cluster_role(errors: &mut Errors, obj: &Value) {
    policy_rules(errors, obj, false);
    for (path, selector) in items(obj, "", "aggregationRule.clusterRoleSelectors") {
        check::label_selector(errors, selector, &path);
    }
}

fn binding(errors: &mut Errors, obj: &Value, kinds: &[&str], namespaced: bool) {
    let reference = obj.get("roleRef").unwrap_or(NULL);
    let group = meta::str_at(reference, "apiGroup");
    if group != RBAC {
        errors.push(FieldError::not_supported("roleRef.apiGroup", group, &[RBAC]));
    }
    let kind = meta::str_at(reference, "kind");
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported("roleRef.kind", kind, kinds));
    }
    if required(errors, reference, "roleRef", "name") {
        name(
            errors,
            "roleRef.name",
            meta::str_at(reference, "name"),
            names::path_segment,
        );
    }
    for (path, subject) in items(obj, "", "subjects") {
        required(errors, subject, &path, "name");
        let group = meta::str_at(subject, "apiGroup");
        match meta::str_at(subject, "kind") {
            "ServiceAccount" => {
                let text = meta::str_at(subject, "name");
                if !text.is_empty() {
                    name(errors, &dot(&path, "name"), text, names::subdomain);
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(dot(&path, "apiGroup"), group, &[""]));
                }
                if !namespaced || !meta::str_at(subject, "name").is_empty() {
                    required(errors, subject, &path, "namespace");
                }
            }
            "User" | "Group" if group != RBAC => {
                errors.push(FieldError::not_supported(dot(&path, "apiGroup"), group, &[RBAC]));
            }
            "User" | "Group" => {}
            other => {
                let supported = &["ServiceAccount", "User", "Group"];
                errors.push(FieldError::not_supported(dot(&path, "kind"), other, supported));
            }
        }
    }
}

pub(super) fn role_binding(errors: &mut Errors, obj: &Value) {
    binding(errors, obj, &["Role", "ClusterRole"], true);
}

pub(super) fn cluster_role_binding(errors: &mut Errors, obj: &Value) {
    binding(errors, obj, &["ClusterRole"], false);
}

pub(super) fn binding_update(errors: &mut Errors, new: &Value, old: &Value) {
    if new.get("roleRef") != old.get("roleRef") {
        let value = new.get("roleRef").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("roleRef", value, "cannot change roleRef"));
    }
}

// ---- certificates ----

pub(super) fn certificate_request(errors: &mut Errors, obj: &Value) {
    let s = spec(obj);
    let pem = base64::engine::general_purpose::STANDARD
        .decode(meta::str_at(s, "request"))
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&pem);
    let fine = text.contains("-----BEGIN CERTIFICATE REQUEST-----")
        && text.contains("-----END CERTIFICATE REQUEST-----");
    if !fine {
        let text = "PEM block type must be CERTIFICATE REQUEST";
        let value = meta::str_at(s, "request");
        errors.push(FieldError::invalid("spec.request", value, text));
    }
    if required(errors, s, "spec", "signerName") {
        signer_name(errors, meta::str_at(s, "signerName"));
    }
    if meta::list_at(s, "usages").is_empty() {
        errors.push(FieldError::required("spec.usages", "usages must be specified"));
    }
    const USAGES: &[&str] = &[
        "any",
        "cert sign",
        "client auth",
        "code signing",
        "content commitment",
        "crl sign",
        "data encipherment",
        "decipher only",
        "digital signature",
        "email protection",
        "encipher only",
        "ipsec end system",
        "ipsec tunnel",
        "ipsec user",
        "key agreement",
        "key encipherment",
        "microsoft sgc",
        "netscape sgc",
        "ocsp signing",
        "s/mime",
        "server auth",
        "signing",
        "timestamping",
    ];
    for (path, usage) in items(s, "spec", "usages") {
        if !usage.as_str().is_some_and(|u| USAGES.contains(&u)) {
            errors.push(FieldError::not_supported(path, usage.clone(), USAGES));
        }
    }
    if let Some(seconds) = meta::int_at(s, "expirationSeconds").filter(|n| *n < CERTIFICATE_MIN_SECONDS) {
        let text = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, text));
    }
}

fn signer_name(errors: &mut Errors, signer: &str) {
    let fine = signer.split_once('/').is_some_and(|(domain, path)| {
        domain.contains('.') && names::subdomain(domain).is_empty() && names::subdomain(path).is_empty()
    });
    if !fine {
        let text = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(FieldError::invalid("spec.signerName", signer, text));
    }
}

fn conditions(errors: &mut Errors, obj: &Value) {
    let mut seen = Vec::new();
    for (path, c) in items(obj, "", "status.conditions") {
        let kind = meta::str_at(c, "type");
        required(errors, c, &path, "type");
        match kind {
            // A decision stands; there is no deciding half.
            "Approved" | "Denied" | "Failed" if meta::str_at(c, "status") != "True" => {
                errors.push(FieldError::not_supported(
                    dot(&path, "status"),
                    meta::str_at(c, "status"),
                    &["True"],
                ));
            }
            _ => required_one_of(errors, c, &path, "status", &["False", "True", "Unknown"]),
        }
        if seen.contains(&kind) {
            errors.push(FieldError::duplicate(dot(&path, "type"), kind));
        }
        seen.push(kind);
    }
    if seen.contains(&"Approved") && seen.contains(&"Denied") {
        let text = "Approved and Denied conditions are mutually exclusive";
        let value = meta::at(obj, "status.conditions").cloned().unwrap_or_default();
        errors.push(FieldError::invalid("status.conditions", value, text));
    }
}

pub(super) fn certificate_update(errors: &mut Errors, new: &Value, _: &Value) {
    conditions(errors, new);
}

pub(super) fn certificate_approval(errors: &mut Errors, new: &Value, old: &Value) {
    conditions(errors, new);
    let now = meta::list_at(new, "status.conditions");
    for condition in meta::list_at(old, "status.conditions") {
        let kind = meta::str_at(condition, "type");
        let kept = now.iter().any(|c| meta::str_at(c, "type") == kind);
        if matches!(kind, "Approved" | "Denied" | "Failed") && !kept {
            let text = format!("updates may not remove a condition of type \"{kind}\"");
            errors.push(FieldError::forbidden("status.conditions", text));
        }
    }
}

// ---- leases and classes ----

pub(super) fn lease(errors: &mut Errors, obj: &Value) {
    positive(errors, obj, "", &["spec.leaseDurationSeconds"]);
    not_negative(errors, obj, "", &["spec.leaseTransitions"]);
    if meta::at(obj, "spec.holderIdentity").is_some_and(|h| h == "") {
        errors.push(FieldError::invalid(
            "spec.holderIdentity",
            "",
            "must not be empty",
        ));
    }
}

pub(super) fn priority_class(errors: &mut Errors, obj: &Value) {
    let value = meta::int_at(obj, "value").unwrap_or(0);
    let text = meta::name(obj);
    if text.starts_with("system-") {
        let known = SYSTEM_PRIORITIES.contains(&(text, value)) && !meta::bool_at(obj, "globalDefault");
        if !known {
            let why = "priority class names with 'system-' prefix are reserved for system use only. error: not a system priority class";
            errors.push(FieldError::forbidden("metadata.name", why));
        }
    } else if value > PRIORITY_MAX {
        let why = format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}");
        errors.push(FieldError::forbidden("value", why));
    }
    one_of(
        errors,
        obj,
        "",
        "preemptionPolicy",
        &["PreemptLowerPriority", "Never"],
    );
}

pub(super) fn priority_class_update(errors: &mut Errors, new: &Value, old: &Value) {
    let value = |o: &Value| meta::int_at(o, "value").unwrap_or(0);
    if value(new) != value(old) {
        errors.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    immutable(errors, new, old, "preemptionPolicy");
}

pub(super) fn runtime_class(errors: &mut Errors, obj: &Value) {
    name(errors, "handler", meta::str_at(obj, "handler"), names::label);
    resources::amounts(
        errors,
        meta::object_at(obj, "overhead.podFixed"),
        "overhead.podFixed",
    );
}

pub(super) fn runtime_class_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "handler");
}
