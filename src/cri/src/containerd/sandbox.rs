//! Sandboxes: pinned namespaces and a record, no process.
//!
//! ```text
//! <state>/sandboxes/<id>/record.json     configuration and creation time; "stopped" once stopped
//!                        net ipc uts     bind mounts of namespace files
//!                        shm/            tmpfs, /dev/shm of every container
//!                        hostname resolv.conf   bind-mounted into every container
//!                        init/           root filesystem of the init (shared process namespace only)
//! ```
//!
//! A namespace is made by a thread that calls unshare(2), sets it up, bind-mounts
//! `/proc/thread-self/ns/*` and ends. `<state>` is on a tmpfs: after a reboot the records are gone
//! together with what they describe.

use crate::types::{Sandbox, SandboxConfig};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Size of `/dev/shm`, as every container runtime gives it.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";
/// Longest host name the kernel takes.
const HOSTNAME_MAX_BYTES: usize = 64;

/// What went wrong with a sandbox on the host.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step failed on a path.
    #[error("sandbox {id}: {step} {path}: {source}")]
    Step {
        /// sandbox
        id: String,
        /// what was tried
        step: &'static str,
        /// on what
        path: PathBuf,
        /// why not
        #[source]
        source: io::Error,
    },
    /// The namespace thread failed.
    #[error("sandbox {id}: {message}")]
    Namespace {
        /// sandbox
        id: String,
        /// what happened
        message: String,
    },
}

/// The file beside the namespaces.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    created_at: SystemTime,
    stopped: bool,
    config: SandboxConfig,
}

/// Folder of sandboxes.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    folder: PathBuf,
}

/// Paths of one sandbox.
#[derive(Clone, Debug)]
pub struct Paths {
    folder: PathBuf,
}

impl Paths {
    /// A namespace file: `net`, `ipc` or `uts`.
    pub fn namespace(&self, kind: &str) -> PathBuf {
        self.folder.join(kind)
    }
    /// Source of `/dev/shm`.
    pub fn shm(&self) -> PathBuf {
        self.folder.join("shm")
    }
    /// Source of `/etc/hostname`.
    pub fn hostname(&self) -> PathBuf {
        self.folder.join("hostname")
    }
    /// Source of `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> PathBuf {
        self.folder.join("resolv.conf")
    }
    /// Root filesystem of the sandbox's init.
    pub fn init_rootfs(&self) -> PathBuf {
        self.folder.join("init")
    }
    /// Whether the folder was made longer ago.
    pub fn is_older_than(&self, age: std::time::Duration, now: SystemTime) -> bool {
        let made = fs::metadata(&self.folder).and_then(|metadata| metadata.modified());
        made.is_ok_and(|made| now.duration_since(made).is_ok_and(|found| found > age))
    }
    fn record(&self) -> PathBuf {
        self.folder.join("record.json")
    }
}

impl Sandboxes {
    /// Opens (makes) the folder.
    pub fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("sandboxes");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Paths of a sandbox.
    pub fn paths(&self, id: &str) -> Paths {
        Paths {
            folder: self.folder.join(id),
        }
    }

    /// Makes a sandbox; on failure nothing is left. Blocks for some milliseconds.
    pub fn create(&self, id: &str, config: SandboxConfig, now: SystemTime) -> Result<Sandbox, SandboxError> {
        let paths = self.paths(id);
        match self.try_create(id, &paths, &config, now) {
            Ok(()) => Ok(to_sandbox(
                id,
                &paths,
                Record {
                    created_at: now,
                    stopped: false,
                    config,
                },
            )),
            Err(error) => {
                if let Err(again) = self.remove(id) {
                    tracing::warn!(sandbox = id, error = %again, "half-made sandbox not removed");
                }
                Err(error)
            }
        }
    }

