//! The runtime contract kept with containerd and runc.
//!
//! ```text
//! Containerd ── Inner ─┬─ client ─── containerd (daemon.rs keeps it running)
//!                      ├─ sandboxes  pinned namespaces, records
//!                      ├─ container  records, tasks, life        spec, user, cgroup, seccomp: pure
//!                      ├─ session    exec, attach
//!                      ├─ pump       FIFOs → logs                one thread
//!                      ├─ events     exits, OOM                  one task
//!                      └─ images     content, archive, registry
//! ```
//!
//! State: containers and images are in containerd, sandboxes are folders under the runtime folder.
//! Nothing is kept in memory that a restart would lose.

pub mod archive;
pub mod cgroup;
pub mod client;
pub mod container;
pub mod content;
pub mod daemon;
mod events;
mod helper;
pub mod images;
pub mod log;
pub mod pump;
pub mod registry;
pub mod sandbox;
pub mod seccomp;
mod session;
pub mod spec;
pub mod user;

pub use daemon::{Daemon, DaemonConfig, DaemonError};
pub use helper::terminate_keeper;
pub use log::LogLimits;
pub use registry::Registries;

use crate::runtime::*;
use crate::types::*;
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use skiff_base::clock::Clock;
use skiff_base::lifecycle::Shutdown;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

/// Events kept for a slow subscriber before it gets [`RuntimeEvent::Resync`]: two for each container of a
/// full node.
const EVENTS_MAX: usize = 512;
/// Time limit of a version call.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// How to run containers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder on a tmpfs for sandboxes and FIFOs, for example `/run/skiff`.
    pub state: PathBuf,
    /// containerd's root, for the image filesystem's figures.
    pub root: PathBuf,
    /// containerd's socket.
    pub socket: PathBuf,
    /// containerd namespace; the customary one lets other tools find the containers.
    pub namespace: String,
    /// A static binary with the commands `pause` (init of shared process namespaces) and `keep-fifos`
    /// (keeps output while skiff restarts): skiff itself. Without it shareProcessNamespace is refused, and
    /// the last output of a container that ends while skiff is away is lost.
    pub helper_binary: Option<PathBuf>,
    /// Log rotation.
    pub log_limits: LogLimits,
    /// Mirrors, credentials and certificates of registries.
    pub registries: Registries,
    /// Images that need no registry: made on this machine when asked for.
    pub local_images: Vec<LocalImage>,
}

/// An image made on the machine that runs it.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// Its reference.
    pub reference: String,
    /// Writes an OCI archive that holds it to the given path.
    pub make: fn(&Path) -> std::io::Result<()>,
}

impl Config {
    /// The usual settings for a containerd and a runtime folder.
    pub fn new(daemon: &DaemonConfig, run: &Path) -> Self {
        Self {
            state: run.to_path_buf(),
            root: daemon.root.clone(),
            socket: daemon.socket(),
            namespace: "k8s.io".to_owned(),
            helper_binary: None,
            log_limits: LogLimits::default(),
            registries: Registries::default(),
            local_images: Vec::new(),
        }
    }
}

/// A [`Runtime`] on containerd.
pub struct Containerd {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: Config,
    clock: Arc<dyn Clock>,
    client: client::Client,
    images: images::Images,
    sandboxes: sandbox::Sandboxes,
    pump: pump::Pump,
    host: spec::HostFacts,
    events: broadcast::Sender<RuntimeEvent>,
    /// Containers the kernel reported out of memory, until their exit is recorded.
    oomed: Mutex<HashSet<String>>,
    /// One lock a container: start, finish and remove exclude each other.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// A local image is made once, however many pods ask for it at the same time.
    making: tokio::sync::Mutex<()>,
}

