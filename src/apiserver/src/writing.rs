//! CREATE, UPDATE and PATCH: one way for all of them.
//!
//! ```text
//! decode → defaults → mutating admission → defaults → storage version → strategy
//!   → managedFields → validation → validating admission → allocation → commit
//! ```
//!
//! A change reads the object, computes the new one and commits it on the
//! condition that nothing came between. When something did, a request that
//! names a resourceVersion fails with 409 and any other starts over.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::Value;
use skiff_api::fields::{self, DecodeError};
use skiff_api::kinds::Kind;
use skiff_api::names;
use skiff_api::protobuf::{self, Envelope};
use skiff_api::schema::{Schema, Struct, View};
use skiff_api::status::{FieldError, MODIFIED, Status};
use skiff_api::{conversion, defaults, meta, strategy, validation};
use skiff_store::{CommitError, Durability, Entry, Op, Precondition, Txn};

use crate::admission::{self, Operation};
use crate::definitions;
use crate::managed::Manager;
use crate::negotiate::{Format, body_format};
use crate::server::{ApiServer, Call};
use crate::services::{self, Claims};
use crate::{Body, codec, respond};

/// How often a change starts over when others come between.
const MAX_ATTEMPTS: usize = 16;
/// How many names are tried for `generateName`.
const MAX_GENERATED_NAMES: usize = 8;

/// A committed (or, in a dry run, computed) object.
pub struct Written {
    /// Bytes in the stored version.
    pub bytes: Bytes,
}

/// Why a commit must be tried again, or cannot be.
#[allow(clippy::large_enum_variant)]
pub enum Failure {
    /// The named key changed.
    Raced {
        /// The key.
        key: String,
    },
    /// Anything else.
    Status(Status),
}

/// The schema of objects of a kind.
pub fn schema_of(kind: &Kind) -> View<'_> {
    if let Some(custom) = &kind.custom {
        return custom.view();
    }
    let schema = Schema::builtin();
    schema
        .kind(&kind.group, &kind.version, &kind.kind)
        .unwrap_or_else(|| Schema::untyped().root())
}

fn decode_error(error: DecodeError, kind: &str, version: &str) -> Status {
    match error {
        DecodeError::TooLarge(_) => Status::too_large(&error.to_string()),
        _ => Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
        )),
    }
}

/// Handles what `fieldValidation` makes of unknown and duplicate fields.
pub fn judge_fields(
    call: &Call,
    kind: &str,
    version: &str,
    decoded: fields::Decoded,
) -> Result<Value, Status> {
    match call.query.get("fieldValidation") {
        Some("Ignore") => {}
        Some("Strict") => {
            if let Some(error) = decoded.strict_error() {
                return Err(Status::bad_request(format!(
                    "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
                )));
            }
        }
        None | Some("Warn") => decoded
            .problems
            .iter()
            .for_each(|problem| call.warn(problem.clone())),
        Some(other) => {
            let supported = &["", "Ignore", "Strict", "Warn"];
            let error = FieldError::not_supported("fieldValidation", other, supported);
            return Err(Status::invalid("CreateOptions.meta.k8s.io", "", &[error]));
        }
    }
    Ok(decoded.value)
}

/// An object of the given type from a body.
pub fn decode_as(call: &Call, group: &str, version: &str, kind: &str, body: &[u8]) -> Result<Value, Status> {
    let view = Schema::builtin()
        .kind(group, version, kind)
        .unwrap_or_else(|| Schema::untyped().root());
    decode_by(call, view, (group, version, kind), body)
}

/// An object of the given group, version and kind, by its schema.
fn decode_by(
    call: &Call,
    view: View<'_>,
    (group, version, kind): (&str, &str, &str),
    body: &[u8],
) -> Result<Value, Status> {
    if body.is_empty() {
        return Err(Status::bad_request("the body of the request is empty"));
    }
    let decoded = decode_body(call, view, body)?;
    let decoded = decoded.map_err(|e| decode_error(e, kind, version))?;
    let mut object = judge_fields(call, kind, version, decoded)?;
    if !object.is_object() {
        return Err(Status::bad_request(format!(
            "the body is not an object of kind {kind}"
        )));
    }
    check_type(&mut object, group, version, kind)?;
    Ok(object)
}

