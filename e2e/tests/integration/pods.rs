//! What a pod can ask for, each seen working from inside the pod.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use skiff_e2e::Cluster;
use skiff_e2e::access::{self, PATIENCE, retry};
use skiff_e2e::image::BUSYBOX;
use skiff_e2e::scenario::on_cluster;

use crate::registry::waits_for;
use crate::support::{IDLE, contains, script_pod, single};

fn first(pod: &Pod) -> ContainerStatus {
    let status = pod.status.clone().unwrap_or_default();
    status
        .container_statuses
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default()
}

fn ended(status: &ContainerStatus) -> Option<(String, i32)> {
    let ended = status.state.clone()?.terminated?;
    Some((ended.reason.unwrap_or_default(), ended.exit_code))
}

/// A pod of one busybox container; `spec` and `container` are further lines of
/// YAML for either, in flow style.
fn pod(name: &str, script: &str, spec: &str, container: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec: {{
  terminationGracePeriodSeconds: 2, {spec}
  containers: [{{
    name: main, image: "{BUSYBOX}", imagePullPolicy: Never, {container}
    command: [sh, -c, {script}]
  }}]
}}
"#,
        script = serde_json::Value::from(script)
    )
}

#[test]
fn life_and_death() {
    on_cluster("pods-life", single().unwrap(), async |cluster| {
        for manifest in [
            pod("once", "echo done; exit 3", "restartPolicy: Never,", ""),
            pod("well", "exit 0", "restartPolicy: OnFailure,", ""),
            pod("crash", "echo attempt; exit 1", "restartPolicy: Always,", ""),
            pod("told", "trap 'echo told; exit 0' TERM; echo up; while :; do sleep 0.1; done", "", ""),
            pod("deaf", "trap '' TERM; while :; do sleep 0.1; done", "", ""),
            pod("hooked", IDLE, "", "lifecycle: {postStart: {exec: {command: [touch, /tmp/started]}}, preStop: {exec: {command: [sh, -c, 'echo stopping >/proc/1/fd/1']}}},"),
            pod("greedy", "exec tail -c 100000000 /dev/zero", "restartPolicy: Never,", "resources: {limits: {memory: 24Mi}},"),
            pod("steps", "cat /work/trace", "restartPolicy: Never, volumes: [{name: work, emptyDir: {}}], initContainers: [
                 {name: one, image: 'docker.io/library/busybox:e2e', imagePullPolicy: Never, command: [sh, -c, 'echo one >>/work/trace'], volumeMounts: [{name: work, mountPath: /work}]},
                 {name: two, image: 'docker.io/library/busybox:e2e', imagePullPolicy: Never, command: [sh, -c, 'echo two >>/work/trace'], volumeMounts: [{name: work, mountPath: /work}]}],", "volumeMounts: [{name: work, mountPath: /work}],"),
            pod("stuck", "true", "restartPolicy: Never, initContainers: [{name: bad, image: 'docker.io/library/busybox:e2e', imagePullPolicy: Never, command: [sh, -c, 'exit 5']}],", ""),
            script_pod("absent", "server", IDLE).replace(BUSYBOX, "docker.io/library/absent:1"),
            script_pod("unreachable", "server", IDLE).replace(BUSYBOX, "172.31.0.1:5999/nobody/there:1").replace("Never", "Always"),
        ] {
            cluster.apply(&manifest).await?;
        }
        let phase = async |name: &str, want: &str| {
            let want = want.to_owned();
            cluster
                .pod(name, |pod| {
                    let phase = pod.status.clone().unwrap_or_default().phase.unwrap_or_default();
                    if phase == want {
                        Ok(first(pod))
                    } else {
                        Err(format!("{phase}, not {want}"))
                    }
                })
                .await
        };
        let once = phase("once", "Failed").await?;
        ensure!(
            ended(&once) == Some(("Error".to_owned(), 3)) && once.restart_count == 0,
            "{once:?}"
        );
        let well = phase("well", "Succeeded").await?;
        ensure!(
            ended(&well) == Some(("Completed".to_owned(), 0)) && well.restart_count == 0,
            "{well:?}"
        );
        cluster.pod("crash", waits_for(&["CrashLoopBackOff"])).await?;
        cluster
            .pod("crash", |pod| {
                if first(pod).restart_count >= 2 {
                    Ok(())
                } else {
                    Err("fewer than 2 restarts".to_owned())
                }
            })
            .await?;
        let previous = cluster.kubectl(&["logs", "crash", "--previous"]).await?;
        ensure!(previous == "attempt\n", "{previous:?}");
        contains(
            &cluster.kubectl(&["describe", "pod", "crash"]).await?,
            &["Back-off restarting failed container", "BackOff"],
        )?;

        let greedy = phase("greedy", "Failed").await?;
        ensure!(
            ended(&greedy) == Some(("OOMKilled".to_owned(), 137)),
            "{greedy:?}"
        );
        phase("steps", "Succeeded").await?;
        ensure!(
            cluster.kubectl(&["logs", "steps"]).await? == "one\ntwo\n",
            "init containers ran otherwise"
        );
        phase("stuck", "Failed").await?;
        cluster.pod("absent", waits_for(&["ErrImageNeverPull"])).await?;
        cluster
            .pod("unreachable", waits_for(&["ErrImagePull", "ImagePullBackOff"]))
            .await?;
        contains(
            &cluster.kubectl(&["get", "pods"]).await?,
            &[
                "CrashLoopBackOff",
                "OOMKilled",
                "Completed",
                "Init:Error",
                "ErrImageNeverPull",
            ],
        )?;
        terminations(cluster).await
    });
}

