//! `skiff agent`: a node that joins a server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use skiff_base::backoff::Backoff;
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use skiff_client::{Client, Informers};
use skiff_pki::tls::{self, HotCertificate};
use skiff_pki::{CertificateInfo, Renewal, Token};
use tokio::sync::watch;

use crate::commands::status::Record;
use crate::join::{self, Files, Membership};
use crate::node::{Cluster, Settings};
use crate::options::{AgentOptions, NodeOptions};
use crate::remote::{self, Endpoint};
use crate::supervisor::CONFIG_PATH;
use crate::{node, notify, preflight, server};

/// How long tasks get to end.
const DRAIN: Duration = Duration::from_secs(10);
/// First and last pause between attempts to reach a server.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Shortest pause between two looks at a certificate's age.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// The cluster's settings as last seen, for starts without a server.
const CLUSTER_FILE: &str = "cluster.json";

/// Runs until told to stop.
pub async fn run(options: NodeOptions, agent: AgentOptions) -> anyhow::Result<()> {
    let clock = skiff_base::clock::system();
    let settings = Settings::new(options)?;
    let url = agent
        .server
        .as_deref()
        .context("no server given: set --server https://HOST:6443 (or SKIFF_URL)")?;
    let endpoint = Endpoint::parse(url).context("--server")?;
    let token = token(&agent)?;
    preflight::node(&settings.data)?;
    Record {
        role: "agent".to_owned(),
        version: node::VERSION.to_owned(),
        pid: std::process::id(),
        node: Some(settings.name.clone()),
        server: format!("https://{}", endpoint.authority()),
        kubeconfig: None,
        agent_dir: settings.agent_dir(),
    }
    .write(&settings.run)?;
    let shutdown = Shutdown::new();
    let outcome = tokio::select! {
        outcome = start(&settings, &endpoint, token, clock, &shutdown) => outcome,
        () = server::wait_for_stop(&shutdown) => Ok(()),
    };
    if outcome.is_ok() && !shutdown.is_cancelled() {
        server::wait_for_stop(&shutdown).await;
    }
    notify::notify("STOPPING=1");
    if !shutdown.drain(DRAIN).await {
        tracing::warn!("some tasks did not end in time");
    }
    outcome
}

fn token(agent: &AgentOptions) -> anyhow::Result<Option<Token>> {
    let text = match (&agent.token, &agent.token_file) {
        (Some(text), _) => text.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the token file {}", file.display()))?,
        (None, None) => return Ok(None),
    };
    let token = text
        .trim()
        .parse()
        .context("the token is malformed: copy it whole from `skiff token create`")?;
    Ok(Some(token))
}

async fn start(
    settings: &Settings,
    endpoint: &Endpoint,
    token: Option<Token>,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let files = Files::new(&settings.agent_dir());
    let membership = match (files.load(&settings.name, &*clock), &token) {
        (Some(membership), Some(token)) if !token_fits(token, &membership) => {
            bail!(
                "the token belongs to another cluster than the one this node has joined: \
                 run `skiff uninstall` first to move the node"
            )
        }
        (Some(membership), _) => membership,
        (None, Some(token)) => {
            join::bootstrap(endpoint, token, &settings.name, &files, clock.clone()).await?
        }
        (None, None) => bail!(
            "this node has not joined yet: set --token (or SKIFF_TOKEN) to what `skiff token create` prints on the server"
        ),
    };
    let trust = tls::client_config(
        &membership.ca_pem,
        Some(membership.certificate.clone()),
        clock.clone(),
    )?;
    let client = remote::client(endpoint, trust.clone(), None)?;
    let cluster = learn_cluster(settings, endpoint, &client).await?;
    renew(
        &files,
        settings,
        client.clone(),
        membership.certificate.clone(),
        clock.clone(),
        shutdown,
    );
    let informers = Informers::new(client.clone(), shutdown.clone());
    let node = node::start(settings, &cluster, client, informers, clock, shutdown).await?;
    let config = skiff_tunnel::agent::AgentConfig {
        server: endpoint.authority(),
        server_name: None,
        tls: trust,
        state: watch::Sender::default(),
    };
    shutdown.spawn(
        "tunnel",
        skiff_tunnel::agent::run(config, node.dialer, shutdown.clone()),
    );
    notify::notify("READY=1");
    Ok(())
}

fn token_fits(token: &Token, membership: &Membership) -> bool {
    skiff_pki::verify_ca_pin(token, &membership.ca_pem).is_ok()
}

/// Asks the server what all nodes agree on; a node that was here before starts
/// with what it knows while the server is away.
async fn learn_cluster(settings: &Settings, endpoint: &Endpoint, client: &Client) -> anyhow::Result<Cluster> {
    let file = settings.agent_dir().join(CLUSTER_FILE);
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    loop {
        let request = http::Request::get(CONFIG_PATH).body(Vec::new())?;
        match client.request::<Cluster>(request).await {
            Ok(cluster) => {
                std::fs::write(&file, serde_json::to_vec(&cluster)?)
                    .with_context(|| format!("cannot write {}", file.display()))?;
                return Ok(cluster);
            }
            Err(error) => {
                let refused = matches!(&error, kube::Error::Api(_));
                let error = join::explain(endpoint, error.into());
                if refused {
                    return Err(error.context("a certificate of an earlier join is no longer accepted: run `skiff uninstall` and join again"));
                }
                let known = std::fs::read(&file)
                    .ok()
                    .and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if let Some(cluster) = known {
                    tracing::warn!("{error:#}; starting with what is known");
                    return Ok(cluster);
                }
                tracing::warn!("{error:#}; trying again");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Exchanges the node's certificate while running, long before it ends.
fn renew(
    files: &Files,
    settings: &Settings,
    client: Client,
    certificate: Arc<HotCertificate>,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) {
    let (files, node) = (files.clone(), settings.name.clone());
    shutdown.spawn_until_cancelled("certificate renewal", async move {
        loop {
            let age = certificate
                .leaf()
                .and_then(|leaf| CertificateInfo::from_der(&leaf).ok());
            if let Some(Renewal::After(left)) = age.map(|info| info.renewal(clock.now())) {
                tokio::time::sleep(left.max(RENEWAL_PAUSE)).await;
                continue;
            }
            match join::request_certificate(&client, &node).await {
                Ok((cert, key)) => match files
                    .store(&cert, &key)
                    .and_then(|()| Ok(certificate.replace(&cert, &key)?))
                {
                    Ok(()) => tracing::info!("renewed this node's certificate"),
                    Err(error) => tracing::warn!("cannot keep the renewed certificate: {error:#}"),
                },
                Err(error) => tracing::warn!("cannot renew this node's certificate: {error:#}"),
            }
            tokio::time::sleep(RENEWAL_PAUSE).await;
        }
    });
}
