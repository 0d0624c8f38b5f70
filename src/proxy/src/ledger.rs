//! Who contributes what to the section, so that a change costs its own size.
//!
//! The ledger keeps every service's plan, the claims on each front, and how
//! often shared things are used. [`Ledger::set`] replaces one service's plan and collects the difference as an
//! [`Edit`]; nothing else is looked at. The edit is taken by [`Ledger::edit`] and dropped by
//! [`Ledger::applied`]; when applying fails it stays and grows, so nothing is lost.
//!
//! A front claimed by several services goes to the one that sorts first by
//! age, then by name, as long as it claims it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use skiff_nft::{Edit, Element, Family, Key, Name};

use crate::plan::{Front, FrontPlan, ServicePlan};
use crate::rules::{Rules, Shared};
use crate::service::{NodeInfo, Protocol};

/// A service in the order of precedence: age (seconds since the epoch), then `namespace/name`.
pub type ServiceId = (i64, Arc<str>);

/// Connections the kernel remembers that must be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stale {
    /// A connectionless front no longer leads to this endpoint.
    Endpoint(Front, IpAddr),
    /// A connectionless front had no endpoint and has some now: flows seen meanwhile are untranslated.
    Untranslated(Front),
}

/// The book of contributions in one family.
pub struct Ledger {
    rules: Rules,
    services: HashMap<Arc<str>, (ServiceId, ServicePlan)>,
    claims: HashMap<Front, Vec<(ServiceId, FrontPlan)>>,
    shared: HashMap<Shared, usize>,
    cluster_ips: HashMap<IpAddr, usize>,
    hairpin: HashMap<IpAddr, usize>,
    pending: Edit,
    stale: BTreeSet<Stale>,
}

impl Ledger {
    /// An empty book; the first edit declares the section.
    pub fn new(family: Family, node: &NodeInfo) -> Self {
        let rules = Rules::new(family, node);
        let mut pending = Edit::default();
        rules.base(&mut pending);
        Self {
            rules,
            services: HashMap::new(),
            claims: HashMap::new(),
            shared: HashMap::new(),
            cluster_ips: HashMap::new(),
            hairpin: HashMap::new(),
            pending,
            stale: BTreeSet::new(),
        }
    }

    /// How rules are written.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The changes not yet applied.
    pub fn edit(&self) -> &Edit {
        &self.pending
    }

    /// The changes have been applied: forget them, and hand out what the kernel should forget.
    pub fn applied(&mut self) -> BTreeSet<Stale> {
        self.pending = Edit::default();
        std::mem::take(&mut self.stale)
    }

    /// Replaces a service's contribution; an empty plan removes it.
    pub fn set(&mut self, created: i64, name: &str, plan: ServicePlan) {
        let name: Arc<str> = name.into();
        let old = self.services.remove(&name);
        let id = (created, name.clone());
        let (old_id, old) = old.map_or_else(|| (id.clone(), ServicePlan::default()), |(i, p)| (i, p));

        // First what is new, then what goes: shared things in both never fall to zero in between.
        for (chain, rules) in &plan.chains {
            if old.chains.get(chain) != Some(rules) {
                self.pending.chain(chain, rules.clone());
            }
        }
        for (set, kind) in &plan.sets {
            if old.sets.get(set) != Some(kind) {
                self.pending.set(set, kind.clone());
            }
        }
        let names = self.rules.names.clone();
        for address in &plan.cluster_ips {
            count(&mut self.cluster_ips, *address, || {
                self.pending
                    .put(&names.cluster_ips, Key::address(*address), Element::default())
            });
        }
        for address in &plan.hairpin {
            count(&mut self.hairpin, *address, || {
                self.pending
                    .put(&names.hairpin, pair(*address), Element::default())
            });
        }
        let fronts: BTreeSet<Front> = old.fronts.keys().chain(plan.fronts.keys()).copied().collect();
        for front in fronts {
            let wanted = plan.fronts.get(&front);
            if id == old_id && old.fronts.get(&front) == wanted {
                continue;
            }
            self.claim(front, &old_id, &id, wanted);
        }
        for address in &old.cluster_ips {
            release(&mut self.cluster_ips, *address, || {
                self.pending.remove(&names.cluster_ips, Key::address(*address))
            });
        }
        for address in &old.hairpin {
            release(&mut self.hairpin, *address, || {
                self.pending.remove(&names.hairpin, pair(*address))
            });
        }
        for chain in old.chains.keys().filter(|c| !plan.chains.contains_key(*c)) {
            self.pending.remove_chain(chain);
        }
        for set in old.sets.keys().filter(|s| !plan.sets.contains_key(*s)) {
            self.pending.remove_set(set);
        }
        if plan != ServicePlan::default() {
            self.services.insert(name, (id, plan));
        }
    }

