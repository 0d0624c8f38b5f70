//! Services: values that the server allocated stay with an object that still needs them, and go with a change
//! of type. Allocation itself (addresses, node ports, address families) is the API server's.

use crate::meta;
use serde_json::Value;

fn kind(service: &Value) -> &str {
    meta::str_at(service, "spec.type")
}

fn needs_cluster_ip(service: &Value) -> bool {
    matches!(kind(service), "" | "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_port(service: &Value) -> bool {
    kind(service) == "NodePort"
        || kind(service) == "LoadBalancer"
            && meta::at(service, "spec.allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
}

fn has_node_ports(service: &Value) -> bool {
    matches!(kind(service), "NodePort" | "LoadBalancer")
}

fn needs_health_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && meta::str_at(service, "spec.externalTrafficPolicy") == "Local"
}

pub(super) fn on_create(service: &mut Value) {
    let ip = meta::str_at(service, "spec.clusterIP").to_owned();
    if !ip.is_empty() && meta::list_at(service, "spec.clusterIPs").is_empty() {
        meta::set(service, "spec.clusterIPs", vec![ip]);
    }
}

pub(super) fn on_update(new: &mut Value, old: &Value) {
    follow_primary_address(new, old);
    keep_allocated(new, old);
    drop_by_type(new, old);
}

/// Clients that know one address change `clusterIP` alone; the list follows.
fn follow_primary_address(new: &mut Value, old: &Value) {
    let (now, before) = (
        meta::str_at(new, "spec.clusterIP").to_owned(),
        meta::str_at(old, "spec.clusterIP"),
    );
    let unchanged = meta::list_at(new, "spec.clusterIPs") == meta::list_at(old, "spec.clusterIPs");
    if now != before && unchanged {
        if now.is_empty() {
            meta::remove(new, "spec.clusterIPs");
        } else {
            meta::set(new, "spec.clusterIPs", vec![now]);
        }
    }
}

fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if meta::str_at(new, "spec.clusterIP").is_empty() {
            meta::copy(old, new, "spec.clusterIP");
        }
        let same = meta::str_at(new, "spec.clusterIP") == meta::str_at(old, "spec.clusterIP");
        if meta::list_at(new, "spec.clusterIPs").is_empty() && same {
            meta::copy(old, new, "spec.clusterIPs");
        }
        for field in ["spec.ipFamilies", "spec.ipFamilyPolicy"] {
            if meta::at(new, field).is_none() {
                meta::copy(old, new, field);
            }
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let id = |p: &Value| (meta::str_at(p, "protocol").to_owned(), meta::int_at(p, "port"));
        let known: Vec<_> = meta::list_at(old, "spec.ports")
            .iter()
            .filter_map(|p| Some((id(p), meta::int_at(p, "nodePort").filter(|n| *n != 0)?)))
            .collect();
        let mut used: Vec<i64> = meta::list_at(new, "spec.ports")
            .iter()
            .filter_map(|p| meta::int_at(p, "nodePort"))
            .collect();
        for port in new
            .pointer_mut("/spec/ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if meta::int_at(port, "nodePort").unwrap_or(0) != 0 {
                continue;
            }
            let wanted = id(port);
            if let Some((_, number)) = known.iter().find(|(k, n)| *k == wanted && !used.contains(n)) {
                meta::set(port, "nodePort", *number);
                used.push(*number);
            }
        }
    }
    if needs_health_port(old) && needs_health_port(new) && meta::at(new, "spec.healthCheckNodePort").is_none()
    {
        meta::copy(old, new, "spec.healthCheckNodePort");
    }
}

/// What the old type needed and the new one cannot have goes, unless the client changed it as well.
fn drop_by_type(new: &mut Value, old: &Value) {
    let external = |s: &Value| has_node_ports(s) || !meta::list_at(s, "spec.externalIPs").is_empty();
    let balanced = |s: &Value| kind(s) == "LoadBalancer";
    let lost = |rule: &dyn Fn(&Value) -> bool| rule(old) && !rule(new);
    let drops: [(bool, &[&str]); 4] = [
        (
            lost(&needs_cluster_ip),
            &[
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "internalTrafficPolicy",
            ],
        ),
        (lost(&needs_health_port), &["healthCheckNodePort"]),
        (
            lost(&balanced),
            &["loadBalancerClass", "allocateLoadBalancerNodePorts"],
        ),
        (lost(&external), &["externalTrafficPolicy"]),
    ];
    let node_ports = lost(&has_node_ports);
    for path in drops
        .iter()
        .filter(|(gone, _)| *gone)
        .flat_map(|(_, fields)| *fields)
    {
        let path = format!("spec.{path}");
        if super::same(meta::at(new, &path), meta::at(old, &path)) {
            meta::remove(new, &path);
        }
    }
    if node_ports {
        let before: Vec<_> = meta::list_at(old, "spec.ports")
            .iter()
            .map(|p| p.get("nodePort").cloned())
            .collect();
        for port in new
            .pointer_mut("/spec/ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if before.contains(&port.get("nodePort").cloned()) {
                meta::remove(port, "nodePort");
            }
        }
    }
}