/// A body in any of the encodings that are taken.
pub fn decode_body(
    call: &Call,
    view: View<'_>,
    body: &[u8],
) -> Result<Result<fields::Decoded, DecodeError>, Status> {
    Ok(match body_format(&call.headers)? {
        Format::Json => fields::decode_json(view, body),
        Format::Yaml => fields::decode_yaml(view, body),
        Format::Protobuf => {
            let kind = view.as_struct().map_or("", Struct::short_name);
            match Envelope::open(body).and_then(|envelope| envelope.object(view, kind)) {
                Ok(object) => fields::strict_check(view, object),
                Err(error @ protobuf::Error::NoForm { .. }) => {
                    return Err(Status::unsupported_media_type(error.to_string()));
                }
                Err(error) => Err(DecodeError::Syntax(error.to_string())),
            }
        }
    })
}

/// The object must be of the type asked for, or say nothing about its type.
fn check_type(object: &mut Value, group: &str, version: &str, kind: &str) -> Result<(), Status> {
    let expected = skiff_api::kinds::api_version(group, version);
    let (found_version, found_kind) = (
        meta::api_version(object).to_owned(),
        meta::kind(object).to_owned(),
    );
    if !found_version.is_empty() && found_version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({found_version}) does not match the expected API version ({expected})"
        )));
    }
    if !found_kind.is_empty() && found_kind != kind {
        return Err(Status::bad_request(format!(
            "the kind in the data ({found_kind}) does not match the expected kind ({kind})"
        )));
    }
    object["apiVersion"] = expected.into();
    object["kind"] = kind.into();
    Ok(())
}

impl ApiServer {
    /// The object of a body, of the call's kind, in the call's place.
    pub(crate) fn decode(&self, call: &Call, body: &[u8]) -> Result<Value, Status> {
        let kind = &call.kind;
        let names = (&*kind.group, &*kind.version, &*kind.kind);
        let mut object = decode_by(call, schema_of(kind), names, body)?;
        place(call, &mut object)?;
        Ok(object)
    }

    /// Answers a CREATE.
    pub(crate) async fn create(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        let object = self.decode(call, &body)?;
        let written = self.create_object(call, object, Manager::of(call)).await?;
        respond::object(
            self,
            call,
            StatusCode::CREATED,
            codec::present(&call.kind, &written.bytes)?,
        )
    }

    /// Stores a new object.
    pub(crate) async fn create_object(
        &self,
        call: &Call,
        object: Value,
        manager: Manager,
    ) -> Result<Written, Status> {
        let kind = &call.kind;
        let dry_run = call.dry_run()?;
        let resource = call.resource();
        definitions::may_create(kind)?;
        if !meta::resource_version(&object).is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        admission::await_account(self, call, &object).await;
        let _counting = match self.has_quota(call) {
            true => Some(self.quota.lock().await),
            false => None,
        };
        let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
        let mut names_tried = 0;
        for _ in 0..MAX_ATTEMPTS {
            let mut object = object.clone();
            if generated {
                let name = names::generate(meta::generate_name(&object), rand::rng().random());
                meta::set_name(&mut object, &name);
            }
            meta::fill_system_fields(&mut object, &new_uid(), self.clock.now());
            meta::set_resource_version(&mut object, "");
            defaults::apply(kind, &mut object);
            admission::mutate(self, call, Operation::Create, &mut object, None)?;
            defaults::apply(kind, &mut object);
            let stored_kind = Arc::clone(self.stored_kind(kind));
            if !kind.is_storage_version() {
                conversion::to_storage(kind, &mut object);
            }
            strategy::prepare_for_create(&stored_kind, &mut object);
            definitions::complete(self, call, &mut object);
            let mut claims = services::claim_for_create(self, &stored_kind, &mut object)?;
            manager.created(self.clock.now(), &stored_kind, &mut object);
            let errors = validation::create(&stored_kind, &object);
            let name = meta::name(&object).to_owned();
            if !errors.is_empty() {
                return Err(Status::invalid(&kind.group_kind(), &name, &errors));
            }
            claims.preconditions.extend(admission::validate(
                self,
                call,
                Operation::Create,
                Some(&object),
                None,
            )?);
            let key = kind.key(&call.info.namespace, &name);
            if dry_run {
                if self.store.get(&key).is_some() {
                    return Err(Status::already_exists(&resource, &name));
                }
                return Ok(Written {
                    bytes: codec::to_bytes(&object),
                });
            }
            match self.commit_put(&key, &object, None, claims).await {
                Ok(bytes) => return Ok(Written { bytes }),
                Err(Failure::Status(status)) => return Err(status),
                Err(Failure::Raced { key: raced }) if raced == key => {
                    names_tried += 1;
                    if !generated {
                        return Err(Status::already_exists(&resource, &name));
                    }
                    if names_tried == MAX_GENERATED_NAMES {
                        return Err(Status::generate_name_conflict(&resource, &name, 1));
                    }
                }
                // The namespace changed, or an address was taken in between: look again.
                Err(Failure::Raced { .. }) => {}
            }
        }
        Err(Status::server_timeout(&resource, "create", 1))
    }

