//! `skiff uninstall`: leaves the machine as it was before skiff came.
//!
//! Pods first, then skiff itself, then what they left: links, rules, mounts,
//! control groups, files. A step that fails is reported and the next one is
//! tried; run again it finishes what is left. Nothing is touched that skiff
//! did not make.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skiff_base::lifecycle::Shutdown;
use skiff_cri::Runtime;
use skiff_cri::containerd::Containerd;
use skiff_nft::{Family, NftTable};

use crate::node::{self, NFT_TABLE, Settings};
use crate::options::NodeOptions;
use crate::preflight;

/// What the installer made: `file PATH` and `package NAME`, one a line. What is
/// not in it (a binary put there by hand, a configuration file) is not ours.
const INSTALLED: &str = "/etc/skiff/installed";
/// Folders that containerd, its shim and runc make wherever they keep their own
/// state, innermost first, and the one for configuration.
const SHARED: [&str; 5] = [
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc",
    "/run/containerd/s",
    "/run/containerd",
    "/etc/skiff",
];
const UNITS: [&str; 2] = ["skiff-server.service", "skiff-agent.service"];
/// How long a process gets to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a pod's containers get to end.
const CONTAINER_GRACE: Duration = Duration::from_secs(2);

/// Arguments of `skiff uninstall`.
#[derive(clap::Args)]
pub struct UninstallArgs {
    /// Folder for all data
    #[arg(long, value_name = "DIR", default_value = "/var/lib/skiff")]
    data_dir: PathBuf,
    /// Folder for sockets
    #[arg(long, value_name = "DIR", default_value = "/run/skiff")]
    run_dir: PathBuf,
    /// Folder for container logs
    #[arg(long, value_name = "DIR", default_value = "/var/log")]
    log_dir: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Keep the data folder
    #[arg(long)]
    keep_data: bool,
}

/// Does all steps, or says what they are.
pub async fn run(args: UninstallArgs) -> anyhow::Result<()> {
    preflight::root()?;
    let options = NodeOptions {
        data_dir: Some(args.data_dir.clone()),
        run_dir: Some(args.run_dir.clone()),
        log_dir: Some(args.log_dir.clone()),
        node_name: Some("local".to_owned()),
        ..NodeOptions::default()
    };
    let settings = Settings::new(options)?;
    let mut steps = Steps {
        dry_run: args.dry_run,
        failures: Vec::new(),
    };
    steps.run("stop the services", || stop_services(&settings)).await;
    steps.run_async("stop all pods", stop_pods(&settings)).await;
    steps
        .run_async("stop containerd", async {
            skiff_cri::containerd::terminate_keeper(&settings.run)?;
            skiff_cri::containerd::daemon::terminate(&settings.containerd())
                .await
                .map(drop)
                .map_err(Into::into)
        })
        .await;
    steps
        .run_async("take down links and rules", remove_network(&settings))
        .await;
    steps
        .run("unmount what is left", || {
            unmount_below(&[&settings.run, &settings.data])
        })
        .await;
    steps
        .run("remove control groups", || {
            remove_cgroups(Path::new("/sys/fs/cgroup"))
        })
        .await;
    let mut paths: Vec<PathBuf> = vec![settings.run.clone()];
    if !args.keep_data {
        paths.push(settings.data.clone());
    }
    paths.extend(own_logs(&settings));
    let installed = std::fs::read_to_string(INSTALLED).unwrap_or_default();
    paths.extend(recorded(&installed, "file").map(PathBuf::from));
    paths.push(crate::server::KUBECONFIG.into());
    for path in paths.iter().filter(|path| path.symlink_metadata().is_ok()) {
        steps
            .run(&format!("remove {}", path.display()), || remove(path))
            .await;
    }
    if steps.failures.is_empty() && Path::new(INSTALLED).exists() {
        // Last: a run that failed before must find it again.
        steps
            .run(&format!("remove {INSTALLED}"), || remove(Path::new(INSTALLED)))
            .await;
    }
    // Shared with others: only when nothing is left in them.
    let logs = ["pods", "containers"].map(|name| settings.log.join(name));
    for folder in SHARED
        .iter()
        .map(PathBuf::from)
        .chain(logs)
        .filter(|_| !args.dry_run)
    {
        if std::fs::remove_dir(&folder).is_err() && folder.is_dir() {
            println!("kept {}: not empty", folder.display());
        }
    }
    if Path::new("/run/systemd/system").exists() && !args.dry_run {
        let _ = Command::new("systemctl").arg("daemon-reload").status();
    }
    let packages: Vec<&str> = recorded(&installed, "package").collect();
    if !packages.is_empty() {
        println!(
            "packages of the distribution stay; `apt-get remove {}` removes them",
            packages.join(" ")
        );
    }
    if steps.failures.is_empty() {
        println!(
            "{}",
            if args.dry_run {
                "nothing was changed"
            } else {
                "skiff is gone"
            }
        );
        return Ok(());
    }
    bail!(
        "not everything could be removed; run it again after looking into:\n  {}",
        steps.failures.join("\n  ")
    )
}

