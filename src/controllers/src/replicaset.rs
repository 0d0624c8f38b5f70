//! Keeps the wanted number of pods of a ReplicaSet alive.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    Node, Pod, ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use skiff_client::informer::key_of;
use skiff_client::{Informer, WorkQueue};

use crate::objects::{is_finished, is_ready, phase, ready_since};
use crate::ownership::{Owner, write_status};
use crate::pods::{BURST, PodControl, new_pod, seconds_to_available};
use crate::{Context, Error, Outcome};

/// Starts the loop for ReplicaSets and, in their shape, ReplicationControllers.
pub fn start(context: &Context) {
    start_kind::<ReplicaSet>(context, "replica sets");
    start_kind::<ReplicationController>(context, "replication controllers");
}

/// A kind that is a number of equal pods.
trait Replicated: Owner {
    /// The object as a ReplicaSet.
    fn view(&self) -> ReplicaSet;
    /// The object with this status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Owner for ReplicaSet {
    fn selector(&self) -> Option<LabelSelector> {
        self.spec.as_ref().map(|spec| spec.selector.clone())
    }
}

impl Replicated for ReplicaSet {
    fn view(&self) -> ReplicaSet {
        self.clone()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        ReplicaSet {
            status: Some(status),
            ..self.clone()
        }
    }
}

impl Owner for ReplicationController {
    fn selector(&self) -> Option<LabelSelector> {
        let labels = self
            .spec
            .as_ref()?
            .selector
            .clone()
            .filter(|labels| !labels.is_empty())?;
        Some(LabelSelector {
            match_labels: Some(labels),
            match_expressions: None,
        })
    }
}

impl Replicated for ReplicationController {
    fn view(&self) -> ReplicaSet {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let conditions = status.conditions.map(|list| {
            list.into_iter()
                .map(|c| ReplicaSetCondition {
                    type_: c.type_,
                    status: c.status,
                    reason: c.reason,
                    message: c.message,
                    last_transition_time: c.last_transition_time,
                })
                .collect()
        });
        ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                min_ready_seconds: spec.min_ready_seconds,
                replicas: spec.replicas,
                selector: self.selector().unwrap_or_default(),
                template: spec.template,
            }),
            status: Some(ReplicaSetStatus {
                available_replicas: status.available_replicas,
                conditions,
                fully_labeled_replicas: status.fully_labeled_replicas,
                observed_generation: status.observed_generation,
                ready_replicas: status.ready_replicas,
                replicas: status.replicas,
                terminating_replicas: None,
            }),
        }
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = status.conditions.map(|list| {
            list.into_iter()
                .map(|c| ReplicationControllerCondition {
                    type_: c.type_,
                    status: c.status,
                    reason: c.reason,
                    message: c.message,
                    last_transition_time: c.last_transition_time,
                })
                .collect()
        });
        ReplicationController {
            status: Some(ReplicationControllerStatus {
                available_replicas: status.available_replicas,
                conditions,
                fully_labeled_replicas: status.fully_labeled_replicas,
                observed_generation: status.observed_generation,
                ready_replicas: status.ready_replicas,
                replicas: status.replicas,
            }),
            ..self.clone()
        }
    }
}

fn start_kind<K: Replicated>(context: &Context, name: &'static str) {
    let sets: Informer<K> = context.informers.get();
    let nodes: Informer<Node> = context.informers.get();
    let queue = WorkQueue::new();
    let control = PodControl::new(context);
    context.feed(&sets, &queue, |change| vec![key_of(&**change.object())]);
    control.feed(&sets, &queue);
    let ready = {
        let (sets, pods) = (sets.clone(), control.pods.clone());
        async move {
            sets.synced().await;
            pods.synced().await;
            nodes.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        sets,
        control,
    });
    context.work(name, queue, 4, ready, move |key| {
        let this = this.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Loop<K> {
    context: Context,
    sets: Informer<K>,
    control: PodControl,
}

impl<K: Replicated> Loop<K> {
    async fn reconcile(&self, key: &str) -> Outcome {
        let Some(set) = self.sets.get(key) else {
            return Ok(None);
        };
        let owned = self.control.claim(&*set, false).await?;
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| !is_finished(pod)).cloned().collect();
        let alive: Vec<Arc<Pod>> = active
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect();
        let waiting = self.control.wait(key);
        let view = set.view();
        let mut failure = None;
        if waiting.is_none() && view.metadata.deletion_timestamp.is_none() {
            failure = self.scale(key, &set, &view, &alive).await.err();
        }
        let (status, look_again) = status_of(&view, &active, failure.as_ref(), self.context.now());
        let old = view.status.unwrap_or_default();
        let updated = set.with_status(status);
        if updated.view().status.unwrap_or_default() != old {
            write_status(&self.context, &updated).await?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(look_again.or(waiting)),
        }
    }

    async fn scale(&self, key: &str, owner: &K, set: &ReplicaSet, alive: &[Arc<Pod>]) -> Result<(), Error> {
        let wanted = usize::try_from(wanted_replicas(set)).unwrap_or(0);
        if alive.len() < wanted {
            let template = set
                .spec
                .as_ref()
                .and_then(|spec| spec.template.clone())
                .unwrap_or_default();
            let count = (wanted - alive.len()).min(BURST);
            let pods = (0..count).map(|_| new_pod(owner, template.clone())).collect();
            self.control.create(key, owner, pods).await
        } else {
            let surplus = (alive.len() - wanted).min(BURST);
            self.control.delete(key, owner, victims(alive, surplus)).await
        }
    }
}

/// The status of a set with these pods, and when the next pod becomes available.
fn status_of(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    failure: Option<&Error>,
    now: jiff::Timestamp,
) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let alive: Vec<&Arc<Pod>> = active
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .collect();
    let ready: Vec<&&Arc<Pod>> = alive.iter().filter(|pod| is_ready(pod)).collect();
    let min_ready = set
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or(0);
    let waits: Vec<i64> = ready
        .iter()
        .map(|pod| seconds_to_available(pod, min_ready, now))
        .collect();
    let template_labels = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let fully = alive.iter().filter(|pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .iter()
            .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    });
    let old = set.status.clone().unwrap_or_default();
    let mut status = old.clone();
    let count = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    status.replicas = count(alive.len());
    status.fully_labeled_replicas = Some(count(fully.count())).filter(|n| *n > 0);
    status.ready_replicas = Some(count(ready.len())).filter(|n| *n > 0);
    status.available_replicas =
        Some(count(waits.iter().filter(|wait| **wait <= 0).count())).filter(|n| *n > 0);
    status.terminating_replicas = Some(count(active.len() - alive.len()));
    status.observed_generation = set.metadata.generation;
    let mut conditions: Vec<ReplicaSetCondition> = old
        .conditions
        .clone()
        .unwrap_or_default()
        .into_iter()
        .filter(|c| c.type_ != "ReplicaFailure")
        .collect();
    if let Some(failure) = failure {
        let before = old
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "ReplicaFailure");
        conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".to_owned(),
            status: "True".to_owned(),
            reason: Some("FailedCreate".to_owned()),
            message: Some(failure.to_string()),
            last_transition_time: before
                .and_then(|c| c.last_transition_time.clone())
                .or(Some(Time(now))),
        });
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
    let next = waits.into_iter().filter(|wait| *wait > 0).min();
    (
        status,
        next.map(|seconds| std::time::Duration::from_secs(seconds.unsigned_abs())),
    )
}

