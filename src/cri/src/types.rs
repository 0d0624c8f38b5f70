//! Plain data of the runtime contract. No behaviour beyond small conversions.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// Name and version of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// For example `containerd`.
    pub name: String,
    /// For example `1.6.20`.
    pub version: String,
}

/// What a pod's sandbox should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxConfig {
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// Counts sandboxes of the same pod.
    pub attempt: u32,
    /// Host name inside; ignored with `host_network`.
    pub hostname: String,
    /// Contents of `/etc/resolv.conf`; without it containers see the host's.
    pub dns: Option<DnsConfig>,
    /// Use the host's network and UTS namespaces.
    pub host_network: bool,
    /// Use the host's IPC namespace.
    pub host_ipc: bool,
    /// Containers see the host's processes.
    pub host_pid: bool,
    /// All containers share one process namespace, with an init of the runtime's own.
    pub share_process_namespace: bool,
    /// Parent of the containers' cgroups, for example `/kubepods/burstable/pod<uid>`.
    /// The caller creates it and sets its limits; empty puts containers under `/skiff`.
    pub cgroup_parent: String,
    /// Namespaced sysctls, for example `net.ipv4.ip_unprivileged_port_start`.
    pub sysctls: BTreeMap<String, String>,
    /// Free labels, returned as given.
    pub labels: BTreeMap<String, String>,
    /// Free annotations, returned as given.
    pub annotations: BTreeMap<String, String>,
}

/// Contents of a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, for example `ndots:5`.
    pub options: Vec<String>,
}

/// A sandbox as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Unique id.
    pub id: String,
    /// As given at creation.
    pub config: SandboxConfig,
    /// False once stopped, or when its namespaces are gone.
    pub ready: bool,
    /// When it was made.
    pub created_at: SystemTime,
    /// The network namespace; `None` with `host_network`.
    pub netns: Option<PathBuf>,
}

/// What a container should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerConfig {
    /// Container name in the pod.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
    /// Image reference or id; must be present.
    pub image: String,
    /// Replaces the image's entrypoint (and its arguments) when not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty.
    pub args: Vec<String>,
    /// Replaces the image's working directory when not empty.
    pub working_dir: String,
    /// Added to the image's environment; later entries win.
    pub env: Vec<(String, String)>,
    /// Bind mounts (volumes, `/etc/hosts`, the termination log).
    pub mounts: Vec<Mount>,
    /// Host devices.
    pub devices: Vec<Device>,
    /// Free labels, returned as given.
    pub labels: BTreeMap<String, String>,
    /// Free annotations, returned as given.
    pub annotations: BTreeMap<String, String>,
    /// Log file in the CRI format; its folder is created. Without it output is discarded.
    pub log_path: Option<PathBuf>,
    /// Keep stdin open for attach.
    pub stdin: bool,
    /// Close stdin after the first attach session ends.
    pub stdin_once: bool,
    /// Allocate a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Privileges.
    pub security: SecurityContext,
    /// Process namespace.
    pub pid: PidMode,
    /// Overrides the image's stop signal, for example `SIGTERM`.
    pub stop_signal: Option<String>,
}

/// Which process namespace a container uses, unless the sandbox says host or shared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidMode {
    /// Its own, or what the sandbox says.
    #[default]
    Own,
    /// The one of another container (by id), for ephemeral containers with a target.
    Container(String),
}

/// A bind mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Path in the container.
    pub container_path: PathBuf,
    /// Path on the host; must exist.
    pub host_path: PathBuf,
    /// No writes through this mount.
    pub readonly: bool,
    /// Mounts below are read-only too.
    pub recursive_readonly: bool,
    /// How mounts travel between host and container.
    pub propagation: Propagation,
}

/// Mount propagation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// None (rprivate).
    #[default]
    Private,
    /// HostToContainer (rslave).
    HostToContainer,
    /// Bidirectional (rshared).
    Bidirectional,
}

/// A host device in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Path on the host.
    pub host_path: PathBuf,
    /// Path in the container.
    pub container_path: PathBuf,
    /// Some of `rwm`.
    pub permissions: String,
}

