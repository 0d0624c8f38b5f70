//! Images from a registry on the LAN: Debian's docker-registry, plain HTTP.

use std::fs::OpenOptions;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use skiff_e2e::access::{self, PATIENCE, retry};
use skiff_e2e::lab::LAN_ADDRESS;
use skiff_e2e::process::Process;
use skiff_e2e::scenario::on_cluster;
use skiff_e2e::{Cluster, Image};

use crate::support::IDLE;

/// Without accounts.
const OPEN: u16 = 5000;
/// With accounts; `sailor` has the password `secret`.
const GUARDED: u16 = 5001;
const HTPASSWD: &str = "sailor:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// `sailor:secret` in base64.
const BASIC: &str = "Basic c2FpbG9yOnNlY3JldA==";
/// `{"auths":{"172.31.0.1:5001":{"username":"sailor","password":"secret"}}}`.
const DOCKER_CONFIG: &str = r#"{"auths":{"172.31.0.1:5001":{"username":"sailor","password":"secret"}}}"#;

/// Both are asked over plain HTTP, which is only done for loopback addresses
/// and where it is written down.
const REGISTRIES: &str = r#"
mirrors:
  "172.31.0.1:5000":
    endpoint: ["http://172.31.0.1:5000"]
  "172.31.0.1:5001":
    endpoint: ["http://172.31.0.1:5001"]
  docker.io:
    endpoint: ["http://172.31.0.1:5000"]
"#;

#[test]
fn images_come_from_a_registry() {
    let builder = Cluster::new()
        .servers(1)
        .agents(1)
        .file("/etc/skiff/registries.yaml", REGISTRIES);
    on_cluster("registry", builder, async |cluster| {
        let archive = cluster.lab.folder.join("push.tar");
        Image::busybox()?.write(&archive)?;
        for (port, guarded) in [(OPEN, false), (GUARDED, true)] {
            serve(cluster, port, guarded).await?;
            push(cluster, port, guarded, &archive)
                .await
                .with_context(|| format!("push to port {port}"))?;
        }
        let manifest = |name: &str, node: &str, image: &str, secret: &str| {
            format!(
                r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [{secret}]
  containers: [{{name: main, image: "{image}", command: [sh, -c, {idle}]}}]
"#,
                idle = Value::from(IDLE)
            )
        };
        for node in cluster.nodes() {
            let name = format!("anonymous-{}", node.name);
            cluster
                .apply(&manifest(
                    &name,
                    &node.name,
                    "172.31.0.1:5000/fleet/busybox:1",
                    "",
                ))
                .await?;
            let pod = cluster.pod_ready(&name).await?;
            let status = pod
                .status
                .unwrap_or_default()
                .container_statuses
                .unwrap_or_default();
            ensure!(
                status[0].image_id.contains("sha256:"),
                "image id {:?}",
                status[0].image_id
            );
        }
        // A mirror stands in for a registry that cannot be reached from here.
        cluster
            .apply(&manifest("mirrored", "agent-1", "fleet/busybox:1", ""))
            .await?;
        cluster.pod_ready("mirrored").await?;

        cluster
            .apply(&manifest(
                "stranger",
                "server",
                "172.31.0.1:5001/fleet/busybox:1",
                "",
            ))
            .await?;
        cluster
            .pod("stranger", waits_for(&["ErrImagePull", "ImagePullBackOff"]))
            .await?;
        let secret = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: account}}\ntype: kubernetes.io/dockerconfigjson\nstringData: {{.dockerconfigjson: {}}}\n",
            Value::from(DOCKER_CONFIG)
        );
        cluster.apply(&secret).await?;
        cluster
            .apply(&manifest(
                "member",
                "server",
                "172.31.0.1:5001/fleet/busybox:1",
                "{name: account}",
            ))
            .await?;
        cluster.pod_ready("member").await?;

        cluster
            .apply(&manifest(
                "missing",
                "server",
                "172.31.0.1:5000/fleet/absent:1",
                "",
            ))
            .await?;
        cluster.pod("missing", waits_for(&["ImagePullBackOff"])).await?;
        // Events are written behind the status.
        retry(PATIENCE, async || {
            let events = cluster.kubectl(&["describe", "pod", "missing"]).await?;
            let wanted = [
                "Failed to pull image \"172.31.0.1:5000/fleet/absent:1\"",
                "not found",
                "Back-off pulling image",
            ];
            crate::support::contains(&events, &wanted)
        })
        .await
    });
}

