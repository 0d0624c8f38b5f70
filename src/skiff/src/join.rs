//! Joining a cluster: tokens on the server's side, the first certificate on
//! the agent's.
//!
//! The agent trusts nothing but its token: the server must prove to belong to
//! the CA whose hash the token carries. Then it asks for a certificate of its
//! own through the standard bootstrap (a CertificateSigningRequest signed by
//! `kubernetes.io/kube-apiserver-client-kubelet`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use skiff_base::clock::Clock;
use skiff_client::Client;
use skiff_pki::tls::{self, HotCertificate};
use skiff_pki::{CertificateInfo, ClusterPki, Identity, Renewal, Token};

use crate::remote::{self, Endpoint};

/// The group join tokens act as, as kubeadm names it.
const TOKEN_GROUP: &str = "system:bootstrappers:skiff:default-node-token";
/// How long the server may take to sign.
const SIGN_TIMEOUT: Duration = Duration::from_secs(30);
/// Lifetime of a node's certificate as it asks for it.
const NODE_CERTIFICATE_SECONDS: i32 = 365 * 24 * 3600;

/// Makes a token good for joining, for ever or until `expiration`.
pub async fn record_token(
    client: &Client,
    token: &Token,
    description: &str,
    expiration: Option<jiff::Timestamp>,
) -> Result<(), kube::Error> {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let name = format!("bootstrap-token-{}", token.id());
    let mut data = json!({
        "token-id": bytes(token.id()),
        "token-secret": bytes(token.secret()),
        "usage-bootstrap-authentication": bytes("true"),
        "usage-bootstrap-signing": bytes("true"),
        "auth-extra-groups": bytes(TOKEN_GROUP),
        "description": bytes(description),
    });
    if let Some(expiration) = expiration {
        data["expiration"] = json!(bytes(&expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    }
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "type": "bootstrap.kubernetes.io/token",
        "data": data,
    });
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    api.patch(
        &name,
        &PatchParams::apply("skiff").force(),
        &Patch::Apply(&secret),
    )
    .await
    .map(drop)
}

/// The server's own token: kept in a file, good for ever.
pub async fn ensure_server_token(client: &Client, pki: &ClusterPki, file: &Path) -> anyhow::Result<()> {
    let token = match std::fs::read_to_string(file) {
        Ok(text) => text
            .trim()
            .parse::<Token>()
            .with_context(|| format!("{} holds no token: remove it and start again", file.display()))?,
        Err(_) => {
            let token = pki.new_token()?;
            skiff_pki::write_private(file, format!("{token}\n").as_bytes())?;
            token
        }
    };
    record_token(
        client,
        &token,
        "The token of this server, for joining nodes.",
        None,
    )
    .await
    .context("cannot record the join token")
}

/// What an agent knows about its cluster once it has joined.
pub struct Membership {
    /// The cluster's CA.
    pub ca_pem: String,
    /// The node's own certificate.
    pub certificate: Arc<HotCertificate>,
}