    /// Whether new objects of the call are counted.
    fn has_quota(&self, call: &Call) -> bool {
        let prefix = self.core("resourcequotas").prefix_in(Some(&call.info.namespace));
        call.kind.namespaced && self.store.snapshot().range(&prefix, None).next().is_some()
    }

    /// Answers an UPDATE (PUT), of the object or of a subresource that is a view of it.
    pub(crate) async fn update(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        let object = self.decode(call, &body)?;
        check_name(call, &object)?;
        let kind = &call.kind;
        let missing = self
            .store
            .get(&kind.key(&call.info.namespace, &call.info.name))
            .is_none();
        if missing
            && kind.traits.create_on_update
            && call.sub_name().is_empty()
            && meta::uid(&object).is_empty()
        {
            self.require_create(call)?;
            let mut object = object;
            meta::set_name(&mut object, &call.info.name);
            if !meta::resource_version(&object).is_empty() {
                return Err(Status::not_found(&call.resource(), &call.info.name));
            }
            let written = self.create_object(call, object, Manager::of(call)).await?;
            return respond::object(
                self,
                call,
                StatusCode::CREATED,
                codec::present(kind, &written.bytes)?,
            );
        }
        let version = meta::resource_version(&object);
        if version.is_empty() && !kind.traits.unconditional_update {
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(Status::invalid(&kind.group_kind(), &call.info.name, &[error]));
        }
        let strict = !version.is_empty();
        let written = self
            .modify(call, strict, Manager::of(call), &mut |_| Ok(object.clone()))
            .await?;
        respond::object(self, call, StatusCode::OK, codec::present(kind, &written.bytes)?)
    }

    /// Creating by PUT or apply needs the right to create as well.
    pub(crate) fn require_create(&self, call: &Call) -> Result<(), Status> {
        let mut attributes = call.info.attributes();
        attributes.verb = "create";
        self.authorizer.require(&call.user, &attributes)
    }

