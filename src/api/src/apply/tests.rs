use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::Schema;

const T1: &str = "2026-01-01T00:00:00Z";
const T2: &str = "2026-01-02T00:00:00Z";

fn view(group: &str, kind: &str) -> View<'static> {
    Schema::builtin().kind(group, "v1", kind).expect("built in")
}

fn write<'a>(manager: &'a str, time: &'a str) -> Write<'a> {
    Write {
        view: view("apps", "Deployment"),
        api_version: "apps/v1",
        subresource: "",
        manager,
        time,
        reset: &[&["status"]],
    }
}

fn status_write<'a>(manager: &'a str, time: &'a str) -> Write<'a> {
    Write {
        subresource: "status",
        reset: &[&["spec"]],
        ..write(manager, time)
    }
}

fn config(spec: Value) -> Value {
    json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": spec })
}

fn without_managers(mut object: Value) -> Value {
    object["metadata"]
        .as_object_mut()
        .expect("metadata")
        .remove("managedFields");
    object
}

fn fields_of(object: &Value, manager: &str) -> Value {
    let list = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    list.iter()
        .find(|entry| entry["manager"] == manager)
        .map(|entry| entry["fieldsV1"].clone())
        .unwrap_or_default()
}

fn containers(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]["containers"]
}

fn pod_spec(containers: Value) -> Value {
    json!({ "template": { "spec": { "containers": containers } } })
}

#[test]
fn a_new_object_belongs_to_who_applied_it() {
    let applied = json!({ "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web", "labels": { "app": "web" }, "finalizers": ["x/y"] },
        "spec": { "replicas": 1, "selector": { "matchLabels": { "app": "web" } }, "template": { "spec": {
            "containers": [{ "name": "a", "image": "i", "args": ["1"], "resources": {},
                "ports": [{ "containerPort": 80 }] }] } } } });
    let object = apply(&write("me", T1), None, &applied, false).expect("applied");
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{ "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "manager": "me", "operation": "Apply", "time": T1,
            "fieldsV1": {
                "f:metadata": { "f:labels": { "f:app": {} }, "f:finalizers": { "v:\"x/y\"": {} } },
                "f:spec": { "f:replicas": {}, "f:selector": {}, "f:template": { "f:spec": { "f:containers": {
                    "k:{\"name\":\"a\"}": { ".": {}, "f:args": {}, "f:image": {}, "f:name": {}, "f:resources": {},
                        "f:ports": { "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {} } } }
                } } } }
            } }])
    );
    assert_eq!(without_managers(object), applied);
}

