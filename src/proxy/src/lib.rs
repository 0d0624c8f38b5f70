//! Services and EndpointSlices to an nftables plan.
//!
//! ```text
//! Service, EndpointSlice ─► service (what is asked for) ─► plan (contribution per front)
//!        ─► ledger (differences) ─► nft section, one transaction ─► conntrack (stale flows)
//! ```
//!
//! [`rules`] opens with the scheme of the rules and a worked example. [`proxy`]
//! is the loop; everything above it is pure and tested with the packet tracer.
//! [`hostports`] maps ports of the node to single pods, in a section of its own.

pub mod conntrack;
pub mod hostports;
pub mod ledger;
pub mod plan;
pub mod proxy;
pub mod rules;
pub mod service;
pub mod sysctl;

pub use hostports::{HostPort, HostPorts};
pub use proxy::{Config, Proxy};
pub use service::{NodeInfo, Protocol};
