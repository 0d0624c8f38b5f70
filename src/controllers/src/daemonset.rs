//! One pod of a DaemonSet on every node that it fits.
//!
//! [`plan`] is pure: from what every node has it says which pods to delete and
//! which nodes get a new one, within `maxUnavailable` or `maxSurge`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_client::informer::key_of;
use skiff_client::{Change, Informer, WorkQueue};

use crate::deployment::resolve;
use crate::eligible::{admits, tolerated};
use crate::objects::{is_finished, is_ready};
use crate::ownership::{Owner, write_status};
use crate::pods::{BURST, PodControl, new_pod, seconds_to_available};
use crate::revisions::{self, HASH};
use crate::{Context, Outcome};

/// Revisions kept when the set does not say, as in Kubernetes.
const DEFAULT_HISTORY: i32 = 10;
/// A pod that ended is replaced no sooner than this after it was created, so
/// that a node refusing every pod costs few of them.
const REPLACE_AFTER: Duration = Duration::from_secs(5);

/// Starts the loop.
pub fn start(context: &Context) {
    let sets: Informer<DaemonSet> = context.informers.get();
    let nodes: Informer<Node> = context.informers.get();
    let history: Informer<ControllerRevision> = context.informers.get();
    let (queue, control) = (WorkQueue::new(), PodControl::new(context));
    context.feed(&sets, &queue, |change| vec![key_of(&**change.object())]);
    control.feed(&sets, &queue);
    let all = sets.clone();
    context.feed(&nodes, &queue, move |change| {
        if let Change::Applied { old: Some(old), new } = change
            && old.metadata.labels == new.metadata.labels
            && old.spec == new.spec
        {
            return Vec::new();
        }
        all.list().iter().map(|set| key_of(&**set)).collect()
    });
    let ready = {
        let (sets, nodes, history, pods) =
            (sets.clone(), nodes.clone(), history.clone(), control.pods.clone());
        async move {
            sets.synced().await;
            nodes.synced().await;
            history.synced().await;
            pods.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        sets,
        nodes,
        history,
        control,
    });
    context.work("daemon sets", queue, 2, ready, move |key| {
        let this = this.clone();
        async move { this.reconcile(&key).await }
    });
}

impl Owner for DaemonSet {
    fn selector(&self) -> Option<LabelSelector> {
        self.spec.as_ref().map(|spec| spec.selector.clone())
    }
}

struct Loop {
    context: Context,
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    history: Informer<ControllerRevision>,
    control: PodControl,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let Some(set) = self.sets.get(key) else {
            return Ok(None);
        };
        let Some(spec) = &set.spec else {
            return Ok(None);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let history = revisions::history(&self.context, &*set, &self.history).await?;
        let revision = revisions::current(&self.context, &*set, &spec.template, &history).await?;
        let hash = revisions::hash_of(&revision);
        let pods = self.control.claim(&*set, true).await?;
        let now = self.context.now();
        let places = places(&set, &self.nodes.list(), &pods, &hash, now);
        let waiting = self.control.wait(key);
        let mut failure = None;
        if waiting.is_none() {
            let plan = plan(&places, strategy(&set, &places));
            let new = plan
                .create
                .iter()
                .take(BURST)
                .map(|node| pod_for(&set, &hash, node));
            let new: Vec<Pod> = new.collect();
            let gone = pods
                .iter()
                .filter(|pod| {
                    plan.delete
                        .contains(pod.metadata.name.as_deref().unwrap_or_default())
                })
                .take(BURST)
                .cloned()
                .collect();
            failure = match self.control.delete(key, &*set, gone).await {
                Ok(()) => self.control.create(key, &*set, new).await.err(),
                Err(error) => Some(error),
            };
            let in_use: BTreeSet<String> = pods
                .iter()
                .filter_map(|pod| hash_label(pod))
                .chain([hash])
                .collect();
            let limit = spec.revision_history_limit.unwrap_or(DEFAULT_HISTORY);
            revisions::truncate(&self.context, &history, &in_use, limit).await?;
        }
        let status = status(&set, &places);
        if set.status.as_ref() != Some(&status) {
            let mut updated = (*set).clone();
            updated.status = Some(status);
            write_status(&self.context, &updated).await?;
        }
        let soon = places
            .values()
            .flat_map(|place| &place.pods)
            .filter_map(|pod| pod.look_again)
            .min();
        failure.map_or(Ok(soon.or(waiting)), Err)
    }
}

fn hash_label(pod: &Pod) -> Option<String> {
    pod.metadata.labels.as_ref()?.get(HASH).cloned()
}

/// What a rollout allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strategy {
    OnDelete,
    Rolling { unavailable: usize, surge: usize },
}

