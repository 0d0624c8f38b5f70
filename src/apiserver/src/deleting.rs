//! DELETE of one object and of a collection.
//!
//! An object goes at once, or it is marked and goes when what holds it back
//! is done: finalizers, a pod's time to stop, a namespace's content. What
//! "finalizers" a deletion adds is the propagation policy; the garbage
//! collector acts on them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta::{self, Head};
use skiff_api::schema::Schema;
use skiff_api::status::{FieldError, MODIFIED, Status};
use skiff_store::Entry;

use crate::admission::{self, Operation};
use crate::definitions;
use crate::selecting::Selection;
use crate::server::{ApiServer, Call};
use crate::services::Claims;
use crate::writing::{Failure, decode_body, deletion_is_complete};
use crate::{Body, codec, respond};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Time to stop of a pod that does not say.
const DEFAULT_GRACE_SECONDS: i64 = 30;
const MAX_ATTEMPTS: usize = 16;
/// Kinds whose DELETE answers with the object rather than with a `Status`.
const ANSWER_WITH_OBJECT: &[&str] = &[
    "pods",
    "podtemplates",
    "persistentvolumes",
    "persistentvolumeclaims",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "csidrivers",
    "csinodes",
    "csistoragecapacities",
    "storageclasses",
    "volumeattachments",
    "volumeattributesclasses",
];

/// Checked `DeleteOptions`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub grace: Option<i64>,
    uid: Option<String>,
    resource_version: Option<String>,
    propagation: Option<Propagation>,
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Orphan,
    Background,
    Foreground,
}

impl DeleteOptions {
    /// Reads the body and the query; the body wins.
    pub(crate) fn parse(call: &Call, body: &[u8]) -> Result<Self, Status> {
        let mut raw = Value::Null;
        if !body.is_empty() {
            let view = Schema::builtin()
                .kind("", "v1", "DeleteOptions")
                .unwrap_or_else(|| Schema::untyped().root());
            raw = decode_body(call, view, body)?
                .map_err(|e| Status::bad_request(format!("decoding DeleteOptions: {e}")))?
                .value;
        }
        Self::from_parts(call, &raw)
    }

    /// From a `DeleteOptions` object and the query.
    pub(crate) fn from_parts(call: &Call, raw: &Value) -> Result<Self, Status> {
        let invalid = |error: FieldError| {
            Status::invalid("DeleteOptions.meta.k8s.io", "", std::slice::from_ref(&error))
        };
        let policy = raw["propagationPolicy"]
            .as_str()
            .or_else(|| call.query.get("propagationPolicy"));
        let orphan = raw["orphanDependents"].as_bool().or_else(|| {
            call.query
                .get("orphanDependents")
                .map(|v| v == "true" || v == "1")
        });
        if policy.is_some() && orphan.is_some() {
            let text = "orphanDependents and deletionPropagation cannot be both set";
            return Err(invalid(FieldError::invalid(
                "propagationPolicy",
                policy.unwrap_or_default(),
                text,
            )));
        }
        let propagation = match (policy, orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some(other), _) => {
                let supported = &["Background", "Foreground", "Orphan"];
                return Err(invalid(FieldError::not_supported(
                    "propagationPolicy",
                    other,
                    supported,
                )));
            }
            (None, None) => None,
        };
        let grace = match raw["gracePeriodSeconds"].as_i64() {
            Some(grace) => Some(grace),
            None => call.query.number::<i64>("gracePeriodSeconds")?,
        };
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        Ok(Self {
            // A negative time means "as soon as possible, but gracefully".
            grace: grace.map(|g| if g < 0 { 1 } else { g }),
            uid: text(&raw["preconditions"]["uid"]),
            resource_version: text(&raw["preconditions"]["resourceVersion"]),
            propagation,
            dry_run: call.dry_run()? || meta::list_at(raw, "dryRun").iter().any(|v| v == "All"),
        })
    }

    fn check(&self, resource: &str, object: &Value) -> Result<(), Status> {
        let name = meta::name(object);
        for (field, label, want, have) in [
            ("UID", "UID", &self.uid, meta::uid(object)),
            (
                "ResourceVersion",
                "ResourceVersion",
                &self.resource_version,
                meta::resource_version(object),
            ),
        ] {
            if let Some(want) = want
                && want != have
            {
                let why = format!(
                    "Precondition failed: {field} in precondition: {want}, {label} in object meta: {have}"
                );
                return Err(Status::conflict(resource, name, &why));
            }
        }
        Ok(())
    }

    /// The finalizers an object has once its deletion has begun.
    fn finalizers(&self, object: &Value) -> Vec<String> {
        let mut finalizers: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
        let Some(propagation) = self.propagation else {
            return finalizers;
        };
        finalizers.retain(|f| f != ORPHAN && f != FOREGROUND);
        match propagation {
            Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
            Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
            Propagation::Background => {}
        }
        finalizers
    }
}

