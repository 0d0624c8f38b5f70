//! TLS settings for every connection in a cluster, on one provider (ring).

use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{self, CryptoProvider};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use skiff_base::clock::Clock;

use crate::error::PkiError;
use crate::token::{Token, fingerprint, hex};

/// The cryptography everything uses; nothing depends on a default of the process.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(crypto::ring::default_provider()));
    PROVIDER.clone()
}

struct ClockTime(Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self
            .0
            .now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

fn tls(what: &'static str) -> impl Fn(rustls::Error) -> PkiError {
    move |error| PkiError::Crypto {
        what,
        reason: error.to_string(),
    }
}

/// A certificate with its key that can be exchanged while connections are
/// made: a server shows it, or a client.
#[derive(Debug)]
pub struct HotCertificate(RwLock<Arc<CertifiedKey>>);

impl HotCertificate {
    /// Begins with this chain and key, in PEM.
    pub fn new(cert_pem: &str, key_pem: &str) -> Result<Arc<Self>, PkiError> {
        Ok(Arc::new(Self(RwLock::new(certified(cert_pem, key_pem)?))))
    }

    /// New connections get this one. On an error the old one stays.
    pub fn replace(&self, cert_pem: &str, key_pem: &str) -> Result<(), PkiError> {
        let key = certified(cert_pem, key_pem)?;
        *self.0.write() = key;
        Ok(())
    }

    /// The leaf in DER.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.0.read().cert.first().cloned()
    }
}

impl ResolvesServerCert for HotCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl ResolvesClientCert for HotCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(cert_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, PkiError> {
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| PkiError::malformed("certificate", error))?;
    if chain.is_empty() {
        return Err(PkiError::malformed("certificate", "no certificate in the text"));
    }
    // The parser's own words could quote the key.
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|_| PkiError::malformed("private key", "not a private key in PEM"))?;
    match CertifiedKey::from_der(chain, key, &provider()) {
        Ok(key) => Ok(Arc::new(key)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(PkiError::NotAPair {
            what: "certificate and key".into(),
        }),
        Err(error) => Err(PkiError::Crypto {
            what: "certificate and key",
            reason: error.to_string(),
        }),
    }
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, PkiError> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| PkiError::malformed("certificate authority", error))?;
        store
            .add(certificate)
            .map_err(|error| PkiError::malformed("certificate authority", error))?;
    }
    if store.is_empty() {
        return Err(PkiError::malformed(
            "certificate authority",
            "no certificate in the text",
        ));
    }
    Ok(Arc::new(store))
}

/// Settings for a client that trusts servers of the authorities in `ca_pem`
/// and shows `certificate` when asked. No ALPN is set.
pub fn client_config(
    ca_pem: &str,
    certificate: Option<Arc<HotCertificate>>,
    clock: Arc<dyn Clock>,
) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
        .with_safe_default_protocol_versions()
        .map_err(tls("TLS client"))?
        .with_root_certificates(roots(ca_pem)?);
    Ok(match certificate {
        Some(certificate) => builder.with_client_cert_resolver(certificate),
        None => builder.with_no_client_auth(),
    })
}

/// Who may connect to a server.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// Anybody; certificates are not asked for.
    None,
    /// Those without a certificate and those with one of these authorities (PEM).
    Optional(String),
    /// Only those with a certificate of these authorities (PEM).
    Required(String),
}

/// Settings for a server that shows `certificate`, with ALPN for HTTP/2 and HTTP/1.1.
pub fn server_config(
    certificate: Arc<HotCertificate>,
    clients: &ClientAuth,
    clock: Arc<dyn Clock>,
) -> Result<ServerConfig, PkiError> {
    let builder = ServerConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
        .with_safe_default_protocol_versions()
        .map_err(tls("TLS server"))?;
    let verifier = |ca: &str, optional: bool| {
        let builder = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
        let builder = if optional {
            builder.allow_unauthenticated()
        } else {
            builder
        };
        builder
            .build()
            .map_err(|error| PkiError::malformed("client certificate authority", error))
    };
    let builder = match clients {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional(ca) => builder.with_client_cert_verifier(verifier(ca, true)?),
        ClientAuth::Required(ca) => builder.with_client_cert_verifier(verifier(ca, false)?),
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The authority a server proved to belong to, known after the handshake.
#[derive(Debug, Clone, Default)]
pub struct PinnedCa(Arc<Mutex<Option<CertificateDer<'static>>>>);

impl PinnedCa {
    /// The certificate in PEM.
    pub fn pem(&self) -> Option<String> {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let der = self.0.lock().clone()?;
        Some(pem::encode_config(
            &pem::Pem::new("CERTIFICATE", der.to_vec()),
            config,
        ))
    }
}

/// Settings for the first connection of somebody who has nothing but a token:
/// the server must show a chain that ends in the authority the token names.
pub fn pinned_client_config(
    token: &Token,
    clock: Arc<dyn Clock>,
) -> Result<(ClientConfig, PinnedCa), PkiError> {
    let seen = PinnedCa::default();
    let verifier = PinVerifier {
        ca_hash: *token.ca_hash(),
        seen: seen.clone(),
    };
    let config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
        .with_safe_default_protocol_versions()
        .map_err(tls("TLS client"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((config, seen))
}

/// Finds the pinned authority in what the server sent, then checks the chain
/// against it as against any root.
#[derive(Debug)]
struct PinVerifier {
    ca_hash: [u8; 32],
    seen: PinnedCa,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|ca| fingerprint(ca) == self.ca_hash) else {
            let shown = intermediates.last().unwrap_or(end_entity);
            let error = PkiError::Pin {
                expected: hex(&self.ca_hash),
                found: hex(&fingerprint(shown)),
            };
            return Err(CertificateError::Other(OtherError(Arc::new(error))).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified =
            verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        *self.seen.0.lock() = Some(ca.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
