//! Pulling from registries (distribution API v2).
//!
//! Protocol, tokens and transport are oci-client's; choosing endpoints, selecting the manifest and
//! storing content are here. Documents are read whole, layers are streamed into the content store, which
//! verifies their digests. Plain HTTP only for loopback addresses and where the configuration says so.

use super::client::Lease;
use super::content::{Descriptor, Document, Next, Resolved, manifest_references, media, next, parse};
use super::images::{ImageError, Images};
use crate::reference::Reference;
use crate::types::{ImageAuth, Progress, PullProgress};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Layers fetched at the same time.
const LAYERS_AT_ONCE: usize = 3;
/// A registry that sends nothing for so long is taken for dead.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// The same for the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Documents on the way from a name to a manifest.
const DEPTH_MAX: usize = 3;

const MANIFEST_TYPES: &[&str] = &[
    media::OCI_INDEX,
    media::DOCKER_INDEX,
    media::OCI_MANIFEST,
    media::DOCKER_MANIFEST,
];

/// `registries.yaml`, in the shape k3s users know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// Registry host (or `*`) to where to look first.
    pub mirrors: BTreeMap<String, Mirror>,
    /// Registry or endpoint host to credentials and certificates.
    pub configs: BTreeMap<String, RegistryConfig>,
}

/// Where to look for the images of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// `http://host:port` or `https://host`, tried in order before the registry itself.
    pub endpoint: Vec<String>,
}

/// How to talk to a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Credentials, used when the pod brings none.
    pub auth: Option<RegistryLogin>,
    /// Certificates.
    pub tls: Option<RegistryTls>,
}

/// Credentials.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryLogin {
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// Bearer token.
    pub token: String,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryLogin({}, ...)", self.username)
    }
}

/// Certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryTls {
    /// Additional authorities, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// Do not verify the server.
    pub insecure_skip_verify: bool,
}

/// One place to pull from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    plain: bool,
}

/// Fetches an image, unpacks it and records its names; returns its id.
pub async fn pull(
    images: &Images,
    lease: &Lease,
    registries: &Registries,
    reference: &Reference,
    auth: Option<ImageAuth>,
    progress: Option<Progress>,
) -> Result<String, ImageError> {
    let mut first: Option<ImageError> = None;
    for endpoint in endpoints(registries, &reference.registry) {
        let attempt = Attempt::new(images, lease, registries, reference, &endpoint, &auth, &progress)?;
        match attempt.run().await {
            Ok(id) => return Ok(id),
            Err(error) => {
                tracing::debug!(host = endpoint.host, image = reference.full(), %error, "pull failed");
                // The registry itself comes last, its word counts unless a mirror failed in another way.
                first = Some(match first {
                    Some(known @ ImageError::Registry { retry: true, .. }) => known,
                    _ => error,
                });
            }
        }
    }
    Err(first.unwrap_or_else(|| ImageError::Registry {
        message: "no endpoint".to_owned(),
        retry: false,
    }))
}

/// Mirrors first, the registry itself last.
fn endpoints(registries: &Registries, registry: &str) -> Vec<Endpoint> {
    let mirrors = registries
        .mirrors
        .get(registry)
        .or_else(|| registries.mirrors.get("*"));
    let mut found = Vec::new();
    for text in mirrors.into_iter().flat_map(|mirror| &mirror.endpoint) {
        let (plain, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => (is_loopback(text), text.as_str()),
        };
        let host = rest.trim_end_matches('/').trim_end_matches("/v2").to_owned();
        found.push(Endpoint { host, plain });
    }
    // An endpoint of the same host says how that host is spoken to: to ask it otherwise would only hide its answer.
    if !found.iter().any(|endpoint| endpoint.host == registry) {
        // Docker Hub's API lives on a host of its own; oci-client knows that one.
        found.push(Endpoint {
            host: registry.to_owned(),
            plain: is_loopback(registry),
        });
    }
    found
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

struct Attempt<'a> {
    images: &'a Images,
    lease: &'a Lease,
    client: Client,
    auth: RegistryAuth,
    reference: &'a Reference,
    remote: oci_client::Reference,
    progress: &'a Option<Progress>,
}

