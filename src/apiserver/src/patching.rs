//! PATCH in its four forms: JSON patch, merge patch, strategic merge patch,
//! apply. The first three change what is there; apply may also create.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::Value;
use skiff_api::kinds::Kind;
use skiff_api::patch::PatchError;
use skiff_api::status::Status;
use skiff_api::{apply, fields, meta, patch};

use crate::managed::Manager;
use crate::negotiate::content_type;
use crate::server::{ApiServer, Call};
use crate::writing::{judge_fields, place, schema_of};
use crate::{Body, codec, respond};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn refused(error: PatchError) -> Status {
    let mut status = match error.code() {
        413 => Status::too_large(&error.to_string()),
        422 => {
            let mut status = Status::bad_request(error.to_string());
            status.reason = "Invalid".into();
            status
        }
        _ => Status::bad_request(error.to_string()),
    };
    status.code = error.code();
    status
}

impl ApiServer {
    /// Answers a PATCH, of the object or of a subresource that is a view of it.
    pub(crate) async fn patch(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        let media = content_type(&call.headers).unwrap_or_default().to_owned();
        if media == APPLY {
            return self.apply(call, body).await;
        }
        if call.query.flag("force") {
            return Err(Status::bad_request(
                "force may not be specified for non-apply patch",
            ));
        }
        let custom = call.kind.traits.custom;
        if !matches!(media.as_str(), JSON | MERGE | STRATEGIC) || (custom && media == STRATEGIC) {
            let listed = if custom {
                [JSON, MERGE, APPLY].join(", ")
            } else {
                [JSON, MERGE, STRATEGIC, APPLY].join(", ")
            };
            return Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {listed}"
            )));
        }
        let view = schema_of(&call.kind);
        let written = self
            .modify(call, false, Manager::of(call), &mut |old| {
                call.warnings.lock().clear();
                patched(call, &media, view, old, &body)
            })
            .await?;
        respond::object(
            self,
            call,
            StatusCode::OK,
            codec::present(&call.kind, &written.bytes)?,
        )
    }

    async fn apply(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        if call.query.get("fieldManager").is_none() {
            return Err(Status::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            ));
        }
        let kind = &call.kind;
        let view = schema_of(kind);
        let looks_like_json = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let decoded = if looks_like_json {
            fields::decode_json(view, &body)
        } else {
            fields::decode_yaml(view, &body)
        };
        let decoded = decoded
            .map_err(|e| Status::bad_request(format!("error decoding the applied configuration: {e}")))?;
        let mut applied = judge_fields(call, &kind.kind, &kind.version, decoded)?;
        if !applied.is_object() {
            return Err(Status::bad_request("the applied configuration is not an object"));
        }
        let (version, kind_name) = (
            meta::api_version(&applied).to_owned(),
            meta::kind(&applied).to_owned(),
        );
        if version != kind.api_version() || kind_name != kind.kind {
            return Err(Status::bad_request(format!(
                "the applied configuration is a {kind_name} in {version}, expected {} in {}",
                kind.kind,
                kind.api_version()
            )));
        }
        place(call, &mut applied)?;
        let name = call.info.name.as_str();
        if meta::name(&applied).is_empty() {
            meta::set_name(&mut applied, name);
        } else if meta::name(&applied) != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({name})",
                meta::name(&applied)
            )));
        }
        let force = call.query.flag("force");
        let manager = Manager::of(call);
        let run = Applying {
            now: self.clock.now(),
            kind: Arc::clone(kind),
            manager: manager.clone(),
            applied,
            force,
        };
        // Between looking and creating someone else may create it: then it is a change after all.
        for _ in 0..4 {
            if self.store.get(&kind.key(&call.info.namespace, name)).is_none() {
                if !call.sub_name().is_empty() || !kind.serves("create") {
                    return Err(Status::not_found(&call.resource(), name));
                }
                self.require_create(call)?;
                let object = run.onto(None)?;
                match self.create_object(call, object, manager.clone().tracked()).await {
                    Ok(written) => {
                        let bytes = codec::present(kind, &written.bytes)?;
                        return respond::object(self, call, StatusCode::CREATED, bytes);
                    }
                    Err(status) if status.reason == "AlreadyExists" => continue,
                    Err(status) => return Err(status),
                }
            }
            let changed = self
                .modify(call, false, manager.clone().tracked(), &mut |old| {
                    run.onto(Some(old))
                })
                .await;
            match changed {
                Ok(written) => {
                    let bytes = codec::present(kind, &written.bytes)?;
                    return respond::object(self, call, StatusCode::OK, bytes);
                }
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::server_timeout(&call.resource(), "patch", 1))
    }
}

/// One configuration to be applied.
struct Applying {
    now: SystemTime,
    kind: Arc<Kind>,
    manager: Manager,
    applied: Value,
    force: bool,
}

impl Applying {
    fn onto(&self, live: Option<&Value>) -> Result<Value, Status> {
        self.manager
            .with_write(self.now, &self.kind, |write| {
                apply::apply(write, live, &self.applied, self.force)
            })
            .map_err(|error| error.status())
    }
}

fn patched(
    call: &Call,
    media: &str,
    view: skiff_api::schema::View<'_>,
    old: &Value,
    body: &[u8],
) -> Result<Value, Status> {
    let new = match media {
        JSON => patch::json_patch(old.clone(), body),
        MERGE => patch::merge_patch(old.clone(), body),
        _ => patch::strategic_merge(view, old.clone(), body),
    };
    let new = new.map_err(refused)?;
    let kind = &call.kind;
    if meta::api_version(&new) != meta::api_version(old) || meta::kind(&new) != meta::kind(old) {
        return Err(Status::bad_request("a patch cannot change apiVersion or kind"));
    }
    if meta::name(&new) != meta::name(old) || meta::namespace(&new) != meta::namespace(old) {
        return Err(Status::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            meta::name(&new),
            call.info.name
        )));
    }
    let checked = fields::strict_check(view, new).map_err(|e| {
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {e}",
            kind.kind, kind.version, kind.kind
        ))
    })?;
    judge_fields(call, &kind.kind, &kind.version, checked)
}
