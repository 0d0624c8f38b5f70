use super::*;
use serde_json::{Value, json};

fn node(name: &str, extra: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": &name[..1]}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "2Gi", "pods": "10"}},
    });
    merge(&mut node, extra);
    Arc::new(serde_json::from_value(node).expect("node"))
}

fn pod(name: &str, extra: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    merge(&mut pod, extra);
    Arc::new(serde_json::from_value(pod).expect("pod"))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn asking(name: &str, cpu: &str) -> Arc<Pod> {
    pod(
        name,
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
    )
}

fn run(pod: &Pod, nodes: &[Arc<Node>], placed: &[(Arc<Pod>, String)]) -> Result<String, String> {
    decide(pod, &Cluster::new(nodes, &[], placed))
}

fn on(node: &str, pod: Arc<Pod>) -> (Arc<Pod>, String) {
    (pod, node.to_owned())
}

#[test]
fn a_pod_goes_where_there_is_room() {
    let nodes = [node("a1", json!({})), node("b1", json!({}))];
    let placed = [on("a1", asking("big", "1500m"))];
    assert_eq!(run(&asking("p", "1"), &nodes, &placed), Ok("b1".to_owned()));
    let placed = [
        on("a1", asking("big", "1500m")),
        on("b1", asking("big2", "1500m")),
    ];
    assert_eq!(
        run(&asking("p", "1"), &nodes, &placed),
        Err("0/2 nodes are available: 2 Insufficient cpu.".to_owned())
    );
    assert_eq!(
        run(&pod("p", json!({})), &[], &[]),
        Err("no nodes available to schedule pods".to_owned())
    );
}

#[test]
fn reasons_are_counted_by_kind() {
    let nodes = [
        node("a1", json!({"spec": {"unschedulable": true}})),
        node(
            "a2",
            json!({"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}),
        ),
        node("a3", json!({"status": {"allocatable": {"cpu": "100m"}}})),
    ];
    let error = run(&asking("p", "1"), &nodes, &[]).expect_err("fits nowhere");
    assert_eq!(
        error,
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: }, 1 node(s) were unschedulable."
    );
    let tolerant = pod(
        "p",
        json!({"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}),
    );
    assert_eq!(run(&tolerant, &nodes[..2], &[]), Ok("a2".to_owned()));
}

#[test]
fn selectors_and_affinity_narrow_the_choice() {
    let nodes = [
        node("a1", json!({"metadata": {"labels": {"disk": "ssd"}}})),
        node("b1", json!({})),
    ];
    let selecting = pod("p", json!({"spec": {"nodeSelector": {"disk": "ssd"}}}));
    assert_eq!(run(&selecting, &nodes, &[]), Ok("a1".to_owned()));
    let affine = |operator: &str| {
        pod(
            "p",
            json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": operator}]}]}}}}}),
        )
    };
    assert_eq!(run(&affine("DoesNotExist"), &nodes, &[]), Ok("b1".to_owned()));
    assert_eq!(run(&affine("Exists"), &nodes, &[]), Ok("a1".to_owned()));
    let elsewhere = pod("p", json!({"spec": {"nodeSelector": {"disk": "tape"}}}));
    assert_eq!(
        run(&elsewhere, &nodes, &[]),
        Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.".to_owned())
    );
}

#[test]
fn replicas_spread_over_nodes() {
    let nodes = [
        node("a1", json!({})),
        node("a2", json!({})),
        node("b1", json!({})),
    ];
    let owned = |name: &str| {
        pod(
            name,
            json!({"metadata": {"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]}}),
        )
    };
    let mut placed = Vec::new();
    for i in 0..6 {
        let pod = owned(&format!("p{i}"));
        let node = run(&pod, &nodes, &placed).expect("fits");
        placed.push((pod, node));
    }
    for name in ["a1", "a2", "b1"] {
        assert_eq!(
            placed.iter().filter(|(_, node)| node == name).count(),
            2,
            "{name}"
        );
    }
}

#[test]
fn pod_anti_affinity_binds_both_sides() {
    let nodes = [node("a1", json!({})), node("b1", json!({}))];
    let lonely = |name: &str| {
        pod(
            name,
            json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}}),
        )
    };
    let placed = [on("a1", lonely("first"))];
    assert_eq!(run(&lonely("second"), &nodes, &placed), Ok("b1".to_owned()));
    assert_eq!(
        run(&pod("plain", json!({})), &nodes, &placed),
        Ok("b1".to_owned())
    );
    let full = [on("a1", lonely("first")), on("b1", lonely("second"))];
    assert!(run(&lonely("third"), &nodes, &full).is_err());
}

#[test]
fn pod_affinity_follows_and_the_first_may_start() {
    let nodes = [
        node("a1", json!({})),
        node("a2", json!({})),
        node("b1", json!({})),
    ];
    let near = pod(
        "near",
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}}),
    );
    assert!(run(&near, &nodes, &[]).is_ok(), "it matches itself");
    assert_eq!(
        run(&near, &nodes, &[on("b1", pod("x", json!({})))]),
        Ok("b1".to_owned())
    );
}

#[test]
fn hard_topology_spread_keeps_the_skew() {
    let nodes = [
        node("a1", json!({})),
        node("a2", json!({})),
        node("b1", json!({})),
    ];
    let spread = pod(
        "p",
        json!({"spec": {"topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
         "labelSelector": {"matchLabels": {"app": "web"}}}]}}),
    );
    assert_eq!(
        run(&spread, &nodes, &[on("a1", pod("x", json!({})))]),
        Ok("b1".to_owned())
    );
}

#[test]
fn host_ports_are_exclusive() {
    let nodes = [node("a1", json!({})), node("b1", json!({}))];
    let port = |name: &str| {
        pod(
            name,
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}}),
        )
    };
    assert_eq!(
        run(&port("p"), &nodes, &[on("a1", port("x"))]),
        Ok("b1".to_owned())
    );
}

#[test]
fn init_containers_count_with_their_maximum() {
    let pod = pod(
        "p",
        json!({"spec": {
            "initContainers": [
                {"name": "sidecar", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "setup", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m"}}}],
        }}),
    );
    assert_eq!(resources::pod_requests(&pod).get("cpu"), 1100);
}
