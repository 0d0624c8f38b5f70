//! A node in miniature: own mount and network namespace, own `/run`, own containerd.
//!
//! Each test gets a thread that leaves the machine's namespaces before anything starts in it; all that
//! the test starts inherits them. At the end every process still in the mount namespace is killed, so
//! that a failed test leaves nothing behind. Needs root; without it the tests fail.

use futures::StreamExt;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use skiff_base::clock;
use skiff_base::lifecycle::Shutdown;
use skiff_cri::containerd::{Config, Containerd, Daemon, DaemonConfig, LogLimits, Registries};
use skiff_cri::{Container, ContainerConfig, ContainerState, Runtime, RuntimeEvent, Sandbox, SandboxConfig};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The image every test runs.
pub const IMAGE: &str = "docker.io/library/busybox:test";
/// Long for what should take milliseconds; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub folder: Arc<tempfile::TempDir>,
    pub daemon_config: DaemonConfig,
    pub daemon: Arc<Daemon>,
    pub config: Config,
    pub cgroup: String,
    shutdown: Shutdown,
    daemon_shutdown: Shutdown,
}

/// Runs a test body in namespaces of its own.
pub fn run<F, T>(body: F)
where
    F: FnOnce(Lab) -> T + Send + 'static,
    T: Future<Output = Lab>,
{
    let thread = std::thread::Builder::new().name("lab".into());
    let handle = thread.spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let cgroup = format!("/skt-cri-{}", random_name());
        let folder = tempfile::Builder::new()
            .prefix("skt-cri-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let folder = Arc::new(folder);
        let _cleaner = Cleaner(cgroup.clone(), folder.clone());
        show_logs();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            run_command("ip", &["link", "set", "lo", "up"]);
            let lab = body(Lab::new(cgroup, folder).await).await;
            lab.finish().await;
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
    if let Err(panic) = handle.unwrap().join() {
        std::panic::resume_unwind(panic);
    }
}

/// Kills what is still in this thread's mount namespace, and removes its control groups. Then nothing
/// writes to the folder any more and it can go, too.
struct Cleaner(String, #[allow(dead_code)] Arc<tempfile::TempDir>);

impl Drop for Cleaner {
    fn drop(&mut self) {
        let own = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let me = std::process::id().to_string();
        for _ in 0..3 {
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Ok(pid) = name.parse::<i32>() else { continue };
                if name != me && std::fs::read_link(entry.path().join("ns/mnt")).is_ok_and(|ns| ns == own) {
                    let _ =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
        }
        // Containers have mount namespaces of their own.
        for hierarchy in ["pids", "unified", "."] {
            let group = Path::new("/sys/fs/cgroup")
                .join(hierarchy)
                .join(self.0.trim_start_matches('/'));
            for container in std::fs::read_dir(group).into_iter().flatten().flatten() {
                let pids = std::fs::read_to_string(container.path().join("cgroup.procs")).unwrap_or_default();
                for pid in pids
                    .lines()
                    .filter_map(|line| line.parse().ok())
                    .filter(|pid| *pid > 1)
                {
                    let _ =
                        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
            }
        }
        // The kernel takes a moment to empty the groups of what was just killed.
        for _ in 0..50 {
            if remove_cgroups(&self.0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the crate logs is shown with a failed test.
fn show_logs() {
    let filter = tracing_subscriber::EnvFilter::new("info,skiff_cri=debug");
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .try_init();
}

impl Lab {
    async fn new(cgroup: String, folder: Arc<tempfile::TempDir>) -> Self {
        let path = std::env::var_os("PATH").unwrap();
        let run = PathBuf::from("/run/skiff");
        let daemon_config = DaemonConfig::new(folder.path(), &run, path);
        let (shutdown, daemon_shutdown) = (Shutdown::new(), Shutdown::new());
        let daemon = Daemon::ensure(daemon_config.clone(), &daemon_shutdown)
            .await
            .unwrap();
        let mut config = Config::new(&daemon_config, &run);
        config.helper_binary = Some(example("helper"));
        config.log_limits = LogLimits {
            file_max_bytes: 64 * 1024,
            files_max: 3,
        };
        config.registries = Registries::default();
        Self {
            folder,
            daemon_config,
            daemon,
            config,
            cgroup,
            shutdown,
            daemon_shutdown,
        }
    }

    pub async fn connect(&mut self) -> Arc<Containerd> {
        self.shutdown = Shutdown::new();
        Containerd::connect(self.config.clone(), clock::system(), &self.shutdown)
            .await
            .unwrap()
    }

    /// Lets a runtime go, as a stop of skiff does.
    pub async fn disconnect(&mut self, runtime: Arc<Containerd>) {
        assert!(self.shutdown.drain(PATIENCE).await);
        assert_eq!(Arc::strong_count(&runtime), 1);
        drop(runtime);
    }

    /// A runtime with the test image.
    pub async fn ready(&mut self) -> Arc<Containerd> {
        let runtime = self.connect().await;
        let archive = self.folder.path().join("image.tar");
        std::fs::write(&archive, busybox_archive()).unwrap();
        runtime.import_image(&archive).await.unwrap();
        runtime
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join("logs").join(format!("{name}.log"))
    }

    pub async fn sandbox(&self, runtime: &Containerd) -> Sandbox {
        runtime.run_sandbox(self.sandbox_config()).await.unwrap()
    }

    pub fn sandbox_config(&self) -> SandboxConfig {
        SandboxConfig {
            name: "pod".into(),
            namespace: "default".into(),
            uid: "u".into(),
            hostname: "pod-host".into(),
            cgroup_parent: self.cgroup.clone(),
            ..SandboxConfig::default()
        }
    }

    /// A container that runs a shell script.
    pub fn script(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            name: name.into(),
            image: IMAGE.into(),
            command: vec!["sh".into(), "-c".into(), script.into()],
            log_path: Some(self.log(name)),
            ..ContainerConfig::default()
        }
    }

    async fn finish(self) {
        self.shutdown.cancel();
        assert!(self.daemon_shutdown.drain(PATIENCE).await);
        assert!(
            skiff_cri::containerd::daemon::terminate(&self.daemon_config)
                .await
                .unwrap()
        );
    }
}

/// Path of an example binary of this crate.
pub fn example(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples")
        .join(name)
}

pub async fn start(runtime: &Containerd, sandbox: &Sandbox, config: ContainerConfig) -> String {
    let id = runtime.create_container(&sandbox.id, config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

/// Waits until a container has ended.
pub async fn ended(runtime: &Containerd, id: &str) -> Container {
    let mut events = runtime.events();
    let wait = async {
        loop {
            let container = runtime.container(id).await.unwrap();
            if let ContainerState::Exited { reason, .. } = &container.state
                && !reason.is_empty()
                && runtime_recorded(runtime, id).await
            {
                return container;
            }
            loop {
                match events.next().await.unwrap() {
                    RuntimeEvent::ContainerExited { id: ended, .. } if ended == id => break,
                    RuntimeEvent::Resync => break,
                    _ => {}
                }
            }
        }
    };
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(container) => container,
        Err(_) => panic!("no end of {:?}", runtime.container(id).await),
    }
}

/// True when the end is recorded, not only visible in the task.
async fn runtime_recorded(runtime: &Containerd, id: &str) -> bool {
    // An attach is refused once the output is drained, which is the last step of an end.
    runtime
        .attach(
            id,
            skiff_cri::AttachRequest {
                stdout: true,
                ..Default::default()
            },
        )
        .await
        .is_err()
}

pub fn exit_code(container: &Container) -> i32 {
    match container.state {
        ContainerState::Exited { exit_code, .. } => exit_code,
        ref other => panic!("container is {other:?}"),
    }
}

pub fn reason(container: &Container) -> &str {
    match &container.state {
        ContainerState::Exited { reason, .. } => reason,
        other => panic!("container is {other:?}"),
    }
}

/// Log lines without their times: `stdout F text`.
pub fn lines(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned())
        .collect()
}

pub fn run_command(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn random_name() -> String {
    skiff_cri::containerd::random_id(12)
}

/// True when nothing of the name is left in any hierarchy.
fn remove_cgroups(name: &str) -> bool {
    fn remove(folder: &Path) -> bool {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        let _ = std::fs::remove_dir(folder);
        !folder.exists()
    }
    let relative = name.trim_start_matches('/');
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let roots = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    roots
        .map(|root| remove(&root.join(relative)))
        .filter(|gone| !gone)
        .count()
        == 0
}

fn digest(bytes: &[u8]) -> String {
    skiff_cri::reference::sha256_digest(bytes)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes).unwrap();
}

/// The root filesystem of the test image.
fn busybox_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(
        &mut tar,
        "bin/busybox",
        0o755,
        &std::fs::read("/bin/busybox").expect("busybox-static"),
    );
    for name in [
        "sh", "sleep", "cat", "id", "hostname", "tail", "ps", "head", "kill", "stty", "yes", "mount",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    append(
        &mut tar,
        "etc/passwd",
        0o644,
        b"root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n",
    );
    append(
        &mut tar,
        "etc/group",
        0o644,
        b"root:x:0:\nweb:x:102:\nextra:x:103:web\n",
    );
    for folder in ["tmp", "proc", "sys", "dev"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o1777);
        header.set_size(0);
        tar.append_data(&mut header, folder, std::io::empty()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn config(layer: &[u8]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    serde_json::to_vec(&serde_json::json!({
        "architecture": architecture, "os": "linux",
        "config": { "Env": ["FROM_IMAGE=yes"], "Cmd": ["sh", "-c", "echo default"], "Entrypoint": null },
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    }))
    .unwrap()
}

/// The test image as an OCI archive.
pub fn busybox_archive() -> Vec<u8> {
    let layer = busybox_layer();
    let config = config(&layer);
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(&config), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(&layer), "size": layer.len(),
        }],
    }))
    .unwrap();
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&manifest), "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": "busybox:test" },
        }],
    }))
    .unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    append(
        &mut tar,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    for blob in [&layer, &config, &manifest] {
        append(
            &mut tar,
            &format!("blobs/{}", digest(blob).replace(':', "/")),
            0o644,
            blob,
        );
    }
    append(&mut tar, "index.json", 0o644, &index);
    tar.into_inner().unwrap()
}

/// The same image as `docker save` writes it, the table last.
pub fn docker_archive(name: &str) -> Vec<u8> {
    let layer = busybox_layer();
    let config = config(&layer);
    let file = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
    let table = serde_json::to_vec(&serde_json::json!([
        { "Config": file, "RepoTags": [name], "Layers": ["abc/layer.tar"] }
    ]))
    .unwrap();
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "abc/layer.tar", 0o644, &layer);
    append(&mut tar, &file, 0o644, &config);
    append(&mut tar, "manifest.json", 0o644, &table);
    tar.into_inner().unwrap()
}
