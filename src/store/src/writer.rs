//! The writer: one thread that turns transactions into revisions.
//!
//! It takes everything that waits, applies it to a private copy of the image,
//! makes it durable with one append and one fdatasync if any of it is strict,
//! publishes the copy, appends the events to the ring and only then answers.
//! While it waits for the disk the next batch gathers by itself.
//!
//! Relaxed changes are kept encoded in memory, already visible, and written
//! before the next strict batch or when the oldest has waited long enough.
//! Their revisions come from a block that was reserved in the log beforehand.
//!
//! A failed append discards the private copy: all that waited for it fail,
//! nobody saw anything, and the next batch tries again.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use skiff_base::clock::Clock;
use skiff_base::metrics::{self, Counter, Gauge, Histogram};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::disk::Files;
use crate::image::{Change, Image};
use crate::log::{self, Log};
use crate::record::Payloads;
use crate::ring::Ring;
use crate::state;
use crate::types::{CommitError, Durability, Event, Op, Txn};

/// Transactions in one batch: bounds how long the first waits for the last.
const MAX_BATCH_TXNS: usize = 1_024;
/// Bytes in one batch, for the same reason.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Relaxed bytes in memory before they are written without waiting longer.
const MAX_PENDING_BYTES: usize = 1 << 20;
/// Revisions reserved at a time: at one relaxed write a second, one forced sync an hour.
const RESERVE_BLOCK: u64 = 4_096;
/// Segments before a checkpoint, whatever their size: bounds the files a replay opens.
const MAX_SEGMENTS: usize = 64;
/// How long to wait after a checkpoint failed.
const CHECKPOINT_RETRY: Duration = Duration::from_secs(60);

pub(crate) enum Request {
    Commit {
        txn: Txn,
        reply: Reply,
        _permit: OwnedSemaphorePermit,
    },
    Close(oneshot::Sender<()>),
}

pub(crate) type Reply = oneshot::Sender<Result<u64, CommitError>>;

/// What readers share with the writer.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) image: RwLock<Image>,
    pub(crate) ring: Arc<Ring>,
}

/// When to do what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) segment_bytes: u64,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) relaxed_delay: Duration,
    pub(crate) max_bytes: u64,
}

/// The durable side; none in a store that lives in memory.
pub(crate) struct Disk {
    pub(crate) dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) files: Files,
    pub(crate) log: Log,
    pub(crate) lock: File,
}

struct Metrics {
    commits: Counter,
    conflicts: Counter,
    failures: Counter,
    batches: Counter,
    written: Counter,
    checkpoints: Counter,
    checkpoint_failures: Counter,
    sync: Histogram,
    keys: Gauge,
    live_bytes: Gauge,
    log_bytes: Gauge,
    watchers: Gauge,
    ring_events: Gauge,
    ring_bytes: Gauge,
    revision: Gauge,
}

impl Metrics {
    fn new() -> Self {
        let m = metrics::global();
        let bounds = [
            0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
        ];
        Self {
            commits: m.counter("skiff_store_commits_total", "Transactions applied."),
            conflicts: m.counter(
                "skiff_store_conflicts_total",
                "Transactions whose preconditions did not hold.",
            ),
            failures: m.counter(
                "skiff_store_write_failures_total",
                "Appends to the log that the disk refused.",
            ),
            batches: m.counter(
                "skiff_store_batches_total",
                "Appends to the log, each with one sync.",
            ),
            written: m.counter(
                "skiff_store_written_bytes_total",
                "Bytes written to the log and to checkpoints.",
            ),
            checkpoints: m.counter("skiff_store_checkpoints_total", "Checkpoints written."),
            checkpoint_failures: m.counter(
                "skiff_store_checkpoint_failures_total",
                "Checkpoints that failed.",
            ),
            sync: m.histogram(
                "skiff_store_append_seconds",
                "Time to append to the log and sync it.",
                &bounds,
            ),
            keys: m.gauge("skiff_store_keys", "Live keys."),
            live_bytes: m.gauge("skiff_store_live_bytes", "Bytes in live keys and values."),
            log_bytes: m.gauge("skiff_store_log_bytes", "Bytes in the log."),
            watchers: m.gauge("skiff_store_watchers", "Open watches."),
            ring_events: m.gauge("skiff_store_history_events", "Events kept for watches."),
            ring_bytes: m.gauge("skiff_store_history_bytes", "Bytes of events kept for watches."),
            revision: m.gauge("skiff_store_revision", "The current revision."),
        }
    }
}

