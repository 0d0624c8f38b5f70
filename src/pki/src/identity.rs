//! What a certificate says: whose it is and how long it is good.

use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::{FromDer, GeneralName, X509Name};

use crate::error::{PkiError, show};

/// A name for authentication: the user and the groups in Kubernetes' words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// `CN=`, the user name.
    pub common_name: String,
    /// Every `O=`, the groups, in the order of the certificate.
    pub organizations: Vec<String>,
}

impl Identity {
    /// A user in some groups.
    pub fn new(common_name: impl Into<String>, organizations: &[&str]) -> Self {
        Self {
            common_name: common_name.into(),
            organizations: organizations.iter().map(ToString::to_string).collect(),
        }
    }

    /// The subject of a certificate. Trust must have been established before.
    pub fn from_der(certificate: &[u8]) -> Result<Self, PkiError> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|error| PkiError::malformed("certificate", error))?;
        Self::from_name(certificate.subject())
    }

    pub(crate) fn from_name(name: &X509Name<'_>) -> Result<Self, PkiError> {
        let text = |result: Result<&str, x509_parser::error::X509Error>| {
            result
                .map(str::to_owned)
                .map_err(|_| PkiError::malformed("certificate", "its subject is not text"))
        };
        let mut names = name.iter_common_name();
        let common_name = names
            .next()
            .map(|cn| text(cn.as_str()))
            .ok_or_else(|| PkiError::malformed("certificate", "its subject has no common name"))??;
        if names.next().is_some() {
            return Err(PkiError::malformed(
                "certificate",
                "its subject has more than one common name",
            ));
        }
        let organizations = name
            .iter_organization()
            .map(|o| text(o.as_str()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            common_name,
            organizations,
        })
    }
}

/// The facts about a certificate that decide what to do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Its subject.
    pub subject: Identity,
    /// The first moment it is good.
    pub not_before: SystemTime,
    /// The last moment it is good.
    pub not_after: SystemTime,
    /// Names and addresses it is for, as text.
    pub names: Vec<String>,
}

impl CertificateInfo {
    /// Reads one certificate.
    pub fn from_der(certificate: &[u8]) -> Result<Self, PkiError> {
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|error| PkiError::malformed("certificate", error))?;
        let time = |seconds: i64| match u64::try_from(seconds) {
            Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
            Err(_) => Some(SystemTime::UNIX_EPOCH),
        };
        let bad = || PkiError::malformed("certificate", "its validity is not a time");
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| PkiError::malformed("certificate", error))?
            .map(|extension| {
                extension
                    .value
                    .general_names
                    .iter()
                    .filter_map(general_name)
                    .collect()
            })
            .unwrap_or_default();
        Ok(Self {
            subject: Identity::from_name(certificate.subject())?,
            not_before: time(certificate.validity().not_before.timestamp()).ok_or_else(bad)?,
            not_after: time(certificate.validity().not_after.timestamp()).ok_or_else(bad)?,
            names,
        })
    }

    /// Reads the first certificate of a PEM text (a chain begins with the leaf).
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        Self::from_der(&first_certificate(text)?)
    }

    /// Fails, in words, when the certificate is not good at `now`.
    pub fn check_time(&self, what: &str, now: SystemTime) -> Result<(), PkiError> {
        if now < self.not_before {
            let from = show(self.not_before);
            return Err(PkiError::NotYetValid {
                what: what.into(),
                from,
                now: show(now),
            });
        }
        if now > self.not_after {
            let until = show(self.not_after);
            return Err(PkiError::Expired {
                what: what.into(),
                until,
                now: show(now),
            });
        }
        Ok(())
    }

    /// When to renew this certificate.
    pub fn renewal(&self, now: SystemTime) -> Renewal {
        renewal(self.not_before, self.not_after, now)
    }
}

fn general_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => ip_from_bytes(bytes).map(|ip| ip.to_string()),
        _ => None,
    }
}

pub(crate) fn ip_from_bytes(bytes: &[u8]) -> Option<std::net::IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(bytes).ok().map(Into::into),
        _ => None,
    }
}

/// What to do about a certificate's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing before this time from now.
    After(Duration),
    /// Renew now, it is still good.
    Due,
    /// Renew now, nobody accepts it any more.
    Expired,
}

/// Renew when two thirds of the time are over: a year's certificate leaves
/// four months for a server that was away, an hour's twenty minutes.
pub fn renewal(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> Renewal {
    if now > not_after {
        return Renewal::Expired;
    }
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    let due = not_after - lifetime / 3;
    match due.duration_since(now) {
        Ok(left) if !left.is_zero() => Renewal::After(left),
        _ => Renewal::Due,
    }
}

/// The DER of the first certificate in a PEM text.
pub(crate) fn first_certificate(text: &str) -> Result<Vec<u8>, PkiError> {
    let blocks = pem::parse_many(text).map_err(|error| PkiError::malformed("certificate", error))?;
    let first = blocks.into_iter().find(|block| block.tag() == "CERTIFICATE");
    first
        .map(pem::Pem::into_contents)
        .ok_or_else(|| PkiError::malformed("certificate", "no certificate in the text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_after_two_thirds() {
        let at = |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3_600);
        let hours = |h: u64| Duration::from_secs(h * 3_600);
        for (now, want) in [
            (0, Renewal::After(hours(160))),
            (100, Renewal::After(hours(60))),
            (159, Renewal::After(hours(1))),
            (160, Renewal::Due),
            (190, Renewal::Due),
            (191, Renewal::Expired),
        ] {
            assert_eq!(renewal(at(100), at(190), at(now)), want, "at {now}");
        }
        assert_eq!(
            renewal(at(10), at(5), at(1)),
            Renewal::After(hours(4)),
            "an impossible validity is no panic"
        );
    }
}