    fn try_create(
        &self,
        id: &str,
        paths: &Paths,
        config: &SandboxConfig,
        now: SystemTime,
    ) -> Result<(), SandboxError> {
        let step = |step: &'static str, path: &Path| {
            let (id, path) = (id.to_owned(), path.to_path_buf());
            move |source: io::Error| SandboxError::Step {
                id,
                step,
                path,
                source,
            }
        };
        fs::create_dir(&paths.folder).map_err(step("make", &paths.folder))?;
        let hostname = match config.host_network || config.hostname.is_empty() {
            true => nix::unistd::gethostname()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            false => config.hostname.chars().take(HOSTNAME_MAX_BYTES).collect(),
        };
        let file = paths.hostname();
        fs::write(&file, format!("{hostname}\n")).map_err(step("write", &file))?;
        if let Some(dns) = &config.dns {
            let file = paths.resolv_conf();
            fs::write(&file, resolv_conf(dns)).map_err(step("write", &file))?;
        }
        let mut kinds = Vec::new();
        if !config.host_network {
            kinds.extend(["net", "uts"]);
        }
        if !config.host_ipc {
            kinds.push("ipc");
            let shm = paths.shm();
            fs::create_dir(&shm).map_err(step("make", &shm))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
                .map_err(|errno| step("mount", &shm)(errno.into()))?;
        }
        make_namespaces(paths, &kinds, &hostname, &config.sysctls).map_err(|message| {
            SandboxError::Namespace {
                id: id.to_owned(),
                message,
            }
        })?;
        // The record comes last: a sandbox with a record is complete.
        let record = Record {
            created_at: now,
            stopped: false,
            config: config.clone(),
        };
        write_record(&paths.record(), &record).map_err(step("write", &paths.record()))
    }

    /// All sandboxes with a record. Half-made ones (skiff died in between) are cleared away.
    pub fn list(&self) -> io::Result<Vec<Sandbox>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let id = entry?.file_name().to_string_lossy().into_owned();
            if let Some(sandbox) = self.get(&id) {
                found.push(sandbox);
            }
        }
        Ok(found)
    }

    /// One sandbox.
    pub fn get(&self, id: &str) -> Option<Sandbox> {
        let paths = self.paths(id);
        let text = fs::read(paths.record()).ok()?;
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) => Some(to_sandbox(id, &paths, record)),
            Err(error) => {
                tracing::warn!(path = %paths.record().display(), %error, "unreadable sandbox record");
                None
            }
        }
    }

    /// Ids of folders without a record: left by a skiff that died half-way.
    pub fn orphans(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if !entry.path().join("record.json").exists() {
                found.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(found)
    }

    /// Releases the namespaces; the record stays.
    pub fn stop(&self, id: &str) -> Result<(), SandboxError> {
        let paths = self.paths(id);
        let record_path = paths.record();
        if let Ok(text) = fs::read(&record_path)
            && let Ok(mut record) = serde_json::from_slice::<Record>(&text)
            && !record.stopped
        {
            record.stopped = true;
            write_record(&record_path, &record).map_err(|source| SandboxError::Step {
                id: id.to_owned(),
                step: "write",
                path: record_path,
                source,
            })?;
        }
        release(id, &paths)
    }

    /// Releases everything. Fine when there is nothing.
    pub fn remove(&self, id: &str) -> Result<(), SandboxError> {
        let paths = self.paths(id);
        release(id, &paths)?;
        match fs::remove_dir_all(&paths.folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SandboxError::Step {
                id: id.to_owned(),
                step: "remove",
                path: paths.folder,
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// Unmounts all that is mounted in the folder, reporting the first failure after trying everything.
fn release(id: &str, paths: &Paths) -> Result<(), SandboxError> {
    let mut first = Ok(());
    for name in ["net", "uts", "ipc", "shm"] {
        let path = paths.folder.join(name);
        loop {
            match umount2(&path, MntFlags::MNT_DETACH) {
                // Again: mounts can be stacked.
                Ok(()) => {}
                // EINVAL: not a mount point; ENOENT: not there. Both mean released.
                Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => break,
                Err(errno) => {
                    let source = errno.into();
                    let error = SandboxError::Step {
                        id: id.to_owned(),
                        step: "unmount",
                        path,
                        source,
                    };
                    first = first.and(Err(error));
                    break;
                }
            }
        }
    }
    first
}

fn to_sandbox(id: &str, paths: &Paths, record: Record) -> Sandbox {
    let net = paths.namespace("net");
    let intact = record.config.host_network || is_namespace(&net);
    let netns = (!record.config.host_network).then_some(net);
    Sandbox {
        id: id.to_owned(),
        ready: !record.stopped && intact,
        created_at: record.created_at,
        netns,
        config: record.config,
    }
}

fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

fn write_record(path: &Path, record: &Record) -> io::Result<()> {
    let fresh = path.with_extension("tmp");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)?;
    fs::rename(&fresh, path)
}

fn resolv_conf(dns: &crate::types::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// Makes and pins namespaces in a thread of their own.
fn make_namespaces(
    paths: &Paths,
    kinds: &[&'static str],
    hostname: &str,
    sysctls: &BTreeMap<String, String>,
) -> Result<(), String> {
    if kinds.is_empty() && sysctls.is_empty() {
        return Ok(());
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespaces".to_owned());
        let work = || {
            let mut flags = CloneFlags::empty();
            for kind in kinds {
                flags |= match *kind {
                    "net" => CloneFlags::CLONE_NEWNET,
                    "ipc" => CloneFlags::CLONE_NEWIPC,
                    _ => CloneFlags::CLONE_NEWUTS,
                };
            }
            unshare(flags).map_err(|errno| format!("unshare: {errno}"))?;
            if kinds.contains(&"uts") {
                nix::unistd::sethostname(hostname).map_err(|errno| format!("set host name: {errno}"))?;
            }
            if kinds.contains(&"net") {
                loopback_up().map_err(|error| format!("set loopback up: {error}"))?;
            }
            for (name, value) in sysctls {
                write_sysctl(name, value, kinds)?;
            }
            for kind in kinds {
                let target = paths.namespace(kind);
                let source = format!("/proc/thread-self/ns/{kind}");
                fs::File::create(&target).map_err(|error| format!("make {}: {error}", target.display()))?;
                mount(
                    Some(source.as_str()),
                    &target,
                    None::<&str>,
                    MsFlags::MS_BIND,
                    None::<&str>,
                )
                .map_err(|errno| format!("bind {source} to {}: {errno}", target.display()))?;
            }
            Ok(())
        };
        let handle = thread
            .spawn_scoped(scope, work)
            .map_err(|error| format!("start a thread: {error}"))?;
        handle
            .join()
            .unwrap_or_else(|_| Err("namespace thread panicked".to_owned()))
    })
}

/// Sysctls belong to the namespaces just made; any other would change the host.
fn write_sysctl(name: &str, value: &str, kinds: &[&str]) -> Result<(), String> {
    let well_formed = name.split(['.', '/']).all(|part| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    });
    let of_ipc = name.starts_with("kernel.shm")
        || name.starts_with("kernel.msg")
        || name == "kernel.sem"
        || name.starts_with("fs.mqueue.");
    let allowed = (name.starts_with("net.") && kinds.contains(&"net")) || (of_ipc && kinds.contains(&"ipc"));
    if !well_formed || !allowed {
        return Err(format!("sysctl {name} is not one of the pod's namespaces"));
    }
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&path, value).map_err(|error| format!("sysctl {name}={value}: {error}"))
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: plain system call; the result is checked.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a fresh descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: ifreq is plain data, all zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open and the request outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DnsConfig;

    #[test]
    fn resolv_conf_has_the_usual_lines() {
        let dns = DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec!["a.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.svc.cluster.local cluster.local\nnameserver 10.43.0.10\noptions ndots:5\n"
        );
    }

    #[test]
    fn sysctls_outside_the_namespaces_are_refused() {
        for (name, kinds) in [
            ("kernel.panic", &["net", "ipc"][..]),
            ("net.core.somaxconn", &["ipc"][..]),
            ("net/../kernel/panic", &["net"][..]),
            ("kernel.shm_rmid_forced", &["net"][..]),
        ] {
            assert!(write_sysctl(name, "1", kinds).is_err(), "{name}");
        }
    }
}
