//! Who owns what: adopting matching orphans, letting go of objects that no
//! longer match, and the writes every owner makes.

use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Resource};
use serde::Serialize;
use serde_json::json;
use skiff_client::informer::Cacheable;

use crate::objects::controller_of;
use crate::{Context, Error, is_conflict, is_gone};

/// A namespaced object a loop writes.
pub(crate) trait Object: Cacheable + Resource<Scope = NamespaceResourceScope> + Serialize {}
impl<K: Cacheable + Resource<Scope = NamespaceResourceScope> + Serialize> Object for K {}

/// An object that owns others by a label selector.
pub(crate) trait Owner: Object {
    /// What it selects; `None` selects nothing.
    fn selector(&self) -> Option<LabelSelector>;
    /// Whether an object that its labels select may be its own, by name.
    fn may_own(&self, _child: &ObjectMeta) -> bool {
        true
    }
}

/// What an owner should do about one object.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Mine,
    Adopt,
    Release,
    Leave,
}

fn verdict(owner: &ObjectMeta, child: &ObjectMeta, matches: bool, adoptable: bool) -> Verdict {
    let owner_leaves = owner.deletion_timestamp.is_some();
    match controller_of(child) {
        Some(reference) if Some(&reference.uid) == owner.uid.as_ref() => match (matches, owner_leaves) {
            (true, _) => Verdict::Mine,
            (false, false) => Verdict::Release,
            (false, true) => Verdict::Leave,
        },
        None if matches && adoptable && !owner_leaves && child.deletion_timestamp.is_none() => Verdict::Adopt,
        _ => Verdict::Leave,
    }
}

/// The objects among `children` that `owner` controls, after adopting and
/// releasing. `adoptable` says which orphans it would take.
pub(crate) async fn claim<O: Owner, C: Object>(
    context: &Context,
    owner: &O,
    children: Vec<Arc<C>>,
    matches: impl Fn(&C) -> bool,
    adoptable: impl Fn(&C) -> bool,
) -> Result<Vec<Arc<C>>, Error> {
    let mut mine = Vec::new();
    for child in children {
        let matches = matches(&child);
        let owners = match verdict(owner.meta(), child.meta(), matches, adoptable(&child)) {
            Verdict::Mine => {
                mine.push(child);
                continue;
            }
            Verdict::Leave => continue,
            Verdict::Adopt => json!([owner_reference(owner)]),
            Verdict::Release => json!([{"$patch": "delete", "uid": owner.meta().uid}]),
        };
        let patch = json!({"metadata": {"uid": child.meta().uid, "ownerReferences": owners}});
        let api: Api<C> = namespaced(context, child.meta());
        let name = child.meta().name.as_deref().unwrap_or_default();
        match api
            .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if matches => mine.push(child),
            Ok(_) => {}
        }
    }
    Ok(mine)
}

/// The reference by which `owner` controls an object.
pub(crate) fn owner_reference<O: Resource<DynamicType = ()>>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The API of `K` in the namespace of an object.
pub(crate) fn namespaced<K: Object>(context: &Context, meta: &ObjectMeta) -> Api<K> {
    Api::namespaced(
        context.client.clone(),
        meta.namespace.as_deref().unwrap_or_default(),
    )
}

/// Writes the status of `updated`. An object that is gone or newer is left
/// alone: its newer state is on its way through the informer.
pub(crate) async fn write_status<K: Object>(context: &Context, updated: &K) -> Result<(), Error> {
    let name = updated.meta().name.as_deref().unwrap_or_default();
    let api: Api<K> = namespaced(context, updated.meta());
    match api.replace_status(name, &PostParams::default(), updated).await {
        Err(error) if !is_gone(&error) && !is_conflict(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;

    #[test]
    fn only_matching_orphans_are_adopted_and_only_own_objects_released() {
        let mut owner = ReplicaSet::default();
        owner.metadata.uid = Some("u1".to_owned());
        let orphan = ObjectMeta::default();
        let owned = ObjectMeta {
            owner_references: Some(vec![owner_reference(&owner)]),
            ..ObjectMeta::default()
        };
        let mut other = ReplicaSet::default();
        other.metadata.uid = Some("u2".to_owned());
        let table = [
            (&owner, &owned, true, true, Verdict::Mine),
            (&owner, &owned, false, true, Verdict::Release),
            (&other, &owned, true, true, Verdict::Leave),
            (&owner, &orphan, true, true, Verdict::Adopt),
            (&owner, &orphan, true, false, Verdict::Leave),
            (&owner, &orphan, false, true, Verdict::Leave),
        ];
        for (owner, child, matches, adoptable, expected) in table {
            assert_eq!(verdict(&owner.metadata, child, matches, adoptable), expected);
        }
    }
}