    /// Reads, changes and stores an object. `change` gets the current object
    /// in the version of the call's kind and returns the new one. `strict`:
    /// give up when someone else was faster.
    pub(crate) async fn modify(
        &self,
        call: &Call,
        strict: bool,
        manager: Manager,
        change: &mut (dyn FnMut(&Value) -> Result<Value, Status> + Send),
    ) -> Result<Written, Status> {
        let kind = &call.kind;
        let resource = call.resource();
        let name = call.info.name.as_str();
        let dry_run = call.dry_run()?;
        let sub = call.sub.as_ref().map(|s| s.name.as_ref());
        for _ in 0..MAX_ATTEMPTS {
            let entry = self.find(call)?;
            let old_served = codec::present_value(kind, &entry.value)?;
            let mut new = change(&old_served)?;
            check_update(call, &new, &old_served)?;
            keep_system_fields(&mut new, &old_served);
            defaults::apply(kind, &mut new);
            admission::mutate(self, call, Operation::Update, &mut new, Some(&old_served))?;
            let stored_kind = Arc::clone(self.stored_kind(kind));
            let old = if kind.is_storage_version() {
                old_served
            } else {
                conversion::to_storage(kind, &mut new);
                codec::decode(&entry.value)?
            };
            strategy::prepare_for_update(&stored_kind, sub, &mut new, &old);
            strategy::stamp(&stored_kind, &mut new, &old, self.clock.now());
            definitions::complete(self, call, &mut new);
            let claims = services::claim_for_update(self, &stored_kind, &mut new, &old)?;
            manager.updated(self.clock.now(), &stored_kind, &mut new, &old);
            let errors = validation::update(&stored_kind, sub, &new, &old);
            if !errors.is_empty() {
                return Err(Status::invalid(&kind.group_kind(), name, &errors));
            }
            let mut claims = claims;
            claims.preconditions.extend(admission::validate(
                self,
                call,
                Operation::Update,
                Some(&new),
                Some(&old),
            )?);
            if new == old && claims.ops.is_empty() {
                return Ok(Written { bytes: entry.value });
            }
            if dry_run {
                return Ok(Written {
                    bytes: codec::to_bytes(&new),
                });
            }
            let committed = if deletion_is_complete(&new) {
                self.commit_delete(&entry, &stored_kind, &new, &old).await
            } else {
                self.commit_put(&entry.key, &new, Some(&entry), claims).await
            };
            match committed {
                Ok(bytes) => return Ok(Written { bytes }),
                Err(Failure::Status(status)) => return Err(status),
                Err(Failure::Raced { key }) if strict && key == *entry.key => {
                    return Err(Status::conflict(&resource, name, MODIFIED));
                }
                Err(Failure::Raced { .. }) => {}
            }
        }
        Err(Status::conflict(&resource, name, MODIFIED))
    }

    /// Writes an object on the condition that its key is absent (`current` is
    /// none) or unchanged. Returns the bytes as stored.
    pub(crate) async fn commit_put(
        &self,
        key: &str,
        object: &Value,
        current: Option<&Entry>,
        claims: Claims,
    ) -> Result<Bytes, Failure> {
        let value = codec::encode(object);
        let condition = match current {
            None => Precondition::Absent { key: key.to_owned() },
            Some(entry) => Precondition::Revision {
                key: key.to_owned(),
                mod_revision: entry.mod_revision,
            },
        };
        let mut txn = Txn::put(key, value.clone())
            .when(condition)
            .with_durability(durability(key));
        txn.preconditions.extend(claims.preconditions);
        txn.ops.extend(claims.ops);
        let revision = self.commit(txn).await?;
        Ok(match value.revision_at {
            None => value.bytes,
            Some(at) => {
                let mut bytes = Vec::with_capacity(value.bytes.len() + 20);
                bytes.extend_from_slice(&value.bytes[..at]);
                bytes.extend_from_slice(revision.to_string().as_bytes());
                bytes.extend_from_slice(&value.bytes[at..]);
                bytes.into()
            }
        })
    }

