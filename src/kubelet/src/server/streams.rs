//! Exec, attach and port-forward once a connection is upgraded: which protocol carries them, and with what streams.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use skiff_cri::{AttachRequest, ExecRequest, Runtime, RuntimeError, Session};
use tokio::io::{AsyncRead, AsyncWrite};

use super::portforward;
use super::remote::{self, Input, Kind, Output, Remote, StatusForm, Wanted};
use super::session::{self, Connection};
use super::upgrade::Transport;
use super::websocket::{self, Form};

/// How long a client may take to open the streams it asked for.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Protocols of exec and attach over SPDY.
pub const REMOTE_SPDY: &[&str] = &[
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// Protocols of exec and attach over WebSocket.
pub const REMOTE_WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// Protocols of port-forward over SPDY.
pub const FORWARD_SPDY: &[&str] = &["portforward.k8s.io"];
/// SPDY in WebSocket messages.
pub const FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Protocols of port-forward over WebSocket.
pub const FORWARD_WEBSOCKET: &[&str] = &[FORWARD_TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];

/// A protocol's version by its name; none named is the first.
fn version(protocol: Option<&str>) -> u8 {
    let digit = protocol
        .and_then(|name| name.strip_prefix('v'))
        .and_then(|rest| rest.bytes().next());
    digit.filter(u8::is_ascii_digit).map_or(1, |digit| digit - b'0')
}

fn form(protocol: Option<&str>) -> Form {
    let name = protocol.unwrap_or_default();
    Form {
        base64: name.contains("base64."),
        can_close: version(protocol) >= 5,
    }
}

/// An exec or attach to be carried out.
pub struct Job {
    /// What does it.
    pub runtime: Arc<dyn Runtime>,
    /// In which container.
    pub container: String,
    /// What.
    pub kind: Kind,
    /// With which streams.
    pub wanted: Wanted,
}

impl Job {
    async fn start(&self) -> Result<Session, RuntimeError> {
        let Wanted {
            stdin,
            stdout,
            stderr,
            tty,
        } = self.wanted;
        match &self.kind {
            Kind::Exec(command) => {
                let request = ExecRequest {
                    command: command.clone(),
                    stdin,
                    stdout,
                    stderr,
                    tty,
                };
                self.runtime.exec(&self.container, request).await
            }
            Kind::Attach => {
                self.runtime
                    .attach(
                        &self.container,
                        AttachRequest {
                            stdin,
                            stdout,
                            stderr,
                        },
                    )
                    .await
            }
        }
    }

    async fn run(self, remote: Remote) {
        remote::run(self.start(), self.kind.clone(), remote).await;
    }
}

/// Carries out an exec or attach on an upgraded connection.
pub async fn remote<IO>(io: IO, transport: Transport, protocol: Option<&'static str>, job: Job)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let status = if version(protocol) >= 4 {
        StatusForm::Json
    } else {
        StatusForm::Text
    };
    match transport {
        Transport::Spdy => {
            let resizable = job.wanted.tty && version(protocol) >= 3;
            session::run(io, |connection| spdy(connection, resizable, status, job)).await;
        }
        Transport::WebSocket => {
            let Wanted {
                stdin,
                stdout,
                stderr,
                tty,
            } = job.wanted;
            let inputs: Vec<u8> = [(stdin, STDIN), (tty, RESIZE)]
                .iter()
                .filter(|one| one.0)
                .map(|one| one.1)
                .collect();
            websocket::run(io, form(protocol), &inputs, |mut channels| async move {
                // An empty first message tells the client that the streams are there.
                let first = if stdout {
                    STDOUT
                } else if stderr {
                    STDERR
                } else {
                    ERROR
                };
                if channels.sender(first).send(&[]).await.is_err() {
                    return;
                }
                let output = |number| -> Box<dyn Output> { Box::new(channels.sender(number)) };
                let (stdout, stderr) = (stdout.then(|| output(STDOUT)), stderr.then(|| output(STDERR)));
                let error = Some(output(ERROR));
                let (stdin, resize) = (channels.input(STDIN), channels.input(RESIZE));
                job.run(Remote {
                    stdin,
                    resize,
                    stdout,
                    stderr,
                    error,
                    form: status,
                })
                .await;
            })
            .await;
        }
    }
}

