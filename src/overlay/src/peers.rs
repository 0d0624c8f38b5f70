//! From peers to kernel entries: what should be there, and the steps from what is there to it. Pure.
//!
//! Worked example. Node `b` (192.0.2.2, MAC 02:…:02) has 10.42.1.0/24. With VXLAN the entries for it are
//!
//! ```text
//! route      10.42.1.0/24 via 10.42.1.0 dev skiff.1 onlink
//! neighbour  10.42.1.0 lladdr 02:…:02 dev skiff.1 permanent
//! forwarding 02:…:02 dst 192.0.2.2 dev skiff.1 permanent
//! ```
//!
//! and with host-gw the one route `10.42.1.0/24 via 192.0.2.2 dev eth0`.
//!
//! Order of actions: entries a route needs are set before the route, and a route goes before what it needs, so no
//! packet ever meets half of a peer. An entry that only changes its value is replaced in place, never removed first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use skiff_netlink::{FdbEntry, MacAddr, Neighbour, Route};

use crate::Backend;
use crate::fabric::ROUTE_PROTOCOL;

/// Another node, as its Node object describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where encapsulated packets are sent.
    pub public_ip: IpAddr,
    /// The MAC of its VXLAN device.
    pub mac: Option<MacAddr>,
    /// Its pod networks.
    pub pod_cidrs: Vec<IpNet>,
}

/// This node's side of the entries.
#[derive(Clone, Debug)]
pub struct Local {
    /// How packets travel.
    pub backend: Backend,
    /// Index of the VXLAN device (0 with host-gw).
    pub vxlan: u32,
    /// Index of the underlying interface.
    pub uplink: u32,
    /// Networks directly on the underlying interface.
    pub uplink_nets: Vec<IpNet>,
    /// The node's own address.
    pub node_ip: IpAddr,
    /// The node's own pod networks.
    pub pod_cidrs: Vec<IpNet>,
    /// The cluster's pod networks.
    pub cluster_cidrs: Vec<IpNet>,
    /// Index of the bridge.
    pub bridge: u32,
    /// Networks routed to the bridge (services).
    pub service_cidrs: Vec<IpNet>,
}

/// Kernel entries of ours: wanted, or found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Permanent neighbours.
    pub neighbours: BTreeSet<Neighbour>,
    /// VXLAN forwarding entries.
    pub fdb: BTreeSet<FdbEntry>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make or correct a neighbour.
    SetNeighbour(Neighbour),
    /// Make or correct a forwarding entry.
    SetFdb(FdbEntry),
    /// Make or correct a route.
    SetRoute(Route),
    /// Remove a route.
    DeleteRoute(Route),
    /// Remove a neighbour.
    DeleteNeighbour(Neighbour),
    /// Remove a forwarding entry.
    DeleteFdb(FdbEntry),
}