fn wanted_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Which pods to delete: those that serve least go first. The order is that of
/// Kubernetes: unassigned, not running, not ready, lower deletion cost, more
/// siblings on the node, ready for a shorter time, more restarts, younger.
fn victims(alive: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let rank = |pod: &Arc<Pod>| {
        let siblings = alive
            .iter()
            .filter(|other| node(other).is_some() && node(other) == node(pod))
            .count();
        let phase_order = match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost: i32 = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| {
                annotations
                    .get("controller.kubernetes.io/pod-deletion-cost")?
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let restarts: i32 = pod
            .status
            .iter()
            .flat_map(|status| status.container_statuses.iter().flatten())
            .map(|container| container.restart_count)
            .max()
            .unwrap_or(0);
        (
            node(pod).is_some(),
            phase_order,
            is_ready(pod),
            cost,
            Reverse(siblings),
            Reverse(ready_since(pod)),
            Reverse(restarts),
            Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            pod.metadata.name.clone(),
        )
    };
    let mut ranked: Vec<Arc<Pod>> = alive.to_vec();
    ranked.sort_by_cached_key(rank);
    ranked.truncate(count);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::controller_of;
    use k8s_openapi::api::core::v1::PodCondition;

    fn pod(name: &str, node: Option<&str>, ready: Option<&str>) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.spec.get_or_insert_default().node_name = node.map(str::to_owned);
        let status = pod.status.get_or_insert_default();
        status.phase = Some(if node.is_some() { "Running" } else { "Pending" }.to_owned());
        status.conditions = ready.map(|since| {
            vec![PodCondition {
                type_: "Ready".to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(since.parse().expect("time"))),
                ..PodCondition::default()
            }]
        });
        Arc::new(pod)
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let (early, late) = ("2030-01-01T00:00:00Z", "2030-01-01T01:00:00Z");
        let pods = [
            pod("old", Some("a"), Some(early)),
            pod("crowded-1", Some("b"), Some(early)),
            pod("crowded-2", Some("b"), Some(late)),
            pod("starting", Some("a"), None),
            pod("unassigned", None, None),
        ];
        let names = |count| {
            victims(&pods, count)
                .iter()
                .map(|pod| pod.metadata.name.clone().unwrap_or_default())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(5),
            ["unassigned", "starting", "crowded-2", "crowded-1", "old"]
        );
        assert_eq!(names(0).len(), 0);
    }

    #[test]
    fn availability_needs_min_ready_seconds() {
        let pod = pod("a", Some("n"), Some("2030-01-01T00:00:00Z"));
        let now: jiff::Timestamp = "2030-01-01T00:00:04Z".parse().expect("time");
        assert_eq!(seconds_to_available(&pod, 0, now), 0);
        assert_eq!(seconds_to_available(&pod, 10, now), 6);
        assert_eq!(seconds_to_available(&pod, 3, now), -1);
    }

    #[test]
    fn a_new_pod_is_controlled_by_its_set() {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some("web".to_owned());
        set.metadata.uid = Some("u-1".to_owned());
        let pod = new_pod(&set, Default::default());
        assert!(
            pod.metadata
                .name
                .as_deref()
                .is_some_and(|name| name.starts_with("web-") && name.len() == 9)
        );
        assert_eq!(
            controller_of(&pod.metadata).map(|owner| owner.uid.as_str()),
            Some("u-1")
        );
    }
}
