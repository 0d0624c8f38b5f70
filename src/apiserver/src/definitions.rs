//! CustomResourceDefinitions: what they make the server serve.
//!
//! The table of kinds is the built-in one and a row for every served version of every established
//! definition. It is brought up to date when it is asked for, so whoever has seen a definition
//! accepted may use its kind at once:
//!
//! ```text
//! create/update ─ complete (names, conditions) ─ commit ─ answer;  next request ─ ServedKinds::load
//! delete ─ finalizer and Terminating ─ commit ─ cleanup task: delete the objects ─ drop the finalizer
//! ```
//!
//! Rows of definitions that did not change are kept. A name that another kind of the group has is
//! not accepted, and a definition without accepted names is not served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_api::kinds::{Kind, Kinds, STORAGE_ROOT};
use skiff_api::status::Status;
use skiff_api::{custom, meta};
use skiff_store::{Snapshot, Store, Watch};

use crate::deleting::DeleteOptions;
use crate::follow::{Change, Follower};
use crate::managed::Manager;
use crate::server::{ApiServer, Call};
use crate::writing::Failure;

/// Keeps a definition until its objects are gone.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Where definitions are stored.
const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";
/// Objects of a dying definition deleted at a time.
const CONCURRENT_DELETES: usize = 64;
/// Pause after a cleanup that failed, for example because the store is full.
const RETRY: Duration = Duration::from_secs(5);

/// The rows made from each definition, in order of names.
type Rows = BTreeMap<Arc<str>, Vec<Kind>>;

/// The table of kinds as it is now.
pub struct ServedKinds {
    state: Mutex<State>,
}

struct State {
    definitions: Follower,
    current: Arc<Kinds>,
    rows: Rows,
}

impl ServedKinds {
    /// What the definitions in the store make of the built-in kinds.
    pub fn new(store: Store) -> Self {
        Self {
            state: Mutex::new(State {
                definitions: Follower::new(store, PREFIX),
                current: Arc::new(Kinds::builtin().clone()),
                rows: Rows::new(),
            }),
        }
    }

    /// The table.
    pub fn load(&self) -> Arc<Kinds> {
        let mut state = self.state.lock();
        let State {
            definitions,
            current,
            rows,
        } = &mut *state;
        if definitions.is_behind() {
            let mut changed = false;
            definitions.sync(|change| {
                changed = true;
                match change {
                    Change::Reset => rows.clear(),
                    Change::Put(entry) => drop(rows.insert(Arc::clone(&entry.key), rows_of(&entry.value))),
                    Change::Delete(key) => drop(rows.remove(key)),
                }
            });
            if changed {
                let mut kinds = Kinds::builtin().clone();
                kinds.extend(rows.values().flatten().cloned());
                *current = Arc::new(kinds);
            }
        }
        Arc::clone(current)
    }
}

fn rows_of(bytes: &[u8]) -> Vec<Kind> {
    let Ok(definition) = serde_json::from_slice::<Value>(bytes) else {
        return Vec::new();
    };
    if !custom::is_established(&definition) {
        return Vec::new();
    }
    custom::rows(&definition).unwrap_or_else(|error| {
        tracing::error!(name = meta::name(&definition), %error, "the definition is not served");
        Vec::new()
    })
}

fn is_definition(kind: &Kind) -> bool {
    kind.group == "apiextensions.k8s.io" && kind.kind == "CustomResourceDefinition"
}

/// Completes a definition that is about to be stored: accepted names and conditions.
pub fn complete(server: &ApiServer, call: &Call, object: &mut Value) {
    if !is_definition(&call.kind) || !call.sub_name().is_empty() {
        return;
    }
    let rules = custom::cel_rules(object);
    if rules > 0 {
        call.warn(format!(
            "{rules} x-kubernetes-validations rules are stored but not evaluated by this server"
        ));
    }
    let now = server.clock.now();
    match conflict(&server.kinds(), object) {
        None => {
            let names = meta::at(object, "spec.names").cloned().unwrap_or_default();
            meta::set(object, "status.acceptedNames", names);
            let (accepted, established) = ("no conflicts found", "the initial names have been accepted");
            condition(object, "NamesAccepted", true, "NoConflicts", accepted, now);
            condition(
                object,
                "Established",
                true,
                "InitialNamesAccepted",
                established,
                now,
            );
        }
        Some((reason, text)) => {
            condition(object, "NamesAccepted", false, reason, &text, now);
            if !custom::is_established(object) {
                let text = "not all names are accepted";
                condition(object, "Established", false, "NotAccepted", text, now);
            }
        }
    }
}