/// One pod of the set, in what the plan needs of it.
#[derive(Debug, Clone, Default)]
struct Instance {
    name: String,
    updated: bool,
    ready: bool,
    available: bool,
    leaving: bool,
    finished: bool,
    /// A finished pod whose replacement should wait; a ready pod not yet available.
    look_again: Option<Duration>,
    created: Option<jiff::Timestamp>,
}

/// One node, or a node that is gone and still has pods.
#[derive(Debug, Clone, Default)]
struct Place {
    should_run: bool,
    may_stay: bool,
    pods: Vec<Instance>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    delete: BTreeSet<String>,
    create: Vec<String>,
}

fn strategy(set: &DaemonSet, places: &BTreeMap<String, Place>) -> Strategy {
    let strategy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.update_strategy.clone())
        .unwrap_or_default();
    if strategy.type_.as_deref() == Some("OnDelete") {
        return Strategy::OnDelete;
    }
    let rolling = strategy.rolling_update.unwrap_or_default();
    let desired = places.values().filter(|place| place.should_run).count();
    let total = i32::try_from(desired).unwrap_or(i32::MAX);
    let number = |value: Option<&IntOrString>, default: i32| {
        let value = value.cloned().unwrap_or(IntOrString::Int(default));
        usize::try_from(resolve(Some(&value), total, true)).unwrap_or(0)
    };
    let surge = number(rolling.max_surge.as_ref(), 0);
    let unavailable = number(rolling.max_unavailable.as_ref(), 1);
    Strategy::Rolling {
        // Both zero would never end.
        unavailable: if surge == 0 {
            unavailable.max(1)
        } else {
            unavailable
        },
        surge,
    }
}

/// Which pods to delete and which nodes get a new pod.
fn plan(places: &BTreeMap<String, Place>, strategy: Strategy) -> Plan {
    let mut plan = Plan::default();
    let surging = matches!(strategy, Strategy::Rolling { surge: 1.., .. });
    // Old pods that a rollout may replace, the useless ones first.
    let (mut broken, mut working) = (Vec::new(), Vec::new());
    let (mut unavailable, mut extra) = (0, 0);
    for (node, place) in places {
        if !place.may_stay {
            let stay = place.pods.iter().filter(|pod| !pod.leaving);
            plan.delete.extend(stay.map(|pod| pod.name.clone()));
            continue;
        }
        let ended = place
            .pods
            .iter()
            .filter(|pod| pod.finished && !pod.leaving && pod.look_again.is_none());
        plan.delete.extend(ended.map(|pod| pod.name.clone()));
        let mut alive: Vec<&Instance> = place
            .pods
            .iter()
            .filter(|pod| !pod.leaving && !pod.finished)
            .collect();
        alive.sort_by_key(|pod| (pod.created, pod.name.clone()));
        let new = alive.iter().find(|pod| pod.updated);
        let old = alive.iter().find(|pod| !pod.updated);
        let keep_both = surging && new.is_some_and(|new| !new.available);
        let kept: Vec<&str> = match (old, new) {
            (Some(old), Some(new)) if keep_both && old.available => vec![&old.name, &new.name],
            (Some(_), Some(new)) if surging => vec![&new.name],
            _ => alive.first().map(|pod| pod.name.as_str()).into_iter().collect(),
        };
        let surplus = alive.iter().filter(|pod| !kept.contains(&pod.name.as_str()));
        plan.delete.extend(surplus.map(|pod| pod.name.clone()));
        if place.pods.is_empty() && place.should_run {
            plan.create.push(node.clone());
        }
        if !place.should_run {
            continue;
        }
        if surging && kept.len() > 1 {
            extra += 1;
        }
        let only = alive.iter().find(|pod| kept == [pod.name.as_str()]);
        match only {
            Some(pod) if pod.updated => unavailable += usize::from(!pod.available),
            Some(pod) if pod.available => working.push((node, pod.name.clone())),
            Some(pod) => {
                unavailable += 1;
                broken.push((node, pod.name.clone()));
            }
            None => unavailable += 1,
        }
    }
    match strategy {
        Strategy::OnDelete => {}
        Strategy::Rolling {
            unavailable: most,
            surge: 0,
        } => {
            let more = most.saturating_sub(unavailable);
            let replaced = broken.into_iter().chain(working.into_iter().take(more));
            plan.delete.extend(replaced.map(|(_, pod)| pod));
        }
        Strategy::Rolling { surge, .. } => {
            let more = surge.saturating_sub(extra);
            let beside = broken.into_iter().chain(working.into_iter().take(more));
            plan.create.extend(beside.map(|(node, _)| node.clone()));
        }
    }
    plan
}

