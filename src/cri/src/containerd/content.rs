//! Blobs in containerd's content store, and the JSON documents among them.

use super::client::{CallError, Client, Lease, call};
use bytes::Bytes;
use containerd_client::services::v1 as api;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::Pin;
use std::sync::Arc;

/// Manifests and configurations above this size are refused: registries themselves limit them to 4 MiB.
pub const DOCUMENT_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Data in one message to containerd, which accepts 16 MiB.
const MESSAGE_MAX_BYTES: usize = 1024 * 1024;
/// Indexes inside indexes followed.
const INDEX_DEPTH_MAX: usize = 3;

/// Media types, by role.
pub mod media {
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// Docker image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image configuration.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Plain, gzip and zstd layers.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
}

/// A pointer to a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// `sha256:...`
    pub digest: String,
    /// Length.
    pub size: i64,
    /// What machine it is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Names and notes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// What machine an image is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// For example `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// For example `linux`.
    #[serde(default)]
    pub os: String,
    /// For example `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An index or a manifest, told apart by what it contains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Always 2.
    pub schema_version: u32,
    /// Own media type, often absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Children of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Vec<Descriptor>>,
    /// Configuration of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    /// Layers of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<Descriptor>>,
}

/// The parts of an image configuration that matter here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConfigFile {
    /// How to run it.
    #[serde(default)]
    pub config: Option<crate::types::ImageConfig>,
    /// Uncompressed layers.
    #[serde(default)]
    pub rootfs: Rootfs,
    /// What machine it is for.
    #[serde(default)]
    pub architecture: String,
}

/// Uncompressed layers, bottom first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rootfs {
    /// Their digests.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// An image made of content: where it starts, what was chosen, what it contains.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Index or manifest the name points to.
    pub target: Descriptor,
    /// Every document on the way, with its children that matter: what garbage collection must know.
    pub references: Vec<(String, Vec<(String, String)>)>,
    /// Configuration.
    pub config: Descriptor,
    /// Layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// Why content is unusable.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// containerd refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The source of the data failed.
    #[error("{what}: {source}")]
    Source {
        /// what was read
        what: String,
        /// why not
        #[source]
        source: io::Error,
    },
    /// A document makes no sense.
    #[error("{what}: {problem}")]
    Malformed {
        /// what was read
        what: String,
        /// why it is refused
        problem: String,
    },
    /// No manifest for this machine.
    #[error("no manifest for {platform}, only for {found}")]
    Platform {
        /// this machine
        platform: String,
        /// what there is
        found: String,
    },
}

/// The content store.
#[derive(Clone, Debug)]
pub struct Content {
    client: Client,
}

