//! Leaf values: which are accepted for a type, and in which form they are kept.

use base64::Engine as _;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use crate::schema::{Scalar, Shape, View};

/// Why a leaf value is refused.
pub(super) enum Refusal {
    /// It is of another type.
    Type,
    /// It is of the right type but says nothing sensible.
    Text(String),
}

/// The value as it is stored.
pub(super) fn accept(scalar: Scalar, value: Value) -> Result<Value, Refusal> {
    match (scalar, &value) {
        (Scalar::Boolean, Value::Bool(_)) | (Scalar::String, Value::String(_)) => Ok(value),
        (Scalar::Number, Value::Number(_)) => Ok(value),
        (Scalar::Int64, Value::Number(number)) if number.is_i64() => Ok(value),
        (Scalar::Int32, Value::Number(number)) if fits_32(number) => Ok(value),
        (Scalar::IntOrString, Value::String(_)) => Ok(value),
        (Scalar::IntOrString, Value::Number(number)) if fits_32(number) => Ok(value),
        (Scalar::Bytes, Value::String(text)) => {
            match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(_) => Ok(value),
                Err(err) => Err(Refusal::Text(format!("illegal base64 data: {err}"))),
            }
        }
        (Scalar::Quantity, Value::String(text)) => quantity(text),
        (Scalar::Quantity, Value::Number(number)) => quantity(&number.to_string()),
        (Scalar::Time, Value::String(text)) => time(text, "%Y-%m-%dT%H:%M:%SZ"),
        (Scalar::MicroTime, Value::String(text)) => time(text, "%Y-%m-%dT%H:%M:%S%.6fZ"),
        _ => Err(Refusal::Type),
    }
}

fn fits_32(number: &serde_json::Number) -> bool {
    number
        .as_i64()
        .is_some_and(|number| i32::try_from(number).is_ok())
}

fn quantity(text: &str) -> Result<Value, Refusal> {
    crate::quantity::canonical(text)
        .map(Value::String)
        .ok_or_else(|| {
            Refusal::Text(
                "quantities must match the regular expression \
             '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                    .into(),
            )
        })
}

fn time(text: &str, format: &str) -> Result<Value, Refusal> {
    let refuse = || Refusal::Text(format!("parsing time {} as RFC 3339: invalid time", quote(text)));
    let parsed: jiff::Timestamp = text.parse().map_err(|_| refuse())?;
    let text = parsed.to_zoned(TimeZone::UTC).strftime(format).to_string();
    Ok(Value::String(text))
}

/// What null stands for inside a list or a map of a built-in type.
pub(super) fn empty(view: View<'_>) -> Value {
    match view.shape() {
        Shape::Struct(_) | Shape::Map(_) => Value::Object(Map::new()),
        Shape::List(..) => Value::Array(Vec::new()),
        Shape::Any { .. } => Value::Null,
        Shape::Scalar(Scalar::Boolean) => Value::Bool(false),
        Shape::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString) => 0.into(),
        Shape::Scalar(Scalar::Quantity) => "0".into(),
        Shape::Scalar(Scalar::Time | Scalar::MicroTime) => Value::Null,
        Shape::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
    }
}

/// Appends a name to a dotted path.
pub(super) fn push_name(out: &mut String, name: &str) {
    if !out.is_empty() {
        out.push('.');
    }
    out.push_str(name);
}

/// The text in double quotes.
pub(super) fn quote(text: &str) -> String {
    Value::from(text).to_string()
}
