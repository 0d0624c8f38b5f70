//! Custom resources: from a CustomResourceDefinition to rows of the table of kinds.
//!
//! Each served version of a definition becomes one [`Kind`] that carries a [`Custom`]: the schema in
//! the form everything else works with (decoding, pruning, defaults, apply), the same schema as it was
//! sent for the rules of [`check`], and the paths of the `scale` subresource. A definition is
//! translated once per change; requests only follow the row.
//!
//! Not evaluated: CEL rules (`x-kubernetes-validations`). A definition that has them is accepted with
//! a warning ([`cel_rules`]), because most published definitions have some. Conversion by webhook is
//! refused by the validation of definitions.

mod check;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

use crate::kinds::{Kind, PrinterColumn, STORAGE_ROOT, SelectableField, Str, Subresource, VIEW_VERBS};
use crate::schema::{Schema, SchemaError, View};
use crate::status::FieldError;
use crate::{meta, schema};

/// Deeper schemas are refused before anything walks them.
const MAX_DEPTH: usize = 100;

/// Why a version of a definition cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CustomError {
    /// The schema does not parse.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// A pattern is no regular expression.
    #[error("pattern at {path} cannot be used: {source}")]
    Pattern {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: regex::Error,
    },
    /// Too deep to walk safely.
    #[error("schema at {0} is nested too deeply")]
    TooDeep(String),
}

/// What a row of a custom resource knows beyond a built-in one.
pub struct Custom {
    /// `openAPIV3Schema` as it was sent.
    raw: Value,
    schema: Schema,
    patterns: HashMap<String, Regex>,
    /// Paths of the `scale` subresource.
    pub scale: Option<ScalePaths>,
    /// The definition is being deleted: nothing new may be created.
    pub terminating: bool,
}

/// Where the replicas of a custom resource are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// `spec.replicas`.
    pub spec: String,
    /// `status.replicas`.
    pub status: String,
    /// `status.selector`; empty when there is none.
    pub selector: String,
}

impl Custom {
    /// From the `openAPIV3Schema` of a version.
    pub fn new(raw: Value, scale: Option<ScalePaths>, terminating: bool) -> Result<Custom, CustomError> {
        let mut patterns = HashMap::new();
        collect_patterns(&raw, "openAPIV3Schema", 0, &mut patterns)?;
        Ok(Custom {
            schema: Schema::custom(&raw)?,
            patterns,
            raw,
            scale,
            terminating,
        })
    }

    /// The type of the objects.
    pub fn view(&self) -> View<'_> {
        self.schema.root()
    }

    /// The schema as it was sent.
    pub fn raw(&self) -> &Value {
        &self.raw
    }

    /// Sets the defaults of the schema.
    pub fn apply_defaults(&self, object: &mut Value) {
        schema::apply_defaults(self.view(), object);
    }

    /// Checks an object against the schema.
    pub fn validate(&self, errors: &mut Vec<FieldError>, object: &Value) {
        check::object(&self.raw, &self.patterns, object, errors);
    }
}

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Custom")
            .field("scale", &self.scale)
            .field("terminating", &self.terminating)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw && self.scale == other.scale && self.terminating == other.terminating
    }
}
impl Eq for Custom {}

fn collect_patterns(
    raw: &Value,
    path: &str,
    depth: usize,
    patterns: &mut HashMap<String, Regex>,
) -> Result<(), CustomError> {
    if depth > MAX_DEPTH {
        return Err(CustomError::TooDeep(path.into()));
    }
    let Value::Object(map) = raw else { return Ok(()) };
    if let Some(text) = map.get("pattern").and_then(Value::as_str)
        && !patterns.contains_key(text)
    {
        let regex = Regex::new(text).map_err(|source| CustomError::Pattern {
            path: path.into(),
            source,
        })?;
        patterns.insert(text.into(), regex);
    }
    for (inner, path) in subschemas(raw, path) {
        collect_patterns(inner, &path, depth + 1, patterns)?;
    }
    Ok(())
}

