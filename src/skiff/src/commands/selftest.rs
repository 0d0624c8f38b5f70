//! `skiff selftest`: proof that a cluster works, with a workload of its own.
//!
//! Needs no registry and no internet: the image is skiff itself
//! ([`super::selfimage`]). Every check is one row of a table; a failed one
//! says why, and the exit code tells whether all passed.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::api::{Api, AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use serde_json::json;
use skiff_client::Client;
use tokio::io::AsyncReadExt;

use super::selfimage;
use super::web::{self, Answer};

const NAME: &str = "web";
const LABELS: &str = "app=skiff-selftest";
const PORT: u16 = 8080;

/// Arguments of `skiff selftest`.
#[derive(clap::Args)]
pub struct SelftestArgs {
    /// Kubeconfig of an administrator [default: $KUBECONFIG, then /etc/skiff/skiff.yaml]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Namespace to work in; it is made and removed
    #[arg(long, default_value = "skiff-selftest", value_name = "NAME")]
    namespace: String,
    /// How long each check may take, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Do not ask for the node ports of the nodes' own addresses from here
    #[arg(long)]
    skip_node_ports: bool,
}

/// Runs all checks and prints the table.
pub async fn run(args: SelftestArgs) -> anyhow::Result<()> {
    let client = super::client(args.kubeconfig.as_deref()).await?;
    let limit = Duration::from_secs(args.timeout);
    let mut table = Table::new(limit);
    let test = Test {
        client,
        namespace: args.namespace.clone(),
        limit,
    };
    let nodes = table.check("nodes are Ready", test.nodes()).await;
    if let Some(nodes) = &nodes {
        test.checks(nodes, &mut table, args.skip_node_ports).await;
    }
    table.check("clean-up", test.clean_up()).await;
    table.finish()
}

struct Table {
    limit: Duration,
    failed: usize,
    count: usize,
    live: bool,
}

impl Table {
    fn new(limit: Duration) -> Self {
        println!("{:<48} {:<8} {:>8}  DETAIL", "CHECK", "RESULT", "TIME");
        Self {
            limit,
            failed: 0,
            count: 0,
            live: std::io::stdout().is_terminal(),
        }
    }

    /// Runs one check within the limit and prints its row. `None`: it failed.
    async fn check<T: Outcome>(
        &mut self,
        name: &str,
        check: impl Future<Output = anyhow::Result<T>>,
    ) -> Option<T> {
        if self.live {
            print!("{name:<48} ...");
            let _ = std::io::stdout().flush();
        }
        let start = tokio::time::Instant::now();
        let outcome = match tokio::time::timeout(self.limit, check).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("not done within {:?}", self.limit)),
        };
        let seconds = start.elapsed().as_secs_f64();
        let (result, detail) = match &outcome {
            Ok(value) => ("ok", value.detail()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        let back = if self.live { "\r" } else { "" };
        println!("{back}{name:<48} {result:<8} {seconds:>7.2}s  {detail}");
        self.count += 1;
        self.failed += usize::from(outcome.is_err());
        outcome.ok()
    }

    fn finish(self) -> anyhow::Result<()> {
        if self.failed > 0 {
            bail!(
                "{} of {} checks failed: see the table for the reasons",
                self.failed,
                self.count
            );
        }
        println!("all {} checks passed", self.count);
        Ok(())
    }
}

/// What a check that passed has to say.
trait Outcome {
    fn detail(&self) -> String;
}

impl Outcome for () {
    fn detail(&self) -> String {
        String::new()
    }
}

impl Outcome for String {
    fn detail(&self) -> String {
        self.clone()
    }
}

