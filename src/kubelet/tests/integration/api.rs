//! A small API server: objects by path, merge patches, conflicts, graceful deletion, list and watch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How long a test waits for something to become true.
pub const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Change {
    revision: u64,
    kind: &'static str,
    path: String,
    object: Value,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<String, Value>,
    log: Vec<Change>,
    writes: Vec<String>,
}

/// Body of an answer: a text, or lines without end.
type Answer = UnsyncBoxBody<Bytes, std::io::Error>;

/// The server. Cheap to clone.
#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

impl FakeApi {
    pub fn new() -> FakeApi {
        FakeApi {
            state: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Stores an object at a path, as a controller would.
    pub fn put(&self, path: &str, mut object: Value) -> Value {
        let mut state = self.state.lock();
        let old = state.objects.get(path).cloned();
        let metadata = &mut object["metadata"];
        if metadata["uid"].is_null() {
            let old_uid = old.as_ref().map(|old| old["metadata"]["uid"].clone());
            metadata["uid"] = old_uid.unwrap_or_else(|| json!(format!("uid-{}", state.revision + 1)));
        }
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.store(&mut state, kind, path, object)
    }

    fn store(&self, state: &mut State, kind: &'static str, path: &str, mut object: Value) -> Value {
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        if kind == "DELETED" {
            state.objects.remove(path);
        } else {
            state.objects.insert(path.to_owned(), object.clone());
        }
        let change = Change {
            revision: state.revision,
            kind,
            path: path.to_owned(),
            object: object.clone(),
        };
        state.log.push(change);
        self.changed.send_replace(state.revision);
        object
    }

    /// Removes an object at once.
    pub fn remove(&self, path: &str) {
        let mut state = self.state.lock();
        if let Some(object) = state.objects.get(path).cloned() {
            self.store(&mut state, "DELETED", path, object);
        }
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// `METHOD path` of every write by the kubelet.
    pub fn writes(&self) -> Vec<String> {
        self.state.lock().writes.clone()
    }

    /// `reason: message` of every event about an object of that name, in the order of recording.
    pub fn events(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let mut seen = Vec::new();
        for change in state.log.iter().filter(|change| change.path.contains("/events/")) {
            if change.object["involvedObject"]["name"] == name {
                let text = |key: &str| change.object[key].as_str().unwrap_or_default().to_owned();
                let line = format!("{}: {}", text("reason"), text("message"));
                if !seen.contains(&line) {
                    seen.push(line);
                }
            }
        }
        seen
    }

    /// Waits until `good` of an object (null when it is not there).
    pub async fn wait(&self, path: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.mark_unchanged();
                let object = self.get(path).unwrap_or(Value::Null);
                if good(&object) {
                    return object;
                }
                changed.changed().await.expect("the server lives");
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(object) => object,
            Err(_) => panic!(
                "{what}: not so after {PATIENCE:?}: {:#}",
                self.get(path).unwrap_or(Value::Null)
            ),
        }
    }

    /// Waits for an event that begins like this.
    pub async fn wait_event(&self, name: &str, begins: &str) -> String {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.mark_unchanged();
                if let Some(line) = self
                    .events(name)
                    .into_iter()
                    .find(|line| line.starts_with(begins))
                {
                    return line;
                }
                changed.changed().await.expect("the server lives");
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(line) => line,
            Err(_) => panic!("no event {begins:?}, only {:#?}", self.events(name)),
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query: BTreeMap<String, String> = head
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| {
                (
                    key.to_owned(),
                    percent_encoding::percent_decode_str(value)
                        .decode_utf8_lossy()
                        .into_owned(),
                )
            })
            .collect();
        let bytes = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let sent: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if head.method != Method::GET {
            self.state.lock().writes.push(format!("{} {path}", head.method));
        }
        if path.ends_with("/token") {
            let token = json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": sent["spec"],
                "status": {"token": format!("token-for-{}", sent["spec"]["boundObjectRef"]["name"].as_str().unwrap_or_default()),
                    "expirationTimestamp": "2099-01-01T00:00:00Z"}});
            return reply(StatusCode::CREATED, &token);
        }
        let target = path.strip_suffix("/status").unwrap_or(&path).to_owned();
        match head.method {
            Method::GET if is_collection(&target) => {
                if query.contains_key("watch") {
                    self.watch(&target, &query)
                } else {
                    self.list(&target, &query)
                }
            }
            Method::GET => match self.get(&target) {
                Some(object) => reply(StatusCode::OK, &object),
                None => missing(&target),
            },
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().map(str::to_owned);
                let name = name.unwrap_or_else(|| format!("generated-{}", self.state.lock().revision));
                let path = format!("{target}/{name}");
                if self.get(&path).is_some() {
                    return status(StatusCode::CONFLICT, "AlreadyExists");
                }
                let mut object = sent;
                object["metadata"]["name"] = json!(name);
                reply(StatusCode::CREATED, &self.put(&path, object))
            }
            Method::PUT => {
                let Some(old) = self.get(&target) else {
                    return missing(&target);
                };
                if conflicts(&old, &sent) {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                reply(StatusCode::OK, &self.put(&target, sent))
            }
            Method::PATCH => {
                let Some(mut object) = self.get(&target) else {
                    return missing(&target);
                };
                if conflicts(&object, &sent) {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                merge(&mut object, &sent);
                reply(StatusCode::OK, &self.put(&target, object))
            }
            Method::DELETE => self.delete(&target, &sent),
            _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    /// Deletes as the API server does: gracefully first, for good with a grace of zero.
    pub fn delete(&self, path: &str, options: &Value) -> Response<Answer> {
        let Some(mut object) = self.get(path) else {
            return missing(path);
        };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return status(StatusCode::CONFLICT, "Conflict");
        }
        let grace = options["gracePeriodSeconds"].as_i64().unwrap_or(30);
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        let mut state = self.state.lock();
        let kind = if grace == 0 { "DELETED" } else { "MODIFIED" };
        reply(StatusCode::OK, &self.store(&mut state, kind, path, object))
    }

    fn list(&self, collection: &str, query: &BTreeMap<String, String>) -> Response<Answer> {
        let state = self.state.lock();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(path, object)| belongs(path, collection) && selected(object, query))
            .map(|(_, object)| object)
            .collect();
        let body = json!({"kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
        reply(StatusCode::OK, &body)
    }

    fn watch(&self, collection: &str, query: &BTreeMap<String, String>) -> Response<Answer> {
        let from: u64 = query
            .get("resourceVersion")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let (api, collection, query) = (self.clone(), collection.to_owned(), query.clone());
        let stream = futures::stream::unfold((from, self.changed.subscribe()), move |(seen, mut changed)| {
            let (api, collection, query) = (api.clone(), collection.clone(), query.clone());
            async move {
                loop {
                    changed.mark_unchanged();
                    let next = {
                        let state = api.state.lock();
                        state
                            .log
                            .iter()
                            .find(|change| {
                                change.revision > seen
                                    && belongs(&change.path, &collection)
                                    && selected(&change.object, &query)
                            })
                            .cloned()
                    };
                    if let Some(change) = next {
                        let mut line = json!({"type": change.kind, "object": change.object}).to_string();
                        line.push('\n');
                        return Some((
                            Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(line))),
                            (change.revision, changed),
                        ));
                    }
                    if changed.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        Response::new(StreamBody::new(stream.boxed()).boxed_unsync())
    }
}

/// Whether a path names a collection: `/api/v1/[namespaces/x/]plural`, or the same below `/apis/group/version`.
fn is_collection(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts.first() == Some(&"api") {
        &parts[2..]
    } else {
        &parts[3..]
    };
    rest.len() % 2 == 1
}

/// Whether an object's path is in a collection; one without namespace holds those of all namespaces.
fn belongs(path: &str, collection: &str) -> bool {
    let Some((parent, _)) = path.rsplit_once('/') else {
        return false;
    };
    if parent == collection {
        return true;
    }
    let (Some((base, plural)), Some((head, tail))) = (collection.rsplit_once('/'), parent.rsplit_once('/'))
    else {
        return false;
    };
    tail == plural
        && head
            .strip_prefix(base)
            .is_some_and(|rest| rest.starts_with("/namespaces/"))
        && !base.contains("/namespaces/")
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let Some(selector) = query.get("fieldSelector") else {
        return true;
    };
    selector.split(',').all(|term| {
        let (path, value) = term.split_once('=').unwrap_or((term, ""));
        object
            .pointer(&format!("/{}", path.replace('.', "/")))
            .and_then(Value::as_str)
            == Some(value)
    })
}

fn conflicts(old: &Value, new: &Value) -> bool {
    let differs = |key: &str| {
        let wanted = &new["metadata"][key];
        !wanted.is_null() && *wanted != old["metadata"][key]
    };
    differs("resourceVersion") || differs("uid")
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn reply(code: StatusCode, body: &Value) -> Response<Answer> {
    let mut response = Response::new(
        Full::new(Bytes::from(body.to_string()))
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = code;
    response
}

fn status(code: StatusCode, reason: &str) -> Response<Answer> {
    reply(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16()}),
    )
}

fn missing(path: &str) -> Response<Answer> {
    let mut answer = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": "NotFound", "code": 404});
    answer["message"] = json!(format!("{path} not found"));
    reply(StatusCode::NOT_FOUND, &answer)
}
