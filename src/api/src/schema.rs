//! The shape of every type: fields, lists, maps, and who may own what.
//!
//! One model serves the built-in types and custom resources alike. A [`Schema`] is an arena of
//! nodes; a [`View`] is a node seen through its schema, cheap to copy, and what everything else
//! works with (strict decoding, patches, server-side apply, OpenAPI):
//!
//! ```text
//! Deployment ── spec ─► DeploymentSpec ── template ─► PodTemplateSpec ── spec ─► PodSpec
//!                        │ replicas: Int32                         containers: List, map by "name"
//! ```
//!
//! Names of definitions are those of Kubernetes (`io.k8s.api.apps.v1.Deployment`). Types may
//! refer to themselves (JSONSchemaProps), hence indices instead of boxes.
//!
//! Descriptions are not part of the model: they stay compressed in [`descriptions`] until a
//! document is written. What the built-in schema holds in memory is a few hundred kilobytes.

mod builtin;
mod parse;
mod values;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;

pub use builtin::{Descriptions, Text, descriptions, fingerprint, structure};
pub use parse::SchemaError;
pub use values::{apply_defaults, fill_values, zero_value};

pub(crate) type NodeId = u32;

/// Name of the definition of object metadata.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// A set of types.
#[derive(Debug)]
pub struct Schema {
    pub(crate) nodes: Vec<Node>,
    pub(crate) definitions: BTreeMap<Box<str>, NodeId>,
    pub(crate) kinds: HashMap<Gvk, Box<str>>,
    pub(crate) root: NodeId,
}

/// Group, version and kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// Empty for the core group.
    pub group: Box<str>,
    /// For example `v1`.
    pub version: Box<str>,
    /// For example `Pod`.
    pub kind: Box<str>,
}

/// One type.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub shape: Shape,
    /// A map or struct that has one owner as a whole.
    pub atomic: bool,
    /// Null is a value of its own (custom resources).
    pub nullable: bool,
}

/// What a value of a type looks like.
#[derive(Clone, Debug)]
pub enum Shape {
    /// No structure is known. `granular` values are still owned part by part
    /// (preserved unknown fields of custom resources); others as a whole.
    Any {
        /// Whether parts of the value have owners of their own.
        granular: bool,
    },
    /// A leaf.
    Scalar(Scalar),
    /// Named fields.
    Struct(Arc<Struct>),
    /// Any key, one type of value.
    Map(NodeRef),
    /// An array.
    List(NodeRef, ListKind),
}

/// A reference to another node of the same schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRef(pub(crate) NodeId);

/// The kinds of leaf values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// `true` or `false`.
    Boolean,
    /// A whole number of 32 bits.
    Int32,
    /// A whole number of 64 bits.
    Int64,
    /// Any number.
    Number,
    /// Text.
    String,
    /// Base64.
    Bytes,
    /// A time in seconds (RFC 3339).
    Time,
    /// A time in microseconds (RFC 3339).
    MicroTime,
    /// An amount with a unit; numbers are accepted.
    Quantity,
    /// A number or text.
    IntOrString,
}

/// A type with named fields.
#[derive(Debug, Default)]
pub struct Struct {
    /// Definition name; empty for inline types.
    pub name: Box<str>,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Fields that are not listed are kept as they are.
    pub open: bool,
    /// Values are checked against the types while decoding (built-in types);
    /// custom resources leave that to their validation.
    pub typed: bool,
}

/// One field of a struct.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name on the wire.
    pub name: Box<str>,
    pub(crate) node: NodeId,
    /// Must be there; such a field is written even when empty.
    pub required: bool,
    /// The value when absent.
    pub default: Option<Value>,
    /// How a strategic merge patch treats it.
    pub patch: PatchStrategy,
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged, not replaced.
    pub merge: bool,
    /// Maps are replaced, not merged.
    pub replace: bool,
    /// `$retainKeys` clears the keys that it does not name.
    pub retain_keys: bool,
    /// The field that identifies an item of a merged list of objects.
    pub merge_key: Option<Box<str>>,
}

/// Who owns what in a list.
#[derive(Clone, Debug, PartialEq)]
pub enum ListKind {
    /// The list as a whole.
    Atomic,
    /// Each value.
    Set,
    /// Each item, known by its keys.
    Map(Vec<ListKey>),
}

/// One key of a list that is a map.
#[derive(Clone, Debug, PartialEq)]
pub struct ListKey {
    /// Field of the item.
    pub name: Box<str>,
    /// Its value when the item does not say.
    pub default: Option<Value>,
}

