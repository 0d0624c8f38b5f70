//! Services, endpoints, ingresses and network policies.

use super::Errors;
use super::check::{
    self, between, dot, has, immutable, items, name, one_of, optional_name, port_number, port_ref, required,
    required_name, required_one_of,
};
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;
use std::collections::BTreeSet;

const NULL: &Value = &Value::Null;
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Longest time a client sticks to its endpoint: a day.
const AFFINITY_MAX_SECONDS: i64 = 86400;
const ENDPOINTS_MAX: usize = 1000;
const SLICE_PORTS_MAX: usize = 20000;
const ADDRESSES_MAX: usize = 100;

fn spec(obj: &Value) -> &Value {
    obj.get("spec").unwrap_or(NULL)
}

pub(super) fn service(errors: &mut Errors, obj: &Value) {
    let s = spec(obj);
    let kind = meta::str_at(s, "type");
    let headless = meta::str_at(s, "clusterIP") == "None";
    const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    required_one_of(errors, s, "spec", "type", TYPES);
    required_one_of(errors, s, "spec", "sessionAffinity", &["ClientIP", "None"]);
    between(
        errors,
        s,
        "spec",
        "sessionAffinityConfig.clientIP.timeoutSeconds",
        1,
        AFFINITY_MAX_SECONDS,
    );
    if kind == "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            if has(s, field) && s[field] != "" {
                let text = format!("must be empty when `type` is '{kind}'");
                errors.push(FieldError::forbidden(dot("spec", field), text));
            }
        }
        let target = meta::str_at(s, "externalName");
        let target = target.strip_suffix('.').unwrap_or(target);
        if target.is_empty() {
            errors.push(FieldError::required("spec.externalName", ""));
        } else {
            name(errors, "spec.externalName", target, names::subdomain);
        }
    } else {
        addresses(errors, s);
    }
    if meta::list_at(s, "ports").is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "LoadBalancer" && headless {
        let text = "may not be set to 'None' for LoadBalancer services";
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", text));
    }
    if kind == "NodePort" && headless {
        let text = "may not be set to 'None' for NodePort services";
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", text));
    }
    service_ports(errors, s, kind);
    check::labels(errors, meta::object_at(s, "selector"), "spec.selector");
    for (path, ip) in items(s, "spec", "externalIPs") {
        let text = ip.as_str().unwrap_or("");
        name(errors, &path, text, names::ip);
        if names::parse_ip(text).is_some_and(|ip| ip.is_unspecified() || ip.is_loopback()) {
            let why = "may not be in the loopback range or unspecified";
            errors.push(FieldError::invalid(&path, text, why));
        }
    }
    for (path, range) in items(s, "spec", "loadBalancerSourceRanges") {
        name(errors, &path, range.as_str().unwrap_or("").trim(), names::cidr);
    }
    policies(errors, s, kind);
}