#[test]
fn fields_that_are_no_longer_applied_are_removed() {
    let first = config(
        json!({ "replicas": 1, "paused": true, "template": { "spec": { "nodeName": "n",
        "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }] } } }),
    );
    let object = apply(&write("me", T1), None, &first, false).expect("applied");
    let second = config(
        json!({ "replicas": 1, "template": { "spec": { "containers": [{ "name": "b", "image": "i" }] } } }),
    );
    let object = apply(&write("me", T2), Some(&object), &second, false).expect("applied");
    assert_eq!(object["spec"], second["spec"]);
    assert_eq!(object["metadata"]["managedFields"][0]["time"], T2);
    let nothing = config(json!({}));
    let object = apply(&write("me", T2), Some(&object), &nothing, false).expect("applied");
    assert_eq!(object["spec"], json!({}));
}

#[test]
fn what_others_own_stays() {
    let object = apply(
        &write("me", T1),
        None,
        &config(json!({ "replicas": 1, "paused": true })),
        false,
    )
    .expect("applied");
    let object = apply(
        &write("you", T1),
        Some(&object),
        &config(json!({ "paused": true })),
        false,
    )
    .expect("shared");
    let object = apply(
        &write("me", T1),
        Some(&object),
        &config(json!({ "replicas": 1 })),
        false,
    )
    .expect("applied");
    assert_eq!(object["spec"], json!({ "replicas": 1, "paused": true }));
    let nothing = json!({ "metadata": { "name": "web" } });
    let object = apply(&write("you", T1), Some(&object), &nothing, false).expect("applied");
    assert_eq!(object["spec"], json!({ "replicas": 1 }));
    assert_eq!(fields_of(&object, "you"), Value::Null);
}

#[test]
fn a_parent_that_somebody_else_owns_a_part_of_stays() {
    let mine = pod_spec(json!([{ "name": "a", "image": "i" }]));
    let object = apply(&write("me", T1), None, &config(mine), false).expect("applied");
    let yours = pod_spec(json!([{ "name": "a", "tty": true }]));
    let object = apply(&write("you", T1), Some(&object), &config(yours), false).expect("applied");
    let object = apply(&write("me", T1), Some(&object), &config(json!({})), false).expect("applied");
    assert_eq!(containers(&object), &json!([{ "name": "a", "tty": true }]));
}

#[test]
fn what_nobody_owns_stays() {
    let object = apply(&write("me", T1), None, &config(json!({ "replicas": 1 })), false).expect("applied");
    let mut defaulted = object.clone();
    defaulted["spec"]["revisionHistoryLimit"] = 10.into();
    let object = apply(
        &write("me", T1),
        Some(&defaulted),
        &config(json!({ "paused": true })),
        false,
    )
    .expect("applied");
    assert_eq!(
        object["spec"],
        json!({ "revisionHistoryLimit": 10, "paused": true })
    );
}

#[test]
fn conflicts_name_managers_and_fields() {
    let mut object = config(json!({ "replicas": 1, "paused": true }));
    track_update(&write("kubectl", T1), None, &mut object);
    let wish = config(json!({ "replicas": 2 }));
    let error = apply(&write("me", T2), Some(&object), &wish, false).expect_err("owned by kubectl");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl\" using apps/v1: .spec.replicas"
    );
    let status = error.status().to_value();
    assert_eq!(
        (&status["code"], &status["reason"]),
        (&json!(409), &json!("Conflict"))
    );
    assert_eq!(
        status["details"]["causes"],
        json!([{ "reason": "FieldManagerConflict", "message": "conflict with \"kubectl\" using apps/v1",
            "field": ".spec.replicas" }])
    );
    let object = apply(
        &write("you", T1),
        Some(&object),
        &config(json!({ "paused": true })),
        false,
    )
    .expect("the same");
    let error = apply(
        &write("me", T2),
        Some(&object),
        &config(json!({ "replicas": 2, "paused": false })),
        false,
    );
    assert_eq!(
        error.expect_err("conflicts").to_string(),
        "Apply failed with 3 conflicts: conflicts with \"kubectl\" using apps/v1:\n- .spec.paused\n- .spec.replicas\n\
         conflicts with \"you\":\n- .spec.paused"
    );
    let forced = apply(&write("me", T2), Some(&object), &wish, true).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(
        fields_of(&forced, "kubectl"),
        json!({ "f:spec": { "f:paused": {} } })
    );
    assert_eq!(
        fields_of(&forced, "me"),
        json!({ "f:spec": { "f:replicas": {} } })
    );
}

#[test]
fn the_same_value_is_shared_not_fought_over() {
    let first = config(json!({ "template": { "spec": { "containers": [
        { "name": "a", "resources": { "limits": { "cpu": "500m" } } }] } } }));
    let object = apply(&write("me", T1), None, &first, false).expect("applied");
    let again = config(json!({ "template": { "spec": { "containers": [
        { "name": "a", "resources": { "limits": { "cpu": 0.5 } } }] } } }));
    let object = apply(&write("you", T2), Some(&object), &again, false).expect("one amount");
    assert_eq!(containers(&object)[0]["resources"]["limits"]["cpu"], "500m");
}

#[test]
fn applying_twice_changes_nothing_not_even_the_time() {
    let applied =
        config(json!({ "replicas": 1, "template": { "spec": { "containers": [{ "name": "a" }] } } }));
    let once = apply(&write("me", T1), None, &applied, false).expect("applied");
    let twice = apply(&write("me", T2), Some(&once), &applied, false).expect("applied");
    assert_eq!(once, twice);
}

#[test]
fn keyed_lists_keep_their_order() {
    let object = apply(
        &write("me", T1),
        None,
        &config(pod_spec(
            json!([{ "name": "a" }, { "name": "b" }, { "name": "c" }]),
        )),
        false,
    )
    .expect("applied");
    let yours = config(pod_spec(json!([{ "name": "x" }, { "name": "b" }])));
    let object = apply(&write("you", T1), Some(&object), &yours, false).expect("applied");
    let names: Vec<&str> = containers(&object)
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|item| item["name"].as_str())
        .collect();
    assert_eq!(names, ["a", "x", "b", "c"]);
}

#[test]
fn configurations_that_do_not_fit_are_refused() {
    let cases = [
        (
            config(json!({ "foo": 1 })),
            "(web; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema",
        ),
        (
            config(pod_spec(json!([{ "name": "a" }, { "name": "a" }]))),
            "(web; apps/v1, Kind=Deployment): .spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            config(pod_spec(json!({}))),
            "(web; apps/v1, Kind=Deployment): .spec.template.spec.containers: expected list",
        ),
    ];
    for (applied, why) in cases {
        let error = apply(&write("me", T1), None, &applied, false).expect_err(why);
        assert_eq!(
            error.to_string(),
            format!("failed to create typed patch object: {why}")
        );
    }
    let mut own = config(json!({}));
    own["metadata"]["managedFields"] = json!([{ "manager": "x" }]);
    assert_eq!(
        apply(&write("me", T1), None, &own, false),
        Err(ApplyError::ManagedFields)
    );
    let wrong = config(json!({ "replicas": "many" }));
    assert!(matches!(
        apply(&write("me", T1), None, &wrong, false),
        Err(ApplyError::Invalid(_))
    ));
}

#[test]
fn a_created_object_belongs_to_its_creator() {
    let mut object = json!({ "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web", "uid": "u", "labels": { "app": "web" } },
        "spec": { "replicas": 1, "strategy": {}, "template": { "metadata": { "labels": { "app": "web" } },
            "spec": { "containers": [{ "name": "a", "resources": {}, "ports": [{ "containerPort": 80, "protocol": "TCP" }] }],
                "securityContext": {} } } }, "status": {} });
    track_update(&write("kubectl-create", T1), None, &mut object);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{ "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "manager": "kubectl-create", "operation": "Update",
            "time": T1, "fieldsV1": {
                "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
                "f:spec": { "f:replicas": {}, "f:template": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
                    "f:spec": { "f:containers": { "k:{\"name\":\"a\"}": { ".": {}, "f:name": {}, "f:resources": {},
                        "f:ports": { ".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}":
                            { ".": {}, "f:containerPort": {}, "f:protocol": {} } } } },
                        "f:securityContext": {} } } }
            } }])
    );
}

