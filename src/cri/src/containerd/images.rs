//! Images: records, unpacking into snapshots, listing, removal.
//!
//! ```text
//! image record (name) ─► index ─► manifest ─► config ─► snapshot of the top layer (chain id)
//!                                     └─────► layers
//! ```
//!
//! Every arrow is a label containerd's garbage collector follows; the first is the record itself. What
//! is being made is held by a lease until its record exists. Records carry what a listing needs, so that
//! it reads no content.

use super::client::{Client, Lease, call};
use super::content::{ConfigFile, Content, ContentError, Descriptor, Resolved};
use crate::reference::{is_digest, normalize, sha256_digest};
use crate::runtime::RuntimeError;
use crate::types::{FsUsage, Image, ImageConfig};
use containerd_client::services::v1 as api;
use containerd_client::types as wire;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The snapshotter used for everything.
pub const SNAPSHOTTER: &str = "overlayfs";
const LABEL_ID: &str = "skiff.io/image-id";
const LABEL_CHAIN: &str = "skiff.io/chain-id";
const LABEL_SIZE: &str = "skiff.io/size-bytes";
const LABEL_PINNED: &str = "io.cri-containerd.pinned";
/// Configurations kept in memory; a node has tens of images.
const CONFIGS_MAX: usize = 256;

/// What went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Content is missing or broken.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// containerd refused.
    #[error(transparent)]
    Call(#[from] super::client::CallError),
    /// The layers are not what the configuration says.
    #[error("layer {layer} unpacks to {got}, the configuration says {want}")]
    Layer {
        /// number, bottom first
        layer: usize,
        /// digest found
        got: String,
        /// digest promised
        want: String,
    },
    /// The layers cannot be matched with the configuration.
    #[error("manifest has {layers} layers, configuration has {diff_ids}")]
    LayerCount {
        /// in the manifest
        layers: usize,
        /// in the configuration
        diff_ids: usize,
    },
    /// The archive is not an image archive.
    #[error("{0}")]
    Archive(String),
    /// The registry refused or failed.
    #[error("{message}")]
    Registry {
        /// what it said
        message: String,
        /// false when trying again cannot help
        retry: bool,
    },
}

impl ImageError {
    /// As the runtime contract words it.
    pub fn into_runtime(self, reference: &str) -> RuntimeError {
        let retry = match &self {
            ImageError::Registry { retry, .. } => *retry,
            ImageError::Content(ContentError::Platform { .. }) => false,
            _ => true,
        };
        RuntimeError::Image {
            reference: reference.to_owned(),
            message: self.to_string(),
            retry,
        }
    }
}

/// Images on a client.
#[derive(Clone, Debug)]
pub struct Images {
    /// The connection.
    pub client: Client,
    /// Its blobs.
    pub content: Content,
    configs: Arc<Mutex<HashMap<String, ImageConfig>>>,
}

/// An image ready to run.
#[derive(Clone, Debug)]
pub struct Runnable {
    /// As listed.
    pub image: Image,
    /// Snapshot that is the root filesystem.
    pub chain_id: String,
}

impl Images {
    /// On a client.
    pub fn new(client: Client) -> Self {
        Self {
            content: Content::new(client.clone()),
            client,
            configs: Arc::default(),
        }
    }

