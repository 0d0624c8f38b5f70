//! State derived from the store, brought up to date when it is asked.
//!
//! A [`Follower`] holds a watch and applies what has happened since the last
//! question. When the watch has lost its place it starts over from a snapshot.

use std::sync::Arc;

use skiff_store::{Entry, Store, Watch};

/// One step of following.
pub enum Change<'a> {
    /// Forget everything: what follows is the whole state.
    Reset,
    /// The key has this value now.
    Put(&'a Entry),
    /// The key is gone.
    Delete(&'a Arc<str>),
}

/// Follows all keys with a prefix.
pub struct Follower {
    store: Store,
    prefix: &'static str,
    watch: Option<Watch>,
    seen: u64,
}

impl Follower {
    /// Nothing is read until the first [`Follower::sync`].
    pub fn new(store: Store, prefix: &'static str) -> Self {
        Self {
            store,
            prefix,
            watch: None,
            seen: 0,
        }
    }

    /// Whether the store has changed since the last [`Follower::sync`].
    pub fn is_behind(&self) -> bool {
        self.watch.is_none() || self.store.revision() != self.seen
    }

    /// Reports every change up to now.
    pub fn sync(&mut self, mut report: impl FnMut(Change<'_>)) {
        loop {
            if self.watch.is_none() {
                let snapshot = self.store.snapshot();
                let Ok(watch) = self.store.watch(self.prefix, Some(snapshot.revision())) else {
                    continue;
                };
                report(Change::Reset);
                for entry in snapshot.range(self.prefix, None) {
                    report(Change::Put(entry));
                }
                self.watch = Some(watch);
            }
            let Some(watch) = &mut self.watch else { continue };
            match watch.try_next() {
                Ok(Some(event)) => match &event.value {
                    Some(entry) => report(Change::Put(entry)),
                    None => report(Change::Delete(&event.key)),
                },
                Err(_) => self.watch = None,
                Ok(None) => {
                    self.seen = watch.progress();
                    return;
                }
            }
        }
    }
}
