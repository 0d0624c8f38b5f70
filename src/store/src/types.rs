//! What goes into the store and what comes out: entries, transactions, events, errors.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// Longest key in bytes. Kubernetes names are at most 253 bytes a segment; four segments and a group fit.
pub const MAX_KEY_BYTES: usize = 2_048;
/// Largest value in bytes: twice what etcd accepts by default, so that no object etcd holds is refused.
pub const MAX_VALUE_BYTES: usize = 4 << 20;
/// Most operations in one transaction (etcd's default is 128).
pub const MAX_OPS: usize = 1_024;

/// One key with its value and history marks. Cloning copies two pointers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value as committed, the revision already spliced in.
    pub value: Bytes,
    /// The revision at which the key came to exist.
    pub create_revision: u64,
    /// The revision of the last change.
    pub mod_revision: u64,
}

impl Entry {
    pub(crate) fn size(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64
    }
}

/// Bytes to store, with the place where the commit's revision goes.
#[derive(Debug, Clone, Default)]
pub struct Value {
    /// The bytes without the revision.
    pub bytes: Bytes,
    /// Offset in `bytes` at which the decimal revision is inserted.
    pub revision_at: Option<usize>,
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self {
            bytes,
            revision_at: None,
        }
    }
}

impl From<Vec<u8>> for Value {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

/// What must hold for a transaction to be applied.
#[derive(Debug, Clone)]
pub enum Precondition {
    /// The key does not exist.
    Absent {
        /// The key.
        key: String,
    },
    /// The key exists and was last changed at this revision.
    Revision {
        /// The key.
        key: String,
        /// The expected revision.
        mod_revision: u64,
    },
    /// The key exists.
    Exists {
        /// The key.
        key: String,
    },
}

impl Precondition {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::Revision { key, .. } | Self::Exists { key } => key,
        }
    }

    pub(crate) fn holds(&self, current: Option<&Entry>) -> bool {
        match self {
            Self::Absent { .. } => current.is_none(),
            Self::Exists { .. } => current.is_some(),
            Self::Revision { mod_revision, .. } => current.is_some_and(|e| e.mod_revision == *mod_revision),
        }
    }
}

/// One change.
#[derive(Debug, Clone)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Value,
    },
    /// Removes a key; nothing happens when it does not exist.
    Delete {
        /// The key.
        key: String,
    },
}

impl Op {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Put { key, value } => key.len() + value.bytes.len(),
            Self::Delete { key } => key.len(),
        }
    }
}

/// When a commit is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the change is on stable storage.
    #[default]
    Strict,
    /// Once the change is visible; a power cut may lose the last seconds of
    /// relaxed changes (never a strict one made after them).
    Relaxed,
}

/// A set of changes that happen together, at one revision, or not at all.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// At most one change for each key.
    pub ops: Vec<Op>,
    /// When to acknowledge.
    pub durability: Durability,
}

impl Txn {
    /// A strict, unconditional write of one key.
    pub fn put(key: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            ops: vec![Op::Put {
                key: key.into(),
                value: value.into(),
            }],
            ..Self::default()
        }
    }

    /// A strict, unconditional removal of one key.
    pub fn delete(key: impl Into<String>) -> Self {
        Self {
            ops: vec![Op::Delete { key: key.into() }],
            ..Self::default()
        }
    }

    /// The same with another durability.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The same with one more precondition.
    #[must_use]
    pub fn when(mut self, precondition: Precondition) -> Self {
        self.preconditions.push(precondition);
        self
    }

    pub(crate) fn size(&self) -> usize {
        self.ops.iter().map(Op::size).sum::<usize>()
            + self.preconditions.iter().map(|p| p.key().len()).sum::<usize>()
    }

    /// Checks everything that can be checked without state.
    pub(crate) fn validate(&self) -> Result<(), CommitError> {
        let invalid = |key: &str, reason: &'static str| {
            Err(CommitError::Invalid {
                key: key.chars().take(256).collect(),
                reason,
            })
        };
        if self.ops.len() > MAX_OPS || self.preconditions.len() > MAX_OPS {
            return invalid("", "too many operations in one transaction");
        }
        for op in &self.ops {
            if op.key().is_empty() || op.key().len() > MAX_KEY_BYTES {
                return invalid(op.key(), "the key is empty or too long");
            }
            if let Op::Put { key, value } = op {
                if value.bytes.len() > MAX_VALUE_BYTES {
                    return invalid(key, "the value is too large");
                }
                if value.revision_at.is_some_and(|at| at > value.bytes.len()) {
                    return invalid(key, "the place of the revision is beyond the end of the value");
                }
            }
        }
        if self.ops.len() > 1 {
            let mut keys: Vec<&str> = self.ops.iter().map(Op::key).collect();
            keys.sort_unstable();
            if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
                return invalid(pair[0], "the key is changed twice in one transaction");
            }
        }
        Ok(())
    }
}

/// A change that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The commit's revision; several events may share it.
    pub revision: u64,
    /// The key.
    pub key: Arc<str>,
    /// The new entry, none when the key was deleted.
    pub value: Option<Entry>,
    /// The entry before, none when the key was created.
    pub previous: Option<Entry>,
}

/// The requested history is no longer (or not) available: list and watch again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the requested revision is too old, the oldest one that can be watched from is {oldest}")]
pub struct Gone {
    /// A watch from this revision or a later one would succeed.
    pub oldest: u64,
}

/// Why a commit did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A precondition does not hold.
    #[error("{key}: the precondition does not hold")]
    Conflict {
        /// The key of the first precondition that failed.
        key: String,
        /// What is there now.
        current: Option<Entry>,
    },
    /// No space is left on the disk, or the store's own size limit is reached. Deletes still work in the latter case.
    #[error("the store is full: free disk space or delete objects")]
    Full,
    /// The transaction itself is malformed.
    #[error("{key}: {reason}")]
    Invalid {
        /// The key at fault.
        key: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The disk refused the write. Nothing changed; later writes may succeed.
    #[error("store write failed: {0}")]
    Io(#[source] Arc<io::Error>),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

impl From<io::Error> for CommitError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the directory.
    #[error("{dir}: the store is in use by another process: stop the other skiff server first")]
    Locked {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The directory or a file in it cannot be used.
    #[error("{path}: {source}")]
    Io {
        /// The path at fault.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Acknowledged data cannot be read back.
    #[error("{path}: the store is damaged: {reason}; restore a backup, or salvage what is readable")]
    Damaged {
        /// The path at fault.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Written by a later version.
    #[error("{path}: format {found} is newer than this version understands ({known})")]
    Version {
        /// The path at fault.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The format known.
        known: u32,
    },
}

impl OpenError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
