//! The kubelet: pods on a node.
//!
//! ```text
//! API informer (spec.nodeName = me) ─┐
//! RuntimeEvents ─────────────────────┼─► one worker a pod ─► plan (pure) ─► actions ─► status patch
//! probe results, object changes ─────┤         ▲                              │
//! timers that are due ───────────────┘         └──────── results ◄────────────┘
//! ```
//!
//! Nothing polls: a worker sleeps until one of its inputs changes or a moment its plan named arrives. What a worker
//! knows is either read from the runtime (containers carry pod, name, restart count and back-off in labels and
//! annotations) or may be forgotten: after a restart running containers are adopted, not restarted.
//!
//! [`Kubelet`] is the whole; [`config`] is what it is given; [`pod`] is a pod's life; [`volumes`], [`probes`],
//! [`cgroup`] and [`files`] are what a pod needs; [`node`] is the Node object; [`server`] is the HTTP API.

pub mod admission;
pub mod cgroup;
pub mod config;
pub mod env;
pub mod fields;
pub mod files;
mod kubelet;
pub mod node;
pub mod objects;
pub mod pod;
pub mod probes;
pub mod resources;
pub mod server;
pub mod stats;
pub mod tokens;
pub mod volumes;

pub use config::{Config, Dirs, HostPort, NetworkError, NoNetwork, PodAttach, PodNetwork};
pub use kubelet::{Kubelet, KubeletError, PodEntry};
