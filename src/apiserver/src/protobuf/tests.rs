use super::*;
use serde_json::json;

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn bytes(number: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, number << 3 | 2);
    put_varint(&mut out, value.len() as u64);
    out.extend_from_slice(value);
    out
}

fn number(field: u64, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    put_varint(&mut out, field << 3);
    put_varint(&mut out, value as u64);
    out
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [
        MAGIC.to_vec(),
        bytes(1, &meta),
        bytes(2, raw),
        bytes(3, b""),
        bytes(4, b""),
    ]
    .concat()
}

#[test]
fn a_secret_and_its_parts_become_json() {
    let entry = [bytes(1, b"a"), bytes(2, b"b")].concat();
    let stamp = [number(1, 1_767_225_600), number(2, 0)].concat();
    let meta = [
        bytes(1, b"s"),
        bytes(3, b""),
        bytes(8, &stamp),
        bytes(11, &entry),
        number(7, 0),
    ]
    .concat();
    let raw = [bytes(1, &meta), bytes(2, &entry), number(5, 0)].concat();
    let object = decode(&envelope("v1", "Secret", &raw)).unwrap();
    assert_eq!(
        object,
        json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "Yg=="}, "immutable": false,
            "metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"a": "b"}}})
    );
}

#[test]
fn flat_and_special_parts_find_their_place() {
    let source = bytes(2, &bytes(1, b""));
    let volume = [bytes(1, b"v"), bytes(2, &source)].concat();
    let port = [number(1, 0), number(2, 8080), bytes(3, b"")].concat();
    let get = [bytes(1, b"/"), bytes(2, &port)].concat();
    let probe = [bytes(1, &bytes(2, &get)), number(2, 0), number(7, 0)].concat();
    let quantity = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"100m"))].concat();
    let container = [
        bytes(1, b"c"),
        bytes(8, &bytes(1, &quantity)),
        bytes(10, &probe),
        number(16, 0),
    ]
    .concat();
    let spec = [
        bytes(1, &volume),
        bytes(2, &container),
        number(11, 0),
        number(21, 0),
    ]
    .concat();
    let object = decode(&envelope("v1", "Pod", &bytes(2, &spec))).unwrap();
    assert_eq!(
        object["spec"],
        json!({"automountServiceAccountToken": false, "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {
                "httpGet": {"path": "/", "port": 8080}, "terminationGracePeriodSeconds": 0}}]})
    );
}

#[test]
fn every_message_named_is_described() {
    for (name, fields) in MESSAGES.iter() {
        for field in fields {
            if let Type::Message(of) = field.of {
                let target = full_name(name, of);
                let known = MESSAGES.contains_key(target.as_str())
                    || !matches!(special(&target, b""), Ok(Special::No));
                assert!(
                    known,
                    "{name}.{} is a {target}, which is not in the table",
                    field.name
                );
            }
        }
    }
}

#[test]
fn damaged_bodies_are_refused() {
    assert_eq!(decode(b""), Err(ProtobufError::Envelope));
    assert_eq!(decode(b"k8s\0\xff\xff"), Err(ProtobufError::Envelope));
    assert!(matches!(
        decode(&envelope("v1", "Nonsense", b"")),
        Err(ProtobufError::Unknown { .. })
    ));
    for raw in [
        &b"\x0a\xff"[..],
        b"\x0a\x05ab",
        b"\x08",
        b"\x0b",
        b"\x0a\x02\x08\x01",
    ] {
        assert!(
            matches!(
                decode(&envelope("v1", "Pod", raw)),
                Err(ProtobufError::Malformed(_))
            ),
            "{raw:?}"
        );
    }
}
