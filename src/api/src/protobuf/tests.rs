//! Round trips over every kind, and what bodies can get wrong.

use serde_json::{Map, Value, json};

use super::*;
use crate::schema::{Scalar, Schema, Shape};

/// A value with everything in it that a type can hold, down to where types repeat themselves.
fn sample(view: View<'_>, name: &str, depth: usize) -> Value {
    match view.shape() {
        Shape::Scalar(scalar) => match scalar {
            Scalar::Boolean => true.into(),
            Scalar::Int32 => (-7 - i64::try_from(depth).unwrap()).into(),
            Scalar::Int64 => (i64::MAX - 3).into(),
            Scalar::Number => 2.5.into(),
            Scalar::String => format!("{name}-ä").into(),
            Scalar::Bytes => "AP/+".into(),
            Scalar::Time => "1969-07-20T20:17:40Z".into(),
            Scalar::MicroTime => "2026-01-02T03:04:05.678901Z".into(),
            Scalar::Quantity => "150m".into(),
            Scalar::IntOrString => {
                if depth.is_multiple_of(2) {
                    json!("30%")
                } else {
                    json!(8080)
                }
            }
        },
        Shape::Any { .. } => match name {
            "additionalProperties" | "additionalItems" => true.into(),
            "items" => json!([{ "type": "string" }, { "minLength": 0 }]),
            "dependencies" => json!(["a", "b"]),
            "status" => json!({}),
            _ => json!({ "any": ["thing", 1, null] }),
        },
        Shape::List(items, _) if depth < 12 => {
            json!([
                sample(view.at(*items), name, depth + 1),
                sample(view.at(*items), name, depth + 2)
            ])
        }
        Shape::List(..) => json!([]),
        Shape::Map(values) => json!({ "key": sample(view.at(*values), name, depth + 1) }),
        Shape::Struct(fields) => {
            let mut out = Map::new();
            for field in fields.fields.iter().filter(|_| depth < 12) {
                let inner = view.of(field);
                // Schemas within schemas would double at each level.
                if fields.short_name() == "JSONSchemaProps"
                    && depth > 5
                    && matches!(inner.shape(), Shape::List(..) | Shape::Map(_) | Shape::Struct(_))
                {
                    continue;
                }
                let value = sample(inner, &field.name, depth + 1);
                if value != json!([]) {
                    out.insert(field.name.to_string(), value);
                }
            }
            Value::Object(out)
        }
    }
}

/// Leaves out what the table does not know.
fn known(view: View<'_>, value: &mut Value, missing: &mut Vec<String>) {
    match (view.shape(), value) {
        (Shape::Struct(fields), Value::Object(map)) => {
            let message = facts::message(&fields.name);
            let mut numbered = Vec::new();
            let mut rest: Vec<&facts::Message> = message.into_iter().collect();
            while let Some(message) = rest.pop() {
                for (_, entry) in &message.entries {
                    match entry {
                        facts::Entry::Field(fact) => numbered.push(fact.name),
                        facts::Entry::Inline(inner) => rest.push(inner),
                    }
                }
            }
            map.retain(|name, _| {
                let keep = numbered.contains(&name.as_str());
                if !keep {
                    missing.push(place(view, name));
                }
                keep
            });
            map.iter_mut()
                .for_each(|(name, value)| known(view.member(name).unwrap(), value, missing));
        }
        (Shape::List(items, _), Value::Array(list)) => {
            list.iter_mut()
                .for_each(|value| known(view.at(*items), value, missing));
        }
        (Shape::Map(values), Value::Object(map)) => {
            map.values_mut()
                .for_each(|value| known(view.at(*values), value, missing));
        }
        _ => {}
    }
}

/// Kinds that are served only as JSON.
const WITHOUT_FORM: &[&str] = &["Info", "WatchEvent", "Patch"];

fn kinds() -> impl Iterator<Item = (String, &'static str, View<'static>)> {
    let schema = Schema::builtin();
    schema
        .kinds
        .iter()
        .filter(|(gvk, _)| !WITHOUT_FORM.contains(&&*gvk.kind))
        .map(|(gvk, name)| {
            (
                crate::kinds::api_version(&gvk.group, &gvk.version).into_owned(),
                &*gvk.kind,
                schema.definition(name).unwrap(),
            )
        })
}

