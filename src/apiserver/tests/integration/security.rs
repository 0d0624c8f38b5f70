//! Who may do what.

use http::{Method, Request};
use serde_json::{Value, json};
use skiff_apiserver::{NODES, UserInfo, full_body};

use crate::harness::{PODS, Server, pod};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn user(name: &str) -> UserInfo {
    UserInfo::new(name, &[])
}

fn node(name: &str) -> UserInfo {
    UserInfo::new(format!("system:node:{name}"), &[NODES])
}

#[tokio::test]
async fn nobody_may_do_what_no_rule_allows() {
    let server = Server::start().await;
    let refused = server
        .call_as(user("eve"), Method::GET, PODS, Value::Null)
        .await
        .error(403);
    assert_eq!(
        refused,
        "pods is forbidden: User \"eve\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let refused = server
        .call_as(user("eve"), Method::GET, "/apis/apps/v1/deployments", Value::Null)
        .await
        .error(403);
    assert_eq!(
        refused,
        "deployments.apps is forbidden: User \"eve\" cannot list resource \"deployments\" in API group \"apps\" at the cluster scope"
    );
    let anonymous = server
        .send(
            Request::builder()
                .uri("/api/v1/pods")
                .body(full_body(""))
                .unwrap(),
        )
        .await
        .error(403);
    assert!(anonymous.contains("User \"system:anonymous\""), "{anonymous}");
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(
            server
                .send(Request::builder().uri(path).body(full_body("")).unwrap())
                .await
                .code,
            200,
            "{path}"
        );
    }
    let metrics = server
        .send(Request::builder().uri("/metrics").body(full_body("")).unwrap())
        .await
        .error(403);
    assert_eq!(
        metrics,
        "forbidden: User \"system:anonymous\" cannot get path \"/metrics\""
    );
    assert_eq!(
        server
            .call_with_token("nonsense", Method::GET, PODS, Value::Null)
            .await
            .code,
        401
    );

    server
        .post(
            &format!("{RBAC}/namespaces/default/roles"),
            json!({"metadata": {"name": "reader"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]}),
        )
        .await
        .expect(201);
    server
        .post(
            &format!("{RBAC}/namespaces/default/rolebindings"),
            json!({"metadata": {"name": "reader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}]}),
        )
        .await
        .expect(201);
    server
        .call_as(user("eve"), Method::GET, PODS, Value::Null)
        .await
        .expect(200);
    server
        .call_as(user("eve"), Method::GET, "/api/v1/pods", Value::Null)
        .await
        .error(403);
    server
        .call_as(user("eve"), Method::POST, PODS, pod("x"))
        .await
        .error(403);
    server
        .delete(&format!("{RBAC}/namespaces/default/rolebindings/reader"))
        .await
        .expect(200);
    server
        .call_as(user("eve"), Method::GET, PODS, Value::Null)
        .await
        .error(403);
}

#[tokio::test]
async fn rights_cannot_be_made_from_nothing() {
    let server = Server::start().await;
    server
        .post(
            &format!("{RBAC}/clusterrolebindings"),
            json!({"metadata": {"name": "dora-edits"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "User", "name": "dora", "apiGroup": "rbac.authorization.k8s.io"}]}),
        )
        .await
        .expect(201);
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = |verbs: Value, resource: &str| json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": [resource], "verbs": verbs}]});
    let refused = server
        .call_as(user("dora"), Method::POST, &roles, role(json!(["*"]), "nodes"))
        .await
        .error(403);
    assert!(
        refused.contains("is attempting to grant RBAC permissions not currently held"),
        "{refused}"
    );
    server
        .call_as(user("dora"), Method::POST, &roles, role(json!(["get"]), "pods"))
        .await
        .expect(201);
    let bind = |role: &str| json!({"metadata": {"name": "b"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}});
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    server
        .call_as(user("dora"), Method::POST, &bindings, bind("cluster-admin"))
        .await
        .error(403);
    server
        .call_as(user("dora"), Method::POST, &bindings, bind("view"))
        .await
        .expect(201);
}

#[tokio::test]
async fn nodes_see_to_themselves_only() {
    let server = Server::start().await;
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["mine", "theirs"] {
        server
            .post(secrets, json!({"metadata": {"name": name}}))
            .await
            .expect(201);
    }
    for (name, place, secret) in [("a", "n1", "mine"), ("b", "n2", "theirs")] {
        let mut object = pod(name);
        object["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": secret}}]);
        object["spec"]["nodeName"] = json!(place);
        server.post(PODS, object).await.expect(201);
        let made = server
            .call_as(
                node(place),
                Method::POST,
                "/api/v1/nodes",
                json!({"metadata": {"name": place}}),
            )
            .await
            .expect(201);
        assert_eq!(made["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    }
    let get = |path: String| {
        server.call_as(
            node("n1"),
            Method::GET,
            Box::leak(path.into_boxed_str()),
            Value::Null,
        )
    };
    get(format!("{secrets}/mine")).await.expect(200);
    let refused = get(format!("{secrets}/theirs")).await.error(403);
    assert!(
        refused.contains("no relationship found between node 'n1' and this object"),
        "{refused}"
    );
    get(secrets.to_owned()).await.error(403);
    get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1".to_owned())
        .await
        .expect(200);
    get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2".to_owned())
        .await
        .error(403);
    get("/api/v1/services".to_owned()).await.expect(200);
    get("/api/v1/nodes".to_owned()).await.expect(200);

    let status = json!({"status": {"phase": "Running"}});
    server
        .call_as(
            node("n1"),
            Method::PATCH,
            &format!("{PODS}/a/status"),
            status.clone(),
        )
        .await
        .expect(200);
    server
        .call_as(
            node("n1"),
            Method::PATCH,
            &format!("{PODS}/b/status"),
            status.clone(),
        )
        .await
        .error(403);
    server
        .call_as(
            node("n1"),
            Method::PATCH,
            "/api/v1/nodes/n1/status",
            json!({"status": {"capacity": {"cpu": "1"}}}),
        )
        .await
        .expect(200);
    server
        .call_as(node("n1"), Method::PATCH, "/api/v1/nodes/n2/status", status)
        .await
        .error(403);
    let taints = json!({"spec": {"taints": []}});
    server
        .call_as(node("n1"), Method::PATCH, "/api/v1/nodes/n1", taints)
        .await
        .error(403);
    server
        .call_as(node("n1"), Method::POST, PODS, pod("rogue"))
        .await
        .error(403);
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    server
        .call_as(node("n1"), Method::POST, leases, lease("n1"))
        .await
        .expect(201);
    server
        .call_as(node("n1"), Method::POST, leases, lease("n2"))
        .await
        .error(403);
    let token = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "b"}}});
    server
        .call_as(
            node("n1"),
            Method::POST,
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            token,
        )
        .await
        .error(403);
}

