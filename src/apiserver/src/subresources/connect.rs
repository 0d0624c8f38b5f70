//! Streams to nodes, pods and services: log, exec, attach, portforward, proxy.
//!
//! The request goes on as HTTP/1.1 over a byte stream into the node. When the
//! far end switches protocols (SPDY or WebSocket) both connections become bare
//! byte streams that are copied into each other; the protocol inside is not
//! looked at.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, HeaderName, LOCATION, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::Status;

use crate::request::{Query, collect};
use crate::server::{ApiServer, Call};
use crate::{Body, BoxError, BoxIo, full_body, respond};

/// What the dialer calls a node's own HTTP API.
const KUBELET: &str = "kubelet";
/// Longest error text taken from a node.
const MAX_ERROR_BYTES: usize = 8 << 10;
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'/')
    .add(b'%');
/// Headers that belong to one connection, or to this server.
const NOT_FORWARDED: &[&str] = &[
    "host",
    "authorization",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "content-length",
];

impl ApiServer {
    /// Streams a container's log.
    pub(super) async fn pod_log(&self, call: &Call) -> Result<Response<Body>, Status> {
        let (pod, node) = self.pod_and_node(call)?;
        let container = container(call, &pod)?;
        let path = kubelet_path("containerLogs", call, Some(&container));
        let target = with_query(&path, &call.query, &["container", "insecureSkipTLSVerifyBackend"]);
        let io = self.dial(&node, KUBELET).await?;
        let response = exchange(io, Method::GET, &target, HeaderMap::new(), full_body("")).await?;
        let (mut parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            return Err(error_from(parts.status, body).await);
        }
        let plain = HeaderValue::from_static("text/plain");
        let kind = parts.headers.get(CONTENT_TYPE).cloned().unwrap_or(plain);
        parts.headers.clear();
        parts.headers.insert(CONTENT_TYPE, kind);
        Ok(Response::from_parts(parts, body))
    }

    /// Connects to a container's streams or a pod's ports.
    pub(super) async fn pod_stream(
        &self,
        call: &Call,
        parts: Parts,
        _body: Body,
    ) -> Result<Response<Body>, Status> {
        if call.method == Method::GET {
            // A WebSocket begins with GET but does what needs the right to create.
            self.require_create(call)?;
        }
        let (pod, node) = self.pod_and_node(call)?;
        let path = match call.sub_name() {
            "portforward" => kubelet_path("portForward", call, None),
            sub => {
                if matches!(meta::str_at(&pod, "status.phase"), "Succeeded" | "Failed") {
                    let phase = meta::str_at(&pod, "status.phase");
                    let text =
                        format!("cannot {sub} into a container in a completed pod; current phase is {phase}");
                    return Err(Status::bad_request(text));
                }
                kubelet_path(sub, call, Some(&container(call, &pod)?))
            }
        };
        if !parts.headers.contains_key(UPGRADE) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let target = with_query(&path, &call.query, &["container"]);
        self.forward(parts, full_body(""), &node, KUBELET, &target).await
    }

    /// Passes a request on to a node's, a pod's or a service's HTTP server.
    pub(super) async fn proxy(
        &self,
        call: &Call,
        parts: Parts,
        body: Body,
    ) -> Result<Response<Body>, Status> {
        if call.info.rest.is_empty()
            && matches!(parts.method, Method::GET | Method::HEAD)
            && !call.info.path.ends_with('/')
        {
            // Relative links of the page behind the proxy need the slash.
            let mut location = format!("{}/", parts.uri.path());
            if let Some(query) = parts.uri.query() {
                location.push_str(&format!("?{query}"));
            }
            let mut response = respond::raw(StatusCode::MOVED_PERMANENTLY, "text/plain", "");
            let location = HeaderValue::try_from(location).map_err(|e| Status::bad_request(e.to_string()))?;
            response.headers_mut().insert(LOCATION, location);
            return Ok(response);
        }
        let (node, address) = match &*call.kind.plural {
            "nodes" => {
                let name = call.info.name.split(':').next().unwrap_or_default();
                self.object("nodes", "", name)
                    .ok_or_else(|| Status::not_found("nodes", name))?;
                (name.to_owned(), KUBELET.to_owned())
            }
            "pods" => self.pod_target(call)?,
            _ => self.service_target(call)?,
        };
        let mut target = if call.info.rest.is_empty() {
            "/".to_owned()
        } else {
            call.info.rest.clone()
        };
        if let Some(query) = parts.uri.query() {
            target.push('?');
            target.push_str(query);
        }
        self.forward(parts, body, &node, &address, &target).await
    }

