//! Tests of the whole tree, from its outside.

mod edges;
mod readme;
