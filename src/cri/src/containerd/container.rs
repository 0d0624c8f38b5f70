//! Containers: records in containerd, their tasks, their life.
//!
//! Everything about a container is in its containerd record, so that a restarted skiff knows it all:
//! labels for what is looked up or changes, one extension with the configuration.
//!
//! ```text
//! create: snapshot + record (under a lease)            no task, no started-at    Created
//! start:  FIFOs + log pump, task, started-at, go       task running              Running
//! exit:   finished-at, exit-code; task deleted; FIFOs drained into the log       Exited
//! ```
//!
//! The exit is written to the record *before* the task is deleted, so that no crash can lose it. A
//! record that was started but has neither task nor exit (the machine went down) is
//! `ContainerStatusUnknown`. [`Inner::finish`] may be called by the event stream, by stop and by a
//! resync at the same time; a lock per container makes it happen once.

use super::client::{CallError, call};
use super::images::{SNAPSHOTTER, layers_of};
use super::pump::Source;
use super::spec::{self, SandboxView};
use super::{Inner, cgroup, user};
use crate::runtime::{Result, RuntimeError};
use crate::types::*;
use containerd_client::services::v1 as api;
use containerd_client::types as wire;
use containerd_client::types::v1 as task;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const RUNTIME: &str = "io.containerd.runc.v2";
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// Type of the process of an exec.
pub const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const EXTENSION: &str = "skiff.io/container";
const LABEL_KIND: &str = "skiff.io/kind";
const LABEL_SANDBOX: &str = "skiff.io/sandbox-id";
const LABEL_NAME: &str = "skiff.io/container-name";
const LABEL_STARTED: &str = "skiff.io/started-at";
const LABEL_FINISHED: &str = "skiff.io/finished-at";
const LABEL_CODE: &str = "skiff.io/exit-code";
const LABEL_REASON: &str = "skiff.io/reason";
const LABEL_MESSAGE: &str = "skiff.io/message";
/// A label's name and value together may have 4096 bytes in containerd.
const MESSAGE_MAX_BYTES: usize = 2048;
/// Exit code of a container that could not be started, as in other runtimes.
const START_FAILED_CODE: i32 = 128;
/// Exit code when nobody saw the end.
const UNKNOWN_CODE: i32 = 255;
/// SIGKILL ends a process at once unless it hangs in the kernel (a dead network disk).
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// A sandbox without a record is being made, or was when skiff died: by then it is certainly the latter.
const ORPHAN_AGE: Duration = Duration::from_secs(60);

/// The configuration part of a record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// As asked for.
    pub config: ContainerConfig,
    /// Digest reference or id of the image.
    pub image_id: String,
    /// Who it runs as.
    pub user: ContainerUser,
    /// Signal to stop it.
    pub stop_signal: String,
    /// Control group.
    pub cgroup: String,
}

/// A record out of containerd, taken apart.
#[derive(Clone, Debug)]
pub struct Record {
    /// Container id.
    pub id: String,
    /// Sandbox id.
    pub sandbox: String,
    /// True for the init of a shared process namespace.
    pub is_init: bool,
    /// Configuration.
    pub meta: Meta,
    labels: HashMap<String, String>,
    spec: Option<prost_types::Any>,
    created_at: SystemTime,
}

impl Record {
    fn from_wire(container: api::Container) -> Option<Self> {
        let kind = container.labels.get(LABEL_KIND)?;
        let meta = match container.extensions.get(EXTENSION) {
            Some(extension) => match serde_json::from_slice(&extension.value) {
                Ok(meta) => meta,
                Err(error) => {
                    tracing::warn!(container = container.id, %error, "unreadable container record");
                    Meta::default()
                }
            },
            None => Meta::default(),
        };
        Some(Self {
            sandbox: container.labels.get(LABEL_SANDBOX).cloned().unwrap_or_default(),
            is_init: kind == "init",
            meta,
            created_at: time(container.created_at).unwrap_or(SystemTime::UNIX_EPOCH),
            id: container.id,
            labels: container.labels,
            spec: container.spec,
        })
    }

    /// The OCI specification.
    pub fn spec(&self) -> serde_json::Value {
        let value = self
            .spec
            .as_ref()
            .map(|spec| spec.value.as_slice())
            .unwrap_or_default();
        serde_json::from_slice(value).unwrap_or_default()
    }

