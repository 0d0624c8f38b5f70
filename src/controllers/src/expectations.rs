//! What a loop has asked for and not yet seen in its informer.
//!
//! A loop that counts what exists must not count before its own creations and
//! deletions have come back through the watch. It announces them here before
//! the request is sent (the names are its own choice, so they are known), the
//! informer's feed ticks them off, and until then the loop does not count.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// An announcement that never came back (the write failed in an unclear way)
/// is given up after this long, as in Kubernetes.
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
struct Pending {
    names: BTreeSet<String>,
    since: Option<Instant>,
}

/// Announcements by owner key.
#[derive(Debug, Default)]
pub struct Expectations {
    pending: Mutex<HashMap<String, Pending>>,
}

impl Expectations {
    /// Announces that `name` will be created or deleted on behalf of `owner`.
    pub fn announce(&self, owner: &str, name: &str, now: Instant) {
        let mut pending = self.pending.lock();
        let entry = pending.entry(owner.to_owned()).or_default();
        entry.names.insert(name.to_owned());
        entry.since = Some(now);
    }

    /// Ticks `name` off: it was seen, or the request failed.
    pub fn settle(&self, owner: &str, name: &str) {
        let mut pending = self.pending.lock();
        if let Some(entry) = pending.get_mut(owner) {
            entry.names.remove(name);
            if entry.names.is_empty() {
                pending.remove(owner);
            }
        }
    }

    /// How long `owner` still has to wait at most; `None`: it may count now.
    pub fn wait(&self, owner: &str, now: Instant) -> Option<Duration> {
        let mut pending = self.pending.lock();
        let since = pending.get(owner)?.since?;
        let left = TIMEOUT.checked_sub(now.saturating_duration_since(since));
        if left.is_none() {
            pending.remove(owner);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_base::clock::{Clock, SystemClock};

    #[test]
    fn an_owner_waits_until_all_is_seen_or_given_up() {
        let (expectations, now) = (Expectations::default(), SystemClock.monotonic());
        expectations.announce("ns/web", "web-a", now);
        expectations.announce("ns/web", "web-b", now);
        expectations.settle("ns/web", "web-a");
        assert!(expectations.wait("ns/web", now).is_some());
        assert!(expectations.wait("ns/other", now).is_none());
        expectations.settle("ns/web", "web-b");
        assert!(expectations.wait("ns/web", now).is_none());
        expectations.announce("ns/web", "web-c", now);
        assert!(
            expectations
                .wait("ns/web", now + TIMEOUT + Duration::from_secs(1))
                .is_none()
        );
    }
}
