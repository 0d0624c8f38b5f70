//! Exec and port-forward over WebSocket.

use futures::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, frame::coding::CloseCode};

use super::*;

async fn open(node: &Arc<Node>, path: &str, protocol: &str) -> WebSocketStream<DuplexStream> {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    );
    let (io, head) = node.ask("GET", path, &headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.contains(&format!("sec-websocket-protocol: {protocol}\r\n")),
        "{head}"
    );
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

/// All messages up to a normal close.
async fn all(socket: &mut WebSocketStream<DuplexStream>) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(message) = socket.next().await {
        match message.expect("a message") {
            Message::Close(frame) => {
                assert_eq!(frame.expect("a reason").code, CloseCode::Normal);
                return messages;
            }
            message => messages.push(message),
        }
    }
    panic!("ended without a close");
}

fn channel(messages: &[Message], number: u8) -> Vec<u8> {
    let data = messages.iter().map(|message| message.clone().into_data());
    data.filter(|data| data.first() == Some(&number))
        .flat_map(|data| data[1..].to_vec())
        .collect()
}

#[tokio::test]
async fn exec_gives_output_then_status_then_closes() {
    let node = Node::new().await;
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let path = "/exec/default/web/app?command=fail&stdin=1&stdout=1&stderr=1";
        let mut socket = open(&node, path, protocol).await;
        socket.send(Message::binary(&b"\x00input"[..])).await.unwrap();
        socket.send(Message::binary(&b"\xff\x00"[..])).await.unwrap();
        let messages = all(&mut socket).await;
        assert_eq!(
            messages[0],
            Message::binary(&b"\x01"[..]),
            "the first message says that the streams are there"
        );
        assert_eq!(
            (channel(&messages, 1), channel(&messages, 2)),
            (b"some".to_vec(), b"bad".to_vec())
        );
        let status: Value = serde_json::from_slice(&channel(&messages, 3)).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "3");
    }
}

#[tokio::test]
async fn base64_and_old_protocols() {
    let node = Node::new().await;
    let mut socket = open(
        &node,
        "/exec/default/web/app?command=ls&stdout=1",
        "v4.base64.channel.k8s.io",
    )
    .await;
    let messages = all(&mut socket).await;
    assert_eq!(messages[..2], [Message::text("1"), Message::text("1aGVsbG8K")]);
    let mut socket = open(
        &node,
        "/exec/default/web/app?command=missing&stdout=1",
        "channel.k8s.io",
    )
    .await;
    let messages = all(&mut socket).await;
    let text = String::from_utf8(channel(&messages, 3)).unwrap();
    assert_eq!(
        text,
        "Internal error occurred: error executing command in container: no such file"
    );
}

#[tokio::test]
async fn attach_lasts_until_the_client_goes() {
    let node = Node::new().await;
    let path = "/attach/default/web/app?stdout=1&tty=1&stdin=1";
    let mut socket = open(&node, path, "v5.channel.k8s.io").await;
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::binary(&b"\x01"[..])
    );
    while !node.fake.calls().iter().any(|call| call.starts_with("attach")) {
        tokio::task::yield_now().await;
    }
    node.fake.write_output("app", b"tick");
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::binary(&b"\x01tick"[..])
    );
    socket
        .send(Message::Ping(b"still there?".to_vec().into()))
        .await
        .unwrap();
    assert_eq!(
        socket.next().await.unwrap().unwrap(),
        Message::Pong(b"still there?".to_vec().into())
    );
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn a_message_too_large_ends_the_connection() {
    let node = Node::new().await;
    let mut socket = open(
        &node,
        "/attach/default/web/app?stdin=1&stdout=1",
        "v5.channel.k8s.io",
    )
    .await;
    let _ = socket.send(Message::binary(vec![0; (1 << 20) + 1])).await;
    while let Some(Ok(_)) = socket.next().await {}
}

#[tokio::test]
async fn spdy_in_websocket_messages_forwards_ports() {
    let node = Node::new().await;
    let socket = open(&node, "/portForward/default/web", "SPDY/3.1+portforward.k8s.io").await;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        // Odd pieces: frames and messages have nothing to do with each other.
        let mut buffer = [0; 1000];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            sink.send(Message::binary(buffer[..count].to_vec()))
                .await
                .unwrap();
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if write.write_all(&message.into_data()).await.is_err() {
                return;
            }
        }
    });
    spdy::forward_twice(spdy::Client::new(near)).await;
}

#[tokio::test]
async fn ports_in_the_query_forward_over_channels() {
    let node = Node::new().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let port = spdy::echo().await;
    let path = format!("/portForward/default/web?ports={port},{free}");
    let mut socket = open(&node, &path, "v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\x00hello"[..])).await.unwrap();
    let mut messages = Vec::new();
    while channel(&messages, 0).len() < 7 || channel(&messages, 3).len() <= 2 {
        messages.push(socket.next().await.unwrap().unwrap());
    }
    assert_eq!(
        channel(&messages, 0),
        [&port.to_le_bytes()[..], b"hello"].concat()
    );
    assert_eq!(channel(&messages, 1), port.to_le_bytes());
    assert_eq!(channel(&messages, 2), free.to_le_bytes());
    let error = String::from_utf8(channel(&messages, 3)[2..].to_vec()).unwrap();
    assert!(
        error.starts_with(&format!("error forwarding port {free} to pod web")),
        "{error}"
    );
}
