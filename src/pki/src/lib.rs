//! Certificate authorities, certificates, join tokens and kubeconfigs.
//!
//! - [`ClusterPki`] holds what a server signs with and makes certificates.
//! - [`make_csr`] and [`generate_key`] are for those who ask for one.
//! - [`Token`] is what an agent joins with: it pins the cluster's authority.
//! - [`tls`] turns certificates into TLS settings, exchangeable while running.
//! - [`Identity`] and [`CertificateInfo`] read certificates; [`renewal`] says
//!   when to replace one; [`explain`] puts a failed handshake into words.
//!
//! All keys are ECDSA P-256. A machine whose clock stands before its
//! certificates is told so; it is never a reason to make new authorities.

mod authority;
mod cluster;
mod csr;
mod der;
mod error;
mod files;
mod identity;
mod kubeconfig;
mod service_account;
pub mod tls;
mod token;

pub use authority::{Issued, Purpose};
pub use cluster::ClusterPki;
pub use csr::{CsrInfo, generate_key, make_csr};
pub use error::{PkiError, explain};
pub use files::write_private;
pub use identity::{CertificateInfo, Identity, Renewal, renewal};
pub use kubeconfig::{Credentials, kubeconfig};
pub use service_account::ServiceAccountKey;
pub use token::{Token, fingerprint, verify_ca_pin};

#[cfg(test)]
mod tests;
