//! A runtime in memory, for tests of the components above.
//!
//! It keeps the contract (states, idempotence, events) and does nothing on the host. Tests program it:
//!
//! ```no_run
//! # async fn t() -> skiff_cri::Result<()> {
//! use skiff_cri::{fake::FakeRuntime, *};
//! let runtime = FakeRuntime::new(skiff_base::clock::system());
//! runtime.add_image("docker.io/library/web:1", ImageConfig::default()); // present on the node
//! runtime.add_remote_image("docker.io/library/db:1", ImageConfig::default()); // can be pulled
//! runtime.fail("start_container", 2, || RuntimeError::StartFailed("no such file".into())); // the next two
//! runtime.on_exec(|_container, command| Ok(ExecOutput { exit_code: command.len() as i32, ..Default::default() }));
//! runtime.ignore_stop_signal("slow"); // containers of this name live until SIGKILL
//! let sandbox = runtime.run_sandbox(SandboxConfig::default()).await?;
//! runtime.exit_container("web", 1); // by container name or id
//! assert!(runtime.calls().iter().any(|call| call.starts_with("run_sandbox")));
//! # Ok(()) }
//! ```

use crate::runtime::*;
use crate::types::*;
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use skiff_base::clock::Clock;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::wrappers::BroadcastStream;

/// Events kept for a slow subscriber before it gets [`RuntimeEvent::Resync`].
const EVENTS_MAX: usize = 1024;
/// Bytes buffered in a fake attach or exec stream.
const STREAM_BUFFER_BYTES: usize = 64 * 1024;

type ExecHandler = Arc<dyn Fn(&str, &[String]) -> Result<ExecOutput> + Send + Sync>;
type MakeError = Arc<dyn Fn() -> RuntimeError + Send + Sync>;

/// See the module documentation.
pub struct FakeRuntime {
    clock: Arc<dyn Clock>,
    events: broadcast::Sender<RuntimeEvent>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sequence: u64,
    available: bool,
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Entry>,
    images: BTreeMap<String, Image>,
    remote: BTreeMap<String, ImageConfig>,
    failures: HashMap<&'static str, VecDeque<MakeError>>,
    exec: Option<ExecHandler>,
    stubborn: HashSet<String>,
    auths: Vec<(String, Option<ImageAuth>)>,
    calls: Vec<String>,
}

struct Entry {
    container: Container,
    config: ContainerConfig,
    stats: ContainerStats,
    resources: Resources,
    output: broadcast::Sender<Vec<u8>>,
    input: Arc<Mutex<Vec<u8>>>,
}

