//! Server-side apply: who owns which field, and what follows from it.
//!
//! Every object lists its managers in `metadata.managedFields`, each with the set of fields it
//! owns. Two things change that list:
//!
//! * [`apply`]: a manager sends all that it cares about. The configuration is merged into the
//!   object, fields that it sent last time and no longer sends are removed (unless somebody else
//!   owns them), and a field that somebody else owns and that would change is a conflict, unless
//!   forced.
//! * [`track_update`]: any other write. What it changed belongs to the writer afterwards.
//!
//! ```text
//! live ──┬─ merge(applied) ─► merged ─ prune(last set) ─► result ─ compare(live) ─► conflicts?
//! managers ────────────────────────────────────────────────────────┘
//! ```
//!
//! Sets are trees of path elements in the form of the wire format ([`FieldSet`]); what an element
//! is, the schema says: fields of structs and maps, items of keyed lists, values of sets. Atomic
//! lists and maps are leaves.
//!
//! Nothing here reads a clock: the time of a write is an argument. A write that changes nothing
//! leaves the list as it is, times included, so that it need not be stored.

mod entries;
mod fieldset;
mod owned;
mod shape;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::schema::{View, zero_value};
use crate::status::{Cause, Status};

pub use entries::{Entry, Operation, decode, encode};
pub use fieldset::FieldSet;
pub use owned::{Comparison, compare, owned_fields};
pub use shape::merge;

/// Entries for updates that an object keeps; the oldest are folded into one per version.
pub const MAX_UPDATE_MANAGERS: usize = 10;
/// Manager of what was there before anybody applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Manager name of `kubectl apply`, which takes over from its client-side predecessor.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One write: by whom, through which endpoint, when.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// Type of the object.
    pub view: View<'a>,
    /// `apps/v1`.
    pub api_version: &'a str,
    /// `status`, or empty.
    pub subresource: &'a str,
    /// Name of the manager.
    pub manager: &'a str,
    /// RFC 3339 with seconds.
    pub time: &'a str,
    /// Fields that this endpoint does not write: `[["status"]]` for the object itself.
    pub reset: &'a [&'a [&'a str]],
}

/// A field that two managers want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as it is shown: `"kubectl" using apps/v1`.
    pub manager: String,
    /// `.spec.replicas`.
    pub field: String,
}

/// Why a configuration cannot be applied.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// Other managers own what would change.
    #[error("{}", conflict_message(.0))]
    Conflict(Vec<Conflict>),
    /// The configuration does not fit the type.
    #[error("failed to create typed patch object: {0}")]
    Invalid(String),
    /// The configuration carries managed fields of its own.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
}

impl ApplyError {
    /// The answer to the client.
    pub fn status(&self) -> Status {
        match self {
            ApplyError::Conflict(conflicts) => {
                let causes = conflicts
                    .iter()
                    .map(|conflict| Cause {
                        reason: "FieldManagerConflict".into(),
                        message: format!("conflict with {}", conflict.manager),
                        field: conflict.field.clone(),
                    })
                    .collect();
                Status::apply_conflict(causes, self.to_string())
            }
            ApplyError::Invalid(_) | ApplyError::ManagedFields => Status::bad_request(self.to_string()),
        }
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            only.manager, only.field
        );
    }
    let mut managers: Vec<&str> = conflicts
        .iter()
        .map(|conflict| conflict.manager.as_str())
        .collect();
    managers.sort_unstable();
    managers.dedup();
    let parts: Vec<String> = managers
        .into_iter()
        .map(|manager| {
            let fields = conflicts.iter().filter(|conflict| conflict.manager == manager);
            let fields: Vec<String> = fields.map(|conflict| format!("- {}", conflict.field)).collect();
            format!("conflicts with {manager}:\n{}", fields.join("\n"))
        })
        .collect();
    format!(
        "Apply failed with {} conflicts: {}",
        conflicts.len(),
        parts.join("\n")
    )
}