impl Containerd {
    /// Connects to a running containerd (see [`Daemon::ensure`]), takes up what runs already and follows
    /// events until shutdown. One process a runtime folder does the latter: in any other (a command line,
    /// or an agent started while the last one is still stopping) the runtime gives orders and answers
    /// questions at once, and takes over as soon as the first one is gone.
    pub async fn connect(config: Config, clock: Arc<dyn Clock>, shutdown: &Shutdown) -> Result<Arc<Self>> {
        let inner = Inner::new(config, clock)?;
        let state = &inner.config.state;
        let failed = |error: std::io::Error| RuntimeError::Internal(format!("{}: {error}", state.display()));
        inner.ensure_namespace().await?;
        let lock = helper::Lock::open(&inner.config.state).map_err(failed)?;
        if lock.try_take().map_err(failed)? {
            inner.resync().await?;
            let serve = serve(inner.clone(), lock);
            shutdown.spawn_until_cancelled("containerd-serve", serve);
        } else {
            tracing::debug!(
                "another process serves this node's containers, not taking them over while it runs"
            );
            let waiting = inner.clone();
            shutdown.spawn_until_cancelled("containerd-serve", async move {
                match lock.take().await {
                    Ok(lock) => serve(waiting, lock).await,
                    Err(error) => tracing::error!(%error, "cannot take over this node's containers"),
                }
            });
        }
        Ok(Arc::new(Self { inner }))
    }

    /// Connects for work on images, beside the process that runs the containers:
    /// their output and their exits are left to that one.
    pub async fn connect_for_images(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let inner = Inner::new(config, clock)?;
        inner.ensure_namespace().await?;
        Ok(Arc::new(Self { inner }))
    }
}

/// What only one process a node may do: pump output, record ends, keep the keeper.
async fn serve(inner: Arc<Inner>, lock: helper::Lock) {
    tokio::join!(helper::keep_keeper(inner.clone()), events::run(inner));
    drop(lock);
}

impl Inner {
    fn new(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let client = client::Client::new(&config.socket, &config.namespace)?;
        let state = config.state.clone();
        let failed = |error: std::io::Error| RuntimeError::Internal(format!("{}: {error}", state.display()));
        let sandboxes = sandbox::Sandboxes::open(&config.state).map_err(failed)?;
        let (events, _) = broadcast::channel(EVENTS_MAX);
        Ok(Arc::new(Self {
            images: images::Images::new(client.clone()),
            client,
            sandboxes,
            pump: pump::Pump::start(clock.clone()).map_err(failed)?,
            host: cgroup::host_facts(),
            events,
            oomed: Mutex::default(),
            locks: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            clock,
            config,
        }))
    }

    /// Makes and loads an image of this machine's own.
    async fn make_local(&self, local: &LocalImage) -> Result<Image> {
        let _one = self.making.lock().await;
        if let Some(image) = self
            .images
            .find(&local.reference)
            .await
            .map_err(image_error(&local.reference))?
        {
            return Ok(image);
        }
        let archive = self.config.root.with_extension(format!("{}.tar", random_id(8)));
        let (make, path) = (local.make, archive.clone());
        let made = tokio::task::spawn_blocking(move || make(&path)).await;
        let outcome = match made {
            Ok(Ok(())) => match std::fs::File::open(&archive) {
                Ok(file) => self.import(Box::new(file), &local.reference).await,
                Err(error) => Err(RuntimeError::Internal(format!("{}: {error}", archive.display()))),
            },
            Ok(Err(error)) => Err(RuntimeError::Internal(format!(
                "making image {}: {error}",
                local.reference
            ))),
            Err(error) => Err(RuntimeError::Internal(error.to_string())),
        };
        let _ = std::fs::remove_file(&archive);
        outcome?.into_iter().next().ok_or_else(|| RuntimeError::NotFound {
            kind: "image",
            name: local.reference.clone(),
        })
    }

