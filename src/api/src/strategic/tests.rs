use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::Schema;

fn pod() -> View<'static> {
    Schema::builtin().kind("", "v1", "Pod").expect("built in")
}

fn patched(kind: (&str, &str), document: Value, patch: Value) -> Result<Value, PatchError> {
    let view = Schema::builtin().kind(kind.0, "v1", kind.1).expect("built in");
    strategic_merge(view, document, patch.to_string().as_bytes())
}

fn names(value: &Value) -> Vec<&str> {
    let items = value["spec"]["containers"].as_array().expect("containers");
    items.iter().filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn lists_are_merged_by_key() {
    let document =
        json!({ "spec": { "containers": [{ "name": "a", "image": "x" }, { "name": "b", "image": "y" }] } });
    let patch = json!({ "spec": { "containers": [{ "name": "b", "image": "z" }, { "name": "c" }] } });
    let result = patched(("", "Pod"), document, patch).expect("a patch");
    assert_eq!(
        result,
        json!({ "spec": { "containers": [{ "name": "a", "image": "x" }, { "name": "b", "image": "z" }, { "name": "c" }] } })
    );
}

#[test]
fn new_items_come_before_those_of_the_original_unless_ordered() {
    let document = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } });
    let patch = json!({ "spec": { "containers": [{ "name": "c" }] } });
    assert_eq!(
        names(&patched(("", "Pod"), document.clone(), patch).expect("a patch")),
        ["c", "a", "b"]
    );
    let patch = json!({ "spec": {
        "$setElementOrder/containers": [{ "name": "b" }, { "name": "c" }, { "name": "a" }],
        "containers": [{ "name": "c" }],
    } });
    assert_eq!(
        names(&patched(("", "Pod"), document.clone(), patch).expect("a patch")),
        ["b", "c", "a"]
    );
    let patch = json!({ "spec": { "$setElementOrder/containers": [{ "name": "b" }, { "name": "a" }] } });
    assert_eq!(
        names(&patched(("", "Pod"), document.clone(), patch).expect("a patch")),
        ["b", "a"]
    );
    let patch = json!({ "spec": {
        "$setElementOrder/containers": [{ "name": "a" }],
        "containers": [{ "name": "z" }],
    } });
    assert_eq!(
        patched(("", "Pod"), document, patch)
            .expect_err("contradiction")
            .code(),
        400
    );
}

#[test]
fn directives_do_what_they_say() {
    let cases = [
        // (kind, original, patch, result)
        (
            ("", "Pod"),
            json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } }),
            json!({ "spec": { "containers": [{ "$patch": "delete", "name": "a" }] } }),
            json!({ "spec": { "containers": [{ "name": "b" }] } }),
        ),
        (
            ("", "Pod"),
            json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } }),
            json!({ "spec": { "containers": [{ "$patch": "replace" }, { "name": "c" }] } }),
            json!({ "spec": { "containers": [{ "name": "c" }] } }),
        ),
        (
            ("", "Pod"),
            json!({ "metadata": { "labels": { "a": "1", "b": "2" } } }),
            json!({ "metadata": { "labels": { "$patch": "replace", "c": "3" } } }),
            json!({ "metadata": { "labels": { "c": "3" } } }),
        ),
        (
            ("", "Pod"),
            json!({ "spec": { "securityContext": { "runAsUser": 1 } } }),
            json!({ "spec": { "securityContext": { "$patch": "delete" } } }),
            json!({ "spec": { "securityContext": {} } }),
        ),
        (
            ("", "Pod"),
            json!({ "metadata": { "finalizers": ["a", "b", "c"] } }),
            json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["b"] } }),
            json!({ "metadata": { "finalizers": ["a", "c"] } }),
        ),
        (
            ("", "Pod"),
            json!({ "metadata": { "finalizers": ["a", "b"] } }),
            json!({ "metadata": { "finalizers": ["b", "c"], "$setElementOrder/finalizers": ["a", "b", "c"] } }),
            json!({ "metadata": { "finalizers": ["a", "b", "c"] } }),
        ),
        (
            ("apps", "Deployment"),
            json!({ "spec": { "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } } } }),
            json!({ "spec": { "strategy": { "$retainKeys": ["type"], "type": "Recreate" } } }),
            json!({ "spec": { "strategy": { "type": "Recreate" } } }),
        ),
        (
            ("", "Pod"),
            json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {} }] } }),
            json!({ "spec": { "volumes": [{ "name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": { "path": "/x" } }] } }),
            json!({ "spec": { "volumes": [{ "name": "v", "hostPath": { "path": "/x" } }] } }),
        ),
        // Lists without a strategy are replaced, null removes, new values lose their directives.
        (
            ("", "Pod"),
            json!({ "spec": { "nodeName": "n", "tolerations": [{ "key": "a" }] } }),
            json!({ "spec": { "nodeName": null, "tolerations": [{ "key": "b" }],
                "dnsConfig": { "$retainKeys": ["searches"], "searches": ["x"], "options": null } } }),
            json!({ "spec": { "tolerations": [{ "key": "b" }], "dnsConfig": { "searches": ["x"] } } }),
        ),
        (
            ("", "Service"),
            json!({ "spec": { "ports": [{ "port": 80, "nodePort": 30000 }, { "port": 443 }] } }),
            json!({ "spec": { "ports": [{ "port": 80, "name": "web" }] } }),
            json!({ "spec": { "ports": [{ "port": 80, "nodePort": 30000, "name": "web" }, { "port": 443 }] } }),
        ),
    ];
    for (kind, original, patch, result) in cases {
        assert_eq!(patched(kind, original, patch.clone()), Ok(result), "{patch}");
    }
}

