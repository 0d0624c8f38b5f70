use super::*;
use crate::kinds::Kinds;
use crate::{defaults, meta, strategy};
use serde_json::json;

fn kind(api_version: &str, name: &str) -> &'static Kind {
    Kinds::builtin().of(api_version, name).unwrap()
}

/// Runs an object through defaults, strategy and validation, as a create does.
fn create_errors(api_version: &str, name: &str, mut obj: Value) -> Vec<String> {
    let kind = kind(api_version, name);
    if meta::name(&obj).is_empty() {
        meta::set_name(&mut obj, "x");
    }
    if kind.namespaced {
        meta::set_namespace(&mut obj, "default");
    }
    defaults::apply(kind, &mut obj);
    meta::set_uid(&mut obj, "uid-1");
    strategy::prepare_for_create(kind, &mut obj);
    create(kind, &obj).iter().map(ToString::to_string).collect()
}

/// Creates, changes, and gives the complaints about the change.
fn update_errors(
    api_version: &str,
    name: &str,
    mut obj: Value,
    change: impl FnOnce(&mut Value),
) -> Vec<String> {
    let kind = kind(api_version, name);
    meta::set_name(&mut obj, "x");
    if kind.namespaced {
        meta::set_namespace(&mut obj, "default");
    }
    defaults::apply(kind, &mut obj);
    meta::set_uid(&mut obj, "uid-1");
    strategy::prepare_for_create(kind, &mut obj);
    assert_eq!(create(kind, &obj), vec![], "the base object must be valid");
    let mut new = obj.clone();
    change(&mut new);
    strategy::prepare_for_update(kind, None, &mut new, &obj);
    update(kind, None, &new, &obj)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn container() -> Value {
    json!({"name": "c", "image": "nginx:1"})
}

fn deployment() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container()]}}}})
}

fn set(mut obj: Value, pointer: &str, value: Value) -> Value {
    *obj.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value;
    obj
}

fn with(mut obj: Value, path: &str, value: Value) -> Value {
    meta::set(&mut obj, path, value);
    obj
}

#[test]
fn every_rule_set_belongs_to_a_kind() {
    for (group, name, ..) in RULES {
        assert!(
            Kinds::builtin()
                .iter()
                .any(|k| k.group == *group && k.kind == *name),
            "{group}/{name}"
        );
    }
}

#[test]
fn nothing_panics_on_odd_objects() {
    for kind in Kinds::builtin().iter() {
        for odd in [
            json!({}),
            json!({"metadata": 1, "spec": "x", "status": [1], "webhooks": {}, "subjects": [1, null], "rules": [[]]}),
            json!({"spec": {"containers": [1], "template": [], "ports": [null, "x"], "limits": [{}], "metrics": [{"type": "é"}]}}),
            json!(null),
        ] {
            let mut obj = odd.clone();
            defaults::apply(kind, &mut obj);
            strategy::prepare_for_create(kind, &mut obj);
            let _ = create(kind, &obj);
            let _ = update(kind, None, &obj, &odd);
            for sub in &kind.subresources {
                let mut new = odd.clone();
                strategy::prepare_for_update(kind, Some(&sub.name), &mut new, &obj);
                let _ = update(kind, Some(&sub.name), &new, &obj);
            }
        }
    }
}

