//! The file system as the store uses it: private files, directories that are
//! synced, a lock, and a look at how long a sync takes.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_base::clock::Clock;

use crate::types::OpenError;

/// Syncs timed at open: enough for a median, few enough not to wear flash.
const PROBE_ROUNDS: usize = 5;
/// What a small log write occupies.
const PROBE_BYTES: usize = 4_096;

/// What the log does to its files, as seen by tests that make it fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Create,
    Write,
    Sync,
    Truncate,
    /// The file is on stable storage, an append up to the length given.
    Synced,
    SyncDir,
    /// The names in a directory are on stable storage.
    SyncedDir,
    Rename,
    Remove,
    /// The database of a checkpoint is about to be filled.
    Fill,
}

/// Called before a step (after it, for those in the past tense) with the file
/// and its durable length; an error is taken as the system's.
pub(crate) type Hook = Arc<dyn Fn(Step, &Path, u64) -> io::Result<()> + Send + Sync>;

/// Every change to the directory that has to outlive a crash goes through
/// here, so that a test can fail it, stop at it or forget it.
#[derive(Clone, Default)]
pub(crate) struct Files(pub(crate) Option<Hook>);

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files")
            .field("hooked", &self.0.is_some())
            .finish()
    }
}

impl Files {
    pub(crate) fn step(&self, step: Step, path: &Path, durable: u64) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hook| hook(step, path, durable))
    }

    /// Puts data and length of a file on stable storage.
    pub(crate) fn sync(&self, file: &File, path: &Path) -> io::Result<u64> {
        self.step(Step::Sync, path, 0)?;
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        self.step(Step::Synced, path, bytes)?;
        Ok(bytes)
    }

    /// Puts the names in a directory on stable storage.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(Step::SyncDir, path, 0)?;
        File::open(path)?.sync_all()?;
        self.step(Step::SyncedDir, path, 0)
    }

    /// Puts a whole tree on stable storage, readable by its owner alone.
    pub(crate) fn sync_tree(&self, path: &Path) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                bytes += self.sync_tree(&entry.path())?;
            } else {
                let file = File::open(entry.path())?;
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
                bytes += self.sync(&file, &entry.path())?;
            }
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        self.sync_dir(path)?;
        Ok(bytes)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Step::Rename, to, 0)?;
        fs::rename(from, to)
    }

    /// Removes a file that may already be gone.
    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Remove, path, 0)?;
        remove_file(path)
    }

    pub(crate) fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.step(Step::Remove, path, 0)?;
        fs::remove_dir_all(path)
    }
}

/// Makes a directory that only its owner may enter, or tightens an existing one.
pub(crate) fn private_dir(path: &Path) -> Result<(), OpenError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(OpenError::io(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(OpenError::io(path))
}

pub(crate) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

/// Takes the directory for this process until the file is dropped. The kernel
/// lets go of it when the process dies, however it dies.
pub(crate) fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(OpenError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path, source }),
    }
}

/// The median time of a small write with fdatasync.
pub(crate) fn probe(dir: &Path, clock: &dyn Clock) -> io::Result<Duration> {
    let path = dir.join("probe.tmp");
    let timed = || -> io::Result<Duration> {
        let mut file = private_file(&path)?;
        let mut times = [Duration::ZERO; PROBE_ROUNDS];
        for time in &mut times {
            let begin = clock.monotonic();
            file.write_all(&[0x5a; PROBE_BYTES])?;
            file.sync_data()?;
            *time = clock.monotonic() - begin;
        }
        times.sort_unstable();
        Ok(times[PROBE_ROUNDS / 2])
    };
    let result = timed();
    remove_file(&path)?;
    result
}

/// Removes a file that may already be gone.
fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Files in `dir` named `<prefix><16 hex digits><suffix>`, by number.
pub(crate) fn numbered(dir: &Path, prefix: &str, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name
            .to_str()
            .and_then(|n| n.strip_prefix(prefix))
            .and_then(|n| n.strip_suffix(suffix));
        if let Some(number) = digits
            .filter(|d| d.len() == 16)
            .and_then(|d| u64::from_str_radix(d, 16).ok())
        {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}
