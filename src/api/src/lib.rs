//! What a Kubernetes object is, without IO: kinds, schemas, defaults, validation, patches, printing.

pub mod conversion;
pub mod defaults;
pub mod discovery;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod table;
pub mod validation;
pub mod schema;
