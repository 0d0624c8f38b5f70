//! The OCI runtime specification of a container, as a pure function of what was asked for, what the
//! image says and what the host allows.
//!
//! Nothing here touches the host: [`HostFacts`] is gathered once elsewhere. The result is the JSON that
//! runc reads. System call filter: `RuntimeDefault` is [`super::seccomp`]'s profile.

use super::cgroup;
use super::seccomp;
use crate::types::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// OCI runtime-spec version written; runc 1.1 reads 1.0 documents.
const OCI_VERSION: &str = "1.0.2";
/// Open files a container may have when the host allows it.
const NOFILE_MAX: u64 = 1_048_576;
/// Where programs are looked up when the image does not say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// containerd's shim serves all containers with the same value of this annotation from one process.
pub const SHIM_GROUP_ANNOTATION: &str = "io.containerd.runc.v2.group";

/// Capabilities of an ordinary container.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The request cannot be turned into a container.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// Neither the pod nor the image says what to run.
    #[error("no command specified: neither the container nor its image {0} names one")]
    NoCommand(String),
    /// A capability that does not exist.
    #[error("unknown capability {0:?}")]
    Capability(String),
    /// A relative path where an absolute one is needed.
    #[error("mount path {0:?} must be absolute")]
    Relative(PathBuf),
    /// A profile that is not JSON.
    #[error("seccomp profile is not valid JSON: {0}")]
    Seccomp(String),
    /// A broken environment variable.
    #[error("environment variable name {0:?} is empty or contains '=' or a null byte")]
    Environment(String),
}

/// What the host offers and allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Unified cgroup hierarchy.
    pub cgroup_v2: bool,
    /// Memory and swap can be limited together (cgroup v1 only).
    pub swap_accounting: bool,
    /// Capabilities this process holds, `CAP_*`.
    pub capabilities: BTreeSet<String>,
    /// Lowest oom_score_adj this process may set.
    pub oom_score_adj_min: i32,
    /// Hard limit of open files.
    pub nofile_max: u64,
    /// The kernel filters system calls.
    pub seccomp: bool,
    /// AppArmor is on.
    pub apparmor: bool,
    /// Host devices (path, major, minor, kind), for privileged containers.
    pub devices: Vec<HostDevice>,
    /// Host name.
    pub hostname: String,
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Where it appears in the container.
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The sandbox a container joins, by paths.
#[derive(Clone, Debug, Default)]
pub struct SandboxView {
    /// Sandbox id.
    pub id: String,
    /// Configuration.
    pub config: SandboxConfig,
    /// Namespace files; `None` for the host's.
    pub net: Option<PathBuf>,
    /// See `net`.
    pub ipc: Option<PathBuf>,
    /// See `net`.
    pub uts: Option<PathBuf>,
    /// Namespace file of a shared or targeted process namespace.
    pub pid: Option<PathBuf>,
    /// Source of `/dev/shm`.
    pub shm: PathBuf,
    /// Source of `/etc/hostname`.
    pub hostname: PathBuf,
    /// Source of `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

/// Everything a specification depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Container id.
    pub id: &'a str,
    /// What was asked for.
    pub config: &'a ContainerConfig,
    /// What the image says.
    pub image: &'a ImageConfig,
    /// Where it goes.
    pub sandbox: &'a SandboxView,
    /// Who it runs as.
    pub user: &'a ContainerUser,
    /// Devices of the configuration, resolved.
    pub devices: &'a [(HostDevice, String)],
    /// What the host allows.
    pub host: &'a HostFacts,
}

