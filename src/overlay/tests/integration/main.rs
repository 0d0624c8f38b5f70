//! Two nodes as network namespaces on a LAN, with the real kernel between them. Needs root; without it these tests
//! fail. Nothing is made in the machine's own namespace.

mod lab;

use std::collections::BTreeSet;
use std::net::IpAddr;

use lab::{Lab, Pod, eventually, exchange};
use skiff_netlink::Netlink;
use skiff_overlay::{AttachOptions, Backend, NoFirewall, uninstall};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn pods_reach_each_other_across_nodes_with_their_own_addresses() {
    let lab = Lab::new(Backend::Vxlan).await;
    let (a, b) = (lab.node("a").await, lab.node("b").await);
    let (a1, a2) = (
        Pod::attach(&lab, &a, "a1").await,
        Pod::attach(&lab, &a, "a2").await,
    );
    let (b1, b2) = (
        Pod::attach(&lab, &b, "b1").await,
        Pod::attach(&lab, &b, "b2").await,
    );
    assert_eq!(a1.ip, ip("10.42.0.2"));
    assert_eq!(b2.ip, ip("10.42.1.3"));
    lab.peers_known(&[&a, &b]).await;

    // A megabyte each way also proves that the MTU fits the path.
    for (client, server) in [(&a1, &b1), (&b2, &a2), (&a1, &a2), (&b2, &b1)] {
        let seen = exchange(&client.ns, client.ip, &server.ns, server.ip).await;
        assert_eq!(seen, client.ip, "{} -> {}", client.ip, server.ip);
    }
    let inside = Netlink::open_in(&a1.ns).unwrap();
    // Pods of one node go through the gateway too: no route to the network on the link itself.
    let routes: Vec<String> = inside
        .routes()
        .await
        .unwrap()
        .iter()
        .map(|r| r.destination.to_string())
        .collect();
    let ipv4: Vec<&String> = routes.iter().filter(|r| !r.contains(':')).collect();
    assert_eq!(ipv4, ["0.0.0.0/0", "10.42.0.1/32"]);
    assert_eq!(inside.require_link("eth0").await.unwrap().mtu, 1450);
    let far = Netlink::open_in(&a.ns).unwrap();
    assert_eq!(far.require_link("skiff.1").await.unwrap().mtu, 1450);

    // Out of the cluster: the node's address, and only then.
    let seen = exchange(&a1.ns, a1.ip, &lab.lan, lab.lan_ip).await;
    assert_eq!(
        seen, a.ip,
        "traffic that leaves the cluster has the node's address"
    );
    // An address the node answers itself, from a pod and from the node.
    for (from, client) in [(a1.ip, &a1.ns), (ip("10.43.0.10"), &a.ns)] {
        assert_eq!(exchange(client, from, &a.ns, ip("10.43.0.10")).await, from);
    }
    // The node itself reaches pods on both nodes.
    for pod in [&a1, &b1] {
        let seen = exchange(&a.ns, ip("10.42.0.1"), &pod.ns, pod.ip).await;
        assert!(
            ["10.42.0.1", "10.42.0.0"].map(ip).contains(&seen),
            "node -> {}: seen as {seen}",
            pod.ip
        );
    }
}

#[tokio::test]
async fn nodes_publish_what_peers_need_and_report_ready() {
    let lab = Lab::new(Backend::Vxlan).await;
    let a = lab.node("a").await;
    eventually("the annotations", async || {
        let node = lab.nodes.get("a").unwrap();
        let annotations = node.metadata.annotations.clone().unwrap_or_default();
        annotations.get("skiff.io/public-ip").map(String::as_str) == Some("192.0.2.1")
            && annotations.contains_key("skiff.io/vxlan-mac")
            && annotations.get("skiff.io/overlay-backend").map(String::as_str) == Some("vxlan")
    })
    .await;
    eventually("the condition", async || {
        let node = lab.nodes.get("a").unwrap();
        let conditions = node.status.clone().and_then(|s| s.conditions).unwrap_or_default();
        conditions
            .iter()
            .any(|c| c.type_ == "NetworkUnavailable" && c.status == "False")
    })
    .await;
    assert_eq!(a.overlay.node_address().borrow().as_ref().unwrap().address, a.ip);
}

