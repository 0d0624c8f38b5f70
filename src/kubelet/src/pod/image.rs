//! Getting a container's image: policy, credentials, errors and their back-off.

use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use skiff_cri::reference::Reference;
use skiff_cri::{Image, ImageAuth, RuntimeError};

use super::apply::{Done, Job};
use super::spec::{self, Spec};
use super::state::Failure;

/// First wait after a failed pull.
const PULL_RETRY_FIRST: Duration = Duration::from_secs(10);
/// Longest wait after failed pulls.
const PULL_RETRY_MAX: Duration = Duration::from_secs(300);

/// Makes sure that the image is on the node.
pub async fn ensure(job: Job, spec: Spec, previous: Option<Failure>) -> Done {
    let runtime = job.shared.config.runtime.clone();
    let image = spec.container.image.clone().unwrap_or_default();
    let about = spec::reference(&job.pod, Some(spec.field_path()));
    let recorder = &job.shared.recorder;
    let fail = |reason: &str, message: String| {
        recorder.warning(&about, "Failed", format!("Error: {reason}"));
        let now = job.shared.clock().now();
        let failure = Failure::after(
            previous.as_ref(),
            now,
            PULL_RETRY_FIRST,
            PULL_RETRY_MAX,
            reason,
            message,
        );
        Done::Image(Err(failure))
    };
    let reference = match Reference::parse(&image) {
        Ok(reference) => reference,
        Err(error) => {
            recorder.warning(
                &about,
                "InspectFailed",
                format!("Failed to apply default image tag {image:?}: {error}"),
            );
            return fail(
                "InvalidImageName",
                format!("Failed to apply default image tag {image:?}: {error}"),
            );
        }
    };
    let policy = spec
        .container
        .image_pull_policy
        .as_deref()
        .unwrap_or("IfNotPresent");
    let present = match runtime.image(&image).await {
        Ok(present) => present,
        Err(error) => {
            recorder.warning(
                &about,
                "InspectFailed",
                format!("Failed to inspect image {image:?}: {error}"),
            );
            return fail(
                "ImageInspectError",
                format!("Failed to inspect image {image:?}: {error}"),
            );
        }
    };
    match (policy, present) {
        ("Never", Some(present)) | ("IfNotPresent", Some(present)) => {
            recorder.normal(
                &about,
                "Pulled",
                format!(
                    "Container image {image:?} already present on machine and can be accessed by the pod"
                ),
            );
            return Done::Image(Ok(present.id));
        }
        ("Never", None) => {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            recorder.warning(&about, "ErrImageNeverPull", message.clone());
            return fail("ErrImageNeverPull", message);
        }
        _ => {}
    }
    let begun = job.shared.clock().monotonic();
    let Ok(_permit) = job.shared.pulls.acquire().await else {
        return Done::Nothing;
    };
    recorder.normal(&about, "Pulling", format!("Pulling image {image:?}"));
    let pulled_from = job.shared.clock().monotonic();
    match pull(&job, &image, &reference).await {
        Ok(found) => {
            let end = job.shared.clock().monotonic();
            let (took, with_wait) = (end.duration_since(pulled_from), end.duration_since(begun));
            recorder.normal(
                &about,
                "Pulled",
                format!(
                    "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
                    short(took),
                    short(with_wait),
                    found.size_bytes
                ),
            );
            Done::Image(Ok(found.id))
        }
        Err(error) => {
            let message = format!("failed to pull and unpack image {image:?}: {error}");
            recorder.warning(
                &about,
                "Failed",
                format!("Failed to pull image {image:?}: {message}"),
            );
            fail("ErrImagePull", message)
        }
    }
}

