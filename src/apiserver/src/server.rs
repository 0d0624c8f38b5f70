//! The server: what it is made of, and the way of a request through it.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response};
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use skiff_api::kinds::{Kind, Kinds, Subresource};
use skiff_api::protobuf;
use skiff_api::status::Status;
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use skiff_base::metrics::{self, CounterVec, GaugeVec, HistogramVec};
use skiff_pki::ServiceAccountKey;
use skiff_store::Store;
use tokio::sync::Semaphore;

use crate::auth::token::Keys;
use crate::auth::{Authenticator, impersonation};
use crate::authz::Authorizer;
use crate::definitions::{self, ServedKinds};
use crate::identity::UserInfo;
use crate::negotiate::{Accept, accepts_gzip};

use crate::reading::Pages;
use crate::request::{Query, RequestInfo, read_body};
use crate::{Body, Handler, NodeDialer, bootstrap, discovery, events, health, respond, services};

/// Requests worked on at a time: what Kubernetes allows by default, reading and writing together.
const MAX_INFLIGHT: usize = 600;
/// How long a request waits for its turn before it is sent away with 429.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// Latency buckets in seconds; requests take microseconds to seconds.
const LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// What an [`ApiServer`] is made from.
pub struct Config {
    /// Where objects live.
    pub store: Store,
    /// Signs service account tokens.
    pub service_account_key: Arc<ServiceAccountKey>,
    /// Earlier signing keys whose tokens are still believed.
    pub older_service_account_keys: Vec<Arc<ServiceAccountKey>>,
    /// Issuer of service account tokens, also their default audience.
    pub issuer: String,
    /// Addresses for Services.
    pub service_cidr: Ipv4Net,
    /// Ports for Services of type NodePort.
    pub node_ports: RangeInclusive<u16>,
    /// Where agents and pods reach this server.
    pub advertise: SocketAddr,
    /// CA certificates (PEM) that client certificates are checked against,
    /// published for servers that extend the API.
    pub client_ca_pem: String,
    /// Reaches kubelets and pods.
    pub nodes: Arc<dyn NodeDialer>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The default objects could not be written.
    #[error("writing the default object {object}: {reason}")]
    Bootstrap {
        /// The object.
        object: String,
        /// What went wrong.
        reason: String,
    },
}

/// The API server. See the crate's documentation.
pub struct ApiServer {
    pub(crate) store: Store,
    kinds: ServedKinds,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Authorizer,
    pub(crate) keys: Arc<Keys>,
    pub(crate) issuer: String,
    pub(crate) nodes: Arc<dyn NodeDialer>,
    pub(crate) service_cidr: Ipv4Net,
    pub(crate) node_ports: RangeInclusive<u16>,
    pub(crate) advertise: SocketAddr,
    pub(crate) client_ca_pem: String,
    pub(crate) pages: Pages,
    pub(crate) shutdown: Shutdown,
    pub(crate) started: AtomicBool,
    /// Held while an object is counted against a quota and committed.
    pub(crate) quota: tokio::sync::Mutex<()>,
    /// Requests that may be worked on at a time, long-running ones left out.
    slots: Semaphore,
    requests: CounterVec,
    latency: HistogramVec,
    inflight: GaugeVec,
}

/// A request for a resource, authenticated and authorized.
pub(crate) struct Call {
    pub user: UserInfo,
    pub info: RequestInfo,
    pub query: Query,
    pub method: Method,
    pub headers: HeaderMap,
    pub kind: Arc<Kind>,
    pub sub: Option<Subresource>,
    pub accept: Accept,
    pub warnings: Mutex<Vec<String>>,
}

impl Call {
    /// A call this server makes itself.
    pub fn internal(kind: &Arc<Kind>, verb: &'static str, namespace: &str, name: &str) -> Self {
        let info = RequestInfo {
            is_resource: true,
            verb,
            group: kind.group.to_string(),
            version: kind.version.to_string(),
            namespace: namespace.to_owned(),
            resource: kind.plural.to_string(),
            name: name.to_owned(),
            ..RequestInfo::default()
        };
        Self {
            user: UserInfo::component("system:apiserver"),
            info,
            query: Query::default(),
            method: Method::GET,
            headers: HeaderMap::new(),
            kind: Arc::clone(kind),
            sub: None,
            accept: Accept::default(),
            warnings: Mutex::default(),
        }
    }

    /// The subresource's name, often empty.
    pub fn sub_name(&self) -> &str {
        &self.info.subresource
    }

    /// Adds a `Warning` header.
    pub fn warn(&self, text: impl Into<String>) {
        let mut warnings = self.warnings.lock();
        if warnings.len() < 16 {
            warnings.push(text.into());
        }
    }

    /// Whether nothing may be stored.
    pub fn dry_run(&self) -> Result<bool, Status> {
        let mut any = false;
        for value in self.query.all("dryRun") {
            if value != "All" {
                return Err(Status::bad_request(format!(
                    "dryRun: Unsupported value: {value:?}: supported values: \"All\""
                )));
            }
            any = true;
        }
        Ok(any)
    }