struct Checkpoint {
    first_kept: u64,
    thread: JoinHandle<io::Result<u64>>,
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) policy: Policy,
    disk: Option<Disk>,
    /// Relaxed changes that are visible but not written.
    pending: Payloads,
    pending_since: Option<Instant>,
    checkpoint: Option<Checkpoint>,
    no_checkpoint_before: Option<Instant>,
    metrics: Metrics,
}

enum Wake {
    Request(Box<Request>),
    Timer,
    Ended,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        policy: Policy,
        disk: Option<Disk>,
    ) -> Self {
        Self {
            shared,
            clock,
            policy,
            disk,
            pending: Payloads::default(),
            pending_since: None,
            checkpoint: None,
            no_checkpoint_before: None,
            metrics: Metrics::new(),
        }
    }

    /// Serves requests until the store is closed or forgotten.
    pub(crate) fn run(mut self, requests: &Receiver<Request>) {
        self.report();
        let mut batch: Vec<(Txn, Reply)> = Vec::new();
        let closing = loop {
            match self.wait(requests) {
                Wake::Timer => self.flush_relaxed(),
                Wake::Ended => break None,
                Wake::Request(first) => {
                    let closing = gather(*first, requests, &mut batch);
                    self.process(&mut batch);
                    if closing.is_some() {
                        break closing;
                    }
                }
            }
            self.checkpoint_if_due();
        };
        self.finish();
        if let Some(reply) = closing {
            let _ = reply.send(());
        }
    }

    fn wait(&self, requests: &Receiver<Request>) -> Wake {
        let Some(since) = self.pending_since else {
            return requests
                .recv()
                .map_or(Wake::Ended, |request| Wake::Request(Box::new(request)));
        };
        let waited = self.clock.monotonic().saturating_duration_since(since);
        let Some(left) = self
            .policy
            .relaxed_delay
            .checked_sub(waited)
            .filter(|left| !left.is_zero())
        else {
            return Wake::Timer;
        };
        match requests.recv_timeout(left) {
            Ok(request) => Wake::Request(Box::new(request)),
            // Not Timer: the clock decides whether it is time.
            Err(RecvTimeoutError::Timeout) => self.wait(requests),
            Err(RecvTimeoutError::Disconnected) => Wake::Ended,
        }
    }

    fn process(&mut self, batch: &mut Vec<(Txn, Reply)>) {
        let mut work = Work::new(self.shared.image.read().clone(), self.policy.max_bytes);
        let mut answers = Vec::with_capacity(batch.len());
        for (txn, reply) in batch.drain(..) {
            // Whoever asked is gone (a cancelled request): nothing may happen behind its back.
            if !reply.is_closed() {
                answers.push((work.apply(txn), reply));
            }
        }
        let error = self.persist(&work).err().map(CommitError::from);
        if let Some(error) = error {
            tracing::warn!(%error, transactions = answers.len(), "store write failed, reads go on");
            for (answer, reply) in answers {
                // A malformed transaction is malformed either way; all else was judged on a state that is discarded.
                let invalid = matches!(answer, Err(CommitError::Invalid { .. }));
                let _ = reply.send(if invalid { answer } else { Err(error.clone()) });
            }
            return;
        }
        self.publish(work.image, work.events);
        for (answer, reply) in answers {
            match &answer {
                Ok(_) => self.metrics.commits.inc(),
                Err(_) => self.metrics.conflicts.inc(),
            }
            let _ = reply.send(answer);
        }
        self.report();
    }

    /// Makes the work durable as far as it asked for it.
    fn persist(&mut self, work: &Work) -> io::Result<()> {
        if work.payloads.is_empty() {
            return Ok(());
        }
        let Some(disk) = &self.disk else { return Ok(()) };
        let unreserved = work.image.revision > disk.log.reserved;
        let too_much = self.pending.len() + work.payloads.len() > MAX_PENDING_BYTES;
        // The bytes that a failed append left may still be found after a crash, with the revisions that
        // are given out next: nothing may be seen under those before the log is clean.
        if work.strict || unreserved || too_much || disk.log.is_dirty() {
            return self.append(Some(work), work.image.revision, true);
        }
        self.pending.extend(&work.payloads);
        let now = self.clock.monotonic();
        self.pending_since.get_or_insert(now);
        Ok(())
    }

    /// Appends pending and new payloads and, when it pays, a reservation.
    fn append(&mut self, work: Option<&Work>, revision: u64, reserve_more: bool) -> io::Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        let mut payloads = self.pending.clone();
        if let Some(work) = work {
            payloads.extend(&work.payloads);
        }
        let mut reserved = disk.log.reserved;
        if !reserve_more {
            reserved = revision;
        } else if reserved < revision + RESERVE_BLOCK / 2 {
            reserved = revision + RESERVE_BLOCK;
        }
        if reserved != disk.log.reserved {
            payloads.push_reserve(reserved);
        }
        if payloads.is_empty() {
            return Ok(());
        }
        let begin = self.clock.monotonic();
        let written = disk
            .log
            .append(&payloads, revision, reserved)
            .inspect_err(|_| self.metrics.failures.inc())?;
        self.metrics
            .sync
            .observe((self.clock.monotonic() - begin).as_secs_f64());
        self.metrics.batches.inc();
        self.metrics.written.add(written);
        self.pending.clear();
        self.pending_since = None;
        if disk.log.current_bytes() >= self.policy.segment_bytes {
            disk.log.rotate();
        }
        Ok(())
    }

    fn flush_relaxed(&mut self) {
        let revision = self.shared.image.read().revision;
        if let Err(error) = self.append(None, revision, true) {
            tracing::warn!(%error, "relaxed store writes could not be written, trying again");
            self.pending_since = Some(self.clock.monotonic());
        }
        self.report();
    }

    fn publish(&self, image: Image, events: Vec<Event>) {
        let revision = image.revision;
        let old = std::mem::replace(&mut *self.shared.image.write(), image);
        self.shared.ring.push(events, revision);
        drop(old);
    }

    fn report(&self) {
        let m = &self.metrics;
        {
            let image = self.shared.image.read();
            m.keys.set(image.len() as f64);
            m.live_bytes.set(image.bytes() as f64);
            m.revision.set(image.revision as f64);
        }
        let (watchers, events, bytes) = self.shared.ring.load();
        m.watchers.set(watchers as f64);
        m.ring_events.set(events as f64);
        m.ring_bytes.set(bytes as f64);
        m.log_bytes
            .set(self.disk.as_ref().map_or(0, |disk| disk.log.bytes()) as f64);
    }

    /// Begins a checkpoint when the log has grown past what the state itself
    /// takes: so writing checkpoints at most doubles what is written.
    fn checkpoint_if_due(&mut self) {
        self.reap(false);
        let Some(disk) = &mut self.disk else { return };
        let image = self.shared.image.read().clone();
        let closed: u64 = disk.log.closed.iter().map(|segment| segment.bytes).sum();
        let due = closed >= self.policy.checkpoint_bytes.max(image.bytes())
            || disk.log.closed.len() >= MAX_SEGMENTS;
        let now = self.clock.monotonic();
        let held_back = self.no_checkpoint_before.is_some_and(|at| now < at);
        if !due || held_back || self.checkpoint.is_some() || disk.log.is_dirty() {
            return;
        }
        disk.log.rotate();
        let first_kept = disk.log.next_sequence();
        let (dir, log_dir, reserved) = (disk.dir.clone(), disk.log_dir.clone(), disk.log.reserved);
        let files = disk.files.clone();
        let work = move || {
            let bytes = state::write(&files, &dir, first_kept, &image, reserved)?;
            // The checkpoint counts from here on: what is left over now only takes space.
            log::delete_before(&files, &log_dir, first_kept)?;
            state::delete_before(&files, &dir, first_kept)?;
            Ok(bytes)
        };
        match std::thread::Builder::new()
            .name("store-checkpoint".into())
            .spawn(work)
        {
            Ok(thread) => self.checkpoint = Some(Checkpoint { first_kept, thread }),
            Err(error) => {
                tracing::warn!(%error, "no thread for a checkpoint of the store");
                self.no_checkpoint_before = Some(now + CHECKPOINT_RETRY);
            }
        }
    }

    /// Takes note of a checkpoint that has ended.
    fn reap(&mut self, wait: bool) {
        let Some(checkpoint) = self
            .checkpoint
            .take_if(|running| wait || running.thread.is_finished())
        else {
            return;
        };
        let result = checkpoint
            .thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the checkpoint panicked")));
        match result {
            Ok(bytes) => {
                self.metrics.checkpoints.inc();
                self.metrics.written.add(bytes);
                if let Some(disk) = &mut self.disk {
                    disk.log
                        .closed
                        .retain(|segment| segment.sequence >= checkpoint.first_kept);
                }
                tracing::debug!(bytes, "store checkpoint written");
            }
            Err(error) => {
                self.metrics.checkpoint_failures.inc();
                tracing::warn!(%error, "store checkpoint failed, the log keeps everything; trying again later");
                self.no_checkpoint_before = Some(self.clock.monotonic() + CHECKPOINT_RETRY);
            }
        }
    }

    fn finish(mut self) {
        self.reap(true);
        let revision = self.shared.image.read().revision;
        // The exact reservation says that nothing was lost: watches may go on across the restart.
        if let Err(error) = self.append(None, revision, false) {
            tracing::warn!(%error, "the last relaxed store writes are lost");
        }
        if let Some(disk) = self.disk.take() {
            drop(disk.lock);
        }
    }
}

