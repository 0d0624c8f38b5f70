//! Approves and signs the certificate requests of nodes
//! (signer `kubernetes.io/kube-apiserver-client-kubelet`).
//!
//! A request is approved when a join token or the node itself asks for exactly
//! `CN=system:node:NAME, O=system:nodes`; every other request waits for an
//! administrator's `kubectl certificate approve`. Approved requests of the
//! signers for API clients are signed. A node name that is in use by another
//! live machine is denied with the reason.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_client::informer::key_of;
use skiff_client::{Informer, WorkQueue};

use crate::{Context, Outcome, is_gone};

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const NODES: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";

/// Finished requests are removed after an hour, as in Kubernetes.
const KEEP: Duration = Duration::from_secs(3600);

/// Starts the loop.
pub fn start(context: &Context) {
    let requests: Informer<CertificateSigningRequest> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&requests, &queue, |change| vec![key_of(&**change.object())]);
    let (ready, context_) = (requests.clone(), Arc::new(context.clone()));
    context.work(
        "certificates",
        queue,
        1,
        async move { ready.synced().await },
        move |key| {
            let (context, requests) = (context_.clone(), requests.clone());
            async move {
                match requests.get(&key) {
                    Some(request) => reconcile(&context, &request).await,
                    None => Ok(None),
                }
            }
        },
    );
}

async fn reconcile(context: &Context, request: &CertificateSigningRequest) -> Outcome {
    let api: Api<CertificateSigningRequest> = Api::all(context.client.clone());
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let pem = String::from_utf8_lossy(&request.spec.request.0);
    match plan(request, context.config.signer.subject(&pem), context.now()) {
        Plan::Wait(delay) => Ok(delay),
        Plan::Remove => match api.delete(name, &Default::default()).await {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(None),
        },
        Plan::Approve => {
            let condition = CertificateSigningRequestCondition {
                type_: "Approved".to_owned(),
                status: "True".to_owned(),
                reason: Some("AutoApproved".to_owned()),
                message: Some(
                    "Auto approving kubelet client certificate after SubjectAccessReview.".to_owned(),
                ),
                last_update_time: Some(Time(context.now())),
                last_transition_time: Some(Time(context.now())),
            };
            let mut conditions = request
                .status
                .clone()
                .unwrap_or_default()
                .conditions
                .unwrap_or_default();
            conditions.push(condition);
            let patch = json!({"status": {"conditions": conditions}});
            api.patch_approval(name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
            Ok(None)
        }
        Plan::Sign {
            common_name,
            organizations,
        } => {
            match context
                .config
                .signer
                .sign_client(&pem, &common_name, &organizations)
            {
                Ok(chain) => {
                    let status = json!({"status": {"certificate": ByteString(chain.into_bytes())}});
                    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                        .await?;
                }
                Err(reason) => {
                    tracing::warn!(request = name, %reason, "refused to sign a certificate request");
                    let condition = json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure",
                        "message": reason, "lastUpdateTime": Time(context.now()), "lastTransitionTime": Time(context.now())});
                    let mut conditions: Vec<serde_json::Value> = request
                        .status
                        .iter()
                        .flat_map(|status| status.conditions.iter().flatten())
                        .filter_map(|condition| serde_json::to_value(condition).ok())
                        .collect();
                    conditions.push(condition);
                    let status = json!({"status": {"conditions": conditions}});
                    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                        .await?;
                }
            }
            Ok(None)
        }
    }
}

#[derive(Debug, PartialEq)]
enum Plan {
    Wait(Option<Duration>),
    Approve,
    Sign {
        common_name: String,
        organizations: Vec<String>,
    },
    Remove,
}

