//! Is there an order of events that explains a history?
//!
//! The store itself says the order: each commit has a revision. So checking
//! is not a search. Every operation must fit at a revision between what was
//! known when it began and what had begun when it ended (which is more than
//! linearizability of each key: one order holds for all keys, lists
//! included), every watch must be exactly a piece of that order, and every
//! life must begin with the state at one revision of the life before: the
//! last one, or one that leaves out only relaxed or unanswered writes.

use std::collections::{BTreeMap, HashMap};

use super::{Asked, List, Record, Seen, Told, When};

/// What is known of all lives so far.
#[derive(Default)]
pub struct Checker {
    /// Per key, what each revision made of it.
    keys: BTreeMap<String, BTreeMap<u64, Option<Seen>>>,
    /// Changes in order: the key that is written first, its mark second.
    log: BTreeMap<u64, Vec<String>>,
    /// Revisions (excluded, excluded) that were lost in a crash.
    lost: Vec<(u64, u64)>,
    pub operations: usize,
    pub events: usize,
}

struct Write<'a> {
    client: u64,
    key: &'a str,
    put: bool,
    when: When,
    strict: bool,
    began: usize,
    acknowledged: bool,
    revision: Option<u64>,
}

type Verdict = Result<(), String>;

impl Checker {
    fn at(&self, key: &str, revision: u64) -> Option<&Seen> {
        self.keys.get(key)?.range(..=revision).next_back()?.1.as_ref()
    }

    fn state(&self, prefix: &str, revision: u64) -> Vec<Seen> {
        let keys = self.keys.keys().filter(|key| key.starts_with(prefix));
        keys.filter_map(|key| self.at(key, revision).cloned()).collect()
    }

    /// Checks one life. `next` is what the life after it came up with;
    /// `orderly` says that it was closed and nothing at all may be missing.
    pub fn life(&mut self, records: &[Record], next: &List, orderly: bool) -> Verdict {
        let Some(Record::Up(up)) = records.first() else {
            return Err("a life does not begin with a list".into());
        };
        let mut writes = self.writes(records, next)?;
        self.apply(&mut writes, up.revision)?;
        let began: BTreeMap<u64, usize> = writes
            .values()
            .filter_map(|w| Some((w.revision?, w.began)))
            .collect();
        self.order(records, &writes, &began, up.revision)?;
        self.watches(records, &began)?;
        self.crash(&writes, up.revision, next, orderly)
    }

    /// All transactions, with the revisions that answers, observers or the next life tell.
    fn writes<'a>(&self, records: &'a [Record], next: &'a List) -> Result<BTreeMap<u64, Write<'a>>, String> {
        let mut writes = BTreeMap::new();
        let mut seen: Vec<&Seen> = next.entries.iter().collect();
        for (index, record) in records.iter().enumerate() {
            match record {
                Record::Begin(
                    id,
                    Asked::Write {
                        client,
                        key,
                        put,
                        when,
                        strict,
                    },
                ) => {
                    let write = Write {
                        client: *client,
                        key,
                        put: *put,
                        when: *when,
                        strict: *strict,
                        began: index,
                        acknowledged: false,
                        revision: None,
                    };
                    writes.insert(*id, write);
                }
                Record::End(id, Told::Committed(revision)) => {
                    let write: &mut Write = writes.get_mut(id).ok_or("an answer without a question")?;
                    (write.acknowledged, write.revision) = (true, Some(*revision));
                }
                Record::End(_, Told::Conflict(Some(one)) | Told::Value(Some(one))) => seen.push(one),
                Record::End(_, Told::List(list)) => seen.extend(&list.entries),
                Record::Event { value, previous, .. } => seen.extend(value.iter().chain(previous)),
                _ => {}
            }
        }
        for one in seen {
            if let Some(write) = writes.get_mut(&one.number) {
                if *write.revision.get_or_insert(one.modified) != one.modified {
                    return Err(format!("{one:?} was written at {:?}", write.revision));
                }
            } else if self.at(&one.key, one.modified) != Some(one) {
                return Err(format!("{one:?}: nobody wrote that"));
            }
        }
        Ok(writes)
    }

