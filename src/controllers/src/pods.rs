//! Pods on behalf of an owner: which are its own, creating and deleting them
//! with expectations, and telling the owner when one of them changes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams, Preconditions};
use skiff_client::informer::key_of;
use skiff_client::labels::selects;
use skiff_client::{Change, Informer, WorkQueue, message};

use crate::expectations::Expectations;
use crate::objects::{controller_of, generated_name, is_finished, ready_since};
use crate::ownership::{Owner, claim, namespaced, owner_reference};
use crate::{Context, Error, is_conflict, is_gone};

/// Pods created or deleted in one go, as in Kubernetes; the rest follows when
/// these have been seen.
pub(crate) const BURST: usize = 500;

/// The smallest unit in which a refused creation is noticed: batches double
/// from one, so a quota that forbids all of them costs one request.
const FIRST_BATCH: usize = 1;

/// Creates, deletes and claims pods for the owners of one kind.
#[derive(Clone)]
pub(crate) struct PodControl {
    context: Context,
    /// All pods.
    pub pods: Informer<Pod>,
    expectations: Arc<Expectations>,
}

impl PodControl {
    /// For one loop: expectations are counted by the key of the owner.
    pub fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            pods: context.informers.get(),
            expectations: Arc::default(),
        }
    }

    /// Queues the owners that a change of a pod concerns.
    pub fn feed<O: Owner>(&self, owners: &Informer<O>, queue: &WorkQueue<String>) {
        let (expectations, owners) = (self.expectations.clone(), owners.clone());
        self.context.feed(&self.pods, queue, move |change| {
            owners_to_look_at(change, &expectations, &owners)
        });
    }

    /// How long the owner has to wait at most before it may count its pods.
    pub fn wait(&self, key: &str) -> Option<std::time::Duration> {
        self.expectations.wait(key, self.context.clock.monotonic())
    }

    /// The pods `owner` controls, after adopting and releasing. Orphans that
    /// have ended are adopted only when `finished`.
    pub async fn claim<O: Owner>(&self, owner: &O, finished: bool) -> Result<Vec<Arc<Pod>>, Error> {
        let selector = owner.selector();
        let pods = self
            .pods
            .list_in(owner.meta().namespace.as_deref().unwrap_or_default());
        claim(
            &self.context,
            owner,
            pods,
            |pod| selects(selector.as_ref(), pod.metadata.labels.as_ref()) && owner.may_own(&pod.metadata),
            |pod| finished || !is_finished(pod),
        )
        .await
    }

    /// Creates pods in growing batches; the first refusal ends it.
    pub async fn create<O: Owner>(&self, key: &str, owner: &O, pods: Vec<Pod>) -> Result<(), Error> {
        let api = namespaced::<Pod>(&self.context, owner.meta());
        let about = owner.object_ref(&());
        let (mut left, mut batch) = (pods.as_slice(), FIRST_BATCH);
        while !left.is_empty() {
            let (now, rest) = left.split_at(batch.min(left.len()));
            let results = futures::future::join_all(now.iter().map(|pod| {
                let api = api.clone();
                async move {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    self.expectations
                        .announce(key, &created(&name), self.context.clock.monotonic());
                    let result = api.create(&PostParams::default(), pod).await;
                    if result.is_err() {
                        self.expectations.settle(key, &created(&name));
                    }
                    result.map(|_| name)
                }
            }))
            .await;
            for result in results {
                match result {
                    Ok(name) => {
                        let text = format!("Created pod: {name}");
                        self.context.recorder.normal(&about, "SuccessfulCreate", text);
                    }
                    Err(error) => {
                        let text = format!("Error creating: {}", message(&error));
                        self.context.recorder.warning(&about, "FailedCreate", text);
                        return Err(error.into());
                    }
                }
            }
            left = rest;
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes pods, each only if it is still the one that was looked at.
    pub async fn delete<O: Owner>(&self, key: &str, owner: &O, victims: Vec<Arc<Pod>>) -> Result<(), Error> {
        let api = namespaced::<Pod>(&self.context, owner.meta());
        let about = owner.object_ref(&());
        let results = futures::future::join_all(victims.iter().map(|pod| {
            let api = api.clone();
            async move {
                let name = pod.metadata.name.clone().unwrap_or_default();
                self.expectations
                    .announce(key, &deleted(&name), self.context.clock.monotonic());
                let params = DeleteParams {
                    preconditions: Some(Preconditions {
                        uid: pod.metadata.uid.clone(),
                        resource_version: None,
                    }),
                    ..DeleteParams::default()
                };
                let result = api.delete(&name, &params).await;
                if result.is_err() {
                    self.expectations.settle(key, &deleted(&name));
                }
                result.map(|_| name)
            }
        }))
        .await;
        for result in results {
            match result {
                Ok(name) => {
                    let text = format!("Deleted pod: {name}");
                    self.context.recorder.normal(&about, "SuccessfulDelete", text);
                }
                Err(error) if is_gone(&error) || is_conflict(&error) => {}
                Err(error) => {
                    let text = format!("Error deleting: {}", message(&error));
                    self.context.recorder.warning(&about, "FailedDelete", text);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

fn owners_to_look_at<O: Owner>(
    change: &Change<Pod>,
    expectations: &Expectations,
    owners: &Informer<O>,
) -> Vec<String> {
    let mut keys = Vec::new();
    let mut look_at = |pod: &Pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == O::kind(&()) && owner.api_version == O::api_version(&()) => {
                keys.push(format!("{namespace}/{}", owner.name));
            }
            Some(_) => {}
            None => keys.extend(
                owners
                    .list_in(namespace)
                    .iter()
                    .filter(|owner| {
                        selects(owner.selector().as_ref(), pod.metadata.labels.as_ref())
                            && owner.may_own(&pod.metadata)
                    })
                    .map(|owner| key_of(&**owner)),
            ),
        }
    };
    if let Change::Applied { old: Some(old), .. } = change {
        look_at(old);
    }
    look_at(change.object());
    let pod = change.object();
    let leaving = pod.metadata.deletion_timestamp.is_some() || matches!(change, Change::Deleted(_));
    for key in &keys {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        expectations.settle(key, &created(name));
        if leaving {
            expectations.settle(key, &deleted(name));
        }
    }
    keys
}

fn created(name: &str) -> String {
    format!("+{name}")
}

fn deleted(name: &str) -> String {
    format!("-{name}")
}

/// A pod of `owner` from a template, with a generated name.
pub(crate) fn new_pod<O: Owner>(owner: &O, template: PodTemplateSpec) -> Pod {
    let meta = template.metadata.unwrap_or_default();
    let prefix = format!("{}-", owner.meta().name.as_deref().unwrap_or_default());
    Pod {
        metadata: ObjectMeta {
            name: Some(generated_name(&prefix)),
            generate_name: Some(prefix),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Until a ready pod is available; zero or less: it is now.
pub(crate) fn seconds_to_available(pod: &Pod, min_ready: i32, now: jiff::Timestamp) -> i64 {
    match ready_since(pod) {
        _ if min_ready == 0 => 0,
        Some(since) => i64::from(min_ready) - now.duration_since(since).as_secs(),
        None => i64::from(min_ready),
    }
}
