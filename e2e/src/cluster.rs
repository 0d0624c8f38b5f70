//! A running cluster on a lab.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::Api;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};

use crate::access::{self, PATIENCE, until};
use crate::image::Image;
use crate::lab::Lab;
use crate::node::{COMMAND_LIMIT, Node};
use crate::process::{self, Output};

/// What a cluster is made of.
#[derive(Debug, Clone, Default)]
pub struct ClusterBuilder {
    servers: usize,
    agents: usize,
    images: Vec<Image>,
    server_args: Vec<String>,
    agent_args: Vec<String>,
    files: Vec<(String, String)>,
    control_plane_only: bool,
    separate_binaries: bool,
}

impl ClusterBuilder {
    /// Number of servers. One at present: several need a shared store.
    pub fn servers(mut self, count: usize) -> Self {
        self.servers = count;
        self
    }

    /// Number of agents.
    pub fn agents(mut self, count: usize) -> Self {
        self.agents = count;
        self
    }

    /// An image every node gets.
    pub fn image(mut self, image: Image) -> Self {
        self.images.push(image);
        self
    }

    /// One more argument of `skiff server`.
    pub fn server_arg(mut self, arg: &str) -> Self {
        self.server_args.push(arg.to_owned());
        self
    }

    /// One more argument of `skiff agent`.
    pub fn agent_arg(mut self, arg: &str) -> Self {
        self.agent_args.push(arg.to_owned());
        self
    }

    /// The server is no node itself.
    pub fn control_plane_only(mut self) -> Self {
        self.control_plane_only = true;
        self.server_arg("--disable-agent")
    }

    /// Every node runs a copy of the program of its own.
    pub fn separate_binaries(mut self) -> Self {
        self.separate_binaries = true;
        self
    }

    /// A file every node has before skiff starts.
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// Starts all nodes and waits until they are Ready and have the images.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        if self.servers != 1 {
            bail!("a cluster has one server here, not {}", self.servers);
        }
        let lab = Lab::new().await?;
        let archives = self.archives(&lab).await?;
        // The clock starts when it is this lab's turn and its inputs are there.
        let begin = tokio::time::Instant::now();
        let mut lab = lab;
        lab.separate_binaries = self.separate_binaries;
        let server = lab.add_node("server").await?;
        let mut agents = Vec::new();
        for number in 1..=self.agents {
            agents.push(lab.add_node(&format!("agent-{number}")).await?);
        }
        let result = self.bring_up(&server, &agents, &archives).await;
        let client = match result {
            Ok(client) => client,
            Err(error) => return Err(crate::scenario::with_logs(error, lab.nodes(), "start")),
        };
        let took = begin.elapsed();
        println!(
            "cluster of {} Ready in {:.2} s",
            1 + agents.len(),
            took.as_secs_f64()
        );
        Ok(Cluster {
            client,
            server,
            agents,
            took,
            lab,
        })
    }

    async fn archives(&self, lab: &Lab) -> anyhow::Result<Vec<PathBuf>> {
        let mut archives = Vec::new();
        for image in self.images.clone() {
            let path = lab.folder.join(format!("{}.tar", image.file_name()));
            let target = path.clone();
            tokio::task::spawn_blocking(move || image.write(&target)).await??;
            archives.push(path);
        }
        Ok(archives)
    }

    async fn bring_up(
        &self,
        server: &Arc<Node>,
        agents: &[Arc<Node>],
        archives: &[PathBuf],
    ) -> anyhow::Result<Client> {
        for node in std::iter::once(server).chain(agents) {
            for (path, text) in &self.files {
                node.write(path, text)?;
            }
        }
        server.start_role("server", &self.server_args).await?;
        let client = access::client(&server.outside("/etc/skiff/skiff.yaml"), server.sockets()).await?;
        let token =
            std::fs::read_to_string(server.data("server/node-token")).context("the server wrote no token")?;
        let mut more = vec![
            "--server".to_owned(),
            format!("https://{}:6443", server.address),
            "--token".to_owned(),
            token.trim().to_owned(),
        ];
        more.extend(self.agent_args.iter().cloned());
        let import = async |node: &Arc<Node>| {
            for archive in archives {
                node.import(archive).await?;
            }
            anyhow::Ok(())
        };
        let starts = agents.iter().map(async |agent| {
            agent.start_role("agent", &more).await?;
            import(agent).await
        });
        let own = async {
            if self.control_plane_only {
                Ok(())
            } else {
                import(server).await
            }
        };
        tokio::try_join!(own, futures::future::try_join_all(starts))?;
        let mut names: Vec<String> = agents.iter().map(|agent| agent.name.clone()).collect();
        if !self.control_plane_only {
            names.push(server.name.clone());
        }
        nodes_ready(&client, &names).await?;
        Ok(client)
    }
}

