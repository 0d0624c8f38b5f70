//! Object metadata: accessors over JSON values, timestamps, and a cheap look at the head of stored bytes.
//!
//! Accessors never fail: a missing or mistyped field reads as empty. [`Head`] walks stored bytes once and
//! keeps what selectors and owners need, without building the whole object.

use crate::kinds::Kind;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// What selectors, owners and lists need of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// `metadata.name`.
    pub name: Cow<'a, str>,
    /// `metadata.namespace`.
    pub namespace: Cow<'a, str>,
    /// `metadata.uid`.
    pub uid: Cow<'a, str>,
    /// `metadata.labels`.
    pub labels: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Whether deletion has begun.
    pub deleting: bool,
    /// Values of the kind's selectable fields, in the order of [`Kind::fields`].
    pub fields: Vec<Cow<'a, str>>,
}

impl<'a> Head<'a> {
    /// Reads the head of stored bytes.
    pub fn parse(kind: &Kind, bytes: &'a [u8]) -> Result<Head<'a>, serde_json::Error> {
        let mut de = serde_json::Deserializer::from_slice(bytes);
        let mut fields = vec![None; kind.fields.len()];
        let wanted: Vec<(usize, &str)> = kind
            .fields
            .iter()
            .enumerate()
            .map(|(i, f)| (i, &*f.path))
            .collect();
        let mut meta = HeadMeta::default();
        Top {
            wanted: &wanted,
            fields: &mut fields,
            meta: &mut meta,
        }
        .deserialize(&mut de)?;
        de.end()?;
        Ok(Head {
            name: meta.name.0,
            namespace: meta.namespace.0,
            uid: meta.uid.0,
            labels: meta.labels.0,
            deleting: !meta.deletion_timestamp.0.is_empty(),
            fields: fields
                .into_iter()
                .zip(&kind.fields)
                .map(|(value, f)| value.unwrap_or_else(|| Cow::Owned(f.default.to_string())))
                .collect(),
        })
    }

    /// A head that outlives the bytes.
    pub fn into_owned(self) -> Head<'static> {
        let own = |c: Cow<'a, str>| -> Cow<'static, str> { Cow::Owned(c.into_owned()) };
        Head {
            name: own(self.name),
            namespace: own(self.namespace),
            uid: own(self.uid),
            labels: self.labels.into_iter().map(|(k, v)| (own(k), own(v))).collect(),
            deleting: self.deleting,
            fields: self.fields.into_iter().map(own).collect(),
        }
    }

    /// One label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_ref())
    }

    /// One selectable field by label.
    pub fn field(&self, kind: &Kind, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" if kind.namespaced => Some(&self.namespace),
            _ => {
                let at = kind.fields.iter().position(|f| f.label == label)?;
                self.fields.get(at).map(AsRef::as_ref)
            }
        }
    }
}

/// The value of one selectable field of a whole object.
pub fn field_value<'a>(kind: &Kind, obj: &'a Value, label: &str) -> Option<Cow<'a, str>> {
    match label {
        "metadata.name" => Some(Cow::Borrowed(name(obj))),
        "metadata.namespace" if kind.namespaced => Some(Cow::Borrowed(namespace(obj))),
        _ => {
            let field = kind.field(label)?;
            let mut here = Some(obj);
            for step in field.path.split('.') {
                here = match here {
                    Some(Value::Array(items)) => items.first().and_then(|v| v.get(step)),
                    Some(other) => other.get(step),
                    None => None,
                };
            }
            Some(match here {
                Some(Value::String(s)) => Cow::Borrowed(s.as_str()),
                Some(v @ (Value::Number(_) | Value::Bool(_))) => Cow::Owned(v.to_string()),
                _ => Cow::Owned(field.default.to_string()),
            })
        }
    }
}

/// Text borrowed from the input where it has no escapes; `null` reads as empty.
#[derive(Debug, Clone, Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        de.deserialize_any(TextVisitor)
            .map(|t| Text(t.unwrap_or_default()))
    }
}

/// Scalars as text, everything else as nothing.
struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Option<Cow<'de, str>>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(v)))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(v.to_owned())))
    }
    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(if v { "true" } else { "false" })))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(v.to_string())))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(v.to_string())))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(v.to_string())))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

#[derive(Debug, Clone, Default)]
struct Labels<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Labels<'a> {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Labels<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Labels::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut labels = Vec::new();
                while let Some((Text(k), Text(v))) = map.next_entry::<Text<'de>, Text<'de>>()? {
                    labels.push((k, v));
                }
                Ok(Labels(labels))
            }
        }
        de.deserialize_any(V)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    namespace: Text<'a>,
    #[serde(borrow)]
    uid: Text<'a>,
    #[serde(borrow)]
    deletion_timestamp: Text<'a>,
    #[serde(borrow)]
    labels: Labels<'a>,
}

