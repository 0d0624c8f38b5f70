//! Watches.

use std::time::Duration;

use futures::StreamExt;
use http::Request;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use skiff_apiserver::{UserInfo, full_body};

use crate::harness::{PODS, Server, pod};

/// Lines of a watch as they come.
struct Lines {
    body: skiff_apiserver::Body,
    buffer: Vec<u8>,
}

impl Lines {
    async fn open(server: &Server, path: &str) -> Self {
        let mut request = Request::builder().uri(path).body(full_body("")).unwrap();
        request.extensions_mut().insert(UserInfo::component("test"));
        let response = server.api.handle(request).await;
        assert_eq!(response.status(), 200);
        Self {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }

    /// The next event: type and name; none at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(5), self.body.frame())
                .await
                .expect("an event in time");
            match frame {
                Some(frame) => self
                    .buffer
                    .extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => return None,
            }
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let event = self.next().await.expect("another event");
        assert_eq!(
            (
                event["type"].as_str(),
                event["object"]["metadata"]["name"].as_str()
            ),
            (Some(kind), Some(name)),
            "{event}"
        );
        event["object"].clone()
    }
}

#[tokio::test]
async fn changes_come_in_order_and_deletions_carry_their_revision() {
    let server = Server::start().await;
    server.post(PODS, pod("a")).await.expect(201);
    let mut watch = Lines::open(&server, &format!("{PODS}?watch=true")).await;
    let seen = watch.expect("ADDED", "a").await;
    server.post(PODS, pod("b")).await.expect(201);
    server
        .merge(&format!("{PODS}/a"), json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .expect(200);
    server.delete(&format!("{PODS}/b")).await.expect(200);
    let added = watch.expect("ADDED", "b").await;
    let modified = watch.expect("MODIFIED", "a").await;
    let deleted = watch.expect("DELETED", "b").await;
    let revision = |o: &Value| {
        o["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let all = [&seen, &added, &modified, &deleted].map(revision);
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");

    let from = revision(&added);
    let mut resumed = Lines::open(&server, &format!("{PODS}?watch=true&resourceVersion={from}")).await;
    resumed.expect("MODIFIED", "a").await;
    resumed.expect("DELETED", "b").await;
}

#[tokio::test]
async fn objects_come_into_and_leave_a_selection() {
    let server = Server::start().await;
    server.post(PODS, pod("a")).await.expect(201);
    let mut watch = Lines::open(
        &server,
        &format!("{PODS}?watch=true&resourceVersion=0&labelSelector=stage%3Dlive"),
    )
    .await;
    let path = format!("{PODS}/a");
    server
        .merge(&path, json!({"metadata": {"labels": {"stage": "live"}}}))
        .await
        .expect(200);
    watch.expect("ADDED", "a").await;
    server
        .merge(&path, json!({"metadata": {"labels": {"stage": "old"}}}))
        .await
        .expect(200);
    let left = watch.expect("DELETED", "a").await;
    assert_eq!(
        left["metadata"]["labels"]["stage"], "live",
        "the last selected state"
    );

    let mut single = Lines::open(
        &server,
        &format!("{PODS}?watch=true&fieldSelector=metadata.name%3Dab"),
    )
    .await;
    server
        .merge(&path, json!({"metadata": {"labels": {"stage": "x"}}}))
        .await
        .expect(200);
    server.post(PODS, pod("abc")).await.expect(201);
    server.post(PODS, pod("ab")).await.expect(201);
    single.expect("ADDED", "ab").await;
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    for n in 0..3 {
        server.post(PODS, pod(&format!("p{n}"))).await.expect(201);
    }
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Lines::open(&server, &format!("{PODS}?{query}")).await;
    for n in 0..3 {
        watch.expect("ADDED", &format!("p{n}")).await;
    }
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    server
        .get(&format!("{PODS}?watch=true&sendInitialEvents=true"))
        .await
        .error(422);
}

#[tokio::test]
async fn a_watch_ends_when_asked_and_tells_how_far_it_came() {
    let server = Server::start().await;
    let mut watch = Lines::open(
        &server,
        &format!("{PODS}?watch=true&resourceVersion=1&timeoutSeconds=1&allowWatchBookmarks=true"),
    )
    .await;
    server
        .post(
            "/api/v1/namespaces/default/configmaps",
            json!({"metadata": {"name": "c"}}),
        )
        .await
        .expect(201);
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["kind"], "Pod");
    assert!(watch.next().await.is_none());
    let mut open = Lines::open(&server, &format!("{PODS}?watch=true")).await;
    server.shutdown.cancel();
    assert!(open.next().await.is_none(), "a stopping server ends its watches");
}

#[tokio::test]
async fn a_lost_place_is_an_error_event() {
    let store = skiff_store::Store::memory_with(skiff_store::Options {
        history_events: 8,
        ..Default::default()
    });
    let server = Server::with(
        store,
        std::sync::Arc::new(skiff_apiserver::NoNodes),
        "192.0.2.1:6443".parse().unwrap(),
    )
    .await;
    for n in 0..20 {
        server
            .post(
                "/api/v1/namespaces/default/configmaps",
                json!({"metadata": {"name": format!("c{n}")}}),
            )
            .await
            .expect(201);
    }
    let mut watch = Lines::open(&server, "/api/v1/configmaps?watch=true&resourceVersion=2").await;
    let error = watch.next().await.unwrap();
    assert_eq!(
        (
            error["type"].as_str(),
            &error["object"]["code"],
            error["object"]["reason"].as_str()
        ),
        (Some("ERROR"), &json!(410), Some("Expired"))
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn kube_rs_follows_with_list_and_with_streaming_list() {
    let server = Server::start().await;
    server.post(PODS, pod("a")).await.expect(201);
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let pods: Api<Pod> = Api::default_namespaced(server.client());
        let mut stream = watcher(pods, config).default_backoff().boxed();
        let mut wait = async |want: fn(&watcher::Event<Pod>) -> bool| {
            tokio::time::timeout(Duration::from_secs(5), async {
                loop {
                    if want(&stream.next().await.unwrap().unwrap()) {
                        return;
                    }
                }
            })
            .await
            .unwrap();
        };
        wait(|e| matches!(e, watcher::Event::InitDone)).await;
        server.post(PODS, pod("b")).await.expect(201);
        wait(|e| matches!(e, watcher::Event::Apply(p) if p.metadata.name.as_deref() == Some("b"))).await;
        server.delete(&format!("{PODS}/b")).await.expect(200);
        wait(|e| matches!(e, watcher::Event::Delete(p) if p.metadata.name.as_deref() == Some("b"))).await;
    }
}
