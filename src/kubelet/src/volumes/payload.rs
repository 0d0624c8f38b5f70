//! Volumes whose files come from the API: `configMap`, `secret`, `projected`, `downwardAPI`.
//!
//! Each source is turned into files by a pure function; [`super::atomic`] writes them.

use std::path::Path;
use std::time::SystemTime;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret, Volume,
};

use super::atomic::{self, File, Payload, checked};
use super::host::make;
use super::{Context, Ready, Type, VolumeError, mounts};
use crate::fields;

/// Permission bits of files whose volume names none.
const DEFAULT_MODE: i32 = 0o644;

fn mode_of(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

/// Puts keys into files: all of them, or those `items` names.
fn add_keys<'a>(
    payload: &mut Payload,
    what: &'static str,
    data: impl Fn(&str) -> Option<&'a [u8]>,
    all: impl Iterator<Item = &'a str>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
) -> Result<(), VolumeError> {
    let mut add = |key: &str, path: &str, mode: Option<i32>| -> Result<(), VolumeError> {
        match data(key) {
            Some(bytes) => {
                let file = File {
                    data: bytes.to_vec(),
                    mode: mode_of(mode, default_mode),
                    uid: None,
                };
                payload.insert(checked(path)?, file);
                Ok(())
            }
            None if optional => Ok(()),
            None => Err(VolumeError::NoKey(what, key.to_owned())),
        }
    };
    match items.filter(|items| !items.is_empty()) {
        Some(items) => items
            .iter()
            .try_for_each(|item| add(&item.key, &item.path, item.mode)),
        None => {
            let keys: Vec<&str> = all.collect();
            keys.into_iter().try_for_each(|key| add(key, key, None))
        }
    }
}

fn add_config_map(
    payload: &mut Payload,
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
) -> Result<(), VolumeError> {
    let Some(map) = context.referred.config_maps.get(name) else {
        return if optional {
            Ok(())
        } else {
            Err(VolumeError::NotFound("configmap", name.to_owned()))
        };
    };
    let map: &ConfigMap = map;
    let get = |key: &str| {
        let text = map
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .map(String::as_bytes);
        text.or_else(|| {
            map.binary_data
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|bytes| bytes.0.as_slice())
        })
    };
    let keys = map.data.iter().flat_map(|data| data.keys());
    let keys = keys
        .chain(map.binary_data.iter().flat_map(|data| data.keys()))
        .map(String::as_str);
    add_keys(payload, "config", get, keys, items, optional, mode)
}

fn add_secret(
    payload: &mut Payload,
    context: &Context<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
) -> Result<(), VolumeError> {
    let Some(secret) = context.referred.secrets.get(name) else {
        return if optional {
            Ok(())
        } else {
            Err(VolumeError::NotFound("secret", name.to_owned()))
        };
    };
    let secret: &Secret = secret;
    let get = |key: &str| {
        secret
            .data
            .as_ref()
            .and_then(|data| data.get(key))
            .map(|bytes| bytes.0.as_slice())
    };
    let keys = secret
        .data
        .iter()
        .flat_map(|data| data.keys())
        .map(String::as_str);
    add_keys(payload, "secret", get, keys, items, optional, mode)
}

fn add_downward(
    payload: &mut Payload,
    context: &Context<'_>,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: Option<i32>,
) -> Result<(), VolumeError> {
    for item in items.unwrap_or_default() {
        let text = if let Some(field) = &item.field_ref {
            fields::field(context.pod, context.facts, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource_field(context.pod, context.facts, None, resource)?
        } else {
            continue;
        };
        let file = File {
            data: text.into_bytes(),
            mode: mode_of(item.mode, mode),
            uid: None,
        };
        payload.insert(checked(&item.path)?, file);
    }
    Ok(())
}

/// Who may read a token: its group, its one user, or everybody.
fn token_file(context: &Context<'_>, text: String, mode: Option<i32>) -> File {
    let data = text.into_bytes();
    if context.fs_group().is_some() {
        return File {
            data,
            mode: 0o600,
            uid: None,
        };
    }
    match one_user(context) {
        Some(uid) => File {
            data,
            mode: 0o600,
            uid: Some(uid),
        },
        None => File {
            data,
            mode: mode_of(None, mode),
            uid: None,
        },
    }
}

/// The user all containers run as, if it is the same for all.
fn one_user(context: &Context<'_>) -> Option<u32> {
    let spec = context.pod.spec.as_ref()?;
    let pod_user = spec
        .security_context
        .as_ref()
        .and_then(|context| context.run_as_user);
    let mut users = crate::resources::all_containers(context.pod).map(|container| {
        container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user)
            .or(pod_user)
    });
    let first = users.next()??;
    users
        .all(|user| user == Some(first))
        .then(|| u32::try_from(first).ok())?
}

