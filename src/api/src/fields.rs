//! Strict decoding: raw JSON or YAML against a schema, in one pass.
//!
//! The schema drives the parser. Each value is checked while it is read; what the type does not
//! know is skipped without being built. The result is the pruned object, and two kinds of
//! findings:
//!
//! * problems (unknown and duplicate fields), which the caller reports, warns about or ignores as
//!   the request's `fieldValidation` says;
//! * an error (bad syntax, a value of the wrong type), which always refuses the request.
//!
//! Values take the form in which they are stored: quantities and times are canonical, null and
//! empty optional lists and maps of built-in types are left out, as if they had not been sent.
//! Custom resources keep theirs: their own schema judges values later.

#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::schema::{Field, Scalar, Shape, Struct, View, granular};

/// Largest body that is decoded. Clients of etcd-backed servers cannot send more than 1.5 MB
/// either; twice that leaves room for YAML.
pub const MAX_BODY: usize = 3 * 1024 * 1024;
/// Problems that are collected; one request can contain millions.
const MAX_PROBLEMS: usize = 100;
/// Aliases may blow a YAML document up to this many parser events, no more.
const MAX_YAML_EVENTS: usize = 1_000_000;
/// Nesting of YAML collections; the JSON parser has the same limit built in.
const MAX_YAML_DEPTH: usize = 128;
/// Documents in one YAML stream.
const MAX_YAML_DOCUMENTS: usize = 10_000;

