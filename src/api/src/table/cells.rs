//! Cells that are more than one field.

use super::{human_duration, since};
use crate::meta;
use crate::selector::LabelSelector;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";
/// Items shown of long lists.
const SHOWN: usize = 3;

fn or_none(text: String) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

fn join(list: &[Value], path: &str, separator: &str) -> String {
    list.iter()
        .map(|v| meta::str_at(v, path))
        .collect::<Vec<_>>()
        .join(separator)
}

fn pairs(map: Option<&meta::Object>) -> String {
    let one = |(k, v): (&String, &Value)| format!("{k}={}", v.as_str().unwrap_or(""));
    map.into_iter().flatten().map(one).collect::<Vec<_>>().join(",")
}

/// A few items and how many more there are.
fn few(items: &[String], separator: &str) -> String {
    if items.len() > SHOWN {
        format!(
            "{} + {} more...",
            items[..SHOWN].join(separator),
            items.len() - SHOWN
        )
    } else {
        items.join(separator)
    }
}

// ---- workloads ----

fn pod_spec(obj: &Value) -> &Value {
    meta::at(obj, "spec.template.spec")
        .or_else(|| meta::at(obj, "template.spec"))
        .or_else(|| meta::at(obj, "spec.jobTemplate.spec.template.spec"))
        .unwrap_or(&Value::Null)
}

pub(super) fn containers(obj: &Value, _: SystemTime) -> Value {
    join(meta::list_at(pod_spec(obj), "containers"), "name", ",").into()
}

pub(super) fn images(obj: &Value, _: SystemTime) -> Value {
    join(meta::list_at(pod_spec(obj), "containers"), "image", ",").into()
}

pub(super) use containers as cron_containers;
pub(super) use images as cron_images;

fn label_selector(selector: Option<&Value>) -> Value {
    match LabelSelector::from_object(selector) {
        Ok(s) => or_none(s.to_string()),
        Err(_) => "<error>".into(),
    }
}

pub(super) fn selector(obj: &Value, _: SystemTime) -> Value {
    let selector = meta::at(obj, "spec.selector");
    let plain = selector
        .and_then(Value::as_object)
        .is_some_and(|s| s.values().any(Value::is_string));
    if plain {
        or_none(pairs(selector.and_then(Value::as_object)))
    } else {
        label_selector(selector)
    }
}

pub(super) fn cron_selector(obj: &Value, _: SystemTime) -> Value {
    label_selector(meta::at(obj, "spec.jobTemplate.spec.selector"))
}

pub(super) fn policy_selector(obj: &Value, _: SystemTime) -> Value {
    label_selector(meta::at(obj, "spec.podSelector"))
}

pub(super) fn template_labels(obj: &Value, _: SystemTime) -> Value {
    or_none(pairs(meta::object_at(obj, "template.metadata.labels")))
}

pub(super) fn template_node_selector(obj: &Value, _: SystemTime) -> Value {
    or_none(pairs(meta::object_at(obj, "spec.template.spec.nodeSelector")))
}

pub(super) fn ready_of_replicas(obj: &Value, _: SystemTime) -> Value {
    let ready = meta::int_at(obj, "status.readyReplicas").unwrap_or(0);
    format!("{ready}/{}", meta::int_at(obj, "spec.replicas").unwrap_or(0)).into()
}

pub(super) fn controller(obj: &Value, _: SystemTime) -> Value {
    match meta::controller(obj) {
        None => NONE.into(),
        Some(owner) => {
            let kind = meta::str_at(owner, "kind").to_lowercase();
            let name = meta::str_at(owner, "name");
            match crate::kinds::split_api_version(meta::str_at(owner, "apiVersion")).0 {
                "" => format!("{kind}/{name}").into(),
                group => format!("{kind}.{group}/{name}").into(),
            }
        }
    }
}

fn has_condition(obj: &Value, kind: &str) -> bool {
    let holds = |c: &Value| meta::str_at(c, "type") == kind && meta::str_at(c, "status") == "True";
    meta::list_at(obj, "status.conditions").iter().any(holds)
}

pub(super) fn job_status(job: &Value, _: SystemTime) -> Value {
    let first = ["Complete", "Failed"].into_iter().find(|c| has_condition(job, c));
    let later = || {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
            .into_iter()
            .find(|c| has_condition(job, c))
    };
    match first {
        Some(end) => end.into(),
        None if meta::is_deleting(job) => "Terminating".into(),
        None => later().unwrap_or("Running").into(),
    }
}

