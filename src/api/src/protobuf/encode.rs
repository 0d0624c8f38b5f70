//! JSON values to protobuf.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BufMut;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::decode::message_of;
use super::facts::{Entry, Fact, Form, Message};
use super::wire::{put_bytes, put_double, put_message, put_varint};
use super::{Error, LIST_META, MAGIC, MAX_DEPTH, PARTIAL, PARTIAL_LIST, SCHEMA_PROPS, place};
use crate::meta;
use crate::schema::{OBJECT_META, Scalar, Schema, Shape, View};

/// An object as a body. Its kind is the one that it names.
pub fn encode(object: &Value) -> Result<Vec<u8>, Error> {
    let (api_version, kind) = (meta::api_version(object), meta::kind(object));
    let form = Type::of(api_version, kind)?;
    let mut raw = Vec::with_capacity(1024);
    form.write(object, &mut raw)?;
    Ok(envelope(api_version, kind, &raw))
}

/// Whether objects of a kind can be written.
pub fn has_form(api_version: &str, kind: &str) -> bool {
    Type::of(api_version, kind).is_ok()
}

/// Appends one event of a watch; `object` is a whole body.
pub fn watch_frame(out: &mut impl BufMut, event: &str, object: &[u8]) {
    let mut frame = Vec::with_capacity(object.len() + 32);
    put_bytes(&mut frame, 1, event.as_bytes());
    let mut extension = Vec::with_capacity(object.len() + 8);
    put_bytes(&mut extension, 1, object);
    put_bytes(&mut frame, 2, &extension);
    // An object is far smaller than what 32 bits can count: bodies are limited to a few megabytes.
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    out.put_slice(&length.to_be_bytes());
    out.put_slice(&frame);
}

/// Writes a list item by item, so that not all items need to be in memory as values.
pub struct ListWriter {
    api_version: String,
    kind: String,
    item: Type,
    raw: Vec<u8>,
}

impl ListWriter {
    /// A list of the list kind `kind` (`PodList`).
    pub fn new(api_version: &str, kind: &str, metadata: &Value) -> Result<Self, Error> {
        let no_form = || Error::NoForm {
            api_version: api_version.into(),
            kind: kind.into(),
        };
        let item = if (api_version, kind) == PARTIAL_LIST {
            Type::Partial
        } else {
            Type::Whole(
                view_of(api_version, kind)
                    .and_then(|list| list.descend(&["items"])?.items())
                    .ok_or_else(no_form)?,
            )
        };
        let mut raw = Vec::with_capacity(4096);
        put_metadata(&mut raw, LIST_META, metadata)?;
        Ok(ListWriter {
            api_version: api_version.into(),
            kind: kind.into(),
            item,
            raw,
        })
    }

    /// Adds an item.
    pub fn push(&mut self, item: &Value) -> Result<(), Error> {
        put_message(&mut self.raw, 2, |out| self.item.write(item, out))
    }

    /// The body.
    pub fn finish(self) -> Vec<u8> {
        envelope(&self.api_version, &self.kind, &self.raw)
    }
}

fn view_of(api_version: &str, kind: &str) -> Option<View<'static>> {
    let (group, version) = crate::kinds::split_api_version(api_version);
    Schema::builtin().kind(group, version, kind)
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::with_capacity(api_version.len() + kind.len() + 4);
    put_bytes(&mut type_meta, 1, api_version.as_bytes());
    put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + type_meta.len() + 20);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &type_meta);
    put_bytes(&mut out, 2, raw);
    put_bytes(&mut out, 3, b"");
    put_bytes(&mut out, 4, b"");
    out
}

fn put_metadata(out: &mut Vec<u8>, definition: &str, metadata: &Value) -> Result<(), Error> {
    let view = Schema::builtin().definition(definition);
    put_message(out, 1, |out| match (view, metadata) {
        (Some(view), Value::Object(map)) => write_struct(view, map, out, 0),
        _ => Ok(()),
    })
}