#[tokio::test]
async fn tokens_live_and_die_with_what_they_are_bound_to() {
    let server = Server::start().await;
    let made = server.post(PODS, pod("a")).await.expect(201);
    let token = server
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            json!({"spec": {
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "a", "uid": made["metadata"]["uid"]}}}),
        )
        .await
        .expect(201);
    let token = token["status"]["token"].as_str().unwrap().to_owned();
    let who = server
        .call_with_token(
            &token,
            Method::POST,
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            json!({}),
        )
        .await
        .expect(201);
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:default");
    assert_eq!(
        info["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["a"])
    );
    let refused = server
        .call_with_token(&token, Method::GET, PODS, Value::Null)
        .await
        .error(403);
    assert!(refused.contains("system:serviceaccount:default:default"));
    let review = |token: &str, audiences: Value| json!({"spec": {"token": token, "audiences": audiences}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    assert_eq!(
        server.post(path, review(&token, json!([]))).await.expect(201)["status"]["authenticated"],
        true
    );
    let other = server
        .post(path, review(&token, json!(["other"])))
        .await
        .expect(201);
    assert!(
        other["status"].get("authenticated").is_none_or(|a| a == false),
        "{other}"
    );
    server.delete(&format!("{PODS}/a")).await.expect(200);
    assert_eq!(
        server
            .call_with_token(&token, Method::GET, PODS, Value::Null)
            .await
            .code,
        401
    );
    let short = server
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            json!({"spec": {"expirationSeconds": 5}}),
        )
        .await
        .error(422);
    assert!(short.contains("may not specify a duration less than 10 minutes"));
    let keys = server.get("/openid/v1/jwks").await.expect(200);
    assert_eq!(keys["keys"][0]["crv"], "P-256");
}

#[tokio::test]
async fn bootstrap_tokens_ask_for_certificates_and_nothing_else() {
    let server = Server::start().await;
    let secret = |extra: Value| {
        let mut data = json!({"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"});
        for (k, v) in extra.as_object().unwrap() {
            data[k] = v.clone();
        }
        json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": data})
    };
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    server.post(secrets, secret(json!({}))).await.expect(201);
    let token = "abcdef.0123456789abcdef";
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    server
        .call_with_token(token, Method::GET, csrs, Value::Null)
        .await
        .expect(200);
    server
        .call_with_token(token, Method::GET, PODS, Value::Null)
        .await
        .error(403);
    assert_eq!(
        server
            .call_with_token("abcdef.0123456789abcdee", Method::GET, csrs, Value::Null)
            .await
            .code,
        401
    );
    server
        .delete(&format!("{secrets}/bootstrap-token-abcdef"))
        .await
        .expect(200);
    assert_eq!(
        server
            .call_with_token(token, Method::GET, csrs, Value::Null)
            .await
            .code,
        401
    );
    server
        .post(secrets, secret(json!({"expiration": "2020-01-01T00:00:00Z"})))
        .await
        .expect(201);
    assert_eq!(
        server
            .call_with_token(token, Method::GET, csrs, Value::Null)
            .await
            .code,
        401
    );
}

#[tokio::test]
async fn impersonation_needs_the_right() {
    let server = Server::start().await;
    let ask = |by: UserInfo, name: &'static str| {
        let mut request = Request::builder()
            .uri(PODS)
            .header("impersonate-user", name)
            .body(full_body(""))
            .unwrap();
        request.extensions_mut().insert(by);
        server.send(request)
    };
    let refused = ask(UserInfo::component("admin"), "eve").await.error(403);
    assert!(refused.contains("User \"eve\" cannot list"), "{refused}");
    let refused = ask(user("eve"), "root").await.error(403);
    assert_eq!(
        refused,
        "users \"root\" is forbidden: User \"eve\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope"
    );
}

