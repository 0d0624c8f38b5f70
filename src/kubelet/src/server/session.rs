//! A SPDY connection: streams the client opens, multiplexed over one byte stream.
//!
//! ```text
//! io ──► reader ──► bounded queue per stream ──► Receiver     Sender ──┐
//!          └──► opened streams ──► Connection::accept          (reply, │ data, reset) ──► bounded queue ──► writer ──► io
//! ```
//!
//! Everything runs inside the future of [`run`]: dropping it, or the end of the connection, ends all of it, and no
//! task is left behind. Queues are bounded both ways: a stream nobody reads stops the reader, which stops the peer. The
//! windows of the protocol are served (a peer that respects them is told what was taken) but not relied on: the clients
//! that exist send no window updates, so data is sent regardless of the peer's window and TCP does the rest.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::IDLE_TIMEOUT;
use super::spdy::{Encoder, Frame, FrameError, Reader, goaway, reset};
use super::spdy_headers::{Headers, find};

/// Streams open at a time. An exec has five; a forwarded connection has two, and browsers open a few dozen.
const STREAMS_MAX: usize = 1024;
/// Opened streams that wait to be accepted.
const ACCEPT_MAX: usize = 16;
/// Pieces received for a stream and not taken yet: with 32 KiB each, 256 KiB.
const RECEIVED_MAX: usize = 8;
/// Frames waiting to be written.
const QUEUED_MAX: usize = 32;
/// Bytes gathered before a write.
const WRITE_MAX_BYTES: usize = 64 * 1024;
/// Taken bytes after which the peer is told: half of the protocol's initial window.
const WINDOW_STEP: u32 = 32 * 1024;
/// How long a client may take to close after it was sent everything. Clients lose data that arrives together with the
/// end of the connection, so it is theirs to close.
const LINGER: Duration = Duration::from_secs(10);

/// How often a connection is written to while nothing can be read from it.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Number of the pings sent; those of a server are even.
const PROBE: u32 = 2;

/// What became of bytes for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// They are in its queue.
    Taken,
    /// Nobody takes them any more.
    Dropped,
    /// The queue has been full for [`IDLE_TIMEOUT`]: the connection is given up.
    Stalled,
}

/// Hands bytes to a stream's queue.
///
/// While the queue stays full nothing is read from the connection, and its end, which stands behind the bytes nobody
/// takes, is not seen. So `probe` writes something now and then: that fails when the client is gone.
pub async fn deliver(queue: &mpsc::Sender<Bytes>, bytes: Bytes, mut probe: impl FnMut()) -> Delivery {
    let stalled = tokio::time::sleep(IDLE_TIMEOUT);
    tokio::pin!(stalled);
    loop {
        tokio::select! {
            biased;
            room = queue.reserve() => {
                let Ok(room) = room else { return Delivery::Dropped };
                room.send(bytes);
                return Delivery::Taken;
            }
            () = &mut stalled => return Delivery::Stalled,
            () = tokio::time::sleep(PROBE_INTERVAL) => probe(),
        }
    }
}

/// The connection is gone.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the client is gone")]
pub struct Gone;

/// A stream that is not over both ways.
struct Open {
    /// `None` once the client has sent everything.
    data: Option<mpsc::Sender<Bytes>>,
    /// This side has sent everything.
    finished: bool,
    reset: CancellationToken,
}

#[derive(Clone)]
struct Shared {
    out: mpsc::Sender<Frame>,
    streams: Arc<Mutex<HashMap<u32, Open>>>,
}

/// The accepting side of a connection.
pub struct Connection {
    opened: mpsc::Receiver<Stream>,
}

impl Connection {
    /// The next stream the client opened; `None` when there will be no more.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.opened.recv().await
    }
}

/// A stream, not accepted yet.
pub struct Stream {
    /// Its number.
    pub id: u32,
    headers: Headers,
    receiver: Receiver,
    sender: Sender,
}

impl Stream {
    /// A header it was opened with.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Accepts it.
    pub async fn reply(self) -> Result<(Receiver, Sender), Gone> {
        self.sender
            .send(Frame::SynReply {
                id: self.id,
                fin: false,
                headers: Vec::new(),
            })
            .await?;
        Ok((self.receiver, self.sender))
    }

    /// Refuses it.
    pub async fn refuse(self) {
        self.sender.shared.streams.lock().remove(&self.id);
        let _ = self
            .sender
            .send(Frame::RstStream {
                id: self.id,
                status: reset::REFUSED_STREAM,
            })
            .await;
    }
}

/// What comes in on a stream.
pub struct Receiver {
    id: u32,
    data: mpsc::Receiver<Bytes>,
    reset: CancellationToken,
    out: mpsc::Sender<Frame>,
    taken: u32,
}