/// What a DELETE does to an object.
#[derive(Debug, PartialEq)]
enum Step {
    /// Remove it now.
    Remove,
    /// Store this state: deletion has begun.
    Mark(Box<Value>),
    /// Nothing: deletion has begun already and this request does not hasten it.
    Wait,
}

/// Decides, purely.
fn plan(object: &Value, graceful: bool, options: &DeleteOptions, now: std::time::SystemTime) -> Step {
    let deleting = meta::is_deleting(object);
    let mut grace = 0;
    if graceful {
        let scheduled = !meta::str_at(object, "spec.nodeName").is_empty();
        let finished = matches!(meta::str_at(object, "status.phase"), "Succeeded" | "Failed");
        let wanted = options
            .grace
            .or_else(|| meta::int_at(object, "spec.terminationGracePeriodSeconds"))
            .unwrap_or(DEFAULT_GRACE_SECONDS)
            .max(0);
        grace = if scheduled && !finished { wanted } else { 0 };
        if let Some(under_way) = meta::deletion_grace(object).filter(|_| deleting) {
            if options.grace.is_none() && under_way > 0 && grace > 0 {
                grace = under_way;
            }
            grace = grace.min(under_way);
        }
    }
    let finalizers = options.finalizers(object);
    let namespace_content = meta::kind(object) == "Namespace"
        && meta::api_version(object) == "v1"
        && !meta::list_at(object, "spec.finalizers").is_empty();
    if grace == 0 && finalizers.is_empty() && !namespace_content {
        return Step::Remove;
    }
    let mut marked = object.clone();
    let names: Vec<&str> = finalizers.iter().map(String::as_str).collect();
    meta::set_finalizers(&mut marked, &names);
    let hastened = meta::deletion_grace(object) != Some(grace);
    if !deleting || hastened {
        let end = now + Duration::from_secs(grace.unsigned_abs());
        let end = match meta::parse_timestamp(meta::deletion_timestamp(object)).filter(|_| deleting) {
            // A shorter time counts from when deletion began.
            Some(old_end) => {
                let began =
                    old_end - Duration::from_secs(meta::deletion_grace(object).unwrap_or(0).unsigned_abs());
                began + Duration::from_secs(grace.unsigned_abs())
            }
            None => end,
        };
        meta::set(&mut marked, "metadata.deletionTimestamp", meta::timestamp(end));
        meta::set(&mut marked, "metadata.deletionGracePeriodSeconds", grace);
        if !deleting && meta::generation(object) > 0 {
            meta::set_generation(&mut marked, meta::generation(object) + 1);
        }
    }
    if namespace_content {
        meta::set(&mut marked, "status.phase", "Terminating");
    }
    if marked == *object {
        Step::Wait
    } else {
        Step::Mark(Box::new(marked))
    }
}

/// What became of an object.
pub(crate) struct Deleted {
    /// Its last (or marked) state, in the stored version.
    pub bytes: Bytes,
    /// Whether it is gone.
    pub gone: bool,
}

impl ApiServer {
    /// Answers a DELETE.
    pub(crate) async fn delete(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        let options = DeleteOptions::parse(call, &body)?;
        let deleted = self.delete_object(call, &call.info.name, &options).await?;
        self.deletion_answer(call, &deleted, &options)
    }

