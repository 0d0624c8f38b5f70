//! What a Kubernetes object is, without IO: kinds, schemas, defaults, validation, patches, printing.

pub mod apply;
pub mod conversion;
pub mod custom;
pub mod defaults;
pub mod discovery;
pub mod fields;
pub mod jsonpath;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod strategic;
pub mod strategy;
pub mod table;
pub mod validation;
