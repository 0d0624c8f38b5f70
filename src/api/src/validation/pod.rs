//! Pods and pod templates.

use super::Errors;
use super::check::{
    self, between, dot, has, items, name, not_negative, one_of, optional_name, port_number, port_ref,
    required, required_name, required_one_of,
};
use super::resources;
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;
use std::collections::BTreeSet;

/// Largest user, group or deadline: a signed 32-bit number.
const MAX_ID: i64 = i32::MAX as i64;
const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];
const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

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
    let volumes = volumes(errors, spec, path);
    containers(errors, spec, path, &volumes);
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

fn security(errors: &mut Errors, context: &Value, path: &str) {
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

// ---- volumes ----

/// Checks the volumes and gives back their names.
fn volumes<'a>(errors: &mut Errors, spec: &'a Value, path: &str) -> BTreeSet<&'a str> {
    let mut known = BTreeSet::new();
    for (p, volume) in items(spec, path, "volumes") {
        let text = meta::str_at(volume, "name");
        if text.is_empty() {
            errors.push(FieldError::required(dot(&p, "name"), ""));
        } else {
            name(errors, &dot(&p, "name"), text, names::label);
            if !known.insert(text) {
                errors.push(FieldError::duplicate(dot(&p, "name"), text));
            }
        }
        volume_source(errors, volume, &p);
    }
    known
}

/// One source and only one.
pub(super) fn volume_source(errors: &mut Errors, volume: &Value, path: &str) {
    let sources: Vec<_> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| k.as_str() != "name" && !v.is_null())
        .collect();
    let Some((kind, source)) = sources.first() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for (other, _) in &sources[1..] {
        errors.push(FieldError::forbidden(
            dot(path, other),
            "may not specify more than 1 volume type",
        ));
    }
    let p = dot(path, kind);
    match kind.as_str() {
        "hostPath" => host_path(errors, source, &p),
        "emptyDir" => {
            if let Some(limit) = meta::at(source, "sizeLimit") {
                resources::quantity(errors, limit, &dot(&p, "sizeLimit"));
            }
        }
        "secret" => {
            required(errors, source, &p, "secretName");
            mode(errors, source, &p, "defaultMode");
            key_paths(errors, source, &p);
        }
        "configMap" => {
            required(errors, source, &p, "name");
            mode(errors, source, &p, "defaultMode");
            key_paths(errors, source, &p);
        }
        "persistentVolumeClaim" => {
            required(errors, source, &p, "claimName");
        }
        "projected" => projected(errors, source, &p),
        "downwardAPI" => {
            mode(errors, source, &p, "defaultMode");
            downward(errors, source, &p);
        }
        "nfs" => {
            required(errors, source, &p, "server");
            if required(errors, source, &p, "path") && !meta::str_at(source, "path").starts_with('/') {
                let text = meta::str_at(source, "path");
                errors.push(FieldError::invalid(
                    dot(&p, "path"),
                    text,
                    "must be an absolute path",
                ));
            }
        }
        "csi" => {
            required(errors, source, &p, "driver");
        }
        "image" => {
            required(errors, source, &p, "reference");
        }
        _ => {}
    }
}

pub(super) fn host_path(errors: &mut Errors, source: &Value, path: &str) {
    required(errors, source, path, "path");
    no_back_steps(errors, meta::str_at(source, "path"), &dot(path, "path"));
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    one_of(errors, source, path, "type", TYPES);
}

fn no_back_steps(errors: &mut Errors, text: &str, path: &str) {
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

fn mode(errors: &mut Errors, source: &Value, path: &str, field: &str) {
    if let Some(mode) = meta::int_at(source, field).filter(|m| !(0..=0o777).contains(m)) {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(dot(path, field), mode, text));
    }
}

/// A path inside a volume.
fn local_path(errors: &mut Errors, text: &str, path: &str) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    no_back_steps(errors, text, path);
}

fn key_paths(errors: &mut Errors, source: &Value, path: &str) {
    for (p, item) in items(source, path, "items") {
        required(errors, item, &p, "key");
        if required(errors, item, &p, "path") {
            let text = meta::str_at(item, "path");
            local_path(errors, text, &dot(&p, "path"));
            if text.starts_with("..") && !text.starts_with("../") {
                errors.push(FieldError::invalid(
                    dot(&p, "path"),
                    text,
                    "must not start with '..'",
                ));
            }
        }
        mode(errors, item, &p, "mode");
    }
}

