//! From objects to sets: what a configuration owns, and what differs between two objects.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::fieldset::{self, FieldSet};
use crate::schema::{ListKey, ListKind, Shape, View, granular};

/// What a value is for ownership.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Atom<'a> {
    /// One owner.
    Leaf,
    /// Each member has an owner.
    Map,
    /// Each item has an owner.
    List(&'a ListKind),
}

pub(super) fn atom<'a>(view: View<'a>, value: &Value) -> Atom<'a> {
    match view.shape() {
        Shape::Scalar(_) | Shape::Any { granular: false } => Atom::Leaf,
        Shape::Any { granular: true } if value.is_object() => Atom::Map,
        Shape::Any { granular: true } => Atom::Leaf,
        Shape::Struct(_) | Shape::Map(_) if view.is_atomic() => Atom::Leaf,
        Shape::Struct(_) | Shape::Map(_) => Atom::Map,
        Shape::List(_, ListKind::Atomic) => Atom::Leaf,
        Shape::List(_, kind) => Atom::List(kind),
    }
}

/// The element that stands for an item of a list; nothing when its keys are missing.
pub(super) fn element(kind: &ListKind, item: &Value) -> Option<String> {
    match kind {
        ListKind::Atomic => None,
        ListKind::Set => Some(fieldset::value(item)),
        ListKind::Map(keys) => {
            let item = item.as_object()?;
            let key = |key: &ListKey| {
                let value = item
                    .get(&*key.name)
                    .filter(|value| !value.is_null())
                    .or(key.default.as_ref())?;
                Some((key.name.to_string(), value.clone()))
            };
            let keys: Map<String, Value> = keys.iter().filter_map(key).collect();
            (!keys.is_empty()).then(|| fieldset::keys(keys))
        }
    }
}

/// The fields that a configuration sets.
pub fn owned_fields(view: View<'_>, value: &Value) -> FieldSet {
    let mut walk = Walk::default();
    walk.own(view, value);
    walk.set
}

/// The same for a configuration that must fit the type.
pub(super) fn checked_fields(view: View<'_>, value: &Value) -> Result<FieldSet, String> {
    let mut walk = Walk::default();
    walk.own(view, value);
    match walk.error {
        None => Ok(walk.set),
        Some(error) => Err(error),
    }
}

#[derive(Default)]
struct Walk {
    path: Vec<String>,
    set: FieldSet,
    /// The first thing that does not fit.
    error: Option<String>,
}

impl Walk {
    fn fail(&mut self, why: &str) {
        if self.error.is_none() {
            let mut place = FieldSet::default();
            place.insert(&self.path);
            let place = place.paths().last().unwrap_or_else(|| ".".into());
            self.error = Some(format!("{place}: {why}"));
        }
    }

    fn member(&mut self) {
        self.set.insert(&self.path);
    }

    fn own(&mut self, view: View<'_>, value: &Value) {
        match (atom(view, value), value) {
            (Atom::Leaf, _) => self.member(),
            (Atom::Map, Value::Object(map)) => {
                for (name, inner) in map {
                    self.path.push(fieldset::field(name));
                    let is_field = view.field(name).is_some();
                    match view.member(name) {
                        Some(member) => self.own(member, inner),
                        None => self.fail("field not declared in schema"),
                    }
                    if inner.is_null() || inner.as_object().is_some_and(Map::is_empty) || !is_field {
                        self.member();
                    }
                    self.path.pop();
                }
            }
            (Atom::List(kind), Value::Array(items)) => {
                let inner = view.items().unwrap_or_else(|| granular());
                let mut seen = HashSet::new();
                for item in items {
                    let Some(element) = element(kind, item) else {
                        self.fail("element of an associative list omits all key fields");
                        continue;
                    };
                    self.path.push(element.clone());
                    self.own(inner, item);
                    self.member();
                    self.path.pop();
                    if !seen.insert(element.clone()) {
                        let mut key = FieldSet::default();
                        key.insert(&[element]);
                        let key = key.paths().last().unwrap_or_default();
                        self.fail(&format!("duplicate entries for key {key}"));
                    }
                }
            }
            (Atom::Map | Atom::List(_), Value::Null) => {}
            (Atom::Map, _) => self.fail("expected map"),
            (Atom::List(_), _) => self.fail("expected list"),
        }
    }
}

/// What differs between two objects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// Only in the new one.
    pub added: FieldSet,
    /// In both, not the same.
    pub modified: FieldSet,
    /// Only in the old one.
    pub removed: FieldSet,
}

impl Comparison {
    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// Whether nothing differs but some fields.
    pub(super) fn is_only(&self, fields: &FieldSet) -> bool {
        [&self.added, &self.modified, &self.removed]
            .into_iter()
            .all(|set| {
                let mut rest = set.clone();
                rest.remove(fields);
                rest.is_empty()
            })
    }

