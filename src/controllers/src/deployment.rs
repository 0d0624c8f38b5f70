//! Rolls Deployments out: one ReplicaSet per pod template, scaled against each
//! other within `maxSurge` and `maxUnavailable`.
//!
//! [`plan`] is pure: from a Deployment and its ReplicaSets it says how many
//! replicas each set should have now. Repeating it until it is satisfied is
//! the whole rollout; nothing is remembered between runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde_json::json;
use skiff_client::informer::key_of;
use skiff_client::labels::selects;
use skiff_client::{Informer, WorkQueue, message};

use crate::objects::{controller_of, is_finished, template_hash};
use crate::ownership::{Owner, claim, owner_reference};
use crate::{Context, Error, Outcome, is_conflict, is_gone};

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations that are the Deployment's own business and not its sets'.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// Starts the loop.
pub fn start(context: &Context) {
    let deployments: Informer<Deployment> = context.informers.get();
    let sets: Informer<ReplicaSet> = context.informers.get();
    let pods: Informer<Pod> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&deployments, &queue, |change| vec![key_of(&**change.object())]);
    let candidates = deployments.clone();
    context.feed(&sets, &queue, move |change| {
        let meta = &change.object().metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match controller_of(meta) {
            Some(owner) if owner.kind == "Deployment" => vec![format!("{namespace}/{}", owner.name)],
            Some(_) => Vec::new(),
            None => candidates
                .list_in(namespace)
                .iter()
                .filter(|deployment| selects(Some(&selector(deployment)), meta.labels.as_ref()))
                .map(|deployment| key_of(&**deployment))
                .collect(),
        }
    });
    // A Recreate rollout goes on when the last old pod is gone.
    let owners = sets.clone();
    context.feed(&pods, &queue, move |change| {
        let skiff_client::Change::Deleted(pod) = change else {
            return Vec::new();
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let set = controller_of(&pod.metadata)
            .filter(|owner| owner.kind == "ReplicaSet")
            .and_then(|owner| owners.get(&format!("{namespace}/{}", owner.name)));
        let owner = set.as_ref().and_then(|set| controller_of(&set.metadata));
        owner
            .map(|owner| format!("{namespace}/{}", owner.name))
            .into_iter()
            .collect()
    });
    let ready = {
        let (deployments, sets, pods) = (deployments.clone(), sets.clone(), pods.clone());
        async move {
            deployments.synced().await;
            sets.synced().await;
            pods.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        deployments,
        sets,
        pods,
    });
    context.work("deployments", queue, 4, ready, move |key| {
        let this = this.clone();
        async move {
            match this.reconcile(&key).await {
                // Somebody was faster: the informer brings the newer state.
                Err(Error::Api(error)) if is_conflict(&error) => Ok(Some(Duration::from_millis(50))),
                other => other,
            }
        }
    });
}

fn selector(deployment: &Deployment) -> LabelSelector {
    deployment
        .spec
        .as_ref()
        .map(|spec| spec.selector.clone())
        .unwrap_or_default()
}