    fn pod_and_node(&self, call: &Call) -> Result<(Value, String), Status> {
        let name = call.info.name.as_str();
        let pod = self
            .object("pods", &call.info.namespace, name)
            .ok_or_else(|| Status::not_found("pods", name))?;
        let node = meta::str_at(&pod, "spec.nodeName").to_owned();
        if node.is_empty() {
            return Err(Status::bad_request(format!(
                "pod {name} does not have a host assigned"
            )));
        }
        Ok((pod, node))
    }

    fn pod_target(&self, call: &Call) -> Result<(String, String), Status> {
        let (name, port) = split_target(&call.info.name)?;
        let pod = self
            .object("pods", &call.info.namespace, name)
            .ok_or_else(|| Status::not_found("pods", name))?;
        let ports: Vec<&Value> = meta::list_at(&pod, "spec.containers")
            .iter()
            .flat_map(|c| meta::list_at(c, "ports"))
            .collect();
        let number = match port {
            Some(port) => match port.parse::<u16>() {
                Ok(number) => u64::from(number),
                Err(_) => ports
                    .iter()
                    .find(|p| p["name"] == port)
                    .and_then(|p| p["containerPort"].as_u64())
                    .ok_or_else(|| Status::unavailable(format!("no port {port:?} in pod {name:?}")))?,
            },
            None => ports
                .first()
                .and_then(|p| p["containerPort"].as_u64())
                .unwrap_or(80),
        };
        let ip = meta::str_at(&pod, "status.podIP");
        if ip.is_empty() {
            return Err(Status::unavailable(format!(
                "address not allowed: pod {name:?} has no address yet"
            )));
        }
        Ok((
            meta::str_at(&pod, "spec.nodeName").to_owned(),
            address(ip, number),
        ))
    }

    fn service_target(&self, call: &Call) -> Result<(String, String), Status> {
        let (name, port) = split_target(&call.info.name)?;
        let namespace = call.info.namespace.as_str();
        let service = self
            .object("services", namespace, name)
            .ok_or_else(|| Status::not_found("services", name))?;
        let ports = meta::list_at(&service, "spec.ports");
        let chosen = match port {
            Some(port) => ports
                .iter()
                .find(|p| p["name"] == port || p["port"].as_u64() == port.parse().ok()),
            None => ports.first().filter(|_| ports.len() == 1),
        };
        let no_port = || {
            Status::unavailable(format!(
                "no service port {:?} found for service {name:?}",
                port.unwrap_or_default()
            ))
        };
        let port_name = chosen.ok_or_else(no_port)?["name"].as_str().unwrap_or_default();
        let kind = self.row("discovery.k8s.io", "v1", "endpointslices");
        let mut slices = self.objects(kind, Some(namespace));
        slices.retain(|s| meta::label(s, "kubernetes.io/service-name") == Some(name));
        let mut candidates = Vec::new();
        for slice in &slices {
            let Some(number) = meta::list_at(slice, "ports")
                .iter()
                .find(|p| p["name"].as_str().unwrap_or_default() == port_name)
                .and_then(|p| p["port"].as_u64())
            else {
                continue;
            };
            for endpoint in meta::list_at(slice, "endpoints") {
                if endpoint["conditions"]["ready"] != false
                    && let (Some(ip), Some(node)) =
                        (endpoint["addresses"][0].as_str(), endpoint["nodeName"].as_str())
                {
                    candidates.push((node.to_owned(), address(ip, number)));
                }
            }
        }
        use rand::seq::IndexedRandom;
        candidates
            .choose(&mut rand::rng())
            .cloned()
            .ok_or_else(|| Status::unavailable(format!("no endpoints available for service {name:?}")))
    }

