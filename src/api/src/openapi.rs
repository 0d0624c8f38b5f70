//! OpenAPI documents, made from the schema and the table of kinds.
//!
//! * version 3: an index, and one document per group version (`/openapi/v3/apis/apps/v1`);
//! * version 2: one document for everything, as JSON and in the protobuf form of gnostic, the
//!   only one that older command line clients accept.
//!
//! A document is text of a few hundred kilobytes that somebody asks for now and then: nothing is
//! kept here. Callers keep compressed bytes under the hash that the index names; it changes with
//! the kinds, their schemas and the version of the program, and can be computed without making
//! any document.

mod definitions;
mod gnostic;
mod operations;
mod parameters;
mod render;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::kinds::{Kind, Kinds};
use definitions::{Definitions, Dialect};
use operations::PathItem;

/// What clients ask for to get version 2 in protobuf.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What the answer is labelled: an `@` is not allowed in a content type.
pub const V2_PROTOBUF_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Version of Kubernetes that the documents describe.
const KUBERNETES: &str = "1.36";

/// What the documents are made from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// All kinds served.
    pub kinds: &'a Kinds,
    /// The `openAPIV3Schema` of a custom resource.
    pub custom: &'a dyn Fn(&Kind) -> Option<Value>,
}

impl Source<'static> {
    /// The built-in kinds alone.
    pub fn builtin() -> Source<'static> {
        Source {
            kinds: Kinds::builtin(),
            custom: &|_| None,
        }
    }
}

/// The answer to `/openapi/v3`.
pub fn v3_index(source: &Source<'_>) -> Value {
    let mut paths = Map::new();
    for name in names(source) {
        let hash = v3_hash(source, &name);
        let url = format!("/openapi/v3/{name}?hash={hash}");
        paths.insert(name, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// Names of all version 3 documents: `apis/apps/v1`.
fn names(source: &Source<'_>) -> Vec<String> {
    let mut names: Vec<String> = [
        ".well-known/openid-configuration",
        "api",
        "apis",
        "openid/v1/jwks",
        "version",
    ]
    .map(String::from)
    .into();
    for (group, versions) in source.kinds.groups() {
        if !group.is_empty() {
            names.push(format!("apis/{group}"));
        }
        names.extend(versions.iter().map(|version| match &*group {
            "" => format!("api/{version}"),
            _ => format!("apis/{group}/{version}"),
        }));
    }
    names
}

/// The hash of a version 3 document in the index.
pub fn v3_hash(source: &Source<'_>, name: &str) -> String {
    let mut hash = Hash::new();
    hash.add(name.as_bytes());
    for kind in source.kinds.iter() {
        if document_name(kind) == name {
            hash.add_kind(source, kind);
        }
    }
    // The document of a group names its versions.
    if let Some(group) = name.strip_prefix("apis/").filter(|rest| !rest.contains('/')) {
        for kind in source.kinds.iter().filter(|kind| kind.group == group) {
            hash.add(kind.version.as_bytes());
        }
    }
    hash.finish()
}

/// The hash of the version 2 document: an entity tag.
pub fn v2_hash(source: &Source<'_>) -> String {
    let mut hash = Hash::new();
    for kind in source.kinds.iter() {
        hash.add_kind(source, kind);
    }
    hash.finish()
}

fn document_name(kind: &Kind) -> String {
    match &*kind.group {
        "" => format!("api/{}", kind.version),
        group => format!("apis/{group}/{}", kind.version),
    }
}

/// The version 3 document of a group version.
pub fn v3_group(source: &Source<'_>, group: &str, version: &str) -> Option<Value> {
    let name = if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    };
    v3_document(source, &name)
}

/// A version 3 document by its name in the index.
pub fn v3_document(source: &Source<'_>, name: &str) -> Option<Value> {
    let items = document_items(source, name)?;
    let group_version = source
        .kinds
        .iter()
        .find(|kind| document_name(kind) == name)
        .map(|kind| (kind.group.to_string(), kind.version.to_string()));
    let definitions = Definitions::load(source, Dialect::V3 { group_version });
    let mut paths = Map::new();
    let mut wanted = BTreeSet::new();
    for item in &items {
        wanted.extend(item.definitions());
        paths.insert(item.path.clone(), item.v3());
    }
    let mut components = Map::new();
    let schemas = definitions.closure(wanted);
    if !schemas.is_empty() {
        components.insert("schemas".into(), Value::Object(schemas));
    }
    components.insert("securitySchemes".into(), security_schemes());
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": KUBERNETES },
        "paths": paths,
        "components": components,
    }))
}

fn document_items(source: &Source<'_>, name: &str) -> Option<Vec<PathItem>> {
    if let Some(item) = operations::fixed(name) {
        return Some(vec![item]);
    }
    if let Some(group) = name.strip_prefix("apis/").filter(|rest| !rest.contains('/')) {
        source.kinds.iter().find(|kind| kind.group == group)?;
        return Some(vec![operations::group(group)]);
    }
    let mut rows = source
        .kinds
        .iter()
        .filter(|kind| document_name(kind) == name)
        .peekable();
    let first = rows.peek()?;
    let mut items = vec![operations::resources(&first.group, &first.version)];
    rows.for_each(|kind| items.extend(operations::of_kind(kind)));
    Some(items)
}

/// The version 2 document.
pub fn v2(source: &Source<'_>) -> Value {
    let definitions = Definitions::load(source, Dialect::V2);
    let mut paths = Map::new();
    let mut wanted = BTreeSet::new();
    for name in names(source) {
        for item in document_items(source, &name).into_iter().flatten() {
            wanted.extend(item.definitions());
            paths.insert(item.path.clone(), item.v2());
        }
    }
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": KUBERNETES },
        "paths": paths,
        "definitions": definitions.closure(wanted),
        "parameters": parameters::shared_parameters(),
        "securityDefinitions": security_schemes(),
        "security": [{ "BearerToken": [] }],
    })
}

/// The version 2 document in protobuf.
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    gnostic::encode(document)
}

fn security_schemes() -> Value {
    json!({ "BearerToken": {
        "description": "Bearer Token authentication",
        "in": "header",
        "name": "authorization",
        "type": "apiKey",
    } })
}

/// FNV-1a, twice with different starts: enough to tell versions of a document apart.
struct Hash(u64, u64);

impl Hash {
    fn new() -> Hash {
        let mut hash = Hash(0xcbf2_9ce4_8422_2325, 0x6c62_272e_07bb_0142);
        hash.add(env!("CARGO_PKG_VERSION").as_bytes());
        hash.add(crate::schema::fingerprint());
        hash
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            self.1 = (self.1 ^ u64::from(*byte))
                .wrapping_mul(0x0100_0000_01b3)
                .rotate_left(5);
        }
    }

    fn add_kind(&mut self, source: &Source<'_>, kind: &Kind) {
        self.add(format!("{kind:?}").as_bytes());
        if let Some(schema) = Some(kind)
            .filter(|kind| kind.traits.custom)
            .and_then(source.custom)
        {
            self.add(schema.to_string().as_bytes());
        }
    }

    fn finish(&self) -> String {
        format!("{:016X}{:016X}", self.0, self.1)
    }
}