/// Every node with the pods that are on it or meant for it. Pods that belong
/// nowhere stand under the empty name.
fn places(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    hash: &str,
    now: jiff::Timestamp,
) -> BTreeMap<String, Place> {
    let spec = set.spec.clone().unwrap_or_default();
    let (min_ready, pod_spec) = (
        spec.min_ready_seconds.unwrap_or(0),
        spec.template.spec.unwrap_or_default(),
    );
    let tolerations = tolerations(&pod_spec);
    let mut places: BTreeMap<String, Place> = nodes
        .iter()
        .map(|node| {
            let fits = admits(&pod_spec, node);
            let place = Place {
                should_run: fits && tolerated(&tolerations, node, &["NoSchedule", "NoExecute"]),
                may_stay: fits && tolerated(&tolerations, node, &["NoExecute"]),
                pods: Vec::new(),
            };
            (node.metadata.name.clone().unwrap_or_default(), place)
        })
        .collect();
    for pod in pods {
        let place = places.entry(target(pod).unwrap_or_default()).or_default();
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let age = created.map_or(0, |created| now.duration_since(created).as_secs());
        let replace_in = REPLACE_AFTER.checked_sub(Duration::from_secs(u64::try_from(age).unwrap_or(0)));
        let to_available = seconds_to_available(pod, min_ready, now);
        let ready = is_ready(pod);
        place.pods.push(Instance {
            name: pod.metadata.name.clone().unwrap_or_default(),
            updated: hash_label(pod).as_deref() == Some(hash),
            ready,
            available: ready && to_available <= 0,
            leaving: pod.metadata.deletion_timestamp.is_some(),
            finished: is_finished(pod),
            look_again: match (is_finished(pod), ready) {
                (true, _) => replace_in.filter(|left| !left.is_zero()),
                (false, true) => u64::try_from(to_available)
                    .ok()
                    .filter(|s| *s > 0)
                    .map(Duration::from_secs),
                _ => None,
            },
            created,
        });
    }
    places
}

/// The node a pod runs on or is pinned to.
fn target(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.clone().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let mut fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    fields
        .find(|field| field.key == "metadata.name")?
        .values
        .as_ref()?
        .first()
        .cloned()
}

/// The template's tolerations and those every daemon has: it stays on a node
/// in trouble and starts on one that takes no other pods.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let table = [
        ("not-ready", "NoExecute", true),
        ("unreachable", "NoExecute", true),
        ("disk-pressure", "NoSchedule", true),
        ("memory-pressure", "NoSchedule", true),
        ("pid-pressure", "NoSchedule", true),
        ("unschedulable", "NoSchedule", true),
        (
            "network-unavailable",
            "NoSchedule",
            spec.host_network == Some(true),
        ),
    ];
    for (name, effect, wanted) in table {
        let toleration = Toleration {
            key: Some(format!("node.kubernetes.io/{name}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if wanted && !all.contains(&toleration) {
            all.push(toleration);
        }
    }
    all
}

/// A pod of the set for one node, pinned to it by name.
fn pod_for(set: &DaemonSet, hash: &str, node: &str) -> Pod {
    let mut template = set.spec.clone().unwrap_or_default().template;
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let generation = set
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get("deprecated.daemonset.template.generation"));
    if let Some(generation) = generation {
        labels.insert("pod-template-generation".to_owned(), generation.clone());
    }
    let spec = template.spec.get_or_insert_default();
    spec.tolerations = Some(tolerations(spec));
    let fields = Some(vec![NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    }]);
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    // The set's own terms were judged when the node was chosen.
    affinity
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: fields,
            match_expressions: None,
        }],
    });
    new_pod(set, template)
}

