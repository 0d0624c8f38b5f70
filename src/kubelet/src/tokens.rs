//! Service account tokens for projected volumes: requested, kept in memory, renewed before they end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use skiff_base::clock::Clock;
use skiff_client::Client;

use crate::pod::spec;

/// Life of a token whose volume names none.
const DEFAULT_LIFE_S: i64 = 3600;
/// A token is renewed when this share of its life is over.
const RENEW_AT: f64 = 0.8;
/// A token is renewed after a day at the latest, however long it lives.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The API server refused or could not be asked.
    #[error("failed to fetch token: {0}")]
    Request(#[source] Box<kube::Error>),
    /// The answer held no token.
    #[error("failed to fetch token: the answer for service account {0} holds none")]
    Empty(String),
}

/// A token and when to ask for the next.
#[derive(Clone)]
pub struct Token {
    /// The token itself.
    pub text: String,
    /// When to renew it.
    pub renew_at: SystemTime,
    /// When it ends.
    pub expires_at: SystemTime,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    account: String,
    audience: Option<String>,
    life_s: i64,
}

/// All tokens in use.
#[derive(Clone)]
pub struct Tokens {
    client: Client,
    clock: Arc<dyn Clock>,
    kept: Arc<Mutex<HashMap<Key, Token>>>,
}

impl Tokens {
    /// No tokens yet.
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Tokens {
        Tokens {
            client,
            clock,
            kept: Arc::default(),
        }
    }

    /// A token of the pod's service account, bound to the pod.
    pub async fn get(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        life_s: Option<i64>,
    ) -> Result<Token, TokenError> {
        let spec = pod.spec.as_ref();
        let account = spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".into());
        let life_s = life_s.unwrap_or(DEFAULT_LIFE_S);
        let key = Key {
            uid: spec::uid(pod).to_owned(),
            account: account.clone(),
            audience: audience
                .filter(|audience| !audience.is_empty())
                .map(str::to_owned),
            life_s,
        };
        let now = self.clock.now();
        let kept = self.kept.lock().get(&key).cloned();
        if let Some(token) = kept.as_ref().filter(|token| token.renew_at > now) {
            return Ok(token.clone());
        }
        match self.request(pod, &account, &key).await {
            Ok(token) => {
                self.kept.lock().insert(key, token.clone());
                Ok(token)
            }
            // A token that still works is better than none.
            Err(error) => match kept.filter(|token| token.expires_at > now) {
                Some(token) => {
                    tracing::warn!(pod = spec::full_name(pod), %error, "token not renewed, the old one is kept");
                    let retry = Token {
                        renew_at: now + Duration::from_secs(60),
                        ..token
                    };
                    Ok(retry)
                }
                None => Err(error),
            },
        }
    }

    async fn request(&self, pod: &Pod, account: &str, key: &Key) -> Result<Token, TokenError> {
        let request = TokenRequest {
            metadata: Default::default(),
            spec: Some(TokenRequestSpec {
                audiences: key.audience.clone().map(|audience| vec![audience]),
                expiration_seconds: Some(key.life_s),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            status: None,
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let asked_at = self.clock.now();
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|error| TokenError::Request(Box::new(error)))?;
        let status = answer
            .status
            .ok_or_else(|| TokenError::Empty(account.to_owned()))?;
        let text = status
            .token
            .filter(|t| !t.is_empty())
            .ok_or_else(|| TokenError::Empty(account.to_owned()))?;
        let expires_at: SystemTime = status
            .expiration_timestamp
            .map_or(asked_at + Duration::from_secs(DEFAULT_LIFE_S as u64), |time| {
                time.0.into()
            });
        let life = expires_at.duration_since(asked_at).unwrap_or_default();
        Ok(Token {
            text,
            renew_at: asked_at + life.mul_f64(RENEW_AT).min(RENEW_AFTER),
            expires_at,
        })
    }

    /// Forgets the tokens of a pod.
    pub fn forget(&self, uid: &str) {
        self.kept.lock().retain(|key, _| key.uid != uid);
    }
}
