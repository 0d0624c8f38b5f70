//! Default values of built-in kinds.
use crate::kinds::Kind;
use serde_json::Value;
/// Fills in what the object leaves out, as the version of `kind` defines it.
pub fn apply(_kind: &Kind, _obj: &mut Value) {}