#[tokio::test]
async fn a_peer_that_leaves_takes_its_entries_along() {
    let lab = Lab::new(Backend::Vxlan).await;
    let (a, b) = (lab.node("a").await, lab.node("b").await);
    lab.peers_known(&[&a, &b]).await;
    let before = a.entries().await;
    assert!(
        before.contains("10.42.1.0/24") && before.contains("192.0.2.2"),
        "{before}"
    );
    lab.forget("b");
    eventually("the removal", async || {
        let now = a.entries().await;
        !now.contains("10.42.1.0") && !now.contains("192.0.2.2")
    })
    .await;
}

#[tokio::test]
async fn a_restart_changes_nothing_and_what_was_lost_comes_back() {
    let lab = Lab::new(Backend::Vxlan).await;
    let (mut a, b) = (lab.node("a").await, lab.node("b").await);
    let pod = Pod::attach(&lab, &a, "a1").await;
    let other = Pod::attach(&lab, &b, "b1").await;
    lab.peers_known(&[&a, &b]).await;
    let before = a.entries().await;

    a.stop().await;
    let a = lab.restart(a).await;
    assert_eq!(
        a.entries().await,
        before,
        "same links by index, same routes, neighbours, forwarding entries"
    );
    assert_eq!(
        exchange(&pod.ns, pod.ip, &other.ns, other.ip).await,
        pod.ip,
        "the pod was not disturbed"
    );
    let again = a
        .overlay
        .attach(&pod.path, "a1", &AttachOptions::default())
        .await
        .unwrap();
    assert_eq!(again[0].addr(), pod.ip, "the address store survived");
    let next = Pod::attach(&lab, &a, "a2").await;
    assert_eq!(next.ip, ip("10.42.0.3"));

    // Somebody deletes the bridge, and with it the routes: all comes back, and pods are put on it again.
    let netlink = Netlink::open_in(&a.ns).unwrap();
    netlink.delete_link("skiff0").await.unwrap();
    netlink.delete_link("skiff.1").await.unwrap();
    eventually("repair", async || {
        a.entries().await.matches("10.42.1.0/24").count() == 1 && {
            netlink
                .links()
                .await
                .unwrap()
                .iter()
                .filter(|l| l.kind.as_deref() == Some("veth") && l.master.is_some())
                .count()
                == 2
        }
    })
    .await;
    assert_eq!(exchange(&pod.ns, pod.ip, &other.ns, other.ip).await, pod.ip);
}

#[tokio::test]
async fn a_node_that_gets_another_address_is_followed() {
    let lab = Lab::new(Backend::Vxlan).await;
    let (a, b) = (lab.node("a").await, lab.node("b").await);
    let (one, two) = (
        Pod::attach(&lab, &a, "one").await,
        Pod::attach(&lab, &b, "two").await,
    );
    lab.peers_known(&[&a, &b]).await;
    let netlink = Netlink::open_in(&a.ns).unwrap();
    let eth0 = netlink.require_link("eth0").await.unwrap().index;
    netlink
        .ensure_addresses(eth0, &["192.0.2.77/24".parse().unwrap()])
        .await
        .unwrap();
    eventually("the peer to know", async || {
        let entries = b.entries().await;
        entries.contains("192.0.2.77") && !entries.contains("192.0.2.1 ")
    })
    .await;
    assert_eq!(exchange(&one.ns, one.ip, &two.ns, two.ip).await, one.ip);
    assert_eq!(exchange(&two.ns, two.ip, &one.ns, one.ip).await, two.ip);
}

#[tokio::test]
async fn attach_and_detach_leave_nothing() {
    let lab = Lab::new(Backend::Vxlan).await;
    let a = lab.node("a").await;
    let netlink = Netlink::open_in(&a.ns).unwrap();
    let names = async || -> Vec<String> {
        netlink
            .links()
            .await
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect()
    };
    let before = names().await;
    let pod = Pod::attach(&lab, &a, "one").await;
    assert_eq!(names().await.len(), before.len() + 1);
    a.overlay.detach("one").await.unwrap();
    a.overlay.detach("one").await.unwrap();
    assert_eq!(names().await, before);
    assert!(a.overlay.addresses("one").is_empty());
    assert!(
        Netlink::open_in(&pod.ns)
            .unwrap()
            .link("eth0")
            .await
            .unwrap()
            .is_none()
    );

    // A namespace that is not one: a clear error, and the address is free again.
    let error = a
        .overlay
        .attach(&lab.file("nothing"), "two", &AttachOptions::default())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
    assert!(a.overlay.addresses("two").is_empty());

    // Sandboxes that died while nobody looked.
    let _three = Pod::attach(&lab, &a, "three").await;
    let _four = Pod::attach(&lab, &a, "four").await;
    a.overlay
        .retain(&BTreeSet::from(["four".to_owned()]))
        .await
        .unwrap();
    assert!(a.overlay.addresses("three").is_empty() && !a.overlay.addresses("four").is_empty());
    assert_eq!(names().await.len(), before.len() + 1);
}

