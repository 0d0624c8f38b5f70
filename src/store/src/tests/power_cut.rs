//! Power cuts and kills at any step the store takes on its files.
//!
//! [`Ghost`] is what the disk would hold if the power went now. It learns
//! from the hook what has been synced (bytes of files, names in directories,
//! each by inode, so that renames mean what they mean) and forgets all else.
//! A cut leaves of what was not synced: nothing, some sectors, some sectors
//! with a flipped bit, or all of it. A kill leaves the files as they are, but
//! the ghost still knows what is only in the page cache.
//!
//! A store lives, with clients, until it is cut or killed at a random step,
//! also while it opens or writes a checkpoint, and lives again on what is
//! left. The history of all lives must hold together.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Hook, Step};
use crate::history::check::Checker;
use crate::history::clients::{Dice, Life, Sink};
use crate::history::{List, Record};
use crate::record::HEADER_LEN;
use crate::{Options, Store};

/// Lives in the normal run; `SKIFF_STORE_CUTS` asks for more.
const CUTS: u64 = 120;
const SECTOR: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Cut,
    Kill,
}

/// What a broken store would leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Nothing,
    /// Appends to the log are not synced.
    Appends,
    /// The name of a new log segment is not synced.
    Names,
    /// The files of a checkpoint are not synced.
    Checkpoints,
}

/// When to die: at the n-th step of a kind (of any kind).
#[derive(Debug, Clone, Copy)]
struct Plan {
    death: Death,
    step: Option<Step>,
    left: u64,
}

struct State {
    /// By inode. The handle keeps the number from being given to another file.
    files: HashMap<u64, (File, Vec<u8>)>,
    names: HashMap<u64, (File, Names)>,
    plan: Option<Plan>,
    dead: bool,
    dice: Dice,
}

/// Inodes by name, and whether they are directories.
type Names = BTreeMap<OsString, (u64, bool)>;

struct Ghost {
    root: PathBuf,
    /// Where the disk after a cut is put together.
    after: PathBuf,
    broken: Break,
    state: Mutex<State>,
}

fn list(dir: &Path) -> Names {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some((entry.file_name(), (meta.ino(), meta.is_dir())))
    });
    named.collect()
}

impl State {
    fn file(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        self.files.insert(file.metadata()?.ino(), (file, bytes));
        Ok(())
    }

    fn dir(&mut self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        self.names.insert(file.metadata()?.ino(), (file, list(path)));
        let gone = |file: &File| file.metadata().is_ok_and(|meta| meta.nlink() == 0);
        let named: Vec<u64> = self
            .names
            .values()
            .flat_map(|(_, names)| names.values().map(|(inode, _)| *inode))
            .collect();
        self.files
            .retain(|inode, (file, _)| !gone(file) || named.contains(inode));
        Ok(())
    }

