//! The ConfigMaps and Secrets a pod refers to: leased, and followed as long as the pod needs them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::{Inbox, Worker};
use crate::objects::{Leasable, Lease, Objects};
use crate::pod::spec;
use crate::{env, volumes};

/// Leases on the objects a pod refers to.
#[derive(Default)]
pub struct References {
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, Lease<ConfigMap>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Lease<Secret>>,
    followers: HashMap<(&'static str, String), tokio::task::JoinHandle<()>>,
}

impl Drop for References {
    fn drop(&mut self) {
        for follower in self.followers.values() {
            follower.abort();
        }
    }
}

/// Keeps the leases of one kind: exactly those of `names`.
fn keep<K: Leasable>(
    leases: &mut BTreeMap<String, Lease<K>>,
    followers: &mut HashMap<(&'static str, String), tokio::task::JoinHandle<()>>,
    objects: &Objects,
    namespace: &str,
    names: BTreeSet<String>,
    inbox: &Arc<Inbox>,
) {
    leases.retain(|name, _| names.contains(name));
    followers.retain(|(kind, name), follower| {
        let stays = *kind != K::LABEL || names.contains(name);
        if !stays {
            follower.abort();
        }
        stays
    });
    for name in names {
        if leases.contains_key(&name) {
            continue;
        }
        let lease = objects.lease::<K>(namespace, &name);
        let mut changes = lease.changes();
        let inbox = inbox.clone();
        let follower = tokio::spawn(async move {
            while changes.next().await.is_some() {
                inbox.objects();
            }
        });
        followers.insert((K::LABEL, name.clone()), follower);
        leases.insert(name, lease);
    }
}

impl Worker {
    /// Leases the objects the pod refers to and follows their changes.
    pub(super) fn refer(&mut self) {
        let namespace = spec::namespace(&self.pod).to_owned();
        let (maps, secrets) = volumes::referred_names(&self.pod);
        let (mut maps, mut secrets): (BTreeSet<String>, BTreeSet<String>) =
            (maps.into_iter().collect(), secrets.into_iter().collect());
        for spec in self.specs.iter() {
            let (more_maps, more_secrets) = env::referred_names(&spec.container);
            maps.extend(more_maps);
            secrets.extend(more_secrets);
        }
        let pull = self
            .pod
            .spec
            .iter()
            .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        secrets.extend(pull.map(|reference| reference.name.clone()));
        if self.notes.gone || spec::ended(&self.pod) {
            maps.clear();
            secrets.clear();
        }
        maps.remove("");
        secrets.remove("");
        let references = &mut self.references;
        let followers = &mut references.followers;
        let objects = &self.shared.objects;
        keep(
            &mut references.config_maps,
            followers,
            objects,
            &namespace,
            maps,
            &self.inbox,
        );
        keep(
            &mut references.secrets,
            followers,
            objects,
            &namespace,
            secrets,
            &self.inbox,
        );
    }
}
