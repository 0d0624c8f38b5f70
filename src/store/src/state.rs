//! Checkpoints: the whole state at one revision, in a sled database.
//!
//! `state-<n>` holds everything that the log segments before `n` say. A
//! checkpoint is written once, into a directory of its own, read back,
//! synced file by file, and only then given its name; the one before it and
//! the segments it covers are deleted after that. So no file that is needed
//! is ever written in place. That matters because sled 0.34 never calls fsync
//! itself and reuses its segments: a power cut in the middle of an in-place
//! update could leave neither the old nor the new state. It also means that
//! sled, with its page cache and threads, is not in memory between
//! checkpoints.
//!
//! sled may panic on damaged files and may silently lose a torn tail: opening
//! is guarded, and a count and checksum over all entries tells whether what
//! came back is complete.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::{self, Files, Step};
use crate::image::Image;
use crate::record::{Reader, VERSION};
use crate::types::{Entry, OpenError};

const PREFIX: &str = "state-";
const TEMPORARY: &str = ".tmp";
/// sled's page cache: entries pass through it once, in order.
const CACHE_BYTES: u64 = 4 << 20;
/// Entries in one sled batch.
const BATCH_BYTES: usize = 1 << 20;
const META_TREE: &str = "meta";
const META_KEY: &str = "state";

/// What a checkpoint says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    pub(crate) revision: u64,
    pub(crate) reserved: u64,
    pub(crate) count: u64,
    pub(crate) crc: u32,
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.revision.to_le_bytes());
        out.extend_from_slice(&self.reserved.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<(u32, Self)> {
        let mut r = Reader(bytes);
        let version = r.u32()?;
        let meta = Self {
            revision: r.u64()?,
            reserved: r.u64()?,
            count: r.u64()?,
            crc: r.u32()?,
        };
        Some((version, meta))
    }
}

/// An order-dependent checksum over entries.
#[derive(Default)]
struct Sum {
    count: u64,
    crc: crc32fast::Hasher,
}

impl Sum {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.count += 1;
        self.crc.update(&(key.len() as u32).to_le_bytes());
        self.crc.update(key);
        self.crc.update(&(value.len() as u32).to_le_bytes());
        self.crc.update(value);
    }

    fn finish(self) -> (u64, u32) {
        (self.count, self.crc.finalize())
    }
}

/// The newest checkpoint, if there is any: its number and path. Unfinished
/// ones are removed.
pub(crate) fn newest(files: &Files, dir: &Path) -> Result<Option<(u64, PathBuf)>, OpenError> {
    for (_, path) in disk::numbered(dir, PREFIX, TEMPORARY).map_err(OpenError::io(dir))? {
        files.remove_tree(&path).map_err(OpenError::io(&path))?;
    }
    Ok(disk::numbered(dir, PREFIX, "").map_err(OpenError::io(dir))?.pop())
}

/// Reads a checkpoint. With `salvage` an incomplete one is better than none.
pub(crate) fn load(path: &Path, salvage: bool) -> Result<(Meta, Image), OpenError> {
    let damaged = |reason: String| OpenError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let (mut read, mut failure) = read_guarded(path);
    if failure.is_some() && remove_snapshots(path).map_err(OpenError::io(path))? {
        // sled rebuilds its snapshot file from its log; an empty or torn one only keeps it from opening.
        tracing::warn!(path = %path.display(), "the checkpoint did not open, trying again without sled's snapshot file");
        (read, failure) = read_guarded(path);
    }
    let (version, meta) = read.meta.unwrap_or((VERSION, Meta::default()));
    if version > VERSION {
        return Err(OpenError::Version {
            path: path.to_owned(),
            found: version,
            known: VERSION,
        });
    }
    let found = read.sum.finish();
    let problem = match failure {
        Some(reason) => Some(reason),
        None if read.meta.is_none() => Some("it has no description of itself".to_owned()),
        None if found != (meta.count, meta.crc) => Some(format!(
            "{} of {} entries came back, or their checksum differs",
            found.0, meta.count
        )),
        None => None,
    };
    if let Some(reason) = problem {
        if !salvage {
            return Err(damaged(reason));
        }
        tracing::error!(path = %path.display(), reason, entries = found.0, "salvage: going on with an incomplete checkpoint");
    }
    read.image.revision = read.image.revision.max(meta.revision);
    Ok((meta, read.image))
}

