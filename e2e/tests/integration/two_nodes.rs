//! A real application on two nodes, handled with the kubectl of this machine.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, LogParams};
use kube::runtime::watcher;
use skiff_e2e::access::{self, PATIENCE, retry, until};
use skiff_e2e::scenario::on_cluster;
use skiff_e2e::{Cluster, process};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{IDLE, contains, fetch, node_of, pair, pod_ip, script_pod, web, web_addresses};

#[test]
fn an_application_on_two_nodes() {
    on_cluster("two-nodes", pair().unwrap(), async |cluster| {
        let said = cluster.apply(&web(4)).await?;
        contains(
            &said,
            &[
                "configmap/page created",
                "deployment.apps/web created",
                "service/web created",
            ],
        )?;
        for node in cluster.nodes() {
            cluster
                .apply(&script_pod(&format!("client-{}", node.name), &node.name, IDLE))
                .await?;
        }
        let pods = cluster.pods_ready("app=web", 4).await?;
        for node in cluster.nodes() {
            let here = pods.iter().filter(|pod| node_of(pod) == node.name).count();
            ensure!(here == 2, "{here} of 4 pods are on {}", node.name);
            cluster.pod_ready(&format!("client-{}", node.name)).await?;
        }
        traffic(cluster, &pods).await?;
        looking(cluster, &pods).await?;
        streams(cluster, &pods).await?;
        port_forward(cluster).await?;
        changing(cluster).await?;
        deleting(cluster).await
    });
}

/// By name, by cluster IP, by node port, pod to pod; and who nginx says asked.
async fn traffic(cluster: &Cluster, pods: &[Pod]) -> anyhow::Result<()> {
    let (cluster_ip, node_port) = web_addresses(cluster).await?;
    let mut clients = Vec::new();
    for node in cluster.nodes() {
        let client = cluster.pod_ready(&format!("client-{}", node.name)).await?;
        let name = client.name_any();
        for url in [
            "http://web".to_owned(),
            "http://web.default".to_owned(),
            "http://web.default.svc.cluster.local".to_owned(),
            format!("http://{cluster_ip}"),
            format!("http://{}:{node_port}", cluster.server.address),
        ] {
            let page = retry(PATIENCE, async || fetch(cluster, &name, &url).await).await?;
            ensure!(page == "page one\n", "{url} from {name}: {page:?}");
        }
        for pod in pods {
            let url = format!("http://{}/from-{name}", pod_ip(pod)?);
            // Not found, but asked for: the access log has it.
            let _ = cluster
                .exec(&name, &["timeout", "5", "wget", "-q", "-O", "-", &url])
                .await?;
        }
        clients.push((name, pod_ip(&client)?));
    }
    for node in cluster.nodes() {
        let address = SocketAddr::new(node.address.into(), node_port);
        let page = retry(PATIENCE, async || {
            access::get(&cluster.lab.sockets(), address, "/").await
        })
        .await?;
        ensure!(page == "page one\n", "node port of {}: {page:?}", node.name);
    }
    let api: Api<Pod> = cluster.api();
    for pod in pods {
        let log = api.logs(&pod.name_any(), &LogParams::default()).await?;
        for (name, ip) in &clients {
            let line = format!("{ip} \"GET /from-{name} HTTP/1.1\" 404");
            ensure!(
                log.contains(&line),
                "{} on {} has not logged {line:?}:\n{log}",
                pod.name_any(),
                node_of(pod)
            );
        }
    }
    Ok(())
}

