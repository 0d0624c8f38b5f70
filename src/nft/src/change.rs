//! What changes in a table, and the operations that make it so.
//!
//! A [`Patch`] names the chains, sets and elements that are touched and what
//! they shall be; its cost is its own size, not the table's. A chain that
//! changes is emptied and filled again, elements change one by one.
//!
//! Order of the operations: nothing may be used before it exists or be deleted
//! while it is used. So: new chains; empty the chains that change or go; delete elements; delete sets;
//! new sets; new elements; new rules; delete chains. All of it is one
//! transaction, so no packet sees anything in between.

use std::collections::{BTreeMap, BTreeSet};

use crate::message::Op;
use crate::model::{Chain, Element, Key, Name, Ruleset, Set, SetType, Statement, Value};

/// Changes to a ruleset, by name. `None` means it goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Patch {
    pub(crate) chains: BTreeMap<Name, Option<Chain>>,
    pub(crate) sets: BTreeMap<Name, Option<SetType>>,
    pub(crate) elements: BTreeMap<Name, BTreeMap<Key, Option<Element>>>,
}

impl Patch {
    /// The patch that turns `current` into `wanted`, looking only at names that `ours` admits.
    pub(crate) fn between(current: &Ruleset, wanted: &Ruleset, ours: impl Fn(&str) -> bool) -> Self {
        let mut patch = Self::default();
        for name in current
            .chains
            .keys()
            .filter(|n| ours(n) && !wanted.chains.contains_key(*n))
        {
            patch.chains.insert(name.clone(), None);
        }
        for (name, chain) in &wanted.chains {
            if current.chains.get(name) != Some(chain) {
                patch.chains.insert(name.clone(), Some(chain.clone()));
            }
        }
        for name in current
            .sets
            .keys()
            .filter(|n| ours(n) && !wanted.sets.contains_key(*n))
        {
            patch.sets.insert(name.clone(), None);
        }
        for (name, set) in &wanted.sets {
            let old = current.sets.get(name).filter(|old| old.kind == set.kind);
            if old.is_none() {
                patch.sets.insert(name.clone(), Some(set.kind.clone()));
            }
            let empty = BTreeMap::new();
            let old = old.map_or(&empty, |old| &old.elements);
            let mut elements = BTreeMap::new();
            for key in old.keys().filter(|k| !set.elements.contains_key(*k)) {
                elements.insert(key.clone(), None);
            }
            for (key, element) in &set.elements {
                if old.get(key) != Some(element) {
                    elements.insert(key.clone(), Some(element.clone()));
                }
            }
            if !elements.is_empty() {
                patch.elements.insert(name.clone(), elements);
            }
        }
        patch
    }

