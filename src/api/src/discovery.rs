//! Discovery documents.
use crate::kinds::Kinds;
use serde_json::Value;
/// `/api`.
pub fn api_versions(_server_address: &str) -> Value {
    Value::Null
}
/// `/apis`.
pub fn group_list(_kinds: &Kinds) -> Value {
    Value::Null
}
/// `/apis/{group}`.
pub fn group(_kinds: &Kinds, _group: &str) -> Option<Value> {
    None
}
/// `/api/v1` and `/apis/{group}/{version}`.
pub fn resource_list(_kinds: &Kinds, _group: &str, _version: &str) -> Option<Value> {
    None
}
/// Aggregated discovery (`apidiscovery.k8s.io/v2`) of `/api` (`legacy`) or `/apis`.
pub fn aggregated(_kinds: &Kinds, _legacy: bool) -> Value {
    Value::Null
}
