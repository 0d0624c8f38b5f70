//! What a server answers besides the Kubernetes API, on the same port:
//!
//! * `GET /cacerts`: the CA certificate, for anybody (a token pins it);
//! * `GET /v1-skiff/config`: what all nodes agree on, for nodes;
//! * `GET /v1-skiff/connect`: a node's tunnel, for that node.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use skiff_api::status::Status;
use skiff_apiserver::{ApiServer, Body, Handler, PeerCertificate, full_body};
use skiff_tunnel::Registry;

use crate::node::Cluster;

/// Where the CA certificate is served.
pub const CA_PATH: &str = "/cacerts";
/// Where nodes learn the cluster's settings.
pub const CONFIG_PATH: &str = "/v1-skiff/config";

/// The API server and what surrounds it.
pub struct Supervisor {
    /// Answers everything else.
    pub api: Arc<ApiServer>,
    /// The nodes' tunnels.
    pub tunnels: Registry,
    /// What all nodes agree on.
    pub cluster: Cluster,
    /// The CA certificate.
    pub ca_pem: String,
}

impl Handler for Supervisor {
    fn handle(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        match request.uri().path() {
            CA_PATH => {
                let text = answer(StatusCode::OK, "application/x-pem-file", self.ca_pem.clone());
                futures::future::ready(text).boxed()
            }
            path if path.starts_with("/v1-skiff/") => {
                futures::future::ready(self.node_request(request)).boxed()
            }
            _ => {
                let api = self.api.clone();
                async move { api.handle(request).await }.boxed()
            }
        }
    }
}

impl Supervisor {
    fn node_request(&self, request: Request<Body>) -> Response<Body> {
        let node = request
            .extensions()
            .get::<PeerCertificate>()
            .and_then(|peer| peer.0.node_name().map(str::to_owned));
        let Some(node) = node else {
            return refuse(&Status::unauthorized());
        };
        match (request.method(), request.uri().path()) {
            (&Method::GET, CONFIG_PATH) => match serde_json::to_string(&self.cluster) {
                Ok(text) => answer(StatusCode::OK, "application/json", text),
                Err(error) => refuse(&Status::internal(error)),
            },
            (&Method::GET, skiff_tunnel::CONNECT_PATH) => {
                match skiff_tunnel::accept(&self.tunnels, &node, request) {
                    Ok(response) => response.map(|()| full_body("")),
                    Err(error) => answer(error.status(), "text/plain", error.to_string()),
                }
            }
            (_, path) => answer(
                StatusCode::NOT_FOUND,
                "text/plain",
                format!("nothing is served at {path}"),
            ),
        }
    }
}

fn answer(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(full_body(text));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}

fn refuse(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer(code, "application/json", status.to_value().to_string())
}
