use super::*;
use crate::kinds::Kinds;
use std::time::UNIX_EPOCH;

fn kind(api_version: &str, name: &str) -> &'static Kind {
    Kinds::builtin().of(api_version, name).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Cells with their headings, so that a test names what it looks at.
fn show(api_version: &str, name: &str, obj: Value) -> Vec<(String, Value)> {
    let kind = kind(api_version, name);
    let headings = columns(kind);
    let cells = cells(kind, &obj, at(7200));
    assert_eq!(headings.as_array().unwrap().len(), cells.len());
    headings
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h["name"].as_str().unwrap().to_owned())
        .zip(cells)
        .collect()
}

fn look(cells: &[(String, Value)], heading: &str) -> Value {
    cells
        .iter()
        .find(|(h, _)| h == heading)
        .unwrap_or_else(|| panic!("no column {heading}"))
        .1
        .clone()
}

#[test]
fn every_table_belongs_to_a_kind_and_fits_any_object() {
    for (group, name) in columns::kinds() {
        assert!(
            Kinds::builtin()
                .iter()
                .any(|k| k.group == group && k.kind == name),
            "{group}/{name}"
        );
    }
    for kind in Kinds::builtin().iter() {
        for odd in [
            json!({}),
            json!({"spec": 1, "status": [], "metadata": "x"}),
            json!(null),
        ] {
            let made = table(
                kind,
                std::slice::from_ref(&odd),
                json!({}),
                at(0),
                IncludeObject::Object,
            );
            let width = made["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(
                made["rows"][0]["cells"].as_array().unwrap().len(),
                width,
                "{}",
                kind.kind
            );
        }
    }
}

#[test]
fn durations_read_like_kubectl() {
    let (m, h, d) = (60, 3600, 86400);
    for (seconds, text) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (192, "3m12s"),
        (10 * m, "10m"),
        (179 * m, "179m"),
        (3 * h, "3h"),
        (3 * h + 5 * m, "3h5m"),
        (8 * h, "8h"),
        (47 * h, "47h"),
        (48 * h, "2d"),
        (5 * d + 3 * h, "5d3h"),
        (8 * d, "8d"),
        (729 * d, "729d"),
        (730 * d, "2y"),
        (740 * d, "2y10d"),
        (365 * 9 * d, "9y"),
    ] {
        assert_eq!(human_duration(Duration::from_secs(seconds)), text);
    }
    assert_eq!(since("1970-01-01T02:00:00Z", at(7200)), "0s");
    assert_eq!(since("1970-01-01T02:00:01Z", at(7200)), "0s");
    assert_eq!(since("1970-01-01T03:00:00Z", at(7200)), "<invalid>");
    assert_eq!(since("", at(0)), "<unknown>");
}

#[test]
fn pods_are_summed_up() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n1"});
    let running = |restarts: i64| {
        json!({"name": "a", "ready": true, "restartCount": restarts, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "1970-01-01T01:57:00Z"}}})
    };
    let waiting = json!({"name": "b", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
    let done = json!({"name": "b", "ready": false, "restartCount": 0, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
    let killed = json!({"name": "b", "ready": false, "restartCount": 0, "state": {"terminated": {"signal": 9, "exitCode": 137}}});
    let cases = [
        (json!({"phase": "Pending"}), "0/2", "Pending", "0"),
        (
            json!({"phase": "Running", "containerStatuses": [running(0), waiting]}),
            "1/2",
            "CrashLoopBackOff",
            "0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running(2), running(1)]}),
            "2/2",
            "Running",
            "3 (3m ago)",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running(0), done]}),
            "1/2",
            "NotReady",
            "0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running(0), done], "conditions": [{"type": "Ready", "status": "True"}]}),
            "1/2",
            "Running",
            "0",
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running(0), killed]}),
            "1/2",
            "Signal:9",
            "0",
        ),
        (
            json!({"phase": "Failed", "reason": "Evicted"}),
            "0/2",
            "Evicted",
            "0",
        ),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "0/2",
            "SchedulingGated",
            "0",
        ),
    ];
    for (status, ready, reason, restarts) in cases {
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": spec, "status": status});
        let cells = show("v1", "Pod", pod);
        assert_eq!(look(&cells, "Ready"), ready, "{status}");
        assert_eq!(look(&cells, "Status"), reason, "{status}");
        assert_eq!(look(&cells, "Restarts"), restarts, "{status}");
        assert_eq!(look(&cells, "Age"), "120m");
        assert_eq!(look(&cells, "Node"), "n1");
        assert_eq!(look(&cells, "IP"), "<none>");
    }
}

#[test]
fn init_containers_and_sidecars_count() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    let init = |status: Value| json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
    let cases = [
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            "0/2",
            "Init:0/2",
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1}}}]}),
            "0/2",
            "Init:ExitCode:1",
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                {"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]}),
            "2/2",
            "Running",
        ),
    ];
    for (status, ready, reason) in cases {
        let cells = show("v1", "Pod", init(status.clone()));
        assert_eq!(look(&cells, "Ready"), ready, "{status}");
        assert_eq!(look(&cells, "Status"), reason, "{status}");
    }
    let mut leaving = init(json!({"phase": "Running"}));
    meta::set_deletion_timestamp(&mut leaving, "1970-01-01T00:00:00Z");
    assert_eq!(look(&show("v1", "Pod", leaving), "Status"), "Terminating");
}

