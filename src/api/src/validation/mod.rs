//! Rules that objects must obey.
use crate::kinds::Kind;
use crate::status::FieldError;
use serde_json::Value;
/// Checks a new object.
pub fn create(_kind: &Kind, _obj: &Value) -> Vec<FieldError> {
    Vec::new()
}
/// Checks a changed object, through the main resource or a subresource.
pub fn update(_kind: &Kind, _subresource: Option<&str>, _new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}
