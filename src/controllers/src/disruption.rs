//! Tells how many pods of a PodDisruptionBudget may be evicted now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_client::informer::key_of;
use skiff_client::labels::selects;
use skiff_client::{Change, Informer, WorkQueue};

use crate::deployment::resolve;
use crate::objects::{controller_of, is_finished, is_ready};
use crate::ownership::write_status;
use crate::{Context, Outcome};

/// An evicted pod that is not being deleted after this long was not evicted.
const EVICTION_TIMEOUT_SECONDS: i64 = 120;

/// Starts the loop.
pub fn start(context: &Context) {
    let budgets: Informer<PodDisruptionBudget> = context.informers.get();
    let queue = WorkQueue::new();
    let this = Arc::new(Loop {
        context: context.clone(),
        budgets: budgets.clone(),
        pods: context.informers.get(),
        sets: context.informers.get(),
        deployments: context.informers.get(),
        stateful: context.informers.get(),
        controllers: context.informers.get(),
    });
    context.feed(&budgets, &queue, |change| vec![key_of(&**change.object())]);
    context.feed(&this.pods, &queue, move |change| {
        let old = match change {
            Change::Applied { old, .. } => old.as_ref(),
            Change::Deleted(_) => None,
        };
        let touched: Vec<&Arc<Pod>> = old.into_iter().chain([change.object()]).collect();
        let namespace = change.object().metadata.namespace.as_deref().unwrap_or_default();
        budgets
            .list_in(namespace)
            .iter()
            .filter(|budget| touched.iter().any(|pod| covers(budget, pod)))
            .map(|budget| key_of(&**budget))
            .collect()
    });
    let loop_ = this.clone();
    let ready = async move {
        loop_.budgets.synced().await;
        loop_.pods.synced().await;
        loop_.sets.synced().await;
        loop_.deployments.synced().await;
        loop_.stateful.synced().await;
        loop_.controllers.synced().await;
    };
    context.work("pod disruption budgets", queue, 2, ready, move |key| {
        let this = this.clone();
        async move { this.reconcile(&key).await }
    });
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selects(selector, pod.metadata.labels.as_ref())
}

struct Loop {
    context: Context,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
    stateful: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let Some(budget) = self.budgets.get(key) else {
            return Ok(None);
        };
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let mut pods = self.pods.list_in(namespace);
        pods.retain(|pod| covers(&budget, pod) && !is_finished(pod));
        let scale = self.scale(namespace, &pods);
        let (status, look_again) = status_of(&budget, &pods, scale, self.context.now());
        if budget.status.as_ref() != Some(&status) {
            let mut updated = (*budget).clone();
            updated.status = Some(status);
            write_status(&self.context, &updated).await?;
        }
        Ok(look_again)
    }

    /// How many pods the owners of these pods want altogether.
    fn scale(&self, namespace: &str, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let mut scales = BTreeMap::new();
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                continue;
            };
            let key = format!("{namespace}/{}", owner.name);
            let (top, scale) = match owner.kind.as_str() {
                "ReplicaSet" => {
                    let set = self.sets.get(&key);
                    let above = set.as_ref().and_then(|set| controller_of(&set.metadata));
                    match above.filter(|above| above.kind == "Deployment") {
                        Some(above) => {
                            let deployment = self.deployments.get(&format!("{namespace}/{}", above.name));
                            let spec = deployment.as_ref().and_then(|one| one.spec.as_ref());
                            (above.uid.clone(), spec.map(|spec| spec.replicas))
                        }
                        None => {
                            let spec = set.as_ref().and_then(|set| set.spec.as_ref());
                            (owner.uid.clone(), spec.map(|spec| spec.replicas))
                        }
                    }
                }
                "StatefulSet" => {
                    let set = self.stateful.get(&key);
                    let spec = set.as_ref().and_then(|set| set.spec.as_ref());
                    (owner.uid.clone(), spec.map(|spec| spec.replicas))
                }
                "ReplicationController" => {
                    let set = self.controllers.get(&key);
                    let spec = set.as_ref().and_then(|set| set.spec.as_ref());
                    (owner.uid.clone(), spec.map(|spec| spec.replicas))
                }
                kind => return Err(format!("pods of kind {kind} have no scale to take a share of")),
            };
            scales.insert(top, scale.map_or(0, |replicas| replicas.unwrap_or(1)));
        }
        Ok(scales.values().fold(0, |sum: i32, one| sum.saturating_add(*one)))
    }
}