#[tokio::test]
async fn access_reviews_answer_as_requests_would() {
    let server = Server::start().await;
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let ask = |user: &str, groups: Value, verb: &str, resource: &str| {
        json!({"spec": {"user": user, "groups": groups,
        "resourceAttributes": {"verb": verb, "resource": resource, "namespace": "default"}}})
    };
    let allowed = async |body: Value| server.post(path, body).await.expect(201)["status"]["allowed"].clone();
    assert_eq!(allowed(ask("x", json!([]), "get", "pods")).await, false);
    assert_eq!(
        allowed(ask("x", json!(["system:masters"]), "get", "pods")).await,
        true
    );
    assert_eq!(
        allowed(ask("system:kube-scheduler", json!([]), "list", "pods")).await,
        true
    );
    assert_eq!(
        allowed(ask(
            "system:serviceaccount:kube-system:job-controller",
            json!([]),
            "create",
            "pods"
        ))
        .await,
        true
    );
    let rules = server
        .call_as(
            user("eve"),
            Method::POST,
            "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
            json!({"spec": {"namespace": "default"}}),
        )
        .await
        .expect(201);
    assert!(
        rules["status"]["resourceRules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["resources"].to_string().contains("selfsubjectaccessreviews"))
    );
}

#[tokio::test]
async fn certificate_requests_are_approved_by_those_who_may() {
    let server = Server::start().await;
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let request = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIUE1IZ0NBUUF3RmpFVU1CSUdBMVVFQXd3TGMzbHpkR1Z0T25SbGMzUXdXVEFUQmdjcWhrak9QUUlCQmdncQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let made = server.call_as(user("eve"), Method::POST, csrs, json!({"metadata": {"name": "c"}, "spec": {
        "request": request, "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth"],
        "username": "root"}})).await;
    made.error(403);
    let pki = skiff_pki::generate_key().unwrap();
    let csr = skiff_pki::make_csr(
        &pki,
        &skiff_pki::Identity::new("system:node:n1", &["system:nodes"]),
        &[],
    )
    .unwrap();
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(csr);
    let made = server.post(csrs, json!({"metadata": {"name": "c"}, "spec": {"request": encoded,
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth"], "username": "root"}})).await.expect(201);
    assert_eq!(made["spec"]["username"], "test", "nobody says who they are");
    let mut approved = made;
    approved["status"] =
        json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]});
    let done = server
        .put(&format!("{csrs}/c/approval"), &approved)
        .await
        .expect(200);
    assert!(done["status"]["conditions"][0]["lastUpdateTime"].is_string());
}