/// SIGTERM is heard, a deaf one is killed after its grace, hooks run.
async fn terminations(cluster: &Cluster) -> anyhow::Result<()> {
    for name in ["told", "deaf", "hooked"] {
        cluster.pod_ready(name).await?;
    }
    cluster.exec("hooked", &["ls", "/tmp/started"]).await?.ok()?;
    for (name, least, most, word) in [
        ("told", 0.0, 1.8, "told"),
        ("deaf", 1.8, 12.0, ""),
        ("hooked", 0.0, 12.0, "stopping"),
    ] {
        let log = async {
            let output = cluster.kubectl_raw(&["logs", "-f", name], None).await?;
            anyhow::Ok(output.stdout)
        };
        let begin = tokio::time::Instant::now();
        let delete = async {
            cluster.kubectl(&["delete", "pod", name, "--wait=true"]).await?;
            anyhow::Ok(begin.elapsed().as_secs_f64())
        };
        let (log, took) = tokio::try_join!(log, delete)?;
        ensure!(log.contains(word), "{name} logged {log:?} at its end");
        ensure!(took >= least && took < most, "{name} took {took:.1} s to end");
    }
    Ok(())
}

#[test]
fn probes() {
    on_cluster("pods-probes", single().unwrap(), async |cluster| {
        let serve = "mkdir -p /www && echo ok >/www/ok && httpd -p 8080 -h /www && ";
        let touch = format!("{serve} touch /tmp/live; {IDLE}");
        let quick = "periodSeconds: 1, failureThreshold: 1";
        for manifest in [
            pod(
                "http",
                &touch,
                "",
                &format!("readinessProbe: {{httpGet: {{path: /ok, port: 8080}}, {quick}}},"),
            ),
            pod(
                "tcp",
                &touch,
                "",
                &format!("readinessProbe: {{tcpSocket: {{port: 8080}}, {quick}}},"),
            ),
            pod(
                "never",
                &touch,
                "",
                &format!("readinessProbe: {{httpGet: {{path: /absent, port: 8080}}, {quick}}},"),
            ),
            pod(
                "alive",
                &touch,
                "",
                &format!("livenessProbe: {{exec: {{command: [cat, /tmp/live]}}, {quick}}},"),
            ),
            pod(
                "late",
                &format!("sleep 2; {touch}"),
                "",
                &format!(
                    "startupProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1, failureThreshold: 30}}, livenessProbe: {{exec: {{command: [cat, /tmp/live]}}, {quick}}},"
                ),
            ),
        ] {
            cluster.apply(&manifest).await?;
        }
        for name in ["http", "tcp", "alive", "late"] {
            cluster.pod_ready(name).await?;
        }
        let late = cluster.pod_ready("late").await?;
        ensure!(
            first(&late).restart_count == 0,
            "the startup probe did not hold back the liveness probe"
        );
        // Readiness follows the file, in both directions.
        cluster.exec("http", &["rm", "/www/ok"]).await?.ok()?;
        cluster
            .pod("http", |pod| {
                if first(pod).ready {
                    Err("still ready".to_owned())
                } else {
                    Ok(())
                }
            })
            .await?;
        cluster.exec("http", &["touch", "/www/ok"]).await?.ok()?;
        cluster.pod_ready("http").await?;
        // A failing liveness probe restarts the container, once.
        cluster.exec("alive", &["rm", "/tmp/live"]).await?.ok()?;
        cluster
            .pod("alive", |pod| {
                if first(pod).restart_count == 1 && first(pod).ready {
                    Ok(())
                } else {
                    Err("not restarted".to_owned())
                }
            })
            .await?;
        contains(
            &cluster.kubectl(&["describe", "pod", "alive"]).await?,
            &["Liveness probe failed", "will be restarted"],
        )?;
        cluster
            .pod("never", |pod| {
                let status = first(pod);
                if status.state.clone().unwrap_or_default().running.is_some() && !status.ready {
                    Ok(())
                } else {
                    Err("not running or ready".to_owned())
                }
            })
            .await?;
        retry(PATIENCE, async || {
            contains(
                &cluster.kubectl(&["describe", "pod", "never"]).await?,
                &["Readiness probe failed: HTTP probe failed with statuscode: 404"],
            )
        })
        .await
    });
}