#[test]
fn updates_take_what_they_change() {
    let object = apply(
        &write("me", T1),
        None,
        &config(json!({ "replicas": 1, "paused": true })),
        false,
    )
    .expect("applied");
    let mut scaled = object.clone();
    scaled["spec"]["replicas"] = 5.into();
    track_update(&write("hpa", T2), Some(&object), &mut scaled);
    assert_eq!(fields_of(&scaled, "me"), json!({ "f:spec": { "f:paused": {} } }));
    assert_eq!(
        fields_of(&scaled, "hpa"),
        json!({ "f:spec": { "f:replicas": {} } })
    );
    let mut gone = scaled.clone();
    gone["spec"].as_object_mut().expect("spec").remove("paused");
    track_update(&write("x", T2), Some(&scaled), &mut gone);
    assert_eq!(fields_of(&gone, "me"), Value::Null);
    assert_eq!(fields_of(&gone, "x"), Value::Null);
}

#[test]
fn an_update_that_changes_nothing_leaves_the_list_alone() {
    let mut object = config(json!({ "replicas": 1 }));
    track_update(&write("kubectl", T1), None, &mut object);
    let mut same = object.clone();
    track_update(&write("other", T2), Some(&object), &mut same);
    assert_eq!(same, object);
    // Clients that do not know of managed fields drop them.
    let mut dropped = without_managers(object.clone());
    track_update(&write("other", T2), Some(&object), &mut dropped);
    assert_eq!(dropped, object);
}

#[test]
fn subresources_are_managers_of_their_own() {
    let mut object = config(json!({ "replicas": 1 }));
    track_update(&write("kcm", T1), None, &mut object);
    let mut new = object.clone();
    new["status"] = json!({ "replicas": 1, "conditions": [{ "type": "Available", "status": "True" }] });
    new["spec"]["replicas"] = 7.into();
    track_update(&status_write("kcm", T2), Some(&object), &mut new);
    let list = new["metadata"]["managedFields"].as_array().expect("list");
    assert_eq!(list.len(), 2);
    assert_eq!(list[1]["subresource"], "status");
    assert_eq!(
        list[1]["fieldsV1"],
        json!({ "f:status": { ".": {}, "f:replicas": {}, "f:conditions": { ".": {},
            "k:{\"type\":\"Available\"}": { ".": {}, "f:status": {}, "f:type": {} } } } })
    );
    let mut applied = config(json!({ "paused": true }));
    applied["status"] = json!({ "replicas": 3 });
    let object = apply(&write("me", T1), Some(&new), &applied, false).expect("status does not count here");
    assert_eq!(fields_of(&object, "me"), json!({ "f:spec": { "f:paused": {} } }));
}

