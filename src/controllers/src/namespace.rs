//! Empties a namespace that is being deleted, then lets it go.
//!
//! A namespace carries the finalizer `kubernetes` in its spec. While it
//! terminates, everything in it is deleted, kind by kind as discovery lists
//! them (custom kinds too); what remains and why is told in its conditions, as
//! Kubernetes does; when nothing remains the finalizer is removed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::{ApiCapabilities, ApiResource, Discovery, Scope, verbs};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::informer::key_of;
use skiff_client::{Change, Informer, WorkQueue};

use crate::{Context, Error, Outcome, is_gone};

const FINALIZER: &str = "kubernetes";

/// What else than pods may need time to go (finalizers of others) is looked at
/// again this often while the namespace terminates.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Starts the loop.
pub fn start(context: &Context) {
    let namespaces: Informer<Namespace> = context.informers.get();
    let pods: Informer<Pod> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&namespaces, &queue, |change| vec![key_of(&**change.object())]);
    context.feed(&pods, &queue, |change| match change {
        Change::Deleted(pod) => pod.metadata.namespace.clone().into_iter().collect(),
        Change::Applied { .. } => Vec::new(),
    });
    let (ready, context_) = (namespaces.clone(), Arc::new(context.clone()));
    context.work(
        "namespaces",
        queue,
        4,
        async move { ready.synced().await },
        move |name| {
            let (context, namespaces) = (context_.clone(), namespaces.clone());
            async move {
                match namespaces.get(&name) {
                    Some(namespace) if is_terminating(&namespace) => finish(&context, &namespace).await,
                    _ => Ok(None),
                }
            }
        },
    );
}

fn is_terminating(namespace: &Namespace) -> bool {
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.as_deref())
        .unwrap_or_default();
    namespace.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FINALIZER)
}

async fn finish(context: &Context, namespace: &Namespace) -> Outcome {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let discovery = Discovery::new(context.client.clone()).run_aggregated().await?;
    let mut left = Remains::default();
    for (resource, capabilities) in namespaced_kinds(&discovery) {
        if let Err(error) = empty(&context.client, name, &resource, &capabilities, &mut left).await {
            left.failed.push(format!("{}: {error}", resource.plural));
        }
    }
    tell(context, namespace, &left).await?;
    if !left.is_nothing() {
        return Ok(Some(LOOK_AGAIN));
    }
    let mut finalized = namespace.clone();
    if let Some(spec) = &mut finalized.spec {
        spec.finalizers
            .get_or_insert_default()
            .retain(|finalizer| finalizer != FINALIZER);
    }
    finalized.metadata.resource_version = None;
    let body = serde_json::to_vec(&finalized).map_err(|error| Error::Other(error.to_string()))?;
    let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|error| Error::Other(error.to_string()))?;
    match context.client.request::<Namespace>(request).await {
        Err(error) if !is_gone(&error) => Err(error.into()),
        _ => Ok(None),
    }
}

fn namespaced_kinds(discovery: &Discovery) -> Vec<(ApiResource, ApiCapabilities)> {
    discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .filter(|(_, capabilities)| {
            capabilities.scope == Scope::Namespaced
                && capabilities.supports_operation(verbs::LIST)
                && capabilities.supports_operation(verbs::DELETE)
        })
        .collect()
}

/// What is still in a namespace.
#[derive(Debug, Default)]
struct Remains {
    /// Objects by `plural.group`.
    objects: BTreeMap<String, usize>,
    /// Objects that wait for a finalizer, by finalizer.
    finalizers: BTreeMap<String, usize>,
    failed: Vec<String>,
}

impl Remains {
    fn is_nothing(&self) -> bool {
        self.objects.is_empty() && self.failed.is_empty()
    }
}

async fn empty(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
    capabilities: &ApiCapabilities,
    left: &mut Remains,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let present = remaining(&api).await?;
    if present.is_empty() {
        return Ok(());
    }
    if capabilities.supports_operation(verbs::DELETE_COLLECTION) {
        api.delete_collection(&DeleteParams::background(), &ListParams::default())
            .await?;
    } else {
        for object in &present {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            match api.delete(name, &DeleteParams::background()).await {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
    }
    let present = remaining(&api).await?;
    if !present.is_empty() {
        let name = if resource.group.is_empty() {
            format!("{}.", resource.plural)
        } else {
            format!("{}.{}", resource.plural, resource.group)
        };
        *left.objects.entry(name).or_default() += present.len();
        for finalizer in present
            .iter()
            .flat_map(|object| object.metadata.finalizers.iter().flatten())
        {
            *left.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
    Ok(())
}

async fn remaining(api: &Api<DynamicObject>) -> Result<Vec<PartialObjectMeta<DynamicObject>>, kube::Error> {
    Ok(api.list_metadata(&ListParams::default()).await?.items)
}

fn conditions(left: &Remains, old: &[NamespaceCondition], now: jiff::Timestamp) -> Vec<NamespaceCondition> {
    let list = |map: &BTreeMap<String, usize>, unit: &str| {
        map.iter()
            .map(|(name, count)| format!("{name} {unit} {count} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let content = (!left.objects.is_empty())
        .then(|| format!("Some resources are remaining: {}", list(&left.objects, "has")));
    let finalizers = (!left.finalizers.is_empty()).then(|| {
        format!(
            "Some content in the namespace has finalizers remaining: {}",
            list(&left.finalizers, "in")
        )
    });
    let failures = (!left.failed.is_empty()).then(|| {
        format!(
            "Failed to delete all resource types, {} remaining: {}",
            left.failed.len(),
            left.failed.join(", ")
        )
    });
    let table = [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            failures.map(|m| ("ContentDeletionFailed", m)),
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            content.map(|m| ("SomeResourcesRemain", m)),
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            finalizers.map(|m| ("SomeFinalizersRemain", m)),
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    table
        .into_iter()
        .map(|(kind, bad, good_reason, good_message)| {
            let (status, reason, message) = match bad {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", good_reason, good_message.to_owned()),
            };
            let before = old
                .iter()
                .find(|condition| condition.type_ == kind && condition.status == status);
            NamespaceCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: before
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(now))),
            }
        })
        .collect()
}

async fn tell(context: &Context, namespace: &Namespace, left: &Remains) -> Result<(), Error> {
    let old = namespace
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let new = conditions(left, old, context.now());
    if new == old {
        return Ok(());
    }
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({"status": {"phase": "Terminating", "conditions": new}}));
    match Api::<Namespace>::all(context.client.clone())
        .patch_status(name, &PatchParams::default(), &patch)
        .await
    {
        Err(error) if !is_gone(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_tell_what_remains() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut left = Remains::default();
        assert!(
            conditions(&left, &[], now)
                .iter()
                .all(|condition| condition.status == "False")
        );
        left.objects.insert("pods.".to_owned(), 2);
        left.finalizers.insert("example.com/wait".to_owned(), 1);
        let told = conditions(&left, &[], now);
        let bad: Vec<&str> = told
            .iter()
            .filter(|c| c.status == "True")
            .filter_map(|c| c.message.as_deref())
            .collect();
        assert_eq!(
            bad,
            [
                "Some resources are remaining: pods. has 2 resource instances",
                "Some content in the namespace has finalizers remaining: example.com/wait in 1 resource instances"
            ]
        );
        let later: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().expect("time");
        assert_eq!(conditions(&left, &told, later), told, "the transition time stays");
    }
}