pub(super) fn job_completions(job: &Value, _: SystemTime) -> Value {
    let done = meta::int_at(job, "status.succeeded").unwrap_or(0);
    match (
        meta::int_at(job, "spec.completions"),
        meta::int_at(job, "spec.parallelism").unwrap_or(0),
    ) {
        (Some(wanted), _) => format!("{done}/{wanted}").into(),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}").into(),
        (None, _) => format!("{done}/1").into(),
    }
}

pub(super) fn job_duration(job: &Value, now: SystemTime) -> Value {
    let time = |path| meta::parse_timestamp(meta::str_at(job, path));
    match (time("status.startTime"), time("status.completionTime")) {
        (None, _) => "".into(),
        (Some(start), end) => {
            human_duration(end.unwrap_or(now).duration_since(start).unwrap_or_default()).into()
        }
    }
}

pub(super) fn cron_suspend(job: &Value, _: SystemTime) -> Value {
    match meta::at(job, "spec.suspend").and_then(Value::as_bool) {
        Some(true) => "True".into(),
        Some(false) => "False".into(),
        None => UNSET.into(),
    }
}

pub(super) fn cron_last(job: &Value, now: SystemTime) -> Value {
    match meta::str_at(job, "status.lastScheduleTime") {
        "" => NONE.into(),
        time => since(time, now).into(),
    }
}

// ---- autoscaler ----

pub(super) fn autoscaler_reference(h: &Value, _: SystemTime) -> Value {
    let part = |field| meta::str_at(h, field);
    format!(
        "{}/{}",
        part("spec.scaleTargetRef.kind"),
        part("spec.scaleTargetRef.name")
    )
    .into()
}

pub(super) fn autoscaler_targets(h: &Value, _: SystemTime) -> Value {
    const METRICS_SHOWN: usize = 2;
    let specs = meta::list_at(h, "spec.metrics");
    let current = meta::list_at(h, "status.currentMetrics");
    if specs.is_empty() {
        return NONE.into();
    }
    let texts: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(i, m)| metric_text(m, current.get(i)))
        .collect();
    let text = texts
        .iter()
        .take(METRICS_SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if texts.len() > METRICS_SHOWN {
        format!("{text} + {} more...", texts.len() - METRICS_SHOWN).into()
    } else {
        text.into()
    }
}

fn metric_text(spec: &Value, status: Option<&Value>) -> String {
    let (member, named) = match meta::str_at(spec, "type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".into(),
    };
    let source = spec.get(member).unwrap_or(&Value::Null);
    let current = status
        .and_then(|s| s.get(member))
        .and_then(|s| s.get("current"))
        .unwrap_or(&Value::Null);
    let show = |v: Option<&Value>, suffix: &str| match v {
        Some(Value::String(s)) => s.clone(),
        Some(Value::Number(n)) => format!("{n}{suffix}"),
        _ => "<unknown>".into(),
    };
    let target = source.get("target").unwrap_or(&Value::Null);
    let average = target.get("averageValue");
    let text = if let Some(average) = average.filter(|v| !v.is_null()) {
        let suffix = if named || member == "pods" { "" } else { " (avg)" };
        format!(
            "{}/{}{suffix}",
            show(current.get("averageValue"), ""),
            show(Some(average), "")
        )
    } else if named {
        let current = show(current.get("averageUtilization"), "%");
        format!("{current}/{}", show(target.get("averageUtilization"), "%"))
    } else {
        format!(
            "{}/{}",
            show(current.get("value"), ""),
            show(target.get("value"), "")
        )
    };
    match member {
        "resource" => format!("{}: {text}", meta::str_at(source, "name")),
        "containerResource" => format!("{}: {text}", meta::str_at(source, "name")),
        _ => text,
    }
}

// ---- nodes ----

