//! The write-ahead log: where a strict commit becomes durable.
//!
//! Segments `log/<sequence>.log` are appended to and synced with fdatasync; a
//! full one is left behind and a checkpoint deletes it. A segment is made
//! only when there is something to write, so an idle or full disk does not
//! keep the store from opening.
//!
//! A failed write or sync leaves unknown bytes behind the last good length.
//! Nothing may be appended behind them, or a crash would cut the good with
//! the bad: the segment is first truncated back (and after a failed sync also
//! left for a new one, because the kernel forgets which pages it could not
//! write). Until that succeeds every append fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::{self, Files, Step};
use crate::image::Change;
use crate::record::{self, HEADER_LEN, Header, HeaderError, Payloads, Record};
use crate::types::OpenError;

const SUFFIX: &str = ".log";

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    sequence: u64,
    /// Everything before this is on stable storage.
    durable: u64,
    /// The bytes behind `durable` are unknown.
    dirty: bool,
}

/// A segment that is complete.
#[derive(Debug)]
pub(crate) struct Closed {
    pub(crate) sequence: u64,
    pub(crate) bytes: u64,
}

pub(crate) struct Log {
    dir: PathBuf,
    files: Files,
    current: Option<Segment>,
    next_sequence: u64,
    pub(crate) closed: Vec<Closed>,
    /// The last revision in the log.
    last: u64,
    /// The revision the next segment starts from.
    start: u64,
    /// Revisions up to this one may be given to relaxed writes: durable.
    pub(crate) reserved: u64,
    buffer: Vec<u8>,
}

/// What replaying the log found.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) closed: Vec<Closed>,
    pub(crate) next_sequence: u64,
    pub(crate) last: u64,
    pub(crate) revision: u64,
    pub(crate) reserved: u64,
    pub(crate) cut_bytes: u64,
}

impl Replayed {
    /// Goes on after this replay.
    pub(crate) fn into_log(self, dir: PathBuf, files: Files) -> Log {
        Log {
            dir,
            files,
            current: None,
            next_sequence: self.next_sequence,
            closed: self.closed,
            last: self.last,
            start: self.revision.max(self.reserved),
            reserved: self.reserved,
            buffer: Vec::new(),
        }
    }
}

impl Log {
    /// Makes the payloads durable. `last` is the newest revision in them,
    /// `reserved` the newest reservation. On an error nothing has happened,
    /// as far as anyone can see now or after a crash and a later success.
    pub(crate) fn append(&mut self, payloads: &Payloads, last: u64, reserved: u64) -> io::Result<u64> {
        self.heal()?;
        let mut segment = match self.current.take() {
            Some(segment) => segment,
            None => self.create()?,
        };
        self.buffer.clear();
        payloads.frames(segment.sequence, segment.durable, &mut self.buffer);
        let result = self.write(&mut segment);
        let written = self.buffer.len() as u64;
        self.buffer.shrink_to(256 << 10);
        self.current = Some(segment);
        if let Err((error, in_sync)) = result {
            // Best effort now; the next append tries again.
            if self.heal().is_ok() && in_sync {
                self.rotate();
            }
            return Err(error);
        }
        self.last = self.last.max(last);
        self.start = self.start.max(self.last);
        self.reserved = reserved;
        Ok(written)
    }

    fn write(&self, segment: &mut Segment) -> Result<(), (io::Error, bool)> {
        segment.dirty = true;
        self.files
            .step(Step::Write, &segment.path, segment.durable)
            .map_err(|e| (e, false))?;
        segment
            .file
            .write_all_at(&self.buffer, segment.durable)
            .map_err(|e| (e, false))?;
        self.files
            .step(Step::Sync, &segment.path, segment.durable)
            .map_err(|e| (e, true))?;
        segment.file.sync_data().map_err(|e| (e, true))?;
        let durable = segment.durable + self.buffer.len() as u64;
        self.files
            .step(Step::Synced, &segment.path, durable)
            .map_err(|e| (e, true))?;
        segment.durable = durable;
        segment.dirty = false;
        Ok(())
    }

    /// Cuts what a failed append left behind.
    fn heal(&mut self) -> io::Result<()> {
        let Some(segment) = self.current.as_mut().filter(|segment| segment.dirty) else {
            return Ok(());
        };
        self.files.step(Step::Truncate, &segment.path, segment.durable)?;
        segment.file.set_len(segment.durable)?;
        self.files.sync(&segment.file, &segment.path)?;
        segment.dirty = false;
        Ok(())
    }

    fn create(&mut self) -> io::Result<Segment> {
        let sequence = self.next_sequence;
        let path = self.dir.join(format!("{sequence:016x}{SUFFIX}"));
        let header = Header {
            sequence,
            last: self.last,
            start: self.start,
            reserved: self.reserved,
        };
        let made = self.create_at(&path, &header);
        match made {
            Ok(file) => {
                self.next_sequence += 1;
                self.start = self.start.max(self.last);
                Ok(Segment {
                    file,
                    path,
                    sequence,
                    durable: HEADER_LEN as u64,
                    dirty: false,
                })
            }
            Err(error) => {
                // A leftover with a bad header is cut at the next open or overwritten by the next try.
                let _ = self.files.remove_file(&path);
                Err(error)
            }
        }
    }

    fn create_at(&self, path: &Path, header: &Header) -> io::Result<File> {
        self.files.step(Step::Create, path, 0)?;
        let file = disk::private_file(path)?;
        file.write_all_at(&header.encode(), 0)?;
        self.files.sync(&file, path)?;
        self.files.sync_dir(&self.dir)?;
        Ok(file)
    }

