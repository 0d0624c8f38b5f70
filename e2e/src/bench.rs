//! Figures of processes, from `/proc`, and how they are written down.

pub mod store;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// What a process costs, summed over its threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Proportional share of memory, bytes.
    pub pss: u64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Processor time since its start.
    pub cpu: Duration,
    /// Bytes it caused to be written to disks since its start.
    pub written: u64,
}

impl Cost {
    /// Reads a process.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| path)
        };
        // SAFETY: sysconf has no preconditions.
        let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let (pss, rss) = memory(&read("smaps_rollup")?);
        let cpu = cpu_ticks(&read("stat")?).context("/proc/PID/stat")?;
        let per_tick = Duration::from_secs(1) / u32::try_from(ticks.max(1))?;
        Ok(Self {
            pss,
            rss,
            cpu: per_tick * u32::try_from(cpu)?,
            written: field(&read("io")?, "write_bytes:"),
        })
    }

    /// The sum over several processes.
    pub fn sum(pids: impl IntoIterator<Item = i32>) -> Self {
        let costs = pids.into_iter().filter_map(|pid| Self::of(pid).ok());
        costs.fold(Self::default(), |sum, cost| Self {
            pss: sum.pss + cost.pss,
            rss: sum.rss + cost.rss,
            cpu: sum.cpu + cost.cpu,
            written: sum.written + cost.written,
        })
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn memory(rollup: &str) -> (u64, u64) {
    (field(rollup, "Pss:") * 1024, field(rollup, "Rss:") * 1024)
}

/// User and system time. The name before them may contain anything, so fields
/// are counted from the last parenthesis.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(number(11)? + number(12)?)
}

/// Processes that run a program, of a lab or of one of its nodes (`LAB/NODE`).
pub fn running(group: &str, program: &str) -> Vec<i32> {
    let name = |pid: &i32| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        Path::new(&exe)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    crate::cgroup::members(group)
        .into_iter()
        .filter(|pid| name(pid) == program)
        .collect()
}

/// Megabytes with one decimal.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_proc() {
        assert_eq!(
            memory("00-ff r--p\nRss:    2048 kB\nPss:    1024 kB\n"),
            (1024 * 1024, 2048 * 1024)
        );
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 70 7 0 0";
        assert_eq!(cpu_ticks(stat), Some(77));
        assert_eq!(field("wchar: 7\nwrite_bytes: 4096\n", "write_bytes:"), 4096);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        let own = Cost::of(i32::try_from(std::process::id()).expect("pid")).expect("own process");
        assert!(own.rss > 0 && own.pss <= own.rss, "{own:?}");
    }
}
