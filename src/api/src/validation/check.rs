//! The small pieces that rule sets are made of.

use super::Errors;
use crate::names;
use crate::selector::LabelSelector;
use crate::status::FieldError;
use crate::{meta, strategy};
use serde_json::Value;

/// Text of a number below zero.
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// Text of a number below one.
pub const POSITIVE: &str = "must be greater than 0";

/// Joins a path and a field.
pub fn dot(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

/// The items of a list with their paths.
pub fn items<'a>(obj: &'a Value, path: &str, field: &str) -> impl Iterator<Item = (String, &'a Value)> {
    let base = dot(path, field);
    meta::list_at(obj, field)
        .iter()
        .enumerate()
        .map(move |(i, v)| (format!("{base}[{i}]"), v))
}

/// Whether a field has a value.
pub fn has(obj: &Value, field: &str) -> bool {
    meta::at(obj, field).is_some_and(|v| !v.is_null())
}

/// Text that must not be empty; tells whether it was there.
pub fn required(errors: &mut Errors, obj: &Value, path: &str, field: &str) -> bool {
    let missing = match meta::at(obj, field) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        Some(_) => false,
    };
    if missing {
        errors.push(FieldError::required(dot(path, field), ""));
    }
    !missing
}

/// Every complaint of a name rule becomes an error.
pub fn name(errors: &mut Errors, path: &str, text: &str, rule: fn(&str) -> Vec<String>) {
    errors.extend(
        rule(text)
            .into_iter()
            .map(|detail| FieldError::invalid(path, text, detail)),
    );
}

/// A name that must be there and follow a rule.
pub fn required_name(
    errors: &mut Errors,
    obj: &Value,
    path: &str,
    field: &str,
    rule: fn(&str) -> Vec<String>,
) {
    if required(errors, obj, path, field) {
        name(errors, &dot(path, field), meta::str_at(obj, field), rule);
    }
}

/// A name that may be missing but must follow a rule.
pub fn optional_name(
    errors: &mut Errors,
    obj: &Value,
    path: &str,
    field: &str,
    rule: fn(&str) -> Vec<String>,
) {
    let text = meta::str_at(obj, field);
    if !text.is_empty() {
        name(errors, &dot(path, field), text, rule);
    }
}

/// A value of an enumeration; missing values pass.
pub fn one_of(errors: &mut Errors, obj: &Value, path: &str, field: &str, supported: &[&str]) {
    if let Some(value) = meta::at(obj, field).filter(|v| !v.is_null())
        && !value.as_str().is_some_and(|v| supported.contains(&v))
    {
        errors.push(FieldError::not_supported(
            dot(path, field),
            value.clone(),
            supported,
        ));
    }
}

/// A value of an enumeration that must be there.
pub fn required_one_of(errors: &mut Errors, obj: &Value, path: &str, field: &str, supported: &[&str]) {
    if required(errors, obj, path, field) {
        one_of(errors, obj, path, field, supported);
    }
}

/// Numbers that may be missing but not negative.
pub fn not_negative(errors: &mut Errors, obj: &Value, path: &str, fields: &[&str]) {
    for field in fields {
        if let Some(n) = meta::int_at(obj, field).filter(|n| *n < 0) {
            errors.push(FieldError::invalid(dot(path, field), n, NOT_NEGATIVE));
        }
    }
}

/// Numbers that may be missing but must be at least one.
pub fn positive(errors: &mut Errors, obj: &Value, path: &str, fields: &[&str]) {
    for field in fields {
        if let Some(n) = meta::int_at(obj, field).filter(|n| *n < 1) {
            errors.push(FieldError::invalid(dot(path, field), n, POSITIVE));
        }
    }
}

/// A number within bounds; missing passes.
pub fn between(errors: &mut Errors, obj: &Value, path: &str, field: &str, low: i64, high: i64) {
    if let Some(n) = meta::int_at(obj, field).filter(|n| !(low..=high).contains(n)) {
        let text = format!("must be between {low} and {high}, inclusive");
        errors.push(FieldError::invalid(dot(path, field), n, text));
    }
}

