//! The list in `metadata.managedFields`: reading, writing, keeping it short.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::MAX_UPDATE_MANAGERS;
use super::fieldset::{FieldSet, field};

/// Manager of updates that are too old to be listed one by one.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

/// One manager and its fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name.
    pub manager: String,
    /// How it writes.
    pub operation: Operation,
    /// The version in which it wrote.
    pub api_version: String,
    /// Through which subresource; empty for the object itself.
    pub subresource: String,
    /// When it last changed something.
    pub time: Option<String>,
    /// What it owns.
    pub fields: FieldSet,
}

impl Entry {
    /// As it is shown in conflicts.
    pub fn display(&self) -> String {
        let mut out = Value::from(self.manager.as_str()).to_string();
        if !self.subresource.is_empty() {
            out.push_str(&format!(
                " with subresource {}",
                Value::from(self.subresource.as_str())
            ));
        }
        if self.operation == Operation::Update {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }

    fn decode(value: &Value) -> Option<Entry> {
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let operation = match text("operation") {
            Some("Apply") => Operation::Apply,
            Some("Update") => Operation::Update,
            _ => return None,
        };
        if text("fieldsType").is_some_and(|kind| kind != "FieldsV1") {
            return None;
        }
        let fields = match value.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) => FieldSet::from_value(fields)?,
        };
        Some(Entry {
            manager: text("manager").unwrap_or_default().into(),
            operation,
            api_version: text("apiVersion").unwrap_or_default().into(),
            subresource: text("subresource").unwrap_or_default().into(),
            time: text("time").map(Into::into),
            fields,
        })
    }

    fn encode(&self) -> Value {
        let mut out = json!({
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_value(),
            "manager": self.manager,
            "operation": match self.operation {
                Operation::Apply => "Apply",
                Operation::Update => "Update",
            },
        });
        if !self.subresource.is_empty() {
            out["subresource"] = self.subresource.as_str().into();
        }
        if let Some(time) = &self.time {
            out["time"] = time.as_str().into();
        }
        out
    }
}

/// Fields that nobody owns: the server sets them, or they name the object.
pub(super) fn stripped() -> &'static FieldSet {
    static STRIPPED: LazyLock<FieldSet> = LazyLock::new(|| {
        let mut set = FieldSet::default();
        for name in ["apiVersion", "kind", "metadata"] {
            set.insert(&[field(name)]);
        }
        for name in [
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        ] {
            set.insert(&[field("metadata"), field(name)]);
        }
        set
    });
    &STRIPPED
}

/// Reads a list; nothing when it is malformed.
pub fn decode(list: &Value) -> Option<Vec<Entry>> {
    match list {
        Value::Null => Some(Vec::new()),
        Value::Array(items) => items.iter().map(Entry::decode).collect(),
        _ => None,
    }
}

/// Writes a list in its order: applies before updates, then by time and name.
pub fn encode(mut entries: Vec<Entry>) -> Value {
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| {
            (
                entry.operation,
                entry.time.clone(),
                entry.manager.clone(),
                entry.api_version.clone(),
                entry.subresource.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    Value::Array(entries.iter().map(Entry::encode).collect())
}

/// The managers of an object; none when the list is malformed.
pub(super) fn of(object: &Value) -> Vec<Entry> {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get("managedFields"))
        .and_then(decode)
        .map(unite)
        .unwrap_or_default()
}

/// Whether a writer sent the list as it was, or none at all.
pub(super) fn is_carried_over(old: &Value, new: &Value) -> bool {
    fn list(object: &Value) -> Option<&Value> {
        object.get("metadata")?.get("managedFields")
    }
    list(new).is_none() || list(new) == list(old)
}

/// What a writer sent as managed fields.
pub(super) enum Sent {
    /// The list is to be emptied.
    Reset,
    /// These count: what was sent, or, when nothing sensible was, those of the object.
    Entries(Vec<Entry>),
}

/// The managers that count for an update.
pub(super) fn sent(old: Option<&Value>, new: &Value, subresource: &str) -> Sent {
    let live = || Sent::Entries(old.map(of).unwrap_or_default());
    let Some(list) = new
        .get("metadata")
        .and_then(|metadata| metadata.get("managedFields"))
    else {
        return live();
    };
    // Managed fields are no part of a subresource.
    if !subresource.is_empty() {
        return live();
    }
    if let Value::Array(items) = list
        && let [Value::Object(only)] = items.as_slice()
        && only.is_empty()
    {
        return Sent::Reset;
    }
    match decode(list).map(unite) {
        Some(entries) if !entries.is_empty() => Sent::Entries(entries),
        _ => live(),
    }
}

/// Joins entries of the same manager.
fn unite(entries: Vec<Entry>) -> Vec<Entry> {
    let mut out: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        let same = out.iter_mut().find(|known| {
            known.manager == entry.manager
                && known.operation == entry.operation
                && known.subresource == entry.subresource
                && (known.operation == Operation::Apply || known.api_version == entry.api_version)
        });
        match same {
            Some(known) => {
                known.fields.add(&entry.fields);
                known.time = known.time.take().max(entry.time);
                known.api_version = entry.api_version;
            }
            None => out.push(entry),
        }
    }
    out
}

/// Folds the oldest updates together, by version, until few enough are left.
pub(super) fn cap(entries: Vec<Entry>) -> Vec<Entry> {
    let updates = entries
        .iter()
        .filter(|entry| entry.operation == Operation::Update)
        .count();
    if updates <= MAX_UPDATE_MANAGERS {
        return entries;
    }
    let (mut updates, mut out): (Vec<Entry>, Vec<Entry>) = entries
        .into_iter()
        .partition(|entry| entry.operation == Operation::Update);
    updates.sort_by(|a, b| (&a.time, &a.manager).cmp(&(&b.time, &b.manager)));
    let mut per_version: HashMap<String, usize> = HashMap::new();
    for entry in &updates {
        *per_version.entry(entry.api_version.clone()).or_default() += 1;
    }
    let mut surplus = updates.len() - MAX_UPDATE_MANAGERS;
    let mut buckets: HashMap<String, usize> = HashMap::new();
    for entry in updates {
        match buckets.get(&entry.api_version) {
            Some(&at) if surplus > 0 => {
                let bucket: &mut Entry = &mut out[at];
                bucket.manager = ANCIENT.into();
                bucket.subresource = String::new();
                bucket.fields.add(&entry.fields);
                bucket.time = entry.time;
                surplus -= 1;
            }
            Some(_) => out.push(entry),
            None => {
                if surplus > 0
                    && per_version
                        .get(&entry.api_version)
                        .is_some_and(|count| *count > 1)
                {
                    buckets.insert(entry.api_version.clone(), out.len());
                }
                out.push(entry);
            }
        }
    }
    unite(out)
}