const VOLUMES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {mode: fast, level: "3"}
binaryData: {raw: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hush}
---
apiVersion: v1
kind: Pod
metadata:
  name: volumes
  labels: {tier: back}
  annotations: {note: hello}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 2000, fsGroup: 3000}
  containers:
  - name: main
    image: docker.io/library/busybox:e2e
    imagePullPolicy: Never
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
    resources: {requests: {cpu: 100m}, limits: {memory: 64Mi, cpu: 500m}}
    env:
    - {name: PLAIN, value: "a$(POD_NAME)"}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: AFTER, value: "b-$(POD_NAME)-$$(x)"}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom:
    - {prefix: CM_, configMapRef: {name: settings}}
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: memory, mountPath: /memory}
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one/level, subPath: level}
    - {name: keys, mountPath: /keys, readOnly: true}
    - {name: about, mountPath: /about}
    - {name: all, mountPath: /all}
    - {name: host, mountPath: /host}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: settings, configMap: {name: settings}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0440}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}}
  - name: all
    projected:
      sources:
      - serviceAccountToken: {path: token, audience: dock, expirationSeconds: 600}
      - configMap: {name: settings, items: [{key: mode, path: sub/mode}]}
      - secret: {name: keys}
  - {name: host, hostPath: {path: /run/e2e-host, type: DirectoryOrCreate}}
"#;