/// The schemas directly within a schema.
fn subschemas<'a>(raw: &'a Value, path: &str) -> Vec<(&'a Value, String)> {
    let mut out = Vec::new();
    for (name, inner) in meta::object_at(raw, "properties").into_iter().flatten() {
        out.push((inner, format!("{path}.properties[{name}]")));
    }
    for key in ["items", "additionalProperties", "not"] {
        if let Some(inner) = raw.get(key).filter(|v| v.is_object()) {
            out.push((inner, format!("{path}.{key}")));
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (at, inner) in meta::list_at(raw, key).iter().enumerate() {
            out.push((inner, format!("{path}.{key}[{at}]")));
        }
    }
    out
}

/// How many CEL rules a definition has, which are stored but not evaluated.
pub fn cel_rules(definition: &Value) -> usize {
    fn count(raw: &Value, depth: usize) -> usize {
        if depth > MAX_DEPTH {
            return 0;
        }
        let inner: usize = subschemas(raw, "").iter().map(|(s, _)| count(s, depth + 1)).sum();
        meta::list_at(raw, "x-kubernetes-validations").len() + inner
    }
    meta::list_at(definition, "spec.versions")
        .iter()
        .filter_map(|v| meta::at(v, "schema.openAPIV3Schema"))
        .map(|raw| count(raw, 0))
        .sum()
}

/// Whether the names of a definition are its own.
pub fn is_established(definition: &Value) -> bool {
    condition(definition, "Established") == Some("True")
}

/// The status of a condition.
pub fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a str> {
    meta::list_at(definition, "status.conditions")
        .iter()
        .find(|c| meta::str_at(c, "type") == kind)
        .map(|c| meta::str_at(c, "status"))
}

/// The rows of the versions that a definition serves.
pub fn rows(definition: &Value) -> Result<Vec<Kind>, CustomError> {
    let storage = meta::list_at(definition, "spec.versions")
        .iter()
        .find(|v| meta::bool_at(v, "storage"))
        .map(|v| meta::str_at(v, "name"))
        .unwrap_or_default();
    let mut versions: Vec<&Value> = meta::list_at(definition, "spec.versions")
        .iter()
        .filter(|v| meta::bool_at(v, "served"))
        .collect();
    versions.sort_by_key(|v| std::cmp::Reverse(crate::kinds::version_rank(meta::str_at(v, "name"))));
    versions
        .into_iter()
        .map(|version| row(definition, version, storage))
        .collect()
}

fn own(text: &str) -> Str {
    Cow::Owned(text.to_owned())
}

fn row(definition: &Value, version: &Value, storage: &str) -> Result<Kind, CustomError> {
    let text = |path: &str| meta::str_at(definition, path);
    let list = |path: &str| -> Vec<Str> {
        let items = meta::list_at(definition, path).iter();
        items.filter_map(Value::as_str).map(own).collect()
    };
    let (group, plural) = (text("spec.group"), text("spec.names.plural"));
    let name = meta::str_at(version, "name");
    let mut kind = Kind::custom(group, name, text("spec.names.kind"), plural);
    kind.list_kind = own(text("spec.names.listKind"));
    kind.singular = own(text("spec.names.singular"));
    kind.short_names = list("spec.names.shortNames");
    kind.categories = list("spec.names.categories");
    kind.namespaced = text("spec.scope") == "Namespaced";
    kind.storage = (own(group), own(storage));
    kind.prefix = own(&format!("{STORAGE_ROOT}{group}/{plural}/"));
    let view = |sub: &str, group: &str, version: &str, kind: &str| Subresource {
        name: own(sub),
        group: own(group),
        version: own(version),
        kind: own(kind),
        foreign: false,
        verbs: VIEW_VERBS.iter().map(|v| Cow::Borrowed(*v)).collect(),
    };
    if meta::at(version, "subresources.status").is_some_and(Value::is_object) {
        kind.traits.status = true;
        kind.subresources
            .push(view("status", group, name, text("spec.names.kind")));
    }
    let scale = meta::at(version, "subresources.scale").filter(|s| s.is_object());
    let scale = scale.map(|scale| {
        let path = |field: &str| meta::str_at(scale, field).trim_start_matches('.').to_owned();
        ScalePaths {
            spec: path("specReplicasPath"),
            status: path("statusReplicasPath"),
            selector: path("labelSelectorPath"),
        }
    });
    if scale.is_some() {
        kind.subresources.push(Subresource {
            foreign: true,
            ..view("scale", "autoscaling", "v1", "Scale")
        });
    }
    kind.columns = meta::list_at(version, "additionalPrinterColumns")
        .iter()
        .map(|column| PrinterColumn {
            name: own(meta::str_at(column, "name")),
            kind: own(meta::str_at(column, "type")),
            format: own(meta::str_at(column, "format")),
            description: own(meta::str_at(column, "description")),
            priority: meta::int_at(column, "priority")
                .and_then(|p| i32::try_from(p).ok())
                .unwrap_or(0),
            json_path: own(meta::str_at(column, "jsonPath")),
        })
        .collect();
    kind.fields = meta::list_at(version, "selectableFields")
        .iter()
        .map(|field| {
            let path = meta::str_at(field, "jsonPath").trim_start_matches('.');
            SelectableField {
                label: own(path),
                path: own(path),
                default: "".into(),
            }
        })
        .collect();
    let raw = meta::at(version, "schema.openAPIV3Schema")
        .cloned()
        .unwrap_or_default();
    kind.custom = Some(Arc::new(Custom::new(raw, scale, meta::is_deleting(definition))?));
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;
    use serde_json::json;

    fn definition(schema: Value) -> Value {
        json!({"spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList", "shortNames": ["wd"]},
            "versions": [
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}},
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}},
                {"name": "v0", "served": false, "storage": false, "schema": {"openAPIV3Schema": schema}}]}})
    }

    fn schema() -> Value {
        json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object", "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1, "maximum": 10},
                "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                "port": {"x-kubernetes-int-or-string": true},
                "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set", "maxItems": 2},
                "one": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
                    "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}})
    }

    #[test]
    fn every_served_version_is_a_row() {
        let rows = rows(&definition(schema())).unwrap();
        assert_eq!(
            rows.iter().map(|r| &*r.version).collect::<Vec<_>>(),
            ["v1", "v1beta1"]
        );
        assert!(rows[0].is_storage_version() && !rows[1].is_storage_version());
        assert!(rows[0].traits.status && !rows[1].traits.status);
        assert_eq!(rows[0].subresource("scale").unwrap().kind, "Scale");
        assert_eq!(rows[0].short_names, ["wd"]);
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let bad = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}});
        let error = rows(&definition(bad)).unwrap_err().to_string();
        assert!(
            error.starts_with("pattern at openAPIV3Schema.properties[a] cannot"),
            "{error}"
        );
    }

    #[test]
    fn objects_are_pruned_defaulted_and_judged() {
        let custom = Custom::new(schema(), None, false).unwrap();
        let sent = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"},
            "spec": {"size": 3, "wrong": 1, "free": {"any": [1]}}});
        let decoded = fields::strict_check(custom.view(), sent).unwrap();
        assert_eq!(decoded.problems, ["unknown field \"spec.wrong\""]);
        let mut object = decoded.value;
        custom.apply_defaults(&mut object);
        assert_eq!(
            object["spec"],
            json!({"size": 3, "color": "red", "free": {"any": [1]}})
        );
        let judge = |spec: Value| {
            let mut errors = Vec::new();
            let object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec});
            custom.validate(&mut errors, &object);
            errors
                .iter()
                .map(|e| format!("{}: {}", e.field, e.body()))
                .collect::<Vec<_>>()
        };
        let table = [
            (json!({"size": 1}), ""),
            (json!({}), "spec.size: Required value"),
            (
                json!({"size": 0}),
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
            ),
            (
                json!({"size": 11}),
                "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
            ),
            (
                json!({"size": "x"}),
                "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
            ),
            (
                json!({"size": 1, "color": "pink"}),
                "spec.color: Unsupported value: \"pink\": supported values: \"red\", \"blue\"",
            ),
            (
                json!({"size": 1, "code": "A"}),
                "spec.code: Invalid value: \"A\": spec.code in body should match '^[a-z]+$'",
            ),
            (
                json!({"size": 1, "code": "abcdef"}),
                "spec.code: Too long: may not be more than 5 bytes",
            ),
            (json!({"size": 1, "port": "http"}), ""),
            (
                json!({"size": 1, "port": true}),
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ),
            (
                json!({"size": 1, "tags": ["a", "a"]}),
                "spec.tags[1]: Duplicate value: \"a\"",
            ),
            (
                json!({"size": 1, "tags": ["a", "b", "c"]}),
                "spec.tags: Too many: 3: must have at most 2 items",
            ),
            (json!({"size": 1, "one": {"a": "x"}}), ""),
            (
                json!({"size": 1, "one": {}}),
                "spec.one: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
            ),
        ];
        for (spec, want) in table {
            let got = judge(spec.clone());
            if want.is_empty() {
                assert!(got.is_empty(), "{spec}: {got:?}");
            } else {
                assert!(got.iter().any(|g| g == want), "{spec}: {got:?}, want {want}");
            }
        }
    }

    #[test]
    fn cel_rules_are_counted() {
        let rules = json!({"type": "object", "x-kubernetes-validations": [{"rule": "true"}],
            "properties": {"a": {"type": "object", "x-kubernetes-validations": [{"rule": "true"}]}}});
        assert_eq!(cel_rules(&definition(rules)), 6);
    }
}