/// Limits of a container; 0 or empty means unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative CPU weight on the cgroup v1 scale (2..262144); converted for v2.
    pub cpu_shares: u64,
    /// CPU time per period in microseconds.
    pub cpu_quota_us: i64,
    /// Period in microseconds.
    pub cpu_period_us: u64,
    /// Memory in bytes (swap is not added on top).
    pub memory_limit_bytes: i64,
    /// Protected memory in bytes, cgroup v2 only.
    pub memory_min_bytes: i64,
    /// Number of processes.
    pub pids_limit: i64,
    /// For example `0-3`.
    pub cpuset_cpus: String,
    /// For example `0`.
    pub cpuset_mems: String,
    /// Page size (`2MB`) to bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// -1000..1000; clamped to what this process may set.
    pub oom_score_adj: i32,
}

/// Privileges of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityContext {
    /// Everything allowed, all devices.
    pub privileged: bool,
    /// Capabilities added to the default set, with or without `CAP_`; `ALL` adds all.
    pub capabilities_add: Vec<String>,
    /// Capabilities taken from the default set; `ALL` takes all.
    pub capabilities_drop: Vec<String>,
    /// Numeric user; wins over the image's.
    pub run_as_user: Option<i64>,
    /// Numeric group; wins over the image's.
    pub run_as_group: Option<i64>,
    /// Refuse user 0 (also when it comes from the image).
    pub run_as_non_root: bool,
    /// Groups added to those of the image's `/etc/group` (fsGroup included).
    pub supplemental_groups: Vec<i64>,
    /// Ignore the image's `/etc/group` (supplementalGroupsPolicy: Strict).
    pub supplemental_groups_strict: bool,
    /// The root filesystem is read-only.
    pub readonly_rootfs: bool,
    /// allowPrivilegeEscalation: false.
    pub no_new_privileges: bool,
    /// System call filter.
    pub seccomp: Seccomp,
    /// AppArmor profile name; empty means none.
    pub apparmor_profile: String,
    /// procMount: Unmasked.
    pub unmasked_proc: bool,
}

/// System call filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// No filter.
    #[default]
    Unconfined,
    /// The runtime's own profile.
    RuntimeDefault,
    /// A profile in the OCI JSON format, already read.
    Profile(String),
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Exited {
        /// 0..255; 128 + signal number when killed.
        exit_code: i32,
        /// When.
        finished_at: SystemTime,
        /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
        reason: String,
        /// More detail, may be empty.
        message: String,
    },
}

/// A container as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Unique id.
    pub id: String,
    /// The sandbox it belongs to.
    pub sandbox: String,
    /// As in its configuration.
    pub name: String,
    /// As in its configuration.
    pub attempt: u32,
    /// Image reference as in its configuration.
    pub image: String,
    /// Digest reference (`name@sha256:...`) or image id for `status.imageID`.
    pub image_id: String,
    /// As in its configuration.
    pub labels: BTreeMap<String, String>,
    /// As in its configuration.
    pub annotations: BTreeMap<String, String>,
    /// As in its configuration.
    pub log_path: Option<PathBuf>,
    /// State with exit code.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// First process on the host while running.
    pub pid: Option<u32>,
    /// User the first process was started with.
    pub user: Option<ContainerUser>,
}

/// Identity of a container's first process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container was started.
    ContainerStarted {
        /// container id
        id: String,
        /// sandbox id
        sandbox: String,
    },
    /// A container's first process ended.
    ContainerExited {
        /// container id
        id: String,
        /// sandbox id
        sandbox: String,
        /// exit code
        exit_code: i32,
        /// when
        finished_at: SystemTime,
    },
    /// The kernel killed something in a container for lack of memory.
    ContainerOom {
        /// container id
        id: String,
        /// sandbox id
        sandbox: String,
    },
    /// Events may have been missed (the runtime was away, or the subscriber was slow): list again.
    Resync,
}

