//! The verbs against a real kernel, in network namespaces of their own. Needs root; without it these tests fail.

use std::net::IpAddr;

use ipnet::IpNet;
use skiff_netlink::{
    BridgeSpec, FdbEntry, MacAddr, Neighbour, NetNs, Netlink, NodeAddressQuery, Route, VethSpec, VxlanSpec,
    sysctl,
};

/// A namespace that is removed when the test ends, however it ends.
struct Lab {
    _dir: tempfile::TempDir,
    paths: Vec<std::path::PathBuf>,
}

impl Lab {
    fn new(count: usize) -> (Self, Vec<NetNs>) {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..count).map(|n| dir.path().join(format!("ns{n}"))).collect();
        let namespaces = paths.iter().map(|path| NetNs::create(path).unwrap()).collect();
        (Self { _dir: dir, paths }, namespaces)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = NetNs::remove(path) {
                eprintln!("{error}");
            }
        }
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn bridge_and_vxlan_are_kept_changed_or_recreated() {
    let (_lab, ns) = Lab::new(1);
    let nl = Netlink::open_in(&ns[0]).unwrap();
    let mut bridge = BridgeSpec {
        name: "br0".into(),
        mac: MacAddr::derived("br0"),
        mtu: 1450,
    };
    let first = nl.ensure_bridge(&bridge).await.unwrap();
    assert!(first.up && first.mac == Some(bridge.mac) && first.mtu == 1450);
    assert_eq!(
        nl.ensure_bridge(&bridge).await.unwrap().index,
        first.index,
        "a fitting bridge is kept"
    );
    bridge.mtu = 1400;
    let changed = nl.ensure_bridge(&bridge).await.unwrap();
    assert_eq!(
        (changed.index, changed.mtu),
        (first.index, 1400),
        "the MTU changes in place"
    );

    let mut vxlan = VxlanSpec {
        name: "vx.1".into(),
        vni: 1,
        port: 8472,
        local: ip("192.0.2.1"),
        mac: MacAddr::derived("vx"),
        mtu: 1450,
    };
    let first = nl.ensure_vxlan(&vxlan).await.unwrap();
    let info = first.vxlan.clone().unwrap();
    assert_eq!(
        (info.vni, info.port, info.local, info.learning),
        (1, 8472, Some(ip("192.0.2.1")), false)
    );
    assert_eq!(nl.ensure_vxlan(&vxlan).await.unwrap().index, first.index);
    vxlan.local = ip("192.0.2.2");
    let second = nl.ensure_vxlan(&vxlan).await.unwrap();
    assert_ne!(
        second.index, first.index,
        "another local address needs another device"
    );
    assert!(nl.delete_link("vx.1").await.unwrap());
    assert!(!nl.delete_link("vx.1").await.unwrap(), "deleting twice is fine");
}

#[tokio::test]
async fn addresses_routes_neighbours_and_forwarding_entries() {
    let (_lab, ns) = Lab::new(1);
    let nl = Netlink::open_in(&ns[0]).unwrap();
    let spec = VxlanSpec {
        name: "vx.1".into(),
        vni: 1,
        port: 8472,
        local: ip("192.0.2.1"),
        mac: MacAddr::derived("vx"),
        mtu: 1450,
    };
    let link = nl.ensure_vxlan(&spec).await.unwrap().index;
    assert!(
        nl.ensure_addresses(
            link,
            &[net("10.42.0.0/32"), net("10.42.9.1/24"), net("10.42.9.2/24")]
        )
        .await
        .unwrap()
    );
    assert!(
        nl.ensure_addresses(link, &[net("10.42.0.0/32"), net("10.42.9.2/24")])
            .await
            .unwrap()
    );
    assert!(
        !nl.ensure_addresses(link, &[net("10.42.0.0/32"), net("10.42.9.2/24")])
            .await
            .unwrap()
    );

    let mut route = Route::new(net("10.42.1.0/24"), link, 115);
    route.gateway = Some(ip("10.42.1.0"));
    route.onlink = true;
    let ours = async || -> Vec<Route> {
        nl.routes()
            .await
            .unwrap()
            .into_iter()
            .filter(|r| r.protocol == 115)
            .collect()
    };
    nl.replace_route(&route).await.unwrap();
    nl.replace_route(&route).await.unwrap();
    assert_eq!(
        ours().await,
        std::slice::from_ref(&route),
        "what was set reads back equal"
    );
    nl.delete_route(&route).await.unwrap();
    nl.delete_route(&route).await.unwrap();
    assert_eq!(ours().await, []);

    let mut neighbour = Neighbour {
        link,
        address: ip("10.42.1.0"),
        mac: MacAddr::derived("a"),
    };
    nl.replace_neighbour(&neighbour).await.unwrap();
    neighbour.mac = MacAddr::derived("b");
    nl.replace_neighbour(&neighbour).await.unwrap();
    assert_eq!(
        nl.neighbours(link).await.unwrap(),
        std::slice::from_ref(&neighbour)
    );
    nl.delete_neighbour(&neighbour).await.unwrap();
    nl.delete_neighbour(&neighbour).await.unwrap();
    assert_eq!(nl.neighbours(link).await.unwrap(), []);

    let mut entry = FdbEntry {
        link,
        mac: MacAddr::derived("b"),
        remote: ip("192.0.2.9"),
    };
    nl.replace_fdb(&entry).await.unwrap();
    entry.remote = ip("192.0.2.10");
    nl.replace_fdb(&entry).await.unwrap();
    assert_eq!(nl.fdb(link).await.unwrap(), std::slice::from_ref(&entry));
    nl.delete_fdb(&entry).await.unwrap();
    nl.delete_fdb(&entry).await.unwrap();
    assert_eq!(nl.fdb(link).await.unwrap(), []);
}

