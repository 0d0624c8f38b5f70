//! Port-forward: connections of the client to ports on a pod's loopback.
//!
//! Over SPDY the client opens two streams per connection, `error` and `data`, tied together by a request id; what goes
//! wrong is written to the error stream. Over WebSocket either the same SPDY bytes travel in binary messages (protocol
//! `SPDY/3.1+portforward.k8s.io`), or, in the older way, ports are named in the query and port number `n` of them has
//! the streams `2n` (data) and `2n + 1` (errors), each beginning with the port in two bytes.
//!
//! The socket is made on a thread that has entered the pod's network namespace, and used from here: a socket belongs to
//! the namespace it was made in.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::Refusal;
use super::query::Query;
use super::remote::{Input, Output};
use super::session::{Connection, Receiver, Sender, Stream};
use super::websocket::Channels;

/// How long the second stream of a connection may be waited for.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection to a pod may take; it is on this machine.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes read from a pod at a time.
const READ_BYTES: usize = 32 * 1024;
/// Ports of one connection in the older WebSocket protocol: two streams each, numbered by a byte.
const PORTS_MAX: usize = 64;

/// The pod to reach.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// Its network namespace; `None` for the node's own.
    pub netns: Option<PathBuf>,
}

impl Target {
    fn failure(&self, port: u16, error: &io::Error) -> String {
        format!(
            "error forwarding port {port} to pod {}, uid {}: {error}",
            self.pod, self.uid
        )
    }
}

/// Makes a socket in a network namespace.
fn socket_in(netns: &Path, v6: bool) -> io::Result<TcpSocket> {
    let file = File::open(netns)?;
    let make = move || {
        setns(&file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        if v6 {
            TcpSocket::new_v6()
        } else {
            TcpSocket::new_v4()
        }
    };
    // The thread ends in the other namespace; threads of the runtime never enter one.
    let thread = std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(make)?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes sockets failed")))
}

async fn connect_to(netns: Option<&Path>, address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let v6 = address.is_ipv6();
    let socket = match netns {
        Some(netns) => {
            let netns = netns.to_owned();
            let made = tokio::task::spawn_blocking(move || socket_in(&netns, v6)).await;
            made.map_err(io::Error::other)??
        }
        None if v6 => TcpSocket::new_v6()?,
        None => TcpSocket::new_v4()?,
    };
    let connecting = socket.connect(SocketAddr::new(address, port));
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Connects to a port on a pod's loopback: IPv4, then IPv6.
async fn connect(netns: Option<&Path>, port: u16) -> io::Result<TcpStream> {
    let v4 = match connect_to(netns, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    match connect_to(netns, Ipv6Addr::LOCALHOST.into(), port).await {
        Ok(stream) => Ok(stream),
        Err(v6) => {
            let place = netns.map_or(String::new(), |netns| {
                format!(" inside namespace {:?}", netns.display().to_string())
            });
            let message = format!("failed to connect to localhost:{port}{place}, IPv4: {v4} IPv6: {v6}");
            Err(io::Error::new(v4.kind(), message))
        }
    }
}

/// Copies both ways until both are done, or one breaks.
async fn splice(socket: TcpStream, input: &mut Input, output: &mut dyn Output) -> io::Result<()> {
    // An interactive protocol waits for every small piece.
    let _ = socket.set_nodelay(true);
    let (mut read, mut write) = socket.into_split();
    let up = async {
        while let Some(bytes) = input.next().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let down = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            if read.read_buf(&mut buffer).await? == 0 {
                break;
            }
            if output.write(buffer.split().freeze()).await.is_err() {
                break;
            }
        }
        output.finish().await;
        Ok(())
    };
    // What the pod closed takes nothing more; what the client closed may still be answered.
    tokio::pin!(up, down);
    tokio::select! {
        ended = &mut down => ended,
        ended = &mut up => match ended {
            Ok(()) => down.await,
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected) => down.await,
            Err(error) => Err(error),
        },
    }
}

#[async_trait::async_trait]
impl Output for Sender {
    async fn write(&mut self, bytes: Bytes) -> Result<(), super::session::Gone> {
        self.data(bytes).await
    }

    async fn finish(&mut self) {
        Sender::finish(self).await;
    }
}

/// What comes in on a SPDY stream, as a stream of bytes.
pub fn input(receiver: Receiver) -> Input {
    let bytes = futures::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.next().await?, receiver))
    });
    // Whoever reads on after the other end broke may ask again at the end.
    bytes.fuse().boxed()
}

