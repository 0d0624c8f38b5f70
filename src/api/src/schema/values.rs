//! Values that a schema implies: what is written even when nobody set it, and defaults.

use serde_json::{Map, Value};

use super::{Field, Shape, View};

/// Deeper values are left alone; decoding refuses them long before.
const MAX_DEPTH: usize = 200;

/// The value of a freshly made object: required fields and structs held by value, all empty.
///
/// Ownership of a created object is what differs from this.
pub fn zero_value(view: View<'_>) -> Value {
    zero(view, 0)
}

fn zero(view: View<'_>, depth: usize) -> Value {
    let mut out = Map::new();
    if let (Some(fields), true) = (view.as_struct(), depth < MAX_DEPTH) {
        for field in &fields.fields {
            if by_value(field) {
                out.insert(field.name.to_string(), zero(view.of(field), depth + 1));
            } else if let Some(value) = written_scalar(field) {
                out.insert(field.name.to_string(), value.clone());
            } else if field.required {
                out.insert(field.name.to_string(), Value::Null);
            }
        }
    }
    Value::Object(out)
}

/// A struct that is there even when nobody set it.
fn by_value(field: &Field) -> bool {
    matches!(&field.default, Some(Value::Object(map)) if map.is_empty())
}

/// The empty scalar that is written for a field that nobody set.
fn written_scalar(field: &Field) -> Option<&Value> {
    field.default.as_ref().filter(|value| match value {
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(flag) => !flag,
        _ => false,
    })
}

/// Writes out what a built-in object holds by value: empty structs and zero scalars of the
/// structs that are there (`resources: {}`, `status: {}`, `replicas: 0`).
pub fn fill_values(view: View<'_>, value: &mut Value) {
    fill(view, value, 0);
}

fn fill(view: View<'_>, value: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    match (view.shape(), value) {
        (Shape::Struct(fields), Value::Object(map)) => {
            for field in &fields.fields {
                if !map.contains_key(&*field.name) {
                    if by_value(field) {
                        map.insert(field.name.to_string(), Value::Object(Map::new()));
                    } else if let Some(zero) = written_scalar(field) {
                        map.insert(field.name.to_string(), zero.clone());
                    }
                }
                if let Some(inner) = map.get_mut(&*field.name) {
                    fill(view.of(field), inner, depth + 1);
                }
            }
        }
        (Shape::Map(values), Value::Object(map)) => {
            map.values_mut()
                .for_each(|inner| fill(view.at(*values), inner, depth + 1));
        }
        (Shape::List(items, _), Value::Array(list)) => {
            list.iter_mut()
                .for_each(|inner| fill(view.at(*items), inner, depth + 1));
        }
        _ => {}
    }
}

/// Sets the defaults of a custom resource's schema, also where a field that must not be null is null.
pub fn apply_defaults(view: View<'_>, value: &mut Value) {
    default(view, value, 0);
}

fn default(view: View<'_>, value: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    match (view.shape(), value) {
        (Shape::Struct(fields), Value::Object(map)) if !fields.typed => {
            for field in &fields.fields {
                let inner = view.of(field);
                if let Some(value) = &field.default {
                    let missing = match map.get(&*field.name) {
                        None => true,
                        Some(Value::Null) => !inner.is_nullable(),
                        Some(_) => false,
                    };
                    if missing {
                        map.insert(field.name.to_string(), value.clone());
                    }
                }
                if let Some(value) = map.get_mut(&*field.name) {
                    default(inner, value, depth + 1);
                }
            }
        }
        (Shape::Map(values), Value::Object(map)) => {
            map.values_mut()
                .for_each(|inner| default(view.at(*values), inner, depth + 1));
        }
        (Shape::List(items, _), Value::Array(list)) => {
            list.iter_mut()
                .for_each(|inner| default(view.at(*items), inner, depth + 1));
        }
        _ => {}
    }
}