impl Outcome for Vec<NodeFacts> {
    fn detail(&self) -> String {
        self.iter()
            .map(|node| node.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Outcome for Vec<PodFacts> {
    fn detail(&self) -> String {
        format!("{} pods", self.len())
    }
}

#[derive(Debug, Clone)]
struct NodeFacts {
    name: String,
    address: String,
}

#[derive(Debug, Clone, PartialEq)]
struct PodFacts {
    name: String,
    node: String,
    ip: String,
}

struct Test {
    client: Client,
    namespace: String,
    limit: Duration,
}

impl Test {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn checks(&self, nodes: &[NodeFacts], table: &mut Table, skip_node_ports: bool) {
        if table
            .check("workload is accepted", self.deploy(nodes.len()))
            .await
            .is_none()
        {
            return;
        }
        let Some(pods) = table
            .check("pods Running on every node", self.running(nodes, "1"))
            .await
        else {
            return;
        };
        table.check("logs", self.logs(&pods)).await;
        table.check("exec", self.exec_works(&pods)).await;
        let service = table.check("service has addresses", self.service()).await;
        if let Some(service) = service {
            let url = format!("http://{}", service.cluster_ip);
            table
                .check("ClusterIP from every pod", self.every_pod_reaches(&pods, &url))
                .await;
            let url = format!("http://{NAME}.{}.svc.cluster.local", self.namespace);
            table
                .check("DNS by name from every pod", self.every_pod_reaches(&pods, &url))
                .await;
            for node in nodes {
                let url = format!("http://{}:{}", node.address, service.node_port);
                let name = format!("NodePort of {} from every pod", node.name);
                table.check(&name, self.every_pod_reaches(&pods, &url)).await;
                if !skip_node_ports {
                    let name = format!("NodePort of {} from here", node.name);
                    table
                        .check(&name, async { web::get(&url).await.map(|_| url.clone()) })
                        .await;
                }
            }
        }
        for (from, to) in pairs(&pods) {
            let name = format!("pod to pod, {} to {}", from.node, to.node);
            table.check(&name, self.pod_to_pod(from, to)).await;
        }
        if table.check("rolling update", self.roll_out()).await.is_some() {
            table
                .check("pods of the new revision", self.running(nodes, "2"))
                .await;
        }
    }

    async fn nodes(&self) -> anyhow::Result<Vec<NodeFacts>> {
        let api: Api<Node> = Api::all(self.client.clone());
        let schedulable = |node: &&Node| node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true);
        let found = self
            .until(api, ListParams::default(), |nodes: &[Node]| {
                let nodes: Vec<&Node> = nodes.iter().filter(schedulable).collect();
                let waiting: Vec<String> = nodes
                    .iter()
                    .filter(|node| !node_is_ready(node))
                    .map(|node| name(*node))
                    .collect();
                match (nodes.is_empty(), waiting.is_empty()) {
                    (true, _) => Err("there are no nodes".to_owned()),
                    (_, false) => Err(format!("not Ready: {}", waiting.join(", "))),
                    _ => Ok(nodes.into_iter().map(node_facts).collect::<Vec<_>>()),
                }
            })
            .await?;
        Ok(found)
    }

    async fn deploy(&self, nodes: usize) -> anyhow::Result<()> {
        self.clean_up().await?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": self.namespace}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        let deployment: Deployment = serde_json::from_value(deployment(nodes * 2, "1"))?;
        self.api::<Deployment>()
            .create(&PostParams::default(), &deployment)
            .await?;
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": NAME},
            "spec": {"type": "NodePort", "selector": {"app": "skiff-selftest"},
                "ports": [{"port": 80, "targetPort": PORT}]},
        }))?;
        self.api::<Service>()
            .create(&PostParams::default(), &service)
            .await?;
        Ok(())
    }

    async fn running(&self, nodes: &[NodeFacts], revision: &str) -> anyhow::Result<Vec<PodFacts>> {
        let wanted = nodes.len() * 2;
        self.until(
            self.api::<Pod>(),
            ListParams::default().labels(LABELS),
            |pods: &[Pod]| {
                let current: Vec<&Pod> = pods
                    .iter()
                    .filter(|pod| {
                        pod.metadata.deletion_timestamp.is_none() && revision_of(pod) == Some(revision)
                    })
                    .collect();
                let ready: Vec<PodFacts> = current.iter().filter_map(|pod| pod_facts(pod)).collect();
                let missing: Vec<&str> = nodes
                    .iter()
                    .map(|node| node.name.as_str())
                    .filter(|node| !ready.iter().any(|pod| pod.node == *node))
                    .collect();
                if ready.len() == wanted && missing.is_empty() && pods.len() == wanted {
                    return Ok(ready);
                }
                Err(format!(
                    "{} of {wanted} pods Ready{}",
                    ready.len(),
                    trouble(&current)
                ))
            },
        )
        .await
    }

    async fn logs(&self, pods: &[PodFacts]) -> anyhow::Result<()> {
        for pod in pods {
            let text = self
                .api::<Pod>()
                .logs(&pod.name, &LogParams::default())
                .await
                .with_context(|| at(pod))?;
            if !text.contains(&format!("revision 1 of {} listens", pod.name)) {
                bail!("{}: unexpected log {text:?}", at(pod));
            }
        }
        Ok(())
    }

    async fn exec(&self, pod: &PodFacts, command: &[&str]) -> anyhow::Result<String> {
        let params = AttachParams::default().stdout(true).stderr(true);
        let mut process = self
            .api::<Pod>()
            .exec(&pod.name, command.iter().copied(), &params)
            .await?;
        let (mut out, mut err) = (String::new(), String::new());
        let (stdout, stderr) = (process.stdout(), process.stderr());
        let status = process.take_status();
        let read_out = async {
            if let Some(mut stdout) = stdout {
                let _ = stdout.read_to_string(&mut out).await;
            }
        };
        let read_err = async {
            if let Some(mut stderr) = stderr {
                let _ = stderr.read_to_string(&mut err).await;
            }
        };
        tokio::join!(read_out, read_err);
        let status = match status {
            Some(status) => status.await,
            None => None,
        };
        process.join().await?;
        match status {
            Some(status) if status.status.as_deref() == Some("Success") => Ok(out),
            Some(status) => bail!(
                "{}: {} {}",
                at(pod),
                status.message.unwrap_or_default(),
                err.trim()
            ),
            None => bail!(
                "{}: the command's outcome was not told; it said {:?}",
                at(pod),
                err.trim()
            ),
        }
    }

    async fn exec_works(&self, pods: &[PodFacts]) -> anyhow::Result<()> {
        for pod in pods {
            let answer = self.fetch(pod, &format!("http://127.0.0.1:{PORT}")).await?;
            if answer.pod != pod.name {
                bail!("{}: the answer came from {}", at(pod), answer.pod);
            }
        }
        Ok(())
    }

    /// Fetches a URL from inside a pod.
    async fn fetch(&self, pod: &PodFacts, url: &str) -> anyhow::Result<Answer> {
        let text = self.exec(pod, &["/skiff", "web", "--get", url]).await?;
        serde_json::from_str(&text).with_context(|| format!("{}: {url} answered {text:?}", at(pod)))
    }

    async fn service(&self) -> anyhow::Result<ServiceFacts> {
        self.until(
            self.api::<Service>(),
            ListParams::default(),
            |services: &[Service]| {
                let spec = services
                    .iter()
                    .find(|service| name(*service) == NAME)
                    .and_then(|service| service.spec.as_ref());
                let cluster_ip = spec
                    .and_then(|spec| spec.cluster_ip.clone())
                    .filter(|ip| !ip.is_empty() && ip != "None");
                let node_port = spec.and_then(|spec| spec.ports.as_ref()?.first()?.node_port);
                match (cluster_ip, node_port) {
                    (Some(cluster_ip), Some(node_port)) => Ok(ServiceFacts {
                        cluster_ip,
                        node_port,
                    }),
                    _ => Err("no cluster IP or node port yet".to_owned()),
                }
            },
        )
        .await
    }

    async fn every_pod_reaches(&self, pods: &[PodFacts], url: &str) -> anyhow::Result<String> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for pod in pods {
            let answer = self.fetch(pod, url).await?;
            *seen.entry(answer.pod).or_default() += 1;
        }
        Ok(format!("{url}: {} answers from {} pods", pods.len(), seen.len()))
    }

    async fn pod_to_pod(&self, from: &PodFacts, to: &PodFacts) -> anyhow::Result<String> {
        let answer = self.fetch(from, &format!("http://{}:{PORT}", to.ip)).await?;
        if answer.pod != to.name {
            bail!("{} answered instead of {}", answer.pod, to.name);
        }
        if answer.client != from.ip {
            bail!(
                "the source address {} became {} on the way",
                from.ip,
                answer.client
            );
        }
        Ok(format!("{} to {}", from.ip, to.ip))
    }

    async fn roll_out(&self) -> anyhow::Result<String> {
        let patch = Patch::Strategic(json!({"spec": {"template": {
            "metadata": {"labels": {"revision": "2"}},
            "spec": {"containers": [{"name": NAME, "args": ["web", "--revision", "2"]}]},
        }}}));
        let patched = self
            .api::<Deployment>()
            .patch(NAME, &PatchParams::default(), &patch)
            .await?;
        let wanted = patched.metadata.generation;
        self.until(
            self.api::<Deployment>(),
            ListParams::default(),
            |deployments: &[Deployment]| {
                let Some(deployment) = deployments.first() else {
                    return Err("the deployment is gone".to_owned());
                };
                let replicas = deployment
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.replicas)
                    .unwrap_or(1);
                let status = deployment.status.clone().unwrap_or_default();
                let updated = status.updated_replicas.unwrap_or(0);
                let done = status.observed_generation >= wanted
                    && updated == replicas
                    && status.replicas.unwrap_or(0) == replicas
                    && status.available_replicas.unwrap_or(0) == replicas;
                if done {
                    Ok(format!("{replicas} pods replaced"))
                } else {
                    Err(format!("{updated} of {replicas} updated"))
                }
            },
        )
        .await
    }

    async fn clean_up(&self) -> anyhow::Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.delete(&self.namespace, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            other => other.map(drop)?,
        }
        let params = ListParams::default().fields(&format!("metadata.name={}", self.namespace));
        self.until(api, params, |namespaces: &[Namespace]| match namespaces.first() {
            None => Ok(()),
            Some(namespace) => {
                let conditions = namespace
                    .status
                    .iter()
                    .flat_map(|status| status.conditions.iter().flatten());
                let why: Vec<String> = conditions
                    .filter(|c| c.status == "True")
                    .filter_map(|c| c.message.clone())
                    .collect();
                Err(format!(
                    "namespace {} still terminates: {}",
                    self.namespace,
                    why.join("; ")
                ))
            }
        })
        .await
    }

    /// Watches until the objects satisfy `judge`; at the limit the last
    /// verdict is the reason.
    async fn until<K, T>(
        &self,
        api: Api<K>,
        params: ListParams,
        judge: impl Fn(&[K]) -> Result<T, String>,
    ) -> anyhow::Result<T>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
    {
        let config = watcher::Config {
            label_selector: params.label_selector,
            field_selector: params.field_selector,
            ..watcher::Config::default()
        };
        let mut verdict = "nothing was seen".to_owned();
        let watch = async {
            let mut events = std::pin::pin!(watcher(api, config).default_backoff());
            let mut objects: BTreeMap<String, K> = BTreeMap::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => {
                        objects.clear();
                        continue;
                    }
                    Ok(watcher::Event::InitApply(object)) => {
                        objects.insert(name(&object), object);
                        continue;
                    }
                    Ok(watcher::Event::Apply(object)) => drop(objects.insert(name(&object), object)),
                    Ok(watcher::Event::Delete(object)) => drop(objects.remove(&name(&object))),
                    Ok(watcher::Event::InitDone) => {}
                    Err(error) => {
                        verdict = error.to_string();
                        continue;
                    }
                }
                let all: Vec<K> = objects.values().cloned().collect();
                match judge(&all) {
                    Ok(value) => return Some(value),
                    Err(why) => verdict = why,
                }
            }
            None
        };
        // A little less than the row's own limit, so that the reason is told.
        match tokio::time::timeout(self.limit.mul_f32(0.95), watch).await {
            Ok(Some(value)) => Ok(value),
            _ => bail!("{verdict}"),
        }
    }
}

