//! Services and EndpointSlices as tests need them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use skiff_proxy::NodeInfo;

pub const NODE: &str = "here";

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn node() -> NodeInfo {
    NodeInfo {
        name: NODE.into(),
        cluster_cidrs: vec!["10.42.0.0/16".parse().expect("a network")],
        service_cidrs: vec!["10.43.0.0/16".parse().expect("a network")],
        ..NodeInfo::default()
    }
}

/// A service with one TCP port 80; `spec` is merged over the default.
pub fn service(name: &str, cluster_ip: &str, spec: Value) -> Service {
    let mut whole = json!({
        "metadata": {"namespace": "default", "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    });
    for (key, value) in spec.as_object().expect("an object") {
        if key == "status" {
            whole["status"] = value.clone();
        } else {
            whole["spec"][key] = value.clone();
        }
    }
    serde_json::from_value(whole).expect("a service")
}

/// An endpoint: address, node, and conditions (ready, serving, terminating).
#[derive(Debug, Clone)]
pub struct End {
    pub address: String,
    pub node: &'static str,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

pub fn ready(address: &str, node: &'static str) -> End {
    End {
        address: address.into(),
        node,
        ready: true,
        serving: true,
        terminating: false,
    }
}

pub fn slice(service: &str, port: u16, protocol: &str, ends: &[End]) -> EndpointSlice {
    let family = ends.first().is_some_and(|e| e.address.contains(':'));
    let ends: Vec<Value> = ends
        .iter()
        .map(|e| {
            json!({
                "addresses": [e.address], "nodeName": e.node,
                "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
            })
        })
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "default", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if family { "IPv6" } else { "IPv4" },
        "ports": [{"name": "http", "port": port, "protocol": protocol}],
        "endpoints": ends,
    }))
    .expect("a slice")
}
