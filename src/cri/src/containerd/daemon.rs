//! The containerd process: found running or started, watched, restarted.
//!
//! containerd gets its own configuration, root, state and socket, so that a containerd of the
//! distribution or of docker on the same machine is never touched. It outlives skiff: it runs in a
//! session of its own, and a later skiff finds it by its socket. Containers outlive both.
//!
//! ```text
//! ensure: socket answers? ── yes ─► watch the process behind it (SO_PEERCRED, pidfd)
//!            └─ no ─► spawn, wait until the socket answers ─► watch the child
//! watch:  process gone ─► back-off ─► spawn …
//! ```

use super::client::Client;
use skiff_base::backoff::Backoff;
use skiff_base::lifecycle::Shutdown;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// The log is moved aside at start when it is larger.
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;
/// containerd boots in under a second; a slow card with a large database takes longer.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// A running containerd answers a version call at once unless the machine is overloaded.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Lines of the log quoted when containerd does not boot.
const LOG_TAIL_LINES: usize = 6;
/// How much of the log's end is searched for them.
const LOG_TAIL_BYTES: u64 = 8 * 1024;
/// Oldest major and minor version known to work.
const OLDEST: (u32, u32) = (1, 6);

/// Plugins of containerd that skiff does not use. The CRI plugin would serve a second, conflicting
/// view of the containers; `opt` makes `/opt/containerd`; `restart` and the cgroup monitors poll (OOM
/// events come from the shims). The unused v1 runtime stays: 1.6 has no task service without it.
const DISABLED_PLUGINS: &[&str] = &[
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.monitor.v1.cgroups",
    "io.containerd.monitor.task.v1.cgroups",
    "io.containerd.nri.v1.nri",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
];

/// Where containerd lives.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Persistent data (images, snapshots, records), for example `/var/lib/skiff/agent/containerd`.
    pub root: PathBuf,
    /// Runtime state and socket, for example `/run/skiff/containerd`. Keep it short: it is a socket path.
    pub state: PathBuf,
    /// The log file.
    pub log: PathBuf,
    /// Folders searched for `containerd`, its shim and `runc`, like `PATH`.
    pub search_path: OsString,
}

impl DaemonConfig {
    /// The usual layout below a data and a runtime folder.
    pub fn new(data: &Path, run: &Path, search_path: impl Into<OsString>) -> Self {
        Self {
            root: data.join("containerd"),
            state: run.join("containerd"),
            log: data.join("containerd.log"),
            search_path: search_path.into(),
        }
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.state.join("containerd.sock")
    }
}

/// Why containerd is not there.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No binary.
    #[error("{0} not found in PATH: install it with `apt-get install containerd`")]
    Missing(&'static str),
    /// A file or folder could not be made.
    #[error("{path}: {source}")]
    File {
        /// what
        path: PathBuf,
        /// why
        #[source]
        source: io::Error,
    },
    /// The process could not be started.
    #[error("cannot run {path}: {source}")]
    Spawn {
        /// the binary
        path: PathBuf,
        /// why
        #[source]
        source: io::Error,
    },
    /// The process ended before its socket answered.
    #[error("containerd ended while booting ({status}); end of {log}:\n{tail}")]
    Died {
        /// exit status
        status: String,
        /// log file
        log: String,
        /// last lines
        tail: String,
    },
    /// The process runs but does not answer.
    #[error("containerd does not answer on {socket} within {seconds} s; end of {log}:\n{tail}")]
    Silent {
        /// socket path
        socket: PathBuf,
        /// time limit
        seconds: u64,
        /// log file
        log: String,
        /// last lines
        tail: String,
    },
}

/// A containerd that is kept running.
#[derive(Debug)]
pub struct Daemon {
    config: DaemonConfig,
    version: String,
    pid: parking_lot::Mutex<Option<i32>>,
}

enum Process {
    /// Started by us: must be reaped.
    Child(tokio::process::Child),
    /// Found running: watched through a pidfd.
    Found(i32, OwnedFd),
}

