//! Exec, attach and port-forward over SPDY, with a small client of our own.

use std::collections::HashMap;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf};
use tokio::sync::mpsc;

use super::*;
use crate::server::spdy::{Encoder, Frame, Reader, reset};

pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
     X-Stream-Protocol-Version: v4.channel.k8s.io\r\nX-Stream-Protocol-Version: channel.k8s.io\r\n";
/// Of no more interest.
const CANCEL: u32 = 5;
pub const FORWARD: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";

pub struct Client<IO> {
    reader: Reader<ReadHalf<IO>>,
    /// Writes on a task of its own: a client that reads only when it has written everything would block for ever on
    /// its own echo.
    writer: mpsc::UnboundedSender<BytesMut>,
    encoder: Encoder,
    next: u32,
    pub data: HashMap<u32, Vec<u8>>,
    pub ended: Vec<u32>,
    pub replied: Vec<u32>,
    pub reset: Vec<(u32, u32)>,
    pub windows: u32,
    pub pongs: Vec<u32>,
    pub goaway: Option<u32>,
}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static> Client<IO> {
    pub fn new(io: IO) -> Client<IO> {
        let (reader, mut io) = tokio::io::split(io);
        let (writer, mut queued) = mpsc::unbounded_channel::<BytesMut>();
        tokio::spawn(async move {
            while let Some(bytes) = queued.recv().await {
                if io.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        Client {
            reader: Reader::new(reader),
            writer,
            encoder: Encoder::new(),
            next: 1,
            data: HashMap::new(),
            ended: Vec::new(),
            replied: Vec::new(),
            reset: Vec::new(),
            windows: 0,
            pongs: Vec::new(),
            goaway: None,
        }
    }

    pub async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        self.writer.send(bytes).unwrap();
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let headers = headers
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let syn = Frame::SynStream {
            id,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers,
        };
        self.send(syn).await;
        id
    }

    /// Opens a stream and waits for the answer, as Go clients do.
    pub async fn open_and_wait(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.open(headers).await;
        self.until(|client| client.replied.contains(&id)).await;
        id
    }

    pub async fn write(&mut self, id: u32, bytes: &[u8], fin: bool) {
        self.send(Frame::Data {
            id,
            fin,
            bytes: bytes.to_vec().into(),
        })
        .await;
    }

    /// Reads one frame; false at the end.
    pub async fn step(&mut self) -> bool {
        match self.reader.next().await.unwrap() {
            None => return false,
            Some(Frame::SynReply { id, .. }) => self.replied.push(id),
            Some(Frame::RstStream { id, status }) => self.reset.push((id, status)),
            Some(Frame::WindowUpdate { id: 0, delta }) => self.windows += delta,
            Some(Frame::Ping(number)) => self.pongs.push(number),
            Some(Frame::GoAway { status, .. }) => self.goaway = Some(status),
            Some(Frame::Data { id, fin, bytes }) => {
                self.data.entry(id).or_default().extend_from_slice(&bytes);
                if fin {
                    self.ended.push(id);
                }
            }
            Some(_) => {}
        }
        true
    }

    pub async fn until(&mut self, done: impl Fn(&Client<IO>) -> bool) {
        while !done(self) {
            assert!(self.step().await, "the connection ended");
        }
    }

    pub async fn ended(&mut self, id: u32) -> String {
        self.until(|client| client.ended.contains(&id)).await;
        String::from_utf8(self.data.get(&id).cloned().unwrap_or_default()).unwrap()
    }
}

async fn exec(node: &Arc<Node>, query: &str, streams: &[&str]) -> (Client<DuplexStream>, Vec<u32>) {
    let (io, head) = node
        .ask("POST", &format!("/exec/default/web/app?{query}"), UPGRADE)
        .await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{head}"
    );
    let mut client = Client::new(io);
    let mut ids = Vec::new();
    for kind in streams {
        ids.push(client.open_and_wait(&[("streamtype", kind)]).await);
    }
    (client, ids)
}

#[tokio::test]
async fn exec_gives_output_then_status() {
    let node = Node::new().await;
    let (mut client, ids) = exec(
        &node,
        "command=ls&stdout=true&stderr=true",
        &["error", "stdout", "stderr"],
    )
    .await;
    let status = client.ended(ids[0]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&status).unwrap()["status"],
        "Success"
    );
    assert_eq!(
        (client.ended(ids[1]).await, client.ended(ids[2]).await),
        ("hello\n".into(), "err\n".into())
    );
    assert_eq!(node.fake.calls().last().unwrap(), "exec container-2 ls");
}

#[tokio::test]
async fn failures_carry_the_exit_code_or_the_reason() {
    let node = Node::new().await;
    let (mut client, ids) = exec(&node, "command=fail&command=x&stdout=1", &["error", "stdout"]).await;
    let status: Value = serde_json::from_str(&client.ended(ids[0]).await).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(
        status["details"]["causes"],
        json!([{"reason": "ExitCode", "message": "3"}])
    );
    assert_eq!(client.ended(ids[1]).await, "some");
    let (mut client, ids) = exec(&node, "command=missing&stdout=1", &["error", "stdout"]).await;
    let status: Value = serde_json::from_str(&client.ended(ids[0]).await).unwrap();
    assert_eq!(
        (&status["reason"], &status["code"]),
        (&json!("InternalError"), &json!(500))
    );
    assert!(status["message"].as_str().unwrap().ends_with("no such file"));
}

#[tokio::test]
async fn much_output_waits_for_a_slow_client_and_arrives_whole() {
    let node = Node::new().await;
    let (mut client, ids) = exec(&node, "command=big&stdout=1", &["error", "stdout"]).await;
    assert_eq!(client.ended(ids[1]).await.len(), 1 << 20);
}