fn short(duration: Duration) -> String {
    if duration.as_secs() >= 1 {
        format!("{:.3}s", duration.as_secs_f64())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// Tries the credentials that fit, the best fit first; without any, none.
async fn pull(job: &Job, image: &str, reference: &Reference) -> Result<Image, RuntimeError> {
    let runtime = &job.shared.config.runtime;
    let mut auths = Vec::new();
    for secret in job
        .pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten())
    {
        // A missing pull secret is not an error: the image may be public.
        if let Some(lease) = job.secrets.get(&secret.name)
            && let Ok(Some(secret)) = lease.get().await
        {
            auths.extend(credentials(&secret, &reference.registry, &reference.repository));
        }
    }
    auths.sort_by_key(|(fit, _)| std::cmp::Reverse(*fit));
    if auths.is_empty() {
        return runtime.pull_image(image, None, None).await;
    }
    let mut last = None;
    for (_, auth) in auths {
        match runtime.pull_image(image, Some(auth), None).await {
            Ok(image) => return Ok(image),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| RuntimeError::Internal(format!("image {image}: no credentials"))))
}

/// The credentials of a docker configuration that fit a repository, with how much of it they name.
fn credentials(secret: &Secret, registry: &str, repository: &str) -> Vec<(usize, ImageAuth)> {
    let data = secret.data.as_ref();
    let get = |key: &str| {
        data.and_then(|data| data.get(key))
            .map(|bytes| bytes.0.as_slice())
    };
    let parsed = get(".dockerconfigjson").and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    let auths = match parsed {
        Some(config) => config.get("auths").cloned(),
        None => get(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok()),
    };
    let Some(Value::Object(auths)) = auths else {
        return Vec::new();
    };
    auths
        .iter()
        .filter_map(|(server, entry)| Some((fit(server, registry, repository)?, auth(entry)?)))
        .collect()
}

/// How much of `registry/repository` a server name covers; `None` when it is about something else.
fn fit(server: &str, registry: &str, repository: &str) -> Option<usize> {
    let server = server
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let canonical = |host: &str| match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_lowercase(),
    };
    let (want, have) = (canonical(registry), canonical(host));
    let host_fits = match have.strip_prefix("*.") {
        Some(suffix) => want.split_once('.').is_some_and(|(_, rest)| rest == suffix),
        None => want == have,
    };
    let path_fits = path.is_empty() || repository == path || repository.starts_with(&format!("{path}/"));
    (host_fits && path_fits).then(|| have.len() + path.len())
}

fn auth(entry: &Value) -> Option<ImageAuth> {
    let text = |key: &str| {
        entry
            .get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(token) = text("registrytoken") {
        return Some(ImageAuth::Bearer(token.to_owned()));
    }
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(ImageAuth::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        });
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(text("auth")?.trim())
        .ok()?;
    let decoded = String::from_utf8(decoded).ok()?;
    let (username, password) = decoded.split_once(':')?;
    let password = password.trim_matches('\0');
    Some(ImageAuth::Basic {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn credentials_fit_servers() {
        let table = [
            ("https://index.docker.io/v1/", "docker.io", "library/x", true),
            ("registry.example:5000", "registry.example:5000", "a/b", true),
            ("registry.example", "registry.example:5000", "a/b", false),
            ("registry.example/a", "registry.example", "a/b", true),
            ("registry.example/a", "registry.example", "ab/b", false),
            ("*.example.com", "r.example.com", "x", true),
            ("*.example.com", "a.b.example.com", "x", false),
        ];
        for (server, registry, repository, good) in table {
            assert_eq!(
                fit(server, registry, repository).is_some(),
                good,
                "{server} for {registry}/{repository}"
            );
        }
    }

    #[test]
    fn reads_docker_configurations() {
        let json = r#"{"auths":{"r.example":{"auth":"dTpwOnc="},"other":{"username":"a","password":"b"}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), ByteString(json.into()))].into()),
            ..Secret::default()
        };
        let found = credentials(&secret, "r.example", "x");
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].1,
            ImageAuth::Basic {
                username: "u".into(),
                password: "p:w".into()
            }
        );
    }
}