impl Daemon {
    /// Finds or starts containerd, and keeps it running until shutdown (which leaves it running).
    pub async fn ensure(
        config: DaemonConfig,
        shutdown: &Shutdown,
    ) -> Result<std::sync::Arc<Self>, DaemonError> {
        let (process, version) = match find(&config).await? {
            Some((pid, pidfd, version)) => {
                tracing::info!(pid, version, socket = %config.socket().display(), "found containerd running");
                (Process::Found(pid, pidfd), version)
            }
            None => start(&config).await?,
        };
        warn_when_old(&version);
        let pid = parking_lot::Mutex::new(process.pid());
        let daemon = std::sync::Arc::new(Self { config, version, pid });
        let (supervised, stop) = (daemon.clone(), shutdown.clone());
        shutdown.spawn("containerd", async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = supervised.supervise(process) => {}
            }
        });
        Ok(daemon)
    }

    /// The gRPC socket.
    pub fn socket(&self) -> PathBuf {
        self.config.socket()
    }

    /// The version at start.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The process at present.
    pub fn pid(&self) -> Option<i32> {
        *self.pid.lock()
    }

    async fn supervise(&self, mut process: Process) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        loop {
            let status = process.ended().await;
            *self.pid.lock() = None;
            tracing::warn!(status, log = %self.config.log.display(), "containerd ended, starting it again");
            process = loop {
                tokio::time::sleep(backoff.next()).await;
                match start(&self.config).await {
                    Ok((process, _)) => break process,
                    Err(error) => tracing::error!(%error, "containerd not restarted"),
                }
            };
            *self.pid.lock() = process.pid();
            backoff.reset();
        }
    }
}

impl Process {
    fn pid(&self) -> Option<i32> {
        match self {
            Process::Child(child) => child.id().map(|pid| pid as i32),
            Process::Found(pid, _) => Some(*pid),
        }
    }

    async fn ended(self) -> String {
        match self {
            Process::Child(mut child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            Process::Found(_, pidfd) => {
                // SAFETY: an owned descriptor stays open and the same as long as it lives.
                match unsafe { AsyncFd::register_with_interest(pidfd, tokio::io::Interest::READABLE) } {
                    Ok(pidfd) => {
                        let _ = pidfd.readable().await;
                        "gone".to_owned()
                    }
                    Err(error) => error.to_string(),
                }
            }
        }
    }
}

/// Terminates the containerd of this configuration, if one runs. Containers go on without it.
pub async fn terminate(config: &DaemonConfig) -> Result<bool, DaemonError> {
    let socket = config.socket();
    let Ok(Some((pid, pidfd))) = peer(&socket).await else {
        return Ok(false);
    };
    // SAFETY: pidfd is a valid descriptor; a null siginfo asks for the behaviour of kill(2).
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGTERM,
            std::ptr::null::<u8>(),
            0,
        )
    };
    if sent != 0 {
        return Err(DaemonError::File {
            path: socket,
            source: io::Error::last_os_error(),
        });
    }
    let ended = Process::Found(pid, pidfd).ended();
    Ok(tokio::time::timeout(BOOT_TIMEOUT, ended).await.is_ok())
}

/// Connects to the socket and identifies the process behind it.
async fn peer(socket: &Path) -> io::Result<Option<(i32, OwnedFd)>> {
    let stream = match tokio::net::UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let Some(pid) = stream.peer_cred()?.pid() else {
        return Ok(None);
    };
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a fresh descriptor that nobody else owns.
    Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(fd as i32) })))
}

async fn find(config: &DaemonConfig) -> Result<Option<(i32, OwnedFd, String)>, DaemonError> {
    let socket = config.socket();
    let found = peer(&socket).await.map_err(|source| DaemonError::File {
        path: socket.clone(),
        source,
    })?;
    let Some((pid, pidfd)) = found else {
        return Ok(None);
    };
    let silent = || DaemonError::Silent {
        socket: socket.clone(),
        seconds: ANSWER_TIMEOUT.as_secs(),
        log: config.log.display().to_string(),
        tail: tail(&config.log),
    };
    let client = Client::new(&socket, "default").map_err(|_| silent())?;
    let version = client.version(ANSWER_TIMEOUT).await.map_err(|_| silent())?;
    Ok(Some((pid, pidfd, version)))
}

async fn start(config: &DaemonConfig) -> Result<(Process, String), DaemonError> {
    let mut child = spawn(config)?;
    let client = Client::new(&config.socket(), "default").map_err(|error| DaemonError::File {
        path: config.socket(),
        source: io::Error::other(error.to_string()),
    })?;
    let ready = async {
        let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
        loop {
            match client.version(ANSWER_TIMEOUT).await {
                Ok(version) => return version,
                Err(_) => tokio::time::sleep(backoff.next()).await,
            }
        }
    };
    let log = config.log.display().to_string();
    tokio::select! {
        version = ready => {
            tracing::info!(pid = child.id(), version, socket = %config.socket().display(), "started containerd");
            Ok((Process::Child(child), version))
        }
        status = child.wait() => {
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(DaemonError::Died { status, log, tail: tail(&config.log) })
        }
        () = tokio::time::sleep(BOOT_TIMEOUT) => {
            let error = DaemonError::Silent {
                socket: config.socket(), seconds: BOOT_TIMEOUT.as_secs(), log, tail: tail(&config.log),
            };
            let _ = child.kill().await;
            Err(error)
        }
    }
}