/// Result of [`crate::runtime::Runtime::exec_sync`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code.
    pub exit_code: i32,
    /// At most [`EXEC_SYNC_OUTPUT_MAX_BYTES`].
    pub stdout: Vec<u8>,
    /// At most [`EXEC_SYNC_OUTPUT_MAX_BYTES`].
    pub stderr: Vec<u8>,
}

/// Output kept of a synchronous exec, per stream; the rest is read and dropped so that the command never blocks.
/// Probes need a few hundred bytes; hooks log little.
pub const EXEC_SYNC_OUTPUT_MAX_BYTES: usize = 64 * 1024;

/// A command to run with streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Open stdin.
    pub stdin: bool,
    /// Open stdout.
    pub stdout: bool,
    /// Open stderr (never with `tty`).
    pub stderr: bool,
    /// Allocate a terminal.
    pub tty: bool,
}

/// Streams to attach to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachRequest {
    /// Write to stdin.
    pub stdin: bool,
    /// Read stdout.
    pub stdout: bool,
    /// Read stderr.
    pub stderr: bool,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Usage figures of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStats {
    /// When they were read.
    pub at: SystemTime,
    /// CPU time used since start, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// All memory charged.
    pub memory_usage_bytes: u64,
    /// Memory without inactive file cache.
    pub memory_working_set_bytes: u64,
    /// Anonymous memory.
    pub memory_rss_bytes: u64,
    /// Page faults.
    pub memory_page_faults: u64,
    /// Major page faults.
    pub memory_major_page_faults: u64,
    /// Processes.
    pub pids: u64,
    /// Writable layer.
    pub rootfs: FsUsage,
}

/// Space of a filesystem or folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    /// A path on the filesystem measured.
    pub path: PathBuf,
    /// Bytes taken.
    pub used_bytes: u64,
    /// Inodes taken.
    pub inodes_used: u64,
}

/// Credentials for a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum ImageAuth {
    /// User and password.
    Basic {
        /// user name
        username: String,
        /// password or token
        password: String,
    },
    /// A bearer token.
    Bearer(String),
}

impl std::fmt::Debug for ImageAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageAuth::Basic { username, .. } => write!(f, "Basic({username}, ...)"),
            ImageAuth::Bearer(_) => write!(f, "Bearer(...)"),
        }
    }
}

/// Called now and then while an image is fetched.
pub type Progress = Arc<dyn Fn(PullProgress) + Send + Sync>;

/// How far a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes fetched so far.
    pub fetched_bytes: u64,
    /// Bytes to fetch in all; 0 while unknown.
    pub total_bytes: u64,
    /// Layers unpacked so far.
    pub layers_unpacked: usize,
    /// Layers in all; 0 while unknown.
    pub layers_total: usize,
}

/// An image in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration, `sha256:...`.
    pub id: String,
    /// Names with tags.
    pub repo_tags: Vec<String>,
    /// Names with digests.
    pub repo_digests: Vec<String>,
    /// Size of the compressed content.
    pub size_bytes: u64,
    /// What the image says about running it.
    pub config: ImageConfig,
    /// Never removed by garbage collection.
    pub pinned: bool,
}

/// Run configuration of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// Program.
    #[serde(deserialize_with = "null_default")]
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments without an entrypoint.
    #[serde(deserialize_with = "null_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_default")]
    pub env: Vec<String>,
    /// `user[:group]`, numbers or names.
    #[serde(deserialize_with = "null_default")]
    pub user: String,
    /// Working directory.
    #[serde(deserialize_with = "null_default")]
    pub working_dir: String,
    /// `80/tcp` and so on.
    #[serde(deserialize_with = "null_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// Paths that want a volume.
    #[serde(deserialize_with = "null_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Free labels.
    #[serde(deserialize_with = "null_default")]
    pub labels: BTreeMap<String, String>,
    /// For example `SIGQUIT`.
    #[serde(deserialize_with = "null_default")]
    pub stop_signal: String,
}

/// Image configurations in the wild spell "empty" as `null`.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