    /// Puts the commits of a life behind those before; judges their conditions.
    fn apply(&mut self, writes: &mut BTreeMap<u64, Write<'_>>, start: u64) -> Verdict {
        let mut order: Vec<(u64, u64)> = writes
            .iter()
            .filter_map(|(id, w)| Some((w.revision?, *id)))
            .collect();
        order.sort_unstable();
        for (revision, id) in order {
            let write = &writes[&id];
            if revision <= start || self.log.contains_key(&revision) {
                return Err(format!(
                    "revision {revision} of transaction {id} had been used before"
                ));
            }
            let current = self.at(write.key, revision).cloned();
            if !write.when.holds(current.as_ref()) {
                return Err(format!(
                    "{id} was committed at {revision} though {:?} did not hold: {current:?}",
                    write.when
                ));
            }
            let mut changed = Vec::new();
            for (key, put) in [
                (write.key.to_owned(), write.put),
                (format!("/mark/{}", write.client), true),
            ] {
                let created = self.at(&key, revision).map(|old| old.created);
                if !put && created.is_none() {
                    continue;
                }
                let seen = Seen {
                    key: key.clone(),
                    number: id,
                    created: created.unwrap_or(revision),
                    modified: revision,
                };
                self.keys
                    .entry(key.clone())
                    .or_default()
                    .insert(revision, put.then_some(seen));
                changed.push(key);
            }
            self.log.insert(revision, changed);
        }
        Ok(())
    }

    /// The earliest revision from `known` on at which a key was as it was seen.
    fn fits(&self, key: &str, known: u64, fit: impl Fn(Option<&Seen>) -> bool) -> Option<u64> {
        if fit(self.at(key, known)) {
            return Some(known);
        }
        let later = self.keys.get(key)?.range(known + 1..);
        later
            .into_iter()
            .find(|(_, seen)| fit(seen.as_ref()))
            .map(|(revision, _)| *revision)
    }

    /// One order for everything that was asked.
    fn order(
        &mut self,
        records: &[Record],
        writes: &BTreeMap<u64, Write<'_>>,
        began: &BTreeMap<u64, usize>,
        start: u64,
    ) -> Verdict {
        // A revision of which somebody has heard: what begins later cannot be before it.
        let mut known = start;
        let mut open: HashMap<u64, (u64, &Asked)> = HashMap::new();
        for (index, record) in records.iter().enumerate() {
            let (id, told) = match record {
                Record::Begin(id, asked) => {
                    if let Some(revision) = writes.get(id).and_then(|w| w.revision).filter(|r| *r <= known) {
                        return Err(format!("{id} began when {known} was known and got {revision}"));
                    }
                    open.insert(*id, (known, asked));
                    continue;
                }
                Record::End(id, told) => (id, told),
                _ => continue,
            };
            let (since, asked) = open.remove(id).ok_or("an answer without a question")?;
            self.operations += 1;
            let fits = match (asked, told) {
                (Asked::Write { .. }, Told::Committed(revision)) => Some(*revision),
                (Asked::Write { .. }, Told::Failed) => continue,
                (Asked::Write { key, when, .. }, Told::Conflict(current)) => {
                    self.fits(key, since, |seen| seen == current.as_ref() && !when.holds(seen))
                }
                (Asked::Read { key }, Told::Value(value)) => {
                    self.fits(key, since, |seen| seen == value.as_ref())
                }
                (Asked::List { prefix }, Told::List(list)) => {
                    let fits = list.revision >= since && self.state(prefix, list.revision) == list.entries;
                    fits.then_some(list.revision)
                }
                _ => return Err(format!("{asked:?} was answered with {told:?}")),
            };
            let Some(revision) = fits else {
                return Err(format!(
                    "{id}: no moment since {since} explains {asked:?} {told:?}"
                ));
            };
            if let Some((ahead, _)) = began
                .range(..=revision)
                .next_back()
                .filter(|(_, at)| **at > index)
            {
                return Err(format!(
                    "{id} was answered from {ahead}, which had not been asked for"
                ));
            }
            known = known.max(revision);
        }
        Ok(())
    }

