//! A queue of names to look at: level, not edge.
//!
//! A key that is added many times before a worker takes it is worked once; a
//! key that is added while it is being worked is worked again afterwards, and
//! never by two workers at the same time. Failures come back later and later.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skiff_base::lifecycle::Shutdown;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest delay after repeated failures.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What a work item may be.
pub trait Key: Ord + Hash + Clone + Debug + Send + Sync + 'static {}
impl<T: Ord + Hash + Clone + Debug + Send + Sync + 'static> Key for T {}

struct State<T> {
    ready: VecDeque<T>,
    queued: BTreeSet<T>,
    working: BTreeSet<T>,
    /// Added while being worked.
    again: BTreeSet<T>,
    delayed: BTreeMap<T, Instant>,
    due: BTreeSet<(Instant, T)>,
    failures: HashMap<T, u32>,
}

/// A deduplicating, delaying, retrying queue. Cheap to clone.
pub struct WorkQueue<T> {
    state: Arc<Mutex<State<T>>>,
    wake: Arc<Notify>,
}

impl<T> Clone for WorkQueue<T> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            wake: self.wake.clone(),
        }
    }
}

impl<T: Key> Default for WorkQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Key> WorkQueue<T> {
    /// An empty queue.
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
            working: BTreeSet::new(),
            again: BTreeSet::new(),
            delayed: BTreeMap::new(),
            due: BTreeSet::new(),
            failures: HashMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            wake: Arc::new(Notify::new()),
        }
    }

    /// Asks for `key` to be worked as soon as possible.
    pub fn add(&self, key: T) {
        let mut state = self.state.lock();
        add_now(&mut state, key);
        drop(state);
        self.wake.notify_one();
    }

    /// Asks for `key` to be worked after `delay`. An earlier wish stays.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.state.lock();
        match state.delayed.get(&key).copied() {
            Some(earlier) if earlier <= at => return,
            Some(later) => {
                state.due.remove(&(later, key.clone()));
            }
            None => {}
        }
        state.delayed.insert(key.clone(), at);
        state.due.insert((at, key));
        drop(state);
        self.wake.notify_one();
    }

    /// How many keys wait to be worked now.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether nothing waits to be worked now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Works keys with `workers` concurrent workers until `shutdown`; what is
    /// being worked then is finished. Success may ask to look again later.
    pub async fn run<W, F, E>(&self, workers: usize, shutdown: &Shutdown, work: W)
    where
        W: Fn(T) -> F + Send + Sync,
        F: Future<Output = Result<Option<Duration>, E>> + Send,
        E: Display,
    {
        let worker = || async {
            while let Some(key) = self.take(shutdown).await {
                let outcome = work(key.clone()).await;
                self.finish(key, outcome);
            }
        };
        futures::future::join_all((0..workers.max(1)).map(|_| worker())).await;
    }

    async fn take(&self, shutdown: &Shutdown) -> Option<T> {
        loop {
            if shutdown.is_cancelled() {
                return None;
            }
            let next_due = {
                let mut state = self.state.lock();
                promote(&mut state, Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.working.insert(key.clone());
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.wake.notify_one();
                    }
                    return Some(key);
                }
                state.due.first().map(|(at, _)| *at)
            };
            let alarm = async {
                match next_due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.wake.notified() => {}
                () = alarm => {}
            }
        }
    }

    fn finish<E: Display>(&self, key: T, outcome: Result<Option<Duration>, E>) {
        let retry = {
            let mut state = self.state.lock();
            state.working.remove(&key);
            if state.again.remove(&key) {
                add_now(&mut state, key.clone());
            }
            match outcome {
                Ok(later) => {
                    state.failures.remove(&key);
                    later
                }
                Err(error) => {
                    let count = state.failures.entry(key.clone()).or_insert(0);
                    *count += 1;
                    let delay = FIRST_RETRY
                        .saturating_mul(1 << (*count - 1).min(12))
                        .min(LAST_RETRY);
                    if *count <= 3 {
                        tracing::debug!(?key, %error, ?delay, "will try again");
                    } else {
                        tracing::warn!(?key, %error, ?delay, failures = *count, "still failing; will try again");
                    }
                    Some(delay)
                }
            }
        };
        match retry {
            Some(delay) => self.add_after(key, delay),
            None => self.wake.notify_one(),
        }
    }
}

fn add_now<T: Key>(state: &mut State<T>, key: T) {
    if let Some(at) = state.delayed.remove(&key) {
        state.due.remove(&(at, key.clone()));
    }
    if state.working.contains(&key) {
        state.again.insert(key);
    } else if state.queued.insert(key.clone()) {
        state.ready.push_back(key);
    }
}

fn promote<T: Key>(state: &mut State<T>, now: Instant) {
    while state.due.first().is_some_and(|(at, _)| *at <= now) {
        if let Some((_, key)) = state.due.pop_first() {
            state.delayed.remove(&key);
            add_now(state, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn keys_are_deduplicated_and_never_worked_twice_at_once() {
        let (queue, shutdown) = (WorkQueue::new(), Shutdown::new());
        let (running, runs) = (AtomicU32::new(0), AtomicU32::new(0));
        for _ in 0..10 {
            queue.add("a");
        }
        let work = |_| async {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "two runs for one key");
            if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                queue.add("a");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            if runs.load(Ordering::SeqCst) == 2 {
                shutdown.cancel();
            }
            Ok::<_, String>(None)
        };
        queue.run(4, &shutdown, work).await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_later_and_later() {
        let (queue, shutdown) = (WorkQueue::new(), Shutdown::new());
        let times = Mutex::new(Vec::new());
        let start = Instant::now();
        queue.add("a");
        let work = |_| async {
            times.lock().push(start.elapsed());
            match times.lock().len() {
                1..=3 => Err("no"),
                _ => {
                    shutdown.cancel();
                    Ok(None)
                }
            }
        };
        queue.run(1, &shutdown, work).await;
        let ms: Vec<u128> = times.lock().iter().map(Duration::as_millis).collect();
        assert!(
            ms[1] >= 50 && ms[2] >= ms[1] + 100 && ms[3] >= ms[2] + 200,
            "{ms:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_wishes_wins() {
        let (queue, shutdown) = (WorkQueue::new(), Shutdown::new());
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(5));
        let work = |_| async {
            shutdown.cancel();
            Ok::<_, String>(None)
        };
        queue.run(1, &shutdown, work).await;
        assert_eq!(start.elapsed().as_secs(), 2);
    }
}
