//! Subresources and reviews: what is neither a plain read nor a plain write.
//!
//! Views (`status`, `ephemeralcontainers`, `resize`, `approval`, `finalize`)
//! take the ways of [`crate::reading`] and [`crate::writing`]; the strategy of
//! the kind knows which part of the object each may change.

mod connect;
mod pods;
mod reviews;
mod scale;
mod token;

use std::sync::Arc;

use http::request::Parts;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::status::{MODIFIED, Status};

use crate::request::read_body;
use crate::server::{ApiServer, Call, method_not_allowed};
use crate::services::Claims;
use crate::writing::Failure;
use crate::{Body, codec, respond};

/// How often an amendment starts over when others come between.
const MAX_ATTEMPTS: usize = 16;

impl ApiServer {
    /// Answers a request for a subresource or a review.
    pub(crate) async fn subresource(
        &self,
        mut call: Call,
        parts: Parts,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        let plural = call.kind.plural.to_string();
        match (plural.as_str(), call.sub_name()) {
            ("pods", "log") => self.pod_log(&call).await,
            ("pods", "exec" | "attach" | "portforward") => self.pod_stream(&call, parts, body).await,
            ("pods" | "services" | "nodes", "proxy") => self.proxy(&call, parts, body).await,
            ("pods", "binding") => {
                let body = read_body(body).await?;
                self.bind(&call, &body).await
            }
            ("bindings", "") => {
                // The old way: a Binding named after its pod.
                let body = read_body(body).await?;
                call.kind = Arc::clone(self.core("pods"));
                self.bind(&call, &body).await
            }
            ("pods", "eviction") => {
                let body = read_body(body).await?;
                self.evict(&call, &body).await
            }
            ("serviceaccounts", "token") => {
                let body = read_body(body).await?;
                self.request_token(&call, &body).await
            }
            (_, "scale") => {
                let body = read_body(body).await?;
                self.scale(&call, body).await
            }
            (_, "") => {
                let body = read_body(body).await?;
                self.review(&call, &body)
            }
            _ => match call.info.verb {
                "get" => self.get(&call),
                "update" | "patch" => {
                    let body = read_body(body).await?;
                    self.write(&call, body).await
                }
                _ => Err(method_not_allowed()),
            },
        }
    }

    /// Changes a stored object without admission and validation, for the
    /// server's own rules. `change` returns false to leave it as it is.
    pub(crate) async fn amend(
        &self,
        call: &Call,
        key: &str,
        name: &str,
        mut change: impl FnMut(&mut Value) -> Result<bool, Status>,
    ) -> Result<Value, Status> {
        let resource = call.resource();
        for _ in 0..MAX_ATTEMPTS {
            let entry = self
                .store
                .get(key)
                .ok_or_else(|| Status::not_found(&resource, name))?;
            let mut object = codec::decode(&entry.value)?;
            if !change(&mut object)? || call.dry_run()? {
                return Ok(object);
            }
            match self
                .commit_put(key, &object, Some(&entry), Claims::default())
                .await
            {
                Ok(bytes) => return codec::decode(&bytes),
                Err(Failure::Status(status)) => return Err(status),
                Err(Failure::Raced { .. }) => {}
            }
        }
        Err(Status::conflict(&resource, name, MODIFIED))
    }
}

/// A plain success.
fn success(call: &Call, code: StatusCode) -> Response<Body> {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "code": code.as_u16() });
    respond::encoded(code, call.accept, codec::to_bytes(&status))
}