fn addresses(errors: &mut Errors, s: &Value) {
    let list = meta::list_at(s, "clusterIPs");
    let primary = meta::str_at(s, "clusterIP");
    if let Some(first) = list.first()
        && first.as_str() != Some(primary)
    {
        let text = "first value must match `clusterIP`";
        errors.push(FieldError::invalid("spec.clusterIPs", list.to_vec(), text));
    }
    if list.len() > 2 {
        let text = "may only hold up to 2 values";
        errors.push(FieldError::invalid("spec.clusterIPs", list.to_vec(), text));
    }
    let alone = list.len() <= 1;
    for (path, ip) in items(s, "spec", "clusterIPs") {
        match ip.as_str().unwrap_or("") {
            "None" if alone => {}
            text => name(errors, &path, text, names::ip),
        }
    }
    if list.is_empty() && !primary.is_empty() && primary != "None" {
        name(errors, "spec.clusterIP", primary, names::ip);
    }
    for (path, family) in items(s, "spec", "ipFamilies") {
        if !matches!(family.as_str(), Some("IPv4" | "IPv6")) {
            errors.push(FieldError::not_supported(path, family.clone(), &["IPv4", "IPv6"]));
        }
    }
    const POLICIES: &[&str] = &["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of(errors, s, "spec", "ipFamilyPolicy", POLICIES);
}

fn service_ports(errors: &mut Errors, s: &Value, kind: &str) {
    let ports = meta::list_at(s, "ports");
    let (mut names_seen, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (path, port) in items(s, "spec", "ports") {
        let text = meta::str_at(port, "name");
        if text.is_empty() {
            if ports.len() > 1 {
                errors.push(FieldError::required(dot(&path, "name"), ""));
            }
        } else {
            name(errors, &dot(&path, "name"), text, names::label);
            if !names_seen.insert(text) {
                errors.push(FieldError::duplicate(dot(&path, "name"), text));
            }
        }
        let number = meta::int_at(port, "port").unwrap_or(0);
        for detail in names::port(number) {
            errors.push(FieldError::invalid(dot(&path, "port"), number, detail));
        }
        required_one_of(errors, port, &path, "protocol", PROTOCOLS);
        port_ref(
            errors,
            port.get("targetPort").unwrap_or(NULL),
            &dot(&path, "targetPort"),
        );
        let node = meta::int_at(port, "nodePort").unwrap_or(0);
        let protocol = meta::str_at(port, "protocol");
        if node != 0 {
            if kind == "ClusterIP" {
                let text = "may not be used when `type` is 'ClusterIP'";
                errors.push(FieldError::forbidden(dot(&path, "nodePort"), text));
            } else if !node_ports.insert((protocol, node)) {
                errors.push(FieldError::duplicate(dot(&path, "nodePort"), node));
            }
            port_number(errors, port, &path, "nodePort");
        }
        if !numbers.insert((protocol, number)) {
            let mut value = serde_json::Map::new();
            for field in ["protocol", "port"] {
                value.insert(field.into(), port.get(field).cloned().unwrap_or_default());
            }
            errors.push(FieldError::duplicate(&path, Value::Object(value)));
        }
    }
}

fn policies(errors: &mut Errors, s: &Value, kind: &str) {
    let balanced = kind == "LoadBalancer";
    let external = balanced || kind == "NodePort" || !meta::list_at(s, "externalIPs").is_empty();
    let policy = meta::str_at(s, "externalTrafficPolicy");
    if !policy.is_empty() && !external {
        let text = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, text));
    } else if external {
        one_of(errors, s, "spec", "externalTrafficPolicy", &["Cluster", "Local"]);
    }
    one_of(errors, s, "spec", "internalTrafficPolicy", &["Cluster", "Local"]);
    one_of(
        errors,
        s,
        "spec",
        "trafficDistribution",
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
    let needs_health_port = balanced && policy == "Local";
    let health = meta::int_at(s, "healthCheckNodePort").unwrap_or(0);
    if health != 0 && !needs_health_port {
        let text = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health, text));
    }
    if has(s, "allocateLoadBalancerNodePorts") && !balanced {
        let text = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", text));
    }
    if has(s, "loadBalancerClass") && !balanced {
        let text = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.loadBalancerClass", text));
    }
    if !balanced && !meta::list_at(s, "loadBalancerSourceRanges").is_empty() {
        let text = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.LoadBalancerSourceRanges", text));
    }
}

pub(super) fn service_update(errors: &mut Errors, new: &Value, old: &Value) {
    let external = |s: &Value| meta::str_at(s, "spec.type") == "ExternalName";
    if external(new) || external(old) {
        return;
    }
    let (now, before) = (
        meta::str_at(new, "spec.clusterIP"),
        meta::str_at(old, "spec.clusterIP"),
    );
    if !before.is_empty() && now != before {
        let value = meta::list_at(new, "spec.clusterIPs").to_vec();
        errors.push(FieldError::invalid(
            "spec.clusterIPs[0]",
            value,
            "may not change once set",
        ));
    }
    let balanced = |s: &Value| meta::str_at(s, "spec.type") == "LoadBalancer";
    if balanced(new) && balanced(old) {
        let class = "spec.loadBalancerClass";
        if meta::at(new, class) != meta::at(old, class) {
            let value = meta::at(new, class).cloned();
            errors.push(FieldError::invalid(class, value, "may not change once set"));
        }
    }
}

