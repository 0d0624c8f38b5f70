//! Strategic merge patch: a merge patch in which lists are merged by key.
//!
//! The schema says which lists are merged and by which field; directives in the patch say the
//! rest:
//!
//! | directive | where | effect |
//! |---|---|---|
//! | `$patch: replace` | map, or an item of a list | the rest of the patch replaces the original |
//! | `$patch: delete` | map; item with its key | removes |
//! | `$deleteFromPrimitiveList/NAME: [v]` | beside NAME | removes values from a list of scalars |
//! | `$setElementOrder/NAME: [..]` | beside NAME | the order of the result |
//! | `$retainKeys: [..]` | map | removes all keys that are not named |
//!
//! The order of a merged list: items of the patch in the patch's order, among them, where the
//! original had them earlier, the items that only the original knows.
//!
//! Items are found through maps from key to place, so a patch costs what it and the list are
//! long, not their product.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::patch::{PatchError, parse_object};
use crate::schema::{PatchStrategy, View, granular};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch to an object of the given type.
pub fn strategic_merge(view: View<'_>, document: Value, patch: &[u8]) -> Result<Value, PatchError> {
    strategic_merge_value(view, document, parse_object(patch)?)
}

/// Applies a strategic merge patch that is parsed already.
pub fn strategic_merge_value(
    view: View<'_>,
    document: Value,
    patch: Map<String, Value>,
) -> Result<Value, PatchError> {
    let Value::Object(original) = document else {
        return Err(PatchError::Strategic("the object to patch is no object".into()));
    };
    Ok(Value::Object(merge_map(view, original, patch)?))
}

fn bad(text: impl Into<String>) -> PatchError {
    PatchError::Strategic(text.into())
}

/// The type of a member and how to patch it; unknown members are merged like plain JSON.
fn lookup<'a>(view: View<'a>, name: &str) -> (View<'a>, PatchStrategy) {
    match view.field(name) {
        Some((field, inner)) => (inner, field.patch.clone()),
        None => (
            view.member(name).unwrap_or_else(|| granular()),
            PatchStrategy::default(),
        ),
    }
}

fn merge_map(
    view: View<'_>,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.remove(PATCH) {
        None => {}
        Some(Value::String(how)) if how == "replace" => return Ok(clean_map(patch)),
        Some(Value::String(how)) if how == "delete" => return Ok(Map::new()),
        Some(Value::String(how)) if how == "merge" => {}
        Some(how) => return Err(bad(format!("unknown patch type: {how}"))),
    }
    retain_keys(&mut original, &mut patch)?;
    let ordered: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(SET_ORDER))
        .cloned()
        .collect();
    for directive in ordered {
        let order = patch.remove(&directive).unwrap_or_default();
        merge_ordered(
            view,
            &mut original,
            &mut patch,
            &directive[SET_ORDER.len()..],
            order,
        )?;
    }
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_PRIMITIVES) {
            let Value::Array(gone) = value else {
                return Err(bad(format!("{key} must be a list")));
            };
            if let Some(Value::Array(items)) = original.get_mut(name) {
                let gone: HashSet<String> = gone.iter().map(Value::to_string).collect();
                items.retain(|item| !gone.contains(&item.to_string()));
            }
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let (inner, strategy) = lookup(view, &key);
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(old)), Value::Object(new)) if !strategy.replace => {
                Value::Object(merge_map(inner, old, new)?)
            }
            (Some(Value::Array(old)), Value::Array(new)) if strategy.merge => {
                Value::Array(merge_list(inner, &strategy, old, new)?)
            }
            (_, new) => clean(new),
        };
        original.insert(key, merged);
    }
    Ok(original)
}

fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(bad("$retainKeys must be a list"));
    };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    for (key, value) in patch.iter() {
        if !key.starts_with('$') && !value.is_null() && !keys.contains(key.as_str()) {
            return Err(bad(format!(
                "$retainKeys must name all fields of the patch, {key:?} is missing"
            )));
        }
    }
    original.retain(|key, _| keys.contains(key.as_str()));
    Ok(())
}

/// A list whose order the patch prescribes; takes the list itself out of the patch.
fn merge_ordered(
    view: View<'_>,
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    name: &str,
    order: Value,
) -> Result<(), PatchError> {
    let (inner, strategy) = lookup(view, name);
    let key = strategy.merge_key.as_deref();
    let Value::Array(order) = order else {
        return Err(bad(format!("{SET_ORDER}{name} must be a list")));
    };
    let delta = match patch.get(name) {
        Some(Value::Array(_)) | None => match patch.remove(name) {
            Some(Value::Array(items)) => Some(items),
            _ => None,
        },
        // Null deletes the list; there is nothing to order.
        Some(_) => return Ok(()),
    };
    check_order(name, key, delta.as_deref().unwrap_or_default(), &order)?;
    let old = match original.remove(name) {
        Some(Value::Array(items)) => Some(items),
        _ => None,
    };
    let before = old.clone().unwrap_or_default();
    let merged = match (old, delta) {
        (Some(old), Some(delta)) if strategy.merge => merge_list(inner, &strategy, old, delta)?,
        (_, Some(delta)) => clean_list(delta),
        (Some(old), None) => old,
        (None, None) => return Ok(()),
    };
    original.insert(
        name.to_owned(),
        Value::Array(arrange(key, merged, &order, &before)),
    );
    Ok(())
}

