//! Clusters on one machine for tests and benches: every node is a network
//! namespace on a small LAN, with its own file system view, containerd and
//! data.
//!
//! ```text
//!   test process (root namespace) ── no link, no route ──┐
//!                                                        │ sockets made inside
//!   LAN namespace: bridge lan0 172.31.0.1/24             │ the node's namespace
//!      │ veth            │ veth                          ▼
//!   node "server"     node "agent-1"      each: network + mount namespace,
//!   172.31.0.11       172.31.0.12         skiff, containerd, pods
//! ```
//!
//! Three layers, each usable alone:
//!
//! * [`space`], [`cgroup`], [`process`]: namespaces held by an anchor process,
//!   membership by control group, programs started inside;
//! * [`lab`], [`node`]: a LAN with bare nodes;
//! * [`cluster`], [`access`], [`scenario`]: skiff on them, clients, and the
//!   collecting of logs when a test fails.
//!
//! Nothing is left behind. All processes of a lab, down to the containers, are
//! in control groups that carry its name, so they are found and killed whether
//! the test passed, panicked or was killed itself (then by the next lab's
//! sweep). Namespaces, mounts, links and rules end with the processes in them.
//!
//! Labs run one at a time on a machine: a lock file is held by each.

pub mod access;
pub mod bench;
pub mod binary;
pub mod cgroup;
pub mod cluster;
pub mod image;
pub mod lab;
pub mod node;
pub mod process;
pub mod scenario;
pub mod snapshot;
pub mod space;

pub use access::until;
pub use cluster::{Cluster, ClusterBuilder};
pub use image::Image;
pub use lab::Lab;
pub use node::Node;
pub use process::Output;
