//! A certificate authority: a self-signed certificate and its key, made once.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::der;
use crate::error::PkiError;
use crate::files;
use crate::identity::{CertificateInfo, Identity, first_certificate};
use crate::token::{hex, random_bytes};

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFETIME: Duration = Duration::from_secs(3_650 * 86_400);
/// A leaf is good from a day before its making: clocks differ.
const LEAF_BACKDATE: Duration = DAY;
/// 2025-01-01. A clock before this is known to be wrong (a machine without a
/// battery starts in 1970): certificates made then are good from that wrong
/// time until what would be right from this date on.
const CLOCK_FLOOR: Duration = Duration::from_secs(1_735_689_600);

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be a TLS server.
    Server,
    /// To be a TLS client.
    Client,
}

/// A certificate with its key. `Debug` does not show the key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate and those above it, leaf first.
    pub cert_pem: String,
    /// The key in PKCS#8.
    pub key_pem: String,
    /// The end of the certificate.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Everything a leaf says besides its key.
#[derive(Debug, Clone)]
pub(crate) struct Leaf<'a> {
    pub(crate) subject: &'a Identity,
    pub(crate) names: Vec<SanType>,
    pub(crate) purpose: Purpose,
    pub(crate) lifetime: Duration,
}

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
    not_after: SystemTime,
}

impl Authority {
    /// Reads `<name>.crt` and `<name>.key`, or makes what is missing.
    pub(crate) fn load_or_create(
        dir: &Path,
        name: &str,
        common_name: &str,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        let (crt, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        let pair = match (files::read(&crt)?, files::read(&key)?) {
            (Some(_), None) => {
                return Err(PkiError::MissingKey {
                    certificate: crt,
                    key,
                });
            }
            (Some(certificate), Some(key_text)) => {
                let what = crt.display().to_string();
                let key = parse_key(&key.display().to_string(), &key_text)?;
                return Self::from_pem(&what, certificate, key, now);
            }
            // A key alone is left when the machine stopped between the two.
            (None, Some(text)) => parse_key(&key.display().to_string(), &text)?,
            (None, None) => {
                let pair = new_key()?;
                files::write_private(&key, pair.serialize_pem().as_bytes())?;
                pair
            }
        };
        let params = ca_params(common_name, now)?;
        let certificate = params
            .self_signed(&pair)
            .map_err(PkiError::crypto("make a certificate authority"))?;
        files::write_private(&crt, certificate.pem().as_bytes())?;
        Self::from_pem(&crt.display().to_string(), certificate.pem(), pair, now)
    }

    fn from_pem(what: &str, pem: String, key: KeyPair, now: SystemTime) -> Result<Self, PkiError> {
        let named = |error: PkiError| match error {
            PkiError::Malformed { reason, .. } => PkiError::malformed(what, reason),
            other => other,
        };
        let der = CertificateDer::from(first_certificate(&pem).map_err(named)?);
        let info = CertificateInfo::from_der(&der).map_err(named)?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|error| PkiError::malformed(what, error))?;
        if !parsed.is_ca() {
            return Err(PkiError::malformed(
                what,
                "the certificate is not that of an authority",
            ));
        }
        if parsed.public_key().subject_public_key.data != key.der_bytes() {
            return Err(PkiError::NotAPair { what: what.into() });
        }
        // A clock that stands before the certificate is no reason not to start: it will be set later.
        match info.check_time(what, now) {
            Err(error @ PkiError::NotYetValid { .. }) => tracing::warn!(%error, "the clock is wrong"),
            other => other?,
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| PkiError::malformed(what, error))?;
        Ok(Self {
            issuer,
            der,
            pem,
            not_after: info.not_after,
        })
    }

    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Makes a key and a certificate for it.
    pub(crate) fn issue(&self, leaf: &Leaf<'_>, now: SystemTime) -> Result<Issued, PkiError> {
        let key = new_key()?;
        let (cert_pem, not_after) = self.sign(leaf, &key, now)?;
        Ok(Issued {
            cert_pem,
            key_pem: key.serialize_pem(),
            not_after,
        })
    }

    /// Signs a certificate for somebody's public key: the chain and its end.
    pub(crate) fn sign(
        &self,
        leaf: &Leaf<'_>,
        public_key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<(String, SystemTime), PkiError> {
        let make = PkiError::crypto("make a certificate");
        let (not_before, not_after) = validity(now, LEAF_BACKDATE, leaf.lifetime);
        // Nothing may outlive its authority: clients would see a broken chain instead of an expired leaf.
        let not_after = not_after.min(self.not_after);
        let mut params = blank_params()?;
        set_validity(&mut params, not_before, not_after);
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.subject.common_name.as_str());
        params.subject_alt_names = leaf.names.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match leaf.purpose {
            Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.use_authority_key_identifier_extension = true;
        let draft = params.signed_by(public_key, &self.issuer).map_err(make)?;
        let der = self.with_subject(draft.der(), leaf.subject)?;
        let chain = [
            pem::Pem::new("CERTIFICATE", der),
            pem::Pem::new("CERTIFICATE", self.der.to_vec()),
        ];
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        Ok((pem::encode_many_config(&chain, config), not_after))
    }

    fn with_subject(&self, der: &[u8], subject: &Identity) -> Result<Vec<u8>, PkiError> {
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|error| PkiError::malformed("certificate", error))?;
        der::resign(
            der,
            parsed.subject().as_raw(),
            &der::subject(subject),
            self.issuer.key(),
        )
    }
}

pub(crate) fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(PkiError::crypto("make a key"))
}

pub(crate) fn parse_key(what: &str, text: &str) -> Result<KeyPair, PkiError> {
    // The parser's own words could quote the key.
    KeyPair::from_pem(text).map_err(|_| PkiError::malformed(what, "not a private key in PKCS#8 PEM"))
}

fn blank_params() -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let mut serial = random_bytes::<16>()?;
    // Positive and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn ca_params(common_name: &str, now: SystemTime) -> Result<CertificateParams, PkiError> {
    // Long before now: whoever joins later may have a clock that is years behind.
    let (_, not_after) = validity(now, DAY, CA_LIFETIME);
    let not_before = (SystemTime::UNIX_EPOCH + CLOCK_FLOOR).min(now - DAY.min(since_epoch(now)));
    let mut params = blank_params()?;
    set_validity(&mut params, not_before, not_after);
    // Every cluster's authority has a name of its own: an issuer is looked up by name, and a stranger's
    // certificate is to be told "unknown authority" and not "bad signature".
    let own = format!("{common_name}-{}", hex(&random_bytes::<4>()?));
    params.distinguished_name.push(DnType::CommonName, own);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(params)
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// From when until when a certificate made now is good.
fn validity(now: SystemTime, backdate: Duration, lifetime: Duration) -> (SystemTime, SystemTime) {
    let begin = now - backdate.min(since_epoch(now));
    let end = SystemTime::UNIX_EPOCH + since_epoch(now).max(CLOCK_FLOOR) + lifetime;
    (begin, end)
}

fn set_validity(params: &mut CertificateParams, begin: SystemTime, end: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(since_epoch(begin).as_secs());
    params.not_after = epoch + Duration::from_secs(since_epoch(end).as_secs());
}

/// DNS names and addresses, told apart.
pub(crate) fn alt_names(names: &[String]) -> Result<Vec<SanType>, PkiError> {
    let alt_name = |name: &String| match name.parse::<IpAddr>() {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => name
            .as_str()
            .try_into()
            .map(SanType::DnsName)
            .map_err(|_| PkiError::malformed(format!("name {name:?}"), "not a DNS name or address")),
    };
    names.iter().map(alt_name).collect()
}