#[test]
fn metadata_rules() {
    let config = |metadata: Value| create(kind("v1", "ConfigMap"), &json!({"metadata": metadata}));
    let texts = |metadata| {
        config(metadata)
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        texts(json!({"name": "a", "namespace": "d"})),
        Vec::<String>::new()
    );
    assert_eq!(
        texts(json!({"namespace": "d"})),
        ["metadata.name: Required value: name or generateName is required"]
    );
    assert_eq!(
        texts(json!({"name": "a"})),
        ["metadata.namespace: Required value"]
    );
    assert!(
        texts(json!({"name": "A", "namespace": "d"}))[0]
            .starts_with("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain")
    );
    assert!(
        texts(json!({"name": "a", "namespace": "d", "labels": {"-x": "y"}}))[0]
            .starts_with("metadata.labels: Invalid value: \"-x\": name part must consist")
    );
    assert_eq!(
        texts(json!({"name": "a", "namespace": "d", "annotations": {"k": "v".repeat(300_000)}})),
        ["metadata.annotations: Too long: may not be more than 262144 bytes"]
    );
    let node = create(
        kind("v1", "Node"),
        &json!({"metadata": {"name": "n", "namespace": "d"}}),
    );
    assert_eq!(
        node[0].to_string(),
        "metadata.namespace: Forbidden: not allowed on this type"
    );
    assert!(
        create_errors("v1", "Namespace", json!({"metadata": {"name": "a.b"}}))[0]
            .contains("must not contain dots")
    );
    assert_eq!(
        create_errors(
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            json!({"metadata": {"name": "system:x"}, "rules": []})
        ),
        Vec::<String>::new()
    );

    let old = json!({"metadata": {"name": "a", "namespace": "d", "uid": "1", "deletionTimestamp": "t", "finalizers": ["x/y"]}});
    let new = json!({"metadata": {"name": "a", "namespace": "d", "uid": "2", "deletionTimestamp": "t", "finalizers": ["x/y", "x/z"]}});
    let found: Vec<_> = update(kind("v1", "ConfigMap"), None, &new, &old)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "metadata.uid: Invalid value: \"2\": field is immutable",
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"x/z\"}"
        ]
    );
}

