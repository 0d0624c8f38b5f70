//! One table in the kernel, shared by several owners in this process.
//!
//! Each owner has a [`Section`]: chains and sets whose names begin with its
//! prefix, and the chains of it that base chains shall call. An owner replaces
//! its section as a whole ([`Section::replace`]) or touches single things
//! ([`Section::edit`]); either way only differences travel to the kernel, in one transaction.
//!
//! State is derived: nothing is read back from the kernel. The first write
//! replaces a table left by an earlier run, atomically (add, delete, add, fill).
//! So that a restart leaves no moment without services, that first write waits
//! until every *awaited* owner has brought its section; until then the old
//! table goes on working, and what owners bring is only remembered. Without an
//! old table there is nothing to preserve and writes go through at once.
//!
//! If the kernel refuses a change, the table may have been changed by somebody
//! else (`nft flush ruleset`); the whole table is then written anew, once. If that is refused too, the
//! change was wrong: the caller gets the error and the model stays as it was.
//!
//! The socket works in the network namespace of the thread that called [`NftTable::open`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::Error;
use crate::change::{Patch, build};
use crate::hooks::{Hook, Owner};
use crate::message::{Op, encode};
use crate::model::{Chain, Element, Family, Key, Name, Rule, Ruleset, SetType, Statement, Verdict};
use crate::socket::Socket;

/// Longest name of a chain or set; keeps element messages small (the kernel allows 255).
pub const NAME_MAX: usize = 120;

/// What a change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Operations sent; 0 when nothing differed.
    pub operations: usize,
    /// The whole table was written (first write, or repair).
    pub rebuilt: bool,
    /// Only remembered: other owners are awaited before the old table is replaced.
    pub pending: bool,
}

/// An owner's chains and sets, and the chains called from base chains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// Chains and sets, all with the owner's prefix.
    pub ruleset: Ruleset,
    /// Which base chain calls which chain.
    pub hooks: BTreeMap<Hook, Name>,
}

#[derive(Debug)]
struct State {
    socket: Socket,
    model: Ruleset,
    hooks: BTreeMap<(Hook, Owner), Name>,
    /// Owners whose first section is awaited before the kernel's table is replaced.
    awaited: BTreeSet<Owner>,
    /// The kernel's table is ours and equals the model.
    live: bool,
}

#[derive(Debug)]
struct Inner {
    family: Family,
    name: Name,
    state: Mutex<State>,
}

/// A table; clones share it.
#[derive(Debug, Clone)]
pub struct NftTable {
    inner: Arc<Inner>,
}

