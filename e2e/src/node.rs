//! One node: its view of the machine, and skiff on it.
//!
//! A node sees the machine's files, except for what skiff keeps and changes:
//!
//! | path             | in the node                                           |
//! |------------------|-------------------------------------------------------|
//! | `/run`           | an empty tmpfs: sockets, pinned namespaces            |
//! | `/etc`, `/usr/local/bin` | the machine's, changes go to an overlay       |
//! | `/usr/local/bin/skiff` | the program under test                          |
//! | `/var/lib`       | a folder of the lab on disk (snapshots cannot be on an overlay), with the machine's list of packages |
//! | `/var/log`       | a folder of the lab                                   |
//!
//! So skiff runs with its default paths, as it would on a machine of its own.

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use tokio::net::UnixDatagram;

use crate::cgroup;
use crate::lab::LAN_ADDRESS;
use crate::process::{self, Output, Process};
use crate::space::{Sockets, Space};

/// The program under test, as a node sees it.
pub const SKIFF: &str = "/usr/local/bin/skiff";
/// For a program that should be done at once.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// From start to the word that it is ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// From SIGTERM to the end.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// Longest state message of sd_notify(3).
const NOTIFY_BYTES: usize = 4096;

/// The LAN's end of a node's cable.
pub fn lan_port(name: &str) -> String {
    // Interface names have at most 15 characters.
    let short: String = name.chars().take(12).collect();
    format!("v-{short}")
}

/// A node of a lab.
pub struct Node {
    /// Its name, also in the cluster.
    pub name: String,
    /// Its address on the LAN.
    pub address: Ipv4Addr,
    /// Its folder.
    pub folder: PathBuf,
    space: Space,
    running: Mutex<Option<Process>>,
    arguments: Mutex<Vec<String>>,
}

impl Node {
    pub(crate) async fn create(
        name: &str,
        address: Ipv4Addr,
        lab: &Path,
        space: Space,
        skiff: &Path,
    ) -> anyhow::Result<Self> {
        let folder = lab.join(name);
        for part in ["lib", "log", "home"] {
            std::fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let node = Self {
            name: name.to_owned(),
            address,
            folder,
            space,
            running: Mutex::new(None),
            arguments: Mutex::new(Vec::new()),
        };
        let script = format!(
            "mount --make-rprivate /
             mount -t tmpfs -o mode=755 tmpfs /run
             for dir in etc usr/local/bin; do
               at=/run/overlay/$dir
               mkdir -p $at/upper $at/work
               mount -t overlay -o lowerdir=/$dir,upperdir=$at/upper,workdir=$at/work overlay /$dir
             done
             mkdir -p /run/lock
             if [ -d /var/lib/dpkg ]; then
               mkdir {folder}/lib/dpkg
               mount --bind /var/lib/dpkg {folder}/lib/dpkg
             fi
             mount --rbind {folder}/lib /var/lib
             rm -f /usr/local/bin/skiff
             touch /usr/local/bin/skiff
             mount --bind {skiff} /usr/local/bin/skiff
             rm -rf /etc/skiff
             mount --bind {folder}/log /var/log
             rm -f /etc/resolv.conf
             echo 'nameserver {LAN_ADDRESS}' >/etc/resolv.conf
             ip link set lo up
             # Nobody else is here: no wait for a clash of addresses.
             if [ -e /proc/sys/net/ipv6 ]; then echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; fi
             ip addr add {address}/24 dev eth0
             ip link set eth0 up",
            folder = node.folder.display(),
            skiff = skiff.display(),
        );
        node.sh(&script)
            .await?
            .ok()
            .with_context(|| format!("cannot set up node {name}"))?;
        Ok(node)
    }

    /// Makes sockets inside the node.
    pub fn sockets(&self) -> Sockets {
        self.space.sockets()
    }

    /// A process of the node, for tools that want a namespace by process.
    pub fn pid(&self) -> u32 {
        self.space.pid()
    }

    /// The control group below which its pods run.
    pub fn cgroup_root(&self) -> &str {
        &self.space.group().path
    }

    /// A command that runs in the node, with a clean environment.
    pub fn command(&self, program: &str, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command.args(args).env_clear();
        command.env(
            "PATH",
            std::env::var_os("PATH")
                .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        );
        command.env("HOME", self.folder.join("home"));
        command.env("KUBECONFIG", "/etc/skiff/skiff.yaml");
        command.env("RUST_BACKTRACE", "1");
        self.space.enter(&mut command)?;
        Ok(command)
    }

    /// Runs a program in the node.
    pub async fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<Output> {
        process::run(self.command(program, args)?, None, COMMAND_LIMIT).await
    }

    /// Runs a shell script in the node.
    pub async fn sh(&self, script: &str) -> anyhow::Result<Output> {
        self.run("sh", &["-ec", script]).await
    }

    /// A command of skiff's in the node.
    pub fn skiff_command(&self, args: &[&str]) -> anyhow::Result<Command> {
        self.command(SKIFF, args)
    }

    /// Runs skiff in the node to its end.
    pub async fn skiff(&self, args: &[&str]) -> anyhow::Result<Output> {
        process::run(self.skiff_command(args)?, None, COMMAND_LIMIT).await
    }

    /// The arguments every role needs here.
    pub fn role_arguments(&self) -> Vec<String> {
        vec![
            "--node-name".to_owned(),
            self.name.clone(),
            "--cgroup-root".to_owned(),
            self.cgroup_root().to_owned(),
        ]
    }

    /// Starts a role (`server` or `agent`) in the background and waits until it
    /// says that it is ready.
    pub async fn start_role(&self, role: &str, more: &[String]) -> anyhow::Result<()> {
        let mut arguments = vec![role.to_owned()];
        arguments.extend(self.role_arguments());
        arguments.extend(more.iter().cloned());
        *self.arguments.lock() = arguments;
        self.start().await
    }

    /// Starts skiff again as it was started before, and waits until it is ready.
    pub async fn start(&self) -> anyhow::Result<()> {
        let notify = self.spawn()?;
        self.ready(&notify).await
    }

    /// Starts skiff without waiting.
    pub fn spawn(&self) -> anyhow::Result<UnixDatagram> {
        if self.running.lock().as_ref().is_some_and(Process::is_running) {
            bail!("skiff runs already on {}", self.name);
        }
        let path = self.folder.join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).with_context(|| path.display().to_string())?;
        let arguments = self.arguments.lock().clone();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.skiff_command(&arguments)?;
        command.env("NOTIFY_SOCKET", &path);
        *self.running.lock() = Some(Process::start(command, self.log_file()?)?);
        Ok(socket)
    }

