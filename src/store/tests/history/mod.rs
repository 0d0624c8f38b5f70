//! Histories: what clients of a store asked and were told, and whether any
//! order of events explains it ([`check`]).
//!
//! Every transaction also writes its own number under `/mark/<client>`, and a
//! client has one transaction on its way at a time. So after a crash the marks
//! tell for each unanswered transaction whether it happened, and the history
//! has no unknowns.

pub mod check;
pub mod clients;

use serde::{Deserialize, Serialize};
use skiff_store::{Entry, Snapshot};

/// One thing that happened, in the order in which it was noticed: an operation
/// began before its `Begin`'s successors and ended before its `End`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Record {
    /// The first record of each life of the store: what it came up with.
    Up(List),
    Begin(u64, Asked),
    End(u64, Told),
    Watching {
        watch: u64,
        prefix: String,
        from: u64,
    },
    Gone {
        watch: u64,
        oldest: u64,
    },
    Event {
        watch: u64,
        revision: u64,
        key: String,
        value: Option<Seen>,
        previous: Option<Seen>,
    },
    Progress {
        watch: u64,
        revision: u64,
    },
    /// The store closed, and the watch had delivered what there was.
    Ended {
        watch: u64,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Asked {
    /// The value written is the operation's number; none deletes.
    Write {
        client: u64,
        key: String,
        put: bool,
        when: When,
        strict: bool,
    },
    Read {
        key: String,
    },
    List {
        prefix: String,
    },
}

/// A condition on the key that is written.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum When {
    Always,
    Absent,
    Exists,
    At(u64),
}

impl When {
    pub fn holds(self, current: Option<&Seen>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => current.is_none(),
            Self::Exists => current.is_some(),
            Self::At(revision) => current.is_some_and(|seen| seen.modified == revision),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Told {
    Committed(u64),
    Conflict(Option<Seen>),
    /// Nobody knows whether it will turn out to have happened.
    Failed,
    Value(Option<Seen>),
    List(List),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    pub revision: u64,
    pub entries: Vec<Seen>,
}

/// An entry as a client saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub key: String,
    pub number: u64,
    pub created: u64,
    pub modified: u64,
}

/// The bytes of a value: recognizable, and of all sizes.
pub fn value(number: u64) -> Vec<u8> {
    let padding = (number.wrapping_mul(2_654_435_761) >> 7) as usize % 600;
    format!("{number} {}", "x".repeat(padding)).into_bytes()
}

impl From<&Entry> for Seen {
    /// A value that nobody has written becomes number 0.
    fn from(entry: &Entry) -> Self {
        let text = std::str::from_utf8(&entry.value).unwrap_or_default();
        let number = text
            .split(' ')
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        let whole = value(number) == entry.value;
        Self {
            key: entry.key.to_string(),
            number: if whole { number } else { 0 },
            created: entry.create_revision,
            modified: entry.mod_revision,
        }
    }
}

impl List {
    pub fn of(snapshot: &Snapshot, prefix: &str) -> Self {
        Self {
            revision: snapshot.revision(),
            entries: snapshot.range(prefix, None).map(Seen::from).collect(),
        }
    }
}