struct Loop {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let Some(deployment) = self.deployments.get(key) else {
            return Ok(None);
        };
        let deployment = (*deployment).clone();
        let sets = self.claim(&deployment).await?;
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status(&deployment, &sets).await;
        }
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
        let newest = find_new(&deployment, &sets);
        let newest = match newest {
            Some(set) => Some(self.refresh_new(&deployment, set, &sets).await?),
            None if paused => None,
            None => {
                if recreate(&deployment) && self.old_pods_remain(&deployment, &sets) {
                    let old: Vec<ReplicaSet> = sets.clone();
                    self.scale_all(&deployment, &plan(&deployment, None, &old, true))
                        .await?;
                    return self.write_status(&deployment, &sets).await;
                }
                match self.create_new(&deployment, &sets).await? {
                    Some(set) => Some(set),
                    None => return Ok(None),
                }
            }
        };
        let old: Vec<ReplicaSet> = sets
            .iter()
            .filter(|set| {
                newest
                    .as_ref()
                    .is_none_or(|newest| newest.metadata.uid != set.metadata.uid)
            })
            .cloned()
            .collect();
        let pods_remain = self.old_pods_remain(&deployment, &old);
        let wanted = if paused {
            proportional(&deployment, newest.as_ref(), &old)
        } else {
            plan(&deployment, newest.as_ref(), &old, pods_remain)
        };
        self.scale_all(&deployment, &wanted).await?;
        let all: Vec<ReplicaSet> = newest.into_iter().chain(old).collect();
        if !paused {
            self.clean_up(&deployment, &all).await?;
        }
        self.write_status(&deployment, &all).await
    }

    async fn claim(&self, deployment: &Deployment) -> Result<Vec<ReplicaSet>, Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let wanted = selector(deployment);
        let matches = |set: &ReplicaSet| selects(Some(&wanted), set.metadata.labels.as_ref());
        let sets = self.sets.list_in(namespace);
        let claimed = claim(&self.context, deployment, sets, matches, |_| true).await?;
        let mut mine: Vec<ReplicaSet> = claimed.iter().map(|set| (**set).clone()).collect();
        mine.sort_by_key(|set| {
            (
                set.metadata.creation_timestamp.as_ref().map(|time| time.0),
                set.metadata.name.clone(),
            )
        });
        Ok(mine)
    }

    fn old_pods_remain(&self, deployment: &Deployment, old: &[ReplicaSet]) -> bool {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let of_old = |pod: &Pod| {
            controller_of(&pod.metadata).is_some_and(|owner| {
                old.iter()
                    .any(|set| set.metadata.uid.as_ref() == Some(&owner.uid))
            })
        };
        self.pods
            .list_in(namespace)
            .iter()
            .any(|pod| of_old(pod) && !is_finished(pod))
    }

    fn set_api(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        Api::namespaced(
            self.context.client.clone(),
            deployment.metadata.namespace.as_deref().unwrap_or_default(),
        )
    }

    /// Keeps revision and copied annotations of the current set up to date.
    async fn refresh_new(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        all: &[ReplicaSet],
    ) -> Result<ReplicaSet, Error> {
        let others: Vec<&ReplicaSet> = all
            .iter()
            .filter(|other| other.metadata.uid != set.metadata.uid)
            .collect();
        let next = others.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
        let mut annotations = copied_annotations(deployment);
        let current = revision(set);
        let number = current.max(next);
        annotations.insert(REVISION.to_owned(), number.to_string());
        if current != 0 && current != number {
            let before = set
                .metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(REVISION_HISTORY))
                .filter(|t| !t.is_empty());
            let history = before.map_or_else(|| current.to_string(), |before| format!("{before},{current}"));
            annotations.insert(REVISION_HISTORY.to_owned(), history);
        }
        let have = set.metadata.annotations.clone().unwrap_or_default();
        let min_ready = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let changed = annotations
            .iter()
            .any(|(key, value)| have.get(key) != Some(value))
            || set
                .spec
                .as_ref()
                .and_then(|spec| spec.min_ready_seconds)
                .unwrap_or(0)
                != min_ready.unwrap_or(0);
        let set = if changed {
            let patch =
                json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": min_ready}});
            let name = set.metadata.name.as_deref().unwrap_or_default();
            self.set_api(deployment)
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?
        } else {
            set.clone()
        };
        self.write_revision(deployment, &number.to_string()).await?;
        Ok(set)
    }

    async fn write_revision(&self, deployment: &Deployment, number: &str) -> Result<(), Error> {
        let have = deployment
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(REVISION));
        if have.map(String::as_str) == Some(number) {
            return Ok(());
        }
        let api: Api<Deployment> = Api::namespaced(
            self.context.client.clone(),
            deployment.metadata.namespace.as_deref().unwrap_or_default(),
        );
        let patch = Patch::Merge(json!({"metadata": {"annotations": {REVISION: number}}}));
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        api.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Makes the set for the current template. `None`: its name is taken by
    /// another template (a hash collision); the next run tries another name.
    async fn create_new(
        &self,
        deployment: &Deployment,
        old: &[ReplicaSet],
    ) -> Result<Option<ReplicaSet>, Error> {
        let number = old.iter().map(revision).max().unwrap_or(0) + 1;
        let mut set = new_set(deployment, number);
        let replicas = new_set_size(deployment, &set, old);
        set.spec.get_or_insert_default().replicas = Some(replicas);
        annotate_size(&mut set.metadata, deployment);
        let name = set.metadata.name.clone().unwrap_or_default();
        let about = deployment.object_ref(&());
        match self
            .set_api(deployment)
            .create(&PostParams::default(), &set)
            .await
        {
            Ok(set) => {
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.context.recorder.normal(&about, "ScalingReplicaSet", message);
                }
                self.write_revision(deployment, &number.to_string()).await?;
                Ok(Some(set))
            }
            Err(error) if is_conflict(&error) => {
                let other = self.set_api(deployment).get(&name).await?;
                let mine = controller_of(&other.metadata).map(|owner| &owner.uid)
                    == deployment.metadata.uid.as_ref();
                if mine && same_template(deployment, &other) {
                    return Ok(Some(other));
                }
                let collisions = deployment
                    .status
                    .as_ref()
                    .and_then(|status| status.collision_count)
                    .unwrap_or(0)
                    + 1;
                let api: Api<Deployment> = Api::namespaced(
                    self.context.client.clone(),
                    deployment.metadata.namespace.as_deref().unwrap_or_default(),
                );
                let patch = Patch::Merge(json!({"status": {"collisionCount": collisions}}));
                let name = deployment.metadata.name.as_deref().unwrap_or_default();
                api.patch_status(name, &PatchParams::default(), &patch).await?;
                Ok(None)
            }
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {}", message(&error));
                self.context
                    .recorder
                    .warning(&about, "ReplicaSetCreateError", message);
                Err(error.into())
            }
        }
    }

    async fn scale_all(&self, deployment: &Deployment, wanted: &[(ReplicaSet, i32)]) -> Result<(), Error> {
        let about = deployment.object_ref(&());
        for (set, to) in wanted {
            let from = size(set);
            let mut meta = ObjectMeta::default();
            annotate_size(&mut meta, deployment);
            let annotations = meta.annotations.unwrap_or_default();
            let have = set.metadata.annotations.clone().unwrap_or_default();
            let stale = (from > 0 || *to > 0)
                && annotations
                    .iter()
                    .any(|(key, value)| have.get(key) != Some(value));
            if from == *to && !stale {
                continue;
            }
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let patch = Patch::Merge(json!({
                "metadata": {"annotations": annotations, "resourceVersion": set.metadata.resource_version},
                "spec": {"replicas": to},
            }));
            self.set_api(deployment)
                .patch(name, &PatchParams::default(), &patch)
                .await?;
            if from != *to {
                let way = if *to > from { "up" } else { "down" };
                let message = format!("Scaled {way} replica set {name} from {from} to {to}");
                self.context.recorder.normal(&about, "ScalingReplicaSet", message);
            }
        }
        Ok(())
    }

    /// Removes old empty sets beyond the history limit once the rollout is done.
    async fn clean_up(&self, deployment: &Deployment, all: &[ReplicaSet]) -> Result<(), Error> {
        let limit = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(10);
        let newest = find_new(deployment, all).and_then(|set| set.metadata.uid.clone());
        if !is_complete(deployment, &status_of(deployment, all, self.context.now())) {
            return Ok(());
        }
        let mut old: Vec<&ReplicaSet> = all
            .iter()
            .filter(|set| set.metadata.uid != newest && set.metadata.deletion_timestamp.is_none())
            .collect();
        old.sort_by_key(|set| revision(set));
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in old.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            if status.replicas != 0 || size(set) != 0 || set.metadata.generation > status.observed_generation
            {
                continue;
            }
            let name = set.metadata.name.as_deref().unwrap_or_default();
            match self
                .set_api(deployment)
                .delete(name, &DeleteParams::background())
                .await
            {
                Err(error) if !is_gone(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn write_status(&self, deployment: &Deployment, sets: &[ReplicaSet]) -> Outcome {
        let now = self.context.now();
        let status = status_of(deployment, sets, now);
        let old = deployment.status.clone().unwrap_or_default();
        if status != old {
            let api: Api<Deployment> = Api::namespaced(
                self.context.client.clone(),
                deployment.metadata.namespace.as_deref().unwrap_or_default(),
            );
            let mut updated = deployment.clone();
            updated.status = Some(status.clone());
            let name = deployment.metadata.name.as_deref().unwrap_or_default();
            match api.replace_status(name, &PostParams::default(), &updated).await {
                Err(error) if !is_gone(&error) && !is_conflict(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(deadline_in(deployment, &status, now))
    }
}

impl Owner for Deployment {
    fn selector(&self) -> Option<LabelSelector> {
        Some(selector(self))
    }
}

fn recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn desired(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

fn revision(set: &ReplicaSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(REVISION)?.parse().ok())
        .unwrap_or(0)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH);
    }
    meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
    meta.creation_timestamp = None;
    template
}

fn same_template(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let wanted = deployment.spec.as_ref().map(|spec| without_hash(&spec.template));
    let have = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref())
        .map(without_hash);
    wanted == have
}

/// The oldest set that has the current template.
fn find_new<'a>(deployment: &Deployment, sets: &'a [ReplicaSet]) -> Option<&'a ReplicaSet> {
    sets.iter().find(|set| same_template(deployment, set))
}

