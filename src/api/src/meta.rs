//! Object metadata: accessors over JSON values, timestamps, and a cheap look at the head of stored bytes.
//!
//! Accessors never fail: a missing or mistyped field reads as empty. [`Head`] walks stored bytes once and
//! keeps what selectors and owners need, without building the whole object.

mod head;

use crate::kinds::Kind;
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use head::{Head, field_value};

/// Labels and annotations are maps of text; so are many other fields.
pub type Object = Map<String, Value>;

/// The value at a dotted path of object fields.
pub fn at<'a>(obj: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(obj, |v, field| v.get(field))
}

/// The text at a dotted path, or `""`.
pub fn str_at<'a>(obj: &'a Value, path: &str) -> &'a str {
    at(obj, path).and_then(Value::as_str).unwrap_or("")
}

/// The whole number at a dotted path.
pub fn int_at(obj: &Value, path: &str) -> Option<i64> {
    at(obj, path).and_then(Value::as_i64)
}

/// The truth at a dotted path; missing is false.
pub fn bool_at(obj: &Value, path: &str) -> bool {
    at(obj, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of the list at a dotted path; missing is empty.
pub fn list_at<'a>(obj: &'a Value, path: &str) -> &'a [Value] {
    at(obj, path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The object at a dotted path.
pub fn object_at<'a>(obj: &'a Value, path: &str) -> Option<&'a Object> {
    at(obj, path).and_then(Value::as_object)
}

/// The object at a dotted path, made when missing or of another type.
pub fn object_mut<'a>(obj: &'a mut Value, path: &str) -> &'a mut Object {
    let mut here = obj;
    if !path.is_empty() {
        for field in path.split('.') {
            here = into_object(here).entry(field).or_insert(Value::Null);
        }
    }
    into_object(here)
}

fn into_object(value: &mut Value) -> &mut Object {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // Just made an object.
        _ => unreachable!("value was replaced by an object"),
    }
}

/// Sets a field at a dotted path.
pub fn set(obj: &mut Value, path: &str, value: impl Into<Value>) {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    object_mut(obj, parent).insert(field.to_owned(), value.into());
}

/// Removes the field at a dotted path.
pub fn remove(obj: &mut Value, path: &str) -> Option<Value> {
    let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
    let mut here = obj;
    if !parent.is_empty() {
        for step in parent.split('.') {
            here = here.get_mut(step)?;
        }
    }
    here.as_object_mut()?.remove(field)
}

/// Copies the field at a path from one object to another; a missing field is removed.
pub fn copy(from: &Value, to: &mut Value, path: &str) {
    match at(from, path) {
        Some(value) => set(to, path, value.clone()),
        None => {
            remove(to, path);
        }
    }
}

macro_rules! text_fields {
    ($($(#[$doc:meta])* $get:ident $set:ident $field:literal;)*) => {$(
        $(#[$doc])*
        pub fn $get(obj: &Value) -> &str {
            obj.get("metadata").and_then(|m| m.get($field)).and_then(Value::as_str).unwrap_or("")
        }
        /// Sets what the accessor of nearly the same name reads; empty text removes it.
        pub fn $set(obj: &mut Value, value: &str) {
            let metadata = object_mut(obj, "metadata");
            if value.is_empty() {
                metadata.remove($field);
            } else {
                metadata.insert($field.to_owned(), Value::from(value));
            }
        }
    )*};
}

text_fields! {
    /// `metadata.name`.
    name set_name "name";
    /// `metadata.generateName`.
    generate_name set_generate_name "generateName";
    /// `metadata.namespace`.
    namespace set_namespace "namespace";
    /// `metadata.uid`.
    uid set_uid "uid";
    /// `metadata.resourceVersion`.
    resource_version set_resource_version "resourceVersion";
    /// `metadata.creationTimestamp`.
    creation_timestamp set_creation_timestamp "creationTimestamp";
    /// `metadata.deletionTimestamp`.
    deletion_timestamp set_deletion_timestamp "deletionTimestamp";
}

/// `apiVersion`.
pub fn api_version(obj: &Value) -> &str {
    obj.get("apiVersion").and_then(Value::as_str).unwrap_or("")
}

/// `kind`.
pub fn kind(obj: &Value) -> &str {
    obj.get("kind").and_then(Value::as_str).unwrap_or("")
}

/// Sets `apiVersion` and `kind`.
pub fn set_type(obj: &mut Value, kind: &Kind) {
    let map = into_object(obj);
    map.insert("apiVersion".into(), kind.api_version().into_owned().into());
    map.insert("kind".into(), kind.kind.clone().into_owned().into());
}

/// `metadata.generation`, 0 when absent.
pub fn generation(obj: &Value) -> i64 {
    int_at(obj, "metadata.generation").unwrap_or(0)
}

/// Sets `metadata.generation`; 0 removes it.
pub fn set_generation(obj: &mut Value, generation: i64) {
    let metadata = object_mut(obj, "metadata");
    if generation == 0 {
        metadata.remove("generation");
    } else {
        metadata.insert("generation".into(), generation.into());
    }
}

/// Whether deletion has begun.
pub fn is_deleting(obj: &Value) -> bool {
    !deletion_timestamp(obj).is_empty()
}

/// `metadata.deletionGracePeriodSeconds`.
pub fn deletion_grace(obj: &Value) -> Option<i64> {
    int_at(obj, "metadata.deletionGracePeriodSeconds")
}

/// One label.
pub fn label<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    labels(obj)?.get(key)?.as_str()
}

/// `metadata.labels`.
pub fn labels(obj: &Value) -> Option<&Object> {
    object_at(obj, "metadata.labels")
}

/// Sets one label.
pub fn set_label(obj: &mut Value, key: &str, value: &str) {
    object_mut(obj, "metadata.labels").insert(key.to_owned(), value.into());
}

/// One annotation.
pub fn annotation<'a>(obj: &'a Value, key: &str) -> Option<&'a str> {
    annotations(obj)?.get(key)?.as_str()
}

