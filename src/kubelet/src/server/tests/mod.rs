//! The API from the client's end: requests on an in-memory byte stream, against the fake runtime.

mod http_api;
mod spdy;
mod websocket;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_base::clock::ManualClock;
use skiff_cri::fake::FakeRuntime;
use skiff_cri::{ContainerConfig, ExecOutput, ImageConfig, Runtime, RuntimeError, SandboxConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::{Pods, Server};
use crate::kubelet::PodEntry;
use crate::stats::Rates;

/// A node with one pod, `default/web`, with one running container, `app`.
pub struct Node {
    pub fake: Arc<FakeRuntime>,
    runtime: Arc<dyn Runtime>,
    entry: Mutex<PodEntry>,
    pub logs: tempfile::TempDir,
}

#[async_trait]
impl Pods for Node {
    fn pod(&self, namespace: &str, name: &str) -> Option<PodEntry> {
        ((namespace, name) == ("default", "web")).then(|| self.entry.lock().clone())
    }

    fn pods(&self) -> Vec<PodEntry> {
        vec![self.entry.lock().clone()]
    }

    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    async fn summary(&self, _: &Rates) -> Value {
        json!({"node": {"nodeName": "n1"}})
    }
}

impl Node {
    pub async fn new() -> Arc<Node> {
        let fake = FakeRuntime::new(ManualClock::new(SystemTime::UNIX_EPOCH));
        fake.add_image("app", ImageConfig::default());
        let runtime: Arc<dyn Runtime> = fake.clone();
        let logs = tempfile::tempdir().unwrap();
        // On the node's own network, so that forwarded ports are ports of this machine's loopback.
        let sandbox = SandboxConfig {
            host_network: true,
            ..SandboxConfig::default()
        };
        runtime.run_sandbox(sandbox).await.unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u-1"},
            "spec": {"containers": [{"name": "app"}, {"name": "late"}, {"name": "stuck"}]},
            "status": {"containerStatuses": [
                {"name": "stuck", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ImagePullBackOff"}}},
            ]},
        }))
        .unwrap();
        let entry = PodEntry {
            pod: Arc::new(pod),
            sandboxes: Vec::new(),
            containers: Vec::new(),
            ips: Vec::new(),
        };
        let node = Arc::new(Node {
            fake,
            runtime,
            entry: Mutex::new(entry),
            logs,
        });
        node.start("app", 0).await;
        node.fake.on_exec(|_, command| match command[0].as_str() {
            "fail" => Ok(ExecOutput {
                exit_code: 3,
                stdout: b"some".to_vec(),
                stderr: b"bad".to_vec(),
            }),
            "missing" => Err(RuntimeError::StartFailed("no such file".into())),
            "big" => Ok(ExecOutput {
                exit_code: 0,
                stdout: vec![b'x'; 1 << 20],
                stderr: Vec::new(),
            }),
            _ => Ok(ExecOutput {
                exit_code: 0,
                stdout: b"hello\n".to_vec(),
                stderr: b"err\n".to_vec(),
            }),
        });
        node
    }

    /// Starts an attempt of a container.
    pub async fn start(&self, name: &str, attempt: u32) -> String {
        let sandbox = self.runtime.sandboxes().await.unwrap()[0].id.clone();
        let log_path = Some(self.logs.path().join(name).join(format!("{attempt}.log")));
        let (labels, annotations) = (BTreeMap::new(), BTreeMap::new());
        let config = ContainerConfig {
            name: name.into(),
            attempt,
            image: "app".into(),
            log_path,
            labels,
            annotations,
            ..ContainerConfig::default()
        };
        let id = self.runtime.create_container(&sandbox, config).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        self.refresh().await;
        id
    }

    /// Takes over what the runtime says.
    pub async fn refresh(&self) {
        let mut containers = self.runtime.containers().await.unwrap();
        containers.sort_by_key(|container| std::cmp::Reverse(container.attempt));
        let sandboxes = self.runtime.sandboxes().await.unwrap();
        let mut entry = self.entry.lock();
        entry.containers = containers;
        entry.sandboxes = sandboxes;
    }

    /// The client's end of a connection to the API.
    pub fn connect(self: &Arc<Node>) -> DuplexStream {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let node = self.clone();
        tokio::spawn(async move { Server::default().serve(node, far).await });
        near
    }

    /// Sends a request without a body and reads the head of the answer.
    pub async fn ask(self: &Arc<Node>, method: &str, path: &str, headers: &str) -> (DuplexStream, String) {
        let mut io = self.connect();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: kubelet\r\n{headers}\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.expect("an answer"));
        }
        (io, String::from_utf8(head).unwrap())
    }

    /// Asks and reads the whole answer: status and body.
    pub async fn get(self: &Arc<Node>, path: &str) -> (u16, String) {
        let (mut io, head) = self.ask("GET", path, "Connection: close\r\n").await;
        let mut body = Vec::new();
        io.read_to_end(&mut body).await.unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.contains("transfer-encoding: chunked") {
            unchunk(&body)
        } else {
            body
        };
        (status, String::from_utf8(body).unwrap())
    }
}

/// Takes chunked encoding apart.
pub fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        out.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 2 + size + 2..];
    }
    out
}
