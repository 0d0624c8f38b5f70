//! Kubeconfig files, complete in themselves.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// How the user of a kubeconfig proves who they are.
#[derive(Clone)]
pub enum Credentials {
    /// A client certificate.
    Certificate {
        /// The chain in PEM.
        cert_pem: String,
        /// The key in PEM.
        key_pem: String,
    },
    /// A bearer token.
    Token(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Certificate { .. } => "Certificate(hidden)",
            Self::Token(_) => "Token(hidden)",
        })
    }
}

/// The text of a kubeconfig with one cluster, user and context, all called `name`.
pub fn kubeconfig(name: &str, server: &str, ca_pem: &str, credentials: &Credentials) -> String {
    let user = match credentials {
        Credentials::Certificate { cert_pem, key_pem } => format!(
            "    client-certificate-data: {}\n    client-key-data: {}\n",
            STANDARD.encode(cert_pem),
            STANDARD.encode(key_pem)
        ),
        Credentials::Token(token) => format!("    token: {}\n", quoted(token)),
    };
    let (name, server, ca) = (quoted(name), quoted(server), STANDARD.encode(ca_pem));
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {name}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {name}\n  user:\n{user}contexts:\n- name: {name}\n  \
         context:\n    cluster: {name}\n    user: {name}\ncurrent-context: {name}\npreferences: {{}}\n"
    )
}

/// A YAML string whatever is in it: a JSON string is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