type Halves = (Receiver, Sender);

#[derive(Default)]
struct Pair {
    data: Option<Halves>,
    error: Option<Halves>,
}

/// What a stream of a connection is: its request, its port, and whether it carries data.
fn purpose(stream: &Stream) -> Result<(String, u16, bool), String> {
    let port = stream
        .header("port")
        .filter(|port| !port.is_empty())
        .ok_or("\"port\" header is required")?;
    let port: u16 = port
        .parse()
        .map_err(|_| format!("unable to parse {port:?} as a port"))?;
    if port == 0 {
        return Err("port \"0\" must be > 0".to_owned());
    }
    let data = match stream
        .header("streamType")
        .ok_or("\"streamType\" header is required")?
    {
        "data" => true,
        "error" => false,
        other => return Err(format!("invalid stream type {other:?}")),
    };
    // Clients that give no id open the error stream, then the data stream with the next number.
    let request = match stream.header("requestID").filter(|id| !id.is_empty()) {
        Some(id) => format!("id {id}"),
        None if data => format!("stream {}", stream.id.saturating_sub(2)),
        None => format!("stream {}", stream.id),
    };
    Ok((request, port, data))
}

/// Serves a SPDY connection.
pub async fn serve_spdy(mut connection: Connection, target: Target) {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut running: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    let mut timers: FuturesUnordered<BoxFuture<'_, String>> = FuturesUnordered::new();
    loop {
        let stream = tokio::select! {
            stream = connection.accept() => stream,
            Some(()) = running.next() => continue,
            Some(request) = timers.next() => {
                if let Some(Pair { error: Some((_, mut error)), .. }) = pairs.remove(&request) {
                    let text = format!("({request}) timed out waiting for streams");
                    let _ = error.data(text.into()).await;
                    error.finish().await;
                }
                continue;
            }
        };
        let Some(stream) = stream else { break };
        let (request, port, data) = match purpose(&stream) {
            Ok(purpose) => purpose,
            Err(error) => {
                tracing::debug!(pod = target.pod, %error, "a port-forward stream is refused");
                stream.refuse().await;
                continue;
            }
        };
        if !pairs.contains_key(&request) {
            let request = request.clone();
            timers.push(Box::pin(async move {
                tokio::time::sleep(STREAMS_TIMEOUT).await;
                request
            }));
        }
        let pair = pairs.entry(request.clone()).or_default();
        let place = if data { &mut pair.data } else { &mut pair.error };
        if place.is_some() {
            tracing::debug!(pod = target.pod, request, "a port-forward stream came twice");
            stream.refuse().await;
            continue;
        }
        // At once: clients open the second stream only after the answer to the first.
        let Ok(halves) = stream.reply().await else { break };
        *place = Some(halves);
        if pair.data.is_some()
            && pair.error.is_some()
            && let Some(Pair {
                data: Some(data),
                error: Some(error),
            }) = pairs.remove(&request)
        {
            running.push(Box::pin(forward(data, error, port, &target)));
        }
    }
    while running.next().await.is_some() {}
}

/// One connection over SPDY.
async fn forward(data: Halves, error: Halves, port: u16, target: &Target) {
    let ((receiver, mut sender), (_, mut error)) = (data, error);
    let reset = receiver.reset();
    let mut input = input(receiver);
    let work = async {
        let socket = connect(target.netns.as_deref(), port).await?;
        splice(socket, &mut input, &mut sender).await
    };
    let ended = tokio::select! {
        ended = work => ended,
        () = reset.cancelled() => Ok(()),
    };
    if let Err(cause) = ended {
        let _ = error.data(target.failure(port, &cause).into()).await;
    }
    error.finish().await;
    sender.finish().await;
    // What the client still sends is not wanted, and must not hold up other connections.
    while input.next().await.is_some() {}
}

