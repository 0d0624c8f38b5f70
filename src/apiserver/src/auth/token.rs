//! Service account tokens: JSON Web Tokens signed with ECDSA P-256 (ES256).
//!
//! Only the form and the signature are judged here; whether the objects a
//! token is bound to still exist is asked in [`super`]. The key id is the
//! SHA-256 of the public point, so tokens of an older key keep working while
//! its public half is among [`Keys::verifiers`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest token that is looked at; ours are below one KiB.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Why a token or key was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// The key is not an ECDSA P-256 key in PKCS#8.
    #[error("service account key is not an ECDSA P-256 key in PKCS#8 form")]
    Key,
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

/// A public half that verifies tokens.
#[derive(Debug, Clone)]
pub struct Verifier {
    id: String,
    point: Vec<u8>,
}

/// The keys of the token issuer.
pub struct Keys {
    signer: EcdsaKeyPair,
    id: String,
    verifiers: Vec<Verifier>,
    random: SystemRandom,
}

impl Keys {
    /// Signs with `pkcs8`; also believes tokens of the `older` keys.
    pub fn new(pkcs8: &[u8], older: &[Vec<u8>]) -> Result<Self, TokenError> {
        let random = SystemRandom::new();
        let load = |der: &[u8]| {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).map_err(|_| TokenError::Key)
        };
        let signer = load(pkcs8)?;
        let mut verifiers = vec![Verifier::new(signer.public_key().as_ref())];
        for der in older {
            verifiers.push(Verifier::new(load(der)?.public_key().as_ref()));
        }
        Ok(Self { id: verifiers[0].id.clone(), signer, verifiers, random })
    }

    /// A signed token with these claims.
    pub fn sign(&self, claims: &Claims) -> Result<String, TokenError> {
        let header = Header { alg: "ES256".to_owned(), kid: self.id.clone() };
        let header = serde_json::to_vec(&header).map_err(|_| TokenError::Signing)?;
        let claims = serde_json::to_vec(claims).map_err(|_| TokenError::Signing)?;
        let mut token = format!("{}.{}", B64.encode(header), B64.encode(claims));
        let signature = self.signer.sign(&self.random, token.as_bytes()).map_err(|_| TokenError::Signing)?;
        token.push('.');
        B64.encode_string(signature.as_ref(), &mut token);
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
        let trusted = self.verifiers.iter().filter(|key| header.kid.is_empty() || key.id == header.kid).any(|key| {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point).verify(signed.as_bytes(), &signature).is_ok()
        });
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
            .verifiers
            .iter()
            .map(|key| {
                serde_json::json!({
                    "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                    "x": B64.encode(&key.point[1..33]), "y": B64.encode(&key.point[33..65]),
                })
            })
            .collect();
        serde_json::json!({ "keys": keys })
    }
}

impl Verifier {
    fn new(point: &[u8]) -> Self {
        Self { id: B64.encode(Sha256::digest(point)), point: point.to_vec() }
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

    fn keys() -> (Keys, Vec<u8>) {
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        (Keys::new(der.as_ref(), &[]).unwrap(), der.as_ref().to_vec())
    }

    fn claims() -> Claims {
        Claims { exp: 200, iat: 100, nbf: 100, iss: "us".into(), sub: "s".into(), ..Claims::default() }
    }

    #[test]
    fn a_token_is_good_for_its_issuer_and_time_only() {
        let (keys, _) = keys();
        let token = keys.sign(&claims()).unwrap();
        assert_eq!(keys.verify(&token, "us", 150).unwrap(), claims());
        assert_eq!(keys.verify(&token, "them", 150), Err(TokenError::Issuer));
        assert_eq!(keys.verify(&token, "us", 200), Err(TokenError::Expired));
        assert_eq!(keys.verify(&token, "us", 99), Err(TokenError::NotYet));
    }

    #[test]
    fn another_key_or_a_changed_claim_is_refused() {
        let ((ours, der), (theirs, _)) = (keys(), keys());
        let token = theirs.sign(&claims()).unwrap();
        assert_eq!(ours.verify(&token, "us", 150), Err(TokenError::Signature));
        let token = ours.sign(&claims()).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let mut forged = claims();
        forged.exp = 10_000;
        let body = B64.encode(serde_json::to_vec(&forged).unwrap());
        assert_eq!(ours.verify(&format!("{}.{body}.{}", parts[0], parts[2]), "us", 150), Err(TokenError::Signature));
        let none = B64.encode(br#"{"alg":"none"}"#);
        assert_eq!(ours.verify(&format!("{none}.{body}."), "us", 150), Err(TokenError::Signature));
        for bad in ["", ".", "..", "a.b.c", "e30.e30.e30"] {
            assert!(ours.verify(bad, "us", 150).is_err(), "{bad}");
        }
        let rotated = Keys::new(&keys().1, &[der]).unwrap();
        assert!(rotated.verify(&token, "us", 150).is_ok());
    }
}
