//! Running a test on a cluster, and telling what happened when it fails.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cluster::{Cluster, ClusterBuilder};
use crate::lab::Lab;
use crate::node::Node;
use crate::{binary, cgroup};

/// Lines of each node's log that go into the failure message.
const TAIL_LINES: usize = 60;

/// Runs a test on a cluster. A failure carries the ends of all logs and says
/// where the whole logs are kept.
pub fn on_cluster(
    name: &str,
    builder: ClusterBuilder,
    body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>,
) {
    run(async {
        let cluster = match builder.start().await {
            Ok(cluster) => cluster,
            Err(error) => return Err(error),
        };
        let outcome = guarded(body(&cluster)).await;
        let extra = match &outcome {
            Ok(()) => String::new(),
            Err(_) => overview(&cluster).await,
        };
        let nodes = cluster.lab.nodes();
        let result = outcome.map_err(|error| with_logs(anyhow::anyhow!("{error:#}\n{extra}"), nodes, name));
        finish(&cluster.lab.name.clone(), cluster, result)
    });
}

/// Runs a test on a lab without a cluster.
pub fn on_lab(name: &str, body: impl AsyncFnOnce(&mut Lab) -> anyhow::Result<()>) {
    run(async {
        let mut lab = Lab::new().await?;
        let outcome = guarded(body(&mut lab)).await;
        let result = outcome.map_err(|error| with_logs(error, lab.nodes(), name));
        finish(&lab.name.clone(), lab, result)
    });
}

fn run(test: impl Future<Output = anyhow::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let outcome = runtime.block_on(test);
        runtime.shutdown_background();
        outcome
    });
    if let Err(error) = outcome {
        panic!("{error:#}");
    }
}

/// Turns a panic into an error, so that clean-up and logs follow.
async fn guarded(body: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    match AssertUnwindSafe(body).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(anyhow::anyhow!(
                "{}",
                text.unwrap_or_else(|| "the test panicked".to_owned())
            ))
        }
    }
}

/// Takes everything down and checks that it is down: also a test.
fn finish<T>(name: &str, lab: T, result: anyhow::Result<()>) -> anyhow::Result<()> {
    drop(lab);
    result?;
    let left = cgroup::with_prefix(name);
    anyhow::ensure!(left.is_empty(), "control groups are left: {left:?}");
    Ok(())
}

/// What the cluster looks like from above.
async fn overview(cluster: &Cluster) -> String {
    let mut text = String::new();
    for args in [
        &["get", "nodes,pods,services,endpointslices", "-A", "-o", "wide"][..],
        &["get", "events", "-A"],
    ] {
        let answer = match cluster.kubectl_raw(args, None).await {
            Ok(output) => format!("{}{}", output.stdout, output.stderr),
            Err(error) => format!("{error:#}"),
        };
        text.push_str(&format!("--- kubectl {}\n{answer}", args.join(" ")));
    }
    text
}

/// Adds the ends of all nodes' logs and keeps the whole ones in a folder.
pub fn with_logs(error: anyhow::Error, nodes: &[Arc<Node>], name: &str) -> anyhow::Error {
    let mut text = format!("{error:#}\n");
    for node in nodes {
        text.push_str(&format!(
            "--- skiff on {}\n{}\n",
            node.name,
            node.log_tail(TAIL_LINES)
        ));
    }
    match keep(nodes, name) {
        Ok(folder) => text.push_str(&format!("--- whole logs: {}\n", folder.display())),
        Err(error) => text.push_str(&format!("--- logs not kept: {error:#}\n")),
    }
    anyhow::anyhow!("{text}")
}

fn keep(nodes: &[Arc<Node>], name: &str) -> anyhow::Result<PathBuf> {
    let folder = binary::cache_folder()?.join("failed").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    for node in nodes {
        for file in node.log_files().iter().filter(|file| file.exists()) {
            let own = file.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(file, folder.join(format!("{}-{own}", node.name)))?;
        }
        copy_folder(
            &node.folder.join("log"),
            &folder.join(format!("{}-log", node.name)),
        );
    }
    Ok(folder)
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = std::fs::create_dir_all(to);
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => copy_folder(&source, &target),
            Ok(kind) if kind.is_file() => drop(std::fs::copy(&source, &target)),
            _ => {}
        }
    }
}

/// A pod in a few words: phase and what its containers wait for.
pub fn brief(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let mut text = format!(
        "{} {}",
        pod.name_any(),
        status.phase.unwrap_or_else(|| "without phase".to_owned())
    );
    for container in status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
    {
        let state = container.state.clone().unwrap_or_default();
        let why = match (state.waiting, state.terminated) {
            (Some(waiting), _) => format!(
                "{} {}",
                waiting.reason.unwrap_or_default(),
                waiting.message.unwrap_or_default()
            ),
            (_, Some(ended)) => format!("{} {}", ended.reason.unwrap_or_default(), ended.exit_code),
            _ => continue,
        };
        text.push_str(&format!(" [{}: {}]", container.name, why.trim()));
    }
    text
}