/// A name of the definition that another kind of its group has.
fn conflict(kinds: &Kinds, definition: &Value) -> Option<(&'static str, String)> {
    let text = |path: &str| meta::str_at(definition, path);
    let (group, plural) = (text("spec.group"), text("spec.names.plural"));
    let taken = |name: &str| format!("{name:?} is already in use");
    for other in kinds.iter().filter(|k| k.group == group) {
        if other.plural == plural {
            if other.traits.custom {
                continue;
            }
            return Some(("PluralConflict", taken(plural)));
        }
        let resources = |name: &str| {
            other.singular == name || other.plural == name || other.short_names.contains(&name.into())
        };
        let short = meta::list_at(definition, "spec.names.shortNames").iter();
        if let Some(name) = short.filter_map(Value::as_str).find(|name| resources(name)) {
            return Some(("ShortNamesConflict", taken(name)));
        }
        let types = |name: &str| other.kind == name || other.list_kind == name;
        for (reason, name, used) in [
            ("PluralConflict", plural, resources(plural)),
            (
                "SingularConflict",
                text("spec.names.singular"),
                resources(text("spec.names.singular")),
            ),
            (
                "KindConflict",
                text("spec.names.kind"),
                types(text("spec.names.kind")),
            ),
            (
                "ListKindConflict",
                text("spec.names.listKind"),
                types(text("spec.names.listKind")),
            ),
        ] {
            if used {
                return Some((reason, taken(name)));
            }
        }
    }
    None
}