/// Ports named in the query of the older WebSocket protocol.
pub fn ports(query: &Query) -> Result<Vec<u16>, Refusal> {
    let texts: Vec<&str> = ["ports", "port"]
        .iter()
        .flat_map(|name| query.all(name))
        .flat_map(|v| v.split(','))
        .collect();
    if texts.is_empty() {
        return Err(Refusal::bad("query parameter \"ports\" is required"));
    }
    if texts.len() > PORTS_MAX {
        return Err(Refusal::bad(format!(
            "at most {PORTS_MAX} ports may be forwarded on one connection"
        )));
    }
    let parse = |text: &str| text.parse().ok().filter(|port| *port > 0);
    let parsed = texts
        .iter()
        .map(|text| parse(text).ok_or_else(|| Refusal::bad(format!("invalid port {text:?}"))));
    parsed.collect()
}

/// Streams a client writes to in the older WebSocket protocol.
pub fn inputs(ports: &[u16]) -> Vec<u8> {
    (0..ports.len())
        .map(|n| u8::try_from(2 * n).unwrap_or(u8::MAX))
        .collect()
}

/// Serves the older WebSocket protocol.
pub async fn serve_channels(mut channels: Channels, ports: Vec<u16>, target: Target) {
    let running: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    for (number, port) in inputs(&ports).into_iter().zip(&ports) {
        let (mut data, error) = (channels.sender(number), channels.sender(number + 1));
        let Some(mut input) = channels.input(number) else {
            continue;
        };
        let target = &target;
        running.push(Box::pin(async move {
            let head = port.to_le_bytes();
            if data.send(&head).await.is_err() || error.send(&head).await.is_err() {
                return;
            }
            let work = async {
                let socket = connect(target.netns.as_deref(), *port).await?;
                splice(socket, &mut input, &mut data).await
            };
            if let Err(cause) = work.await {
                let _ = error.send(target.failure(*port, &cause).as_bytes()).await;
            }
        }));
    }
    running.collect::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let parse = |text: &str| ports(&Query::parse(text)).map_err(|refusal| refusal.message);
        assert_eq!(
            parse("ports=80&ports=443,8080&port=1"),
            Ok(vec![80, 443, 8080, 1])
        );
        for (text, part) in [
            ("", "required"),
            ("ports=0", "invalid port"),
            ("ports=70000", "invalid"),
            ("ports=x", "x"),
        ] {
            assert!(parse(text).is_err_and(|message| message.contains(part)), "{text}");
        }
        assert!(parse(&"ports=1&".repeat(PORTS_MAX + 1)).is_err());
    }

    /// A pod's loopback is another than ours: a listener in a namespace of its own is reached by its path.
    #[tokio::test]
    async fn connects_inside_a_network_namespace() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)
                .expect("this test makes a network namespace: run it as root");
            let up = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(up.expect("run ip").success());
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let tid = nix::unistd::gettid();
            sender.send((tid, listener.local_addr().unwrap().port())).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            io::Write::write_all(&mut stream, b"from inside").unwrap();
            let _ = stopped.recv();
        });
        let (tid, port) = receiver.recv().unwrap();
        let netns = PathBuf::from(format!("/proc/self/task/{tid}/ns/net"));
        let mut stream = connect(Some(&netns), port).await.unwrap();
        let mut text = vec![0; 11];
        stream.read_exact(&mut text).await.unwrap();
        assert_eq!(text, b"from inside");
        let missing = connect(Some(Path::new("/nonexistent")), port)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            missing.contains("inside namespace \"/nonexistent\", IPv4: No such file"),
            "{missing}"
        );
        drop(stop);
        thread.join().unwrap();
    }
}