/// Where an agent keeps it.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Below the agent's data folder.
    pub fn new(agent_dir: &Path) -> Self {
        Self {
            folder: agent_dir.join("tls"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        skiff_pki::write_private(&self.path(name), text.as_bytes())?;
        Ok(())
    }

    /// Keeps the node's certificate and key.
    pub fn store(&self, cert_pem: &str, key_pem: &str) -> anyhow::Result<()> {
        self.write("node.key", key_pem)?;
        self.write("node.crt", cert_pem)
    }

    /// The membership of an earlier run, if its certificate has not ended and
    /// is for this node.
    pub fn load(&self, node: &str, clock: &dyn Clock) -> Option<Membership> {
        let (ca_pem, cert, key) = (
            self.read("server-ca.crt")?,
            self.read("node.crt")?,
            self.read("node.key")?,
        );
        let info = CertificateInfo::from_pem(&cert).ok()?;
        if matches!(info.renewal(clock.now()), Renewal::Expired) {
            tracing::warn!("this node's certificate has expired; joining again");
            return None;
        }
        if info.subject.common_name != format!("system:node:{node}") {
            tracing::warn!(certificate = %info.subject.common_name, node, "this node was renamed; joining again");
            return None;
        }
        let certificate = HotCertificate::new(&cert, &key).ok()?;
        Some(Membership { ca_pem, certificate })
    }
}

/// Joins with a token: checks the CA, gets a certificate, keeps both.
pub async fn bootstrap(
    endpoint: &Endpoint,
    token: &Token,
    node: &str,
    files: &Files,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Membership> {
    let (trust, seen) = tls::pinned_client_config(token, clock)?;
    let client = remote::client(endpoint, trust, Some(&token.bootstrap()))?;
    let (cert, key) = request_certificate(&client, node)
        .await
        .map_err(|error| explain(endpoint, error))?;
    let ca_pem = seen.pem().context("the server showed no certificate authority")?;
    let certificate = HotCertificate::new(&cert, &key)?;
    files.write("server-ca.crt", &ca_pem)?;
    files.store(&cert, &key)?;
    tracing::info!(node, server = %endpoint.authority(), "joined the cluster");
    Ok(Membership { ca_pem, certificate })
}

/// Asks for a certificate for this node and waits for it. Returns chain and key.
pub async fn request_certificate(client: &Client, node: &str) -> anyhow::Result<(String, String)> {
    let key = skiff_pki::generate_key()?;
    let identity = Identity::new(format!("system:node:{node}"), &[skiff_apiserver::NODES]);
    let pem = skiff_pki::make_csr(&key, &identity, &[])?;
    let request: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": "node-csr-"},
        "spec": {
            "request": ByteString(pem.into_bytes()),
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "expirationSeconds": NODE_CERTIFICATE_SECONDS,
            "usages": ["digital signature", "client auth"],
        },
    }))?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = api.create(&PostParams::default(), &request).await?;
    let name = created.metadata.name.unwrap_or_default();
    let settled = await_condition(api, &name, |request: Option<&CertificateSigningRequest>| {
        let status = request.and_then(|request| request.status.as_ref());
        status.is_some_and(|status| {
            status.certificate.is_some()
                || status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|c| c.type_ == "Denied" || c.type_ == "Failed")
        })
    });
    let settled = tokio::time::timeout(SIGN_TIMEOUT, settled)
        .await
        .with_context(|| {
            format!("the server did not sign the certificate request {name} within {SIGN_TIMEOUT:?}")
        })??;
    let status = settled.and_then(|request| request.status).unwrap_or_default();
    if let Some(refused) = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Denied" || c.type_ == "Failed")
    {
        bail!(
            "the server refused this node: {}",
            refused.message.clone().unwrap_or_default()
        );
    }
    let certificate = status.certificate.map(|bytes| bytes.0).unwrap_or_default();
    Ok((
        String::from_utf8(certificate).context("the certificate is not PEM")?,
        key,
    ))
}

/// Says in one line what is wrong between this machine and the server.
pub fn explain(endpoint: &Endpoint, error: anyhow::Error) -> anyhow::Error {
    let server = endpoint.authority();
    if let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>() {
        return match status.code {
            401 => anyhow::anyhow!(
                "the server {server} refused the token: it is wrong or has expired; print a new one on the server with `skiff token create`"
            ),
            _ => anyhow::anyhow!("the server {server} refused: {}", status.message),
        };
    }
    let root: &(dyn std::error::Error + 'static) = error.as_ref();
    if let Some(text) = skiff_pki::explain(root) {
        return anyhow::anyhow!("cannot trust the server {server}: {text}");
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(root);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<std::io::Error>() {
            let what = match io.kind() {
                std::io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
                std::io::ErrorKind::TimedOut => "no answer".to_owned(),
                _ => io.to_string(),
            };
            return anyhow::anyhow!(
                "cannot reach the server {server}: {what}; check --server, the network and that `skiff server` runs there"
            );
        }
        cause = current.source();
    }
    error.context(format!("cannot join the server {server}"))
}