    /// What the new object says otherwise than the old one.
    pub fn changed(&self) -> FieldSet {
        let mut set = self.added.clone();
        set.add(&self.modified);
        set
    }

    /// Without some fields and all below them.
    pub fn without(mut self, fields: &FieldSet) -> Comparison {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.remove_below(fields);
        }
        self
    }
}

/// Compares two objects of a type. Equal parts cost a comparison of values and no more.
pub fn compare(view: View<'_>, old: &Value, new: &Value) -> Comparison {
    let mut differ = Differ::default();
    differ.compare(view, Some(old), Some(new));
    differ.out
}

#[derive(Default)]
struct Differ {
    path: Vec<String>,
    out: Comparison,
}

impl Differ {
    fn compare(&mut self, view: View<'_>, old: Option<&Value>, new: Option<&Value>) {
        let kind = match (old, new) {
            (Some(old), Some(new)) if old == new => return,
            (None, None) => return,
            (Some(old), Some(new)) => match (atom(view, old), atom(view, new)) {
                (a, b) if a == b => a,
                // Null takes the form of the other side.
                (_, kind) if old.is_null() => kind,
                (kind, _) if new.is_null() => kind,
                // A map became a scalar or the other way round.
                _ => {
                    self.maps(view, old.as_object(), new.as_object());
                    self.leaf(Some(old), Some(new));
                    return;
                }
            },
            (Some(value), None) | (None, Some(value)) => atom(view, value),
        };
        let whole = match kind {
            Atom::Leaf => true,
            Atom::Map => {
                let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
                let empty = a.is_none_or(Map::is_empty) && b.is_none_or(Map::is_empty);
                if !empty {
                    self.maps(view, a, b);
                }
                empty
            }
            Atom::List(kind) => {
                let (a, b) = (old.and_then(Value::as_array), new.and_then(Value::as_array));
                let empty = a.is_none_or(Vec::is_empty) && b.is_none_or(Vec::is_empty);
                empty || !self.lists(view, kind, a, b)
            }
        };
        if whole {
            self.leaf(old, new);
        } else if old.is_none() {
            self.out.added.insert(&self.path);
        } else if new.is_none() {
            self.out.removed.insert(&self.path);
        }
    }

    fn leaf(&mut self, old: Option<&Value>, new: Option<&Value>) {
        match (old, new) {
            (None, _) => self.out.added.insert(&self.path),
            (_, None) => self.out.removed.insert(&self.path),
            _ => self.out.modified.insert(&self.path),
        }
    }

    fn maps(&mut self, view: View<'_>, old: Option<&Map<String, Value>>, new: Option<&Map<String, Value>>) {
        let mut visit = |name: &str, a: Option<&Value>, b: Option<&Value>| {
            if a == b {
                return;
            }
            self.path.push(fieldset::field(name));
            self.compare(view.member(name).unwrap_or_else(|| granular()), a, b);
            self.path.pop();
        };
        for (name, value) in old.into_iter().flatten() {
            visit(name, Some(value), new.and_then(|new| new.get(name)));
        }
        for (name, value) in new.into_iter().flatten() {
            if old.is_none_or(|old| !old.contains_key(name)) {
                visit(name, None, Some(value));
            }
        }
    }

    /// False when the items cannot be told apart.
    fn lists(
        &mut self,
        view: View<'_>,
        kind: &ListKind,
        old: Option<&Vec<Value>>,
        new: Option<&Vec<Value>>,
    ) -> bool {
        let (Some(before), Some(after)) = (index(kind, old), index(kind, new)) else {
            return false;
        };
        let items = view.items().unwrap_or_else(|| granular());
        let mut visit = |element: &String, a: &[&Value], b: &[&Value]| {
            if a == b {
                return;
            }
            self.path.push(element.clone());
            match (a, b) {
                ([] | [_], [] | [_]) => self.compare(items, a.first().copied(), b.first().copied()),
                // Items that are there several times are told apart only as a group.
                _ => self.leaf(a.first().copied(), b.first().copied()),
            }
            self.path.pop();
        };
        for (element, values) in &before {
            visit(element, values, after.get(element).map_or(&[], Vec::as_slice));
        }
        for (element, values) in &after {
            if !before.contains_key(element) {
                visit(element, &[], values);
            }
        }
        true
    }
}

fn index<'v>(kind: &ListKind, items: Option<&'v Vec<Value>>) -> Option<BTreeMap<String, Vec<&'v Value>>> {
    let mut out: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for item in items.into_iter().flatten() {
        out.entry(element(kind, item)?).or_default().push(item);
    }
    Some(out)
}
