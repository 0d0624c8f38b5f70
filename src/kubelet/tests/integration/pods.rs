//! Stories of pods.

use std::time::Duration;

use serde_json::{Value, json};
use skiff_cri::{ExecOutput, ImageAuth, ImageConfig, Runtime};

use super::world::{World, condition, container};

fn simple() -> Value {
    json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "web", "imagePullPolicy": "IfNotPresent"}]})
}

fn restarts(pod: &Value) -> i64 {
    container(pod)["restartCount"].as_i64().unwrap_or(-1)
}

fn waiting(pod: &Value) -> &str {
    container(pod)["state"]["waiting"]["reason"]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_and_is_deleted_without_a_trace() {
    let world = World::new().await;
    let path = world.pod("p", simple());
    let pod = world.ready(&path).await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.42.0.2");
    assert_eq!(pod["status"]["hostIP"], "192.0.2.1");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert!(
        container(&pod)["containerID"]
            .as_str()
            .unwrap()
            .starts_with("fake://")
    );
    for event in [
        "Pulled: Container image",
        "Created: Container created",
        "Started: Container started",
    ] {
        world.api.wait_event("p", event).await;
    }
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    assert!(world.dirs.pod(&uid).exists());
    assert_eq!(world.groups().len(), 1);
    let writes = world
        .api
        .writes()
        .iter()
        .filter(|w| w.contains("/pods/p/status"))
        .count();
    assert!(writes <= 4, "few writes make a pod: {writes}");
    world.api.delete(&path, &json!({"gracePeriodSeconds": 5}));
    world.api.wait(&path, "gone", Value::is_null).await;
    world.api.wait_event("p", "Killing: Stopping container a").await;
    assert!(world.runtime.sandboxes().await.unwrap().is_empty());
    assert!(world.network.attached.lock().is_empty());
    assert!(!world.dirs.pod(&uid).exists());
    assert!(world.groups().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashing_container_backs_off() {
    let world = World::new().await;
    let path = world.pod("p", simple());
    world.ready(&path).await;
    world.runtime.exit_container("a", 3);
    let pod = world
        .api
        .wait(&path, "restarted at once", |pod| {
            restarts(pod) == 1 && condition(pod, "Ready") == "True"
        })
        .await;
    assert_eq!(container(&pod)["lastState"]["terminated"]["exitCode"], 3);
    world.runtime.exit_container("a", 4);
    let pod = world
        .api
        .wait(&path, "backs off", |pod| waiting(pod) == "CrashLoopBackOff")
        .await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(condition(&pod, "Ready"), "False");
    assert_eq!(container(&pod)["lastState"]["terminated"]["exitCode"], 4);
    let message = container(&pod)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("back-off 10s restarting failed container=a pod=p_default("),
        "{message}"
    );
    world
        .api
        .wait_event(
            "p",
            "BackOff: Back-off restarting failed container a in pod p_default(",
        )
        .await;
    let pod = world
        .api
        .wait(&path, "runs again", |pod| {
            restarts(pod) == 2 && condition(pod, "Ready") == "True"
        })
        .await;
    assert_eq!(
        world.runtime.containers().await.unwrap().len(),
        2,
        "one record is kept: {pod:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_and_frees_its_sandbox() {
    let world = World::new().await;
    let mut spec = simple();
    spec["restartPolicy"] = json!("Never");
    let path = world.pod("p", spec);
    world.ready(&path).await;
    world.runtime.exit_container("a", 0);
    let pod = world
        .api
        .wait(&path, "succeeded", |pod| pod["status"]["phase"] == "Succeeded")
        .await;
    assert_eq!(container(&pod)["state"]["terminated"]["reason"], "Completed");
    let ready = pod["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Ready")
        .unwrap()
        .clone();
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("PodCompleted"))
    );
    world
        .api
        .wait(&path, "sandbox free", |pod| {
            condition(pod, "PodReadyToStartContainers") == "False"
        })
        .await;
    for _ in 0..100 {
        if world.network.attached.lock().is_empty() && world.groups().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(world.network.attached.lock().is_empty());
    assert!(world.groups().is_empty());
    assert_eq!(
        world.runtime.containers().await.unwrap().len(),
        1,
        "its record and log stay"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_kubelet_adopts_what_runs_and_clears_what_was_deleted() {
    let mut world = World::new().await;
    let kept = world.pod("kept", simple());
    let deleted = world.pod("deleted", simple());
    let before = world.ready(&kept).await;
    world.ready(&deleted).await;
    world.stop().await;
    world.api.remove(&deleted);
    let starts = world.calls("start_container");
    let writes = world
        .api
        .writes()
        .iter()
        .filter(|w| w.contains("/pods/kept/status"))
        .count();
    world.start();
    for _ in 0..200 {
        if world.runtime.sandboxes().await.unwrap().len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        world.runtime.sandboxes().await.unwrap().len(),
        1,
        "the deleted pod is cleared"
    );
    let kept_writes = || {
        world
            .api
            .writes()
            .iter()
            .filter(|w| w.contains("/pods/kept/status"))
            .count()
    };
    assert_eq!(kept_writes(), writes, "adoption writes nothing");
    // A change proves that the new kubelet looks after the pod.
    world.runtime.exit_container("a", 1);
    let after = world.api.wait(&kept, "restarted", |pod| restarts(pod) == 1).await;
    assert_eq!(before["status"]["podIP"], after["status"]["podIP"]);
    assert_eq!(
        world.calls("start_container"),
        starts + 1,
        "only what ended was started"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reboot_makes_a_new_sandbox() {
    let mut world = World::new().await;
    let path = world.pod("p", simple());
    world.ready(&path).await;
    world.stop().await;
    world.runtime.reboot();
    world.start();
    let pod = world
        .api
        .wait(&path, "runs again", |pod| {
            restarts(pod) == 1 && condition(pod, "Ready") == "True"
        })
        .await;
    assert_eq!(pod["status"]["podIP"], "127.42.0.3");
    for _ in 0..100 {
        if world.runtime.sandboxes().await.unwrap().len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        world.runtime.sandboxes().await.unwrap().len(),
        1,
        "the old sandbox is gone"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_config_map_holds_a_container_until_it_appears() {
    let world = World::new().await;
    let mut spec = simple();
    spec["containers"][0]["env"] = json!([
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "mode"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    let path = world.pod("p", spec);
    let pod = world
        .api
        .wait(&path, "an error", |pod| {
            waiting(pod) == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        container(&pod)["state"]["waiting"]["message"],
        "configmap \"cm\" not found"
    );
    world.api.put(
        "/api/v1/namespaces/default/configmaps/cm",
        json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "cm", "namespace": "default"}, "data": {"mode": "fast"}}),
    );
    world.ready(&path).await;
    let id = world.runtime.containers().await.unwrap()[0].id.clone();
    let env = world.runtime.config(&id).unwrap().env;
    assert!(env.contains(&("MODE".into(), "fast".into())), "{env:?}");
    assert!(env.contains(&("IP".into(), "127.42.0.2".into())), "{env:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_follow_their_objects() {
    let world = World::new().await;
    let map = |value: &str| {
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cm", "namespace": "default"},
            "data": {"k": value}})
    };
    let mut spec = simple();
    spec["volumes"] = json!([
        {"name": "conf", "configMap": {"name": "cm"}},
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}]);
    spec["containers"][0]["volumeMounts"] = json!([
        {"name": "conf", "mountPath": "/conf"}, {"name": "scratch", "mountPath": "/scratch"},
        {"name": "scratch", "mountPath": "/part", "subPath": "deep/part"}, {"name": "token", "mountPath": "/token"}]);
    let path = world.pod("p", spec);
    world
        .api
        .wait_event(
            "p",
            "FailedMount: MountVolume.SetUp failed for volume \"conf\" : configmap \"cm\" not found",
        )
        .await;
    world
        .api
        .put("/api/v1/namespaces/default/configmaps/cm", map("one"));
    world.ready(&path).await;
    let id = world.runtime.containers().await.unwrap()[0].id.clone();
    let mounts = world.runtime.config(&id).unwrap().mounts;
    let at = |path: &str| {
        let mount = mounts
            .iter()
            .find(|mount| mount.container_path == std::path::Path::new(path));
        mount.unwrap_or_else(|| panic!("{path} in {mounts:?}")).clone()
    };
    assert!(at("/conf").readonly && !at("/scratch").readonly);
    assert_eq!(
        std::fs::read_to_string(at("/conf").host_path.join("k")).unwrap(),
        "one"
    );
    assert_eq!(
        std::fs::read_to_string(at("/token").host_path.join("token")).unwrap(),
        "token-for-p"
    );
    assert_eq!(
        std::fs::read_to_string(at("/token").host_path.join("labels")).unwrap(),
        "app=\"p\""
    );
    std::fs::write(at("/part").host_path.join("f"), "x").unwrap();
    assert!(at("/scratch").host_path.join("deep/part/f").exists());
    assert!(
        std::fs::read_to_string(at("/etc/hosts").host_path)
            .unwrap()
            .contains("127.42.0.2\tp")
    );
    world
        .api
        .put("/api/v1/namespaces/default/configmaps/cm", map("two"));
    for _ in 0..200 {
        if std::fs::read_to_string(at("/conf").host_path.join("k")).unwrap() == "two" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(
        std::fs::read_to_string(at("/conf").host_path.join("k")).unwrap(),
        "two"
    );
    world.api.delete(&path, &json!({"gracePeriodSeconds": 1}));
    world.api.wait(&path, "gone", Value::is_null).await;
    assert!(!at("/conf").host_path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_liveness_probe_restarts_and_readiness_follows() {
    let world = World::new().await;
    let sick = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = sick.clone();
    world.runtime.on_exec(move |_, command| {
        let bad = command[0] == "live" && seen.swap(false, std::sync::atomic::Ordering::SeqCst);
        Ok(ExecOutput {
            exit_code: i32::from(bad),
            ..ExecOutput::default()
        })
    });
    let mut spec = simple();
    spec["terminationGracePeriodSeconds"] = json!(1);
    spec["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["live"]}, "periodSeconds": 1, "failureThreshold": 1});
    spec["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["ready"]}, "periodSeconds": 1});
    spec["containers"][0]["startupProbe"] = json!({"exec": {"command": ["up"]}, "periodSeconds": 1});
    let path = world.pod("p", spec);
    let pod = world.ready(&path).await;
    assert_eq!(container(&pod)["started"], true);
    sick.store(true, std::sync::atomic::Ordering::SeqCst);
    world
        .api
        .wait(&path, "restarted", |pod| {
            restarts(pod) == 1 && condition(pod, "Ready") == "True"
        })
        .await;
    world
        .api
        .wait_event("p", "Unhealthy: Liveness probe failed")
        .await;
    world
        .api
        .wait_event(
            "p",
            "Killing: Container a failed liveness probe, will be restarted",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_and_a_stubborn_container_is_killed_at_the_deadline() {
    let world = World::new().await;
    let ran = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = ran.clone();
    world.runtime.on_exec(move |_, command| {
        log.lock().push(command.join(" "));
        Ok(ExecOutput::default())
    });
    world.runtime.ignore_stop_signal("a");
    let mut spec = simple();
    spec["containers"][0]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["bye"]}}});
    let path = world.pod("p", spec);
    world.ready(&path).await;
    let begun = tokio::time::Instant::now();
    world.api.delete(&path, &json!({"gracePeriodSeconds": 3}));
    world.api.wait(&path, "gone", Value::is_null).await;
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(8),
        "{took:?}"
    );
    assert_eq!(*ran.lock(), ["hello", "bye"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_pulled_with_the_pods_credentials() {
    let world = World::new().await;
    world
        .runtime
        .add_remote_image("registry.example/app:1", ImageConfig::default());
    world.api.put(
        "/api/v1/namespaces/default/secrets/pull",
        json!({"kind": "Secret", "apiVersion": "v1",
        "metadata": {"name": "pull", "namespace": "default"},
        "data": {".dockerconfigjson": "eyJhdXRocyI6eyJyZWdpc3RyeS5leGFtcGxlIjp7ImF1dGgiOiJkVHB3In19fQ=="}}),
    );
    let spec = json!({"imagePullSecrets": [{"name": "pull"}], "containers": [
        {"name": "a", "image": "registry.example/app:1", "imagePullPolicy": "Always"}]});
    let path = world.pod("p", spec);
    world.ready(&path).await;
    let pulls = world.runtime.pulls();
    assert_eq!(
        pulls[0].1,
        Some(ImageAuth::Basic {
            username: "u".into(),
            password: "p".into()
        })
    );
    world
        .api
        .wait_event(
            "p",
            "Pulled: Successfully pulled image \"registry.example/app:1\"",
        )
        .await;
    let spec = json!({"containers": [{"name": "a", "image": "registry.example/none:1"}]});
    let path = world.pod("q", spec);
    world
        .api
        .wait(&path, "an error", |pod| waiting(pod) == "ErrImagePull")
        .await;
    world
        .api
        .wait(&path, "waits", |pod| waiting(pod) == "ImagePullBackOff")
        .await;
    world
        .api
        .wait_event("q", "Failed: Failed to pull image \"registry.example/none:1\"")
        .await;
    world.api.delete(&path, &json!({"gracePeriodSeconds": 1}));
    world.api.wait(&path, "gone", Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_and_sidecars() {
    let world = World::new().await;
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "initContainers": [{"name": "first", "image": "web"},
            {"name": "side", "image": "web", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "web"}]});
    let path = world.pod("p", spec);
    world
        .api
        .wait(&path, "first runs", |pod| {
            !pod["status"]["initContainerStatuses"][0]["state"]["running"].is_null()
        })
        .await;
    assert_eq!(world.runtime.containers().await.unwrap().len(), 1);
    world.runtime.exit_container("first", 0);
    let pod = world.ready(&path).await;
    assert_eq!(condition(&pod, "Initialized"), "True");
    assert_eq!(pod["status"]["initContainerStatuses"][1]["started"], true);
    world.runtime.exit_container("a", 0);
    let pod = world
        .api
        .wait(&path, "succeeded", |pod| pod["status"]["phase"] == "Succeeded")
        .await;
    assert!(
        !pod["status"]["initContainerStatuses"][1]["state"]["terminated"].is_null(),
        "{pod:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_here_is_refused() {
    let world = World::new().await;
    let mut spec = simple();
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    let path = world.pod("big", spec);
    let pod = world
        .api
        .wait(&path, "refused", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(pod["status"]["reason"], "OutOfcpu");
    let mut spec = simple();
    spec["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]);
    world.pod("claim", spec);
    world
        .api
        .wait_event(
            "claim",
            "FailedMount: MountVolume.SetUp failed for volume \"data\" : persistent volume claims",
        )
        .await;
    let mut spec = simple();
    spec["securityContext"] = json!({"runAsNonRoot": true});
    let path = world.pod("root", spec);
    let pod = world
        .api
        .wait(&path, "refused", |pod| {
            waiting(pod) == "CreateContainerConfigError"
        })
        .await;
    let message = container(&pod)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("container has runAsNonRoot and image will run as root"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_goes_away_is_waited_for() {
    let world = World::new().await;
    let path = world.pod("p", simple());
    world.ready(&path).await;
    world.runtime.set_available(false);
    let other = world.pod("q", simple());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        condition(&world.api.get(&path).unwrap(), "Ready"),
        "True",
        "what ran is not declared dead"
    );
    world.runtime.set_available(true);
    world.ready(&other).await;
}
