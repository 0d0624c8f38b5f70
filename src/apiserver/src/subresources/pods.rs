//! Binding a pod to a node, and evicting it.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::selector::LabelSelector;
use skiff_api::status::{FieldError, Status};

use super::success;
use crate::Body;
use crate::admission::{self, Operation};
use crate::deleting::DeleteOptions;
use crate::server::{ApiServer, Call};
use crate::writing::decode_as;

const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// When to ask again after a refused eviction.
const RETRY_SECONDS: u32 = 10;

impl ApiServer {
    /// Puts a pod on a node.
    pub(super) async fn bind(&self, call: &Call, body: &[u8]) -> Result<Response<Body>, Status> {
        let binding = decode_as(call, "", "v1", "Binding", body)?;
        let name = match call.info.name.as_str() {
            "" => meta::name(&binding),
            name => name,
        };
        let target = meta::str_at(&binding, "target.name");
        let kind = meta::str_at(&binding, "target.kind");
        if !matches!(kind, "" | "Node") {
            let error = FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]);
            return Err(Status::invalid("Binding", name, &[error]));
        }
        if target.is_empty() {
            let error = FieldError::required("target.name", "");
            return Err(Status::invalid("Binding", name, &[error]));
        }
        let key = call.kind.key(&call.info.namespace, name);
        let resource = "pods/binding";
        let now = meta::timestamp(self.clock.now());
        self.amend(call, &key, name, |pod| {
            let uid = meta::uid(&binding);
            if !uid.is_empty() && uid != meta::uid(pod) {
                let why = format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::uid(pod)
                );
                return Err(Status::conflict(resource, name, &why));
            }
            if meta::is_deleting(pod) {
                let why = format!("pod {name} is being deleted, cannot be assigned to a host");
                return Err(Status::conflict(resource, name, &why));
            }
            let node = meta::str_at(pod, "spec.nodeName");
            if !node.is_empty() {
                let why = format!("pod {name} is already assigned to node {node:?}");
                return Err(Status::conflict(resource, name, &why));
            }
            if !meta::list_at(pod, "spec.schedulingGates").is_empty() {
                let why = format!("pod {name} has non-empty .spec.schedulingGates");
                return Err(Status::conflict(resource, name, &why));
            }
            meta::set(pod, "spec.nodeName", target);
            for (key, value) in meta::annotations(&binding).into_iter().flatten() {
                meta::set_annotation(pod, key, value.as_str().unwrap_or_default());
            }
            for (key, value) in meta::labels(&binding).into_iter().flatten() {
                meta::set_label(pod, key, value.as_str().unwrap_or_default());
            }
            set_scheduled(pod, &now);
            Ok(true)
        })
        .await?;
        Ok(success(call, StatusCode::CREATED))
    }

    /// Deletes a pod if its disruption budget allows it.
    pub(super) async fn evict(&self, call: &Call, body: &[u8]) -> Result<Response<Body>, Status> {
        let eviction = decode_as(call, "policy", "v1", "Eviction", body)?;
        let name = call.info.name.as_str();
        if !meta::name(&eviction).is_empty() && meta::name(&eviction) != name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let options = DeleteOptions::from_parts(call, &eviction["deleteOptions"])?;
        let pod = self
            .object("pods", &call.info.namespace, name)
            .ok_or_else(|| Status::not_found("pods", name))?;
        admission::validate(self, call, Operation::Create, Some(&pod), None)?;
        let ended = matches!(
            meta::str_at(&pod, "status.phase"),
            "Succeeded" | "Failed" | "Pending"
        );
        if !ended && !meta::is_deleting(&pod) {
            self.use_budget(call, &pod, options.dry_run).await?;
        }
        let mut delete = Call::internal(&call.kind, "delete", &call.info.namespace, name);
        delete.user = call.user.clone();
        self.delete_object(&delete, name, &options).await?;
        Ok(success(call, StatusCode::CREATED))
    }

    async fn use_budget(&self, call: &Call, pod: &Value, dry_run: bool) -> Result<(), Status> {
        let kind = Arc::clone(self.row("policy", "v1", "poddisruptionbudgets"));
        let namespace = call.info.namespace.as_str();
        let mut budgets = self.objects(&kind, Some(namespace));
        budgets.retain(|b| {
            LabelSelector::from_object(b["spec"].get("selector")).is_ok_and(|s| s.matches_object(pod))
        });
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => meta::name(one).to_owned(),
            _ => {
                return Err(Status::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let ready = meta::list_at(pod, "status.conditions")
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        let refuse = |cause: String| {
            Status::too_many_requests(VIOLATES, RETRY_SECONDS).with_cause("DisruptionBudget", cause, "")
        };
        let mut internal = Call::internal(&kind, "update", namespace, &budget);
        internal.user = call.user.clone();
        let now = meta::timestamp(self.clock.now());
        let key = kind.key(namespace, &budget);
        self.amend(&internal, &key, &budget, |pdb| {
            let healthy = meta::int_at(pdb, "status.currentHealthy").unwrap_or(0);
            let desired = meta::int_at(pdb, "status.desiredHealthy").unwrap_or(0);
            if !ready
                && (meta::str_at(pdb, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow"
                    || (healthy >= desired && desired > 0))
            {
                return Ok(false);
            }
            if meta::int_at(pdb, "status.observedGeneration").unwrap_or(0) < meta::generation(pdb) {
                return Err(refuse(format!(
                    "The disruption budget {budget} is still being processed by the server."
                )));
            }
            let allowed = meta::int_at(pdb, "status.disruptionsAllowed").unwrap_or(0);
            if allowed <= 0 {
                return Err(refuse(format!(
                    "The disruption budget {budget} needs {desired} healthy pods and has {healthy} currently"
                )));
            }
            meta::set(pdb, "status.disruptionsAllowed", allowed - 1);
            meta::object_mut(pdb, "status.disruptedPods")
                .insert(meta::name(pod).to_owned(), now.clone().into());
            Ok(!dry_run)
        })
        .await?;
        Ok(())
    }
}

fn set_scheduled(pod: &mut Value, now: &str) {
    let condition = json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": now });
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    if let Some(conditions) = pod["status"]["conditions"].as_array_mut() {
        conditions.retain(|c| c["type"] != "PodScheduled");
        conditions.push(condition);
    }
}
