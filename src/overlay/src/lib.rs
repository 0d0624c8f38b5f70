//! Pod interfaces and addresses, the bridge, and the way between nodes.
//!
//! # The picture
//!
//! ```text
//!  pod: eth0 10.42.0.5/24 ── veth ──┐                             ┌── veth ── eth0 10.42.1.7/24 :pod
//!  pod: eth0 10.42.0.6/24 ── veth ──┤ skiff0           skiff0     ├── ...
//!                                   │ 10.42.0.1      10.42.1.1    │
//!                                routing              routing
//!                                   │ 10.42.1.0/24 via 10.42.1.0 dev skiff.1 onlink
//!                                skiff.1 ── UDP 8472 ──► skiff.1
//! ```
//!
//! Every node owns one network out of the cluster's (`spec.podCIDR`). Its first address is the gateway of the node's
//! pods, on the bridge; its network address is the VXLAN device's, as a /32. For each other node there are exactly
//! three entries in the kernel: a route to that node's network through the peer's VXLAN address, a permanent
//! neighbour (that address has this MAC) and a forwarding entry (that MAC is behind this node IP). Nothing is
//! learned, nothing is asked for by broadcast, and no packet between pods is translated.
//!
//! # Pods of one node talk through the node's routing too
//!
//! A pod has its address with the prefix of the node's network, but the network itself is routed through the
//! gateway (as is everything else). Two pods on one bridge therefore reach each other by way of the node's IP layer:
//! the answer of a Service's endpoint to a client beside it passes the translation it came through, without the
//! bridge netfilter module, and a network policy sees the traffic. Redirects, by which the node would talk the pod
//! out of it, are off.
//!
//! # Deciding and doing
//!
//! [`peers::plan`] is pure: what should be there and what is there make a list of actions; a node that changed
//! nothing gets no action. The loop in `run` wakes up for changes of Nodes and of the kernel's tables, looks at the
//! world, and carries the plan out. All state is in the kernel, except who owns which address
//! ([`addresses::AddressStore`]).
//!
//! The cluster's service networks get a route to the bridge, so that a machine without a default route can reach
//! them, and addresses answered by this node itself (cluster DNS) are put on the bridge: they exist before the first
//! pod does, and are gone with the bridge.
//!
//! Not done here: an accept rule cannot win over a `drop` in somebody else's table. Where another firewall drops
//! forwarded traffic by default, the pod network must be allowed there.

pub mod addresses;
mod attach;
mod cache;
mod config;
mod error;
mod fabric;
mod firewall;
mod node;
pub mod peers;
mod run;
mod sysctls;
mod uninstall;

pub use attach::{AttachOptions, interface_name};
pub use config::{Backend, Config};
pub use error::Error;
pub use fabric::{BRIDGE, ROUTE_PROTOCOL, vxlan_name};
pub use firewall::{Firewall, MasqueradeRules, NoFirewall, TableFirewall};
pub use node::{ANNOTATION_BACKEND, ANNOTATION_PUBLIC_IP, ANNOTATION_VXLAN_MAC};
pub use run::{Overlay, node_address_query};
pub use uninstall::uninstall;