/// Waits for the streams a SPDY client opens, then goes to work.
async fn spdy(mut connection: Connection, resizable: bool, form: StatusForm, job: Job) {
    let wanted = job.wanted;
    let mut remote = Remote {
        stdin: None,
        resize: None,
        stdout: None,
        stderr: None,
        error: None,
        form,
    };
    let mut missing = 1 + [wanted.stdin, wanted.stdout, wanted.stderr, resizable]
        .iter()
        .filter(|wanted| **wanted)
        .count();
    // Halves of streams that are used one way only; dropping them early would look like an end.
    let mut idle_inputs: Vec<Input> = Vec::new();
    let mut idle_outputs = Vec::new();
    let gather = async {
        while missing > 0 {
            let Some(stream) = connection.accept().await else {
                return false;
            };
            let kind = stream.header("streamType").unwrap_or_default().to_owned();
            let free = match kind.as_str() {
                "stdin" => wanted.stdin && remote.stdin.is_none(),
                "resize" => resizable && remote.resize.is_none(),
                "stdout" => wanted.stdout && remote.stdout.is_none(),
                "stderr" => wanted.stderr && remote.stderr.is_none(),
                "error" => remote.error.is_none(),
                _ => false,
            };
            if !free {
                tracing::debug!(kind, "a stream nobody asked for is refused");
                stream.refuse().await;
                continue;
            }
            let Ok((receiver, sender)) = stream.reply().await else {
                return false;
            };
            let input = portforward::input(receiver);
            match kind.as_str() {
                "stdin" | "resize" => {
                    let place = if kind == "stdin" {
                        &mut remote.stdin
                    } else {
                        &mut remote.resize
                    };
                    *place = Some(input);
                    idle_outputs.push(sender);
                }
                _ => {
                    let place = match kind.as_str() {
                        "stdout" => &mut remote.stdout,
                        "stderr" => &mut remote.stderr,
                        _ => &mut remote.error,
                    };
                    *place = Some(Box::new(sender));
                    idle_inputs.push(input);
                }
            }
            missing -= 1;
        }
        true
    };
    match tokio::time::timeout(STREAMS_TIMEOUT, gather).await {
        Ok(true) => {}
        Ok(false) => return,
        Err(_) => {
            tracing::debug!("timed out waiting for client to create streams");
            return;
        }
    }
    let refuse_more = async {
        while let Some(stream) = connection.accept().await {
            stream.refuse().await;
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = job.run(remote) => {}
        () = refuse_more => {}
    }
    for mut sender in idle_outputs {
        sender.finish().await;
    }
}

/// Forwards ports on an upgraded connection.
pub async fn forward<IO>(
    io: IO,
    transport: Transport,
    protocol: Option<&'static str>,
    target: portforward::Target,
    ports: Vec<u16>,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match (transport, protocol) {
        (Transport::Spdy, _) => {
            session::run(io, |connection| portforward::serve_spdy(connection, target)).await
        }
        (Transport::WebSocket, Some(FORWARD_TUNNEL)) => {
            websocket::tunnel(io, |inner| {
                session::run(inner, |connection| portforward::serve_spdy(connection, target))
            })
            .await;
        }
        (Transport::WebSocket, _) => {
            let inputs = portforward::inputs(&ports);
            let serve = |channels| portforward::serve_channels(channels, ports, target);
            websocket::run(io, form(protocol), &inputs, serve).await;
        }
    }
}

/// A future that is run when its connection was upgraded.
pub type Upgraded = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_versions() {
        for (protocol, want, base64, can_close) in [
            (None, 1, false, false),
            (Some("channel.k8s.io"), 1, false, false),
            (Some("base64.channel.k8s.io"), 1, true, false),
            (Some("v3.channel.k8s.io"), 3, false, false),
            (Some("v4.base64.channel.k8s.io"), 4, true, false),
            (Some("v5.channel.k8s.io"), 5, false, true),
        ] {
            assert_eq!(
                (version(protocol), form(protocol)),
                (want, Form { base64, can_close }),
                "{protocol:?}"
            );
        }
    }
}