type Data = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Content {
    /// On a client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Whether a blob is there.
    pub async fn has(&self, digest: &str) -> Result<bool, CallError> {
        let request = self.client.request(api::InfoRequest {
            digest: digest.to_owned(),
        });
        match self
            .client
            .content()
            .info(request)
            .await
            .map_err(call(format!("content {digest}")))
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a blob from a stream. With `expected` containerd verifies the digest (and takes a blob that
    /// is there already for done); without, the digest is computed here. Returns digest and size.
    pub async fn write(
        &self,
        lease: &Lease,
        data: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        expected: Option<&Descriptor>,
        what: &str,
    ) -> Result<(String, u64), ContentError> {
        struct State {
            data: Data,
            pending: Bytes,
            offset: i64,
            first: bool,
            committed: bool,
        }
        let reference = format!("skiff-{}", super::random_id(24));
        let total = expected.map_or(0, |descriptor| descriptor.size);
        let digest = expected
            .map(|descriptor| descriptor.digest.clone())
            .unwrap_or_default();
        let hash = Arc::new(Mutex::new(expected.is_none().then(Sha256::new)));
        let failure: Arc<Mutex<Option<io::Error>>> = Arc::default();
        let length = Arc::new(Mutex::new(0i64));
        let (hashing, failing, counting) = (hash.clone(), failure.clone(), length.clone());
        let start = State {
            data: Box::pin(data),
            pending: Bytes::new(),
            offset: 0,
            first: true,
            committed: false,
        };
        let messages = futures::stream::unfold(start, move |mut state| {
            let (hashing, failing, counting) = (hashing.clone(), failing.clone(), counting.clone());
            let (reference, digest) = (reference.clone(), digest.clone());
            async move {
                if state.committed {
                    return None;
                }
                let mut message = api::WriteContentRequest {
                    action: api::WriteAction::Write as i32,
                    r#ref: if state.first { reference } else { String::new() },
                    total,
                    expected: digest,
                    offset: state.offset,
                    ..Default::default()
                };
                state.first = false;
                while state.pending.is_empty() {
                    match state.data.next().await {
                        Some(Ok(bytes)) => state.pending = bytes,
                        Some(Err(error)) => {
                            *failing.lock() = Some(error);
                            return None;
                        }
                        None => {
                            message.action = api::WriteAction::Commit as i32;
                            message.total = state.offset;
                            state.committed = true;
                            *counting.lock() = state.offset;
                            return Some((message, state));
                        }
                    }
                }
                let piece = state.pending.split_to(state.pending.len().min(MESSAGE_MAX_BYTES));
                if let Some(hash) = &mut *hashing.lock() {
                    hash.update(&piece);
                }
                state.offset += piece.len() as i64;
                message.data = piece.to_vec();
                Some((message, state))
            }
        });
        let mut request = self.client.endless(messages);
        lease.apply(&mut request);
        let outcome = async {
            let mut answers = self.client.content().write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        };
        let outcome = outcome.await.map_err(call(what));
        if let Some(source) = failure.lock().take() {
            return Err(ContentError::Source {
                what: what.to_owned(),
                source,
            });
        }
        match outcome {
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
        match (expected, hash.lock().take()) {
            (Some(descriptor), _) => Ok((descriptor.digest.clone(), descriptor.size.max(0) as u64)),
            (None, Some(hash)) => {
                let digest = format!("sha256:{}", crate::reference::hex(&hash.finalize()));
                Ok((digest, *length.lock() as u64))
            }
            (None, None) => Err(ContentError::Malformed {
                what: what.to_owned(),
                problem: "no digest".into(),
            }),
        }
    }

    /// Writes a document from memory.
    pub async fn write_bytes(
        &self,
        lease: &Lease,
        bytes: Bytes,
        media_type: &str,
    ) -> Result<Descriptor, ContentError> {
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: crate::reference::sha256_digest(&bytes),
            size: bytes.len() as i64,
            ..Descriptor::default()
        };
        let data = futures::stream::once(async move { Ok(bytes) });
        self.write(lease, data, Some(&descriptor), media_type).await?;
        Ok(descriptor)
    }

    /// Reads a document.
    pub async fn read(&self, digest: &str) -> Result<Vec<u8>, ContentError> {
        let what = || format!("content {digest}");
        let request = self.client.request(api::ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        });
        let answer = self.client.content().read(request).await.map_err(call(what()))?;
        let (mut answers, mut bytes) = (answer.into_inner(), Vec::new());
        while let Some(piece) = answers.message().await.map_err(call(what()))? {
            if bytes.len() + piece.data.len() > DOCUMENT_MAX_BYTES {
                let problem = format!("larger than {DOCUMENT_MAX_BYTES} bytes");
                return Err(ContentError::Malformed {
                    what: what(),
                    problem,
                });
            }
            bytes.extend_from_slice(&piece.data);
        }
        Ok(bytes)
    }

    /// Reads and parses a document.
    pub async fn read_json<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T, ContentError> {
        parse(&self.read(digest).await?, digest)
    }

    /// Sets labels on a blob, leaving others alone.
    pub async fn label(&self, digest: &str, labels: Vec<(String, String)>) -> Result<(), CallError> {
        let paths = labels.iter().map(|(name, _)| format!("labels.{name}")).collect();
        let labels: HashMap<String, String> = labels.into_iter().collect();
        let info = api::Info {
            digest: digest.to_owned(),
            labels,
            ..Default::default()
        };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = self.client.request(api::UpdateRequest {
            info: Some(info),
            update_mask,
        });
        self.client
            .content()
            .update(request)
            .await
            .map_err(call(format!("label content {digest}")))?;
        Ok(())
    }

    /// Follows documents in the content store down to one manifest for this machine.
    pub async fn resolve(&self, target: Descriptor) -> Result<Resolved, ContentError> {
        let (mut at, mut references) = (target.digest.clone(), Vec::new());
        for _ in 0..INDEX_DEPTH_MAX {
            let document: Document = self.read_json(&at).await?;
            match next(&document, &at)? {
                Next::Child(child) => {
                    let reference = (
                        "containerd.io/gc.ref.content.m.0".to_owned(),
                        child.digest.clone(),
                    );
                    references.push((at, vec![reference]));
                    at = child.digest;
                }
                Next::Manifest(config, layers) => {
                    references.push((at, manifest_references(&config, &layers)));
                    return Ok(Resolved {
                        target,
                        references,
                        config,
                        layers,
                    });
                }
            }
        }
        Err(ContentError::Malformed {
            what: target.digest,
            problem: "indexes nested too deeply".into(),
        })
    }
}

/// Labels by which garbage collection finds what a manifest needs.
pub fn manifest_references(config: &Descriptor, layers: &[Descriptor]) -> Vec<(String, String)> {
    let mut labels = vec![(
        "containerd.io/gc.ref.content.config".to_owned(),
        config.digest.clone(),
    )];
    for (number, layer) in layers.iter().enumerate() {
        labels.push((
            format!("containerd.io/gc.ref.content.l.{number}"),
            layer.digest.clone(),
        ));
    }
    labels
}

/// What a document leads to.
pub enum Next {
    /// An index: the child for this machine.
    Child(Descriptor),
    /// A manifest: configuration and layers.
    Manifest(Descriptor, Vec<Descriptor>),
}

/// Decides where a document leads.
pub fn next(document: &Document, what: &str) -> Result<Next, ContentError> {
    let malformed = |problem: &str| ContentError::Malformed {
        what: what.to_owned(),
        problem: problem.to_owned(),
    };
    let valid = |descriptor: &Descriptor| match crate::reference::is_digest(&descriptor.digest) {
        true => Ok(()),
        false => Err(malformed(&format!("unsupported digest {:?}", descriptor.digest))),
    };
    match (&document.manifests, &document.config, &document.layers) {
        (Some(manifests), _, _) => {
            let child = select(manifests, std::env::consts::ARCH)?;
            valid(child)?;
            Ok(Next::Child(child.clone()))
        }
        (None, Some(config), Some(layers)) => {
            std::iter::once(config).chain(layers).try_for_each(valid)?;
            Ok(Next::Manifest(config.clone(), layers.clone()))
        }
        _ => Err(malformed("neither an image manifest nor an image index")),
    }
}

/// Parses a document.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, ContentError> {
    serde_json::from_slice(bytes).map_err(|error| ContentError::Malformed {
        what: what.to_owned(),
        problem: error.to_string(),
    })
}

