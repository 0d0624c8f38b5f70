//! An nftables ruleset model, a packet tracer for tests, one-transaction writes.
//!
//! ```text
//! owner ── Content/Edit ──► table (model, patch) ──► change (operations, ordered)
//!                                                        │ lower (registers), message (netlink)
//!                                                        ▼
//!                                                   socket: one sendmsg, every answer
//! trace: walks a packet through the same model, for tests without a kernel
//! ```
//!
//! See [`hooks`] for which base chains exist and why, [`table`] for how
//! owners share a table and what happens at a restart.
//!
//! Deletions need no handles: elements are deleted by key, sets and chains by
//! name, and a chain that changes is emptied and filled again within the same
//! transaction. So the kernel's state is never read back, and a change costs what it touches.

use std::io;

mod change;
pub mod guard;
pub mod hooks;
mod lower;
mod message;
mod mnl;
pub mod model;
pub mod set;
mod socket;
pub mod table;
pub mod trace;
pub mod value;

pub use guard::Guard;
pub use hooks::{Hook, Owner};
pub use lower::LowerError;
pub use model::{
    Chain, Compare, Datum, Element, Family, Holds, Key, Name, NatTarget, Reject, Rule, Ruleset, Set, SetType,
    Statement, Type, Value, Verdict,
};
pub use table::{Applied, Content, Edit, NftTable, Section};

/// Why a table could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on the netlink socket failed.
    #[error("cannot {0} through the nftables socket")]
    Socket(&'static str, #[source] io::Error),
    /// The kernel refused one of the operations; nothing was changed.
    #[error("table {table}: the kernel refused to {object}{detail}: {source}")]
    Refused {
        /// Family and name.
        table: String,
        /// The operation.
        object: String,
        /// The kernel's own words, in parentheses.
        detail: String,
        /// The error number.
        source: io::Error,
    },
    /// No acknowledgement came.
    #[error("table {0}: the kernel did not acknowledge the transaction")]
    Unanswered(String),
    /// The transaction does not fit one message.
    #[error("a transaction of {0} bytes is too large")]
    TooLarge(usize),
    /// A rule that cannot be expressed.
    #[error("chain {chain}: a rule cannot be expressed")]
    Rule {
        /// The chain.
        chain: String,
        /// The reason.
        source: LowerError,
    },
    /// A name with unusable characters, or too long.
    #[error("{0:?} is not a usable name")]
    BadName(String),
    /// A name that belongs to another owner.
    #[error("{name} does not begin with the prefix of {owner:?}")]
    Foreign {
        /// Who tried.
        owner: Owner,
        /// The name.
        name: String,
    },
    /// Elements for a set that does not exist.
    #[error("there is no set {0}")]
    NoSuchSet(String),
}
