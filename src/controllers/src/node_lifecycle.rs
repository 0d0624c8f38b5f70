//! Watches over nodes by their Leases.
//!
//! A node renews its Lease in `kube-node-lease`. When the renewals stop for
//! [`GRACE`], its conditions become Unknown, it is tainted, and its pods are
//! marked not ready; pods that do not tolerate the taint (or only for a time)
//! are deleted. What is measured is when *this* process last saw a renewal: a
//! clock that jumps on either side evicts nobody. No timer runs for a healthy
//! node but the one that would notice its silence.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::informer::{Selection, key_of};
use skiff_client::{Change, Informer, WorkQueue};

use crate::objects::{is_ready, pod_condition};
use crate::{Context, Error, Outcome, is_conflict, is_gone};

/// Silence after which a node counts as unreachable (node-monitor-grace-period).
const GRACE: Duration = Duration::from_secs(50);
const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Condition, status that taints, taint: `TaintNodesByCondition`.
const CONDITION_TAINTS: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "True",
        "node.kubernetes.io/network-unavailable",
    ),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// When each node was last heard of.
type Heard = Arc<Mutex<HashMap<String, Instant>>>;

/// Starts the loops.
pub fn start(context: &Context) {
    let nodes: Informer<Node> = context.informers.get();
    let pods: Informer<Pod> = context.informers.get();
    let selection = Selection {
        namespace: Some(LEASES.to_owned()),
        ..Selection::default()
    };
    let leases: Informer<Lease> = context.informers.get_with(selection);
    let heard: Heard = Arc::default();
    let queue = WorkQueue::new();
    let (clock, noted) = (context.clock.clone(), heard.clone());
    context.feed(&leases, &queue, move |change| {
        let Change::Applied { new, .. } = change else {
            return Vec::new();
        };
        let Some(name) = new.metadata.name.clone() else {
            return Vec::new();
        };
        // A healthy node is looked at by its own timer; only one that had
        // fallen silent must be looked at now.
        let before = noted.lock().insert(name.clone(), clock.monotonic());
        let was_silent = before.is_none_or(|at| clock.monotonic().saturating_duration_since(at) > GRACE);
        if was_silent { vec![name] } else { Vec::new() }
    });
    context.feed(&nodes, &queue, |change| vec![key_of(&**change.object())]);
    let evictions = WorkQueue::new();
    let by_node = pods.clone();
    context.feed(&nodes, &evictions, move |change| {
        let Change::Applied { old, new } = change else {
            return Vec::new();
        };
        if old.as_ref().is_some_and(|old| taints(old) == taints(new)) {
            return Vec::new();
        }
        let name = new.metadata.name.as_deref();
        by_node
            .list()
            .iter()
            .filter(|pod| node_of(pod) == name)
            .map(|pod| key_of(&**pod))
            .collect()
    });
    context.feed(&pods, &evictions, |change| match change {
        Change::Applied { old: None, new } => vec![key_of(&**new)],
        Change::Applied { old: Some(old), new } if node_of(old) != node_of(new) => vec![key_of(&**new)],
        _ => Vec::new(),
    });
    let all_ready = || {
        let (nodes, pods, leases) = (nodes.clone(), pods.clone(), leases.clone());
        async move {
            nodes.synced().await;
            pods.synced().await;
            leases.synced().await;
        }
    };
    let (context_, nodes_, pods_) = (Arc::new(context.clone()), nodes.clone(), pods.clone());
    context.work("node life cycle", queue, 2, all_ready(), move |name| {
        let (context, nodes, pods, heard) = (context_.clone(), nodes_.clone(), pods_.clone(), heard.clone());
        async move {
            let Some(node) = nodes.get(&name) else {
                heard.lock().remove(&name);
                return Ok(None);
            };
            reconcile_node(&context, &node, &pods, &heard).await
        }
    });
    let context_ = Arc::new(context.clone());
    context.work("taint eviction", evictions, 2, all_ready(), move |key| {
        let (context, nodes, pods) = (context_.clone(), nodes.clone(), pods.clone());
        async move {
            let Some(pod) = pods.get(&key) else {
                return Ok(None);
            };
            let Some(node) = node_of(&pod).and_then(|name| nodes.get(name)) else {
                return Ok(None);
            };
            evict_if_due(&context, &pod, &node).await
        }
    });
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

async fn reconcile_node(context: &Context, node: &Node, pods: &Informer<Pod>, heard: &Heard) -> Outcome {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let now = context.clock.monotonic();
    let last = *heard.lock().entry(name.to_owned()).or_insert(now);
    let silence = now.saturating_duration_since(last);
    let silent = silence >= GRACE;
    if silent {
        mark_unknown(context, node).await?;
    }
    set_taints(context, node, silent).await?;
    let ready = condition(node, "Ready").map(|condition| condition.status.as_str());
    if silent || ready == Some("False") || ready == Some("Unknown") {
        mark_pods_not_ready(context, name, pods).await?;
    }
    Ok(if silent { None } else { Some(GRACE - silence) })
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

fn unknown_conditions(node: &Node, now: jiff::Timestamp) -> Vec<NodeCondition> {
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter(|kind| condition(node, kind).is_none_or(|condition| condition.status != "Unknown"))
        .map(|kind| {
            let old = condition(node, kind);
            let (reason, message) = match old {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            NodeCondition {
                type_: kind.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: old.and_then(|old| old.last_heartbeat_time.clone()),
                last_transition_time: Some(Time(now)),
            }
        })
        .collect()
}

async fn mark_unknown(context: &Context, node: &Node) -> Result<(), Error> {
    let changed = unknown_conditions(node, context.now());
    if changed.is_empty() {
        return Ok(());
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let about = kube::Resource::object_ref(node, &());
    context.recorder.normal(
        &about,
        "NodeNotReady",
        format!("Node {name} status is now: NodeNotReady"),
    );
    let patch = Patch::Strategic(json!({"status": {"conditions": changed}}));
    match Api::<Node>::all(context.client.clone())
        .patch_status(name, &PatchParams::default(), &patch)
        .await
    {
        Err(error) if !is_gone(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// The taints a node should have: ours by its conditions, others' as they are.
/// `NoExecute` is added for a node that is not ready or not heard of.
fn wanted_taints(node: &Node, silent: bool, now: jiff::Timestamp) -> Vec<Taint> {
    let status = |kind: &str| {
        if silent && kind == "Ready" {
            return Some("Unknown");
        }
        condition(node, kind).map(|condition| condition.status.as_str())
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (kind, bad, taint) in CONDITION_TAINTS {
        if status(kind) == Some(bad) {
            wanted.push((taint, "NoSchedule"));
            if kind == "Ready" {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    if status("Ready").is_none() {
        wanted.push((NOT_READY, "NoSchedule"));
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        taint.key == UNSCHEDULABLE || CONDITION_TAINTS.iter().any(|(_, _, key)| taint.key == *key)
    };
    let current = taints(node);
    let mut result: Vec<Taint> = current
        .iter()
        .filter(|taint| !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !result
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            let time_added = (effect == "NoExecute").then_some(Time(now));
            result.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added,
            });
        }
    }
    result
}

async fn set_taints(context: &Context, node: &Node, silent: bool) -> Result<(), Error> {
    let wanted = wanted_taints(node, silent, context.now());
    if wanted == taints(node) {
        return Ok(());
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": if wanted.is_empty() { None } else { Some(wanted) }},
    }));
    match Api::<Node>::all(context.client.clone())
        .patch(name, &PatchParams::default(), &patch)
        .await
    {
        // The informer will show the newer node, and it will be looked at again.
        Err(error) if !is_gone(&error) && !is_conflict(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn mark_pods_not_ready(context: &Context, node: &str, pods: &Informer<Pod>) -> Result<(), Error> {
    for pod in pods
        .list()
        .iter()
        .filter(|pod| node_of(pod) == Some(node) && is_ready(pod))
    {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(
            context.client.clone(),
            pod.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let since = pod_condition(pod, "Ready").and_then(|condition| condition.last_probe_time.clone());
        let patch = Patch::Strategic(json!({"status": {"conditions": [{
            "type": "Ready", "status": "False", "reason": "NodeNotReady",
            "message": "Node is not ready", "lastProbeTime": since, "lastTransitionTime": Time(context.now()),
        }]}}));
        match api.patch_status(name, &PatchParams::default(), &patch).await {
            Err(error) if !is_gone(&error) => return Err(error.into()),
            _ => context.recorder.warning(
                &kube::Resource::object_ref(&**pod, &()),
                "NodeNotReady",
                "Node is not ready",
            ),
        }
    }
    Ok(())
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    (effect.is_empty() || effect == taint.effect)
        && match toleration.operator.as_deref() {
            Some("Exists") => key.is_empty() || key == taint.key,
            _ => {
                key == taint.key
                    && toleration.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default()
            }
        }
}

/// When a pod must leave a node with these taints: `None` never, else the time.
fn eviction_time(pod: &Pod, taints: &[Taint], now: jiff::Timestamp) -> Option<jiff::Timestamp> {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .filter_map(|taint| {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let matching: Vec<&Toleration> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
            if matching.is_empty() {
                return Some(since);
            }
            let seconds = matching
                .iter()
                .filter_map(|toleration| toleration.toleration_seconds)
                .min()?;
            since
                .checked_add(jiff::SignedDuration::from_secs(seconds.max(0)))
                .ok()
        })
        .min()
}

async fn evict_if_due(context: &Context, pod: &Pod, node: &Node) -> Outcome {
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let now = context.now();
    let Some(at) = eviction_time(pod, taints(node), now) else {
        return Ok(None);
    };
    if let Some(left) = Duration::try_from(at.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())
    {
        return Ok(Some(left));
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let about = kube::Resource::object_ref(pod, &());
    context.recorder.normal(
        &about,
        "TaintManagerEviction",
        format!("Marking for deletion Pod {namespace}/{name}"),
    );
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(error) if !is_gone(&error) && !is_conflict(&error) => Err(error.into()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str) -> Node {
        let mut node = Node::default();
        let condition = NodeCondition {
            type_: "Ready".to_owned(),
            status: ready.to_owned(),
            ..NodeCondition::default()
        };
        node.status.get_or_insert_default().conditions = Some(vec![condition]);
        node
    }

    fn keys(taints: &[Taint]) -> Vec<(&str, &str)> {
        taints
            .iter()
            .map(|taint| (taint.key.as_str(), taint.effect.as_str()))
            .collect()
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        assert!(wanted_taints(&node("True"), false, now).is_empty());
        let not_ready = wanted_taints(&node("False"), false, now);
        assert_eq!(
            keys(&not_ready),
            [(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]
        );
        let silent = wanted_taints(&node("True"), true, now);
        assert_eq!(
            keys(&silent),
            [(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]
        );
        let mut back = node("True");
        let mut all = not_ready;
        all.push(Taint {
            key: "mine".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
        back.spec.get_or_insert_default().taints = Some(all);
        back.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(
            keys(&wanted_taints(&back, false, now)),
            [("mine", "NoSchedule"), (UNSCHEDULABLE, "NoSchedule")]
        );
    }

    #[test]
    fn eviction_waits_for_the_shortest_toleration() {
        let start: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().expect("time");
        let taint = Taint {
            key: UNREACHABLE.to_owned(),
            effect: "NoExecute".to_owned(),
            value: None,
            time_added: Some(Time(start)),
        };
        let mut pod = Pod::default();
        assert_eq!(
            eviction_time(&pod, std::slice::from_ref(&taint), start),
            Some(start)
        );
        let tolerate = |seconds| Toleration {
            key: Some(UNREACHABLE.to_owned()),
            operator: Some("Exists".to_owned()),
            toleration_seconds: seconds,
            ..Toleration::default()
        };
        pod.spec.get_or_insert_default().tolerations = Some(vec![tolerate(Some(300))]);
        let at = eviction_time(&pod, std::slice::from_ref(&taint), start).expect("some day");
        assert_eq!(at.duration_since(start).as_secs(), 300);
        pod.spec.get_or_insert_default().tolerations = Some(vec![tolerate(None)]);
        assert_eq!(eviction_time(&pod, &[taint], start), None);
    }

    #[test]
    fn a_silent_node_becomes_unknown_once() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut silent = node("True");
        let changed = unknown_conditions(&silent, now);
        assert_eq!(changed.len(), 4);
        silent.status.get_or_insert_default().conditions = Some(changed);
        assert!(unknown_conditions(&silent, now).is_empty());
    }
}
