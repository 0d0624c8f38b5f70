//! Definitions of types in both versions of OpenAPI.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Source;
use super::operations::definition_name;
use crate::schema::{Descriptions, OBJECT_META, Text, descriptions, structure};

/// Types that are any JSON value: they have no type on the wire.
const UNTYPED: &[&str] = &[
    "JSON",
    "JSONSchemaPropsOrArray",
    "JSONSchemaPropsOrBool",
    "JSONSchemaPropsOrStringArray",
];
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";

/// Which version of OpenAPI is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Dialect {
    /// One document.
    V2,
    /// The document of a group version.
    V3 {
        /// Its group and version.
        group_version: Option<(String, String)>,
    },
}

/// All definitions, decoded.
pub(super) struct Definitions {
    structure: Map<String, Value>,
    texts: Descriptions,
    custom: Map<String, Value>,
    group_versions: Vec<(String, String)>,
    dialect: Dialect,
}

impl Definitions {
    pub(super) fn load(source: &Source<'_>, dialect: Dialect) -> Definitions {
        let mut custom = Map::new();
        let mut group_versions = Vec::new();
        for kind in source.kinds.iter() {
            let group_version = (kind.group.to_string(), kind.version.to_string());
            if kind.traits.custom {
                let in_document = match &dialect {
                    Dialect::V2 => true,
                    Dialect::V3 {
                        group_version: wanted,
                    } => wanted.as_ref() == Some(&group_version),
                };
                if in_document {
                    let schema = (source.custom)(kind).unwrap_or_else(|| json!({ "type": "object" }));
                    let name = definition_name(&kind.group, &kind.version, &kind.kind);
                    let list = definition_name(&kind.group, &kind.version, &kind.list_kind);
                    let gvk =
                        |name: &str| json!([{ "group": kind.group, "version": kind.version, "kind": name }]);
                    custom.insert(
                        list,
                        custom_list(&name, &kind.kind, gvk(&kind.list_kind), &dialect),
                    );
                    custom.insert(name, custom_object(schema, gvk(&kind.kind), &dialect));
                }
            }
            if !group_versions.contains(&group_version) {
                group_versions.push(group_version);
            }
        }
        Definitions {
            structure: structure(),
            texts: descriptions(),
            custom,
            group_versions,
            dialect,
        }
    }

    /// The definitions named and all that they refer to.
    pub(super) fn closure(&self, names: BTreeSet<String>) -> Map<String, Value> {
        let mut out = Map::new();
        let mut open: Vec<String> = names.into_iter().collect();
        while let Some(name) = open.pop() {
            if out.contains_key(&name) {
                continue;
            }
            let Some(definition) = self.definition(&name) else {
                continue;
            };
            references(&definition, &mut open);
            out.insert(name, definition);
        }
        out
    }

    fn definition(&self, name: &str) -> Option<Value> {
        if let Some(custom) = self.custom.get(name) {
            return Some(custom.clone());
        }
        let source = self.structure.get(name)?.as_object()?;
        let empty = Text::default();
        let Text(text, field_texts) = self.texts.get(name).unwrap_or(&empty);
        let mut out = Map::new();
        if !text.is_empty() {
            out.insert("description".into(), text.as_str().into());
        }
        let is_v2 = self.dialect == Dialect::V2;
        match name.strip_prefix("io.k8s.apimachinery.pkg.") {
            Some("api.resource.Quantity") => {
                out.extend(one_of(is_v2, &["string", "number"]));
                return Some(Value::Object(out));
            }
            Some("util.intstr.IntOrString") => {
                out.extend(one_of(is_v2, &["integer", "string"]));
                out.insert("format".into(), "int-or-string".into());
                return Some(Value::Object(out));
            }
            _ => {}
        }
        if name
            .strip_prefix(APIEXTENSIONS)
            .is_some_and(|short| UNTYPED.contains(&short))
        {
            return Some(Value::Object(out));
        }
        let required: Vec<&str> = source
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (key, value) in source {
            match key.as_str() {
                "properties" => {
                    let properties = value.as_object().into_iter().flatten().map(|(field, schema)| {
                        let text = field_texts.get(field).map(String::as_str).unwrap_or_default();
                        let required = required.contains(&field.as_str());
                        (field.clone(), self.property(field, schema, text, required))
                    });
                    out.insert(key.clone(), Value::Object(properties.collect()));
                }
                "x-kubernetes-preserve-unknown-fields" => {}
                "x-kubernetes-group-version-kind" => {
                    let every = source.contains_key("x-skiff-every-group");
                    out.insert(
                        key.clone(),
                        if every {
                            self.every_group(name)
                        } else {
                            value.clone()
                        },
                    );
                }
                key if key.starts_with("x-skiff") => {}
                _ => {
                    out.insert(key.clone(), self.inner(value));
                }
            }
        }
        Some(Value::Object(out))
    }

