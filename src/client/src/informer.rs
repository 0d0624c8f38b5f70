//! A local, always current copy of the objects of a kind.
//!
//! One watch per kind and selector feeds a map; any number of readers look
//! objects up in it and any number of subscribers follow its changes. A
//! subscriber is told *that* a name changed and then looks at the map: changes
//! of one object that come faster than a subscriber reads are folded into one,
//! so a slow subscriber costs a bounded ring of names and never blocks the
//! watch. One that falls out of the ring is brought up to date by comparing
//! what it knows with what there is.
//!
//! Locks: `State` is only held for map operations, never across an await.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use skiff_base::lifecycle::Shutdown;
use tokio::sync::watch;

use crate::Client;

/// Names of changed objects kept for subscribers. A subscriber further behind
/// compares whole maps instead, which costs more than replaying this many.
const RING_NAMES: usize = 4_096;

/// Objects per page of the initial list: bounds the size of one response.
const PAGE_SIZE: u32 = 500;

/// What kinds an informer can hold.
pub trait Cacheable:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}
impl<K> Cacheable for K where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
}

/// Which objects of a kind an informer follows. Empty: all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    /// A label selector, as in `kubectl -l`.
    pub labels: Option<String>,
    /// A field selector, as in `kubectl --field-selector`.
    pub fields: Option<String>,
    /// One namespace instead of all.
    pub namespace: Option<String>,
}

impl Selection {
    /// Objects that match a field selector, in all namespaces.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self {
            fields: Some(selector.into()),
            ..Self::default()
        }
    }

    /// One object by name.
    pub fn named(namespace: Option<&str>, name: &str) -> Self {
        Self {
            namespace: namespace.map(str::to_owned),
            fields: Some(format!("metadata.name={name}")),
            labels: None,
        }
    }
}

/// The informers of a process: the same kind and selection share one watch.
#[derive(Clone)]
pub struct Informers {
    client: Client,
    shutdown: Shutdown,
    running: Arc<Mutex<Running>>,
}

/// Informers by kind and selection, each an `Informer<K>`.
type Running = HashMap<(TypeId, Selection), Arc<dyn Any + Send + Sync>>;

impl Informers {
    /// Informers that watch through `client` until `shutdown`.
    pub fn new(client: Client, shutdown: Shutdown) -> Self {
        Self {
            client,
            shutdown,
            running: Arc::default(),
        }
    }

    /// The client they watch through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// All objects of a kind, in all namespaces.
    pub fn get<K: Cacheable>(&self) -> Informer<K> {
        self.get_with(Selection::default())
    }

    /// The objects of a kind that a selection names.
    pub fn get_with<K: Cacheable>(&self, selection: Selection) -> Informer<K> {
        let key = (TypeId::of::<K>(), selection.clone());
        let mut running = self.running.lock();
        if let Some(informer) = running
            .get(&key)
            .and_then(|any| any.downcast_ref::<Informer<K>>())
        {
            return informer.clone();
        }
        let informer = Informer::start(self.client.clone(), &selection, self.shutdown.child());
        running.insert(key, Arc::new(informer.clone()));
        informer
    }

    /// Ends the watch of a selection that nobody needs any more. Handles that
    /// are still around keep their last state.
    pub fn release<K: Cacheable>(&self, selection: &Selection) {
        let removed = self
            .running
            .lock()
            .remove(&(TypeId::of::<K>(), selection.clone()));
        if let Some(informer) = removed.as_ref().and_then(|any| any.downcast_ref::<Informer<K>>()) {
            informer.shared.stop.cancel();
        }
    }
}

struct State<K> {
    objects: BTreeMap<Arc<str>, Arc<K>>,
    /// Names in the order they changed; `first` is the number of the front one.
    ring: VecDeque<Arc<str>>,
    first: u64,
    synced: bool,
}

impl<K> State<K> {
    fn touch(&mut self, key: Arc<str>) {
        if self.ring.len() == RING_NAMES {
            self.ring.pop_front();
            self.first += 1;
        }
        self.ring.push_back(key);
    }

    fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }
}

struct Shared<K> {
    state: RwLock<State<K>>,
    changed: watch::Sender<u64>,
    stop: Shutdown,
}

/// A handle on the local copy of a kind. Cheap to clone.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

/// What happened to an object since a subscriber last looked.
#[derive(Debug, Clone)]
pub enum Change<K> {
    /// It is there: new, or different from `old`.
    Applied {
        /// What the subscriber saw before, if anything.
        old: Option<Arc<K>>,
        /// The current object.
        new: Arc<K>,
    },
    /// It is gone; this is the last state the subscriber saw.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The current object, or the last one seen.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(last) => last,
        }
    }
}

/// `namespace/name`, or `name` for a cluster-wide object.
pub fn key_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    }
}

/// Splits what [`key_of`] joined.
pub fn split_key(key: &str) -> (Option<&str>, &str) {
    key.split_once('/')
        .map_or((None, key), |(namespace, name)| (Some(namespace), name))
}

