//! The value rules of an `openAPIV3Schema`, with the messages Kubernetes gives.

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::meta;
use crate::status::FieldError;

/// Complaints about one object; more are of no use to anybody.
const MAX_ERRORS: usize = 100;
/// Deeper values are not judged; decoding refuses them long before.
const MAX_DEPTH: usize = 200;

struct Checker<'a> {
    patterns: &'a HashMap<String, Regex>,
    errors: Vec<FieldError>,
}

/// Judges an object; its type and metadata are judged elsewhere.
pub(super) fn object(
    schema: &Value,
    patterns: &HashMap<String, Regex>,
    object: &Value,
    errors: &mut Vec<FieldError>,
) {
    let mut checker = Checker {
        patterns,
        errors: Vec::new(),
    };
    checker.value(schema, object, "", 0);
    errors.append(&mut checker.errors);
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl Checker<'_> {
    fn invalid(&mut self, path: &str, value: impl Into<Value>, what: &str) {
        let shown = if path.is_empty() { "<root>" } else { path };
        self.push(FieldError::invalid(
            path,
            value,
            format!("{shown} in body {what}"),
        ));
    }

    fn push(&mut self, error: FieldError) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }

    /// Whether a value obeys a schema, for the junctions.
    fn holds(&self, schema: &Value, value: &Value, path: &str, depth: usize) -> bool {
        let mut inner = Checker {
            patterns: self.patterns,
            errors: Vec::new(),
        };
        inner.value(schema, value, path, depth);
        inner.errors.is_empty()
    }

    fn value(&mut self, schema: &Value, value: &Value, path: &str, depth: usize) {
        let Value::Object(rules) = schema else { return };
        if depth > MAX_DEPTH || self.errors.len() >= MAX_ERRORS {
            return;
        }
        if value.is_null() && meta::bool_at(schema, "nullable") {
            return;
        }
        if !self.has_type(rules, value, path) {
            return;
        }
        if let Some(allowed) = rules.get("enum").and_then(Value::as_array)
            && !allowed.contains(value)
        {
            let texts: Vec<String> = allowed
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.push(FieldError::not_supported(path, shown, &texts));
        }
        match value {
            Value::Number(_) => self.number(rules, value, path),
            Value::String(text) => self.string(rules, text, path),
            Value::Array(items) => self.array(rules, items, path, depth),
            Value::Object(fields) => self.fields(rules, fields, path, depth),
            Value::Null | Value::Bool(_) => {}
        }
        self.junctions(rules, value, path, depth);
    }

    fn has_type(&mut self, rules: &Map<String, Value>, value: &Value, path: &str) -> bool {
        let int_or_string = rules.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
        let wanted = match rules.get("type").and_then(Value::as_str) {
            _ if int_or_string => "integer,string",
            Some(wanted) => wanted,
            None => return true,
        };
        let found = type_of(value);
        let whole = || value.as_f64().is_some_and(|n| n.fract() == 0.0);
        let fits = match wanted {
            "integer,string" => matches!(found, "integer" | "string"),
            "number" => matches!(found, "integer" | "number"),
            "integer" => found == "integer" || (found == "number" && whole()),
            other => other == found,
        };
        if !fits {
            self.invalid(path, found, &format!("must be of type {wanted}: \"{found}\""));
        }
        fits
    }

    fn number(&mut self, rules: &Map<String, Value>, value: &Value, path: &str) {
        let Some(number) = value.as_f64() else { return };
        let bound = |key: &str| rules.get(key).and_then(|v| v.as_f64().map(|n| (n, v.clone())));
        let exclusive = |key: &str| rules.get(key) == Some(&Value::Bool(true));
        if let Some((low, shown)) = bound("minimum") {
            if exclusive("exclusiveMinimum") && number <= low {
                self.invalid(path, value.clone(), &format!("should be greater than {shown}"));
            } else if number < low {
                self.invalid(
                    path,
                    value.clone(),
                    &format!("should be greater than or equal to {shown}"),
                );
            }
        }
        if let Some((high, shown)) = bound("maximum") {
            if exclusive("exclusiveMaximum") && number >= high {
                self.invalid(path, value.clone(), &format!("should be less than {shown}"));
            } else if number > high {
                self.invalid(
                    path,
                    value.clone(),
                    &format!("should be less than or equal to {shown}"),
                );
            }
        }
        if let Some((step, shown)) = bound("multipleOf").filter(|(step, _)| *step > 0.0) {
            let parts = number / step;
            if (parts - parts.round()).abs() > 1e-9 * parts.abs().max(1.0) {
                self.invalid(path, value.clone(), &format!("should be a multiple of {shown}"));
            }
        }
        if rules.get("format").and_then(Value::as_str) == Some("int32")
            && value.as_i64().is_none_or(|n| i32::try_from(n).is_err())
        {
            self.invalid(
                path,
                value.clone(),
                &format!("must be of type int32: \"{value}\""),
            );
        }
    }

    fn string(&mut self, rules: &Map<String, Value>, text: &str, path: &str) {
        let limit = |key: &str| {
            rules
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
        };
        let chars = text.chars().count();
        if let Some(max) = limit("maxLength").filter(|max| chars > *max) {
            self.push(FieldError::too_long(path, max));
        }
        if let Some(min) = limit("minLength").filter(|min| chars < *min) {
            self.invalid(path, text, &format!("should be at least {min} chars long"));
        }
        if let Some(pattern) = rules.get("pattern").and_then(Value::as_str)
            && self.patterns.get(pattern).is_some_and(|p| !p.is_match(text))
        {
            self.invalid(path, text, &format!("should match '{pattern}'"));
        }
        let format = rules.get("format").and_then(Value::as_str);
        if format == Some("date-time") && meta::parse_timestamp(text).is_none() {
            self.invalid(path, text, &format!("must be of type date-time: \"{text}\""));
        }
    }

    fn array(&mut self, rules: &Map<String, Value>, items: &[Value], path: &str, depth: usize) {
        let limit = |key: &str| {
            rules
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
        };
        if let Some(max) = limit("maxItems").filter(|max| items.len() > *max) {
            self.push(FieldError::too_many(path, items.len(), max));
        }
        if let Some(min) = limit("minItems").filter(|min| items.len() < *min) {
            self.invalid(path, items.len(), &format!("should have at least {min} items"));
        }
        let text = |key: &str| rules.get(key).and_then(Value::as_str);
        let set = text("x-kubernetes-list-type") == Some("set");
        let keys: Vec<&str> = match text("x-kubernetes-list-type") {
            Some("map") => rules
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
            _ => Vec::new(),
        };
        let mut seen = std::collections::HashSet::new();
        for (at, item) in items.iter().enumerate() {
            let place = format!("{path}[{at}]");
            let identity = if keys.is_empty() {
                item.clone()
            } else {
                keys.iter()
                    .filter_map(|key| item.get(*key).map(|v| ((*key).to_owned(), v.clone())))
                    .collect::<Map<_, _>>()
                    .into()
            };
            if (set || !keys.is_empty()) && !seen.insert(identity.to_string()) {
                self.push(FieldError::duplicate(&*place, identity));
            }
            if let Some(inner) = rules.get("items") {
                self.value(inner, item, &place, depth + 1);
            }
        }
    }

    fn fields(&mut self, rules: &Map<String, Value>, fields: &Map<String, Value>, path: &str, depth: usize) {
        let limit = |key: &str| {
            rules
                .get(key)
                .and_then(Value::as_u64)
                .and_then(|n| usize::try_from(n).ok())
        };
        for name in rules
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = name.as_str().unwrap_or_default();
            if !fields.contains_key(name) {
                self.push(FieldError::required(join(path, name), ""));
            }
        }
        if let Some(max) = limit("maxProperties").filter(|max| fields.len() > *max) {
            self.push(FieldError::too_many(path, fields.len(), max));
        }
        if let Some(min) = limit("minProperties").filter(|min| fields.len() < *min) {
            self.invalid(
                path,
                fields.len(),
                &format!("should have at least {min} properties"),
            );
        }
        let properties = rules.get("properties").and_then(Value::as_object);
        let others = rules.get("additionalProperties").filter(|v| v.is_object());
        for (name, value) in fields {
            if path.is_empty() && matches!(name.as_str(), "metadata" | "apiVersion" | "kind") {
                continue;
            }
            if let Some(inner) = properties.and_then(|p| p.get(name)).or(others) {
                self.value(inner, value, &join(path, name), depth + 1);
            }
        }
    }

    fn junctions(&mut self, rules: &Map<String, Value>, value: &Value, path: &str, depth: usize) {
        let list = |key: &str| rules.get(key).and_then(Value::as_array);
        for inner in list("allOf").into_iter().flatten() {
            self.value(inner, value, path, depth + 1);
        }
        let bare = |what: &str| FieldError::invalid(path, "", format!("\"{path}\" {what}"));
        if let Some(any) = list("anyOf")
            && !any.iter().any(|inner| self.holds(inner, value, path, depth + 1))
        {
            self.push(bare("must validate at least one schema (anyOf)"));
        }
        if let Some(one) = list("oneOf") {
            let held = one
                .iter()
                .filter(|inner| self.holds(inner, value, path, depth + 1))
                .count();
            let found = if held == 0 {
                "Found none valid"
            } else {
                "Found several valid"
            };
            if held != 1 {
                self.push(bare(&format!(
                    "must validate one and only one schema (oneOf). {found}"
                )));
            }
        }
        if let Some(not) = rules.get("not").filter(|v| v.is_object())
            && self.holds(not, value, path, depth + 1)
        {
            self.push(bare("must not validate the schema (not)"));
        }
    }
}
