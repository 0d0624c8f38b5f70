//! Tables: one small cluster, many questions.

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::*;

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn service(namespace: &str, name: &str, spec: Value) -> Service {
    object(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec}))
}

fn slice(namespace: &str, name: &str, service: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    object(json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    }))
}

fn zone() -> Zone {
    Zone {
        domain: Name::from_ascii("cluster.local.").unwrap(),
        networks: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
        servers: vec!["10.43.0.10".parse().unwrap()],
        ttl_seconds: 5,
    }
}

/// An index whose first lists were empty.
fn complete() -> Index {
    let mut index = Index::default();
    index.set_synced();
    index
}

fn cluster() -> Index {
    let mut index = complete();
    for name in ["default", "shop", "empty"] {
        index.apply_namespace(&object::<Namespace>(json!({"metadata": {"name": name}})));
    }
    index.apply_service(&service(
        "default",
        "kubernetes",
        json!({"clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.1"],
               "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443}]}),
    ));
    index.apply_service(&service(
        "default",
        "dual",
        json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd00::9"],
               "ports": [{"port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]}),
    ));
    index.apply_service(&service(
        "shop",
        "web",
        json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
    ));
    index.apply_slice(&slice(
        "shop",
        "web-abc",
        "web",
        json!([{"name": "http", "protocol": "TCP", "port": 8080}]),
        json!([
            {"addresses": ["10.42.0.5"], "hostname": "web-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.1.7"]},
            {"addresses": ["10.42.1.8"], "hostname": "web-2", "conditions": {"ready": false}},
        ]),
    ));
    // The same endpoint twice, as while slices are rearranged.
    index.apply_slice(&slice(
        "shop",
        "web-def",
        "web",
        json!([]),
        json!([{"addresses": ["10.42.1.7"]}]),
    ));
    index.apply_service(&service(
        "shop",
        "eager",
        json!({"clusterIP": "None", "publishNotReadyAddresses": true}),
    ));
    index.apply_slice(&slice(
        "shop",
        "eager-1",
        "eager",
        json!([{"port": 1}]),
        json!([{"addresses": ["10.42.2.2"], "conditions": {"ready": false}}]),
    ));
    index.apply_service(&service("shop", "idle", json!({"clusterIP": "None"})));
    index.apply_service(&service(
        "shop",
        "api",
        json!({"clusterIP": "10.43.7.7", "ports": [{"name": "http", "port": 80}]}),
    ));
    index.apply_slice(&slice(
        "shop",
        "api-1",
        "api",
        json!([{"name": "http", "port": 1}]),
        json!([{"addresses": ["10.42.3.3"]}]),
    ));
    index.apply_service(&service(
        "shop",
        "ext",
        json!({"type": "ExternalName", "externalName": "www.example.com"}),
    ));
    index.apply_service(&service(
        "shop",
        "near",
        json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local."}),
    ));
    index.apply_service(&service(
        "shop",
        "ipname",
        json!({"type": "ExternalName", "externalName": "192.0.2.7"}),
    ));
    index
}

/// An answer as one line of text.
fn text(answer: &Answer) -> String {
    let data = |record: &Record| match &record.data {
        RData::A(a) => a.0.to_string(),
        RData::AAAA(a) => a.0.to_string(),
        RData::PTR(p) => p.0.to_string(),
        RData::SRV(s) => format!("{} {} {} {}", s.priority, s.weight, s.port, s.target),
        RData::TXT(t) => t.to_string(),
        RData::NS(n) => n.0.to_string(),
        RData::SOA(s) => s.mname.to_string(),
        other => panic!("{other:?}"),
    };
    let list = |records: &[Record]| records.iter().map(data).collect::<Vec<_>>().join(", ");
    match answer {
        Answer::Records { answers, additionals } if additionals.is_empty() => list(answers),
        Answer::Records { answers, additionals } => format!("{} + {}", list(answers), list(additionals)),
        Answer::Alias { target, .. } => format!("-> {target}"),
        Answer::NoData { soa } => format!("NODATA {}", soa.name),
        Answer::NxDomain { soa } => format!("NXDOMAIN {}", soa.name),
        Answer::NotOurs => "not ours".into(),
        Answer::NotReady => "not ready".into(),
    }
}

fn ask(name: &str, kind: RecordType, index: &Index) -> Answer {
    answer(&Name::from_ascii(name).unwrap(), kind, index, &zone())
}

#[test]
fn the_table() {
    use RecordType::*;
    const NODATA: &str = "NODATA cluster.local.";
    const NXDOMAIN: &str = "NXDOMAIN cluster.local.";
    let index = cluster();
    let table: &[(&str, RecordType, &str)] = &[
        // Services with an address.
        ("kubernetes.default.svc.cluster.local.", A, "10.43.0.1"),
        ("KuberNetes.DEFAULT.svc.Cluster.Local.", A, "10.43.0.1"),
        ("kubernetes.default.svc.cluster.local.", AAAA, NODATA),
        ("kubernetes.default.svc.cluster.local.", MX, NODATA),
        ("dual.default.svc.cluster.local.", AAAA, "fd00::9"),
        ("dual.default.svc.cluster.local.", ANY, "10.43.0.9, fd00::9"),
        ("absent.default.svc.cluster.local.", A, NXDOMAIN),
        ("kubernetes.shop.svc.cluster.local.", A, NXDOMAIN),
        // Headless Services.
        ("web.shop.svc.cluster.local.", A, "10.42.0.5, 10.42.1.7"),
        ("web.shop.svc.cluster.local.", AAAA, NODATA),
        ("web-0.web.shop.svc.cluster.local.", A, "10.42.0.5"),
        ("WEB-0.web.shop.svc.cluster.local.", A, "10.42.0.5"),
        ("10-42-1-7.web.shop.svc.cluster.local.", A, "10.42.1.7"),
        ("10-42-0-5.web.shop.svc.cluster.local.", A, NXDOMAIN),
        ("web-2.web.shop.svc.cluster.local.", A, NXDOMAIN),
        ("web-0.web.shop.svc.cluster.local.", AAAA, NODATA),
        ("eager.shop.svc.cluster.local.", A, "10.42.2.2"),
        ("idle.shop.svc.cluster.local.", A, NXDOMAIN),
        ("10-42-3-3.api.shop.svc.cluster.local.", A, "10.42.3.3"),
        // Ports.
        (
            "_https._tcp.kubernetes.default.svc.cluster.local.",
            SRV,
            "0 100 443 kubernetes.default.svc.cluster.local. + 10.43.0.1",
        ),
        (
            "_http._tcp.web.shop.svc.cluster.local.",
            SRV,
            "0 50 8080 10-42-1-7.web.shop.svc.cluster.local., 0 50 8080 web-0.web.shop.svc.cluster.local. \
             + 10.42.1.7, 10.42.0.5",
        ),
        (
            "_dns._udp.dual.default.svc.cluster.local.",
            SRV,
            "0 100 53 dual.default.svc.cluster.local. + 10.43.0.9, fd00::9",
        ),
        (
            "dual.default.svc.cluster.local.",
            SRV,
            "0 50 53 dual.default.svc.cluster.local., 0 50 80 dual.default.svc.cluster.local. + 10.43.0.9, fd00::9",
        ),
        ("_dns._tcp.dual.default.svc.cluster.local.", SRV, NXDOMAIN),
        ("_http._tcp.web.shop.svc.cluster.local.", A, NODATA),
        ("_tcp.web.shop.svc.cluster.local.", SRV, NODATA),
        ("_udp.web.shop.svc.cluster.local.", SRV, NXDOMAIN),
        ("http._tcp.web.shop.svc.cluster.local.", SRV, NXDOMAIN),
        ("_http._tcp.idle.shop.svc.cluster.local.", SRV, NXDOMAIN),
        // Other names.
        ("ext.shop.svc.cluster.local.", A, "-> www.example.com."),
        ("ext.shop.svc.cluster.local.", CNAME, "-> www.example.com."),
        (
            "near.shop.svc.cluster.local.",
            A,
            "-> web.shop.svc.cluster.local.",
        ),
        ("ipname.shop.svc.cluster.local.", A, "192.0.2.7"),
        // Pods.
        ("10-42-0-5.shop.pod.cluster.local.", A, "10.42.0.5"),
        ("10-42-0-5.shop.pod.cluster.local.", AAAA, NODATA),
        ("fd00--5.shop.pod.cluster.local.", AAAA, "fd00::5"),
        ("10-42-0-5.nowhere.pod.cluster.local.", A, NXDOMAIN),
        ("10-42-0.shop.pod.cluster.local.", A, NXDOMAIN),
        ("x.10-42-0-5.shop.pod.cluster.local.", A, NXDOMAIN),
        // The zone itself, and names on the way.
        ("cluster.local.", SOA, "ns.dns.cluster.local."),
        ("cluster.local.", NS, "ns.dns.cluster.local. + 10.43.0.10"),
        ("cluster.local.", A, NODATA),
        ("ns.dns.cluster.local.", A, "10.43.0.10"),
        ("dns.cluster.local.", A, NODATA),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("dns-version.cluster.local.", A, NODATA),
        ("svc.cluster.local.", A, NODATA),
        ("empty.svc.cluster.local.", A, NODATA),
        ("nowhere.svc.cluster.local.", A, NXDOMAIN),
        ("empty.pod.cluster.local.", A, NODATA),
        ("something.cluster.local.", A, NXDOMAIN),
        ("a.b.c.d.e.f.svc.cluster.local.", A, NXDOMAIN),
        // Addresses.
        (
            "1.0.43.10.in-addr.arpa.",
            PTR,
            "kubernetes.default.svc.cluster.local.",
        ),
        (
            "1.0.43.10.IN-ADDR.arpa.",
            PTR,
            "kubernetes.default.svc.cluster.local.",
        ),
        (
            "5.0.42.10.in-addr.arpa.",
            PTR,
            "web-0.web.shop.svc.cluster.local.",
        ),
        (
            "7.1.42.10.in-addr.arpa.",
            PTR,
            "10-42-1-7.web.shop.svc.cluster.local.",
        ),
        ("8.1.42.10.in-addr.arpa.", PTR, "NXDOMAIN 42.10.in-addr.arpa."),
        ("1.0.43.10.in-addr.arpa.", A, "NODATA 43.10.in-addr.arpa."),
        ("9.9.42.10.in-addr.arpa.", PTR, "NXDOMAIN 42.10.in-addr.arpa."),
        (
            "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            PTR,
            "dual.default.svc.cluster.local.",
        ),
        ("8.8.8.8.in-addr.arpa.", PTR, "not ours"),
        ("42.10.in-addr.arpa.", SOA, "not ours"),
        ("x.42.10.in-addr.arpa.", PTR, "not ours"),
        // Everybody else's.
        ("www.example.com.", A, "not ours"),
        ("local.", A, "not ours"),
        ("notcluster.local.", A, "not ours"),
        (".", NS, "not ours"),
    ];
    for (name, kind, expected) in table {
        assert_eq!(&text(&ask(name, *kind, &index)), expected, "{name} {kind}");
    }
}

#[test]
fn records_carry_the_question_s_spelling_and_the_ttl() {
    let Answer::Records { answers, .. } =
        ask("KuberNetes.default.svc.cluster.local.", RecordType::A, &cluster())
    else {
        panic!("no records")
    };
    assert!(
        answers[0]
            .name
            .eq_case(&Name::from_ascii("KuberNetes.default.svc.cluster.local.").unwrap())
    );
    assert_eq!(answers[0].ttl, 5);
}

#[test]
fn before_the_first_list_nothing_is_denied() {
    let index = Index::default();
    for (name, expected) in [
        ("kubernetes.default.svc.cluster.local.", "not ready"),
        ("1.0.43.10.in-addr.arpa.", "not ready"),
        ("8.8.8.8.in-addr.arpa.", "not ours"),
        ("www.example.com.", "not ours"),
        ("svc.cluster.local.", "NODATA cluster.local."),
    ] {
        assert_eq!(text(&ask(name, RecordType::PTR, &index)), expected, "{name}");
    }
}

#[test]
fn changes_arrive_in_any_order_and_leave_nothing_behind() {
    let mut index = complete();
    let endpoints = slice("a", "s-1", "s", json!([]), json!([{"addresses": ["10.42.0.9"]}]));
    index.apply_slice(&endpoints);
    assert_eq!(
        text(&ask("s.a.svc.cluster.local.", RecordType::A, &index)),
        "NXDOMAIN cluster.local."
    );
    index.apply_service(&service("a", "s", json!({"clusterIP": "None"})));
    assert_eq!(
        text(&ask("s.a.svc.cluster.local.", RecordType::A, &index)),
        "10.42.0.9"
    );
    index.apply_slice(&slice(
        "a",
        "s-1",
        "s",
        json!([]),
        json!([{"addresses": ["10.42.0.10"]}]),
    ));
    assert_eq!(
        text(&ask("s.a.svc.cluster.local.", RecordType::A, &index)),
        "10.42.0.10"
    );
    assert_eq!(
        text(&ask("9.0.42.10.in-addr.arpa.", RecordType::PTR, &index)),
        "NXDOMAIN 42.10.in-addr.arpa."
    );
    index.apply_service(&service("a", "s", json!({"clusterIP": "10.43.1.1"})));
    assert_eq!(
        text(&ask("s.a.svc.cluster.local.", RecordType::A, &index)),
        "10.43.1.1"
    );
    index.apply_service(&service("a", "s", json!({"clusterIP": "10.43.1.2"})));
    assert_eq!(
        text(&ask("1.1.43.10.in-addr.arpa.", RecordType::PTR, &index)),
        "NXDOMAIN 43.10.in-addr.arpa."
    );
    index.remove_service(&("a".into(), "s".into()));
    index.remove_slice(&("a".into(), "s-1".into()));
    index.remove_slice(&("a".into(), "s-1".into()));
    assert!(index.is_empty());
}
