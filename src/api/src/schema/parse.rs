//! Schemas from OpenAPI documents: the built-in definitions and those of custom resources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{
    Field, Gvk, ListKey, ListKind, Node, NodeId, NodeRef, OBJECT_META, PatchStrategy, Scalar, Schema, Shape,
    Struct,
};

/// Deeper schemas are refused: each level costs stack in everything that walks one.
const MAX_DEPTH: usize = 100;
/// A schema with more nodes is refused; the largest built-in kind has about four thousand.
const MAX_NODES: usize = 100_000;

/// Why a schema cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Not an object where one is needed.
    #[error("schema at {0} must be an object")]
    NotAnObject(String),
    /// A reference to nowhere.
    #[error("schema at {path} refers to {target}, which is not defined")]
    UnknownReference {
        /// Where.
        path: String,
        /// What.
        target: String,
    },
    /// Too deep to walk safely.
    #[error("schema at {0} is nested too deeply")]
    TooDeep(String),
    /// Too large to hold.
    #[error("schema has more than {MAX_NODES} types")]
    TooLarge,
}

/// All built-in types.
pub(super) fn builtin(definitions: &Map<String, Value>) -> Result<Schema, SchemaError> {
    let mut parser = Parser {
        typed: true,
        ..Parser::default()
    };
    for (index, name) in definitions.keys().enumerate() {
        parser.nodes.push(Node::any(false));
        parser.definitions.insert(name.as_str().into(), index as NodeId);
    }
    for (index, (name, definition)) in definitions.iter().enumerate() {
        let node = parser.node(definition, name, name, 0)?;
        parser.nodes[index] = node;
    }
    for (node, target, atomic) in std::mem::take(&mut parser.overrides) {
        parser.nodes[node as usize] = Node {
            atomic,
            ..parser.nodes[target as usize].clone()
        };
    }
    let kinds = kinds(definitions);
    let mut schema = Schema {
        nodes: parser.nodes,
        definitions: parser.definitions,
        kinds,
        root: 0,
    };
    resolve_list_keys(&mut schema);
    Ok(schema)
}

fn kinds(definitions: &Map<String, Value>) -> HashMap<Gvk, Box<str>> {
    let mut kinds = HashMap::new();
    for (name, definition) in definitions {
        for gvk in definition
            .get("x-kubernetes-group-version-kind")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |key: &str| gvk.get(key).and_then(Value::as_str).unwrap_or_default().into();
            kinds.insert(
                Gvk {
                    group: text("group"),
                    version: text("version"),
                    kind: text("kind"),
                },
                name.as_str().into(),
            );
        }
    }
    kinds
}

/// One custom resource: its own schema, with the fields every object has.
pub(super) fn custom(schema: &Value) -> Result<Schema, SchemaError> {
    let mut parser = Parser::default();
    let mut root = parser.node(schema, "", "openAPIV3Schema", 0)?;
    let mut fields = match root.shape {
        Shape::Struct(fields) => Arc::try_unwrap(fields).unwrap_or_default(),
        Shape::Map(_) | Shape::Any { .. } => Struct {
            open: true,
            ..Struct::default()
        },
        _ => return Err(SchemaError::NotAnObject("openAPIV3Schema".into())),
    };
    parser.add_object_fields(&mut fields);
    root.shape = Shape::Struct(Arc::new(fields));
    let id = parser.push(root)?;
    let mut schema = Schema {
        nodes: parser.nodes,
        definitions: BTreeMap::new(),
        kinds: HashMap::new(),
        root: id,
    };
    resolve_list_keys(&mut schema);
    Ok(schema)
}

/// The defaults of list keys stand on the item's fields, which may come later than the list.
fn resolve_list_keys(schema: &mut Schema) {
    for index in 0..schema.nodes.len() {
        let Shape::List(items, ListKind::Map(keys)) = &schema.nodes[index].shape else {
            continue;
        };
        let Shape::Struct(item) = &schema.nodes[items.0 as usize].shape else {
            continue;
        };
        let keys = keys
            .iter()
            .map(|key| {
                let default = item.field(&key.name).and_then(|field| field.default.clone());
                ListKey {
                    name: key.name.clone(),
                    default,
                }
            })
            .collect();
        let items = *items;
        schema.nodes[index].shape = Shape::List(items, ListKind::Map(keys));
    }
}

impl Node {
    pub(super) fn any(granular: bool) -> Node {
        Node::of(Shape::Any { granular })
    }

    fn of(shape: Shape) -> Node {
        Node {
            shape,
            atomic: false,
            nullable: false,
        }
    }
}

