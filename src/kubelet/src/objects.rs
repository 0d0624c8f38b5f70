//! ConfigMaps and Secrets that pods of this node refer to, one watch per object.
//!
//! A kubelet may read only what its own pods name, and only by name. A watch lives as long as somebody holds a
//! [`Lease`] on it; several pods share one.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use parking_lot::Mutex;
use skiff_client::informer::{Cacheable, Selection};
use skiff_client::{Changes, Informer, Informers};

/// How long a first answer may take before the pod's event says so; the watch goes on trying.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Why an object is not known.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The API server has not answered yet.
    #[error("failed to sync {kind} cache: timed out waiting for {namespace}/{name}")]
    NotSynced {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Namespace of the object.
        namespace: String,
        /// Name of the object.
        name: String,
    },
}

/// A kind that can be leased.
pub trait Leasable: Cacheable {
    /// How messages call it.
    const LABEL: &'static str;
}

impl Leasable for ConfigMap {
    const LABEL: &'static str = "configmap";
}

impl Leasable for Secret {
    const LABEL: &'static str = "secret";
}

type Key = (&'static str, String, String);

/// The watches, shared by all pods.
#[derive(Clone)]
pub struct Objects {
    inner: Arc<Inner>,
}

struct Inner {
    informers: Informers,
    guards: Mutex<HashMap<Key, Weak<Guard>>>,
}

struct Guard {
    key: Key,
    owner: Weak<Inner>,
    release: fn(&Informers, &Selection),
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(owner) = self.owner.upgrade() else { return };
        let mut guards = owner.guards.lock();
        // Somebody may have leased the object again since the count reached zero: then the watch is theirs.
        if guards
            .get(&self.key)
            .is_some_and(|guard| guard.strong_count() == 0)
        {
            guards.remove(&self.key);
            (self.release)(
                &owner.informers,
                &Selection::named(Some(&self.key.1), &self.key.2),
            );
        }
    }
}

/// A share in the watch of one object.
pub struct Lease<K> {
    informer: Informer<K>,
    guard: Arc<Guard>,
}

impl<K> Clone for Lease<K> {
    fn clone(&self) -> Self {
        Lease {
            informer: self.informer.clone(),
            guard: self.guard.clone(),
        }
    }
}

impl Objects {
    /// No watches yet.
    pub fn new(informers: Informers) -> Objects {
        Objects {
            inner: Arc::new(Inner {
                informers,
                guards: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Watches one object for as long as the lease lives.
    pub fn lease<K: Leasable>(&self, namespace: &str, name: &str) -> Lease<K> {
        let key: Key = (K::LABEL, namespace.to_owned(), name.to_owned());
        let mut guards = self.inner.guards.lock();
        let guard = match guards.get(&key).and_then(Weak::upgrade) {
            Some(guard) => guard,
            None => {
                let guard = Arc::new(Guard {
                    key: key.clone(),
                    owner: Arc::downgrade(&self.inner),
                    release: |informers, selection| informers.release::<K>(selection),
                });
                guards.insert(key, Arc::downgrade(&guard));
                guard
            }
        };
        let informer = self
            .inner
            .informers
            .get_with::<K>(Selection::named(Some(namespace), name));
        drop(guards);
        Lease { informer, guard }
    }
}

impl<K: Leasable> Lease<K> {
    /// The object, or `None` when it does not exist. Waits for the first answer of the API server.
    pub async fn get(&self) -> Result<Option<Arc<K>>, ObjectError> {
        let (kind, namespace, name) = &self.guard.key;
        if tokio::time::timeout(FIRST_ANSWER, self.informer.synced())
            .await
            .is_err()
        {
            return Err(ObjectError::NotSynced {
                kind,
                namespace: namespace.clone(),
                name: name.clone(),
            });
        }
        Ok(self.informer.get(&format!("{namespace}/{name}")))
    }

    /// Changes of the object.
    pub fn changes(&self) -> Changes<K> {
        self.informer.subscribe()
    }
}
