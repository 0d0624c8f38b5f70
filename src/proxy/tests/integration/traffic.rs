//! Real packets through real rules.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use skiff_base::lifecycle::Shutdown;
use skiff_client::Informer;
use skiff_nft::{Family, NftTable, Owner};
use skiff_proxy::{Config, HostPort, HostPorts, Protocol, Proxy};

use crate::lab::{Host, ask, ask_udp, on_a_node, run};
use crate::objects::*;

const POD_GATEWAY: &str = "169.254.1.1";

/// A node with two pods that serve, one that asks, and a machine outside; the proxy runs.
struct Lab {
    runtime: tokio::runtime::Runtime,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    table: NftTable,
    one: Host,
    two: Host,
    client: Host,
    outside: Host,
    shutdown: Shutdown,
}

impl Lab {
    fn new() -> Self {
        let one = Host::attach("pod1", "10.42.0.5", POD_GATEWAY);
        let two = Host::attach("pod2", "10.42.0.6", POD_GATEWAY);
        let client = Host::attach("pod3", "10.42.0.7", POD_GATEWAY);
        let outside = Host::attach("lan", "192.0.2.2", "192.0.2.1");
        for (pod, name) in [(&one, "one"), (&two, "two")] {
            pod.serve_tcp(8080, name);
            pod.serve_udp(8053, name);
        }
        // The node's own connections to services need a route to begin with.
        run(
            "ip",
            &["route", "add", "10.43.0.0/16", "dev", "lan", "src", "192.0.2.1"],
        );
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        // Worker threads come from this thread, so they share its network namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let services = Informer::fixed(Vec::<Service>::new());
        let slices = Informer::fixed(Vec::<EndpointSlice>::new());
        let config = Config {
            node: node(),
            tables: vec![table.clone()],
        };
        let proxy = Proxy::with(config, services.clone(), slices.clone());
        let shutdown = Shutdown::new();
        runtime.spawn(proxy.run(shutdown.clone()));
        Self {
            runtime,
            services,
            slices,
            table,
            one,
            two,
            client,
            outside,
            shutdown,
        }
    }

    /// Applies objects and waits until the kernel's table holds `text`.
    fn set(&self, service: Service, slice: EndpointSlice, until: impl Fn(&str) -> bool) {
        self.services.apply(service);
        self.slices.apply(slice);
        self.wait(until);
    }