    /// All that is there is on stable storage.
    fn all(&mut self, path: &Path) {
        for entry in fs::read_dir(path).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                self.all(&entry.path());
            } else {
                self.file(&entry.path()).unwrap();
            }
        }
        self.dir(path).unwrap();
    }

    /// Puts together what a cut now leaves of a directory.
    fn rebuild(&mut self, live: &HashMap<u64, PathBuf>, inode: u64, to: &Path) {
        fs::create_dir_all(to).unwrap();
        let synced = self
            .names
            .get(&inode)
            .map(|(_, names)| names.clone())
            .unwrap_or_default();
        let now = live
            .get(&inode)
            .filter(|path| path.is_dir())
            .map(|path| list(path));
        let names = if self.dice.below(2) == 0 {
            now.unwrap_or(synced)
        } else {
            synced
        };
        for (name, (child, is_dir)) in names {
            let to = to.join(name);
            if is_dir {
                self.rebuild(live, child, &to);
            } else {
                let bytes = self.bytes(live, child);
                fs::write(&to, bytes).unwrap();
            }
        }
    }

    /// What a cut leaves of a file.
    fn bytes(&mut self, live: &HashMap<u64, PathBuf>, inode: u64) -> Vec<u8> {
        let mut now = Vec::new();
        let synced = match self.files.get_mut(&inode) {
            Some((file, bytes)) => {
                let read = file.rewind().and_then(|()| file.read_to_end(&mut now));
                read.unwrap();
                bytes.clone()
            }
            None => {
                now = live
                    .get(&inode)
                    .and_then(|path| fs::read(path).ok())
                    .unwrap_or_default();
                Vec::new()
            }
        };
        let mood = self.dice.below(4);
        if mood == 0 || now == synced {
            return synced;
        }
        let (short, long) = (synced.len().min(now.len()), synced.len().max(now.len()));
        let length = short + self.dice.below((long - short) as u64 + 1) as usize;
        let mut left = vec![0; length];
        for start in (0..length).step_by(SECTOR) {
            let end = (start + SECTOR).min(length);
            let unsynced = synced.get(start..end) != now.get(start..end);
            let source = if mood == 3 || self.dice.below(2) == 0 {
                &now
            } else {
                &synced
            };
            let known = end.min(source.len());
            if known > start {
                left[start..known].copy_from_slice(&source[start..known]);
            }
            // Bytes that have been synced are safe, also in a sector that was being rewritten.
            let safe = end.min(synced.len());
            if now.starts_with(&synced) && safe > start {
                left[start..safe].copy_from_slice(&synced[start..safe]);
            }
            let loose = if now.starts_with(&synced) {
                start.max(synced.len())
            } else {
                start
            };
            if unsynced && mood == 2 && loose < end && self.dice.below(2) == 0 {
                let at = loose + self.dice.below((end - loose) as u64) as usize;
                left[at] ^= 1 << self.dice.below(8);
            }
        }
        left
    }
}

fn walk(path: &Path, found: &mut HashMap<u64, PathBuf>) {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return;
    };
    found.insert(meta.ino(), path.to_owned());
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        walk(&entry.path(), found);
    }
}

impl Ghost {
    fn new(root: PathBuf, after: PathBuf, broken: Break, seed: u64) -> Arc<Self> {
        fs::create_dir_all(&root).unwrap();
        let dice = Dice(seed | 1);
        let state = State {
            files: HashMap::new(),
            names: HashMap::new(),
            plan: None,
            dead: false,
            dice,
        };
        let ghost = Self {
            root,
            after,
            broken,
            state: Mutex::new(state),
        };
        ghost.state.lock().all(&ghost.root);
        Arc::new(ghost)
    }

    fn hook(self: &Arc<Self>) -> Hook {
        let ghost = self.clone();
        Arc::new(move |step, path, durable| ghost.step(step, path, durable))
    }

    fn step(&self, step: Step, path: &Path, durable: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(plan) = state
            .plan
            .as_mut()
            .filter(|plan| plan.step.is_none_or(|at| at == step))
        {
            plan.left -= 1;
            if plan.left == 0 {
                let cut = plan.death == Death::Cut;
                (state.plan, state.dead) = (None, true);
                if cut {
                    let mut live = HashMap::new();
                    walk(&self.root, &mut live);
                    let root = fs::metadata(&self.root).unwrap().ino();
                    state.rebuild(&live, root, &self.after);
                }
            }
        }
        if state.dead {
            return Err(io::Error::other("there is no power"));
        }
        let name = |end: &str| path.to_string_lossy().ends_with(end);
        let in_checkpoint = path.to_string_lossy().contains("state-");
        match (step, self.broken) {
            (Step::Synced, Break::Appends) if name(".log") && durable > HEADER_LEN as u64 => Ok(()),
            (Step::SyncedDir, Break::Names) if name("/log") => Ok(()),
            (Step::Synced, Break::Checkpoints) if in_checkpoint => Ok(()),
            (Step::Synced, _) => state.file(path),
            (Step::SyncedDir, _) => state.dir(path),
            _ => Ok(()),
        }
    }
}

fn small() -> Options {
    Options {
        segment_bytes: 3_000,
        checkpoint_bytes: 9_000,
        relaxed_delay: std::time::Duration::from_millis(3),
        ..Options::default()
    }
}

