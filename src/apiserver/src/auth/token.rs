//! Service account tokens: JSON Web Tokens signed with ECDSA P-256 (ES256).
//!
//! Only the form and the signature are judged here; whether the objects a
//! token is bound to still exist is asked in [`super`]. The key id is that
//! of the key that signed, so tokens of an older key keep working while
//! it is among the [`Keys`].

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde::{Deserialize, Serialize};
use skiff_pki::ServiceAccountKey;

/// Longest token that is looked at; ours are below one KiB.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Why a token or key was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Signing failed.
    #[error("signing the token failed")]
    Signing,
    /// Not three base64url parts of JSON.
    #[error("token is malformed")]
    Malformed,
    /// Signed by a key that is not ours.
    #[error("token signature is not valid")]
    Signature,
    /// Not from our issuer.
    #[error("token has another issuer")]
    Issuer,
    /// Past its end.
    #[error("token has expired")]
    Expired,
    /// Before its beginning.
    #[error("token is not valid yet")]
    NotYet,
}

/// A name with the identity of the object that bears it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ref {
    /// The object's name.
    pub name: String,
    /// The object's uid.
    #[serde(default)]
    pub uid: String,
}

/// The claims under `kubernetes.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: Ref,
    /// The pod the token lives with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Ref>,
    /// The secret the token lives with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Ref>,
    /// The node the token lives with, or the node of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Ref>,
}

/// The claims of a service account token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom the token is for.
    pub aud: Vec<String>,
    /// End, in seconds since 1970.
    pub exp: u64,
    /// Issue time.
    pub iat: u64,
    /// Issuer.
    pub iss: String,
    /// Unique id of the token.
    #[serde(default)]
    pub jti: String,
    /// What the token is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    /// Begin.
    pub nbf: u64,
    /// The user name.
    pub sub: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// The keys of the token issuer: the first one signs, all are believed.
pub struct Keys {
    keys: Vec<Arc<ServiceAccountKey>>,
}

impl Keys {
    /// Signs with `signer`; also believes tokens of the `older` keys.
    pub fn new(signer: Arc<ServiceAccountKey>, older: Vec<Arc<ServiceAccountKey>>) -> Self {
        let mut keys = vec![signer];
        keys.extend(older);
        Self { keys }
    }

    /// A signed token with these claims.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let header = Header {
            alg: "ES256".to_owned(),
            kid: self.keys[0].key_id().to_owned(),
        };
        let header = serde_json::to_vec(&header).map_err(|_| TokenError::Signing)?;
        let claims = serde_json::to_vec(claims).map_err(|_| TokenError::Signing)?;
        let mut token = format!("{}.{}", B64.encode(header), B64.encode(claims));
        let signature = self.keys[0]
            .sign(token.as_bytes())
            .map_err(|_| TokenError::Signing)?;
        token.push('.');
        B64.encode_string(&signature, &mut token);
        Ok(token)
    }

    /// The claims of a token that is ours and valid at `now` (seconds since 1970).
    pub fn verify(&self, token: &str, issuer: &str, now: u64) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| B64.decode(part).map_err(|_| TokenError::Malformed);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        let signature = decode(signature)?;
        if header.alg != "ES256" {
            return Err(TokenError::Signature);
        }
        let trusted = self
            .keys
            .iter()
            .filter(|key| header.kid.is_empty() || key.key_id() == header.kid)
            .any(|key| key.verify(signed.as_bytes(), &signature));
        if !trusted {
            return Err(TokenError::Signature);
        }
        let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)?;
        if claims.iss != issuer {
            return Err(TokenError::Issuer);
        }
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        if now < claims.nbf {
            return Err(TokenError::NotYet);
        }
        Ok(claims)
    }

    /// The public keys as a JSON Web Key Set.
    pub fn jwks(&self) -> serde_json::Value {
        let keys: Vec<_> = self
            .keys
            .iter()
            .map(|key| {
                let (x, y) = key.coordinates();
                serde_json::json!({
                    "use": "sig", "kty": "EC", "kid": key.key_id(), "crv": "P-256", "alg": "ES256",
                    "x": B64.encode(x), "y": B64.encode(y),
                })
            })
            .collect();
        serde_json::json!({ "keys": keys })
    }
}

/// Whether a bearer token has the form of a JSON Web Token of `issuer`,
/// before anything in it is believed.
pub fn looks_like_ours(token: &str) -> bool {
    token.len() <= MAX_TOKEN_BYTES && token.bytes().filter(|b| *b == b'.').count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Arc<ServiceAccountKey> {
        Arc::new(ServiceAccountKey::generate().unwrap())
    }

    fn keys() -> Keys {
        Keys::new(key(), Vec::new())
    }

    fn claims() -> Claims {
        Claims {
            exp: 200,
            iat: 100,
            nbf: 100,
            iss: "us".into(),
            sub: "s".into(),
            ..Claims::default()
        }
    }

    #[test]
    fn a_token_is_good_for_its_issuer_and_time_only() {
        let keys = keys();
        let token = keys.sign(&claims()).unwrap();
        assert_eq!(keys.verify(&token, "us", 150).unwrap(), claims());
        assert_eq!(keys.verify(&token, "them", 150), Err(TokenError::Issuer));
        assert_eq!(keys.verify(&token, "us", 200), Err(TokenError::Expired));
        assert_eq!(keys.verify(&token, "us", 99), Err(TokenError::NotYet));
    }

    #[test]
    fn another_key_or_a_changed_claim_is_refused() {
        let signer = key();
        let (ours, theirs) = (Keys::new(Arc::clone(&signer), Vec::new()), keys());
        let token = theirs.sign(&claims()).unwrap();
        assert_eq!(ours.verify(&token, "us", 150), Err(TokenError::Signature));
        let token = ours.sign(&claims()).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let mut forged = claims();
        forged.exp = 10_000;
        let body = B64.encode(serde_json::to_vec(&forged).unwrap());
        assert_eq!(
            ours.verify(&format!("{}.{body}.{}", parts[0], parts[2]), "us", 150),
            Err(TokenError::Signature)
        );
        let none = B64.encode(br#"{"alg":"none"}"#);
        assert_eq!(
            ours.verify(&format!("{none}.{body}."), "us", 150),
            Err(TokenError::Signature)
        );
        for bad in ["", ".", "..", "a.b.c", "e30.e30.e30"] {
            assert!(ours.verify(bad, "us", 150).is_err(), "{bad}");
        }
        let rotated = Keys::new(key(), vec![signer]);
        assert!(rotated.verify(&token, "us", 150).is_ok());
    }
}
