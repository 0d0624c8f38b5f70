//! Join tokens: `S10<sha256 of the cluster's CA certificate>::<id>.<secret>`.
//!
//! The first half lets the one who joins check the cluster, the second half
//! (a Kubernetes bootstrap token) lets the cluster check who joins.

use std::fmt;
use std::str::FromStr;

use ring::rand::SecureRandom;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::PkiError;
use crate::identity::first_certificate;

const VERSION: &str = "S10";
const ID_LEN: usize = 6;
const SECRET_LEN: usize = 16;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A join token. Its `Display` is the whole text and thereby a secret; its
/// `Debug` is not.
#[derive(Clone)]
pub struct Token {
    ca_hash: [u8; 32],
    id: String,
    secret: String,
}

impl Token {
    /// A new token for the cluster with this CA certificate.
    pub fn generate(ca_der: &[u8]) -> Result<Self, PkiError> {
        Ok(Self {
            ca_hash: fingerprint(ca_der),
            id: random_text(ID_LEN)?,
            secret: random_text(SECRET_LEN)?,
        })
    }

    /// The token with these halves.
    pub fn new(ca_der: &[u8], id: &str, secret: &str) -> Result<Self, PkiError> {
        check(id, ID_LEN, "its id is not 6 characters of a-z and 0-9")?;
        check(
            secret,
            SECRET_LEN,
            "its secret is not 16 characters of a-z and 0-9",
        )?;
        Ok(Self {
            ca_hash: fingerprint(ca_der),
            id: id.into(),
            secret: secret.into(),
        })
    }

    /// The public part of the bootstrap token.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The secret part of the bootstrap token.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// `id.secret`, as sent in an `Authorization: Bearer` header.
    pub fn bootstrap(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// SHA-256 of the CA certificate the token is for.
    pub fn ca_hash(&self) -> &[u8; 32] {
        &self.ca_hash
    }

    /// Whether `secret` is this token's, in the same time whatever it is.
    pub fn secret_matches(&self, secret: &str) -> bool {
        bool::from(self.secret.as_bytes().ct_eq(secret.as_bytes()))
    }

    /// Whether a CA certificate is the one the token is for.
    pub fn check_ca(&self, ca_der: &[u8]) -> Result<(), PkiError> {
        let found = fingerprint(ca_der);
        if bool::from(found.ct_eq(&self.ca_hash)) {
            return Ok(());
        }
        Err(PkiError::Pin {
            expected: hex(&self.ca_hash),
            found: hex(&found),
        })
    }
}

/// Whether the CA in a PEM text is the one the token is for.
pub fn verify_ca_pin(token: &Token, ca_pem: &str) -> Result<(), PkiError> {
    token.check_ca(&first_certificate(ca_pem)?)
}

impl FromStr for Token {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let rest = text
            .trim()
            .strip_prefix(VERSION)
            .ok_or(PkiError::Token("it does not begin with S10"))?;
        let (hash, bootstrap) = rest.split_once("::").ok_or(PkiError::Token("it has no ::"))?;
        let (id, secret) = bootstrap
            .split_once('.')
            .ok_or(PkiError::Token("it has no full stop behind the ::"))?;
        check(id, ID_LEN, "its id is not 6 characters of a-z and 0-9")?;
        check(
            secret,
            SECRET_LEN,
            "its secret is not 16 characters of a-z and 0-9",
        )?;
        let ca_hash = unhex(hash).ok_or(PkiError::Token("its fingerprint is not 64 hex digits"))?;
        Ok(Self {
            ca_hash,
            id: id.into(),
            secret: secret.into(),
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}{}::{}.{}", hex(&self.ca_hash), self.id, self.secret)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, secret hidden)", self.id)
    }
}

fn check(text: &str, length: usize, problem: &'static str) -> Result<(), PkiError> {
    let good = text.len() == length && text.bytes().all(|b| ALPHABET.contains(&b));
    if good {
        Ok(())
    } else {
        Err(PkiError::Token(problem))
    }
}

/// SHA-256 of a certificate.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text
        .bytes()
        .map(|b| (b as char).to_digit(16))
        .collect::<Option<Vec<u32>>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect();
    if digits.len() == 64 {
        bytes.try_into().ok()
    } else {
        None
    }
}

pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], PkiError> {
    let mut bytes = [0; N];
    let failed = |_| PkiError::Crypto {
        what: "random numbers",
        reason: "the system has none".into(),
    };
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Uniform text of the token alphabet.
fn random_text(length: usize) -> Result<String, PkiError> {
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in random_bytes::<32>()? {
            // 252 is the largest multiple of 36 in a byte: beyond it some letters would be likelier.
            if byte < 252 && text.len() < length {
                text.push(ALPHABET[usize::from(byte) % ALPHABET.len()] as char);
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_and_debug_keeps_the_secret() {
        let token = Token::generate(b"a certificate").unwrap();
        let text = token.to_string();
        assert_eq!(text.len(), 3 + 64 + 2 + 6 + 1 + 16);
        let parsed: Token = format!("  {text}\n").parse().unwrap();
        assert_eq!(parsed.to_string(), text);
        assert_eq!(parsed.bootstrap(), format!("{}.{}", token.id(), token.secret()));
        assert!(!format!("{token:?}").contains(token.secret()));
        assert!(token.secret_matches(parsed.secret()));
        assert!(!token.secret_matches("") && !token.secret_matches("aaaaaaaaaaaaaaaa"));
        assert_ne!(Token::generate(b"a certificate").unwrap().to_string(), text);
    }

    #[test]
    fn only_the_right_authority_passes() {
        let token = Token::new(b"right", "abcdef", "0123456789abcdef").unwrap();
        token.check_ca(b"right").unwrap();
        let error = token.check_ca(b"wrong").unwrap_err().to_string();
        assert!(error.contains(&hex(&fingerprint(b"wrong"))), "{error}");
    }

    #[test]
    fn malformed_tokens_are_told_apart() {
        let hash = "0".repeat(64);
        for (text, want) in [
            ("".to_owned(), "S10"),
            ("abcdef.0123456789abcdef".to_owned(), "S10"),
            (format!("S10{hash}"), "::"),
            (format!("S10{hash}::abcdef"), "full stop"),
            (format!("S10{hash}::abcde.0123456789abcdef"), "id"),
            (format!("S10{hash}::abcdeF.0123456789abcdef"), "id"),
            (format!("S10{hash}::abcdef.0123456789abcde"), "secret"),
            (
                format!("S10{}::abcdef.0123456789abcdef", &hash[1..]),
                "fingerprint",
            ),
            (
                format!("S10{}::abcdef.0123456789abcdef", "é".repeat(32)),
                "fingerprint",
            ),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            let told = error.split(';').next().unwrap();
            assert!(told.contains(want), "{text}: {error}");
            assert!(!error.contains("0123456789abcde"), "no secret in {error}");
        }
    }
}
