//! The Node object and its lease.

use serde_json::json;

use super::world::{NODE, World, condition};

const NODE_PATH: &str = "/api/v1/nodes/n1";
const LEASE_PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_and_becomes_ready_with_its_network() {
    let world = World::new().await;
    let node = world
        .api
        .wait(NODE_PATH, "ready", |node| condition(node, "Ready") == "True")
        .await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], NODE);
    assert_eq!(
        node["metadata"]["labels"]["node.kubernetes.io/instance-type"],
        "skiff"
    );
    assert_eq!(
        node["status"]["addresses"][0],
        json!({"type": "InternalIP", "address": "192.0.2.1"})
    );
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    assert_eq!(
        node["status"]["nodeInfo"]["containerRuntimeVersion"],
        "fake://1.0"
    );
    for type_ in ["MemoryPressure", "PIDPressure"] {
        assert_eq!(condition(&node, type_), "False", "{type_}");
    }
    let lease = world
        .api
        .wait(LEASE_PATH, "a lease", |lease| !lease.is_null())
        .await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    assert_eq!(
        lease["metadata"]["ownerReferences"][0]["uid"],
        node["metadata"]["uid"]
    );
    world.network_ready.send_replace(false);
    world
        .api
        .wait(NODE_PATH, "not ready", |node| condition(node, "Ready") == "False")
        .await;
    world.network_ready.send_replace(true);
    world
        .api
        .wait(NODE_PATH, "ready again", |node| {
            condition(node, "Ready") == "True"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_node_is_adopted_with_what_others_wrote() {
    let world = World::new().await;
    world
        .api
        .wait(NODE_PATH, "ready", |node| condition(node, "Ready") == "True")
        .await;
    world.stop().await;
    let mut node = world.api.get(NODE_PATH).unwrap();
    node["metadata"]["labels"]["mine"] = json!("kept");
    node["metadata"]["labels"]["kubernetes.io/os"] = json!("wrong");
    node["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
    node["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "NetworkUnavailable", "status": "False"}));
    world.api.put(NODE_PATH, node);
    let mut world = world;
    world.start();
    let node = world
        .api
        .wait(NODE_PATH, "labels are right", |node| {
            node["metadata"]["labels"]["kubernetes.io/os"] == "linux"
        })
        .await;
    assert_eq!(node["metadata"]["labels"]["mine"], "kept");
    assert_eq!(node["spec"]["taints"][0]["key"], "k");
    assert_eq!(condition(&node, "NetworkUnavailable"), "False");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_declared_silent_speaks_up() {
    let world = World::new().await;
    let mut node = world
        .api
        .wait(NODE_PATH, "ready", |node| condition(node, "Ready") == "True")
        .await;
    for condition in node["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Ready" {
            condition["status"] = json!("Unknown");
        }
    }
    world.api.put(NODE_PATH, node);
    world
        .api
        .wait(NODE_PATH, "ready again", |node| {
            condition(node, "Ready") == "True"
        })
        .await;
    world.api.remove(NODE_PATH);
    world
        .api
        .wait(NODE_PATH, "registered again", |node| {
            condition(node, "Ready") == "True"
        })
        .await;
}