#[test]
fn every_kind_survives_the_round_trip() {
    let mut count = 0;
    let mut missing = Vec::new();
    for (api_version, kind, view) in kinds() {
        let mut object = sample(view, kind, 0);
        known(view, &mut object, &mut missing);
        object["apiVersion"] = api_version.clone().into();
        object["kind"] = kind.into();
        let body = encode(&object).unwrap_or_else(|error| panic!("{api_version} {kind}: {error}"));
        let envelope = Envelope::open(&body).unwrap();
        assert_eq!(
            (envelope.api_version, envelope.kind),
            (api_version.as_str(), kind)
        );
        let back = envelope
            .object(view, kind)
            .unwrap_or_else(|error| panic!("{api_version} {kind}: {error}"));
        assert_eq!(back, object, "{api_version} {kind}");
        count += 1;
    }
    assert!(count > 120, "{count} kinds");
    missing.retain(|field| !field.ends_with(".apiVersion") && !field.ends_with(".kind"));
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_table_fits_the_schema() {
    let schema = Schema::builtin();
    for (name, message) in facts::parse(facts::table()).unwrap() {
        let name = if name.starts_with("io.k8s.") {
            name.to_owned()
        } else {
            format!("io.k8s.api.{name}")
        };
        let view = schema
            .definition(&name)
            .unwrap_or_else(|| panic!("{name} is no type"));
        let mut rest = vec![&message];
        while let Some(message) = rest.pop() {
            for (_, entry) in &message.entries {
                match entry {
                    facts::Entry::Field(fact) => {
                        assert!(view.field(fact.name).is_some(), "{name}.{}", fact.name)
                    }
                    facts::Entry::Inline(inner) => rest.push(inner),
                }
            }
        }
    }
    assert_eq!(facts::parse("[a.B]\n  x=1\n\n  x=1").err(), Some(4));
    assert_eq!(facts::parse("[a.B]\n  x=one").err(), Some(2));
    assert_eq!(facts::parse("  x=1").err(), Some(1));
}

#[test]
fn every_kind_that_is_served_has_a_form() {
    for kind in crate::kinds::Kinds::builtin().iter() {
        let api_version = kind.api_version();
        assert!(has_form(&api_version, &kind.kind), "{api_version} {}", kind.kind);
        if kind.serves("list") {
            let list = ListWriter::new(&api_version, &kind.list_kind, &json!({}));
            assert!(list.is_ok(), "{api_version} {}", kind.list_kind);
        }
    }
}

fn decode(kind: &str, body: &[u8]) -> Result<Value, Error> {
    let view = kinds().find(|(_, name, _)| *name == kind).unwrap().2;
    Envelope::open(body)?.object(view, kind)
}

/// A body around the bytes of an object.
fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::new();
    wire::put_bytes(&mut type_meta, 1, api_version.as_bytes());
    wire::put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = MAGIC.to_vec();
    wire::put_bytes(&mut out, 1, &type_meta);
    wire::put_bytes(&mut out, 2, raw);
    out
}

#[test]
fn empty_scalars_of_go_clients_are_absent() {
    // spec { restartPolicy "", terminationGracePeriodSeconds 0, nodeName "", containers {
    //   name "", image "" } }
    let pod = [
        0x12, 14, 0x1a, 0, 0x20, 0, 0x52, 0, 0x12, 6, 0x0a, 0, 0x12, 0, 0x32, 0,
    ];
    let want = json!({ "apiVersion": "v1", "kind": "Pod",
        "spec": { "containers": [{ "name": "" }], "terminationGracePeriodSeconds": 0 } });
    // `ports` of the container (6) is a list: an empty message is one port, whose number JSON has.
    let got = decode("Pod", &body("v1", "Pod", &pod)).unwrap();
    let mut want_ports = want.clone();
    want_ports["spec"]["containers"][0]["ports"] = json!([{}]);
    assert_eq!(got, want_ports);
}

#[test]
fn the_bytes_are_those_of_kubernetes() {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a",
        "creationTimestamp": "1970-01-01T00:00:02Z" }, "data": { "k": "v" } });
    let want = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x13\x0a\x09\x0a\x01a\x42\x04\x08\x02\x10\x00\x12\x06\x0a\x01k\x12\x01v\x1a\x00\x22\x00";
    assert_eq!(encode(&object).unwrap(), want);
    assert_eq!(decode("ConfigMap", want).unwrap(), object);
}