/// The names of one sort in the installer's record.
fn recorded<'r>(record: &'r str, sort: &'r str) -> impl Iterator<Item = &'r str> {
    record
        .lines()
        .filter_map(move |line| line.strip_prefix(sort)?.strip_prefix(' '))
        .filter(|name| !name.is_empty())
}

struct Steps {
    dry_run: bool,
    failures: Vec<String>,
}

impl Steps {
    async fn run(&mut self, what: &str, step: impl FnOnce() -> anyhow::Result<()>) {
        self.run_async(what, async { step() }).await;
    }

    async fn run_async(&mut self, what: &str, step: impl Future<Output = anyhow::Result<()>>) {
        println!("{what}");
        if self.dry_run {
            return;
        }
        if let Err(error) = step.await {
            self.failures.push(format!("{what}: {error:#}"));
        }
    }
}

fn stop_services(settings: &Settings) -> anyhow::Result<()> {
    if Path::new("/run/systemd/system").exists() {
        for unit in UNITS
            .iter()
            .filter(|unit| Path::new("/etc/systemd/system").join(unit).exists())
        {
            Command::new("systemctl")
                .args(["disable", "--now", unit])
                .status()
                .context("systemctl")?;
        }
    }
    let pid_file = settings.run.join("skiff.pid");
    if let Ok(text) = std::fs::read_to_string(&pid_file)
        && let Ok(pid) = text.trim().parse::<i32>()
        && is_skiff(pid)
    {
        end(pid)?;
    }
    Ok(())
}

/// A pid file may be old and the number somebody else's by now.
fn is_skiff(pid: i32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim() == "skiff" && pid != std::process::id().cast_signed()
}

fn end(pid: i32) -> anyhow::Result<()> {
    let process = Pid::from_raw(pid);
    let _ = kill(process, Signal::SIGTERM);
    let gone = wait_gone(pid, STOP_TIMEOUT)?;
    if !gone {
        let _ = kill(process, Signal::SIGKILL);
        wait_gone(pid, STOP_TIMEOUT)?;
    }
    Ok(())
}

/// Waits on the process's pidfd until it has ended.
fn wait_gone(pid: i32, timeout: Duration) -> anyhow::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    // SAFETY: pidfd_open takes a pid and flags and returns a new descriptor or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if raw < 0 {
        return Ok(true);
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw)?) };
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::try_from(timeout)?)? > 0)
}

async fn stop_pods(settings: &Settings) -> anyhow::Result<()> {
    let socket = settings.containerd().socket();
    if !socket.exists() {
        return Ok(());
    }
    let shutdown = Shutdown::new();
    let config = node::runtime_config(settings)?;
    let runtime = Containerd::connect(config, skiff_base::clock::system(), &shutdown).await?;
    let mut failed = Vec::new();
    let stops = runtime.containers().await?.into_iter().map(|container| {
        let runtime = &runtime;
        async move { runtime.stop_container(&container.id, CONTAINER_GRACE).await }
    });
    failed.extend(
        futures::future::join_all(stops)
            .await
            .into_iter()
            .filter_map(Result::err)
            .map(|e| e.to_string()),
    );
    for container in runtime.containers().await? {
        failed.extend(
            runtime
                .remove_container(&container.id)
                .await
                .err()
                .map(|e| e.to_string()),
        );
    }
    for sandbox in runtime.sandboxes().await? {
        failed.extend(
            runtime
                .remove_sandbox(&sandbox.id)
                .await
                .err()
                .map(|e| e.to_string()),
        );
    }
    shutdown.drain(STOP_TIMEOUT).await;
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("{}", failed.join("; "))
    }
}