pub(super) fn node_status(node: &Value, _: SystemTime) -> Value {
    let ready = meta::list_at(node, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Ready");
    let word = match ready.map(|c| meta::str_at(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if meta::bool_at(node, "spec.unschedulable") {
        format!("{word},SchedulingDisabled").into()
    } else {
        word.into()
    }
}

pub(super) fn node_roles(node: &Value, _: SystemTime) -> Value {
    let mut roles = BTreeSet::new();
    for (key, value) in meta::labels(node).into_iter().flatten() {
        if let Some(role) = key
            .strip_prefix("node-role.kubernetes.io/")
            .filter(|r| !r.is_empty())
        {
            roles.insert(role);
        } else if let ("kubernetes.io/role", Some(role)) =
            (key.as_str(), value.as_str().filter(|r| !r.is_empty()))
        {
            roles.insert(role);
        }
    }
    or_none(roles.into_iter().collect::<Vec<_>>().join(","))
}

fn node_address(node: &Value, kind: &str) -> Value {
    let found = meta::list_at(node, "status.addresses")
        .iter()
        .find(|a| meta::str_at(a, "type") == kind);
    or_none(found.map_or("", |a| meta::str_at(a, "address")).to_owned())
}

pub(super) fn node_internal(node: &Value, _: SystemTime) -> Value {
    node_address(node, "InternalIP")
}

pub(super) fn node_external(node: &Value, _: SystemTime) -> Value {
    node_address(node, "ExternalIP")
}

// ---- services ----

pub(super) fn service_cluster_ip(service: &Value, _: SystemTime) -> Value {
    let first = meta::list_at(service, "spec.clusterIPs")
        .first()
        .and_then(Value::as_str);
    or_none(
        first
            .unwrap_or_else(|| meta::str_at(service, "spec.clusterIP"))
            .to_owned(),
    )
}

fn balancer(obj: &Value) -> Vec<String> {
    let ingress = meta::list_at(obj, "status.loadBalancer.ingress").iter();
    let one = |i: &Value| {
        let text = [meta::str_at(i, "ip"), meta::str_at(i, "hostname")]
            .into_iter()
            .find(|s| !s.is_empty());
        text.map(str::to_owned)
    };
    let set: BTreeSet<String> = ingress.filter_map(one).collect();
    set.into_iter().collect()
}

pub(super) fn balancer_address(obj: &Value, _: SystemTime) -> Value {
    balancer(obj).join(",").into()
}

pub(super) fn service_external_ip(service: &Value, _: SystemTime) -> Value {
    let external = || {
        meta::list_at(service, "spec.externalIPs")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
    };
    match meta::str_at(service, "spec.type") {
        "ExternalName" => meta::str_at(service, "spec.externalName").into(),
        "LoadBalancer" => {
            let mut all = balancer(service);
            all.extend(external());
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",").into()
            }
        }
        _ => or_none(external().collect::<Vec<_>>().join(",")),
    }
}

pub(super) fn service_ports(service: &Value, _: SystemTime) -> Value {
    let one = |p: &Value| {
        let (port, protocol) = (meta::int_at(p, "port").unwrap_or(0), meta::str_at(p, "protocol"));
        match meta::int_at(p, "nodePort").unwrap_or(0) {
            0 => format!("{port}/{protocol}"),
            node => format!("{port}:{node}/{protocol}"),
        }
    };
    or_none(
        meta::list_at(service, "spec.ports")
            .iter()
            .map(one)
            .collect::<Vec<_>>()
            .join(","),
    )
}

pub(super) fn service_selector(service: &Value, _: SystemTime) -> Value {
    or_none(pairs(meta::object_at(service, "spec.selector")))
}

pub(super) fn endpoints(obj: &Value, _: SystemTime) -> Value {
    let mut all = Vec::new();
    for subset in meta::list_at(obj, "subsets") {
        let ports = meta::list_at(subset, "ports");
        let addresses = meta::list_at(subset, "addresses")
            .iter()
            .map(|a| meta::str_at(a, "ip"));
        if ports.is_empty() {
            all.extend(addresses.map(str::to_owned));
        } else {
            let addresses: Vec<_> = addresses.collect();
            for port in ports {
                let port = meta::int_at(port, "port").unwrap_or(0);
                let text = |ip: &&str| {
                    if ip.contains(':') {
                        format!("[{ip}]:{port}")
                    } else {
                        format!("{ip}:{port}")
                    }
                };
                all.extend(addresses.iter().map(text));
            }
        }
    }
    or_none(few(&all, ","))
}

pub(super) fn slice_ports(slice: &Value, _: SystemTime) -> Value {
    let text = |p: &Value| meta::int_at(p, "port").map_or_else(|| "*".to_owned(), |n| n.to_string());
    let ports: Vec<String> = meta::list_at(slice, "ports").iter().map(text).collect();
    if ports.is_empty() {
        UNSET.into()
    } else {
        few(&ports, ",").into()
    }
}

pub(super) fn slice_endpoints(slice: &Value, _: SystemTime) -> Value {
    let addresses = meta::list_at(slice, "endpoints")
        .iter()
        .flat_map(|e| meta::list_at(e, "addresses"));
    let all: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    if all.is_empty() {
        UNSET.into()
    } else {
        few(&all, ",").into()
    }
}

// ---- ingress, addresses ----

pub(super) fn ingress_hosts(ingress: &Value, _: SystemTime) -> Value {
    let hosts: Vec<String> = meta::list_at(ingress, "spec.rules")
        .iter()
        .map(|r| meta::str_at(r, "host").to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    if hosts.is_empty() {
        "*".into()
    } else {
        few(&hosts, ",").into()
    }
}

pub(super) fn ingress_ports(ingress: &Value, _: SystemTime) -> Value {
    if meta::list_at(ingress, "spec.tls").is_empty() {
        "80".into()
    } else {
        "80, 443".into()
    }
}

pub(super) fn ingress_parameters(class: &Value, _: SystemTime) -> Value {
    let Some(p) = meta::at(class, "spec.parameters") else {
        return NONE.into();
    };
    let (kind, name) = (meta::str_at(p, "kind"), meta::str_at(p, "name"));
    match meta::str_at(p, "apiGroup") {
        "" => format!("{kind}/{name}").into(),
        group => format!("{kind}.{group}/{name}").into(),
    }
}

pub(super) fn address_parent(obj: &Value, _: SystemTime) -> Value {
    let part = |field: &str| meta::str_at(obj, &format!("spec.parentRef.{field}")).to_owned();
    let resource = match part("group") {
        g if g.is_empty() => part("resource"),
        g => format!("{}.{g}", part("resource")),
    };
    let parts = [resource, part("namespace"), part("name")];
    parts
        .into_iter()
        .filter(|p| !p.is_empty())
        .collect::<Vec<_>>()
        .join("/")
        .into()
}

pub(super) fn service_cidrs(obj: &Value, _: SystemTime) -> Value {
    let cidrs = meta::list_at(obj, "spec.cidrs").iter().filter_map(Value::as_str);
    cidrs.collect::<Vec<_>>().join(",").into()
}

// ---- events ----

fn event_time(event: &Value, path: &str, fallback: &str, now: SystemTime) -> String {
    match meta::str_at(event, path) {
        "" => since(meta::str_at(event, fallback), now),
        time => since(time, now),
    }
}

pub(super) fn event_first_seen(event: &Value, now: SystemTime) -> Value {
    event_time(event, "firstTimestamp", "eventTime", now).into()
}

pub(super) fn event_last_seen(event: &Value, now: SystemTime) -> Value {
    if meta::at(event, "series").is_some_and(|s| !s.is_null()) {
        return since(meta::str_at(event, "series.lastObservedTime"), now).into();
    }
    match meta::str_at(event, "lastTimestamp") {
        "" => event_first_seen(event, now),
        time => since(time, now).into(),
    }
}

pub(super) fn event_count(event: &Value, _: SystemTime) -> Value {
    let count = meta::int_at(event, "series.count")
        .or_else(|| meta::int_at(event, "count"))
        .unwrap_or(0);
    count.max(1).into()
}

pub(super) fn event_object(event: &Value, _: SystemTime) -> Value {
    let kind = meta::str_at(event, "involvedObject.kind").to_lowercase();
    match meta::str_at(event, "involvedObject.name") {
        "" => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

pub(super) fn event_source(event: &Value, _: SystemTime) -> Value {
    let pick = |a: &str, b: &str| match meta::str_at(event, a) {
        "" => meta::str_at(event, b).to_owned(),
        text => text.to_owned(),
    };
    let component = pick("source.component", "reportingComponent");
    let host = pick("source.host", "reportingInstance");
    if host.is_empty() {
        component.into()
    } else {
        format!("{component}, {host}").into()
    }
}

pub(super) fn event_message(event: &Value, _: SystemTime) -> Value {
    meta::str_at(event, "message").trim().into()
}

// ---- storage ----

fn access_modes(modes: &[Value]) -> Value {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let present = SHORT.iter().filter(|(long, _)| modes.iter().any(|m| m == long));
    present
        .map(|(_, short)| *short)
        .collect::<Vec<_>>()
        .join(",")
        .into()
}

pub(super) fn volume_access(volume: &Value, _: SystemTime) -> Value {
    access_modes(meta::list_at(volume, "spec.accessModes"))
}

/// A claim has what its volume has only once it has a volume.
pub(super) fn claim_access(claim: &Value, _: SystemTime) -> Value {
    let bound = !meta::str_at(claim, "spec.volumeName").is_empty();
    if bound {
        access_modes(meta::list_at(claim, "status.accessModes"))
    } else {
        "".into()
    }
}

pub(super) fn claim_capacity(claim: &Value, _: SystemTime) -> Value {
    let bound = !meta::str_at(claim, "spec.volumeName").is_empty();
    if bound {
        meta::str_at(claim, "status.capacity.storage").into()
    } else {
        "".into()
    }
}

pub(super) fn phase(obj: &Value, _: SystemTime) -> Value {
    if meta::is_deleting(obj) {
        "Terminating".into()
    } else {
        meta::str_at(obj, "status.phase").into()
    }
}

pub(super) fn volume_claim(volume: &Value, _: SystemTime) -> Value {
    match meta::str_at(volume, "spec.claimRef.name") {
        "" => "".into(),
        name => format!("{}/{name}", meta::str_at(volume, "spec.claimRef.namespace")).into(),
    }
}

pub(super) fn class_name(class: &Value, _: SystemTime) -> Value {
    const MARKS: [&str; 2] = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    let default = MARKS
        .iter()
        .any(|mark| meta::annotation(class, mark) == Some("true"));
    let name = meta::name(class);
    if default {
        format!("{name} (default)").into()
    } else {
        name.into()
    }
}

pub(super) fn csi_tokens(driver: &Value, _: SystemTime) -> Value {
    let audiences = join(meta::list_at(driver, "spec.tokenRequests"), "audience", ",");
    if audiences.is_empty() {
        UNSET.into()
    } else {
        audiences.into()
    }
}

pub(super) fn csi_modes(driver: &Value, _: SystemTime) -> Value {
    let modes = meta::list_at(driver, "spec.volumeLifecycleModes")
        .iter()
        .filter_map(Value::as_str);
    or_none(modes.collect::<Vec<_>>().join(","))
}

// ---- the rest ----

pub(super) fn config_entries(config: &Value, _: SystemTime) -> Value {
    let count = |field| meta::object_at(config, field).map_or(0, serde_json::Map::len);
    (count("data") + count("binaryData")).into()
}

fn quota(obj: &Value, limits: bool) -> Value {
    let used = meta::object_at(obj, "status.used");
    let text = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or("0").to_owned();
    let hard = meta::object_at(obj, "status.hard").into_iter().flatten();
    let lines = hard
        .filter(|(name, _)| name.starts_with("limits.") == limits)
        .map(|(name, amount)| {
            format!(
                "{name}: {}/{}",
                text(used.and_then(|u| u.get(name))),
                text(Some(amount))
            )
        });
    lines.collect::<Vec<_>>().join(", ").into()
}

pub(super) fn quota_requests(obj: &Value, _: SystemTime) -> Value {
    quota(obj, false)
}

pub(super) fn quota_limits(obj: &Value, _: SystemTime) -> Value {
    quota(obj, true)
}

fn component(obj: &Value, field: &str) -> String {
    let healthy = meta::list_at(obj, "conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Healthy");
    healthy.map_or("", |c| meta::str_at(c, field)).to_owned()
}

pub(super) fn component_status(obj: &Value, _: SystemTime) -> Value {
    match component(obj, "status").as_str() {
        "True" => "Healthy".into(),
        "False" => "Unhealthy".into(),
        _ => "Unknown".into(),
    }
}

pub(super) fn component_message(obj: &Value, _: SystemTime) -> Value {
    component(obj, "message").into()
}

pub(super) fn component_error(obj: &Value, _: SystemTime) -> Value {
    component(obj, "error").into()
}

pub(super) fn role(binding: &Value, _: SystemTime) -> Value {
    format!(
        "{}/{}",
        meta::str_at(binding, "roleRef.kind"),
        meta::str_at(binding, "roleRef.name")
    )
    .into()
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = meta::list_at(binding, "subjects")
        .iter()
        .filter(|s| meta::str_at(s, "kind") == kind);
    let text = |s: &Value| match kind {
        "ServiceAccount" => format!("{}/{}", meta::str_at(s, "namespace"), meta::str_at(s, "name")),
        _ => meta::str_at(s, "name").to_owned(),
    };
    of_kind.map(text).collect::<Vec<_>>().join(", ").into()
}

pub(super) fn users(binding: &Value, _: SystemTime) -> Value {
    subjects(binding, "User")
}

pub(super) fn groups(binding: &Value, _: SystemTime) -> Value {
    subjects(binding, "Group")
}

pub(super) fn service_accounts(binding: &Value, _: SystemTime) -> Value {
    subjects(binding, "ServiceAccount")
}

pub(super) fn csr_condition(csr: &Value, _: SystemTime) -> Value {
    let has = |kind| {
        meta::list_at(csr, "status.conditions")
            .iter()
            .any(|c| meta::str_at(c, "type") == kind)
    };
    let mut text = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        text.push_str(",Failed");
    }
    if !meta::str_at(csr, "status.certificate").is_empty() {
        text.push_str(",Issued");
    }
    text.into()
}

pub(super) fn csr_duration(csr: &Value, _: SystemTime) -> Value {
    match meta::int_at(csr, "spec.expirationSeconds").and_then(|s| u64::try_from(s).ok()) {
        Some(seconds) => human_duration(Duration::from_secs(seconds)).into(),
        None => NONE.into(),
    }
}

pub(super) fn param_kind(policy: &Value, _: SystemTime) -> Value {
    match meta::at(policy, "spec.paramKind") {
        Some(p) => format!("{}/{}", meta::str_at(p, "apiVersion"), meta::str_at(p, "kind")).into(),
        None => UNSET.into(),
    }
}

pub(super) fn param_ref(binding: &Value, _: SystemTime) -> Value {
    match meta::at(binding, "spec.paramRef") {
        Some(p) => match (meta::str_at(p, "namespace"), meta::str_at(p, "name")) {
            ("", name) => name.into(),
            (namespace, "") => format!("{namespace}/*").into(),
            (namespace, name) => format!("{namespace}/{name}").into(),
        },
        None => UNSET.into(),
    }
}

pub(super) fn api_service(obj: &Value, _: SystemTime) -> Value {
    match meta::at(obj, "spec.service").filter(|s| !s.is_null()) {
        Some(s) => format!("{}/{}", meta::str_at(s, "namespace"), meta::str_at(s, "name")).into(),
        None => "Local".into(),
    }
}

pub(super) fn api_available(obj: &Value, _: SystemTime) -> Value {
    let found = meta::list_at(obj, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Available");
    match found.map(|c| (meta::str_at(c, "status"), meta::str_at(c, "reason"))) {
        None => "Unknown".into(),
        Some(("True", _)) => "True".into(),
        Some((status, reason)) => format!("{status} ({reason})").into(),
    }
}

pub(super) fn flow_dangling(schema: &Value, _: SystemTime) -> Value {
    let found = meta::list_at(schema, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == "Dangling");
    found.map_or("?", |c| meta::str_at(c, "status")).into()
}

pub(super) fn level_shares(level: &Value, _: SystemTime) -> Value {
    let shares = [
        "spec.limited.nominalConcurrencyShares",
        "spec.exempt.nominalConcurrencyShares",
    ];
    let found = shares.iter().find_map(|path| meta::int_at(level, path));
    found.map_or_else(|| NONE.into(), |n| n.to_string().into())
}

pub(super) fn claim_state(claim: &Value, _: SystemTime) -> Value {
    let mut states = Vec::new();
    if meta::is_deleting(claim) {
        states.push("deleted");
    }
    if meta::at(claim, "status.allocation").is_none_or(Value::is_null) {
        if states.is_empty() {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        states.push(if meta::list_at(claim, "status.reservedFor").is_empty() {
            ""
        } else {
            "reserved"
        });
    }
    states
        .into_iter()
        .filter(|s| !s.is_empty())
        .collect::<Vec<_>>()
        .join(",")
        .into()
}
