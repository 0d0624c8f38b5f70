//! Typed link, address, route, neighbour and namespace verbs.
//!
//! Three layers: the netlink socket (`connection`), verbs that speak in plain Rust types (`link`, `address`,
//! `route`, `neighbour`), and nothing else: what should exist is decided by the callers.
//!
//! Every verb that changes the host is *ensure*-shaped: it compares what is there with what is wanted, keeps what
//! fits, changes what can be changed in place, and recreates the rest. Calling it twice changes nothing the second
//! time, and a process killed between two verbs leaves a state the next run converges from. Removing something that
//! is already gone is success.
//!
//! A [`Netlink`] handle belongs to the network namespace its socket was opened in, for ever: [`Netlink::open_in`]
//! enters a namespace for the time of one `socket(2)` call on a thread of its own, and from then on any thread may
//! use the handle. Only what has no socket (sysctls, `unshare`) needs code to *run* inside a namespace:
//! [`NetNs::run`] and [`NetNs::run_async`].
//!
//! IPv4 and IPv6 share all types; message building is covered for both families.

mod address;
mod connection;
mod discover;
mod error;
mod link;
mod mac;
mod neighbour;
mod netns;
mod route;
pub mod sysctl;
mod watch;

pub use address::Address;
pub use connection::Netlink;
pub use discover::{NodeAddress, NodeAddressQuery, choose_node_address};
pub use error::Error;
pub use link::{BridgeSpec, Link, VethSpec, VxlanInfo, VxlanSpec};
pub use mac::{MacAddr, ParseMacError, stable_hash};
pub use neighbour::{FdbEntry, Neighbour};
pub use netns::NetNs;
pub use route::{PROTOCOL_KERNEL, Route};
pub use watch::Changes;
