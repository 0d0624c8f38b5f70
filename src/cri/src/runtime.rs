//! The contract between the kubelet and whatever runs containers.
//!
//! The shape follows the Container Runtime Interface (sandboxes, containers, images, events), with
//! three differences: streams are plain [`AsyncRead`]/[`AsyncWrite`] values in this process, network
//! set-up is the caller's (through [`Sandbox::netns`]), and state changes arrive as [`RuntimeEvent`]s.
//!
//! Every operation is idempotent where that makes sense: stopping what is stopped and removing what
//! is gone succeed. Dropping a future never leaves half a container behind that a later
//! [`Runtime::remove_container`] could not clear.

use crate::types::*;
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

/// Bytes from a process (its stdout or stderr).
pub type ByteReader = Box<dyn AsyncRead + Send + Unpin>;
/// Bytes to a process (its stdin). Dropping or shutting it down closes the process's stdin.
pub type ByteWriter = Box<dyn AsyncWrite + Send + Unpin>;
/// Runtime events, from the moment of the subscription on. Ends only with the runtime.
pub type EventStream = BoxStream<'static, RuntimeEvent>;
/// Result of runtime operations.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// What went wrong, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The named thing does not exist.
    #[error("{kind} {name} not found")]
    NotFound {
        /// "container", "sandbox" or "image"
        kind: &'static str,
        /// its id or reference
        name: String,
    },
    /// The named thing exists already.
    #[error("{kind} {name} already exists")]
    Exists {
        /// "container", "sandbox" or "image"
        kind: &'static str,
        /// its id or reference
        name: String,
    },
    /// The request can never succeed as it stands (kubelet: CreateContainerConfigError, InvalidImageName).
    #[error("{0}")]
    Invalid(String),
    /// The thing is in a state that does not allow the operation (for example exec in a stopped container).
    #[error("{0}")]
    Precondition(String),
    /// The process could not be started (kubelet: RunContainerError; the message is the one of runc).
    #[error("{0}")]
    StartFailed(String),
    /// An image could not be fetched or unpacked (kubelet: ErrImagePull).
    #[error("image {reference}: {message}")]
    Image {
        /// the image reference as asked for
        reference: String,
        /// what happened
        message: String,
        /// false when trying again cannot help (unknown image, access denied)
        retry: bool,
    },
    /// The operation took longer than allowed.
    #[error("{0} timed out")]
    Timeout(String),
    /// The runtime cannot be reached right now.
    #[error("container runtime is not available: {0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Internal(String),
}

impl RuntimeError {
    /// True for [`RuntimeError::NotFound`].
    pub fn is_not_found(&self) -> bool {
        matches!(self, RuntimeError::NotFound { .. })
    }
}

/// What a container runtime offers to the kubelet.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Name and version of the runtime; fails while it cannot be reached (node condition Ready).
    async fn version(&self) -> Result<RuntimeVersion>;

    /// Makes a sandbox: pinned namespaces, hostname, `/dev/shm`, `resolv.conf`. The loopback link is up;
    /// everything else in the network namespace is up to the caller.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox>;
    /// Kills what still runs in the sandbox and releases its namespaces. The record stays.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Stops, then removes the sandbox, its containers and its record.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// All sandboxes.
    async fn sandboxes(&self) -> Result<Vec<Sandbox>>;
    /// One sandbox.
    async fn sandbox(&self, id: &str) -> Result<Sandbox>;

    /// Makes a container in a sandbox without starting it; the image must be present. Returns its id.
    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<String>;
    /// Starts a created container. A container starts once.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, waits up to `grace` for the exit, then SIGKILL. Returns after the exit.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Sends one signal (by number) to the container's first process.
    async fn signal_container(&self, id: &str, signal: i32) -> Result<()>;
    /// Removes a container with its writable layer; kills it first when it runs. The log stays.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// All containers.
    async fn containers(&self) -> Result<Vec<Container>>;
    /// One container.
    async fn container(&self, id: &str) -> Result<Container>;

    /// Runs a command to its end in a container and collects bounded output.
    /// On timeout the command is killed and [`RuntimeError::Timeout`] is returned.
    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput>;
    /// Starts a command with streams.
    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Session>;
    /// Connects to the streams of the container's first process. Output starts from now.
    async fn attach(&self, id: &str, request: AttachRequest) -> Result<Session>;

    /// Usage figures of one container.
    async fn container_stats(&self, id: &str) -> Result<ContainerStats>;
    /// Changes limits of a container (in place for a running one).
    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()>;
    /// Closes and reopens the log file (after the caller moved it).
    async fn reopen_log(&self, id: &str) -> Result<()>;

    /// Fetches an image from its registry and unpacks it.
    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<ImageAuth>,
        progress: Option<Progress>,
    ) -> Result<Image>;
    /// All images.
    async fn images(&self) -> Result<Vec<Image>>;
    /// The image behind a reference or an image id, if present.
    async fn image(&self, reference: &str) -> Result<Option<Image>>;
    /// Removes an image: by id with all its names, by name that name only.
    async fn remove_image(&self, reference: &str) -> Result<()>;
    /// Loads an OCI or docker archive (plain, gzip or zstd) from a file.
    async fn import_image(&self, archive: &Path) -> Result<Vec<Image>>;
    /// Loads an OCI or docker archive (plain, gzip or zstd) from a stream.
    async fn import_image_stream(&self, archive: ByteReader) -> Result<Vec<Image>>;
    /// Space taken by images and writable layers.
    async fn image_fs(&self) -> Result<FsUsage>;

    /// Subscribes to events. A subscriber that falls behind gets [`RuntimeEvent::Resync`].
    fn events(&self) -> EventStream;
}

/// Streams of an exec or attach session.
pub struct Session {
    /// Present when stdin was asked for.
    pub stdin: Option<ByteWriter>,
    /// Present when stdout was asked for. Ends when the process's output ends.
    pub stdout: Option<ByteReader>,
    /// Present when stderr was asked for and there is no terminal.
    pub stderr: Option<ByteReader>,
    /// Terminal size changes; ignored without a terminal.
    pub resize: mpsc::Sender<TerminalSize>,
    /// The exit code, once. Dropping the session kills an exec'd command whose exit is not known yet.
    pub exit: oneshot::Receiver<Result<i32>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}
