//! Image references: short names become full ones, digests are checked for form.
//!
//! `nginx` → `docker.io/library/nginx:latest`, `ghcr.io/a/b` → `ghcr.io/a/b:latest`,
//! `name:tag@sha256:...` → `name@sha256:...` in the store (the digest decides, as in containerd).

use sha2::{Digest, Sha256};

/// Longest reference accepted: registries allow 255 for a name, tags 128, a digest 135.
const REFERENCE_MAX_BYTES: usize = 512;

/// A reference that cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid image reference {reference:?}: {reason}")]
pub struct ReferenceError {
    reference: String,
    reason: &'static str,
}

/// A parsed, full reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry host with port, for example `docker.io`.
    pub registry: String,
    /// Repository, for example `library/nginx`.
    pub repository: String,
    /// Tag, unless there is a digest alone.
    pub tag: Option<String>,
    /// `sha256:...`
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and completes a reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError {
            reference: text.chars().take(REFERENCE_MAX_BYTES).collect(),
            reason,
        };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if text.len() > REFERENCE_MAX_BYTES {
            return Err(fail("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(fail("its digest is not sha256: and 64 hexadecimal digits"));
        }
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("its tag is malformed"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            _ => ("docker.io", name.to_owned()),
        };
        let registry = if registry == "index.docker.io" {
            "docker.io"
        } else {
            registry
        };
        let repository = match registry == "docker.io" && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository,
        };
        if !registry
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
        {
            return Err(fail("its registry is malformed"));
        }
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fail("the repository must be lowercase"));
        }
        if !repository.split('/').all(is_component) {
            return Err(fail("its repository is malformed"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        let digest = digest.map(str::to_owned);
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// `registry/repository`
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name under which the image is kept.
    pub fn full(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.name()),
            (None, Some(tag)) => format!("{}:{tag}", self.name()),
            (None, None) => self.name(),
        }
    }
}

/// The full name of a reference.
pub fn normalize(text: &str) -> Result<String, ReferenceError> {
    Ok(Reference::parse(text)?.full())
}

/// True for `sha256:` and 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_sha256_hex)
}

/// True for 64 lower-case hexadecimal digits.
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// `sha256:...` of some bytes.
pub fn sha256_digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_tag(tag: &str) -> bool {
    let first = tag
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first
        && tag.len() <= 128
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_component(component: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    edge(component.bytes().next())
        && edge(component.bytes().next_back())
        && component
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_short_names() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, want) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("index.docker.io/library/a:b", "docker.io/library/a:b".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c".to_owned()),
            ("10.0.0.1:5000/a", "10.0.0.1:5000/a:latest".to_owned()),
            (
                "registry.k8s.io/pause:3.9",
                "registry.k8s.io/pause:3.9".to_owned(),
            ),
            (
                &format!("nginx:1@{digest}"),
                format!("docker.io/library/nginx@{digest}"),
            ),
            (&format!("a.b/c@{digest}"), format!("a.b/c@{digest}")),
        ] {
            assert_eq!(normalize(text).as_ref(), Ok(&want), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        let long = "a".repeat(600);
        for text in [
            "",
            "UPPER",
            "a b",
            "a:",
            "a@sha256:12",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a:b c",
            "a..b/../c",
            &long,
        ] {
            assert!(normalize(text).is_err(), "{text}");
        }
    }
}
