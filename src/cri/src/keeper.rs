//! A tiny process that keeps containers' output while skiff is away.
//!
//! A FIFO lives, with what is in it, as long as somebody has it open. The shim closes its ends when the
//! container ends; if skiff is being restarted at that moment, the last lines would be gone. So one
//! process a node, which outlives skiff, opens every container's `stdout` and `stderr` FIFO and does
//! nothing with them, until skiff has drained and removed them:
//!
//! ```text
//! <state>/io/.keeper                lock and pid of the one keeper
//! <state>/io/<container>/stdout     opened when made, closed when removed
//! <state>/io/<container>/exec-*/    not its business: an exec ends with its caller
//! ```
//!
//! It follows the folder by inotify and sleeps otherwise.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The streams that are kept.
const KEPT: [&str; 2] = ["stdout", "stderr"];
const LOCK: &str = ".keeper";
/// Room for some tens of inotify events.
const EVENTS_BYTES: usize = 16 * 1024;

/// Runs until the folder is removed or a signal ends it; returns the exit code. A second keeper for the
/// same folder ends at once with 0.
pub fn main(folder: &Path) -> i32 {
    match run(folder) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "keep-fifos {}: {error}", folder.display());
            1
        }
    }
}

/// The process that keeps the FIFOs of a folder, if there is one.
pub fn pid(folder: &Path) -> Option<i32> {
    let mut file = File::open(folder.join(LOCK)).ok()?;
    if lock(&file).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn lock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open; the result is checked.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

struct Keeper {
    folder: PathBuf,
    inotify: File,
    /// Watch to the container's folder.
    watches: HashMap<i32, PathBuf>,
    open: HashMap<PathBuf, File>,
}

fn run(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(LOCK);
    let mut holder = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)?;
    if let Err(error) = lock(&holder) {
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(()),
            _ => Err(error),
        };
    }
    holder.set_len(0)?;
    writeln!(holder, "{}", std::process::id())?;
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a fresh descriptor that nobody else owns.
    let inotify = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut keeper = Keeper {
        folder: folder.to_path_buf(),
        inotify,
        watches: HashMap::new(),
        open: HashMap::new(),
    };
    let root = keeper.watch(folder, libc::IN_CREATE | libc::IN_DELETE_SELF)?;
    for entry in fs::read_dir(folder)?.flatten() {
        keeper.enter(&entry.path());
    }
    let mut buffer = vec![0; EVENTS_BYTES];
    loop {
        let count = match keeper.inotify.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for (watch, mask, name) in events(&buffer[..count]) {
            if watch == root && mask & libc::IN_DELETE_SELF != 0 {
                return Ok(());
            }
            keeper.handle(watch, root, mask, &name);
        }
    }
}

impl Keeper {
    fn watch(&self, path: &Path, mask: u32) -> io::Result<i32> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the descriptor is open and the path outlives the call; the result is checked.
        match unsafe { libc::inotify_add_watch(self.inotify.as_raw_fd(), path.as_ptr(), mask) } {
            -1 => Err(io::Error::last_os_error()),
            watch => Ok(watch),
        }
    }

    fn handle(&mut self, watch: i32, root: i32, mask: u32, name: &Path) {
        if mask & libc::IN_Q_OVERFLOW != 0 {
            let folder = self.folder.clone();
            self.open.retain(|path, _| path.exists());
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                self.enter(&entry.path());
            }
        } else if mask & libc::IN_IGNORED != 0 {
            self.watches.remove(&watch);
        } else if watch == root {
            self.enter(&self.folder.join(name));
        } else if let Some(folder) = self.watches.get(&watch) {
            let path = folder.join(name);
            match mask & libc::IN_DELETE != 0 {
                true => drop(self.open.remove(&path)),
                false => self.keep(&path),
            }
        }
    }

    /// Begins with a container's folder. Watch first, look then: nothing is missed in between.
    fn enter(&mut self, folder: &Path) {
        if !folder.is_dir() {
            return;
        }
        match self.watch(folder, libc::IN_CREATE | libc::IN_DELETE) {
            Ok(watch) => {
                self.watches.insert(watch, folder.to_path_buf());
                for name in KEPT {
                    self.keep(&folder.join(name));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let _ = writeln!(io::stderr(), "watch {}: {error}", folder.display());
            }
        }
    }

    fn keep(&mut self, path: &Path) {
        let wanted = path
            .file_name()
            .is_some_and(|name| KEPT.iter().any(|kept| name == *kept));
        if !wanted || self.open.contains_key(path) {
            return;
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path);
        if let Ok(file) = opened
            && file
                .metadata()
                .is_ok_and(|metadata| metadata.file_type().is_fifo())
        {
            self.open.insert(path.to_path_buf(), file);
        }
    }
}

/// Takes inotify's buffer apart: watch, mask, name.
fn events(mut buffer: &[u8]) -> Vec<(i32, u32, PathBuf)> {
    const HEAD: usize = size_of::<libc::inotify_event>();
    let mut found = Vec::new();
    while buffer.len() >= HEAD {
        let word = |at: usize| -> [u8; 4] { [buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]] };
        let (watch, mask) = (i32::from_ne_bytes(word(0)), u32::from_ne_bytes(word(4)));
        let length = u32::from_ne_bytes(word(12)) as usize;
        let name = buffer.get(HEAD..HEAD + length).unwrap_or_default();
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        found.push((
            watch,
            mask,
            PathBuf::from(std::ffi::OsStr::from_bytes(&name[..end])),
        ));
        buffer = buffer.get(HEAD + length..).unwrap_or_default();
    }
    found
}