fn condition(object: &mut Value, kind: &str, holds: bool, reason: &str, message: &str, now: SystemTime) {
    let status = if holds { "True" } else { "False" };
    let mut conditions = meta::list_at(object, "status.conditions").to_vec();
    let at = conditions.iter().position(|c| meta::str_at(c, "type") == kind);
    let since = at
        .map(|at| &conditions[at])
        .filter(|c| meta::str_at(c, "status") == status)
        .map(|c| meta::str_at(c, "lastTransitionTime").to_owned())
        .unwrap_or_else(|| meta::timestamp(now));
    let new = json!({ "type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message });
    match at {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
    meta::set(object, "status.conditions", conditions);
}

/// Marks a definition whose deletion begins: its objects go first.
pub fn begin_deletion(kind: &Kind, object: &mut Value, now: SystemTime) {
    if !is_definition(kind) || meta::is_deleting(object) {
        return;
    }
    let mut finalizers: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
        let finalizers: Vec<&str> = finalizers.iter().map(String::as_str).collect();
        meta::set_finalizers(object, &finalizers);
    }
    let text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    condition(object, "Terminating", true, "InstanceDeletionPending", text, now);
}

/// Nothing new is made of a kind that is going.
pub fn may_create(kind: &Kind) -> Result<(), Status> {
    if kind.custom.as_ref().is_some_and(|c| c.terminating) {
        let mut status = crate::server::method_not_allowed();
        status.message = "create not allowed while custom resource definition is terminating".into();
        return Err(status);
    }
    Ok(())
}

/// Starts the task that deletes the objects of dying definitions.
pub fn start(server: &Arc<ApiServer>) {
    let server = Arc::clone(server);
    let shutdown = server.shutdown.clone();
    shutdown.spawn_until_cancelled("custom resource cleanup", async move {
        loop {
            let snapshot = server.store.snapshot();
            let Some(definitions) = follow(&server.store, PREFIX, &snapshot) else {
                continue;
            };
            let mut watches = vec![definitions];
            let mut failed = false;
            for definition in dying(&snapshot) {
                match clean(&server, &definition).await {
                    Ok(None) => {}
                    Ok(Some(watch)) => watches.push(watch),
                    Err(status) => {
                        let name = meta::name(&definition);
                        tracing::warn!(name, error = status.message, "deleting custom resources failed");
                        failed = true;
                    }
                }
            }
            if failed {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            let events = watches.iter_mut().map(StreamExt::next);
            let (event, ..) = futures::future::select_all(events).await;
            if event.is_none() {
                return;
            }
        }
    });
}

/// What happens after a snapshot was taken; none when too much has happened already.
fn follow(store: &Store, prefix: &str, snapshot: &Snapshot) -> Option<Watch> {
    store.watch(prefix, Some(snapshot.revision())).ok()
}

fn dying(snapshot: &Snapshot) -> Vec<Value> {
    snapshot
        .range(PREFIX, None)
        .filter_map(|entry| serde_json::from_slice::<Value>(&entry.value).ok())
        .filter(|d| meta::is_deleting(d) && meta::finalizers(d).contains(&FINALIZER))
        .collect()
}

/// Deletes the objects of a definition, and lets the definition go when there are none. Otherwise
/// returns a watch of what is left.
async fn clean(server: &ApiServer, definition: &Value) -> Result<Option<Watch>, Status> {
    let text = |path: &str| meta::str_at(definition, path);
    let (group, plural) = (text("spec.group"), text("spec.names.plural"));
    let version = meta::list_at(definition, "spec.versions").iter();
    let version = version
        .map(|v| meta::str_at(v, "name"))
        .next()
        .unwrap_or_default();
    let mut kind = Kind::custom(group, version, text("spec.names.kind"), plural);
    kind.namespaced = text("spec.scope") == "Namespaced";
    let kind = Arc::new(kind);
    let prefix = format!("{STORAGE_ROOT}{group}/{plural}/");
    // Rows of an unestablished definition may be those of a built-in kind.
    if custom::is_established(definition) {
        let snapshot = server.store.snapshot();
        let entries: Vec<_> = snapshot.range(&prefix, None).cloned().collect();
        let results = futures::stream::iter(entries)
            .map(|entry| {
                let kind = Arc::clone(&kind);
                async move {
                    let call = Call::internal(&kind, "delete", "", "");
                    server
                        .delete_entry(&call, &entry, &DeleteOptions::default())
                        .await
                }
            })
            .buffer_unordered(CONCURRENT_DELETES)
            .collect::<Vec<_>>()
            .await;
        for result in results {
            match result {
                // Raced: the watch tells of the change.
                Ok(_) | Err(Failure::Raced { .. }) => {}
                Err(Failure::Status(status)) => return Err(status),
            }
        }
        let after = server.store.snapshot();
        if after.range(&prefix, None).next().is_some() {
            // A lost place means that something happened: the caller looks again at once.
            return match follow(&server.store, &prefix, &snapshot) {
                Some(watch) => Ok(Some(watch)),
                None => Err(Status::internal("too many changes")),
            };
        }
    }
    let row = server.row("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let call = Call::internal(row, "update", "", meta::name(definition));
    let mut release = |old: &Value| {
        let mut new = old.clone();
        let finalizers: Vec<&str> = meta::finalizers(old)
            .into_iter()
            .filter(|f| *f != FINALIZER)
            .collect();
        meta::set_finalizers(&mut new, &finalizers);
        Ok(new)
    };
    match server.modify(&call, false, Manager::server(), &mut release).await {
        Ok(_) => Ok(None),
        Err(status) if status.code == 404 => Ok(None),
        Err(status) => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(plural: &str, kind: &str) -> Value {
        json!({"spec": {"group": "networking.k8s.io", "names": {"plural": plural, "singular": kind.to_lowercase(),
            "kind": kind, "listKind": format!("{kind}List"), "shortNames": ["zz"]}}})
    }

    #[test]
    fn names_of_others_are_not_accepted() {
        let kinds = Kinds::builtin();
        assert_eq!(conflict(kinds, &definition("foos", "Foo")), None);
        assert_eq!(
            conflict(kinds, &definition("ingresses", "Foo")).unwrap().0,
            "PluralConflict"
        );
        assert_eq!(
            conflict(kinds, &definition("foos", "Ingress")).unwrap().0,
            "SingularConflict"
        );
    }

    #[test]
    fn conditions_keep_their_time() {
        let mut object = json!({});
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        condition(&mut object, "A", true, "R", "", at(1));
        condition(&mut object, "A", true, "S", "", at(2));
        let conditions = meta::list_at(&object, "status.conditions");
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0]["lastTransitionTime"], "1970-01-01T00:00:01Z");
        condition(&mut object, "A", false, "S", "", at(2));
        assert_eq!(
            meta::list_at(&object, "status.conditions")[0]["lastTransitionTime"],
            "1970-01-01T00:00:02Z"
        );
    }
}
