//! Every packet reaches only endpoints it may reach, whatever services there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{EndpointHints, EndpointSlice, ForNode, ForZone};
use proptest::prelude::*;
use serde_json::json;
use skiff_nft::trace::{Fate, Packet, Trace, Tracer};
use skiff_nft::{Family, Owner, Reject, Ruleset};
use skiff_proxy::NodeInfo;
use skiff_proxy::ledger::Ledger;
use skiff_proxy::plan::{ServicePlan, plan};
use skiff_proxy::service::ports;

use crate::objects::*;

const OUTSIDE: &str = "198.51.100.9";
const NODE_IP: &str = "192.0.2.1";

/// A ledger and the ruleset its edits made.
struct World {
    ledger: Ledger,
    ruleset: Ruleset,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(Family::Ip, &node()),
            ruleset: Ruleset::default(),
        }
    }

    fn set(&mut self, service: &Service, slice: Option<&EndpointSlice>) {
        let name = service.metadata.name.clone().unwrap();
        let ports = ports(Family::Ip, service, slice.into_iter(), &node());
        let plan = plan(self.ledger.rules(), &ports, &node());
        self.ledger.set(0, &format!("default/{name}"), plan);
        self.flush();
    }

    fn remove(&mut self, name: &str) {
        self.ledger
            .set(0, &format!("default/{name}"), ServicePlan::default());
        self.flush();
    }

    fn flush(&mut self) {
        self.ledger.edit().apply_to(&mut self.ruleset, Owner::Proxy);
        self.ledger.applied();
    }

    fn tracer(&self, random: impl FnMut(u32) -> u32 + 'static) -> Tracer<'_> {
        Tracer::new(Family::Ip, &self.ruleset, vec![ip(NODE_IP)], random)
    }

    /// Traces with every choice of the random source that can come up.
    fn all(&self, from: &str, to: &str, port: u16) -> Vec<Trace> {
        (0..8)
            .map(|n| {
                let packet = Packet::tcp(ip(from), ip(to), port);
                let mut tracer = self.tracer(move |modulus| n % modulus);
                if from == NODE_IP {
                    tracer.leaving(packet)
                } else {
                    tracer.arriving(packet)
                }
            })
            .collect()
    }
}

fn reached(traces: &[Trace]) -> BTreeSet<SocketAddr> {
    assert!(traces.iter().all(|t| t.fate == Fate::Accepted), "{traces:?}");
    traces
        .iter()
        .map(|t| SocketAddr::new(t.packet.destination, t.packet.port))
        .collect()
}

fn ends(addresses: &[&str]) -> BTreeSet<SocketAddr> {
    addresses.iter().map(|a| SocketAddr::new(ip(a), 8080)).collect()
}

fn endpoints() -> Vec<End> {
    vec![
        ready("10.42.0.5", NODE),
        ready("10.42.0.6", NODE),
        ready("10.42.1.7", "there"),
    ]
}

#[test]
fn a_cluster_address_reaches_all_ready_endpoints_and_masquerades_outsiders() {
    let mut world = World::new();
    world.set(
        &service("web", "10.43.0.7", json!({})),
        Some(&slice("web", 8080, "TCP", &endpoints())),
    );
    let all = ends(&["10.42.0.5", "10.42.0.6", "10.42.1.7"]);
    for (from, masqueraded) in [("10.42.0.9", false), (OUTSIDE, true), (NODE_IP, true)] {
        let traces = world.all(from, "10.43.0.7", 80);
        assert_eq!(reached(&traces), all, "from {from}");
        assert!(
            traces.iter().all(|t| t.masqueraded == masqueraded),
            "from {from}: {traces:?}"
        );
        assert!(traces.iter().all(|t| t.packet.mark == 0), "the mark is consumed");
    }
    // A pod that meets itself.
    for trace in world.all("10.42.0.5", "10.43.0.7", 80) {
        assert_eq!(trace.masqueraded, trace.packet.destination == ip("10.42.0.5"));
    }
    let other_port = world.all("10.42.0.9", "10.43.0.7", 81);
    assert!(
        other_port
            .iter()
            .all(|t| t.fate == Fate::Rejected(Reject::PortUnreachable))
    );
    let unassigned = world.all("10.42.0.9", "10.43.0.8", 80);
    assert!(unassigned.iter().all(|t| t.fate == Fate::Dropped));
}