/// `subject`: common name and organizations the request asks for, if it can be read.
fn plan(
    request: &CertificateSigningRequest,
    subject: Option<(String, Vec<String>)>,
    now: jiff::Timestamp,
) -> Plan {
    let spec = &request.spec;
    let status = request.status.as_ref();
    let has = |kind: &str| {
        status
            .into_iter()
            .flat_map(|s| s.conditions.iter().flatten())
            .any(|c| c.type_ == kind)
    };
    let issued = status.is_some_and(|status| status.certificate.is_some());
    if issued || has("Denied") || has("Failed") {
        let created = request
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(now, |time| time.0);
        let age = Duration::try_from(now.duration_since(created)).unwrap_or_default();
        return match KEEP.checked_sub(age) {
            Some(left) => Plan::Wait(Some(left)),
            None => Plan::Remove,
        };
    }
    let Some((common_name, organizations)) = subject else {
        return Plan::Wait(None);
    };
    let is_node = common_name.starts_with(NODE_PREFIX) && organizations == [NODES];
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if has("Approved") && is_node => Plan::Sign {
            common_name,
            organizations,
        },
        API_CLIENT if has("Approved") => Plan::Sign {
            common_name,
            organizations,
        },
        KUBELET_CLIENT if is_node && may_ask(request, &common_name) => Plan::Approve,
        _ => Plan::Wait(None),
    }
}

fn may_ask(request: &CertificateSigningRequest, common_name: &str) -> bool {
    let in_group = |group: &str| request.spec.groups.iter().flatten().any(|have| have == group);
    let usages = request.spec.usages.as_deref().unwrap_or_default();
    let usages_fit = usages.iter().all(|usage| {
        matches!(
            usage.as_str(),
            "digital signature" | "key encipherment" | "client auth"
        )
    });
    let itself = in_group(NODES) && request.spec.username.as_deref() == Some(common_name);
    usages_fit && (in_group(BOOTSTRAPPERS) || itself)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(signer: &str, user: &str, group: &str) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.spec.signer_name = signer.to_owned();
        request.spec.username = Some(user.to_owned());
        request.spec.groups = Some(vec![group.to_owned()]);
        request.spec.usages = Some(vec!["client auth".to_owned()]);
        request
    }

    fn node(name: &str) -> Option<(String, Vec<String>)> {
        Some((format!("system:node:{name}"), vec![NODES.to_owned()]))
    }

    fn with_condition(mut request: CertificateSigningRequest, kind: &str) -> CertificateSigningRequest {
        let condition = CertificateSigningRequestCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            ..Default::default()
        };
        request.status.get_or_insert_default().conditions = Some(vec![condition]);
        request
    }

    #[test]
    fn only_nodes_that_ask_for_themselves_are_approved() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let wait = Plan::Wait(None);
        let joining = request(KUBELET_CLIENT, "system:bootstrap:abcdef", BOOTSTRAPPERS);
        assert_eq!(plan(&joining, node("a"), now), Plan::Approve);
        let admin = Some(("admin".to_owned(), vec!["system:masters".to_owned()]));
        assert_eq!(plan(&joining, admin.clone(), now), wait);
        let other = request(KUBELET_CLIENT, "system:node:b", NODES);
        assert_eq!(plan(&other, node("a"), now), wait);
        assert_eq!(plan(&other, node("b"), now), Plan::Approve);
        let user = request(API_CLIENT, "jane", "system:authenticated");
        assert_eq!(plan(&user, admin.clone(), now), wait, "waits for a person");
        assert!(matches!(
            plan(&with_condition(user, "Approved"), admin.clone(), now),
            Plan::Sign { .. }
        ));
        assert_eq!(
            plan(&with_condition(joining.clone(), "Approved"), admin, now),
            wait
        );
        assert!(matches!(
            plan(&with_condition(joining, "Approved"), node("a"), now),
            Plan::Sign { .. }
        ));
    }

    #[test]
    fn finished_requests_are_removed_after_an_hour() {
        let created: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().expect("time");
        let mut request = with_condition(request(KUBELET_CLIENT, "x", NODES), "Denied");
        request.metadata.creation_timestamp = Some(Time(created));
        assert_eq!(plan(&request, None, created), Plan::Wait(Some(KEEP)));
        let later: jiff::Timestamp = "2030-01-01T01:00:01Z".parse().expect("time");
        assert_eq!(plan(&request, None, later), Plan::Remove);
    }
}
