//! Cells of pods: the one-word summary of many container states.

use super::since;
use crate::meta;
use serde_json::{Value, json};
use std::time::SystemTime;

const NONE: &str = "<none>";

/// What the three summary columns say.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: String,
}

fn terminal(phase: &str) -> bool {
    matches!(phase, "Failed" | "Succeeded")
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    meta::list_at(pod, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| meta::str_at(c, "status") == "True")
}

/// A container state as words: `Error`, `Signal:9`, `ExitCode:1`.
fn ended(terminated: &Value) -> String {
    match (
        meta::str_at(terminated, "reason"),
        meta::int_at(terminated, "signal").unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", meta::int_at(terminated, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// Later of two RFC 3339 times; both are in UTC with seconds, so text order is time order.
fn later(a: String, status: &Value) -> String {
    let b = meta::str_at(status, "lastState.terminated.finishedAt");
    if b > a.as_str() { b.to_owned() } else { a }
}

fn summary(pod: &Value) -> Summary {
    let inits = meta::list_at(pod, "spec.initContainers");
    let sidecar = |name: &str| {
        inits
            .iter()
            .any(|c| meta::str_at(c, "name") == name && meta::str_at(c, "restartPolicy") == "Always")
    };
    let sidecars = inits
        .iter()
        .filter(|c| meta::str_at(c, "restartPolicy") == "Always")
        .count();
    let phase = meta::str_at(pod, "status.phase");
    let mut s = Summary {
        ready: 0,
        total: meta::list_at(pod, "spec.containers").len() + sidecars,
        reason: match meta::str_at(pod, "status.reason") {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        },
        restarts: 0,
        last_restart: String::new(),
    };
    let gated = |c: &Value| meta::str_at(c, "reason") == "SchedulingGated";
    if condition(pod, "PodScheduled").is_some_and(gated) {
        s.reason = "SchedulingGated".into();
    }

    let (mut sidecar_restarts, mut sidecar_last) = (0, String::new());
    let mut initializing = false;
    for (i, status) in meta::list_at(pod, "status.initContainerStatuses")
        .iter()
        .enumerate()
    {
        let count = meta::int_at(status, "restartCount").unwrap_or(0);
        s.restarts += count;
        s.last_restart = later(s.last_restart, status);
        let is_sidecar = sidecar(meta::str_at(status, "name"));
        if is_sidecar {
            sidecar_restarts += count;
            sidecar_last = later(sidecar_last, status);
        }
        let terminated = meta::at(status, "state.terminated");
        if terminated.is_some_and(|t| meta::int_at(t, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if is_sidecar && meta::bool_at(status, "started") {
            s.ready += usize::from(meta::bool_at(status, "ready"));
            continue;
        }
        let waiting = meta::str_at(status, "state.waiting.reason");
        s.reason = match terminated {
            Some(t) => format!("Init:{}", ended(t)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", inits.len()),
        };
        initializing = true;
        break;
    }

    if !initializing || is_true(pod, "Initialized") {
        s.restarts = sidecar_restarts;
        s.last_restart = sidecar_last;
        let mut running = false;
        for status in meta::list_at(pod, "status.containerStatuses").iter().rev() {
            s.restarts += meta::int_at(status, "restartCount").unwrap_or(0);
            s.last_restart = later(s.last_restart, status);
            let waiting = meta::str_at(status, "state.waiting.reason");
            if !waiting.is_empty() {
                s.reason = waiting.to_owned();
            } else if let Some(t) = meta::at(status, "state.terminated") {
                s.reason = ended(t);
            } else if meta::bool_at(status, "ready") && meta::at(status, "state.running").is_some() {
                running = true;
                s.ready += 1;
            }
        }
        if s.reason == "Completed" && running {
            s.reason = if is_true(pod, "Ready") {
                "Running"
            } else {
                "NotReady"
            }
            .into();
        }
    }
    if meta::is_deleting(pod) {
        if meta::str_at(pod, "status.reason") == "NodeLost" {
            s.reason = "Unknown".into();
        } else if !terminal(phase) {
            s.reason = "Terminating".into();
        }
    }
    s
}

pub(super) fn ready(pod: &Value, _: SystemTime) -> Value {
    let s = summary(pod);
    format!("{}/{}", s.ready, s.total).into()
}

pub(super) fn status(pod: &Value, _: SystemTime) -> Value {
    summary(pod).reason.into()
}

pub(super) fn restarts(pod: &Value, now: SystemTime) -> Value {
    let s = summary(pod);
    if s.restarts != 0 && !s.last_restart.is_empty() {
        format!("{} ({} ago)", s.restarts, since(&s.last_restart, now)).into()
    } else {
        s.restarts.to_string().into()
    }
}

pub(super) fn address(pod: &Value, _: SystemTime) -> Value {
    let first = meta::list_at(pod, "status.podIPs")
        .first()
        .map_or("", |p| meta::str_at(p, "ip"));
    match (first, meta::str_at(pod, "status.podIP")) {
        ("", "") => NONE.into(),
        ("", single) => single.into(),
        (first, _) => first.into(),
    }
}

pub(super) fn readiness_gates(pod: &Value, _: SystemTime) -> Value {
    let gates = meta::list_at(pod, "spec.readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let open = gates
        .iter()
        .filter(|g| is_true(pod, meta::str_at(g, "conditionType")))
        .count();
    format!("{open}/{}", gates.len()).into()
}

/// Marks rows of pods that have ended.
pub(super) fn row_condition(pod: &Value) -> Option<Value> {
    let phase = meta::str_at(pod, "status.phase");
    let message = match phase {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": phase, "message": message}))
}