/// Applies a configuration to an object, or makes a new one of it.
///
/// The result carries the new managed fields; it is not defaulted or validated yet.
pub fn apply(
    write: &Write<'_>,
    live: Option<&Value>,
    applied: &Value,
    force: bool,
) -> Result<Value, ApplyError> {
    if applied
        .pointer("/metadata/managedFields")
        .is_some_and(|fields| !is_empty(fields))
    {
        return Err(ApplyError::ManagedFields);
    }
    let applied_set = owned::checked_fields(write.view, applied)
        .map_err(|why| ApplyError::Invalid(format!("({}): {why}", describe(write, applied))))?;
    match apply_once(write, live, applied, &applied_set, force) {
        // What kubectl wrote as a client, kubectl may change through the server.
        Err(ApplyError::Conflict(conflicts)) if write.manager == KUBECTL => {
            let allowed = live
                .and_then(|live| last_applied_set(write.view, live))
                .unwrap_or_default();
            let (mine, others): (Vec<_>, Vec<_>) = conflicts
                .into_iter()
                .partition(|conflict| allowed.contains(&conflict.field));
            if others.is_empty() && !mine.is_empty() {
                apply_once(write, live, applied, &applied_set, true)
            } else {
                Err(ApplyError::Conflict(others))
            }
        }
        result => result,
    }
}

fn apply_once(
    write: &Write<'_>,
    live: Option<&Value>,
    applied: &Value,
    applied_set: &FieldSet,
    force: bool,
) -> Result<Value, ApplyError> {
    let empty = Value::Object(Map::new());
    let base = live.unwrap_or(&empty);
    let mut managers = entries::of(base);
    if managers.is_empty() && live.is_some() {
        let mut before = compare(write.view, &zero_value(write.view), base).changed();
        before.remove(entries::stripped());
        if !before.is_empty() {
            managers.push(Entry {
                manager: BEFORE_FIRST_APPLY.into(),
                operation: Operation::Update,
                api_version: write.api_version.into(),
                subresource: String::new(),
                time: Some(write.time.into()),
                fields: before,
            });
        }
    }
    let reset = reset_fields(write);
    let mut fields = applied_set.clone();
    fields.remove_below(&reset);
    fields.remove(entries::stripped());

    let mine = managers.iter().position(|entry| {
        entry.operation == Operation::Apply
            && entry.manager == write.manager
            && entry.subresource == write.subresource
    });
    let last = mine.map(|at| managers.remove(at));
    let merged = merge(write.view, Some(base), applied);
    let mut result = match &last {
        Some(last) => {
            let mut owned = fields.clone();
            managers.iter().for_each(|entry| owned.add(&entry.fields));
            let pruned = shape::prune(write.view, merged, &last.fields, &owned);
            // Empty structs of the configuration may have gone with what was in them.
            merge(write.view, Some(&pruned), applied)
        }
        None => merged,
    };
    shape::drop_nulls(write.view, &mut result);
    // Values take their stored form before they are compared: 0.5 and 500m are one.
    result = match crate::fields::strict_check(write.view, result) {
        Ok(decoded) => decoded.value,
        Err(err) => {
            return Err(ApplyError::Invalid(format!(
                "({}): {err}",
                describe(write, applied)
            )));
        }
    };
    if write.manager == KUBECTL {
        refresh_last_applied(&mut result, applied);
    }

    let comparison = compare(write.view, base, &result).without(&reset);
    take_over(&mut managers, &comparison, force)?;
    let same = last
        .as_ref()
        .is_some_and(|last| last.fields == fields && last.api_version == write.api_version);
    let time = match last.and_then(|last| last.time) {
        Some(time) if same && comparison.is_empty() => time,
        _ => write.time.to_owned(),
    };
    if !fields.is_empty() {
        managers.push(Entry {
            manager: write.manager.into(),
            operation: Operation::Apply,
            api_version: write.api_version.into(),
            subresource: write.subresource.into(),
            time: Some(time),
            fields,
        });
    }
    store(&mut result, managers);
    Ok(result)
}

/// Takes what changed from the managers that had it; a conflict unless forced.
fn take_over(managers: &mut Vec<Entry>, comparison: &Comparison, force: bool) -> Result<(), ApplyError> {
    let changed = comparison.changed();
    let mut conflicts = Vec::new();
    for entry in managers.iter_mut() {
        let lost = entry.fields.intersection(&changed);
        if !force {
            let manager = entry.display();
            conflicts.extend(lost.paths().map(|field| Conflict {
                manager: manager.clone(),
                field,
            }));
        }
        entry.fields.remove(&lost);
        entry.fields.remove(&comparison.removed);
    }
    managers.retain(|entry| !entry.fields.is_empty());
    if conflicts.is_empty() {
        Ok(())
    } else {
        Err(ApplyError::Conflict(conflicts))
    }
}

