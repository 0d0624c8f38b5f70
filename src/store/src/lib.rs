//! Revisioned key-value state: memory for reads, a durable log for writes, watch.
//!
//! ```text
//! commit ─► queue ─► writer thread ─► log segment + fdatasync ─► image ─► ring ─► answer
//!                        │                                         │        └─► watches
//!                        └─► checkpoint (sled) now and then        └─► get, snapshot
//! ```
//!
//! - All live entries are in memory, in one ordered persistent map; reads
//!   never touch the disk and a snapshot is free ([`Snapshot`]).
//! - One writer decides the order. Everything that waits goes to disk with
//!   one append and one sync: the log is what makes a commit durable.
//! - The whole state goes into a sled database when the log has outgrown it;
//!   the log segments it covers are then deleted. Opening reads the newest
//!   checkpoint and the segments behind it.
//! - Watches read a bounded ring of recent events at their own pace.
//!
//! On disk: `lock`, `log/<n>.log`, `state-<n>/` (all of it private to its owner).
//!
//! A strict commit that was acknowledged survives a power cut, and so does
//! everything before it. Relaxed commits may lose their last seconds, but
//! their revisions are not used again, and a watch that may have seen one of
//! the lost is told to start over.
//!
//! Rejected: sled as the log (its flush does not sync, and it writes in
//! place), one file per key (one sync per key), a history on disk (clients
//! expect to be told `Gone` and list again).

mod disk;
mod image;
mod log;
mod record;
mod ring;
mod state;
mod store;
mod types;
mod writer;

pub use image::Snapshot;
pub use ring::Watch;
pub use store::{Options, Store};
pub use types::{
    CommitError, Durability, Entry, Event, Gone, MAX_KEY_BYTES, MAX_OPS, MAX_VALUE_BYTES, Op, OpenError,
    Precondition, Txn, Value,
};

#[cfg(test)]
extern crate self as skiff_store;
#[cfg(test)]
#[path = "../tests/history/mod.rs"]
mod history;
#[cfg(test)]
mod tests;
