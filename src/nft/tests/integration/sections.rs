//! Owners share a table: incremental changes, restarts, repair, errors.

use std::net::IpAddr;

use skiff_nft::*;

use crate::namespace::{in_namespace, listing, run};

fn key(last: u8) -> Key {
    Key::address(IpAddr::from([192, 0, 2, last]))
}

/// A section with one set, of which one chain makes use.
fn content(section: &Section, hook: Hook, members: &[u8]) -> Content {
    let (set, chain) = (section.name("set"), section.name("chain"));
    let mut content = Content::default();
    let mut addresses = Set::new(SetType::set([Type::Ipv4]));
    addresses
        .elements
        .extend(members.iter().map(|m| (key(*m), Element::default())));
    content.ruleset.sets.insert(set.clone(), addresses);
    let rules = vec![Rule::new().within(vec![Value::Ip4Source], &set).drop()];
    content.ruleset.chains.insert(chain.clone(), rules.into());
    content.hooks.insert(hook, chain);
    content
}

#[test]
fn sections_are_called_in_the_owners_order_and_do_not_disturb_each_other() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let (policy, proxy) = (table.section(Owner::Policy), table.section(Owner::Proxy));
        policy
            .replace(&content(&policy, Hook::FilterForward, &[1]))
            .unwrap();
        proxy
            .replace(&content(&proxy, Hook::FilterForward, &[2]))
            .unwrap();
        let text = listing();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} in {text}"));
        assert!(at("jump svc-chain") < at("jump policy-chain"), "{text}");

        let emptied = policy.replace(&Content::default()).unwrap();
        assert!(!emptied.rebuilt);
        let text = listing();
        assert!(!text.contains("policy-") && text.contains("192.0.2.2"), "{text}");
        proxy.replace(&Content::default()).unwrap();
        let text = listing();
        assert!(!text.contains("chain"), "base chains without sections go: {text}");
    });
}

#[test]
fn a_change_costs_what_changed() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        let many: Vec<u8> = (0..200).collect();
        section
            .replace(&content(&section, Hook::FilterForward, &many))
            .unwrap();
        let again = section
            .replace(&content(&section, Hook::FilterForward, &many))
            .unwrap();
        assert_eq!(again, Applied::default());
        let mut changed = many.clone();
        changed[7] = 250;
        let applied = section
            .replace(&content(&section, Hook::FilterForward, &changed))
            .unwrap();
        assert_eq!(
            (applied.operations, applied.rebuilt),
            (2, false),
            "one deletion, one addition"
        );
        let text = listing();
        assert!(
            text.contains("192.0.2.250") && !text.contains("192.0.2.7,"),
            "{text}"
        );
    });
}

#[test]
fn an_old_table_stays_until_every_awaited_owner_came() {
    in_namespace(|| {
        run("nft", &["add", "table", "ip", "skiff"]);
        run("nft", &["add", "chain", "ip", "skiff", "old"]);
        let table = NftTable::open(Family::Ip, "skiff", &[Owner::Proxy, Owner::Overlay]).unwrap();
        let (proxy, overlay) = (table.section(Owner::Proxy), table.section(Owner::Overlay));
        let first = overlay
            .replace(&content(&overlay, Hook::FilterForward, &[1]))
            .unwrap();
        assert!(first.pending);
        assert!(listing().contains("chain old") && !listing().contains("overlay"));
        let second = proxy
            .replace(&content(&proxy, Hook::FilterForward, &[2]))
            .unwrap();
        assert!(second.rebuilt && !second.pending);
        let text = listing();
        assert!(!text.contains("chain old") && text.contains("192.0.2.1") && text.contains("192.0.2.2"));
    });
}

