use super::*;
use crate::kinds::Kinds;
use serde_json::json;

fn defaulted(api_version: &str, kind: &str, mut obj: Value) -> Value {
    apply(Kinds::builtin().of(api_version, kind).unwrap(), &mut obj);
    let once = obj.clone();
    apply(Kinds::builtin().of(api_version, kind).unwrap(), &mut obj);
    assert_eq!(obj, once, "defaults must not change what they made");
    obj
}

#[test]
fn the_book_is_readable_and_names_real_things() {
    let book = parse(RULES).unwrap();
    for (name, rules) in &book {
        if let Some((group, kind)) = name.split_once('/') {
            assert!(
                Kinds::builtin()
                    .iter()
                    .any(|k| k.group == group && k.kind == kind),
                "{name}"
            );
        }
        for rule in rules {
            if let Action::Use(block) = &rule.action {
                assert!(book.contains_key(block), "{name} uses {block}");
            }
        }
    }
    assert!(parse("x\n  a = nonsense").is_err());
    assert!(parse("x\n  a[.b = 1").is_err());
}

#[test]
fn the_language_does_what_it_says() {
    let book = parse(
        "t\n  a.x = 1\n  b+.x = 1\n  l[].x = 1\n  c(type=A).x = 1\n  c(!y).z = 2\n  c(y).w = 3\n  n ~= 5\n  m = 5\n  s = \"d\"\n",
    )
    .unwrap();
    let mut obj = json!({"l": [{}, {"x": 7}], "c": {"type": "A"}, "n": 0, "m": 0, "s": ""});
    apply_block(&book, "t", &mut obj);
    assert_eq!(
        obj,
        json!({"b": {"x": 1}, "l": [{"x": 1}, {"x": 7}], "c": {"type": "A", "x": 1, "z": 2}, "n": 5, "m": 0, "s": "d"})
    );
}

#[test]
fn a_pod_is_complete() {
    let pod = defaulted(
        "v1",
        "Pod",
        json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccount": "robot",
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}}]}}),
    );
    assert_eq!(
        pod["spec"],
        json!({
            "serviceAccount": "robot", "serviceAccountName": "robot",
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30, "securityContext": {}, "enableServiceLinks": true,
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v1"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}}]
        })
    );
}

