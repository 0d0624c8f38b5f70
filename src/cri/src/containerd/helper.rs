//! The FIFO keeper's process (see [`crate::keeper`]), and the lock that makes one process serve a node.

use super::Inner;
use skiff_base::backoff::Backoff;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

/// Held by the one process that pumps output and records ends. Gone with the process.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Opens the lock file of a runtime folder.
    pub fn open(state: &Path) -> io::Result<Self> {
        let path = state.join("runtime.lock");
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        Ok(Self { file })
    }

    fn flock(&self, flags: i32) -> io::Result<()> {
        // SAFETY: the descriptor is open; the result is checked.
        match unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_EX | flags) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// True when the lock was free and is held now.
    pub fn try_take(&self) -> io::Result<bool> {
        match self.flock(libc::LOCK_NB) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits for the lock, in a thread of its own that nobody waits for at the end.
    pub async fn take(self) -> io::Result<Self> {
        let (sender, taken) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name("runtime-lock".to_owned())
            .spawn(move || {
                let outcome = loop {
                    match self.flock(0) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        outcome => break outcome,
                    }
                };
                let _ = sender.send(outcome.map(|()| self));
            })?;
        taken
            .await
            .unwrap_or_else(|_| Err(io::Error::other("lock thread ended")))
    }
}

/// Folder of all containers' FIFOs.
pub fn fifo_folder(state: &Path) -> PathBuf {
    state.join("io")
}

/// Keeps a keeper running, until dropped; the keeper goes on alone then.
pub async fn keep_keeper(inner: Arc<Inner>) {
    let Some(binary) = inner.config.helper_binary.clone() else {
        return;
    };
    let folder = fifo_folder(&inner.config.state);
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    loop {
        match run(&binary, &folder).await {
            // Another one, from before skiff's restart, has the lock.
            Ok(true) => return,
            Ok(false) => tracing::warn!("the FIFO keeper ended, starting it again"),
            Err(error) => {
                tracing::warn!(binary = %binary.display(), %error, "the FIFO keeper does not start")
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn run(binary: &Path, folder: &Path) -> io::Result<bool> {
    let mut command = tokio::process::Command::new(binary);
    command
        .arg("keep-fifos")
        .arg(folder)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(false);
    // SAFETY: setsid is async-signal-safe and the closure touches no memory of the parent.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    Ok(command.spawn()?.wait().await?.success())
}

/// Ends the keeper of a runtime folder; false when there is none.
pub fn terminate_keeper(state: &Path) -> io::Result<bool> {
    let Some(pid) = crate::keeper::pid(&fifo_folder(state)) else {
        return Ok(false);
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
    Ok(true)
}