fn copied_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let own = deployment.metadata.annotations.clone().unwrap_or_default();
    own.into_iter()
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .collect()
}

fn annotate_size(meta: &mut ObjectMeta, deployment: &Deployment) {
    let (surge, _) = limits(deployment);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(DESIRED.to_owned(), desired(deployment).to_string());
    annotations.insert(MAX.to_owned(), (desired(deployment) + surge).to_string());
}

fn new_set(deployment: &Deployment, number: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment
        .status
        .as_ref()
        .and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template = spec.template;
    template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default()
        .insert(HASH.to_owned(), hash.clone());
    let mut selector = spec.selector;
    selector
        .match_labels
        .get_or_insert_default()
        .insert(HASH.to_owned(), hash.clone());
    let mut annotations = copied_annotations(deployment);
    annotations.insert(REVISION.to_owned(), number.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{hash}",
                deployment.metadata.name.as_deref().unwrap_or_default()
            )),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(0),
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// A number, or a percentage of `total`; 25% when nothing is said.
pub(crate) fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => resolve(Some(&IntOrString::String("25%".to_owned())), total, round_up),
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total);
            let result = if round_up {
                (product + 99).div_euclid(100)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(result).unwrap_or(i32::MAX)
        }
    }
}

/// `maxSurge` and `maxUnavailable` as numbers; never both zero.
fn limits(deployment: &Deployment) -> (i32, i32) {
    if recreate(deployment) {
        return (0, 0);
    }
    let rolling: Option<RollingUpdateDeployment> = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref()?.rolling_update.clone());
    let rolling = rolling.unwrap_or_default();
    let total = desired(deployment);
    let surge = resolve(rolling.max_surge.as_ref(), total, true);
    let unavailable = resolve(rolling.max_unavailable.as_ref(), total, false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable.min(total))
    }
}