impl Receiver {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        let bytes = self.data.recv().await?;
        self.taken = self
            .taken
            .saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if self.taken >= WINDOW_STEP {
            // Never waits: whoever reads a stream may be the one that makes room for writing.
            let room = self.out.try_reserve_many(2);
            if let Ok(room) = room {
                for (permit, id) in room.zip([self.id, 0]) {
                    permit.send(Frame::WindowUpdate {
                        id,
                        delta: self.taken,
                    });
                }
                self.taken = 0;
            }
        }
        Some(bytes)
    }

    /// True once the client reset the stream: an end that is not a clean one.
    pub fn reset(&self) -> CancellationToken {
        self.reset.clone()
    }
}

/// What goes out on a stream.
pub struct Sender {
    id: u32,
    shared: Shared,
    reset: CancellationToken,
    finished: bool,
}

impl Sender {
    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.shared.out.send(frame).await.map_err(|_| Gone)
    }

    /// Sends bytes; waits while the client is slow.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Gone> {
        if self.finished || self.reset.is_cancelled() {
            return Err(Gone);
        }
        self.send(Frame::Data {
            id: self.id,
            fin: false,
            bytes,
        })
        .await
    }

    /// Says that nothing more comes.
    pub async fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) && !self.reset.is_cancelled() {
            let _ = self
                .send(Frame::Data {
                    id: self.id,
                    fin: true,
                    bytes: Bytes::new(),
                })
                .await;
            let mut streams = self.shared.streams.lock();
            match streams.get_mut(&self.id) {
                Some(open) if open.data.is_some() => open.finished = true,
                _ => drop(streams.remove(&self.id)),
            }
        }
    }
}

/// Serves a connection: `handler` gets its streams; when it is done, the client has a while to close. Ends with the
/// connection, dropping the handler.
pub async fn run<IO, F>(io: IO, handler: impl FnOnce(Connection) -> F)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
    F: Future<Output = ()>,
{
    let (read, write) = tokio::io::split(io);
    let (out, queued) = mpsc::channel(QUEUED_MAX);
    let (accept, opened) = mpsc::channel(ACCEPT_MAX);
    let shared = Shared {
        out,
        streams: Arc::default(),
    };
    let reading = read_frames(
        tokio::io::BufReader::with_capacity(WRITE_MAX_BYTES, read),
        shared.clone(),
        accept,
    );
    let handling = async {
        handler(Connection { opened }).await;
        tokio::time::sleep(LINGER).await;
        let _ = shared
            .out
            .send(Frame::GoAway {
                last: 0,
                status: goaway::OK,
            })
            .await;
        shared.out.closed().await;
    };
    tokio::select! {
        biased;
        () = reading => {}
        () = write_frames(write, queued) => {}
        () = handling => {}
    }
}

async fn read_frames<R: AsyncRead + Unpin>(io: R, shared: Shared, accept: mpsc::Sender<Stream>) {
    let mut reader = Reader::new(io);
    let mut last = 0;
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if receive(frame, &shared, &accept, &mut last).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(FrameError::Io(error)) => {
                tracing::debug!(%error, "a SPDY connection broke");
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "a client broke the SPDY protocol");
                let goodbye = Frame::GoAway {
                    last,
                    status: goaway::PROTOCOL_ERROR,
                };
                let _ = shared.out.send(goodbye).await;
                shared.out.closed().await;
                return;
            }
        }
    }
}