#[derive(Default)]
struct Parser {
    nodes: Vec<Node>,
    definitions: BTreeMap<Box<str>, NodeId>,
    /// Nodes that are another one with a different answer to "atomic".
    overrides: Vec<(NodeId, NodeId, bool)>,
    typed: bool,
}

impl Parser {
    fn push(&mut self, node: Node) -> Result<NodeId, SchemaError> {
        if self.nodes.len() >= MAX_NODES {
            return Err(SchemaError::TooLarge);
        }
        self.nodes.push(node);
        Ok(self.nodes.len() as NodeId - 1)
    }

    /// The node for a schema, for the definition `name` when it is one.
    fn node(&mut self, schema: &Value, name: &str, path: &str, depth: usize) -> Result<Node, SchemaError> {
        if depth > MAX_DEPTH {
            return Err(SchemaError::TooDeep(path.into()));
        }
        // `additionalProperties: true` and empty schemas: anything.
        let Value::Object(schema) = schema else {
            return match schema {
                Value::Bool(_) | Value::Null => Ok(Node::any(!self.typed)),
                _ => Err(SchemaError::NotAnObject(path.into())),
            };
        };
        let text = |key: &str| schema.get(key).and_then(Value::as_str);
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
        let shape = if let Some(scalar) = named_scalar(name) {
            Shape::Scalar(scalar)
        } else if flag("x-kubernetes-int-or-string") {
            Shape::Scalar(Scalar::IntOrString)
        } else {
            match text("type") {
                Some("object") => self.object(schema, name, path, depth)?,
                Some("array") => {
                    let items = schema.get("items").unwrap_or(&Value::Null);
                    let items = self.reference(items, &format!("{path}[]"), depth)?;
                    Shape::List(NodeRef(items), list_kind(schema))
                }
                Some("string") if self.typed && text("format") == Some("byte") => {
                    Shape::Scalar(Scalar::Bytes)
                }
                Some("string") => Shape::Scalar(Scalar::String),
                Some("boolean") => Shape::Scalar(Scalar::Boolean),
                Some("integer") if text("format") == Some("int32") => Shape::Scalar(Scalar::Int32),
                Some("integer") => Shape::Scalar(Scalar::Int64),
                Some("number") => Shape::Scalar(Scalar::Number),
                _ if schema.contains_key("properties") => self.object(schema, name, path, depth)?,
                // A built-in type without a type is any JSON, owned as a whole.
                _ => Shape::Any {
                    granular: !self.typed,
                },
            }
        };
        Ok(Node {
            shape,
            atomic: text("x-kubernetes-map-type") == Some("atomic"),
            nullable: flag("nullable"),
        })
    }