pub(super) fn endpoints(errors: &mut Errors, obj: &Value) {
    for (path, subset) in items(obj, "", "subsets") {
        let empty = |field| meta::list_at(subset, field).is_empty();
        if empty("addresses") && empty("notReadyAddresses") {
            errors.push(FieldError::required(
                &path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (p, address) in items(subset, &path, list) {
                endpoint_ip(errors, meta::str_at(address, "ip"), &dot(&p, "ip"));
                optional_name(errors, address, &p, "hostname", names::label);
            }
        }
        let many = meta::list_at(subset, "ports").len() > 1;
        for (p, port) in items(subset, &path, "ports") {
            if many {
                required(errors, port, &p, "name");
            }
            optional_name(errors, port, &p, "name", names::label);
            let number = meta::int_at(port, "port").unwrap_or(0);
            errors.extend(
                names::port(number)
                    .into_iter()
                    .map(|d| FieldError::invalid(dot(&p, "port"), number, d)),
            );
            required_one_of(errors, port, &p, "protocol", PROTOCOLS);
        }
    }
}

/// An address traffic may be sent to: never the node itself or everybody.
fn endpoint_ip(errors: &mut Errors, text: &str, path: &str) {
    let Some(ip) = names::parse_ip(text) else {
        name(errors, path, text, names::ip);
        return;
    };
    let link_local = match ip {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let why = if ip.is_unspecified() {
        format!("may not be unspecified ({text})")
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
    } else if ip.is_multicast() {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
    } else {
        return;
    };
    errors.push(FieldError::invalid(path, text, why));
}

pub(super) fn endpoint_slice(errors: &mut Errors, obj: &Value) {
    required_one_of(errors, obj, "", "addressType", &["FQDN", "IPv4", "IPv6"]);
    let family = meta::str_at(obj, "addressType");
    let endpoints = meta::list_at(obj, "endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
    }
    for (path, endpoint) in items(obj, "", "endpoints") {
        let addresses = meta::list_at(endpoint, "addresses");
        if addresses.is_empty() {
            errors.push(FieldError::required(
                dot(&path, "addresses"),
                "must contain at least 1 address",
            ));
        } else if addresses.len() > ADDRESSES_MAX {
            errors.push(FieldError::too_many(
                dot(&path, "addresses"),
                addresses.len(),
                ADDRESSES_MAX,
            ));
        }
        for (p, address) in items(endpoint, &path, "addresses") {
            let text = address.as_str().unwrap_or("");
            match (family, names::parse_ip(text)) {
                ("FQDN", _) => name(errors, &p, text, names::subdomain),
                ("IPv4", Some(ip)) if !ip.is_ipv4() => {
                    errors.push(FieldError::invalid(&p, text, "must be an IPv4 address"));
                }
                ("IPv6", Some(ip)) if !ip.is_ipv6() => {
                    errors.push(FieldError::invalid(&p, text, "must be an IPv6 address"));
                }
                _ => endpoint_ip(errors, text, &p),
            }
        }
        optional_name(errors, endpoint, &path, "hostname", names::label);
        optional_name(errors, endpoint, &path, "nodeName", names::subdomain);
    }
    let ports = meta::list_at(obj, "ports");
    if ports.len() > SLICE_PORTS_MAX {
        errors.push(FieldError::too_many("ports", ports.len(), SLICE_PORTS_MAX));
    }
    let mut seen = BTreeSet::new();
    for (path, port) in items(obj, "", "ports") {
        let text = meta::str_at(port, "name");
        if !text.is_empty() {
            name(errors, &dot(&path, "name"), text, names::label);
        }
        if !seen.insert(text) {
            errors.push(FieldError::duplicate(dot(&path, "name"), text));
        }
        port_number(errors, port, &path, "port");
        required_one_of(errors, port, &path, "protocol", PROTOCOLS);
    }
}

pub(super) fn endpoint_slice_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "addressType");
}

// ---- ingress ----

pub(super) fn ingress(errors: &mut Errors, obj: &Value) {
    let s = spec(obj);
    let default = meta::at(s, "defaultBackend").filter(|b| !b.is_null());
    if meta::list_at(s, "rules").is_empty() && default.is_none() {
        let text = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid("spec", s.clone(), text));
    }
    if let Some(b) = default {
        backend(errors, b, "spec.defaultBackend");
    }
    for (path, rule) in items(s, "spec", "rules") {
        let host = meta::str_at(rule, "host");
        if names::parse_ip(host).is_some() {
            let text = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(dot(&path, "host"), host, text));
        } else {
            host_name(errors, host, &dot(&path, "host"));
        }
        let Some(http) = meta::at(rule, "http").filter(|h| !h.is_null()) else {
            continue;
        };
        let path = dot(&path, "http");
        if meta::list_at(http, "paths").is_empty() {
            errors.push(FieldError::required(dot(&path, "paths"), ""));
        }
        for (p, entry) in items(http, &path, "paths") {
            ingress_path(errors, entry, &p);
        }
    }
    for (path, tls) in items(s, "spec", "tls") {
        for (p, host) in items(tls, &path, "hosts") {
            host_name(errors, host.as_str().unwrap_or(""), &p);
        }
    }
    optional_name(errors, s, "spec", "ingressClassName", names::subdomain);
}