    /// Removes an object that must not have changed, with what it had claimed.
    /// Returns its last state at the revision of the removal.
    pub(crate) async fn commit_delete(
        &self,
        entry: &Entry,
        kind: &Kind,
        last: &Value,
        claimed: &Value,
    ) -> Result<Bytes, Failure> {
        let claims = services::release(self, kind, claimed);
        let mut txn = Txn::delete(&*entry.key)
            .when(Precondition::Revision {
                key: entry.key.to_string(),
                mod_revision: entry.mod_revision,
            })
            .with_durability(durability(&entry.key));
        txn.ops.extend(claims.ops);
        txn.preconditions.extend(claims.preconditions);
        let revision = self.commit(txn).await?;
        let mut last = last.clone();
        meta::set_resource_version(&mut last, &revision.to_string());
        Ok(codec::to_bytes(&last))
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Result<u64, Failure> {
        self.store.commit(txn).await.map_err(|error| match error {
            CommitError::Conflict { key, .. } => Failure::Raced { key },
            CommitError::Full => Failure::Status(Status::unavailable(error.to_string())),
            CommitError::Closed => Failure::Status(Status::unavailable("the server is shutting down")),
            other => Failure::Status(Status::internal(other)),
        })
    }

    /// Removes an operation's key if it is there; used for keys beside objects.
    pub(crate) fn release_key(key: String) -> Op {
        Op::Delete { key }
    }
}

/// Heartbeats and events may lose their last seconds in a power cut; nothing else may.
fn durability(key: &str) -> Durability {
    let relaxed = [
        "/registry/events/",
        "/registry/coordination.k8s.io/leases/kube-node-lease/",
    ];
    if relaxed.iter().any(|prefix| key.starts_with(prefix)) {
        Durability::Relaxed
    } else {
        Durability::Strict
    }
}

/// A random version 4 UUID.
pub fn new_uid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Puts an object into the namespace of the URL.
pub fn place(call: &Call, object: &mut Value) -> Result<(), Status> {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Default::default());
    }
    let found = meta::namespace(object).to_owned();
    if call.kind.namespaced {
        if !found.is_empty() && found != call.info.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta::set_namespace(object, &call.info.namespace);
    } else if !found.is_empty() {
        meta::set_namespace(object, "");
    }
    Ok(())
}

fn check_name(call: &Call, object: &Value) -> Result<(), Status> {
    let name = meta::name(object);
    if name.is_empty() {
        return Err(Status::bad_request("name must be provided"));
    }
    if name != call.info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    Ok(())
}

/// What a new state says about which object it is must be true of the old one.
fn check_update(call: &Call, new: &Value, old: &Value) -> Result<(), Status> {
    let resource = call.resource();
    let name = &call.info.name;
    let version = meta::resource_version(new);
    if !version.is_empty() && version != meta::resource_version(old) {
        return Err(Status::conflict(&resource, name, MODIFIED));
    }
    let (uid, have) = (meta::uid(new), meta::uid(old));
    if !uid.is_empty() && uid != have {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {have}");
        return Err(Status::conflict(&resource, name, &why));
    }
    Ok(())
}

/// Fields only the server sets stay as they are.
fn keep_system_fields(new: &mut Value, old: &Value) {
    for path in [
        "metadata.uid",
        "metadata.creationTimestamp",
        "metadata.deletionTimestamp",
        "metadata.deletionGracePeriodSeconds",
        "metadata.selfLink",
        "metadata.resourceVersion",
    ] {
        meta::copy(old, new, path);
    }
    if meta::generate_name(new).is_empty() {
        meta::copy(old, new, "metadata.generateName");
    }
}

/// Whether nothing holds back the end of an object that is being deleted.
pub fn deletion_is_complete(object: &Value) -> bool {
    meta::is_deleting(object)
        && meta::finalizers(object).is_empty()
        && meta::deletion_grace(object).unwrap_or(0) == 0
        && !(meta::kind(object) == "Namespace"
            && meta::api_version(object) == "v1"
            && !meta::list_at(object, "spec.finalizers").is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn uids_are_version_4() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(&uid[14..15], "4");
        assert_ne!(uid, new_uid());
    }

    #[test]
    fn deletion_waits_for_finalizers_grace_and_namespace_content() {
        let mut object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {}});
        assert!(!deletion_is_complete(&object));
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(deletion_is_complete(&object));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        assert!(!deletion_is_complete(&object));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        object["metadata"]["finalizers"] = json!(["a"]);
        assert!(!deletion_is_complete(&object));
        let mut namespace = json!({"kind": "Namespace", "apiVersion": "v1",
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"finalizers": ["kubernetes"]}});
        assert!(!deletion_is_complete(&namespace));
        namespace["spec"]["finalizers"] = json!([]);
        assert!(deletion_is_complete(&namespace));
    }
}
