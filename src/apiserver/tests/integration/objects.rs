//! Verbs on objects.

use http::{Method, Request};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_apiserver::{UserInfo, full_body};

use crate::harness::{DEPLOYMENTS, PODS, Server, deployment, pod};

#[tokio::test]
async fn a_pod_lives_as_clients_expect() {
    let server = Server::start().await;
    let pods: Api<Pod> = Api::default_namespaced(server.client());
    let made = pods
        .create(&PostParams::default(), &serde_json::from_value(pod("a")).unwrap())
        .await
        .unwrap();
    let spec = made.spec.as_ref().unwrap();
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.priority, Some(0));
    assert!(spec.tolerations.as_ref().unwrap().len() >= 2);
    assert!(
        spec.volumes.as_ref().unwrap()[0]
            .name
            .starts_with("kube-api-access-")
    );
    assert_eq!(made.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(made.metadata.managed_fields.as_ref().map(Vec::len), Some(1));

    let got = pods.get("a").await.unwrap();
    assert_eq!(got, made);
    let list = pods.list(&ListParams::default().labels("app=a")).await.unwrap();
    assert_eq!(list.items.len(), 1);
    assert!(
        pods.list(&ListParams::default().labels("app=b"))
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert_eq!(
        pods.list(&ListParams::default().fields("spec.nodeName="))
            .await
            .unwrap()
            .items
            .len(),
        1
    );

    let again = pods
        .create(&PostParams::default(), &serde_json::from_value(pod("a")).unwrap())
        .await;
    let kube::Error::Api(status) = again.unwrap_err() else {
        panic!("not a status")
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(status.message, "pods \"a\" already exists");

    // Nothing runs for it yet, so it goes at once.
    pods.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(pods.get_opt("a").await.unwrap().is_none());
    assert_eq!(
        server.get(&format!("{PODS}/a")).await.error(404),
        "pods \"a\" not found"
    );
}

#[tokio::test]
async fn updates_compare_versions_and_do_nothing_for_nothing() {
    let server = Server::start().await;
    let made = server.post(DEPLOYMENTS, deployment("web", 2)).await.expect(201);
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{DEPLOYMENTS}/web");
    let same = server.put(&path, &made).await.expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );

    let mut changed = made.clone();
    changed["spec"]["replicas"] = json!(5);
    changed["status"] = json!({"replicas": 99});
    let updated = server.put(&path, &changed).await.expect(200);
    assert_eq!(updated["metadata"]["generation"], 2);
    assert!(
        updated["status"].get("replicas").is_none_or(|r| r == 0),
        "status is not set through the object"
    );
    let stale = server.put(&path, &made).await.error(409);
    assert!(stale.contains("the object has been modified"), "{stale}");

    let status = json!({"status": {"replicas": 3, "observedGeneration": 2}, "spec": {"replicas": 1}});
    let reported = server.merge(&format!("{path}/status"), status).await.expect(200);
    assert_eq!(
        (&reported["spec"]["replicas"], &reported["status"]["replicas"]),
        (&json!(5), &json!(3))
    );
    assert_eq!(reported["metadata"]["generation"], 2);
    let wrong = server
        .put(&format!("{DEPLOYMENTS}/other"), &made)
        .await
        .error(400);
    assert!(wrong.contains("does not match the name on the URL"), "{wrong}");
}

#[tokio::test]
async fn all_patches_work() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, deployment("web", 1)).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web");
    let json = r#"[{"op": "replace", "path": "/spec/replicas", "value": 4}]"#;
    let patched = server
        .call(Method::PATCH, &path, "application/json-patch+json", json)
        .await
        .expect(200);
    assert_eq!(patched["spec"]["replicas"], 4);
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "x"}]}}}});
    let patched = server
        .call(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            strategic.to_string(),
        )
        .await
        .expect(200);
    assert_eq!(
        patched["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let merged = server.merge(&path, strategic).await.expect(200);
    assert_eq!(
        merged["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        server
            .call(Method::PATCH, &path, "application/json", "{}")
            .await
            .code,
        415
    );
    assert_eq!(
        server
            .call(Method::PATCH, &path, "application/json-patch+json", "{")
            .await
            .code,
        400
    );
    let stale = server
        .merge(&path, json!({"metadata": {"resourceVersion": "1"}}))
        .await
        .error(409);
    assert!(stale.contains("has been modified"));
}

#[tokio::test]
async fn apply_creates_owns_and_conflicts() {
    let server = Server::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client());
    let config = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": value}});
    let one = PatchParams::apply("one");
    let made = maps.patch("c", &one, &Patch::Apply(config("1"))).await.unwrap();
    assert_eq!(made.data.as_ref().unwrap()["k"], "1");
    let same = maps.patch("c", &one, &Patch::Apply(config("1"))).await.unwrap();
    assert_eq!(same.metadata.resource_version, made.metadata.resource_version);
    let error = maps
        .patch("c", &PatchParams::apply("two"), &Patch::Apply(config("2")))
        .await
        .unwrap_err();
    let kube::Error::Api(status) = error else {
        panic!("not a status")
    };
    assert_eq!(status.code, 409);
    assert!(
        status.message.contains("conflict with \"one\": .data.k"),
        "{}",
        status.message
    );
    let taken = maps
        .patch(
            "c",
            &PatchParams::apply("two").force(),
            &Patch::Apply(config("2")),
        )
        .await
        .unwrap();
    assert_eq!(taken.data.unwrap()["k"], "2");
    let path = "/api/v1/namespaces/default/configmaps/c";
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {y: z}\n";
    let media = "application/apply-patch+yaml";
    assert_eq!(server.call(Method::PATCH, path, media, yaml).await.code, 400);
    let applied = server
        .call(Method::PATCH, &format!("{path}?fieldManager=three"), media, yaml)
        .await
        .expect(200);
    assert_eq!(applied["data"], json!({"k": "2", "y": "z"}));
}

#[tokio::test]
async fn running_pods_get_time_to_stop() {
    let server = Server::start().await;
    server.post(PODS, pod("a")).await.expect(201);
    let path = format!("{PODS}/a");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "a"},
        "target": {"kind": "Node", "name": "n1"}});
    server
        .post(&format!("{path}/binding"), binding.clone())
        .await
        .expect(201);
    let bound = server.get(&path).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert!(
        bound["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "PodScheduled")
    );
    let twice = server.post(&format!("{path}/binding"), binding).await.error(409);
    assert!(twice.contains("already assigned to node"), "{twice}");
    let dying = server.delete(&path).await.expect(200);
    assert_eq!(dying["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(dying["metadata"]["deletionTimestamp"].is_string());
    let refused = server
        .call(
            Method::DELETE,
            &format!("{path}?gracePeriodSeconds=0"),
            "application/json",
            json!({"preconditions": {"uid": "other"}}).to_string(),
        )
        .await
        .error(409);
    assert!(refused.contains("UID in precondition: other"), "{refused}");
    server
        .delete(&format!("{path}?gracePeriodSeconds=0"))
        .await
        .expect(200);
    server.get(&path).await.error(404);
}

#[tokio::test]
async fn finalizers_hold_back_deletion() {
    let server = Server::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let object = json!({"metadata": {"name": "c", "finalizers": ["example.com/wait"]}, "data": {"a": "b"}});
    server.post(maps, object).await.expect(201);
    let path = format!("{maps}/c");
    let held = server.delete(&path).await.expect(200);
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    server
        .merge(&path, json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    server.get(&path).await.error(404);
    server
        .post(maps, json!({"metadata": {"name": "d"}}))
        .await
        .expect(201);
    let marked = server
        .call(
            Method::DELETE,
            &format!("{maps}/d?propagationPolicy=Foreground"),
            "application/json",
            "",
        )
        .await
        .expect(202);
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let gone = server
        .call(
            Method::DELETE,
            &format!("{maps}/d?propagationPolicy=Background"),
            "application/json",
            "",
        )
        .await
        .expect(200);
    assert_eq!(
        (gone["kind"].as_str(), gone["details"]["name"].as_str()),
        (Some("Status"), Some("d"))
    );
}

#[tokio::test]
async fn namespaces_close_before_they_go() {
    let server = Server::start().await;
    let missing = server
        .post(
            "/api/v1/namespaces/none/configmaps",
            json!({"metadata": {"name": "x"}}),
        )
        .await
        .error(404);
    assert_eq!(missing, "namespaces \"none\" not found");
    server
        .post("/api/v1/namespaces", json!({"metadata": {"name": "team"}}))
        .await
        .expect(201);
    server
        .post(
            "/api/v1/namespaces/team/configmaps",
            json!({"metadata": {"name": "x"}}),
        )
        .await
        .expect(201);
    let closing = server.delete("/api/v1/namespaces/team").await.expect(200);
    assert_eq!(closing["status"]["phase"], "Terminating");
    let late = server
        .post(
            "/api/v1/namespaces/team/configmaps",
            json!({"metadata": {"name": "y"}}),
        )
        .await
        .error(403);
    assert!(late.contains("because it is being terminated"), "{late}");
    server
        .delete("/api/v1/namespaces/team/configmaps")
        .await
        .expect(200);
    let mut namespace = server.get("/api/v1/namespaces/team").await.expect(200);
    namespace["spec"]["finalizers"] = json!([]);
    server
        .put("/api/v1/namespaces/team/finalize", &namespace)
        .await
        .expect(200);
    server.get("/api/v1/namespaces/team").await.error(404);
    let kept = server.delete("/api/v1/namespaces/kube-system").await.error(403);
    assert!(kept.contains("this namespace may not be deleted"), "{kept}");
}

#[tokio::test]
async fn pages_show_one_moment() {
    let server = Server::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for n in 0..5 {
        server
            .post(maps, json!({"metadata": {"name": format!("c{n}")}}))
            .await
            .expect(201);
    }
    let first = server.get(&format!("{maps}?limit=2")).await.expect(200);
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    let token = first["metadata"]["continue"].as_str().unwrap();
    server.delete(&format!("{maps}/c3")).await.expect(200);
    let rest = server
        .get(&format!("{maps}?limit=10&continue={token}"))
        .await
        .expect(200);
    assert_eq!(
        rest["items"].as_array().unwrap().len(),
        3,
        "the deleted one is still in this list's moment"
    );
    assert_eq!(
        rest["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    assert!(rest["metadata"].get("continue").is_none());
    let forged = server.get(&format!("{maps}?continue=garbage")).await.error(400);
    assert_eq!(forged, "continue key is not valid");
    let old = server
        .get(&format!("{maps}?resourceVersion=2&resourceVersionMatch=Exact"))
        .await;
    assert_eq!(old.expect(410)["reason"], "Expired");
    let future = server.get(&format!("{maps}?resourceVersion=999999")).await;
    assert_eq!(
        future.expect(504)["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
}

#[tokio::test]
async fn answers_take_the_form_asked_for() {
    let server = Server::start().await;
    server.post(PODS, pod("a")).await.expect(201);
    let ask = |accept: &'static str, path: &str| {
        let mut request = Request::builder()
            .uri(path)
            .header("accept", accept)
            .body(full_body(""))
            .unwrap();
        request.extensions_mut().insert(UserInfo::component("test"));
        server.send(request)
    };
    let table = ask("application/json;as=Table;v=v1;g=meta.k8s.io", PODS)
        .await
        .expect(200);
    assert_eq!(
        (table["kind"].as_str(), table["rows"][0]["cells"][0].as_str()),
        (Some("Table"), Some("a"))
    );
    let partial = ask(
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        PODS,
    )
    .await
    .expect(200);
    assert_eq!(partial["items"][0]["metadata"]["name"], "a");
    assert!(partial["items"][0].get("spec").is_none());
    let yaml = ask("application/yaml", &format!("{PODS}/a")).await;
    assert!(
        yaml.text.contains("\nkind: Pod\n") || yaml.text.starts_with("apiVersion: v1\nkind: Pod"),
        "{}",
        yaml.text
    );
    ask("application/cbor", PODS).await.error(406);
    let cbor = server.call(Method::POST, PODS, "application/cbor", "x").await;
    cbor.error(415);
    let yaml = server
        .call(
            Method::POST,
            PODS,
            "application/yaml",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: yaml}\nspec: {containers: [{name: c, image: i}]}\n",
        )
        .await;
    yaml.expect(201);
}

#[tokio::test]
async fn bad_bodies_are_explained() {
    let server = Server::start().await;
    let mut odd = pod("odd");
    odd["spec"]["colour"] = json!("red");
    let warned = server.post(PODS, odd.clone()).await;
    let warning = warned
        .headers
        .get("warning")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(warning, "299 - \"unknown field \\\"spec.colour\\\"\"");
    warned.expect(201);
    odd["metadata"]["name"] = json!("odd2");
    let strict = server
        .post(&format!("{PODS}?fieldValidation=Strict"), odd)
        .await
        .error(400);
    assert!(
        strict.contains("strict decoding error: unknown field \"spec.colour\""),
        "{strict}"
    );
    let empty = server.call(Method::POST, PODS, "application/json", "").await;
    assert_eq!(empty.code, 400);
    let kind = server
        .post(
            PODS,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}),
        )
        .await;
    assert_eq!(kind.code, 400);
    let invalid = server
        .post(
            PODS,
            json!({"metadata": {"name": "x"}, "spec": {"containers": []}}),
        )
        .await;
    let body = invalid.expect(422);
    assert_eq!(body["reason"], "Invalid");
    assert_eq!(body["details"]["causes"][0]["field"], "spec.containers");
    let elsewhere = server
        .post(
            PODS,
            json!({"metadata": {"name": "x", "namespace": "other"}, "spec": {}}),
        )
        .await;
    assert!(elsewhere.error(400).contains("does not match the namespace"));
    let huge = "x".repeat(4 << 20);
    assert_eq!(
        server
            .call(Method::POST, PODS, "application/json", huge)
            .await
            .code,
        413
    );
    assert_eq!(
        server
            .call(
                Method::POST,
                &format!("{PODS}?dryRun=Some"),
                "application/json",
                pod("z").to_string()
            )
            .await
            .code,
        400
    );
    let dry = server
        .post(&format!("{PODS}?dryRun=All"), pod("dry"))
        .await
        .expect(201);
    assert!(dry["metadata"]["uid"].is_string());
    server.get(&format!("{PODS}/dry")).await.error(404);
    server
        .call(Method::DELETE, "/api/v1/namespaces", "application/json", "")
        .await
        .error(405);
    server.get("/apis/nothing/v1/things").await.error(404);
    server.get("/api/v1/watch/pods").await.error(404);
    let named: Vec<String> = futures_names(&server).await;
    assert!(
        named[0] != named[1] && named.iter().all(|n| n.starts_with("gen-") && n.len() == 9),
        "{named:?}"
    );
}

async fn futures_names(server: &Server) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut object = pod("ignored");
        object["metadata"] = json!({"generateName": "gen-"});
        let made = server.post(PODS, object).await.expect(201);
        names.push(made["metadata"]["name"].as_str().unwrap().to_owned());
    }
    names
}

#[tokio::test]
async fn scale_and_eviction() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, deployment("web", 2)).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = server.get(&path).await.expect(200);
    assert_eq!(
        (&scale["spec"]["replicas"], scale["kind"].as_str()),
        (&json!(2), Some("Scale"))
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    scale["spec"]["replicas"] = json!(7);
    assert_eq!(server.put(&path, &scale).await.expect(200)["spec"]["replicas"], 7);
    server.put(&path, &scale).await.error(409);
    assert_eq!(
        server
            .merge(&path, json!({"spec": {"replicas": 0}}))
            .await
            .expect(200)["spec"]
            .get("replicas"),
        None
    );
    assert_eq!(
        server.get(&format!("{DEPLOYMENTS}/web")).await.expect(200)["spec"]["replicas"],
        0
    );
    server
        .merge(&path, json!({"spec": {"replicas": -1}}))
        .await
        .error(422);

    server.post(PODS, pod("a")).await.expect(201);
    server
        .merge(
            &format!("{PODS}/a/status"),
            json!({"status": {"phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}]}}),
        )
        .await
        .expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    server
        .post(
            budgets,
            json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1,
        "selector": {"matchLabels": {"app": "a"}}}}),
        )
        .await
        .expect(201);
    server
        .merge(
            &format!("{budgets}/b/status"),
            json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0,
        "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}}),
        )
        .await
        .expect(200);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "a"}});
    let refused = server.post(&format!("{PODS}/a/eviction"), eviction.clone()).await;
    let body = refused.expect(429);
    assert_eq!(body["details"]["causes"][0]["reason"], "DisruptionBudget");
    server
        .merge(
            &format!("{budgets}/b/status"),
            json!({"status": {"disruptionsAllowed": 1}}),
        )
        .await
        .expect(200);
    server
        .post(&format!("{PODS}/a/eviction"), eviction)
        .await
        .expect(201);
    server.get(&format!("{PODS}/a")).await.error(404);
    let used = server.get(&format!("{budgets}/b")).await.expect(200);
    assert_eq!(used["status"]["disruptionsAllowed"], 0);
    assert!(used["status"]["disruptedPods"]["a"].is_string());
}