/// How large the set with the current template may be right now.
fn new_set_size(deployment: &Deployment, new: &ReplicaSet, old: &[ReplicaSet]) -> i32 {
    if recreate(deployment) {
        return desired(deployment);
    }
    let (surge, _) = limits(deployment);
    let current: i32 = old.iter().map(size).sum::<i32>() + size(new);
    let room = (desired(deployment) + surge - current).max(0);
    let missing = (desired(deployment) - size(new)).max(0);
    size(new) + room.min(missing)
}

/// How many replicas each set should have now.
fn plan(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    old: &[ReplicaSet],
    old_pods_remain: bool,
) -> Vec<(ReplicaSet, i32)> {
    let total = desired(deployment);
    let mut wanted: Vec<(ReplicaSet, i32)> = Vec::new();
    if recreate(deployment) {
        wanted.extend(old.iter().map(|set| (set.clone(), 0)));
        let may_start = !old_pods_remain && old.iter().all(|set| size(set) == 0);
        if let Some(newest) = newest {
            wanted.push((
                newest.clone(),
                if may_start || size(newest) > 0 { total } else { 0 },
            ));
        }
        return wanted;
    }
    let Some(newest) = newest else {
        return proportional(deployment, None, old);
    };
    // A change of the Deployment's size during a rollout is spread over its sets.
    if is_scaling(deployment, newest, old) {
        return proportional(deployment, Some(newest), old);
    }
    let grown = if size(newest) > total {
        total
    } else {
        new_set_size(deployment, newest, old)
    };
    wanted.push((newest.clone(), grown));
    if grown != size(newest) {
        return wanted;
    }
    wanted.extend(shrink_old(deployment, newest, old));
    wanted
}

