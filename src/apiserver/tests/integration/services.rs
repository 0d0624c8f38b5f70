//! What Services own.

use serde_json::{Value, json};

use crate::harness::Server;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut object =
        json!({"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}});
    for (k, v) in spec.as_object().unwrap() {
        object["spec"][k] = v.clone();
    }
    object
}

#[tokio::test]
async fn the_api_has_its_own_service() {
    let server = Server::start().await;
    let own = server.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(own["spec"]["clusterIP"], "10.43.0.1");
    let slice = server
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .expect(200);
    assert_eq!(
        (&slice["endpoints"][0]["addresses"][0], &slice["ports"][0]["port"]),
        (&json!("192.0.2.1"), &json!(6443))
    );
    server
        .get("/apis/networking.k8s.io/v1/ipaddresses/10.43.0.1")
        .await
        .expect(200);
    // A second start finds everything as it is.
    let before = server.store.revision();
    let again = Server::with(
        server.store.clone(),
        std::sync::Arc::new(skiff_apiserver::NoNodes),
        "192.0.2.1:6443".parse().unwrap(),
    )
    .await;
    assert_eq!(again.store.revision(), before, "nothing is written twice");
}

#[tokio::test]
async fn addresses_are_given_once_and_given_back() {
    let server = Server::start().await;
    let mut seen = std::collections::HashSet::new();
    for n in 0..50 {
        let made = server
            .post(SERVICES, service(&format!("s{n}"), json!({})))
            .await
            .expect(201);
        assert_eq!(made["spec"]["clusterIPs"][0], made["spec"]["clusterIP"]);
        assert!(seen.insert(made["spec"]["clusterIP"].as_str().unwrap().to_owned()));
    }
    let fixed = service("fixed", json!({"clusterIP": "10.43.0.10"}));
    server.post(SERVICES, fixed.clone()).await.expect(201);
    let taken = server
        .post(SERVICES, service("late", json!({"clusterIP": "10.43.0.10"})))
        .await
        .error(422);
    assert!(taken.contains("provided IP is already allocated"), "{taken}");
    let outside = server
        .post(SERVICES, service("out", json!({"clusterIP": "10.44.0.1"})))
        .await
        .error(422);
    assert!(outside.contains("not in the valid range"), "{outside}");
    server.delete(&format!("{SERVICES}/fixed")).await.expect(200);
    server
        .post(SERVICES, service("late", json!({"clusterIP": "10.43.0.10"})))
        .await
        .expect(201);
    let headless = server
        .post(SERVICES, service("headless", json!({"clusterIP": "None"})))
        .await
        .expect(201);
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
    let external = server.post(SERVICES, json!({"metadata": {"name": "ext"}, "spec": {"type": "ExternalName", "externalName": "example.com"}})).await.expect(201);
    assert!(external["spec"].get("clusterIP").is_none());
}

#[tokio::test]
async fn node_ports_follow_the_type() {
    let server = Server::start().await;
    let made = server
        .post(SERVICES, service("a", json!({"type": "NodePort"})))
        .await
        .expect(201);
    let port = made["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port));
    let taken = service(
        "b",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": port}]}),
    );
    assert!(
        server
            .post(SERVICES, taken.clone())
            .await
            .error(422)
            .contains("provided port is already allocated")
    );
    let low = service(
        "b",
        json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}),
    );
    assert!(
        server
            .post(SERVICES, low)
            .await
            .error(422)
            .contains("The range of valid ports is 30000-32767")
    );
    let kept = server
        .merge(
            &format!("{SERVICES}/a"),
            json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}),
        )
        .await
        .expect(200);
    assert_eq!(
        kept["spec"]["ports"][0]["nodePort"], port,
        "a port that is not named is kept"
    );
    let mut plain = kept.clone();
    plain["spec"]["type"] = json!("ClusterIP");
    let plain = server.put(&format!("{SERVICES}/a"), &plain).await.expect(200);
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    server.post(SERVICES, taken).await.expect(201);
    let balanced = server
        .post(
            SERVICES,
            service(
                "lb",
                json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}),
            ),
        )
        .await
        .expect(201);
    assert!(balanced["spec"]["healthCheckNodePort"].as_u64().unwrap() >= 30000);
    for name in ["a", "b", "lb"] {
        server.delete(&format!("{SERVICES}/{name}")).await.expect(200);
    }
    assert_eq!(
        server.store.snapshot().count("/skiff/nodeports/"),
        0,
        "nothing leaks"
    );
    assert_eq!(
        server
            .store
            .snapshot()
            .count("/registry/networking.k8s.io/ipaddresses/"),
        1
    );
}

#[tokio::test]
async fn concurrent_claims_never_collide() {
    let server = Server::start().await;
    let made = futures::future::join_all((0..40).map(|n| {
        let server = &server;
        async move {
            server
                .post(SERVICES, service(&format!("s{n}"), json!({"type": "NodePort"})))
                .await
                .expect(201)
        }
    }))
    .await;
    let ports: std::collections::HashSet<_> = made
        .iter()
        .map(|s| s["spec"]["ports"][0]["nodePort"].as_u64())
        .collect();
    let addresses: std::collections::HashSet<_> =
        made.iter().map(|s| s["spec"]["clusterIP"].to_string()).collect();
    assert_eq!((ports.len(), addresses.len()), (40, 40));
}
