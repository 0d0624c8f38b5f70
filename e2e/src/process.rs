//! Programs and their ends.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

/// What a program wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output, if the program succeeded.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!(
            "{}: {}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.stdout.trim(),
            self.stderr.trim()
        )
    }

    /// The standard error, if the program failed.
    pub fn failed(self) -> anyhow::Result<String> {
        if !self.status.success() {
            return Ok(self.stderr);
        }
        bail!(
            "{}: succeeded, and should not have\nstdout: {}",
            self.command,
            self.stdout.trim()
        )
    }
}

/// Runs a program to its end, at most `limit`; then it is killed and that is
/// the error, with what it wrote until then.
pub async fn run(mut command: Command, input: Option<&[u8]>, limit: Duration) -> anyhow::Result<Output> {
    let shown = show(&command);
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let mut child = command
        .kill_on_drop(true)
        .spawn()
        .with_context(|| shown.clone())?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (stdin, mut out, mut err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let work = async {
        let write = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A program that does not read its input says so by its status.
                let _ = stdin.write_all(input).await;
            }
        };
        let read_out = async {
            if let Some(out) = &mut out {
                let _ = out.read_to_end(&mut stdout).await;
            }
        };
        let read_err = async {
            if let Some(err) = &mut err {
                let _ = err.read_to_end(&mut stderr).await;
            }
        };
        tokio::join!(write, read_out, read_err);
        child.wait().await
    };
    let status = tokio::time::timeout(limit, work).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match status {
        Ok(status) => Ok(Output {
            status: status.with_context(|| shown.clone())?,
            command: shown,
            stdout: text(&stdout),
            stderr: text(&stderr),
        }),
        Err(_) => bail!(
            "{shown}: not done within {limit:?}\nstdout: {}\nstderr: {}",
            text(&stdout),
            text(&stderr)
        ),
    }
}

fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// A program that runs in the background with its output in a file.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its process id.
    pub pid: i32,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts a program; both of its outputs are appended to `log`.
    pub fn start(mut command: Command, log: File) -> anyhow::Result<Self> {
        let shown = show(&command);
        let copy = log.try_clone()?;
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let pid = i32::try_from(child.id())?;
        let (sender, ended) = watch::channel(None);
        // One thread each, so that the end is seen also while nobody waits.
        std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || {
                let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(-1));
                sender.send_replace(Some(status));
            })?;
        Ok(Self { pid, ended })
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Waits for its end.
    pub async fn ended(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            Err(_) => ExitStatus::from_raw(-1),
        }
    }

    /// Sends a signal and waits for the end.
    pub async fn signal(&self, signal: Signal, limit: Duration) -> anyhow::Result<ExitStatus> {
        if self.is_running() {
            kill(Pid::from_raw(self.pid), signal)
                .with_context(|| format!("{signal} to process {}", self.pid))?;
        }
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(status) => Ok(status),
            Err(_) => bail!("process {} did not end within {limit:?} after {signal}", self.pid),
        }
    }
}
