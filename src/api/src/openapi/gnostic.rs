//! OpenAPI version 2 in protobuf: a writer driven by tables of field numbers.
//!
//! The messages are those of gnostic's `openapi.v2` package. They mirror the JSON document, with
//! maps written as lists of named values, choices as messages with one field set, and extensions
//! as YAML text (JSON is YAML).

use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Map, Value};

/// How a member of a JSON object is written.
enum As {
    Text,
    Flag,
    Integer,
    Double,
    Texts,
    /// A string, or a list of strings, in a message of its own.
    Type,
    Any,
    Anys,
    Message(&'static [Field]),
    /// A message that holds a list with one message: the items of an array.
    Items,
    /// `true`, `false` or a schema.
    Additional,
    /// A map: each value a message with this writer.
    Map(fn(&Value, &mut Vec<u8>)),
    /// A list of messages with this writer.
    List(fn(&Value, &mut Vec<u8>)),
    /// All members whose names begin with `x-`.
    Extensions,
}

/// Name in JSON, number in protobuf, form.
type Field = (&'static str, u32, As);

const DOCUMENT: &[Field] = &[
    ("swagger", 1, As::Text),
    ("info", 2, As::Message(INFO)),
    ("definitions", 9, As::Map(schema)),
    ("parameters", 10, As::Map(parameter)),
    ("security", 12, As::List(requirement)),
    ("securityDefinitions", 13, As::Map(security)),
];
const INFO: &[Field] = &[
    ("title", 1, As::Text),
    ("version", 2, As::Text),
    ("description", 3, As::Text),
];
const PATH_ITEM: &[Field] = &[
    ("get", 2, As::Message(OPERATION)),
    ("put", 3, As::Message(OPERATION)),
    ("post", 4, As::Message(OPERATION)),
    ("delete", 5, As::Message(OPERATION)),
    ("options", 6, As::Message(OPERATION)),
    ("head", 7, As::Message(OPERATION)),
    ("patch", 8, As::Message(OPERATION)),
    ("parameters", 9, As::List(parameter_item)),
];
const OPERATION: &[Field] = &[
    ("tags", 1, As::Texts),
    ("summary", 2, As::Text),
    ("description", 3, As::Text),
    ("operationId", 5, As::Text),
    ("produces", 6, As::Texts),
    ("consumes", 7, As::Texts),
    ("parameters", 8, As::List(parameter_item)),
    ("responses", 9, As::Map(response)),
    ("schemes", 10, As::Texts),
    ("deprecated", 11, As::Flag),
    ("", 13, As::Extensions),
];
const BODY: &[Field] = &[
    ("description", 1, As::Text),
    ("name", 2, As::Text),
    ("in", 3, As::Text),
    ("required", 4, As::Flag),
    ("schema", 5, As::Message(SCHEMA)),
];
const QUERY: &[Field] = &[
    ("required", 1, As::Flag),
    ("in", 2, As::Text),
    ("description", 3, As::Text),
    ("name", 4, As::Text),
    ("type", 6, As::Text),
    ("uniqueItems", 20, As::Flag),
];
const PATH: &[Field] = &[
    ("required", 1, As::Flag),
    ("in", 2, As::Text),
    ("description", 3, As::Text),
    ("name", 4, As::Text),
    ("type", 5, As::Text),
    ("uniqueItems", 19, As::Flag),
];
const REFERENCE: &[Field] = &[("$ref", 1, As::Text), ("description", 2, As::Text)];
const SCHEMA: &[Field] = &[
    ("$ref", 1, As::Text),
    ("format", 2, As::Text),
    ("title", 3, As::Text),
    ("description", 4, As::Text),
    ("default", 5, As::Any),
    ("multipleOf", 6, As::Double),
    ("maximum", 7, As::Double),
    ("exclusiveMaximum", 8, As::Flag),
    ("minimum", 9, As::Double),
    ("exclusiveMinimum", 10, As::Flag),
    ("maxLength", 11, As::Integer),
    ("minLength", 12, As::Integer),
    ("pattern", 13, As::Text),
    ("maxItems", 14, As::Integer),
    ("minItems", 15, As::Integer),
    ("uniqueItems", 16, As::Flag),
    ("maxProperties", 17, As::Integer),
    ("minProperties", 18, As::Integer),
    ("required", 19, As::Texts),
    ("enum", 20, As::Anys),
    ("additionalProperties", 21, As::Additional),
    ("type", 22, As::Type),
    ("items", 23, As::Items),
    ("properties", 25, As::Map(schema)),
    ("", 31, As::Extensions),
];
const API_KEY: &[Field] = &[
    ("type", 1, As::Text),
    ("name", 2, As::Text),
    ("in", 3, As::Text),
    ("description", 4, As::Text),
];

/// The document in protobuf.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    fields(document, DOCUMENT, &mut out);
    // Paths are a message of their own with the map in its second field.
    let mut paths = Vec::new();
    if let Some(Value::Object(items)) = document.get("paths") {
        named(items, 2, |item, out| fields(item, PATH_ITEM, out), &mut paths);
    }
    message(8, &paths, &mut out);
    out
}

fn message(number: u32, body: &[u8], out: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(body.len() as u64, out);
    out.put_slice(body);
}

fn text(number: u32, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        message(number, value.as_bytes(), out);
    }
}