/// A directory in memory where there is one: the ghost is the disk here.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Where each life ends: every kind of step on its own, then steps at random.
fn plan(life: u64, dice: &mut Dice) -> Option<Plan> {
    const NAMED: [Step; 10] = [
        Step::Create,
        Step::Write,
        Step::Sync,
        Step::Synced,
        Step::SyncDir,
        Step::SyncedDir,
        Step::Rename,
        Step::Remove,
        Step::Fill,
        Step::Truncate,
    ];
    let death = if dice.below(4) == 0 {
        Death::Kill
    } else {
        Death::Cut
    };
    match life % 20 {
        19 => None,
        n if n < 10 => Some(Plan {
            death,
            step: Some(NAMED[n as usize]),
            left: 1 + dice.below(3),
        }),
        // Some in the middle of opening.
        n if n < 13 => Some(Plan {
            death,
            step: None,
            left: 1 + dice.below(10),
        }),
        _ => Some(Plan {
            death,
            step: None,
            left: 1 + dice.below(250),
        }),
    }
}

#[derive(Default)]
struct Tally {
    cuts: u64,
    kills: u64,
    operations: usize,
    events: usize,
}

/// Runs lives until one contradicts another.
async fn lives(count: u64, broken: Break, seed: u64) -> Result<Tally, String> {
    let base = folder();
    let mut dice = Dice(seed | 1);
    let mut checker = Checker::default();
    let mut tally = Tally::default();
    let path = |n: u64| base.path().join(n.to_string());
    let mut ghost = Ghost::new(path(0), path(1), broken, seed);
    let (mut disk, mut before, mut resume) = (0, None::<(Vec<Record>, bool)>, None);
    for life in 0..count {
        let plan = plan(life, &mut dice);
        ghost.state.lock().plan = plan;
        let opened = Store::open_hooked(&ghost.root, small(), Some(ghost.hook()));
        let orderly = match opened {
            Ok(store) => {
                let up = List::of(&store.snapshot(), "");
                if let Some((records, orderly)) = before.take() {
                    checker
                        .life(&records, &up, orderly)
                        .map_err(|what| format!("life {}: {what}", life - 1))?;
                }
                let records = Arc::new(Mutex::new(Vec::new()));
                let sink: Sink = {
                    let records = records.clone();
                    Arc::new(move |record| records.lock().push(record))
                };
                Life {
                    store,
                    sink,
                    number: life,
                    resume,
                    writes: 60,
                }
                .run()
                .await;
                let records = std::mem::take(&mut *records.lock());
                resume = records.iter().rev().find_map(|record| match record {
                    Record::Progress { revision, .. } => Some(*revision),
                    _ => None,
                });
                let orderly = !ghost.state.lock().dead;
                before = Some((records, orderly));
                orderly
            }
            Err(_) if ghost.state.lock().dead => false,
            Err(error) => return Err(format!("life {life} does not open by itself: {error}")),
        };
        ghost.state.lock().plan = None;
        if orderly {
            continue;
        }
        if plan.is_some_and(|plan| plan.death == Death::Cut) {
            tally.cuts += 1;
            fs::remove_dir_all(path(disk)).unwrap();
            disk += 1;
            ghost = Ghost::new(path(disk), path(disk + 1), broken, seed + life);
        } else {
            tally.kills += 1;
            ghost.state.lock().dead = false;
        }
    }
    (tally.operations, tally.events) = (checker.operations, checker.events);
    Ok(tally)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cut_and_no_kill_at_any_step_contradicts_the_history() {
    let count = std::env::var("SKIFF_STORE_CUTS").map_or(CUTS, |count| count.parse().unwrap());
    let tally = lives(count, Break::Nothing, 0x5eed).await.unwrap();
    println!(
        "{} cuts, {} kills, {} operations, {} events",
        tally.cuts, tally.kills, tally.operations, tally.events
    );
    assert!(
        tally.cuts * 2 > count && tally.kills * 10 > count,
        "{} cuts, {} kills",
        tally.cuts,
        tally.kills
    );
    assert!(
        tally.operations as u64 > count * 50 && tally.events as u64 > count * 20,
        "the clients hardly did anything"
    );
}

/// The check itself is checked: a store that leaves out one kind of sync is found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_skips_a_sync_is_caught() {
    for broken in [Break::Appends, Break::Names, Break::Checkpoints] {
        let found = lives(200, broken, 0x5eed).await;
        let Err(what) = found else {
            panic!("{broken:?} went unnoticed through 200 lives")
        };
        println!("{broken:?}: {what}");
    }
}