#[test]
fn a_service_without_endpoints_is_rejected_until_it_has_some() {
    let mut world = World::new();
    let spec = json!({"type": "NodePort", "externalIPs": ["203.0.113.1"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
    let web = service("web", "10.43.0.7", spec);
    world.set(&web, None);
    for (from, to, port) in [
        ("10.42.0.9", "10.43.0.7", 80),
        (NODE_IP, "10.43.0.7", 80),
        (OUTSIDE, NODE_IP, 30080),
        (OUTSIDE, "203.0.113.1", 80),
    ] {
        let refused = world.all(from, to, port);
        assert!(
            refused.iter().all(|t| matches!(t.fate, Fate::Rejected(_))),
            "{from} {to} {refused:?}"
        );
    }
    world.set(&web, Some(&slice("web", 8080, "TCP", &endpoints()[..1])));
    for (from, to, port) in [
        ("10.42.0.9", "10.43.0.7", 80),
        (OUTSIDE, NODE_IP, 30080),
        (OUTSIDE, "203.0.113.1", 80),
    ] {
        assert_eq!(
            reached(&world.all(from, to, port)),
            ends(&["10.42.0.5"]),
            "{from} {to}"
        );
    }
    world.remove("web");
    assert!(
        world
            .all("10.42.0.9", "10.43.0.7", 80)
            .iter()
            .all(|t| t.fate == Fate::Dropped)
    );
    let untouched = world.all(OUTSIDE, NODE_IP, 30080);
    assert!(
        untouched
            .iter()
            .all(|t| t.fate == Fate::Accepted && t.packet.port == 30080)
    );
}

#[test]
fn external_traffic_that_stays_here() {
    let mut world = World::new();
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    let web = service("web", "10.43.0.7", spec);
    world.set(&web, Some(&slice("web", 8080, "TCP", &endpoints())));
    for (to, port) in [(NODE_IP, 30080), ("203.0.113.1", 80)] {
        let outside = world.all(OUTSIDE, to, port);
        assert_eq!(reached(&outside), ends(&["10.42.0.5", "10.42.0.6"]));
        assert!(
            outside.iter().all(|t| !t.masqueraded),
            "the client's address is kept"
        );
        let pod = world.all("10.42.0.9", to, port);
        assert_eq!(
            reached(&pod).len(),
            3,
            "inside the cluster every endpoint will do"
        );
        let own = world.all(NODE_IP, to, port);
        assert_eq!(reached(&own).len(), 3);
        assert!(own.iter().all(|t| t.masqueraded));
    }
    world.set(&web, Some(&slice("web", 8080, "TCP", &endpoints()[2..])));
    for (to, port) in [(NODE_IP, 30080), ("203.0.113.1", 80)] {
        assert!(
            world
                .all(OUTSIDE, to, port)
                .iter()
                .all(|t| t.fate == Fate::Dropped)
        );
        assert_eq!(reached(&world.all("10.42.0.9", to, port)), ends(&["10.42.1.7"]));
    }
}

#[test]
fn internal_traffic_that_stays_here() {
    let mut world = World::new();
    let web = service("web", "10.43.0.7", json!({"internalTrafficPolicy": "Local"}));
    world.set(&web, Some(&slice("web", 8080, "TCP", &endpoints())));
    assert_eq!(
        reached(&world.all("10.42.0.9", "10.43.0.7", 80)),
        ends(&["10.42.0.5", "10.42.0.6"])
    );
    world.set(&web, Some(&slice("web", 8080, "TCP", &endpoints()[2..])));
    assert!(
        world
            .all("10.42.0.9", "10.43.0.7", 80)
            .iter()
            .all(|t| t.fate == Fate::Dropped)
    );
}

#[test]
fn terminating_endpoints_serve_when_nothing_else_does() {
    let mut world = World::new();
    let web = service("web", "10.43.0.7", json!({}));
    let end = |address: &str, ready, serving| End {
        address: address.into(),
        node: NODE,
        ready,
        serving,
        terminating: !ready,
    };
    let leaving = [end("10.42.0.5", false, true), end("10.42.0.6", false, false)];
    world.set(&web, Some(&slice("web", 8080, "TCP", &leaving)));
    assert_eq!(
        reached(&world.all("10.42.0.9", "10.43.0.7", 80)),
        ends(&["10.42.0.5"])
    );
    let renewed = [
        leaving[0].clone(),
        leaving[1].clone(),
        end("10.42.0.8", true, true),
    ];
    world.set(&web, Some(&slice("web", 8080, "TCP", &renewed)));
    assert_eq!(
        reached(&world.all("10.42.0.9", "10.43.0.7", 80)),
        ends(&["10.42.0.8"])
    );
}

#[test]
fn a_client_stays_with_its_endpoint_for_the_affinity_time() {
    let mut world = World::new();
    let spec = json!({"sessionAffinity": "ClientIP", "type": "NodePort",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    let web = service("web", "10.43.0.7", spec);
    world.set(&web, Some(&slice("web", 8080, "TCP", &endpoints())));
    let mut count = 0u32;
    let mut tracer = world.tracer(move |modulus| {
        count += 1;
        count % modulus
    });
    let go = |tracer: &mut Tracer<'_>, from: &str| {
        tracer
            .arriving(Packet::tcp(ip(from), ip("10.43.0.7"), 80))
            .packet
            .destination
    };
    let first = go(&mut tracer, "10.42.0.9");
    for _ in 0..20 {
        tracer.advance(Duration::from_secs(59));
        assert_eq!(
            go(&mut tracer, "10.42.0.9"),
            first,
            "each connection renews the memory"
        );
    }
    let by_node_port = tracer.arriving(Packet::tcp(ip("10.42.0.9"), ip(NODE_IP), 30080));
    assert_eq!(by_node_port.packet.destination, first);
    let clients: Vec<String> = (10..90).map(|n| format!("10.42.3.{n}")).collect();
    let used: BTreeSet<IpAddr> = clients.iter().map(|from| go(&mut tracer, from)).collect();
    assert_eq!(used.len(), 3);
    tracer.advance(Duration::from_secs(61));
    let again: BTreeSet<IpAddr> = (0..60)
        .map(|_| {
            tracer.advance(Duration::from_secs(61));
            go(&mut tracer, "10.42.0.9")
        })
        .collect();
    assert_eq!(again.len(), 3, "after the time any endpoint will do");
}

#[test]
fn source_ranges_guard_load_balancer_addresses() {
    let mut world = World::new();
    let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"],
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
    world.set(
        &service("web", "10.43.0.7", spec),
        Some(&slice("web", 8080, "TCP", &endpoints())),
    );
    assert_eq!(reached(&world.all(OUTSIDE, "203.0.113.1", 80)).len(), 3);
    let other = world.all("198.51.101.9", "203.0.113.1", 80);
    assert!(other.iter().all(|t| t.fate == Fate::Dropped));
    assert_eq!(reached(&world.all("198.51.101.9", NODE_IP, 30080)).len(), 3);
}

#[test]
fn the_older_claim_wins_and_the_other_inherits() {
    let mut world = World::new();
    let claim =
        |name: &str, cluster_ip: &str| service(name, cluster_ip, json!({"externalIPs": ["203.0.113.1"]}));
    world.set(
        &claim("b", "10.43.0.2"),
        Some(&slice("b", 8080, "TCP", &endpoints()[1..2])),
    );
    world.set(
        &claim("a", "10.43.0.1"),
        Some(&slice("a", 8080, "TCP", &endpoints()[..1])),
    );
    assert_eq!(
        reached(&world.all(OUTSIDE, "203.0.113.1", 80)),
        ends(&["10.42.0.5"])
    );
    world.remove("a");
    assert_eq!(
        reached(&world.all(OUTSIDE, "203.0.113.1", 80)),
        ends(&["10.42.0.6"])
    );
}

#[test]
fn an_even_spread() {
    let mut world = World::new();
    world.set(
        &service("web", "10.43.0.7", json!({})),
        Some(&slice("web", 8080, "TCP", &endpoints())),
    );
    let mut seed = 1u64;
    let mut tracer = world.tracer(move |modulus| {
        // A linear congruential generator's upper bits: enough to tell even from uneven.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) % u64::from(modulus)) as u32
    });
    let mut counts = BTreeMap::<IpAddr, u32>::new();
    for _ in 0..3_000 {
        let trace = tracer.arriving(Packet::tcp(ip("10.42.0.9"), ip("10.43.0.7"), 80));
        *counts.entry(trace.packet.destination).or_default() += 1;
    }
    assert_eq!(counts.len(), 3);
    assert!(counts.values().all(|n| (900..1_100).contains(n)), "{counts:?}");
}

#[test]
fn addresses_the_node_answers_are_left_alone() {
    let mut node = node();
    node.local_addresses.push(ip("10.43.0.10"));
    let mut ledger = Ledger::new(Family::Ip, &node);
    let dns = service("dns", "10.43.0.10", json!({}));
    let none: [&EndpointSlice; 0] = [];
    let ports = ports(Family::Ip, &dns, none.into_iter(), &node);
    ledger.set(0, "default/dns", plan(ledger.rules(), &ports, &node));
    let mut ruleset = Ruleset::default();
    ledger.edit().apply_to(&mut ruleset, Owner::Proxy);
    let mut tracer = Tracer::new(Family::Ip, &ruleset, vec![ip(NODE_IP), ip("10.43.0.10")], |_| 0);
    for port in [53, 80] {
        let packet = Packet::tcp(ip(NODE_IP), ip("10.43.0.10"), port);
        for trace in [tracer.leaving(packet.clone()), tracer.arriving(packet)] {
            assert_eq!(
                (trace.fate, trace.packet.destination),
                (Fate::Accepted, ip("10.43.0.10"))
            );
        }
    }
}

#[test]
fn services_that_are_not_for_the_proxy() {
    let reach = |service: Service| {
        let slice = slice("web", 8080, "TCP", &endpoints());
        ports(Family::Ip, &service, [&slice].into_iter(), &node())
    };
    assert_eq!(reach(service("web", "10.43.0.7", json!({}))).len(), 1);
    assert_eq!(reach(service("web", "None", json!({}))), []);
    assert_eq!(
        reach(service("web", "fd43::7", json!({}))),
        [],
        "of the other family"
    );
    let named = json!({"type": "ExternalName", "externalName": "example.org"});
    assert_eq!(reach(service("web", "10.43.0.7", named)), []);
    let mut labelled = service("web", "10.43.0.7", json!({}));
    let label = (
        "service.kubernetes.io/service-proxy-name".to_owned(),
        "other".to_owned(),
    );
    labelled.metadata.labels = Some([label].into());
    assert_eq!(reach(labelled), []);
    let proxied = json!({"type": "LoadBalancer",
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "Proxy"}]}}});
    assert!(
        reach(service("web", "10.43.0.7", proxied))[0]
            .load_balancer_ips
            .is_empty()
    );
}

