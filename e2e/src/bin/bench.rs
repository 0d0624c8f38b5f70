//! `e2e/bench footprint`, `pods` and `store`: what skiff costs, and how fast it
//! is beside the plain tool on the same machine in the same minute.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use serde_json::json;
use skiff_e2e::access::until;
use skiff_e2e::bench::{Cost, median, megabytes, running};
use skiff_e2e::image::BUSYBOX;
use skiff_e2e::{Cluster, Image, Node, binary};
use tokio::time::Instant;

/// How long an idle cluster is watched.
const IDLE: Duration = Duration::from_secs(60);
/// After the start, before the watching: first writes and informers settle.
const SETTLE: Duration = Duration::from_secs(15);
/// Single pods started one after the other.
const SINGLES: usize = 7;
/// Pods started at once.
const CROWD: usize = 50;
/// For the crowd, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("footprint") => footprint().await,
        Some("pods") => pods().await,
        Some("store") => skiff_e2e::bench::store::run().await,
        _ => bail!("which bench? footprint, pods or store"),
    }
}

fn row(name: &str, value: &str, aim: &str) {
    println!("{name:<44} {value:>14}  {aim}");
}

/// What the processes of one node cost.
struct Look {
    skiff: Cost,
    containerd: Cost,
}

impl Look {
    fn at(node: &Node) -> Self {
        let of = |program: &str| Cost::sum(running(node.cgroup_root().trim_start_matches('/'), program));
        Self {
            skiff: of("skiff"),
            containerd: of("containerd"),
        }
    }
}

async fn footprint() -> anyhow::Result<()> {
    let size = std::fs::metadata(binary::skiff()?)?.len();
    // Nodes that ran one file would share its memory, as no two machines do.
    let cluster = Cluster::new()
        .servers(1)
        .agents(1)
        .separate_binaries()
        .start()
        .await?;
    // A server that has been here before, from exec to Ready.
    let restart = time_to_ready(&cluster).await?;
    tokio::time::sleep(SETTLE).await;
    let nodes = cluster.nodes();
    let before: Vec<Look> = nodes.iter().map(|node| Look::at(node)).collect();
    let begin = Instant::now();
    tokio::time::sleep(IDLE).await;
    let seconds = begin.elapsed().as_secs_f64();
    let after: Vec<Look> = nodes.iter().map(|node| Look::at(node)).collect();

    println!("footprint of two nodes without pods; rates over {seconds:.0} s");
    row("binary", &megabytes(size), "");
    for (index, (name, aim)) in [("server with agent", "aim: 100 MB"), ("agent", "aim: 40 MB")]
        .into_iter()
        .enumerate()
    {
        let (old, new) = (&before[index], &after[index]);
        for (who, old, new, aim, idle_aim) in [
            (name.to_owned(), old.skiff, new.skiff, aim, "aim: 1 %"),
            (
                format!("containerd of the {}", nodes[index].name),
                old.containerd,
                new.containerd,
                "",
                "",
            ),
        ] {
            row(&format!("{who}, PSS"), &megabytes(new.pss), aim);
            row(&format!("{who}, RSS"), &megabytes(new.rss), "");
            let idle = new.cpu.saturating_sub(old.cpu).as_secs_f64() / seconds * 100.0;
            row(
                &format!("{who}, idle CPU of a core"),
                &format!("{idle:.2} %"),
                idle_aim,
            );
            let written = new.written.saturating_sub(old.written) as f64 * 60.0 / seconds;
            row(
                &format!("{who}, written in 60 s"),
                &format!("{:.0} kB", written / 1e3),
                "",
            );
        }
    }
    row(
        "two fresh nodes, from nothing to Ready",
        &format!("{:.2} s", cluster.took.as_secs_f64()),
        "aim: 5 s",
    );
    row(
        "server again, from exec to Ready",
        &format!("{restart:.2} s"),
        "aim: 5 s",
    );
    Ok(())
}

async fn time_to_ready(cluster: &Cluster) -> anyhow::Result<f64> {
    cluster.server.stop().await?;
    let begin = Instant::now();
    cluster.server.start().await?;
    cluster.ready().await?;
    Ok(begin.elapsed().as_secs_f64())
}

/// A pod that does nothing and ends when told.
fn pod(name: &str) -> anyhow::Result<Pod> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": "bench"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sleep", "3600"],
            }],
        },
    }))?)
}