    fn started_at(&self) -> Option<SystemTime> {
        self.labels
            .get(LABEL_STARTED)
            .and_then(|text| super::parse_rfc3339(text))
    }

    fn exit(&self) -> Option<ContainerState> {
        let finished_at = super::parse_rfc3339(self.labels.get(LABEL_FINISHED)?)?;
        let label = |name| self.labels.get(name).cloned().unwrap_or_default();
        Some(ContainerState::Exited {
            exit_code: label(LABEL_CODE).parse().unwrap_or(UNKNOWN_CODE),
            finished_at,
            reason: label(LABEL_REASON),
            message: label(LABEL_MESSAGE),
        })
    }

    /// State out of record and task.
    fn state(&self, task: Option<&task::Process>) -> ContainerState {
        use task::Status;
        if let Some(exit) = self.exit() {
            return exit;
        }
        match task.map(|task| (task.status(), task)) {
            Some((Status::Running | Status::Paused | Status::Pausing, _)) => ContainerState::Running,
            // Its end is known to containerd but not yet to the record.
            Some((Status::Stopped, task)) => ContainerState::Exited {
                exit_code: task.exit_status as i32,
                finished_at: time(task.exited_at).unwrap_or(self.created_at),
                reason: reason(task.exit_status as i32, false).to_owned(),
                message: String::new(),
            },
            Some((Status::Created | Status::Unknown, _)) => ContainerState::Created,
            None => match self.started_at() {
                None => ContainerState::Created,
                Some(started_at) => ContainerState::Exited {
                    exit_code: UNKNOWN_CODE,
                    finished_at: started_at,
                    reason: "ContainerStatusUnknown".to_owned(),
                    message: "the machine went down while the container was running".to_owned(),
                },
            },
        }
    }

    /// As the runtime contract words it.
    pub fn to_container(&self, task: Option<&task::Process>) -> Container {
        let state = self.state(task);
        let pid = match (&state, task) {
            (ContainerState::Running, Some(task)) => Some(task.pid),
            _ => None,
        };
        let config = &self.meta.config;
        Container {
            id: self.id.clone(),
            sandbox: self.sandbox.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id: self.meta.image_id.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            log_path: config.log_path.clone(),
            state,
            created_at: self.created_at,
            started_at: self.started_at(),
            pid,
            user: Some(self.meta.user.clone()),
        }
    }
}

/// A time of containerd.
pub fn time(stamp: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    stamp
        .and_then(|stamp| SystemTime::try_from(stamp).ok())
        .filter(|time| *time > SystemTime::UNIX_EPOCH)
}

fn reason(exit_code: i32, oom: bool) -> &'static str {
    match (oom, exit_code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    }
}

fn not_found(id: &str) -> RuntimeError {
    RuntimeError::NotFound {
        kind: "container",
        name: id.to_owned(),
    }
}

fn any(kind: &str, value: &impl Serialize) -> prost_types::Any {
    // Plain data: serialization cannot fail.
    prost_types::Any {
        type_url: kind.to_owned(),
        value: serde_json::to_vec(value).unwrap_or_default(),
    }
}

/// FIFOs of a process.
#[derive(Clone, Debug)]
pub struct Fifos {
    /// Their folder.
    pub folder: PathBuf,
    /// Standard input.
    pub stdin: Option<PathBuf>,
    /// Standard output, or the terminal.
    pub stdout: PathBuf,
    /// Standard error; none with a terminal.
    pub stderr: Option<PathBuf>,
}

impl Fifos {
    /// Paths only.
    pub fn at(folder: PathBuf, stdin: bool, tty: bool) -> Self {
        Self {
            stdin: stdin.then(|| folder.join("stdin")),
            stdout: folder.join("stdout"),
            stderr: (!tty).then(|| folder.join("stderr")),
            folder,
        }
    }

