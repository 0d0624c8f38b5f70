//! What a worker is told: only the newest of each sort is kept, so a slow worker never grows a queue.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::probes::{ProbeKind, ProbeResult};

/// What may have changed since the worker last looked.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<InboxState>,
    pub(super) wake: Notify,
}

#[derive(Default)]
pub(super) struct InboxState {
    pub(super) pod: Option<Arc<Pod>>,
    pub(super) gone: bool,
    pub(super) runtime: bool,
    pub(super) objects: bool,
    pub(super) probes: BTreeMap<(String, ProbeKind), ProbeResult>,
}

impl Inbox {
    fn put(&self, change: impl FnOnce(&mut InboxState)) {
        change(&mut self.state.lock());
        self.wake.notify_one();
    }

    /// Takes everything that arrived.
    pub(super) fn take(&self) -> InboxState {
        std::mem::take(&mut *self.state.lock())
    }

    /// The object is now this.
    pub fn pod(&self, pod: Arc<Pod>) {
        self.put(|state| state.pod = Some(pod));
    }

    /// The object is gone from the API.
    pub fn gone(&self) {
        self.put(|state| state.gone = true);
    }

    /// The runtime's state of this pod changed.
    pub fn runtime(&self) {
        self.put(|state| state.runtime = true);
    }

    /// A ConfigMap, Secret or service the pod uses changed.
    pub fn objects(&self) {
        self.put(|state| state.objects = true);
    }

    /// A probe came to a conclusion.
    pub fn probe(&self, id: String, kind: ProbeKind, result: ProbeResult) {
        self.put(|state| {
            state.probes.insert((id, kind), result);
        });
    }
}
