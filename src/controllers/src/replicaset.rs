//! Keeps the wanted number of pods of a ReplicaSet alive.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Resource};
use serde_json::json;
use skiff_client::informer::key_of;
use skiff_client::labels::selects;
use skiff_client::{Change, Informer, WorkQueue, message};

use crate::expectations::Expectations;
use crate::objects::{controller_of, generated_name, is_finished, is_ready, phase, ready_since};
use crate::{Context, Error, Outcome, is_conflict, is_gone};

/// Pods created or deleted in one go, as in Kubernetes; the rest follows when
/// these have been seen.
const BURST: usize = 500;

/// The smallest unit in which a refused creation is noticed: batches double
/// from one, so a quota that forbids all of them costs one request.
const FIRST_BATCH: usize = 1;

/// Starts the loop.
pub fn start(context: &Context) {
    let sets: Informer<ReplicaSet> = context.informers.get();
    let pods: Informer<Pod> = context.informers.get();
    let nodes: Informer<Node> = context.informers.get();
    let queue = WorkQueue::new();
    let expectations = Arc::new(Expectations::default());
    context.feed(&sets, &queue, |change| vec![key_of(&**change.object())]);
    let (ticked, orphans) = (expectations.clone(), sets.clone());
    context.feed(&pods, &queue, move |change| {
        owners_to_look_at(change, &ticked, &orphans)
    });
    let ready = {
        let (sets, pods, nodes) = (sets.clone(), pods.clone(), nodes.clone());
        async move {
            sets.synced().await;
            pods.synced().await;
            nodes.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        sets,
        pods,
        expectations,
    });
    context.work("replica sets", queue, 4, ready, move |key| {
        let this = this.clone();
        async move { this.reconcile(&key).await }
    });
}

fn owners_to_look_at(
    change: &Change<Pod>,
    expectations: &Expectations,
    sets: &Informer<ReplicaSet>,
) -> Vec<String> {
    let mut keys = Vec::new();
    let mut look_at = |pod: &Pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => keys.push(format!("{namespace}/{}", owner.name)),
            Some(_) => {}
            None => keys.extend(
                sets.list_in(namespace)
                    .iter()
                    .filter(|set| {
                        selects(
                            Some(&set.spec.clone().unwrap_or_default().selector),
                            pod.metadata.labels.as_ref(),
                        )
                    })
                    .map(|set| key_of(&**set)),
            ),
        }
    };
    if let Change::Applied { old: Some(old), .. } = change {
        look_at(old);
    }
    look_at(change.object());
    let pod = change.object();
    let leaving = pod.metadata.deletion_timestamp.is_some() || matches!(change, Change::Deleted(_));
    for key in &keys {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        expectations.settle(key, &created(name));
        if leaving {
            expectations.settle(key, &deleted(name));
        }
    }
    keys
}

fn created(name: &str) -> String {
    format!("+{name}")
}

fn deleted(name: &str) -> String {
    format!("-{name}")
}