fn varint(number: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        encode_key(number, WireType::Varint, out);
        encode_varint(value, out);
    }
}

/// A map as repeated messages of name and value.
fn named(map: &Map<String, Value>, number: u32, write: impl Fn(&Value, &mut Vec<u8>), out: &mut Vec<u8>) {
    for (name, value) in map {
        let mut entry = Vec::new();
        text(1, name, &mut entry);
        let mut body = Vec::new();
        write(value, &mut body);
        message(2, &body, &mut entry);
        message(number, &entry, out);
    }
}

fn fields(value: &Value, table: &[Field], out: &mut Vec<u8>) {
    for (name, number, form) in table {
        match (form, value.get(name)) {
            (As::Extensions, _) => extensions(value, *number, out),
            (form, Some(member)) => write(member, *number, form, out),
            (_, None) => {}
        }
    }
}

fn write(member: &Value, number: u32, form: &As, out: &mut Vec<u8>) {
    let wrapped = |write: &dyn Fn(&mut Vec<u8>), out: &mut Vec<u8>| {
        let mut body = Vec::new();
        write(&mut body);
        message(number, &body, out);
    };
    match form {
        As::Text => text(number, member.as_str().unwrap_or_default(), out),
        As::Flag => varint(number, member.as_bool().unwrap_or_default().into(), out),
        As::Integer => varint(number, member.as_i64().unwrap_or_default() as u64, out),
        As::Double => {
            encode_key(number, WireType::SixtyFourBit, out);
            out.put_f64_le(member.as_f64().unwrap_or_default());
        }
        As::Texts => texts(member, number, out),
        As::Type => wrapped(&|body| texts(member, 1, body), out),
        As::Any => wrapped(&|body| any(member, body), out),
        As::Anys => member
            .as_array()
            .into_iter()
            .flatten()
            .for_each(|item| wrapped(&|body| any(item, body), out)),
        As::Message(table) => wrapped(&|body| fields(member, table, body), out),
        As::Items => wrapped(
            &|body| {
                let mut item = Vec::new();
                schema(member, &mut item);
                message(1, &item, body);
            },
            out,
        ),
        As::Additional => wrapped(
            &|body| match member {
                // A choice is written even when it is false.
                Value::Bool(flag) => {
                    encode_key(2, WireType::Varint, body);
                    encode_varint((*flag).into(), body);
                }
                other => {
                    let mut inner = Vec::new();
                    schema(other, &mut inner);
                    message(1, &inner, body);
                }
            },
            out,
        ),
        As::Extensions => {}
        As::Map(write) => {
            if let Value::Object(map) = member {
                wrapped(&|body| named(map, 1, write, body), out);
            }
        }
        As::List(write) => {
            member
                .as_array()
                .into_iter()
                .flatten()
                .for_each(|item| wrapped(&|body| write(item, body), out));
        }
    }
}

fn texts(value: &Value, number: u32, out: &mut Vec<u8>) {
    match value {
        Value::String(only) => message(number, only.as_bytes(), out),
        Value::Array(items) => {
            items
                .iter()
                .filter_map(Value::as_str)
                .for_each(|item| message(number, item.as_bytes(), out));
        }
        _ => {}
    }
}

fn any(value: &Value, out: &mut Vec<u8>) {
    text(2, &format!("{value}\n"), out);
}

fn extensions(value: &Value, number: u32, out: &mut Vec<u8>) {
    let Value::Object(map) = value else { return };
    let extensions: Map<String, Value> = map
        .iter()
        .filter(|(name, _)| name.starts_with("x-"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    named(&extensions, number, any, out);
}

fn schema(value: &Value, out: &mut Vec<u8>) {
    fields(value, SCHEMA, out);
}

/// A choice: a message with one field set.
fn choice(number: u32, value: &Value, table: &'static [Field], out: &mut Vec<u8>) {
    let mut body = Vec::new();
    fields(value, table, &mut body);
    message(number, &body, out);
}

fn parameter(value: &Value, out: &mut Vec<u8>) {
    match value.get("in").and_then(Value::as_str) {
        Some("body") => choice(1, value, BODY, out),
        place => {
            let mut body = Vec::new();
            match place {
                Some("path") => choice(4, value, PATH, &mut body),
                _ => choice(3, value, QUERY, &mut body),
            }
            message(2, &body, out);
        }
    }
}

fn parameter_item(value: &Value, out: &mut Vec<u8>) {
    if value.get("$ref").is_some() {
        choice(2, value, REFERENCE, out);
    } else {
        let mut body = Vec::new();
        parameter(value, &mut body);
        message(1, &body, out);
    }
}

fn response(value: &Value, out: &mut Vec<u8>) {
    let mut body = Vec::new();
    text(
        1,
        value
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        &mut body,
    );
    if let Some(inner) = value.get("schema") {
        let mut item = Vec::new();
        choice(1, inner, SCHEMA, &mut item);
        message(2, &item, &mut body);
    }
    message(1, &body, out);
}

fn security(value: &Value, out: &mut Vec<u8>) {
    choice(2, value, API_KEY, out);
}

fn requirement(value: &Value, out: &mut Vec<u8>) {
    let Value::Object(map) = value else { return };
    named(map, 1, |scopes, out| texts(scopes, 1, out), out);
}
