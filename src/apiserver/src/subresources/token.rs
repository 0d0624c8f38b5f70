//! TokenRequest: tokens of a service account.

use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::status::{FieldError, Status};

use crate::auth::token::{Bound, Claims, Ref};
use crate::auth::unix_seconds;
use crate::server::{ApiServer, Call};
use crate::writing::{decode_as, new_uid};
use crate::{Body, codec, respond};

/// Life of a token that asks for none.
const DEFAULT_SECONDS: i64 = 3600;
/// Shortest life, as in Kubernetes.
const MIN_SECONDS: i64 = 600;
/// Longest life that may be asked for.
const MAX_SECONDS: i64 = 1 << 32;

impl ApiServer {
    /// Answers a TokenRequest.
    pub(super) async fn request_token(&self, call: &Call, body: &[u8]) -> Result<Response<Body>, Status> {
        let mut request = decode_as(call, "authentication.k8s.io", "v1", "TokenRequest", body)?;
        let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
        let invalid = |error| {
            Err(Status::invalid(
                "TokenRequest.authentication.k8s.io",
                name,
                &[error],
            ))
        };
        let seconds = meta::int_at(&request, "spec.expirationSeconds").unwrap_or(DEFAULT_SECONDS);
        if seconds < MIN_SECONDS {
            let text = "may not specify a duration less than 10 minutes";
            return invalid(FieldError::invalid("spec.expirationSeconds", seconds, text));
        }
        if seconds > MAX_SECONDS {
            let text = "may not specify a duration larger than 2^32 seconds";
            return invalid(FieldError::invalid("spec.expirationSeconds", seconds, text));
        }
        let account = self
            .object("serviceaccounts", namespace, name)
            .ok_or_else(|| Status::not_found("serviceaccounts", name))?;
        let bound = self.bound(call, &account, &request)?;
        let mut audiences: Vec<String> = meta::list_at(&request, "spec.audiences")
            .iter()
            .filter_map(Value::as_str)
            .filter(|a| !a.is_empty())
            .map(str::to_owned)
            .collect();
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let now = self.clock.now();
        let issued = unix_seconds(now);
        let claims = Claims {
            aud: audiences.clone(),
            exp: issued + seconds.unsigned_abs(),
            iat: issued,
            nbf: issued,
            iss: self.issuer.clone(),
            jti: new_uid(),
            kubernetes: bound,
            sub: format!("system:serviceaccount:{namespace}:{name}"),
        };
        let token = self.keys.sign(&claims).map_err(Status::internal)?;
        let end = now + Duration::from_secs(seconds.unsigned_abs());
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = seconds.into();
        request["metadata"] = json!({ "name": name, "namespace": namespace,
            "creationTimestamp": meta::timestamp(now) });
        request["status"] = json!({ "token": token, "expirationTimestamp": meta::timestamp(end) });
        Ok(respond::encoded(
            StatusCode::CREATED,
            call.accept,
            codec::to_bytes(&request),
        ))
    }

    /// The objects the token will live and die with.
    fn bound(&self, call: &Call, account: &Value, request: &Value) -> Result<Bound, Status> {
        let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
        let reference = |o: &Value| Ref {
            name: meta::name(o).to_owned(),
            uid: meta::uid(o).to_owned(),
        };
        let mut bound = Bound {
            namespace: namespace.to_owned(),
            serviceaccount: reference(account),
            ..Bound::default()
        };
        let wanted = &request["spec"]["boundObjectRef"];
        let object_name = wanted["name"].as_str().unwrap_or_default();
        let kind = wanted["kind"].as_str().unwrap_or_default();
        if let Some(node) = call.user.node_name() {
            // A kubelet gets tokens for the pods it runs, nothing else.
            let pod = self
                .object("pods", namespace, object_name)
                .filter(|_| kind == "Pod");
            let own = pod.is_some_and(|pod| {
                meta::str_at(&pod, "spec.nodeName") == node
                    && meta::str_at(&pod, "spec.serviceAccountName") == name
                    && wanted["uid"] == meta::uid(&pod)
            });
            if !own {
                let why = format!(
                    "node {node:?} can only request tokens bound to pods that run on it as this service account"
                );
                return Err(Status::forbidden("serviceaccounts/token", name, &why));
            }
        }
        let missing = |resource: &str| Status::not_found(resource, object_name);
        let same = |object: &Value, resource: &str| {
            let uid = wanted["uid"].as_str().unwrap_or_default();
            if uid.is_empty() || uid == meta::uid(object) {
                return Ok(());
            }
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            Err(Status::conflict(resource, object_name, &why))
        };
        match kind {
            "" => {}
            "Pod" => {
                let pod = self
                    .object("pods", namespace, object_name)
                    .ok_or_else(|| missing("pods"))?;
                same(&pod, "pods")?;
                if meta::str_at(&pod, "spec.serviceAccountName") != name {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {name:?} to pod running with different serviceaccount name."
                    )));
                }
                let node_name = meta::str_at(&pod, "spec.nodeName");
                if !node_name.is_empty() {
                    let uid = self
                        .object("nodes", "", node_name)
                        .map(|n| meta::uid(&n).to_owned());
                    bound.node = Some(Ref {
                        name: node_name.to_owned(),
                        uid: uid.unwrap_or_default(),
                    });
                }
                bound.pod = Some(reference(&pod));
            }
            "Secret" => {
                let secret = self
                    .object("secrets", namespace, object_name)
                    .ok_or_else(|| missing("secrets"))?;
                same(&secret, "secrets")?;
                bound.secret = Some(reference(&secret));
            }
            "Node" => {
                let node = self
                    .object("nodes", "", object_name)
                    .ok_or_else(|| missing("nodes"))?;
                same(&node, "nodes")?;
                bound.node = Some(reference(&node));
            }
            other => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {name:?} to object of kind {other:?}"
                )));
            }
        }
        Ok(bound)
    }
}