/// Satisfied when the first container waits for one of the reasons.
pub fn waits_for(
    reasons: &'static [&'static str],
) -> impl FnMut(&k8s_openapi::api::core::v1::Pod) -> Result<(), String> {
    move |pod| {
        let status = pod
            .status
            .clone()
            .unwrap_or_default()
            .container_statuses
            .unwrap_or_default();
        let waiting = status
            .first()
            .and_then(|status| status.state.clone()?.waiting?.reason);
        match waiting {
            Some(reason) if reasons.contains(&reason.as_str()) => Ok(()),
            other => Err(format!("waits for {other:?}, not {reasons:?}")),
        }
    }
}

/// Starts a registry on the LAN and waits until it answers.
async fn serve(cluster: &Cluster, port: u16, guarded: bool) -> anyhow::Result<()> {
    let folder = cluster.lab.folder.join(format!("registry-{port}"));
    std::fs::create_dir_all(folder.join("data"))?;
    std::fs::write(folder.join("htpasswd"), HTPASSWD)?;
    let folder_text = folder.display();
    let auth = format!("auth:\n  htpasswd:\n    realm: fleet\n    path: {folder_text}/htpasswd\n");
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder_text}/data\nhttp:\n  addr: {LAN_ADDRESS}:{port}\n{}",
        if guarded { &auth } else { "" }
    );
    let file = folder.join("config.yml");
    std::fs::write(&file, config)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    let command = cluster
        .lab
        .lan_command("docker-registry", &["serve", &file.display().to_string()])?;
    let registry =
        Process::start(command, log).context("install it with `apt-get install docker-registry`")?;
    retry(PATIENCE, async || {
        let text = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        ensure!(registry.is_running(), "the registry ended: {text}");
        ensure!(
            text.contains("listening on"),
            "the registry does not listen: {text}"
        );
        Ok(())
    })
    .await
}

/// Pushes the image of an OCI archive as `fleet/busybox:1`.
async fn push(cluster: &Cluster, port: u16, guarded: bool, archive: &Path) -> anyhow::Result<()> {
    let address = SocketAddr::new(LAN_ADDRESS.into(), port);
    let client = access::http_client(cluster.lab.sockets());
    let send = async |method: Method, url: String, content_type: &str, body: Vec<u8>| {
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(header::CONTENT_TYPE, content_type);
        if guarded {
            request = request.header(header::AUTHORIZATION, BASIC);
        }
        let response = client
            .request(request.body(Full::new(Bytes::from(body)))?)
            .await?;
        anyhow::Ok((
            response.status(),
            response.headers().get(header::LOCATION).cloned(),
        ))
    };
    let mut blobs: Vec<(String, Vec<u8>)> = Vec::new();
    let mut index = Value::Null;
    let mut tar = tar::Archive::new(std::fs::File::open(archive)?);
    for entry in tar.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        if path == "index.json" {
            index = serde_json::from_slice(&bytes)?;
        } else if let Some(name) = path.strip_prefix("blobs/sha256/") {
            blobs.push((format!("sha256:{name}"), bytes));
        }
    }
    let manifest = index["manifests"][0]["digest"]
        .as_str()
        .context("the archive has no manifest")?
        .to_owned();
    for (digest, bytes) in blobs {
        let base = format!("http://{address}/v2/fleet/busybox");
        if digest == manifest {
            let kind = "application/vnd.oci.image.manifest.v1+json";
            let (status, _) = send(Method::PUT, format!("{base}/manifests/1"), kind, bytes).await?;
            ensure!(status == StatusCode::CREATED, "manifest: {status}");
            continue;
        }
        let (status, location) = send(Method::POST, format!("{base}/blobs/uploads/"), "", Vec::new()).await?;
        ensure!(status == StatusCode::ACCEPTED, "upload: {status}");
        let location = location.context("no location")?.to_str()?.to_owned();
        let join = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{join}digest={digest}");
        let (status, _) = send(Method::PUT, url, "application/octet-stream", bytes).await?;
        ensure!(status == StatusCode::CREATED, "blob {digest}: {status}");
    }
    Ok(())
}