fn host_name(errors: &mut Errors, host: &str, path: &str) {
    if host.contains('*') {
        name(errors, path, host, names::wildcard_subdomain);
    } else if !host.is_empty() {
        name(errors, path, host, names::subdomain);
    }
}

fn ingress_path(errors: &mut Errors, entry: &Value, path: &str) {
    const TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
    let kind = meta::str_at(entry, "pathType");
    if kind.is_empty() {
        errors.push(FieldError::required(
            dot(path, "pathType"),
            "pathType must be specified",
        ));
    } else {
        one_of(errors, entry, path, "pathType", TYPES);
    }
    let text = meta::str_at(entry, "path");
    let strict = matches!(kind, "Exact" | "Prefix");
    if (strict || !text.is_empty()) && !text.starts_with('/') {
        errors.push(FieldError::invalid(
            dot(path, "path"),
            text,
            "must be an absolute path",
        ));
    }
    if strict {
        for bad in ["//", "/./", "/../", "%2f", "%2F"] {
            if text.contains(bad) {
                let why = format!("must not contain '{bad}'");
                errors.push(FieldError::invalid(dot(path, "path"), text, why));
            }
        }
        for bad in ["/..", "/."] {
            if text.ends_with(bad) {
                let why = format!("cannot end with '{bad}'");
                errors.push(FieldError::invalid(dot(path, "path"), text, why));
            }
        }
    }
    backend(
        errors,
        entry.get("backend").unwrap_or(NULL),
        &dot(path, "backend"),
    );
}

fn backend(errors: &mut Errors, backend: &Value, path: &str) {
    let (resource, service) = (has(backend, "resource"), has(backend, "service"));
    match (resource, service) {
        (true, true) => {
            let text = "cannot set both resource and service backends";
            errors.push(FieldError::invalid(path, "", text));
        }
        (false, false) => errors.push(FieldError::required(path, "port name or number is required")),
        (true, false) => {
            let p = dot(path, "resource");
            required(errors, &backend["resource"], &p, "kind");
            required(errors, &backend["resource"], &p, "name");
        }
        (false, true) => {
            let p = dot(path, "service");
            let service = &backend["service"];
            required_name(errors, service, &p, "name", names::label_1035);
            let number = meta::int_at(service, "port.number").unwrap_or(0);
            match (meta::str_at(service, "port.name"), number) {
                ("", 0) => errors.push(FieldError::required(p, "port name or number is required")),
                ("", _) => port_number(errors, service, &p, "port.number"),
                (text, 0) => name(errors, &dot(&p, "port.name"), text, names::port_name),
                _ => errors.push(FieldError::invalid(
                    p,
                    "",
                    "cannot set both port name & port number",
                )),
            }
        }
    }
}

