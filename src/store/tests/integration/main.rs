//! The store as a process: killed while it writes, and on a disk that is
//! really full. Each test runs itself again as the child that suffers.

#[path = "../history/mod.rs"]
mod history;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use history::check::Checker;
use history::clients::{Dice, Life, Sink};
use history::{List, Record};
use skiff_store::{CommitError, Options, Store, Txn};

/// Where the child works; a test that finds it set is the child.
const CHILD: &str = "SKIFF_STORE_TEST_DIR";
const LIFE: &str = "SKIFF_STORE_TEST_LIFE";
const RESUME: &str = "SKIFF_STORE_TEST_RESUME";
/// Before each record of a child: its test harness prints too.
const RECORD: &str = "record ";
/// Kills in the normal run; `SKIFF_STORE_KILLS` asks for more.
const KILLS: u64 = 20;

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
fn kill_nine_at_any_moment_contradicts_no_history() {
    const NAME: &str = "kill_nine_at_any_moment_contradicts_no_history";
    if let Some(dir) = child_dir() {
        return runtime().block_on(live(&dir));
    }
    let kills = std::env::var("SKIFF_STORE_KILLS").map_or(KILLS, |count| count.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(0x5eed);
    let mut checker = Checker::default();
    let mut before: Option<Vec<Record>> = None;
    for life in 0..kills {
        let resume = before.iter().flatten().rev().find_map(|record| match record {
            Record::Progress { revision, .. } => Some(*revision),
            _ => None,
        });
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture", "--quiet"])
            .env(CHILD, dir.path())
            .env(LIFE, life.to_string())
            .env(
                RESUME,
                resume.map(|revision| revision.to_string()).unwrap_or_default(),
            )
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut records = Vec::new();
        let until = 1 + dice.below(1_500) as usize;
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // What is in the pipe when it dies has happened too, but for a line that was not finished.
        while out.read_line(&mut line).unwrap() > 0 {
            if let Some(json) = line.strip_prefix(RECORD).and_then(|line| line.strip_suffix('\n')) {
                records.push(serde_json::from_str::<Record>(json).unwrap());
                if records.len() == until {
                    child.kill().unwrap();
                }
            }
            line.clear();
        }
        child.wait().unwrap();
        assert!(records.len() >= until, "life {life} ended before it was killed");
        let Record::Up(up) = &records[0] else {
            panic!("{:?}", records[0])
        };
        if let Some(before) = before.replace(records.clone()) {
            checker
                .life(&before, up, false)
                .unwrap_or_else(|what| panic!("life {}: {what}", life - 1));
        }
    }
    let store = Store::open(dir.path(), options()).unwrap();
    let last = List::of(&store.snapshot(), "");
    checker.life(&before.unwrap(), &last, false).unwrap();
    runtime().block_on(store.close());
    println!(
        "{kills} kills, {} operations, {} events",
        checker.operations, checker.events
    );
    assert!(
        checker.operations > kills as usize * 50,
        "the clients hardly did anything"
    );
}

/// Lives until it is killed; tells what happens.
async fn live(dir: &Path) {
    let variable = |name| std::env::var(name).unwrap();
    let sink: Sink = Arc::new(|record| {
        let line = format!("{RECORD}{}\n", serde_json::to_string(&record).unwrap());
        // A parent that is gone has no more use for this.
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    });
    let store = Store::open(dir, options()).unwrap();
    let number = variable(LIFE).parse().unwrap();
    Life {
        store,
        sink,
        number,
        resume: variable(RESUME).parse().ok(),
        writes: 20_000,
    }
    .run()
    .await;
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
