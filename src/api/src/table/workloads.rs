//! Cells of workloads: what runs, how much of it is ready, how it scales.

use super::cells::{NONE, UNSET, join, or_none, pairs};
use super::{human_duration, since};
use crate::meta;
use crate::selector::LabelSelector;
use serde_json::Value;
use std::time::SystemTime;

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
