//! Exec and attach: byte streams between a caller and a process in a container.
//!
//! An exec has FIFOs of its own, read by the caller directly. An attach gets a copy of what the log pump
//! sees, and writes to the container's stdin FIFO. Closing stdin is a call to the shim, which holds the
//! FIFO open itself: that is what keeps stdin alive while skiff restarts.

use super::client::call;
use super::container::{Fifos, PROCESS_TYPE};
use super::pump::{Piece, Stream};
use super::{Inner, spec};
use crate::runtime::{ByteReader, ByteWriter, Result, RuntimeError, Session};
use crate::types::*;
use containerd_client::services::v1 as api;
use containerd_client::types::v1 as task;
use futures::StreamExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Bytes between a caller's stream and a FIFO.
const BUFFER_BYTES: usize = 32 * 1024;
/// Size changes that wait.
const RESIZES_MAX: usize = 4;
/// How long output of an ended command may go on (a background child holds it open) before it is cut.
const LINGER: Duration = Duration::from_secs(30);
/// The same for exec_sync, where nobody reads slowly.
const SYNC_LINGER: Duration = Duration::from_secs(1);

/// A reader that tells when it is done with.
struct Watched {
    inner: pipe::Receiver,
    open: Option<mpsc::Sender<()>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &polled
            && buf.filled().len() == before
            && buf.remaining() > 0
        {
            self.open = None;
        }
        polled
    }
}

