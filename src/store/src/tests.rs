//! The store against its promises: crashes, failing disks, restarts.

mod power_cut;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use skiff_base::clock::ManualClock;

use crate::disk::{self, Hook, Step};
use crate::*;

/// A disk that can be made to fail and remembers what it has promised.
#[derive(Default)]
struct Fake {
    failing: Mutex<Vec<(Step, io::ErrorKind)>>,
    synced: Mutex<BTreeMap<PathBuf, u64>>,
    steps: Mutex<Vec<Step>>,
}

impl Fake {
    fn hook(self: &Arc<Self>) -> Hook {
        let fake = self.clone();
        Arc::new(move |step, path, durable| {
            fake.steps.lock().push(step);
            if step == Step::Synced {
                fake.synced.lock().insert(path.to_owned(), durable);
            }
            let failing = fake.failing.lock();
            failing
                .iter()
                .find(|(at, _)| *at == step)
                .map_or(Ok(()), |(_, kind)| Err((*kind).into()))
        })
    }

    fn fail(&self, steps: &[Step], kind: io::ErrorKind) {
        *self.failing.lock() = steps.iter().map(|step| (*step, kind)).collect();
    }

    fn work(&self) {
        self.failing.lock().clear();
    }

    fn syncs(&self) -> usize {
        self.steps
            .lock()
            .iter()
            .filter(|step| **step == Step::Sync)
            .count()
    }
}