#[test]
fn a_table_flushed_by_somebody_else_is_written_again() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        section
            .replace(&content(&section, Hook::FilterForward, &[1]))
            .unwrap();
        assert!(!table.ensure().unwrap());
        let before = listing();
        run("nft", &["flush", "ruleset"]);
        assert!(table.ensure().unwrap());
        assert_eq!(listing(), before);
        run("nft", &["flush", "ruleset"]);
        let set = section.name("set");
        let applied = section.edit(|e| e.put(&set, key(9), Element::default())).unwrap();
        assert!(applied.rebuilt);
        let text = listing();
        assert!(text.contains("192.0.2.1") && text.contains("192.0.2.9"), "{text}");
    });
}

#[test]
fn a_guarded_table_comes_back_by_itself() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        section
            .replace(&content(&section, Hook::FilterForward, &[1]))
            .unwrap();
        let guard = table.guard().unwrap();
        let before = listing();
        run("nft", &["flush", "ruleset"]);
        let back = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            listing() == before
        });
        assert!(back, "{}", listing());
        drop(guard);
        run("nft", &["flush", "ruleset"]);
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(listing(), "", "nobody guards any more");
    });
}

/// A chain with a jump to another, a set with members: what random histories are made of.
fn random_content(section: &Section, wish: &(Vec<u8>, Vec<u8>, bool, bool)) -> Content {
    let (members, targets, interval, hooked) = wish;
    let mut content = Content::default();
    let (set, map) = (section.name("set"), section.name("map"));
    let kind = if *interval {
        SetType::intervals([Type::Ipv4])
    } else {
        SetType::set([Type::Ipv4])
    };
    let mut addresses = Set::new(kind);
    // Apart from each other, so that no two ranges touch.
    addresses
        .elements
        .extend(members.iter().map(|m| (key(m % 100 * 2), Element::default())));
    let mut verdicts = Set::new(SetType::verdicts([Type::Ipv4]));
    for target in targets {
        let chain = section.name(&format!("chain-{target}"));
        verdicts
            .elements
            .insert(key(*target), Datum::Verdict(Verdict::Goto(chain.clone())).into());
        let rules = vec![Rule::new().within(vec![Value::Ip4Source], &set).drop(); *target as usize % 3 + 1];
        content.ruleset.chains.insert(chain, rules.into());
    }
    let main = section.name("main");
    let rules = vec![Rule::new().vmap(vec![Value::Ip4Destination], &map)];
    content.ruleset.chains.insert(main.clone(), rules.into());
    content.ruleset.sets.extend([(set, addresses), (map, verdicts)]);
    if *hooked {
        content.hooks.insert(Hook::FilterForward, main);
    }
    content
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 25, ..Default::default() })]

    /// Whatever the history, small changes lead to the same table as writing it at once.
    #[test]
    fn differences_add_up(wishes in proptest::collection::vec(
        (
            proptest::collection::vec(0u8..100, 0..8),
            proptest::collection::vec(0u8..6, 0..5),
            proptest::bool::ANY,
            proptest::bool::weighted(0.8),
        ),
        1..7,
    )) {
        let (step_by_step, at_once) = in_namespace(move || {
            let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
            let section = table.section(Owner::Policy);
            for (i, wish) in wishes.iter().enumerate() {
                let applied = section.replace(&random_content(&section, wish)).unwrap();
                assert!(i == 0 || !applied.rebuilt, "step {i} was not accepted as a difference");
            }
            let step_by_step = listing();
            let fresh = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
            let section = fresh.section(Owner::Policy);
            section.replace(&random_content(&section, wishes.last().unwrap())).unwrap();
            (sorted(&step_by_step), sorted(&listing()))
        });
        proptest::prop_assert_eq!(step_by_step, at_once);
    }
}

/// A listing with the order of objects taken out: it is that of their creation.
fn sorted(listing: &str) -> Vec<String> {
    let mut objects: Vec<String> = listing
        .split("\n\n")
        .map(|o| o.trim_matches(['\n', '}', ' ']).to_owned())
        .collect();
    for object in &mut objects {
        *object = object.replace("table ip skiff {\n", "");
    }
    objects.sort();
    objects
}

