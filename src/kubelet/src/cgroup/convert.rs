//! Resource figures as the kernel's control groups want them. Pure.

use k8s_openapi::api::core::v1::Pod;

use crate::resources::{self, Qos};

/// The smallest value `cpu.shares` takes.
pub const MIN_SHARES: u64 = 2;
/// The largest value `cpu.shares` takes.
pub const MAX_SHARES: u64 = 262_144;
/// Length of a quota period in microseconds: the kernel's default.
pub const QUOTA_PERIOD_US: u64 = 100_000;
/// The smallest quota the kernel accepts, in microseconds.
pub const MIN_QUOTA_US: i64 = 1_000;

/// What one control group is limited to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight, as version 1 shares.
    pub cpu_shares: Option<u64>,
    /// Microseconds of cpu time per period.
    pub cpu_quota_us: Option<i64>,
    /// Bytes of memory.
    pub memory_bytes: Option<i64>,
    /// Number of processes.
    pub pids: Option<i64>,
}

/// Thousandths of a cpu as version 1 shares (1024 a cpu).
pub fn shares(milli_cpu: i64) -> u64 {
    let milli = u64::try_from(milli_cpu).unwrap_or(0);
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// Shares as a version 2 weight: a curve through (2, 1), (1024, 100) and (262144, 10000).
pub fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    if shares == MIN_SHARES {
        return 1;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// Thousandths of a cpu as a quota; `None` for no limit.
pub fn quota(milli_cpu: i64) -> Option<i64> {
    (milli_cpu > 0).then(|| (milli_cpu.saturating_mul(QUOTA_PERIOD_US as i64) / 1000).max(MIN_QUOTA_US))
}

/// The limits of the group that holds a pod's containers.
pub fn pod_limits(pod: &Pod, pids: Option<i64>) -> Limits {
    let cpu_request = resources::pod_request(pod, "cpu");
    let (cpu_limit, cpu_complete) = resources::pod_limit(pod, "cpu");
    let (memory_limit, memory_complete) = resources::pod_limit(pod, "memory");
    let memory = (memory_limit > 0).then_some(memory_limit);
    match resources::qos(pod) {
        Qos::Guaranteed => Limits {
            cpu_shares: Some(shares(cpu_request)),
            cpu_quota_us: quota(cpu_limit),
            memory_bytes: memory,
            pids,
        },
        Qos::Burstable => Limits {
            cpu_shares: Some(shares(cpu_request)),
            cpu_quota_us: if cpu_complete { quota(cpu_limit) } else { None },
            memory_bytes: if memory_complete { memory } else { None },
            pids,
        },
        Qos::BestEffort => Limits {
            cpu_shares: Some(MIN_SHARES),
            cpu_quota_us: None,
            memory_bytes: None,
            pids,
        },
    }
}

/// The limits of the group that holds all burstable pods: their requests added up.
pub fn burstable_limits<'a>(pods: impl Iterator<Item = &'a Pod>) -> Limits {
    let milli = pods
        .filter(|pod| resources::qos(pod) == Qos::Burstable)
        .map(|pod| resources::pod_request(pod, "cpu"))
        .fold(0i64, i64::saturating_add);
    Limits {
        cpu_shares: Some(shares(milli)),
        ..Limits::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures() {
        for (milli, expected) in [
            (0, 2),
            (1, 2),
            (10, 10),
            (500, 512),
            (1000, 1024),
            (1_000_000, 262_144),
        ] {
            assert_eq!(shares(milli), expected, "shares of {milli}m");
        }
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "weight of {shares}");
        }
        for (milli, expected) in [
            (0, None),
            (-1, None),
            (5, Some(1000)),
            (100, Some(10_000)),
            (2000, Some(200_000)),
        ] {
            assert_eq!(quota(milli), expected, "quota of {milli}m");
        }
    }

    #[test]
    fn pods() {
        let pod = |resources: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": resources}})).unwrap()
        };
        let full = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
        let guaranteed = pod_limits(&pod(json!([{"name": "a", "resources": full}])), Some(100));
        assert_eq!(
            guaranteed,
            Limits {
                cpu_shares: Some(512),
                cpu_quota_us: Some(50_000),
                memory_bytes: Some(64 << 20),
                pids: Some(100)
            }
        );
        let burstable = pod_limits(
            &pod(json!([{"name": "a", "resources": full}, {"name": "b"}])),
            None,
        );
        assert_eq!(
            burstable,
            Limits {
                cpu_shares: Some(512),
                ..Limits::default()
            }
        );
        let best = pod_limits(&pod(json!([{"name": "a"}])), None);
        assert_eq!(
            best,
            Limits {
                cpu_shares: Some(2),
                ..Limits::default()
            }
        );
    }
}