#[derive(Default)]
struct Read {
    meta: Option<(u32, Meta)>,
    image: Image,
    sum: Sum,
}

/// What could be read, and why that is not all if it is not.
fn read_guarded(path: &Path) -> (Read, Option<String>) {
    let mut read = Read::default();
    let result = catch_unwind(AssertUnwindSafe(|| read_into(path, &mut read)));
    let failure = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(format!("sled gave up on it: {}", panic_text(panic.as_ref()))),
    };
    (read, failure)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no reason given").chars().take(300).collect()
}

fn read_into(path: &Path, read: &mut Read) -> Result<(), sled::Error> {
    let db = open(path)?;
    let meta = db.open_tree(META_TREE)?.get(META_KEY)?;
    read.meta = meta.and_then(|bytes| Meta::decode(&bytes));
    for item in db.iter() {
        let (key, value) = item?;
        read.sum.add(&key, &value);
        match decode_entry(&key, &value) {
            Some(entry) => {
                read.image.revision = read.image.revision.max(entry.mod_revision);
                read.image.load(entry);
            }
            None => return Err(sled::Error::Unsupported("an entry is not readable".into())),
        }
    }
    Ok(())
}

/// sled gives its lock back in a thread of its own, some time after the database
/// was dropped, and refuses to open until then: wait for that moment.
fn wait_for_lock(path: &Path) {
    if let Ok(file) = fs::File::open(path.join("db")) {
        // An error comes back from sled in its own words.
        let _ = file.lock();
    }
}

fn open(path: &Path) -> Result<sled::Db, sled::Error> {
    wait_for_lock(path);
    sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .open()
}

fn remove_snapshots(path: &Path) -> io::Result<bool> {
    let mut removed = false;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(entry.path())?;
            removed = true;
        }
    }
    Ok(removed)
}

fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + entry.value.len());
    out.extend_from_slice(&entry.create_revision.to_le_bytes());
    out.extend_from_slice(&entry.mod_revision.to_le_bytes());
    out.extend_from_slice(&entry.value);
    out
}

fn decode_entry(key: &[u8], value: &[u8]) -> Option<Entry> {
    let mut reader = Reader(value);
    let (create_revision, mod_revision) = (reader.u64()?, reader.u64()?);
    Some(Entry {
        key: str::from_utf8(key).ok()?.into(),
        value: Bytes::copy_from_slice(reader.0),
        create_revision,
        mod_revision,
    })
}

/// Writes `image` as checkpoint number `number`; how many bytes that took.
/// Until it returns nothing that existed before has been touched.
pub(crate) fn write(files: &Files, dir: &Path, number: u64, image: &Image, reserved: u64) -> io::Result<u64> {
    let name = dir.join(format!("{PREFIX}{number:016x}"));
    let temporary = dir.join(format!("{PREFIX}{number:016x}{TEMPORARY}"));
    let result = write_into(files, &temporary, image, reserved).and_then(|bytes| {
        files.rename(&temporary, &name)?;
        files.sync_dir(dir)?;
        Ok(bytes)
    });
    if result.is_err() {
        // Frees the space; a leftover would be removed at the next open.
        let _ = files.remove_tree(&temporary);
    }
    result
}

fn write_into(files: &Files, path: &Path, image: &Image, reserved: u64) -> io::Result<u64> {
    if path.exists() {
        files.remove_tree(path)?;
    }
    files.step(Step::Fill, path, 0)?;
    disk::private_dir(path).map_err(io::Error::other)?;
    let filled = catch_unwind(AssertUnwindSafe(|| fill(path, image, reserved)));
    let meta = match filled {
        Ok(result) => result.map_err(from_sled)?,
        Err(panic) => return Err(io::Error::other(format!("sled: {}", panic_text(panic.as_ref())))),
    };
    // Believe what was written only after reading it back.
    let (read, failure) = read_guarded(path);
    if let Some(reason) = failure {
        return Err(io::Error::other(format!(
            "the new checkpoint does not open: {reason}"
        )));
    }
    if read.meta != Some((VERSION, meta)) || read.sum.finish() != (meta.count, meta.crc) {
        return Err(io::Error::other(
            "the new checkpoint does not hold what was written",
        ));
    }
    files.sync_tree(path)
}

