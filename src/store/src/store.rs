//! The store's handle: opening, reading, committing, watching.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use parking_lot::RwLock;
use skiff_base::clock::{self, Clock};
use skiff_base::metrics;
use tokio::sync::{Semaphore, oneshot};

use crate::disk::{self, Files, Hook};
use crate::image::{Change, Image, Snapshot};
use crate::log::{self, Sink};
use crate::ring::{Limits, Ring, Watch};
use crate::state;
use crate::types::{CommitError, Entry, Gone, OpenError, Txn};
use crate::writer::{Disk, Policy, Request, Shared, Writer};

/// A sync that takes longer than this makes every write slow enough to notice.
const SLOW_SYNC: Duration = Duration::from_millis(50);
/// Memory for transactions that wait for the writer, in KiB; beyond it `commit` waits.
const QUEUE_KIB: u32 = 32 << 10;
/// The revision of an empty store: 0 means "any" to Kubernetes clients.
const FIRST_REVISION: u64 = 1;

/// How a store is opened.
#[derive(Clone)]
pub struct Options {
    /// Time for the relaxed timer and for measurements.
    pub clock: Arc<dyn Clock>,
    /// Events kept for watches.
    pub history_events: usize,
    /// Bytes of events kept for watches.
    pub history_bytes: usize,
    /// Limit on the bytes in live keys and values; beyond it only deletes are accepted.
    pub max_bytes: u64,
    /// Longest time a relaxed write stays in memory only.
    pub relaxed_delay: Duration,
    /// Size at which a log segment is complete.
    pub segment_bytes: u64,
    /// Log size that makes a checkpoint worthwhile (or the size of the live state, if that is more).
    pub checkpoint_bytes: u64,
    /// Open with what is readable when acknowledged data is damaged.
    pub salvage: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clock: clock::system(),
            history_events: 16_384,
            history_bytes: 16 << 20,
            max_bytes: 1 << 30,
            relaxed_delay: Duration::from_secs(5),
            segment_bytes: 4 << 20,
            checkpoint_bytes: 16 << 20,
            salvage: false,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

impl Options {
    fn policy(&self) -> Policy {
        Policy {
            segment_bytes: self.segment_bytes,
            checkpoint_bytes: self.checkpoint_bytes,
            relaxed_delay: self.relaxed_delay,
            max_bytes: self.max_bytes,
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            events: self.history_events,
            bytes: self.history_bytes,
        }
    }
}

/// A revisioned key-value store. Clones share it; the last one to go lets the
/// writer finish in the background ([`Store::close`] waits for it).
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
    requests: Sender<Request>,
    queue: Arc<Semaphore>,
}

/// Rebuilds image and history from the log.
struct Rebuild<'a> {
    image: Image,
    ring: &'a Ring,
}

impl Sink for Rebuild<'_> {
    fn commit(&mut self, revision: u64, changes: Vec<Change>) {
        let image = &mut self.image;
        let events: Vec<_> = changes
            .into_iter()
            .filter_map(|change| image.apply(revision, change))
            .collect();
        self.ring.push(events, revision);
    }

    fn gap(&mut self, last: u64, start: u64) {
        self.image.revision = self.image.revision.max(start);
        self.ring.gap(last, start);
    }
}

impl Store {
    /// Opens or creates the store in `dir`. Blocks: it reads the whole state.
    pub fn open(dir: &Path, options: Options) -> Result<Self, OpenError> {
        Self::open_hooked(dir, options, None)
    }

