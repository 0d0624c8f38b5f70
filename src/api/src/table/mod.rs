//! Tables for people.
use crate::kinds::Kind;
use serde_json::Value;
use std::time::SystemTime;
/// Which part of each object a row carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}
/// The `columnDefinitions` of a kind.
pub fn columns(_kind: &Kind) -> Value {
    Value::Null
}
/// One `TableRow`: cells and the object.
pub fn row(_kind: &Kind, _obj: &Value, _now: SystemTime, _include: IncludeObject) -> Value {
    Value::Null
}
/// A whole `Table`; `list_metadata` is that of the list, or of the single object.
pub fn table(
    _kind: &Kind,
    _objects: &[Value],
    _list_metadata: Value,
    _now: SystemTime,
    _include: IncludeObject,
) -> Value {
    Value::Null
}
