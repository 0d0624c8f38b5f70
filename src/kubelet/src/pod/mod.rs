//! One pod's life on a node.
//!
//! [`worker`] holds the inputs and runs [`plan`] whenever one changed; [`apply`], [`image`], [`start`] and [`kill`]
//! carry out what it says, each action in a task of its own, at most one per [`state::Subject`]; [`status`] turns
//! the same inputs into the API's status, which [`writer`] sends when it differs.

pub mod apply;
pub mod image;
pub mod kill;
pub mod message;
pub mod plan;
#[cfg(test)]
mod plan_tests;
pub mod shared;
pub mod spec;
pub mod start;
pub mod state;
pub mod status;
pub mod worker;
pub mod writer;