#[test]
fn hints_keep_traffic_near() {
    let hinted = |nodes: [Option<&str>; 3], zones: [Option<&str>; 3]| {
        let mut slice = slice("web", 8080, "TCP", &endpoints());
        let hints = nodes.into_iter().zip(zones);
        for (endpoint, (node, zone)) in slice.endpoints.as_mut().unwrap().iter_mut().zip(hints) {
            endpoint.hints = Some(EndpointHints {
                for_nodes: node.map(|name| vec![ForNode { name: name.into() }]),
                for_zones: zone.map(|name| vec![ForZone { name: name.into() }]),
            });
        }
        let node = NodeInfo {
            zone: Some("z1".into()),
            ..node()
        };
        let web = service("web", "10.43.0.7", json!({}));
        let ports = ports(Family::Ip, &web, [&slice].into_iter(), &node);
        ports[0].endpoints.cluster.clone()
    };
    let all = ends(&["10.42.0.5", "10.42.0.6", "10.42.1.7"]);
    let none = [None; 3];
    assert_eq!(
        hinted(none, [Some("z1"), Some("z2"), Some("z2")]),
        ends(&["10.42.0.5"])
    );
    assert_eq!(
        hinted(none, [Some("z1"), None, Some("z2")]),
        all,
        "one without a hint"
    );
    assert_eq!(
        hinted(none, [Some("z3"), Some("z2"), Some("z2")]),
        all,
        "none for this zone"
    );
    let nodes = [Some("there"), Some(NODE), Some("there")];
    assert_eq!(
        hinted(nodes, [Some("z1"); 3]),
        ends(&["10.42.0.6"]),
        "the node before the zone"
    );
    assert_eq!(
        hinted([Some("there"); 3], [Some("z1"), Some("z2"), Some("z2")]),
        ends(&["10.42.0.5"])
    );
}

