//! One node for one test: its own API, runtime, folders and control groups.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_base::lifecycle::Shutdown;
use skiff_client::Informers;
use skiff_cri::ImageConfig;
use skiff_cri::fake::FakeRuntime;
use skiff_kubelet::{Config, Dirs, Kubelet, NetworkError, PodAttach, PodNetwork};
use tokio::sync::watch;

use super::api::FakeApi;

/// Name of the node in all tests.
pub const NODE: &str = "n1";

/// Gives each sandbox an address and remembers it.
#[derive(Default)]
pub struct FakeNetwork {
    pub attached: Mutex<BTreeMap<String, IpAddr>>,
    next: AtomicU32,
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, request: &PodAttach) -> Result<Vec<IpAddr>, NetworkError> {
        let mut attached = self.attached.lock();
        let ip = attached.entry(request.sandbox_id.clone()).or_insert_with(|| {
            let n = self.next.fetch_add(1, Ordering::Relaxed) + 2;
            // Loopback, so that network probes find the listeners of a test.
            IpAddr::from([127, 42, 0, u8::try_from(n).expect("few pods")])
        });
        Ok(vec![*ip])
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        self.attached.lock().remove(sandbox_id);
        Ok(())
    }
}

/// The node.
pub struct World {
    pub api: FakeApi,
    pub runtime: Arc<FakeRuntime>,
    pub network: Arc<FakeNetwork>,
    pub network_ready: watch::Sender<bool>,
    pub dirs: Dirs,
    pub kubelet: Arc<Kubelet>,
    cgroup_root: String,
    shutdown: Shutdown,
    _folder: tempfile::TempDir,
}

impl World {
    /// A node that runs, with the image `web` on it.
    pub async fn new() -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(folder.path());
        let cgroup_root = format!(
            "skiff-kubelet-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let runtime = FakeRuntime::new(skiff_base::clock::system());
        runtime.add_image("web", ImageConfig::default());
        let api = FakeApi::new();
        let network = Arc::new(FakeNetwork::default());
        let (network_ready, _) = watch::channel(true);
        let shutdown = Shutdown::new();
        let kubelet = kubelet(
            &api,
            &runtime,
            &network,
            &network_ready,
            &dirs,
            &cgroup_root,
            &shutdown,
        );
        tokio::spawn(kubelet.clone().run(shutdown.clone()));
        World {
            api,
            runtime,
            network,
            network_ready,
            dirs,
            kubelet,
            cgroup_root,
            shutdown,
            _folder: folder,
        }
    }

    /// Stops the kubelet: containers live on.
    pub async fn stop(&self) {
        assert!(
            self.shutdown.drain(Duration::from_secs(10)).await,
            "the kubelet stops when asked"
        );
    }

    /// Starts a new kubelet on the same node.
    pub fn start(&mut self) {
        self.shutdown = Shutdown::new();
        self.kubelet = kubelet(
            &self.api,
            &self.runtime,
            &self.network,
            &self.network_ready,
            &self.dirs,
            &self.cgroup_root,
            &self.shutdown,
        );
        tokio::spawn(self.kubelet.clone().run(self.shutdown.clone()));
    }

    /// Creates a pod on the node and returns its path.
    pub fn pod(&self, name: &str, spec: Value) -> String {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        let mut spec = spec;
        spec["nodeName"] = json!(NODE);
        self.api.put(
            &path,
            json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec,
            "status": {"phase": "Pending"}}),
        );
        path
    }

    /// Waits until the pod is ready.
    pub async fn ready(&self, path: &str) -> Value {
        self.api
            .wait(path, "ready", |pod| condition(pod, "Ready") == "True")
            .await
    }

    /// Calls of the runtime that begin like this.
    pub fn calls(&self, begins: &str) -> usize {
        self.runtime
            .calls()
            .iter()
            .filter(|call| call.starts_with(begins))
            .count()
    }

    /// Where a pod's group is in the cpu hierarchy, on either layout.
    pub fn groups(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        for base in ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"] {
            let dir = std::path::Path::new(base)
                .join(&self.cgroup_root)
                .join("kubepods");
            for class in ["", "burstable", "besteffort"] {
                for entry in std::fs::read_dir(dir.join(class)).into_iter().flatten().flatten() {
                    if entry.file_name().to_string_lossy().starts_with("pod") {
                        found.push(entry.path());
                    }
                }
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let layout = skiff_kubelet::cgroup::Layout::detect(std::path::Path::new("/sys/fs/cgroup"));
        let groups = skiff_kubelet::cgroup::Cgroups::new(layout, "/");
        let _ = groups.remove(&self.cgroup_root);
        let _ = skiff_kubelet::volumes::mounts::unmount_below(&self.dirs.root);
    }
}

#[allow(clippy::too_many_arguments)]
fn kubelet(
    api: &FakeApi,
    runtime: &Arc<FakeRuntime>,
    network: &Arc<FakeNetwork>,
    network_ready: &watch::Sender<bool>,
    dirs: &Dirs,
    cgroup_root: &str,
    shutdown: &Shutdown,
) -> Arc<Kubelet> {
    let client = api.client();
    let informers = Informers::new(client.clone(), shutdown.child());
    let mut config = Config::new(
        NODE,
        client,
        informers,
        runtime.clone(),
        network.clone(),
        network_ready.subscribe(),
    );
    config.dirs = dirs.clone();
    config.cgroup_root = cgroup_root.to_owned();
    config.node_ips = vec![IpAddr::from([192, 0, 2, 1])];
    Kubelet::new(config)
}

/// The status of a condition.
pub fn condition(object: &Value, type_: &str) -> String {
    let conditions = object["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == type_);
    found
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or_default()
        .to_owned()
}

/// The first container's status.
pub fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}