/// Small limits, so that segments and checkpoints happen in a test.
fn small() -> Options {
    Options {
        segment_bytes: 4_000,
        checkpoint_bytes: 12_000,
        ..Options::default()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn contents(store: &Store) -> Vec<Entry> {
    store.snapshot().range("", None).cloned().collect()
}

fn newest_segment(dir: &Path) -> PathBuf {
    let mut paths: Vec<_> = fs::read_dir(dir.join("log"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort();
    paths.pop().unwrap()
}

#[tokio::test]
async fn state_and_revisions_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    assert_eq!(store.revision(), 1);
    let value = Value {
        bytes: r#"{"rv":""}"#.into(),
        revision_at: Some(7),
    };
    assert_eq!(store.commit(Txn::put("/a", value)).await.unwrap(), 2);
    store
        .commit(Txn::put("/b", "x").with_durability(Durability::Relaxed))
        .await
        .unwrap();
    assert_eq!(
        store.commit(Txn::delete("/none")).await.unwrap(),
        3,
        "nothing changes, nothing is used"
    );
    let before = contents(&store);
    assert_eq!(before[0].value, r#"{"rv":"2"}"#);
    store.close().await;
    assert!(matches!(
        store.commit(Txn::put("/c", "x")).await,
        Err(CommitError::Closed)
    ));
    assert_eq!(contents(&store), before, "reads go on");

    let store = Store::open(dir.path(), Options::default()).unwrap();
    assert_eq!((contents(&store), store.revision()), (before, 3));
    let mut watch = store.watch("/", Some(2)).unwrap();
    assert_eq!(
        watch.try_next().unwrap().unwrap().key,
        "/b".into(),
        "a watch goes on across an orderly restart"
    );
    assert_eq!(store.commit(Txn::put("/a", "y")).await.unwrap(), 4);
    let entry = store.get("/a").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (2, 4));
    store.close().await;
}

#[tokio::test]
async fn preconditions_are_judged_together_and_malformed_transactions_are_refused() {
    let store = Store::memory();
    let absent = Precondition::Absent { key: "/a".into() };
    let (first, second) = tokio::join!(
        store.commit(Txn::put("/a", "1").when(absent.clone())),
        store.commit(Txn::put("/a", "2").when(absent)),
    );
    assert_eq!(first.unwrap(), 2);
    match second {
        Err(CommitError::Conflict {
            key,
            current: Some(entry),
        }) => {
            assert_eq!((key.as_str(), &*entry.value), ("/a", &b"1"[..]));
        }
        other => panic!("{other:?}"),
    }
    let at = |mod_revision| Precondition::Revision {
        key: "/a".into(),
        mod_revision,
    };
    assert!(matches!(
        store.commit(Txn::put("/b", "x").when(at(1))).await,
        Err(CommitError::Conflict { .. })
    ));
    assert!(store.get("/b").is_none());
    store.commit(Txn::delete("/a").when(at(2))).await.unwrap();
    let exists = Precondition::Exists { key: "/a".into() };
    assert!(matches!(
        store.commit(Txn::delete("/a").when(exists)).await,
        Err(CommitError::Conflict { current: None, .. })
    ));

    let twice = Txn {
        ops: [Txn::put("/c", "1").ops, Txn::delete("/c").ops].concat(),
        ..Txn::default()
    };
    let beyond = Txn::put(
        "/c",
        Value {
            bytes: "ab".into(),
            revision_at: Some(3),
        },
    );
    let large = Txn::put("/c", vec![0; MAX_VALUE_BYTES + 1]);
    for txn in [
        twice,
        beyond,
        large,
        Txn::put("", "x"),
        Txn::put("k".repeat(MAX_KEY_BYTES + 1), "x"),
    ] {
        assert!(matches!(
            store.commit(txn).await,
            Err(CommitError::Invalid { .. })
        ));
    }
}

#[tokio::test]
async fn the_size_limit_stops_writes_but_not_deletes() {
    let store = Store::memory_with(Options {
        max_bytes: 1_000,
        ..Options::default()
    });
    store.commit(Txn::put("/a", vec![1; 900])).await.unwrap();
    assert!(matches!(
        store.commit(Txn::put("/b", vec![1; 200])).await,
        Err(CommitError::Full)
    ));
    store.commit(Txn::delete("/a")).await.unwrap();
    store.commit(Txn::put("/b", vec![1; 200])).await.unwrap();
}

#[tokio::test]
async fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    assert!(matches!(
        Store::open(dir.path(), Options::default()),
        Err(OpenError::Locked { .. })
    ));
    store.close().await;
    Store::open(dir.path(), Options::default()).unwrap().close().await;
}

#[tokio::test]
async fn files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    fn check(path: &Path) -> usize {
        let meta = fs::metadata(path).unwrap();
        let (mode, want) = (
            meta.permissions().mode() & 0o777,
            if meta.is_dir() { 0o700 } else { 0o600 },
        );
        assert_eq!(mode, want, "{path:?}");
        if !meta.is_dir() {
            return 1;
        }
        fs::read_dir(path)
            .unwrap()
            .map(|e| check(&e.unwrap().path()))
            .sum()
    }
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let store = Store::open_hooked(&dir.path().join("db"), small(), Some(fake.hook())).unwrap();
    for i in 0..200 {
        store
            .commit(Txn::put(format!("/k/{}", i % 10), vec![0; 500]))
            .await
            .unwrap();
    }
    store.close().await;
    assert!(
        check(&dir.path().join("db")) >= 4,
        "a lock, a log segment and a checkpoint"
    );
}

/// Cuts the newest segment at every byte and checks what is left.
#[tokio::test]
async fn a_log_cut_anywhere_loses_only_what_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let store = Store::open_hooked(dir.path(), Options::default(), Some(fake.hook())).unwrap();
    let mut acknowledged = vec![];
    for i in 0..6_usize {
        let revision = store
            .commit(Txn::put(format!("/k/{}", i % 4), vec![i as u8; 20 + i]))
            .await
            .unwrap();
        let durable = *fake.synced.lock().values().next_back().unwrap();
        acknowledged.push((durable, revision, contents(&store)));
    }
    let crashed = tempfile::tempdir().unwrap();
    copy(dir.path(), crashed.path());
    store.close().await;
    let segment = newest_segment(crashed.path());
    let bytes = fs::read(&segment).unwrap();
    assert_eq!(bytes.len() as u64, acknowledged.last().unwrap().0);
    let mut last_revision = 0;
    for length in 0..=bytes.len() {
        for garbage in [&b""[..], b"\0\0\0\0\0\0\0\0garbage"] {
            fs::write(&segment, [&bytes[..length], garbage].concat()).unwrap();
            if length < 48 && !garbage.is_empty() && length + garbage.len() > 48 {
                continue; // such a header was synced with data behind it: not a torn tail
            }
            let store = Store::open(crashed.path(), Options::default()).unwrap();
            // What was acknowledged, or the next commit when it is whole but not yet acknowledged.
            let count = acknowledged
                .iter()
                .filter(|(durable, ..)| *durable <= length as u64)
                .count();
            let state = |n: usize| {
                n.checked_sub(1)
                    .map(|i| acknowledged[i].2.clone())
                    .unwrap_or_default()
            };
            let got = contents(&store);
            let next = (count + 1).min(acknowledged.len());
            assert!(got == state(count) || got == state(next), "cut at {length}");
            if let Some((_, revision, _)) = count.checked_sub(1).map(|i| &acknowledged[i]) {
                assert!(store.revision() >= *revision);
                last_revision = last_revision.max(*revision);
            }
            store.close().await;
            for (_, path) in disk::numbered(&crashed.path().join("log"), "", ".log").unwrap() {
                fs::remove_file(path).unwrap();
            }
        }
    }
    assert_eq!(last_revision, 7);
}