fn downward(errors: &mut Errors, source: &Value, path: &str) {
    for (p, item) in items(source, path, "items") {
        if required(errors, item, &p, "path") {
            local_path(errors, meta::str_at(item, "path"), &dot(&p, "path"));
        }
        match (has(item, "fieldRef"), has(item, "resourceFieldRef")) {
            (true, true) => errors.push(FieldError::invalid(
                &p,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
            (false, false) => {
                errors.push(FieldError::required(
                    &p,
                    "one of fieldRef and resourceFieldRef is required",
                ));
            }
            _ => {}
        }
        mode(errors, item, &p, "mode");
    }
}

fn projected(errors: &mut Errors, source: &Value, path: &str) {
    mode(errors, source, path, "defaultMode");
    for (p, item) in items(source, path, "sources") {
        let Some((kind, inner)) = item
            .as_object()
            .and_then(|o| o.iter().find(|(_, v)| !v.is_null()))
        else {
            errors.push(FieldError::required(&p, "must specify a volume type"));
            continue;
        };
        let at = dot(&p, kind);
        match kind.as_str() {
            "secret" | "configMap" => {
                required(errors, inner, &at, "name");
                key_paths(errors, inner, &at);
            }
            "downwardAPI" => downward(errors, inner, &at),
            "serviceAccountToken" => {
                if meta::int_at(inner, "expirationSeconds").is_some_and(|s| s < 600) {
                    let value = meta::int_at(inner, "expirationSeconds");
                    let text = "may not specify a duration less than 10 minutes";
                    errors.push(FieldError::invalid(dot(&at, "expirationSeconds"), value, text));
                }
                required(errors, inner, &at, "path");
            }
            _ => {}
        }
    }
}

// ---- containers ----

fn containers(errors: &mut Errors, spec: &Value, path: &str, volumes: &BTreeSet<&str>) {
    let mut names_seen = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    let host_network = meta::bool_at(spec, "hostNetwork");
    if meta::list_at(spec, "containers").is_empty() {
        errors.push(FieldError::required(dot(path, "containers"), ""));
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (p, container) in items(spec, path, list) {
            let text = meta::str_at(container, "name");
            if text.is_empty() {
                errors.push(FieldError::required(dot(&p, "name"), ""));
            } else {
                name(errors, &dot(&p, "name"), text, names::label);
                if !names_seen.insert(text) {
                    errors.push(FieldError::duplicate(dot(&p, "name"), text));
                }
            }
            one_container(errors, container, &p, volumes, host_network);
            let sidecar = list == "initContainers" && meta::str_at(container, "restartPolicy") == "Always";
            match list {
                "initContainers" if !sidecar => no_runtime_hooks(errors, container, &p),
                "ephemeralContainers" => plain_debugger(errors, container, &p),
                _ => {}
            }
            if list != "initContainers" || sidecar {
                ports_on_host(errors, container, &p, &mut host_ports);
            }
        }
    }
}

fn no_runtime_hooks(errors: &mut Errors, container: &Value, path: &str) {
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        if has(container, field) {
            let text = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(dot(path, field), text));
        }
    }
}