fn status_of(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    scale: Result<i32, String>,
    now: jiff::Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let spec = budget.spec.clone().unwrap_or_default();
    let old = budget.status.clone().unwrap_or_default();
    let present = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    // A plain number of available pods needs no scale to compare with.
    let expected = match (&spec.min_available, &spec.max_unavailable) {
        (Some(IntOrString::Int(_)), _) | (None, None) => Ok(present),
        _ => scale,
    };
    let leaving = |name: &str| {
        let pod = pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    };
    let left = |since: &Time| EVICTION_TIMEOUT_SECONDS - now.duration_since(since.0).as_secs();
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    disrupted.retain(|name, since| !leaving(name) && left(since) > 0);
    let healthy = pods.iter().filter(|pod| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        is_ready(pod) && pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(name)
    });
    let current = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let (total, failure) = match expected {
        Ok(total) => (total, None),
        Err(why) => (0, Some(why)),
    };
    let desired = match (&spec.min_available, &spec.max_unavailable) {
        (Some(least), _) => resolve(Some(least), total, true),
        (None, Some(most)) => (total - resolve(Some(most), total, true)).max(0),
        (None, None) => 0,
    };
    let allowed = if total > 0 { (current - desired).max(0) } else { 0 };
    let (value, reason) = match (&failure, allowed) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, 0) => ("False", "InsufficientPods"),
        (None, _) => ("True", "SufficientPods"),
    };
    let mut conditions = old.conditions.unwrap_or_default();
    let before = conditions
        .iter()
        .find(|one| one.type_ == "DisruptionAllowed" && one.status == value);
    let since = before.map_or(Time(now), |one| one.last_transition_time.clone());
    conditions.retain(|one| one.type_ != "DisruptionAllowed");
    conditions.push(Condition {
        type_: "DisruptionAllowed".to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: failure.unwrap_or_default(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since,
    });
    let soon = disrupted
        .values()
        .map(left)
        .min()
        .and_then(|left| u64::try_from(left).ok());
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        current_healthy: Some(current),
        desired_healthy: Some(desired),
        disrupted_pods: Some(disrupted).filter(|pods| !pods.is_empty()),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(total),
        observed_generation: budget.metadata.generation,
    };
    (status, soon.map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn evictions_allowed_follow_the_budget() {
        let now = "2030-01-01T00:01:00Z".parse().expect("time");
        let pods = |ready: usize, unready: usize| -> Vec<Arc<Pod>> {
            let pod = |(at, ready): (usize, &str)| {
                let pod = json!({"metadata": {"name": format!("p{at}")},
                    "status": {"conditions": [{"type": "Ready", "status": ready}]}});
                Arc::new(serde_json::from_value(pod).expect("pod"))
            };
            let all = std::iter::repeat_n("True", ready).chain(std::iter::repeat_n("False", unready));
            all.enumerate().map(pod).collect()
        };
        let evicted = json!({"disruptedPods": {"p0": "2030-01-01T00:00:30Z"}});
        let forgotten = json!({"disruptedPods": {"p0": "2029-12-31T23:00:00Z"}});
        for (spec, status, pods, scale, allowed) in [
            (json!({"minAvailable": 2}), json!({}), pods(3, 0), Ok(0), 1),
            (json!({"minAvailable": 2}), json!({}), pods(2, 1), Ok(0), 0),
            (json!({"minAvailable": "50%"}), json!({}), pods(3, 0), Ok(3), 1),
            (json!({"maxUnavailable": 1}), json!({}), pods(3, 0), Ok(3), 1),
            (json!({"maxUnavailable": 1}), json!({}), pods(3, 0), Ok(4), 0),
            (
                json!({"maxUnavailable": 1}),
                json!({}),
                pods(3, 0),
                Err("no scale".to_owned()),
                0,
            ),
            (json!({"maxUnavailable": 1}), evicted, pods(3, 0), Ok(3), 0),
            (json!({"maxUnavailable": 1}), forgotten, pods(3, 0), Ok(3), 1),
        ] {
            let budget = json!({"metadata": {}, "spec": spec, "status": status});
            let budget: PodDisruptionBudget = serde_json::from_value(budget).expect("budget");
            let (status, _) = status_of(&budget, &pods, scale, now);
            assert_eq!(status.disruptions_allowed, Some(allowed), "{spec}");
        }
    }
}
