//! Streams over WebSocket messages: the first byte of a message is the number of its stream.
//!
//! Exec and attach: 0 stdin, 1 stdout, 2 stderr, 3 status, 4 terminal size. In the `base64` protocols the number is an
//! ASCII digit and the rest is base64 text. Version 5 can end a stream: message `255, n` closes stream `n`.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode};

use super::remote::{Input, Output};
use super::session::{Delivery, Gone, deliver};

/// Largest message accepted. Clients send what they read at a time: tens of kilobytes.
const MESSAGE_MAX_BYTES: usize = 1 << 20;
/// Messages of one stream that wait to be taken.
const RECEIVED_MAX: usize = 8;
/// Messages waiting to be written, of 32 KiB each.
const QUEUED_MAX: usize = 8;
/// Bytes gathered before a write.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a client may take to close after it was sent everything.
const LINGER: Duration = Duration::from_secs(10);
/// Version 5: closes the stream named by the second byte.
const CLOSE_STREAM: u8 = 255;

/// How messages are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Digits and base64 text instead of bytes.
    pub base64: bool,
    /// The client may end single streams.
    pub can_close: bool,
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_write_buffer_size(4 * BUFFER_BYTES + MESSAGE_MAX_BYTES)
        .max_message_size(Some(MESSAGE_MAX_BYTES))
        .max_frame_size(Some(MESSAGE_MAX_BYTES))
}

/// Output on one stream.
#[derive(Clone)]
pub struct Sender {
    number: u8,
    form: Form,
    out: mpsc::Sender<Message>,
}

impl Sender {
    /// Sends a message, also an empty one.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), Gone> {
        self.out
            .send(encode(self.form, self.number, bytes))
            .await
            .map_err(|_| Gone)
    }
}

#[async_trait]
impl Output for Sender {
    async fn write(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.send(&bytes).await
    }

    /// The protocol has no end for a single stream; the last message ends all.
    async fn finish(&mut self) {}
}

fn encode(form: Form, number: u8, bytes: &[u8]) -> Message {
    if form.base64 {
        let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
        text.push(char::from(b'0'.wrapping_add(number)));
        STANDARD.encode_string(bytes, &mut text);
        return Message::text(text);
    }
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(number);
    message.put_slice(bytes);
    Message::binary(message.freeze())
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Data(u8, Bytes),
    CloseStream(u8),
    Nothing,
}

fn decode(form: Form, mut bytes: Bytes) -> Said {
    if bytes.is_empty() {
        return Said::Nothing;
    }
    let first = bytes.split_to(1)[0];
    if form.can_close && first == CLOSE_STREAM {
        return bytes
            .first()
            .map_or(Said::Nothing, |number| Said::CloseStream(*number));
    }
    if !form.base64 {
        return Said::Data(first, bytes);
    }
    match STANDARD.decode(&bytes) {
        Ok(plain) if first.is_ascii_digit() => Said::Data(first - b'0', plain.into()),
        _ => Said::Nothing,
    }
}

/// The streams of a connection.
pub struct Channels {
    form: Form,
    out: mpsc::Sender<Message>,
    inputs: Vec<(u8, mpsc::Receiver<Bytes>)>,
}

impl Channels {
    /// Output on stream `number`.
    pub fn sender(&self, number: u8) -> Sender {
        Sender {
            number,
            form: self.form,
            out: self.out.clone(),
        }
    }

    /// Input of stream `number`; once, and only for the numbers named at the start.
    pub fn input(&mut self, number: u8) -> Option<Input> {
        let at = self.inputs.iter().position(|(one, _)| *one == number)?;
        let (_, receiver) = self.inputs.swap_remove(at);
        Some(tokio_stream::wrappers::ReceiverStream::new(receiver).boxed())
    }
}