#[test]
fn managed_fields_can_be_reset_and_rewritten() {
    let mut object = config(json!({ "replicas": 1 }));
    track_update(&write("kubectl", T1), None, &mut object);
    let mut reset = object.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    track_update(&write("kubectl", T2), Some(&object), &mut reset);
    assert_eq!(reset["metadata"].get("managedFields"), None);
    // Not tracked before the next apply, which first says who owned what was there.
    let mut changed = reset.clone();
    changed["spec"]["replicas"] = 2.into();
    track_update(&write("kubectl", T2), Some(&reset), &mut changed);
    assert_eq!(changed["metadata"].get("managedFields"), None);
    let applied = apply(
        &write("me", T2),
        Some(&changed),
        &config(json!({ "paused": true })),
        false,
    )
    .expect("applied");
    assert_eq!(
        fields_of(&applied, "before-first-apply"),
        json!({ "f:spec": { "f:replicas": {} } })
    );
    let mut rewritten = object.clone();
    rewritten["metadata"]["managedFields"][0]["manager"] = "other".into();
    track_update(&write("kubectl", T2), Some(&object), &mut rewritten);
    assert_eq!(
        fields_of(&rewritten, "other"),
        json!({ "f:spec": { "f:replicas": {} } })
    );
    let mut broken = object.clone();
    broken["metadata"]["managedFields"] = json!([{ "manager": "x", "operation": "Nonsense" }]);
    track_update(&write("kubectl", T2), Some(&object), &mut broken);
    assert_eq!(broken, object);
}

