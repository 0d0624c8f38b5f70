//! Sends a pod's status to the API: the newest one, until it has arrived.
//!
//! Conditions of other writers are kept: the patch carries the resource version its condition list was merged from,
//! and a conflict means reading and merging again.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};
use skiff_base::backoff::Backoff;
use skiff_base::lifecycle::Shutdown;
use skiff_client::Client;
use tokio::sync::watch;

use super::spec;
use super::status::OWN_CONDITIONS;

/// First wait after a failed write.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait after failed writes.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Fields of the status this kubelet writes, so that one that became empty is removed.
const OWN_FIELDS: [&str; 16] = [
    "phase",
    "reason",
    "message",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
    "conditions",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "resize",
    "nominatedNodeName",
];

#[derive(Clone, Default)]
struct Order {
    number: u64,
    content: Option<(Arc<Pod>, Arc<PodStatus>)>,
}

/// The way to a pod's status.
#[derive(Clone)]
pub struct Writer {
    orders: Arc<watch::Sender<Order>>,
    written: watch::Receiver<u64>,
}

impl Writer {
    /// Starts the task that writes the status of one pod; it ends with the last handle.
    pub fn start(client: Client, pod: Arc<Pod>, shutdown: &Shutdown) -> Writer {
        let (orders, incoming) = watch::channel(Order::default());
        let (done, written) = watch::channel(0);
        let api = Api::namespaced(client, spec::namespace(&pod));
        shutdown.spawn_until_cancelled("pod status", write(api, incoming, done));
        Writer {
            orders: Arc::new(orders),
            written,
        }
    }

    /// The status is now this; an older one that was not written yet is dropped.
    pub fn send(&self, pod: Arc<Pod>, status: PodStatus) {
        self.orders.send_modify(|order| {
            order.number += 1;
            order.content = Some((pod, Arc::new(status)));
        });
    }

    /// Returns when everything sent so far was written, or can never be.
    pub async fn flush(&self) {
        let number = self.orders.borrow().number;
        let mut written = self.written.clone();
        let _ = written.wait_for(|done| *done >= number).await;
    }
}

async fn write(api: Api<Pod>, mut orders: watch::Receiver<Order>, done: watch::Sender<u64>) {
    let mut known: Option<Pod> = None;
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        let order = orders.borrow_and_update().clone();
        if order.number > *done.borrow()
            && let Some((pod, status)) = &order.content
        {
            let base = newest(known.as_ref(), pod);
            let body = patch(base, status);
            match api
                .patch_status(spec::name(pod), &PatchParams::default(), &Patch::Merge(&body))
                .await
            {
                Ok(answer) => {
                    known = Some(answer);
                    done.send_replace(order.number);
                    backoff.reset();
                }
                Err(kube::Error::Api(error)) if error.code == 409 => match api.get(spec::name(pod)).await {
                    Ok(current) if current.metadata.uid == pod.metadata.uid => {
                        known = Some(current);
                        tokio::time::sleep(backoff.next()).await;
                    }
                    // Another pod has the name: nothing to say about it.
                    Ok(_) => {
                        done.send_replace(order.number);
                    }
                    Err(_) => tokio::time::sleep(backoff.next()).await,
                },
                Err(kube::Error::Api(error)) if error.code == 404 => {
                    done.send_replace(order.number);
                }
                Err(error) => {
                    tracing::warn!(pod = spec::full_name(pod), %error, "status not written");
                    tokio::select! {
                        () = tokio::time::sleep(backoff.next()) => {}
                        changed = orders.changed() => if changed.is_err() { return },
                    }
                }
            }
            continue;
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

/// The newer of what was read and what the watch says.
fn newest<'a>(known: Option<&'a Pod>, pod: &'a Pod) -> &'a Pod {
    let version = |pod: &Pod| {
        pod.metadata
            .resource_version
            .as_deref()
            .and_then(|v| v.parse::<u64>().ok())
    };
    match known {
        Some(known) if known.metadata.uid == pod.metadata.uid && version(known) > version(pod) => known,
        _ => pod,
    }
}

/// The merge patch that turns the status of `base` into `status`.
fn patch(base: &Pod, status: &PodStatus) -> Value {
    let mut fields = match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let foreign: Vec<Value> = base
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| !OWN_CONDITIONS.contains(&condition.type_.as_str()))
        .filter_map(|condition| serde_json::to_value(condition).ok())
        .collect();
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        conditions.extend(foreign);
    }
    for field in OWN_FIELDS {
        fields.entry(field).or_insert(Value::Null);
    }
    json!({
        "metadata": {"uid": base.metadata.uid, "resourceVersion": base.metadata.resource_version},
        "status": fields,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_keeps_foreign_conditions_and_clears_own_fields() {
        let base: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "resourceVersion": "7"},
            "status": {"message": "old", "conditions": [
                {"type": "Ready", "status": "False"}, {"type": "example.com/gate", "status": "True"}]},
        }))
        .unwrap();
        let status: PodStatus = serde_json::from_value(json!({
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}))
        .unwrap();
        let body = patch(&base, &status);
        assert_eq!(body["metadata"], json!({"uid": "u", "resourceVersion": "7"}));
        assert_eq!(body["status"]["message"], Value::Null);
        assert_eq!(
            body["status"]["conditions"],
            json!([{"type": "Ready", "status": "True"}, {"type": "example.com/gate", "status": "True"}])
        );
    }
}
