//! Watch: a bounded ring of events and any number of readers.
//!
//! The writer appends to the ring and wakes the readers concerned; it never
//! waits for one and keeps no queue per reader. A reader copies matching
//! events out of the ring, some at a time. One that is overtaken (an event it
//! has not read is dropped from the ring) ends with [`Gone`] and lists again.
//!
//! Every reader has a slot with the position of the first event that may
//! concern it. None means that it has seen everything: it then sleeps through
//! events of other prefixes and cannot be overtaken by them.
//!
//! Example: the ring holds events 10..20 (sequence numbers), reader A waits
//! with no position, reader B has 12. Event 20 matches A: A's position becomes
//! 20 and A is woken. Dropping events 10..13 overtakes B only.
//!
//! There is one lock; wakers are called after it is released.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::Stream;
use parking_lot::Mutex;

use crate::types::{Event, Gone};

/// Events copied out of the ring at a time: bounds a reader's memory.
const READ_EVENTS: usize = 64;
/// Events looked at while the lock is held.
const SCAN_EVENTS: usize = 2_048;
/// What an event costs besides its values.
const EVENT_OVERHEAD: usize = 128;
/// Crashes remembered for readers who come back from before one.
const MAX_GAPS: usize = 64;

/// How much history is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
struct Slot {
    prefix: Arc<str>,
    from: u64,
    /// Sequence number of the first event that may concern the reader.
    pending: Option<u64>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Inner {
    events: VecDeque<Event>,
    /// Sequence number of the first event in the ring.
    first: u64,
    bytes: usize,
    /// Everything up to this revision has been appended.
    revision: u64,
    /// Events up to this revision have been dropped.
    compacted: u64,
    /// Revisions between the two of each pair were lost in a crash.
    gaps: VecDeque<(u64, u64)>,
    slots: BTreeMap<u64, Slot>,
    next_slot: u64,
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    limits: Limits,
}

fn cost(event: &Event) -> usize {
    let size = |entry: &Option<crate::Entry>| entry.as_ref().map_or(0, |e| e.value.len());
    EVENT_OVERHEAD + event.key.len() + size(&event.value) + size(&event.previous)
}

impl Ring {
    /// A ring without history before `revision`.
    pub(crate) fn new(limits: Limits, revision: u64) -> Self {
        let inner = Inner {
            events: VecDeque::new(),
            first: 0,
            bytes: 0,
            revision,
            compacted: revision,
            gaps: VecDeque::new(),
            slots: BTreeMap::new(),
            next_slot: 0,
            closed: false,
        };
        Self {
            inner: Mutex::new(inner),
            limits,
        }
    }