#[test]
fn volumes_and_environment() {
    on_cluster("pods-volumes", single().unwrap(), async |cluster| {
        cluster.apply(VOLUMES).await?;
        let pod = cluster.pod_ready("volumes").await?;
        let ip = crate::support::pod_ip(&pod)?;
        let sh = async |script: &str| cluster.exec("volumes", &["sh", "-ec", script]).await?.ok();
        for (script, want) in [
            ("echo $PLAIN $AFTER", "a$(POD_NAME) b-volumes-$(x)"),
            ("echo $POD_IP $NODE", &format!("{ip} server") as &str),
            (
                "echo $MODE $PASSWORD $MEMORY $CM_mode $CM_level",
                "fast hush 64 fast 3",
            ),
            (
                "echo $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT",
                "10.43.0.1 443",
            ),
            ("id -u; id -g; id -G", "1000\n2000\n2000 3000"),
            ("cat /settings/mode /settings/level", "fast3"),
            ("cat /one/level", "3"),
            ("od -An -tx1 /settings/raw", " 00 01 02"),
            (
                "cat /keys/password; stat -Lc %a-%g /keys/password",
                "hush440-3000",
            ),
            ("cat /about/note", "hello"),
            ("cat /about/labels", "tier=\"back\""),
            ("cat /all/sub/mode /all/password", "fasthush"),
            ("grep -c . /all/token", "1"),
            (
                "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace",
                "default",
            ),
            (
                "head -1 /var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
                "-----BEGIN CERTIFICATE-----",
            ),
            ("echo x >/scratch/file; stat -c %g /scratch/file", "3000"),
            ("df -m /memory | awk 'NR==2{print $2}'", "8"),
            ("hostname", "volumes"),
            ("grep -c volumes /etc/hosts", "1"),
            (
                "cat /etc/resolv.conf | head -2",
                "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.43.0.10",
            ),
            ("ls -d /host", "/host"),
        ] {
            let got = sh(script).await?;
            ensure!(
                got.trim_end() == want.trim_end(),
                "{script}: {got:?}, not {want:?}"
            );
        }
        let denied = cluster
            .exec("volumes", &["sh", "-c", "echo x >/keys/new"])
            .await?
            .failed()?;
        ensure!(denied.contains("Read-only file system"), "{denied}");
        // The API takes the pod's own token and knows who it is.
        cluster
            .kubectl(&["create", "token", "default", "--audience=dock"])
            .await?;
        live_update(cluster).await?;
        limits(cluster).await?;
        // Everything is unmounted and gone when the pod is.
        cluster
            .kubectl(&["delete", "pod", "volumes", "--wait=true"])
            .await?;
        let uid = pod.uid().unwrap_or_default();
        retry(PATIENCE, async || {
            let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", cluster.server.pid()))?;
            ensure!(!mounts.contains(&uid), "still mounted:\n{mounts}");
            let left = cluster
                .server
                .sh(&format!(
                    "find /var/lib/skiff/agent/kubelet /var/log/pods -name '*{uid}*'"
                ))
                .await?
                .ok()?;
            ensure!(left.is_empty(), "left: {left}");
            Ok(())
        })
        .await?;
        ensure!(
            cluster.server.sh("ls -d /run/e2e-host").await?.status.success(),
            "the host folder went away"
        );
        Ok(())
    });
}

/// Mounted files follow their object; those mounted by subPath do not.
async fn live_update(cluster: &Cluster) -> anyhow::Result<()> {
    let patch = r#"{"data":{"level":"4","extra":"new"}}"#;
    cluster
        .kubectl(&["patch", "configmap", "settings", "--type=merge", "-p", patch])
        .await?;
    cluster
        .kubectl(&["label", "pod", "volumes", "--overwrite", "tier=front"])
        .await?;
    retry(PATIENCE, async || {
        let got = cluster
            .exec(
                "volumes",
                &[
                    "sh",
                    "-c",
                    "cat /settings/level /settings/extra /about/labels /one/level",
                ],
            )
            .await?
            .ok()?;
        ensure!(got == "4newtier=\"front\"3", "{got:?}");
        Ok(())
    })
    .await
}

