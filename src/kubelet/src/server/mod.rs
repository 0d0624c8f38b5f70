//! The kubelet's HTTP API: logs, exec, attach, port-forward, statistics.
//!
//! It is served on single byte streams that come from the tunnel and are authenticated and authorized already; nothing
//! here listens.
//!
//! ```text
//! HTTP/1.1 ─► route ─┬─ /containerLogs   log_files ─► log_lines ─► chunks      (log_watch while following)
//!                    ├─ /exec, /attach   upgrade ─┬─ session (spdy frames) ─┐
//!                    │                            └─ websocket (channels) ──┴─► remote ─► runtime session
//!                    ├─ /portForward     upgrade ─┬─ session ───────────────┬─► portforward ─► pod's loopback
//!                    │                            └─ websocket (tunnel) ────┘
//!                    └─ /pods, /stats/summary, /healthz
//! ```
//!
//! A connection's future holds everything that belongs to it: dropped, or when the peer goes, streams end and
//! commands started by it are killed. Both streaming protocols give up after [`IDLE_TIMEOUT`] without traffic.

mod idle;
mod log_files;
mod log_lines;
mod log_watch;
mod logs;
mod portforward;
mod query;
mod remote;
mod session;
mod spdy;
mod spdy_headers;
mod streams;
mod upgrade;
mod websocket;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use skiff_cri::{ContainerState, Runtime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::kubelet::{Kubelet, PodEntry};
use crate::pod::spec;
use crate::stats::Rates;
use query::Query;
use remote::{Kind, Wanted};
use streams::Upgraded;
use upgrade::Transport;

/// Time without traffic after which a streaming connection is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);
/// Streaming connections and followed logs at a time. Each holds a few hundred kilobytes at most.
const STREAMS_MAX: usize = 512;
/// Time to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head: commands may be long, up to what the API server takes.
const HEAD_MAX_BYTES: usize = 1 << 20;

/// Body of answers.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the HTTP API asks about pods.
#[async_trait]
pub trait Pods: Send + Sync + 'static {
    /// A pod by name, with its containers.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry>;
    /// All pods of the node.
    fn pods(&self) -> Vec<PodEntry>;
    /// What runs containers.
    fn runtime(&self) -> &Arc<dyn Runtime>;
    /// The time.
    fn now(&self) -> SystemTime;
    /// Usage of the node and its pods.
    async fn summary(&self, rates: &Rates) -> Value;
}

#[async_trait]
impl Pods for Kubelet {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry> {
        Kubelet::pod(self, namespace, name)
    }

    fn pods(&self) -> Vec<PodEntry> {
        Kubelet::pods(self)
    }

    fn runtime(&self) -> &Arc<dyn Runtime> {
        Kubelet::runtime(self)
    }

    fn now(&self) -> SystemTime {
        self.config().clock.now()
    }

    async fn summary(&self, rates: &Rates) -> Value {
        Kubelet::summary(self, rates).await
    }
}

/// What all connections of a node share.
pub struct Server {
    rates: Rates,
    watcher: log_watch::Watcher,
    streams: Arc<Semaphore>,
}