#[test]
fn lists_watch_frames_and_metadata() {
    let items = [
        json!({ "metadata": { "name": "a" } }),
        json!({ "metadata": { "name": "b" } }),
    ];
    let metadata = json!({ "resourceVersion": "7" });
    for (api_version, kind) in [
        ("v1", "SecretList"),
        ("meta.k8s.io/v1", "PartialObjectMetadataList"),
    ] {
        let mut writer = ListWriter::new(api_version, kind, &metadata).unwrap();
        items.iter().for_each(|item| writer.push(item).unwrap());
        let whole = json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "items": items });
        assert_eq!(writer.finish(), encode(&whole).unwrap());
    }
    assert!(ListWriter::new("example.org/v1", "ThingList", &metadata).is_err());
    assert!(
        has_form("v1", "Status")
            && !has_form("example.org/v1", "Thing")
            && !has_form("meta.k8s.io/v1", "Table")
    );
    let mut frame = Vec::new();
    watch_frame(&mut frame, "ADDED", b"xyz");
    assert_eq!(frame, b"\0\0\0\x0e\x0a\x05ADDED\x12\x05\x0a\x03xyz");
}

#[test]
fn bodies_that_are_refused() {
    assert_eq!(Envelope::open(b"{}"), Err(Error::NoMagic));
    assert_eq!(Envelope::open(b""), Err(Error::NoMagic));
    let cases: [(&[u8], &str); 8] = [
        (b"\x0a", "protobuf: a number is cut off or too long"),
        (b"\x0a\x05ab", "protobuf: a field is cut off"),
        (b"\x00\x01", "protobuf: a field has no valid number"),
        (b"\x0f", "protobuf: a field has no valid wire type"),
        (
            b"\x08\x01",
            "protobuf: field Pod.metadata cannot have wire type varint",
        ),
        (
            b"\x12\x03\x52\x01\xff",
            "protobuf: field PodSpec.nodeName: text is not valid UTF-8",
        ),
        (
            b"\x0a\x0d\x42\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10",
            "protobuf: a number is cut off or too long",
        ),
        (
            b"\x0a\x0c\x42\x0a\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
            "protobuf: field ObjectMeta.creationTimestamp: 9223372036854775807 seconds and 0 nanoseconds are no time",
        ),
    ];
    for (raw, want) in cases {
        assert_eq!(
            decode("Pod", &body("v1", "Pod", raw)).unwrap_err().to_string(),
            want,
            "{raw:?}"
        );
    }
    let other = decode("Pod", &body("v1", "Service", b"")).unwrap_err();
    assert_eq!(other.to_string(), "the body holds a \"Service\", not a \"Pod\"");
    let mut zipped = body("v1", "Pod", b"");
    wire::put_bytes(&mut zipped, 3, b"gzip");
    assert_eq!(decode("Pod", &zipped), Err(Error::Encoding("gzip".into())));
    // Unknown fields of every wire type are passed over, groups too.
    let unknown =
        b"\xf8\x07\x01\xf9\x07\0\0\0\0\0\0\0\0\xfd\x07\0\0\0\0\xfb\x07\x08\x01\xfc\x07\xfa\x07\x01a";
    assert_eq!(
        decode("Pod", &body("v1", "Pod", unknown)).unwrap(),
        json!({ "apiVersion": "v1", "kind": "Pod" })
    );
}

#[test]
fn depth_and_size_have_limits() {
    // A schema whose `not` (28) has a `not` has a `not`.
    let mut raw = Vec::new();
    for _ in 0..200 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 28, &raw);
        raw = outer;
    }
    // CustomResourceDefinition.spec.versions.schema.openAPIV3Schema
    for number in [1, 4, 7, 2] {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, number, &raw);
        raw = outer;
    }
    let body_of = |raw: &[u8], kind: &str| body("apiextensions.k8s.io/v1", kind, raw);
    assert_eq!(
        decode(
            "CustomResourceDefinition",
            &body_of(&raw, "CustomResourceDefinition")
        ),
        Err(Error::TooDeep)
    );
    // Containers of two bytes each.
    let mut spec = Vec::new();
    wire::put_bytes(&mut spec, 2, &[0x12, 0].repeat(MAX_VALUES + 1));
    assert_eq!(decode("Pod", &body("v1", "Pod", &spec)), Err(Error::TooLarge));
    let deep = (0..300).fold(json!({}), |inner, _| json!({ "not": inner }));
    let crd = json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "spec": { "versions": [{ "schema": { "openAPIV3Schema": deep } }] } });
    assert_eq!(encode(&crd), Err(Error::TooDeep));
}