/// Takes from the old sets what availability allows: unhealthy pods first.
fn shrink_old(deployment: &Deployment, newest: &ReplicaSet, old: &[ReplicaSet]) -> Vec<(ReplicaSet, i32)> {
    let (_, unavailable) = limits(deployment);
    let minimum = desired(deployment) - unavailable;
    let all: i32 = old.iter().map(size).sum::<i32>() + size(newest);
    let new_unavailable = size(newest) - available(newest);
    let mut budget = (all - minimum - new_unavailable).max(0);
    let mut sizes: Vec<i32> = old.iter().map(size).collect();
    for (set, current) in old.iter().zip(&mut sizes) {
        let unhealthy = (*current - available(set)).clamp(0, budget);
        *current -= unhealthy;
        budget -= unhealthy;
    }
    let available_now: i32 = available(newest) + old.iter().map(available).sum::<i32>();
    let mut spare = (available_now - minimum).max(0);
    for current in &mut sizes {
        let less = (*current).min(spare).max(0);
        *current -= less;
        spare -= less;
    }
    old.iter().cloned().zip(sizes).collect()
}

fn is_scaling(deployment: &Deployment, newest: &ReplicaSet, old: &[ReplicaSet]) -> bool {
    std::iter::once(newest)
        .chain(old)
        .filter(|set| size(set) > 0)
        .any(|set| {
            let annotations = set.metadata.annotations.as_ref();
            let noted: Option<i32> =
                annotations.and_then(|annotations| annotations.get(DESIRED)?.parse().ok());
            noted.is_some_and(|noted| noted != desired(deployment))
        })
}

/// Spreads the Deployment's size over its active sets in proportion to theirs.
fn proportional(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    old: &[ReplicaSet],
) -> Vec<(ReplicaSet, i32)> {
    let all: Vec<&ReplicaSet> = newest.into_iter().chain(old).collect();
    let active: Vec<&ReplicaSet> = all.iter().copied().filter(|set| size(set) > 0).collect();
    let total = desired(deployment);
    match active.as_slice() {
        [] => newest
            .or(old.last())
            .map(|set| (set.clone(), total))
            .into_iter()
            .collect(),
        [only] => vec![((*only).clone(), total)],
        _ => {
            let (surge, _) = limits(deployment);
            let allowed = if total > 0 { total + surge } else { 0 };
            let current: i32 = active.iter().map(|set| size(set)).sum();
            let mut to_add = allowed - current;
            let mut sizes: Vec<i32> = active.iter().map(|set| size(set)).collect();
            for (i, set) in active.iter().enumerate() {
                let share = f64::from(size(set)) * f64::from(allowed) / f64::from(current.max(1));
                #[allow(clippy::cast_possible_truncation)]
                let change = share.round() as i32 - size(set);
                let change = if to_add >= 0 {
                    change.clamp(0, to_add)
                } else {
                    change.clamp(to_add, 0)
                };
                sizes[i] = (sizes[i] + change).max(0);
                to_add -= change;
            }
            // What rounding left goes to the newest.
            if let Some(first) = sizes.first_mut() {
                *first = (*first + to_add).max(0);
            }
            active.into_iter().cloned().zip(sizes).collect()
        }
    }
}