/// Builds the specification.
pub fn build(input: Input<'_>) -> Result<Value, SpecError> {
    let Input {
        config,
        image,
        sandbox,
        user,
        host,
        ..
    } = input;
    let security = &config.security;
    let mut process = json!({
        "terminal": config.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": arguments(config, image)?,
        "env": environment(config, image, sandbox, host)?,
        "cwd": working_dir(config, image),
        "capabilities": capabilities(security, host)?,
        "noNewPrivileges": security.no_new_privileges && !security.privileged,
        "oomScoreAdj": config.resources.oom_score_adj.clamp(host.oom_score_adj_min.min(1000), 1000),
        "rlimits": [rlimit("RLIMIT_NOFILE", NOFILE_MAX.min(host.nofile_max))],
    });
    if host.apparmor && !security.apparmor_profile.is_empty() && !security.privileged {
        process["apparmorProfile"] = json!(security.apparmor_profile);
    }
    let unmasked = security.privileged || security.unmasked_proc;
    let mut linux = json!({
        "cgroupsPath": cgroup::path(&sandbox.config.cgroup_parent, input.id),
        "namespaces": namespaces(config, sandbox, host),
        "resources": resources(input),
        "maskedPaths": if unmasked { &[][..] } else { MASKED_PATHS },
        "readonlyPaths": if unmasked { &[][..] } else { READONLY_PATHS },
        "devices": devices(input),
    });
    if let Some(filter) = system_calls(security, host)? {
        linux["seccomp"] = filter;
    }
    // Bidirectional mounts travel only through a root that is shared; slaves need at least rslave.
    let propagation = config
        .mounts
        .iter()
        .map(|mount| mount.propagation as u8)
        .max()
        .unwrap_or(0);
    if propagation > 0 {
        linux["rootfsPropagation"] = json!(if propagation == 2 { "rshared" } else { "rslave" });
    }
    Ok(json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts(input)?,
        "linux": linux,
        "annotations": {
            SHIM_GROUP_ANNOTATION: sandbox.id,
            "io.kubernetes.cri.sandbox-id": sandbox.id,
            "io.kubernetes.cri.container-name": config.name,
        },
    }))
}

/// The process part for a command executed in a running container.
pub fn exec_process(spec: &Value, command: &[String], tty: bool) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = json!(command);
    process["terminal"] = json!(tty);
    if tty && let Some(environment) = process["env"].as_array_mut() {
        let has_term = environment
            .iter()
            .any(|entry| entry.as_str().is_some_and(|e| e.starts_with("TERM=")));
        if !has_term {
            environment.push(json!("TERM=xterm"));
        }
    }
    process
}

/// The specification of a sandbox's init: our own binary on an empty, read-only root.
pub fn build_init(id: &str, sandbox: &SandboxView, binary: &Path, host: &HostFacts) -> Value {
    let config = ContainerConfig::default();
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": { "uid": 65535, "gid": 65535 },
            "args": ["/skiff", "pause"],
            "env": [DEFAULT_PATH],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": true,
            "oomScoreAdj": (-998).max(host.oom_score_adj_min),
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=64k"]),
            mount("/skiff", "bind", &binary.to_string_lossy(), &["bind", "ro", "nosuid", "nodev"]),
        ],
        "linux": {
            "cgroupsPath": cgroup::path(&sandbox.config.cgroup_parent, id),
            "namespaces": namespaces(&config, sandbox, host),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
        "annotations": { SHIM_GROUP_ANNOTATION: sandbox.id, "io.kubernetes.cri.sandbox-id": sandbox.id },
    })
}

/// Limits in the form both `config.json` and an update of a running task take.
pub fn linux_resources(resources: &Resources, host: &HostFacts) -> Value {
    let mut result = json!({});
    let mut cpu = json!({});
    if resources.cpu_shares > 0 {
        cpu["shares"] = json!(resources.cpu_shares);
    }
    if resources.cpu_quota_us > 0 {
        cpu["quota"] = json!(resources.cpu_quota_us);
    }
    if resources.cpu_period_us > 0 {
        cpu["period"] = json!(resources.cpu_period_us);
    }
    if !resources.cpuset_cpus.is_empty() {
        cpu["cpus"] = json!(resources.cpuset_cpus);
    }
    if !resources.cpuset_mems.is_empty() {
        cpu["mems"] = json!(resources.cpuset_mems);
    }
    if cpu != json!({}) {
        result["cpu"] = cpu;
    }
    if resources.memory_limit_bytes > 0 {
        result["memory"] = json!({ "limit": resources.memory_limit_bytes });
        if host.cgroup_v2 || host.swap_accounting {
            // Memory and swap together: no swap on top of the limit.
            result["memory"]["swap"] = json!(resources.memory_limit_bytes);
        }
    }
    if host.cgroup_v2 && resources.memory_min_bytes > 0 {
        result["unified"] = json!({ "memory.min": resources.memory_min_bytes.to_string() });
    }
    if resources.pids_limit > 0 {
        result["pids"] = json!({ "limit": resources.pids_limit });
    }
    if !resources.hugepages.is_empty() {
        let limits = resources.hugepages.iter();
        let limits: Vec<Value> = limits
            .map(|(size, limit)| json!({ "pageSize": size, "limit": limit }))
            .collect();
        result["hugepageLimits"] = json!(limits);
    }
    result
}

fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    // As in Kubernetes: a command replaces entrypoint and arguments of the image, arguments alone
    // replace the image's arguments.
    let (head, tail) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let arguments: Vec<String> = head.iter().chain(tail).cloned().collect();
    match arguments.is_empty() {
        true => Err(SpecError::NoCommand(config.image.clone())),
        false => Ok(arguments),
    }
}

fn environment(
    config: &ContainerConfig,
    image: &ImageConfig,
    sandbox: &SandboxView,
    host: &HostFacts,
) -> Result<Vec<String>, SpecError> {
    let mut result: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match result.iter_mut().find(|(known, _)| known == name) {
        Some(entry) => entry.1 = value.to_owned(),
        None => result.push((name.to_owned(), value.to_owned())),
    };
    let (name, value) = DEFAULT_PATH.split_once('=').unwrap_or_default();
    set(name, value);
    let plain = !sandbox.config.host_network && !sandbox.config.hostname.is_empty();
    set(
        "HOSTNAME",
        if plain {
            &sandbox.config.hostname
        } else {
            &host.hostname
        },
    );
    if config.tty {
        set("TERM", "xterm");
    }
    for entry in &image.env {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(name, value);
    }
    for (name, value) in &config.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(SpecError::Environment(name.clone()));
        }
        set(name, value);
    }
    Ok(result
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

fn working_dir<'a>(config: &'a ContainerConfig, image: &'a ImageConfig) -> &'a str {
    [config.working_dir.as_str(), image.working_dir.as_str()]
        .into_iter()
        .find(|d| !d.is_empty())
        .unwrap_or("/")
}

fn rlimit(kind: &str, limit: u64) -> Value {
    json!({ "type": kind, "soft": limit, "hard": limit })
}

fn capabilities(security: &SecurityContext, host: &HostFacts) -> Result<Value, SpecError> {
    let full = |name: &String| {
        let upper = name.to_ascii_uppercase();
        if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        }
    };
    let mut set: BTreeSet<String> = match security.privileged {
        true => host.capabilities.clone(),
        false => DEFAULT_CAPABILITIES
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
    };
    let known =
        |name: &String| host.capabilities.contains(name) || cgroup::CAPABILITIES.contains(&name.as_str());
    for name in security
        .capabilities_add
        .iter()
        .chain(&security.capabilities_drop)
        .map(full)
    {
        if name != "CAP_ALL" && !known(&name) {
            return Err(SpecError::Capability(name));
        }
    }
    if !security.privileged {
        let (add, drop) = (&security.capabilities_add, &security.capabilities_drop);
        if add.iter().any(|name| full(name) == "CAP_ALL") {
            set = host.capabilities.clone();
        }
        if drop.iter().any(|name| full(name) == "CAP_ALL") {
            set.clear();
        }
        set.extend(add.iter().map(full).filter(|name| name != "CAP_ALL"));
        for name in drop.iter().map(full) {
            set.remove(&name);
        }
    }
    // runc fails on a capability this process cannot give.
    set.retain(|name| host.capabilities.contains(name));
    Ok(json!({ "bounding": set, "effective": set, "permitted": set }))
}

fn namespaces(config: &ContainerConfig, sandbox: &SandboxView, host: &HostFacts) -> Vec<Value> {
    let mut result = vec![json!({ "type": "mount" })];
    for (kind, path) in [
        ("network", &sandbox.net),
        ("ipc", &sandbox.ipc),
        ("uts", &sandbox.uts),
    ] {
        if let Some(path) = path {
            result.push(json!({ "type": kind, "path": path }));
        }
    }
    match &sandbox.pid {
        Some(path) => result.push(json!({ "type": "pid", "path": path })),
        None if sandbox.config.host_pid => {}
        None => result.push(json!({ "type": "pid" })),
    }
    if host.cgroup_v2 && !config.security.privileged {
        result.push(json!({ "type": "cgroup" }));
    }
    result
}

fn resources(input: Input<'_>) -> Value {
    let mut result = linux_resources(&input.config.resources, input.host);
    let privileged = input.config.security.privileged;
    let mut rules = vec![json!({ "allow": privileged, "access": "rwm" })];
    if !privileged {
        for (device, access) in input.devices {
            rules.push(json!({
                "allow": true, "type": device.kind.to_string(),
                "major": device.major, "minor": device.minor, "access": access,
            }));
        }
    }
    result["devices"] = json!(rules);
    result
}

