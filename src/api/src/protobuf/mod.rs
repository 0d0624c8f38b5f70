//! Objects in `application/vnd.kubernetes.protobuf`.
//!
//! Objects are JSON values everywhere else; here they are read from and written to the protobuf
//! form of the built-in kinds. What a field holds is known from the [schema](crate::schema); where
//! it stands on the wire is known from a table ([`facts`]). Two walks over both do the work, so a
//! kind costs a few lines in the table and no code:
//!
//! ```text
//! "k8s\0" Unknown { typeMeta { apiVersion, kind }, raw, contentEncoding, contentType }
//!                                                  └─ the object, without apiVersion and kind
//! ```
//!
//! Protobuf bodies of Go clients carry every scalar that is not a pointer, also when it is empty;
//! JSON leaves those out. [`decode`](Envelope::object) leaves them out too, because an empty
//! `restartPolicy` would keep its default from being set. Written are only the fields that are
//! there, which readers cannot tell apart.
//!
//! Custom resources have no protobuf form.

mod decode;
mod encode;
mod facts;
mod wire;

use crate::schema::View;

pub use decode::Envelope;
pub use encode::{ListWriter, encode, has_form, watch_frame};

/// The media type of an object.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The media type of a stream of [watch frames](watch_frame).
pub const WATCH_MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// What every object in protobuf begins with.
const MAGIC: &[u8; 4] = b"k8s\0";
/// Nesting of messages, the limit that JSON bodies have too.
const MAX_DEPTH: usize = 128;
/// Values in one object: two bytes can stand for a value of many, and a body of the largest size
/// that consists of such pairs must not fill the memory.
const MAX_VALUES: usize = 1_000_000;

/// The type that holds most of the metadata, alone.
const PARTIAL: (&str, &str) = ("meta.k8s.io/v1", "PartialObjectMetadata");
const PARTIAL_LIST: (&str, &str) = ("meta.k8s.io/v1", "PartialObjectMetadataList");
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Why bytes are no object, or an object has no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The body is something else.
    #[error("the body does not begin with the four bytes of protobuf objects")]
    NoMagic,
    /// The bytes break the rules of protobuf.
    #[error("protobuf: {0}")]
    Syntax(&'static str),
    /// A known field of another form.
    #[error("protobuf: field {field} cannot have wire type {wire}")]
    WireType {
        /// Type and field.
        field: String,
        /// As it came.
        wire: &'static str,
    },
    /// A value that its field cannot hold.
    #[error("protobuf: field {field}: {reason}")]
    Value {
        /// Type and field.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// The object within is compressed or of another media type.
    #[error("protobuf: the object within the body has the unknown encoding {0:?}")]
    Encoding(String),
    /// The body holds another kind.
    #[error("the body holds a {found:?}, not a {expected:?}")]
    Kind {
        /// Kind in the body.
        found: String,
        /// Kind that was asked for.
        expected: String,
    },
    /// Messages within messages without end.
    #[error("protobuf: messages are nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// More values than an object may have.
    #[error("protobuf: the object has more than {MAX_VALUES} values")]
    TooLarge,
    /// The kind has no protobuf form.
    #[error("{kind} in {api_version} has no protobuf form")]
    NoForm {
        /// Group and version.
        api_version: String,
        /// Kind.
        kind: String,
    },
}

/// Type and field, for messages.
fn place(view: View<'_>, field: &str) -> String {
    match view.as_struct().map(crate::schema::Struct::short_name) {
        Some(name) if !name.is_empty() => format!("{name}.{field}"),
        _ => field.to_owned(),
    }
}

#[cfg(test)]
mod tests;