#[tokio::test]
async fn damage_in_the_middle_is_an_error_and_can_be_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    for i in 0..5 {
        store.commit(Txn::put(format!("/k/{i}"), "value")).await.unwrap();
    }
    store.close().await;
    let segment = newest_segment(dir.path());
    let good = fs::read(&segment).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    fs::write(&segment, &bad).unwrap();
    match Store::open(dir.path(), Options::default()) {
        Err(error @ OpenError::Damaged { .. }) => {
            assert!(error.to_string().contains("0000000000000001.log"), "{error}")
        }
        other => panic!("{other:?}"),
    }
    fs::write(&segment, &good).unwrap();
    let store = Store::open(dir.path(), Options::default()).unwrap();
    assert_eq!(contents(&store).len(), 5);
    store.close().await;
    fs::write(&segment, &bad).unwrap();
    let store = Store::open(
        dir.path(),
        Options {
            salvage: true,
            ..Options::default()
        },
    )
    .unwrap();
    assert!(contents(&store).len() < 5);
    store.close().await;
}

/// A power cut at any commit: only what was synced is on the disk, the rest is torn.
#[tokio::test]
async fn every_acknowledged_strict_commit_survives_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let store = Store::open_hooked(dir.path(), small(), Some(fake.hook())).unwrap();
    for i in 0..120_usize {
        let durability = if i % 3 == 0 {
            Durability::Relaxed
        } else {
            Durability::Strict
        };
        let key = format!("/k/{}", i % 17);
        let txn = if i % 11 == 10 {
            Txn::delete(key)
        } else {
            Txn::put(key, vec![i as u8; 100 + i * 7 % 900])
        };
        store.commit(txn.with_durability(durability)).await.unwrap();
        // Looked at where the last commit is a strict one.
        if i % 10 != 1 || i % 3 == 0 {
            continue;
        }
        let (expected, revision) = (contents(&store), store.revision());
        let after = tempfile::tempdir().unwrap();
        // A checkpoint may be running: copy until nothing vanished meanwhile.
        while std::panic::catch_unwind(|| copy(dir.path(), after.path())).is_err() {
            fs::remove_dir_all(after.path()).unwrap();
        }
        for (path, durable) in fake.synced.lock().iter() {
            let copied = after.path().join("log").join(path.file_name().unwrap());
            if let Ok(file) = fs::OpenOptions::new().write(true).open(&copied) {
                file.set_len((*durable).min(file.metadata().unwrap().len()))
                    .unwrap();
            }
        }
        let reopened = Store::open(after.path(), Options::default()).unwrap();
        assert!(contents(&reopened) == expected, "after {i}");
        assert!(
            reopened.revision() > revision,
            "revisions of lost relaxed writes are not used again"
        );
        reopened.close().await;
    }
    store.close().await;
    assert!(
        dir.path().read_dir().unwrap().any(|e| e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("state-"))
    );
}

#[tokio::test]
async fn lost_relaxed_writes_leave_a_gap_that_watches_notice() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(SystemTime::UNIX_EPOCH);
    let store = Store::open(
        dir.path(),
        Options {
            clock,
            ..Options::default()
        },
    )
    .unwrap();
    let strict = store.commit(Txn::put("/a", "1")).await.unwrap();
    let relaxed = Txn::put("/a", "2").with_durability(Durability::Relaxed);
    let lost = store.commit(relaxed).await.unwrap();
    let crashed = tempfile::tempdir().unwrap();
    copy(dir.path(), crashed.path());
    store.close().await;

    let mut newest = 0;
    for round in 0..3 {
        let store = Store::open(crashed.path(), Options::default()).unwrap();
        assert!(store.revision() > lost);
        assert_eq!(store.get("/a").unwrap().value, "1");
        assert!(store.watch("/", Some(strict)).is_ok());
        assert_eq!(
            store.watch("/", Some(lost)).unwrap_err().oldest,
            store.watch("/", Some(lost)).unwrap_err().oldest
        );
        let oldest = store.watch("/", Some(lost)).unwrap_err().oldest;
        assert!(oldest <= store.revision() && store.watch("/", Some(oldest)).is_ok());
        let revision = store.commit(Txn::put("/b", "x")).await.unwrap();
        assert!(revision > newest, "round {round}");
        newest = revision;
        store.close().await;
    }
}