impl NftTable {
    /// Opens a table in the current thread's network namespace. Nothing is
    /// written yet. When a table of that name exists, it stays until every
    /// owner in `awaited` has brought its section.
    pub fn open(family: Family, name: &str, awaited: &[Owner]) -> Result<Self, Error> {
        check_name(name)?;
        let mut socket = Socket::open()?;
        let exists = socket.table_exists(family, name)?;
        let awaited = if exists {
            awaited.iter().copied().collect()
        } else {
            BTreeSet::new()
        };
        let state = State {
            socket,
            model: Ruleset::default(),
            hooks: BTreeMap::new(),
            awaited,
            live: false,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                family,
                name: name.into(),
                state: Mutex::new(state),
            }),
        })
    }

    /// The table's family.
    pub fn family(&self) -> Family {
        self.inner.family
    }

    /// The handle of an owner's section.
    pub fn section(&self, owner: Owner) -> Section {
        Section {
            table: self.clone(),
            owner,
        }
    }

    /// The whole table as it was last applied.
    pub fn model(&self) -> Ruleset {
        self.inner.state.lock().model.clone()
    }

    /// Stops waiting for owners and writes what there is.
    pub fn release(&self) -> Result<Applied, Error> {
        let mut state = self.inner.state.lock();
        state.awaited.clear();
        self.write(&mut state, Patch::default(), None)
    }

    /// Writes the table again when it is no longer in the kernel. True if it was gone.
    pub fn ensure(&self) -> Result<bool, Error> {
        let mut state = self.inner.state.lock();
        if !state.live || state.socket.table_exists(self.inner.family, &self.inner.name)? {
            return Ok(false);
        }
        state.live = false;
        self.write(&mut state, Patch::default(), None)?;
        Ok(true)
    }

    /// Deletes the table from the kernel and forgets its content.
    pub fn remove(&self) -> Result<(), Error> {
        let mut state = self.inner.state.lock();
        self.send(&mut state, &[Op::AddTable, Op::DeleteTable])?;
        state.model = Ruleset::default();
        state.hooks.clear();
        state.live = false;
        Ok(())
    }

    fn send(&self, state: &mut State, ops: &[Op]) -> Result<(), Error> {
        if ops.is_empty() {
            return Ok(());
        }
        let encoded = encode(self.inner.family, &self.inner.name, ops)?;
        state.socket.transact(
            &encoded,
            ops,
            &format!("{} {}", self.inner.family, self.inner.name),
        )
    }

    /// Applies a patch and perhaps an owner's new hooks to kernel and model.
    fn write(
        &self,
        state: &mut State,
        mut patch: Patch,
        hooks: Option<BTreeMap<(Hook, Owner), Name>>,
    ) -> Result<Applied, Error> {
        if let Some(hooks) = &hooks {
            base_chains(&state.model, hooks, &mut patch);
        }
        if !state.awaited.is_empty() {
            patch.apply(&mut state.model);
            state.hooks = hooks.unwrap_or_else(|| std::mem::take(&mut state.hooks));
            return Ok(Applied {
                pending: true,
                ..Applied::default()
            });
        }
        let mut applied = Applied::default();
        let mut refused = None;
        if state.live {
            let ops = patch.operations(&state.model);
            applied.operations = ops.len();
            match self.send(state, &ops) {
                Ok(()) => patch.clone().apply(&mut state.model),
                Err(e @ (Error::Refused { .. } | Error::Unanswered(_))) => refused = Some(e),
                Err(e) => return Err(e),
            }
        }
        if !state.live || refused.is_some() {
            let mut wanted = state.model.clone();
            patch.apply(&mut wanted);
            let ops = build(&wanted);
            applied = Applied {
                operations: ops.len(),
                rebuilt: true,
                pending: false,
            };
            if let Some(refused) = &refused {
                tracing::warn!(error = %refused, "the nftables table was changed behind our back or the change is wrong: writing the table anew");
            }
            self.send(state, &ops).map_err(|e| refused.unwrap_or(e))?;
            state.model = wanted;
            state.live = true;
        }
        if let Some(hooks) = hooks {
            state.hooks = hooks;
        }
        Ok(applied)
    }
}