    /// Waits until skiff says that it is ready.
    pub async fn ready(&self, notify: &UnixDatagram) -> anyhow::Result<()> {
        let process = self.process()?;
        let told = async {
            let mut buffer = [0; NOTIFY_BYTES];
            loop {
                let length = notify.recv(&mut buffer).await?;
                if String::from_utf8_lossy(&buffer[..length])
                    .lines()
                    .any(|line| line == "READY=1")
                {
                    return anyhow::Ok(());
                }
            }
        };
        tokio::select! {
            told = told => told,
            status = process.ended() => bail!("skiff on {} ended while starting: {status}\n{}", self.name, self.log_tail(20)),
            () = tokio::time::sleep(START_LIMIT) => bail!("skiff on {} was not ready within {START_LIMIT:?}\n{}", self.name, self.log_tail(40)),
        }
    }

    /// The running skiff.
    pub fn process(&self) -> anyhow::Result<Process> {
        self.running
            .lock()
            .clone()
            .with_context(|| format!("skiff was not started on {}", self.name))
    }

    /// Kills skiff as a crash would: no chance to say good-bye. Pods stay.
    pub async fn kill(&self) -> anyhow::Result<()> {
        self.process()?
            .signal(Signal::SIGKILL, STOP_LIMIT)
            .await
            .map(drop)
    }

    /// Stops skiff in order. Pods stay.
    pub async fn stop(&self) -> anyhow::Result<()> {
        let status = self.process()?.signal(Signal::SIGTERM, STOP_LIMIT).await?;
        if !status.success() {
            bail!("skiff on {} ended with {status} after SIGTERM", self.name);
        }
        Ok(())
    }

    /// Stops and starts.
    pub async fn restart(&self) -> anyhow::Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// Loads an image archive into the node.
    pub async fn import(&self, archive: &Path) -> anyhow::Result<()> {
        self.skiff(&["images", "import", &archive.display().to_string()])
            .await?
            .ok()
            .map(drop)
    }

    /// A file the node has below `/var/lib/skiff`, as seen from outside.
    pub fn data(&self, path: &str) -> PathBuf {
        self.folder.join("lib/skiff").join(path)
    }

    /// A file of the node's view, as seen from outside.
    pub fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid())).join(path.trim_start_matches('/'))
    }

    /// Writes a file into the node's view of the machine.
    pub fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let outside = self.outside(path);
        if let Some(folder) = outside.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        std::fs::write(&outside, text).with_context(|| outside.display().to_string())
    }

    /// A process of this node whose command line contains `marker`.
    pub fn find_process(&self, marker: &str) -> anyhow::Result<i32> {
        let lab = self
            .cgroup_root()
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        let found = cgroup::members(lab).into_iter().find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(marker)
        });
        found.with_context(|| format!("no process has {marker:?} in its command line"))
    }

    fn log_file(&self) -> anyhow::Result<File> {
        let path = self.folder.join("skiff.log");
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())
    }

    /// Everything skiff has logged here so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("skiff.log")).unwrap_or_default()
    }

    /// The last lines of skiff's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Log files worth keeping when a test fails.
    pub fn log_files(&self) -> Vec<PathBuf> {
        vec![self.folder.join("skiff.log"), self.data("agent/containerd.log")]
    }
}
