//! How a node is: the conditions, as a pure function of measurements.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};

use crate::pod::status::api_time;

/// Less free memory than this is pressure.
pub const MEMORY_MIN_BYTES: u64 = 100 << 20;
/// Less free space than this share of the disk is pressure.
pub const DISK_MIN_PERCENT: u64 = 5;
/// Fewer free inodes than this share is pressure.
pub const INODES_MIN_PERCENT: u64 = 5;
/// Fewer free process ids than this share is pressure.
pub const PIDS_MIN_PERCENT: u64 = 5;

/// A used-up thing: how much is free and how much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Free.
    pub free: u64,
    /// In all; 0 when unknown.
    pub total: u64,
}

impl Share {
    fn below(self, percent: u64) -> bool {
        self.total > 0 && u128::from(self.free) * 100 < u128::from(self.total) * u128::from(percent)
    }
}

/// Measurements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    /// The runtime answers.
    pub runtime: bool,
    /// The pod network works.
    pub network: bool,
    /// Bytes of memory that could be used; `None` when unknown.
    pub memory_available: Option<u64>,
    /// Bytes and inodes of the disk that holds pods.
    pub disk: (Share, Share),
    /// Process ids.
    pub pids: Share,
}

/// The conditions of a node: this kubelet's own, then those of others as they are.
pub fn conditions(health: &Health, old: &[NodeCondition], now: SystemTime) -> Vec<NodeCondition> {
    let memory = health
        .memory_available
        .is_some_and(|free| free < MEMORY_MIN_BYTES);
    let disk = health.disk.0.below(DISK_MIN_PERCENT) || health.disk.1.below(INODES_MIN_PERCENT);
    let pids = health.pids.below(PIDS_MIN_PERCENT);
    let pressure = |yes: bool, bad: (&'static str, &'static str), good: (&'static str, &'static str)| {
        if yes {
            ("True", bad.0, bad.1)
        } else {
            ("False", good.0, good.1)
        }
    };
    let ready = match (health.runtime, health.network) {
        (true, true) => (
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        (false, _) => ("False", "KubeletNotReady", "container runtime is down".to_owned()),
        (true, false) => (
            "False",
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
             message:Network plugin returns error: pod network is not initialized"
                .to_owned(),
        ),
    };
    let own = [
        (
            "MemoryPressure",
            pressure(
                memory,
                (
                    "KubeletHasInsufficientMemory",
                    "kubelet has insufficient memory available",
                ),
                (
                    "KubeletHasSufficientMemory",
                    "kubelet has sufficient memory available",
                ),
            ),
        ),
        (
            "DiskPressure",
            pressure(
                disk,
                ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ),
        ),
        (
            "PIDPressure",
            pressure(
                pids,
                (
                    "KubeletHasInsufficientPID",
                    "kubelet has insufficient PID available",
                ),
                ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            ),
        ),
    ];
    let mut list: Vec<NodeCondition> = own
        .into_iter()
        .map(|(type_, (status, reason, message))| condition(type_, status, reason, message, old, now))
        .collect();
    list.push(condition("Ready", ready.0, ready.1, &ready.2, old, now));
    let foreign: Vec<NodeCondition> = old
        .iter()
        .filter(|condition| !list.iter().any(|own| own.type_ == condition.type_))
        .cloned()
        .collect();
    list.extend(foreign);
    list
}

fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    old: &[NodeCondition],
    now: SystemTime,
) -> NodeCondition {
    let since = old
        .iter()
        .find(|old| old.type_ == type_ && old.status == status)
        .and_then(|old| old.last_transition_time.clone());
    NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_heartbeat_time: Some(api_time(now)),
        last_transition_time: Some(since.unwrap_or_else(|| api_time(now))),
    }
}

/// Whether two statuses say the same in everything this kubelet writes, whenever they were made.
pub fn same(old: &NodeStatus, new: &NodeStatus) -> bool {
    let conditions = |status: &NodeStatus| {
        let mut list = status.conditions.clone().unwrap_or_default();
        for condition in &mut list {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        list.sort_by(|a, b| a.type_.cmp(&b.type_));
        list
    };
    old.addresses == new.addresses
        && old.capacity == new.capacity
        && old.allocatable == new.allocatable
        && old.daemon_endpoints == new.daemon_endpoints
        && old.node_info == new.node_info
        && old.images.as_deref().unwrap_or_default() == new.images.as_deref().unwrap_or_default()
        && conditions(old) == conditions(new)
}

/// Whether a status says that the node is ready.
pub fn is_ready(status: &NodeStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn measurements_become_conditions() {
        let fine = Health {
            runtime: true,
            network: true,
            memory_available: Some(1 << 30),
            disk: (Share { free: 50, total: 100 }, Share { free: 50, total: 100 }),
            pids: Share {
                free: 900,
                total: 1000,
            },
        };
        let table = [
            (
                fine,
                "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=True",
            ),
            (
                Health {
                    runtime: false,
                    ..fine
                },
                "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=False",
            ),
            (
                Health {
                    network: false,
                    ..fine
                },
                "MemoryPressure=False DiskPressure=False PIDPressure=False Ready=False",
            ),
            (
                Health {
                    memory_available: Some(1),
                    ..fine
                },
                "MemoryPressure=True DiskPressure=False PIDPressure=False Ready=True",
            ),
            (
                Health {
                    disk: (fine.disk.0, Share { free: 4, total: 100 }),
                    ..fine
                },
                "MemoryPressure=False DiskPressure=True PIDPressure=False Ready=True",
            ),
            (
                Health {
                    pids: Share { free: 1, total: 100 },
                    ..fine
                },
                "MemoryPressure=False DiskPressure=False PIDPressure=True Ready=True",
            ),
        ];
        for (health, expected) in table {
            let list = conditions(&health, &[], SystemTime::UNIX_EPOCH);
            let text: Vec<String> = list.iter().map(|c| format!("{}={}", c.type_, c.status)).collect();
            assert_eq!(text.join(" "), expected);
        }
    }

    #[test]
    fn transitions_and_foreign_conditions_are_kept() {
        let health = Health {
            runtime: true,
            network: true,
            ..Health::default()
        };
        let mut first = conditions(&health, &[], SystemTime::UNIX_EPOCH);
        first.push(NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..Default::default()
        });
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        let second = conditions(&health, &first, later);
        let ready = second.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.last_transition_time, Some(api_time(SystemTime::UNIX_EPOCH)));
        assert_eq!(ready.last_heartbeat_time, Some(api_time(later)));
        assert!(second.iter().any(|c| c.type_ == "NetworkUnavailable"));
        let status = |list: &[NodeCondition]| NodeStatus {
            conditions: Some(list.to_vec()),
            ..Default::default()
        };
        assert!(same(&status(&first), &status(&second)));
        let third = conditions(
            &Health {
                runtime: false,
                ..health
            },
            &second,
            later,
        );
        assert!(!same(&status(&second), &status(&third)));
    }
}
