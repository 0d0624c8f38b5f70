//! The store as a process: killed while it writes, and on a disk that is
//! really full. Each test runs itself again as the child that suffers.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use skiff_store::{CommitError, Options, Store, Txn};

/// Where the child works; a test that finds it set is the child.
const CHILD: &str = "SKIFF_STORE_TEST_DIR";
const ROUNDS: usize = 8;

fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Small, so that segments and checkpoints are in the way of the kill.
fn options() -> Options {
    Options {
        segment_bytes: 64 << 10,
        checkpoint_bytes: 128 << 10,
        ..Options::default()
    }
}

#[test]
fn kill_nine_in_a_storm_of_writes_loses_nothing_acknowledged() {
    if let Some(dir) = child_dir() {
        return runtime().block_on(storm(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut last_revision = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "kill_nine_in_a_storm_of_writes_loses_nothing_acknowledged",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut count = 0;
        while let Some(Ok(line)) = lines.next() {
            let words: Vec<&str> = line.split(' ').collect();
            if let ["ack", key, revision] = words[..] {
                let revision: u64 = revision.parse().unwrap();
                assert!(
                    revision > last_revision,
                    "a revision of an earlier life is used again"
                );
                assert!(
                    acknowledged.insert(key.to_owned(), revision).is_none(),
                    "{key} is written once"
                );
                count += 1;
                if count == 300 + round * 37 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(count >= 300, "the child ended before it was killed");
        last_revision = *acknowledged.values().max().unwrap();

        let store = Store::open(dir.path(), options()).unwrap();
        assert!(store.revision() >= last_revision);
        for (key, revision) in &acknowledged {
            let entry = store
                .get(key)
                .unwrap_or_else(|| panic!("{key} was acknowledged and is lost"));
            assert_eq!(entry.mod_revision, *revision);
            assert_eq!(entry.value, format!("{key} {revision}"));
        }
        runtime().block_on(store.close());
    }
}

/// Writes until it is killed; says so after each acknowledgement.
async fn storm(dir: &Path) {
    let store = Store::open(dir, options()).unwrap();
    let life = store.revision();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16 {
        let store = store.clone();
        tasks.spawn(async move {
            for i in 0.. {
                let key = format!("/storm/{life}/{task}/{i}");
                let text = format!("{key} ");
                let value = skiff_store::Value {
                    revision_at: Some(text.len()),
                    bytes: text.into(),
                };
                let revision = store.commit(Txn::put(key.clone(), value)).await.unwrap();
                let line = format!("ack {key} {revision}\n");
                if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

#[test]
fn a_disk_that_is_really_full_refuses_writes_and_takes_them_again() {
    if let Some(dir) = child_dir() {
        return runtime().block_on(fill(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    // A file system of its own in a mount namespace of its own: gone with the child.
    let script = format!("mount -t tmpfs -o size=1m tmpfs \"${CHILD}\" && exec \"$0\" \"$@\"");
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args([
            "a_disk_that_is_really_full_refuses_writes_and_takes_them_again",
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "the child failed (it needs root for its mount)");
}

async fn fill(dir: &Path) {
    let db = dir.join("db");
    let store = Store::open(&db, options()).unwrap();
    let mut written = 0;
    let error = loop {
        match store
            .commit(Txn::put(format!("/k/{written}"), vec![7; 10_000]))
            .await
        {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1_000, "the disk never fills");
    };
    assert!(matches!(error, CommitError::Full), "{error}");
    assert!(written > 10);
    let before = store.revision();
    for _ in 0..5 {
        let error = store
            .commit(Txn::put("/more", vec![7; 200_000]))
            .await
            .unwrap_err();
        assert!(matches!(error, CommitError::Full), "{error}");
    }
    assert_eq!(
        (store.snapshot().count("/k/"), store.revision()),
        (written, before)
    );

    let grown = Command::new("mount")
        .args(["-o", "remount,size=16m"])
        .arg(dir)
        .status()
        .unwrap();
    assert!(grown.success());
    for i in 0..200 {
        store
            .commit(Txn::put(format!("/after/{i}"), vec![7; 10_000]))
            .await
            .unwrap();
    }
    store.close().await;
    let store = Store::open(&db, options()).unwrap();
    assert_eq!(
        (store.snapshot().count("/k/"), store.snapshot().count("/after/")),
        (written, 200)
    );
    assert!(store.get("/more").is_none(), "a refused write does not come back");
    store.close().await;
}
