//! kill -9 of the server in the middle of writes: what was acknowledged is
//! there, once, and versions only grow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use skiff_e2e::Cluster;
use skiff_e2e::scenario::on_cluster;
use tokio::sync::watch;

const ROUNDS: u64 = 20;
const WRITERS: u64 = 8;
/// Acknowledged writes of a round before the kill, varied so that it falls
/// into different moments of the store's life.
const ACKNOWLEDGED: std::ops::Range<u64> = 30..200;

/// Uid and version of each acknowledged object.
type Acknowledged = BTreeMap<String, (String, u64)>;

#[test]
fn nothing_acknowledged_is_lost() {
    let builder = Cluster::new().servers(1).control_plane_only();
    on_cluster("storm", builder, async |cluster| {
        let mut known = Acknowledged::new();
        let mut highest = 0;
        for round in 0..ROUNDS {
            let fresh = storm(cluster, round, highest)
                .await
                .with_context(|| format!("round {round}"))?;
            cluster.server.start().await?;
            known.extend(fresh);
            highest = check(&cluster.client, &known, highest)
                .await
                .with_context(|| format!("after round {round}"))?;
        }
        println!(
            "{} writes acknowledged in {ROUNDS} rounds, none lost",
            known.len()
        );
        Ok(())
    });
}

/// Writes until the kill; returns what was acknowledged.
async fn storm(cluster: &Cluster, round: u64, highest: u64) -> anyhow::Result<Acknowledged> {
    let acknowledged = Arc::new(Mutex::new(Acknowledged::new()));
    let (count, mut counted) = watch::channel(0u64);
    let count = Arc::new(count);
    let refused = Arc::new(AtomicU64::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let api: Api<ConfigMap> = cluster.api();
        let (acknowledged, count, refused) = (acknowledged.clone(), count.clone(), refused.clone());
        writers.spawn(async move {
            let mut last = highest;
            for number in 0.. {
                let name = format!("storm-{round}-{writer}-{number}");
                let Ok(created) = api.create(&PostParams::default(), &object(&name, number)).await else {
                    refused.fetch_add(1, Ordering::Relaxed);
                    break;
                };
                let version = version(&created)?;
                ensure!(version > last, "{name} got version {version}, after {last}");
                last = version;
                acknowledged
                    .lock()
                    .insert(name, (created.uid().unwrap_or_default(), version));
                count.send_modify(|count| *count += 1);
            }
            Ok(())
        });
    }
    let target = rand::random_range(ACKNOWLEDGED);
    let reached = counted.wait_for(|count| *count >= target);
    tokio::time::timeout(skiff_e2e::access::PATIENCE, reached)
        .await
        .context("the writers are stuck")??;
    cluster.server.kill().await?;
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    ensure!(
        refused.load(Ordering::Relaxed) == WRITERS,
        "a writer ended before the kill"
    );
    let result = acknowledged.lock().clone();
    Ok(result)
}

fn object(name: &str, number: u64) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.meta_mut().name = Some(name.to_owned());
    // From small to larger than a page, so that records cross pages.
    let text = "x".repeat(usize::try_from(number % 16).unwrap_or_default() * 512);
    object.data = Some([("text".to_owned(), text), ("name".to_owned(), name.to_owned())].into());
    object
}

fn version(object: &ConfigMap) -> anyhow::Result<u64> {
    let version = object.resource_version().context("no version")?;
    version.parse().with_context(|| format!("version {version:?}"))
}

/// Everything known is there as it was acknowledged; returns the new highest version.
async fn check(client: &Client, known: &Acknowledged, highest: u64) -> anyhow::Result<u64> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let list = api.list(&ListParams::default()).await?;
    let at: u64 = list
        .metadata
        .resource_version
        .clone()
        .unwrap_or_default()
        .parse()?;
    let (mut names, mut uids) = (BTreeSet::new(), BTreeSet::new());
    for object in &list.items {
        ensure!(
            names.insert(object.name_any()),
            "{} is there twice",
            object.name_any()
        );
        ensure!(
            uids.insert(object.uid()),
            "uid of {} is there twice",
            object.name_any()
        );
        ensure!(
            version(object)? <= at,
            "{} is newer than the list",
            object.name_any()
        );
        if let Some(data) = object.data.as_ref().filter(|data| data.contains_key("name")) {
            ensure!(
                data["name"] == object.name_any(),
                "{} holds another's data",
                object.name_any()
            );
        }
    }
    let newest = known
        .values()
        .map(|(_, version)| *version)
        .max()
        .unwrap_or_default();
    ensure!(
        at >= newest && at >= highest,
        "versions went back: the list is at {at}, {newest} was acknowledged, {highest} was seen"
    );
    let by_name: BTreeMap<String, &ConfigMap> = list
        .items
        .iter()
        .map(|object| (object.name_any(), object))
        .collect();
    let mut lost = Vec::new();
    for (name, (uid, acknowledged)) in known {
        match by_name.get(name) {
            None => lost.push(name.clone()),
            Some(object) => {
                ensure!(object.uid().as_ref() == Some(uid), "{name} was made again");
                ensure!(
                    version(object)? == *acknowledged,
                    "{name} has another version than acknowledged"
                );
            }
        }
    }
    ensure!(
        lost.is_empty(),
        "{} acknowledged objects are lost: {lost:?}",
        lost.len()
    );
    Ok(at)
}