    /// `resource.group`, as errors name it.
    pub fn resource(&self) -> String {
        self.kind.group_resource().into_owned()
    }
}

impl ApiServer {
    /// Writes the default objects and starts what runs beside requests.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Arc<Self>, StartError> {
        let keys = Arc::new(Keys::new(
            config.service_account_key,
            config.older_service_account_keys,
        ));
        let audiences = vec![config.issuer.clone(), "skiff".to_owned()];
        let registry = metrics::global();
        let server = Arc::new(Self {
            authenticator: Authenticator::new(
                config.store.clone(),
                Arc::clone(&keys),
                config.issuer.clone(),
                audiences,
                Arc::clone(&config.clock),
            ),
            authorizer: Authorizer::new(config.store.clone()),
            kinds: ServedKinds::new(config.store.clone()),
            keys,
            issuer: config.issuer,
            nodes: config.nodes,
            service_cidr: config.service_cidr,
            node_ports: config.node_ports,
            advertise: config.advertise,
            client_ca_pem: config.client_ca_pem,
            store: config.store,
            clock: config.clock,
            pages: Pages::default(),
            shutdown: shutdown.clone(),
            started: AtomicBool::new(false),
            quota: tokio::sync::Mutex::default(),
            slots: Semaphore::new(MAX_INFLIGHT),
            requests: registry.counter_vec(
                "apiserver_request_total",
                "Requests by verb, resource and status code.",
                &["verb", "resource", "code"],
            ),
            latency: registry.histogram_vec(
                "apiserver_request_duration_seconds",
                "Time to answer a request, long-running ones left out.",
                &["verb"],
                LATENCY_BUCKETS,
            ),
            inflight: registry.gauge_vec(
                "apiserver_current_inflight_requests",
                "Requests being answered.",
                &["request_kind"],
            ),
        });
        bootstrap::reconcile(&server).await?;
        services::publish_self(&server).await?;
        server.started.store(true, Ordering::Release);
        events::start(&server);
        definitions::start(&server);
        Ok(server)
    }

    /// Whether the default objects are written and requests can be answered.
    pub fn is_ready(&self) -> bool {
        self.started.load(Ordering::Acquire) && !self.shutdown.is_cancelled()
    }

    /// The row of a kind of the core group.
    pub(crate) fn core(&self, plural: &str) -> &Arc<Kind> {
        self.row("", "v1", plural)
    }

    /// The row of a built-in kind.
    pub(crate) fn row(&self, group: &str, version: &str, plural: &str) -> &Arc<Kind> {
        match Kinds::builtin().resource(group, version, plural) {
            Some(kind) => kind,
            // Only called with names of built-in rows; a wrong name is found by the first test that passes here.
            None => unreachable!("no such built-in kind: {plural}.{version}.{group}"),
        }
    }

    /// The row of the version a kind is stored in.
    /// Versions of a custom resource differ in name only, and each is judged by its own schema.
    pub(crate) fn stored_kind<'a>(&self, kind: &'a Arc<Kind>) -> &'a Arc<Kind> {
        if kind.is_storage_version() || kind.traits.custom {
            return kind;
        }
        Kinds::builtin()
            .resource(&kind.storage.0, &kind.storage.1, &kind.plural)
            .unwrap_or(kind)
    }

    /// Every kind served now.
    pub(crate) fn kinds(&self) -> Arc<Kinds> {
        self.kinds.load()
    }

    /// Answers one request. The future does not borrow the server.
    pub fn handle(self: &Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(Arc::clone(self).answer(request))
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let began = self.clock.monotonic();
        let gzip = accepts_gzip(request.headers());
        let errors = Accept::of_errors(request.headers());
        let (parts, body) = request.into_parts();
        let query = Query::parse(parts.uri.query());
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        let mutating = !matches!(info.verb, "get" | "list" | "watch" | "head");
        let inflight = self
            .inflight
            .with(&[if mutating { "mutating" } else { "readOnly" }]);
        inflight.add(1.0);
        let (verb, long) = (info.verb, is_long_running(&info, &query));
        let resource = self.metric_resource(&info);
        let work = async {
            let _slot = match long {
                true => None,
                false => match tokio::time::timeout(MAX_WAIT, self.slots.acquire()).await {
                    Ok(Ok(slot)) => Some(slot),
                    _ => {
                        let text = "Too many requests, please try again later.";
                        return Err(Status::too_many_requests(text, 1));
                    }
                },
            };
            Arc::clone(&self).dispatch(parts, body, info, query).await
        };
        let answer = std::panic::AssertUnwindSafe(work).catch_unwind().await;
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => respond::status(&status, errors),
            Err(_) => {
                tracing::error!(verb, resource, "a request ended in a panic");
                let text = "the server failed while it handled the request";
                respond::status(&Status::internal(text), errors)
            }
        };
        if gzip && !long {
            response = respond::gzip(response).await;
        }
        inflight.add(-1.0);
        self.requests
            .with(&[verb, &resource, response.status().as_str()])
            .inc();
        if !long {
            self.latency
                .with(&[verb])
                .observe((self.clock.monotonic() - began).as_secs_f64());
        }
        response
    }

    /// A label that takes only as many values as there are resources.
    fn metric_resource(&self, info: &RequestInfo) -> String {
        match self.kinds().resource(&info.group, &info.version, &info.resource) {
            Some(kind) if info.is_resource => match kind.subresource(&info.subresource) {
                Some(sub) => format!("{}/{}", kind.plural, sub.name),
                None => kind.plural.to_string(),
            },
            _ => String::new(),
        }
    }

    async fn dispatch(
        self: Arc<Self>,
        parts: Parts,
        body: Body,
        info: RequestInfo,
        query: Query,
    ) -> Result<Response<Body>, Status> {
        let mut user = self.authenticator.authenticate(&parts)?;
        if let Some(target) = impersonation::impersonate(&parts.headers, &user, &self.authorizer)? {
            user = target;
        }
        self.authorizer.require(&user, &info.attributes())?;
        if !info.is_resource {
            return self.non_resource(&parts, &info, &query);
        }
        if info.legacy {
            let mut status = Status::no_such_path();
            status.message = "the /watch/ and /proxy/ path prefixes are not served: use ?watch=true or the proxy subresource".into();
            return Err(status);
        }
        let kinds = self.kinds();
        let kind = kinds
            .resource(&info.group, &info.version, &info.resource)
            .ok_or_else(Status::no_such_path)?;
        let needs_namespace = !info.name.is_empty() || info.verb == "create";
        let named_by_selector = matches!(info.verb, "list" | "watch" | "deletecollection");
        if kind.namespaced {
            if info.namespace.is_empty() && needs_namespace && !named_by_selector {
                return Err(Status::no_such_path());
            }
        } else if !info.namespace.is_empty() && kind.plural != "namespaces" {
            return Err(Status::no_such_path());
        }
        let sub = match info.subresource.as_str() {
            "" => None,
            name => Some(kind.subresource(name).ok_or_else(Status::no_such_path)?.clone()),
        };
        let serves = match &sub {
            Some(sub) => sub.verbs.iter().any(|v| v == info.verb),
            None => kind.serves(info.verb),
        };
        if !serves {
            return Err(method_not_allowed());
        }
        let has_protobuf = protobuf::has_form(&kind.api_version(), &kind.kind);
        let accept = Accept::parse(&parts.headers, query.get("includeObject"), has_protobuf)?;
        let mut call = Call {
            user,
            info,
            query,
            method: parts.method.clone(),
            headers: parts.headers.clone(),
            kind: Arc::clone(kind),
            sub,
            accept,
            warnings: Mutex::default(),
        };
        if !kind.namespaced {
            call.info.namespace.clear();
        }
        if call.sub.is_some() || kind.traits.review {
            return self.subresource(call, parts, body).await;
        }
        match call.info.verb {
            "get" => self.get(&call),
            "list" => self.list(&call),
            "watch" => self.watch(&call),
            _ => {
                let body = read_body(body).await?;
                self.write(&call, body).await
            }
        }
    }

    /// Create, update, patch, delete and deletecollection.
    pub(crate) async fn write(&self, call: &Call, body: Bytes) -> Result<Response<Body>, Status> {
        match call.info.verb {
            "create" => self.create(call, body).await,
            "update" => self.update(call, body).await,
            "patch" => self.patch(call, body).await,
            "delete" => self.delete(call, body).await,
            "deletecollection" => self.delete_collection(call, body).await,
            _ => Err(method_not_allowed()),
        }
    }

    fn non_resource(
        self: &Arc<Self>,
        parts: &Parts,
        info: &RequestInfo,
        query: &Query,
    ) -> Result<Response<Body>, Status> {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return Err(method_not_allowed());
        }
        let path = info.path.trim_end_matches('/');
        if let Some(answer) = health::answer(self, path, query) {
            return Ok(answer);
        }
        let accept = match path {
            p if p.starts_with("/openapi/v2") => Accept::default(),
            _ => Accept::parse(&parts.headers, None, false)?,
        };
        discovery::answer(self, path, parts, accept)?.ok_or_else(Status::no_such_path)
    }
}

impl Handler for ApiServer {
    fn handle(self: Arc<Self>, request: Request<Body>) -> BoxFuture<'static, Response<Body>> {
        Box::pin(self.answer(request))
    }
}

/// The 405 clients know.
pub(crate) fn method_not_allowed() -> Status {
    let mut status = Status::method_not_supported("", "");
    status.message = "the server does not allow this method on the requested resource".into();
    status.details = Some(Default::default());
    status
}

fn is_long_running(info: &RequestInfo, query: &Query) -> bool {
    info.verb == "watch"
        || matches!(
            info.subresource.as_str(),
            "exec" | "attach" | "portforward" | "proxy"
        )
        || (info.subresource == "log" && query.flag("follow"))
}