#[test]
fn templates_get_pod_defaults_but_not_those_of_pods() {
    let d = defaulted(
        "apps/v1",
        "Deployment",
        json!({"spec": {"template": {"spec": {"hostNetwork": true, "containers": [
            {"name": "c", "image": "a:1", "ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "1"}}}]}}}}),
    );
    assert_eq!(
        d["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    let spec = &d["spec"]["template"]["spec"];
    assert_eq!(spec["restartPolicy"], "Always");
    assert_eq!(spec["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert!(spec.get("enableServiceLinks").is_none());
    assert!(spec["containers"][0]["ports"][0].get("hostPort").is_none());
    assert!(spec["containers"][0]["resources"].get("requests").is_none());
    let d = defaulted(
        "apps/v1",
        "Deployment",
        json!({"spec": {"strategy": {"type": "Recreate"}}}),
    );
    assert!(d["spec"]["strategy"].get("rollingUpdate").is_none());
    let pod = defaulted(
        "v1",
        "Pod",
        json!({"spec": {"hostNetwork": true, "containers": [{"ports": [{"containerPort": 1}]}]}}),
    );
    assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 1);
}

#[test]
fn pod_level_requests_follow_the_containers() {
    let container = |cpu: &str| json!({"name": "c", "image": "x", "resources": {"requests": {"cpu": cpu}}});
    let pod = defaulted(
        "v1",
        "Pod",
        json!({"spec": {"resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [container("100m"), container("200m")], "initContainers": [container("250m")]}}),
    );
    assert_eq!(
        pod["spec"]["resources"]["requests"],
        json!({"cpu": "300m", "memory": "1Gi"})
    );
}

#[test]
fn stateful_sets_roll_from_the_start_unless_told_otherwise() {
    let strategy = |s: Value| {
        let set = defaulted("apps/v1", "StatefulSet", json!({"spec": {"updateStrategy": s}}));
        set["spec"]["updateStrategy"].clone()
    };
    assert_eq!(
        strategy(json!({})),
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
    );
    assert_eq!(
        strategy(json!({"type": "RollingUpdate"})),
        json!({"type": "RollingUpdate"})
    );
    assert_eq!(
        strategy(json!({"type": "RollingUpdate", "rollingUpdate": {}})),
        json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
    );
    assert_eq!(strategy(json!({"type": "OnDelete"})), json!({"type": "OnDelete"}));
}

#[test]
fn pull_policies_follow_the_tag() {
    for (image, policy) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.2", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("localhost:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:abc", "IfNotPresent"),
        ("nginx:latest@sha256:abc", "Always"),
    ] {
        assert_eq!(pull_policy(image), policy, "{image}");
    }
}

#[test]
fn other_kinds() {
    let s = defaulted(
        "v1",
        "Service",
        json!({"spec": {"ports": [{"port": 80}, {"port": 1, "targetPort": "web"}]}}),
    );
    assert_eq!(
        s["spec"],
        json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}, {"port": 1, "targetPort": "web", "protocol": "TCP"}]})
    );
    let s = defaulted(
        "v1",
        "Service",
        json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}),
    );
    assert_eq!(s["spec"]["allocateLoadBalancerNodePorts"], true);
    assert_eq!(s["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(
        s["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
        10800
    );
    let s = defaulted("v1", "Service", json!({"spec": {"type": "ExternalName"}}));
    assert!(s["spec"].get("internalTrafficPolicy").is_none());

    let j = defaulted(
        "batch/v1",
        "Job",
        json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}}),
    );
    assert_eq!(j["spec"]["completions"], 1);
    assert_eq!(j["spec"]["backoffLimit"], 6);
    assert_eq!(j["metadata"]["labels"]["a"], "b");
    let j = defaulted(
        "batch/v1",
        "Job",
        json!({"spec": {"parallelism": 3, "template": {}}}),
    );
    assert!(j["spec"].get("completions").is_none());

    let secret = defaulted(
        "v1",
        "Secret",
        json!({"stringData": {"a": "b"}, "data": {"a": "x", "c": "y"}}),
    );
    assert_eq!(secret, json!({"type": "Opaque", "data": {"a": "Yg==", "c": "y"}}));

    let b = defaulted(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User"}, {"kind": "ServiceAccount"}]}),
    );
    assert_eq!(b["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(b["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    assert!(b["subjects"][1].get("apiGroup").is_none());

    let n = defaulted(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        json!({"spec": {"egress": []}}),
    );
    assert_eq!(n["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    let ns = defaulted("v1", "Namespace", json!({"metadata": {"name": "x"}}));
    assert_eq!(ns["metadata"]["labels"]["kubernetes.io/metadata.name"], "x");
    let h = defaulted(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        json!({"spec": {"maxReplicas": 3, "behavior": {}}}),
    );
    assert_eq!(
        h["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"],
        80
    );
    assert_eq!(
        h["spec"]["behavior"]["scaleUp"]["policies"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let h = defaulted(
        "autoscaling/v1",
        "HorizontalPodAutoscaler",
        json!({"spec": {"maxReplicas": 3}}),
    );
    assert_eq!(h["spec"], json!({"maxReplicas": 3, "minReplicas": 1}));
    let l = defaulted(
        "v1",
        "LimitRange",
        json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}}]}}),
    );
    assert_eq!(
        l["spec"]["limits"][0]["defaultRequest"],
        json!({"cpu": "1", "memory": "1Mi"})
    );
    let crd = defaulted(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        json!({"spec": {"names": {"kind": "Widget"}}}),
    );
    assert_eq!(
        crd["spec"]["names"],
        json!({"kind": "Widget", "singular": "widget", "listKind": "WidgetList"})
    );
}
