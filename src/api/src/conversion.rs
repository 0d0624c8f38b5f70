//! Translation between served and stored versions.
use crate::kinds::Kind;
use serde_json::Value;
/// From the version of `kind` to the stored version.
pub fn to_storage(_kind: &Kind, _obj: &mut Value) {}
/// From the stored version to the version of `kind`.
pub fn from_storage(_kind: &Kind, _obj: &mut Value) {}