/// The manifest for a machine: exact variant first, then no variant, then any; a single entry without a
/// platform is taken as it is.
fn select<'a>(manifests: &'a [Descriptor], machine: &str) -> Result<&'a Descriptor, ContentError> {
    let (architecture, variant) = match machine {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8")),
        "arm" => ("arm", Some("v7")),
        "x86" => ("386", None),
        other => (other, None),
    };
    let score = |descriptor: &Descriptor| match &descriptor.platform {
        Some(platform) if platform.os == "linux" && platform.architecture == architecture => {
            match (platform.variant.as_deref(), variant) {
                (found, wanted) if found == wanted => 3,
                (None, _) => 2,
                _ => 1,
            }
        }
        None if manifests.len() == 1 => 1,
        _ => 0,
    };
    let best = manifests.iter().rev().max_by_key(|descriptor| score(descriptor));
    match best {
        Some(descriptor) if score(descriptor) > 0 => Ok(descriptor),
        _ => {
            let name = |descriptor: &Descriptor| match &descriptor.platform {
                Some(platform) => format!("{}/{}", platform.os, platform.architecture),
                None => "unknown".to_owned(),
            };
            let found: Vec<String> = manifests.iter().map(name).collect();
            let platform = format!("linux/{architecture}");
            Err(ContentError::Platform {
                platform,
                found: found.join(", "),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digest: &str, platform: Option<(&str, &str, Option<&str>)>) -> Descriptor {
        Descriptor {
            digest: digest.into(),
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(str::to_owned),
            }),
            ..Descriptor::default()
        }
    }

    #[test]
    fn the_manifest_for_the_machine_is_chosen() {
        let many = [
            entry("unknown", Some(("unknown", "unknown", None))),
            entry("windows", Some(("windows", "amd64", None))),
            entry("armv6", Some(("linux", "arm", Some("v6")))),
            entry("armv7", Some(("linux", "arm", Some("v7")))),
            entry("amd", Some(("linux", "amd64", None))),
            entry("amd-again", Some(("linux", "amd64", None))),
            entry("arm64", Some(("linux", "arm64", None))),
        ];
        for (machine, want) in [("x86_64", "amd"), ("aarch64", "arm64"), ("arm", "armv7")] {
            assert_eq!(select(&many, machine).unwrap().digest, want);
        }
        assert!(select(&many, "riscv64").is_err());
        assert_eq!(select(&[entry("only", None)], "x86_64").unwrap().digest, "only");
        assert!(select(&[entry("a", None), entry("b", None)], "x86_64").is_err());
    }

    #[test]
    fn documents_that_are_neither_are_refused() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let good = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":1}},"layers":[]}}"#);
        assert!(matches!(
            next(&parse(good.as_bytes(), "x").unwrap(), "x"),
            Ok(Next::Manifest(..))
        ));
        for bad in [
            r#"{"schemaVersion":2}"#.to_owned(),
            good.replace("sha256:", "md5:"),
            r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(),
        ] {
            assert!(next(&parse(bad.as_bytes(), "x").unwrap(), "x").is_err(), "{bad}");
        }
    }
}