/// The commands that show things.
async fn looking(cluster: &Cluster, pods: &[Pod]) -> anyhow::Result<()> {
    let first = pods[0].name_any();
    let pod_ip = pod_ip(&pods[0])?;
    let node = node_of(&pods[0]);
    let node_address = cluster.node(&node)?.address.to_string();
    for (args, parts) in [
        (
            "get nodes -o wide",
            &[
                "NAME",
                "STATUS",
                "ROLES",
                "INTERNAL-IP",
                "server",
                "agent-1",
                "Ready",
                "172.31.0.12",
                "containerd://1.",
            ][..],
        ),
        (
            "get pods -o wide",
            &["READY", "RESTARTS", "1/1", "Running", &pod_ip, &node],
        ),
        ("get pods -l app=web --no-headers", &[&first]),
        ("get deployments", &["UP-TO-DATE", "AVAILABLE", "4/4"]),
        ("get replicasets", &["DESIRED", "CURRENT", "web-"]),
        (
            "get all",
            &[
                "pod/web-",
                "service/web",
                "deployment.apps/web",
                "replicaset.apps/web-",
            ],
        ),
        ("get svc web", &["NodePort", "10.43.", "80:3"]),
        (
            "get endpointslices -l kubernetes.io/service-name=web",
            &["web-", "IPv4", "80", "+ 1 more..."],
        ),
        (
            "get endpointslices -l kubernetes.io/service-name=web -o yaml",
            &[&pod_ip, "ready: true", "kind: EndpointSlice"],
        ),
        ("get cm page -o jsonpath={.data.index\\.html}", &["page one"]),
        (
            "get deploy web -o yaml",
            &[
                "kind: Deployment",
                "progressDeadlineSeconds: 600",
                "readyReplicas: 4",
            ],
        ),
        (
            "get ns",
            &[
                "default",
                "kube-system",
                "kube-public",
                "kube-node-lease",
                "Active",
            ],
        ),
        ("get events", &["Scheduled", "Created", "Started"]),
        ("get serviceaccounts", &["default"]),
        ("get leases -n kube-node-lease", &["server", "agent-1"]),
        (
            &format!("describe pod {first}"),
            &[
                "Node:",
                &node_address,
                "Ready:          True",
                "Scheduled",
                "Type:      ConfigMap",
                "kube-api-access",
            ],
        ),
        (
            "describe deployment web",
            &[
                "4 desired | 4 updated | 4 total | 4 available | 0 unavailable",
                "ScalingReplicaSet",
            ],
        ),
        ("describe service web", &["NodePort:", "Endpoints:", ":80"]),
        (
            "describe node agent-1",
            &[
                "Capacity:",
                "Allocatable:",
                "PodCIDR:",
                "10.42.",
                "KubeletReady",
                "Allocated resources:",
                "client-agent-1",
            ],
        ),
        ("logs deployment/web --tail=1", &["GET /"]),
        (&format!("logs {first} --timestamps --tail=1"), &["T", "Z "]),
        (
            &format!("exec {first} -- cat /usr/share/nginx/html/index.html"),
            &["page one"],
        ),
        (
            "explain deployment.spec.replicas",
            &["KIND:", "Deployment", "replicas", "integer"],
        ),
        (
            "explain pod.spec.containers --recursive",
            &["livenessProbe", "terminationMessagePath"],
        ),
        (
            "api-resources",
            &[
                "deployments",
                "deploy",
                "apps/v1",
                "true",
                "Deployment",
                "configmaps",
                "cm",
                "namespaces",
            ],
        ),
        (
            "api-versions",
            &["apps/v1", "batch/v1", "v1", "rbac.authorization.k8s.io/v1"],
        ),
        ("version", &["Client Version", "Server Version: v1.36"]),
        ("cluster-info", &["control plane", "is running at"]),
        ("auth can-i create pods", &["yes"]),
        ("auth whoami", &["system:admin", "system:masters"]),
        ("get --raw /readyz", &["ok"]),
    ] {
        let words: Vec<&str> = args.split_whitespace().collect();
        let text = cluster.kubectl(&words).await?;
        contains(&text, parts).with_context(|| format!("kubectl {args}"))?;
    }
    let wrong = cluster
        .kubectl_raw(&["get", "pods", "absent"], None)
        .await?
        .failed()?;
    ensure!(
        wrong.contains("Error from server (NotFound): pods \"absent\" not found"),
        "{wrong}"
    );
    let wrong = cluster.kubectl_raw(&["get", "sloops"], None).await?.failed()?;
    ensure!(
        wrong.contains("doesn't have a resource type \"sloops\""),
        "{wrong}"
    );
    let bad = web(4).replace("replicas:", "replicaz:");
    let wrong = cluster
        .kubectl_raw(&["apply", "-f", "-"], Some(&bad))
        .await?
        .failed()?;
    ensure!(wrong.contains("unknown field \"spec.replicaz\""), "{wrong}");
    Ok(())
}