    /// Kinds that are part of every group.
    fn every_group(&self, name: &str) -> Value {
        let kind = name.rsplit('.').next().unwrap_or_default();
        let core = ("".to_owned(), "v1".to_owned());
        let own: Vec<&(String, String)> = match &self.dialect {
            Dialect::V2 => self
                .group_versions
                .iter()
                .filter(|group_version| **group_version != core)
                .collect(),
            Dialect::V3 { group_version } => group_version.iter().filter(|own| **own != core).collect(),
        };
        let all = std::iter::once(&core).chain(own);
        Value::Array(
            all.map(|(group, version)| json!({ "group": group, "version": version, "kind": kind }))
                .collect(),
        )
    }

    fn property(&self, field: &str, schema: &Value, text: &str, required: bool) -> Value {
        let Value::Object(schema) = schema else {
            return schema.clone();
        };
        let mut out = Map::new();
        if !text.is_empty() {
            out.insert("description".into(), text.into());
        }
        let mut reference = None;
        for (key, value) in schema {
            match key.as_str() {
                "$ref" => reference = value.as_str(),
                "default" if self.dialect == Dialect::V2 => {}
                key if key.starts_with("x-skiff") => {}
                _ => {
                    out.insert(key.clone(), self.inner(value));
                }
            }
        }
        if self.dialect != Dialect::V2
            && !out.contains_key("default")
            && !schema.contains_key("x-skiff-pointer")
            && let Some(default) = implied_default(field, schema, required)
        {
            out.insert("default".into(), default);
        }
        if let Some(name) = reference {
            self.refer(&mut out, name);
        }
        Value::Object(out)
    }

    /// Version 3 does not allow anything beside a reference.
    fn refer(&self, out: &mut Map<String, Value>, name: &str) {
        match &self.dialect {
            Dialect::V2 => {
                out.insert("$ref".into(), format!("#/definitions/{name}").into());
            }
            Dialect::V3 { .. } => {
                let reference = json!({ "$ref": format!("#/components/schemas/{name}") });
                if out.is_empty() {
                    out.insert("$ref".into(), reference["$ref"].clone());
                } else {
                    out.insert("allOf".into(), json!([reference]));
                }
            }
        }
    }

    /// Items and values, and everything else as it is.
    fn inner(&self, value: &Value) -> Value {
        let Value::Object(map) = value else {
            return value.clone();
        };
        let mut out = Map::new();
        let mut reference = None;
        for (key, value) in map {
            match key.as_str() {
                "$ref" => reference = value.as_str(),
                _ => {
                    out.insert(key.clone(), self.inner(value));
                }
            }
        }
        if let Some(name) = reference {
            self.refer(&mut out, name);
        }
        Value::Object(out)
    }
}

fn one_of(is_v2: bool, types: &[&str]) -> Map<String, Value> {
    let mut out = Map::new();
    if is_v2 {
        out.insert("type".into(), "string".into());
    } else {
        out.insert(
            "oneOf".into(),
            types.iter().map(|name| json!({ "type": name })).collect(),
        );
    }
    out
}