fn fill(path: &Path, image: &Image, reserved: u64) -> Result<Meta, sled::Error> {
    let db = open(path)?;
    let mut sum = Sum::default();
    let (mut batch, mut batched) = (sled::Batch::default(), 0);
    for entry in image.iter() {
        let value = encode_entry(entry);
        sum.add(entry.key.as_bytes(), &value);
        batched += entry.key.len() + value.len();
        batch.insert(entry.key.as_bytes(), value);
        if batched >= BATCH_BYTES {
            db.apply_batch(std::mem::take(&mut batch))?;
            batched = 0;
        }
    }
    db.apply_batch(batch)?;
    let (count, crc) = sum.finish();
    let meta = Meta {
        revision: image.revision,
        reserved,
        count,
        crc,
    };
    db.open_tree(META_TREE)?.insert(META_KEY, meta.encode())?;
    db.flush()?;
    Ok(meta)
}

fn from_sled(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Removes every checkpoint before `number`.
pub(crate) fn delete_before(files: &Files, dir: &Path, number: u64) -> io::Result<()> {
    for (_, path) in disk::numbered(dir, PREFIX, "")?
        .iter()
        .filter(|(n, _)| *n < number)
    {
        files.remove_tree(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Change;

    fn sample() -> Image {
        let mut image = Image::default();
        for i in 1..=2_000_u64 {
            let value = vec![i as u8; (i as usize * 37) % 5_000];
            image.apply(
                i,
                Change::Put {
                    key: format!("/k/{i:05}"),
                    value: value.into(),
                },
            );
        }
        image
    }

    fn write_sample(dir: &Path) -> PathBuf {
        write(&Files::default(), dir, 7, &sample(), 9_000).unwrap();
        newest(&Files::default(), dir).unwrap().unwrap().1
    }

    #[test]
    fn a_checkpoint_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_sample(dir.path());
        let (meta, image) = load(&path, false).unwrap();
        assert_eq!((meta.revision, meta.reserved, meta.count), (2_000, 9_000, 2_000));
        assert!(image.iter().eq(sample().iter()));
        assert_eq!(image.bytes(), sample().bytes());
    }

    #[test]
    fn an_empty_snapshot_file_of_sled_is_overcome() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_sample(dir.path());
        let mut emptied = 0;
        for entry in fs::read_dir(&path).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("snap.") {
                fs::write(entry.path(), b"").unwrap();
                emptied += 1;
            }
        }
        assert!(emptied > 0, "sled wrote no snapshot file: the test shows nothing");
        let (_, image) = load(&path, false).unwrap();
        assert_eq!(image.len(), 2_000);
    }

    #[test]
    fn damage_is_an_error_and_never_a_smaller_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_sample(dir.path());
        let db = path.join("db");
        let good = fs::read(&db).unwrap();
        for at in [good.len() / 4, good.len() / 2, good.len() * 3 / 4] {
            let mut bad = good.clone();
            bad[at..at + 4_096].fill(0);
            fs::write(&db, &bad).unwrap();
            match load(&path, false) {
                Err(OpenError::Damaged { .. }) => {}
                Err(other) => panic!("{other}"),
                // Bytes that sled does not use may change without harm.
                Ok((_, image)) => assert!(
                    image.iter().eq(sample().iter()),
                    "a page at {at} is gone unnoticed"
                ),
            }
            load(&path, true).unwrap();
        }
    }

    #[test]
    fn unfinished_checkpoints_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        write_sample(dir.path());
        fs::create_dir(dir.path().join("state-0000000000000009.tmp")).unwrap();
        fs::create_dir(dir.path().join("state-0000000000000003")).unwrap();
        assert_eq!(newest(&Files::default(), dir.path()).unwrap().unwrap().0, 7);
        delete_before(&Files::default(), dir.path(), 7).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