#[tokio::test]
async fn a_terminal_has_sizes_and_no_stderr() {
    let node = Node::new().await;
    let query = "command=sh&stdin=1&stdout=1&stderr=1&tty=1";
    let (mut client, ids) = exec(&node, query, &["error", "stdin", "stdout", "resize"]).await;
    client.write(ids[3], br#"{"Width":80,"Height":24}"#, false).await;
    client.write(ids[1], b"typed", true).await;
    assert_eq!(client.ended(ids[2]).await, "hello\n");
    client.ended(ids[0]).await;
    let extra = client.open(&[("streamtype", "stdout")]).await;
    client
        .until(|client| client.reset.contains(&(extra, reset::REFUSED_STREAM)))
        .await;
}

#[tokio::test]
async fn attach_sees_output_from_now_and_ends_with_the_container() {
    let node = Node::new().await;
    let (io, _) = node
        .ask("POST", "/attach/default/web/app?stdout=1&stdin=1", UPGRADE)
        .await;
    let mut client = Client::new(io);
    let error = client.open_and_wait(&[("streamtype", "error")]).await;
    let stdin = client.open_and_wait(&[("streamtype", "stdin")]).await;
    let stdout = client.open_and_wait(&[("streamtype", "stdout")]).await;
    while !node.fake.calls().iter().any(|call| call.starts_with("attach")) {
        tokio::task::yield_now().await;
    }
    node.fake.write_output("app", b"tick");
    client
        .until(|client| client.data.get(&stdout).is_some_and(|data| data == b"tick"))
        .await;
    // More than the window and every queue: taken, although nobody asked for an end.
    let sent: usize = 512 * 1024;
    client.write(stdin, &vec![b'i'; sent], false).await;
    client.until(|client| client.windows as usize > sent / 2).await;
    client.send(Frame::Ping(7)).await;
    client.until(|client| client.pongs == [7]).await;
    node.fake.exit_container("app", 9);
    let status: Value = serde_json::from_str(&client.ended(error).await).unwrap();
    assert_eq!(
        status["status"], "Success",
        "whoever watches is not told the exit code"
    );
}

#[tokio::test]
async fn a_broken_client_is_told_and_cut_off() {
    let node = Node::new().await;
    let (mut io, _) = node
        .ask("POST", "/exec/default/web/app?command=ls&stdout=1", UPGRADE)
        .await;
    io.write_all(&[0x80, 9, 0, 1, 0, 0, 0, 0]).await.unwrap();
    let mut client = Client::new(io);
    while client.step().await {}
    assert_eq!(client.goaway, Some(1));
}

#[tokio::test]
async fn unknown_protocols_are_refused_with_what_there_is() {
    let node = Node::new().await;
    let headers = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v99\r\n";
    let (_, head) = node
        .ask("POST", "/exec/default/web/app?command=ls&stdout=1", headers)
        .await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert!(
        head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io"),
        "{head}"
    );
}

/// Echoes until the other side is done, then says goodbye.
pub async fn echo() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.write_all(b"bye").await.unwrap();
            });
        }
    });
    port
}

pub async fn forward_twice<IO: AsyncRead + AsyncWrite + Send + Unpin + 'static>(mut client: Client<IO>) {
    let port = echo().await.to_string();
    let mut open = Vec::new();
    for request in ["0", "1"] {
        let headers = |kind| {
            [
                ("streamtype", kind),
                ("port", port.as_str()),
                ("requestid", request),
            ]
        };
        let error = client.open_and_wait(&headers("error")).await;
        client.write(error, b"", true).await;
        let data = client.open_and_wait(&headers("data")).await;
        open.push((error, data));
    }
    let big = vec![b'z'; 300_000];
    for (_, data) in &open {
        client.write(*data, b"ping", false).await;
        client
            .until(|client| client.data.get(data).is_some_and(|got| got == b"ping"))
            .await;
    }
    let (error, data) = open[0];
    client.write(data, &big, true).await;
    assert_eq!(
        client.ended(data).await.len(),
        "ping".len() + big.len() + "bye".len()
    );
    assert_eq!(client.ended(error).await, "");
    // The client resets the other one: its error stream ends too.
    let (error, data) = open[1];
    client
        .send(Frame::RstStream {
            id: data,
            status: CANCEL,
        })
        .await;
    assert_eq!(client.ended(error).await, "");
}

#[tokio::test]
async fn ports_are_forwarded() {
    let node = Node::new().await;
    let (io, head) = node.ask("POST", "/portForward/default/web", FORWARD).await;
    assert!(
        head.contains("x-stream-protocol-version: portforward.k8s.io"),
        "{head}"
    );
    forward_twice(Client::new(io)).await;
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_said_on_the_error_stream() {
    let node = Node::new().await;
    let (io, _) = node.ask("POST", "/portForward/default/web", FORWARD).await;
    let mut client = Client::new(io);
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let mut ids = Vec::new();
    for kind in ["error", "data"] {
        // Without a request id, as old clients.
        ids.push(
            client
                .open_and_wait(&[("streamtype", kind), ("port", &free)])
                .await,
        );
    }
    let text = client.ended(ids[0]).await;
    let want = format!(
        "error forwarding port {free} to pod web, uid u-1: failed to connect to localhost:{free}, IPv4: "
    );
    assert!(text.starts_with(&want), "{text}");
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "x"), ("port", "1")],
        &[("port", "0")],
    ] {
        let id = client.open(headers).await;
        client
            .until(|client| client.reset.contains(&(id, reset::REFUSED_STREAM)))
            .await;
    }
    // Even numbers are the server's to give.
    client.next = 100;
    let id = client.open(&[("streamtype", "data"), ("port", "1")]).await;
    client
        .until(|client| client.reset.contains(&(id, reset::PROTOCOL_ERROR)))
        .await;
}