#[test]
fn kubectl_takes_over_from_its_client_side_apply() {
    let last = config(json!({ "replicas": 1 }));
    let mut object = last.clone();
    object["metadata"]["annotations"] = json!({ LAST_APPLIED: last.to_string() });
    track_update(&write("kubectl-client-side-apply", T1), None, &mut object);
    let wish = config(json!({ "replicas": 2 }));
    assert!(matches!(
        apply(&write("me", T2), Some(&object), &wish, false),
        Err(ApplyError::Conflict(_))
    ));
    let applied = apply(&write("kubectl", T2), Some(&object), &wish, false).expect("its own field");
    assert_eq!(applied["spec"]["replicas"], 2);
    let annotation = applied["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .expect("kept up to date");
    assert_eq!(serde_json::from_str::<Value>(annotation).expect("json"), wish);
    let mut foreign = object.clone();
    foreign["spec"]["paused"] = true.into();
    track_update(&write("someone", T2), Some(&object), &mut foreign);
    let error = apply(
        &write("kubectl", T2),
        Some(&foreign),
        &config(json!({ "paused": false })),
        false,
    );
    assert!(matches!(error, Err(ApplyError::Conflict(conflicts)) if conflicts.len() == 1));
}

#[test]
fn old_updates_are_folded_together() {
    let mut object = config(json!({ "template": { "metadata": { "labels": {} } } }));
    track_update(&write("first", "2025-01-01T00:00:00Z"), None, &mut object);
    for n in 0..20 {
        let mut next = object.clone();
        next["metadata"]["labels"][format!("l{n}")] = "x".into();
        let manager = format!("m{n:02}");
        let time = format!("2026-01-01T00:00:{n:02}Z");
        track_update(&write(&manager, &time), Some(&object), &mut next);
        object = next;
    }
    let list = object["metadata"]["managedFields"].as_array().expect("list");
    assert_eq!(list.len(), MAX_UPDATE_MANAGERS);
    let ancient = fields_of(&object, "ancient-changes");
    assert_eq!(ancient["f:metadata"]["f:labels"]["f:l3"], json!({}));
    let owned: usize = list
        .iter()
        .filter_map(|entry| entry["fieldsV1"]["f:metadata"]["f:labels"].as_object())
        .map(|labels| labels.keys().filter(|key| key.as_str() != ".").count())
        .sum();
    assert_eq!(owned, 20);
}

#[test]
fn custom_resources_are_owned_by_their_schema() {
    let schema = Schema::custom(&json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
        "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
        "plain": { "type": "array", "items": { "type": "string" } },
        "whole": { "type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": { "type": "string" } },
        "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    } } } }))
    .expect("a schema");
    let write = Write {
        view: schema.root(),
        api_version: "x.io/v1",
        ..write("me", T1)
    };
    let applied = json!({ "apiVersion": "x.io/v1", "kind": "X", "metadata": { "name": "a" }, "spec": {
        "set": ["b", "a"], "plain": ["c"], "whole": { "d": "e" }, "free": { "f": { "g": [1] } } } });
    let object = apply(&write, None, &applied, false).expect("applied");
    assert_eq!(
        fields_of(&object, "me"),
        json!({ "f:spec": { "f:set": { "v:\"a\"": {}, "v:\"b\"": {} }, "f:plain": {}, "f:whole": {},
            "f:free": { "f:f": { ".": {}, "f:g": {} } } } })
    );
    let more = json!({ "apiVersion": "x.io/v1", "kind": "X", "metadata": { "name": "a" }, "spec": { "set": ["c"] } });
    let object = apply(
        &Write {
            manager: "you",
            ..write
        },
        Some(&object),
        &more,
        false,
    )
    .expect("applied");
    assert_eq!(object["spec"]["set"], json!(["b", "a", "c"]));
    let object = apply(
        &write,
        Some(&object),
        &json!({ "metadata": { "name": "a" } }),
        false,
    )
    .expect("applied");
    assert_eq!(object["spec"], json!({ "set": ["c"] }));
}

fn spec() -> impl Strategy<Value = Value> {
    let container = (
        "[a-c]",
        proptest::option::of("[x-z]"),
        proptest::option::of(0..3_u16),
    )
        .prop_map(|(name, image, port)| {
            let mut out = json!({ "name": name });
            if let Some(image) = image {
                out["image"] = image.into();
            }
            if let Some(port) = port {
                out["ports"] = json!([{ "containerPort": 80 + port }]);
            }
            out
        });
    (
        proptest::option::of(0..3_i32),
        proptest::collection::btree_map("[a-c]", "[x-z]", 0..3),
        proptest::collection::vec(container, 0..4),
    )
        .prop_map(|(replicas, labels, containers)| {
            let mut seen = std::collections::HashSet::new();
            let containers: Vec<Value> =
                containers.into_iter().filter(|item| seen.insert(item["name"].to_string())).collect();
            let mut out = json!({ "template": { "metadata": { "labels": labels }, "spec": { "containers": containers } } });
            if let Some(replicas) = replicas {
                out["replicas"] = replicas.into();
            }
            out
        })
}

proptest! {
    #[test]
    fn applying_again_is_a_no_op(first in spec(), second in spec(), third in spec()) {
        let object = apply(&write("a", T1), None, &config(first), true).expect("applied");
        let object = apply(&write("b", T1), Some(&object), &config(second), true).expect("applied");
        let applied = config(third);
        let once = apply(&write("a", T1), Some(&object), &applied, true).expect("applied");
        let twice = apply(&write("a", T2), Some(&once), &applied, false).expect("no conflict with oneself");
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn what_is_applied_is_there(first in spec(), second in spec()) {
        let object = apply(&write("a", T1), None, &config(first), true).expect("applied");
        let applied = config(second);
        let object = apply(&write("b", T1), Some(&object), &applied, true).expect("applied");
        let view = view("apps", "Deployment");
        let kept = crate::fields::strict_check(view, merge(view, Some(&object), &applied)).expect("fits").value;
        prop_assert_eq!(kept, object);
    }

    #[test]
    fn applying_nothing_afterwards_leaves_nothing(first in spec()) {
        let object = apply(&write("a", T1), None, &config(first), true).expect("applied");
        let object = apply(&write("a", T1), Some(&object), &json!({ "metadata": { "name": "web" } }), false).expect("applied");
        prop_assert_eq!(object.get("spec"), None);
        prop_assert_eq!(object["metadata"].get("managedFields"), None);
    }

    #[test]
    fn sets_come_back_from_the_wire(spec in spec()) {
        let set = owned_fields(view("apps", "Deployment"), &config(spec));
        prop_assert_eq!(FieldSet::from_value(&set.to_value()), Some(set));
    }
}
