//! The head of an object, read from stored bytes in one walk.

use super::{name, namespace};
use crate::kinds::Kind;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

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
