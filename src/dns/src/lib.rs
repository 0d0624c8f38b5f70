//! Cluster DNS on every node.
//!
//! ```text
//! informers ── changes ──► Index ◄── answer(question) ── server (UDP, TCP) ◄── pods, host, node
//!                                         │ not ours
//!                                         └──► Forwarder ──► the node's own name servers
//! ```
//!
//! Every node answers for itself: no packet of a question leaves the node unless the name is not the cluster's, and
//! a dead node takes only its own name server along. [`answer::answer`] is pure and decides what is said; the index
//! behind it is kept up to date change by change; the rest is carrying messages.
//!
//! # Where it listens
//!
//! On the DNS service's address (10.43.0.10), port 53, as a plain local address of the node: the overlay puts it on
//! the bridge. Pods, pods in the host network and processes of the node all reach it by ordinary routing to a local
//! address, over UDP and TCP, before any Service rule is programmed and without one. Alternatives and why not: a
//! translation rule would need the packet filter to be up before DNS works and to be told about every local process;
//! a transparent socket needs policy routing; a dummy device is missing in some kernels. The sockets are bound with
//! `IP_FREEBIND`, so neither side has to start first. The Service object with this cluster IP has no endpoints, and
//! the service proxy leaves its address alone.
//!
//! # What it says
//!
//! The Kubernetes DNS specification (schema 1.1.0). Before the first complete list of Services has been read, names
//! of the cluster get SERVFAIL, never a wrong NXDOMAIN that a client would remember; after that, answers go on from
//! the last known state while the API is away.

pub mod answer;
mod forward;
pub mod index;
mod run;
mod server;
mod zone;

pub use forward::name_servers;
pub use run::{Config, Dns, Error};
pub use zone::Zone;