    /// Bytes in the segment being written.
    pub(crate) fn current_bytes(&self) -> u64 {
        self.current.as_ref().map_or(0, |segment| segment.durable)
    }

    /// Bytes in all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.current_bytes() + self.closed.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Leaves the current segment. It must be clean.
    pub(crate) fn rotate(&mut self) {
        if let Some(segment) = self.current.take_if(|segment| !segment.dirty) {
            self.closed.push(Closed {
                sequence: segment.sequence,
                bytes: segment.durable,
            });
        }
    }

    /// The first segment a checkpoint made now does not cover.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Whether the current segment holds bytes that a failed write left.
    pub(crate) fn is_dirty(&self) -> bool {
        self.current.as_ref().is_some_and(|segment| segment.dirty)
    }
}

/// Deletes segments before `first`.
pub(crate) fn delete_before(files: &Files, dir: &Path, first: u64) -> io::Result<()> {
    let old: Vec<_> = disk::numbered(dir, "", SUFFIX)?
        .into_iter()
        .filter(|(n, _)| *n < first)
        .collect();
    for (_, path) in &old {
        files.remove_file(path)?;
    }
    if old.is_empty() {
        Ok(())
    } else {
        files.sync_dir(dir)
    }
}

/// Where a replay delivers what it reads.
pub(crate) trait Sink {
    fn commit(&mut self, revision: u64, changes: Vec<Change>);
    /// Revisions behind `last` and before `start` were lost in a crash.
    fn gap(&mut self, last: u64, start: u64);
}

/// Reads the log behind a checkpoint at `revision` that left off at segment
/// `first`. A torn tail of the last segment is cut off; anything else that
/// cannot be read is an error, or with `salvage` the end of what is read.
pub(crate) fn replay(
    files: &Files,
    dir: &Path,
    first: u64,
    revision: u64,
    reserved: u64,
    salvage: bool,
    sink: &mut dyn Sink,
) -> Result<Replayed, OpenError> {
    let mut state = Replayed {
        next_sequence: first,
        last: revision,
        revision,
        reserved,
        ..Replayed::default()
    };
    let segments = disk::numbered(dir, "", SUFFIX).map_err(OpenError::io(dir))?;
    let newest = segments.last().map(|(sequence, _)| *sequence);
    for (sequence, path) in segments {
        if sequence != state.next_sequence {
            let reason = format!("segment {:016x} is missing", state.next_sequence);
            if !salvage {
                return Err(OpenError::Damaged { path, reason });
            }
            tracing::error!(path = %path.display(), reason, "salvage: going on behind the gap");
        }
        let is_last = newest == Some(sequence);
        if replay_segment(files, &path, sequence, is_last, salvage, &mut state, sink)? {
            state.next_sequence = sequence + 1;
        }
        if is_last && path.exists() {
            // What was read may be in the page cache only, if it was the process that ended and not
            // the machine. It counts from now on, so it must not be lost later.
            let synced = File::open(&path).and_then(|file| files.sync(&file, &path));
            synced.map_err(OpenError::io(&path))?;
            files.sync_dir(dir).map_err(OpenError::io(dir))?;
        }
    }
    Ok(state)
}

/// Whether the segment stays.
fn replay_segment(
    files: &Files,
    path: &Path,
    sequence: u64,
    is_last: bool,
    salvage: bool,
    state: &mut Replayed,
    sink: &mut dyn Sink,
) -> Result<bool, OpenError> {
    let bytes = Bytes::from(std::fs::read(path).map_err(OpenError::io(path))?);
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let header = match Header::decode(&bytes) {
        Ok(header) if header.sequence == sequence => header,
        Err(HeaderError::Version(found)) => {
            return Err(OpenError::Version {
                path: path.to_owned(),
                found,
                known: record::VERSION,
            });
        }
        // A header is synced before anything is appended, so a bad one with data behind it was good once.
        _ if (is_last && bytes.len() <= HEADER_LEN) || salvage => {
            tracing::warn!(path = %path.display(), bytes = bytes.len(), "removing a segment that was never begun");
            state.cut_bytes += bytes.len() as u64;
            files.remove_file(path).map_err(OpenError::io(path))?;
            return Ok(false);
        }
        _ => return Err(damaged("its header is not readable".into())),
    };
    if header.start > header.last {
        sink.gap(header.last, header.start);
    }
    state.revision = state.revision.max(header.start);
    state.last = state.last.max(header.start);
    state.reserved = header.reserved;
    let mut at = HEADER_LEN;
    while let Some(frame) = record::read_frame(&bytes, sequence, at) {
        at = frame.end;
        match frame.record {
            Record::Reserve { until } => state.reserved = until,
            // Not newer: the checkpoint has it already.
            Record::Commit { revision, changes } if revision > state.revision => {
                state.revision = revision;
                state.last = revision;
                sink.commit(revision, changes);
            }
            Record::Commit { .. } => {}
        }
    }
    if at < bytes.len() {
        let proof = record::proves_damage(&bytes, sequence, at);
        let reason = format!("the record at byte {at} is not readable");
        if !salvage && (!is_last || proof) {
            return Err(damaged(reason));
        }
        cut(files, path, at as u64).map_err(OpenError::io(path))?;
        state.cut_bytes += (bytes.len() - at) as u64;
        let lost = bytes.len() - at;
        tracing::warn!(path = %path.display(), at, lost, "cut the torn end of the log, nothing in it was acknowledged as durable");
    }
    state.closed.push(Closed {
        sequence,
        bytes: at as u64,
    });
    Ok(true)
}

fn cut(files: &Files, path: &Path, length: u64) -> io::Result<()> {
    files.step(Step::Truncate, path, length)?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(length)?;
    files.sync(&file, path)?;
    Ok(())
}