    async fn ensure_namespace(&self) -> Result<()> {
        use containerd_client::services::v1 as api;
        let namespace = api::Namespace {
            name: self.config.namespace.clone(),
            ..Default::default()
        };
        let request = self.client.request(api::CreateNamespaceRequest {
            namespace: Some(namespace),
        });
        match self
            .client
            .namespaces()
            .create(request)
            .await
            .map_err(client::call("make namespace"))
        {
            Err(error) if !error.is_exists() => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn emit(&self, event: RuntimeEvent) {
        // Without subscribers there is nobody to tell.
        let _ = self.events.send(event);
    }

    fn subscribe(&self) -> EventStream {
        let stream = BroadcastStream::new(self.events.subscribe());
        stream.map(|event| event.unwrap_or(RuntimeEvent::Resync)).boxed()
    }

    async fn lock(&self, id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = self.locks.lock().entry(id.to_owned()).or_default().clone();
        lock.lock_owned().await
    }

    fn unlock(&self, id: &str) {
        self.locks.lock().remove(id);
    }

    fn get_sandbox(&self, id: &str) -> Result<Sandbox> {
        let missing = || RuntimeError::NotFound {
            kind: "sandbox",
            name: id.to_owned(),
        };
        self.sandboxes.get(id).ok_or_else(missing)
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox> {
        if config.share_process_namespace && config.host_pid {
            return Err(RuntimeError::Invalid(
                "shareProcessNamespace and hostPID exclude each other".to_owned(),
            ));
        }
        let (id, now, sandboxes) = (random_id(64), self.clock.now(), self.sandboxes.clone());
        let name = id.clone();
        let made = tokio::task::spawn_blocking(move || sandboxes.create(&name, config, now)).await;
        let made = made.map_err(|error| RuntimeError::Internal(error.to_string()))?;
        let sandbox = made.map_err(|error| RuntimeError::Internal(error.to_string()))?;
        if sandbox.config.share_process_namespace
            && let Err(error) = self.start_init(&sandbox).await
        {
            if let Err(again) = self.remove_sandbox(&id).await {
                tracing::warn!(sandbox = id, error = %again, "half-made sandbox not removed");
            }
            return Err(error);
        }
        Ok(sandbox)
    }

    async fn containers_of(&self, sandbox: &str) -> Result<Vec<container::Record>> {
        Ok(self
            .records()
            .await?
            .into_iter()
            .filter(|record| record.sandbox == sandbox)
            .collect())
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        // The init last: with it the kernel kills everything in its namespace, logs and exits get lost.
        let (inits, plain): (Vec<_>, Vec<_>) = self
            .containers_of(id)
            .await?
            .into_iter()
            .partition(|record| record.is_init);
        let stops = plain.iter().map(|record| self.stop(&record.id, Duration::ZERO));
        futures::future::try_join_all(stops).await?;
        for record in inits {
            self.remove(&record.id).await?;
        }
        self.blocking(id, sandbox::Sandboxes::stop).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.stop_sandbox(id).await?;
        for record in self.containers_of(id).await? {
            self.remove(&record.id).await?;
        }
        self.blocking(id, sandbox::Sandboxes::remove).await
    }

    async fn blocking(
        &self,
        id: &str,
        work: fn(&sandbox::Sandboxes, &str) -> std::result::Result<(), sandbox::SandboxError>,
    ) -> Result<()> {
        let (sandboxes, id) = (self.sandboxes.clone(), id.to_owned());
        let done = tokio::task::spawn_blocking(move || work(&sandboxes, &id)).await;
        let done = done.map_err(|error| RuntimeError::Internal(error.to_string()))?;
        done.map_err(|error| RuntimeError::Internal(error.to_string()))
    }

    async fn import(&self, archive: Box<dyn std::io::Read + Send>, what: &str) -> Result<Vec<Image>> {
        let lease = self.client.lease(self.clock.now()).await?;
        let imported = archive::import(&self.images, &lease, archive).await;
        lease.end().await;
        let ids = imported.map_err(|error| error.into_runtime(what))?;
        let images = self
            .images
            .list()
            .await
            .map_err(|error| error.into_runtime(what))?;
        Ok(images
            .into_iter()
            .filter(|image| ids.contains(&image.id))
            .collect())
    }
}

fn image_error(reference: &str) -> impl Fn(images::ImageError) -> RuntimeError {
    let reference = reference.to_owned();
    move |error| error.into_runtime(&reference)
}

#[async_trait]
impl Runtime for Containerd {
    async fn version(&self) -> Result<RuntimeVersion> {
        let version = self.inner.client.version(VERSION_TIMEOUT).await?;
        Ok(RuntimeVersion {
            name: "containerd".to_owned(),
            version: version.trim_start_matches('v').to_owned(),
        })
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox> {
        self.inner.run_sandbox(config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.inner.stop_sandbox(id).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.inner.remove_sandbox(id).await
    }

    async fn sandboxes(&self) -> Result<Vec<Sandbox>> {
        self.inner
            .sandboxes
            .list()
            .map_err(|error| RuntimeError::Internal(format!("list sandboxes: {error}")))
    }

    async fn sandbox(&self, id: &str) -> Result<Sandbox> {
        self.inner.get_sandbox(id)
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<String> {
        self.inner.create(sandbox, config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.inner.start(id).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.inner.stop(id, grace).await
    }

    async fn signal_container(&self, id: &str, signal: i32) -> Result<()> {
        self.inner.signal(id, signal).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.inner.remove(id).await
    }

    async fn containers(&self) -> Result<Vec<Container>> {
        let (records, tasks) = tokio::try_join!(self.inner.records(), self.inner.tasks())?;
        let visible = records.iter().filter(|record| !record.is_init);
        Ok(visible
            .map(|record| record.to_container(tasks.get(&record.id)))
            .collect())
    }

    async fn container(&self, id: &str) -> Result<Container> {
        let (record, task) = tokio::try_join!(self.inner.record(id), self.inner.task(id))?;
        Ok(record.to_container(task.as_ref()))
    }

    async fn exec_sync(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput> {
        self.inner.exec_sync(id, command, timeout).await
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Session> {
        self.inner.exec(id, request).await
    }

    async fn attach(&self, id: &str, request: AttachRequest) -> Result<Session> {
        self.inner.attach(id, request).await
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        let inner = &self.inner;
        let record = inner.record(id).await?;
        let mut rootfs = inner.images.snapshot_usage(id).await.map_err(image_error(id))?;
        rootfs.path = inner.config.root.clone();
        cgroup::stats(&inner.host, &record.meta.cgroup, inner.clock.now(), rootfs).map_err(
            |error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    RuntimeError::Precondition(format!("container {id} is not running"))
                }
                _ => RuntimeError::Internal(format!("usage of container {id}: {error}")),
            },
        )
    }

    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        self.inner.update(id, resources).await
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let reopened = self.inner.pump.reopen(id).await;
        reopened.map_err(|error| RuntimeError::Internal(format!("log of container {id}: {error}")))
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<ImageAuth>,
        progress: Option<Progress>,
    ) -> Result<Image> {
        let inner = &self.inner;
        if let Some(local) = inner
            .config
            .local_images
            .iter()
            .find(|local| local.reference == reference)
        {
            return inner.make_local(local).await;
        }
        let parsed = crate::reference::Reference::parse(reference);
        let parsed = parsed.map_err(|error| RuntimeError::Invalid(error.to_string()))?;
        let lease = inner.client.lease(inner.clock.now()).await?;
        let pulled = registry::pull(
            &inner.images,
            &lease,
            &inner.config.registries,
            &parsed,
            auth,
            progress,
        )
        .await;
        lease.end().await;
        let id = pulled.map_err(image_error(reference))?;
        let found = inner.images.find(&id).await.map_err(image_error(reference))?;
        found.ok_or_else(|| RuntimeError::NotFound {
            kind: "image",
            name: reference.to_owned(),
        })
    }

    async fn images(&self) -> Result<Vec<Image>> {
        self.inner.images.list().await.map_err(image_error("list"))
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        self.inner
            .images
            .find(reference)
            .await
            .map_err(image_error(reference))
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.inner
            .images
            .remove(reference)
            .await
            .map_err(image_error(reference))
    }

    async fn import_image(&self, archive: &Path) -> Result<Vec<Image>> {
        let what = archive.display().to_string();
        let file = std::fs::File::open(archive)
            .map_err(|error| RuntimeError::Invalid(format!("image archive {what}: {error}")))?;
        self.inner.import(Box::new(file), &what).await
    }

    async fn import_image_stream(&self, archive: ByteReader) -> Result<Vec<Image>> {
        self.inner
            .import(Box::new(tokio_util::io::SyncIoBridge::new(archive)), "archive")
            .await
    }

    async fn image_fs(&self) -> Result<FsUsage> {
        let root = &self.inner.config.root;
        self.inner
            .images
            .usage(root)
            .await
            .map_err(image_error("image filesystem"))
    }

    fn events(&self) -> EventStream {
        self.inner.subscribe()
    }
}

/// Lower-case hexadecimal digits of fresh randomness.
pub fn random_id(digits: usize) -> String {
    let bytes: Vec<u8> = (0..digits.div_ceil(2)).map(|_| rand::random()).collect();
    let mut text = crate::reference::hex(&bytes);
    text.truncate(digits);
    text
}

/// A time as logs and labels carry it, always nine digits of a second.
pub fn rfc3339(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => format!("{time:.9}"),
        Err(_) => "1970-01-01T00:00:00.000000000Z".to_owned(),
    }
}

/// Reads such a time.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}
