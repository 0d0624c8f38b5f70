//! Who asks: the user behind a request.
//!
//! A [`UserInfo`] in a request's extensions is believed. Only code of this
//! process can put it there, so components that share the process call
//! [`crate::ApiServer::handle`] with one and need no credentials. A
//! [`PeerCertificate`] is put there by [`crate::serve`] after TLS verified it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Group of every user that proved who it is.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of every user that did not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of every user that did not prove who it is.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group that may do anything.
pub const MASTERS: &str = "system:masters";
/// Group of all kubelets.
pub const NODES: &str = "system:nodes";
/// What the name of a node's user starts with.
pub const NODE_PREFIX: &str = "system:node:";
/// What the name of a service account's user starts with.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";
/// Group of all service accounts.
pub const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// A user as authentication sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// The unique name.
    pub username: String,
    /// An identifier that survives renames; often empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The groups the user is in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Further facts from the authenticator.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user in the given groups.
    pub fn new(username: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push(AUTHENTICATED.to_owned());
        Self {
            username: username.into(),
            groups,
            ..Self::default()
        }
    }

    /// A component inside this process that may do anything.
    pub fn component(name: &str) -> Self {
        Self::new(name, &[MASTERS])
    }

    /// Someone without credentials.
    pub fn anonymous() -> Self {
        Self {
            username: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The user of a service account.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        let mut user = Self::new(
            format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
            &[SERVICE_ACCOUNTS, &format!("{SERVICE_ACCOUNTS}:{namespace}")],
        );
        user.uid = uid.to_owned();
        user
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node this user is the kubelet of.
    pub fn node_name(&self) -> Option<&str> {
        if !self.in_group(NODES) {
            return None;
        }
        self.username
            .strip_prefix(NODE_PREFIX)
            .filter(|name| !name.is_empty())
    }

    /// Namespace and name when the user is a service account.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        self.username
            .strip_prefix(SERVICE_ACCOUNT_PREFIX)?
            .split_once(':')
    }

    /// The user as the APIs show it (`authentication.k8s.io/v1` UserInfo).
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The user of a client certificate that TLS has verified.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub UserInfo);

impl PeerCertificate {
    /// Reads common name (user) and organizations (groups). None when the
    /// certificate has no common name.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        if name.is_empty() {
            return None;
        }
        let mut groups: Vec<String> = subject
            .iter_organization()
            .filter_map(|o| o.as_str().ok())
            .map(str::to_owned)
            .collect();
        groups.push(AUTHENTICATED.to_owned());
        let digest = Sha256::digest(der);
        let fingerprint: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let extra = BTreeMap::from([(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![format!("X509SHA256={fingerprint}")],
        )]);
        Some(Self(UserInfo {
            username: name,
            uid: String::new(),
            groups,
            extra,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_needs_both_name_and_group() {
        assert_eq!(UserInfo::new("system:node:a", &[NODES]).node_name(), Some("a"));
        assert_eq!(UserInfo::new("system:node:a", &[]).node_name(), None);
        assert_eq!(UserInfo::new("system:node:", &[NODES]).node_name(), None);
    }

    #[test]
    fn service_account_users_name_their_namespace() {
        let user = UserInfo::service_account("web", "bot", "1");
        assert_eq!(user.as_service_account(), Some(("web", "bot")));
        assert!(user.in_group("system:serviceaccounts:web") && user.in_group(AUTHENTICATED));
    }
}
