//! What can go wrong with keys and certificates, and in whose words to say it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use rustls::{AlertDescription, CertificateError};

/// Why something about keys, certificates or tokens failed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something is not what it should be: a file, a request, a certificate.
    #[error("{what}: {reason}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate authority's certificate is there and its key is not.
    #[error(
        "{certificate} exists but {key} does not: restore the key from a backup, or move the certificate away to begin with a new authority"
    )]
    MissingKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate and a key are not a pair.
    #[error("{what}: the certificate does not belong to the key")]
    NotAPair {
        /// The pair.
        what: String,
    },
    /// The certificate's time has not come.
    #[error("{what} is not valid before {from} and the clock says {now}: set this machine's clock")]
    NotYetValid {
        /// The certificate.
        what: String,
        /// Its beginning.
        from: String,
        /// The clock.
        now: String,
    },
    /// The certificate's time is over.
    #[error(
        "{what} expired at {until}, the clock says {now}: renew it, or set this machine's clock if it is wrong"
    )]
    Expired {
        /// The certificate.
        what: String,
        /// Its end.
        until: String,
        /// The clock.
        now: String,
    },
    /// A request to sign was turned down.
    #[error("certificate request refused: {0}")]
    Refused(String),
    /// The text is not a join token.
    #[error(
        "the token is malformed: {0}; a token looks like S10<64 hex digits>::<6 characters>.<16 characters>"
    )]
    Token(&'static str),
    /// The certificate authority is not the one the token names.
    #[error(
        "the certificate authority has the fingerprint {found} and the token is for {expected}: the token is for another cluster, or somebody intercepts the connection"
    )]
    Pin {
        /// What the token says.
        expected: String,
        /// What was presented.
        found: String,
    },
    /// The cryptography refused.
    #[error("{what}: {reason}")]
    Crypto {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        reason: String,
    },
}

impl PkiError {
    pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn crypto(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |error| Self::Crypto {
            what,
            reason: error.to_string(),
        }
    }
}

/// The time as an operator reads it.
pub(crate) fn show(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "an impossible time".into(), |t| format!("{t:.0}"))
}

/// What a failed connection has to say about certificates, in one line with
/// the likely fix. None when certificates were not the reason.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return explain_tls(tls);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = inner
            .map(|e| e as &(dyn Error + 'static))
            .or_else(|| error.source());
    }
    None
}

fn explain_tls(error: &rustls::Error) -> Option<String> {
    use rustls::Error as Tls;
    let unix = |time: rustls_pki_types::UnixTime| {
        show(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(time.as_secs()))
    };
    let text = match error {
        Tls::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            PkiError::NotYetValid { what: "the server's certificate".into(), from: unix(*not_before), now: unix(*time) }.to_string()
        }
        Tls::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            PkiError::Expired { what: "the server's certificate".into(), until: unix(*not_after), now: unix(*time) }.to_string()
        }
        Tls::InvalidCertificate(CertificateError::NotValidYet | CertificateError::Expired) => {
            "the server's certificate is not valid at this time: check the clocks of both machines".into()
        }
        Tls::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the server's certificate is from another certificate authority: is this the right server?".into()
        }
        Tls::InvalidCertificate(CertificateError::Other(other)) => match other.0.downcast_ref::<PkiError>() {
            Some(error) => error.to_string(),
            None => other.0.to_string(),
        },
        Tls::InvalidCertificate(other) => format!("the server's certificate is not accepted: {other}"),
        Tls::AlertReceived(AlertDescription::CertificateExpired) => {
            "the server says that our certificate is not valid at this time: check the clocks of both machines".into()
        }
        Tls::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => {
            "the server does not know the authority of our certificate: was this node joined to another cluster?".into()
        }
        Tls::AlertReceived(AlertDescription::CertificateRequired) => "the server wants a client certificate".into(),
        _ => return None,
    };
    Some(text)
}
