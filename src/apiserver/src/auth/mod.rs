//! Who is this? In order: a user put into the request by this process, a
//! client certificate that TLS verified, a bearer token, nobody.

pub mod impersonation;
pub mod token;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use http::request::Parts;
use serde_json::Value;
use skiff_api::status::Status;
use skiff_base::clock::Clock;
use skiff_store::Store;
use subtle::ConstantTimeEq;

use self::token::{Claims, Keys};
use crate::identity::{AUTHENTICATED, PeerCertificate, UserInfo};
use crate::scan;

/// Type of the secrets that hold bootstrap tokens.
const BOOTSTRAP_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of everyone with a bootstrap token; extra groups must extend its name.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// A pod's token outlives the request to delete the pod by this, so that it can say goodbye.
const DELETION_LEEWAY_SECONDS: i64 = 60;

/// Tells who sent a request.
pub struct Authenticator {
    store: Store,
    keys: Arc<Keys>,
    issuer: String,
    audiences: Vec<String>,
    clock: Arc<dyn Clock>,
}

/// Seconds since 1970.
pub fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

impl Authenticator {
    /// Believes tokens of `keys` from `issuer` that are meant for one of `audiences`.
    pub fn new(
        store: Store,
        keys: Arc<Keys>,
        issuer: String,
        audiences: Vec<String>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            store,
            keys,
            issuer,
            audiences,
            clock,
        }
    }

    /// The audiences this server itself is.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// The user behind a request. A credential that is wrong is an error, no
    /// credential is [`UserInfo::anonymous`].
    pub fn authenticate(&self, parts: &Parts) -> Result<UserInfo, Status> {
        if let Some(user) = parts.extensions.get::<UserInfo>() {
            return Ok(user.clone());
        }
        if let Some(PeerCertificate(user)) = parts.extensions.get::<PeerCertificate>() {
            return Ok(user.clone());
        }
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            return match websocket_token(parts) {
                Some(token) => self.bearer(&token),
                None => Ok(UserInfo::anonymous()),
            };
        };
        let header = header.to_str().map_err(|_| Status::unauthorized())?;
        match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => self.bearer(token.trim()),
            // Other schemes are nobody's credentials here.
            _ => Ok(UserInfo::anonymous()),
        }
    }

    fn bearer(&self, token: &str) -> Result<UserInfo, Status> {
        match self.review(token, &self.audiences) {
            Ok((user, _)) => Ok(user),
            Err(reason) => {
                tracing::debug!(%reason, "bearer token refused");
                Err(Status::unauthorized())
            }
        }
    }

    /// Judges a token for some audiences: the user, and the audiences both
    /// token and caller name. The error is a reason for people.
    pub fn review(&self, token: &str, audiences: &[String]) -> Result<(UserInfo, Vec<String>), String> {
        if token.is_empty() {
            return Err("no token".to_owned());
        }
        if token::looks_like_ours(token) {
            let now = unix_seconds(self.clock.now());
            let claims = self
                .keys
                .verify(token, &self.issuer, now)
                .map_err(|e| e.to_string())?;
            let shared: Vec<String> = claims
                .aud
                .iter()
                .filter(|a| audiences.contains(a))
                .cloned()
                .collect();
            if shared.is_empty() {
                return Err(format!(
                    "token audiences {:?} are invalid for the target audiences {audiences:?}",
                    claims.aud
                ));
            }
            return Ok((self.service_account(&claims)?, shared));
        }
        let user = self
            .bootstrap_token(token)
            .ok_or_else(|| "unknown token".to_owned())?;
        Ok((user, audiences.to_vec()))
    }

    /// The service account of verified claims, if everything the token is
    /// bound to is still there.
    fn service_account(&self, claims: &Claims) -> Result<UserInfo, String> {
        let bound = &claims.kubernetes;
        let (namespace, name) = (&bound.namespace, &bound.serviceaccount.name);
        if claims.sub != format!("system:serviceaccount:{namespace}:{name}") {
            return Err("token subject does not match its claims".to_owned());
        }
        self.alive(
            "service account",
            &format!("/registry/serviceaccounts/{namespace}/{name}"),
            &bound.serviceaccount.uid,
        )?;
        let mut user = UserInfo::service_account(namespace, name, &bound.serviceaccount.uid);
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(
                    format!("authentication.kubernetes.io/{key}"),
                    vec![value.to_owned()],
                );
            }
        };
        if !claims.jti.is_empty() {
            extra("credential-id", &format!("JTI={}", claims.jti));
        }
        if let Some(secret) = &bound.secret {
            self.alive(
                "secret",
                &format!("/registry/secrets/{namespace}/{}", secret.name),
                &secret.uid,
            )?;
        }
        if let Some(pod) = &bound.pod {
            self.alive(
                "pod",
                &format!("/registry/pods/{namespace}/{}", pod.name),
                &pod.uid,
            )?;
            extra("pod-name", &pod.name);
            extra("pod-uid", &pod.uid);
        }
        if let Some(node) = &bound.node {
            if bound.pod.is_none() {
                self.alive("node", &format!("/registry/nodes/{}", node.name), &node.uid)?;
            }
            extra("node-name", &node.name);
            extra("node-uid", &node.uid);
        }
        Ok(user)
    }

    fn alive(&self, what: &str, key: &str, uid: &str) -> Result<(), String> {
        let entry = self
            .store
            .get(key)
            .ok_or_else(|| format!("the token's {what} no longer exists"))?;
        if scan::string(&entry.value, &["metadata", "uid"]).as_deref() != Some(uid) {
            return Err(format!("the token's {what} was replaced by another"));
        }
        if let Some(deleted) = scan::string(&entry.value, &["metadata", "deletionTimestamp"])
            && let Ok(deleted) = deleted.parse::<jiff::Timestamp>()
        {
            let now = unix_seconds(self.clock.now()) as i64;
            if now > deleted.as_second() + DELETION_LEEWAY_SECONDS {
                return Err(format!("the token's {what} is being deleted"));
            }
        }
        Ok(())
    }

    fn bootstrap_token(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = token.split_once('.')?;
        let plain =
            |s: &str, len| s.len() == len && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !plain(id, 6) || !plain(secret, 16) {
            return None;
        }
        let entry = self
            .store
            .get(&format!("/registry/secrets/kube-system/bootstrap-token-{id}"))?;
        let object: Value = serde_json::from_slice(&entry.value).ok()?;
        if object["type"] != BOOTSTRAP_TYPE || object["metadata"]["deletionTimestamp"].is_string() {
            return None;
        }
        let data: BTreeMap<&str, Vec<u8>> = object["data"]
            .as_object()?
            .iter()
            .filter_map(|(k, v)| Some((k.as_str(), STANDARD.decode(v.as_str()?).ok()?)))
            .collect();
        let text = |key: &str| {
            data.get(key)
                .and_then(|v| std::str::from_utf8(v).ok())
                .unwrap_or_default()
        };
        let stored = data.get("token-secret")?;
        if !bool::from(stored.as_slice().ct_eq(secret.as_bytes())) || text("token-id") != id {
            return None;
        }
        if text("usage-bootstrap-authentication") != "true" {
            return None;
        }
        let expiration = text("expiration");
        if !expiration.is_empty() {
            let end = expiration.parse::<jiff::Timestamp>().ok()?;
            if unix_seconds(self.clock.now()) as i64 >= end.as_second() {
                return None;
            }
        }
        let mut groups = vec![BOOTSTRAPPERS.to_owned()];
        let extension = format!("{BOOTSTRAPPERS}:");
        groups.extend(
            text("auth-extra-groups")
                .split(',')
                .map(str::trim)
                .filter(|g| g.starts_with(&extension))
                .map(str::to_owned),
        );
        groups.push(AUTHENTICATED.to_owned());
        Some(UserInfo {
            username: format!("system:bootstrap:{id}"),
            groups,
            ..UserInfo::default()
        })
    }
}

/// A token in `Sec-WebSocket-Protocol`, where browsers must put it.
fn websocket_token(parts: &Parts) -> Option<String> {
    const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";
    let offered = parts
        .headers
        .get(http::header::SEC_WEBSOCKET_PROTOCOL)?
        .to_str()
        .ok()?;
    let encoded = offered.split(',').find_map(|p| p.trim().strip_prefix(PREFIX))?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(encoded)
        .ok()?;
    String::from_utf8(bytes).ok()
}
