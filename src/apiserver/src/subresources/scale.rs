//! `scale`: the number of replicas of any workload, in one form.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;
use skiff_api::schema::Schema;
use skiff_api::status::{FieldError, MODIFIED, Status};
use skiff_api::strategy::scale;
use skiff_api::{fields, meta, patch};

use crate::managed::Manager;
use crate::negotiate::content_type;
use crate::server::{ApiServer, Call};
use crate::writing::decode_as;
use crate::{Body, codec, respond};

fn scale_view() -> skiff_api::schema::View<'static> {
    Schema::builtin()
        .kind("autoscaling", "v1", "Scale")
        .unwrap_or_else(|| Schema::untyped().root())
}

fn check(call: &Call, new: &Value, current: &Value) -> Result<(), Status> {
    let name = call.info.name.as_str();
    if !meta::name(new).is_empty() && meta::name(new) != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta::name(new)
        )));
    }
    let version = meta::resource_version(new);
    if !version.is_empty() && version != meta::resource_version(current) {
        return Err(Status::conflict(&call.resource(), name, MODIFIED));
    }
    let replicas = meta::int_at(new, "spec.replicas").unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::invalid("Scale.autoscaling", name, &[error]));
    }
    Ok(())
}

impl ApiServer {
    /// Answers GET, PUT and PATCH of `scale`.
    pub(super) async fn scale(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        let workload = match call.info.verb {
            "get" => codec::decode(&self.find(call)?.value)?,
            "update" => {
                let wanted = decode_as(call, "autoscaling", "v1", "Scale", &body)?;
                let strict = !meta::resource_version(&wanted).is_empty();
                self.rescale(call, strict, &mut |_| Ok(wanted.clone())).await?
            }
            _ => {
                let media = content_type(&call.headers).unwrap_or_default().to_owned();
                self.rescale(call, false, &mut |current| {
                    let new = match media.as_str() {
                        "application/json-patch+json" => patch::json_patch(current.clone(), &body),
                        "application/merge-patch+json" => patch::merge_patch(current.clone(), &body),
                        "application/strategic-merge-patch+json" => {
                            patch::strategic_merge(scale_view(), current.clone(), &body)
                        }
                        "application/apply-patch+yaml" => {
                            let applied = fields::decode_yaml(scale_view(), &body)
                                .map_err(|e| Status::bad_request(e.to_string()))?;
                            let mut new = current.clone();
                            patch::merge(&mut new, applied.value);
                            Ok(new)
                        }
                        other => {
                            return Err(Status::unsupported_media_type(format!(
                                "the body of the request was in an unknown format: {other}"
                            )));
                        }
                    };
                    new.map_err(|e| Status::bad_request(e.to_string()))
                })
                .await?
            }
        };
        let scale = codec::to_bytes(&scale::of(&call.kind, &workload));
        Ok(respond::encoded(StatusCode::OK, call.accept, scale))
    }

    async fn rescale(
        &self,
        call: &Call,
        strict: bool,
        change: &mut (dyn FnMut(&Value) -> Result<Value, Status> + Send),
    ) -> Result<Value, Status> {
        let written = self
            .modify(call, strict, Manager::of(call), &mut |old| {
                let current = scale::of(&call.kind, old);
                let wanted = change(&current)?;
                check(call, &wanted, &current)?;
                let mut new = old.clone();
                scale::apply(&call.kind, &wanted, &mut new);
                Ok(new)
            })
            .await?;
        codec::decode(&written.bytes)
    }
}