pub(super) fn ingress_class(errors: &mut Errors, obj: &Value) {
    const MAX: usize = 250;
    let controller = meta::str_at(obj, "spec.controller");
    if controller.len() > MAX {
        errors.push(FieldError::too_long("spec.controller", MAX));
    } else if !controller.is_empty() {
        let fine = controller
            .split_once('/')
            .is_some_and(|(d, p)| names::subdomain(d).is_empty() && !p.is_empty());
        if !fine {
            let text = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid("spec.controller", controller, text));
        }
    }
    if let Some(p) = meta::at(obj, "spec.parameters") {
        required(errors, p, "spec.parameters", "kind");
        required(errors, p, "spec.parameters", "name");
        required_one_of(errors, p, "spec.parameters", "scope", &["Cluster", "Namespace"]);
    }
}

pub(super) fn ingress_class_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "spec.controller");
}

// ---- network policy ----

pub(super) fn network_policy(errors: &mut Errors, obj: &Value) {
    let s = spec(obj);
    check::label_selector(errors, s.get("podSelector").unwrap_or(NULL), "spec.podSelector");
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (path, rule) in items(s, "spec", direction) {
            for (p, port) in items(rule, &path, "ports") {
                policy_port(errors, port, &p);
            }
            for (p, peer) in items(rule, &path, peers) {
                policy_peer(errors, peer, &p);
            }
        }
    }
    let types = meta::list_at(s, "policyTypes");
    if types.len() > 2 {
        let text = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid("spec.policyTypes", types.to_vec(), text));
        return;
    }
    for (path, kind) in items(s, "spec", "policyTypes") {
        if !matches!(kind.as_str(), Some("Ingress" | "Egress")) {
            errors.push(FieldError::not_supported(
                path,
                kind.clone(),
                &["Egress", "Ingress"],
            ));
        }
    }
}

fn policy_port(errors: &mut Errors, port: &Value, path: &str) {
    one_of(errors, port, path, "protocol", PROTOCOLS);
    let number = port.get("port").filter(|p| !p.is_null());
    if let Some(p) = number {
        port_ref(errors, p, &dot(path, "port"));
    }
    if let Some(end) = meta::int_at(port, "endPort") {
        match number.and_then(Value::as_i64) {
            None if number.is_some() => {
                let text = "may not be specified when `port` is non-numeric";
                errors.push(FieldError::invalid(dot(path, "endPort"), end, text));
            }
            None => {
                let text = "may not be specified when `port` is not specified";
                errors.push(FieldError::invalid(dot(path, "endPort"), end, text));
            }
            Some(start) if end < start => {
                let text = "must be greater than or equal to `port`";
                errors.push(FieldError::invalid(dot(path, "endPort"), end, text));
            }
            Some(_) => port_number(errors, port, path, "endPort"),
        }
    }
}

fn policy_peer(errors: &mut Errors, peer: &Value, path: &str) {
    let (block, pods, namespaces) = (
        has(peer, "ipBlock"),
        has(peer, "podSelector"),
        has(peer, "namespaceSelector"),
    );
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = meta::at(peer, field) {
            check::label_selector(errors, selector, &dot(path, field));
        }
    }
    if !(block || pods || namespaces) {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if block && (pods || namespaces) {
        errors.push(FieldError::forbidden(
            path,
            "may not specify both ipBlock and another peer",
        ));
    }
    if let Some(b) = meta::at(peer, "ipBlock") {
        let p = dot(path, "ipBlock");
        if !required(errors, b, &p, "cidr") {
            return;
        }
        let cidr = meta::str_at(b, "cidr");
        name(errors, &dot(&p, "cidr"), cidr, names::cidr);
        let outer: Option<ipnet::IpNet> = cidr.parse().ok();
        for (p, except) in items(b, &p, "except") {
            let text = except.as_str().unwrap_or("");
            name(errors, &p, text, names::cidr);
            let inner: Option<ipnet::IpNet> = text.parse().ok();
            let inside = |o: ipnet::IpNet, i: ipnet::IpNet| o.contains(&i) && o.prefix_len() < i.prefix_len();
            if let (Some(o), Some(i)) = (outer, inner)
                && !inside(o, i)
            {
                errors.push(FieldError::invalid(&p, text, "must be a strict subset of `cidr`"));
            }
        }
    }
}