#[tokio::test]
async fn host_gw_routes_without_a_tunnel() {
    let lab = Lab::new(Backend::HostGw).await;
    let (a, b) = (lab.node("a").await, lab.node("b").await);
    let (one, two) = (
        Pod::attach(&lab, &a, "one").await,
        Pod::attach(&lab, &b, "two").await,
    );
    lab.peers_known(&[&a, &b]).await;
    assert_eq!(exchange(&one.ns, one.ip, &two.ns, two.ip).await, one.ip);
    let netlink = Netlink::open_in(&a.ns).unwrap();
    assert!(netlink.link("skiff.1").await.unwrap().is_none());
    assert_eq!(netlink.require_link("skiff0").await.unwrap().mtu, 1500);

    // A pulled cable takes the routes along; they are back when it is.
    let eth0 = netlink.require_link("eth0").await.unwrap().index;
    netlink.set_up(eth0, false).await.unwrap();
    eventually("the route to go", async || {
        !a.entries().await.contains("10.42.1.0/24")
    })
    .await;
    netlink.set_up(eth0, true).await.unwrap();
    eventually("the route to return", async || {
        a.entries().await.contains("10.42.1.0/24")
    })
    .await;
    assert_eq!(exchange(&one.ns, one.ip, &two.ns, two.ip).await, one.ip);
}

#[tokio::test]
async fn a_node_whose_server_is_away_uses_what_it_knew() {
    let lab = Lab::new(Backend::Vxlan).await;
    let (mut a, b) = (lab.node("a").await, lab.node("b").await);
    lab.peers_known(&[&a, &b]).await;
    let before = a.entries().await;
    a.stop().await;
    let netlink = Netlink::open_in(&a.ns).unwrap();
    netlink.delete_link("skiff0").await.unwrap();
    netlink.delete_link("skiff.1").await.unwrap();
    let a = lab.restart_without_server(a).await;
    eventually("the entries", async || {
        let strip = |text: String| text.lines().filter(|l| l.contains("192.0.2.2")).count();
        strip(a.entries().await) == strip(before.clone())
    })
    .await;
    let pod = Pod::attach(&lab, &a, "late").await;
    let other = Pod::attach(&lab, &b, "other").await;
    assert_eq!(exchange(&pod.ns, pod.ip, &other.ns, other.ip).await, pod.ip);
}

#[tokio::test]
async fn uninstall_leaves_the_machine_as_it_was() {
    let lab = Lab::new(Backend::Vxlan).await;
    let forward = async |ns: &skiff_netlink::NetNs| {
        ns.run(|| skiff_netlink::sysctl::read("net/ipv4/ip_forward"))
            .unwrap()
            .unwrap()
    };
    lab.namespace("a")
        .run(|| skiff_netlink::sysctl::ensure("net/ipv4/ip_forward", "0"))
        .unwrap()
        .unwrap();
    let (mut a, b) = (lab.node("a").await, lab.node("b").await);
    let _pod = Pod::attach(&lab, &a, "one").await;
    lab.peers_known(&[&a, &b]).await;
    assert_eq!(forward(&a.ns).await.as_deref(), Some("1"));
    a.stop().await;
    for _ in 0..2 {
        let dir = a.state_dir.clone();
        a.ns.run_async(move || async move { uninstall(&dir, &NoFirewall).await })
            .await
            .unwrap()
            .unwrap();
    }
    let netlink = Netlink::open_in(&a.ns).unwrap();
    let names: Vec<String> = netlink
        .links()
        .await
        .unwrap()
        .into_iter()
        .map(|l| l.name)
        .collect();
    assert_eq!(names, ["lo", "eth0"]);
    assert!(
        netlink
            .routes()
            .await
            .unwrap()
            .iter()
            .all(|r| r.protocol != skiff_overlay::ROUTE_PROTOCOL)
    );
    assert_eq!(forward(&a.ns).await.as_deref(), Some("0"));
    assert!(!a.state_dir.exists());
}