impl<K: Cacheable> Informer<K> {
    fn start(client: Client, selection: &Selection, stop: Shutdown) -> Self {
        let informer = Self::idle(stop.clone());
        let api: Api<AnyScope<K>> = match &selection.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &()),
            None => Api::all_with(client, &()),
        };
        let mut config = watcher::Config::default().page_size(PAGE_SIZE);
        config.label_selector = selection.labels.clone();
        config.field_selector = selection.fields.clone();
        let feed = informer.clone();
        stop.clone().spawn("informer", async move {
            let mut events = std::pin::pin!(watcher(api, config).default_backoff());
            let mut fresh: Option<BTreeSet<Arc<str>>> = None;
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => feed.take(unwrap_scope(event), &mut fresh),
                    Some(Err(error)) => {
                        tracing::debug!(kind = %K::kind(&()), error = %error, "watch interrupted; trying again");
                    }
                    None => return,
                }
            }
        });
        informer
    }

    fn idle(stop: Shutdown) -> Self {
        let state = State {
            objects: BTreeMap::new(),
            ring: VecDeque::new(),
            first: 0,
            synced: false,
        };
        Self {
            shared: Arc::new(Shared {
                state: RwLock::new(state),
                changed: watch::Sender::new(0),
                stop,
            }),
        }
    }

    /// An informer without a watch, filled by hand: for tests of components.
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let informer = Self::idle(Shutdown::new());
        let mut fresh = None;
        informer.take(watcher::Event::Init, &mut fresh);
        for object in objects {
            informer.take(watcher::Event::InitApply(object), &mut fresh);
        }
        informer.take(watcher::Event::InitDone, &mut fresh);
        informer
    }

    /// Puts an object into an informer made by [`Informer::fixed`].
    pub fn apply(&self, object: K) {
        self.take(watcher::Event::Apply(object), &mut None);
    }

    /// Takes an object out of an informer made by [`Informer::fixed`].
    pub fn remove(&self, object: K) {
        self.take(watcher::Event::Delete(object), &mut None);
    }

    /// `fresh` holds the names seen while a new list is being read.
    fn take(&self, event: watcher::Event<K>, fresh: &mut Option<BTreeSet<Arc<str>>>) {
        let end = {
            let mut state = self.shared.state.write();
            match event {
                watcher::Event::Init => *fresh = Some(BTreeSet::new()),
                watcher::Event::InitApply(object) => {
                    let key = put(&mut state, object);
                    if let Some(fresh) = fresh {
                        fresh.insert(key);
                    }
                }
                watcher::Event::InitDone => {
                    let seen = fresh.take().unwrap_or_default();
                    let gone: Vec<Arc<str>> = state
                        .objects
                        .keys()
                        .filter(|key| !seen.contains(*key))
                        .cloned()
                        .collect();
                    for key in gone {
                        state.objects.remove(&key);
                        state.touch(key);
                    }
                    state.synced = true;
                }
                watcher::Event::Apply(object) => {
                    put(&mut state, object);
                }
                watcher::Event::Delete(object) => {
                    let key: Arc<str> = key_of(&object).into();
                    // The last state travels with the deletion; keep what subscribers compare with.
                    state.objects.remove(&key);
                    state.touch(key);
                }
            }
            state.end()
        };
        self.shared.changed.send_replace(end);
    }

    /// Resolves once the first complete list has been read.
    pub async fn synced(&self) {
        let mut changed = self.shared.changed.subscribe();
        while !self.is_synced() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the first complete list has been read.
    pub fn is_synced(&self) -> bool {
        self.shared.state.read().synced
    }

    /// The object with this key (`namespace/name` or `name`).
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.shared.state.read().objects.get(key).cloned()
    }

    /// All objects, in order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.state.read().objects.values().cloned().collect()
    }

    /// The objects of one namespace.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        let prefix = format!("{namespace}/");
        let state = self.shared.state.read();
        state
            .objects
            .range::<str, _>((
                std::ops::Bound::Included(prefix.as_str()),
                std::ops::Bound::Unbounded,
            ))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Follows all changes from an empty start: what is present now comes first.
    pub fn subscribe(&self) -> Changes<K> {
        Changes {
            changed: self.shared.changed.subscribe(),
            informer: self.clone(),
            known: BTreeMap::new(),
            position: None,
            pending: VecDeque::new(),
        }
    }
}

fn put<K: Cacheable>(state: &mut State<K>, mut object: K) -> Arc<str> {
    // Bookkeeping of the API server: large, and no component reads it.
    object.meta_mut().managed_fields = None;
    let key: Arc<str> = key_of(&object).into();
    let same = state.objects.get(&key).is_some_and(|old| {
        old.meta().resource_version.is_some() && old.meta().resource_version == object.meta().resource_version
    });
    if !same {
        state.objects.insert(key.clone(), Arc::new(object));
        state.touch(key.clone());
    }
    key
}

