//! Events about objects, as `kubectl describe` shows them.
//!
//! Recording never waits: events go through a bounded queue to one task that
//! writes them. The same event about the same object is counted on one object
//! instead of being written again.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics;
use tokio::sync::mpsc;

use crate::Client;

/// Events waiting to be written. More are dropped (and counted): an event is
/// not worth memory that grows.
const QUEUE: usize = 512;
/// Different events remembered for counting.
const REMEMBERED: usize = 1_024;
/// The longest message kept, as in Kubernetes.
const MAX_MESSAGE_BYTES: usize = 1_024;

/// The two types of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Something went as it should.
    Normal,
    /// Something a person may want to look at.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Entry {
    about: ObjectReference,
    severity: Severity,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records events on behalf of one component. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
}

impl Recorder {
    /// A recorder for `component` on `host` (a node name, or empty).
    pub fn new(client: Client, component: &str, host: &str, shutdown: &Shutdown) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        let writer = Writer {
            client,
            source,
            seen: HashMap::new(),
            order: VecDeque::new(),
        };
        shutdown.spawn_until_cancelled("event recorder", writer.run(entries));
        Self { queue }
    }

    /// A recorder that keeps events for nobody: for tests of components.
    pub fn discard() -> Self {
        Self {
            queue: mpsc::channel(1).0,
        }
    }

    /// Records that something happened to `about`.
    pub fn event(
        &self,
        about: &ObjectReference,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE_BYTES {
            let cut = (0..=MAX_MESSAGE_BYTES - 3)
                .rev()
                .find(|i| message.is_char_boundary(*i))
                .unwrap_or(0);
            message.truncate(cut);
            message.push_str("...");
        }
        let entry = Entry {
            about: about.clone(),
            severity,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        if self.queue.try_send(entry).is_err() {
            metrics::global()
                .counter(
                    "skiff_events_dropped_total",
                    "Events not recorded because the queue was full.",
                )
                .inc();
        }
    }

    /// Records that something went as it should.
    pub fn normal(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(about, Severity::Normal, reason, message);
    }

    /// Records something a person may want to look at.
    pub fn warning(&self, about: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.event(about, Severity::Warning, reason, message);
    }
}

/// What makes two events the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    uid: String,
    name: String,
    field_path: String,
    severity: Severity,
    reason: String,
    message: String,
}

struct Writer {
    client: Client,
    source: EventSource,
    seen: HashMap<Identity, (String, i32)>,
    order: VecDeque<Identity>,
}

impl Writer {
    async fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        while let Some(entry) = entries.recv().await {
            if let Err(error) = self.write(&entry).await {
                tracing::debug!(reason = %entry.reason, %error, "event not recorded");
            }
        }
    }

    async fn write(&mut self, entry: &Entry) -> Result<(), kube::Error> {
        let namespace = entry.about.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let identity = Identity {
            uid: entry.about.uid.clone().unwrap_or_default(),
            name: entry.about.name.clone().unwrap_or_default(),
            field_path: entry.about.field_path.clone().unwrap_or_default(),
            severity: entry.severity,
            reason: entry.reason.clone(),
            message: entry.message.clone(),
        };
        if let Some((name, count)) = self.seen.get_mut(&identity) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": Time(entry.at)});
            match api
                .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    self.seen.remove(&identity);
                    self.order.retain(|other| *other != identity);
                }
                other => return other.map(drop),
            }
        }
        let event = self.first(entry, namespace);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(identity.clone());
        self.seen.insert(identity, (name, 1));
        Ok(())
    }

    fn first(&self, entry: &Entry, namespace: &str) -> Event {
        let about = entry.about.name.as_deref().unwrap_or("unknown");
        let suffix = format!("{:x}{:04x}", entry.at.as_nanosecond(), rand::random::<u16>());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{suffix}")),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: entry.about.clone(),
            type_: Some(entry.severity.as_str().to_owned()),
            reason: Some(entry.reason.clone()),
            message: Some(entry.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(entry.at)),
            last_timestamp: Some(Time(entry.at)),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone(),
            ..Event::default()
        }
    }
}
