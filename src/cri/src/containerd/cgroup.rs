//! What the host's control groups and this process's privileges allow, and where groups are.

use super::spec::{HostDevice, HostFacts};
use crate::types::{ContainerStats, FsUsage};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Mount point of the control groups.
const ROOT: &str = "/sys/fs/cgroup";
/// Parent of containers whose sandbox names none.
const DEFAULT_PARENT: &str = "/skiff";
/// Folders below `/dev` that are not devices to hand over, or are mounted afresh.
const NOT_DEVICES: &[&str] = &[
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
];

/// Capability names by number.
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The control group of a container, relative to a hierarchy's root.
pub fn path(parent: &str, id: &str) -> String {
    let parent = parent.trim_end_matches('/');
    format!("{}/{id}", if parent.is_empty() { DEFAULT_PARENT } else { parent })
}

/// Gathers what the host allows. Logs, once, what will be clamped.
pub fn host_facts() -> HostFacts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = effective_capabilities(&status);
    let may_lower = capabilities.contains("CAP_SYS_RESOURCE");
    let own_adj = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let oom_score_adj_min = if may_lower {
        -1000
    } else {
        own_adj.trim().parse().unwrap_or(0)
    };
    let hard = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let nofile_max = match (may_lower, hard) {
        (true, _) => u64::from(u32::MAX).min(nr_open()),
        (false, Ok((_, hard))) => hard,
        (false, Err(_)) => 1024,
    };
    if !may_lower {
        tracing::warn!(
            oom_score_adj_min,
            nofile_max,
            "this process lacks CAP_SYS_RESOURCE: containers' oom_score_adj and open-file limits are clamped"
        );
    }
    HostFacts {
        cgroup_v2: is_v2(Path::new(ROOT)),
        swap_accounting: Path::new(ROOT)
            .join("memory/memory.memsw.limit_in_bytes")
            .exists(),
        capabilities,
        oom_score_adj_min,
        nofile_max,
        seccomp: status.lines().any(|line| line.starts_with("Seccomp:")),
        apparmor: fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y')),
        devices: host_devices(Path::new("/dev")),
        hostname: nix::unistd::gethostname()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    }
}

fn nr_open() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default();
    text.trim().parse().unwrap_or(1_048_576)
}

fn is_v2(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

fn effective_capabilities(status: &str) -> BTreeSet<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0);
    let numbered = CAPABILITIES.iter().enumerate();
    numbered
        .filter(|(number, _)| bits >> number & 1 == 1)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

/// Describes one device node; `None` when it is none.
pub fn device(host: &Path, inside: &Path) -> Option<HostDevice> {
    let metadata = fs::metadata(host).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let number = metadata.rdev();
    Some(HostDevice {
        path: inside.to_path_buf(),
        kind,
        major: i64::from(libc::major(number)),
        minor: i64::from(libc::minor(number)),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// All device nodes below a folder.
pub fn host_devices(folder: &Path) -> Vec<HostDevice> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else {
        return found;
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if NOT_DEVICES.iter().any(|skipped| name == *skipped) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(host_devices(&path)),
            Ok(kind) if kind.is_symlink() => {}
            _ => found.extend(device(&path, &path)),
        }
    }
    found
}

/// Reads usage from the control group files.
pub fn stats(host: &HostFacts, group: &str, at: SystemTime, rootfs: FsUsage) -> io::Result<ContainerStats> {
    stats_below(Path::new(ROOT), host.cgroup_v2, group, at, rootfs)
}

fn stats_below(
    root: &Path,
    v2: bool,
    group: &str,
    at: SystemTime,
    rootfs: FsUsage,
) -> io::Result<ContainerStats> {
    let group = group.trim_start_matches('/');
    let folder = |controller: &str| match v2 {
        true => root.join(group),
        false => root.join(controller).join(group),
    };
    let number = |path: PathBuf| -> io::Result<u64> {
        let text = fs::read_to_string(&path)?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::other(format!("{}: not a number: {text:?}", path.display())))
    };
    let memory = folder("memory");
    let memory_stat = fs::read_to_string(memory.join("memory.stat"))?;
    let (usage_file, inactive, rss) = match v2 {
        true => ("memory.current", "inactive_file", "anon"),
        false => ("memory.usage_in_bytes", "total_inactive_file", "total_rss"),
    };
    let (faults, major) = if v2 {
        ("pgfault", "pgmajfault")
    } else {
        ("total_pgfault", "total_pgmajfault")
    };
    let usage = number(memory.join(usage_file))?;
    let cpu_usage_ns = match v2 {
        true => field(&fs::read_to_string(folder("").join("cpu.stat"))?, "usage_usec") * 1000,
        false => number(folder("cpuacct").join("cpuacct.usage"))?,
    };
    Ok(ContainerStats {
        at,
        cpu_usage_ns,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(field(&memory_stat, inactive)),
        memory_rss_bytes: field(&memory_stat, rss),
        memory_page_faults: field(&memory_stat, faults),
        memory_major_page_faults: field(&memory_stat, major),
        pids: number(folder("pids").join("pids.current")).unwrap_or(0),
        rootfs,
    })
}

/// True when the kernel counted an out-of-memory kill in the group.
pub fn oom_killed(host: &HostFacts, group: &str) -> bool {
    let (root, group) = (Path::new(ROOT), group.trim_start_matches('/'));
    let path = match host.cgroup_v2 {
        true => root.join(group).join("memory.events"),
        false => root.join("memory").join(group).join("memory.oom_control"),
    };
    fs::read_to_string(path).is_ok_and(|text| field(&text, "oom_kill") > 0)
}

/// The value of a `name value` line; 0 when there is none.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == name)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn group_paths() {
        assert_eq!(
            path("/kubepods/burstable/pod1", "c"),
            "/kubepods/burstable/pod1/c"
        );
        assert_eq!(path("/kubepods/", "c"), "/kubepods/c");
        assert_eq!(path("", "c"), "/skiff/c");
    }

    #[test]
    fn stats_of_both_hierarchies() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("memory/p/c/memory.usage_in_bytes", "1000\n");
        write(
            "memory/p/c/memory.stat",
            "rss 1\ntotal_rss 300\ntotal_inactive_file 400\ntotal_pgfault 7\n",
        );
        write("cpuacct/p/c/cpuacct.usage", "5000\n");
        write("pids/p/c/pids.current", "3\n");
        write("p/c/memory.current", "1000\n");
        write("p/c/memory.stat", "anon 300\ninactive_file 400\npgfault 7\n");
        write("p/c/cpu.stat", "usage_usec 5\nuser_usec 1\n");
        write("p/c/pids.current", "3\n");
        for v2 in [false, true] {
            let at = SystemTime::UNIX_EPOCH;
            let stats = stats_below(root.path(), v2, "/p/c", at, FsUsage::default()).unwrap();
            assert_eq!(stats.cpu_usage_ns, 5000, "v2 {v2}");
            assert_eq!(stats.memory_working_set_bytes, 600, "v2 {v2}");
            assert_eq!(
                (stats.memory_rss_bytes, stats.pids, stats.memory_page_faults),
                (300, 3, 7),
                "v2 {v2}"
            );
        }
    }

    #[test]
    fn capabilities_by_number() {
        let found = effective_capabilities("Name:\tx\nCapEff:\t0000000000000021\n");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["CAP_CHOWN", "CAP_KILL"]);
    }
}