/// A port number that may be missing.
pub fn port_number(errors: &mut Errors, obj: &Value, path: &str, field: &str) {
    if let Some(n) = meta::int_at(obj, field) {
        errors.extend(
            names::port(n)
                .into_iter()
                .map(|d| FieldError::invalid(dot(path, field), n, d)),
        );
    }
}

/// A port by number or name.
pub fn port_ref(errors: &mut Errors, value: &Value, path: &str) {
    match value {
        Value::Number(_) => {
            let n = value.as_i64().unwrap_or(0);
            errors.extend(
                names::port(n)
                    .into_iter()
                    .map(|d| FieldError::invalid(path, n, d)),
            );
        }
        Value::String(s) => name(errors, path, s, names::port_name),
        _ => errors.push(FieldError::required(path, "")),
    }
}

/// A count or a percentage.
pub fn count_or_percent(errors: &mut Errors, value: &Value, path: &str) {
    match value {
        Value::Number(_) if value.as_i64().unwrap_or(-1) < 0 => {
            errors.push(FieldError::invalid(path, value.clone(), NOT_NEGATIVE));
        }
        Value::String(s) => {
            let digits = s
                .strip_suffix('%')
                .filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()));
            match digits.and_then(|d| d.parse::<u32>().ok()) {
                None => errors.push(FieldError::invalid(
                    path,
                    s.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                )),
                Some(n) if n > 100 => errors.push(FieldError::invalid(path, s.as_str(), "must not be greater than 100%")),
                Some(_) => {}
            }
        }
        _ => {}
    }
}

/// The number behind a count or percentage that is zero either way.
pub fn is_zero(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Number(n)) => n.as_i64() == Some(0),
        Some(Value::String(s)) => s.trim_end_matches('%').bytes().all(|b| b == b'0'),
        _ => false,
    }
}

/// Keys and values of a label map.
pub fn labels(errors: &mut Errors, map: Option<&meta::Object>, path: &str) {
    for (key, value) in map.into_iter().flatten() {
        name(errors, path, key, names::qualified_name);
        name(errors, path, value.as_str().unwrap_or(""), names::label_value);
    }
}

/// A `LabelSelector` object.
pub fn label_selector(errors: &mut Errors, selector: &Value, path: &str) {
    labels(
        errors,
        meta::object_at(selector, "matchLabels"),
        &dot(path, "matchLabels"),
    );
    for (p, e) in items(selector, path, "matchExpressions") {
        let values = meta::list_at(e, "values");
        match meta::str_at(e, "operator") {
            "In" | "NotIn" => {
                if values.is_empty() {
                    let text = "must be specified when `operator` is 'In' or 'NotIn'";
                    errors.push(FieldError::required(dot(&p, "values"), text));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    let text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    errors.push(FieldError::forbidden(dot(&p, "values"), text));
                }
            }
            other => {
                errors.push(FieldError::invalid(
                    dot(&p, "operator"),
                    other,
                    "not a valid selector operator",
                ));
            }
        }
        name(
            errors,
            &dot(&p, "key"),
            meta::str_at(e, "key"),
            names::qualified_name,
        );
        for (i, v) in values.iter().enumerate() {
            name(
                errors,
                &format!("{p}.values[{i}]"),
                v.as_str().unwrap_or(""),
                names::label_value,
            );
        }
    }
}

/// Whether a selector object has no condition.
pub fn is_empty_selector(selector: &Value) -> bool {
    LabelSelector::from_object(Some(selector)).is_ok_and(|s| s.is_everything())
}

/// A field that cannot change.
pub fn immutable(errors: &mut Errors, new: &Value, old: &Value, path: &str) {
    if !strategy::same(meta::at(new, path), meta::at(old, path)) {
        let value = meta::at(new, path).cloned().unwrap_or(Value::Null);
        errors.push(FieldError::immutable(path, value));
    }
}