async fn running_pods(api: &Api<Pod>, count: usize) -> anyhow::Result<()> {
    let config = watcher::Config::default().labels("app=bench");
    until(api.clone(), config, PATIENCE, |pods| {
        let running = pods
            .iter()
            .filter(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"))
            .count();
        if running == count && pods.len() == count {
            Ok(())
        } else {
            Err(format!("{running} of {} run, {count} wanted", pods.len()))
        }
    })
    .await
}

async fn clear(api: &Api<Pod>) -> anyhow::Result<()> {
    api.delete_collection(
        &DeleteParams::default(),
        &ListParams::default().labels("app=bench"),
    )
    .await?;
    running_pods(api, 0).await
}

/// Starts `count` pods; seconds from the first create to the last Running.
async fn start_pods(api: &Api<Pod>, round: &str, count: usize) -> anyhow::Result<f64> {
    let names: Vec<String> = (0..count)
        .map(|number| format!("bench-{round}-{number}"))
        .collect();
    let begin = Instant::now();
    let creates = names
        .iter()
        .map(async |name| anyhow::Ok(api.create(&PostParams::default(), &pod(name)?).await?.name_any()));
    futures::future::try_join_all(creates).await?;
    running_pods(api, count).await?;
    let took = begin.elapsed().as_secs_f64();
    clear(api).await?;
    Ok(took)
}

/// The same with containerd's own tool, without pods: image, snapshot, task.
async fn start_with_ctr(node: &Node, round: &str, count: usize) -> anyhow::Result<f64> {
    let script = format!(
        "ctr() {{ command ctr -a /run/skiff/containerd/containerd.sock -n bench \"$@\"; }}
         for n in $(seq {count}); do ctr run -d {BUSYBOX} {round}-$n sleep 3600 & done; wait
         ctr task ls | grep -c RUNNING"
    );
    let begin = Instant::now();
    let said = node.sh(&script).await?.ok()?;
    let took = begin.elapsed().as_secs_f64();
    if said.trim() != count.to_string() {
        bail!("ctr started {} of {count} containers", said.trim());
    }
    let clean = format!(
        "ctr() {{ command ctr -a /run/skiff/containerd/containerd.sock -n bench \"$@\"; }}
         for n in $(seq {count}); do (ctr task rm -f {round}-$n; ctr container rm {round}-$n) >/dev/null & done; wait"
    );
    node.sh(&clean).await?.ok()?;
    Ok(took)
}

async fn pods() -> anyhow::Result<()> {
    let cluster = Cluster::new().servers(1).image(Image::busybox()?).start().await?;
    let api: Api<Pod> = cluster.api();
    let archive = cluster.lab.folder.join("ctr.tar");
    Image::busybox()?.write(&archive)?;
    let import = format!(
        "ctr -a /run/skiff/containerd/containerd.sock -n bench images import {}",
        archive.display()
    );
    cluster.server.sh(&import).await?.ok().context("import for ctr")?;
    // The first start of either fills caches.
    start_pods(&api, "warm", 1).await?;
    start_with_ctr(&cluster.server, "warm", 1).await?;
    let (mut own, mut plain) = (Vec::new(), Vec::new());
    for round in 0..SINGLES {
        own.push(start_pods(&api, &format!("one-{round}"), 1).await?);
        plain.push(start_with_ctr(&cluster.server, &format!("one-{round}"), 1).await?);
    }
    let (own, plain) = (median(own), median(plain));
    println!("pods with a local image on one node");
    row(
        "1 pod, create to Running",
        &format!("{:.0} ms", own * 1e3),
        "aim: 500 ms",
    );
    row(
        "1 container with `ctr run`",
        &format!("{:.0} ms", plain * 1e3),
        "",
    );
    row("ratio", &format!("{:.2}", own / plain), "");
    let own = start_pods(&api, "crowd", CROWD).await?;
    let plain = start_with_ctr(&cluster.server, "crowd", CROWD).await?;
    row(
        &format!("{CROWD} pods, create to Running"),
        &format!("{own:.2} s"),
        "",
    );
    row(
        &format!("{CROWD} containers with `ctr run`"),
        &format!("{plain:.2} s"),
        "",
    );
    row("ratio", &format!("{:.2}", own / plain), "");
    Ok(())
}
