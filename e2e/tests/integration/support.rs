//! What several scenarios share: objects and looks into them.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt;
use skiff_e2e::image::{BUSYBOX, NGINX};
use skiff_e2e::{Cluster, ClusterBuilder, Image};

/// Server and agent with both images.
pub fn pair() -> anyhow::Result<ClusterBuilder> {
    Ok(Cluster::new()
        .servers(1)
        .agents(1)
        .image(Image::busybox()?)
        .image(Image::nginx()?))
}

/// A server alone with busybox.
pub fn single() -> anyhow::Result<ClusterBuilder> {
    Ok(Cluster::new().servers(1).image(Image::busybox()?))
}

/// nginx with a page from a ConfigMap, on all nodes, behind a Service.
pub fn web(replicas: usize) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: page}}
data:
  index.html: "page one\n"
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, labels: {{app: web}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {{matchLabels: {{app: web}}}}
        matchLabelKeys: [pod-template-hash]
      containers:
      - name: nginx
        image: {NGINX}
        imagePullPolicy: Never
        ports: [{{name: http, containerPort: 80}}]
        readinessProbe: {{httpGet: {{path: /, port: http}}, periodSeconds: 1}}
        volumeMounts: [{{name: page, mountPath: /usr/share/nginx/html}}]
      volumes:
      - name: page
        configMap: {{name: page}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ports: [{{name: http, port: 80, targetPort: http}}]
"#
    )
}

/// A busybox pod on a given node that runs a script.
pub fn script_pod(name: &str, node: &str, script: &str) -> String {
    let script = serde_json::Value::from(script);
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sh, -c, {script}]
"#
    )
}

/// Does nothing until it is told to end.
pub const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// Fetches a URL from inside a pod.
pub async fn fetch(cluster: &Cluster, pod: &str, url: &str) -> anyhow::Result<String> {
    cluster
        .exec(pod, &["timeout", "5", "wget", "-q", "-O", "-", url])
        .await?
        .ok()
        .with_context(|| format!("from {pod}"))
}

/// The address of a pod.
pub fn pod_ip(pod: &Pod) -> anyhow::Result<String> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    ip.with_context(|| format!("pod {} has no address", pod.name_any()))
}

/// The node of a pod.
pub fn node_of(pod: &Pod) -> String {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default()
}

/// A pod's address, and its containers with their restart counts.
pub type Identity = (Option<String>, Vec<(String, i32)>);

/// What must not change in a pod while skiff restarts, by name: address,
/// container ids, restarts.
pub fn identities(pods: &[Pod]) -> BTreeMap<String, Identity> {
    let identity = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        let containers = containers
            .into_iter()
            .map(|c| (c.container_id.unwrap_or_default(), c.restart_count))
            .collect();
        (pod.name_any(), (status.pod_ip, containers))
    };
    pods.iter().map(identity).collect()
}

/// Cluster IP and node port of the service `web`.
pub async fn web_addresses(cluster: &Cluster) -> anyhow::Result<(String, u16)> {
    let service = cluster.api::<Service>().get("web").await?;
    let spec = service.spec.context("the service has no spec")?;
    let port = spec
        .ports
        .iter()
        .flatten()
        .next()
        .and_then(|port| port.node_port)
        .context("no node port")?;
    Ok((spec.cluster_ip.context("no cluster IP")?, u16::try_from(port)?))
}

/// Fails unless `text` contains all `parts`.
pub fn contains(text: &str, parts: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&&str> = parts.iter().filter(|part| !text.contains(**part)).collect();
    anyhow::ensure!(missing.is_empty(), "missing {missing:?} in:\n{text}");
    Ok(())
}
