//! Certificate signing requests: making them, reading them, signing them.

use std::net::IpAddr;

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, GeneralName};

use crate::authority::{alt_names, new_key, parse_key};
use crate::der;
use crate::error::PkiError;
use crate::identity::{Identity, ip_from_bytes};

/// Larger than any honest request.
const MAX_CSR_BYTES: usize = 64 << 10;
/// Names in one certificate: a server with every address of a big machine needs fewer.
const MAX_NAMES: usize = 256;

/// What a request asks for. Its signature is good: who made it has the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsrInfo {
    /// The subject it asks for.
    pub subject: Identity,
    /// The subject says more than CN and O.
    pub subject_has_other_attributes: bool,
    /// DNS names it asks for.
    pub dns_names: Vec<String>,
    /// Addresses it asks for.
    pub addresses: Vec<IpAddr>,
    /// URIs it asks for.
    pub uris: Vec<String>,
    /// Mail addresses it asks for.
    pub emails: Vec<String>,
}

/// A request that was read and checked.
pub(crate) struct Csr {
    pub(crate) info: CsrInfo,
    pub(crate) public_key: SubjectPublicKeyInfo,
    pub(crate) names: Vec<SanType>,
}

impl CsrInfo {
    /// Reads a PEM request and checks its signature.
    pub fn from_pem(text: &str) -> Result<Self, PkiError> {
        Csr::from_pem(text).map(|csr| csr.info)
    }
}

fn bad(reason: impl ToString) -> PkiError {
    PkiError::malformed("certificate request", reason)
}

impl Csr {
    pub(crate) fn from_pem(text: &str) -> Result<Self, PkiError> {
        if text.len() > MAX_CSR_BYTES {
            return Err(bad("too large"));
        }
        let block = pem::parse(text).map_err(bad)?;
        if !matches!(block.tag(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
            return Err(bad(format!("the PEM block is {:?}", block.tag())));
        }
        let (rest, request) = X509CertificationRequest::from_der(block.contents()).map_err(bad)?;
        if !rest.is_empty() {
            return Err(bad("something follows the request"));
        }
        request
            .verify_signature()
            .map_err(|_| bad("its signature does not match its key"))?;
        let content = &request.certification_request_info;
        let mut info = CsrInfo {
            subject: Identity::from_name(&content.subject).map_err(|error| match error {
                PkiError::Malformed { reason, .. } => bad(reason),
                other => other,
            })?,
            subject_has_other_attributes: false,
            dns_names: vec![],
            addresses: vec![],
            uris: vec![],
            emails: vec![],
        };
        let known = content.subject.iter_common_name().count() + content.subject.iter_organization().count();
        info.subject_has_other_attributes = content.subject.iter_attributes().count() != known;
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                for name in &names.general_names {
                    add_name(&mut info, name)?;
                }
            }
        }
        let names = info.alt_names()?;
        let public_key = SubjectPublicKeyInfo::from_der(content.subject_pki.raw)
            .map_err(|_| bad("its key is of a kind that is not supported"))?;
        Ok(Self {
            info,
            public_key,
            names,
        })
    }
}

fn add_name(info: &mut CsrInfo, name: &GeneralName<'_>) -> Result<(), PkiError> {
    match name {
        GeneralName::DNSName(name) => info.dns_names.push((*name).into()),
        GeneralName::URI(uri) => info.uris.push((*uri).into()),
        GeneralName::RFC822Name(mail) => info.emails.push((*mail).into()),
        GeneralName::IPAddress(bytes) => {
            info.addresses
                .push(ip_from_bytes(bytes).ok_or_else(|| bad("an address is not an IP address"))?);
        }
        other => return Err(bad(format!("names of this kind are not supported: {other}"))),
    }
    let count = info.dns_names.len() + info.uris.len() + info.emails.len() + info.addresses.len();
    if count > MAX_NAMES {
        Err(bad("too many names"))
    } else {
        Ok(())
    }
}

impl CsrInfo {
    fn alt_names(&self) -> Result<Vec<SanType>, PkiError> {
        let text = |name: &String| {
            name.as_str()
                .try_into()
                .map_err(|_| bad(format!("{name:?} is not ASCII")))
        };
        let mut names = Vec::new();
        for name in &self.dns_names {
            names.push(SanType::DnsName(text(name)?));
        }
        for uri in &self.uris {
            names.push(SanType::URI(text(uri)?));
        }
        for mail in &self.emails {
            names.push(SanType::Rfc822Name(text(mail)?));
        }
        names.extend(self.addresses.iter().copied().map(SanType::IpAddress));
        Ok(names)
    }
}

/// A new private key, in PKCS#8 PEM.
pub fn generate_key() -> Result<String, PkiError> {
    Ok(new_key()?.serialize_pem())
}

/// A PEM request for `subject` and `names` (DNS names and addresses), signed with the key.
pub fn make_csr(key_pem: &str, subject: &Identity, names: &[String]) -> Result<String, PkiError> {
    let make = || PkiError::crypto("make a certificate request");
    let key = parse_key("private key", key_pem)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, subject.common_name.as_str());
    params.subject_alt_names = alt_names(names)?;
    let draft = params.serialize_request(&key).map_err(make())?;
    let der = draft.der();
    let (_, parsed) = X509CertificationRequest::from_der(der).map_err(bad)?;
    let old = parsed.certification_request_info.subject.as_raw();
    let der = der::resign(der, old, &der::subject(subject), &key)?;
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    Ok(pem::encode_config(
        &pem::Pem::new("CERTIFICATE REQUEST", der),
        config,
    ))
}
