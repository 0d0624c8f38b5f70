//! Usage of node and pods, in the shape of the kubelet's summary API.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use skiff_cri::{Container, ContainerState, ContainerStats};

use crate::kubelet::{Kubelet, PodEntry};
use crate::node::machine;
use crate::pod::spec;
use crate::pod::status::api_time;

/// Two readings closer than this make no rate; the last rate is given again.
const MIN_WINDOW: Duration = Duration::from_secs(1);
/// Readings kept; a node has at most a few hundred containers.
const MAX_READINGS: usize = 4096;

#[derive(Clone, Copy)]
struct Reading {
    at: SystemTime,
    used_ns: u64,
    rate: Option<u64>,
}

/// Remembers readings, so that use can be given per second.
#[derive(Default)]
pub struct Rates {
    readings: Mutex<HashMap<String, Reading>>,
}

impl Rates {
    /// Nanoseconds of processor time per second since the last reading.
    fn rate(&self, id: &str, at: SystemTime, used_ns: u64) -> Option<u64> {
        let mut readings = self.readings.lock();
        if readings.len() >= MAX_READINGS && !readings.contains_key(id) {
            readings.clear();
        }
        let last = readings.get(id).copied();
        if let Some(last) = last {
            let window = at.duration_since(last.at).unwrap_or_default();
            if window < MIN_WINDOW {
                return last.rate;
            }
            let rate = used_ns.checked_sub(last.used_ns).map(|used| {
                u64::try_from(u128::from(used) * 1_000_000_000 / window.as_nanos().max(1)).unwrap_or(u64::MAX)
            });
            readings.insert(id.to_owned(), Reading { at, used_ns, rate });
            return rate;
        }
        readings.insert(
            id.to_owned(),
            Reading {
                at,
                used_ns,
                rate: None,
            },
        );
        None
    }
}

fn time(at: SystemTime) -> Value {
    json!(api_time(at))
}

fn cpu(rates: &Rates, id: &str, at: SystemTime, used_ns: u64) -> Value {
    let mut map = Map::new();
    map.insert("time".into(), time(at));
    if let Some(rate) = rates.rate(id, at, used_ns) {
        map.insert("usageNanoCores".into(), json!(rate));
    }
    map.insert("usageCoreNanoSeconds".into(), json!(used_ns));
    Value::Object(map)
}

fn memory(stats: &ContainerStats) -> Value {
    json!({
        "time": time(stats.at),
        "usageBytes": stats.memory_usage_bytes,
        "workingSetBytes": stats.memory_working_set_bytes,
        "rssBytes": stats.memory_rss_bytes,
        "pageFaults": stats.memory_page_faults,
        "majorPageFaults": stats.memory_major_page_faults,
    })
}

/// Bytes received and sent by each interface but loopback, from the kernel's table.
fn interfaces(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect();
            let name = name.trim();
            (name != "lo" && numbers.len() >= 11).then(|| {
                json!({"name": name, "rxBytes": numbers[0], "rxErrors": numbers[2], "txBytes": numbers[8],
                    "txErrors": numbers[10]})
            })
        })
        .collect()
}

fn network(pid: Option<u32>, at: SystemTime) -> Option<Value> {
    let path = match pid {
        Some(pid) => format!("/proc/{pid}/net/dev"),
        None => "/proc/net/dev".to_owned(),
    };
    let list = interfaces(&std::fs::read_to_string(path).ok()?);
    let first = list
        .iter()
        .find(|one| one["name"] == "eth0")
        .or(list.first())?
        .clone();
    let mut value = first;
    value["time"] = time(at);
    value["interfaces"] = json!(list);
    Some(value)
}

fn fs(path: &Path, at: SystemTime) -> Value {
    let (bytes, inodes) = machine::disk(path);
    json!({
        "time": time(at),
        "availableBytes": bytes.free,
        "capacityBytes": bytes.total,
        "usedBytes": bytes.total.saturating_sub(bytes.free),
        "inodesFree": inodes.free,
        "inodes": inodes.total,
        "inodesUsed": inodes.total.saturating_sub(inodes.free),
    })
}

/// Processor time used by the whole machine, in nanoseconds.
fn machine_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1))
        .filter_map(|n| n.parse().ok())
        .collect();
    let busy: u64 = numbers
        .iter()
        .enumerate()
        .filter(|(n, _)| !matches!(n, 3 | 4 | 8 | 9))
        .map(|(_, v)| v)
        .sum();
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .unwrap_or(100);
    busy.saturating_mul(1_000_000_000 / u64::try_from(ticks).unwrap_or(100).max(1))
}