#[test]
fn a_refused_change_names_the_object_and_changes_nothing() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        section
            .replace(&content(&section, Hook::FilterForward, &[1]))
            .unwrap();
        let before = (listing(), table.model());
        let nowhere = section.name("nowhere");
        let error = section
            .edit(|e| e.chain(&section.name("chain"), vec![Rule::new().jump(&nowhere)]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("add rule to chain svc-chain") && error.contains("svc-nowhere"),
            "{error}"
        );
        assert!(error.contains("No such file"), "{error}");
        assert_eq!((listing(), table.model()), before);

        let foreign = section.edit(|e| e.chain(&"policy-x".into(), vec![])).unwrap_err();
        assert!(
            matches!(
                foreign,
                Error::Foreign {
                    owner: Owner::Proxy,
                    ..
                }
            ),
            "{foreign}"
        );
        let missing = section
            .edit(|e| e.put(&section.name("none"), key(1), Element::default()))
            .unwrap_err();
        assert!(matches!(missing, Error::NoSuchSet(_)), "{missing}");
    });
}

#[test]
fn a_set_of_another_type_is_replaced_together_with_its_rules() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        section
            .replace(&content(&section, Hook::FilterForward, &[1]))
            .unwrap();
        let set = section.name("set");
        let applied = section
            .edit(|e| {
                e.set(&set, SetType::intervals([Type::Ipv4]));
                e.put(
                    &set,
                    key(4),
                    Element {
                        end: Some(key(7)),
                        datum: Datum::Member,
                    },
                );
            })
            .unwrap();
        assert!(!applied.rebuilt);
        let text = listing();
        assert!(
            text.contains("192.0.2.4/30") && text.contains("ip saddr @svc-set drop"),
            "{text}"
        );
    });
}

#[test]
fn removing_the_table_leaves_others_alone() {
    in_namespace(|| {
        run("nft", &["add", "table", "ip", "other"]);
        let table = NftTable::open(Family::Ip, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        section
            .replace(&content(&section, Hook::FilterForward, &[1]))
            .unwrap();
        table.remove().unwrap();
        assert_eq!(listing(), "table ip other {\n}\n");
        table.remove().unwrap();
    });
}

#[test]
fn ip6_tables_take_addresses_of_sixteen_bytes() {
    in_namespace(|| {
        let table = NftTable::open(Family::Ip6, "skiff", &[]).unwrap();
        let section = table.section(Owner::Proxy);
        let map = section.name("ends");
        let address: IpAddr = "fd00::1".parse().unwrap();
        let fields = vec![Value::Ip6Destination, Value::Protocol, Value::DestinationPort];
        let mut fields_with_number = fields.clone();
        fields_with_number.push(Value::Random {
            modulus: 1,
            offset: 0,
        });
        section
            .edit(|e| {
                e.set(
                    &map,
                    SetType::map(
                        [Type::Ipv6, Type::Protocol, Type::Port, Type::Mark],
                        [Type::Ipv6, Type::Port],
                    ),
                );
                e.put(
                    &map,
                    Key::address(address).protocol(6).port(80).number(0),
                    Datum::Data(Key::address("fd00::2".parse().unwrap()).port(8080)),
                );
                let target = NatTarget::Map {
                    key: fields_with_number,
                    map: map.clone(),
                };
                e.chain(
                    &section.name("c"),
                    vec![Rule::new().then(Statement::Dnat(target))],
                );
                e.hook(Hook::NatPrerouting, &section.name("c"));
            })
            .unwrap();
        let text = listing();
        assert!(
            text.contains("fd00::1 . tcp . 80 . 0x00000000 : fd00::2 . 8080"),
            "{text}"
        );
        assert!(text.contains("dnat ip6 to ip6 daddr"), "{text}");
    });
}