#[derive(Debug)]
struct ServiceFacts {
    cluster_ip: String,
    node_port: i32,
}

impl Outcome for ServiceFacts {
    fn detail(&self) -> String {
        format!("{}, node port {}", self.cluster_ip, self.node_port)
    }
}

/// One pod of each node to one pod of each other node, and within a node.
fn pairs(pods: &[PodFacts]) -> Vec<(&PodFacts, &PodFacts)> {
    let mut by_node: BTreeMap<&str, Vec<&PodFacts>> = BTreeMap::new();
    for pod in pods {
        by_node.entry(&pod.node).or_default().push(pod);
    }
    let mut pairs = Vec::new();
    for (from_node, from) in &by_node {
        for (to_node, to) in &by_node {
            let other = if from_node == to_node {
                to.get(1)
            } else {
                to.first()
            };
            pairs.extend(from.first().copied().zip(other.copied()));
        }
    }
    pairs
}

fn deployment(replicas: usize, revision: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": NAME},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "skiff-selftest"}},
            "template": {
                "metadata": {"labels": {"app": "skiff-selftest", "revision": revision}},
                "spec": {
                    "terminationGracePeriodSeconds": 5,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app": "skiff-selftest"}},
                        "matchLabelKeys": ["pod-template-hash"],
                    }],
                    "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
                    "containers": [{
                        "name": NAME,
                        "image": selfimage::NAME,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["web", "--revision", revision],
                        "ports": [{"containerPort": PORT}],
                        "readinessProbe": {"httpGet": {"path": "/", "port": PORT}, "periodSeconds": 1},
                        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
                    }],
                },
            },
        },
    })
}