fn devices(input: Input<'_>) -> Vec<Value> {
    let of_host: &[HostDevice] = if input.config.security.privileged {
        &input.host.devices
    } else {
        &[]
    };
    let asked = input.devices.iter().map(|(device, _)| device);
    let mut seen = BTreeSet::new();
    // What was asked for wins over the host's list.
    asked
        .chain(of_host)
        .filter(|device| seen.insert(device.path.clone()))
        .map(|device| {
            json!({
                "path": device.path, "type": device.kind.to_string(), "major": device.major,
                "minor": device.minor, "fileMode": device.mode & 0o7777, "uid": device.uid, "gid": device.gid,
            })
        })
        .collect()
}

fn system_calls(security: &SecurityContext, host: &HostFacts) -> Result<Option<Value>, SpecError> {
    if security.privileged || !host.seccomp {
        return Ok(None);
    }
    match &security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => {
            let granted = capabilities(security, host)?;
            let has = |name: &str| {
                granted["bounding"]
                    .as_array()
                    .is_some_and(|set| set.iter().any(|c| c == name))
            };
            Ok(Some(seccomp::default_profile(has)))
        }
        Seccomp::Profile(text) => serde_json::from_str(text)
            .map(Some)
            .map_err(|error| SpecError::Seccomp(error.to_string())),
    }
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn mounts(input: Input<'_>) -> Result<Vec<Value>, SpecError> {
    let Input { config, sandbox, .. } = input;
    let asked = |path: &str| {
        config
            .mounts
            .iter()
            .any(|mount| mount.container_path == Path::new(path))
    };
    let privileged = config.security.privileged;
    let sys = if privileged { "rw" } else { "ro" };
    let mut list = vec![
        (
            "/proc",
            "proc",
            "proc".to_owned(),
            vec!["nosuid", "noexec", "nodev"],
        ),
        (
            "/dev",
            "tmpfs",
            "tmpfs".to_owned(),
            vec!["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "/dev/pts",
            "devpts",
            "devpts".to_owned(),
            vec![
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "/dev/mqueue",
            "mqueue",
            "mqueue".to_owned(),
            vec!["nosuid", "noexec", "nodev"],
        ),
        (
            "/sys",
            "sysfs",
            "sysfs".to_owned(),
            vec!["nosuid", "noexec", "nodev", sys],
        ),
        (
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup".to_owned(),
            vec!["nosuid", "noexec", "nodev", "relatime", sys],
        ),
    ];
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let shm = if sandbox.config.host_ipc {
        "/dev/shm".to_owned()
    } else {
        text(&sandbox.shm)
    };
    list.push(("/dev/shm", "bind", shm, vec!["rbind", "rprivate"]));
    let etc = if config.security.readonly_rootfs {
        "ro"
    } else {
        "rw"
    };
    list.push((
        "/etc/hostname",
        "bind",
        text(&sandbox.hostname),
        vec!["rbind", "rprivate", etc],
    ));
    let resolv_conf = if sandbox.config.dns.is_some() {
        text(&sandbox.resolv_conf)
    } else {
        "/etc/resolv.conf".into()
    };
    list.push((
        "/etc/resolv.conf",
        "bind",
        resolv_conf,
        vec!["rbind", "rprivate", etc],
    ));
    let mut result: Vec<Value> = list
        .iter()
        .filter(|(destination, ..)| !asked(destination))
        .map(|(destination, kind, source, options)| mount(destination, kind, source, options))
        .collect();
    // Parents before children, else a mount hides what was mounted below it.
    let mut volumes: Vec<&Mount> = config.mounts.iter().collect();
    volumes.sort_by_key(|mount| mount.container_path.components().count());
    for volume in volumes {
        if !volume.container_path.is_absolute() {
            return Err(SpecError::Relative(volume.container_path.clone()));
        }
        let propagation = match volume.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        };
        let access = match (volume.readonly, volume.recursive_readonly) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        };
        let options = ["rbind", propagation, access];
        result.push(mount(
            &text(&volume.container_path),
            "bind",
            &text(&volume.host_path),
            &options,
        ));
    }
    Ok(result)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