impl<'a> Attempt<'a> {
    fn new(
        images: &'a Images,
        lease: &'a Lease,
        registries: &Registries,
        reference: &'a Reference,
        endpoint: &Endpoint,
        auth: &Option<ImageAuth>,
        progress: &'a Option<Progress>,
    ) -> Result<Self, ImageError> {
        // reqwest takes the process's provider: make sure there is one.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let fail = |message: String| ImageError::Registry {
            message,
            retry: false,
        };
        let settings = registries.configs.get(&endpoint.host);
        let mut config = ClientConfig {
            protocol: if endpoint.plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: "skiff",
            ..ClientConfig::default()
        };
        if let Some(tls) = settings.and_then(|settings| settings.tls.as_ref()) {
            config.accept_invalid_certificates = tls.insecure_skip_verify;
            if let Some(path) = &tls.ca_file {
                let data =
                    std::fs::read(path).map_err(|error| fail(format!("{}: {error}", path.display())))?;
                config.extra_root_certificates.push(Certificate {
                    encoding: CertificateEncoding::Pem,
                    data,
                });
            }
        }
        let client = Client::try_from(config).map_err(|error| fail(error.to_string()))?;
        let of_config = settings.and_then(|settings| settings.auth.as_ref());
        // A pod's credentials are for the registry it names; a mirror gets only what was configured for it.
        let of_pod = auth.as_ref().filter(|_| endpoint.host == reference.registry);
        let auth = match (of_pod, of_config) {
            (Some(ImageAuth::Basic { username, password }), _) => {
                RegistryAuth::Basic(username.clone(), password.clone())
            }
            (Some(ImageAuth::Bearer(token)), _) => RegistryAuth::Bearer(token.clone()),
            (None, Some(login)) if !login.token.is_empty() => RegistryAuth::Bearer(login.token.clone()),
            (None, Some(login)) if !login.username.is_empty() => {
                RegistryAuth::Basic(login.username.clone(), login.password.clone())
            }
            _ => RegistryAuth::Anonymous,
        };
        let host = endpoint.host.clone();
        let repository = reference.repository.clone();
        let remote = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(host, repository, digest.clone()),
            (None, Some(tag)) => oci_client::Reference::with_tag(host, repository, tag.clone()),
            (None, None) => oci_client::Reference::with_tag(host, repository, "latest".to_owned()),
        };
        Ok(Self {
            images,
            lease,
            client,
            auth,
            reference,
            remote,
            progress,
        })
    }

    async fn run(&self) -> Result<String, ImageError> {
        self.client
            .auth(&self.remote, &self.auth, oci_client::RegistryOperation::Pull)
            .await
            .map_err(|error| self.error(error))?;
        let (mut at, mut references, mut target) = (self.remote.clone(), Vec::new(), None);
        for _ in 0..DEPTH_MAX {
            let (bytes, digest) = self
                .client
                .pull_manifest_raw(&at, &self.auth, MANIFEST_TYPES)
                .await
                .map_err(|error| self.error(error))?;
            let document: Document = parse(&bytes, &digest)?;
            let media_type = document.media_type.clone().unwrap_or_else(|| {
                let index = document.manifests.is_some();
                (if index {
                    media::OCI_INDEX
                } else {
                    media::OCI_MANIFEST
                })
                .to_owned()
            });
            let stored = self
                .images
                .content
                .write_bytes(self.lease, bytes, &media_type)
                .await?;
            let digest = stored.digest.clone();
            target.get_or_insert(stored);
            match next(&document, &digest)? {
                Next::Child(child) => {
                    let label = (
                        "containerd.io/gc.ref.content.m.0".to_owned(),
                        child.digest.clone(),
                    );
                    references.push((digest, vec![label]));
                    at = at.clone_with_digest(child.digest);
                }
                Next::Manifest(config, layers) => {
                    references.push((digest, manifest_references(&config, &layers)));
                    let target = target.unwrap_or_default();
                    return self
                        .finish(Resolved {
                            target,
                            references,
                            config,
                            layers,
                        })
                        .await;
                }
            }
        }
        Err(ImageError::Registry {
            message: "indexes nested too deeply".to_owned(),
            retry: false,
        })
    }

    async fn finish(&self, resolved: Resolved) -> Result<String, ImageError> {
        let blobs: Vec<&Descriptor> = std::iter::once(&resolved.config)
            .chain(&resolved.layers)
            .collect();
        let total: i64 = blobs.iter().map(|blob| blob.size.max(0)).sum();
        let (total_bytes, layers_total) = (total as u64, resolved.layers.len());
        let fetched = Arc::new(AtomicU64::new(0));
        let report = |fetched_bytes: u64, layers_unpacked: usize| {
            if let Some(progress) = self.progress {
                progress(PullProgress {
                    fetched_bytes,
                    total_bytes,
                    layers_unpacked,
                    layers_total,
                });
            }
        };
        let fetches: Vec<BoxFuture<'_, Result<(), ImageError>>> = blobs
            .into_iter()
            .map(|blob| self.fetch(blob, &fetched).boxed())
            .collect();
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(LAYERS_AT_ONCE);
        while let Some(outcome) = fetches.next().await {
            outcome?;
            report(fetched.load(Ordering::Relaxed), 0);
        }
        let mut names = vec![self.reference.full()];
        let by_digest = format!("{}@{}", self.reference.name(), resolved.target.digest);
        if !names.contains(&by_digest) {
            names.push(by_digest);
        }
        self.images
            .adopt(self.lease, &resolved, &names, &|layers| {
                report(total_bytes, layers)
            })
            .await
    }

    async fn fetch(&self, blob: &Descriptor, fetched: &Arc<AtomicU64>) -> Result<(), ImageError> {
        if self.images.content.has(&blob.digest).await? {
            // Writing it takes it under the lease and needs no data when it is there.
            let nothing = futures::stream::empty();
            self.images
                .content
                .write(self.lease, nothing, Some(blob), &blob.digest)
                .await?;
            fetched.fetch_add(blob.size.max(0) as u64, Ordering::Relaxed);
            return Ok(());
        }
        let pulled = self
            .client
            .pull_blob_stream(&self.remote, blob.digest.as_str())
            .await;
        let stream = pulled.map_err(|error| self.error(error))?.stream;
        let (counter, limit) = (fetched.clone(), blob.size.max(0) as u64);
        let mut seen = 0u64;
        let counted = stream.map(move |piece| {
            let piece = piece?;
            seen += piece.len() as u64;
            counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
            match seen > limit {
                true => Err(std::io::Error::other("the registry sends more than it announced")),
                false => Ok(piece),
            }
        });
        self.images
            .content
            .write(self.lease, counted, Some(blob), &blob.digest)
            .await?;
        Ok(())
    }

    fn error(&self, error: OciDistributionError) -> ImageError {
        let coded = |codes: &[OciErrorCode]| match &error {
            OciDistributionError::RegistryError { envelope, .. } => {
                envelope.errors.iter().any(|one| codes.contains(&one.code))
            }
            _ => false,
        };
        let host = self.remote.registry();
        let missing = coded(&[
            OciErrorCode::ManifestUnknown,
            OciErrorCode::NameUnknown,
            OciErrorCode::NotFound,
        ]) || matches!(error, OciDistributionError::ImageManifestNotFoundError(_));
        if missing {
            return ImageError::Registry {
                message: format!("not found on {host}"),
                retry: false,
            };
        }
        let denied = coded(&[OciErrorCode::Unauthorized, OciErrorCode::Denied])
            || matches!(
                error,
                OciDistributionError::UnauthorizedError { .. }
                    | OciDistributionError::AuthenticationFailure(_)
            );
        if denied {
            let message =
                format!("{host} denies access (wrong or missing credentials, or no such repository)");
            return ImageError::Registry {
                message,
                retry: false,
            };
        }
        let mut message = format!("{host}: {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !message.contains(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        ImageError::Registry { message, retry: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let mut registries = Registries::default();
        let mirror = |text: &str| Mirror {
            endpoint: vec![text.to_owned()],
        };
        registries
            .mirrors
            .insert("docker.io".into(), mirror("http://10.0.0.1:5000/v2"));
        registries
            .mirrors
            .insert("*".into(), mirror("https://cache.example"));
        registries
            .mirrors
            .insert("10.0.0.9:5000".into(), mirror("http://10.0.0.9:5000"));
        let hosts = |registry: &str| -> Vec<(String, bool)> {
            endpoints(&registries, registry)
                .into_iter()
                .map(|found| (found.host, found.plain))
                .collect()
        };
        assert_eq!(
            hosts("docker.io"),
            [("10.0.0.1:5000".into(), true), ("docker.io".into(), false)]
        );
        assert_eq!(
            hosts("quay.io"),
            [("cache.example".into(), false), ("quay.io".into(), false)]
        );
        assert_eq!(hosts("10.0.0.9:5000"), [("10.0.0.9:5000".into(), true)]);
    }

    #[test]
    fn plain_http_is_for_loopback() {
        for (registry, want) in [
            ("localhost:5000", true),
            ("127.0.0.1", true),
            ("127.3.2.1:80", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example", false),
        ] {
            assert_eq!(is_loopback(registry), want, "{registry}");
        }
    }
}
