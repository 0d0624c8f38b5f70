//! What the model says is what `nft` lists.

use std::net::IpAddr;

use skiff_nft::model::{address_type, ct_state};
use skiff_nft::*;

use crate::namespace::{in_namespace, listing, run};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// What `nft` must print, indentation apart.
const LISTING: &str = r#"
table ip skiff {
map svc-endpoints {
type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service
elements = { 10.43.0.10 . tcp . 53 . 0x00000001 : 10.42.0.7 . 5353 }
}
map svc-ips {
type ipv4_addr . inet_proto . inet_service : verdict
elements = { 10.43.0.10 . tcp . 53 : goto svc-other,
10.43.0.10 . tcp . 54 : drop }
}
set svc-pods {
type ipv4_addr
flags interval
elements = { 10.42.0.0/16 }
}
set svc-ranges {
type ipv4_addr . inet_service
flags interval
elements = { 10.1.0.0/24 . 80-90 }
}
set svc-sticky {
type ipv4_addr
size 65535
flags dynamic,timeout
timeout 10s
}
chain filter-forward {
type filter hook forward priority filter; policy accept;
jump svc-filter
}
chain nat-postrouting {
type nat hook postrouting priority srcnat; policy accept;
jump svc-post
}
chain nat-prerouting {
type nat hook prerouting priority dstnat; policy accept;
jump svc-main
}
chain raw-prerouting {
type filter hook prerouting priority raw; policy accept;
jump svc-raw
}
chain svc-filter {
ct state new ip daddr 10.43.0.0/16 counter packets 0 bytes 0 reject comment "no endpoints"
iifname "eth0" ct mark set 0x00000007 log prefix "seen: " accept
}
chain svc-main {
ip daddr . meta l4proto . th dport vmap @svc-ips
fib daddr type local ip saddr != @svc-pods meta mark set meta mark | 0x00004000
ip daddr . th dport @svc-ranges return
}
chain svc-other {
ip saddr @svc-sticky return
update @svc-sticky { ip saddr }
dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @svc-endpoints
meta l4proto udp dnat to 10.42.0.9:53
meta l4proto tcp redirect to :99
}
chain svc-post {
meta mark & 0x00004000 != 0x00000000 meta mark set meta mark & 0xffffbfff masquerade fully-random
snat to 192.0.2.1
}
chain svc-raw {
notrack
}
}
"#;

/// Lines without indentation and blank lines.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).collect()
}

#[test]
fn every_statement_is_listed_as_meant() {
    let (listing, json) = in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        let (services, endpoints) = (section.name("ips"), section.name("endpoints"));
        let (sticky, pods, ranges) = (
            section.name("sticky"),
            section.name("pods"),
            section.name("ranges"),
        );
        let (main, other) = (section.name("main"), section.name("other"));
        let post = section.name("post");
        let service_key = || vec![Value::Ip4Destination, Value::Protocol, Value::DestinationPort];
        let key = |port| Key::new().ip(ip("10.43.0.10")).protocol(6).port(port);
        section
            .edit(|e| {
                e.set(
                    &services,
                    SetType::verdicts([Type::Ipv4, Type::Protocol, Type::Port]),
                );
                e.put(&services, key(53), Datum::Verdict(Verdict::Goto(other.clone())));
                e.put(&services, key(54), Datum::Verdict(Verdict::Drop));
                e.set(
                    &endpoints,
                    SetType::map(
                        [Type::Ipv4, Type::Protocol, Type::Port, Type::Mark],
                        [Type::Ipv4, Type::Port],
                    ),
                );
                e.put(
                    &endpoints,
                    key(53).number(1),
                    Datum::Data(Key::new().ip(ip("10.42.0.7")).port(5353)),
                );
                e.set(&sticky, SetType::dynamic([Type::Ipv4], 10_000));
                e.set(&pods, SetType::intervals([Type::Ipv4]));
                e.put(
                    &pods,
                    Key::address(ip("10.42.0.0")),
                    Element {
                        end: Some(Key::address(ip("10.42.255.255"))),
                        datum: Datum::Member,
                    },
                );
                e.set(&ranges, SetType::intervals([Type::Ipv4, Type::Port]));
                e.put(
                    &ranges,
                    Key::address(ip("10.1.0.0")).port(80),
                    Element {
                        end: Some(Key::address(ip("10.1.0.255")).port(90)),
                        datum: Datum::Member,
                    },
                );
                let mut key = service_key();
                key.push(Value::Random {
                    modulus: 2,
                    offset: 0,
                });
                e.chain(
                    &other,
                    vec![
                        Rule::new().within(vec![Value::Ip4Source], &sticky).return_(),
                        Rule::new().then(Statement::Update {
                            set: sticky.clone(),
                            key: vec![Value::Ip4Source],
                            timeout_ms: None,
                        }),
                        Rule::new().then(Statement::Dnat(NatTarget::Map {
                            key,
                            map: endpoints.clone(),
                        })),
                        Rule::new()
                            .is(Value::Protocol, Key::new().protocol(17))
                            .then(Statement::Dnat(NatTarget::Fixed(ip("10.42.0.9"), Some(53)))),
                        Rule::new()
                            .is(Value::Protocol, Key::new().protocol(6))
                            .then(Statement::Redirect(Some(99))),
                    ],
                );
                e.chain(
                    &main,
                    vec![
                        Rule::new().vmap(service_key(), &services),
                        Rule::new()
                            .is(Value::DestinationType, Key::new().number(address_type::LOCAL))
                            .outside(vec![Value::Ip4Source], &pods)
                            .then(Statement::SetMark(Value::Mark.or(0x4000))),
                        Rule::new()
                            .within(vec![Value::Ip4Destination, Value::DestinationPort], &ranges)
                            .return_(),
                    ],
                );
                e.chain(
                    &section.name("filter"),
                    vec![
                        Rule::new()
                            .any_bit(Value::CtState, ct_state::NEW)
                            .in_network(Value::Ip4Destination, "10.43.0.0/16".parse().unwrap())
                            .counter()
                            .then(Statement::Reject(Reject::PortUnreachable))
                            .comment("no endpoints"),
                        Rule::new()
                            .is(Value::InterfaceIn, Key::new().interface("eth0"))
                            .then(Statement::SetCtMark(Value::Constant(Key::new().number(7))))
                            .then(Statement::Log("seen: ".into()))
                            .accept(),
                    ],
                );
                e.chain(
                    &post,
                    vec![
                        Rule::new()
                            .any_bit(Value::Mark, 0x4000)
                            .then(Statement::SetMark(Value::Mark.and(!0x4000)))
                            .then(Statement::Masquerade { random: true }),
                        Rule::new().then(Statement::Snat(NatTarget::Fixed(ip("192.0.2.1"), None))),
                    ],
                );
                e.chain(&section.name("raw"), vec![Rule::new().then(Statement::Notrack)]);
                e.hook(Hook::Raw, &section.name("raw"));
                e.hook(Hook::NatPrerouting, &main);
                e.hook(Hook::NatPostrouting, &post);
                e.hook(Hook::FilterForward, &section.name("filter"));
            })
            .unwrap();
        (listing(), run("nft", &["-j", "list", "ruleset"]))
    });
    assert_eq!(lines(&listing), lines(LISTING));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let objects = json["nftables"].as_array().unwrap();
    let count = |kind: &str| objects.iter().filter(|o| o.get(kind).is_some()).count();
    assert_eq!(
        (count("chain"), count("rule"), count("set"), count("map")),
        (9, 17, 3, 2)
    );
}
