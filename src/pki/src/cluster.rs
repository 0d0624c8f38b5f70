//! The keys and certificates a cluster's server holds.
//!
//! | file                  | what                                               |
//! |-----------------------|----------------------------------------------------|
//! | `server-ca.crt,key`   | signs what servers and kubelets show; tokens pin it |
//! | `client-ca.crt,key`   | signs what users, nodes and components show         |
//! | `service-account.key` | signs service account tokens                        |
//!
//! Two authorities, so that a serving certificate can never be used to log in.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use skiff_base::clock::Clock;

use crate::authority::{Authority, Issued, Leaf, Purpose, alt_names};
use crate::csr::{Csr, CsrInfo};
use crate::error::PkiError;
use crate::files;
use crate::identity::Identity;
use crate::service_account::ServiceAccountKey;
use crate::token::Token;

/// The cluster's authorities and signing keys.
pub struct ClusterPki {
    server_ca: Authority,
    client_ca: Authority,
    service_account: Arc<ServiceAccountKey>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for ClusterPki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterPki")
            .field("service_account", &self.service_account)
            .finish_non_exhaustive()
    }
}

impl ClusterPki {
    /// Reads the cluster's keys from `dir`, making those that are missing.
    pub fn load_or_create(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, PkiError> {
        files::private_dir(dir)?;
        let now = clock.now();
        Ok(Self {
            server_ca: Authority::load_or_create(dir, "server-ca", "skiff-server-ca", now)?,
            client_ca: Authority::load_or_create(dir, "client-ca", "skiff-client-ca", now)?,
            service_account: Arc::new(ServiceAccountKey::load_or_create(
                &dir.join("service-account.key"),
            )?),
            clock,
        })
    }

    /// The certificate that server certificates are checked against; tokens pin it.
    pub fn server_ca_pem(&self) -> &str {
        self.server_ca.pem()
    }

    /// The same in DER.
    pub fn server_ca_der(&self) -> &CertificateDer<'static> {
        self.server_ca.der()
    }

    /// The certificate that client certificates are checked against.
    pub fn client_ca_pem(&self) -> &str {
        self.client_ca.pem()
    }

    /// The same in DER.
    pub fn client_ca_der(&self) -> &CertificateDer<'static> {
        self.client_ca.der()
    }

    /// The key for service account tokens.
    pub fn service_account_key(&self) -> &Arc<ServiceAccountKey> {
        &self.service_account
    }

    /// A join token for this cluster. The caller records it in the API.
    pub fn new_token(&self) -> Result<Token, PkiError> {
        Token::generate(self.server_ca.der())
    }

    /// A key and certificate for a server with these names (DNS names and addresses).
    pub fn issue_server(
        &self,
        common_name: &str,
        names: &[String],
        lifetime: Duration,
    ) -> Result<Issued, PkiError> {
        let subject = Identity::new(common_name, &[]);
        let leaf = Leaf {
            subject: &subject,
            names: alt_names(names)?,
            purpose: Purpose::Server,
            lifetime,
        };
        self.server_ca.issue(&leaf, self.clock.now())
    }

    /// A key and certificate for a client with this user and groups.
    pub fn issue_client(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, PkiError> {
        let leaf = Leaf {
            subject: identity,
            names: vec![],
            purpose: Purpose::Client,
            lifetime,
        };
        self.client_ca.issue(&leaf, self.clock.now())
    }

    /// Signs a request by the client authority if `check` agrees: the chain in
    /// PEM. Nothing but subject, names and key is taken from the request.
    pub fn sign_client_csr(
        &self,
        csr_pem: &str,
        lifetime: Duration,
        check: impl FnOnce(&CsrInfo) -> Result<(), String>,
    ) -> Result<String, PkiError> {
        self.sign_csr(csr_pem, Purpose::Client, lifetime, check)
    }

    /// The same by the server authority, for kubelet serving certificates.
    pub fn sign_server_csr(
        &self,
        csr_pem: &str,
        lifetime: Duration,
        check: impl FnOnce(&CsrInfo) -> Result<(), String>,
    ) -> Result<String, PkiError> {
        self.sign_csr(csr_pem, Purpose::Server, lifetime, check)
    }

    fn sign_csr(
        &self,
        csr_pem: &str,
        purpose: Purpose,
        lifetime: Duration,
        check: impl FnOnce(&CsrInfo) -> Result<(), String>,
    ) -> Result<String, PkiError> {
        let csr = Csr::from_pem(csr_pem)?;
        check(&csr.info).map_err(PkiError::Refused)?;
        if csr.info.subject_has_other_attributes {
            return Err(PkiError::Refused(
                "its subject has attributes other than CN and O".into(),
            ));
        }
        let authority = match purpose {
            Purpose::Server => &self.server_ca,
            Purpose::Client => &self.client_ca,
        };
        let leaf = Leaf {
            subject: &csr.info.subject,
            names: csr.names,
            purpose,
            lifetime,
        };
        authority
            .sign(&leaf, &csr.public_key, self.clock.now())
            .map(|(chain, _)| chain)
    }
}