    /// Each watch is a piece of the order, without holes.
    fn watches(&mut self, records: &[Record], began: &BTreeMap<u64, usize>) -> Verdict {
        struct Watch<'a> {
            prefix: &'a str,
            from: u64,
            expected: std::vec::IntoIter<(u64, String)>,
        }
        let mut watches: HashMap<u64, Watch<'_>> = HashMap::new();
        // A commit that failed and was found on the disk by the next life was never shown in this one.
        let shown = records.iter().filter_map(|record| match record {
            Record::End(_, Told::Committed(revision)) | Record::Event { revision, .. } => Some(*revision),
            _ => None,
        });
        let shown = shown.max().unwrap_or(0);
        for (index, record) in records.iter().enumerate() {
            match record {
                Record::Watching { watch, prefix, from } => {
                    let later = self.log.range(from + 1..);
                    let expected: Vec<_> = later
                        .flat_map(|(revision, keys)| keys.iter().map(|key| (*revision, key.clone())))
                        .filter(|(_, key)| key.starts_with(prefix))
                        .collect();
                    watches.insert(
                        *watch,
                        Watch {
                            prefix,
                            from: *from,
                            expected: expected.into_iter(),
                        },
                    );
                }
                Record::Gone { watch, oldest } => {
                    let Some(gone) = watches.remove(watch) else {
                        return Err("gone before it began".into());
                    };
                    if *oldest <= gone.from {
                        return Err(format!(
                            "a watch from {} is gone, but {oldest} would be there",
                            gone.from
                        ));
                    }
                }
                Record::Event {
                    watch,
                    revision,
                    key,
                    value,
                    previous,
                } => {
                    self.events += 1;
                    let Some(w) = watches.get_mut(watch) else {
                        return Err("an event of no watch".into());
                    };
                    if let Some(lost) = self
                        .lost
                        .iter()
                        .find(|(last, next)| *last < w.from && w.from < *next)
                    {
                        return Err(format!(
                            "a watch from {} goes on though it may have seen what was lost: {lost:?}",
                            w.from
                        ));
                    }
                    let next = w.expected.next();
                    if next.as_ref().is_none_or(|(r, k)| r != revision || k != key) {
                        return Err(format!(
                            "watch {} from {}: {next:?} is due, {revision} {key} came",
                            w.prefix, w.from
                        ));
                    }
                    if self.at(key, *revision) != value.as_ref()
                        || self.at(key, revision - 1) != previous.as_ref()
                    {
                        return Err(format!(
                            "the event {revision} of {key} says {previous:?} then {value:?}"
                        ));
                    }
                    if began.get(revision).is_some_and(|at| *at > index) {
                        return Err(format!("the event {revision} came before it was asked for"));
                    }
                }
                Record::Progress { watch, revision } => {
                    let next = watches.get(watch).and_then(|w| w.expected.as_slice().first());
                    if let Some((due, key)) = next.filter(|(due, _)| due <= revision) {
                        return Err(format!(
                            "progress {revision}, but {due} of {key} was not delivered"
                        ));
                    }
                }
                Record::Ended { watch } => {
                    let next = watches.remove(watch).and_then(|mut w| w.expected.next());
                    if let Some((due, key)) = next.filter(|(due, _)| *due <= shown) {
                        return Err(format!("a watch ended without {due} of {key}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the next life came up with, against what this one had promised.
    fn crash(
        &mut self,
        writes: &BTreeMap<u64, Write<'_>>,
        start: u64,
        next: &List,
        orderly: bool,
    ) -> Verdict {
        let highest = writes
            .values()
            .filter_map(|w| w.revision)
            .max()
            .unwrap_or(start)
            .max(start);
        if next.revision < highest || orderly && next.revision > highest {
            return Err(format!(
                "the store came up at {}, {highest} had been used",
                next.revision
            ));
        }
        // Every transaction leaves a mark, so the newest entry is as new as the state.
        let newest = next.entries.iter().map(|seen| seen.modified).max().unwrap_or(0);
        let promised = |w: &&Write<'_>| orderly || (w.acknowledged && w.strict);
        let promised = writes
            .values()
            .filter(promised)
            .filter_map(|w| w.revision)
            .max()
            .unwrap_or(0);
        if newest < promised {
            return Err(format!(
                "{promised} was promised, the store came up with {newest}"
            ));
        }
        if self.state("", newest) != next.entries {
            return Err(format!(
                "what the store came up with is not the state at {newest}"
            ));
        }
        // Lives that lost everything new still begin behind it.
        let kept = newest.max(
            self.log
                .range(..=start)
                .next_back()
                .map_or(0, |(revision, _)| *revision),
        );
        if kept != newest {
            return Err(format!("{kept} had survived a crash and is gone now"));
        }
        if next.revision > highest || highest > newest {
            self.lost.push((newest.max(start), next.revision));
        }
        self.log.split_off(&(newest + 1));
        for revisions in self.keys.values_mut() {
            revisions.split_off(&(newest + 1));
        }
        Ok(())
    }
}
