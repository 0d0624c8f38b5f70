//! Volumes of a pod: a table of types, each setting up one volume in a folder of its own.
//!
//! ```text
//! <root>/pods/<uid>/volumes/kubernetes.io~configmap/<name>/   ..data -> ..2026_11_22_…/   key -> ..data/key
//! <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<n>  bind mount of one path inside a volume
//! ```
//!
//! Setting up is idempotent: it is also how a ConfigMap's change reaches a running pod. Tearing down asks the kernel
//! which mounts lie below the pod's folder, so it needs no memory of what was set up.

pub mod atomic;
pub mod host;
pub mod mounts;
pub mod payload;
pub mod subpath;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::env::Referred;
use crate::fields::PodFacts;
use crate::tokens::Tokens;

/// Why a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The type is not one this kubelet knows.
    #[error("volume {0:?} has no type supported by this node")]
    Unsupported(String),
    /// PersistentVolumeClaims.
    #[error("persistent volume claims are not supported by this node (claim {0:?})")]
    Claim(String),
    /// A referred object is missing.
    #[error("{0} {1:?} not found")]
    NotFound(&'static str, String),
    /// A referred object lacks a key that `items` names.
    #[error("references non-existent {0} key: {1}")]
    NoKey(&'static str, String),
    /// A path in the definition is not allowed.
    #[error("invalid path {0:?}: {1}")]
    BadPath(String, &'static str),
    /// A hostPath is not what its type says.
    #[error("hostPath type check failed: {0} is not {1}")]
    HostPathType(String, &'static str),
    /// A reference into the pod failed.
    #[error(transparent)]
    Field(#[from] crate::fields::FieldError),
    /// No token.
    #[error(transparent)]
    Token(#[from] crate::tokens::TokenError),
    /// The object is not known yet.
    #[error(transparent)]
    Object(#[from] crate::objects::ObjectError),
    /// The operating system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
}

/// Adds the action and the path to an operating system's error.
pub(crate) fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> VolumeError + use<'a> {
    move |source| VolumeError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// What volume types may use.
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses and limits.
    pub facts: &'a PodFacts,
    /// Its folder.
    pub pod_dir: &'a Path,
    /// The objects it refers to.
    pub referred: &'a Referred,
    /// Where tokens come from.
    pub tokens: &'a Tokens,
}

impl Context<'_> {
    /// The group that owns volumes, if the pod names one.
    pub fn fs_group(&self) -> Option<u32> {
        let context = self.pod.spec.as_ref()?.security_context.as_ref()?;
        context.fs_group.and_then(|group| u32::try_from(group).ok())
    }
}

/// A volume in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where it is on the node.
    pub path: PathBuf,
    /// Containers may not write to it.
    pub read_only: bool,
    /// When its content must be made anew though nothing changed (tokens).
    pub renew_at: Option<SystemTime>,
}

/// A type of volume.
#[async_trait]
pub trait Type: Send + Sync {
    /// Name of the type in paths.
    fn name(&self) -> &'static str;
    /// Whether a definition is of this type.
    fn is(&self, volume: &Volume) -> bool;
    /// Puts the volume into `dir`, or says where else it is.
    async fn set_up(&self, context: &Context<'_>, volume: &Volume, dir: &Path) -> Result<Ready, VolumeError>;
}

/// Every type there is.
static TYPES: [&dyn Type; 7] = [
    &host::EmptyDir,
    &host::HostPath,
    &payload::ConfigMapType,
    &payload::SecretType,
    &payload::ProjectedType,
    &payload::DownwardType,
    &Claim,
];

/// Claims are refused by name: a pod that needs its data must not start without it.
struct Claim;

#[async_trait]
impl Type for Claim {
    fn name(&self) -> &'static str {
        "kubernetes.io~persistent-volume-claim"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    async fn set_up(&self, _: &Context<'_>, volume: &Volume, _: &Path) -> Result<Ready, VolumeError> {
        let claim = volume
            .persistent_volume_claim
            .as_ref()
            .map(|claim| claim.claim_name.clone());
        Err(VolumeError::Claim(claim.unwrap_or_else(|| volume.name.clone())))
    }
}

/// The folder of one volume.
fn dir_of(pod_dir: &Path, kind: &dyn Type, volume: &str) -> PathBuf {
    pod_dir.join("volumes").join(kind.name()).join(volume)
}

/// Sets up every volume of a pod. The error names the volume it is about.
pub async fn set_up(context: &Context<'_>) -> Result<BTreeMap<String, Ready>, (String, VolumeError)> {
    let mut ready = BTreeMap::new();
    for volume in context
        .pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
    {
        let one = set_up_one(context, volume)
            .await
            .map_err(|error| (volume.name.clone(), error))?;
        ready.insert(volume.name.clone(), one);
    }
    Ok(ready)
}

async fn set_up_one(context: &Context<'_>, volume: &Volume) -> Result<Ready, VolumeError> {
    if volume.name.is_empty() || volume.name.contains('/') || volume.name.starts_with('.') {
        return Err(VolumeError::BadPath(volume.name.clone(), "not a volume name"));
    }
    let kind = TYPES.iter().find(|kind| kind.is(volume));
    let kind = kind.ok_or_else(|| VolumeError::Unsupported(volume.name.clone()))?;
    kind.set_up(context, volume, &dir_of(context.pod_dir, *kind, &volume.name))
        .await
}

/// The names of ConfigMaps and Secrets a pod's volumes refer to.
pub fn referred_names(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let mut maps = Vec::new();
    let mut secrets = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
        secrets.extend(
            volume
                .secret
                .as_ref()
                .and_then(|source| source.secret_name.clone()),
        );
        for source in volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten())
        {
            maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
            secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
        }
    }
    (maps, secrets)
}

/// Unmounts whatever is mounted below a pod's folder and removes the folder.
pub async fn tear_down(pod_dir: &Path) -> Result<(), VolumeError> {
    let dir = pod_dir.to_owned();
    tokio::task::spawn_blocking(move || {
        mounts::unmount_below(&dir)?;
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", &dir)(error)),
            _ => Ok(()),
        }
    })
    .await
    .unwrap_or_else(|error| {
        let source = std::io::Error::other(error.to_string());
        Err(VolumeError::Io {
            action: "tear down",
            path: pod_dir.to_owned(),
            source,
        })
    })
}
