//! The key that signs service account tokens (ES256).

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};

use crate::authority::{new_key, parse_key};
use crate::error::PkiError;
use crate::files;
use crate::token::fingerprint;

/// An ECDSA P-256 key. `Debug` shows its id only.
pub struct ServiceAccountKey {
    key: KeyPair,
    signer: EcdsaKeyPair,
    key_id: String,
}

impl std::fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountKey")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl ServiceAccountKey {
    pub(crate) fn load_or_create(path: &Path) -> Result<Self, PkiError> {
        if let Some(text) = files::read(path)? {
            return Self::new(
                &path.display().to_string(),
                parse_key(&path.display().to_string(), &text)?,
            );
        }
        let key = new_key()?;
        files::write_private(path, key.serialize_pem().as_bytes())?;
        Self::new("service account key", key)
    }

    /// A key that is not kept, for tests.
    pub fn generate() -> Result<Self, PkiError> {
        Self::new("service account key", new_key()?)
    }

    fn new(what: &str, key: KeyPair) -> Result<Self, PkiError> {
        let signer = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.serialized_der(),
            &SystemRandom::new(),
        )
        .map_err(|_| PkiError::malformed(what, "not an ECDSA P-256 key"))?;
        let key_id = URL_SAFE_NO_PAD.encode(fingerprint(&key.subject_public_key_info()));
        Ok(Self { key, signer, key_id })
    }

    /// `kid`: the base64url of the SHA-256 of the public key, as in Kubernetes.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Signs; the signature is `r || s` as a JWT wants it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, PkiError> {
        let failed = |_| PkiError::Crypto {
            what: "sign a token",
            reason: "the system has no random numbers".into(),
        };
        Ok(self
            .signer
            .sign(&SystemRandom::new(), message)
            .map_err(failed)?
            .as_ref()
            .to_vec())
    }

    /// Whether this key made the signature.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.der_bytes())
            .verify(message, signature)
            .is_ok()
    }

    /// The public key in PEM.
    pub fn public_key_pem(&self) -> String {
        self.key.public_key_pem()
    }

    /// The coordinates `x` and `y` of the public key, 32 bytes each, for a JSON web key.
    pub fn coordinates(&self) -> (&[u8], &[u8]) {
        // 04 || x || y
        self.key.der_bytes()[1..].split_at(32)
    }

    /// The private key in PKCS#8.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.key.serialized_der()
    }
}
