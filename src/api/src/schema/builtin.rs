//! The built-in schema as the build wrote it, decoded on first use.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Node, Schema, parse};

static STRUCTURE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/structure.z"));
static DESCRIPTIONS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.z"));

/// Texts of a definition and of its fields.
#[derive(Debug, Default, Deserialize)]
pub struct Text(pub String, pub BTreeMap<String, String>);

/// Texts by definition name.
pub type Descriptions = HashMap<String, Text>;

fn inflate(compressed: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let result = flate2::read::ZlibDecoder::new(compressed).read_to_end(&mut out);
    // The build wrote it: a failure is a broken binary, not an input.
    debug_assert!(result.is_ok(), "embedded data is damaged");
    out
}

/// The definitions without descriptions, decoded anew: for those who write documents.
pub fn structure() -> Map<String, Value> {
    serde_json::from_slice(&inflate(STRUCTURE)).unwrap_or_default()
}

/// Something that differs when the built-in schema differs.
pub fn fingerprint() -> &'static [u8] {
    // The trailer of the compressed stream is a checksum of its content.
    &STRUCTURE[STRUCTURE.len().saturating_sub(4)..]
}

/// The descriptions, decoded anew: for those who write documents.
pub fn descriptions() -> Descriptions {
    serde_json::from_slice(&inflate(DESCRIPTIONS)).unwrap_or_default()
}

pub(super) fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| match parse::builtin(&structure()) {
        Ok(schema) => schema,
        Err(err) => unreachable!("the build checked the schema: {err}"),
    });
    &SCHEMA
}

pub(super) fn untyped() -> &'static Schema {
    static UNTYPED: LazyLock<Schema> = LazyLock::new(|| {
        let open = serde_json::json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        match parse::custom(&open) {
            Ok(schema) => schema,
            Err(err) => unreachable!("a literal schema: {err}"),
        }
    });
    &UNTYPED
}

/// A schema of one type: anything, owned part by part.
pub(super) fn anything() -> &'static Schema {
    static ANYTHING: LazyLock<Schema> = LazyLock::new(|| Schema {
        nodes: vec![Node::any(true)],
        definitions: BTreeMap::new(),
        kinds: HashMap::new(),
        root: 0,
    });
    &ANYTHING
}