fn spawn(config: &DaemonConfig) -> Result<tokio::process::Child, DaemonError> {
    let binary = lookup("containerd", config)?;
    lookup("containerd-shim-runc-v2", config)?;
    lookup("runc", config)?;
    let file = |path: &Path| {
        let path = path.to_path_buf();
        move |source| DaemonError::File { path, source }
    };
    for folder in [&config.root, &config.state] {
        std::fs::create_dir_all(folder).map_err(file(folder))?;
    }
    if let Some(folder) = config.log.parent() {
        std::fs::create_dir_all(folder).map_err(file(folder))?;
    }
    let toml = config.state.join("config.toml");
    std::fs::write(&toml, configuration(config)).map_err(file(&toml))?;
    if std::fs::metadata(&config.log).is_ok_and(|log| log.len() > LOG_MAX_BYTES) {
        let mut old = config.log.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&config.log, old).map_err(file(&config.log))?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&config.log)
        .map_err(file(&config.log))?;
    let errors = log.try_clone().map_err(file(&config.log))?;
    let mut command = tokio::process::Command::new(&binary);
    command
        .arg("--config")
        .arg(&toml)
        .env("PATH", &config.search_path)
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .kill_on_drop(false);
    // SAFETY: setsid is async-signal-safe and the closure touches no memory of the parent.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command
        .spawn()
        .map_err(|source| DaemonError::Spawn { path: binary, source })
}

fn lookup(name: &'static str, config: &DaemonConfig) -> Result<PathBuf, DaemonError> {
    use std::os::unix::fs::PermissionsExt;
    let executable = |path: &PathBuf| {
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&config.search_path)
        .map(|folder| folder.join(name))
        .find(executable)
        .ok_or(DaemonError::Missing(name))
}

/// The configuration file. Version 2 is read by containerd 1.3 to 2.x.
fn configuration(config: &DaemonConfig) -> String {
    let quote = |path: &Path| serde_json::Value::from(path.to_string_lossy().into_owned()).to_string();
    let disabled: Vec<String> = DISABLED_PLUGINS
        .iter()
        .map(|plugin| format!("  {plugin:?},\n"))
        .collect();
    format!(
        "version = 2\nroot = {}\nstate = {}\ndisabled_plugins = [\n{}]\n\n[grpc]\n  address = {}\n\n\
         [debug]\n  level = \"warn\"\n",
        quote(&config.root),
        quote(&config.state.join("state")),
        disabled.concat(),
        quote(&config.socket()),
    )
}

fn tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

fn warn_when_old(version: &str) {
    let mut numbers = version
        .trim_start_matches('v')
        .split(['.', '~', '-', '+'])
        .map(str::parse::<u32>);
    if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next())
        && (major, minor) < OLDEST
    {
        tracing::warn!(
            version,
            "this containerd is older than {}.{}, the oldest known to work",
            OLDEST.0,
            OLDEST.1
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_quotes_paths_and_disables_cri() {
        let config = DaemonConfig::new(Path::new("/da\"ta"), Path::new("/run/x"), "/bin");
        let text = configuration(&config);
        assert!(text.contains(r#"root = "/da\"ta/containerd""#), "{text}");
        assert!(
            text.contains(r#"address = "/run/x/containerd/containerd.sock""#),
            "{text}"
        );
        assert!(text.contains("  \"io.containerd.grpc.v1.cri\",\n"), "{text}");
    }

    #[tokio::test]
    async fn a_missing_binary_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let config = DaemonConfig::new(folder.path(), folder.path(), folder.path());
        let error = Daemon::ensure(config, &Shutdown::new())
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "containerd not found in PATH: install it with `apt-get install containerd`"
        );
    }

    #[tokio::test]
    async fn a_boot_failure_quotes_the_log() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["containerd", "containerd-shim-runc-v2", "runc"] {
            let path = programs.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho the database is on fire >&2\nexit 3\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let config = DaemonConfig::new(folder.path(), folder.path(), programs.path());
        let error = Daemon::ensure(config, &Shutdown::new())
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("the database is on fire"),
            "{error}"
        );
    }
}