impl FakeRuntime {
    /// An empty runtime.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let state = State {
            available: true,
            ..State::default()
        };
        Arc::new(Self {
            clock,
            events,
            state: Mutex::new(state),
        })
    }

    /// Puts an image on the node. The name is normalized.
    pub fn add_image(&self, reference: &str, config: ImageConfig) {
        let image = fake_image(reference, config);
        self.state.lock().images.insert(normal(reference), image);
    }

    /// Lets an image be pulled.
    pub fn add_remote_image(&self, reference: &str, config: ImageConfig) {
        self.state.lock().remote.insert(normal(reference), config);
    }

    /// Makes the next `times` calls of the named operation (a method name of [`Runtime`]) fail.
    pub fn fail(
        &self,
        operation: &'static str,
        times: usize,
        error: impl Fn() -> RuntimeError + Send + Sync + 'static,
    ) {
        let error: MakeError = Arc::new(error);
        let mut state = self.state.lock();
        state
            .failures
            .entry(operation)
            .or_default()
            .extend(std::iter::repeat_n(error, times));
    }

    /// Answers exec and exec_sync. The handler gets the container's name and the command.
    pub fn on_exec(&self, handler: impl Fn(&str, &[String]) -> Result<ExecOutput> + Send + Sync + 'static) {
        self.state.lock().exec = Some(Arc::new(handler));
    }

    /// Containers of this name ignore the stop signal and end by SIGKILL after the grace period.
    pub fn ignore_stop_signal(&self, name: &str) {
        self.state.lock().stubborn.insert(name.to_owned());
    }

    /// Makes every call fail as unavailable, or work again (which sends a Resync).
    pub fn set_available(&self, available: bool) {
        self.state.lock().available = available;
        if available {
            let _ = self.events.send(RuntimeEvent::Resync);
        }
    }

    /// Ends the running container with this id or name. Panics when there is none: a mistake in the test.
    pub fn exit_container(&self, id_or_name: &str, exit_code: i32) {
        let id = self.running(id_or_name);
        self.finish(&id, exit_code, None);
    }

    /// Ends the running container with this id or name as the kernel's OOM killer would.
    pub fn oom_container(&self, id_or_name: &str) {
        let id = self.running(id_or_name);
        let sandbox = self.state.lock().containers[&id].container.sandbox.clone();
        let _ = self.events.send(RuntimeEvent::ContainerOom {
            id: id.clone(),
            sandbox,
        });
        self.finish(&id, 137, Some("OOMKilled"));
    }

    /// Forgets everything that runs, as a reboot does: sandboxes vanish, running containers end with 255.
    pub fn reboot(&self) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.sandboxes.clear();
        for entry in state.containers.values_mut() {
            if entry.container.state == ContainerState::Running {
                entry.container.pid = None;
                entry.container.state = exited(255, now, "ContainerStatusUnknown");
            }
        }
        let _ = self.events.send(RuntimeEvent::Resync);
    }

    /// Output of a container, seen by attach.
    pub fn write_output(&self, id_or_name: &str, bytes: &[u8]) {
        let id = self.running(id_or_name);
        let _ = self.state.lock().containers[&id].output.send(bytes.to_vec());
    }

    /// What attach sessions wrote to the container's stdin so far.
    pub fn input(&self, id: &str) -> Vec<u8> {
        self.state
            .lock()
            .containers
            .get(id)
            .map(|entry| entry.input.lock().clone())
            .unwrap_or_default()
    }

    /// Sets usage figures.
    pub fn set_stats(&self, id: &str, stats: ContainerStats) {
        if let Some(entry) = self.state.lock().containers.get_mut(id) {
            entry.stats = stats;
        }
    }

    /// The configuration a container was made with.
    pub fn config(&self, id: &str) -> Option<ContainerConfig> {
        self.state
            .lock()
            .containers
            .get(id)
            .map(|entry| entry.config.clone())
    }

    /// The limits a container has now.
    pub fn resources(&self, id: &str) -> Option<Resources> {
        self.state
            .lock()
            .containers
            .get(id)
            .map(|entry| entry.resources.clone())
    }

    /// Credentials of every pull, in order.
    pub fn pulls(&self) -> Vec<(String, Option<ImageAuth>)> {
        self.state.lock().auths.clone()
    }

    /// Every changing call so far, as `operation argument`.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    fn running(&self, id_or_name: &str) -> String {
        let state = self.state.lock();
        state
            .containers
            .values()
            .map(|entry| &entry.container)
            .find(|c| (c.id == id_or_name || c.name == id_or_name) && c.state == ContainerState::Running)
            .unwrap_or_else(|| panic!("no running container {id_or_name}"))
            .id
            .clone()
    }

    fn finish(&self, id: &str, exit_code: i32, reason: Option<&str>) {
        let finished_at = self.clock.now();
        let mut state = self.state.lock();
        let Some(entry) = state.containers.get_mut(id) else {
            return;
        };
        if entry.container.state != ContainerState::Running {
            return;
        }
        entry.container.pid = None;
        let plain = if exit_code == 0 { "Completed" } else { "Error" };
        entry.container.state = exited(exit_code, finished_at, reason.unwrap_or(plain));
        let sandbox = entry.container.sandbox.clone();
        drop(state);
        let event = RuntimeEvent::ContainerExited {
            id: id.to_owned(),
            sandbox,
            exit_code,
            finished_at,
        };
        let _ = self.events.send(event);
    }

    /// Common head of every operation: availability, the call log, programmed failures.
    fn enter(&self, operation: &'static str, argument: &str) -> Result<()> {
        let mut state = self.state.lock();
        state
            .calls
            .push(format!("{operation} {argument}").trim_end().to_owned());
        if !state.available {
            return Err(RuntimeError::Unavailable("switched off".to_owned()));
        }
        match state.failures.get_mut(operation).and_then(VecDeque::pop_front) {
            Some(error) => Err(error()),
            None => Ok(()),
        }
    }

    fn available(&self) -> Result<()> {
        match self.state.lock().available {
            true => Ok(()),
            false => Err(RuntimeError::Unavailable("switched off".to_owned())),
        }
    }

    fn run_exec(&self, id: &str, command: &[String]) -> Result<ExecOutput> {
        let (name, handler) = {
            let state = self.state.lock();
            let entry = state
                .containers
                .get(id)
                .ok_or_else(|| not_found("container", id))?;
            if entry.container.state != ContainerState::Running {
                return Err(RuntimeError::Precondition(format!(
                    "container {id} is not running"
                )));
            }
            (entry.container.name.clone(), state.exec.clone())
        };
        match handler {
            Some(handler) => handler(&name, command),
            None => Ok(ExecOutput::default()),
        }
    }
}

