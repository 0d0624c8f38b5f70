//! The memory image: all live entries in one ordered persistent map.
//!
//! A snapshot is a clone of the map's root: O(1), and later commits copy the
//! few nodes they touch instead of changing what a snapshot sees. So a LIST
//! that is read page by page stays at one revision without holding anyone up.

use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::types::{Entry, Event, Op};

#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    map: OrdMap<Arc<str>, Entry>,
    pub(crate) revision: u64,
    bytes: u64,
}

impl Image {
    /// Nothing, at a revision.
    pub(crate) fn empty(revision: u64) -> Self {
        Self {
            revision,
            ..Self::default()
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.map.get(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Bytes in keys and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.map.values()
    }

    pub(crate) fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Entry> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.map
            .range::<_, str>((from, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.key.starts_with(prefix))
    }

    /// Inserts an entry as it is, as read back from disk.
    pub(crate) fn load(&mut self, entry: Entry) {
        self.bytes += entry.size();
        if let Some(old) = self.map.insert(entry.key.clone(), entry) {
            self.bytes -= old.size();
        }
    }

    /// Applies one change at `revision`; the event it makes, if it changes anything.
    pub(crate) fn apply(&mut self, revision: u64, change: Change) -> Option<Event> {
        let previous = self.map.get(change.key()).cloned();
        self.revision = self.revision.max(revision);
        match change {
            Change::Put { key, value } => {
                let key: Arc<str> = previous
                    .as_ref()
                    .map_or_else(|| key.into(), |old| old.key.clone());
                let create_revision = previous.as_ref().map_or(revision, |old| old.create_revision);
                let entry = Entry {
                    key: key.clone(),
                    value,
                    create_revision,
                    mod_revision: revision,
                };
                self.load(entry.clone());
                Some(Event {
                    revision,
                    key,
                    value: Some(entry),
                    previous,
                })
            }
            Change::Delete { .. } => {
                let old = previous?;
                self.map.remove(&*old.key);
                self.bytes -= old.size();
                Some(Event {
                    revision,
                    key: old.key.clone(),
                    value: None,
                    previous: Some(old),
                })
            }
        }
    }
}

/// An operation whose value is final: the revision is spliced in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Put { key: String, value: bytes::Bytes },
    Delete { key: String },
}

impl Change {
    pub(crate) fn from_op(op: Op, revision: u64) -> Self {
        match op {
            Op::Delete { key } => Self::Delete { key },
            Op::Put { key, value } => {
                let Some(at) = value.revision_at else {
                    return Self::Put {
                        key,
                        value: value.bytes,
                    };
                };
                let digits = revision.to_string();
                let mut spliced = Vec::with_capacity(value.bytes.len() + digits.len());
                spliced.extend_from_slice(&value.bytes[..at]);
                spliced.extend_from_slice(digits.as_bytes());
                spliced.extend_from_slice(&value.bytes[at..]);
                Self::Put {
                    key,
                    value: spliced.into(),
                }
            }
        }
    }

    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All entries as they were at one revision.
#[derive(Debug, Clone)]
pub struct Snapshot(pub(crate) Image);

impl Snapshot {
    /// The revision this shows.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.0.get(key)
    }

    /// Entries whose key starts with `prefix`, in key order, beginning behind `after`.
    pub fn range<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> impl Iterator<Item = &'a Entry> {
        self.0.range(prefix, after)
    }

    /// How many keys start with `prefix`. Costs a walk over them.
    pub fn count(&self, prefix: &str) -> usize {
        self.0.range(prefix, None).count()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(image: &mut Image, revision: u64, key: &str) {
        image.apply(
            revision,
            Change::Put {
                key: key.into(),
                value: "v".into(),
            },
        );
    }

    #[test]
    fn ranges_page_and_stop_at_the_prefix() {
        let mut image = Image::default();
        for (i, key) in ["/a", "/b/", "/b/1", "/b/2", "/b0", "/c"].iter().enumerate() {
            put(&mut image, i as u64 + 1, key);
        }
        let keys = |prefix, after| {
            image
                .range(prefix, after)
                .map(|e| e.key.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys("/b/", None), ["/b/", "/b/1", "/b/2"]);
        assert_eq!(keys("/b/", Some("/b/1")), ["/b/2"]);
        assert_eq!(keys("/b/", Some("/a")), ["/b/", "/b/1", "/b/2"]);
        assert_eq!(keys("/b/", Some("/z")), Vec::<String>::new());
        assert_eq!(keys("", None).len(), 6);
    }

    #[test]
    fn a_snapshot_does_not_see_later_commits() {
        let mut image = Image::default();
        for i in 0..500 {
            put(&mut image, i + 1, &format!("/k/{i:03}"));
        }
        let snapshot = Snapshot(image.clone());
        for i in 0..500 {
            image.apply(
                1_000 + i,
                Change::Delete {
                    key: format!("/k/{i:03}"),
                },
            );
        }
        assert_eq!((image.len(), image.bytes()), (0, 0));
        assert_eq!((snapshot.count("/k/"), snapshot.revision()), (500, 500));
    }

    #[test]
    fn the_revision_is_spliced_in() {
        for (at, want) in [
            (None, "ab"),
            (Some(0), "42ab"),
            (Some(1), "a42b"),
            (Some(2), "ab42"),
        ] {
            let value = crate::Value {
                bytes: "ab".into(),
                revision_at: at,
            };
            let change = Change::from_op(
                Op::Put {
                    key: "k".into(),
                    value,
                },
                42,
            );
            assert_eq!(
                change,
                Change::Put {
                    key: "k".into(),
                    value: want.into()
                }
            );
        }
    }
}
