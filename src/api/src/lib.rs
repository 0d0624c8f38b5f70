//! What a Kubernetes object is, without IO: kinds, schemas, defaults, validation, patches, printing.