struct Loop {
    context: Context,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    expectations: Arc<Expectations>,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let Some(set) = self.sets.get(key) else {
            return Ok(None);
        };
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        let owned = self.claim(&set, &namespace).await?;
        let active: Vec<Arc<Pod>> = owned.iter().filter(|pod| !is_finished(pod)).cloned().collect();
        let alive: Vec<Arc<Pod>> = active
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .cloned()
            .collect();
        let waiting = self.expectations.wait(key, self.context.clock.monotonic());
        let mut failure = None;
        if waiting.is_none() && set.metadata.deletion_timestamp.is_none() {
            failure = self.scale(key, &set, &alive).await.err();
        }
        let look_again = self.write_status(&set, &active, failure.as_ref()).await?;
        match failure {
            Some(error) => Err(error),
            None => Ok(look_again.or(waiting)),
        }
    }

    /// The pods this set controls, after adopting matching orphans and letting
    /// go of those that no longer match.
    async fn claim(&self, set: &ReplicaSet, namespace: &str) -> Result<Vec<Arc<Pod>>, Error> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let selector = set.spec.as_ref().map(|spec| &spec.selector);
        let mut mine = Vec::new();
        for pod in self.pods.list_in(namespace) {
            let matches = selects(selector, pod.metadata.labels.as_ref());
            match controller_of(&pod.metadata) {
                Some(owner) if owner.uid == uid && matches => mine.push(pod),
                Some(owner) if owner.uid == uid && set.metadata.deletion_timestamp.is_none() => {
                    self.release(set, &pod).await?;
                }
                None if matches
                    && set.metadata.deletion_timestamp.is_none()
                    && pod.metadata.deletion_timestamp.is_none()
                    && !is_finished(&pod) =>
                {
                    self.adopt(set, &pod).await?;
                    mine.push(pod);
                }
                _ => {}
            }
        }
        Ok(mine)
    }

    async fn adopt(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), Error> {
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "ownerReferences": [owner_reference(set)]}});
        self.patch_pod(pod, patch).await
    }

    async fn release(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), Error> {
        let patch = json!({"metadata": {"uid": pod.metadata.uid,
            "ownerReferences": [{"$patch": "delete", "uid": set.metadata.uid}]}});
        self.patch_pod(pod, patch).await
    }

    async fn patch_pod(&self, pod: &Pod, patch: serde_json::Value) -> Result<(), Error> {
        let api = self.pod_api(pod.metadata.namespace.as_deref());
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match api
            .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn pod_api(&self, namespace: Option<&str>) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), namespace.unwrap_or_default())
    }

    async fn scale(&self, key: &str, set: &ReplicaSet, alive: &[Arc<Pod>]) -> Result<(), Error> {
        let wanted = usize::try_from(wanted_replicas(set)).unwrap_or(0);
        if alive.len() < wanted {
            self.create(key, set, (wanted - alive.len()).min(BURST)).await
        } else {
            let surplus = (alive.len() - wanted).min(BURST);
            self.delete(key, set, victims(alive, surplus)).await
        }
    }

    async fn create(&self, key: &str, set: &ReplicaSet, count: usize) -> Result<(), Error> {
        let api = self.pod_api(set.metadata.namespace.as_deref());
        let about = set.object_ref(&());
        let (mut left, mut batch) = (count, FIRST_BATCH);
        while left > 0 {
            let now = batch.min(left);
            let results = futures::future::join_all((0..now).map(|_| async {
                let pod = new_pod(set);
                let name = pod.metadata.name.clone().unwrap_or_default();
                self.expectations
                    .announce(key, &created(&name), self.context.clock.monotonic());
                let result = api.create(&PostParams::default(), &pod).await;
                if result.is_err() {
                    self.expectations.settle(key, &created(&name));
                }
                result.map(|_| name)
            }))
            .await;
            for result in results {
                match result {
                    Ok(name) => {
                        self.context.recorder.normal(
                            &about,
                            "SuccessfulCreate",
                            format!("Created pod: {name}"),
                        );
                    }
                    Err(error) => {
                        self.context.recorder.warning(
                            &about,
                            "FailedCreate",
                            format!("Error creating: {}", message(&error)),
                        );
                        return Err(error.into());
                    }
                }
            }
            left -= now;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &str, set: &ReplicaSet, victims: Vec<Arc<Pod>>) -> Result<(), Error> {
        let api = self.pod_api(set.metadata.namespace.as_deref());
        let about = set.object_ref(&());
        let results = futures::future::join_all(victims.iter().map(|pod| {
            let api = api.clone();
            async move {
                let name = pod.metadata.name.clone().unwrap_or_default();
                self.expectations
                    .announce(key, &deleted(&name), self.context.clock.monotonic());
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: pod.metadata.uid.clone(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                let result = api.delete(&name, &params).await;
                if result.is_err() {
                    self.expectations.settle(key, &deleted(&name));
                }
                result.map(|_| name)
            }
        }))
        .await;
        for result in results {
            match result {
                Ok(name) => {
                    self.context
                        .recorder
                        .normal(&about, "SuccessfulDelete", format!("Deleted pod: {name}"));
                }
                Err(error) if is_gone(&error) || is_conflict(&error) => {}
                Err(error) => {
                    self.context.recorder.warning(
                        &about,
                        "FailedDelete",
                        format!("Error deleting: {}", message(&error)),
                    );
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Writes the status when it changed; answers when a pod becomes available.
    async fn write_status(
        &self,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
        failure: Option<&Error>,
    ) -> Result<Option<std::time::Duration>, Error> {
        let now = self.context.now();
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
        if status != old {
            let mut updated = set.clone();
            updated.status = Some(status);
            let api: Api<ReplicaSet> = Api::namespaced(
                self.context.client.clone(),
                set.metadata.namespace.as_deref().unwrap_or_default(),
            );
            let name = set.metadata.name.as_deref().unwrap_or_default();
            match api.replace_status(name, &PostParams::default(), &updated).await {
                // A newer object is on its way through the informer.
                Err(error) if !is_gone(&error) && !is_conflict(&error) => return Err(error.into()),
                _ => {}
            }
        }
        let next = waits.into_iter().filter(|wait| *wait > 0).min();
        Ok(next.map(|seconds| std::time::Duration::from_secs(seconds.unsigned_abs())))
    }
}

fn wanted_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Zero or less: available now.
pub(crate) fn seconds_to_available(pod: &Pod, min_ready: i32, now: jiff::Timestamp) -> i64 {
    match ready_since(pod) {
        _ if min_ready == 0 => 0,
        Some(since) => i64::from(min_ready) - now.duration_since(since).as_secs(),
        None => i64::from(min_ready),
    }
}

fn owner_reference(set: &ReplicaSet) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "ReplicaSet".to_owned(),
        name: set.metadata.name.clone().unwrap_or_default(),
        uid: set.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let prefix = format!("{}-", set.metadata.name.as_deref().unwrap_or_default());
    Pod {
        metadata: ObjectMeta {
            name: Some(generated_name(&prefix)),
            generate_name: Some(prefix),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
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
        let pod = new_pod(&set);
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
