//! What the ledger asks for is what the kernel has; and how long it takes.

use serde_json::{Value, json};
use skiff_base::clock::{Clock, SystemClock};
use skiff_nft::{Family, NftTable, Owner, Section};
use skiff_proxy::ledger::Ledger;
use skiff_proxy::plan::plan;
use skiff_proxy::service::ports;

use crate::lab::{on_a_node, run};
use crate::objects::*;

fn set(ledger: &mut Ledger, n: u32, spec: Value, addresses: &[String]) {
    let name = format!("s{n}");
    let object = service(&name, &format!("10.43.{}.{}", n / 250, n % 250 + 1), spec);
    let ends: Vec<End> = addresses.iter().map(|a| ready(a, NODE)).collect();
    let slice = slice(&name, 8080, "TCP", &ends);
    let ports = ports(Family::Ip, &object, [&slice].into_iter(), &node());
    let plan = plan(ledger.rules(), &ports, &node());
    ledger.set(0, &format!("default/{name}"), plan);
}

fn apply(ledger: &mut Ledger, section: &Section) -> usize {
    let applied = section.apply(ledger.edit()).unwrap();
    assert!(!applied.pending);
    ledger.applied();
    applied.operations
}

fn addresses(n: u32, count: u32) -> Vec<String> {
    (0..count)
        .map(|i| (n * 3 + i) % 60_000)
        .map(|i| format!("10.42.{}.{}", i / 250, i % 250 + 1))
        .collect()
}

/// The elements of a set as `nft -j` has them.
fn elements(set: &str) -> Vec<Value> {
    let kind = if matches!(set, "svc-cluster-ips" | "svc-hairpin") {
        "set"
    } else {
        "map"
    };
    let text = run("nft", &["-j", "list", kind, "ip", "skiff", set]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let objects = json["nftables"].as_array().unwrap();
    let found = objects.iter().find_map(|o| o.get(kind)).unwrap();
    found["elem"].as_array().cloned().unwrap_or_default()
}

#[test]
fn the_kernel_has_what_the_ledger_asked_for() {
    on_a_node(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        let mut ledger = Ledger::new(Family::Ip, &node());
        set(&mut ledger, 1, json!({}), &addresses(1, 2));
        set(
            &mut ledger,
            2,
            json!({"sessionAffinity": "ClientIP"}),
            &addresses(2, 3),
        );
        let spec = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"],
            "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}});
        set(&mut ledger, 3, spec, &addresses(3, 1));
        set(&mut ledger, 4, json!({}), &[]);
        apply(&mut ledger, &section);
        let text = run("nft", &["list", "ruleset"]);
        for line in [
            "ip daddr . meta l4proto . th dport vmap @svc-ips",
            "fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @svc-nodeports",
            "ip saddr != 10.42.0.0/16 jump svc-mark",
            "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @svc-endpoints",
            "dnat ip to meta l4proto . th dport . numgen random mod 1 offset 65536 map @svc-nodeport-endpoints",
            "ip saddr . ip daddr @svc-hairpin masquerade fully-random",
            "ip saddr 198.51.100.0/24 return",
            "ip daddr 10.43.0.0/16 drop",
        ] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} is not in\n{text}");
        }
        let mut ips: Vec<String> = elements("svc-ips").iter().map(ToString::to_string).collect();
        ips.sort();
        assert_eq!(ips.len(), 4, "{ips:?}");
        assert!(
            ips[0].contains("10.43.0.2") && ips[0].contains("svc-cluster-2"),
            "{ips:?}"
        );
        let refused = elements("svc-refused-ips");
        assert!(
            refused.len() == 1 && refused[0].to_string().contains("10.43.0.5"),
            "{refused:?}"
        );
        assert_eq!(elements("svc-cluster-ips").len(), 4);

        for n in 1..=4 {
            ledger.set(0, &format!("default/s{n}"), Default::default());
        }
        apply(&mut ledger, &section);
        let text = run("nft", &["list", "ruleset"]);
        assert!(
            !text.contains("elements") && !text.contains("svc-cluster-2"),
            "all gone: {text}"
        );
    });
}

#[test]
fn ten_thousand_services_load_at_once_and_change_one_by_one() {
    on_a_node(|| {
        const SERVICES: u32 = 10_000;
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        let mut ledger = Ledger::new(Family::Ip, &node());
        let clock = SystemClock;
        let start = clock.monotonic();
        for n in 0..SERVICES {
            set(&mut ledger, n, json!({}), &addresses(n, 1 + n % 4));
        }
        let planned = clock.monotonic();
        apply(&mut ledger, &section);
        let loaded = clock.monotonic();
        let mut operations = 0;
        const CHANGES: u32 = 100;
        for n in 0..CHANGES {
            set(&mut ledger, n, json!({}), &addresses(n, 2 + n % 4));
            operations += apply(&mut ledger, &section);
        }
        let changed = clock.monotonic();
        println!(
            "{SERVICES} services: planned in {:?}, loaded in {:?}; one change {:?} ({} operations)",
            planned - start,
            loaded - planned,
            (changed - loaded) / CHANGES,
            operations / CHANGES as usize,
        );
        assert!(
            (loaded - planned).as_secs() < 10,
            "loading takes {:?}",
            loaded - planned
        );
        assert!(
            operations <= 6 * CHANGES as usize,
            "a change must cost what changed"
        );
        let text = run("nft", &["list", "map", "ip", "skiff", "svc-ips"]);
        assert_eq!(text.matches(": goto").count(), SERVICES as usize);
    });
}

#[test]
fn the_kernel_takes_ip6_services() {
    on_a_node(|| {
        let table = NftTable::open(Family::Ip6, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        let mut node = node();
        node.cluster_cidrs.push("fd42::/48".parse().unwrap());
        node.service_cidrs.push("fd43::/112".parse().unwrap());
        let mut ledger = Ledger::new(Family::Ip6, &node);
        for (name, address, affinity) in [("a", "fd43::1", "None"), ("b", "fd43::2", "ClientIP")] {
            let spec = json!({"sessionAffinity": affinity, "externalTrafficPolicy": "Local", "type": "NodePort",
                "ports": [{"name": "http", "port": 80, "nodePort": if name == "a" { 30001 } else { 30002 }}]});
            let object = service(name, address, spec);
            let slice = slice(
                name,
                8080,
                "TCP",
                &[ready("fd42::5", NODE), ready("fd42:0:0:1::5", "there")],
            );
            let ports = ports(Family::Ip6, &object, [&slice].into_iter(), &node);
            ledger.set(0, &format!("default/{name}"), plan(ledger.rules(), &ports, &node));
        }
        apply(&mut ledger, &section);
        let text = run("nft", &["list", "ruleset"]);
        for line in [
            "ip6 daddr . meta l4proto . th dport vmap @svc-ips",
            "fib daddr type local ip6 daddr != ::1 meta l4proto . th dport vmap @svc-nodeports",
            "ip6 saddr != fd42::/48 jump svc-mark",
            "ip6 daddr fd43::/112 drop",
            "meta l4proto tcp dnat to [fd42::5]:8080",
        ] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} is not in\n{text}");
        }
        assert!(
            text.contains("fd43::1 . tcp . 80 . 0x00000001 : fd42:0:0:1::5 . 8080"),
            "{text}"
        );
    });
}