/// Writes the files, on disk or in memory, for the pod's group if it has one.
fn put(context: &Context<'_>, dir: &Path, mut payload: Payload, memory: bool) -> Result<(), VolumeError> {
    make(dir, 0o777)?;
    if memory {
        mounts::tmpfs(dir, None, 0o777)?;
    }
    let group = context.fs_group();
    if group.is_some() {
        for file in payload.values_mut() {
            file.mode |= 0o440;
        }
    }
    atomic::write(dir, &payload, group, now())?;
    Ok(())
}

/// The moment names a version folder and nothing else; the folder's name is made unique whatever it says.
fn now() -> SystemTime {
    skiff_base::clock::system().now()
}

fn ready(dir: &Path, renew_at: Option<SystemTime>) -> Ready {
    Ready {
        path: dir.to_owned(),
        read_only: true,
        renew_at,
    }
}

/// Files from a ConfigMap.
pub struct ConfigMapType;

#[async_trait]
impl Type for ConfigMapType {
    fn name(&self) -> &'static str {
        "kubernetes.io~configmap"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, dir: &Path) -> Result<Ready, VolumeError> {
        let source = volume.config_map.clone().unwrap_or_default();
        let mut payload = Payload::new();
        let optional = source.optional == Some(true);
        let items = source.items.as_deref();
        add_config_map(
            &mut payload,
            context,
            &source.name,
            items,
            optional,
            source.default_mode,
        )?;
        put(context, dir, payload, false)?;
        Ok(ready(dir, None))
    }
}

/// Files from a Secret, in memory.
pub struct SecretType;

#[async_trait]
impl Type for SecretType {
    fn name(&self) -> &'static str {
        "kubernetes.io~secret"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, dir: &Path) -> Result<Ready, VolumeError> {
        let source = volume.secret.clone().unwrap_or_default();
        let name = source.secret_name.clone().unwrap_or_default();
        let mut payload = Payload::new();
        let optional = source.optional == Some(true);
        add_secret(
            &mut payload,
            context,
            &name,
            source.items.as_deref(),
            optional,
            source.default_mode,
        )?;
        put(context, dir, payload, true)?;
        Ok(ready(dir, None))
    }
}

/// Files about the pod itself, in memory.
pub struct DownwardType;

#[async_trait]
impl Type for DownwardType {
    fn name(&self) -> &'static str {
        "kubernetes.io~downward-api"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, dir: &Path) -> Result<Ready, VolumeError> {
        let source = volume.downward_api.clone().unwrap_or_default();
        let mut payload = Payload::new();
        add_downward(
            &mut payload,
            context,
            source.items.as_deref(),
            source.default_mode,
        )?;
        put(context, dir, payload, true)?;
        Ok(ready(dir, None))
    }
}

/// Several sources in one folder, in memory.
pub struct ProjectedType;

#[async_trait]
impl Type for ProjectedType {
    fn name(&self) -> &'static str {
        "kubernetes.io~projected"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, dir: &Path) -> Result<Ready, VolumeError> {
        let source = volume.projected.clone().unwrap_or_default();
        let (payload, renew_at) = projected(context, &volume.name, &source).await?;
        put(context, dir, payload, true)?;
        Ok(ready(dir, renew_at))
    }
}