fn plain_debugger(errors: &mut Errors, container: &Value, path: &str) {
    for field in [
        "ports",
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "resizePolicy",
    ] {
        if has(container, field) {
            errors.push(FieldError::forbidden(
                dot(path, field),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
}

fn ports_on_host<'a>(
    errors: &mut Errors,
    container: &'a Value,
    path: &str,
    seen: &mut BTreeSet<(&'a str, &'a str, i64)>,
) {
    for (p, port) in items(container, path, "ports") {
        let number = meta::int_at(port, "hostPort").unwrap_or(0);
        let (protocol, ip) = (meta::str_at(port, "protocol"), meta::str_at(port, "hostIP"));
        if number != 0 && !seen.insert((protocol, ip, number)) {
            let text = format!("{protocol}/{ip}/{number}");
            errors.push(FieldError::duplicate(dot(&p, "hostPort"), text));
        }
    }
}

/// One container of any list.
fn one_container(errors: &mut Errors, c: &Value, path: &str, volumes: &BTreeSet<&str>, host_network: bool) {
    if required(errors, c, path, "image") {
        let image = meta::str_at(c, "image");
        if image.trim() != image {
            let text = "must not have leading or trailing whitespace";
            errors.push(FieldError::invalid(dot(path, "image"), image, text));
        }
    }
    required_one_of(errors, c, path, "imagePullPolicy", PULL_POLICIES);
    one_of(
        errors,
        c,
        path,
        "terminationMessagePolicy",
        &["File", "FallbackToLogsOnError"],
    );
    ports(errors, c, path, host_network);
    environment(errors, c, path);
    mounts(errors, c, path, volumes);
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = meta::at(c, field).filter(|p| !p.is_null()) {
            probe(errors, p, &dot(path, field), field == "readinessProbe");
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(h) = meta::at(c, &format!("lifecycle.{hook}")).filter(|h| !h.is_null()) {
            handler(
                errors,
                h,
                &format!("{path}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
            );
        }
    }
    if let Some(r) = meta::at(c, "resources") {
        resources::requirements(errors, r, &dot(path, "resources"));
    }
    if let Some(s) = meta::at(c, "securityContext") {
        security(errors, s, &dot(path, "securityContext"));
    }
}

fn ports(errors: &mut Errors, c: &Value, path: &str, host_network: bool) {
    let mut seen = BTreeSet::new();
    for (p, port) in items(c, path, "ports") {
        let text = meta::str_at(port, "name");
        if !text.is_empty() {
            name(errors, &dot(&p, "name"), text, names::port_name);
            if !seen.insert(text) {
                errors.push(FieldError::duplicate(dot(&p, "name"), text));
            }
        }
        match meta::int_at(port, "containerPort") {
            None | Some(0) => errors.push(FieldError::required(dot(&p, "containerPort"), "")),
            Some(_) => port_number(errors, port, &p, "containerPort"),
        }
        let host = meta::int_at(port, "hostPort").unwrap_or(0);
        if host != 0 {
            port_number(errors, port, &p, "hostPort");
            if host_network && Some(host) != meta::int_at(port, "containerPort") {
                let text = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(dot(&p, "hostPort"), host, text));
            }
        }
        required_one_of(errors, port, &p, "protocol", PROTOCOLS);
        optional_name(errors, port, &p, "hostIP", names::ip);
    }
}

fn environment(errors: &mut Errors, c: &Value, path: &str) {
    for (p, e) in items(c, path, "env") {
        required_name(errors, e, &p, "name", names::env_name);
        let Some(from) = meta::at(e, "valueFrom").filter(|f| !f.is_null()) else {
            continue;
        };
        let p = dot(&p, "valueFrom");
        let sources: Vec<_> = from
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null())
            .collect();
        if !meta::str_at(e, "value").is_empty() {
            let text = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(&p, "", text));
        }
        match sources.as_slice() {
            [] => errors.push(FieldError::invalid(
                &p,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            )),
            [(kind, source)] => {
                let p = dot(&p, kind);
                match kind.as_str() {
                    "fieldRef" => field_ref(errors, source, &p),
                    "resourceFieldRef" => {
                        required(errors, source, &p, "resource");
                    }
                    "configMapKeyRef" | "secretKeyRef" => {
                        required(errors, source, &p, "name");
                        required_name(errors, source, &p, "key", names::config_key);
                    }
                    _ => {}
                }
            }
            _ => {
                errors.push(FieldError::invalid(&p, "", "may not have more than one field specified at a time"));
            }
        }
    }
    for (p, from) in items(c, path, "envFrom") {
        let sources = ["configMapRef", "secretRef"];
        let present: Vec<_> = sources.iter().filter(|s| has(from, s)).collect();
        match present.as_slice() {
            [] => {
                errors.push(FieldError::invalid(
                    &p,
                    "",
                    "must specify one of: `configMapRef` or `secretRef`",
                ));
            }
            [one] => {
                required(errors, from, &p, &format!("{one}.name"));
            }
            _ => errors.push(FieldError::invalid(
                &p,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
}

fn field_ref(errors: &mut Errors, source: &Value, path: &str) {
    const FIELDS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if !required(errors, source, path, "fieldPath") {
        return;
    }
    let field = meta::str_at(source, "fieldPath");
    let subscript = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|p| field.starts_with(p));
    if !(FIELDS.contains(&field) || subscript && field.ends_with("']")) {
        errors.push(FieldError::not_supported(dot(path, "fieldPath"), field, FIELDS));
    }
}

fn mounts(errors: &mut Errors, c: &Value, path: &str, volumes: &BTreeSet<&str>) {
    let mut seen = BTreeSet::new();
    for (p, mount) in items(c, path, "volumeMounts") {
        let volume = meta::str_at(mount, "name");
        if required(errors, mount, &p, "name") && !volumes.contains(volume) {
            errors.push(FieldError::not_found(dot(&p, "name"), volume));
        }
        if required(errors, mount, &p, "mountPath") {
            let at = meta::str_at(mount, "mountPath");
            if !seen.insert(at) {
                errors.push(FieldError::invalid(dot(&p, "mountPath"), at, "must be unique"));
            }
        }
        for field in ["subPath", "subPathExpr"] {
            let text = meta::str_at(mount, field);
            if !text.is_empty() {
                local_path(errors, text, &dot(&p, field));
            }
        }
        if !meta::str_at(mount, "subPath").is_empty() && !meta::str_at(mount, "subPathExpr").is_empty() {
            let text = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(
                dot(&p, "subPathExpr"),
                meta::str_at(mount, "subPathExpr"),
                text,
            ));
        }
        one_of(
            errors,
            mount,
            &p,
            "mountPropagation",
            &["Bidirectional", "HostToContainer", "None"],
        );
        let shared = meta::str_at(mount, "mountPropagation") == "Bidirectional";
        if shared && !meta::bool_at(c, "securityContext.privileged") {
            let text = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(FieldError::forbidden(dot(&p, "mountPropagation"), text));
        }
    }
    for (p, device) in items(c, path, "volumeDevices") {
        let volume = meta::str_at(device, "name");
        if required(errors, device, &p, "name") && !volumes.contains(volume) {
            errors.push(FieldError::not_found(dot(&p, "name"), volume));
        }
        required(errors, device, &p, "devicePath");
    }
}

fn probe(errors: &mut Errors, probe: &Value, path: &str, readiness: bool) {
    handler(errors, probe, path, &["exec", "httpGet", "tcpSocket", "grpc"]);
    let numbers = [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ];
    not_negative(errors, probe, path, &numbers);
    if has(probe, "terminationGracePeriodSeconds") {
        if readiness {
            let text = "must not be set for readinessProbes";
            let value = meta::int_at(probe, "terminationGracePeriodSeconds");
            errors.push(FieldError::invalid(
                dot(path, "terminationGracePeriodSeconds"),
                value,
                text,
            ));
        } else {
            check::positive(errors, probe, path, &["terminationGracePeriodSeconds"]);
        }
    }
    if !readiness && meta::int_at(probe, "successThreshold").is_some_and(|n| n != 1) {
        let value = meta::int_at(probe, "successThreshold");
        errors.push(FieldError::invalid(
            dot(path, "successThreshold"),
            value,
            "must be 1",
        ));
    }
}

fn handler(errors: &mut Errors, obj: &Value, path: &str, kinds: &[&str]) {
    let present: Vec<_> = kinds.iter().filter(|k| has(obj, k)).collect();
    let Some(kind) = present.first() else {
        errors.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    for other in &present[1..] {
        errors.push(FieldError::forbidden(
            dot(path, other),
            "may not specify more than 1 handler type",
        ));
    }
    let p = dot(path, kind);
    let action = &obj[**kind];
    match **kind {
        "exec" => {
            if meta::list_at(action, "command").is_empty() {
                errors.push(FieldError::required(dot(&p, "command"), ""));
            }
        }
        "httpGet" => {
            if meta::str_at(action, "path").is_empty() {
                errors.push(FieldError::required(dot(&p, "path"), ""));
            }
            port_ref(
                errors,
                action.get("port").unwrap_or(&Value::Null),
                &dot(&p, "port"),
            );
            one_of(errors, action, &p, "scheme", &["HTTP", "HTTPS"]);
        }
        "tcpSocket" => port_ref(
            errors,
            action.get("port").unwrap_or(&Value::Null),
            &dot(&p, "port"),
        ),
        "grpc" => port_ref(
            errors,
            action.get("port").unwrap_or(&Value::Null),
            &dot(&p, "port"),
        ),
        _ => {}
    }
}