    /// Makes what is missing.
    pub fn make(&self) -> io::Result<()> {
        use nix::sys::stat::Mode;
        std::fs::create_dir_all(&self.folder)?;
        let paths = [self.stdin.as_ref(), Some(&self.stdout), self.stderr.as_ref()];
        for path in paths.into_iter().flatten() {
            match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(io::Error::other(format!("make FIFO {}: {errno}", path.display()))),
            }
        }
        Ok(())
    }

    /// Removes them with their folder.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %self.folder.display(), %error, "FIFOs not removed");
        }
    }

    /// A path as containerd takes it.
    pub fn text(path: Option<&PathBuf>) -> String {
        path.map(|path| path.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

impl Inner {
    /// FIFOs of a container's first process.
    pub(super) fn fifos(&self, id: &str, config: &ContainerConfig) -> Fifos {
        Fifos::at(
            super::helper::fifo_folder(&self.config.state).join(id),
            config.stdin,
            config.tty,
        )
    }

    fn source(&self, record: &Record) -> Source {
        let fifos = self.fifos(&record.id, &record.meta.config);
        Source {
            stdout: fifos.stdout,
            stderr: fifos.stderr,
            log: record.meta.config.log_path.clone(),
            limits: self.config.log_limits,
        }
    }

    /// All records of skiff.
    pub(super) async fn records(&self) -> Result<Vec<Record>> {
        let request = self.client.request(api::ListContainersRequest::default());
        let answer = self
            .client
            .containers()
            .list(request)
            .await
            .map_err(call("list containers"))?;
        Ok(answer
            .into_inner()
            .containers
            .into_iter()
            .filter_map(Record::from_wire)
            .collect())
    }

    /// All tasks by container id.
    pub(super) async fn tasks(&self) -> Result<HashMap<String, task::Process>> {
        let request = self.client.request(api::ListTasksRequest::default());
        let answer = self
            .client
            .tasks()
            .list(request)
            .await
            .map_err(call("list tasks"))?;
        // The list gives the container's id in `id`.
        Ok(answer
            .into_inner()
            .tasks
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect())
    }

    /// One record.
    pub(super) async fn record(&self, id: &str) -> Result<Record> {
        let request = self
            .client
            .request(api::GetContainerRequest { id: id.to_owned() });
        match self
            .client
            .containers()
            .get(request)
            .await
            .map_err(call(format!("container {id}")))
        {
            Ok(answer) => answer
                .into_inner()
                .container
                .and_then(Record::from_wire)
                .ok_or_else(|| not_found(id)),
            Err(error) if error.is_not_found() => Err(not_found(id)),
            Err(error) => Err(error.into()),
        }
    }

    /// One task, if there is any.
    pub(super) async fn task(&self, id: &str) -> Result<Option<task::Process>> {
        let message = api::GetRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        match self
            .client
            .tasks()
            .get(self.client.request(message))
            .await
            .map_err(call(format!("task {id}")))
        {
            Ok(answer) => Ok(answer.into_inner().process),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn set_labels(&self, id: &str, labels: Vec<(&str, String)>) -> std::result::Result<(), CallError> {
        let paths = labels.iter().map(|(name, _)| format!("labels.{name}")).collect();
        let labels = labels
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let container = api::Container {
            id: id.to_owned(),
            labels,
            ..Default::default()
        };
        let update_mask = Some(prost_types::FieldMask { paths });
        let message = api::UpdateContainerRequest {
            container: Some(container),
            update_mask,
        };
        let updated = self
            .client
            .containers()
            .update(self.client.request(message))
            .await;
        updated.map_err(call(format!("update container {id}")))?;
        Ok(())
    }

    /// How containers see a sandbox.
    pub(super) fn view(&self, sandbox: &Sandbox) -> SandboxView {
        let paths = self.sandboxes.paths(&sandbox.id);
        let own = |kind: &str, host: bool| (!host).then(|| paths.namespace(kind));
        SandboxView {
            id: sandbox.id.clone(),
            config: sandbox.config.clone(),
            net: own("net", sandbox.config.host_network),
            uts: own("uts", sandbox.config.host_network),
            ipc: own("ipc", sandbox.config.host_ipc),
            pid: None,
            shm: paths.shm(),
            hostname: paths.hostname(),
            resolv_conf: paths.resolv_conf(),
        }
    }

    /// See [`crate::runtime::Runtime::create_container`].
    pub(super) async fn create(&self, sandbox: &str, config: ContainerConfig) -> Result<String> {
        let sandbox = self.get_sandbox(sandbox)?;
        if !sandbox.ready {
            return Err(RuntimeError::Precondition(format!(
                "sandbox {} is not ready",
                sandbox.id
            )));
        }
        let lease = self.client.lease(self.clock.now()).await?;
        let id = super::random_id(64);
        let outcome = self.try_create(&id, &sandbox, config, &lease).await;
        if outcome.is_err() {
            self.remove_snapshot(&id).await;
        }
        lease.end().await;
        outcome.map(|()| id)
    }

    async fn try_create(
        &self,
        id: &str,
        sandbox: &Sandbox,
        config: ContainerConfig,
        lease: &super::client::Lease,
    ) -> Result<()> {
        let found = self.images.runnable(lease, &config.image).await;
        let found = found.map_err(|error| error.into_runtime(&config.image))?;
        let missing = || RuntimeError::NotFound {
            kind: "image",
            name: config.image.clone(),
        };
        let runnable = found.ok_or_else(missing)?;
        let image = runnable.image;
        let prepare = api::snapshots::PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: id.to_owned(),
            parent: runnable.chain_id,
            ..Default::default()
        };
        let prepared = self
            .client
            .snapshots()
            .prepare(self.client.leased(lease, prepare))
            .await;
        let mounts = prepared
            .map_err(call(format!("snapshot for container {id}")))?
            .into_inner()
            .mounts;
        let layers = layers_of(&mounts);
        let databases = tokio::task::spawn_blocking(move || user::Databases::read(&layers)).await;
        let databases = databases.unwrap_or_default();
        let invalid = |error: &dyn std::fmt::Display| RuntimeError::Invalid(error.to_string());
        let user =
            user::resolve(&image.config.user, &config.security, &databases).map_err(|e| invalid(&e))?;
        let mut view = self.view(sandbox);
        view.pid = self.pid_namespace(sandbox, &config).await?;
        let mut devices = Vec::new();
        for device in &config.devices {
            let found = cgroup::device(&device.host_path, &device.container_path).ok_or_else(|| {
                RuntimeError::Invalid(format!("{} is not a device", device.host_path.display()))
            })?;
            devices.push((found, device.permissions.clone()));
        }
        let input = spec::Input {
            id,
            config: &config,
            image: &image.config,
            sandbox: &view,
            user: &user,
            devices: &devices,
            host: &self.host,
        };
        let spec = spec::build(input).map_err(|error| invalid(&error))?;
        let stop_signal = config
            .stop_signal
            .clone()
            .unwrap_or_else(|| image.config.stop_signal.clone());
        let meta = Meta {
            image_id: image.repo_digests.first().unwrap_or(&image.id).clone(),
            user,
            stop_signal,
            cgroup: cgroup::path(&sandbox.config.cgroup_parent, id),
            config,
        };
        let labels = vec![
            (LABEL_KIND, "container".to_owned()),
            (LABEL_SANDBOX, sandbox.id.clone()),
            (LABEL_NAME, meta.config.name.clone()),
        ];
        let container = api::Container {
            id: id.to_owned(),
            labels: labels
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            image: image.repo_tags.first().unwrap_or(&image.id).clone(),
            runtime: Some(api::container::Runtime {
                name: RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(any(SPEC_TYPE, &spec)),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.to_owned(),
            extensions: HashMap::from([(EXTENSION.to_owned(), any(EXTENSION, &meta))]),
            ..Default::default()
        };
        let message = api::CreateContainerRequest {
            container: Some(container),
        };
        let created = self
            .client
            .containers()
            .create(self.client.leased(lease, message))
            .await;
        created.map_err(call(format!("record container {id}")))?;
        Ok(())
    }

    async fn pid_namespace(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<PathBuf>> {
        let of = |pid: u32| PathBuf::from(format!("/proc/{pid}/ns/pid"));
        let running =
            |task: Option<task::Process>| task.filter(|task| task.status() == task::Status::Running);
        if let PidMode::Container(target) = &config.pid {
            let task = running(self.task(target).await?);
            let task =
                task.ok_or_else(|| RuntimeError::Precondition(format!("container {target} is not running")))?;
            return Ok(Some(of(task.pid)));
        }
        if sandbox.config.host_pid || !sandbox.config.share_process_namespace {
            return Ok(None);
        }
        let task = running(self.task(&init_id(&sandbox.id)).await?);
        let task = task.ok_or_else(|| {
            RuntimeError::Precondition(format!("sandbox {} has lost its process namespace", sandbox.id))
        })?;
        Ok(Some(of(task.pid)))
    }

    /// Starts the init that holds a shared process namespace.
    pub(super) async fn start_init(&self, sandbox: &Sandbox) -> Result<()> {
        let Some(binary) = self.config.helper_binary.clone() else {
            return Err(RuntimeError::Invalid(
                "shareProcessNamespace needs the runtime's helper_binary, which is not configured".to_owned(),
            ));
        };
        let id = init_id(&sandbox.id);
        let rootfs = self.sandboxes.paths(&sandbox.id).init_rootfs();
        prepare_init_rootfs(&rootfs)
            .map_err(|error| RuntimeError::Internal(format!("prepare {}: {error}", rootfs.display())))?;
        let spec = spec::build_init(&id, &self.view(sandbox), &binary, &self.host);
        let labels = [
            (LABEL_KIND, "init".to_owned()),
            (LABEL_SANDBOX, sandbox.id.clone()),
        ];
        let container = api::Container {
            id: id.clone(),
            labels: labels
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            runtime: Some(api::container::Runtime {
                name: RUNTIME.to_owned(),
                options: None,
            }),
            spec: Some(any(SPEC_TYPE, &spec)),
            ..Default::default()
        };
        let message = api::CreateContainerRequest {
            container: Some(container),
        };
        let created = self
            .client
            .containers()
            .create(self.client.request(message))
            .await;
        created.map_err(call(format!("record container {id}")))?;
        let mount = wire::Mount {
            r#type: "bind".to_owned(),
            source: rootfs.to_string_lossy().into_owned(),
            options: vec!["rbind".to_owned(), "ro".to_owned()],
            ..Default::default()
        };
        let create = api::CreateTaskRequest {
            container_id: id.clone(),
            rootfs: vec![mount],
            ..Default::default()
        };
        self.run_task(&id, create).await
    }

    async fn run_task(&self, id: &str, create: api::CreateTaskRequest) -> Result<()> {
        let failed = |error: CallError| match error.code() {
            tonic::Code::Unavailable => RuntimeError::Unavailable(error.to_string()),
            _ => RuntimeError::StartFailed(plain(error.message())),
        };
        let created = self.client.tasks().create(self.client.request(create)).await;
        created
            .map_err(call(format!("create task {id}")))
            .map_err(failed)?;
        self.set_labels(id, vec![(LABEL_STARTED, super::rfc3339(self.clock.now()))])
            .await?;
        let message = api::StartRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let started = self.client.tasks().start(self.client.request(message)).await;
        started
            .map_err(call(format!("start task {id}")))
            .map_err(failed)?;
        Ok(())
    }

    /// See [`crate::runtime::Runtime::start_container`].
    pub(super) async fn start(&self, id: &str) -> Result<()> {
        let _guard = self.lock(id).await;
        let record = self.record(id).await?;
        if record.started_at().is_some() || record.exit().is_some() {
            return Err(RuntimeError::Precondition(format!(
                "container {id} was started before"
            )));
        }
        let mounts = api::snapshots::MountsRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: id.to_owned(),
        };
        let mounts = self.client.snapshots().mounts(self.client.request(mounts)).await;
        let rootfs = mounts
            .map_err(call(format!("root filesystem of {id}")))?
            .into_inner()
            .mounts;
        let fifos = self.fifos(id, &record.meta.config);
        let prepared = fifos
            .make()
            .and_then(|()| self.pump.add(id, &self.source(&record)));
        prepared.map_err(|error| RuntimeError::Internal(format!("output of container {id}: {error}")))?;
        let create = api::CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdin: Fifos::text(fifos.stdin.as_ref()),
            stdout: Fifos::text(Some(&fifos.stdout)),
            stderr: Fifos::text(fifos.stderr.as_ref()),
            terminal: record.meta.config.tty,
            ..Default::default()
        };
        if let Err(error) = self.run_task(id, create).await {
            if matches!(error, RuntimeError::StartFailed(_)) {
                self.start_failed(id, &error.to_string()).await;
            }
            return Err(error);
        }
        self.emit(RuntimeEvent::ContainerStarted {
            id: id.to_owned(),
            sandbox: record.sandbox,
        });
        Ok(())
    }

    /// Writes down that a container never ran, and clears what its start left.
    async fn start_failed(&self, id: &str, message: &str) {
        let mut message = message.to_owned();
        while message.len() > MESSAGE_MAX_BYTES {
            message.pop();
        }
        let labels = vec![
            (LABEL_CODE, START_FAILED_CODE.to_string()),
            (LABEL_REASON, "StartError".to_owned()),
            (LABEL_MESSAGE, message),
            (LABEL_FINISHED, super::rfc3339(self.clock.now())),
        ];
        if let Err(error) = self.set_labels(id, labels).await {
            tracing::warn!(container = id, %error, "failed start not recorded");
        }
        if let Err(error) = self.delete_task(id).await {
            tracing::warn!(container = id, %error, "task of a failed start not deleted");
        }
        self.pump.finish(id).await;
    }

    async fn kill(&self, id: &str, signal: i32, all: bool) -> Result<()> {
        let message = api::KillRequest {
            container_id: id.to_owned(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        let killed = self.client.tasks().kill(self.client.request(message)).await;
        match killed.map_err(call(format!("signal {signal} to container {id}"))) {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Deletes a task that has ended, or ends it first.
    async fn delete_task(&self, id: &str) -> std::result::Result<(), CallError> {
        for last in [false, true] {
            let message = api::DeleteTaskRequest {
                container_id: id.to_owned(),
            };
            let deleted = self.client.tasks().delete(self.client.request(message)).await;
            match deleted.map_err(call(format!("delete task {id}"))) {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if last => return Err(error),
                Err(_) => {
                    let _ = self.kill(id, libc::SIGKILL, true).await;
                    let _ = self.wait(id, KILL_TIMEOUT).await;
                }
                Ok(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Waits for the end of a task; `None` on timeout.
    async fn wait(&self, id: &str, timeout: Duration) -> Result<Option<(i32, SystemTime)>> {
        let message = api::WaitRequest {
            container_id: id.to_owned(),
            exec_id: String::new(),
        };
        let mut tasks = self.client.tasks();
        let waiting = tasks.wait(self.client.endless(message));
        match tokio::time::timeout(timeout, waiting).await {
            Err(_) => Ok(None),
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                let at = time(answer.exited_at).unwrap_or_else(|| self.clock.now());
                Ok(Some((answer.exit_status as i32, at)))
            }
            Ok(Err(status)) => Err(call(format!("wait for container {id}"))(status).into()),
        }
    }

    /// Records an exit, deletes the task, drains the output. Happens once, whoever calls.
    pub(super) async fn finish(&self, id: &str, exit_code: i32, finished_at: SystemTime) -> Result<()> {
        let _guard = self.lock(id).await;
        let record = match self.record(id).await {
            Ok(record) => record,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        let known = record.exit().is_some();
        if !known {
            let oom = self.oomed.lock().remove(id) || cgroup::oom_killed(&self.host, &record.meta.cgroup);
            let oom = oom && exit_code == 128 + libc::SIGKILL;
            let labels = vec![
                (LABEL_CODE, exit_code.to_string()),
                (LABEL_REASON, reason(exit_code, oom).to_owned()),
                (LABEL_FINISHED, super::rfc3339(finished_at)),
            ];
            self.set_labels(id, labels).await?;
        }
        self.delete_task(id).await?;
        self.pump.finish(id).await;
        // Their absence says that all output is in the log.
        self.fifos(id, &record.meta.config).remove();
        if !known && !record.is_init {
            let (id, sandbox) = (id.to_owned(), record.sandbox);
            self.emit(RuntimeEvent::ContainerExited {
                id,
                sandbox,
                exit_code,
                finished_at,
            });
        }
        Ok(())
    }

    /// See [`crate::runtime::Runtime::stop_container`].
    pub(super) async fn stop(&self, id: &str, grace: Duration) -> Result<()> {
        let record = match self.record(id).await {
            Ok(record) => record,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(task) = self.task(id).await? else {
            return Ok(());
        };
        if task.status() == task::Status::Stopped {
            let at = time(task.exited_at).unwrap_or_else(|| self.clock.now());
            return self.finish(id, task.exit_status as i32, at).await;
        }
        if !grace.is_zero() {
            self.kill(id, signal_number(&record.meta.stop_signal), false)
                .await?;
            if let Some((code, at)) = self.wait_or_gone(id, grace).await? {
                return self.finish(id, code, at).await;
            }
        }
        // In a shared process namespace the others of the group must go as well.
        self.kill(id, libc::SIGKILL, true).await?;
        match self.wait_or_gone(id, KILL_TIMEOUT).await? {
            Some((code, at)) => self.finish(id, code, at).await,
            None => Err(RuntimeError::Timeout(format!("killing container {id}"))),
        }
    }

    /// Like `wait`; a task that somebody else finished meanwhile counts as ended.
    async fn wait_or_gone(&self, id: &str, timeout: Duration) -> Result<Option<(i32, SystemTime)>> {
        match self.wait(id, timeout).await {
            Err(RuntimeError::Internal(_)) if self.task(id).await?.is_none() => {
                Ok(Some((UNKNOWN_CODE, self.clock.now())))
            }
            outcome => outcome,
        }
    }

    /// See [`crate::runtime::Runtime::signal_container`].
    pub(super) async fn signal(&self, id: &str, signal: i32) -> Result<()> {
        self.record(id).await?;
        self.kill(id, signal, false).await
    }

    /// See [`crate::runtime::Runtime::remove_container`].
    pub(super) async fn remove(&self, id: &str) -> Result<()> {
        self.stop(id, Duration::ZERO).await?;
        {
            let _guard = self.lock(id).await;
            self.delete_task(id).await?;
            self.pump.finish(id).await;
            let request = self
                .client
                .request(api::DeleteContainerRequest { id: id.to_owned() });
            match self
                .client
                .containers()
                .delete(request)
                .await
                .map_err(call(format!("remove container {id}")))
            {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
            self.remove_snapshot(id).await;
            Fifos::at(
                super::helper::fifo_folder(&self.config.state).join(id),
                false,
                false,
            )
            .remove();
        }
        self.unlock(id);
        self.oomed.lock().remove(id);
        Ok(())
    }

    async fn remove_snapshot(&self, id: &str) {
        let request = api::snapshots::RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: id.to_owned(),
        };
        match self.client.snapshots().remove(self.client.request(request)).await {
            Err(status) if status.code() != tonic::Code::NotFound => {
                // Without a record it is garbage: containerd's collector takes it.
                tracing::debug!(container = id, %status, "snapshot left to garbage collection");
            }
            _ => {}
        }
    }

    /// See [`crate::runtime::Runtime::update_resources`].
    pub(super) async fn update(&self, id: &str, resources: &Resources) -> Result<()> {
        let _guard = self.lock(id).await;
        let mut record = self.record(id).await?;
        let limits = spec::linux_resources(resources, &self.host);
        if self
            .task(id)
            .await?
            .is_some_and(|task| task.status() == task::Status::Running)
        {
            let message = api::UpdateTaskRequest {
                container_id: id.to_owned(),
                resources: Some(any(RESOURCES_TYPE, &limits)),
                ..Default::default()
            };
            let updated = self.client.tasks().update(self.client.request(message)).await;
            updated.map_err(call(format!("update limits of container {id}")))?;
        }
        let mut spec = record.spec();
        let devices = spec["linux"]["resources"]["devices"].take();
        spec["linux"]["resources"] = limits;
        spec["linux"]["resources"]["devices"] = devices;
        record.meta.config.resources = resources.clone();
        let container = api::Container {
            id: id.to_owned(),
            spec: Some(any(SPEC_TYPE, &spec)),
            extensions: HashMap::from([(EXTENSION.to_owned(), any(EXTENSION, &record.meta))]),
            ..Default::default()
        };
        let paths = vec!["spec".to_owned(), format!("extensions.{EXTENSION}")];
        let update_mask = Some(prost_types::FieldMask { paths });
        let message = api::UpdateContainerRequest {
            container: Some(container),
            update_mask,
        };
        let updated = self
            .client
            .containers()
            .update(self.client.request(message))
            .await;
        updated.map_err(call(format!("update container {id}")))?;
        Ok(())
    }

    /// Brings everything in step after skiff or containerd was away: pumps for what runs, ends for what
    /// ended, nothing left of half-made sandboxes.
    pub(super) async fn resync(&self) -> Result<()> {
        for id in self.sandboxes.orphans().unwrap_or_default() {
            // One being made right now has an age of milliseconds.
            let paths = self.sandboxes.paths(&id);
            if paths.is_older_than(ORPHAN_AGE, self.clock.now())
                && let Err(error) = self.blocking(&id, super::sandbox::Sandboxes::remove).await
            {
                tracing::warn!(sandbox = id, %error, "half-made sandbox not removed");
            }
        }
        let (records, tasks) = (self.records().await?, self.tasks().await?);
        for record in &records {
            let task = tasks.get(&record.id);
            match task.map(|task| (task.status(), task)) {
                Some((task::Status::Stopped, task)) => {
                    self.pump_again(record);
                    let at = time(task.exited_at).unwrap_or_else(|| self.clock.now());
                    if let Err(error) = self.finish(&record.id, task.exit_status as i32, at).await {
                        tracing::warn!(container = record.id, %error, "end of a container not recorded");
                    }
                }
                Some(_) => self.pump_again(record),
                // Its end is known, its output may not be in the log yet.
                None if record.exit().is_some() => {
                    let fifos = self.fifos(&record.id, &record.meta.config);
                    if fifos.folder.exists() {
                        self.pump_again(record);
                    }
                    self.pump.finish(&record.id).await;
                    fifos.remove();
                }
                None => {}
            }
        }
        Ok(())
    }

    fn pump_again(&self, record: &Record) {
        if record.is_init {
            return;
        }
        if let Err(error) = self.pump.add(&record.id, &self.source(record)) {
            tracing::warn!(container = record.id, %error, "output of a running container is not logged");
        }
    }
}

/// Id of the container that is a sandbox's init.
pub fn init_id(sandbox: &str) -> String {
    format!("{sandbox}-init")
}

fn prepare_init_rootfs(rootfs: &Path) -> io::Result<()> {
    for folder in ["proc", "dev"] {
        std::fs::create_dir_all(rootfs.join(folder))?;
    }
    std::fs::File::create(rootfs.join("skiff")).map(|_| ())
}

/// runc's message without the layers of wrapping above it.
fn plain(message: &str) -> String {
    message
        .rsplit_once("OCI runtime create failed: ")
        .map_or(message, |(_, inner)| inner)
        .trim()
        .to_owned()
}

/// `SIGTERM`, `TERM`, `15`; anything else is SIGTERM.
fn signal_number(name: &str) -> i32 {
    if let Ok(number) = name.parse::<i32>()
        && (1..=64).contains(&number)
    {
        return number;
    }
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = full
        .strip_prefix("SIGRTMIN+")
        .and_then(|text| text.parse::<i32>().ok())
    {
        return (34 + offset).clamp(34, 64);
    }
    full.parse::<nix::sys::signal::Signal>()
        .map_or(libc::SIGTERM, |signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(labels: &[(&str, &str)]) -> Record {
        Record {
            id: "c".into(),
            sandbox: "s".into(),
            is_init: false,
            meta: Meta::default(),
            labels: labels
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            spec: None,
            created_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn with_status(status: task::Status) -> task::Process {
        task::Process {
            status: status as i32,
            exit_status: 3,
            pid: 7,
            ..Default::default()
        }
    }

    #[test]
    fn state_is_derived_from_record_and_task() {
        let started = (LABEL_STARTED, "2026-01-01T00:00:00.000000000Z");
        let ended = [
            started,
            (LABEL_FINISHED, "2026-01-01T00:00:01.000000000Z"),
            (LABEL_CODE, "7"),
        ];
        let code = |state: ContainerState| match state {
            ContainerState::Created => -2,
            ContainerState::Running => -1,
            ContainerState::Exited { exit_code, .. } => exit_code,
        };
        for (labels, task, want) in [
            (&[][..], None, -2),
            (&[][..], Some(task::Status::Created), -2),
            (&[started][..], Some(task::Status::Running), -1),
            (&[started][..], Some(task::Status::Stopped), 3),
            (&[started][..], None, UNKNOWN_CODE),
            (&ended[..], None, 7),
            (&ended[..], Some(task::Status::Stopped), 7),
        ] {
            let task = task.map(with_status);
            assert_eq!(
                code(record(labels).state(task.as_ref())),
                want,
                "{labels:?} {task:?}"
            );
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, want) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("99", 15),
            ("NOPE", 15),
        ] {
            assert_eq!(signal_number(name), want, "{name}");
        }
    }
}