async fn remove_network(settings: &Settings) -> anyhow::Result<()> {
    skiff_overlay::uninstall(&settings.agent_dir().join("network"), &skiff_overlay::NoFirewall).await?;
    NftTable::open(Family::Ip, NFT_TABLE, &[])?.remove()?;
    Ok(())
}

/// Mount points below the given folders, deepest first.
fn mounts_below(table: &str, folders: &[&Path]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4))
        .map(|escaped| PathBuf::from(unescape(escaped)))
        .filter(|mount| folders.iter().any(|folder| mount.starts_with(folder)))
        .collect();
    found.reverse();
    found
}

/// Decodes the octal escapes of proc_pid_mountinfo(5).
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        match code {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

fn unmount_below(folders: &[&Path]) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    for mount in mounts_below(&table, folders) {
        nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", mount.display()))?;
    }
    Ok(())
}

/// Removes `kubepods` from every hierarchy, bottom-up.
fn remove_cgroups(mount: &Path) -> anyhow::Result<()> {
    let mut roots = vec![mount.join("kubepods")];
    if let Ok(entries) = std::fs::read_dir(mount) {
        roots.extend(entries.filter_map(|entry| entry.ok().map(|entry| entry.path().join("kubepods"))));
    }
    for root in roots.iter().filter(|root| root.is_dir()) {
        remove_cgroup(root).with_context(|| format!("cannot remove the control group {}", root.display()))?;
    }
    Ok(())
}

fn remove_cgroup(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_cgroup(&path)?;
        }
    }
    std::fs::remove_dir(group)
}

/// Log folders of pods whose data is ours, and the links into them.
fn own_logs(settings: &Settings) -> Vec<PathBuf> {
    let entries = |folder: PathBuf| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
    };
    let data = settings.agent_dir().join("kubelet/pods");
    let is_ours = |folder: &Path| {
        let name = folder
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        name.rsplit_once('_')
            .is_some_and(|(_, uid)| data.join(uid).exists())
    };
    let folders: Vec<PathBuf> = entries(settings.log.join("pods"))
        .filter(|folder| is_ours(folder))
        .collect();
    let links = entries(settings.log.join("containers")).filter(|link| {
        std::fs::read_link(link).is_ok_and(|target| folders.iter().any(|ours| target.starts_with(ours)))
    });
    let links: Vec<PathBuf> = links.collect();
    folders.into_iter().chain(links).collect()
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let result = if path.is_dir() && !path.is_symlink() {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installers_record() {
        let record = "file /usr/local/bin/skiff\npackage runc\nfile /a b\nfiles /x\nfile \n";
        assert_eq!(
            recorded(record, "file").collect::<Vec<_>>(),
            ["/usr/local/bin/skiff", "/a b"]
        );
        assert_eq!(recorded(record, "package").collect::<Vec<_>>(), ["runc"]);
        assert_eq!(recorded("", "file").count(), 0);
    }

    #[test]
    fn mounts_are_found_deepest_first() {
        let table = "\
22 1 0:20 / /run rw - tmpfs tmpfs rw\n\
30 22 0:4 net:[1] /run/skiff/cri/net rw - nsfs nsfs rw\n\
31 22 0:30 / /var/lib/skiff/agent/a\\040b rw - tmpfs tmpfs rw\n\
32 31 0:31 / /var/lib/skiff/agent/a\\040b/deep rw - tmpfs tmpfs rw\n\
33 22 0:32 / /var/lib/skiffer rw - tmpfs tmpfs rw\n";
        let found = mounts_below(table, &[Path::new("/run/skiff"), Path::new("/var/lib/skiff")]);
        let want = [
            "/var/lib/skiff/agent/a b/deep",
            "/var/lib/skiff/agent/a b",
            "/run/skiff/cri/net",
        ];
        assert_eq!(found, want.map(PathBuf::from));
    }
}