/// Limits are those of the container's control group.
async fn limits(cluster: &Cluster) -> anyhow::Result<()> {
    let root = cluster.server.cgroup_root();
    let script = format!(
        "if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
           cat $(find /sys/fs/cgroup{root} -name memory.max) $(find /sys/fs/cgroup{root} -name cpu.max)
         else
           cat $(find /sys/fs/cgroup/memory{root} -name memory.limit_in_bytes) $(find /sys/fs/cgroup/cpu{root} -name cpu.cfs_quota_us)
         fi"
    );
    let text = cluster.server.sh(&script).await?.ok()?;
    let words: Vec<&str> = text.split_whitespace().collect();
    ensure!(
        words.contains(&"67108864") && words.contains(&"50000"),
        "limits: {words:?}"
    );
    Ok(())
}

#[test]
fn ports_security_and_logs() {
    on_cluster("pods-misc", single().unwrap(), async |cluster| {
        let serve = format!("mkdir -p /www && echo deck >/www/index.html && httpd -p 8080 -h /www && {IDLE}");
        for manifest in [
            pod(
                "hostport",
                &serve,
                "",
                "ports: [{containerPort: 8080, hostPort: 9090}],",
            ),
            pod("hostnet", IDLE, "hostNetwork: true,", ""),
            pod(
                "locked",
                IDLE,
                "",
                "securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}},",
            ),
            pod(
                "wordy",
                "i=0; while [ $i -lt 260 ]; do head -c 100000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo last; sleep 3600",
                "",
                "",
            ),
            pod("shared", IDLE, "shareProcessNamespace: true,", ""),
        ] {
            cluster.apply(&manifest).await?;
        }
        for name in ["hostport", "hostnet", "locked", "shared"] {
            cluster.pod_ready(name).await?;
        }
        let address = SocketAddr::new(cluster.server.address.into(), 9090);
        let page = retry(PATIENCE, async || {
            access::get(&cluster.lab.sockets(), address, "/").await
        })
        .await?;
        ensure!(page == "deck\n", "{page:?}");
        cluster
            .kubectl(&["delete", "pod", "hostport", "--wait=true"])
            .await?;
        ensure!(
            access::get(&cluster.lab.sockets(), address, "/").await.is_err(),
            "the host port is still open"
        );

        let links = cluster.exec("hostnet", &["ip", "-o", "addr"]).await?.ok()?;
        contains(&links, &[&cluster.server.address.to_string()])?;
        let denied = cluster.exec("locked", &["touch", "/file"]).await?.failed()?;
        ensure!(denied.contains("Read-only file system"), "{denied}");
        let status = cluster
            .exec(
                "locked",
                &["grep", "-E", "CapEff|NoNewPrivs", "/proc/self/status"],
            )
            .await?
            .ok()?;
        contains(&status, &["0000000000000000", "NoNewPrivs:\t1"])?;
        let init = cluster.exec("shared", &["cat", "/proc/1/cmdline"]).await?.ok()?;
        ensure!(init.contains("pause"), "process 1 is {init:?}");
        rotation(cluster).await
    });
}

/// 26 MB of log: rotated, bounded, and the end still readable.
async fn rotation(cluster: &Cluster) -> anyhow::Result<()> {
    retry(PATIENCE, async || {
        let tail = cluster.kubectl(&["logs", "wordy", "--tail=1"]).await?;
        ensure!(
            tail == "last\n",
            "the log ends with {:?}",
            tail.chars().take(40).collect::<String>()
        );
        Ok(())
    })
    .await?;
    let list = cluster
        .server
        .sh("cd /var/log/pods/default_wordy_*/main && stat -c '%n %s' *")
        .await?
        .ok()?;
    let files: Vec<(&str, u64)> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, size)| (name, size.parse().unwrap_or(u64::MAX)))
        .collect();
    ensure!(files.len() >= 2 && files.len() <= 5, "log files: {files:?}");
    ensure!(
        files.iter().all(|(_, size)| *size <= 11 * 1024 * 1024),
        "log files: {files:?}"
    );
    let link = cluster
        .server
        .sh("ls /var/log/containers/wordy_default_main-*.log")
        .await?;
    link.ok().context("the link of /var/log/containers")?;
    Ok(())
}
