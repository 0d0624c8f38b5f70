//! Tables for people: what `kubectl get` shows.
//!
//! A kind's columns are rows of [`columns`]: a heading, a type, whether only the wide form shows it, and where
//! the cell comes from (a path, a count, or a function in `cells` and `pods`). Custom resources bring their
//! columns as JSON paths. Time is an argument; ages are relative to it.

mod cells;
mod columns;
mod network;
mod pods;
mod workloads;

use crate::jsonpath::JsonPath;
use crate::kinds::{Kind, PrinterColumn};
use crate::{conversion, meta};
use columns::{Cell, Column};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// Which part of each object a row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl IncludeObject {
    /// Reads the `includeObject` query parameter.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "Object" => Some(Self::Object),
            "None" => Some(Self::None),
            _ => None,
        }
    }
}

/// The `columnDefinitions` of a kind.
pub fn columns(kind: &Kind) -> Value {
    let definition = |name: &str, ty: &str, format: &str, description: &str, priority: i32| json!({"name": name, "type": ty, "format": format, "description": description, "priority": priority});
    if kind.traits.custom {
        let name = definition("Name", "string", "name", NAME_TEXT, 0);
        let own = custom_columns(kind);
        let rest = own
            .iter()
            .map(|c| definition(&c.name, &c.kind, &c.format, &c.description, c.priority));
        return std::iter::once(name).chain(rest).collect();
    }
    columns::of(kind)
        .iter()
        .map(|c| {
            let format = if matches!(c.cell, Cell::Name) { "name" } else { "" };
            definition(c.name, c.kind, format, &describe(kind, c), i32::from(c.wide))
        })
        .collect()
}

const NAME_TEXT: &str = "Name of the object, unique for its kind within its namespace.";
const AGE_TEXT: &str = "Time since the object was created.";

fn describe(kind: &Kind, column: &Column) -> String {
    match column.cell {
        Cell::Name => NAME_TEXT.to_owned(),
        Cell::Age => AGE_TEXT.to_owned(),
        Cell::Created => "Time at which the object was created.".to_owned(),
        Cell::Path(path, _) => format!("The {}'s {path}.", kind.singular),
        Cell::Count(path) => format!("Number of items in the {}'s {path}.", kind.singular),
        Cell::Map(_) => format!("{} of the {}.", column.name, kind.singular),
    }
}

fn custom_columns(kind: &Kind) -> Cow<'_, [PrinterColumn]> {
    if kind.columns.is_empty() {
        Cow::Owned(vec![PrinterColumn {
            name: "Age".into(),
            kind: "date".into(),
            format: "".into(),
            description: AGE_TEXT.into(),
            priority: 0,
            json_path: ".metadata.creationTimestamp".into(),
        }])
    } else {
        Cow::Borrowed(&kind.columns)
    }
}

/// One `TableRow`: cells and the object.
pub fn row(kind: &Kind, obj: &Value, now: SystemTime, include: IncludeObject) -> Value {
    let mut row = json!({"cells": cells(kind, obj, now)});
    match include {
        IncludeObject::None => {}
        IncludeObject::Object => row["object"] = obj.clone(),
        IncludeObject::Metadata => {
            row["object"] = json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj.get("metadata").cloned().unwrap_or_else(|| json!({})),
            });
        }
    }
    if kind.group.is_empty()
        && kind.kind == "Pod"
        && let Some(condition) = pods::row_condition(obj)
    {
        row["conditions"] = json!([condition]);
    }
    row
}

/// The cells of one object, in the order of [`columns`].
pub fn cells(kind: &Kind, obj: &Value, now: SystemTime) -> Vec<Value> {
    if kind.traits.custom {
        let own = custom_columns(kind);
        let rest = own.iter().map(|c| custom_cell(c, obj, now));
        return std::iter::once(meta::name(obj).into()).chain(rest).collect();
    }
    // The autoscaler's cells are written against its stored form.
    let stored: Cow<'_, Value> =
        if kind.is_storage_version() || kind.group == "events.k8s.io" && is_core_event(obj) {
            Cow::Borrowed(obj)
        } else {
            let mut copy = obj.clone();
            conversion::to_storage(kind, &mut copy);
            Cow::Owned(copy)
        };
    columns::of(kind).iter().map(|c| cell(c, &stored, now)).collect()
}

fn is_core_event(obj: &Value) -> bool {
    obj.get("involvedObject").is_some()
}

fn cell(column: &Column, obj: &Value, now: SystemTime) -> Value {
    match column.cell {
        Cell::Name => meta::name(obj).into(),
        Cell::Age => since(meta::creation_timestamp(obj), now).into(),
        Cell::Created => meta::creation_timestamp(obj).into(),
        Cell::Count(path) => match meta::at(obj, path) {
            Some(Value::Array(a)) => a.len().into(),
            Some(Value::Object(o)) => o.len().into(),
            _ => 0.into(),
        },
        Cell::Path(path, default) => match meta::at(obj, path) {
            None | Some(Value::Null) if column.kind == "integer" => 0.into(),
            None | Some(Value::Null) => default.into(),
            Some(Value::String(s)) if s.is_empty() => default.into(),
            Some(v @ (Value::Number(_) | Value::Bool(_))) if column.kind == "string" => v.to_string().into(),
            Some(v) => v.clone(),
        },
        Cell::Map(f) => f(obj, now),
    }
}

fn custom_cell(column: &PrinterColumn, obj: &Value, now: SystemTime) -> Value {
    let Ok(path) = JsonPath::parse(&column.json_path) else {
        return Value::Null;
    };
    let found = path.find(obj);
    let Some(first) = found.first().filter(|v| !v.is_null()) else {
        return Value::Null;
    };
    match (&*column.kind, first) {
        ("date", Value::String(text)) => since(text, now).into(),
        ("integer", Value::Number(n)) => n
            .as_i64()
            .or_else(|| n.as_f64().map(|f| f as i64))
            .map_or(Value::Null, Value::from),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
        ("string", Value::String(_)) if found.len() == 1 => (*first).clone(),
        ("string", _) => {
            let text = |v: &&Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            let parts: Vec<String> = found.iter().map(text).collect();
            match parts.as_slice() {
                [one] => one.as_str().into(),
                many => format!("[{}]", many.join(",")).into(),
            }
        }
        _ => Value::Null,
    }
}

/// A whole `Table`; `list_metadata` is that of the list, or of the single object.
pub fn table(
    kind: &Kind,
    objects: &[Value],
    list_metadata: Value,
    now: SystemTime,
    include: IncludeObject,
) -> Value {
    let mut metadata = json!({});
    for field in ["resourceVersion", "continue", "remainingItemCount"] {
        if let Some(value) = list_metadata.get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns(kind),
        "rows": objects.iter().map(|o| row(kind, o, now, include)).collect::<Vec<_>>(),
    })
}

/// How long ago an RFC 3339 time was.
pub fn since(text: &str, now: SystemTime) -> String {
    match meta::parse_timestamp(text) {
        None => "<unknown>".into(),
        Some(then) => match now.duration_since(then) {
            Ok(age) => human_duration(age),
            // Clocks of different machines differ by a moment.
            Err(e) if e.duration() <= Duration::from_secs(1) => "0s".into(),
            Err(_) => "<invalid>".into(),
        },
    }
}

/// A duration at the precision people read: `5s`, `3m12s`, `47h`, `5d3h`, `2y10d`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |a: u64, unit: &str, b: u64, small: &str| {
        if b == 0 {
            format!("{a}{unit}")
        } else {
            format!("{a}{unit}{b}{small}")
        }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests;
