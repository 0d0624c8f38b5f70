//! Cells of Services, endpoints, ingresses and addresses.

use super::cells::{NONE, UNSET, few, or_none, pairs};
use crate::meta;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::SystemTime;

pub(super) fn service_cluster_ip(service: &Value, _: SystemTime) -> Value {
    let first = meta::list_at(service, "spec.clusterIPs")
        .first()
        .and_then(Value::as_str);
    or_none(
        first
            .unwrap_or_else(|| meta::str_at(service, "spec.clusterIP"))
            .to_owned(),
    )
}

fn balancer(obj: &Value) -> Vec<String> {
    let ingress = meta::list_at(obj, "status.loadBalancer.ingress").iter();
    let one = |i: &Value| {
        let text = [meta::str_at(i, "ip"), meta::str_at(i, "hostname")]
            .into_iter()
            .find(|s| !s.is_empty());
        text.map(str::to_owned)
    };
    let set: BTreeSet<String> = ingress.filter_map(one).collect();
    set.into_iter().collect()
}

pub(super) fn balancer_address(obj: &Value, _: SystemTime) -> Value {
    balancer(obj).join(",").into()
}

pub(super) fn service_external_ip(service: &Value, _: SystemTime) -> Value {
    let external = || {
        meta::list_at(service, "spec.externalIPs")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
    };
    match meta::str_at(service, "spec.type") {
        "ExternalName" => meta::str_at(service, "spec.externalName").into(),
        "LoadBalancer" => {
            let mut all = balancer(service);
            all.extend(external());
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",").into()
            }
        }
        _ => or_none(external().collect::<Vec<_>>().join(",")),
    }
}

pub(super) fn service_ports(service: &Value, _: SystemTime) -> Value {
    let one = |p: &Value| {
        let (port, protocol) = (meta::int_at(p, "port").unwrap_or(0), meta::str_at(p, "protocol"));
        match meta::int_at(p, "nodePort").unwrap_or(0) {
            0 => format!("{port}/{protocol}"),
            node => format!("{port}:{node}/{protocol}"),
        }
    };
    or_none(
        meta::list_at(service, "spec.ports")
            .iter()
            .map(one)
            .collect::<Vec<_>>()
            .join(","),
    )
}

pub(super) fn service_selector(service: &Value, _: SystemTime) -> Value {
    or_none(pairs(meta::object_at(service, "spec.selector")))
}

pub(super) fn endpoints(obj: &Value, _: SystemTime) -> Value {
    let mut all = Vec::new();
    for subset in meta::list_at(obj, "subsets") {
        let ports = meta::list_at(subset, "ports");
        let addresses = meta::list_at(subset, "addresses")
            .iter()
            .map(|a| meta::str_at(a, "ip"));
        if ports.is_empty() {
            all.extend(addresses.map(str::to_owned));
        } else {
            let addresses: Vec<_> = addresses.collect();
            for port in ports {
                let port = meta::int_at(port, "port").unwrap_or(0);
                let text = |ip: &&str| {
                    if ip.contains(':') {
                        format!("[{ip}]:{port}")
                    } else {
                        format!("{ip}:{port}")
                    }
                };
                all.extend(addresses.iter().map(text));
            }
        }
    }
    or_none(few(&all, ","))
}

pub(super) fn slice_ports(slice: &Value, _: SystemTime) -> Value {
    let text = |p: &Value| meta::int_at(p, "port").map_or_else(|| "*".to_owned(), |n| n.to_string());
    let ports: Vec<String> = meta::list_at(slice, "ports").iter().map(text).collect();
    if ports.is_empty() {
        UNSET.into()
    } else {
        few(&ports, ",").into()
    }
}

pub(super) fn slice_endpoints(slice: &Value, _: SystemTime) -> Value {
    let addresses = meta::list_at(slice, "endpoints")
        .iter()
        .flat_map(|e| meta::list_at(e, "addresses"));
    let all: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    if all.is_empty() {
        UNSET.into()
    } else {
        few(&all, ",").into()
    }
}

pub(super) fn ingress_hosts(ingress: &Value, _: SystemTime) -> Value {
    let hosts: Vec<String> = meta::list_at(ingress, "spec.rules")
        .iter()
        .map(|r| meta::str_at(r, "host").to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    if hosts.is_empty() {
        "*".into()
    } else {
        few(&hosts, ",").into()
    }
}

pub(super) fn ingress_ports(ingress: &Value, _: SystemTime) -> Value {
    if meta::list_at(ingress, "spec.tls").is_empty() {
        "80".into()
    } else {
        "80, 443".into()
    }
}

pub(super) fn ingress_parameters(class: &Value, _: SystemTime) -> Value {
    let Some(p) = meta::at(class, "spec.parameters") else {
        return NONE.into();
    };
    let (kind, name) = (meta::str_at(p, "kind"), meta::str_at(p, "name"));
    match meta::str_at(p, "apiGroup") {
        "" => format!("{kind}/{name}").into(),
        group => format!("{kind}.{group}/{name}").into(),
    }
}

pub(super) fn address_parent(obj: &Value, _: SystemTime) -> Value {
    let part = |field: &str| meta::str_at(obj, &format!("spec.parentRef.{field}")).to_owned();
    let resource = match part("group") {
        g if g.is_empty() => part("resource"),
        g => format!("{}.{g}", part("resource")),
    };
    let parts = [resource, part("namespace"), part("name")];
    parts
        .into_iter()
        .filter(|p| !p.is_empty())
        .collect::<Vec<_>>()
        .join("/")
        .into()
}

pub(super) fn service_cidrs(obj: &Value, _: SystemTime) -> Value {
    let cidrs = meta::list_at(obj, "spec.cidrs").iter().filter_map(Value::as_str);
    cidrs.collect::<Vec<_>>().join(",").into()
}