/// An object as it was sent, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object without unknown fields.
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`.
    pub problems: Vec<String>,
}

/// Why a body cannot be an object of its kind.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON, not YAML.
    #[error("{0}")]
    Syntax(String),
    /// A value of another type than the field's.
    #[error("{0}")]
    Type(String),
    /// Longer than [`MAX_BODY`].
    #[error("body of {0} bytes is larger than {MAX_BODY} bytes")]
    TooLarge(usize),
}

impl Decoded {
    /// What `fieldValidation=Strict` answers when there are problems.
    pub fn strict_error(&self) -> Option<String> {
        if self.problems.is_empty() {
            return None;
        }
        Some(format!("strict decoding error: {}", self.problems.join(", ")))
    }
}

/// Decodes JSON.
pub fn decode_json(view: View<'_>, raw: &[u8]) -> Result<Decoded, DecodeError> {
    check_size(raw)?;
    let mut deserializer = serde_json::Deserializer::from_slice(raw);
    let mut context = Context::default();
    let value = context.seed(view).deserialize(&mut deserializer);
    let value = value.and_then(|value| deserializer.end().map(|()| value));
    context.finish(value.map_err(|err| format!("json: {err}")))
}

/// Decodes one YAML document.
pub fn decode_yaml(view: View<'_>, raw: &[u8]) -> Result<Decoded, DecodeError> {
    check_size(raw)?;
    let mut context = Context::default();
    let value =
        serde_saphyr::with_deserializer_from_slice_with_options(raw, yaml_options(1), |deserializer| {
            context.seed(view).deserialize(deserializer)
        });
    context.finish(value.map_err(|err| format!("yaml: {err}")))
}

/// Checks an object that is there already, the result of a patch for example.
pub fn strict_check(view: View<'_>, value: Value) -> Result<Decoded, DecodeError> {
    let mut context = Context::default();
    let value = context.seed(view).deserialize(value);
    context.finish(value.map_err(|err| format!("json: {err}")))
}

/// YAML as JSON, nothing checked but the limits and that no key comes twice.
pub fn yaml_to_json(raw: &[u8]) -> Result<Value, DecodeError> {
    check_size(raw)?;
    let mut options = yaml_options(1);
    options.duplicate_keys = serde_saphyr::options::DuplicateKeyPolicy::Error;
    serde_saphyr::from_slice_with_options(raw, options)
        .map_err(|err| DecodeError::Syntax(format!("yaml: {err}")))
}

/// All documents of a YAML stream as JSON, empty ones left out.
pub fn yaml_documents(raw: &[u8]) -> Result<Vec<Value>, DecodeError> {
    check_size(raw)?;
    let mut options = yaml_options(MAX_YAML_DOCUMENTS);
    options.duplicate_keys = serde_saphyr::options::DuplicateKeyPolicy::Error;
    let documents: Vec<Value> = serde_saphyr::from_slice_multiple_with_options(raw, options)
        .map_err(|err| DecodeError::Syntax(format!("yaml: {err}")))?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

fn check_size(raw: &[u8]) -> Result<(), DecodeError> {
    if raw.len() > MAX_BODY {
        Err(DecodeError::TooLarge(raw.len()))
    } else {
        Ok(())
    }
}

fn yaml_options(documents: usize) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: MAX_YAML_EVENTS,
            max_nodes: MAX_YAML_EVENTS,
            max_depth: MAX_YAML_DEPTH,
            max_documents: documents,
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_YAML_EVENTS },
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

enum Segment<'s> {
    Field(&'s str),
    Key(String),
    Index(usize),
}

#[derive(Default)]
struct Context<'s> {
    path: Vec<Segment<'s>>,
    /// Short name of the struct that is being read.
    owner: &'s str,
    problems: Vec<String>,
    error: Option<DecodeError>,
}

impl<'s> Context<'s> {
    fn seed(&mut self, view: View<'s>) -> Seed<'s, '_> {
        let typed = view.as_struct().is_none_or(|fields| fields.typed);
        Seed {
            view,
            typed,
            context: self,
        }
    }

    fn finish(self, value: Result<Value, String>) -> Result<Decoded, DecodeError> {
        match (value, self.error) {
            (_, Some(error)) => Err(error),
            (Err(text), None) => Err(DecodeError::Syntax(text)),
            (Ok(value), None) => Ok(Decoded {
                value,
                problems: self.problems,
            }),
        }
    }

    /// `spec.containers[0].name`, with another name at the end.
    fn path_to(&self, last: &str) -> String {
        let mut out = String::new();
        for segment in &self.path {
            match segment {
                Segment::Field(name) => text::push_name(&mut out, name),
                Segment::Key(name) => text::push_name(&mut out, name),
                Segment::Index(index) => {
                    out.push('[');
                    out.push_str(&index.to_string());
                    out.push(']');
                }
            }
        }
        text::push_name(&mut out, last);
        out
    }

    fn problem(&mut self, what: &str, name: &str) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        let text = format!("{what} field {}", text::quote(&self.path_to(name)));
        if !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    /// Notes that a value has the wrong type; the first finding counts.
    fn mismatch<E: serde::de::Error>(&mut self, found: &str, view: View<'_>) -> E {
        let names: Vec<&str> = self
            .path
            .iter()
            .filter_map(|segment| match segment {
                Segment::Field(name) => Some(*name),
                _ => None,
            })
            .collect();
        let wanted = view.type_name();
        self.fail(if names.is_empty() {
            format!("json: cannot unmarshal {found} into Go value of type {wanted}")
        } else {
            let place = names.join(".");
            format!(
                "json: cannot unmarshal {found} into Go struct field {}.{place} of type {wanted}",
                self.owner
            )
        })
    }

    fn fail<E: serde::de::Error>(&mut self, text: String) -> E {
        let error = E::custom(&text);
        self.error.get_or_insert(DecodeError::Type(text));
        error
    }
}

/// Reads one value of a type.
struct Seed<'s, 'c> {
    view: View<'s>,
    /// Values must be of the schema's type.
    typed: bool,
    context: &'c mut Context<'s>,
}

impl<'s> Seed<'s, '_> {
    fn child(&mut self, view: View<'s>) -> Seed<'s, '_> {
        Seed {
            view,
            typed: self.typed,
            context: &mut *self.context,
        }
    }

    fn scalar<E: serde::de::Error>(self, value: Value, found: &str) -> Result<Value, E> {
        if !self.typed || matches!(self.view.shape(), Shape::Any { .. }) {
            return Ok(value);
        }
        let Shape::Scalar(scalar) = self.view.shape() else {
            return Err(self.context.mismatch(found, self.view));
        };
        match text::accept(*scalar, value) {
            Ok(value) => Ok(value),
            Err(text::Refusal::Type) => Err(self.context.mismatch(found, self.view)),
            Err(text::Refusal::Text(text)) => Err(self.context.fail(text)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.view.type_name())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(Value::Bool(value), "bool")
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        match Value::from(value) {
            // JSON has no word for infinity.
            Value::Null => Err(E::custom(format!("unsupported value: {value}"))),
            number => self.number(number),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.scalar(Value::String(value.to_owned()), "string")
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.scalar(Value::String(value), "string")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let items = match self.view.shape() {
            Shape::List(items, _) => self.view.at(*items),
            Shape::Any { .. } => self.view,
            _ if !self.typed => granular(),
            _ => return Err(self.context.mismatch("array", self.view)),
        };
        // The parser's hint is not to be trusted with memory.
        let mut out = Vec::with_capacity(access.size_hint().unwrap_or(0).min(64));
        loop {
            self.context.path.push(Segment::Index(out.len()));
            let item = access.next_element_seed(self.child(items))?;
            self.context.path.pop();
            match item {
                None => return Ok(Value::Array(out)),
                Some(Value::Null) if self.typed => out.push(text::empty(items)),
                Some(item) => out.push(item),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, access: A) -> Result<Value, A::Error> {
        match self.view.shape() {
            Shape::Struct(fields) => self.read_struct(fields, access),
            Shape::Map(values) => {
                let values = self.view.at(*values);
                self.read_map(values, access)
            }
            Shape::Any { .. } => {
                let view = self.view;
                self.read_map(view, access)
            }
            _ if !self.typed => self.read_map(granular(), access),
            _ => Err(self.context.mismatch("object", self.view)),
        }
    }
}

/// A key of a struct: known, or not.
enum Key<'s> {
    Known(usize, &'s Field),
    Unknown(String),
}

struct KeySeed<'s>(&'s Struct);

impl<'de, 's> DeserializeSeed<'de> for KeySeed<'s> {
    type Value = Key<'s>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key<'s>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'s> Visitor<'_> for KeySeed<'s> {
    type Value = Key<'s>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Key<'s>, E> {
        Ok(
            match self.0.fields.binary_search_by(|field| (*field.name).cmp(name)) {
                Ok(index) => Key::Known(index, &self.0.fields[index]),
                Err(_) => Key::Unknown(name.to_owned()),
            },
        )
    }
}

impl<'s> Seed<'s, '_> {
    fn number<E: serde::de::Error>(self, value: Value) -> Result<Value, E> {
        if !self.typed || matches!(self.view.shape(), Shape::Any { .. }) {
            return Ok(value);
        }
        // Only a number that fits its field is common: text for messages is made late.
        let found = match self.view.shape() {
            Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::IntOrString) => {
                Cow::Owned(format!("number {value}"))
            }
            _ => Cow::Borrowed("number"),
        };
        self.scalar(value, &found)
    }

    fn read_struct<'de, A: MapAccess<'de>>(
        &mut self,
        fields: &'s Struct,
        mut access: A,
    ) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let mut seen = 0_u128;
        let outer = (self.context.owner, self.typed);
        self.context.owner = fields.short_name();
        self.typed = fields.typed;
        while let Some(key) = access.next_key_seed(KeySeed(fields))? {
            let (index, field) = match key {
                Key::Known(index, field) => (index, field),
                Key::Unknown(name) if fields.open => {
                    self.context.path.push(Segment::Key(name));
                    let value = access.next_value_seed(self.child(granular()))?;
                    if let Some(Segment::Key(name)) = self.context.path.pop() {
                        out.insert(name, value);
                    }
                    continue;
                }
                Key::Unknown(name) => {
                    self.context.problem("unknown", &name);
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let bit = 1_u128.checked_shl(index as u32).unwrap_or(0);
            if seen & bit != 0 || (bit == 0 && out.contains_key(&*field.name)) {
                self.context.problem("duplicate", &field.name);
            }
            seen |= bit;
            let view = self.view.of(field);
            self.context.path.push(Segment::Field(&field.name));
            let value = access.next_value_seed(self.child(view))?;
            self.context.path.pop();
            if self.typed && is_absent(field, view, &value) {
                out.remove(&*field.name);
            } else {
                out.insert(String::from(&*field.name), value);
            }
        }
        (self.context.owner, self.typed) = outer;
        Ok(Value::Object(out))
    }

    fn read_map<'de, A: MapAccess<'de>>(
        &mut self,
        values: View<'s>,
        mut access: A,
    ) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            // Names matter below only where a struct can report them.
            let leaf = matches!(values.shape(), Shape::Scalar(_));
            let value = if leaf {
                access.next_value_seed(self.child(values))?
            } else {
                self.context.path.push(Segment::Key(key.clone()));
                let value = access.next_value_seed(self.child(values))?;
                self.context.path.pop();
                value
            };
            let value = match value {
                Value::Null if self.typed => text::empty(values),
                value => value,
            };
            if out.contains_key(&key) {
                self.context.problem("duplicate", &key);
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// Null, and empty lists and maps of optional fields, say nothing.
fn is_absent(field: &Field, view: View<'_>, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty() && !field.required && matches!(view.shape(), Shape::List(..)),
        Value::Object(map) => map.is_empty() && !field.required && matches!(view.shape(), Shape::Map(_)),
        _ => false,
    }
}
