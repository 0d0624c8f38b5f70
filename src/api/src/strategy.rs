//! What the server does to an object before it is stored.
use crate::kinds::Kind;
use serde_json::Value;
/// Prepares a new object; uid and creationTimestamp are already set.
pub fn prepare_for_create(_kind: &Kind, _obj: &mut Value) {}
/// Prepares a changed object, through the main resource or a subresource.
pub fn prepare_for_update(_kind: &Kind, _subresource: Option<&str>, _new: &mut Value, _old: &Value) {}