    async fn dial(&self, node: &str, target: &str) -> Result<BoxIo, Status> {
        self.nodes.dial(node, target).await.map_err(|error| {
            let mut status = Status::internal(format!("error dialing backend: {error}"));
            status.code = 500;
            status
        })
    }

    /// Sends a request into a node and hands back the answer, upgraded or not.
    async fn forward(
        &self,
        mut parts: Parts,
        body: Body,
        node: &str,
        address: &str,
        target: &str,
    ) -> Result<Response<Body>, Status> {
        let upgrading = parts.headers.contains_key(UPGRADE);
        let client = parts.extensions.remove::<OnUpgrade>();
        let mut headers = HeaderMap::new();
        for (name, value) in &parts.headers {
            let dropped = NOT_FORWARDED.contains(&name.as_str())
                || name.as_str().starts_with("impersonate-")
                || (!upgrading && (*name == CONNECTION || *name == UPGRADE));
            if !dropped {
                headers.append(name.clone(), value.clone());
            }
        }
        if address != KUBELET
            && let Ok(host) = HeaderValue::from_str(address)
        {
            headers.insert(HOST, host);
        }
        headers.insert(
            HeaderName::from_static("x-forwarded-uri"),
            header_or_empty(parts.uri.path()),
        );
        let io = self.dial(node, address).await?;
        let mut response = exchange(io, parts.method, target, headers, body).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            if upgrading && address == KUBELET {
                // A stream was refused: say why in the form clients read.
                let (head, body) = response.into_parts();
                return Err(error_from(head.status, body).await);
            }
            for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
                response.headers_mut().remove(name);
            }
            return Ok(response);
        }
        let Some(client) = client else {
            return Err(Status::bad_request(
                "this connection cannot be upgraded: use HTTP/1.1",
            ));
        };
        let far = hyper::upgrade::on(&mut response);
        self.shutdown.spawn_until_cancelled("stream", splice(client, far));
        let (head, _) = response.into_parts();
        Ok(Response::from_parts(head, full_body("")))
    }
}

/// Copies two upgraded connections into each other until one ends.
async fn splice(near: OnUpgrade, far: OnUpgrade) {
    match futures::try_join!(near, far) {
        Ok((near, far)) => {
            let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
            if let Err(error) = tokio::io::copy_bidirectional(&mut near, &mut far).await {
                tracing::debug!(%error, "stream ended");
            }
        }
        Err(error) => tracing::debug!(%error, "upgrade failed"),
    }
}

/// One HTTP/1.1 request over a byte stream.
fn exchange(
    io: BoxIo,
    method: Method,
    target: &str,
    mut headers: HeaderMap,
    body: Body,
) -> BoxFuture<'static, Result<Response<Body>, Status>> {
    headers
        .entry(HOST)
        .or_insert(HeaderValue::from_static("localhost"));
    headers.remove(AUTHORIZATION);
    let mut request = Request::new(Outgoing(body));
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    match target.parse() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(error) => {
            let status = Status::bad_request(format!("path {target:?}: {error}"));
            return Box::pin(std::future::ready(Err(status)));
        }
    }
    Box::pin(exchange_request(io, request))
}

async fn exchange_request(io: BoxIo, request: Request<Outgoing>) -> Result<Response<Body>, Status> {
    let failed = |error: hyper::Error| Status::internal(format!("error talking to backend: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "backend connection ended");
        }
    });
    let mut response = sender.send_request(request).await.map_err(failed)?;
    let upgrade = response.extensions_mut().remove::<OnUpgrade>();
    let mut response = response.map(|body| body.map_err(|e| -> BoxError { Box::new(e) }).boxed_unsync());
    if let Some(upgrade) = upgrade {
        response.extensions_mut().insert(upgrade);
    }
    Ok(response)
}

/// A body whose error type is a plain struct: hyper's bounds on boxed errors
/// do not hold inside futures that must be `Send`.
struct Outgoing(Body);