/// `metadata.annotations`.
pub fn annotations(obj: &Value) -> Option<&Object> {
    object_at(obj, "metadata.annotations")
}

/// Sets one annotation.
pub fn set_annotation(obj: &mut Value, key: &str, value: &str) {
    object_mut(obj, "metadata.annotations").insert(key.to_owned(), value.into());
}

/// `metadata.ownerReferences`.
pub fn owner_references(obj: &Value) -> &[Value] {
    list_at(obj, "metadata.ownerReferences")
}

/// The owner that manages the object.
pub fn controller(obj: &Value) -> Option<&Value> {
    owner_references(obj).iter().find(|r| bool_at(r, "controller"))
}

/// `metadata.finalizers`.
pub fn finalizers(obj: &Value) -> Vec<&str> {
    list_at(obj, "metadata.finalizers")
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// Sets `metadata.finalizers`; an empty list removes the field.
pub fn set_finalizers(obj: &mut Value, finalizers: &[&str]) {
    let metadata = object_mut(obj, "metadata");
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.to_vec().into());
    }
}

/// Sets what the server gives every new object.
pub fn fill_system_fields(obj: &mut Value, uid: &str, now: SystemTime) {
    set_uid(obj, uid);
    set_creation_timestamp(obj, &timestamp(now));
    remove(obj, "metadata.deletionTimestamp");
    remove(obj, "metadata.deletionGracePeriodSeconds");
    remove(obj, "metadata.selfLink");
}

/// `2026-01-02T03:04:05Z`.
pub fn timestamp(time: SystemTime) -> String {
    let (s, _) = unix(time);
    format_seconds(s) + "Z"
}

/// `2026-01-02T03:04:05.000006Z`, the form of Leases and events.
pub fn micro_timestamp(time: SystemTime) -> String {
    let (s, nanos) = unix(time);
    format!("{}.{:06}Z", format_seconds(s), nanos / 1000)
}

fn unix(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(d) => (d.as_secs().min(i64::MAX as u64) as i64, d.subsec_nanos()),
        Err(before) => (-(before.duration().as_secs().min(i64::MAX as u64) as i64), 0),
    }
}

fn format_seconds(unix_seconds: i64) -> String {
    let stamp = jiff::Timestamp::from_second(unix_seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    stamp.strftime("%Y-%m-%dT%H:%M:%S").to_string()
}

/// Reads an RFC 3339 time.
pub fn parse_timestamp(text: &str) -> Option<SystemTime> {
    let stamp: jiff::Timestamp = text.parse().ok()?;
    let seconds = stamp.as_second();
    let nanos = u64::try_from(stamp.subsec_nanosecond()).unwrap_or(0);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    if seconds >= 0 {
        UNIX_EPOCH
            .checked_add(whole)?
            .checked_add(Duration::from_nanos(nanos))
    } else {
        UNIX_EPOCH.checked_sub(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn accessors_read_and_write() {
        let mut obj = json!({"metadata": {"name": "a", "labels": {"x": "y"}, "finalizers": ["f"],
            "ownerReferences": [{"uid": "1"}, {"uid": "2", "controller": true}]}});
        assert_eq!(name(&obj), "a");
        assert_eq!(label(&obj, "x"), Some("y"));
        assert_eq!(finalizers(&obj), ["f"]);
        assert_eq!(str_at(controller(&obj).unwrap(), "uid"), "2");
        set_resource_version(&mut obj, "7");
        assert_eq!(resource_version(&obj), "7");
        set_resource_version(&mut obj, "");
        assert!(at(&obj, "metadata.resourceVersion").is_none());
        set_finalizers(&mut obj, &[]);
        assert!(at(&obj, "metadata.finalizers").is_none());
        let mut odd = json!({"metadata": 7});
        assert_eq!(name(&odd), "");
        set_label(&mut odd, "a", "b");
        assert_eq!(label(&odd, "a"), Some("b"));
        set(&mut odd, "spec.a.b", 1);
        assert_eq!(int_at(&odd, "spec.a.b"), Some(1));
        assert_eq!(remove(&mut odd, "spec.a.b"), Some(json!(1)));
        assert_eq!(remove(&mut odd, "spec.x.b"), None);
    }

    #[test]
    fn times_round_trip() {
        let time = UNIX_EPOCH + Duration::new(1_767_323_045, 6_007);
        assert_eq!(timestamp(time), "2026-01-02T03:04:05Z");
        assert_eq!(micro_timestamp(time), "2026-01-02T03:04:05.000006Z");
        assert_eq!(
            parse_timestamp("2026-01-02T03:04:05Z"),
            Some(UNIX_EPOCH + Duration::from_secs(1_767_323_045))
        );
        assert_eq!(
            parse_timestamp("2026-01-02T04:04:05+01:00"),
            parse_timestamp("2026-01-02T03:04:05Z")
        );
        assert_eq!(parse_timestamp("yesterday"), None);
    }
}