fn implied_default(field: &str, schema: &Map<String, Value>, required: bool) -> Option<Value> {
    if field == "metadata" && schema.contains_key("$ref") {
        return Some(json!({}));
    }
    match schema.get("type").and_then(Value::as_str).filter(|_| required)? {
        "string" => Some("".into()),
        "integer" => Some(0.into()),
        "boolean" => Some(false.into()),
        _ => None,
    }
}

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match inner {
                    Value::String(target) if key == "$ref" => {
                        out.extend(target.rsplit('/').next().map(str::to_owned));
                    }
                    _ => references(inner, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, out)),
        _ => {}
    }
}

fn custom_reference(dialect: &Dialect, name: &str) -> Value {
    match dialect {
        Dialect::V2 => json!({ "$ref": format!("#/definitions/{name}") }),
        Dialect::V3 { .. } => json!({ "allOf": [{ "$ref": format!("#/components/schemas/{name}") }] }),
    }
}

fn object_fields(properties: &mut Map<String, Value>, metadata: &str, dialect: &Dialect) {
    properties.insert(
        "apiVersion".into(),
        json!({ "type": "string", "description": "The group and version of this representation of the object." }),
    );
    properties.insert(
        "kind".into(),
        json!({ "type": "string", "description": "The kind of the object." }),
    );
    let mut reference = custom_reference(dialect, metadata);
    reference["description"] = "Name, labels and all else that every object has.".into();
    properties.insert("metadata".into(), reference);
}

fn custom_list(name: &str, kind: &str, gvk: Value, dialect: &Dialect) -> Value {
    let mut properties = Map::new();
    let items = match custom_reference(dialect, name) {
        Value::Object(mut reference) => match reference.remove("allOf") {
            Some(Value::Array(mut only)) => only.pop().unwrap_or_default(),
            _ => Value::Object(reference),
        },
        other => other,
    };
    properties.insert(
        "items".into(),
        json!({ "type": "array", "items": items, "description": format!("The {kind} objects.") }),
    );
    object_fields(
        &mut properties,
        "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
        dialect,
    );
    json!({
        "type": "object",
        "description": format!("A list of {kind} objects."),
        "required": ["items"],
        "properties": properties,
        "x-kubernetes-group-version-kind": gvk,
    })
}

fn custom_object(mut schema: Value, gvk: Value, dialect: &Dialect) -> Value {
    if *dialect == Dialect::V2 {
        schema = for_v2(schema);
    }
    if !schema.is_object() {
        schema = json!({});
    }
    schema["x-kubernetes-group-version-kind"] = gvk;
    schema["type"] = "object".into();
    // A kind that keeps everything has no fields to speak of in version 2.
    let hidden = *dialect == Dialect::V2
        && schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if !hidden {
        if !schema.get("properties").is_some_and(Value::is_object) {
            schema["properties"] = json!({});
        }
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            object_fields(properties, OBJECT_META, dialect);
        }
    }
    schema
}

/// What version 2 can say of a structural schema; what it cannot is left out, so that clients do
/// not refuse values that the server accepts.
fn for_v2(schema: Value) -> Value {
    let Value::Object(mut schema) = schema else {
        return schema;
    };
    for key in [
        "oneOf",
        "anyOf",
        "allOf",
        "not",
        "default",
        "x-kubernetes-validations",
        "example",
    ] {
        schema.remove(key);
    }
    let flag = |schema: &Map<String, Value>, key: &str| schema.get(key) == Some(&Value::Bool(true));
    if flag(&schema, "nullable") {
        for key in [
            "nullable",
            "type",
            "items",
            "properties",
            "additionalProperties",
            "format",
        ] {
            schema.remove(key);
        }
    }
    schema.remove("nullable");
    if flag(&schema, "x-kubernetes-preserve-unknown-fields") {
        for key in ["type", "items", "properties", "additionalProperties"] {
            schema.remove(key);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = schema.remove(key) {
            schema.insert(key.into(), for_v2(inner));
        }
    }
    if let Some(Value::Object(properties)) = schema.remove("properties") {
        let properties = properties.into_iter().map(|(name, inner)| (name, for_v2(inner)));
        schema.insert("properties".into(), Value::Object(properties.collect()));
    }
    Value::Object(schema)
}