/// Waits until the named nodes are Ready.
pub async fn nodes_ready(client: &Client, names: &[String]) -> anyhow::Result<()> {
    let api: Api<NodeObject> = Api::all(client.clone());
    until(api, watcher::Config::default(), PATIENCE, |nodes| {
        let missing: Vec<String> = names
            .iter()
            .filter_map(|name| {
                let node = nodes.iter().find(|node| node.name_any() == *name);
                let conditions = node?.status.as_ref()?.conditions.clone().unwrap_or_default();
                match conditions.iter().find(|condition| condition.type_ == "Ready") {
                    Some(ready) if ready.status == "True" => None,
                    Some(ready) => Some(format!("{name}: {}", ready.message.clone().unwrap_or_default())),
                    None => Some(format!("{name}: no Ready condition")),
                }
            })
            .chain(
                names
                    .iter()
                    .filter(|name| !nodes.iter().any(|node| node.name_any() == **name))
                    .map(|name| format!("{name}: not registered")),
            )
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(missing.join("; "))
        }
    })
    .await
    .context("nodes are not Ready")
}

/// A running cluster. Dropping it removes all of it.
pub struct Cluster {
    /// Talks to the API as administrator.
    pub client: Client,
    /// The server.
    pub server: Arc<Node>,
    /// The agents.
    pub agents: Vec<Arc<Node>>,
    /// From nothing to all nodes Ready.
    pub took: Duration,
    /// The LAN.
    pub lab: Lab,
}

impl Cluster {
    /// Describes a cluster to start.
    #[expect(clippy::new_ret_no_self, reason = "a cluster is made by its builder")]
    pub fn new() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// Server and agents.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        std::iter::once(self.server.clone())
            .chain(self.agents.iter().cloned())
            .collect()
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> anyhow::Result<Arc<Node>> {
        self.nodes()
            .into_iter()
            .find(|node| node.name == name)
            .with_context(|| format!("there is no node {name}"))
    }

    /// An API of the namespace `default`.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Waits until all nodes are Ready.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let names: Vec<String> = self.nodes().iter().map(|node| node.name.clone()).collect();
        nodes_ready(&self.client, &names).await
    }

    /// Runs kubectl on the server to its end, however that is.
    pub async fn kubectl_raw(&self, args: &[&str], input: Option<&str>) -> anyhow::Result<Output> {
        process::run(
            self.server.command("kubectl", args)?,
            input.map(str::as_bytes),
            COMMAND_LIMIT,
        )
        .await
    }

    /// Runs kubectl on the server; what it prints.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kubectl_raw(args, None).await?.ok()
    }

    /// `kubectl apply -f -`.
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.kubectl_raw(&["apply", "-f", "-"], Some(manifest))
            .await?
            .ok()
    }

    /// Runs a program in a pod's container (the first, if none is named as
    /// `pod/container`).
    pub async fn exec(&self, pod: &str, command: &[&str]) -> anyhow::Result<Output> {
        let mut args = vec!["exec"];
        match pod.split_once('/') {
            Some((pod, container)) => args.extend([pod, "-c", container]),
            None => args.push(pod),
        }
        args.push("--");
        args.extend(command);
        self.kubectl_raw(&args, None).await
    }

    /// Waits until a pod of `default` is as wanted.
    pub async fn pod<T>(
        &self,
        name: &str,
        mut judge: impl FnMut(&Pod) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        until(self.api::<Pod>(), config, PATIENCE, |pods| match pods.first() {
            Some(pod) => {
                judge(pod).map_err(|why| format!("{why}; the pod is {}", crate::scenario::brief(pod)))
            }
            None => Err("there is no such pod".to_owned()),
        })
        .await
        .with_context(|| format!("pod {name}"))
    }

    /// Waits until a pod is Running and Ready.
    pub async fn pod_ready(&self, name: &str) -> anyhow::Result<Pod> {
        self.pod(name, |pod| {
            if is_ready(pod) {
                Ok(pod.clone())
            } else {
                Err("not Ready".to_owned())
            }
        })
        .await
    }

    /// Waits until exactly `count` pods match the labels and all are Ready.
    pub async fn pods_ready(&self, labels: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
        let config = watcher::Config::default().labels(labels);
        until(self.api::<Pod>(), config, PATIENCE, |pods| {
            if pods.len() == count && pods.iter().all(is_ready) {
                return Ok(pods.to_vec());
            }
            let seen: Vec<String> = pods.iter().map(crate::scenario::brief).collect();
            Err(format!("{} pods: {}", pods.len(), seen.join(", ")))
        })
        .await
        .with_context(|| format!("{count} Ready pods with {labels}"))
    }
}

/// Whether a pod is Running and Ready, and not on its way out.
pub fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    ready && status.phase.as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}
