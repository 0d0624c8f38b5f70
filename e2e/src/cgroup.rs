//! Control groups as the register of who belongs to a lab.
//!
//! A process joins before it runs its program, and everything it starts
//! follows. Containers are moved by their runtime, but to groups below the same
//! name (`--cgroup-root`). So the processes of a lab are those in any group
//! whose path begins with its name, in any hierarchy.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Where control groups are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// The leaf for processes that are not containers. In version 2 a group with
/// groups below it holds no processes itself.
const LEAF: &str = "system";

/// Rounds of killing: processes that fork while being killed need more than one.
const KILL_ROUNDS: usize = 50;

/// How long a killed process may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// A killed process leaves its group a moment after it is gone.
const REMOVE_ROUNDS: usize = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);

/// The root of every mounted hierarchy: one in version 2, many in version 1.
pub fn hierarchies() -> Vec<PathBuf> {
    let mount = PathBuf::from(MOUNT);
    if mount.join("cgroup.controllers").exists() {
        return vec![mount];
    }
    let entries = std::fs::read_dir(&mount).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .collect();
    found.sort();
    found
}

/// The hierarchy that members are registered in.
fn register() -> anyhow::Result<PathBuf> {
    let found = hierarchies();
    let preferred = found.iter().find(|path| path.ends_with("pids")).or(found.first());
    preferred
        .cloned()
        .with_context(|| format!("no control groups are mounted below {MOUNT}"))
}

/// A group that processes can join.
#[derive(Debug, Clone)]
pub struct Group {
    /// Path from the root of a hierarchy, with a leading slash.
    pub path: String,
    folder: PathBuf,
}

impl Group {
    /// Makes the group `path` and the leaf for its own processes.
    pub fn create(path: &str) -> anyhow::Result<Self> {
        let folder = register()?.join(path.trim_start_matches('/')).join(LEAF);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the control group {}", folder.display()))?;
        Ok(Self {
            path: path.to_owned(),
            folder,
        })
    }

    /// The file to write `0` to in order to join.
    pub fn door(&self) -> anyhow::Result<File> {
        let file = self.folder.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&file)
            .with_context(|| format!("cannot open {}", file.display()))
    }
}

/// All processes in the group `/name` and below, in any hierarchy.
pub fn members(name: &str) -> BTreeSet<i32> {
    let mut pids = BTreeSet::new();
    for root in hierarchies() {
        collect(&root.join(name), &mut pids);
    }
    pids
}

fn collect(folder: &Path, pids: &mut BTreeSet<i32>) {
    if let Ok(text) = std::fs::read_to_string(folder.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

/// Kills every member of `/name` and waits until all are gone.
pub fn kill_all(name: &str) -> anyhow::Result<()> {
    for _ in 0..KILL_ROUNDS {
        let pids = members(name);
        if pids.is_empty() {
            return Ok(());
        }
        let killed: Vec<OwnedFd> = pids
            .into_iter()
            .filter(|pid| *pid > 1)
            .filter_map(|pid| kill(pid, name))
            .collect();
        for process in &killed {
            gone(process, KILL_WAIT);
        }
    }
    bail!("processes of {name} cannot be killed: {:?}", members(name))
}

/// Kills one process if it still is a member: the number may have been given
/// to another since it was read.
fn kill(pid: i32, name: &str) -> Option<OwnedFd> {
    let process = pidfd(pid)?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let member = groups
        .lines()
        .any(|line| line.split(':').nth(2).is_some_and(|path| within(path, name)));
    if !member {
        return None;
    }
    // SAFETY: the descriptor is valid; a null siginfo asks for what kill(2) sends.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            std::os::fd::AsRawFd::as_raw_fd(&process),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
    Some(process)
}

fn within(path: &str, name: &str) -> bool {
    path.trim_start_matches('/').split('/').next() == Some(name)
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the call returned a fresh descriptor that nobody else owns.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the process behind a pidfd has ended.
fn gone(process: &OwnedFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, limit).is_ok_and(|ready| ready > 0)
}

/// Removes `/name` with all groups below it from every hierarchy.
pub fn remove(name: &str) -> anyhow::Result<()> {
    let mut last = None;
    for _ in 0..REMOVE_ROUNDS {
        last = hierarchies()
            .iter()
            .filter_map(|root| remove_folder(&root.join(name)).err())
            .next();
        if last.is_none() {
            return Ok(());
        }
        std::thread::sleep(REMOVE_PAUSE);
    }
    match last {
        Some(error) => Err(error).with_context(|| format!("cannot remove the control groups of {name}")),
        None => Ok(()),
    }
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_folder(&entry.path())?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names of top-level groups that begin with `prefix`.
pub fn with_prefix(prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for root in hierarchies() {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str()
                && name.starts_with(prefix)
            {
                names.insert(name.to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn membership_is_by_the_first_part_of_the_path() {
        assert!(within("/skiff-e2e-a/server/system", "skiff-e2e-a"));
        assert!(!within("/skiff-e2e-ab/server", "skiff-e2e-a"));
        assert!(!within("/other/skiff-e2e-a", "skiff-e2e-a"));
    }
}