impl Default for Server {
    fn default() -> Self {
        Server {
            rates: Rates::default(),
            watcher: log_watch::Watcher::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}

impl Kubelet {
    /// Serves the HTTP API on one byte stream, until it ends.
    pub async fn serve_connection<IO>(self: &Arc<Self>, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.server.serve(self.clone(), io).await;
    }
}

/// A request that is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    message: String,
    /// Protocols that would have been accepted.
    accepted: &'static [&'static str],
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal {
            status,
            message: message.into(),
            accepted: &[],
        }
    }

    fn bad(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

fn json(value: &Value) -> Response<Body> {
    let mut response = plain(StatusCode::OK, value.to_string());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer, and what follows it on the same connection.
struct Answer {
    response: Response<Body>,
    then: Option<Upgraded>,
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Answer { response, then: None }
    }
}

impl Server {
    /// Serves one byte stream.
    pub async fn serve<IO>(&self, pods: Arc<dyn Pods>, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let then = Mutex::new(None);
        let service = service_fn(|request| async {
            let answer = self.answer(&pods, request).await.unwrap_or_else(|refusal| {
                let mut response = plain(refusal.status, refusal.message);
                upgrade::advertise(refusal.accepted, response.headers_mut());
                response.into()
            });
            *then.lock() = answer.then;
            Ok::<_, Infallible>(answer.response)
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEAD_MAX_BYTES)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the kubelet's API broke");
        }
        let then = then.lock().take();
        if let Some(then) = then {
            then.await;
        }
    }

    async fn answer(&self, pods: &Arc<dyn Pods>, mut request: Request<Incoming>) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        let parts: Vec<_> = path
            .split('/')
            .skip(1)
            .map(|part| percent_decode_str(part).decode_utf8_lossy())
            .collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let streaming = match parts.as_slice() {
            ["exec" | "attach", _, _, _] | ["portForward", _, _] => true,
            ["healthz"] | ["stats", "summary"] | ["pods"] | ["containerLogs", _, _, _] => false,
            _ => return Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
        };
        if request.method() != Method::GET && !(streaming && request.method() == Method::POST) {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed"));
        }
        match parts.as_slice() {
            ["healthz"] => Ok(plain(StatusCode::OK, "ok").into()),
            ["stats", "summary"] => Ok(json(&pods.summary(&self.rates).await).into()),
            ["pods"] => {
                let items: Vec<_> = pods.pods().into_iter().map(|entry| entry.pod).collect();
                Ok(
                    json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
                        .into(),
                )
            }
            ["containerLogs", namespace, name, container] => {
                let entry = find_pod(pods, namespace, name)?;
                let options = log_lines::Options::parse(&query, pods.now())?;
                let target = logs::find(&entry, container, options.previous)?;
                let permit = options.follow.then(|| self.permit()).transpose()?;
                let chunks = logs::stream(target, options, pods.runtime().clone(), &self.watcher).await?;
                let body = StreamBody::new(chunks.map(move |chunk| {
                    // Held as long as the answer lasts.
                    let _permit = &permit;
                    Ok::<_, Infallible>(Frame::data(chunk))
                }));
                let mut response = plain(StatusCode::OK, "");
                *response.body_mut() = body.boxed_unsync();
                Ok(response.into())
            }
            [verb @ ("exec" | "attach"), namespace, name, container] => {
                let entry = find_pod(pods, namespace, name)?;
                let running = entry.container(container, false);
                let running = running
                    .filter(|found| found.state == ContainerState::Running)
                    .ok_or_else(|| {
                        Refusal::new(
                            StatusCode::NOT_FOUND,
                            format!("container not found ({container:?})"),
                        )
                    })?;
                let wanted = Wanted::parse(&query)?;
                let kind = match *verb {
                    "attach" => Kind::Attach,
                    _ => Kind::Exec(query.all("command").map(str::to_owned).collect()),
                };
                if kind == Kind::Exec(Vec::new()) {
                    return Err(Refusal::bad(
                        "you must specify at least one command for the container",
                    ));
                }
                let upgrade = upgrade::negotiate(&request, streams::REMOTE_SPDY, streams::REMOTE_WEBSOCKET)?;
                let job = streams::Job {
                    runtime: pods.runtime().clone(),
                    container: running.id.clone(),
                    kind,
                    wanted,
                };
                let (transport, protocol) = (upgrade.transport, upgrade.protocol);
                self.switch(&mut request, &upgrade, move |io| {
                    streams::remote(io, transport, protocol, job)
                })
            }
            ["portForward", namespace, name] => {
                let entry = find_pod(pods, namespace, name)?;
                let sandbox = entry.sandbox().ok_or_else(|| {
                    let message = format!("unable to do port forwarding: pod {name:?} is not running");
                    Refusal::new(StatusCode::NOT_FOUND, message)
                })?;
                let target = portforward::Target {
                    pod: (*name).to_owned(),
                    uid: spec::uid(&entry.pod).to_owned(),
                    netns: sandbox.netns.clone(),
                };
                let upgrade =
                    upgrade::negotiate(&request, streams::FORWARD_SPDY, streams::FORWARD_WEBSOCKET)?;
                let (transport, protocol) = (upgrade.transport, upgrade.protocol);
                let by_query = transport == Transport::WebSocket && protocol != Some(streams::FORWARD_TUNNEL);
                let ports = if by_query {
                    portforward::ports(&query)?
                } else {
                    Vec::new()
                };
                self.switch(&mut request, &upgrade, move |io| {
                    streams::forward(io, transport, protocol, target, ports)
                })
            }
            _ => Err(Refusal::new(StatusCode::NOT_FOUND, "404 page not found")),
        }
    }

    fn permit(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Refusal> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let message =
                format!("the node has {STREAMS_MAX} streaming connections open already, try again later");
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, message)
        })
    }

    /// Answers with the new protocol; `work` follows on the connection.
    fn switch<F: Future<Output = ()> + Send + 'static>(
        &self,
        request: &mut Request<Incoming>,
        upgrade: &upgrade::Upgrade,
        work: impl FnOnce(idle::Noted<TokioIo<hyper::upgrade::Upgraded>>) -> F + Send + 'static,
    ) -> Result<Answer, Refusal> {
        let permit = self.permit()?;
        let upgraded = hyper::upgrade::on(request);
        let then = async move {
            let _permit = permit;
            let io = match upgraded.await {
                Ok(io) => TokioIo::new(io),
                Err(error) => {
                    tracing::debug!(%error, "a connection was not upgraded");
                    return;
                }
            };
            let (io, activity) = idle::note(io);
            tokio::select! {
                () = work(io) => {}
                () = activity.idle_for(IDLE_TIMEOUT) => tracing::debug!("an idle streaming connection is closed"),
            }
        };
        Ok(Answer {
            response: upgrade.response(),
            then: Some(Box::pin(then)),
        })
    }
}

fn find_pod(pods: &Arc<dyn Pods>, namespace: &str, name: &str) -> Result<PodEntry, Refusal> {
    pods.pod(namespace, name).ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!("pod {:?} does not exist", format!("{namespace}/{name}")),
        )
    })
}