/// `K` seen as a kind whose scope is only known at run time, so that one watch
/// function serves all namespaces, one namespace and cluster-wide kinds.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(transparent, bound = "K: DeserializeOwned")]
struct AnyScope<K>(K);

impl<K: Cacheable> Resource for AnyScope<K> {
    type DynamicType = ();
    type Scope = kube::core::DynamicResourceScope;

    fn kind((): &()) -> std::borrow::Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> std::borrow::Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> std::borrow::Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> std::borrow::Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

fn unwrap_scope<K>(event: watcher::Event<AnyScope<K>>) -> watcher::Event<K> {
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(object.0),
        watcher::Event::Delete(object) => watcher::Event::Delete(object.0),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(object.0),
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

/// The changes of an informer as one subscriber sees them.
pub struct Changes<K> {
    informer: Informer<K>,
    changed: watch::Receiver<u64>,
    known: BTreeMap<Arc<str>, Arc<K>>,
    /// Number of the next name to read from the ring; `None`: compare everything.
    position: Option<u64>,
    pending: VecDeque<Arc<str>>,
}

impl<K: Cacheable> Changes<K> {
    /// The next change. Ends when the informer is gone.
    pub async fn next(&mut self) -> Option<Change<K>> {
        loop {
            if let Some(change) = self.try_next() {
                return Some(change);
            }
            self.changed.changed().await.ok()?;
        }
    }

    /// The next change if there is one already.
    pub fn try_next(&mut self) -> Option<Change<K>> {
        loop {
            if self.pending.is_empty() {
                self.changed.mark_unchanged();
                self.fill();
            }
            let key = self.pending.pop_front()?;
            let now = self.informer.get(&key);
            let old = match &now {
                Some(new) => self.known.insert(key, new.clone()),
                None => self.known.remove(&key),
            };
            match (old, now) {
                (Some(old), Some(new)) if Arc::ptr_eq(&old, &new) => {}
                (old, Some(new)) => return Some(Change::Applied { old, new }),
                (Some(old), None) => return Some(Change::Deleted(old)),
                (None, None) => {}
            }
        }
    }

    fn fill(&mut self) {
        let state = self.informer.shared.state.read();
        match self.position {
            Some(position) if position >= state.first => {
                let skip = (position - state.first) as usize;
                self.pending.extend(state.ring.iter().skip(skip).cloned());
            }
            _ => {
                let gone = self.known.keys().filter(|key| !state.objects.contains_key(*key));
                self.pending.extend(gone.chain(state.objects.keys()).cloned());
            }
        }
        self.position = Some(state.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(name: &str, version: u32) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.to_owned());
        map.metadata.namespace = Some("ns".to_owned());
        map.metadata.resource_version = Some(version.to_string());
        map
    }

    #[tokio::test]
    async fn a_subscriber_sees_what_is_there_then_every_change() {
        let informer = Informer::fixed([map("a", 1), map("b", 2)]);
        let mut changes = informer.subscribe();
        for name in ["ns/a", "ns/b"] {
            let change = changes.next().await.expect("present");
            assert_eq!(key_of(&**change.object()), name);
        }
        informer.apply(map("a", 3));
        match changes.next().await {
            Some(Change::Applied { old: Some(old), new }) => {
                assert_eq!(old.metadata.resource_version.as_deref(), Some("1"));
                assert_eq!(new.metadata.resource_version.as_deref(), Some("3"));
            }
            other => panic!("{other:?}"),
        }
        informer.remove(map("b", 4));
        assert!(matches!(changes.next().await, Some(Change::Deleted(old)) if key_of(&*old) == "ns/b"));
        assert!(changes.try_next().is_none());
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_brought_up_to_date() {
        let informer = Informer::fixed([map("gone", 1), map("kept", 2)]);
        let mut changes = informer.subscribe();
        while changes.try_next().is_some() {}
        informer.remove(map("gone", 3));
        for i in 0..RING_NAMES as u32 + 10 {
            informer.apply(map("busy", 10 + i));
        }
        let mut seen = Vec::new();
        while let Some(change) = changes.try_next() {
            seen.push((key_of(&**change.object()), matches!(change, Change::Deleted(_))));
        }
        assert_eq!(
            seen,
            [("ns/gone".to_owned(), true), ("ns/busy".to_owned(), false)]
        );
    }

    #[tokio::test]
    async fn a_new_list_removes_what_it_lacks() {
        let informer = Informer::fixed([map("a", 1), map("b", 2)]);
        let mut fresh = None;
        informer.take(watcher::Event::Init, &mut fresh);
        informer.take(watcher::Event::InitApply(map("b", 2)), &mut fresh);
        assert_eq!(
            informer.list().len(),
            2,
            "nothing is dropped before the list is complete"
        );
        informer.take(watcher::Event::InitDone, &mut fresh);
        assert_eq!(informer.list_in("ns").len(), 1);
        assert!(informer.get("ns/a").is_none());
    }
}