#[tokio::test]
async fn versions_share_what_is_stored() {
    let server = Server::start().await;
    let made = server
        .post(
            "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers",
            json!({
        "metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "targetCPUUtilizationPercentage": 70,
            "scaleTargetRef": {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"}}}),
        )
        .await
        .expect(201);
    assert_eq!(made["apiVersion"], "autoscaling/v1");
    let v2 = server
        .get("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers/h")
        .await
        .expect(200);
    assert_eq!(
        v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        70
    );
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"},
        "reason": "Started", "message": "hello", "type": "Normal"});
    server
        .post("/api/v1/namespaces/default/events", event)
        .await
        .expect(201);
    let seen = server
        .get("/apis/events.k8s.io/v1/namespaces/default/events")
        .await
        .expect(200);
    assert_eq!(
        (
            seen["items"][0]["note"].as_str(),
            seen["items"][0]["regarding"]["name"].as_str()
        ),
        (Some("hello"), Some("a"))
    );
}

#[tokio::test]
async fn quotas_and_limits_hold() {
    let server = Server::start().await;
    server
        .post(
            "/api/v1/namespaces/default/resourcequotas",
            json!({"metadata": {"name": "q"},
        "spec": {"hard": {"pods": "1", "count/configmaps": "1"}}}),
        )
        .await
        .expect(201);
    server.post(PODS, pod("a")).await.expect(201);
    let over = server.post(PODS, pod("b")).await.error(403);
    assert_eq!(
        over,
        "pods \"b\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"
    );
    server.post("/api/v1/namespaces/default/limitranges", json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}})).await.expect(201);
    server.delete(&format!("{PODS}/a")).await.expect(200);
    let mut greedy = pod("c");
    greedy["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "2"}});
    let over = server.post(PODS, greedy).await.error(403);
    assert!(
        over.contains("maximum cpu usage per Container is 1, but limit is 2"),
        "{over}"
    );
    let made = server.post(PODS, pod("d")).await.expect(201);
    let resources: &Value = &made["spec"]["containers"][0]["resources"];
    assert_eq!(
        resources,
        &json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
    );
}
