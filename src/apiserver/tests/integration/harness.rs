//! A server on a store in memory, and ways to talk to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use skiff_apiserver::{ApiServer, Config, NoNodes, NodeDialer, UserInfo, full_body};
use skiff_base::clock;
use skiff_base::lifecycle::Shutdown;
use skiff_pki::ServiceAccountKey;
use skiff_store::Store;

pub struct Server {
    pub api: Arc<ApiServer>,
    pub store: Store,
    pub shutdown: Shutdown,
}

pub struct Answer {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
    pub text: String,
    pub bytes: bytes::Bytes,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(
            Store::memory(),
            Arc::new(NoNodes),
            "192.0.2.1:6443".parse().unwrap(),
        )
        .await
    }

    pub async fn with(store: Store, nodes: Arc<dyn NodeDialer>, advertise: SocketAddr) -> Self {
        let shutdown = Shutdown::new();
        let config = Config {
            store: store.clone(),
            service_account_key: Arc::new(ServiceAccountKey::generate().unwrap()),
            older_service_account_keys: Vec::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            node_ports: 30000..=32767,
            advertise,
            client_ca_pem: String::new(),
            nodes,
            clock: clock::system(),
        };
        let api = ApiServer::start(config, shutdown.clone()).await.unwrap();
        let server = Self { api, store, shutdown };
        // What the service account controller does for every namespace.
        server
            .post(
                "/api/v1/namespaces/default/serviceaccounts",
                json!({"metadata": {"name": "default"}}),
            )
            .await;
        server
    }

    /// A kube client in process, as a component that may do anything.
    pub fn client(&self) -> kube::Client {
        let api = Arc::clone(&self.api);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let mut request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            request.extensions_mut().insert(UserInfo::component("test"));
            let answer = api.handle(request);
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        kube::Client::new(service, "default")
    }

    /// A request by a component that may do anything.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<String>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type);
        let mut request = request.body(full_body(body.into())).unwrap();
        request.extensions_mut().insert(UserInfo::component("test"));
        self.send(request).await
    }

    pub async fn send(&self, request: Request<skiff_apiserver::Body>) -> Answer {
        let response = self.api.handle(request).await;
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(Duration::from_secs(10), body.collect())
            .await
            .unwrap()
            .unwrap()
            .to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer {
            code: parts.status,
            headers: parts.headers,
            body,
            text,
            bytes,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "application/json", "").await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call(Method::POST, path, "application/json", body.to_string())
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PUT, path, "application/json", body.to_string())
            .await
    }

    pub async fn merge(&self, path: &str, body: Value) -> Answer {
        self.call(
            Method::PATCH,
            path,
            "application/merge-patch+json",
            body.to_string(),
        )
        .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, "application/json", "").await
    }

    /// A request as somebody else.
    pub async fn call_as(&self, user: UserInfo, method: Method, path: &str, body: Value) -> Answer {
        let content_type = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type);
        let mut request = request.body(full_body(body)).unwrap();
        request.extensions_mut().insert(user);
        self.send(request).await
    }

    /// A request with a bearer token.
    pub async fn call_with_token(&self, token: &str, method: Method, path: &str, body: Value) -> Answer {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {token}"));
        self.send(request.body(full_body(body)).unwrap()).await
    }
}

impl Answer {
    /// The body, after checking the code.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code.as_u16(), code, "{}", self.text);
        self.body
    }

    /// The message of an error, after checking its code and that it is a `Status`.
    #[track_caller]
    pub fn error(self, code: u16) -> String {
        let body = self.expect(code);
        assert_eq!(
            (body["kind"].as_str(), body["status"].as_str()),
            (Some("Status"), Some("Failure")),
            "{body}"
        );
        assert_eq!(body["code"], code, "{body}");
        body["message"].as_str().unwrap_or_default().to_owned()
    }
}

pub fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]}})
}

pub fn deployment(name: &str, replicas: u32) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "main", "image": "nginx"}]}}}})
}

pub const PODS: &str = "/api/v1/namespaces/default/pods";
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
