//! The history of pod templates of an owner, as ControllerRevisions: what
//! `kubectl rollout history` shows and `kubectl rollout undo` goes back to.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_client::Informer;
use skiff_client::labels::selects;

use crate::objects::{controller_of, template_hash};
use crate::ownership::{Owner, claim, namespaced, owner_reference};
use crate::{Context, Error, is_conflict, is_gone};

/// The label of pods and revisions that names the template's hash.
pub(crate) const HASH: &str = "controller-revision-hash";

/// Other names tried when a name is taken by another template.
const MAX_COLLISIONS: i32 = 10;

/// The revisions an owner has, oldest first.
pub(crate) async fn history<O: Owner>(
    context: &Context,
    owner: &O,
    informer: &Informer<ControllerRevision>,
) -> Result<Vec<Arc<ControllerRevision>>, Error> {
    let selector = owner.selector();
    let all = informer.list_in(owner.meta().namespace.as_deref().unwrap_or_default());
    let matches =
        |revision: &ControllerRevision| selects(selector.as_ref(), revision.metadata.labels.as_ref());
    let mut mine = claim(context, owner, all, matches, |_| true).await?;
    mine.sort_by_key(|revision| (revision.revision, revision.metadata.name.clone()));
    Ok(mine)
}

/// What a revision keeps of a template.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The hash that marks the pods of a revision.
pub(crate) fn hash_of(revision: &ControllerRevision) -> String {
    let labels = revision.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(HASH))
        .cloned()
        .unwrap_or_default()
}

/// The revision of the current template: the newest in the history, made if
/// need be.
pub(crate) async fn current<O: Owner>(
    context: &Context,
    owner: &O,
    template: &PodTemplateSpec,
    history: &[Arc<ControllerRevision>],
) -> Result<ControllerRevision, Error> {
    let (wanted, last) = (data(template), history.last().map_or(0, |newest| newest.revision));
    let api: Api<ControllerRevision> = namespaced(context, owner.meta());
    let same = |revision: &ControllerRevision| revision.data.as_ref().is_some_and(|data| data.0 == wanted);
    if let Some(found) = history.iter().rev().find(|revision| same(revision)) {
        if found.revision == last {
            return Ok((**found).clone());
        }
        let name = found.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({"revision": last + 1}));
        return Ok(api.patch(name, &PatchParams::default(), &patch).await?);
    }
    for collision in 0..MAX_COLLISIONS {
        let hash = template_hash(template, (collision > 0).then_some(collision));
        let mut labels = template
            .metadata
            .as_ref()
            .and_then(|meta| meta.labels.clone())
            .unwrap_or_default();
        labels.insert(HASH.to_owned(), hash.clone());
        let name = format!("{}-{hash}", owner.meta().name.as_deref().unwrap_or_default());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: owner.meta().namespace.clone(),
                labels: Some(labels),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![owner_reference(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(wanted.clone())),
            revision: last + 1,
        };
        match api.create(&PostParams::default(), &revision).await {
            Ok(made) => return Ok(made),
            Err(error) if is_conflict(&error) => {
                let other = api.get(&name).await?;
                let mine = controller_of(&other.metadata).map(|of| &of.uid) == owner.meta().uid.as_ref();
                if mine && same(&other) {
                    return Ok(other);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    let name = owner.meta().name.as_deref().unwrap_or_default();
    Err(Error::Other(format!(
        "every name for a revision of {name} is taken"
    )))
}

/// Deletes the oldest revisions beyond `limit` that no pod uses.
pub(crate) async fn truncate(
    context: &Context,
    history: &[Arc<ControllerRevision>],
    in_use: &BTreeSet<String>,
    limit: i32,
) -> Result<(), Error> {
    let idle: Vec<_> = history
        .iter()
        .filter(|revision| !in_use.contains(&hash_of(revision)))
        .collect();
    let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for revision in idle.into_iter().take(surplus) {
        let api: Api<ControllerRevision> = namespaced(context, &revision.metadata);
        let name = revision.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &DeleteParams::default()).await {
            Err(error) if !is_gone(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