impl Kubelet {
    /// The summary: node, pods, containers.
    pub async fn summary(&self, rates: &Rates) -> Value {
        let config = self.config();
        let now = config.clock.now();
        let mut pods = Vec::new();
        for entry in self.pods() {
            pods.push(self.pod_summary(&entry, rates, now).await);
        }
        let total = machine::read(&config.dirs.root).memory_bytes;
        let available = machine::memory_available().unwrap_or(0);
        let image_fs = self.runtime().image_fs().await.ok();
        let mut node = json!({
            "nodeName": config.node_name,
            "cpu": cpu(rates, "node", now, machine_cpu_ns()),
            "memory": {
                "time": time(now),
                "availableBytes": available,
                "usageBytes": total.saturating_sub(available),
                "workingSetBytes": total.saturating_sub(available),
            },
            "fs": fs(&config.dirs.root, now),
        });
        if let Some(network) = network(None, now) {
            node["network"] = network;
        }
        if let Some(usage) = image_fs {
            let mut value = fs(&usage.path, now);
            value["usedBytes"] = json!(usage.used_bytes);
            node["runtime"] = json!({"imageFs": value});
        }
        json!({"node": node, "pods": pods})
    }

    async fn pod_summary(&self, entry: &PodEntry, rates: &Rates, now: SystemTime) -> Value {
        let mut containers = Vec::new();
        let (mut cpu_ns, mut usage, mut working_set, mut rss, mut processes) = (0u64, 0u64, 0u64, 0u64, 0u64);
        let running = entry
            .containers
            .iter()
            .filter(|c| c.state == ContainerState::Running);
        for container in running.clone() {
            let Ok(stats) = self.runtime().container_stats(&container.id).await else {
                continue;
            };
            cpu_ns = cpu_ns.saturating_add(stats.cpu_usage_ns);
            usage = usage.saturating_add(stats.memory_usage_bytes);
            working_set = working_set.saturating_add(stats.memory_working_set_bytes);
            rss = rss.saturating_add(stats.memory_rss_bytes);
            processes = processes.saturating_add(stats.pids);
            containers.push(container_summary(container, &stats, rates));
        }
        let uid = spec::uid(&entry.pod);
        let mut value = json!({
            "podRef": {"name": spec::name(&entry.pod), "namespace": spec::namespace(&entry.pod), "uid": uid},
            "startTime": entry.pod.status.as_ref().and_then(|status| status.start_time.clone()),
            "containers": containers,
            "cpu": cpu(rates, uid, now, cpu_ns),
            "memory": {"time": time(now), "usageBytes": usage, "workingSetBytes": working_set, "rssBytes": rss},
            "process_stats": {"process_count": processes},
        });
        if !spec::host_network(&entry.pod)
            && let Some(pid) = running.clone().find_map(|container| container.pid)
            && let Some(network) = network(Some(pid), now)
        {
            value["network"] = network;
        }
        value
    }
}

fn container_summary(container: &Container, stats: &ContainerStats, rates: &Rates) -> Value {
    json!({
        "name": container.name,
        "startTime": container.started_at.map(time),
        "cpu": cpu(rates, &container.id, stats.at, stats.cpu_usage_ns),
        "memory": memory(stats),
        "rootfs": {"time": time(stats.at), "usedBytes": stats.rootfs.used_bytes, "inodesUsed": stats.rootfs.inodes_used},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_two_readings() {
        let rates = Rates::default();
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(rates.rate("a", at(10), 1_000), None);
        assert_eq!(rates.rate("a", at(20), 5_000_001_000), Some(500_000_000));
        assert_eq!(
            rates.rate("a", at(20), 9_000_000_000),
            Some(500_000_000),
            "too close: the last rate"
        );
        assert_eq!(
            rates.rate("a", at(30), 0),
            None,
            "a counter that went back makes no rate"
        );
    }

    #[test]
    fn reads_interfaces() {
        let text = "Inter-|   Receive\n face |bytes packets errs\n    lo: 1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n  \
                    eth0: 10 1 3 0 0 0 0 0 20 1 4 0 0 0 0 0\n";
        let list = interfaces(text);
        assert_eq!(list.len(), 1);
        assert_eq!(
            (&list[0]["rxBytes"], &list[0]["txBytes"], &list[0]["txErrors"]),
            (&json!(10), &json!(20), &json!(4))
        );
    }
}