/// A service as a history left it: with its slice, endpoints, policies (internal, external) and node port.
type Present = (Service, EndpointSlice, Vec<End>, (bool, bool), bool);

/// A step of a random history: a service (of four) gets endpoints, flags, or goes.
#[derive(Debug, Clone)]
enum Step {
    Set {
        service: usize,
        ends: Vec<(u8, bool, bool, bool)>,
        local: (bool, bool),
        affinity: bool,
        node_port: bool,
    },
    Remove {
        service: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let end = (1u8..12, any::<bool>(), any::<bool>(), any::<bool>());
    let set = (
        0usize..4,
        prop::collection::vec(end, 0..6),
        (any::<bool>(), any::<bool>()),
        prop::bool::weighted(0.3),
        any::<bool>(),
    )
        .prop_map(|(service, ends, local, affinity, node_port)| Step::Set {
            service,
            ends,
            local,
            affinity,
            node_port,
        });
    prop_oneof![4 => set, 1 => (0usize..4).prop_map(|service| Step::Remove { service })]
}

/// What the model says about who may be reached: (cluster, local) endpoints.
fn usable(ends: &[End]) -> (BTreeSet<SocketAddr>, BTreeSet<SocketAddr>) {
    let pick = |only_here: bool| -> BTreeSet<SocketAddr> {
        let candidates: Vec<&End> = ends.iter().filter(|e| !only_here || e.node == NODE).collect();
        let ready: Vec<&&End> = candidates.iter().filter(|e| e.ready).collect();
        let chosen: Vec<&&End> = if ready.is_empty() {
            candidates.iter().filter(|e| e.serving && e.terminating).collect()
        } else {
            ready
        };
        chosen
            .iter()
            .map(|e| SocketAddr::new(ip(&e.address), 8080))
            .collect()
    };
    (pick(false), pick(true))
}

/// The endpoints of a step; one address has one set of conditions.
fn make(ends: &[(u8, bool, bool, bool)]) -> Vec<End> {
    let unique: BTreeMap<u8, (bool, bool, bool)> = ends.iter().map(|e| (e.0, (e.1, e.2, e.3))).collect();
    unique
        .iter()
        .map(|(n, (ready, serving, here))| End {
            address: format!("10.42.{}.{n}", if *here { 0 } else { 1 }),
            node: if *here { NODE } else { "there" },
            ready: *ready,
            serving: *serving || *ready,
            terminating: !*ready,
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// After any history, each service leads to exactly what it should, and the
    /// incremental result equals a fresh one.
    #[test]
    fn any_history_leads_to_the_right_endpoints(steps in prop::collection::vec(step(), 1..14)) {
        let mut world = World::new();
        let mut present: BTreeMap<usize, Present> = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Remove { service } => {
                    present.remove(service);
                    world.remove(&format!("s{service}"));
                }
                Step::Set { service: n, ends, local, affinity, node_port } => {
                    let mut spec = json!({
                        "internalTrafficPolicy": if local.0 { "Local" } else { "Cluster" },
                        "externalTrafficPolicy": if local.1 { "Local" } else { "Cluster" },
                        "sessionAffinity": if *affinity { "ClientIP" } else { "None" },
                        "externalIPs": [format!("203.0.113.{n}")],
                    });
                    if *node_port {
                        spec["ports"] = json!([{"name": "http", "port": 80, "nodePort": 30000 + n}]);
                    }
                    let ends = make(ends);
                    let object = service(&format!("s{n}"), &format!("10.43.0.{n}"), spec);
                    let slice = slice(&format!("s{n}"), 8080, "TCP", &ends);
                    world.set(&object, Some(&slice));
                    present.insert(*n, (object, slice, ends, *local, *node_port));
                }
            }
        }

        let mut fresh = World::new();
        fresh.flush();
        for (object, slice, ..) in present.values() {
            fresh.set(object, Some(slice));
        }
        prop_assert_eq!(&world.ruleset, &fresh.ruleset);

        for n in 0usize..4 {
            let (inside, outside) = (format!("10.43.0.{n}"), format!("203.0.113.{n}"));
            let Some((_, _, ends, local, node_port)) = present.get(&n) else {
                let gone = world.all("10.42.0.99", &inside, 80);
                prop_assert!(gone.iter().all(|t| t.fate == Fate::Dropped));
                continue;
            };
            let (cluster, here) = usable(ends);
            let mut fronts = vec![(inside, 80, local.0), (outside, 80, local.1)];
            if *node_port {
                fronts.push((NODE_IP.to_owned(), 30000 + n as u16, local.1));
            }
            for (i, (to, port, stay)) in fronts.into_iter().enumerate() {
                for from in [OUTSIDE, "10.42.0.99", NODE_IP] {
                    // Inside the cluster, external addresses lead everywhere.
                    let stay = stay && (i == 0 || from == OUTSIDE);
                    let wanted = if stay { &here } else { &cluster };
                    let traces = world.all(from, &to, port);
                    if !wanted.is_empty() {
                        prop_assert_eq!(&reached(&traces), wanted);
                    } else if cluster.is_empty() && here.is_empty() {
                        prop_assert!(traces.iter().all(|t| matches!(t.fate, Fate::Rejected(_))));
                    } else {
                        prop_assert!(traces.iter().all(|t| t.fate == Fate::Dropped), "{:?}", traces);
                    }
                }
            }
        }
    }
}