/// The entries these peers need, and a reason for each peer that can have none.
pub fn wanted(local: &Local, peers: &[Peer]) -> (Entries, Vec<(String, &'static str)>) {
    let mut entries = Entries::default();
    let mut refused = Vec::new();
    for net in &local.service_cidrs {
        entries
            .routes
            .insert(Route::new(*net, local.bridge, ROUTE_PROTOCOL));
    }
    let mut ordered: Vec<&Peer> = peers.iter().collect();
    ordered.sort_by(|a, b| a.name.cmp(&b.name));
    let mut claimed: Vec<IpNet> = local.pod_cidrs.clone();
    for peer in ordered {
        for net in peer.pod_cidrs.iter().filter(|net| net.addr().is_ipv4()) {
            match entries_for(local, peer, *net, &claimed) {
                Ok((route, vxlan)) => {
                    claimed.push(*net);
                    entries.routes.insert(route);
                    if let Some((neighbour, fdb)) = vxlan {
                        entries.neighbours.insert(neighbour);
                        entries.fdb.insert(fdb);
                    }
                }
                Err(reason) => refused.push((peer.name.clone(), reason)),
            }
        }
    }
    (entries, refused)
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

type PeerEntries = (Route, Option<(Neighbour, FdbEntry)>);

fn entries_for(
    local: &Local,
    peer: &Peer,
    net: IpNet,
    claimed: &[IpNet],
) -> Result<PeerEntries, &'static str> {
    if !local.cluster_cidrs.iter().any(|cidr| cidr.contains(&net)) {
        return Err("its pod network is not part of the cluster's");
    }
    if claimed.iter().any(|other| overlaps(other, &net)) {
        return Err("its pod network overlaps that of another node");
    }
    if peer.public_ip == local.node_ip {
        return Err("it claims the address of this node");
    }
    let mut route = Route::new(net, local.uplink, ROUTE_PROTOCOL);
    match local.backend {
        Backend::HostGw => {
            if !local.uplink_nets.iter().any(|net| net.contains(&peer.public_ip)) {
                return Err("it is not on this node's network segment, which host-gw needs");
            }
            route.gateway = Some(peer.public_ip);
            Ok((route, None))
        }
        Backend::Vxlan => {
            let mac = peer
                .mac
                .ok_or("it has not published the MAC of its VXLAN device")?;
            route.link = local.vxlan;
            route.gateway = Some(net.network());
            route.onlink = true;
            let neighbour = Neighbour {
                link: local.vxlan,
                address: net.network(),
                mac,
            };
            let fdb = FdbEntry {
                link: local.vxlan,
                mac,
                remote: peer.public_ip,
            };
            Ok((route, Some((neighbour, fdb))))
        }
    }
}

/// Entries to set and to delete, given that setting one replaces what has the same key.
fn steps<T: Ord + Clone, K: Ord>(
    wanted: &BTreeSet<T>,
    found: &BTreeSet<T>,
    key: impl Fn(&T) -> K,
) -> (Vec<T>, Vec<T>) {
    let set: Vec<T> = wanted.difference(found).cloned().collect();
    let replaced: BTreeMap<K, ()> = set.iter().map(|item| (key(item), ())).collect();
    let delete = found
        .difference(wanted)
        .filter(|item| !replaced.contains_key(&key(item)))
        .cloned()
        .collect();
    (set, delete)
}

/// The steps from what is there to what should be. Nothing to do gives no steps.
pub fn plan(wanted: &Entries, found: &Entries) -> Vec<Action> {
    let (set_neighbours, delete_neighbours) =
        steps(&wanted.neighbours, &found.neighbours, |n| (n.link, n.address));
    let (set_fdb, delete_fdb) = steps(&wanted.fdb, &found.fdb, |e| (e.link, e.mac));
    let (set_routes, delete_routes) = steps(&wanted.routes, &found.routes, |r| (r.destination, r.metric));
    let mut actions = Vec::new();
    actions.extend(set_neighbours.into_iter().map(Action::SetNeighbour));
    actions.extend(set_fdb.into_iter().map(Action::SetFdb));
    actions.extend(set_routes.into_iter().map(Action::SetRoute));
    actions.extend(delete_routes.into_iter().map(Action::DeleteRoute));
    actions.extend(delete_neighbours.into_iter().map(Action::DeleteNeighbour));
    actions.extend(delete_fdb.into_iter().map(Action::DeleteFdb));
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(backend: Backend) -> Local {
        Local {
            backend,
            vxlan: 7,
            uplink: 2,
            uplink_nets: vec!["192.0.2.0/24".parse().unwrap()],
            node_ip: "192.0.2.1".parse().unwrap(),
            pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            bridge: 5,
            service_cidrs: vec![],
        }
    }

    fn peer(name: &str, ip: &str, mac: u8, net: &str) -> Peer {
        Peer {
            name: name.into(),
            public_ip: ip.parse().unwrap(),
            mac: (mac != 0).then_some(MacAddr([2, 0, 0, 0, 0, mac])),
            pod_cidrs: vec![net.parse().unwrap()],
        }
    }

    fn apply(actions: &[Action], state: &mut Entries) {
        for action in actions {
            match action {
                Action::SetRoute(r) => {
                    state
                        .routes
                        .retain(|o| (o.destination, o.metric) != (r.destination, r.metric));
                    state.routes.insert(r.clone());
                }
                Action::SetNeighbour(n) => {
                    state
                        .neighbours
                        .retain(|o| (o.link, o.address) != (n.link, n.address));
                    state.neighbours.insert(n.clone());
                }
                Action::SetFdb(e) => {
                    state.fdb.retain(|o| (o.link, o.mac) != (e.link, e.mac));
                    state.fdb.insert(e.clone());
                }
                Action::DeleteRoute(r) => assert!(state.routes.remove(r)),
                Action::DeleteNeighbour(n) => assert!(state.neighbours.remove(n)),
                Action::DeleteFdb(e) => assert!(state.fdb.remove(e)),
            }
        }
    }

    #[test]
    fn three_entries_per_peer_in_the_right_order() {
        let (entries, refused) = wanted(
            &local(Backend::Vxlan),
            &[peer("b", "192.0.2.2", 2, "10.42.1.0/24")],
        );
        assert!(refused.is_empty());
        let actions = plan(&entries, &Entries::default());
        let [Action::SetNeighbour(n), Action::SetFdb(e), Action::SetRoute(r)] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!(
            (n.address.to_string(), n.mac, n.link),
            ("10.42.1.0".into(), MacAddr([2, 0, 0, 0, 0, 2]), 7)
        );
        assert_eq!((e.remote.to_string(), e.mac), ("192.0.2.2".into(), n.mac));
        assert_eq!(
            (r.destination.to_string(), r.gateway, r.onlink, r.link),
            ("10.42.1.0/24".into(), Some(n.address), true, 7)
        );
        let gone = plan(&Entries::default(), &entries);
        assert!(matches!(
            gone.as_slice(),
            [
                Action::DeleteRoute(_),
                Action::DeleteNeighbour(_),
                Action::DeleteFdb(_)
            ]
        ));
    }

    #[test]
    fn host_gw_is_one_route_on_the_segment() {
        let peers = [
            peer("b", "192.0.2.2", 0, "10.42.1.0/24"),
            peer("c", "198.51.100.3", 0, "10.42.2.0/24"),
        ];
        let (entries, refused) = wanted(&local(Backend::HostGw), &peers);
        assert_eq!(entries.routes.len(), 1);
        let route = entries.routes.first().unwrap();
        assert_eq!(
            (route.gateway, route.link, route.onlink),
            (Some("192.0.2.2".parse().unwrap()), 2, false)
        );
        assert_eq!(refused[0].0, "c");
        assert!(entries.fdb.is_empty() && entries.neighbours.is_empty());
    }

    #[test]
    fn what_a_peer_may_not_claim() {
        let table = [
            (
                peer("b", "192.0.2.2", 2, "10.9.1.0/24"),
                "not part of the cluster",
            ),
            (peer("b", "192.0.2.2", 2, "10.42.0.0/25"), "overlaps"),
            (peer("b", "192.0.2.2", 2, "10.42.0.0/16"), "overlaps"),
            (peer("b", "192.0.2.1", 2, "10.42.1.0/24"), "address of this node"),
            (peer("b", "192.0.2.2", 0, "10.42.1.0/24"), "MAC"),
        ];
        for (peer, reason) in table {
            let (entries, refused) = wanted(&local(Backend::Vxlan), std::slice::from_ref(&peer));
            assert_eq!(entries, Entries::default(), "{peer:?}");
            assert!(refused[0].1.contains(reason), "{refused:?}");
        }
        // Two nodes with one network: the first by name keeps it, whatever order they are listed in.
        let twins = [
            peer("c", "192.0.2.3", 3, "10.42.1.0/24"),
            peer("b", "192.0.2.2", 2, "10.42.1.0/24"),
        ];
        let (entries, refused) = wanted(&local(Backend::Vxlan), &twins);
        assert_eq!(entries.fdb.first().unwrap().remote.to_string(), "192.0.2.2");
        assert_eq!(refused[0].0, "c");
    }

    #[test]
    fn changes_cost_what_changed_and_a_second_run_costs_nothing() {
        let local = local(Backend::Vxlan);
        let b = peer("b", "192.0.2.2", 2, "10.42.1.0/24");
        let c = peer("c", "192.0.2.3", 3, "10.42.2.0/24");
        let moved = peer("b", "192.0.2.9", 2, "10.42.1.0/24");
        let reinstalled = peer("b", "192.0.2.2", 8, "10.42.1.0/24");
        let renumbered = peer("b", "192.0.2.2", 2, "10.42.5.0/24");
        // from, to, number of steps
        let table: &[(&[&Peer], &[&Peer], usize)] = &[
            (&[&b], &[&b], 0),
            (&[&b], &[&b, &c], 3),
            (&[&b, &c], &[&c], 3),
            (&[&b, &c], &[&moved, &c], 1),
            (&[&b], &[&reinstalled], 3),
            (&[&b], &[&renumbered], 4),
            (&[&b, &c], &[], 6),
        ];
        for (from, to, steps) in table {
            let entries =
                |peers: &[&Peer]| wanted(&local, &peers.iter().map(|p| (*p).clone()).collect::<Vec<_>>()).0;
            let (mut state, goal) = (entries(from), entries(to));
            let actions = plan(&goal, &state);
            assert_eq!(actions.len(), *steps, "{from:?} -> {to:?}: {actions:?}");
            apply(&actions, &mut state);
            assert_eq!(state, goal);
            assert_eq!(plan(&goal, &state), [], "a second run finds nothing to do");
        }
    }

    #[test]
    fn a_stray_second_remote_of_a_mac_is_removed_without_touching_the_right_one() {
        let (goal, _) = wanted(
            &local(Backend::Vxlan),
            &[peer("b", "192.0.2.2", 2, "10.42.1.0/24")],
        );
        let mut state = goal.clone();
        let mut stray = goal.fdb.first().unwrap().clone();
        stray.remote = "192.0.2.66".parse().unwrap();
        state.fdb.insert(stray.clone());
        assert_eq!(plan(&goal, &state), [Action::DeleteFdb(stray)]);
    }
}
