//! kill -9 of skiff disturbs nothing that runs.

use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, LogParams};
use skiff_e2e::access::{PATIENCE, retry};
use skiff_e2e::scenario::on_cluster;
use skiff_e2e::{Cluster, Node};

use crate::support::{IDLE, identities, pair, pod_ip, script_pod, web, web_addresses};

/// Answers a client must get while skiff is dead, to prove that it asked.
const ANSWERS_WHILE_DEAD: u64 = 100;

/// Asks without a pause; keeps two numbers in a file: answered, failed. The
/// service's address is used, not its name: DNS is answered by skiff itself.
fn hammer(url: &str) -> String {
    format!(
        "ok=0; bad=0
         while :; do
           if timeout 5 wget -q -O /dev/null {url}; then ok=$((ok+1)); else bad=$((bad+1)); fi
           echo $ok $bad >/tmp/new; mv /tmp/new /tmp/count-hammer
         done"
    )
}

/// Reads the numbers past skiff and the API, which may be dead.
fn count(node: &Node) -> anyhow::Result<(u64, u64)> {
    let pid = node.find_process("/tmp/count-hammer")?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/root/tmp/count-hammer"))
        .context("the client has not begun")?;
    let (ok, bad) = text.trim().split_once(' ').with_context(|| format!("{text:?}"))?;
    Ok((ok.parse()?, bad.parse()?))
}

async fn more_answers(node: &Node) -> anyhow::Result<()> {
    let begin = retry(PATIENCE, async || count(node)).await?.0;
    retry(PATIENCE, async || {
        let (ok, bad) = count(node)?;
        ensure!(bad == 0, "{bad} requests failed, {ok} were answered");
        ensure!(ok >= begin + ANSWERS_WHILE_DEAD, "only {} answers", ok - begin);
        Ok(())
    })
    .await
}

#[test]
fn killing_skiff_disturbs_no_pod() {
    on_cluster("restart", pair().unwrap(), async |cluster| {
        cluster.apply(&web(4)).await?;
        let (cluster_ip, _) = web_addresses(cluster).await?;
        cluster.pods_ready("app=web", 4).await?;
        let url = format!("http://{cluster_ip}/");
        let client = &cluster.agents[0];
        cluster
            .apply(&script_pod("hammer", &client.name, &hammer(&url)))
            .await?;
        cluster.pod_ready("hammer").await?;
        more_answers(client).await?;
        let before = identities(&all_pods(cluster).await?);
        for victim in [cluster.server.clone(), cluster.agents[0].clone()] {
            let stage = format!("kill -9 on {}", victim.name);
            victim.kill().await?;
            more_answers(client)
                .await
                .with_context(|| format!("{stage}, while dead"))?;
            victim.start().await?;
            cluster.ready().await.with_context(|| stage.clone())?;
            more_answers(client)
                .await
                .with_context(|| format!("{stage}, after the restart"))?;
            works_as_before(cluster, &before, &victim)
                .await
                .with_context(|| stage)?;
        }
        let (ok, bad) = count(client)?;
        println!("{ok} requests answered, {bad} failed");
        ensure!(bad == 0, "{bad} of {} requests failed", ok + bad);
        Ok(())
    });
}

async fn all_pods(cluster: &Cluster) -> anyhow::Result<Vec<Pod>> {
    Ok(cluster.api::<Pod>().list(&Default::default()).await?.items)
}

async fn works_as_before(
    cluster: &Cluster,
    before: &std::collections::BTreeMap<String, crate::support::Identity>,
    victim: &Node,
) -> anyhow::Result<()> {
    cluster.pods_ready("app=web", 4).await?;
    let after = identities(&all_pods(cluster).await?);
    ensure!(
        after == *before,
        "pods changed:\nbefore {before:#?}\nafter {after:#?}"
    );
    for name in ["configmap/page", "deployment/web", "service/web"] {
        cluster.kubectl(&["get", name]).await?;
    }
    // A new pod on the node gets an address nobody has, and talks.
    let name = format!("after-{}", victim.name);
    cluster
        .apply(&script_pod(
            &name,
            &victim.name,
            &format!("echo hello from {name}; {IDLE}"),
        ))
        .await?;
    let fresh = cluster.pod_ready(&name).await?;
    let ip = pod_ip(&fresh)?;
    ensure!(
        before.values().all(|(old, _)| old.as_ref() != Some(&ip)),
        "{ip} is used twice"
    );
    let page = retry(PATIENCE, async || {
        crate::support::fetch(cluster, &name, "http://web").await
    })
    .await?;
    ensure!(page == "page one\n", "{page:?}");
    logs_flow(cluster, &name).await?;
    cluster
        .kubectl(&["delete", "pod", &name, "--wait=true"])
        .await
        .map(drop)
}

/// nginx on every node logs requests made after the restart.
async fn logs_flow(cluster: &Cluster, client: &str) -> anyhow::Result<()> {
    let api: Api<Pod> = cluster.api();
    for pod in cluster.pods_ready("app=web", 4).await? {
        let mark = format!("/mark-{client}");
        let url = format!("http://{}{mark}", pod_ip(&pod)?);
        let _ = cluster
            .exec(client, &["timeout", "5", "wget", "-q", "-O", "-", &url])
            .await?;
        let tail = LogParams {
            tail_lines: Some(2000),
            ..LogParams::default()
        };
        retry(Duration::from_secs(10), async || {
            let log = api.logs(&pod.name_any(), &tail).await?;
            ensure!(log.contains(&mark), "{} has not logged {mark}", pod.name_any());
            Ok(())
        })
        .await?;
    }
    Ok(())
}