async fn projected(
    context: &Context<'_>,
    volume: &str,
    source: &ProjectedVolumeSource,
) -> Result<(Payload, Option<SystemTime>), VolumeError> {
    let mut payload = Payload::new();
    let mut renew_at: Option<SystemTime> = None;
    let mode = source.default_mode;
    for source in source.sources.iter().flatten() {
        if let Some(map) = &source.config_map {
            let optional = map.optional == Some(true);
            add_config_map(
                &mut payload,
                context,
                &map.name,
                map.items.as_deref(),
                optional,
                mode,
            )?;
        } else if let Some(secret) = &source.secret {
            let optional = secret.optional == Some(true);
            add_secret(
                &mut payload,
                context,
                &secret.name,
                secret.items.as_deref(),
                optional,
                mode,
            )?;
        } else if let Some(downward) = &source.downward_api {
            add_downward(&mut payload, context, downward.items.as_deref(), mode)?;
        } else if let Some(token) = &source.service_account_token {
            let path = checked(&token.path)?;
            let issued = context
                .tokens
                .get(context.pod, token.audience.as_deref(), token.expiration_seconds)
                .await?;
            renew_at = Some(renew_at.map_or(issued.renew_at, |at| at.min(issued.renew_at)));
            payload.insert(path, token_file(context, issued.text, mode));
        } else {
            return Err(VolumeError::Unsupported(volume.to_owned()));
        }
    }
    Ok((payload, renew_at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Referred;
    use crate::fields::PodFacts;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;
    use std::sync::Arc;

    fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// A client nothing may ask: these tests need no token.
    fn no_client() -> skiff_client::Client {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("not expected"))
        });
        skiff_client::Client::new(service, "default")
    }

    #[tokio::test]
    async fn projects_sources_and_reports_what_is_missing() {
        let pod: Pod = parse(
            json!({"metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b"}},
            "spec": {"containers": []}}),
        );
        let referred = Referred {
            config_maps: [(
                "cm".to_owned(),
                Arc::new(parse(json!({"metadata": {}, "data": {"k": "v", "l": "w"},
                "binaryData": {"bin": "AAE="}}))),
            )]
            .into(),
            secrets: [(
                "s".to_owned(),
                Arc::new(parse(json!({"metadata": {}, "data": {"pw": "eA=="}}))),
            )]
            .into(),
        };
        let tokens = crate::tokens::Tokens::new(no_client(), skiff_base::clock::system());
        let facts = PodFacts::default();
        let context = Context {
            pod: &pod,
            facts: &facts,
            pod_dir: Path::new("/x"),
            referred: &referred,
            tokens: &tokens,
        };
        let good: ProjectedVolumeSource = parse(json!({"defaultMode": 256, "sources": [
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "conf/k", "mode": 420}]}},
            {"secret": {"name": "s"}}, {"secret": {"name": "gone", "optional": true}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}));
        let (payload, renew) = projected(&context, "v", &good).await.unwrap();
        assert_eq!(renew, None);
        let seen: Vec<(String, String, u32)> = payload
            .iter()
            .map(|(path, file)| {
                (
                    path.display().to_string(),
                    String::from_utf8_lossy(&file.data).into_owned(),
                    file.mode,
                )
            })
            .collect();
        let expected = [
            ("conf/k", "v", 0o644),
            ("labels", "a=\"b\"", 0o400),
            ("pw", "x", 0o400),
        ];
        assert_eq!(seen, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c)));
        let bad = [
            (
                json!({"configMap": {"name": "none"}}),
                "configmap \"none\" not found",
            ),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}),
                "references non-existent config key: z",
            ),
            (
                json!({"secret": {"name": "s", "items": [{"key": "pw", "path": "../z"}]}}),
                "invalid path \"../z\"",
            ),
            (
                json!({"serviceAccountToken": {"path": "token"}}),
                "failed to fetch token",
            ),
            (
                json!({"clusterTrustBundle": {"path": "x"}}),
                "volume \"v\" has no type",
            ),
        ];
        for (source, expected) in bad {
            let source: ProjectedVolumeSource = parse(json!({"sources": [source]}));
            let error = projected(&context, "v", &source).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
