//! Streams into nodes, against a kubelet that is played here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::Method;
use serde_json::json;
use skiff_apiserver::{BoxIo, NodeDialer};
use skiff_store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{PODS, Server, pod};
use crate::kubectl::Served;

/// Answers what it was asked in plain HTTP/1.1; upgrades become an echo.
struct Echo;

impl NodeDialer for Echo {
    fn dial(&self, node: &str, target: &str) -> BoxFuture<'static, io::Result<BoxIo>> {
        let place = format!("{node} {target}");
        Box::pin(async move {
            if place.starts_with("lost") {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "node lost is not connected",
                ));
            }
            let (near, mut far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match far.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let line = head.lines().next().unwrap_or_default().to_owned();
                if head.to_lowercase().contains("upgrade: spdy/3.1") {
                    let _ = far.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n").await;
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    return;
                }
                let body = format!("{place}|{line}|{}", head.to_lowercase().contains("authorization"));
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = far.write_all(answer.as_bytes()).await;
                let _ = far.shutdown().await;
            });
            Ok(Box::new(near) as BoxIo)
        })
    }
}

async fn server() -> Server {
    let server = Server::with(Store::memory(), Arc::new(Echo), "192.0.2.1:6443".parse().unwrap()).await;
    for (name, node) in [("a", "n1"), ("b", "lost")] {
        let mut object = pod(name);
        object["spec"]["nodeName"] = json!(node);
        object["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        server.post(PODS, object).await.expect(201);
        server
            .merge(
                &format!("{PODS}/{name}/status"),
                json!({"status": {"phase": "Running", "podIP": "10.42.0.5"}}),
            )
            .await
            .expect(200);
    }
    server
}

#[tokio::test]
async fn requests_reach_the_right_place_on_the_right_node() {
    let server = server().await;
    let log = server
        .get(&format!("{PODS}/a/log?tailLines=5&container=main"))
        .await;
    assert_eq!(
        log.text,
        "n1 kubelet|GET /containerLogs/default/a/main?tailLines=5 HTTP/1.1|false"
    );
    let bad = server.get(&format!("{PODS}/a/log?container=no")).await.error(400);
    assert_eq!(bad, "container no is not valid for pod a");
    let gone = server.get(&format!("{PODS}/b/log")).await.error(500);
    assert!(gone.contains("node lost is not connected"), "{gone}");
    let proxied = server.get(&format!("{PODS}/a:web/proxy/x/y?z=1")).await;
    assert_eq!(proxied.text, "n1 10.42.0.5:8080|GET /x/y?z=1 HTTP/1.1|false");
    let redirected = server.get(&format!("{PODS}/a/proxy")).await;
    assert_eq!(
        (
            redirected.code.as_u16(),
            redirected.headers["location"].to_str().unwrap()
        ),
        (301, "/api/v1/namespaces/default/pods/a/proxy/")
    );

    server
        .post(
            "/api/v1/namespaces/default/services",
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
        )
        .await
        .expect(201);
    let path = "/api/v1/namespaces/default/services/s:http/proxy/";
    assert!(
        server
            .get(path)
            .await
            .error(503)
            .contains("no endpoints available")
    );
    server.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", json!({"metadata": {"name": "s-1",
        "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4", "ports": [{"name": "http", "port": 9090, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.42.0.7"], "nodeName": "n1", "conditions": {"ready": true}}]})).await.expect(201);
    assert_eq!(
        server.get(path).await.text,
        "n1 10.42.0.7:9090|GET / HTTP/1.1|false"
    );
    server
        .post("/api/v1/nodes", json!({"metadata": {"name": "n1"}}))
        .await
        .expect(201);
    assert_eq!(
        server.get("/api/v1/nodes/n1/proxy/stats/summary").await.text,
        "n1 kubelet|GET /stats/summary HTTP/1.1|false"
    );
    let plain = server
        .call(
            Method::POST,
            &format!("{PODS}/a/exec?command=ls"),
            "application/json",
            "",
        )
        .await
        .error(400);
    assert_eq!(plain, "Upgrade request required");
}

#[tokio::test]
async fn upgrades_become_byte_streams() {
    let served = Served::start(server().await).await;
    let mut stream = served.connect().await;
    let request = format!(
        "POST {PODS}/a/exec?command=cat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            tokio::time::timeout(Duration::from_secs(5), stream.read_u8())
                .await
                .unwrap()
                .unwrap(),
        );
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("upgrade: spdy/3.1"),
        "{head}"
    );
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut echo))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&echo, b"ping");
}