#[test]
fn nodes_services_and_workloads() {
    let node = show(
        "v1",
        "Node",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}}),
    );
    assert_eq!(look(&node, "Status"), "Ready,SchedulingDisabled");
    assert_eq!(look(&node, "Roles"), "control-plane,edge");
    assert_eq!(look(&node, "Internal-IP"), "1.2.3.4");
    assert_eq!(look(&node, "External-IP"), "<none>");

    let service = show(
        "v1",
        "Service",
        json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.43.0.5"], "selector": {"a": "b"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
    );
    assert_eq!(look(&service, "External-IP"), "<pending>");
    assert_eq!(look(&service, "Port(s)"), "80:30080/TCP,53/UDP");
    assert_eq!(look(&service, "Selector"), "a=b");

    let deployment = show(
        "apps/v1",
        "Deployment",
        json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
            "template": {"spec": {"containers": [{"name": "x", "image": "i:1"}, {"name": "y", "image": "j"}]}}},
            "status": {"readyReplicas": 2, "updatedReplicas": 1}}),
    );
    assert_eq!(look(&deployment, "Ready"), "2/3");
    assert_eq!(look(&deployment, "Up-to-date"), 1);
    assert_eq!(look(&deployment, "Available"), 0);
    assert_eq!(look(&deployment, "Images"), "i:1,j");
    assert_eq!(look(&deployment, "Selector"), "a=b");

    let job = show(
        "batch/v1",
        "Job",
        json!({"spec": {"completions": 1}, "status": {"succeeded": 1, "startTime": "1970-01-01T00:00:00Z",
            "completionTime": "1970-01-01T00:00:07Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
    );
    assert_eq!(look(&job, "Status"), "Complete");
    assert_eq!(look(&job, "Completions"), "1/1");
    assert_eq!(look(&job, "Duration"), "7s");

    let hpa = json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5, "minReplicas": 1,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}, "status": {}});
    let cells = show("autoscaling/v2", "HorizontalPodAutoscaler", hpa.clone());
    assert_eq!(look(&cells, "Targets"), "cpu: <unknown>/80%");
    assert_eq!(look(&cells, "MinPods"), "1");
    let mut v1 = hpa;
    conversion::from_storage(kind("autoscaling/v1", "HorizontalPodAutoscaler"), &mut v1);
    assert_eq!(
        look(&show("autoscaling/v1", "HorizontalPodAutoscaler", v1), "Targets"),
        "cpu: <unknown>/80%"
    );
}

#[test]
fn events_endpoints_and_the_rest() {
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal",
        "message": " hi ", "lastTimestamp": "1970-01-01T01:59:00Z", "source": {"component": "kubelet", "host": "n"}});
    for version in ["v1", "events.k8s.io/v1"] {
        let cells = show(version, "Event", event.clone());
        assert_eq!(look(&cells, "Last Seen"), "60s");
        assert_eq!(look(&cells, "Object"), "pod/p");
        assert_eq!(look(&cells, "Message"), "hi");
        assert_eq!(look(&cells, "Source"), "kubelet, n");
        assert_eq!(look(&cells, "Count"), 1);
    }
    let mut new = event;
    conversion::from_storage(kind("events.k8s.io/v1", "Event"), &mut new);
    assert_eq!(look(&show("events.k8s.io/v1", "Event", new), "Object"), "pod/p");

    let ips: Vec<Value> = (1..=5).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect();
    let cells = show(
        "v1",
        "Endpoints",
        json!({"subsets": [{"addresses": ips, "ports": [{"port": 80}]}]}),
    );
    assert_eq!(
        look(&cells, "Endpoints"),
        "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more..."
    );
    let cells = show(
        "storage.k8s.io/v1",
        "StorageClass",
        json!({"metadata": {"name": "local", "annotations":
        {"storageclass.kubernetes.io/is-default-class": "true"}}, "allowVolumeExpansion": true}),
    );
    assert_eq!(look(&cells, "Name"), "local (default)");
    assert_eq!(look(&cells, "AllowVolumeExpansion"), "true");
    let cells = show(
        "certificates.k8s.io/v1",
        "CertificateSigningRequest",
        json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}),
    );
    assert_eq!(look(&cells, "Condition"), "Approved,Issued");
    let cells = show(
        "v1",
        "ResourceQuota",
        json!({"status": {"hard": {"pods": "5", "limits.cpu": "2"}, "used": {"pods": "1"}}}),
    );
    assert_eq!(look(&cells, "Request"), "pods: 1/5");
    assert_eq!(look(&cells, "Limit"), "limits.cpu: 0/2");
}

#[test]
fn custom_resources_bring_their_columns() {
    let mut widget = Kind::custom("example.com", "v1", "Widget", "widgets");
    let obj = json!({"metadata": {"name": "w", "creationTimestamp": "1970-01-01T00:00:00Z"}, "spec": {"size": 3, "tags": ["a"]}});
    assert_eq!(cells(&widget, &obj, at(60)), [json!("w"), json!("60s")]);
    let column = |name: &'static str, kind: &'static str, path: &'static str| PrinterColumn {
        name: name.into(),
        kind: kind.into(),
        format: "".into(),
        description: "".into(),
        priority: 1,
        json_path: path.into(),
    };
    widget.columns = vec![
        column("Size", "integer", ".spec.size"),
        column("Tags", "string", ".spec.tags"),
        column("Gone", "string", ".spec.gone"),
    ];
    assert_eq!(
        cells(&widget, &obj, at(60)),
        [json!("w"), json!(3), json!("[\"a\"]"), Value::Null]
    );
    let made = table(
        &widget,
        &[obj],
        json!({"resourceVersion": "5", "x": 1}),
        at(60),
        IncludeObject::Metadata,
    );
    assert_eq!(made["metadata"], json!({"resourceVersion": "5"}));
    assert_eq!(made["columnDefinitions"][1]["priority"], 1);
    assert_eq!(made["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}
