//! Kubernetes for the edge in one binary.

fn main() {}
