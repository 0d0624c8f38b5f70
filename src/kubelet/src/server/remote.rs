//! Exec and attach, apart from how their streams travel: pumps between a runtime's session and the client's streams,
//! and the status that ends them.

use std::future::Future;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_cri::{ByteReader, ByteWriter, RuntimeError, Session, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::Refusal;
use super::query::Query;
use super::session::Gone;

/// Bytes read from a process at a time.
const READ_BYTES: usize = 32 * 1024;
/// An unfinished size message; a whole one is under 40 bytes.
const SIZE_MAX_BYTES: usize = 1024;

/// Bytes from the client.
pub type Input = BoxStream<'static, Bytes>;

/// Bytes to the client.
#[async_trait]
pub trait Output: Send {
    /// Sends bytes; waits while the client is slow.
    async fn write(&mut self, bytes: Bytes) -> Result<(), Gone>;
    /// Says that nothing more comes.
    async fn finish(&mut self);
}

/// Which streams a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; never with a terminal, which has one output.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

impl Wanted {
    /// Reads the query.
    pub fn parse(query: &Query) -> Result<Wanted, Refusal> {
        let tty = query.flag("tty");
        let wanted = Wanted {
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr") && !tty,
            tty,
        };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            return Err(Refusal::bad(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        Ok(wanted)
    }
}

/// How the final status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusForm {
    /// A Status object, also for success.
    Json,
    /// The text of a failure, nothing for success: protocols before version 4.
    Text,
}

/// The client's side.
pub struct Remote {
    /// Present when asked for.
    pub stdin: Option<Input>,
    /// Terminal sizes as JSON.
    pub resize: Option<Input>,
    /// Present when asked for.
    pub stdout: Option<Box<dyn Output>>,
    /// Present when asked for.
    pub stderr: Option<Box<dyn Output>>,
    /// Takes the final status.
    pub error: Option<Box<dyn Output>>,
    /// How it is written.
    pub form: StatusForm,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command, whose exit code matters.
    Exec(Vec<String>),
    /// The container's own process; its end is a success for whoever watched.
    Attach,
}

/// Runs to the end: session started, streams pumped, status sent. Dropping it drops the session.
pub async fn run(start: impl Future<Output = Result<Session, RuntimeError>>, kind: Kind, mut remote: Remote) {
    let status = match start.await {
        Ok(session) => pump(session, &kind, &mut remote).await,
        Err(error) => failure(&kind, &error.to_string()),
    };
    for output in [&mut remote.stdout, &mut remote.stderr].into_iter().flatten() {
        output.finish().await;
    }
    let Some(mut error) = remote.error else { return };
    let text = match remote.form {
        StatusForm::Json => status.to_string(),
        StatusForm::Text if status["status"] == "Success" => String::new(),
        StatusForm::Text => status["message"].as_str().unwrap_or_default().to_owned(),
    };
    if text.is_empty() || error.write(text.into()).await.is_ok() {
        error.finish().await;
    }
}

async fn pump(session: Session, kind: &Kind, remote: &mut Remote) -> Value {
    let Session {
        stdin,
        stdout,
        stderr,
        resize,
        exit,
    } = session;
    let input = feed(stdin, remote.stdin.take());
    let sizes = resizes(resize, remote.resize.take());
    let output = async {
        tokio::join!(copy(stdout, &mut remote.stdout), copy(stderr, &mut remote.stderr));
        exit.await
    };
    let background = async {
        tokio::join!(input, sizes);
        std::future::pending::<()>().await
    };
    let ended = tokio::select! {
        ended = output => ended,
        () = background => return failure(kind, "streams ended"),
    };
    match (kind, ended) {
        (Kind::Attach, Ok(Ok(_))) | (Kind::Exec(_), Ok(Ok(0))) => {
            json!({"metadata": {}, "status": "Success"})
        }
        (Kind::Exec(command), Ok(Ok(code))) => exited(command, code),
        (_, Ok(Err(error))) => failure(kind, &error.to_string()),
        (_, Err(_)) => failure(kind, "the runtime lost track of it"),
    }
}

fn exited(command: &[String], code: i32) -> Value {
    let message = format!(
        "command terminated with non-zero exit code: error executing command [{}], exit code {code}",
        command.join(" ")
    );
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(kind: &Kind, error: &str) -> Value {
    let cause = match kind {
        Kind::Exec(_) => format!("error executing command in container: {error}"),
        Kind::Attach => format!("error attaching to container: {error}"),
    };
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("Internal error occurred: {cause}"),
        "reason": "InternalError",
        "details": {"causes": [{"message": cause}]},
        "code": 500,
    })
}

/// Process to client. A process whose client does not listen any more is not held up: the connection's end drops all.
async fn copy(reader: Option<ByteReader>, output: &mut Option<Box<dyn Output>>) {
    let (Some(mut reader), Some(output)) = (reader, output.as_mut()) else {
        return;
    };
    let mut buffer = BytesMut::new();
    let mut listening = true;
    loop {
        buffer.reserve(READ_BYTES);
        match reader.read_buf(&mut buffer).await {
            Ok(0) => break,
            Ok(_) => {
                let bytes = buffer.split().freeze();
                listening = listening && output.write(bytes).await.is_ok();
            }
            Err(error) => {
                tracing::debug!(%error, "a process's output cannot be read");
                break;
            }
        }
    }
    output.finish().await;
}

/// Client to process. What comes after the process closed its input is read and dropped, so that it does not hold up
/// the other streams of the connection.
async fn feed(writer: Option<ByteWriter>, input: Option<Input>) {
    let Some(mut input) = input else { return };
    if let Some(mut writer) = writer {
        while let Some(bytes) = input.next().await {
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    }
    while input.next().await.is_some() {}
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", default)]
    width: u16,
    #[serde(rename = "Height", default)]
    height: u16,
}

/// Takes whole size messages off the front of `buffer`; what cannot become one is thrown away.
fn sizes(buffer: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut found = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Size>();
    let rest = loop {
        match stream.next() {
            Some(Ok(size)) if size.width > 0 && size.height > 0 => {
                found.push(TerminalSize {
                    width: size.width,
                    height: size.height,
                });
            }
            Some(Ok(_)) => {}
            Some(Err(error)) if error.is_eof() && buffer.len() - stream.byte_offset() < SIZE_MAX_BYTES => {
                break stream.byte_offset();
            }
            Some(Err(_)) | None => break buffer.len(),
        }
    };
    buffer.drain(..rest);
    found
}

async fn resizes(resize: mpsc::Sender<TerminalSize>, input: Option<Input>) {
    let Some(mut input) = input else { return };
    let mut buffer = Vec::new();
    while let Some(bytes) = input.next().await {
        buffer.extend_from_slice(&bytes);
        // Only the newest size matters.
        if let Some(size) = sizes(&mut buffer).pop() {
            let _ = resize.send(size).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static [&'static str], &'static [(u16, u16)]);

    #[test]
    fn size_messages_may_be_split_or_glued() {
        let table: &[Case] = &[
            (&[r#"{"Width":80,"Height":24}"#], &[(80, 24)]),
            (&[r#"{"Width":80,"#, r#""Height":24}"#, "\n"], &[(80, 24)]),
            (
                &[
                    "{\"Width\":1,\"Height\":2}\n{\"Width\":3,\"Height\":4}\n{\"W",
                    "idth\":5,\"Height\":6}",
                ],
                &[(1, 2), (3, 4), (5, 6)],
            ),
            (
                &[
                    r#"{"Width":0,"Height":0}"#,
                    "nonsense",
                    r#"{"Width":7,"Height":8}"#,
                ],
                &[(7, 8)],
            ),
            (
                &[r#"{"Width":70000,"Height":1}"#, r#"{"Width":7,"Height":8}"#],
                &[(7, 8)],
            ),
        ];
        for (parts, want) in table {
            let (mut buffer, mut found) = (Vec::new(), Vec::new());
            for part in *parts {
                buffer.extend_from_slice(part.as_bytes());
                found.extend(
                    sizes(&mut buffer)
                        .into_iter()
                        .map(|size| (size.width, size.height)),
                );
            }
            assert_eq!(found, *want, "{parts:?}");
        }
        let mut endless = vec![b' '; 10];
        endless.extend(format!("{{\"x\":\"{}", "y".repeat(SIZE_MAX_BYTES)).bytes());
        sizes(&mut endless);
        assert!(endless.is_empty(), "an endless message is not kept");
    }

    #[test]
    fn one_stream_is_needed() {
        let parse = |text: &str| Wanted::parse(&Query::parse(text)).ok();
        assert_eq!(parse("command=ls"), None);
        assert_eq!(parse("stderr=true&tty=true"), None);
        let all = Wanted {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        assert_eq!(parse("stdin=true&stdout=1&stderr=true&tty=false"), Some(all));
        assert_eq!(
            parse("stdin=1&stdout=1&stderr=1&tty=1"),
            Some(Wanted {
                stderr: false,
                tty: true,
                ..all
            })
        );
    }
}