#[tokio::test]
async fn relaxed_writes_ride_with_the_next_strict_one_or_the_timer() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let options = Options {
        relaxed_delay: Duration::from_millis(50),
        ..Options::default()
    };
    let store = Store::open_hooked(dir.path(), options, Some(fake.hook())).unwrap();
    store.commit(Txn::put("/strict", "x")).await.unwrap();
    let before = fake.syncs();
    for i in 0..20 {
        store
            .commit(Txn::put(format!("/relaxed/{i}"), "x").with_durability(Durability::Relaxed))
            .await
            .unwrap();
    }
    let immediately = fake.syncs() - before;
    assert!(immediately <= 2, "{immediately} syncs for 20 relaxed writes");
    let crashed = tempfile::tempdir().unwrap();
    let begin = tokio::time::Instant::now();
    loop {
        let _ = fs::remove_dir_all(crashed.path());
        copy(dir.path(), crashed.path());
        let copy = Store::open(crashed.path(), Options::default()).unwrap();
        let all = contents(&copy).len() == 21;
        copy.close().await;
        if all {
            break;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "the timer never wrote them"
        );
    }
    store.close().await;
}

#[tokio::test]
async fn a_full_or_broken_disk_fails_writes_and_heals() {
    for (steps, kind) in [
        (&[Step::Write][..], io::ErrorKind::StorageFull),
        (&[Step::Sync], io::ErrorKind::Other),
        (&[Step::Sync, Step::Truncate], io::ErrorKind::Other),
        (&[Step::Create], io::ErrorKind::StorageFull),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let store = Store::open_hooked(dir.path(), Options::default(), Some(fake.hook())).unwrap();
        if steps != [Step::Create] {
            store.commit(Txn::put("/before", "x")).await.unwrap();
        }
        let before = (contents(&store), store.revision());
        let mut watch = store.watch("/", None).unwrap();
        fake.fail(steps, kind);
        for _ in 0..3 {
            let error = store.commit(Txn::put("/failed", "x")).await.unwrap_err();
            let full = kind == io::ErrorKind::StorageFull;
            assert!(
                matches!(error, CommitError::Full) == full && matches!(error, CommitError::Io(_)) != full,
                "{error}"
            );
        }
        assert_eq!((contents(&store), store.revision()), before);
        assert_eq!(watch.try_next(), Ok(None), "nobody sees what did not happen");

        // A crash now may not bring the failed write back once something else has been acknowledged.
        fake.work();
        store.commit(Txn::put("/after", "x")).await.unwrap();
        let expected = contents(&store);
        assert_eq!(watch.try_next().unwrap().unwrap().key, "/after".into());
        let crashed = tempfile::tempdir().unwrap();
        copy(dir.path(), crashed.path());
        store.close().await;
        for path in [dir.path(), crashed.path()] {
            let store = Store::open(path, Options::default()).unwrap();
            assert_eq!(contents(&store), expected, "{steps:?}");
            store.close().await;
        }
    }
}