/// What an object is written as.
#[derive(Clone, Copy)]
enum Type {
    Whole(View<'static>),
    /// Nothing but metadata, of any kind.
    Partial,
    /// A list of those.
    PartialList,
}

impl Type {
    fn of(api_version: &str, kind: &str) -> Result<Self, Error> {
        match (api_version, kind) {
            PARTIAL => return Ok(Type::Partial),
            PARTIAL_LIST => return Ok(Type::PartialList),
            _ => {}
        }
        match view_of(api_version, kind).filter(|view| message_of(*view).is_some()) {
            Some(view) => Ok(Type::Whole(view)),
            None => Err(Error::NoForm {
                api_version: api_version.into(),
                kind: kind.into(),
            }),
        }
    }

    fn write(self, object: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Type::Whole(view) => match object {
                Value::Object(map) => write_struct(view, map, out, 0),
                _ => Err(mismatch("", object)),
            },
            Type::Partial => put_metadata(out, OBJECT_META, &object["metadata"]),
            Type::PartialList => {
                put_metadata(out, LIST_META, &object["metadata"])?;
                let items = object["items"].as_array().into_iter().flatten();
                items
                    .into_iter()
                    .try_for_each(|item| put_message(out, 2, |out| Type::Partial.write(item, out)))
            }
        }
    }
}

fn write_struct(
    view: View<'_>,
    map: &Map<String, Value>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    match message_of(view) {
        Some(message) => write_message(view, message, map, out, depth),
        None => Ok(()),
    }
}

fn write_message(
    view: View<'_>,
    message: &Message,
    map: &Map<String, Value>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep);
    }
    for (number, entry) in &message.entries {
        match entry {
            Entry::Field(fact) => {
                let value = map.get(fact.name).filter(|value| !value.is_null());
                if let (Some(value), Some(inner)) = (value, view.member(fact.name)) {
                    write_field(inner, *number, fact, value, out, depth)
                        .map_err(|error| name_field(error, view, fact.name))?;
                }
            }
            Entry::Inline(inner) => {
                let start = out.len();
                let length = put_message(out, *number, |out| {
                    let start = out.len();
                    write_message(view, inner, map, out, depth + 1)?;
                    Ok(out.len() - start)
                })?;
                if length == 0 {
                    out.truncate(start);
                }
            }
        }
    }
    Ok(())
}

fn write_field(
    view: View<'_>,
    number: u32,
    fact: &Fact,
    value: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    match view.shape() {
        Shape::List(items, _) => {
            let items = view.at(*items);
            if fact.form == Form::Items {
                return put_message(out, number, |out| write_list(items, 1, value, out, depth));
            }
            write_list(items, number, value, out, depth)
        }
        Shape::Map(values) => {
            let values = view.at(*values);
            let Value::Object(map) = value else {
                return Err(mismatch("", value));
            };
            for (key, value) in map {
                put_message(out, number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    match values.shape() {
                        // A map cannot hold lists as such.
                        Shape::List(items, _) => {
                            put_message(out, 2, |out| write_list(values.at(*items), 1, value, out, depth))
                        }
                        _ => write_single(values, 2, fact.form, value, out, depth),
                    }
                })?;
            }
            Ok(())
        }
        _ => write_single(view, number, fact.form, value, out, depth),
    }
}

fn write_list(
    items: View<'_>,
    number: u32,
    value: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    let Value::Array(list) = value else {
        return Err(mismatch("", value));
    };
    list.iter()
        .try_for_each(|item| write_single(items, number, Form::Plain, item, out, depth))
}

fn write_single(
    view: View<'_>,
    number: u32,
    form: Form,
    value: &Value,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), Error> {
    match (view.shape(), value) {
        (Shape::Scalar(scalar), _) => write_scalar(*scalar, number, value, out),
        (Shape::Struct(_), Value::Object(map)) => {
            put_message(out, number, |out| write_struct(view, map, out, depth + 1))
        }
        (Shape::Struct(_), Value::Null) => put_message(out, number, |_| Ok(())),
        (Shape::Any { .. }, _) => put_message(out, number, |out| write_any(form, value, out, depth + 1)),
        _ => Err(mismatch("", value)),
    }
}