    /// The operations that apply this patch to a table that holds `current`.
    pub(crate) fn operations(&self, current: &Ruleset) -> Vec<Op> {
        let redeclared: BTreeSet<&Name> = self
            .sets
            .iter()
            .filter(|(name, kind)| {
                current
                    .sets
                    .get(*name)
                    .is_some_and(|old| kind.as_ref().is_some_and(|k| *k != old.kind))
            })
            .map(|(name, _)| name)
            .collect();
        let mut chains: BTreeMap<&Name, Option<&Chain>> =
            self.chains.iter().map(|(n, c)| (n, c.as_ref())).collect();
        if !redeclared.is_empty() {
            // Rules hold on to the set they were made with: fill their chains anew.
            for (name, chain) in &current.chains {
                if mentions(chain).iter().any(|set| redeclared.contains(set)) {
                    chains.entry(name).or_insert(Some(chain));
                }
            }
        }
        chains.retain(|name, chain| match (current.chains.get(*name), chain) {
            (None, None) => false,
            (Some(old), Some(new)) => old != *new || mentions(old).iter().any(|s| redeclared.contains(s)),
            _ => true,
        });

        let (mut made, mut emptied, mut filled, mut gone) = (vec![], vec![], vec![], vec![]);
        for (name, chain) in chains {
            let existed = current.chains.get(name);
            match chain {
                Some(chain) => {
                    match existed {
                        None => made.push(Op::AddChain(name.clone(), chain.attachment)),
                        Some(_) => emptied.push(Op::FlushChain(name.clone())),
                    }
                    filled.extend(chain.rules.iter().map(|r| Op::AddRule(name.clone(), r.clone())));
                }
                None => {
                    emptied.push(Op::FlushChain(name.clone()));
                    gone.push(Op::DeleteChain(name.clone()));
                }
            }
        }

        let (mut deleted, mut unset, mut declared, mut added) = (vec![], vec![], vec![], vec![]);
        for (name, kind) in &self.sets {
            let old = current.sets.get(name);
            if old.is_some_and(|old| Some(&old.kind) != kind.as_ref()) {
                unset.push(Op::DeleteSet(name.clone()));
            }
            if let Some(kind) = kind
                && old.is_none_or(|old| old.kind != *kind)
            {
                declared.push(Op::AddSet(name.clone(), kind.clone()));
            }
        }
        let nothing = BTreeMap::new();
        for (name, elements) in &self.elements {
            let kind = match self.sets.get(name) {
                Some(None) => continue,
                Some(Some(kind)) => kind,
                None => match current.sets.get(name) {
                    Some(set) => &set.kind,
                    None => continue,
                },
            };
            let old = current.sets.get(name).filter(|old| old.kind == *kind);
            let old = old.map_or(&nothing, |old| &old.elements);
            let (mut minus, mut plus) = (vec![], vec![]);
            for (key, element) in elements {
                let before = old.get(key);
                if before == element.as_ref() {
                    continue;
                }
                if let Some(before) = before {
                    minus.push((key.clone(), before.clone()));
                }
                if let Some(element) = element {
                    plus.push((key.clone(), element.clone()));
                }
            }
            if !minus.is_empty() {
                deleted.push(Op::DeleteElements(name.clone(), kind.clone(), minus));
            }
            if !plus.is_empty() {
                added.push(Op::AddElements(name.clone(), kind.clone(), plus));
            }
        }
        [made, emptied, deleted, unset, declared, added, filled, gone]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Applies the patch to the model.
    pub(crate) fn apply(self, ruleset: &mut Ruleset) {
        for (name, chain) in self.chains {
            match chain {
                Some(chain) => ruleset.chains.insert(name, chain),
                None => ruleset.chains.remove(&name),
            };
        }
        for (name, kind) in self.sets {
            match kind {
                Some(kind) if ruleset.sets.get(&name).is_some_and(|s| s.kind == kind) => None,
                Some(kind) => ruleset.sets.insert(name, Set::new(kind)),
                None => ruleset.sets.remove(&name),
            };
        }
        for (name, elements) in self.elements {
            let Some(set) = ruleset.sets.get_mut(&name) else {
                continue;
            };
            for (key, element) in elements {
                match element {
                    Some(element) => set.elements.insert(key, element),
                    None => set.elements.remove(&key),
                };
            }
        }
    }
}

/// The operations that make a table from nothing.
pub(crate) fn build(wanted: &Ruleset) -> Vec<Op> {
    let empty = Ruleset::default();
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
    ops.extend(Patch::between(&empty, wanted, |_| true).operations(&empty));
    ops
}

/// The sets and maps a chain's rules use.
pub(crate) fn mentions(chain: &Chain) -> BTreeSet<&Name> {
    fn value<'a>(v: &'a Value, out: &mut BTreeSet<&'a Name>) {
        match v {
            Value::Bitwise { value: inner, .. } => value(inner, out),
            Value::Map { key, map } => {
                out.insert(map);
                key.iter().for_each(|v| value(v, out));
            }
            _ => {}
        }
    }
    let mut out = BTreeSet::new();
    for step in chain.rules.iter().flat_map(|r| &r.steps) {
        use crate::model::NatTarget;
        match step {
            Statement::Match(v, ..) | Statement::SetMark(v) | Statement::SetCtMark(v) => value(v, &mut out),
            Statement::InSet { key, set: name, .. }
            | Statement::VerdictMap { key, map: name }
            | Statement::Update { key, set: name, .. }
            | Statement::Dnat(NatTarget::Map { key, map: name })
            | Statement::Snat(NatTarget::Map { key, map: name }) => {
                out.insert(name);
                key.iter().for_each(|v| value(v, &mut out));
            }
            _ => {}
        }
    }
    out
}
