//! What the machine is and has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::conditions::{DISK_MIN_PERCENT, MEMORY_MIN_BYTES, Share};
use crate::resources;

/// Facts that do not change while the machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors online.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the disk that holds pods.
    pub disk_bytes: u64,
    /// Huge pages: size in bytes to bytes in all.
    pub hugepages: BTreeMap<u64, u64>,
    /// Kernel release.
    pub kernel: String,
    /// Name of the distribution.
    pub os_image: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// Identity of the hardware.
    pub system_uuid: String,
}

/// The architecture as Kubernetes names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "x86" => "386",
        other => other,
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Reads the facts; what cannot be read is empty.
pub fn read(root: &Path) -> Machine {
    let release =
        fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release"));
    let machine_id = match line("/etc/machine-id") {
        id if id.is_empty() => line("/var/lib/dbus/machine-id"),
        id => id,
    };
    let boot_id = line("/proc/sys/kernel/random/boot_id");
    let uuid = [
        line("/sys/class/dmi/id/product_uuid"),
        line("/proc/device-tree/serial-number"),
        machine_id.clone(),
    ];
    Machine {
        cpus: cpus(),
        memory_bytes: meminfo("MemTotal").unwrap_or(0),
        disk_bytes: disk(root).0.total,
        hugepages: hugepages(Path::new("/sys/kernel/mm/hugepages")),
        kernel: line("/proc/sys/kernel/osrelease"),
        os_image: pretty_name(&release.unwrap_or_default()),
        machine_id,
        boot_id,
        system_uuid: uuid
            .into_iter()
            .map(|id| id.trim_matches('\0').to_owned())
            .find(|id| !id.is_empty())
            .unwrap_or_default(),
    }
}

fn cpus() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .and_then(|count| u64::try_from(count).ok())
        .filter(|count| *count > 0)
        .unwrap_or(1)
}

fn pretty_name(release: &str) -> String {
    release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".into())
}

fn meminfo(name: &str) -> Option<u64> {
    meminfo_in(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn meminfo_in(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// Bytes of memory that could be used.
pub fn memory_available() -> Option<u64> {
    meminfo("MemAvailable")
}

/// Bytes and inodes of the filesystem a folder is on.
#[allow(clippy::unnecessary_cast)] // The fields are narrower on 32-bit machines.
pub fn disk(path: &Path) -> (Share, Share) {
    // The folder may not be there yet: its nearest parent is on the same filesystem.
    let existing = path
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(existing) {
        Ok(stat) => (
            Share {
                free: stat.blocks_available() as u64 * stat.fragment_size() as u64,
                total: stat.blocks() as u64 * stat.fragment_size() as u64,
            },
            Share {
                free: stat.files_available() as u64,
                total: stat.files() as u64,
            },
        ),
        Err(_) => Default::default(),
    }
}

/// Process ids.
pub fn pids() -> Share {
    let number = |path: &str| line(path).parse::<u64>().ok();
    let total = [
        number("/proc/sys/kernel/pid_max"),
        number("/proc/sys/kernel/threads-max"),
    ]
    .into_iter()
    .flatten()
    .min();
    let running = line("/proc/loadavg");
    let used = running
        .split_whitespace()
        .nth(3)
        .and_then(|part| part.split('/').nth(1))
        .and_then(|n| n.parse().ok());
    match (total, used) {
        (Some(total), Some(used)) => Share {
            free: total.saturating_sub(used),
            total,
        },
        _ => Share::default(),
    }
}

fn hugepages(dir: &Path) -> BTreeMap<u64, u64> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|name| {
            name.strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse::<u64>()
                .ok()
        });
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        if let (Some(size), Some(count)) = (size, count.and_then(|text| text.trim().parse::<u64>().ok())) {
            sizes.insert(size * 1024, size * 1024 * count);
        }
    }
    sizes
}

/// `2Mi` for 2097152.
fn binary(bytes: u64) -> String {
    for (shift, suffix) in [(30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// What the node has.
pub fn capacity(machine: &Machine, max_pods: u32) -> BTreeMap<String, Quantity> {
    let mut map = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        (
            "memory".to_owned(),
            Quantity(format!("{}Ki", machine.memory_bytes / 1024)),
        ),
        (
            "ephemeral-storage".to_owned(),
            Quantity(format!("{}Ki", machine.disk_bytes / 1024)),
        ),
        ("pods".to_owned(), Quantity(max_pods.to_string())),
    ]);
    for (size, total) in &machine.hugepages {
        map.insert(
            format!("hugepages-{}", binary(*size)),
            Quantity(if *total == 0 { "0".into() } else { binary(*total) }),
        );
    }
    map
}

/// What pods may use: capacity less what is reserved and what must stay free.
pub fn allocatable(
    capacity: &BTreeMap<String, Quantity>,
    reserved: &BTreeMap<String, String>,
) -> BTreeMap<String, Quantity> {
    capacity
        .iter()
        .map(|(name, quantity)| {
            let held = reserved.get(name).map(|text| Quantity(text.clone()));
            let left = match name.as_str() {
                "cpu" => {
                    let held = held.as_ref().and_then(resources::milli).unwrap_or(0);
                    let left = (resources::milli(quantity).unwrap_or(0) - held).max(0);
                    if left % 1000 == 0 {
                        (left / 1000).to_string()
                    } else {
                        format!("{left}m")
                    }
                }
                "memory" | "ephemeral-storage" => {
                    let total = resources::whole(quantity).unwrap_or(0);
                    let kept_free = if name == "memory" {
                        i64::try_from(MEMORY_MIN_BYTES).unwrap_or(0)
                    } else {
                        total / 100 * i64::try_from(DISK_MIN_PERCENT).unwrap_or(0)
                    };
                    let held = held.as_ref().and_then(resources::whole).unwrap_or(0);
                    format!("{}Ki", (total - held - kept_free).max(0) / 1024)
                }
                _ => quantity.0.clone(),
            };
            (name.clone(), Quantity(left))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        let machine = Machine {
            cpus: 4,
            memory_bytes: 1 << 30,
            disk_bytes: 100 << 30,
            hugepages: BTreeMap::from([(2 << 20, 0), (1 << 30, 2 << 30)]),
            ..Machine::default()
        };
        let capacity = capacity(&machine, 110);
        let reserved = BTreeMap::from([("cpu".into(), "250m".into()), ("memory".into(), "24Mi".into())]);
        let allocatable = allocatable(&capacity, &reserved);
        let table = [
            ("cpu", "4", "3750m"),
            ("memory", "1048576Ki", "921600Ki"),
            ("ephemeral-storage", "104857600Ki", "99614720Ki"),
            ("pods", "110", "110"),
            ("hugepages-2Mi", "0", "0"),
            ("hugepages-1Gi", "2Gi", "2Gi"),
        ];
        for (name, has, gives) in table {
            assert_eq!(capacity[name].0, has, "{name}");
            assert_eq!(allocatable[name].0, gives, "{name}");
        }
        assert_eq!(
            meminfo_in("MemTotal: 10 kB\nMemAvailable:   5 kB\n", "MemAvailable"),
            Some(5120)
        );
    }

    #[test]
    fn this_machine() {
        let machine = read(Path::new("/"));
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && machine.disk_bytes > 0);
        assert!(!machine.kernel.is_empty() && !machine.boot_id.is_empty());
        assert!(pids().total > pids().free);
    }
}
