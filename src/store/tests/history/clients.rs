//! The clients whose history is checked: writers, readers and watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::StreamExt;
use skiff_store::{CommitError, Durability, Op, Precondition, Store, Txn, Value};

use super::{Asked, List, Record, Seen, Told, When, value};

const WRITERS: u64 = 4;
const KEYS: u64 = 8;
/// Events after which a watcher reconnects where it left off.
const RECONNECT: usize = 23;
/// Numbers of operations are never used twice, in any life.
pub const NUMBERS_PER_LIFE: u64 = 1 << 32;

/// Where records go; called from several threads, must keep its order.
pub type Sink = Arc<dyn Fn(Record) + Send + Sync>;

/// One life of a store.
#[derive(Clone)]
pub struct Life {
    pub store: Store,
    pub sink: Sink,
    pub number: u64,
    /// Where the watchers of the life before left off.
    pub resume: Option<u64>,
    /// Writes of each writer; a life also ends when writes fail.
    pub writes: u64,
}

struct Numbers {
    next: AtomicU64,
    stop: AtomicBool,
}

/// A small generator: what it gives depends on the seed alone.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

impl Life {
    /// Runs all clients until the writers are done, closes the store and lets the watchers finish.
    pub async fn run(self) {
        (self.sink)(Record::Up(List::of(&self.store.snapshot(), "")));
        let first = self.number * NUMBERS_PER_LIFE + 1;
        let numbers = Arc::new(Numbers {
            next: AtomicU64::new(first),
            stop: AtomicBool::new(false),
        });
        let watchers: Vec<_> = ["/", "/key/1"]
            .into_iter()
            .map(|prefix| tokio::spawn(self.clone().watch(prefix, numbers.clone())))
            .collect();
        let readers: Vec<_> = (0..2)
            .map(|seed| tokio::spawn(self.clone().read(seed + 1, numbers.clone())))
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|client| tokio::spawn(self.clone().write(client, numbers.clone())))
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        numbers.stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
        self.store.close().await;
        for watcher in watchers {
            watcher.await.unwrap();
        }
    }

    async fn write(self, client: u64, numbers: Arc<Numbers>) {
        let mut dice = Dice((self.number + 1) * 7_919 + client);
        let mut known = 0;
        for _ in 0..self.writes {
            let id = numbers.next.fetch_add(1, Ordering::Relaxed);
            let key = format!("/key/{}", dice.below(KEYS));
            let put = dice.below(4) > 0;
            let when = match dice.below(6) {
                0 => When::Absent,
                1 => When::Exists,
                2 => When::At(known),
                3 => When::At(self.store.get(&key).map_or(0, |entry| entry.mod_revision)),
                _ => When::Always,
            };
            // A delete that is seen and then lost would leave no trace in the history.
            let strict = !put || dice.below(4) > 0;
            let mut txn = if put {
                Txn::put(key.clone(), value(id))
            } else {
                Txn::delete(key.clone())
            };
            txn.ops.push(Op::Put {
                key: format!("/mark/{client}"),
                value: Value::from(value(id)),
            });
            if !strict {
                txn = txn.with_durability(Durability::Relaxed);
            }
            let condition = match when {
                When::Always => None,
                When::Absent => Some(Precondition::Absent { key: key.clone() }),
                When::Exists => Some(Precondition::Exists { key: key.clone() }),
                When::At(mod_revision) => Some(Precondition::Revision {
                    key: key.clone(),
                    mod_revision,
                }),
            };
            if let Some(condition) = condition {
                txn = txn.when(condition);
            }
            (self.sink)(Record::Begin(
                id,
                Asked::Write {
                    client,
                    key,
                    put,
                    when,
                    strict,
                },
            ));
            let told = match self.store.commit(txn).await {
                Ok(revision) => {
                    known = revision;
                    Told::Committed(revision)
                }
                Err(CommitError::Conflict { current, .. }) => {
                    Told::Conflict(current.as_ref().map(Seen::from))
                }
                Err(CommitError::Invalid { .. }) => panic!("a well-formed transaction is refused"),
                Err(_) => Told::Failed,
            };
            let failed = matches!(told, Told::Failed);
            (self.sink)(Record::End(id, told));
            if failed {
                return;
            }
        }
    }

    async fn read(self, seed: u64, numbers: Arc<Numbers>) {
        let mut dice = Dice((self.number + 1) * 104_729 + seed);
        while !numbers.stop.load(Ordering::Relaxed) {
            let id = numbers.next.fetch_add(1, Ordering::Relaxed);
            if dice.below(3) == 0 {
                let prefix = if dice.below(2) == 0 { "/" } else { "/key/" };
                (self.sink)(Record::Begin(
                    id,
                    Asked::List {
                        prefix: prefix.into(),
                    },
                ));
                let snapshot = self.store.snapshot();
                // Read while writes go on: it must stay at its revision.
                tokio::task::yield_now().await;
                (self.sink)(Record::End(id, Told::List(List::of(&snapshot, prefix))));
            } else {
                let key = format!("/key/{}", dice.below(KEYS));
                (self.sink)(Record::Begin(id, Asked::Read { key: key.clone() }));
                let entry = self.store.get(&key);
                (self.sink)(Record::End(id, Told::Value(entry.as_ref().map(Seen::from))));
            }
            // The machine is also for the writers.
            tokio::time::sleep(std::time::Duration::from_micros(200)).await;
        }
    }

    async fn watch(self, prefix: &'static str, numbers: Arc<Numbers>) {
        let mut from = self.resume.unwrap_or_else(|| self.store.revision());
        loop {
            let watch = numbers.next.fetch_add(1, Ordering::Relaxed);
            (self.sink)(Record::Watching {
                watch,
                prefix: prefix.into(),
                from,
            });
            let mut stream = match self.store.watch(prefix, Some(from)) {
                Ok(stream) => stream,
                Err(gone) => {
                    (self.sink)(Record::Gone {
                        watch,
                        oldest: gone.oldest,
                    });
                    from = self.store.revision();
                    continue;
                }
            };
            let mut seen = 0;
            loop {
                match stream.next().await {
                    Some(Ok(event)) => (self.sink)(Record::Event {
                        watch,
                        revision: event.revision,
                        key: event.key.to_string(),
                        value: event.value.as_ref().map(Seen::from),
                        previous: event.previous.as_ref().map(Seen::from),
                    }),
                    Some(Err(gone)) => {
                        (self.sink)(Record::Gone {
                            watch,
                            oldest: gone.oldest,
                        });
                        from = self.store.revision();
                        break;
                    }
                    None => {
                        (self.sink)(Record::Ended { watch });
                        return;
                    }
                }
                seen += 1;
                from = stream.progress();
                (self.sink)(Record::Progress {
                    watch,
                    revision: from,
                });
                if seen == RECONNECT {
                    break;
                }
            }
        }
    }
}