    fn object(
        &mut self,
        schema: &Map<String, Value>,
        name: &str,
        path: &str,
        depth: usize,
    ) -> Result<Shape, SchemaError> {
        let preserve = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        let embedded = schema.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
        let Some(Value::Object(properties)) = schema.get("properties") else {
            match schema.get("additionalProperties") {
                Some(Value::Bool(false)) | None => {}
                Some(values) => {
                    let values = self.reference(values, &format!("{path}.*"), depth)?;
                    return Ok(Shape::Map(NodeRef(values)));
                }
            }
            if preserve && !embedded {
                return Ok(Shape::Any {
                    granular: !self.typed,
                });
            }
            let mut fields = Struct {
                name: name.into(),
                typed: self.typed,
                open: preserve,
                ..Struct::default()
            };
            if embedded {
                self.add_object_fields(&mut fields);
            }
            return Ok(Shape::Struct(Arc::new(fields)));
        };
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut fields = Vec::with_capacity(properties.len());
        for (field, property) in properties {
            let node = self.reference(property, &format!("{path}.{field}"), depth)?;
            let required = required.contains(&field.as_str());
            let default = property
                .get("default")
                .cloned()
                .or_else(|| self.implied_default(field, property, required));
            fields.push(Field {
                name: field.as_str().into(),
                node,
                required,
                default,
                patch: patch_strategy(property),
            });
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let mut fields = Struct {
            name: name.into(),
            fields,
            open: preserve,
            typed: self.typed,
        };
        if embedded {
            self.add_object_fields(&mut fields);
        }
        Ok(Shape::Struct(Arc::new(fields)))
    }

    /// Required scalars and metadata of built-in types are held by value.
    fn implied_default(&self, field: &str, schema: &Value, required: bool) -> Option<Value> {
        if !self.typed || schema.get("x-skiff-pointer").is_some() {
            return None;
        }
        if field == "metadata" && schema.get("$ref").is_some() {
            return Some(Value::Object(Map::new()));
        }
        match schema.get("type").and_then(Value::as_str).filter(|_| required)? {
            "string" => Some("".into()),
            "integer" => Some(0.into()),
            "boolean" => Some(false.into()),
            _ => None,
        }
    }

    /// The node of a schema in place, or of the definition it refers to.
    fn reference(&mut self, schema: &Value, path: &str, depth: usize) -> Result<NodeId, SchemaError> {
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let Some(id) = self.definitions.get(target).copied() else {
                return Err(SchemaError::UnknownReference {
                    path: path.into(),
                    target: target.into(),
                });
            };
            let Some(how) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) else {
                return Ok(id);
            };
            let node = self.push(Node::any(false))?;
            self.overrides.push((node, id, how == "atomic"));
            return Ok(node);
        }
        let node = self.node(schema, "", path, depth + 1)?;
        self.push(node)
    }

    /// `apiVersion`, `kind` and `metadata`, as every object has them.
    fn add_object_fields(&mut self, fields: &mut Struct) {
        let string = self.import_node(Node::of(Shape::Scalar(Scalar::String)));
        let metadata = match Schema::builtin().definition(OBJECT_META) {
            Some(view) => self.import(view.schema, view.id, &mut HashMap::new()),
            None => self.import_node(Node::any(true)),
        };
        for (name, node) in [("apiVersion", string), ("kind", string), ("metadata", metadata)] {
            fields.fields.retain(|field| &*field.name != name);
            fields.fields.push(Field {
                name: name.into(),
                node,
                required: false,
                default: None,
                patch: PatchStrategy::default(),
            });
        }
        fields.fields.sort_by(|a, b| a.name.cmp(&b.name));
    }

    fn import_node(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() as NodeId - 1
    }

    /// Copies a type of another schema with all it refers to.
    fn import(&mut self, from: &Schema, id: NodeId, done: &mut HashMap<NodeId, NodeId>) -> NodeId {
        if let Some(copied) = done.get(&id) {
            return *copied;
        }
        let source = &from.nodes[id as usize];
        let copy = self.import_node(Node::any(false));
        done.insert(id, copy);
        let shape = match &source.shape {
            Shape::Struct(fields) => {
                let copied = fields
                    .fields
                    .iter()
                    .map(|field| Field {
                        node: self.import(from, field.node, done),
                        ..field.clone()
                    })
                    .collect();
                Shape::Struct(Arc::new(Struct {
                    name: fields.name.clone(),
                    fields: copied,
                    open: fields.open,
                    typed: fields.typed,
                }))
            }
            Shape::Map(values) => Shape::Map(NodeRef(self.import(from, values.0, done))),
            Shape::List(items, kind) => Shape::List(NodeRef(self.import(from, items.0, done)), kind.clone()),
            Shape::Any { granular } => Shape::Any { granular: *granular },
            Shape::Scalar(scalar) => Shape::Scalar(*scalar),
        };
        self.nodes[copy as usize] = Node {
            shape,
            ..source.clone()
        };
        copy
    }
}

fn named_scalar(name: &str) -> Option<Scalar> {
    let name = name.strip_prefix("io.k8s.apimachinery.pkg.")?;
    Some(match name {
        "api.resource.Quantity" => Scalar::Quantity,
        "apis.meta.v1.Time" => Scalar::Time,
        "apis.meta.v1.MicroTime" => Scalar::MicroTime,
        "util.intstr.IntOrString" => Scalar::IntOrString,
        _ => return None,
    })
}

fn list_kind(schema: &Map<String, Value>) -> ListKind {
    match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => {
            let keys = schema
                .get("x-kubernetes-list-map-keys")
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            let keys: Vec<ListKey> = keys
                .filter_map(Value::as_str)
                .map(|name| ListKey {
                    name: name.into(),
                    default: None,
                })
                .collect();
            if keys.is_empty() {
                ListKind::Atomic
            } else {
                ListKind::Map(keys)
            }
        }
        _ => ListKind::Atomic,
    }
}

fn patch_strategy(schema: &Value) -> PatchStrategy {
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    let strategies = text("x-kubernetes-patch-strategy").unwrap_or_default();
    let has = |name: &str| strategies.split(',').any(|strategy| strategy == name);
    PatchStrategy {
        merge: has("merge"),
        replace: has("replace"),
        retain_keys: has("retainKeys"),
        merge_key: text("x-kubernetes-patch-merge-key").map(Into::into),
    }
}