#[derive(Debug, thiserror::Error)]
#[error("reading the request body: {0}")]
struct OutgoingError(String);

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = OutgoingError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, OutgoingError>>> {
        Pin::new(&mut self.0)
            .poll_frame(cx)
            .map_err(|error| OutgoingError(error.to_string()))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

/// An error answer of a node as a `Status`.
async fn error_from(code: StatusCode, body: Body) -> Status {
    let bytes = collect(body, MAX_ERROR_BYTES)
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    if let Ok(status) = serde_json::from_slice::<Status>(&bytes)
        && status.kind == "Status"
    {
        return status;
    }
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let text = if text.is_empty() {
        format!("the node answered {code}")
    } else {
        text
    };
    match code.as_u16() {
        404 => {
            let mut status = Status::no_such_path();
            status.message = text;
            status
        }
        400..=499 => {
            let mut status = Status::bad_request(text);
            status.code = code.as_u16();
            status
        }
        _ => Status::internal(text),
    }
}

fn header_or_empty(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn address(ip: &str, port: u64) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// `[scheme:]name[:port]`.
fn split_target(name: &str) -> Result<(&str, Option<&str>), Status> {
    let parts: Vec<&str> = name.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, None),
        [name, port] => ("", *name, Some(*port).filter(|p| !p.is_empty())),
        [scheme, name, port] => (*scheme, *name, Some(*port).filter(|p| !p.is_empty())),
        _ => return Err(Status::bad_request(format!("invalid proxy target {name:?}"))),
    };
    if !matches!(scheme, "" | "http") {
        return Err(Status::bad_request(format!(
            "proxying with scheme {scheme:?} is not supported, only http is"
        )));
    }
    Ok((name, port))
}

/// The container a request is about.
fn container(call: &Call, pod: &Value) -> Result<String, Status> {
    let names: Vec<&str> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .filter_map(|c| c["name"].as_str())
        .collect();
    let pod_name = meta::name(pod);
    if let Some(asked) = call.query.get("container") {
        if names.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!(
            "container {asked} is not valid for pod {pod_name}"
        )));
    }
    let plain: Vec<&str> = meta::list_at(pod, "spec.containers")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    if let [only] = plain.as_slice() {
        return Ok((*only).to_owned());
    }
    if let Some(default) = meta::annotation(pod, "kubectl.kubernetes.io/default-container")
        && plain.contains(&default)
    {
        return Ok(default.to_owned());
    }
    Err(Status::bad_request(format!(
        "a container name must be specified for pod {pod_name}, choose one of: [{}]",
        plain.join(" ")
    )))
}

fn kubelet_path(endpoint: &str, call: &Call, container: Option<&str>) -> String {
    let escape = |s: &str| utf8_percent_encode(s, SEGMENT).to_string();
    let mut path = format!(
        "/{endpoint}/{}/{}",
        escape(&call.info.namespace),
        escape(&call.info.name)
    );
    if let Some(container) = container {
        path.push('/');
        path.push_str(&escape(container));
    }
    path
}

fn with_query(path: &str, query: &Query, without: &[&str]) -> String {
    let escape = |s: &str| utf8_percent_encode(s, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> = query
        .pairs()
        .filter(|(k, _)| !without.contains(k))
        .map(|(k, v)| format!("{}={}", escape(k), escape(v)))
        .collect();
    if pairs.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", pairs.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_split() {
        assert_eq!(split_target("web").unwrap(), ("web", None));
        assert_eq!(split_target("web:80").unwrap(), ("web", Some("80")));
        assert_eq!(split_target("http:web:").unwrap(), ("web", None));
        assert!(split_target("https:web:443").is_err() && split_target("a:b:c:d").is_err());
    }

    #[test]
    fn queries_are_encoded_again() {
        let query = Query::parse(Some("command=sh&command=-c&command=echo+a%26b&container=x"));
        assert_eq!(
            with_query("/p", &query, &["container"]),
            "/p?command=sh&command=%2Dc&command=echo%20a%26b"
        );
    }
}
