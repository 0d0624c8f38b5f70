//! Pods and pod templates.

use super::Errors;
use super::check::{
    self, between, dot, has, items, name, not_negative, one_of, optional_name, required, required_one_of,
};
use super::{container, resources, volume};
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;

/// Largest user, group or deadline: a signed 32-bit number.
const MAX_ID: i64 = i32::MAX as i64;
const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];

pub(super) fn pod(errors: &mut Errors, pod: &Value) {
    spec(errors, meta::at(pod, "spec").unwrap_or(&Value::Null), "spec");
    let deletion_cost = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = meta::annotation(pod, deletion_cost)
        && cost.parse::<i32>().is_err()
    {
        let path = format!("metadata.annotations[{deletion_cost}]");
        errors.push(FieldError::invalid(path, cost, "must be a 32bit integer"));
    }
}

/// What only a new pod must obey.
pub(super) fn on_create(errors: &mut Errors, pod: &Value) {
    if !meta::list_at(pod, "spec.ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            "spec.ephemeralContainers",
            "cannot be set on create",
        ));
    }
    if !meta::str_at(pod, "spec.nodeName").is_empty()
        && !meta::list_at(pod, "spec.schedulingGates").is_empty()
    {
        let text = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden("spec.nodeName", text));
    }
}

/// A pod template: metadata and specification.
pub(super) fn template(errors: &mut Errors, template: &Value, path: &str) {
    let metadata = dot(path, "metadata");
    check::labels(errors, meta::labels(template), &dot(&metadata, "labels"));
    for key in meta::annotations(template).into_iter().flatten().map(|(k, _)| k) {
        for detail in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(
                dot(&metadata, "annotations"),
                key.as_str(),
                detail,
            ));
        }
    }
    let path = dot(path, "spec");
    spec(errors, meta::at(template, "spec").unwrap_or(&Value::Null), &path);
    if !meta::list_at(template, "spec.ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            dot(&path, "ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// A pod specification.
pub(super) fn spec(errors: &mut Errors, spec: &Value, path: &str) {
    let volumes = volume::volumes(errors, spec, path);
    container::containers(errors, spec, path, &volumes);
    required_one_of(errors, spec, path, "restartPolicy", RESTART_POLICIES);
    one_of(
        errors,
        spec,
        path,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    dns(errors, spec, path);
    not_negative(errors, spec, path, &["terminationGracePeriodSeconds"]);
    between(errors, spec, path, "activeDeadlineSeconds", 1, MAX_ID);
    check::labels(
        errors,
        meta::object_at(spec, "nodeSelector"),
        &dot(path, "nodeSelector"),
    );
    for field in [
        "serviceAccountName",
        "nodeName",
        "priorityClassName",
        "runtimeClassName",
    ] {
        optional_name(errors, spec, path, field, names::subdomain);
    }
    for field in ["hostname", "subdomain"] {
        optional_name(errors, spec, path, field, names::label);
    }
    for (p, secret) in items(spec, path, "imagePullSecrets") {
        required(errors, secret, &p, "name");
    }
    for (p, alias) in items(spec, path, "hostAliases") {
        name(errors, &dot(&p, "ip"), meta::str_at(alias, "ip"), names::ip);
        for (p, host) in items(alias, &p, "hostnames") {
            name(errors, &p, host.as_str().unwrap_or(""), names::subdomain);
        }
    }
    for (p, gate) in items(spec, path, "readinessGates") {
        name(
            errors,
            &dot(&p, "conditionType"),
            meta::str_at(gate, "conditionType"),
            names::qualified_name,
        );
    }
    for (p, gate) in items(spec, path, "schedulingGates") {
        name(errors, &p, meta::str_at(gate, "name"), names::qualified_name);
    }
    tolerations(errors, spec, path);
    spread(errors, spec, path);
    if let Some(affinity) = meta::at(spec, "affinity") {
        affinity_terms(errors, affinity, &dot(path, "affinity"));
    }
    if let Some(context) = meta::at(spec, "securityContext") {
        security(errors, context, &dot(path, "securityContext"));
    }
    if meta::bool_at(spec, "shareProcessNamespace") && meta::bool_at(spec, "hostPID") {
        errors.push(FieldError::invalid(
            dot(path, "shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    if let Some(os) = meta::at(spec, "os") {
        required_one_of(errors, os, &dot(path, "os"), "name", &["linux", "windows"]);
    }
    if let Some(r) = meta::at(spec, "resources") {
        resources::requirements(errors, r, &dot(path, "resources"));
    }
}

fn dns(errors: &mut Errors, spec: &Value, path: &str) {
    const NAMESERVERS: usize = 3;
    const SEARCHES: usize = 32;
    let path = dot(path, "dnsConfig");
    let config = meta::at(spec, "dnsConfig").unwrap_or(&Value::Null);
    let servers = meta::list_at(config, "nameservers");
    if meta::str_at(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let text = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(dot(&path, "nameservers"), text));
    }
    if servers.len() > NAMESERVERS {
        let text = format!("must not have more than {NAMESERVERS} nameservers");
        errors.push(FieldError::invalid(
            dot(&path, "nameservers"),
            servers.to_vec(),
            text,
        ));
    }
    for (p, server) in items(config, &path, "nameservers") {
        name(errors, &p, server.as_str().unwrap_or(""), names::ip);
    }
    let searches = meta::list_at(config, "searches");
    if searches.len() > SEARCHES {
        let text = format!("must not have more than {SEARCHES} search paths");
        errors.push(FieldError::invalid(
            dot(&path, "searches"),
            searches.to_vec(),
            text,
        ));
    }
    for (p, option) in items(config, &path, "options") {
        required(errors, option, &p, "name");
    }
}

fn tolerations(errors: &mut Errors, spec: &Value, path: &str) {
    for (p, t) in items(spec, path, "tolerations") {
        let (key, operator) = (meta::str_at(t, "key"), meta::str_at(t, "operator"));
        if !key.is_empty() {
            name(errors, &dot(&p, "key"), key, names::qualified_name);
        } else if operator != "Exists" {
            let text =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(dot(&p, "operator"), operator, text));
        }
        if has(t, "tolerationSeconds") && meta::str_at(t, "effect") != "NoExecute" {
            let text = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(
                dot(&p, "effect"),
                meta::str_at(t, "effect"),
                text,
            ));
        }
        match operator {
            "Equal" | "" => name(
                errors,
                &dot(&p, "operator"),
                meta::str_at(t, "value"),
                names::label_value,
            ),
            "Exists" if !meta::str_at(t, "value").is_empty() => {
                let text = "value must be empty when `operator` is 'Exists'";
                errors.push(FieldError::invalid(
                    dot(&p, "operator"),
                    meta::str_at(t, "value"),
                    text,
                ));
            }
            "Exists" => {}
            _ => one_of(errors, t, &p, "operator", &["Equal", "Exists"]),
        }
        if !meta::str_at(t, "effect").is_empty() {
            one_of(
                errors,
                t,
                &p,
                "effect",
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    }
}

fn spread(errors: &mut Errors, spec: &Value, path: &str) {
    for (p, c) in items(spec, path, "topologySpreadConstraints") {
        if meta::int_at(c, "maxSkew").unwrap_or(0) < 1 {
            let skew = meta::int_at(c, "maxSkew").unwrap_or(0);
            errors.push(FieldError::invalid(dot(&p, "maxSkew"), skew, check::POSITIVE));
        }
        check::positive(errors, c, &p, &["minDomains"]);
        if required(errors, c, &p, "topologyKey") {
            name(
                errors,
                &dot(&p, "topologyKey"),
                meta::str_at(c, "topologyKey"),
                names::qualified_name,
            );
        }
        required_one_of(
            errors,
            c,
            &p,
            "whenUnsatisfiable",
            &["DoNotSchedule", "ScheduleAnyway"],
        );
        one_of(errors, c, &p, "nodeAffinityPolicy", &["Honor", "Ignore"]);
        one_of(errors, c, &p, "nodeTaintsPolicy", &["Honor", "Ignore"]);
        if let Some(selector) = meta::at(c, "labelSelector") {
            check::label_selector(errors, selector, &dot(&p, "labelSelector"));
        }
    }
}

fn affinity_terms(errors: &mut Errors, affinity: &Value, path: &str) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(required_nodes) = meta::at(affinity, &format!("nodeAffinity.{REQUIRED}")) {
        let p = format!("{path}.nodeAffinity.{REQUIRED}");
        if meta::list_at(required_nodes, "nodeSelectorTerms").is_empty() {
            let text = "must have at least one node selector term";
            errors.push(FieldError::required(dot(&p, "nodeSelectorTerms"), text));
        }
        for (p, term) in items(required_nodes, &p, "nodeSelectorTerms") {
            node_term(errors, term, &p);
        }
    }
    for (p, weighted) in items(affinity, path, &format!("nodeAffinity.{PREFERRED}")) {
        weight(errors, weighted, &p);
        node_term(
            errors,
            meta::at(weighted, "preference").unwrap_or(&Value::Null),
            &dot(&p, "preference"),
        );
    }
    for side in ["podAffinity", "podAntiAffinity"] {
        for (p, term) in items(affinity, path, &format!("{side}.{REQUIRED}")) {
            pod_term(errors, term, &p);
        }
        for (p, weighted) in items(affinity, path, &format!("{side}.{PREFERRED}")) {
            weight(errors, weighted, &p);
            pod_term(
                errors,
                meta::at(weighted, "podAffinityTerm").unwrap_or(&Value::Null),
                &dot(&p, "podAffinityTerm"),
            );
        }
    }
}

fn weight(errors: &mut Errors, term: &Value, path: &str) {
    let weight = meta::int_at(term, "weight").unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(
            dot(path, "weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn node_term(errors: &mut Errors, term: &Value, path: &str) {
    for list in ["matchExpressions", "matchFields"] {
        for (p, e) in items(term, path, list) {
            let count = meta::list_at(e, "values").len();
            let problem = match meta::str_at(e, "operator") {
                "In" | "NotIn" if count == 0 => Some(FieldError::required(
                    dot(&p, "values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                )),
                "Exists" | "DoesNotExist" if count > 0 => Some(FieldError::forbidden(
                    dot(&p, "values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                )),
                "Gt" | "Lt" if count != 1 => Some(FieldError::required(
                    dot(&p, "values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                )),
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => None,
                other => Some(FieldError::invalid(
                    dot(&p, "operator"),
                    other,
                    "not a valid selector operator",
                )),
            };
            errors.extend(problem);
            name(
                errors,
                &dot(&p, "key"),
                meta::str_at(e, "key"),
                names::qualified_name,
            );
        }
    }
}

fn pod_term(errors: &mut Errors, term: &Value, path: &str) {
    if meta::str_at(term, "topologyKey").is_empty() {
        errors.push(FieldError::required(dot(path, "topologyKey"), "can not be empty"));
    } else {
        name(
            errors,
            &dot(path, "topologyKey"),
            meta::str_at(term, "topologyKey"),
            names::qualified_name,
        );
    }
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = meta::at(term, field).filter(|s| !s.is_null()) {
            check::label_selector(errors, selector, &dot(path, field));
        }
    }
    for (p, namespace) in items(term, path, "namespaces") {
        name(errors, &p, namespace.as_str().unwrap_or(""), names::label);
    }
}

pub(super) fn security(errors: &mut Errors, context: &Value, path: &str) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        between(errors, context, path, field, 0, MAX_ID);
    }
    for (p, group) in items(context, path, "supplementalGroups") {
        if !group.as_i64().is_some_and(|g| (0..=MAX_ID).contains(&g)) {
            let text = format!("must be between 0 and {MAX_ID}, inclusive");
            errors.push(FieldError::invalid(p, group.clone(), text));
        }
    }
    for (p, sysctl) in items(context, path, "sysctls") {
        required(errors, sysctl, &p, "name");
    }
    if let Some(profile) = meta::at(context, "seccompProfile") {
        let p = dot(path, "seccompProfile");
        let kinds = &["Localhost", "RuntimeDefault", "Unconfined"];
        required_one_of(errors, profile, &p, "type", kinds);
        let local = meta::str_at(profile, "type") == "Localhost";
        if local && meta::str_at(profile, "localhostProfile").is_empty() {
            let text = "must be set when seccomp type is Localhost";
            errors.push(FieldError::required(dot(&p, "localhostProfile"), text));
        }
    }
    if meta::at(context, "allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        let text = if meta::bool_at(context, "privileged") {
            Some("cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
        } else if meta::list_at(context, "capabilities.add")
            .iter()
            .any(|c| c == "CAP_SYS_ADMIN")
        {
            Some("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
        } else {
            None
        };
        if let Some(text) = text {
            errors.push(FieldError::invalid(path, context.clone(), text));
        }
    }
}