#[test]
fn pods() {
    let pod = |spec: Value| create_errors("v1", "Pod", json!({"spec": spec}));
    let one = |c: Value| {
        let mut base = container();
        for (k, v) in c.as_object().unwrap() {
            base[k] = v.clone();
        }
        pod(json!({"containers": [base]}))
    };
    assert_eq!(pod(json!({"containers": [container()]})), Vec::<String>::new());
    let cases: Vec<(Vec<String>, &str)> = vec![
        (pod(json!({})), "spec.containers: Required value"),
        (
            pod(json!({"containers": [{"name": "c"}]})),
            "spec.containers[0].image: Required value",
        ),
        (
            pod(json!({"containers": [container(), container()]})),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            pod(json!({"containers": [container()], "restartPolicy": "Maybe"})),
            "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            one(json!({"ports": [{"containerPort": 99999}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 99999: must be between 1 and 65535, inclusive",
        ),
        (
            one(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            one(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            one(json!({"resources": {"requests": {"cpu": "-1"}}})),
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
        ),
        (
            one(json!({"resources": {"requests": {"nvidia.com/gpu": "1"}}})),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            one(json!({"livenessProbe": {}})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            one(json!({"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}})),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            one(json!({"env": [{"name": "A=B"}]})),
            "spec.containers[0].env[0].name: Invalid value: \"A=B\"",
        ),
        (
            one(json!({"imagePullPolicy": "x"})),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"x\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            pod(
                json!({"containers": [container()], "initContainers": [{"name": "i", "image": "x", "livenessProbe": {"tcpSocket": {"port": 1}}}]}),
            ),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            pod(
                json!({"containers": [container()], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
            ),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            pod(json!({"containers": [container()], "dnsPolicy": "None"})),
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ),
        (
            pod(json!({"containers": [container()], "ephemeralContainers": [container()]})),
            "spec.ephemeralContainers",
        ),
    ];
    for (found, expected) in cases {
        assert!(
            found.iter().any(|e| e.starts_with(expected)),
            "wanted {expected}\nfound {found:#?}"
        );
    }
}

#[test]
fn pod_updates() {
    let base = || json!({"spec": {"containers": [container()], "terminationGracePeriodSeconds": 5}});
    let ok = update_errors("v1", "Pod", base(), |p| {
        p["spec"]["containers"][0]["image"] = "nginx:2".into()
    });
    assert_eq!(ok, Vec::<String>::new());
    let ok = update_errors("v1", "Pod", base(), |p| {
        p["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
        p["spec"]["activeDeadlineSeconds"] = 5.into();
        meta::set_label(p, "x", "y");
    });
    assert_eq!(ok, Vec::<String>::new());
    let bad = update_errors("v1", "Pod", base(), |p| {
        p["spec"]["terminationGracePeriodSeconds"] = 6.into()
    });
    assert!(
        bad[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
        "{bad:?}"
    );
    let bad = update_errors("v1", "Pod", base(), |p| {
        p["spec"]["containers"] = json!([container(), container()])
    });
    assert_eq!(
        bad,
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    let gated = json!({"spec": {"containers": [container()], "schedulingGates": [{"name": "a"}]}});
    let ok = update_errors("v1", "Pod", gated.clone(), |p| {
        p["spec"]["schedulingGates"] = json!([]);
        p["spec"]["nodeSelector"] = json!({"a": "b"});
    });
    assert_eq!(ok, Vec::<String>::new());
    let bad = update_errors("v1", "Pod", gated, |p| {
        p["spec"]["schedulingGates"] = json!([{"name": "a"}, {"name": "b"}])
    });
    assert_eq!(
        bad,
        ["spec.schedulingGates[1]: Forbidden: only deletion is allowed, but found new scheduling gate 'b'"]
    );
}

#[test]
fn workloads() {
    let d = |obj| create_errors("apps/v1", "Deployment", obj);
    assert_eq!(d(deployment()), Vec::<String>::new());
    let cases = [
        (
            d(set(deployment(), "/spec/selector", json!(null))),
            "spec.selector: Required value",
        ),
        (
            d(set(deployment(), "/spec/selector", json!({}))),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            d(set(
                deployment(),
                "/spec/template/metadata/labels",
                json!({"a": "c"}),
            )),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
        ),
        (
            d(with(deployment(), "spec.replicas", json!(-1))),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            d(with(
                deployment(),
                "spec.template.spec.restartPolicy",
                json!("Never"),
            )),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            d(with(
                deployment(),
                "spec.strategy",
                json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            )),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
        ),
        (
            d(with(
                deployment(),
                "spec.strategy",
                json!({"type": "Recreate", "rollingUpdate": {}}),
            )),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
    ];
    for (found, expected) in cases {
        assert!(
            found.iter().any(|e| e == expected),
            "wanted {expected}\nfound {found:#?}"
        );
    }
    let bad = update_errors("apps/v1", "Deployment", deployment(), |d| {
        d["spec"]["selector"] = json!({"matchLabels": {"a": "b", "c": "d"}});
        d["spec"]["template"]["metadata"]["labels"] = json!({"a": "b", "c": "d"});
    });
    assert_eq!(
        bad,
        ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable"]
    );

    assert_eq!(
        create_errors("apps/v1", "DaemonSet", deployment()),
        Vec::<String>::new()
    );
    assert_eq!(
        create_errors("apps/v1", "ReplicaSet", deployment()),
        Vec::<String>::new()
    );
    let set_ = with(deployment(), "spec.serviceName", json!("s"));
    assert_eq!(
        create_errors("apps/v1", "StatefulSet", set_.clone()),
        Vec::<String>::new()
    );
    let bad = update_errors("apps/v1", "StatefulSet", set_.clone(), |s| {
        s["spec"]["serviceName"] = "t".into()
    });
    assert!(
        bad[0].starts_with("spec: Forbidden: updates to statefulset spec for fields other than 'replicas'")
    );
    assert_eq!(
        update_errors("apps/v1", "StatefulSet", set_, |s| s["spec"]["replicas"] =
            4.into()),
        Vec::<String>::new()
    );
}

#[test]
fn jobs() {
    let job =
        json!({"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container()]}}}});
    assert_eq!(
        create_errors("batch/v1", "Job", job.clone()),
        Vec::<String>::new()
    );
    let always = json!({"spec": {"template": {"spec": {"containers": [container()]}}}});
    assert_eq!(
        create_errors("batch/v1", "Job", always),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    let indexed = with(
        with(job.clone(), "spec.completionMode", json!("Indexed")),
        "spec.parallelism",
        json!(2),
    );
    assert_eq!(
        create_errors("batch/v1", "Job", indexed),
        ["spec.completions: Required value: when completion mode is Indexed"]
    );
    let bad = update_errors("batch/v1", "Job", job.clone(), |j| {
        j["spec"]["template"]["spec"]["containers"][0]["image"] = "y".into()
    });
    assert!(
        bad[0].starts_with("spec.template: Invalid value: {") && bad[0].ends_with("field is immutable"),
        "{bad:?}"
    );
    assert_eq!(
        update_errors("batch/v1", "Job", job.clone(), |j| j["spec"]["parallelism"] =
            3.into()),
        Vec::<String>::new()
    );
    let cron = |schedule: &str| {
        create_errors(
            "batch/v1",
            "CronJob",
            json!({"spec": {"schedule": schedule, "jobTemplate": job}}),
        )
    };
    for good in [
        "*/5 * * * *",
        "0 0 1 jan sun",
        "@hourly",
        "1-5,7 2/3 ? * 1-5",
        "@every 1h",
    ] {
        assert_eq!(cron(good), Vec::<String>::new(), "{good}");
    }
    for bad in [
        "* * * *",
        "60 * * * *",
        "@never",
        "5-1 * * * *",
        "*/0 * * * *",
        "TZ=UTC * * * * *",
        "a * * * *",
    ] {
        assert!(
            cron(bad)[0].starts_with("spec.schedule: Invalid value: "),
            "{bad}"
        );
    }
}

#[test]
fn services_and_ingresses() {
    let s = |spec: Value| create_errors("v1", "Service", json!({"spec": spec}));
    let port = json!([{"port": 80}]);
    assert_eq!(s(json!({"ports": port})), Vec::<String>::new());
    assert_eq!(s(json!({"clusterIP": "None"})), Vec::<String>::new());
    assert_eq!(
        s(json!({"type": "ExternalName", "externalName": "a.b.c."})),
        Vec::<String>::new()
    );
    let cases = [
        (s(json!({})), "spec.ports: Required value"),
        (
            s(json!({"ports": [{"port": 0}]})),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            s(json!({"ports": [{"port": 1}, {"port": 2}]})),
            "spec.ports[0].name: Required value",
        ),
        (
            s(json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]})),
            "spec.ports[1]: Duplicate value: {\"port\":1,\"protocol\":\"TCP\"}",
        ),
        (
            s(json!({"ports": [{"port": 1, "nodePort": 30000}]})),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            s(json!({"ports": port, "type": "Odd"})),
            "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            s(json!({"ports": port, "clusterIP": "10.x"})),
            "spec.clusterIPs[0]: Invalid value: \"10.x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            s(json!({"type": "ExternalName"})),
            "spec.externalName: Required value",
        ),
        (
            s(json!({"ports": port, "externalTrafficPolicy": "Local"})),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
    ];
    for (found, expected) in cases {
        assert!(
            found.iter().any(|e| e == expected),
            "wanted {expected}\nfound {found:#?}"
        );
    }
    let base = json!({"spec": {"ports": port, "clusterIP": "10.43.0.1"}});
    let bad = update_errors("v1", "Service", base, |s| {
        s["spec"]["clusterIP"] = "10.43.0.2".into()
    });
    assert_eq!(
        bad,
        ["spec.clusterIPs[0]: Invalid value: [\"10.43.0.2\"]: may not change once set"]
    );

    let i = |spec: Value| create_errors("networking.k8s.io/v1", "Ingress", json!({"spec": spec}));
    let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
    let rule = |path: Value| json!({"rules": [{"host": "a.b", "http": {"paths": [path]}}]});
    assert_eq!(
        i(rule(
            json!({"path": "/", "pathType": "Prefix", "backend": backend})
        )),
        Vec::<String>::new()
    );
    assert_eq!(
        i(rule(json!({"path": "/", "backend": backend}))),
        ["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"]
    );
    assert_eq!(
        i(rule(
            json!({"path": "x", "pathType": "Exact", "backend": backend})
        )),
        ["spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path"]
    );
    assert_eq!(
        i(json!({}))[0],
        "spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified"
    );

    let n = |peer: Value| {
        create_errors(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}, "ingress": [{"from": [peer]}]}}),
        )
    };
    assert_eq!(n(json!({"podSelector": {}})), Vec::<String>::new());
    assert_eq!(
        n(json!({})),
        ["spec.ingress[0].from[0]: Required value: must specify a peer"]
    );
    assert_eq!(
        n(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}})),
        [
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`"
        ]
    );
}

#[test]
fn configuration() {
    let c = |obj: Value| create_errors("v1", "ConfigMap", obj);
    assert_eq!(
        c(json!({"data": {"a.b": "c"}, "binaryData": {"x": "eA=="}})),
        Vec::<String>::new()
    );
    assert!(
        c(json!({"data": {"a/b": "c"}}))[0]
            .starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key")
    );
    let bad = update_errors(
        "v1",
        "ConfigMap",
        json!({"data": {"a": "b"}, "immutable": true}),
        |c| c["data"]["a"] = "c".into(),
    );
    assert_eq!(
        bad,
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let s = |obj: Value| create_errors("v1", "Secret", obj);
    assert_eq!(
        s(json!({"type": "kubernetes.io/tls"})),
        ["data[tls.crt]: Required value", "data[tls.key]: Required value"]
    );
    assert_eq!(
        s(json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}})),
        ["data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": must be a JSON object"]
    );
    assert_eq!(
        s(json!({"type": "kubernetes.io/basic-auth", "data": {"username": "eA=="}})),
        Vec::<String>::new()
    );
    let bad = update_errors("v1", "Secret", json!({}), |s| s["type"] = "other".into());
    assert_eq!(bad, ["type: Invalid value: \"other\": field is immutable"]);
}

#[test]
fn permissions_certificates_and_classes() {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    assert_eq!(
        create_errors(
            RBAC,
            "Role",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]})
        ),
        ["rules[0].verbs: Required value: verbs must contain at least one value"]
    );
    let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "d"}]});
    assert_eq!(
        create_errors(RBAC, "RoleBinding", binding.clone()),
        Vec::<String>::new()
    );
    let bad = update_errors(RBAC, "RoleBinding", binding, |b| {
        b["roleRef"]["name"] = "q".into()
    });
    assert!(bad[0].ends_with("cannot change roleRef"));
    let csr = |obj: Value| {
        create_errors(
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            json!({"spec": obj}),
        )
    };
    assert!(
        csr(json!({"signerName": "a.b/c", "usages": ["client auth"]}))[0]
            .ends_with("PEM block type must be CERTIFICATE REQUEST")
    );
    assert_eq!(
        create_errors(
            "scheduling.k8s.io/v1",
            "PriorityClass",
            json!({"value": 2_000_000_000})
        ),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
    let system = json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000});
    assert_eq!(
        create_errors("scheduling.k8s.io/v1", "PriorityClass", system),
        Vec::<String>::new()
    );
    assert_eq!(
        create_errors(
            "coordination.k8s.io/v1",
            "Lease",
            json!({"spec": {"leaseDurationSeconds": 0}})
        ),
        ["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"]
    );
}

#[test]
fn storage_rules() {
    let claim =
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(
        create_errors("v1", "PersistentVolumeClaim", claim.clone()),
        Vec::<String>::new()
    );
    assert_eq!(
        create_errors("v1", "PersistentVolumeClaim", json!({"spec": {}})),
        [
            "spec.accessModes: Required value: at least 1 access mode is required",
            "spec.resources[storage]: Required value"
        ]
    );
    let bad = update_errors("v1", "PersistentVolumeClaim", claim, |c| {
        c["spec"]["accessModes"] = json!(["ReadWriteMany"])
    });
    assert!(bad[0].starts_with("spec: Forbidden: spec is immutable after creation"));
    let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
    assert_eq!(
        create_errors("v1", "PersistentVolume", volume),
        Vec::<String>::new()
    );
    assert!(
        create_errors(
            "v1",
            "PersistentVolume",
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}})
        )
        .contains(&"spec: Required value: must specify a volume type".to_owned())
    );
    assert_eq!(
        create_errors(
            "storage.k8s.io/v1",
            "StorageClass",
            json!({"provisioner": "a.b/c"})
        ),
        Vec::<String>::new()
    );
}

#[test]
fn extensions() {
    let crd = |versions: Value| {
        create_errors(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget"}, "versions": versions}}),
        )
    };
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    assert_eq!(
        crd(json!([{"name": "v1", "served": true, "storage": true, "schema": schema}])),
        Vec::<String>::new()
    );
    assert!(
        crd(json!([{"name": "v1", "schema": schema}]))[0]
            .contains("must have exactly one version marked as storage version")
    );
    assert_eq!(
        crd(json!([{"name": "v1", "storage": true}])),
        ["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"]
    );
    let hook = json!({"webhooks": [{"name": "a.b.c", "clientConfig": {"url": "https://x"}, "sideEffects": "None", "admissionReviewVersions": ["v1"]}]});
    let found = create_errors(
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        hook,
    );
    assert_eq!(found, Vec::<String>::new());
}