/// The failed commit may be found on the disk after a crash: no other may be seen under its revision.
#[tokio::test]
async fn relaxed_writes_wait_for_a_clean_log_too() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let store = Store::open_hooked(dir.path(), Options::default(), Some(fake.hook())).unwrap();
    store.commit(Txn::put("/before", "x")).await.unwrap();
    fake.fail(&[Step::Sync, Step::Truncate], io::ErrorKind::Other);
    store.commit(Txn::put("/failed", "x")).await.unwrap_err();
    let relaxed = || Txn::put("/relaxed", "x").with_durability(Durability::Relaxed);
    store.commit(relaxed()).await.unwrap_err();
    assert_eq!(contents(&store).len(), 1);
    fake.work();
    store.commit(relaxed()).await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn checkpoints_bound_the_log_and_an_interrupted_one_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let store = Store::open_hooked(dir.path(), small(), Some(fake.hook())).unwrap();
    for i in 0..600 {
        store
            .commit(Txn::put(format!("/k/{}", i % 20), vec![i as u8; 400]))
            .await
            .unwrap();
    }
    let segments = || fs::read_dir(dir.path().join("log")).unwrap().count();
    let begin = tokio::time::Instant::now();
    while segments() > 5 {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "the log is never shortened"
        );
        store.commit(Txn::put("/more", vec![0; 400])).await.unwrap();
    }
    let expected = contents(&store);
    store.close().await;
    fs::create_dir(dir.path().join("state-00000000000fffff.tmp")).unwrap();
    let store = Store::open_hooked(dir.path(), small(), Some(fake.hook())).unwrap();
    assert_eq!(contents(&store), expected);
    store.close().await;
    assert!(!dir.path().join("state-00000000000fffff.tmp").exists());
}

/// Writers, a slow and many fast watchers, and a pager at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watches_miss_nothing_and_pages_stay_at_their_revision() {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 250;
    let store = Store::memory();
    let all = store.watch("/", None).unwrap();
    let some = store.watch("/3/", None).unwrap();
    let follow = |mut watch: Watch, end: u64| async move {
        let mut model: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
        let mut last = 0;
        while let Some(event) = watch.next().await {
            let event = event.unwrap();
            assert!(event.revision > last, "in order, none twice");
            last = event.revision;
            assert_eq!(
                model.get(&event.key),
                event.previous.as_ref(),
                "an event is missing before {last}"
            );
            match event.value {
                Some(entry) => model.insert(event.key, entry),
                None => model.remove(&event.key),
            };
            assert!(watch.progress() >= last);
            if last >= end {
                break;
            }
        }
        model
    };
    let mut writers = tokio::task::JoinSet::new();
    for w in 0..WRITERS {
        let store = store.clone();
        writers.spawn(async move {
            for i in 0..WRITES {
                let key = format!("/{w}/{}", i % 9);
                let txn = if i % 7 == 6 {
                    Txn::delete(key)
                } else {
                    Txn::put(key, format!("{i}").into_bytes())
                };
                store.commit(txn).await.unwrap();
            }
        });
    }
    let pager = {
        let store = store.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                let snapshot = store.snapshot();
                let (mut paged, mut after) = (vec![], None::<String>);
                loop {
                    let page: Vec<Entry> = snapshot.range("/", after.as_deref()).take(5).cloned().collect();
                    let Some(last) = page.last() else { break };
                    after = Some(last.key.to_string());
                    paged.extend(page);
                    tokio::task::yield_now().await;
                }
                assert!(paged.iter().eq(snapshot.range("", None)));
                assert!(paged.iter().all(|e| e.mod_revision <= snapshot.revision()));
            }
        })
    };
    while let Some(result) = writers.join_next().await {
        result.unwrap();
    }
    pager.await.unwrap();
    let last_of_three = store
        .snapshot()
        .range("/3/", None)
        .map(|e| e.mod_revision)
        .max()
        .unwrap();
    let seen_all = follow(all, store.revision()).await;
    assert!(seen_all.values().eq(contents(&store).iter()));
    let seen_three = follow(some, last_of_three).await;
    assert!(seen_three.values().eq(store.snapshot().range("/3/", None)));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_delays_nobody_and_is_told() {
    let store = Store::memory_with(Options {
        history_events: 100,
        ..Options::default()
    });
    let mut deaf = store.watch("/", None).unwrap();
    for i in 0..1_000 {
        store.commit(Txn::put(format!("/{i}"), "x")).await.unwrap();
    }
    let gone = deaf.next().await.unwrap().unwrap_err();
    assert_eq!(gone.oldest, store.revision() - 100);
    assert!(deaf.next().await.is_none());
    assert_eq!(
        store
            .watch("/", Some(gone.oldest))
            .unwrap()
            .take(100)
            .count()
            .await,
        100
    );
}

