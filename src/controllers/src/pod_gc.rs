//! Removes pods that nobody else will: bound to a node that is gone, deleted
//! before they were bound, or finished and too many.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use skiff_client::informer::key_of;
use skiff_client::{Change, Informer, WorkQueue};

use crate::objects::is_finished;
use crate::{Context, Outcome, is_gone};

/// Finished pods kept in the cluster, as in Kubernetes.
const FINISHED_KEPT: usize = 12_500;
/// A node that vanished gets this long to come back before its pods go.
const NODE_GRACE: Duration = Duration::from_secs(40);
/// The queue key that stands for the count of finished pods.
const FINISHED: &str = "\0finished";

/// Starts the loop.
pub fn start(context: &Context) {
    let pods: Informer<Pod> = context.informers.get();
    let nodes: Informer<Node> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&pods, &queue, |change| match change {
        Change::Applied { new, .. } if is_finished(new) => vec![key_of(&**new), FINISHED.to_owned()],
        Change::Applied { new, .. } => vec![key_of(&**new)],
        Change::Deleted(_) => Vec::new(),
    });
    let of_node = pods.clone();
    context.feed(&nodes, &queue, move |change| match change {
        Change::Deleted(node) => {
            let name = node.metadata.name.as_deref();
            of_node
                .list()
                .iter()
                .filter(|pod| node_of(pod) == name)
                .map(|pod| key_of(&**pod))
                .collect()
        }
        Change::Applied { .. } => Vec::new(),
    });
    let (ready_pods, ready_nodes) = (pods.clone(), nodes.clone());
    let ready = async move {
        ready_pods.synced().await;
        ready_nodes.synced().await;
    };
    let context_ = Arc::new(context.clone());
    let missing: Arc<parking_lot::Mutex<std::collections::HashMap<String, std::time::Instant>>> =
        Arc::default();
    context.work("pod clean-up", queue, 1, ready, move |key| {
        let (context, pods, nodes, missing) =
            (context_.clone(), pods.clone(), nodes.clone(), missing.clone());
        async move {
            if key == FINISHED {
                for pod in surplus(pods.list()) {
                    remove(&context, &pod, None).await?;
                }
                return Ok(None);
            }
            let Some(pod) = pods.get(&key) else {
                return Ok(None);
            };
            let Some(node) = node_of(&pod) else {
                let deleted = pod.metadata.deletion_timestamp.is_some();
                return if deleted {
                    remove(&context, &pod, None).await
                } else {
                    Ok(None)
                };
            };
            if nodes.get(node).is_some() {
                missing.lock().remove(node);
                return Ok(None);
            }
            let now = context.clock.monotonic();
            let since = *missing.lock().entry(node.to_owned()).or_insert(now);
            match NODE_GRACE.checked_sub(now.saturating_duration_since(since)) {
                Some(left) if !left.is_zero() => Ok(Some(left)),
                _ => remove(&context, &pod, Some("PodGC: node no longer exists")).await,
            }
        }
    });
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

fn surplus(pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let mut finished: Vec<Arc<Pod>> = pods.into_iter().filter(|pod| is_finished(pod)).collect();
    finished.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let extra = finished.len().saturating_sub(FINISHED_KEPT);
    finished.truncate(extra);
    finished
}

async fn remove(context: &Context, pod: &Pod, disrupted: Option<&str>) -> Outcome {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(
        context.client.clone(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
    );
    if let Some(message) = disrupted.filter(|_| !is_finished(pod)) {
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(context.now());
        let patch = json!({"status": {"phase": "Failed", "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": message, "lastTransitionTime": now,
        }]}});
        match api
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Err(error) if !is_gone(&error) => return Err(error.into()),
            _ => {}
        }
    }
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Err(error) if !is_gone(&error) && !crate::is_conflict(&error) => Err(error.into()),
        _ => Ok(None),
    }
}