    /// The answer to a deletion.
    pub(crate) fn deletion_answer(
        &self,
        call: &Call,
        deleted: &Deleted,
        options: &DeleteOptions,
    ) -> Result<Response<Body>, Status> {
        if deleted.gone && !ANSWER_WITH_OBJECT.contains(&&*call.kind.plural) {
            let object = codec::decode(&deleted.bytes)?;
            let status = Status::success(&call.resource(), meta::name(&object), meta::uid(&object));
            return Ok(respond::encoded(
                StatusCode::OK,
                call.accept,
                status.to_bytes().into(),
            ));
        }
        let waits = !deleted.gone && options.propagation == Some(Propagation::Foreground);
        let code = if waits {
            StatusCode::ACCEPTED
        } else {
            StatusCode::OK
        };
        respond::object(self, call, code, codec::present(&call.kind, &deleted.bytes)?)
    }

    /// Deletes one object of the call's kind and namespace.
    pub(crate) async fn delete_object(
        &self,
        call: &Call,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let kind = &call.kind;
        let resource = call.resource();
        let key = kind.key(&call.info.namespace, name);
        let strict = options.resource_version.is_some();
        for _ in 0..MAX_ATTEMPTS {
            let entry = self
                .store
                .get(&key)
                .ok_or_else(|| Status::not_found(&resource, name))?;
            match self.delete_entry(call, &entry, options).await {
                Ok(deleted) => return Ok(deleted),
                Err(Failure::Status(status)) => return Err(status),
                Err(Failure::Raced { .. }) if strict => {
                    return Err(Status::conflict(&resource, name, MODIFIED));
                }
                Err(Failure::Raced { .. }) => {}
            }
        }
        Err(Status::conflict(&resource, name, MODIFIED))
    }

    /// Deletes an object, or marks it.
    pub(crate) async fn delete_entry(
        &self,
        call: &Call,
        entry: &Entry,
        options: &DeleteOptions,
    ) -> Result<Deleted, Failure> {
        let mut object = codec::decode(&entry.value).map_err(Failure::Status)?;
        options
            .check(&call.resource(), &object)
            .map_err(Failure::Status)?;
        admission::validate(self, call, Operation::Delete, None, Some(&object)).map_err(Failure::Status)?;
        definitions::begin_deletion(&call.kind, &mut object, self.clock.now());
        let stored_kind = Arc::clone(self.stored_kind(&call.kind));
        match plan(&object, call.kind.traits.graceful, options, self.clock.now()) {
            Step::Wait => Ok(Deleted {
                bytes: entry.value.clone(),
                gone: false,
            }),
            Step::Remove if options.dry_run => Ok(Deleted {
                bytes: entry.value.clone(),
                gone: true,
            }),
            Step::Mark(marked) if options.dry_run => Ok(Deleted {
                bytes: codec::to_bytes(&marked),
                gone: false,
            }),
            Step::Remove => {
                let bytes = self.commit_delete(entry, &stored_kind, &object, &object).await?;
                Ok(Deleted { bytes, gone: true })
            }
            Step::Mark(marked) if deletion_is_complete(&marked) => {
                let bytes = self.commit_delete(entry, &stored_kind, &marked, &object).await?;
                Ok(Deleted { bytes, gone: true })
            }
            Step::Mark(marked) => {
                let bytes = self
                    .commit_put(&entry.key, &marked, Some(entry), Claims::default())
                    .await?;
                Ok(Deleted { bytes, gone: false })
            }
        }
    }

