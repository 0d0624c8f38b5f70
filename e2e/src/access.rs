//! How tests reach a cluster that no route leads to.
//!
//! The client of kube-rs gets a connector whose sockets are made inside the
//! server's namespace. Waiting is watching: [`until`] follows the objects and
//! returns when they are as they should be, or tells what was missing.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::Uri;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::space::Sockets;

/// How long things in a cluster may take when nothing is wrong and the machine
/// is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pause before a failed watch is tried again: a server that restarts is back
/// within a second or two.
const RETRY: Duration = Duration::from_millis(50);

/// For one request.
const GET_LIMIT: Duration = Duration::from_secs(5);

/// Connects inside a network namespace.
#[derive(Clone)]
pub struct Connector {
    sockets: Sockets,
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let sockets = self.sockets.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let address = host
                .parse()
                .map_err(|_| io::Error::other(format!("{host:?} is not an address")))?;
            let stream = sockets
                .connect(SocketAddr::new(address, uri.port_u16().unwrap_or(443)))
                .await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// A client by a kubeconfig, through sockets made inside a namespace.
pub async fn client(kubeconfig: &Path, sockets: Sockets) -> anyhow::Result<Client> {
    // Fails when a test before has done it, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let connector = config.rustls_https_connector_with_connector(Connector { sockets })?;
    let inner = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .service(inner);
    Ok(Client::new(service, "default"))
}

/// A client for plain HTTP through sockets made inside a namespace.
pub type HttpClient = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;

/// Makes a client for plain HTTP.
pub fn http_client(sockets: Sockets) -> HttpClient {
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(Connector { sockets })
}

/// Fetches `http://address/path`; the body of a successful answer.
pub async fn get(sockets: &Sockets, address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let uri: Uri = format!("http://{address}{path}").parse()?;
    let work = async {
        let response = http_client(sockets.clone()).get(uri.clone()).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        if !status.is_success() {
            bail!("{status}: {text}");
        }
        Ok(text)
    };
    match tokio::time::timeout(GET_LIMIT, work).await {
        Ok(outcome) => outcome.with_context(|| uri.to_string()),
        Err(_) => bail!("{uri}: no answer within {GET_LIMIT:?}"),
    }
}

/// Watches until `judge` is satisfied by the objects, at most `limit`; its last
/// objection is the error.
pub async fn until<K, T>(
    api: Api<K>,
    config: watcher::Config,
    limit: Duration,
    mut judge: impl FnMut(&[K]) -> Result<T, String>,
) -> anyhow::Result<T>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let mut objection = "nothing was seen".to_owned();
    let watch = async {
        let mut events = std::pin::pin!(watcher(api, config));
        let mut objects: BTreeMap<String, K> = BTreeMap::new();
        let key = |object: &K| {
            let meta = object.meta();
            format!(
                "{}/{}",
                meta.namespace.as_deref().unwrap_or_default(),
                meta.name.as_deref().unwrap_or_default()
            )
        };
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => {
                    objects.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    objects.insert(key(&object), object);
                    continue;
                }
                Ok(watcher::Event::Apply(object)) => drop(objects.insert(key(&object), object)),
                Ok(watcher::Event::Delete(object)) => drop(objects.remove(&key(&object))),
                Ok(watcher::Event::InitDone) => {}
                Err(error) => {
                    objection = format!("{objection} (watch: {error})");
                    objection.truncate(2000);
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            let all: Vec<K> = objects.values().cloned().collect();
            match judge(&all) {
                Ok(value) => return Some(value),
                Err(why) => objection = why,
            }
        }
        None
    };
    match tokio::time::timeout(limit, watch).await {
        Ok(Some(value)) => Ok(value),
        _ => bail!("not within {limit:?}: {objection}"),
    }
}

/// Tries until `attempt` succeeds, at most `limit`; its last error is the error.
/// For what cannot be watched, such as an answer over the network.
pub async fn retry<T>(
    limit: Duration,
    mut attempt: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= end => {
                return Err(error.context(format!("not within {limit:?}")));
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}