    /// Unpacks an image whose content is there and gives it names. The caller ends the lease.
    pub async fn adopt(
        &self,
        lease: &Lease,
        resolved: &Resolved,
        names: &[String],
        progress: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<String, ImageError> {
        let chain = self.unpack(lease, resolved, progress).await?;
        for (digest, labels) in &resolved.references {
            self.content.label(digest, labels.clone()).await?;
        }
        let snapshot = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
        self.content
            .label(&resolved.config.digest, vec![(snapshot, chain.clone())])
            .await?;
        let size: i64 = resolved
            .layers
            .iter()
            .chain([&resolved.config, &resolved.target])
            .map(|part| part.size.max(0))
            .sum();
        let labels = HashMap::from([
            (LABEL_ID.to_owned(), resolved.config.digest.clone()),
            (LABEL_CHAIN.to_owned(), chain),
            (LABEL_SIZE.to_owned(), size.to_string()),
        ]);
        for name in names {
            self.record(name, &resolved.target, labels.clone()).await?;
        }
        Ok(resolved.config.digest.clone())
    }

    async fn record(
        &self,
        name: &str,
        target: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(), ImageError> {
        let target = wire::Descriptor {
            media_type: target.media_type.clone(),
            digest: target.digest.clone(),
            size: target.size,
            ..Default::default()
        };
        let image = api::Image {
            name: name.to_owned(),
            labels,
            target: Some(target),
            ..Default::default()
        };
        let create = api::CreateImageRequest {
            image: Some(image.clone()),
            ..Default::default()
        };
        let created = self.client.images().create(self.client.request(create)).await;
        match created.map_err(call(format!("record image {name}"))) {
            Err(error) if error.is_exists() => {
                let update = api::UpdateImageRequest {
                    image: Some(image),
                    ..Default::default()
                };
                let updated = self.client.images().update(self.client.request(update)).await;
                updated.map_err(call(format!("update image {name}")))?;
                Ok(())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(()),
        }
    }

    /// Applies layers to snapshots, each named by its chain id; those present are kept.
    async fn unpack(
        &self,
        lease: &Lease,
        resolved: &Resolved,
        progress: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<String, ImageError> {
        let config: ConfigFile = self.content.read_json(&resolved.config.digest).await?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != resolved.layers.len() {
            return Err(ImageError::LayerCount {
                layers: resolved.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let mut parent = String::new();
        for (number, (layer, diff_id)) in resolved.layers.iter().zip(&diff_ids).enumerate() {
            let chain = chain_id(&parent, diff_id);
            if !self.has_snapshot(lease, &chain).await? {
                self.apply(lease, number, layer, diff_id, &parent, &chain).await?;
            }
            parent = chain;
            progress(number + 1);
        }
        Ok(parent)
    }

    async fn has_snapshot(&self, lease: &Lease, key: &str) -> Result<bool, ImageError> {
        let request = api::snapshots::StatSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.into(),
        };
        match self
            .client
            .snapshots()
            .stat(self.client.leased(lease, request))
            .await
        {
            Ok(_) => {
                // Held by the lease from here on, so that it cannot be collected before its record exists.
                let resource = api::Resource {
                    id: key.to_owned(),
                    r#type: format!("snapshots/{SNAPSHOTTER}"),
                };
                lease.hold(resource).await?;
                Ok(true)
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(false),
            Err(status) => Err(call(format!("snapshot {key}"))(status).into()),
        }
    }

    async fn apply(
        &self,
        lease: &Lease,
        number: usize,
        layer: &Descriptor,
        diff_id: &str,
        parent: &str,
        chain: &str,
    ) -> Result<(), ImageError> {
        use api::snapshots::*;
        let key = format!("unpack-{} {chain}", super::random_id(12));
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        let prepared = self
            .client
            .snapshots()
            .prepare(self.client.leased(lease, prepare))
            .await;
        let mounts = prepared
            .map_err(call(format!("prepare {chain}")))?
            .into_inner()
            .mounts;
        let outcome = async {
            let diff = wire::Descriptor {
                media_type: layer.media_type.clone(),
                digest: layer.digest.clone(),
                size: layer.size,
                ..Default::default()
            };
            let apply = api::ApplyRequest {
                diff: Some(diff),
                mounts,
                ..Default::default()
            };
            // Large layers on slow cards take long: no time limit here, the stream ends when containerd does.
            let mut request = self.client.endless(apply);
            lease.apply(&mut request);
            let applied = self.client.diff().apply(request).await;
            let applied = applied
                .map_err(call(format!("unpack layer {}", layer.digest)))?
                .into_inner();
            let got = applied
                .applied
                .map(|descriptor| descriptor.digest)
                .unwrap_or_default();
            if got != diff_id {
                return Err(ImageError::Layer {
                    layer: number,
                    got,
                    want: diff_id.to_owned(),
                });
            }
            let commit = CommitSnapshotRequest {
                snapshotter: SNAPSHOTTER.into(),
                name: chain.to_owned(),
                key: key.clone(),
                ..Default::default()
            };
            match self
                .client
                .snapshots()
                .commit(self.client.leased(lease, commit))
                .await
            {
                Ok(_) => Ok(true),
                Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(false),
                Err(status) => Err(call(format!("commit {chain}"))(status).into()),
            }
        };
        let outcome = outcome.await;
        if !matches!(outcome, Ok(true)) {
            let remove = RemoveSnapshotRequest {
                snapshotter: SNAPSHOTTER.into(),
                key,
            };
            if let Err(status) = self.client.snapshots().remove(self.client.request(remove)).await {
                tracing::debug!(%status, "half-unpacked snapshot left to the lease");
            }
        }
        outcome.map(|_| ())
    }

    /// Lists images, grouped by id.
    pub async fn list(&self) -> Result<Vec<Image>, ImageError> {
        let request = self.client.request(api::ListImagesRequest::default());
        let records = self
            .client
            .images()
            .list(request)
            .await
            .map_err(call("list images"))?
            .into_inner()
            .images;
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        for record in records {
            match self.describe(&record).await {
                Ok(image) => merge(&mut images, image),
                Err(error) => tracing::debug!(image = record.name, %error, "incomplete image skipped"),
            }
        }
        Ok(images.into_values().collect())
    }

    /// Finds an image by name or id.
    pub async fn find(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let normal = normalize(reference).ok();
        let matches = |image: &Image| {
            image.id == reference
                || image
                    .id
                    .strip_prefix("sha256:")
                    .is_some_and(|hex| hex == reference)
                || normal
                    .as_ref()
                    .is_some_and(|name| image.repo_tags.contains(name) || image.repo_digests.contains(name))
        };
        if let Some(name) = &normal
            && let Some(record) = self.get(name).await?
            && let Ok(image) = self.describe(&record).await
        {
            // Other names of the same image matter to the caller: take the listed form when there is one.
            let id = image.id.clone();
            return Ok(self
                .list()
                .await?
                .into_iter()
                .find(|listed| listed.id == id)
                .or(Some(image)));
        }
        Ok(self.list().await?.into_iter().find(|image| matches(image)))
    }

    /// Finds an image and makes sure that it is unpacked.
    pub async fn runnable(&self, lease: &Lease, reference: &str) -> Result<Option<Runnable>, ImageError> {
        let Some(image) = self.find(reference).await? else {
            return Ok(None);
        };
        let name = image
            .repo_tags
            .iter()
            .chain(&image.repo_digests)
            .next()
            .unwrap_or(&image.id)
            .clone();
        let Some(record) = self.get(&name).await? else {
            return Ok(None);
        };
        if let Some(chain) = record.labels.get(LABEL_CHAIN)
            && self.has_snapshot(lease, chain).await?
        {
            return Ok(Some(Runnable {
                image,
                chain_id: chain.clone(),
            }));
        }
        let resolved = self.content.resolve(target_of(&record)).await?;
        self.adopt(lease, &resolved, std::slice::from_ref(&name), &|_| {})
            .await?;
        let chain_id = self
            .get(&name)
            .await?
            .and_then(|record| record.labels.get(LABEL_CHAIN).cloned());
        Ok(chain_id.map(|chain_id| Runnable { image, chain_id }))
    }

    async fn get(&self, name: &str) -> Result<Option<api::Image>, ImageError> {
        let request = self.client.request(api::GetImageRequest {
            name: name.to_owned(),
        });
        match self.client.images().get(request).await {
            Ok(answer) => Ok(answer.into_inner().image),
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(call(format!("image {name}"))(status).into()),
        }
    }

    /// One record as an image. Records made by other tools lack labels: those are resolved from content.
    async fn describe(&self, record: &api::Image) -> Result<Image, ImageError> {
        let (id, size) = match (record.labels.get(LABEL_ID), record.labels.get(LABEL_SIZE)) {
            (Some(id), size) => (id.clone(), size.and_then(|text| text.parse().ok()).unwrap_or(0)),
            (None, _) => {
                let resolved = self.content.resolve(target_of(record)).await?;
                let size: i64 = resolved.layers.iter().map(|layer| layer.size.max(0)).sum();
                (resolved.config.digest, size as u64)
            }
        };
        let mut image = Image {
            config: self.config(&id).await?,
            size_bytes: size,
            pinned: record
                .labels
                .get(LABEL_PINNED)
                .is_some_and(|value| value == "pinned"),
            id,
            ..Image::default()
        };
        match &record.name {
            name if is_digest(name) => {}
            name if name.contains('@') => image.repo_digests.push(name.clone()),
            name => image.repo_tags.push(name.clone()),
        }
        Ok(image)
    }

    async fn config(&self, digest: &str) -> Result<ImageConfig, ImageError> {
        if let Some(config) = self.configs.lock().get(digest) {
            return Ok(config.clone());
        }
        let file: ConfigFile = self.content.read_json(digest).await?;
        let config = file.config.unwrap_or_default();
        let mut configs = self.configs.lock();
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        configs.insert(digest.to_owned(), config.clone());
        Ok(config)
    }

    /// Removes by id (all names) or one name. Fine when there is none.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let Some(image) = self.find(reference).await? else {
            return Ok(());
        };
        let by_id = image.id == reference || image.id.ends_with(&format!(":{reference}"));
        let names: Vec<String> = match by_id {
            true => image
                .repo_tags
                .iter()
                .chain(&image.repo_digests)
                .chain([&image.id])
                .cloned()
                .collect(),
            false => normalize(reference).into_iter().collect(),
        };
        for name in names {
            // Synchronous: the space is free when the call returns.
            let request = api::DeleteImageRequest {
                name: name.clone(),
                sync: true,
                ..Default::default()
            };
            match self.client.images().delete(self.client.request(request)).await {
                Err(status) if status.code() != tonic::Code::NotFound => {
                    return Err(call(format!("remove image {name}"))(status).into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Space taken by all snapshots.
    pub async fn usage(&self, root: &Path) -> Result<FsUsage, ImageError> {
        use api::snapshots::*;
        let list = ListSnapshotsRequest {
            snapshotter: SNAPSHOTTER.into(),
            filters: Vec::new(),
        };
        let answer = self.client.snapshots().list(self.client.request(list)).await;
        let mut pages = answer.map_err(call("list snapshots"))?.into_inner();
        let mut usage = FsUsage {
            path: root.to_path_buf(),
            ..FsUsage::default()
        };
        while let Some(page) = pages.message().await.map_err(call("list snapshots"))? {
            for info in page.info {
                let one = self.snapshot_usage(&info.name).await?;
                usage.used_bytes += one.used_bytes;
                usage.inodes_used += one.inodes_used;
            }
        }
        Ok(usage)
    }

    /// Space taken by one snapshot; nothing when it is gone.
    pub async fn snapshot_usage(&self, key: &str) -> Result<FsUsage, ImageError> {
        let request = api::snapshots::UsageRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.to_owned(),
        };
        match self.client.snapshots().usage(self.client.request(request)).await {
            Ok(answer) => {
                let found = answer.into_inner();
                let (used_bytes, inodes_used) = (found.size.max(0) as u64, found.inodes.max(0) as u64);
                Ok(FsUsage {
                    path: PathBuf::new(),
                    used_bytes,
                    inodes_used,
                })
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(FsUsage::default()),
            Err(status) => Err(call(format!("usage of {key}"))(status).into()),
        }
    }
}

fn target_of(record: &api::Image) -> Descriptor {
    let target = record.target.clone().unwrap_or_default();
    Descriptor {
        media_type: target.media_type,
        digest: target.digest,
        size: target.size,
        ..Descriptor::default()
    }
}

fn merge(images: &mut BTreeMap<String, Image>, image: Image) {
    match images.get_mut(&image.id) {
        Some(known) => {
            known.repo_tags.extend(image.repo_tags);
            known.repo_digests.extend(image.repo_digests);
            known.pinned |= image.pinned;
        }
        None => {
            images.insert(image.id.clone(), image);
        }
    }
}

/// Name of the snapshot that is `diff_id` on top of `parent`.
fn chain_id(parent: &str, diff_id: &str) -> String {
    match parent.is_empty() {
        true => diff_id.to_owned(),
        false => sha256_digest(format!("{parent} {diff_id}").as_bytes()),
    }
}

/// Directories of a root filesystem, topmost first, out of its mounts.
pub fn layers_of(mounts: &[wire::Mount]) -> Vec<PathBuf> {
    let mut layers = Vec::new();
    for mount in mounts {
        if mount.r#type == "bind" {
            layers.push(PathBuf::from(&mount.source));
        }
        for option in &mount.options {
            if let Some(upper) = option.strip_prefix("upperdir=") {
                layers.insert(0, PathBuf::from(upper));
            } else if let Some(lower) = option.strip_prefix("lowerdir=") {
                layers.extend(lower.split(':').map(PathBuf::from));
            }
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_chain() {
        let (a, b) = (
            format!("sha256:{}", "a".repeat(64)),
            format!("sha256:{}", "b".repeat(64)),
        );
        assert_eq!(chain_id("", &a), a);
        assert_eq!(chain_id(&a, &b), sha256_digest(format!("{a} {b}").as_bytes()));
    }

    #[test]
    fn layers_are_read_off_mounts() {
        let mount = |kind: &str, source: &str, options: &[&str]| wire::Mount {
            r#type: kind.into(),
            source: source.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..Default::default()
        };
        let overlay = mount(
            "overlay",
            "overlay",
            &["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"],
        );
        assert_eq!(
            layers_of(&[overlay]),
            [Path::new("/u"), Path::new("/b"), Path::new("/a")]
        );
        assert_eq!(
            layers_of(&[mount("bind", "/x", &["rw", "rbind"])]),
            [Path::new("/x")]
        );
    }
}