/// Puts the base chains into the patch whose calls change.
fn base_chains(model: &Ruleset, hooks: &BTreeMap<(Hook, Owner), Name>, patch: &mut Patch) {
    for hook in Hook::ALL {
        let name: Name = hook.chain_name().into();
        let rules: Vec<Rule> = hooks
            .iter()
            .filter(|((h, _), _)| *h == hook)
            .map(|(_, chain)| Rule::new().jump(chain))
            .collect();
        let chain = (!rules.is_empty()).then(|| Chain {
            attachment: Some(hook.attachment()),
            rules,
        });
        if model.chains.get(&name) != chain.as_ref() {
            patch.chains.insert(name, chain);
        }
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    if first && name.len() <= NAME_MAX && name.chars().all(ok) {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

/// An owner's part of a table.
#[derive(Debug, Clone)]
pub struct Section {
    table: NftTable,
    owner: Owner,
}

impl Section {
    /// The table it is part of.
    pub fn table(&self) -> &NftTable {
        &self.table
    }

    /// The owner's prefix followed by `rest`.
    pub fn name(&self, rest: &str) -> Name {
        format!("{}{rest}", self.owner.prefix()).into()
    }

    fn check(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        if name.starts_with(self.owner.prefix()) {
            return Ok(());
        }
        Err(Error::Foreign {
            owner: self.owner,
            name: name.to_owned(),
        })
    }

    /// Makes the section hold exactly this.
    pub fn replace(&self, content: &Content) -> Result<Applied, Error> {
        for name in content.ruleset.chains.keys().chain(content.ruleset.sets.keys()) {
            self.check(name)?;
        }
        let mut state = self.table.inner.state.lock();
        let prefix = self.owner.prefix();
        let patch = Patch::between(&state.model, &content.ruleset, |name| name.starts_with(prefix));
        let mut hooks = state.hooks.clone();
        hooks.retain(|(_, owner), _| *owner != self.owner);
        hooks.extend(
            content
                .hooks
                .iter()
                .map(|(hook, chain)| ((*hook, self.owner), chain.clone())),
        );
        self.commit(&mut state, patch, Some(hooks))
    }

    /// Changes single things in one transaction; costs what is touched.
    pub fn edit(&self, change: impl FnOnce(&mut Edit)) -> Result<Applied, Error> {
        let mut edit = Edit::default();
        change(&mut edit);
        self.apply(&edit)
    }

    /// Applies collected changes in one transaction.
    pub fn apply(&self, edit: &Edit) -> Result<Applied, Error> {
        let Edit { patch, hooks } = edit.clone();
        for name in patch
            .chains
            .keys()
            .chain(patch.sets.keys())
            .chain(patch.elements.keys())
        {
            self.check(name)?;
        }
        let mut state = self.table.inner.state.lock();
        for name in patch.elements.keys() {
            if !matches!(patch.sets.get(name), Some(Some(_))) && !state.model.sets.contains_key(name) {
                return Err(Error::NoSuchSet(name.to_string()));
            }
        }
        let hooks = (!hooks.is_empty()).then(|| merge(state.hooks.clone(), hooks, self.owner));
        self.commit(&mut state, patch, hooks)
    }

    fn commit(
        &self,
        state: &mut State,
        patch: Patch,
        hooks: Option<BTreeMap<(Hook, Owner), Name>>,
    ) -> Result<Applied, Error> {
        let awaited = state.awaited.remove(&self.owner);
        let result = self.table.write(state, patch, hooks);
        if result.is_err() && awaited {
            state.awaited.insert(self.owner);
        }
        result
    }
}

fn merge(
    mut hooks: BTreeMap<(Hook, Owner), Name>,
    changes: BTreeMap<Hook, Option<Name>>,
    owner: Owner,
) -> BTreeMap<(Hook, Owner), Name> {
    for (hook, chain) in changes {
        match chain {
            Some(chain) => hooks.insert((hook, owner), chain),
            None => hooks.remove(&(hook, owner)),
        };
    }
    hooks
}

/// Changes collected for [`Section::edit`] and [`Section::apply`]. What is said last about a thing counts.
#[derive(Debug, Default, Clone)]
pub struct Edit {
    patch: Patch,
    hooks: BTreeMap<Hook, Option<Name>>,
}

impl Edit {
    /// Makes or replaces a chain.
    pub fn chain(&mut self, name: &Name, rules: Vec<Rule>) {
        self.patch.chains.insert(name.clone(), Some(rules.into()));
    }

    /// Removes a chain.
    pub fn remove_chain(&mut self, name: &Name) {
        self.patch.chains.insert(name.clone(), None);
    }

    /// Declares a set; a set of another type under that name is replaced by an empty one.
    pub fn set(&mut self, name: &Name, kind: SetType) {
        self.patch.sets.insert(name.clone(), Some(kind));
    }

    /// Removes a set.
    pub fn remove_set(&mut self, name: &Name) {
        self.patch.sets.insert(name.clone(), None);
    }

    /// Adds or replaces an element.
    pub fn put(&mut self, set: &Name, key: Key, element: impl Into<Element>) {
        self.patch
            .elements
            .entry(set.clone())
            .or_default()
            .insert(key, Some(element.into()));
    }

    /// Removes an element.
    pub fn remove(&mut self, set: &Name, key: Key) {
        self.patch
            .elements
            .entry(set.clone())
            .or_default()
            .insert(key, None);
    }

    /// Has a base chain call a chain of the section.
    pub fn hook(&mut self, hook: Hook, chain: &Name) {
        self.hooks.insert(hook, Some(chain.clone()));
    }

    /// Has a base chain no longer call the section.
    pub fn unhook(&mut self, hook: Hook) {
        self.hooks.insert(hook, None);
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        let Patch {
            chains,
            sets,
            elements,
        } = &self.patch;
        chains.is_empty() && sets.is_empty() && elements.is_empty() && self.hooks.is_empty()
    }

    /// Applies the changes to a ruleset that only `owner` writes, without a kernel (for tests with the tracer).
    pub fn apply_to(&self, ruleset: &mut Ruleset, owner: Owner) {
        let Edit { mut patch, hooks } = self.clone();
        let mut calls = BTreeMap::new();
        for hook in Hook::ALL {
            let chain = ruleset
                .chains
                .get(hook.chain_name())
                .and_then(|c| c.rules.first());
            if let Some(Statement::Verdict(Verdict::Jump(chain))) = chain.and_then(|r| r.steps.first()) {
                calls.insert((hook, owner), chain.clone());
            }
        }
        base_chains(ruleset, &merge(calls, hooks, owner), &mut patch);
        patch.apply(ruleset);
    }
}