    pub(crate) fn open_hooked(dir: &Path, options: Options, hook: Option<Hook>) -> Result<Self, OpenError> {
        let begin = options.clock.monotonic();
        let files = Files(hook);
        disk::private_dir(dir)?;
        let lock = disk::lock(dir)?;
        let log_dir = dir.join("log");
        disk::private_dir(&log_dir)?;
        files.sync_dir(dir).map_err(OpenError::io(dir))?;
        probe(dir, &*options.clock);

        let (first, meta, image) = match state::newest(&files, dir)? {
            Some((number, path)) => {
                let (meta, image) = state::load(&path, options.salvage)?;
                (number, meta, image)
            }
            None => {
                let image = Image::empty(FIRST_REVISION);
                let meta = state::Meta {
                    revision: FIRST_REVISION,
                    reserved: FIRST_REVISION,
                    ..Default::default()
                };
                (1, meta, image)
            }
        };
        // Left over when a checkpoint was interrupted after it counted.
        state::delete_before(&files, dir, first).map_err(OpenError::io(dir))?;
        log::delete_before(&files, &log_dir, first).map_err(OpenError::io(&log_dir))?;

        let ring = Arc::new(Ring::new(options.limits(), image.revision));
        let mut rebuild = Rebuild { image, ring: &ring };
        let replayed = log::replay(
            &files,
            &log_dir,
            first,
            meta.revision,
            meta.reserved,
            options.salvage,
            &mut rebuild,
        )?;
        let mut image = rebuild.image;
        if replayed.reserved > image.revision {
            // Not closed in order: relaxed writes may be lost with their revisions.
            ring.gap(image.revision, replayed.reserved);
            image.revision = replayed.reserved;
        }
        tracing::info!(
            dir = %dir.display(), keys = image.len(), bytes = image.bytes(), revision = image.revision,
            segments = replayed.closed.len(), cut_bytes = replayed.cut_bytes,
            took = ?(options.clock.monotonic() - begin), "store open"
        );
        let log = replayed.into_log(log_dir.clone(), files.clone());
        let disk = Disk {
            dir: dir.to_owned(),
            log_dir,
            files,
            log,
            lock,
        };
        Self::start(image, ring, &options, Some(disk)).map_err(OpenError::io(dir))
    }

    /// A store without files, for tests. Needs no runtime; panics only if no thread can be made.
    pub fn memory() -> Self {
        Self::memory_with(Options::default())
    }

    /// The same with options: those about files have no effect.
    pub fn memory_with(options: Options) -> Self {
        let image = Image::empty(FIRST_REVISION);
        let ring = Arc::new(Ring::new(options.limits(), FIRST_REVISION));
        match Self::start(image, ring, &options, None) {
            Ok(store) => store,
            Err(error) => panic!("no thread for the store: {error}"),
        }
    }

    fn start(image: Image, ring: Arc<Ring>, options: &Options, disk: Option<Disk>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            image: RwLock::new(image),
            ring,
        });
        let (requests, receiver) = channel();
        let writer = Writer::new(shared.clone(), options.clock.clone(), options.policy(), disk);
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&receiver))?;
        Ok(Self {
            shared,
            requests,
            queue: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
        })
    }

    /// The revision of the last visible commit.
    pub fn revision(&self) -> u64 {
        self.shared.image.read().revision
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.shared.image.read().get(key).cloned()
    }

    /// Everything as it is now. O(1).
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.shared.image.read().clone())
    }

    /// Applies a transaction and waits until it is as durable as it asks for.
    /// Returns its revision, or the current one when it changes nothing.
    ///
    /// A caller that stops waiting does not know whether the commit happened.
    pub async fn commit(&self, txn: Txn) -> Result<u64, CommitError> {
        txn.validate()?;
        let weight = ((txn.size() >> 10) as u32 + 1).min(QUEUE_KIB);
        let permit = self
            .queue
            .clone()
            .acquire_many_owned(weight)
            .await
            .map_err(|_| CommitError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Commit {
                txn,
                reply,
                _permit: permit,
            })
            .map_err(|_| CommitError::Closed)?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Changes to keys that start with `prefix` made after revision `from`, or from now on.
    pub fn watch(&self, prefix: &str, from: Option<u64>) -> Result<Watch, Gone> {
        self.shared.ring.watch(prefix, from)
    }

    /// Writes what is only in memory, ends all watches and frees the
    /// directory. Later commits fail; reads still work.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Request::Close(reply)).is_ok() {
            // An error means that somebody else closed it meanwhile.
            let _ = done.await;
        }
    }
}

/// Tells the operator early when the disk will make everything slow.
fn probe(dir: &Path, clock: &dyn Clock) {
    match disk::probe(dir, clock) {
        Ok(took) => {
            let gauge = metrics::global().gauge(
                "skiff_store_probe_sync_seconds",
                "Median sync time of small writes at start.",
            );
            gauge.set(took.as_secs_f64());
            if took > SLOW_SYNC {
                tracing::warn!(dir = %dir.display(), ?took, "the disk is slow to sync: every write to the API waits for it");
            } else {
                tracing::info!(dir = %dir.display(), ?took, "disk sync time");
            }
        }
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "the disk does not take writes, the store is read-only until it does")
        }
    }
}