    /// Answers a DELETE of a collection with the list of what it deleted.
    pub(crate) async fn delete_collection(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        let options = DeleteOptions::parse(call, &body)?;
        let kind = &call.kind;
        let selection = Selection::parse(kind, &call.query)?;
        let namespace = Some(call.info.namespace.as_str()).filter(|ns| !ns.is_empty());
        let snapshot = self.store.snapshot();
        let mut chosen = Vec::new();
        for entry in snapshot.range(&kind.prefix_in(namespace), None) {
            let head = Head::parse(kind, &entry.value).map_err(Status::internal)?;
            if selection.as_ref().is_none_or(|s| s.matches(kind, &head)) {
                chosen.push(entry.clone());
            }
        }
        let mut items = Vec::with_capacity(chosen.len());
        for entry in chosen {
            let mut current = Some(entry);
            for _ in 0..MAX_ATTEMPTS {
                let Some(entry) = current.take() else { break };
                match self.delete_entry(call, &entry, &options).await {
                    Ok(deleted) => items.push(codec::present_value(kind, &deleted.bytes)?),
                    Err(Failure::Raced { .. }) => current = self.store.get(&entry.key),
                    Err(Failure::Status(status)) => return Err(status),
                }
            }
        }
        let list = json!({
            "kind": kind.list_kind, "apiVersion": kind.api_version(),
            "metadata": { "resourceVersion": self.store.revision().to_string() }, "items": items,
        });
        Ok(respond::encoded(
            StatusCode::OK,
            call.accept,
            codec::to_bytes(&list),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn pod(fields: Value) -> Value {
        let mut pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}, "status": {"phase": "Running"}});
        for (path, value) in fields.as_object().unwrap() {
            meta::set(&mut pod, path, value.clone());
        }
        pod
    }

    fn grace_of(step: &Step) -> Option<i64> {
        match step {
            Step::Mark(object) => meta::deletion_grace(object),
            _ => None,
        }
    }

    #[test]
    fn pods_get_their_time_unless_nothing_runs() {
        let with = |grace| DeleteOptions {
            grace,
            ..DeleteOptions::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(grace_of(&plan(&pod(json!({})), true, &with(None), now)), Some(20));
        assert_eq!(
            grace_of(&plan(&pod(json!({})), true, &with(Some(5)), now)),
            Some(5)
        );
        assert_eq!(plan(&pod(json!({})), true, &with(Some(0)), now), Step::Remove);
        assert_eq!(
            plan(&pod(json!({"spec.nodeName": ""})), true, &with(None), now),
            Step::Remove
        );
        assert_eq!(
            plan(&pod(json!({"status.phase": "Failed"})), true, &with(None), now),
            Step::Remove
        );
    }

    #[test]
    fn a_second_delete_hastens_but_never_delays() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        let dying = pod(json!({"metadata.deletionTimestamp": "1970-01-01T00:16:50Z",
            "metadata.deletionGracePeriodSeconds": 20}));
        let with = |grace| DeleteOptions {
            grace,
            ..DeleteOptions::default()
        };
        assert_eq!(plan(&dying, true, &with(None), now), Step::Wait);
        assert_eq!(plan(&dying, true, &with(Some(60)), now), Step::Wait);
        let Step::Mark(hastened) = plan(&dying, true, &with(Some(5)), now) else {
            panic!("not hastened")
        };
        assert_eq!(meta::deletion_timestamp(&hastened), "1970-01-01T00:16:35Z");
        assert_eq!(plan(&dying, true, &with(Some(0)), now), Step::Remove);
    }

    #[test]
    fn propagation_is_a_finalizer() {
        let now = UNIX_EPOCH;
        let object =
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c", "generation": 1}});
        let with = |propagation| DeleteOptions {
            propagation,
            ..DeleteOptions::default()
        };
        assert_eq!(plan(&object, false, &with(None), now), Step::Remove);
        assert_eq!(
            plan(&object, false, &with(Some(Propagation::Background)), now),
            Step::Remove
        );
        let Step::Mark(marked) = plan(&object, false, &with(Some(Propagation::Foreground)), now) else {
            panic!("removed");
        };
        assert_eq!(meta::finalizers(&marked), [FOREGROUND]);
        assert_eq!(meta::generation(&marked), 2);
        assert_eq!(plan(&marked, false, &with(None), now), Step::Wait);
        assert_eq!(
            plan(&marked, false, &with(Some(Propagation::Background)), now),
            Step::Remove
        );
    }

    #[test]
    fn namespaces_go_when_they_are_empty() {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "n"},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Step::Mark(marked) = plan(&namespace, false, &DeleteOptions::default(), UNIX_EPOCH) else {
            panic!("removed");
        };
        assert_eq!(meta::str_at(&marked, "status.phase"), "Terminating");
        assert!(meta::is_deleting(&marked));
    }
}