/// What has no type in the schema.
fn write_any(form: Form, value: &Value, out: &mut Vec<u8>, depth: usize) -> Result<(), Error> {
    let props = |out: &mut Vec<u8>, number: u32, value: &Value| match (
        Schema::builtin().definition(SCHEMA_PROPS),
        value,
    ) {
        (Some(view), Value::Object(map)) => {
            put_message(out, number, |out| write_struct(view, map, out, depth + 1))
        }
        _ => Err(mismatch("", value)),
    };
    match (form, value) {
        (Form::Empty, _) => Ok(()),
        (Form::Bool, Value::Bool(allows)) => {
            put_varint(out, 1, u64::from(*allows));
            Ok(())
        }
        (Form::Bool, _) => {
            put_varint(out, 1, 1);
            props(out, 2, value)
        }
        (Form::Array, Value::Array(list)) => list.iter().try_for_each(|item| props(out, 2, item)),
        (Form::Strings, Value::Array(list)) => list.iter().try_for_each(|item| {
            put_bytes(
                out,
                2,
                item.as_str().ok_or_else(|| mismatch("", item))?.as_bytes(),
            );
            Ok(())
        }),
        (Form::Array | Form::Strings, _) => props(out, 1, value),
        (Form::Plain | Form::Items, _) => {
            let json = serde_json::to_vec(value).map_err(|error| reason(error.to_string()))?;
            put_bytes(out, 1, &json);
            Ok(())
        }
    }
}

fn write_scalar(scalar: Scalar, number: u32, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
    match (scalar, value) {
        (Scalar::Boolean, Value::Bool(flag)) => put_varint(out, number, u64::from(*flag)),
        (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => {
            let n = n.as_i64().ok_or_else(|| mismatch("", value))?;
            put_varint(out, number, n as u64);
        }
        (Scalar::Number, Value::Number(n)) => {
            put_double(out, number, n.as_f64().ok_or_else(|| mismatch("", value))?);
        }
        (Scalar::String, Value::String(text)) => put_bytes(out, number, text.as_bytes()),
        (Scalar::Bytes, Value::String(text)) => {
            let bytes = STANDARD
                .decode(text)
                .map_err(|error| reason(format!("no valid base64: {error}")))?;
            put_bytes(out, number, &bytes);
        }
        (Scalar::Time | Scalar::MicroTime, Value::Null) => put_bytes(out, number, b""),
        (Scalar::Time | Scalar::MicroTime, Value::String(text)) => {
            let time: Timestamp = text.parse().map_err(|_| reason(format!("{text:?} is no time")))?;
            put_message(out, number, |out| {
                // Rounded down, so that what is left over is never negative.
                let nanos = time.as_nanosecond();
                let micros = (nanos.rem_euclid(1_000_000_000) / 1_000) as u64;
                put_varint(out, 1, nanos.div_euclid(1_000_000_000) as i64 as u64);
                put_varint(out, 2, if scalar == Scalar::Time { 0 } else { micros * 1_000 });
                Ok(())
            })?;
        }
        (Scalar::Quantity, Value::String(text)) => {
            put_message(out, number, |out| {
                put_bytes(out, 1, text.as_bytes());
                Ok(())
            })?;
        }
        (Scalar::Quantity, Value::Number(n)) => {
            return write_scalar(scalar, number, &Value::String(n.to_string()), out);
        }
        (Scalar::IntOrString, Value::Number(_) | Value::String(_)) => {
            put_message(out, number, |out| {
                put_varint(out, 1, u64::from(value.is_string()));
                put_varint(out, 2, value.as_i64().unwrap_or_default() as u64);
                put_bytes(out, 3, value.as_str().unwrap_or_default().as_bytes());
                Ok(())
            })?;
        }
        _ => return Err(mismatch("", value)),
    }
    Ok(())
}

fn mismatch(field: &str, value: &Value) -> Error {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::Value {
        field: field.into(),
        reason: format!("cannot hold {found}"),
    }
}

fn reason(reason: String) -> Error {
    Error::Value {
        field: String::new(),
        reason,
    }
}

fn name_field(error: Error, owner: View<'_>, name: &str) -> Error {
    match error {
        Error::Value { field, reason } if field.is_empty() => Error::Value {
            field: place(owner, name),
            reason,
        },
        other => other,
    }
}
