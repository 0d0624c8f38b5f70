//! Custom resources: defined, served, changed, watched and gone.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::Method;
use kube::api::{Api, ApiResource, DynamicObject, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};
use skiff_apiserver::NoNodes;

use crate::harness::Server;
use crate::kubectl::Served;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "description": "What is wanted.", "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10, "description": "How many."},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                "items": {"type": "object", "required": ["port"],
                    "properties": {"port": {"type": "integer"}, "name": {"type": "string"}}}}}},
        "status": {"type": "object", "properties": {"ready": {"type": "integer"}, "selector": {"type": "string"}}}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                    "statusReplicasPath": ".status.ready", "labelSelectorPath": ".status.selector"}},
                 "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                 "selectableFields": [{"jsonPath": ".spec.color"}]},
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema}}]}})
}

fn widget(name: &str, size: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}})
}

#[tokio::test]
async fn a_definition_is_served_at_once() {
    let server = Server::start().await;
    server.get(WIDGETS).await.error(404);
    let made = server.post(CRDS, definition()).await.expect(201);
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(made["status"]["acceptedNames"]["singular"], "widget");
    let established = made["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    assert!(established, "{made}");

    let mut sent = widget("a", json!(3));
    sent["spec"]["wrong"] = json!(1);
    sent["status"] = json!({"ready": 7});
    let answer = server.post(WIDGETS, sent).await;
    assert!(
        answer.headers["warning"]
            .to_str()
            .unwrap()
            .contains("unknown field \\\"spec.wrong\\\""),
        "{:?}",
        answer.headers
    );
    let made = answer.expect(201);
    assert_eq!(made["spec"], json!({"size": 3, "color": "red"}));
    assert_eq!(
        (made.get("status"), &made["metadata"]["generation"]),
        (None, &json!(1))
    );

    let refused = server.post(WIDGETS, widget("b", json!(11))).await.error(422);
    assert_eq!(
        refused,
        "Widget.example.com \"b\" is invalid: spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10"
    );
    server.post(WIDGETS, widget("b", json!("x"))).await.error(422);
    server
        .merge(&format!("{WIDGETS}/a"), json!({"spec": {"color": "pink"}}))
        .await
        .error(422);

    // Status and scale.
    let ready = json!({"status": {"ready": 2, "selector": "a=b"}, "spec": {"size": 9}});
    let status = server
        .merge(&format!("{WIDGETS}/a/status"), ready)
        .await
        .expect(200);
    assert_eq!(
        (&status["status"]["ready"], &status["spec"]["size"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(status["metadata"]["generation"], 1);
    let scale = server
        .merge(&format!("{WIDGETS}/a/scale"), json!({"spec": {"replicas": 5}}))
        .await
        .expect(200);
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (
            &json!({"replicas": 5}),
            &json!({"replicas": 2, "selector": "a=b"})
        )
    );
    let now = server.get(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!(
        (&now["spec"]["size"], &now["metadata"]["generation"]),
        (&json!(5), &json!(2))
    );

    // The other version, in lists too, and field selectors.
    let beta = server.get("/apis/example.com/v1beta1/widgets").await.expect(200);
    assert_eq!(beta["items"][0]["apiVersion"], "example.com/v1beta1");
    let blue = server
        .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dblue"))
        .await
        .expect(200);
    assert_eq!(blue["items"], json!([]));

    // Another storage version: old objects are still shown in the version that was asked for.
    let mut changed = server
        .get(&format!("{CRDS}/widgets.example.com"))
        .await
        .expect(200);
    changed["spec"]["versions"][0]["storage"] = json!(false);
    changed["spec"]["versions"][1]["storage"] = json!(true);
    let changed = server
        .put(&format!("{CRDS}/widgets.example.com"), &changed)
        .await
        .expect(200);
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v1beta1"]));
    for version in ["v1", "v1beta1"] {
        let list = server
            .get(&format!("/apis/example.com/{version}/widgets"))
            .await
            .expect(200);
        assert_eq!(list["items"][0]["apiVersion"], format!("example.com/{version}"));
    }
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let server = Server::start().await;
    let mut webhook = definition();
    webhook["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://example.com"}}});
    let error = server.post(CRDS, webhook).await.error(422);
    assert!(error.contains("conversion webhooks are not called"), "{error}");
    let mut pattern = definition();
    pattern["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"]
        ["pattern"] = json!("(");
    server.post(CRDS, pattern).await.error(422);
    let mut cel = definition();
    cel["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] =
        json!([{"rule": "has(self.spec)"}]);
    let answer = server.post(CRDS, cel).await;
    assert!(
        answer.headers["warning"]
            .to_str()
            .unwrap()
            .contains("not evaluated"),
        "{:?}",
        answer.headers
    );
    answer.expect(201);
    let mut twin = definition();
    twin["metadata"]["name"] = json!("gadgets.example.com");
    twin["spec"]["names"] = json!({"plural": "gadgets", "kind": "Widget"});
    let twin = server.post(CRDS, twin).await.expect(201);
    assert_eq!(
        twin["status"]["conditions"][0]["reason"], "SingularConflict",
        "{twin}"
    );
    server
        .get("/apis/example.com/v1/namespaces/default/gadgets")
        .await
        .error(404);
}

#[tokio::test]
async fn objects_outlive_restarts_and_go_with_their_definition() {
    let server = Server::start().await;
    server.post(CRDS, definition()).await.expect(201);
    for name in ["a", "b"] {
        server.post(WIDGETS, widget(name, json!(1))).await.expect(201);
    }
    let mut held = widget("held", json!(1));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(WIDGETS, held).await.expect(201);
    server.shutdown.cancel();
    let server = Server::with(
        server.store.clone(),
        Arc::new(NoNodes),
        "192.0.2.1:6443".parse().unwrap(),
    )
    .await;
    assert_eq!(
        server.get(WIDGETS).await.expect(200)["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let path = format!("{CRDS}/widgets.example.com");
    let prefix = "/registry/example.com/widgets/";
    let mut gone = server.store.watch(prefix, None).unwrap();
    let going = server.delete(&path).await.expect(200);
    assert_eq!(
        going["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let refused = server.post(WIDGETS, widget("c", json!(1))).await.error(405);
    assert!(refused.contains("terminating"), "{refused}");
    // Two go, one is held back by its finalizer.
    while server.store.snapshot().range(prefix, None).count() > 1 {
        tokio::time::timeout(Duration::from_secs(10), gone.next())
            .await
            .unwrap();
    }
    server.get(&path).await.expect(200);
    let mut definitions = server
        .store
        .watch("/registry/apiextensions.k8s.io/", None)
        .unwrap();
    server
        .merge(
            &format!("{WIDGETS}/held"),
            json!({"metadata": {"finalizers": null}}),
        )
        .await
        .expect(200);
    while server.get(&path).await.code == 200 {
        tokio::time::timeout(Duration::from_secs(10), definitions.next())
            .await
            .unwrap();
    }
    server.get(WIDGETS).await.error(404);
    // Defined again, it starts empty.
    server.post(CRDS, definition()).await.expect(201);
    assert_eq!(server.get(WIDGETS).await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn apply_owns_items_by_key_and_dynamic_clients_watch() {
    let server = Server::start().await;
    server.post(CRDS, definition()).await.expect(201);
    let resource = ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    let api: Api<DynamicObject> = Api::namespaced_with(server.client(), "default", &resource);
    let mut events = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    let object = serde_json::from_value(widget("a", json!(2))).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(10), events.try_next()).await;
    let Ok(Ok(Some(WatchEvent::Added(added)))) = event else {
        panic!("not added")
    };
    assert_eq!(added.data["spec"]["color"], "red");

    for (manager, port) in [("one", 80), ("two", 443)] {
        let mut applied = widget("x", json!(1));
        applied["spec"]["ports"] = json!([{"port": port, "name": manager}]);
        let path = format!("{WIDGETS}/x?fieldManager={manager}");
        let answer = server
            .call(
                Method::PATCH,
                &path,
                "application/apply-patch+yaml",
                applied.to_string(),
            )
            .await;
        assert!(answer.code.is_success(), "{}", answer.text);
    }
    let merged = server.get(&format!("{WIDGETS}/x")).await.expect(200);
    assert_eq!(merged["spec"]["ports"].as_array().unwrap().len(), 2, "{merged}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_uses_custom_resources_like_any_other() {
    let served = Served::start(Server::start().await).await;
    let apply = async |args: &[&str], object: &Value| {
        let output = served.run(args, &object.to_string()).await;
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let from_stdin = ["apply", "-f", "-"];
    assert!(apply(&from_stdin, &definition()).await.contains("created"));
    let waited = served
        .kubectl(&[
            "wait",
            "--for=condition=established",
            "crd/widgets.example.com",
            "--timeout=5s",
        ])
        .await;
    assert!(waited.contains("condition met"), "{waited}");
    let made = apply(&from_stdin, &widget("a", json!(3))).await;
    assert_eq!(made.trim(), "widget.example.com/a created");
    let again = apply(&from_stdin, &widget("a", json!(4))).await;
    assert_eq!(again.trim(), "widget.example.com/a configured");
    let ssa = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    let by_server = apply(&ssa, &widget("a", json!(5))).await;
    assert!(by_server.contains("serverside-applied"), "{by_server}");
    let table = served.kubectl(&["get", "wd"]).await;
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "SIZE", "AGE"]);
    assert_eq!(rows[1][..2], ["a", "5"]);
    let explained = served.kubectl(&["explain", "widget.spec.size"]).await;
    assert!(
        explained.contains("FIELD: size <integer>") && explained.contains("How many."),
        "{explained}"
    );
    let patched = served
        .kubectl(&[
            "patch",
            "widget",
            "a",
            "--type=merge",
            "-p",
            "{\"spec\":{\"color\":\"blue\"}}",
        ])
        .await;
    assert!(patched.contains("patched"), "{patched}");
    let scaled = served.kubectl(&["scale", "widget/a", "--replicas=7"]).await;
    assert!(scaled.contains("scaled"), "{scaled}");
    let resources = served
        .kubectl(&["api-resources", "--api-group=example.com"])
        .await;
    assert!(
        resources.contains("widgets") && resources.contains("wd"),
        "{resources}"
    );
    let wrong = served
        .run(&from_stdin, &widget("b", json!("many")).to_string())
        .await;
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("spec.size"),
        "{wrong:?}"
    );
    let deleted = served
        .kubectl(&["delete", "crd", "widgets.example.com", "--timeout=20s"])
        .await;
    assert!(deleted.contains("deleted"), "{deleted}");
    let missing = served.run(&["get", "widgets"], "").await;
    assert!(!missing.status.success(), "{missing:?}");
}