    fn claim(&mut self, front: Front, old_id: &ServiceId, id: &ServiceId, wanted: Option<&FrontPlan>) {
        let claims = self.claims.entry(front).or_default();
        let before = claims.first().map(|(_, plan)| plan.clone());
        claims.retain(|(claimant, _)| claimant != old_id);
        if let Some(wanted) = wanted {
            let at = claims.partition_point(|(claimant, _)| claimant < id);
            claims.insert(at, (id.clone(), wanted.clone()));
            if claims.len() > 1 {
                tracing::warn!(?front, winner = %claims[0].0.1, claimant = %id.1, "several services claim one address and port");
            }
        }
        let after = claims.first().map(|(_, plan)| plan.clone());
        if claims.is_empty() {
            self.claims.remove(&front);
        }
        if before != after {
            self.replace(front, before.as_ref(), after.as_ref());
        }
    }

    /// What is installed for a front changes.
    fn replace(&mut self, front: Front, before: Option<&FrontPlan>, after: Option<&FrontPlan>) {
        let elements = |plan: Option<&FrontPlan>| -> BTreeMap<(Name, Key), Element> {
            let list = plan
                .map(|p| front.elements(&self.rules.names, &self.rules, p))
                .unwrap_or_default();
            list.into_iter()
                .map(|(set, key, element)| ((set, key), element))
                .collect()
        };
        let (old, new) = (elements(before), elements(after));
        for ((set, key), _) in old.iter().filter(|(at, _)| !new.contains_key(*at)) {
            self.pending.remove(set, key.clone());
        }
        for ((set, key), element) in new {
            if old.get(&(set.clone(), key.clone())) != Some(&element) {
                self.pending.put(&set, key, element);
            }
        }
        if let Some(shared) = after.and_then(FrontPlan::shared) {
            let rules = &self.rules;
            let pending = &mut self.pending;
            count(&mut self.shared, shared, || {
                pending.chain(&shared.name(), rules.shared(shared))
            });
        }
        if let Some(shared) = before.and_then(FrontPlan::shared) {
            let pending = &mut self.pending;
            release(&mut self.shared, shared, || pending.remove_chain(&shared.name()));
        }
        self.note_stale(front, before, after);
    }

    fn note_stale(&mut self, front: Front, before: Option<&FrontPlan>, after: Option<&FrontPlan>) {
        let (Front::Address(_, protocol, _) | Front::NodePort(protocol, _)) = front;
        if protocol == Protocol::Tcp {
            return;
        }
        let ends = |plan: Option<&FrontPlan>| -> BTreeSet<IpAddr> {
            plan.iter()
                .flat_map(|p| p.cluster.iter().chain(&p.local))
                .map(|e| e.ip())
                .collect()
        };
        let (old, new) = (ends(before), ends(after));
        self.stale
            .extend(old.difference(&new).map(|gone| Stale::Endpoint(front, *gone)));
        if old.is_empty() && !new.is_empty() {
            self.stale.insert(Stale::Untranslated(front));
        }
    }
}

fn pair(address: IpAddr) -> Key {
    Key::address(address).ip(address)
}

fn count<K: std::hash::Hash + Eq>(uses: &mut HashMap<K, usize>, key: K, first: impl FnOnce()) {
    let n = uses.entry(key).or_default();
    *n += 1;
    if *n == 1 {
        first();
    }
}

fn release<K: std::hash::Hash + Eq>(uses: &mut HashMap<K, usize>, key: K, last: impl FnOnce()) {
    if let Some(n) = uses.get_mut(&key) {
        *n -= 1;
        if *n == 0 {
            uses.remove(&key);
            last();
        }
    }
}