    fn wait(&self, until: impl Fn(&str) -> bool) {
        for _ in 0..500 {
            if until(&run("nft", &["list", "ruleset"])) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "not in the kernel after 5 s: {}",
            run("nft", &["list", "ruleset"])
        );
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn endpoints() -> Vec<End> {
    vec![ready("10.42.0.5", NODE), ready("10.42.0.6", NODE)]
}

/// Who answered and which client address they saw, over many connections.
fn answers(mut ask: impl FnMut() -> Result<String, ErrorKind>) -> BTreeSet<String> {
    (0..24)
        .map(|_| ask().unwrap_or_else(|e| panic!("no answer: {e}")))
        .collect()
}

fn set(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn services_carry_tcp_from_pods_the_node_and_outside() {
    on_a_node(|| {
        let lab = Lab::new();
        let spec = json!({"type": "NodePort", "externalIPs": ["192.0.2.77"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
        let web = service("web", "10.43.0.7", spec.clone());
        lab.set(web, slice("web", 8080, "TCP", &endpoints()), |t| {
            t.contains("10.43.0.7 . tcp . 80 . 0x00000001")
        });

        let from_pod = answers(|| lab.client.ask("10.43.0.7:80"));
        assert_eq!(
            from_pod,
            set(&["one 10.42.0.7", "two 10.42.0.7"]),
            "pods keep their address"
        );
        let node_port = answers(|| lab.client.ask("192.0.2.1:30080"));
        assert_eq!(node_port.len(), 2);
        let outside = answers(|| lab.outside.ask("192.0.2.1:30080"));
        assert_eq!(
            outside,
            set(&[&format!("one {POD_GATEWAY}"), &format!("two {POD_GATEWAY}")])
        );
        lab.outside
            .inside(|| run("ip", &["route", "add", "192.0.2.77", "via", "192.0.2.1"]));
        assert_eq!(answers(|| lab.outside.ask("192.0.2.77:80")).len(), 2);
        assert_eq!(answers(|| ask("10.43.0.7:80")).len(), 2, "from the node itself");
        assert_eq!(
            answers(|| ask("192.0.2.1:30080")).len(),
            2,
            "the node's own node port"
        );

        let hairpin = answers(|| lab.one.ask("10.43.0.7:80"));
        assert_eq!(hairpin, set(&[&format!("one {POD_GATEWAY}"), "two 10.42.0.5"]));

        assert_eq!(lab.client.ask("10.43.0.7:81"), Err(ErrorKind::ConnectionRefused));
        let mut local = spec;
        local["externalTrafficPolicy"] = json!("Local");
        lab.set(
            service("web", "10.43.0.7", local),
            slice("web", 8080, "TCP", &endpoints()),
            |t| t.contains("goto svc-nodeport-2-local-2"),
        );
        let outside = answers(|| lab.outside.ask("192.0.2.1:30080"));
        assert_eq!(
            outside,
            set(&["one 192.0.2.2", "two 192.0.2.2"]),
            "the client's address is kept"
        );

        lab.slices.apply(slice("web", 8080, "TCP", &[]));
        lab.wait(|t| t.contains("10.43.0.7 . tcp . 80 : goto svc-reject"));
        for refused in [
            lab.client.ask("10.43.0.7:80"),
            ask("10.43.0.7:80"),
            lab.outside.ask("192.0.2.1:30080"),
        ] {
            assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
        }
    });
}

#[test]
fn a_client_keeps_its_endpoint() {
    on_a_node(|| {
        let lab = Lab::new();
        let web = service("web", "10.43.0.7", json!({"sessionAffinity": "ClientIP"}));
        lab.set(web, slice("web", 8080, "TCP", &endpoints()), |t| {
            t.contains("10.43.0.7 . tcp . 80 : goto svc-in-")
        });
        assert_eq!(answers(|| lab.client.ask("10.43.0.7:80")).len(), 1);
    });
}

#[test]
fn udp_flows_leave_vanished_endpoints() {
    on_a_node(|| {
        let lab = Lab::new();
        let spec = json!({"ports": [{"name": "http", "protocol": "UDP", "port": 53}]});
        let dns = || service("dns", "10.43.0.9", spec.clone());
        lab.set(dns(), slice("dns", 8053, "UDP", &endpoints()[..1]), |t| {
            t.contains("10.42.0.5 . 8053")
        });
        let client = lab.client.udp_client(5000);
        assert_eq!(ask_udp(&client, "10.43.0.9:53").as_deref(), Some("one"));
        lab.set(dns(), slice("dns", 8053, "UDP", &endpoints()[1..]), |t| {
            t.contains("10.42.0.6 . 8053")
        });
        // The same flow; the old entry would lead to the first pod. It is
        // deleted right after the transaction became visible.
        let answer = (0..20)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(20));
                ask_udp(&client, "10.43.0.9:53")
            })
            .find(|a| a.as_deref() == Some("two"));
        assert_eq!(answer.flatten().as_deref(), Some("two"));
    });
}

#[test]
fn host_ports_lead_to_their_pod() {
    on_a_node(|| {
        let lab = Lab::new();
        let _ = &lab.runtime;
        run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        let ports = HostPorts::new(std::slice::from_ref(&lab.table));
        let to = |host_ip: Option<&str>, host_port| HostPort {
            host_ip: host_ip.map(ip),
            host_port,
            protocol: Protocol::Tcp,
            pod: SocketAddr::new(lab.two.address, 8080),
        };
        ports
            .set("sandbox", &[to(None, 8888), to(Some("192.0.2.1"), 9999)])
            .unwrap();
        assert_eq!(lab.outside.ask("192.0.2.1:8888").unwrap(), "two 192.0.2.2");
        assert_eq!(lab.outside.ask("192.0.2.1:9999").unwrap(), "two 192.0.2.2");
        assert_eq!(lab.client.ask("192.0.2.1:8888").unwrap(), "two 10.42.0.7");
        assert_eq!(ask("192.0.2.1:8888").unwrap().split(' ').next(), Some("two"));
        assert_eq!(
            lab.two.ask("192.0.2.1:8888").unwrap(),
            format!("two {POD_GATEWAY}"),
            "a hairpin"
        );
        assert!(
            lab.client.ask(&format!("{POD_GATEWAY}:9999")).is_err(),
            "bound to another address"
        );
        ports.remove("sandbox").unwrap();
        assert_eq!(
            lab.outside.ask("192.0.2.1:8888"),
            Err(ErrorKind::ConnectionRefused)
        );
        let names: Vec<_> = lab.table.model().chains.keys().cloned().collect();
        assert!(
            !names.iter().any(|n| n.starts_with(Owner::HostPorts.prefix())),
            "{names:?}"
        );
    });
}
