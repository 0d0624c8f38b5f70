//! What a user does with skiff, on real nodes. One module per scenario.

mod bad_input;
mod install;
mod pods;
mod registry;
mod restart;
mod selftest;
mod storm;
mod support;
mod two_nodes;
mod up;