fn normal(reference: &str) -> String {
    crate::reference::normalize(reference).unwrap_or_else(|_| reference.to_owned())
}

fn fake_image(reference: &str, config: ImageConfig) -> Image {
    let name = normal(reference);
    let digest = crate::reference::sha256_digest(name.as_bytes());
    let repository = name
        .split_once('@')
        .map_or(name.as_str(), |(repository, _)| repository);
    let repository = match repository.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => repository,
    };
    Image {
        id: digest.clone(),
        repo_digests: vec![format!("{repository}@{digest}")],
        repo_tags: vec![name],
        size_bytes: 1024,
        config,
        pinned: false,
    }
}

fn exited(exit_code: i32, finished_at: std::time::SystemTime, reason: &str) -> ContainerState {
    ContainerState::Exited {
        exit_code,
        finished_at,
        reason: reason.to_owned(),
        message: String::new(),
    }
}

fn not_found(kind: &'static str, name: &str) -> RuntimeError {
    RuntimeError::NotFound {
        kind,
        name: name.to_owned(),
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<RuntimeVersion> {
        self.available()?;
        Ok(RuntimeVersion {
            name: "fake".to_owned(),
            version: "1.0".to_owned(),
        })
    }

    async fn run_sandbox(&self, config: SandboxConfig) -> Result<Sandbox> {
        self.enter("run_sandbox", &format!("{}/{}", config.namespace, config.name))?;
        let mut state = self.state.lock();
        state.sequence += 1;
        let id = format!("sandbox-{}", state.sequence);
        let netns = (!config.host_network).then(|| format!("/fake/{id}/net").into());
        let sandbox = Sandbox {
            id: id.clone(),
            config,
            ready: true,
            created_at: self.clock.now(),
            netns,
        };
        state.sandboxes.insert(id, sandbox.clone());
        Ok(sandbox)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.enter("stop_sandbox", id)?;
        let running: Vec<String> = {
            let mut state = self.state.lock();
            if let Some(sandbox) = state.sandboxes.get_mut(id) {
                sandbox.ready = false;
            }
            let of_sandbox = state.containers.values().map(|entry| &entry.container);
            of_sandbox
                .filter(|c| c.sandbox == id)
                .map(|c| c.id.clone())
                .collect()
        };
        for container in running {
            self.finish(&container, 137, None);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.enter("remove_sandbox", id)?;
        self.stop_sandbox(id).await?;
        let mut state = self.state.lock();
        state.sandboxes.remove(id);
        state.containers.retain(|_, entry| entry.container.sandbox != id);
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<Sandbox>> {
        self.available()?;
        Ok(self.state.lock().sandboxes.values().cloned().collect())
    }

    async fn sandbox(&self, id: &str) -> Result<Sandbox> {
        self.available()?;
        self.state
            .lock()
            .sandboxes
            .get(id)
            .cloned()
            .ok_or_else(|| not_found("sandbox", id))
    }

    async fn create_container(&self, sandbox: &str, config: ContainerConfig) -> Result<String> {
        self.enter("create_container", &config.name)?;
        let image = self
            .image(&config.image)
            .await?
            .ok_or_else(|| not_found("image", &config.image))?;
        let mut state = self.state.lock();
        match state.sandboxes.get(sandbox) {
            None => return Err(not_found("sandbox", sandbox)),
            Some(found) if !found.ready => {
                return Err(RuntimeError::Precondition(format!(
                    "sandbox {sandbox} is not ready"
                )));
            }
            Some(_) => {}
        }
        state.sequence += 1;
        let id = format!("container-{}", state.sequence);
        let now = self.clock.now();
        let container = Container {
            id: id.clone(),
            sandbox: sandbox.to_owned(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: image.repo_digests.first().unwrap_or(&image.id).clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: config.log_path.clone(),
            state: ContainerState::Created,
            created_at: now,
            started_at: None,
            pid: None,
            user: Some(ContainerUser::default()),
        };
        let stats = ContainerStats {
            at: now,
            cpu_usage_ns: 0,
            memory_usage_bytes: 0,
            memory_working_set_bytes: 0,
            memory_rss_bytes: 0,
            memory_page_faults: 0,
            memory_major_page_faults: 0,
            pids: 1,
            rootfs: FsUsage::default(),
        };
        let (output, _) = broadcast::channel(EVENTS_MAX);
        let resources = config.resources.clone();
        state.containers.insert(
            id.clone(),
            Entry {
                container,
                config,
                stats,
                resources,
                output,
                input: Arc::default(),
            },
        );
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.enter("start_container", id)?;
        let mut state = self.state.lock();
        let sequence = state.sequence as u32;
        let entry = state
            .containers
            .get_mut(id)
            .ok_or_else(|| not_found("container", id))?;
        if entry.container.state != ContainerState::Created {
            return Err(RuntimeError::Precondition(format!(
                "container {id} was started before"
            )));
        }
        entry.container.state = ContainerState::Running;
        entry.container.started_at = Some(self.clock.now());
        entry.container.pid = Some(1000 + sequence);
        let sandbox = entry.container.sandbox.clone();
        let _ = self.events.send(RuntimeEvent::ContainerStarted {
            id: id.to_owned(),
            sandbox,
        });
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        self.enter("stop_container", &format!("{id} {}s", grace.as_secs()))?;
        let stubborn = {
            let state = self.state.lock();
            let Some(entry) = state.containers.get(id) else {
                return Ok(());
            };
            state.stubborn.contains(&entry.container.name)
        };
        if stubborn {
            tokio::time::sleep(grace).await;
        }
        self.finish(id, if stubborn || grace.is_zero() { 137 } else { 143 }, None);
        Ok(())
    }

    async fn signal_container(&self, id: &str, signal: i32) -> Result<()> {
        self.enter("signal_container", &format!("{id} {signal}"))?;
        if signal == 9 {
            self.finish(id, 137, None);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        self.enter("remove_container", id)?;
        self.finish(id, 137, None);
        self.state.lock().containers.remove(id);
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<Container>> {
        self.available()?;
        Ok(self
            .state
            .lock()
            .containers
            .values()
            .map(|entry| entry.container.clone())
            .collect())
    }

    async fn container(&self, id: &str) -> Result<Container> {
        self.available()?;
        let state = self.state.lock();
        state
            .containers
            .get(id)
            .map(|entry| entry.container.clone())
            .ok_or_else(|| not_found("container", id))
    }

    async fn exec_sync(&self, id: &str, command: &[String], _timeout: Duration) -> Result<ExecOutput> {
        self.enter("exec_sync", &format!("{id} {}", command.join(" ")))?;
        self.run_exec(id, command)
    }

    async fn exec(&self, id: &str, request: ExecRequest) -> Result<Session> {
        self.enter("exec", &format!("{id} {}", request.command.join(" ")))?;
        let output = self.run_exec(id, &request.command)?;
        let (exit_sender, exit) = oneshot::channel();
        let _ = exit_sender.send(Ok(output.exit_code));
        let (resize, _) = mpsc::channel(1);
        let reader = |bytes: Vec<u8>| Box::new(std::io::Cursor::new(bytes)) as ByteReader;
        Ok(Session {
            stdin: request.stdin.then(|| Box::new(tokio::io::sink()) as ByteWriter),
            stdout: request.stdout.then(|| reader(output.stdout)),
            stderr: (request.stderr && !request.tty).then(|| reader(output.stderr)),
            resize,
            exit,
        })
    }

    async fn attach(&self, id: &str, request: AttachRequest) -> Result<Session> {
        self.enter("attach", id)?;
        let (mut output, input) = {
            let state = self.state.lock();
            let entry = state
                .containers
                .get(id)
                .ok_or_else(|| not_found("container", id))?;
            if entry.container.state != ContainerState::Running {
                return Err(RuntimeError::Precondition(format!(
                    "container {id} is not running"
                )));
            }
            (entry.output.subscribe(), entry.input.clone())
        };
        let (stdin_in, mut stdin_out) = tokio::io::duplex(STREAM_BUFFER_BYTES);
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stdin_out.read(&mut buffer).await {
                input.lock().extend_from_slice(&buffer[..count]);
            }
        });
        let (exit_sender, exit) = oneshot::channel();
        let mut events = self.events();
        let (mut stdout_in, stdout_out) = tokio::io::duplex(STREAM_BUFFER_BYTES);
        let id = id.to_owned();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    bytes = output.recv() => match bytes {
                        Ok(bytes) => if stdout_in.write_all(&bytes).await.is_err() { return },
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                    event = events.next() => match event {
                        Some(RuntimeEvent::ContainerExited { id: exited, exit_code, .. }) if exited == id => {
                            let _ = exit_sender.send(Ok(exit_code));
                            return;
                        }
                        Some(_) => {}
                        None => return,
                    },
                }
            }
        });
        let (resize, _) = mpsc::channel(1);
        Ok(Session {
            stdin: request.stdin.then(|| Box::new(stdin_in) as ByteWriter),
            stdout: request.stdout.then(|| Box::new(stdout_out) as ByteReader),
            stderr: request.stderr.then(|| Box::new(tokio::io::empty()) as ByteReader),
            resize,
            exit,
        })
    }

    async fn container_stats(&self, id: &str) -> Result<ContainerStats> {
        self.available()?;
        let state = self.state.lock();
        state
            .containers
            .get(id)
            .map(|entry| entry.stats.clone())
            .ok_or_else(|| not_found("container", id))
    }

    async fn update_resources(&self, id: &str, resources: &Resources) -> Result<()> {
        self.enter("update_resources", id)?;
        let mut state = self.state.lock();
        let entry = state
            .containers
            .get_mut(id)
            .ok_or_else(|| not_found("container", id))?;
        entry.resources = resources.clone();
        Ok(())
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.enter("reopen_log", id)
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: Option<ImageAuth>,
        progress: Option<Progress>,
    ) -> Result<Image> {
        self.enter("pull_image", reference)?;
        let name = normal(reference);
        let mut state = self.state.lock();
        state.auths.push((reference.to_owned(), auth));
        let Some(config) = state.remote.get(&name).cloned() else {
            return Err(RuntimeError::Image {
                reference: reference.to_owned(),
                message: "not found in the registry".to_owned(),
                retry: false,
            });
        };
        let image = fake_image(&name, config);
        state.images.insert(name, image.clone());
        drop(state);
        if let Some(progress) = progress {
            let (fetched_bytes, total_bytes) = (image.size_bytes, image.size_bytes);
            progress(PullProgress {
                fetched_bytes,
                total_bytes,
                layers_unpacked: 1,
                layers_total: 1,
            });
        }
        Ok(image)
    }

    async fn images(&self) -> Result<Vec<Image>> {
        self.available()?;
        Ok(self.state.lock().images.values().cloned().collect())
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>> {
        self.available()?;
        let name = normal(reference);
        let state = self.state.lock();
        let matches = |image: &&Image| {
            image.id == reference || image.repo_tags.contains(&name) || image.repo_digests.contains(&name)
        };
        Ok(state.images.values().find(matches).cloned())
    }

    async fn remove_image(&self, reference: &str) -> Result<()> {
        self.enter("remove_image", reference)?;
        let name = normal(reference);
        self.state
            .lock()
            .images
            .retain(|key, image| *key != name && image.id != reference);
        Ok(())
    }

    async fn import_image(&self, archive: &Path) -> Result<Vec<Image>> {
        self.enter("import_image", &archive.display().to_string())?;
        let stem = archive
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        self.add_image(&stem, ImageConfig::default());
        Ok(self.image(&stem).await?.into_iter().collect())
    }

    async fn import_image_stream(&self, _archive: ByteReader) -> Result<Vec<Image>> {
        self.enter("import_image_stream", "")?;
        Err(RuntimeError::Invalid(
            "the fake runtime cannot read archives".to_owned(),
        ))
    }

    async fn image_fs(&self) -> Result<FsUsage> {
        self.available()?;
        let used_bytes = self
            .state
            .lock()
            .images
            .values()
            .map(|image| image.size_bytes)
            .sum();
        Ok(FsUsage {
            path: "/fake/images".into(),
            used_bytes,
            inodes_used: 0,
        })
    }

    fn events(&self) -> EventStream {
        BroadcastStream::new(self.events.subscribe())
            .map(|event| event.unwrap_or(RuntimeEvent::Resync))
            .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_base::clock::ManualClock;
    use std::time::SystemTime;

    async fn with_container() -> (Arc<FakeRuntime>, String) {
        let runtime = FakeRuntime::new(ManualClock::new(SystemTime::UNIX_EPOCH));
        runtime.add_image("web", ImageConfig::default());
        let sandbox = runtime.run_sandbox(SandboxConfig::default()).await.unwrap();
        let config = ContainerConfig {
            name: "web".into(),
            image: "web".into(),
            ..ContainerConfig::default()
        };
        let id = runtime.create_container(&sandbox.id, config).await.unwrap();
        (runtime, id)
    }

    #[tokio::test]
    async fn a_container_lives_and_dies_with_events() {
        let (runtime, id) = with_container().await;
        let mut events = runtime.events();
        runtime.start_container(&id).await.unwrap();
        assert!(runtime.start_container(&id).await.is_err(), "starts once");
        runtime.exit_container("web", 3);
        assert!(matches!(
            events.next().await,
            Some(RuntimeEvent::ContainerStarted { .. })
        ));
        assert!(matches!(
            events.next().await,
            Some(RuntimeEvent::ContainerExited { exit_code: 3, .. })
        ));
        let state = runtime.container(&id).await.unwrap().state;
        assert_eq!(state, exited(3, SystemTime::UNIX_EPOCH, "Error"));
    }

    #[tokio::test]
    async fn failures_are_used_up() {
        let (runtime, id) = with_container().await;
        runtime.fail("start_container", 1, || RuntimeError::StartFailed("no".into()));
        assert!(matches!(
            runtime.start_container(&id).await,
            Err(RuntimeError::StartFailed(_))
        ));
        runtime.start_container(&id).await.unwrap();
    }

    #[tokio::test]
    async fn pulls_what_is_remote_and_nothing_else() {
        let (runtime, _) = with_container().await;
        runtime.add_remote_image("db:1", ImageConfig::default());
        assert!(runtime.image("docker.io/library/db:1").await.unwrap().is_none());
        runtime.pull_image("db:1", None, None).await.unwrap();
        assert!(runtime.image("docker.io/library/db:1").await.unwrap().is_some());
        assert!(runtime.pull_image("other", None, None).await.is_err());
    }
}
