//! `e2e/bench store`: the state store beside the raw sync rate of the same
//! directory, in the same minute. `TMPDIR` says which disk is measured.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::StreamExt;
use parking_lot::Mutex;
use skiff_store::{Op, Options, Store, Txn};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Cost, median};

/// An object as clusters have them.
const OBJECT: usize = 2_048;
/// For each rate.
const PERIOD: Duration = Duration::from_secs(3);
/// Different keys of a writer: a cluster updates what it has.
const KEYS: u64 = 100;
const WATCHERS: usize = 1_000;
/// Commits whose way to the watchers is timed.
const WATCHED: usize = 200;
const RANGED: usize = 10_000;
const OPENED: usize = 100_000;
/// Objects in one transaction where only the result is measured.
const BATCH: usize = 500;

fn row(name: &str, value: &str, aim: &str) {
    println!("{name:<44} {value:>16}  {aim}");
}

fn own() -> anyhow::Result<Cost> {
    Cost::of(i32::try_from(std::process::id())?)
}

/// Measures and prints everything.
pub async fn run() -> anyhow::Result<()> {
    let memory = memory().await?;
    let dir = tempfile::tempdir()?;
    println!("store, {OBJECT} byte objects, in {}", dir.path().display());
    let raw = raw(&dir.path().join("raw"))?;
    row("write and fdatasync, nothing else", &format!("{raw:.0} /s"), "");
    for (writers, aim) in [(1, Some(0.8)), (8, None), (64, Some(20.0))] {
        let (rate, written) = commits(&dir.path().join(format!("store-{writers}")), writers).await?;
        let value = format!("{rate:.0} /s");
        let aim = aim.map(|aim| format!(", aim: {aim}")).unwrap_or_default();
        row(
            &format!("commits, {writers} writers"),
            &value,
            &format!("{:.2} of raw{aim}", rate / raw),
        );
        row("  written per commit", &format!("{written:.0} bytes"), "");
    }
    watches(&dir.path().join("watched")).await?;
    ranges(&dir.path().join("large")).await?;
    row(
        "memory of 10,000 objects, of their bytes",
        &format!("{memory:.2}"),
        "aim: 1.5",
    );
    opening(&dir.path().join("large")).await
}

/// Resident memory that objects take, as a multiple of their bytes.
async fn memory() -> anyhow::Result<f64> {
    let store = Store::memory();
    store.commit(Txn::put("/warm", vec![0; OBJECT])).await?;
    let before = own()?.rss;
    for number in 0..RANGED {
        store
            .commit(Txn::put(
                format!("/registry/pods/default/pod-{number}"),
                vec![1; OBJECT],
            ))
            .await?;
    }
    let after = own()?.rss;
    store.close().await;
    Ok(after.saturating_sub(before) as f64 / (RANGED * OBJECT) as f64)
}

fn raw(path: &Path) -> anyhow::Result<f64> {
    let mut file = File::create(path)?;
    let (begin, mut count) = (Instant::now(), 0_u32);
    while begin.elapsed() < PERIOD {
        file.write_all(&[0x5a; OBJECT])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// Strict commits a second, and bytes written to the disk for each.
async fn commits(dir: &Path, writers: u64) -> anyhow::Result<(f64, f64)> {
    let store = Store::open(dir, Options::default())?;
    let before = own()?.written;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            let mut count = 0_u64;
            while begin.elapsed() < PERIOD {
                let key = format!("/registry/pods/{writer}/{}", count % KEYS);
                store.commit(Txn::put(key, vec![count as u8; OBJECT])).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done??;
    }
    let took = begin.elapsed().as_secs_f64();
    store.close().await;
    ensure!(count > 0, "nothing was committed");
    Ok((
        count as f64 / took,
        (own()?.written - before) as f64 / count as f64,
    ))
}

/// From the request of a commit to its event at each of many watchers.
async fn watches(dir: &Path) -> anyhow::Result<()> {
    let store = Store::open(dir, Options::default())?;
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let first = store.revision() + 1;
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut watch = store.watch("/registry/pods/", None).context("a new watch")?;
        let asked = asked.clone();
        watchers.spawn(async move {
            let mut delays = Vec::with_capacity(WATCHED);
            while delays.len() < WATCHED {
                let event = watch.next().await.context("the watch ended")??;
                let arrived = Instant::now();
                let begin = asked.lock()[(event.revision - first) as usize];
                delays.push((arrived - begin).as_secs_f64());
            }
            anyhow::Ok(delays)
        });
    }
    let mut answers = Vec::new();
    for number in 0..WATCHED {
        let begin = Instant::now();
        asked.lock().push(begin);
        store
            .commit(Txn::put(format!("/registry/pods/{number}"), vec![2; OBJECT]))
            .await?;
        answers.push(begin.elapsed().as_secs_f64());
        // One at a time: the delay is the question, not the rate.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut delays = Vec::new();
    while let Some(done) = watchers.join_next().await {
        delays.extend(done??);
    }
    store.close().await;
    delays.sort_by(f64::total_cmp);
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize] * 1e3;
    row(
        "commit to answer, p50",
        &format!("{:.2} ms", median(answers) * 1e3),
        "",
    );
    row(
        "commit to event, 1,000 watchers, p50",
        &format!("{:.2} ms", at(0.5)),
        "",
    );
    row(
        "commit to event, 1,000 watchers, p99",
        &format!("{:.2} ms", at(0.99)),
        "",
    );
    Ok(())
}

async fn fill(store: &Store, from: usize, to: usize) -> anyhow::Result<()> {
    for start in (from..to).step_by(BATCH) {
        let put = |number| Op::Put {
            key: format!("/registry/pods/default/pod-{number:06}"),
            value: vec![number as u8; OBJECT].into(),
        };
        store
            .commit(Txn {
                ops: (start..to.min(start + BATCH)).map(put).collect(),
                ..Txn::default()
            })
            .await?;
    }
    Ok(())
}

async fn ranges(dir: &Path) -> anyhow::Result<()> {
    let store = Store::open(dir, Options::default())?;
    fill(&store, 0, RANGED).await?;
    let mut times = Vec::new();
    for _ in 0..21 {
        let begin = Instant::now();
        let snapshot = store.snapshot();
        let mut out = Vec::with_capacity(RANGED * OBJECT);
        for entry in snapshot.range("/registry/pods/", None) {
            out.extend_from_slice(&entry.value);
        }
        times.push(begin.elapsed().as_secs_f64());
        ensure!(out.len() == RANGED * OBJECT, "the range is not complete");
    }
    row(
        "range of 10,000, copied out",
        &format!("{:.2} ms", median(times) * 1e3),
        "",
    );
    store.close().await;
    Ok(())
}

async fn opening(dir: &Path) -> anyhow::Result<()> {
    let store = Store::open(dir, Options::default())?;
    fill(&store, RANGED, OPENED).await?;
    store.close().await;
    drop(store);
    let begin = Instant::now();
    let store = Store::open(dir, Options::default())?;
    let took = begin.elapsed().as_secs_f64();
    ensure!(
        store.snapshot().len() == OPENED,
        "{} objects came back",
        store.snapshot().len()
    );
    row("open with 100,000 objects", &format!("{took:.2} s"), "aim: 1 s");
    store.close().await;
    Ok(())
}
