//! Containers of pods: ports, environment, mounts, probes and hooks.

use super::Errors;
use super::check::{
    self, dot, has, items, name, not_negative, one_of, optional_name, port_number, port_ref, required,
    required_name, required_one_of,
};
use super::{pod, resources, volume};
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;
use std::collections::BTreeSet;

const PULL_POLICIES: &[&str] = &["Always", "IfNotPresent", "Never"];
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn containers(errors: &mut Errors, spec: &Value, path: &str, volumes: &BTreeSet<&str>) {
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
        pod::security(errors, s, &dot(path, "securityContext"));
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
                volume::local_path(errors, text, &dot(&p, field));
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
        "exec" if meta::list_at(action, "command").is_empty() => {
            errors.push(FieldError::required(dot(&p, "command"), ""));
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