fn status_of(deployment: &Deployment, sets: &[ReplicaSet], now: jiff::Timestamp) -> DeploymentStatus {
    let newest = find_new(deployment, sets);
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(count).sum::<i32>();
    let replicas = sum(&|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let ready = sum(&|set| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0)
    });
    let available_now = sum(&available);
    let terminating = sum(&|set| {
        set.status
            .as_ref()
            .and_then(|status| status.terminating_replicas)
            .unwrap_or(0)
    });
    let updated = newest
        .and_then(|set| set.status.as_ref())
        .map_or(0, |status| status.replicas);
    let positive = |count: i32| (count > 0).then_some(count);
    let unavailable = (sets.iter().map(size).sum::<i32>() - available_now).max(0);
    let old = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(replicas),
        updated_replicas: positive(updated),
        ready_replicas: positive(ready),
        available_replicas: positive(available_now),
        unavailable_replicas: positive(unavailable),
        terminating_replicas: Some(terminating),
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
    };
    let (_, max_unavailable) = limits(deployment);
    let enough = available_now >= desired(deployment) - max_unavailable;
    set_condition(
        &mut status,
        "Available",
        if enough { "True" } else { "False" },
        if enough {
            "MinimumReplicasAvailable"
        } else {
            "MinimumReplicasUnavailable"
        },
        if enough {
            "Deployment has minimum availability."
        } else {
            "Deployment does not have minimum availability."
        },
        now,
        false,
    );
    set_progress(deployment, &mut status, &old, newest, now);
    status
}

fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = desired(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn progress_deadline(deployment: &Deployment) -> Option<i64> {
    let seconds = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.progress_deadline_seconds)
        .unwrap_or(600);
    (seconds != i32::MAX).then(|| i64::from(seconds))
}