/// Serves a connection whose client writes to the streams `inputs`. When `handler` is done the connection is closed;
/// when the connection ends the handler is dropped.
pub async fn run<IO, F>(io: IO, form: Form, inputs: &[u8], handler: impl FnOnce(Channels) -> F)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = ()>,
{
    let (mut sink, mut source) = WebSocketStream::from_raw_socket(io, Role::Server, Some(config()))
        .await
        .split();
    let (out, mut queued) = mpsc::channel::<Message>(QUEUED_MAX);
    let (mut writers, mut readers) = (Vec::new(), Vec::new());
    for number in inputs {
        let (writer, reader) = mpsc::channel(RECEIVED_MAX);
        writers.push((*number, writer));
        readers.push((*number, reader));
    }
    let probes = out.clone();
    let reading = async move {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            match decode(form, bytes) {
                Said::Data(number, bytes) => {
                    if let Some((_, writer)) = writers.iter().find(|(one, _)| *one == number) {
                        let probe = || drop(probes.try_send(Message::Ping(Bytes::new())));
                        if deliver(writer, bytes, probe).await == Delivery::Stalled {
                            return;
                        }
                    }
                }
                Said::CloseStream(number) => writers.retain(|(one, _)| *one != number),
                Said::Nothing => {}
            }
        }
    };
    let writing = async move {
        while let Some(message) = queued.recv().await {
            let last = message.is_close();
            if sink.feed(message).await.is_err() {
                return;
            }
            while let Ok(more) = queued.try_recv() {
                if sink.feed(more).await.is_err() {
                    return;
                }
            }
            if sink.flush().await.is_err() {
                return;
            }
            if last {
                break;
            }
        }
        // The client answers with its own end, which ends the reader.
        std::future::pending::<()>().await;
    };
    let channels = Channels {
        form,
        out: out.clone(),
        inputs: readers,
    };
    let handling = async move {
        handler(channels).await;
        let close = CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        };
        let _ = out.send(Message::Close(Some(close))).await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = handling => {}
    }
}

/// A byte stream carried by binary messages, for a protocol that brings its own framing: `inner` gets the stream.
pub async fn tunnel<IO, F>(io: IO, inner: impl FnOnce(tokio::io::DuplexStream) -> F)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = ()>,
{
    let (mut sink, mut source) = WebSocketStream::from_raw_socket(io, Role::Server, Some(config()))
        .await
        .split();
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    let (mut from_inner, mut to_inner) = tokio::io::split(far);
    let reading = async move {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) if to_inner.write_all(&bytes).await.is_err() => return,
                Message::Close(_) => return,
                _ => {}
            }
        }
    };
    let writing = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(BUFFER_BYTES);
            match from_inner.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if sink.send(Message::binary(buffer.split().freeze())).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    let inner = async move {
        inner(near).await;
        // What it wrote last is still on its way.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = inner => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_is_noticed_behind_unread_messages() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(run(far, Form::default(), &[0], |channels| async move {
            let _unread = channels;
            std::future::pending().await
        }));
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let message = Message::binary(vec![0; 32 * 1024]);
        let all = async { while client.send(message.clone()).await.is_ok() {} };
        let sent = tokio::time::timeout(Duration::from_secs(60), all).await;
        assert!(sent.is_err(), "more than all queues hold");
        assert!(!serving.is_finished());
        drop(client);
        tokio::time::timeout(Duration::from_secs(20), serving)
            .await
            .expect("ends soon")
            .unwrap();
    }

    #[test]
    fn messages_name_their_stream() {
        let plain = Form::default();
        let base64 = Form {
            base64: true,
            ..plain
        };
        let v5 = Form {
            can_close: true,
            ..plain
        };
        let data = |number, text: &'static [u8]| Said::Data(number, Bytes::from_static(text));
        for (form, message, want) in [
            (plain, &b"\x00hello"[..], data(0, b"hello")),
            (plain, b"\x04", data(4, b"")),
            (plain, b"", Said::Nothing),
            (plain, b"\xff\x00", data(255, b"\x00")),
            (v5, b"\xff\x00", Said::CloseStream(0)),
            (v5, b"\xff", Said::Nothing),
            (v5, b"\x00x", data(0, b"x")),
            (base64, b"0aGVsbG8=", data(0, b"hello")),
            (base64, b"0!", Said::Nothing),
            (base64, b"\x00aGVsbG8=", Said::Nothing),
        ] {
            assert_eq!(decode(form, Bytes::from_static(message)), want);
        }
        assert_eq!(encode(plain, 1, b"hi"), Message::binary(&b"\x01hi"[..]));
        assert_eq!(encode(base64, 2, b"hello"), Message::text("2aGVsbG8="));
    }
}