impl Schema {
    /// The types of Kubernetes itself.
    pub fn builtin() -> &'static Schema {
        builtin::schema()
    }

    /// The type of a kind.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<View<'_>> {
        self.definition(self.definition_of(group, version, kind)?)
    }

    /// The name of the definition of a kind.
    pub fn definition_of(&self, group: &str, version: &str, kind: &str) -> Option<&str> {
        let gvk = Gvk {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        };
        self.kinds.get(&gvk).map(|name| &**name)
    }

    /// The type of a definition.
    pub fn definition(&self, name: &str) -> Option<View<'_>> {
        self.definitions.get(name).map(|id| View {
            schema: self,
            id: *id,
        })
    }

    /// Names of all definitions, sorted.
    pub fn definitions(&self) -> impl Iterator<Item = &str> {
        self.definitions.keys().map(|name| &**name)
    }

    /// The type of the objects that a schema of one custom resource describes.
    pub fn root(&self) -> View<'_> {
        View {
            schema: self,
            id: self.root,
        }
    }

    /// The schema of a custom resource from its `openAPIV3Schema`, with the metadata of all objects.
    pub fn custom(open_api_v3_schema: &Value) -> Result<Schema, SchemaError> {
        parse::custom(open_api_v3_schema)
    }

    /// The schema of objects about which nothing is known but their metadata.
    pub fn untyped() -> &'static Schema {
        builtin::untyped()
    }
}

/// A type within its schema.
#[derive(Clone, Copy)]
pub struct View<'a> {
    schema: &'a Schema,
    id: NodeId,
}

impl<'a> View<'a> {
    fn node(self) -> &'a Node {
        &self.schema.nodes[self.id as usize]
    }

    /// What values look like.
    pub fn shape(self) -> &'a Shape {
        &self.node().shape
    }

    /// A map or struct that has one owner as a whole.
    pub fn is_atomic(self) -> bool {
        self.node().atomic
    }

    /// Null is a value of its own.
    pub fn is_nullable(self) -> bool {
        self.node().nullable
    }

    /// Follows a reference of this type's shape.
    pub fn at(self, target: NodeRef) -> View<'a> {
        View {
            schema: self.schema,
            id: target.0,
        }
    }

    /// The struct behind this type, when it is one.
    pub fn as_struct(self) -> Option<&'a Struct> {
        match self.shape() {
            Shape::Struct(fields) => Some(fields),
            _ => None,
        }
    }

    /// A named field of a struct.
    pub fn field(self, name: &str) -> Option<(&'a Field, View<'a>)> {
        let field = self.as_struct()?.field(name)?;
        Some((field, self.of(field)))
    }

    /// The type of a field.
    pub fn of(self, field: &Field) -> View<'a> {
        View {
            schema: self.schema,
            id: field.node,
        }
    }

    /// The type of what lies under a key: a field of a struct, a value of a map, or unknown.
    pub fn member(self, key: &str) -> Option<View<'a>> {
        match self.shape() {
            Shape::Struct(fields) => match fields.field(key) {
                Some(field) => Some(self.of(field)),
                None if fields.open => Some(granular()),
                None => None,
            },
            Shape::Map(values) => Some(self.at(*values)),
            Shape::Any { .. } => Some(self),
            Shape::Scalar(_) | Shape::List(..) => None,
        }
    }

    /// The type of the items of a list.
    pub fn items(self) -> Option<View<'a>> {
        match self.shape() {
            Shape::List(items, _) => Some(self.at(*items)),
            Shape::Any { .. } => Some(self),
            _ => None,
        }
    }

    /// Follows a path of field names (`["spec", "template"]`).
    pub fn descend(self, path: &[&str]) -> Option<View<'a>> {
        path.iter().try_fold(self, |view, name| view.member(name))
    }

    /// The type as it is written in messages, in the manner of Go.
    pub fn type_name(self) -> String {
        match self.shape() {
            Shape::Any { .. } => "interface {}".into(),
            Shape::Scalar(scalar) => scalar.name().into(),
            Shape::Struct(fields) => {
                let mut parts = fields.name.rsplit('.');
                match (parts.next(), parts.next()) {
                    (Some(kind), Some(version)) => format!("{version}.{kind}"),
                    _ => "object".into(),
                }
            }
            Shape::Map(values) => format!("map[string]{}", self.at(*values).type_name()),
            Shape::List(items, _) => format!("[]{}", self.at(*items).type_name()),
        }
    }
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({})", self.type_name())
    }
}

/// The type of values about which nothing is known, owned part by part.
pub fn granular() -> View<'static> {
    builtin::anything().root()
}

impl Struct {
    /// A named field.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|field| (*field.name).cmp(name))
            .ok()
            .map(|at| &self.fields[at])
    }

    /// The last part of the definition's name: `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

impl Scalar {
    /// The type as it is written in messages.
    pub fn name(self) -> &'static str {
        match self {
            Scalar::Boolean => "bool",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Number => "float64",
            Scalar::String => "string",
            Scalar::Bytes => "[]uint8",
            Scalar::Time => "Time",
            Scalar::MicroTime => "MicroTime",
            Scalar::Quantity => "Quantity",
            Scalar::IntOrString => "IntOrString",
        }
    }
}

#[cfg(test)]
mod tests;