fn name<K: kube::Resource>(object: &K) -> String {
    object.meta().name.clone().unwrap_or_default()
}

fn at(pod: &PodFacts) -> String {
    format!("pod {} on {}", pod.name, pod.node)
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get("revision").map(String::as_str)
}

fn node_is_ready(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True")
}

fn node_facts(node: &Node) -> NodeFacts {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses
        .filter(|address| address.type_ == "InternalIP")
        .map(|address| address.address.clone())
        .next();
    NodeFacts {
        name: name(node),
        address: internal.unwrap_or_default(),
    }
}

/// A pod that is Running and Ready.
fn pod_facts(pod: &Pod) -> Option<PodFacts> {
    let status = pod.status.as_ref()?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    (status.phase.as_deref() == Some("Running") && ready).then_some(())?;
    Some(PodFacts {
        name: name(pod),
        node: pod.spec.as_ref()?.node_name.clone()?,
        ip: status.pod_ip.clone()?,
    })
}

/// Why pods are not ready, as far as they say.
fn trouble(pods: &[&Pod]) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods {
        let status = pod.status.clone().unwrap_or_default();
        for container in status.container_statuses.iter().flatten() {
            if let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) {
                let reason = waiting.reason.clone().unwrap_or_default();
                let message = waiting
                    .message
                    .clone()
                    .map(|message| format!(" ({message})"))
                    .unwrap_or_default();
                *reasons.entry(format!("{reason}{message}")).or_default() += 1;
            }
        }
        for condition in status.conditions.iter().flatten() {
            if condition.type_ == "PodScheduled" && condition.status == "False" {
                *reasons
                    .entry(condition.message.clone().unwrap_or_default())
                    .or_default() += 1;
            }
        }
    }
    reasons
        .into_iter()
        .map(|(reason, count)| format!("; {count} x {reason}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_nodes_is_tried_both_ways() {
        let pod = |name: &str, node: &str| PodFacts {
            name: name.to_owned(),
            node: node.to_owned(),
            ip: String::new(),
        };
        let pods = [pod("a1", "a"), pod("a2", "a"), pod("b1", "b"), pod("b2", "b")];
        let names: Vec<(&str, &str)> = pairs(&pods)
            .iter()
            .map(|(from, to)| (from.name.as_str(), to.name.as_str()))
            .collect();
        assert_eq!(names, [("a1", "a2"), ("a1", "b1"), ("b1", "a1"), ("b1", "b2")]);
    }

    #[test]
    fn the_workload_is_a_deployment() {
        let parsed: Deployment = serde_json::from_value(deployment(4, "1")).expect("deployment");
        assert_eq!(parsed.spec.and_then(|spec| spec.replicas), Some(4));
    }
}