    /// Appends the events of all revisions up to `revision`.
    pub(crate) fn push(&self, events: impl IntoIterator<Item = Event>, revision: u64) {
        let mut woken = Vec::new();
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        for event in events {
            let sequence = inner.first + inner.events.len() as u64;
            for slot in inner.slots.values_mut().filter(|slot| slot.pending.is_none()) {
                if event.revision > slot.from && event.key.starts_with(&*slot.prefix) {
                    slot.pending = Some(sequence);
                    woken.extend(slot.waker.take());
                }
            }
            inner.bytes += cost(&event);
            inner.events.push_back(event);
        }
        inner.revision = inner.revision.max(revision);
        while inner.events.len() > self.limits.events || inner.bytes > self.limits.bytes {
            let Some(dropped) = inner.events.pop_front() else {
                break;
            };
            inner.first += 1;
            inner.bytes -= cost(&dropped);
            inner.compacted = dropped.revision;
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Notes that revisions between `last` and `start` were lost.
    pub(crate) fn gap(&self, last: u64, start: u64) {
        let mut inner = self.inner.lock();
        inner.gaps.push_back((last, start));
        if inner.gaps.len() > MAX_GAPS {
            inner.gaps.pop_front();
        }
        inner.revision = inner.revision.max(start);
    }

    /// Ends all readers once they have read what is there.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let wakers: Vec<_> = inner
            .slots
            .values_mut()
            .filter_map(|slot| slot.waker.take())
            .collect();
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Readers now, events and bytes held.
    pub(crate) fn load(&self) -> (usize, usize, usize) {
        let inner = self.inner.lock();
        (inner.slots.len(), inner.events.len(), inner.bytes)
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, from: Option<u64>) -> Result<Watch, Gone> {
        let mut inner = self.inner.lock();
        let from = from.unwrap_or(inner.revision);
        if from < inner.compacted {
            return Err(Gone {
                oldest: inner.compacted,
            });
        }
        if let Some((_, start)) = inner
            .gaps
            .iter()
            .find(|(last, start)| *last < from && from < *start)
        {
            return Err(Gone { oldest: *start });
        }
        let index = inner.events.partition_point(|event| event.revision <= from);
        let pending = (index < inner.events.len()).then(|| inner.first + index as u64);
        let id = inner.next_slot;
        inner.next_slot += 1;
        inner.slots.insert(
            id,
            Slot {
                prefix: prefix.into(),
                from,
                pending,
                waker: None,
            },
        );
        drop(inner);
        Ok(Watch {
            ring: self.clone(),
            id,
            buffer: VecDeque::new(),
            delivered: from,
            ended: false,
        })
    }
}

/// Changes to keys with a prefix, in order, none left out and none twice.
///
/// Ends with [`Gone`] when its reader is slower than the writers for longer
/// than the ring's history lasts, and without an error when the store closes.
#[derive(Debug)]
pub struct Watch {
    ring: Arc<Ring>,
    id: u64,
    buffer: VecDeque<Event>,
    /// What [`Watch::progress`] said last: it never goes back.
    delivered: u64,
    ended: bool,
}

/// What a look into the ring showed.
enum Look {
    /// There are events in the buffer, or there may be after another look.
    More,
    Wait,
    Closed,
}

impl Watch {
    /// Copies the next matching events; leaves the waker when there are none.
    fn look(&mut self, waker: Option<&Waker>) -> Result<Look, Gone> {
        let mut inner = self.ring.inner.lock();
        let Inner {
            events,
            first,
            compacted,
            slots,
            closed,
            ..
        } = &mut *inner;
        let Some(slot) = slots.get_mut(&self.id) else {
            return Ok(Look::Closed);
        };
        let Some(position) = slot.pending else {
            if *closed {
                return Ok(Look::Closed);
            }
            slot.waker = waker.cloned();
            return Ok(Look::Wait);
        };
        if position < *first {
            return Err(Gone { oldest: *compacted });
        }
        let start = (position - *first) as usize;
        let mut next = start;
        for event in events.range(start..).take(SCAN_EVENTS) {
            if self.buffer.len() == READ_EVENTS {
                break;
            }
            next += 1;
            if event.revision > slot.from && event.key.starts_with(&*slot.prefix) {
                self.buffer.push_back(event.clone());
            }
        }
        slot.pending = (next < events.len()).then(|| *first + next as u64);
        Ok(Look::More)
    }

    fn next_with(&mut self, waker: Option<&Waker>) -> Poll<Option<Result<Event, Gone>>> {
        loop {
            if let Some(event) = self.buffer.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match self.look(waker) {
                Ok(Look::More) => {}
                Ok(Look::Wait) => return Poll::Pending,
                Ok(Look::Closed) => self.ended = true,
                Err(gone) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(gone)));
                }
            }
        }
    }

    /// The next event if there is one now: `Ok(None)` when there is not, or
    /// when the watch has ended (see [`Watch::is_ended`]).
    pub fn try_next(&mut self) -> Result<Option<Event>, Gone> {
        match self.next_with(None) {
            Poll::Ready(Some(Ok(event))) => Ok(Some(event)),
            Poll::Ready(Some(Err(gone))) => Err(gone),
            Poll::Ready(None) | Poll::Pending => Ok(None),
        }
    }

    /// Whether nothing will come any more.
    pub fn is_ended(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }

    /// The revision up to which everything that matches has been delivered.
    pub fn progress(&mut self) -> u64 {
        let reached = match self.buffer.front() {
            Some(event) => event.revision - 1,
            None if self.ended => self.delivered,
            None => {
                let inner = self.ring.inner.lock();
                match inner.slots.get(&self.id).and_then(|slot| slot.pending) {
                    None => inner.revision,
                    Some(position) if position < inner.first => self.delivered,
                    Some(position) => inner.events[(position - inner.first) as usize].revision - 1,
                }
            }
        };
        self.delivered = self.delivered.max(reached);
        self.delivered
    }
}