#[derive(Debug, Clone)]
enum Step2 {
    Commit(Vec<(u8, Option<u8>)>, Option<(u8, bool)>, bool),
    Reopen,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step2>> {
    let op = (0..6_u8, proptest::option::weighted(0.7, any::<u8>()));
    let commit = (
        prop::collection::vec(op, 1..4),
        proptest::option::of((0..6_u8, any::<bool>())),
        any::<bool>(),
    )
        .prop_map(|(ops, condition, strict)| Step2::Commit(ops, condition, strict));
    prop::collection::vec(
        prop_oneof![20 => commit, 1 => Just(Step2::Reopen), 1 => Just(Step2::Crash)],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random transactions, restarts and crashes against a map.
    #[test]
    fn behaves_like_a_map(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run_model(steps));
    }
}

async fn run_model(steps: Vec<Step2>) {
    type Model = BTreeMap<String, (Vec<u8>, u64, u64)>;
    let root = tempfile::tempdir().unwrap();
    let fake = Arc::new(Fake::default());
    let mut dir = root.path().join("0");
    let mut store = Store::open_hooked(&dir, small(), Some(fake.hook())).unwrap();
    let (mut model, mut durable) = (Model::new(), Model::new());
    let (mut revision, mut highest) = (1, 1);
    for (i, step) in steps.into_iter().enumerate() {
        match step {
            Step2::Commit(ops, condition, strict) => {
                let mut txn = Txn::default();
                let mut next = model.clone();
                let mut changed = false;
                for (key, value) in ops {
                    let key = format!("/{key}");
                    if txn.ops.iter().any(|op| op.key() == key) {
                        continue;
                    }
                    match value {
                        Some(value) => {
                            let value = vec![value; value as usize * 3];
                            let created = next.get(&key).map_or(revision + 1, |old| old.1);
                            next.insert(key.clone(), (value.clone(), created, revision + 1));
                            txn.ops.push(Op::Put {
                                key,
                                value: value.into(),
                            });
                            changed = true;
                        }
                        None => {
                            changed |= next.remove(&key).is_some();
                            txn.ops.push(Op::Delete { key });
                        }
                    }
                }
                if !strict {
                    txn.durability = Durability::Relaxed;
                }
                let mut allowed = true;
                if let Some((key, should_exist)) = condition {
                    let key = format!("/{key}");
                    allowed = model.contains_key(&key) == should_exist;
                    txn.preconditions.push(if should_exist {
                        Precondition::Exists { key }
                    } else {
                        Precondition::Absent { key }
                    });
                }
                match store.commit(txn).await {
                    Ok(got) => {
                        assert!(allowed);
                        assert_eq!(got, revision + u64::from(changed));
                        (model, revision) = (next, got);
                        highest = highest.max(got);
                        if strict && changed {
                            durable = model.clone();
                        }
                    }
                    Err(CommitError::Conflict { .. }) => assert!(!allowed),
                    Err(other) => panic!("{other}"),
                }
            }
            Step2::Reopen => {
                store.close().await;
                store = Store::open_hooked(&dir, small(), Some(fake.hook())).unwrap();
                durable = model.clone();
                assert_eq!(store.revision(), revision);
            }
            Step2::Crash => {
                let next = root.path().join(format!("{}", i + 1));
                while std::panic::catch_unwind(|| copy(&dir, &next)).is_err() {
                    fs::remove_dir_all(&next).unwrap();
                }
                store.close().await;
                dir = next;
                store = Store::open_hooked(&dir, small(), Some(fake.hook())).unwrap();
                assert!(store.revision() >= highest, "revisions never go back");
                let got: Model = as_model(&store);
                assert!(
                    got == durable || got == model || newer(&got, &durable),
                    "strict commits are there"
                );
                (model, revision) = (got.clone(), store.revision());
                durable = got;
            }
        }
        assert_eq!(as_model(&store), model);
    }
    store.close().await;

    fn as_model(store: &Store) -> Model {
        let entry = |e: &Entry| {
            (
                e.key.to_string(),
                (e.value.to_vec(), e.create_revision, e.mod_revision),
            )
        };
        store.snapshot().range("", None).map(entry).collect()
    }

    /// Between the two: everything durable is there or was changed by a later (relaxed) commit.
    fn newer(got: &Model, durable: &Model) -> bool {
        let newest = durable.values().map(|v| v.2).max().unwrap_or(0);
        got.values()
            .all(|v| v.2 > newest || durable.values().any(|d| d == v))
    }
}
