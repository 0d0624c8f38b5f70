//! Patches without a schema: RFC 6902 (JSON patch) and RFC 7386 (merge patch).
//!
//! Both are bounded. A JSON patch of a few bytes could otherwise double a document with each
//! copy, or nest it deeper than any stack: operations are counted, what `copy` adds is summed up,
//! and no result is nested deeper than [`MAX_DEPTH`].

use json_patch::jsonptr::Pointer;
use json_patch::{Patch, PatchErrorKind, PatchOperation};
use serde_json::{Map, Value};

pub use crate::strategic::strategic_merge;

/// Operations in one JSON patch, as in Kubernetes.
pub const MAX_OPERATIONS: usize = 10_000;
/// Bytes that the copies of one JSON patch may add: the size of a body.
const MAX_COPIED: usize = crate::fields::MAX_BODY;
/// Nesting of a patched document; the JSON parser reads no more.
const MAX_DEPTH: usize = 128;

/// Why a patch was refused. [`PatchError::code`] is the HTTP status that goes with it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatchError {
    /// The body is no patch.
    #[error("error decoding patch: {0}")]
    Syntax(String),
    /// Too many operations.
    #[error("the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// The result would be too large.
    #[error("the patch adds more than {MAX_COPIED} bytes by copying")]
    TooLarge,
    /// The result would be nested too deeply.
    #[error("the patch nests values deeper than {MAX_DEPTH} levels at {0:?}")]
    TooDeep(String),
    /// An operation does not fit the document.
    #[error("{operation} operation does not apply: {why}")]
    Operation {
        /// `add`, `remove`, ...
        operation: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A strategic merge patch that contradicts itself.
    #[error("invalid strategic merge patch: {0}")]
    Strategic(String),
}

impl PatchError {
    /// The HTTP status for this error.
    pub fn code(&self) -> u16 {
        match self {
            PatchError::Syntax(_) | PatchError::Strategic(_) => 400,
            PatchError::TooManyOperations(_) | PatchError::TooLarge => 413,
            PatchError::TooDeep(_) | PatchError::Operation { .. } => 422,
        }
    }
}

/// Applies a JSON patch.
pub fn json_patch(mut document: Value, patch: &[u8]) -> Result<Value, PatchError> {
    let Patch(operations) =
        serde_json::from_slice(patch).map_err(|err| PatchError::Syntax(err.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let mut copied = 0_usize;
    for operation in &operations {
        let (name, depth) = measure(operation, &document, &mut copied)?;
        if depth > MAX_DEPTH {
            return Err(PatchError::TooDeep(operation.path().to_string()));
        }
        json_patch::patch_unsafe(&mut document, std::slice::from_ref(operation)).map_err(|err| {
            PatchError::Operation {
                operation: name,
                why: reason(operation, &err.kind),
            }
        })?;
    }
    Ok(document)
}

/// The name of an operation, and how deep the document gets where it puts something.
fn measure(
    operation: &PatchOperation,
    document: &Value,
    copied: &mut usize,
) -> Result<(&'static str, usize), PatchError> {
    let below = |path: &Pointer, value: Option<&Value>| {
        path.count() + value.map_or(0, |value| depth(value, MAX_DEPTH))
    };
    Ok(match operation {
        PatchOperation::Add(add) => ("add", below(&add.path, Some(&add.value))),
        PatchOperation::Replace(replace) => ("replace", below(&replace.path, Some(&replace.value))),
        PatchOperation::Remove(_) => ("remove", 0),
        PatchOperation::Test(_) => ("test", 0),
        PatchOperation::Move(from) => ("move", below(&from.path, find(document, &from.from))),
        PatchOperation::Copy(from) => {
            let source = find(document, &from.from);
            if let Some(source) = source {
                *copied = copied.saturating_add(size(source));
                if *copied > MAX_COPIED {
                    return Err(PatchError::TooLarge);
                }
            }
            ("copy", below(&from.path, source))
        }
    })
}

fn find<'v>(document: &'v Value, path: &Pointer) -> Option<&'v Value> {
    document.pointer(path.as_str())
}

fn reason(operation: &PatchOperation, kind: &PatchErrorKind) -> String {
    let path = operation.path();
    match kind {
        PatchErrorKind::TestFailed => format!("testing value {path} failed"),
        PatchErrorKind::InvalidPointer => format!("doc is missing path: {path}: missing value"),
        PatchErrorKind::InvalidFromPointer => match operation {
            PatchOperation::Move(from) => format!("doc is missing from path: {}: missing value", from.from),
            PatchOperation::Copy(from) => format!("doc is missing from path: {}: missing value", from.from),
            _ => format!("doc is missing from path of {path}"),
        },
        other => format!("{path}: {other}"),
    }
}

/// Nesting of a value, counted no further than `limit`.
fn depth(value: &Value, limit: usize) -> usize {
    if limit == 0 {
        return 1;
    }
    match value {
        Value::Object(map) => {
            1 + map
                .values()
                .map(|inner| depth(inner, limit - 1))
                .max()
                .unwrap_or(0)
        }
        Value::Array(items) => {
            1 + items
                .iter()
                .map(|inner| depth(inner, limit - 1))
                .max()
                .unwrap_or(0)
        }
        _ => 1,
    }
}