async fn receive(
    frame: Frame,
    shared: &Shared,
    accept: &mpsc::Sender<Stream>,
    last: &mut u32,
) -> Result<(), Gone> {
    match frame {
        Frame::SynStream {
            id,
            fin,
            unidirectional,
            headers,
            ..
        } => {
            let known = shared.streams.lock().len();
            let refusal = match () {
                () if id.is_multiple_of(2) || id <= *last || unidirectional => Some(reset::PROTOCOL_ERROR),
                () if known >= STREAMS_MAX => Some(reset::REFUSED_STREAM),
                () => None,
            };
            if let Some(status) = refusal {
                return shared
                    .out
                    .send(Frame::RstStream { id, status })
                    .await
                    .map_err(|_| Gone);
            }
            *last = id;
            let (data, received) = mpsc::channel(RECEIVED_MAX);
            let reset = CancellationToken::new();
            let open = Open {
                data: (!fin).then_some(data),
                finished: false,
                reset: reset.clone(),
            };
            shared.streams.lock().insert(id, open);
            let out = shared.out.clone();
            let receiver = Receiver {
                id,
                data: received,
                reset: reset.clone(),
                out,
                taken: 0,
            };
            let sender = Sender {
                id,
                shared: shared.clone(),
                reset,
                finished: false,
            };
            // A handler that accepts no more streams drops them; the client learns it by the reset.
            if accept
                .send(Stream {
                    id,
                    headers,
                    receiver,
                    sender,
                })
                .await
                .is_err()
            {
                shared.streams.lock().remove(&id);
                let refusal = Frame::RstStream {
                    id,
                    status: reset::REFUSED_STREAM,
                };
                return shared.out.send(refusal).await.map_err(|_| Gone);
            }
        }
        Frame::Data { id, fin, bytes } => {
            let open = shared
                .streams
                .lock()
                .get(&id)
                .map(|open| (open.data.clone(), open.reset.clone()));
            if let Some((Some(sender), reset)) = open {
                let size = bytes.len();
                let probe = || drop(shared.out.try_send(Frame::Ping(PROBE)));
                let delivery = tokio::select! {
                    delivery = deliver(&sender, bytes, probe), if size > 0 => delivery,
                    () = reset.cancelled(), if size > 0 => Delivery::Dropped,
                    else => Delivery::Taken,
                };
                match delivery {
                    Delivery::Taken => {}
                    Delivery::Dropped => {
                        let delta = u32::try_from(size).unwrap_or(0);
                        let _ = shared.out.try_send(Frame::WindowUpdate { id: 0, delta });
                    }
                    Delivery::Stalled => return Err(Gone),
                }
            }
            if fin {
                end_of_input(shared, id);
            }
        }
        Frame::Headers { id, fin: true, .. } => end_of_input(shared, id),
        Frame::RstStream { id, .. } => {
            if let Some(open) = shared.streams.lock().remove(&id) {
                open.reset.cancel();
            }
        }
        Frame::Ping(number) if number % 2 == 1 => {
            return shared.out.send(Frame::Ping(number)).await.map_err(|_| Gone);
        }
        // A client that goes away resets its streams and closes; nothing to do before that.
        Frame::GoAway { .. }
        | Frame::Headers { .. }
        | Frame::Ping(_)
        | Frame::SynReply { .. }
        | Frame::Settings
        | Frame::WindowUpdate { .. }
        | Frame::Unknown(_) => {}
    }
    Ok(())
}

fn end_of_input(shared: &Shared, id: u32) {
    let mut streams = shared.streams.lock();
    match streams.get_mut(&id) {
        Some(open) if !open.finished => open.data = None,
        _ => drop(streams.remove(&id)),
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(mut io: W, mut queued: mpsc::Receiver<Frame>) {
    let (mut encoder, mut buffer) = (Encoder::new(), BytesMut::new());
    while let Some(frame) = queued.recv().await {
        let mut leaving = false;
        let mut next = Some(frame);
        while let Some(frame) = next {
            encoder.encode(&frame, &mut buffer);
            leaving |= matches!(frame, Frame::GoAway { .. });
            next = if buffer.len() < WRITE_MAX_BYTES {
                queued.try_recv().ok()
            } else {
                None
            };
        }
        if io.write_all(&buffer).await.is_err() || io.flush().await.is_err() {
            return;
        }
        buffer.clear();
        if leaving {
            let _ = io.shutdown().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client sent stays unread, and its end behind it; yet the handler does not outlive it.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_is_noticed_behind_unread_data() {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(run(far, |mut connection| async move {
            let _unread = connection.accept().await.unwrap().reply().await;
            std::future::pending().await
        }));
        let (mut read, mut write) = tokio::io::split(near);
        let headers = vec![("streamtype".to_owned(), "stdin".to_owned())];
        let syn = Frame::SynStream {
            id: 1,
            associated: 0,
            priority: 0,
            fin: false,
            unidirectional: false,
            headers,
        };
        let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
        encoder.encode(&syn, &mut bytes);
        encoder.encode(
            &Frame::Data {
                id: 1,
                fin: false,
                bytes: vec![0; 1 << 20].into(),
            },
            &mut bytes,
        );
        let sent = tokio::time::timeout(Duration::from_secs(60), write.write_all(&bytes)).await;
        assert!(sent.is_err(), "more than all queues hold");
        assert!(!serving.is_finished());
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_buf(&mut read, &mut answer)
            .await
            .unwrap();
        drop((read, write));
        tokio::time::timeout(2 * PROBE_INTERVAL, serving)
            .await
            .expect("ends soon")
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_nobody_empties_is_given_up_in_the_end() {
        let (queue, mut taken) = mpsc::channel(1);
        let bytes = Bytes::from_static(b"x");
        assert_eq!(deliver(&queue, bytes.clone(), || {}).await, Delivery::Taken);
        let mut probes = 0;
        assert_eq!(
            deliver(&queue, bytes.clone(), || probes += 1).await,
            Delivery::Stalled
        );
        assert!(probes > 1000, "{probes}");
        taken.recv().await.unwrap();
        assert_eq!(deliver(&queue, bytes.clone(), || {}).await, Delivery::Taken);
        drop(taken);
        assert_eq!(deliver(&queue, bytes, || {}).await, Delivery::Dropped);
    }
}
