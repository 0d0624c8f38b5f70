//! Starts the FIFO keeper (see [`crate::keeper`]) so that it outlives skiff.

use super::Inner;
use skiff_base::backoff::Backoff;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

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