fn status(set: &DaemonSet, places: &BTreeMap<String, Place>) -> DaemonSetStatus {
    let old = set.status.clone().unwrap_or_default();
    let mut status = DaemonSetStatus {
        collision_count: old.collision_count,
        conditions: old.conditions,
        observed_generation: set.metadata.generation,
        ..DaemonSetStatus::default()
    };
    let (mut updated, mut available) = (0, 0);
    for place in places.values() {
        let alive: Vec<&Instance> = place.pods.iter().filter(|pod| !pod.leaving).collect();
        let oldest = alive.iter().min_by_key(|pod| (!pod.ready, pod.created));
        match (place.should_run, oldest) {
            (true, pod) => {
                status.desired_number_scheduled += 1;
                status.current_number_scheduled += i32::from(pod.is_some());
                status.number_ready += i32::from(pod.is_some_and(|pod| pod.ready));
                available += i32::from(alive.iter().any(|pod| pod.available));
                updated += i32::from(alive.iter().any(|pod| pod.updated));
            }
            (false, Some(_)) => status.number_misscheduled += 1,
            (false, None) => {}
        }
    }
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    status.updated_number_scheduled = some(updated);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: (bool, bool) = (false, true);
    const NEW: (bool, bool) = (true, true);
    const OLD_BROKEN: (bool, bool) = (false, false);
    const NEW_STARTING: (bool, bool) = (true, false);

    fn place(node: &str, pods: &[(bool, bool)]) -> (String, Place) {
        let pods = pods.iter().map(|(updated, available)| Instance {
            name: format!("{node}-{}", if *updated { "new" } else { "old" }),
            updated: *updated,
            ready: *available,
            available: *available,
            ..Instance::default()
        });
        let place = Place {
            should_run: true,
            may_stay: true,
            pods: pods.collect(),
        };
        (node.to_owned(), place)
    }

    fn check(places: &[(String, Place)], strategy: Strategy, delete: &[&str], create: &[&str]) {
        let plan = plan(&places.iter().cloned().collect(), strategy);
        assert_eq!(
            plan.delete,
            delete.iter().map(|s| (*s).to_owned()).collect(),
            "{places:?}"
        );
        assert_eq!(plan.create, create, "{places:?}");
    }

    #[test]
    fn a_rollout_stays_within_its_limits() {
        let one = Strategy::Rolling {
            unavailable: 1,
            surge: 0,
        };
        let surge = Strategy::Rolling {
            unavailable: 0,
            surge: 1,
        };
        let (a, b) = (|pods: &[_]| place("a", pods), |pods: &[_]| place("b", pods));
        check(&[a(&[]), b(&[])], one, &[], &["a", "b"]);
        check(&[a(&[OLD]), b(&[OLD])], one, &["a-old"], &[]);
        check(&[a(&[]), b(&[OLD])], one, &[], &["a"]);
        check(&[a(&[NEW_STARTING]), b(&[OLD])], one, &[], &[]);
        check(&[a(&[NEW]), b(&[OLD])], one, &["b-old"], &[]);
        check(&[a(&[OLD]), b(&[OLD_BROKEN])], one, &["b-old"], &[]);
        check(&[a(&[OLD]), b(&[OLD])], Strategy::OnDelete, &[], &[]);
        check(&[a(&[OLD]), b(&[OLD])], surge, &[], &["a"]);
        check(&[a(&[OLD, NEW_STARTING]), b(&[OLD])], surge, &[], &[]);
        check(&[a(&[OLD, NEW]), b(&[NEW])], surge, &["a-old"], &[]);
    }

    #[test]
    fn ended_and_unwanted_pods_go_and_terminating_ones_hold_their_place() {
        let one = Strategy::Rolling {
            unavailable: 1,
            surge: 0,
        };
        let mut ended = place("a", &[NEW]);
        ended.1.pods[0].finished = true;
        check(std::slice::from_ref(&ended), one, &["a-new"], &[]);
        ended.1.pods[0].look_again = Some(Duration::from_secs(1));
        check(&[ended], one, &[], &[]);
        let mut unwanted = place("a", &[NEW]);
        (unwanted.1.should_run, unwanted.1.may_stay) = (false, true);
        check(std::slice::from_ref(&unwanted), one, &[], &[]);
        unwanted.1.may_stay = false;
        check(&[unwanted], one, &["a-new"], &[]);
        let mut leaving = place("a", &[NEW]);
        leaving.1.pods[0].leaving = true;
        check(&[leaving], one, &[], &[]);
    }

    #[test]
    fn a_pod_is_pinned_to_its_node_and_tainted_nodes_are_left_out() {
        let set = DaemonSet::default();
        let pod = pod_for(&set, "h", "edge-1");
        assert_eq!(target(&pod).as_deref(), Some("edge-1"));
        assert_eq!(hash_label(&pod).as_deref(), Some("h"));
        let node = |taint: &str, effect: &str| {
            let node = serde_json::json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": taint, "effect": effect}]}});
            Arc::new(serde_json::from_value::<Node>(node).expect("node"))
        };
        for (taint, effect, run, stay) in [
            ("node.kubernetes.io/unschedulable", "NoSchedule", true, true),
            ("mine", "NoSchedule", false, true),
            ("mine", "NoExecute", false, false),
        ] {
            let set = DaemonSet {
                spec: Some(Default::default()),
                ..DaemonSet::default()
            };
            let places = places(
                &set,
                &[node(taint, effect)],
                &[],
                "h",
                jiff::Timestamp::UNIX_EPOCH,
            );
            assert_eq!(
                (places["n"].should_run, places["n"].may_stay),
                (run, stay),
                "{taint} {effect}"
            );
        }
    }
}