fn failed(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> RuntimeError {
    let text = format!("{what} {}", path.display());
    move |error| RuntimeError::Internal(format!("{text}: {error}"))
}

impl Inner {
    /// See [`crate::runtime::Runtime::exec`].
    pub(super) async fn exec(self: &Arc<Self>, id: &str, request: ExecRequest) -> Result<Session> {
        if request.command.is_empty() {
            return Err(RuntimeError::Invalid("exec without a command".to_owned()));
        }
        let record = self.record(id).await?;
        let running = self
            .task(id)
            .await?
            .is_some_and(|task| task.status() == task::Status::Running);
        if !running {
            return Err(RuntimeError::Precondition(format!(
                "container {id} is not running"
            )));
        }
        let exec_id = format!("exec-{}", super::random_id(16));
        let folder = self.fifos(id, &record.meta.config).folder.join(&exec_id);
        let fifos = Fifos::at(folder, request.stdin, request.tty);
        fifos.make().map_err(failed("prepare", &fifos.folder))?;
        let started = self
            .start_exec(id, &exec_id, &record.spec(), &request, &fifos)
            .await;
        if started.is_err() {
            self.delete_exec(id, &exec_id).await;
            fifos.remove();
        }
        started
    }

    async fn start_exec(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
        spec: &serde_json::Value,
        request: &ExecRequest,
        fifos: &Fifos,
    ) -> Result<Session> {
        // Opened before the shim opens its ends, so that nothing is missed. Unwanted streams are opened and
        // drained too, else the command would block on them.
        let (open, mut closed) = mpsc::channel::<()>(1);
        let reader = |path: &Path| -> Result<Watched> {
            let inner = pipe::OpenOptions::new()
                .open_receiver(path)
                .map_err(failed("open", path))?;
            Ok(Watched {
                inner,
                open: Some(open.clone()),
            })
        };
        let stdout = reader(&fifos.stdout)?;
        let stderr = fifos.stderr.as_deref().map(reader).transpose()?;
        drop(open);
        let process = spec::exec_process(spec, &request.command, request.tty);
        let exec = api::ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: Fifos::text(fifos.stdin.as_ref()),
            stdout: Fifos::text(Some(&fifos.stdout)),
            stderr: Fifos::text(fifos.stderr.as_ref()),
            terminal: request.tty,
            spec: Some(prost_types::Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: serde_json::to_vec(&process).unwrap_or_default(),
            }),
        };
        let what = || format!("exec in container {id}");
        self.client
            .tasks()
            .exec(self.client.request(exec))
            .await
            .map_err(call(what()))?;
        let start = api::StartRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        let started = self.client.tasks().start(self.client.request(start)).await;
        started.map_err(|status| RuntimeError::StartFailed(status.message().to_owned()))?;
        let stdin = match &fifos.stdin {
            Some(path) => Some(self.feed(path, id, exec_id, true)?),
            None => None,
        };
        let (resize, resizes) = mpsc::channel(RESIZES_MAX);
        let (sender, exit) = oneshot::channel();
        let (inner, fifos) = (self.clone(), fifos.clone());
        let (container, exec) = (id.to_owned(), exec_id.to_owned());
        let tty = request.tty;
        tokio::spawn(async move {
            let resizing = inner
                .clone()
                .resize(container.clone(), exec.clone(), resizes, tty);
            tokio::select! {
                () = inner.watch_exec(&container, &exec, sender) => {}
                () = resizing => {}
            }
            // What the command wrote is in the FIFOs; the shim closes them when no process has them open.
            let _ = tokio::time::timeout(LINGER, closed.recv()).await;
            inner.delete_exec(&container, &exec).await;
            fifos.remove();
        });
        let take = |reader: Watched, wanted: bool| -> Option<ByteReader> {
            if wanted {
                return Some(Box::new(reader));
            }
            tokio::spawn(drain(reader));
            None
        };
        Ok(Session {
            stdin,
            stdout: take(stdout, request.stdout),
            stderr: stderr.and_then(|reader| take(reader, request.stderr)),
            resize,
            exit,
        })
    }

    /// Waits for the end of an exec and reports it; kills the command when nobody waits any more.
    async fn watch_exec(&self, id: &str, exec_id: &str, mut exit: oneshot::Sender<Result<i32>>) {
        let wait = || async {
            let message = api::WaitRequest {
                container_id: id.to_owned(),
                exec_id: exec_id.to_owned(),
            };
            let mut backoff =
                skiff_base::backoff::Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
            loop {
                match self
                    .client
                    .tasks()
                    .wait(self.client.endless(message.clone()))
                    .await
                {
                    Ok(answer) => return Ok(answer.into_inner().exit_status as i32),
                    // containerd restarts; the command goes on.
                    Err(status) if status.code() == tonic::Code::Unavailable => {
                        tokio::time::sleep(backoff.next()).await;
                    }
                    Err(status) => return Err(RuntimeError::from(call("wait for a command")(status))),
                }
            }
        };
        let ended = tokio::select! {
            ended = wait() => Some(ended),
            () = exit.closed() => None,
        };
        match ended {
            Some(ended) => {
                let _ = exit.send(ended);
            }
            None => {
                let message = api::KillRequest {
                    container_id: id.to_owned(),
                    exec_id: exec_id.to_owned(),
                    signal: libc::SIGKILL as u32,
                    all: false,
                };
                if let Err(status) = self.client.tasks().kill(self.client.request(message)).await {
                    tracing::debug!(container = id, %status, "abandoned command not killed");
                }
                let _ = wait().await;
            }
        }
    }

    async fn resize(
        self: Arc<Self>,
        id: String,
        exec_id: String,
        mut sizes: mpsc::Receiver<TerminalSize>,
        tty: bool,
    ) {
        while let Some(size) = sizes.recv().await {
            if !tty {
                continue;
            }
            let message = api::ResizePtyRequest {
                container_id: id.clone(),
                exec_id: exec_id.clone(),
                width: u32::from(size.width),
                height: u32::from(size.height),
            };
            if let Err(status) = self.client.tasks().resize_pty(self.client.request(message)).await {
                tracing::debug!(container = id, %status, "terminal not resized");
            }
        }
        std::future::pending().await
    }

    async fn delete_exec(&self, id: &str, exec_id: &str) {
        let message = api::DeleteProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
        };
        if let Err(status) = self
            .client
            .tasks()
            .delete_process(self.client.request(message))
            .await
        {
            tracing::trace!(container = id, %status, "exec not deleted");
        }
    }

    /// A writer whose bytes go to a stdin FIFO, and whose end closes the process's stdin when asked to.
    fn feed(self: &Arc<Self>, path: &Path, id: &str, exec_id: &str, close: bool) -> Result<ByteWriter> {
        // Both directions: opening never blocks or fails for lack of a reader.
        let opened = pipe::OpenOptions::new().read_write(true).open_sender(path);
        let mut fifo = opened.map_err(failed("open", path))?;
        let (writer, mut reader) = tokio::io::duplex(BUFFER_BYTES);
        let inner = self.clone();
        let message = api::CloseIoRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin: true,
        };
        tokio::spawn(async move {
            let copied = tokio::io::copy(&mut reader, &mut fifo).await;
            drop(fifo);
            if let Err(error) = copied {
                tracing::debug!(container = message.container_id, %error, "stdin broke");
            }
            if close && let Err(status) = inner.client.tasks().close_io(inner.client.request(message)).await {
                tracing::trace!(%status, "stdin not closed");
            }
        });
        Ok(Box::new(writer))
    }

    /// See [`crate::runtime::Runtime::exec_sync`].
    pub(super) async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutput> {
        let request = ExecRequest {
            command: command.to_vec(),
            stdout: true,
            stderr: true,
            ..ExecRequest::default()
        };
        let whole = async {
            let session = self.exec(id, request).await?;
            let collect = |reader: Option<ByteReader>| async move {
                let (sender, kept) = oneshot::channel();
                // A task of its own: what was read so far can be had even when the stream stays open.
                let (stop, mut stopped) = oneshot::channel::<()>();
                tokio::spawn(async move {
                    let mut kept = Vec::new();
                    if let Some(mut reader) = reader {
                        tokio::select! {
                            () = keep(&mut reader, &mut kept) => {}
                            _ = &mut stopped => {}
                        }
                    }
                    let _ = sender.send(kept);
                });
                (stop, kept)
            };
            let (stop_out, out) = collect(session.stdout).await;
            let (stop_err, err) = collect(session.stderr).await;
            let exit_code = session.exit.await.unwrap_or_else(|_| {
                Err(RuntimeError::Internal(format!(
                    "exec in container {id} ended without a result"
                )))
            })?;
            let linger = tokio::time::sleep(SYNC_LINGER);
            tokio::spawn(async move {
                linger.await;
                let _ = (stop_out.send(()), stop_err.send(()));
            });
            let (stdout, stderr) = (out.await.unwrap_or_default(), err.await.unwrap_or_default());
            Ok(ExecOutput {
                exit_code,
                stdout,
                stderr,
            })
        };
        // Dropping the session on timeout kills the command.
        match tokio::time::timeout(timeout, whole).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RuntimeError::Timeout(format!(
                "command {:?} in container {id}",
                command.join(" ")
            ))),
        }
    }

    /// See [`crate::runtime::Runtime::attach`].
    pub(super) async fn attach(self: &Arc<Self>, id: &str, request: AttachRequest) -> Result<Session> {
        let record = self.record(id).await?;
        let mut events = self.subscribe();
        let Some(pieces) = self.pump.subscribe(id) else {
            return Err(RuntimeError::Precondition(format!(
                "container {id} is not running"
            )));
        };
        let config = &record.meta.config;
        let stdin = match (request.stdin, &self.fifos(id, config).stdin) {
            (true, Some(path)) => Some(self.feed(path, id, "", config.stdin_once)?),
            (true, None) => {
                return Err(RuntimeError::Precondition(format!(
                    "container {id} has no stdin to attach to"
                )));
            }
            (false, _) => None,
        };
        let (stdout_in, stdout) = tokio::io::duplex(BUFFER_BYTES);
        let (stderr_in, stderr) = tokio::io::duplex(BUFFER_BYTES);
        let stdout_in = request.stdout.then_some(stdout_in);
        let stderr_in = (request.stderr && !config.tty).then_some(stderr_in);
        let (resize, resizes) = mpsc::channel(RESIZES_MAX);
        let (sender, exit) = oneshot::channel();
        let (inner, container, tty) = (self.clone(), id.to_owned(), config.tty);
        tokio::spawn(async move {
            tokio::select! {
                () = forward(pieces, stdout_in, stderr_in) => {}
                () = inner.resize(container.clone(), String::new(), resizes, tty) => {}
            }
            while let Some(event) = events.next().await {
                if let RuntimeEvent::ContainerExited { id, exit_code, .. } = event
                    && id == container
                {
                    let _ = sender.send(Ok(exit_code));
                    return;
                }
                if sender.is_closed() {
                    return;
                }
            }
        });
        let wanted = |reader: DuplexStream, wanted: bool| wanted.then(|| Box::new(reader) as ByteReader);
        Ok(Session {
            stdin,
            stdout: wanted(stdout, request.stdout),
            stderr: wanted(stderr, request.stderr && !config.tty),
            resize,
            exit,
        })
    }
}

/// Copies pieces to attached streams until the container's output ends or nobody reads.
async fn forward(
    mut pieces: broadcast::Receiver<Piece>,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
) {
    loop {
        match pieces.recv().await {
            Ok((stream, bytes)) => {
                let target = match stream {
                    Stream::Stdout => &mut stdout,
                    Stream::Stderr => &mut stderr,
                };
                if let Some(writer) = target
                    && writer.write_all(&bytes).await.is_err()
                {
                    *target = None;
                }
                if stdout.is_none() && stderr.is_none() {
                    return;
                }
            }
            Err(broadcast::error::RecvError::Lagged(pieces)) => {
                tracing::debug!(pieces, "an attached client is too slow and lost output");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

async fn keep(reader: &mut ByteReader, kept: &mut Vec<u8>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count) = reader.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        let room = EXEC_SYNC_OUTPUT_MAX_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

async fn drain(mut reader: Watched) {
    let _ = tokio::io::copy(&mut reader, &mut tokio::io::sink()).await;
}