#[test]
fn patches_that_make_no_sense_are_refused() {
    let document = json!({ "spec": { "containers": [{ "name": "a" }], "strategy": { "type": "x" } } });
    for patch in [
        json!({ "spec": { "containers": [{ "image": "no name" }] } }),
        json!({ "spec": { "containers": [{ "$patch": "delete" }] } }),
        json!({ "spec": { "containers": [{ "name": "a", "$patch": "explode" }] } }),
        json!({ "spec": { "$patch": "explode" } }),
        json!({ "spec": { "$retainKeys": ["a"], "nodeName": "x" } }),
        json!({ "spec": { "$setElementOrder/containers": {} } }),
        json!([]),
    ] {
        let error = patched(("", "Pod"), document.clone(), patch.clone()).expect_err(&patch.to_string());
        assert_eq!(error.code(), 400, "{patch}");
    }
}

fn container() -> impl Strategy<Value = Value> {
    (
        "[a-e]",
        "[a-c]{1,2}",
        proptest::collection::vec(("[a-c]", "[a-z]"), 0..3),
    )
        .prop_map(|(name, image, env)| {
            let env: std::collections::BTreeMap<_, _> = env.into_iter().collect();
            let env: Vec<Value> = env
                .iter()
                .map(|(name, value)| json!({ "name": name, "value": value }))
                .collect();
            json!({ "name": name, "image": image, "env": env })
        })
}

fn object() -> impl Strategy<Value = Value> {
    proptest::collection::vec(container(), 0..5).prop_map(|containers| {
        let mut seen = HashSet::new();
        let containers: Vec<Value> = containers
            .into_iter()
            .filter(|item| seen.insert(item["name"].to_string()))
            .collect();
        json!({ "spec": { "containers": containers, "tolerations": [{ "key": "k" }] } })
    })
}

proptest! {
    #[test]
    fn an_object_is_a_patch_of_itself_that_changes_nothing(object in object()) {
        let patch = object.as_object().cloned().expect("an object");
        prop_assert_eq!(strategic_merge_value(pod(), object.clone(), patch), Ok(object));
    }

    #[test]
    fn an_empty_patch_changes_nothing(object in object()) {
        prop_assert_eq!(strategic_merge_value(pod(), object.clone(), Map::new()), Ok(object));
    }

    #[test]
    fn a_patch_applied_twice_is_a_patch_applied_once(object in object(), patch in object()) {
        let patch = patch.as_object().cloned().expect("an object");
        let once = strategic_merge_value(pod(), object, patch.clone()).expect("a patch");
        let twice = strategic_merge_value(pod(), once.clone(), patch).expect("a patch");
        prop_assert_eq!(once, twice);
    }
}