#[test]
fn values_that_cannot_be_written_are_named() {
    let pod = |spec: Value| json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec });
    let error = encode(&pod(json!({ "nodeName": 3 }))).unwrap_err().to_string();
    assert_eq!(error, "protobuf: field PodSpec.nodeName: cannot hold a number");
    let error = encode(&pod(json!({ "containers": {} }))).unwrap_err().to_string();
    assert_eq!(error, "protobuf: field PodSpec.containers: cannot hold an object");
}

/// Every cut and every flipped byte of a real body is refused or read, never a panic.
#[test]
fn damaged_bodies_never_panic() {
    let (_, _, view) = kinds().find(|(_, kind, _)| *kind == "CronJob").unwrap();
    let mut object = sample(view, "x", 6);
    object["apiVersion"] = "batch/v1".into();
    object["kind"] = "CronJob".into();
    let whole = encode(&object).unwrap();
    let mut read = 0;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] = damaged[at].wrapping_add(0x55);
        for bytes in [&whole[..at], &damaged] {
            read += usize::from(
                Envelope::open(bytes).is_ok_and(|envelope| envelope.object(view, "CronJob").is_ok()),
            );
        }
    }
    // Most of what is flipped is text; most of what is cut is not readable.
    assert!(
        read > 0 && read < 2 * whole.len(),
        "{read} of {}",
        2 * whole.len()
    );
}

/// Compares with objects that Kubernetes wrote: NAME.json and NAME.pb in the folder that
/// SKIFF_GOLDEN_OBJECTS names.
#[test]
fn golden_objects_are_the_same() {
    let Some(folder) = std::env::var_os("SKIFF_GOLDEN_OBJECTS") else {
        println!("skipped: SKIFF_GOLDEN_OBJECTS names no folder");
        return;
    };
    let (mut compared, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let object: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let bytes = std::fs::read(path.with_extension("pb")).unwrap();
        let (api_version, kind) = (crate::meta::api_version(&object), crate::meta::kind(&object));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(view) = Schema::builtin()
            .kind(group, version, kind)
            .filter(|_| has_form(api_version, kind))
        else {
            println!("not served: {api_version} {kind}");
            continue;
        };
        compared += 1;
        let back = Envelope::open(&bytes).and_then(|envelope| envelope.object(view, kind));
        if back.as_ref() != Ok(&object) {
            wrong.push(format!(
                "decode {api_version} {kind}: {}",
                difference(&object, &back.unwrap_or_else(|e| e.to_string().into()), "")
            ));
        }
        match encode(&object) {
            Ok(written) if written == bytes => {}
            Ok(written) => {
                let at = written.iter().zip(&bytes).take_while(|(a, b)| a == b).count();
                wrong.push(format!(
                    "encode {api_version} {kind}: {} and {} bytes, differ at {at}",
                    written.len(),
                    bytes.len()
                ));
            }
            Err(error) => wrong.push(format!("encode {api_version} {kind}: {error}")),
        }
    }
    println!("{compared} objects compared");
    assert!(
        compared > 60 && wrong.is_empty(),
        "{compared} compared, {} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// The first place where two values differ.
fn difference(a: &Value, b: &Value, path: &str) -> String {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for key in x.keys().chain(y.keys()) {
                let (left, right) = (x.get(key), y.get(key));
                if left != right {
                    return difference(
                        left.unwrap_or(&Value::Null),
                        right.unwrap_or(&Value::Null),
                        &format!("{path}.{key}"),
                    );
                }
            }
            String::new()
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => x
            .iter()
            .zip(y)
            .enumerate()
            .find(|(_, (left, right))| left != right)
            .map(|(at, (left, right))| difference(left, right, &format!("{path}[{at}]")))
            .unwrap_or_default(),
        _ => format!("{path}: {a} / {b}"),
    }
}
