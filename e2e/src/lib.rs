//! Nodes as network namespaces, end-to-end tests and benches.
