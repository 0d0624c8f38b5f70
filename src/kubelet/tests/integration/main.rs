//! The whole kubelet against a runtime in memory and an API in memory: every test is one story of a pod.

mod api;
mod node;
mod pods;
mod world;
