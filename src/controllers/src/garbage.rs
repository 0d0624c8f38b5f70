//! Deletes what its owner has left behind.
//!
//! A graph of all objects that own or are owned is kept from metadata-only
//! watches of every kind that can be deleted. Three things happen:
//!
//! * an owner disappears: its dependents lose the reference, and one that has
//!   no owner left is deleted (checked against the API first, by uid);
//! * an owner waits with the finalizer `foregroundDeletion`: its dependents are
//!   deleted, and when none that blocks is left the finalizer is removed;
//! * an owner waits with the finalizer `orphan`: its dependents lose their
//!   reference to it, then the finalizer is removed.
//!
//! Lock order: `Graph` is the only lock and never held across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::WorkQueue;

use crate::{Context, Error, Outcome, is_conflict, is_gone};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// Kinds that never own anything that matters and change all the time.
const IGNORED: [(&str, &str); 3] = [
    ("", "Event"),
    ("events.k8s.io", "Event"),
    ("coordination.k8s.io", "Lease"),
];

/// Starts the loop.
pub fn start(context: &Context) {
    let context = context.clone();
    let shutdown = context.shutdown.clone();
    shutdown.spawn_until_cancelled("garbage collector", async move {
        let mut backoff =
            skiff_base::backoff::Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let kinds = loop {
            match deletable(&context.client).await {
                Ok(kinds) => break kinds,
                Err(error) => {
                    tracing::debug!(%error, "discovery failed; trying again");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        };
        run(context, kinds).await;
    });
}

async fn deletable(client: &Client) -> Result<Vec<(ApiResource, Scope)>, kube::Error> {
    let discovery = Discovery::new(client.clone()).run_aggregated().await?;
    let wanted = |operation: &kube::discovery::ApiCapabilities| {
        [verbs::LIST, verbs::WATCH, verbs::DELETE]
            .iter()
            .all(|verb| operation.supports_operation(verb))
    };
    Ok(discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .filter(|(resource, capabilities)| {
            wanted(capabilities) && !IGNORED.contains(&(resource.group.as_str(), resource.kind.as_str()))
        })
        .map(|(resource, capabilities)| (resource, capabilities.scope))
        .collect())
}

/// An object as the graph knows it.
#[derive(Debug, Clone, PartialEq)]
struct Object {
    kind: usize,
    namespace: Option<String>,
    name: String,
    uid: String,
    owners: Vec<OwnerReference>,
    deleting: bool,
    finalizers: Vec<String>,
}

impl Object {
    fn new(kind: usize, meta: &ObjectMeta) -> Option<Self> {
        Some(Self {
            kind,
            namespace: meta.namespace.clone(),
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
        })
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|have| have == finalizer)
    }
}

#[derive(Debug, Default)]
struct Graph {
    objects: HashMap<String, Object>,
    /// Dependents by the uid of their owner.
    dependents: BTreeMap<String, BTreeSet<String>>,
    /// Kinds whose first list is not complete yet.
    loading: BTreeSet<usize>,
}

impl Graph {
    /// Takes in an object's state; returns the uids to look at.
    fn put(&mut self, object: Object) -> Vec<String> {
        let uid = object.uid.clone();
        let mut look_at = vec![uid.clone()];
        if let Some(old) = self.objects.get(&uid) {
            if *old == object {
                return Vec::new();
            }
            for owner in old.owners.clone() {
                self.unlink(&owner.uid, &uid);
                look_at.push(owner.uid);
            }
        }
        for owner in &object.owners {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        self.objects.insert(uid, object);
        look_at
    }

    /// Forgets an object; returns the uids to look at: its dependents and its owners.
    fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(object) = self.objects.remove(uid) else {
            return Vec::new();
        };
        let mut look_at: Vec<String> = self.dependents_of(uid);
        for owner in object.owners {
            self.unlink(&owner.uid, uid);
            look_at.push(owner.uid);
        }
        look_at
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents_of(&self, owner: &str) -> Vec<String> {
        self.dependents
            .get(owner)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn step(&self, uid: &str) -> Step {
        let Some(object) = self.objects.get(uid) else {
            return Step::Nothing;
        };
        let dependents: Vec<&Object> = self
            .dependents_of(uid)
            .iter()
            .filter_map(|uid| self.objects.get(uid))
            .collect();
        if object.deleting && object.has(ORPHAN) {
            return Step::Orphan {
                owner: object.clone(),
                dependents: dependents.into_iter().cloned().collect(),
            };
        }
        if object.deleting && object.has(FOREGROUND) {
            let blocks = |dependent: &Object| {
                dependent
                    .owners
                    .iter()
                    .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
            };
            let blocking: Vec<Object> = dependents.into_iter().filter(|d| blocks(d)).cloned().collect();
            return if blocking.is_empty() {
                Step::Finalize {
                    object: object.clone(),
                    finalizer: FOREGROUND,
                }
            } else {
                Step::DeleteAll(
                    blocking
                        .into_iter()
                        .filter(|dependent| !dependent.deleting)
                        .collect(),
                )
            };
        }
        if object.deleting || object.owners.is_empty() || !self.loading.is_empty() {
            return Step::Nothing;
        }
        let unsure = object
            .owners
            .iter()
            .any(|owner| match self.objects.get(&owner.uid) {
                None => true,
                Some(owner) => owner.deleting && owner.has(FOREGROUND),
            });
        if unsure {
            Step::CheckOwners(object.clone())
        } else {
            Step::Nothing
        }
    }
}

#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// At least one owner seems gone or waits for its dependents.
    CheckOwners(Object),
    DeleteAll(Vec<Object>),
    Finalize {
        object: Object,
        finalizer: &'static str,
    },
    Orphan {
        owner: Object,
        dependents: Vec<Object>,
    },
}

struct Collector {
    context: Context,
    kinds: Vec<(ApiResource, Scope)>,
    graph: Mutex<Graph>,
}

async fn run(context: Context, kinds: Vec<(ApiResource, Scope)>) {
    let queue: WorkQueue<String> = WorkQueue::new();
    let graph = Graph {
        loading: (0..kinds.len()).collect(),
        ..Graph::default()
    };
    let collector = Arc::new(Collector {
        context: context.clone(),
        kinds,
        graph: Mutex::new(graph),
    });
    for kind in 0..collector.kinds.len() {
        let (collector, queue) = (collector.clone(), queue.clone());
        context
            .shutdown
            .spawn_until_cancelled(
                "garbage watch",
                async move { collector.watch(kind, &queue).await },
            );
    }
    queue
        .run(4, &context.shutdown, |uid| {
            let collector = collector.clone();
            async move { collector.work(&uid).await }
        })
        .await;
}

impl Collector {
    fn all(&self, kind: usize) -> Api<DynamicObject> {
        let (resource, scope) = &self.kinds[kind];
        Api::dynamic(self.context.client.clone(), resource, scope)
    }

    fn metadata(&self, kind: usize) -> Api<PartialObjectMeta<DynamicObject>> {
        let (resource, scope) = &self.kinds[kind];
        Api::dynamic(self.context.client.clone(), resource, scope)
    }

    fn of(&self, object: &Object) -> Api<DynamicObject> {
        self.within(object.kind, object.namespace.as_deref())
    }

    fn within(&self, kind: usize, namespace: Option<&str>) -> Api<DynamicObject> {
        let (resource, scope) = &self.kinds[kind];
        match namespace.filter(|_| *scope == Scope::Namespaced) {
            Some(namespace) => Api::namespaced_with(self.context.client.clone(), namespace, resource),
            None => self.all(kind),
        }
    }

    async fn watch(&self, kind: usize, queue: &WorkQueue<String>) {
        let mut events =
            std::pin::pin!(watcher(self.metadata(kind), watcher::Config::default()).default_backoff());
        let mut fresh: BTreeSet<String> = BTreeSet::new();
        while let Some(event) = events.next().await {
            let look_at = match event {
                Ok(event) => self.take(kind, event, &mut fresh),
                Err(error) => {
                    tracing::debug!(kind = %self.kinds[kind].0.kind, %error, "watch interrupted; trying again");
                    continue;
                }
            };
            for uid in look_at {
                queue.add(uid);
            }
        }
    }

    fn take(
        &self,
        kind: usize,
        event: watcher::Event<PartialObjectMeta<DynamicObject>>,
        fresh: &mut BTreeSet<String>,
    ) -> Vec<String> {
        let mut graph = self.graph.lock();
        match event {
            watcher::Event::Init => {
                fresh.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                let Some(object) = Object::new(kind, &object.metadata) else {
                    return Vec::new();
                };
                fresh.insert(object.uid.clone());
                graph.put(object)
            }
            watcher::Event::InitDone => {
                let gone: Vec<String> = graph
                    .objects
                    .values()
                    .filter(|object| object.kind == kind && !fresh.contains(&object.uid))
                    .map(|object| object.uid.clone())
                    .collect();
                let mut look_at: Vec<String> = gone.iter().flat_map(|uid| graph.remove(uid)).collect();
                fresh.clear();
                if graph.loading.remove(&kind) && graph.loading.is_empty() {
                    look_at.extend(
                        graph
                            .objects
                            .values()
                            .filter(|o| !o.owners.is_empty())
                            .map(|o| o.uid.clone()),
                    );
                }
                look_at
            }
            watcher::Event::Apply(object) => Object::new(kind, &object.metadata)
                .map(|object| graph.put(object))
                .unwrap_or_default(),
            watcher::Event::Delete(object) => object
                .metadata
                .uid
                .map(|uid| graph.remove(&uid))
                .unwrap_or_default(),
        }
    }

    async fn work(&self, uid: &str) -> Outcome {
        let step = self.graph.lock().step(uid);
        match step {
            Step::Nothing => {}
            Step::CheckOwners(object) => self.check_owners(&object).await?,
            Step::DeleteAll(objects) => {
                for object in objects {
                    let owns = !self.graph.lock().dependents_of(&object.uid).is_empty();
                    let policy = if owns {
                        PropagationPolicy::Foreground
                    } else {
                        PropagationPolicy::Background
                    };
                    self.delete(&object, Some(policy)).await?;
                }
            }
            Step::Finalize { object, finalizer } => self.finalize(&object, finalizer).await?,
            Step::Orphan { owner, dependents } => {
                for dependent in &dependents {
                    self.drop_owners(dependent, &[owner.uid.as_str()]).await?;
                }
                self.finalize(&owner, ORPHAN).await?;
            }
        }
        Ok(None)
    }

    /// Deletes an object none of whose owners exists; otherwise removes the
    /// references that lead nowhere.
    async fn check_owners(&self, object: &Object) -> Result<(), Error> {
        let (mut solid, mut dangling, mut waiting) = (0, Vec::new(), Vec::new());
        for owner in &object.owners {
            match self.owner_state(object, owner).await? {
                OwnerState::Gone => dangling.push(owner.uid.as_str()),
                OwnerState::WaitsForDependents => waiting.push(owner.uid.as_str()),
                OwnerState::Present => solid += 1,
            }
        }
        if solid > 0 {
            dangling.extend(waiting);
            return if dangling.is_empty() {
                Ok(())
            } else {
                self.drop_owners(object, &dangling).await
            };
        }
        let owns = !self.graph.lock().dependents_of(&object.uid).is_empty();
        let policy = match (waiting.is_empty(), owns) {
            (false, true) => Some(PropagationPolicy::Foreground),
            _ if object.has(ORPHAN) => Some(PropagationPolicy::Orphan),
            _ if object.has(FOREGROUND) => Some(PropagationPolicy::Foreground),
            _ => Some(PropagationPolicy::Background),
        };
        self.delete(object, policy).await
    }

    /// What became of an owner: the graph knows most; the API decides.
    async fn owner_state(&self, object: &Object, owner: &OwnerReference) -> Result<OwnerState, Error> {
        if let Some(known) = self.graph.lock().objects.get(&owner.uid) {
            let waits = known.deleting && known.has(FOREGROUND);
            return Ok(if waits {
                OwnerState::WaitsForDependents
            } else {
                OwnerState::Present
            });
        }
        let kind = self
            .kinds
            .iter()
            .position(|(resource, _)| {
                resource.api_version == owner.api_version && resource.kind == owner.kind
            })
            .or_else(|| {
                let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
                self.kinds
                    .iter()
                    .position(|(resource, _)| resource.group == group && resource.kind == owner.kind)
            });
        // A kind that is not served: leave the object alone rather than guess.
        let Some(kind) = kind else {
            return Ok(OwnerState::Present);
        };
        match self
            .within(kind, object.namespace.as_deref())
            .get_metadata(&owner.name)
            .await
        {
            Ok(found) if found.metadata.uid.as_deref() == Some(owner.uid.as_str()) => Ok(OwnerState::Present),
            Ok(_) => Ok(OwnerState::Gone),
            Err(error) if is_gone(&error) => Ok(OwnerState::Gone),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete(&self, object: &Object, policy: Option<PropagationPolicy>) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: policy,
            preconditions: Some(Preconditions {
                uid: Some(object.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        settled(self.of(object).delete(&object.name, &params).await.map(drop))
    }

    async fn finalize(&self, object: &Object, finalizer: &str) -> Result<(), Error> {
        let left: Vec<&String> = object
            .finalizers
            .iter()
            .filter(|have| *have != finalizer)
            .collect();
        self.patch(
            object,
            json!({"metadata": {"uid": object.uid, "finalizers": left}}),
        )
        .await
    }

    async fn drop_owners(&self, object: &Object, uids: &[&str]) -> Result<(), Error> {
        let left: Vec<&OwnerReference> = object
            .owners
            .iter()
            .filter(|owner| !uids.contains(&owner.uid.as_str()))
            .collect();
        self.patch(
            object,
            json!({"metadata": {"uid": object.uid, "ownerReferences": left}}),
        )
        .await
    }

    async fn patch(&self, object: &Object, mut patch: serde_json::Value) -> Result<(), Error> {
        // Lists are replaced whole: only on the very version they were read from.
        let current = match self.of(object).get_metadata(&object.name).await {
            Err(error) if is_gone(&error) => return Ok(()),
            other => other?,
        };
        let same = Object::new(object.kind, &current.metadata).is_some_and(|now| {
            now.uid == object.uid && now.owners == object.owners && now.finalizers == object.finalizers
        });
        if !same {
            return if current.metadata.uid.as_deref() == Some(object.uid.as_str()) {
                Err(Error::Other(format!("{} changed meanwhile", object.name)))
            } else {
                Ok(())
            };
        }
        patch["metadata"]["resourceVersion"] = json!(current.metadata.resource_version);
        settled(
            self.of(object)
                .patch(&object.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map(drop),
        )
    }
}

enum OwnerState {
    Present,
    WaitsForDependents,
    Gone,
}

/// Gone means done; a conflict is worth another look.
fn settled(result: Result<(), kube::Error>) -> Result<(), Error> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) if is_conflict(&error) => Err(Error::Other("the object changed meanwhile".to_owned())),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, owners: &[&str], finalizers: &[&str], deleting: bool) -> Object {
        let owner = |uid: &&str| OwnerReference {
            uid: (*uid).to_owned(),
            name: (*uid).to_owned(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        Object {
            kind: 0,
            namespace: None,
            name: uid.to_owned(),
            uid: uid.to_owned(),
            owners: owners.iter().map(owner).collect(),
            deleting,
            finalizers: finalizers.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        graph.put(object("owner", &[], &[], false));
        graph.put(object("child", &["owner"], &[], false));
        assert_eq!(graph.step("child"), Step::Nothing);
        assert_eq!(graph.remove("owner"), ["child"]);
        assert!(matches!(graph.step("child"), Step::CheckOwners(_)));
        graph.remove("child");
        assert!(graph.dependents.is_empty() && graph.objects.is_empty());
    }

    #[test]
    fn nothing_is_judged_before_all_kinds_are_known() {
        let mut graph = Graph {
            loading: [1].into(),
            ..Graph::default()
        };
        graph.put(object("child", &["owner-of-another-kind"], &[], false));
        assert_eq!(graph.step("child"), Step::Nothing);
        graph.loading.clear();
        assert!(matches!(graph.step("child"), Step::CheckOwners(_)));
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents() {
        let mut graph = Graph::default();
        graph.put(object("owner", &[], &[FOREGROUND], true));
        graph.put(object("child", &["owner"], &[], false));
        assert!(matches!(graph.step("owner"), Step::DeleteAll(list) if list.len() == 1));
        graph.put(object("child", &["owner"], &[], true));
        assert_eq!(graph.step("owner"), Step::DeleteAll(Vec::new()));
        assert_eq!(graph.remove("child"), ["owner"]);
        assert!(matches!(
            graph.step("owner"),
            Step::Finalize {
                finalizer: FOREGROUND,
                ..
            }
        ));
    }

    #[test]
    fn orphans_are_let_go_before_their_owner() {
        let mut graph = Graph::default();
        graph.put(object("owner", &[], &[ORPHAN], true));
        graph.put(object("child", &["owner"], &[], false));
        assert!(matches!(graph.step("owner"), Step::Orphan { dependents, .. } if dependents.len() == 1));
    }
}