/// Records a write that is no apply: what it changed belongs to its manager.
///
/// `old` is nothing for a new object. Sets `metadata.managedFields` of `new`.
pub fn track_update(write: &Write<'_>, old: Option<&Value>, new: &mut Value) {
    let zero = old.is_none().then(|| zero_value(write.view));
    let base = old.or(zero.as_ref()).unwrap_or(&Value::Null);
    let comparison = compare(write.view, base, new).without(&reset_fields(write));
    // The usual case costs no look into the list: nothing changed.
    if let Some(old) = old
        && entries::is_carried_over(old, new)
        && comparison.is_only(entries::stripped())
    {
        carry_over(old, new);
        return;
    }
    let mut managers = match entries::sent(old, new, write.subresource) {
        entries::Sent::Reset => Vec::new(),
        entries::Sent::Entries(entries) => entries,
    };
    // Whoever emptied the list of an object does not want it back before the next apply.
    if old.is_some() && managers.is_empty() {
        store(new, managers);
        return;
    }
    let mut fields = comparison.changed();
    fields.remove(entries::stripped());
    let mine = managers.iter().position(|entry| {
        entry.operation == Operation::Update
            && entry.manager == write.manager
            && entry.subresource == write.subresource
            && entry.api_version == write.api_version
    });
    let mut mine = mine.map(|at| managers.remove(at));
    if let Some(mine) = &mut mine {
        mine.fields.remove(&comparison.removed);
    }
    let taken = take_over(&mut managers, &comparison, true);
    debug_assert!(taken.is_ok(), "a forced write has no conflicts");
    if fields.is_empty() {
        managers.extend(mine.filter(|entry| !entry.fields.is_empty()));
    } else {
        let mut entry = mine.unwrap_or_else(|| Entry {
            manager: write.manager.into(),
            operation: Operation::Update,
            api_version: write.api_version.into(),
            subresource: write.subresource.into(),
            time: None,
            fields: FieldSet::default(),
        });
        entry.fields.add(&fields);
        entry.time = Some(write.time.into());
        managers.push(entry);
    }
    store(new, managers);
}

/// Gives the new object the list of the old one, as it is.
fn carry_over(old: &Value, new: &mut Value) {
    let list = old
        .get("metadata")
        .and_then(|metadata| metadata.get("managedFields"));
    if let (Some(list), Some(Value::Object(metadata))) = (list, new.get_mut("metadata")) {
        metadata.insert("managedFields".into(), list.clone());
    }
}

fn store(object: &mut Value, managers: Vec<Entry>) {
    let Value::Object(map) = object else { return };
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else { return };
    match encode(entries::cap(managers)) {
        Value::Array(list) if list.is_empty() => {
            metadata.remove("managedFields");
        }
        list => {
            metadata.insert("managedFields".into(), list);
        }
    }
}

fn reset_fields(write: &Write<'_>) -> FieldSet {
    let mut set = FieldSet::default();
    for path in write.reset {
        let elements: Vec<String> = path.iter().map(|name| fieldset::field(name)).collect();
        set.insert(&elements);
    }
    set
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// `default/web; apps/v1, Kind=Deployment`.
fn describe(write: &Write<'_>, object: &Value) -> String {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let name = match text("/metadata/namespace") {
        "" => text("/metadata/name").to_owned(),
        namespace => format!("{namespace}/{}", text("/metadata/name")),
    };
    format!("{name}; {}, Kind={}", write.api_version, text("/kind"))
}

/// The fields that the client-side `kubectl apply` wrote last, as they appear in conflicts.
fn last_applied_set(view: View<'_>, live: &Value) -> Option<std::collections::HashSet<String>> {
    let text = live
        .get("metadata")?
        .get("annotations")?
        .get(LAST_APPLIED)?
        .as_str()?;
    let object: Value = serde_json::from_str(text).ok()?;
    let mut paths: std::collections::HashSet<String> = owned_fields(view, &object).paths().collect();
    paths.insert(format!(".metadata.annotations.{LAST_APPLIED}"));
    Some(paths)
}

/// Keeps the annotation of the client-side `kubectl apply` true while it exists, so that one can
/// go back to it.
fn refresh_last_applied(object: &mut Value, applied: &Value) {
    let Some(annotation) = object.pointer_mut("/metadata/annotations") else {
        return;
    };
    let Some(text) = annotation.get_mut(LAST_APPLIED) else {
        return;
    };
    let mut applied = applied.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    *text = Value::String(format!("{applied}\n"));
}
