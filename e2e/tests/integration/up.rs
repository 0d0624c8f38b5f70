//! The harness itself: a cluster comes up fast, and goes away without a trace.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, ensure};
use skiff_e2e::scenario::{on_cluster, on_lab};
use skiff_e2e::{Cluster, cgroup};

/// What a test run can afford for each cluster.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn two_nodes_are_ready_within_ten_seconds() {
    on_cluster("up", Cluster::new().servers(1).agents(1), async |cluster| {
        let nodes = cluster.kubectl(&["get", "nodes"]).await?;
        assert_eq!(nodes.matches(" Ready ").count(), 2, "{nodes}");
        assert!(cluster.took < LIMIT, "it took {:?}", cluster.took);
        Ok(())
    });
}

/// Links and mounts of this process's own namespaces.
fn surroundings() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut lines: Vec<String> = read("/proc/self/mountinfo").lines().map(str::to_owned).collect();
    lines.extend(
        read("/proc/net/dev")
            .lines()
            .filter_map(|line| Some(line.split_once(':')?.0.to_owned())),
    );
    lines.sort();
    // Tests of other crates come and go with theirs.
    lines.retain(|line| line.contains("skiff-e2e") || !line.contains(" - nsfs "));
    lines
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let before = surroundings();
    let seen = Mutex::new(None);
    let builder = Cluster::new().servers(1).agents(1);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        on_cluster("panic", builder, async |cluster| {
            *seen.lock().unwrap() = Some((cluster.lab.name.clone(), cluster.lab.folder.clone()));
            panic!("on purpose");
        });
    }));
    let panic = outcome.expect_err("it panicked");
    let text = panic.downcast_ref::<String>().expect("a text");
    assert!(
        text.starts_with("on purpose") && text.contains("--- skiff on agent-1"),
        "{text}"
    );
    let (name, folder) = seen.into_inner().unwrap().expect("the cluster was up");
    assert!(!folder.exists(), "{} is left", folder.display());
    assert!(cgroup::with_prefix(&name).is_empty(), "control groups are left");
    assert_eq!(surroundings(), before);
}

#[test]
fn what_a_killed_run_left_is_swept() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let up = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("takes everything down"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(up, "the lab did not come up");
    let left: Vec<String> = cgroup::with_prefix("skiff-e2e-").into_iter().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!cgroup::members(&left[0]).is_empty(), "nothing is left to sweep");
    on_lab("sweep", async |lab| {
        ensure!(lab.name != left[0]);
        ensure!(
            cgroup::members(&left[0]).is_empty(),
            "processes of the killed run are left"
        );
        ensure!(
            cgroup::with_prefix(&left[0]).is_empty(),
            "control groups of the killed run are left"
        );
        let folder = lab.folder.with_file_name(&left[0]);
        ensure!(!folder.exists(), "{} is left", folder.display());
        lab.on_lan("ip", &["link"])
            .await?
            .ok()
            .context("the new lab works")
            .map(drop)
    });
}