/// The top level: metadata by name, everything else by the wanted paths.
struct Top<'x, 'de> {
    wanted: &'x [(usize, &'x str)],
    fields: &'x mut Vec<Option<Cow<'de, str>>>,
    meta: &'x mut HeadMeta<'de>,
}

impl<'de> DeserializeSeed<'de> for Top<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            if key == "metadata" {
                *self.meta = map.next_value()?;
            } else {
                step(&key, self.wanted, self.fields, &mut map)?;
            }
        }
        Ok(())
    }
}

/// Descends into one field if a wanted path leads through it.
fn step<'de, A: MapAccess<'de>>(
    key: &str,
    wanted: &[(usize, &str)],
    fields: &mut Vec<Option<Cow<'de, str>>>,
    map: &mut A,
) -> Result<(), A::Error> {
    let below: Vec<(usize, &str)> = wanted
        .iter()
        .filter_map(|(i, path)| {
            let rest = path.strip_prefix(key)?;
            if rest.is_empty() {
                Some((*i, ""))
            } else {
                rest.strip_prefix('.').map(|r| (*i, r))
            }
        })
        .collect();
    if below.is_empty() {
        map.next_value::<IgnoredAny>()?;
        Ok(())
    } else {
        map.next_value_seed(Walk {
            wanted: &below,
            fields,
        })
    }
}

/// Inside a field: scalars are kept, objects and the first match in lists are searched.
struct Walk<'x, 'de> {
    wanted: &'x [(usize, &'x str)],
    fields: &'x mut Vec<Option<Cow<'de, str>>>,
}

impl<'de> Walk<'_, 'de> {
    fn keep(self, text: Option<Cow<'de, str>>) {
        for (i, rest) in self.wanted {
            if rest.is_empty() && self.fields[*i].is_none() {
                self.fields[*i].clone_from(&text);
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<(), E> {
        self.keep(Some(Cow::Borrowed(v)));
        Ok(())
    }
    fn visit_str<E>(self, v: &str) -> Result<(), E> {
        self.keep(Some(Cow::Owned(v.to_owned())));
        Ok(())
    }
    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.keep(Some(Cow::Borrowed(if v { "true" } else { "false" })));
        Ok(())
    }
    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        self.keep(Some(Cow::Owned(v.to_string())));
        Ok(())
    }
    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        self.keep(Some(Cow::Owned(v.to_string())));
        Ok(())
    }
    fn visit_f64<E>(self, v: f64) -> Result<(), E> {
        self.keep(Some(Cow::Owned(v.to_string())));
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq
            .next_element_seed(Walk {
                wanted: self.wanted,
                fields: self.fields,
            })?
            .is_some()
        {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            step(&key, self.wanted, self.fields, &mut map)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kinds;
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

    #[test]
    fn head_reads_what_selectors_need() {
        let kinds = Kinds::builtin();
        let pod = kinds.of("v1", "Pod").unwrap();
        let text = br#"{"kind":"Pod","metadata":{"labels":{"a":"b\"c"},"name":"x","namespace":"n","uid":"u",
            "managedFields":[{"a":1}]},"spec":{"nodeName":"n1","hostNetwork":true,"containers":[{"name":"c"}]},
            "status":{"phase":"Running","podIPs":[{"ip":"10.0.0.1"},{"ip":"::1"}]}}"#;
        let head = Head::parse(pod, text).unwrap();
        assert_eq!(head.name, "x");
        assert_eq!(head.label("a"), Some("b\"c"));
        assert!(!head.deleting);
        let whole: Value = serde_json::from_slice(text).unwrap();
        for (label, expected) in [
            ("metadata.name", "x"),
            ("metadata.namespace", "n"),
            ("spec.nodeName", "n1"),
            ("spec.hostNetwork", "true"),
            ("spec.restartPolicy", ""),
            ("status.phase", "Running"),
            ("status.podIPs", "10.0.0.1"),
        ] {
            assert_eq!(head.field(pod, label), Some(expected), "{label}");
            assert_eq!(
                field_value(pod, &whole, label).as_deref(),
                Some(expected),
                "{label}"
            );
        }
        assert_eq!(head.field(pod, "spec.other"), None);
        let node = kinds.of("v1", "Node").unwrap();
        let head = Head::parse(node, br#"{"metadata":{"name":"n"},"spec":null}"#).unwrap();
        assert_eq!(head.field(node, "spec.unschedulable"), Some("false"));
        assert_eq!(head.field(node, "metadata.namespace"), None);
        assert!(Head::parse(node, b"[1").is_err());
    }
}
