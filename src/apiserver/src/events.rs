//! Events are kept for an hour after they were last written.
//!
//! One task sleeps until the oldest event is due and then removes what has
//! expired. While there are no events it waits for the first one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use skiff_api::meta;
use skiff_store::{Durability, Op, Precondition, Txn};

use crate::scan;
use crate::server::ApiServer;

const PREFIX: &str = "/registry/events/";
/// How long an event is kept, as in Kubernetes.
const TTL: Duration = Duration::from_secs(3600);
/// Least pause between two sweeps, so that events expire in batches.
const MIN_PAUSE: Duration = Duration::from_secs(60);
/// Removals in one transaction.
const BATCH: usize = 256;

/// Starts the task.
pub fn start(server: &Arc<ApiServer>) {
    let server = Arc::clone(server);
    let shutdown = server.shutdown.clone();
    shutdown.spawn_until_cancelled("event expiry", async move {
        loop {
            match sweep(&server).await {
                Some(pause) => tokio::time::sleep(pause.max(MIN_PAUSE)).await,
                None => {
                    let from = server.store.revision();
                    let Ok(mut watch) = server.store.watch(PREFIX, Some(from)) else {
                        continue;
                    };
                    if server.store.snapshot().range(PREFIX, None).next().is_some() {
                        continue;
                    }
                    if watch.next().await.is_none() {
                        return;
                    }
                }
            }
        }
    });
}

/// Removes what has expired. Returns when the next one is due; none when there are no events.
async fn sweep(server: &ApiServer) -> Option<Duration> {
    let now = server.clock.now();
    let snapshot = server.store.snapshot();
    let mut next: Option<Duration> = None;
    let mut expired = Vec::new();
    for entry in snapshot.range(PREFIX, None) {
        let age = now.duration_since(last_written(&entry.value)).unwrap_or_default();
        match TTL.checked_sub(age) {
            Some(left) if !left.is_zero() => next = Some(next.map_or(left, |n| n.min(left))),
            _ => expired.push(entry.clone()),
        }
    }
    for entry in &expired {
        tracing::trace!(key = &*entry.key, "event expired");
    }
    for batch in expired.chunks(BATCH) {
        let txn = Txn {
            preconditions: batch
                .iter()
                .map(|e| Precondition::Revision {
                    key: e.key.to_string(),
                    mod_revision: e.mod_revision,
                })
                .collect(),
            ops: batch
                .iter()
                .map(|e| Op::Delete {
                    key: e.key.to_string(),
                })
                .collect(),
            durability: Durability::Relaxed,
        };
        if let Err(error) = server.store.commit(txn).await {
            // One of them was written again in between, or the store is busy: the next sweep sees to it.
            tracing::debug!(%error, "removing expired events failed");
            next = Some(MIN_PAUSE);
        }
    }
    next
}

/// The latest time an event names.
fn last_written(bytes: &[u8]) -> SystemTime {
    const TIMES: &[&[&str]] = &[
        &["metadata", "creationTimestamp"],
        &["lastTimestamp"],
        &["eventTime"],
        &["series", "lastObservedTime"],
    ];
    TIMES
        .iter()
        .filter_map(|path| meta::parse_timestamp(&scan::string(bytes, path)?))
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_time_counts() {
        let event = br#"{"eventTime":null,"lastTimestamp":"2026-01-01T01:00:00Z","metadata":{"creationTimestamp":"2026-01-01T00:00:00Z"}}"#;
        assert_eq!(
            last_written(event),
            meta::parse_timestamp("2026-01-01T01:00:00Z").unwrap()
        );
        assert_eq!(last_written(b"{}"), SystemTime::UNIX_EPOCH);
    }
}
