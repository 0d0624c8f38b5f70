//! From sets to objects: merging a configuration into an object, and removing fields from one.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::fieldset::{self, FieldSet};
use super::owned::{Atom, atom, element, owned_fields};
use crate::schema::{ListKind, View, granular};

/// The object with a configuration laid over it. Maps and keyed lists are merged, all else is
/// replaced.
pub fn merge(view: View<'_>, live: Option<&Value>, applied: &Value) -> Value {
    let Some(live) = live else { return applied.clone() };
    match (atom(view, applied), live, applied) {
        (Atom::Map, Value::Object(old), Value::Object(new)) => {
            let mut out = old.clone();
            for (name, value) in new {
                let inner = view.member(name).unwrap_or_else(|| granular());
                let merged = merge(inner, old.get(name), value);
                out.insert(name.clone(), merged);
            }
            Value::Object(out)
        }
        (Atom::List(kind), Value::Array(old), Value::Array(new)) => {
            merge_lists(view, kind, old, new).map_or_else(|| applied.clone(), Value::Array)
        }
        _ => applied.clone(),
    }
}

/// Items of both lists: those of the configuration in its order, between them, where they stood,
/// those that only the object has. Nothing when the items cannot be told apart.
fn merge_lists(view: View<'_>, kind: &ListKind, old: &[Value], new: &[Value]) -> Option<Vec<Value>> {
    let inner = view.items().unwrap_or_else(|| granular());
    let old_ids: Vec<String> = old
        .iter()
        .map(|item| element(kind, item))
        .collect::<Option<_>>()?;
    let new_ids: Vec<String> = new
        .iter()
        .map(|item| element(kind, item))
        .collect::<Option<_>>()?;
    let in_new: HashSet<&String> = new_ids.iter().collect();
    let mut in_old: BTreeMap<&String, &Value> = BTreeMap::new();
    for (id, item) in old_ids.iter().zip(old) {
        in_old.entry(id).or_insert(item);
    }
    let mut out = Vec::with_capacity(old.len() + new.len());
    let mut merged: HashSet<&String> = HashSet::new();
    let (mut left, mut right) = (0, 0);
    while left < old.len() || right < new.len() {
        if let Some(id) = old_ids.get(left) {
            if !in_new.contains(id) {
                out.push(old[left].clone());
                left += 1;
                continue;
            }
            if merged.contains(id) {
                left += 1;
                continue;
            }
        }
        let Some(id) = new_ids.get(right) else { break };
        out.push(merge(inner, in_old.get(id).copied(), &new[right]));
        merged.insert(id);
        right += 1;
    }
    Some(out)
}

/// Removes what a manager no longer sends.
///
/// `last` is what it sent before, `owned` all that anybody owns now, its new configuration
/// included.
pub(super) fn prune(view: View<'_>, merged: Value, last: &FieldSet, owned: &FieldSet) -> Value {
    if last.is_empty() {
        return merged;
    }
    let mut last = last.clone();
    include_named(view, &mut last);
    let pruned = remove(view, &merged, &last, None);

    // Back comes what others own, also below what was removed ...
    let named = |value: &Value| {
        let mut set = owned_fields(view, value);
        include_named(view, &mut set);
        set
    };
    let all = named(&merged);
    let mut keep = named(&pruned);
    let mut owned = owned.clone();
    include_named(view, &mut owned);
    keep.add(&owned);
    let mut gone = all.clone();
    gone.remove(&keep);
    let pruned = remove(view, &merged, &gone, Some(&owned));

    // ... and what nobody owns and the manager never sent.
    let mut gone = all;
    gone.remove(&named(&pruned));
    remove(view, &merged, &gone.intersection(&last), Some(&owned))
}

/// Makes the fields of structs members whose parts are: to own a part is to own the field, while
/// a map or an item of a list counts only when it was named itself.
fn include_named(view: View<'_>, set: &mut FieldSet) {
    set.named_parents(|name| view.field(name).is_some());
    for (element, below) in set.levels() {
        let inner = match element.strip_prefix("f:") {
            Some(name) => view.member(name),
            None => view.items(),
        };
        if let Some(inner) = inner.filter(|_| !below.is_empty()) {
            include_named(inner, below);
        }
    }
}

/// The value without the fields of a set. What becomes empty by that goes too, unless somebody
/// owns it.
fn remove(view: View<'_>, value: &Value, set: &FieldSet, owned: Option<&FieldSet>) -> Value {
    match (atom(view, value), value) {
        (Atom::Map, Value::Object(map)) => {
            let mut out = Map::new();
            for (name, inner) in map {
                let id = fieldset::field(name);
                if set.has(&id) {
                    continue;
                }
                let kept = match set.below(&id) {
                    Some(below) => remove(
                        view.member(name).unwrap_or_else(|| granular()),
                        inner,
                        below,
                        owned.and_then(|owned| owned.below(&id)),
                    ),
                    None => inner.clone(),
                };
                if !became_empty(inner, &kept) || owned.is_some_and(|owned| owned.has(&id)) {
                    out.insert(name.clone(), kept);
                }
            }
            Value::Object(out)
        }
        (Atom::List(kind), Value::Array(items)) => {
            let view = view.items().unwrap_or_else(|| granular());
            let mut out = Vec::with_capacity(items.len());
            for item in items {
                let id = element(kind, item);
                let below = id.as_deref().and_then(|id| set.below(id));
                let owned = id.as_deref().and_then(|id| owned?.below(id));
                match (id, below) {
                    (Some(id), _) if set.has(&id) => {}
                    (_, Some(below)) => out.push(remove(view, item, below, owned)),
                    _ => out.push(item.clone()),
                }
            }
            Value::Array(out)
        }
        _ => value.clone(),
    }
}

fn became_empty(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => after.is_empty() && !before.is_empty(),
        (Value::Array(before), Value::Array(after)) => after.is_empty() && !before.is_empty(),
        _ => false,
    }
}

/// Null in a configuration empties a field.
pub(super) fn drop_nulls(view: View<'_>, value: &mut Value) {
    match (atom(view, value), value) {
        (Atom::Map, Value::Object(map)) => {
            map.retain(|name, inner| {
                let inner_view = view.member(name).unwrap_or_else(|| granular());
                if inner.is_null() {
                    return inner_view.is_nullable();
                }
                drop_nulls(inner_view, inner);
                true
            });
        }
        (Atom::List(_), Value::Array(items)) => {
            let view = view.items().unwrap_or_else(|| granular());
            items.iter_mut().for_each(|item| drop_nulls(view, item));
        }
        _ => {}
    }
}