/// About as many bytes as the value takes as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Object(map) => {
            map.iter()
                .map(|(key, inner)| key.len() + 4 + size(inner))
                .sum::<usize>()
                + 2
        }
        Value::Array(items) => items.iter().map(|inner| 1 + size(inner)).sum::<usize>() + 2,
        Value::String(text) => text.len() + 2,
        _ => 5,
    }
}

/// Applies a merge patch: objects are merged, null removes, anything else replaces.
pub fn merge_patch(mut document: Value, patch: &[u8]) -> Result<Value, PatchError> {
    let patch = parse_object(patch)?;
    merge(&mut document, Value::Object(patch));
    Ok(document)
}

/// The body of a merge patch; nothing but an object makes sense for an API object.
pub(crate) fn parse_object(patch: &[u8]) -> Result<Map<String, Value>, PatchError> {
    match serde_json::from_slice(patch) {
        Ok(Value::Object(patch)) => Ok(patch),
        Ok(_) => Err(PatchError::Syntax("the patch must be an object".into())),
        Err(err) => Err(PatchError::Syntax(err.to_string())),
    }
}

/// Merges a patch that is a value already.
pub fn merge(document: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *document = patch;
        return;
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(map) = document else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(document: Value, patch: Value) -> Result<Value, PatchError> {
        json_patch(document, patch.to_string().as_bytes())
    }

    #[test]
    fn json_patches_apply() {
        let document = json!({ "a": [1, 2], "b": { "c": 1 } });
        let patch = json!([
            { "op": "test", "path": "/a/0", "value": 1 },
            { "op": "add", "path": "/a/-", "value": 3 },
            { "op": "remove", "path": "/a/0" },
            { "op": "replace", "path": "/b/c", "value": null },
            { "op": "copy", "from": "/b", "path": "/d" },
            { "op": "move", "from": "/d/c", "path": "/e~1f" },
        ]);
        assert_eq!(
            patched(document, patch),
            Ok(json!({ "a": [2, 3], "b": { "c": null }, "d": {}, "e/f": null }))
        );
    }

    #[test]
    fn json_patches_that_do_not_fit_say_why() {
        let cases = [
            (
                json!([{ "op": "test", "path": "/a", "value": 2 }]),
                422,
                "test operation does not apply: testing value /a failed",
            ),
            (
                json!([{ "op": "remove", "path": "/x" }]),
                422,
                "remove operation does not apply: doc is missing path: /x: missing value",
            ),
            (
                json!([{ "op": "replace", "path": "/x", "value": 1 }]),
                422,
                "replace operation does not apply: doc is missing path: /x: missing value",
            ),
            (
                json!([{ "op": "copy", "from": "/x", "path": "/y" }]),
                422,
                "copy operation does not apply: doc is missing from path: /x: missing value",
            ),
            (
                json!([{ "op": "add", "path": "/x/y", "value": 1 }]),
                422,
                "add operation does not apply: doc is missing path: /x/y: missing value",
            ),
        ];
        for (patch, code, text) in cases {
            let error = patched(json!({ "a": 1 }), patch).expect_err(text);
            assert_eq!((error.code(), error.to_string().as_str()), (code, text));
        }
        let error = json_patch(json!({}), b"{}").expect_err("no list");
        assert_eq!(error.code(), 400);
    }

    #[test]
    fn json_patches_cannot_explode() {
        let many = vec![json!({ "op": "test", "path": "", "value": {} }); MAX_OPERATIONS + 1];
        assert_eq!(
            patched(json!({}), json!(many)),
            Err(PatchError::TooManyOperations(MAX_OPERATIONS + 1))
        );
        let double = vec![json!({ "op": "copy", "from": "/a", "path": "/a/-" }); 200];
        let error = patched(json!({ "a": ["x".repeat(100)] }), json!(double)).expect_err("bounded");
        assert!(matches!(error, PatchError::TooLarge | PatchError::TooDeep(_)));
        let sideways: Vec<Value> = (0..5000)
            .map(|n| json!({ "op": "copy", "from": "/a", "path": format!("/b{n}") }))
            .collect();
        assert_eq!(
            patched(json!({ "a": "x".repeat(1000) }), json!(sideways)),
            Err(PatchError::TooLarge)
        );
        let nest = vec![json!({ "op": "copy", "from": "/a", "path": "/a/b" }); 1000];
        assert!(matches!(
            patched(json!({ "a": {} }), json!(nest)),
            Err(PatchError::TooDeep(_))
        ));
    }

    #[test]
    fn merge_patches_follow_the_rfc() {
        let cases = [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (
                json!({ "a": "b" }),
                json!({ "b": "c" }),
                json!({ "a": "b", "b": "c" }),
            ),
            (json!({ "a": "b" }), json!({ "a": null }), json!({})),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (
                json!({ "a": { "b": "c" } }),
                json!({ "a": { "b": "d", "c": null } }),
                json!({ "a": { "b": "d" } }),
            ),
            (
                json!({ "a": [{ "b": "c" }] }),
                json!({ "a": [1] }),
                json!({ "a": [1] }),
            ),
            (
                json!({}),
                json!({ "a": { "bb": { "ccc": null } } }),
                json!({ "a": { "bb": {} } }),
            ),
        ];
        for (document, patch, result) in cases {
            assert_eq!(
                merge_patch(document, patch.to_string().as_bytes()),
                Ok(result),
                "{patch}"
            );
        }
        assert_eq!(merge_patch(json!({}), b"[]").expect_err("no object").code(), 400);
    }
}