fn set_progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    old: &DeploymentStatus,
    newest: Option<&ReplicaSet>,
    now: jiff::Timestamp,
) {
    let Some(deadline) = progress_deadline(deployment) else {
        return;
    };
    let before = old
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Progressing")
        .cloned();
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let was_paused = before.as_ref().and_then(|c| c.reason.as_deref()) == Some("DeploymentPaused");
    let name = newest.and_then(|set| set.metadata.name.clone());
    if paused {
        if !was_paused {
            set_condition(
                status,
                "Progressing",
                "Unknown",
                "DeploymentPaused",
                "Deployment is paused",
                now,
                true,
            );
        }
        return;
    }
    if was_paused {
        set_condition(
            status,
            "Progressing",
            "Unknown",
            "DeploymentResumed",
            "Deployment is resumed",
            now,
            true,
        );
        return;
    }
    let done = before.as_ref().and_then(|c| c.reason.as_deref()) == Some("NewReplicaSetAvailable");
    let stays_done = done && status.replicas.unwrap_or(0) == status.updated_replicas.unwrap_or(0);
    let about = |text: &str| match &name {
        Some(name) => format!("ReplicaSet \"{name}\" {text}"),
        None => format!(
            "Deployment \"{}\" {text}",
            deployment.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    if is_complete(deployment, status) {
        let message = about("has successfully progressed.");
        set_condition(
            status,
            "Progressing",
            "True",
            "NewReplicaSetAvailable",
            &message,
            now,
            false,
        );
        return;
    }
    let old_replicas = |s: &DeploymentStatus| s.replicas.unwrap_or(0) - s.updated_replicas.unwrap_or(0);
    let progressed = status.updated_replicas > old.updated_replicas
        || old_replicas(status) < old_replicas(old)
        || status.ready_replicas > old.ready_replicas
        || status.available_replicas > old.available_replicas;
    if before.is_none() || progressed {
        let (reason, text) = match before {
            None if name.is_some() => ("NewReplicaSetCreated", "Created new replica set"),
            _ => ("ReplicaSetUpdated", "is progressing."),
        };
        let message = match (&name, before.is_none()) {
            (Some(name), true) => format!("Created new replica set \"{name}\""),
            _ => about(text),
        };
        set_condition(status, "Progressing", "True", reason, &message, now, true);
        return;
    }
    let since = before
        .as_ref()
        .and_then(|c| c.last_update_time.as_ref())
        .map_or(now, |time| time.0);
    if !stays_done && now.duration_since(since).as_secs() >= deadline {
        let message = about("has timed out progressing.");
        set_condition(
            status,
            "Progressing",
            "False",
            "ProgressDeadlineExceeded",
            &message,
            now,
            false,
        );
    }
}

/// When the progress deadline has to be looked at, if it is running.
fn deadline_in(deployment: &Deployment, status: &DeploymentStatus, now: jiff::Timestamp) -> Option<Duration> {
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "Progressing")?;
    let running = condition.status == "True" && condition.reason.as_deref() != Some("NewReplicaSetAvailable");
    let since = condition.last_update_time.as_ref()?.0;
    let left = progress_deadline(deployment)? - now.duration_since(since).as_secs();
    running.then(|| Duration::from_secs(left.max(1).unsigned_abs()))
}

/// `touch`: the update time moves even when nothing else changed.
fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    state: &str,
    reason: &str,
    message: &str,
    now: jiff::Timestamp,
    touch: bool,
) {
    let conditions = status.conditions.get_or_insert_default();
    let position = conditions.iter().position(|condition| condition.type_ == kind);
    let before = position.map(|i| conditions[i].clone());
    let same = before.as_ref().is_some_and(|old| {
        old.status == state
            && old.reason.as_deref() == Some(reason)
            && old.message.as_deref() == Some(message)
    });
    if same && !touch {
        return;
    }
    let transition = before
        .filter(|old| old.status == state)
        .and_then(|old| old.last_transition_time);
    let condition = DeploymentCondition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: transition.or(Some(Time(now))),
    };
    match position {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
        let number = |text: &str| match text.parse::<i32>() {
            Ok(number) => json!(number),
            Err(_) => json!(text),
        };
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "d-1", "generation": 1},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": number(surge), "maxUnavailable": number(unavailable)}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v2"}]}},
            },
        }))
        .expect("deployment")
    }

    fn set(deployment: &Deployment, name: &str, replicas: i32, available: i32) -> ReplicaSet {
        let mut set = new_set(deployment, 1);
        set.metadata.name = Some(name.to_owned());
        set.metadata.uid = Some(name.to_owned());
        annotate_size(&mut set.metadata, deployment);
        set.spec.get_or_insert_default().replicas = Some(replicas);
        let status = set.status.get_or_insert_default();
        status.replicas = replicas;
        status.available_replicas = Some(available);
        status.ready_replicas = Some(available);
        set
    }

    /// Rolls out to the end with pods that become available at once, and
    /// checks the promises of the strategy after every step.
    fn roll(replicas: i32, surge: &str, unavailable: &str) -> usize {
        let deployment = deployment(replicas, surge, unavailable);
        let (max_surge, max_unavailable) = limits(&deployment);
        let mut new = set(&deployment, "new", 0, 0);
        let mut old = [set(&deployment, "old", replicas, replicas)];
        for step in 0..1_000 {
            let wanted = plan(&deployment, Some(&new), &old, false);
            let mut changed = false;
            for (target, to) in wanted {
                let mine = if target.metadata.name == new.metadata.name {
                    &mut new
                } else {
                    &mut old[0]
                };
                changed |= size(mine) != to;
                mine.spec.get_or_insert_default().replicas = Some(to);
                let still = available(mine).min(to);
                mine.status.get_or_insert_default().available_replicas = Some(still);
            }
            let total = size(&new) + size(&old[0]);
            assert!(
                total <= replicas + max_surge,
                "{total} pods of {replicas} + {max_surge}"
            );
            let serving = available(&new) + available(&old[0]);
            assert!(
                serving >= replicas - max_unavailable,
                "{serving} serve of {replicas} - {max_unavailable}"
            );
            let size_now = size(&new);
            new.status.get_or_insert_default().available_replicas = Some(size_now);
            if !changed {
                assert_eq!((size(&new), size(&old[0])), (replicas, 0), "after {step} steps");
                return step;
            }
        }
        panic!("the rollout never ends");
    }

    #[test]
    fn a_rollout_keeps_its_promises() {
        for replicas in [0, 1, 2, 4, 10, 33] {
            for (surge, unavailable) in [
                ("25%", "25%"),
                ("1", "0"),
                ("0", "1"),
                ("100%", "0"),
                ("0", "100%"),
                ("3", "2"),
            ] {
                roll(replicas, surge, unavailable);
            }
        }
    }

    #[test]
    fn percentages_round_up_for_surge_and_down_for_unavailable() {
        assert_eq!(limits(&deployment(10, "25%", "25%")), (3, 2));
        assert_eq!(limits(&deployment(1, "25%", "25%")), (1, 0));
        assert_eq!(limits(&deployment(3, "0%", "0%")), (0, 1));
    }

    #[test]
    fn recreate_waits_until_the_old_pods_are_gone() {
        let mut deployment = deployment(3, "1", "1");
        deployment
            .spec
            .get_or_insert_default()
            .strategy
            .get_or_insert_default()
            .type_ = Some("Recreate".to_owned());
        let (new, old) = (set(&deployment, "new", 0, 0), set(&deployment, "old", 0, 0));
        let sizes = |remain| {
            plan(&deployment, Some(&new), std::slice::from_ref(&old), remain)
                .iter()
                .map(|(_, n)| *n)
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(true), [0, 0]);
        assert_eq!(sizes(false), [0, 3]);
    }

    #[test]
    fn scaling_during_a_rollout_is_spread() {
        let small = deployment(10, "3", "2");
        let (new, old) = (set(&small, "new", 5, 5), set(&small, "old", 8, 8));
        let big = deployment(20, "3", "2");
        let sizes: Vec<i32> = plan(&big, Some(&new), &[old], false)
            .iter()
            .map(|(_, n)| *n)
            .collect();
        assert_eq!(sizes.iter().sum::<i32>(), 23);
        assert!(sizes[0] > 5 && sizes[1] > 8, "{sizes:?}");
    }

    #[test]
    fn the_same_template_is_found_in_spite_of_its_hash() {
        let deployment = deployment(1, "1", "0");
        let set = new_set(&deployment, 1);
        assert!(same_template(&deployment, &set));
        assert_eq!(
            find_new(&deployment, &[set])
                .and_then(|set| set.metadata.name.clone())
                .map(|n| n.starts_with("web-")),
            Some(true)
        );
    }

    #[test]
    fn conditions_tell_of_progress_and_its_end() {
        let start: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().expect("time");
        let late: jiff::Timestamp = "2030-01-01T00:20:00Z".parse().expect("time");
        let mut deployment = deployment(2, "1", "0");
        let reason = |status: &DeploymentStatus| {
            let progress = status
                .conditions
                .iter()
                .flatten()
                .find(|condition| condition.type_ == "Progressing");
            progress
                .and_then(|condition| condition.reason.clone())
                .unwrap_or_default()
        };
        let starting = status_of(&deployment, &[set(&deployment, "new", 2, 0)], start);
        assert_eq!(reason(&starting), "NewReplicaSetCreated");
        assert_eq!(
            deadline_in(&deployment, &starting, start),
            Some(Duration::from_secs(600))
        );
        deployment.status = Some(starting);
        let stuck = status_of(&deployment, &[set(&deployment, "new", 2, 0)], late);
        assert_eq!(reason(&stuck), "ProgressDeadlineExceeded");
        let done = status_of(&deployment, &[set(&deployment, "new", 2, 2)], late);
        assert_eq!(reason(&done), "NewReplicaSetAvailable");
        assert_eq!(deadline_in(&deployment, &done, late), None);
    }
}