/// The items of a patch must come in the order that the patch prescribes.
fn check_order(name: &str, key: Option<&str>, items: &[Value], order: &[Value]) -> Result<(), PatchError> {
    let places = places(key, order);
    let mut last = 0;
    for item in items {
        if item.get(PATCH).is_some() {
            continue;
        }
        match identity(key, item).and_then(|id| places.get(&id).copied()) {
            Some(place) if place >= last => last = place,
            _ => {
                return Err(bad(format!(
                    "the items of {name:?} do not match the order in {SET_ORDER}{name}"
                )));
            }
        }
    }
    Ok(())
}

fn merge_list(
    items: View<'_>,
    strategy: &PatchStrategy,
    original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, PatchError> {
    let of_objects = original.iter().chain(&patch).any(Value::is_object);
    if !of_objects {
        let before = original.clone();
        let mut seen = HashSet::new();
        let merged = original
            .into_iter()
            .chain(patch.iter().cloned())
            .filter(|item| seen.insert(item.to_string()))
            .collect();
        return Ok(arrange(None, merged, &patch, &before));
    }
    let Some(key) = strategy.merge_key.as_deref() else {
        return Err(bad(format!(
            "cannot merge lists of {} without merge key",
            items.type_name()
        )));
    };
    let (mut merged, patch) = special_items(original, patch, key)?;
    let before: Vec<Value> = merged.iter().map(|item| key_only(key, item)).collect();
    let item_view = items.items().unwrap_or_else(|| granular());
    let order: Vec<Value> = patch.iter().map(|item| key_only(key, item)).collect();
    let mut index = places(Some(key), &merged);
    for item in patch {
        let Value::Object(item) = item else {
            return Err(bad(format!("{item} is no object")));
        };
        let id = item
            .get(key)
            .map(Value::to_string)
            .ok_or_else(|| no_key(&item, key))?;
        match index.get(&id) {
            Some(&place) => {
                let Value::Object(old) = merged[place].take() else {
                    return Err(bad(format!("item {id} of the list is no object")));
                };
                merged[place] = Value::Object(merge_map(item_view, old, item)?);
            }
            None => {
                index.insert(id, merged.len());
                merged.push(Value::Object(clean_map(item)));
            }
        }
    }
    Ok(arrange(Some(key), merged, &order, &before))
}

fn no_key(item: &Map<String, Value>, key: &str) -> PatchError {
    bad(format!(
        "map: {} does not contain declared merge key: {key}",
        Value::Object(item.clone())
    ))
}

/// An item reduced to what identifies it.
fn key_only(key: &str, item: &Value) -> Value {
    match item.get(key) {
        Some(value) => Value::Object(Map::from_iter([(key.to_owned(), value.clone())])),
        None => Value::Null,
    }
}

/// Carries out the items that are directives; returns the original and the patch without them.
fn special_items(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut rest = Vec::with_capacity(patch.len());
    let mut gone = HashSet::new();
    let mut replace = false;
    for item in patch {
        let Some(how) = item.get(PATCH) else {
            rest.push(item);
            continue;
        };
        match how.as_str() {
            Some("delete") => match item.get(key) {
                Some(value) => {
                    gone.insert(value.to_string());
                }
                None => return Err(no_key(item.as_object().unwrap_or(&Map::new()), key)),
            },
            Some("replace") => replace = true,
            Some("merge") => return Err(bad("merging lists cannot yet be specified in the patch")),
            _ => return Err(bad(format!("unknown patch type: {how}"))),
        }
    }
    if replace {
        return Ok((clean_list(rest), Vec::new()));
    }
    if !gone.is_empty() {
        original.retain(|item| {
            item.get(key)
                .is_none_or(|value| !gone.contains(&value.to_string()))
        });
    }
    Ok((original, rest))
}

/// What identifies an item: its key, or itself when it is a scalar.
fn identity(key: Option<&str>, item: &Value) -> Option<String> {
    match key {
        Some(key) => item.get(key).map(Value::to_string),
        None => Some(item.to_string()),
    }
}

/// First place of each item.
fn places(key: Option<&str>, items: &[Value]) -> HashMap<String, usize> {
    let mut out = HashMap::with_capacity(items.len());
    for (place, item) in items.iter().enumerate() {
        if let Some(id) = identity(key, item) {
            out.entry(id).or_insert(place);
        }
    }
    out
}

/// Sorts a merged list: items named in `order` in that order, the others as in `before`; of two
/// items that `before` both knows, the one that was first there comes first.
fn arrange(key: Option<&str>, merged: Vec<Value>, order: &[Value], before: &[Value]) -> Vec<Value> {
    let order = places(key, order);
    let before = places(key, before);
    let place =
        |map: &HashMap<String, usize>, item: &Value| identity(key, item).and_then(|id| map.get(&id).copied());
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(&order, item).is_some());
    named.sort_by_key(|item| place(&order, item));
    others.sort_by_key(|item| place(&before, item).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut named = named.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (Some(other), Some(name)) => {
                matches!((place(&before, other), place(&before, name)), (Some(a), Some(b)) if a <= b)
            }
            (Some(_), None) => true,
            (None, _) => false,
        };
        match if other_first { others.next() } else { named.next() } {
            Some(item) => out.push(item),
            None => return out,
        }
    }
}

/// A value that is new: directives have nothing to work on, nulls nothing to remove.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(clean_map(map)),
        Value::Array(items) => Value::Array(clean_list(items)),
        other => other,
    }
}

fn clean_map(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .map(|(key, value)| (key, clean(value)))
        .collect()
}

fn clean_list(items: Vec<Value>) -> Vec<Value> {
    items
        .into_iter()
        .filter(|item| item.get(PATCH).is_none())
        .map(clean)
        .collect()
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_PRIMITIVES)
}

#[cfg(test)]
mod tests;