impl Drop for Writer {
    /// However the writer ends, nobody waits for events that cannot come.
    fn drop(&mut self) {
        self.shared.ring.close();
    }
}

/// Collects what waits behind `first`, up to a batch's limits.
fn gather(
    first: Request,
    requests: &Receiver<Request>,
    batch: &mut Vec<(Txn, Reply)>,
) -> Option<oneshot::Sender<()>> {
    let (mut next, mut bytes) = (first, 0);
    loop {
        match next {
            Request::Close(reply) => return Some(reply),
            Request::Commit { txn, reply, _permit } => {
                bytes += txn.size();
                batch.push((txn, reply));
            }
        }
        if batch.len() >= MAX_BATCH_TXNS || bytes >= MAX_BATCH_BYTES {
            return None;
        }
        match requests.try_recv() {
            Ok(request) => next = request,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
        }
    }
}

/// A batch being applied to a private copy of the image.
struct Work {
    image: Image,
    events: Vec<Event>,
    payloads: Payloads,
    strict: bool,
    max_bytes: u64,
}

impl Work {
    fn new(image: Image, max_bytes: u64) -> Self {
        Self {
            image,
            events: Vec::new(),
            payloads: Payloads::default(),
            strict: false,
            max_bytes,
        }
    }

    /// Applies one transaction or says why not.
    fn apply(&mut self, txn: Txn) -> Result<u64, CommitError> {
        txn.validate()?;
        for precondition in &txn.preconditions {
            let current = self.image.get(precondition.key());
            if !precondition.holds(current) {
                return Err(CommitError::Conflict {
                    key: precondition.key().to_owned(),
                    current: current.cloned(),
                });
            }
        }
        let grows = txn.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        if grows && self.image.bytes() + txn.size() as u64 > self.max_bytes {
            return Err(CommitError::Full);
        }
        let revision = self.image.revision + 1;
        let changes: Vec<Change> = txn
            .ops
            .into_iter()
            .filter(|op| matches!(op, Op::Put { .. }) || self.image.get(op.key()).is_some())
            .map(|op| Change::from_op(op, revision))
            .collect();
        if changes.is_empty() {
            return Ok(self.image.revision);
        }
        self.strict |= txn.durability == Durability::Strict;
        self.payloads.push_commit(revision, &changes);
        for change in changes {
            self.events.extend(self.image.apply(revision, change));
        }
        Ok(revision)
    }
}