#[tokio::test]
async fn a_veth_pair_appears_in_both_namespaces_with_hairpin() {
    let (_lab, ns) = Lab::new(2);
    let nl = Netlink::open_in(&ns[0]).unwrap();
    let far = Netlink::open_in(&ns[1]).unwrap();
    let bridge = nl
        .ensure_bridge(&BridgeSpec {
            name: "br0".into(),
            mac: MacAddr::derived("br0"),
            mtu: 1450,
        })
        .await
        .unwrap();
    let spec = VethSpec {
        name: "skp0".into(),
        master: Some(bridge.index),
        peer_name: "eth0".into(),
        peer_mac: Some(MacAddr::for_ipv4([10, 42, 0, 5].into())),
        peer_namespace: &ns[1],
        mtu: 1450,
    };
    let near = nl.create_veth(&spec).await.unwrap();
    nl.set_hairpin(near.index, true).await.unwrap();
    nl.set_up(near.index, true).await.unwrap();
    let near = nl.require_link("skp0").await.unwrap();
    assert_eq!(
        (near.master, near.hairpin, near.up, near.mtu),
        (Some(bridge.index), Some(true), true, 1450)
    );
    let eth0 = far.require_link("eth0").await.unwrap();
    assert_eq!((eth0.mac, eth0.mtu), (spec.peer_mac, 1450));
    assert!(nl.link("eth0").await.unwrap().is_none());
    assert!(nl.create_veth(&spec).await.unwrap_err().is_present());
    nl.delete_link("skp0").await.unwrap();
    assert!(far.link("eth0").await.unwrap().is_none(), "both ends go together");
}

#[tokio::test]
async fn namespaces_sysctls_and_node_address() {
    let (lab, ns) = Lab::new(1);
    assert!(
        NetNs::create(&lab.paths[0]).is_err(),
        "an existing file is not overwritten"
    );
    assert!(
        NetNs::open("/etc/hostname").is_err(),
        "an ordinary file is no namespace"
    );
    let outside = NetNs::current().unwrap();
    assert!(!outside.is_same(&ns[0]));
    let inside = ns[0]
        .run_async(|| async { NetNs::current().unwrap() })
        .await
        .unwrap();
    assert!(inside.is_same(&ns[0]));

    let key = "net/ipv4/conf/lo/rp_filter";
    let before = sysctl::read(key).unwrap();
    ns[0].run(|| sysctl::ensure(key, "0")).unwrap().unwrap();
    assert!(ns[0].run(|| sysctl::ensure(key, "2")).unwrap().unwrap());
    assert!(!ns[0].run(|| sysctl::ensure(key, "2")).unwrap().unwrap());
    assert_eq!(
        sysctl::read(key).unwrap(),
        before,
        "the other namespace's sysctl is untouched"
    );
    assert!(sysctl::ensure("net/no/such/key", "1").is_err());
    assert!(!sysctl::ensure_if_present("net/no/such/key", "1").unwrap());

    let nl = Netlink::open_in(&ns[0]).unwrap();
    let found = nl.node_address(&NodeAddressQuery::default()).await.unwrap();
    assert_eq!((found.address, found.link.as_str()), (ip("127.0.0.1"), "lo"));
}

#[tokio::test]
async fn changes_wake_the_subscriber() {
    let (_lab, ns) = Lab::new(1);
    let nl = Netlink::open_in(&ns[0]).unwrap();
    let (started, ready) = tokio::sync::oneshot::channel();
    let watcher = tokio::spawn({
        let ns = ns[0].clone();
        async move {
            ns.run_async(|| async {
                let mut changes = Netlink::subscribe().unwrap();
                started.send(()).unwrap();
                tokio::time::timeout(std::time::Duration::from_secs(10), changes.next()).await
            })
            .await
        }
    });
    ready.await.unwrap();
    nl.ensure_bridge(&BridgeSpec {
        name: "br0".into(),
        mac: MacAddr::derived("br0"),
        mtu: 1500,
    })
    .await
    .unwrap();
    assert_eq!(watcher.await.unwrap().unwrap(), Ok(Some(())));
}

#[tokio::test]
async fn tables_can_be_read_from_many_tasks_at_once() {
    let (_lab, ns) = Lab::new(1);
    let nl = Netlink::open_in(&ns[0]).unwrap();
    for n in 0..20 {
        let name = format!("br{n}");
        nl.ensure_bridge(&BridgeSpec {
            mac: MacAddr::derived(&name),
            name,
            mtu: 1500,
        })
        .await
        .unwrap();
    }
    let read = |n: usize| {
        let nl = nl.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                assert_eq!(nl.links().await.unwrap().len(), 21, "task {n}");
                nl.routes().await.unwrap();
            }
        })
    };
    let tasks: Vec<_> = (0..16).map(read).collect();
    // Callers that give up in the middle do not disturb the others.
    for _ in 0..50 {
        let _ = tokio::time::timeout(std::time::Duration::from_micros(200), nl.links()).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
}