/// exec with input, with a terminal, exit codes; cp; logs that follow.
async fn streams(cluster: &Cluster, pods: &[Pod]) -> anyhow::Result<()> {
    let first = pods[0].name_any();
    let echoed = cluster
        .kubectl_raw(&["exec", "-i", &first, "--", "cat"], Some("through and back\n"))
        .await?
        .ok()?;
    ensure!(echoed == "through and back\n", "{echoed:?}");
    let code = cluster
        .kubectl_raw(
            &["exec", &first, "--", "sh", "-c", "echo out; echo err >&2; exit 7"],
            None,
        )
        .await?;
    ensure!(
        code.status.code() == Some(7),
        "exit code 7 became {}",
        code.status
    );
    ensure!(
        code.stdout == "out\n" && code.stderr.starts_with("err\n"),
        "{code:?}"
    );
    // `script` gives kubectl a terminal, so that `-t` asks for one in the pod.
    let line = format!("kubectl exec -it {first} -- sh -c 'tty; stty size'");
    let mut command = cluster.server.command("script", &["-qec", &line, "/dev/null"])?;
    command.env("TERM", "xterm");
    let text = process::run(command, None, Duration::from_secs(20)).await?.ok()?;
    ensure!(text.contains("/dev/pts/0"), "no terminal: {text:?}");
    let source = cluster.server.folder.join("home/cargo.txt");
    std::fs::write(&source, "ballast\n")?;
    let target = format!("{first}:/tmp/cargo.txt");
    cluster
        .kubectl(&["cp", &source.display().to_string(), &target])
        .await?;
    let there = cluster.exec(&first, &["cat", "/tmp/cargo.txt"]).await?.ok()?;
    ensure!(there == "ballast\n", "{there:?}");
    follow(cluster).await
}

/// Lines arrive while the container runs.
async fn follow(cluster: &Cluster) -> anyhow::Result<()> {
    let ticking = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done";
    cluster.apply(&script_pod("ticker", "agent-1", ticking)).await?;
    cluster.pod_ready("ticker").await?;
    let command = cluster.server.command("kubectl", &["logs", "-f", "ticker"])?;
    let mut command = tokio::process::Command::from(command);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let read = async {
        for want in 1..=15 {
            let line = lines.next_line().await?.context("the log ended")?;
            ensure!(line == format!("tick {want}"), "{line:?} instead of tick {want}");
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, read).await??;
    child.kill().await?;
    cluster
        .kubectl(&["delete", "pod", "ticker", "--wait=true"])
        .await
        .map(drop)
}

async fn port_forward(cluster: &Cluster) -> anyhow::Result<()> {
    for target in ["service/web", "deployment/web"] {
        let command = cluster
            .server
            .command("kubectl", &["port-forward", target, "18080:80"])?;
        let mut command = tokio::process::Command::from(command);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line())
            .await??
            .context("port-forward ended")?;
        ensure!(line.contains("Forwarding from 127.0.0.1:18080 -> 80"), "{line:?}");
        for _ in 0..5 {
            let page = access::get(&cluster.server.sockets(), "127.0.0.1:18080".parse()?, "/").await?;
            ensure!(page == "page one\n", "{page:?}");
        }
        child.kill().await?;
    }
    Ok(())
}

async fn deployment(cluster: &Cluster, mut judge: impl FnMut(&Deployment) -> bool) -> anyhow::Result<()> {
    let config = watcher::Config::default().fields("metadata.name=web");
    until(cluster.api::<Deployment>(), config, PATIENCE, |all| {
        match all.first() {
            Some(deployment) if judge(deployment) => Ok(()),
            other => Err(format!(
                "{:?}",
                other.and_then(|deployment| deployment.status.clone())
            )),
        }
    })
    .await
    .context("deployment web")
}