impl Stream for Watch {
    type Item = Result<Event, Gone>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.next_with(Some(cx.waker()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ring.inner.lock().slots.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn event(revision: u64, key: &str) -> Event {
        Event {
            revision,
            key: key.into(),
            value: None,
            previous: None,
        }
    }

    fn ring(events: usize) -> Arc<Ring> {
        Arc::new(Ring::new(
            Limits {
                events,
                bytes: 1 << 20,
            },
            10,
        ))
    }

    fn drain(watch: &mut Watch) -> Vec<u64> {
        std::iter::from_fn(|| watch.try_next().unwrap())
            .map(|event| event.revision)
            .collect()
    }

    #[test]
    fn replays_then_follows_by_prefix() {
        let ring = ring(100);
        ring.push([event(11, "/a/1"), event(12, "/b/1"), event(13, "/a/2")], 13);
        let mut old = ring.watch("/a/", Some(11)).unwrap();
        let mut new = ring.watch("/a/", None).unwrap();
        assert_eq!((old.progress(), new.progress()), (11, 13));
        assert_eq!(drain(&mut old), [13]);
        ring.push([event(14, "/a/3"), event(14, "/a/4"), event(15, "/b/2")], 15);
        assert_eq!(new.progress(), 13);
        assert_eq!(new.try_next().unwrap().unwrap().revision, 14);
        assert_eq!(new.progress(), 13, "one more event has revision 14");
        assert_eq!(drain(&mut new), [14]);
        assert_eq!(
            (drain(&mut old), old.progress(), new.progress()),
            (vec![14, 14], 15, 15)
        );
    }

    #[test]
    fn only_a_reader_with_unread_events_is_overtaken() {
        let ring = ring(4);
        let mut slow = ring.watch("/a/", None).unwrap();
        let mut idle = ring.watch("/z/", None).unwrap();
        ring.push([event(11, "/a/1")], 11);
        for revision in 12..30 {
            ring.push([event(revision, "/b/1")], revision);
        }
        assert_eq!(slow.try_next(), Err(Gone { oldest: 25 }));
        assert!(slow.is_ended());
        assert_eq!(slow.progress(), 10);
        ring.push([event(30, "/z/1")], 30);
        assert_eq!(drain(&mut idle), [30]);
    }

    #[test]
    fn history_has_an_end_and_holes() {
        let ring = ring(2);
        assert_eq!(ring.watch("", Some(9)).unwrap_err(), Gone { oldest: 10 });
        ring.gap(10, 4_000);
        assert!(
            ring.watch("", Some(10)).is_ok(),
            "it has seen nothing that was lost"
        );
        assert_eq!(ring.watch("", Some(11)).unwrap_err(), Gone { oldest: 4_000 });
        assert!(ring.watch("", Some(4_000)).is_ok());
        ring.push((1..=3).map(|i| event(4_000 + i, "/a")), 4_003);
        assert_eq!(ring.watch("", Some(4_000)).unwrap_err(), Gone { oldest: 4_001 });
        assert_eq!(drain(&mut ring.watch("", Some(4_001)).unwrap()), [4_002, 4_003]);
    }

    #[test]
    fn a_revision_from_the_future_waits_for_it() {
        let ring = ring(10);
        let mut watch = ring.watch("", Some(12)).unwrap();
        ring.push([event(11, "/a"), event(12, "/a"), event(13, "/a")], 13);
        assert_eq!(drain(&mut watch), [13]);
    }

    #[tokio::test]
    async fn closing_wakes_and_ends_readers() {
        let ring = ring(10);
        let mut watch = ring.watch("", None).unwrap();
        let reader = tokio::spawn(async move {
            let mut seen = 0;
            while let Some(event) = watch.next().await {
                event.unwrap();
                seen += 1;
            }
            seen
        });
        tokio::task::yield_now().await;
        ring.push([event(11, "/a")], 11);
        ring.close();
        assert_eq!(reader.await.unwrap(), 1);
    }
}