/// The commands that change things.
async fn changing(cluster: &Cluster) -> anyhow::Result<()> {
    let said = cluster
        .kubectl(&["scale", "deployment/web", "--replicas=6"])
        .await?;
    contains(&said, &["deployment.apps/web scaled"])?;
    cluster.pods_ready("app=web", 6).await?;
    cluster
        .kubectl(&["scale", "deployment/web", "--replicas=3"])
        .await?;
    cluster.pods_ready("app=web", 3).await?;

    let said = cluster
        .kubectl(&["set", "env", "deployment/web", "VERSION=2"])
        .await?;
    contains(&said, &["deployment.apps/web env updated"])?;
    let said = cluster
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .await?;
    contains(&said, &["successfully rolled out"])?;
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]).await?;
    contains(&history, &["REVISION", "1", "2"])?;
    let env = cluster.kubectl(&["exec", "deployment/web", "--", "env"]).await?;
    contains(&env, &["VERSION=2"])?;
    let said = cluster.kubectl(&["rollout", "undo", "deployment/web"]).await?;
    contains(&said, &["rolled back"])?;
    cluster
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .await?;
    deployment(cluster, |deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        status.replicas == Some(3) && status.ready_replicas == Some(3)
    })
    .await?;
    let env = cluster.kubectl(&["exec", "deployment/web", "--", "env"]).await?;
    ensure!(!env.contains("VERSION=2"), "the undo changed nothing: {env}");

    let said = cluster.apply(&web(3)).await?;
    contains(&said, &["configmap/page unchanged", "service/web unchanged"])?;
    let two = web(3).replace("page one", "page two");
    let diff = cluster.kubectl_raw(&["diff", "-f", "-"], Some(&two)).await?;
    ensure!(
        diff.status.code() == Some(1) && diff.stdout.contains("-    page one\n+    page two"),
        "{diff:?}"
    );
    let said = cluster.apply(&two).await?;
    contains(&said, &["configmap/page configured"])?;
    // The mounted files follow, in every pod that runs.
    let names: Vec<String> = cluster
        .pods_ready("app=web", 3)
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    for name in &names {
        retry(PATIENCE, async || {
            let page = cluster
                .exec(name, &["cat", "/usr/share/nginx/html/index.html"])
                .await?
                .ok()?;
            ensure!(page == "page two\n", "{name} still has {page:?}");
            Ok(())
        })
        .await?;
    }
    let server_side = cluster
        .kubectl_raw(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            Some(&two),
        )
        .await?
        .ok()?;
    contains(&server_side, &["deployment.apps/web serverside-applied"])?;
    for (args, want) in [
        ("label deployment web tier=front", "deployment.apps/web labeled"),
        (
            "annotate deployment web note=hello",
            "deployment.apps/web annotated",
        ),
        (
            "patch deployment web -p {\"metadata\":{\"labels\":{\"tier\":\"back\"}}}",
            "deployment.apps/web patched",
        ),
        (
            "patch deployment web --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/tier\"}]",
            "deployment.apps/web patched",
        ),
        (
            "wait deployment/web --for=condition=Available --timeout=30s",
            "deployment.apps/web condition met",
        ),
        ("cordon agent-1", "node/agent-1 cordoned"),
        ("uncordon agent-1", "node/agent-1 uncordoned"),
        ("create namespace dock", "namespace/dock created"),
        (
            "create configmap rope -n dock --from-literal=length=10",
            "configmap/rope created",
        ),
        (
            "run sailor --image=docker.io/library/busybox:e2e --restart=Never --image-pull-policy=Never --command -- true",
            "pod/sailor created",
        ),
        (
            "wait pod/sailor --for=jsonpath={.status.phase}=Succeeded --timeout=30s",
            "pod/sailor condition met",
        ),
        ("rollout restart deployment/web", "deployment.apps/web restarted"),
        (
            "rollout status deployment/web --timeout=60s",
            "successfully rolled out",
        ),
    ] {
        let words: Vec<&str> = args.split_whitespace().collect();
        let text = cluster.kubectl(&words).await?;
        contains(&text, &[want]).with_context(|| format!("kubectl {args}"))?;
    }
    Ok(())
}

async fn deleting(cluster: &Cluster) -> anyhow::Result<()> {
    let said = cluster
        .kubectl(&["delete", "namespace", "dock", "--timeout=60s"])
        .await?;
    contains(&said, &["namespace \"dock\" deleted"])?;
    let said = cluster
        .kubectl_raw(&["delete", "-f", "-", "--timeout=60s"], Some(&web(4)))
        .await?
        .ok()?;
    contains(
        &said,
        &[
            "configmap \"page\" deleted",
            "deployment.apps \"web\" deleted",
            "service \"web\" deleted",
        ],
    )?;
    // Garbage collection takes replica sets, pods and endpoints along.
    cluster.pods_ready("app=web", 0).await?;
    retry(PATIENCE, async || {
        let left = cluster
            .kubectl(&[
                "get",
                "rs,endpointslices",
                "-l",
                "kubernetes.io/service-name!=kubernetes",
                "-o",
                "name",
            ])
            .await?;
        ensure!(left.trim().is_empty(), "left: {left}");
        Ok(())
    })
    .await
}
