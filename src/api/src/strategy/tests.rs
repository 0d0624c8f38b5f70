use super::*;
use crate::kinds::Kinds;
use std::time::{Duration, UNIX_EPOCH};

fn kind(api_version: &str, name: &str) -> &'static Kind {
    Kinds::builtin().of(api_version, name).unwrap()
}

#[test]
fn create_drops_status_and_starts_generation() {
    let mut d = json!({"metadata": {"name": "d", "generation": 9}, "spec": {}, "status": {"replicas": 3}});
    prepare_for_create(kind("apps/v1", "Deployment"), &mut d);
    assert_eq!(d["metadata"]["generation"], 1);
    assert_eq!(d["status"], json!({}));
    let mut node = json!({"metadata": {"name": "n"}, "status": {"capacity": {}}});
    prepare_for_create(kind("v1", "Node"), &mut node);
    assert_eq!(node["status"], json!({"capacity": {}}));
    let mut ns = json!({"metadata": {"name": "n"}});
    prepare_for_create(kind("v1", "Namespace"), &mut ns);
    assert_eq!(ns["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(ns["status"]["phase"], "Active");
}

#[test]
fn quality_of_service() {
    let full = json!({"cpu": "1", "memory": "1Gi"});
    let cases = [
        (json!([{"name": "a"}]), "BestEffort"),
        (json!([{"resources": {"requests": {"cpu": "0"}}}]), "BestEffort"),
        (
            json!([{"resources": {"requests": full, "limits": full}}]),
            "Guaranteed",
        ),
        (
            json!([{"resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}, "limits": full}}]),
            "Guaranteed",
        ),
        (
            json!([{"resources": {"requests": full, "limits": full}}, {"name": "b"}]),
            "Burstable",
        ),
        (json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
        (json!([{"resources": {"limits": {"cpu": "1"}}}]), "Burstable"),
    ];
    for (containers, expected) in cases {
        let pod = json!({"spec": {"containers": containers}});
        assert_eq!(qos_class(&pod), expected, "{pod}");
    }
}

#[test]
fn jobs_get_a_selector_by_uid() {
    let mut job = json!({"metadata": {"name": "j", "uid": "u1"}, "spec": {"template": {"spec": {}}}});
    prepare_for_create(kind("batch/v1", "Job"), &mut job);
    assert_eq!(
        job["spec"]["selector"],
        json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u1"}})
    );
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    let mut manual = json!({"metadata": {"name": "j"}, "spec": {"manualSelector": true, "template": {}}});
    prepare_for_create(kind("batch/v1", "Job"), &mut manual);
    assert!(manual["spec"].get("selector").is_none());
}

#[test]
fn updates_keep_status_and_count_generations() {
    let d = kind("apps/v1", "Deployment");
    let old = json!({"metadata": {"name": "d", "uid": "u", "generation": 4, "creationTimestamp": "t"},
        "spec": {"replicas": 1}, "status": {"replicas": 1}});
    let cases = [
        (
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}, "status": {"replicas": 7}}),
            4,
        ),
        (
            json!({"metadata": {"name": "d", "generation": 99}, "spec": {"replicas": 2}}),
            5,
        ),
        (
            json!({"metadata": {"name": "d", "annotations": {"a": "b"}}, "spec": {"replicas": 1}}),
            5,
        ),
        (
            json!({"metadata": {"name": "d", "labels": {"a": "b"}}, "spec": {"replicas": 1, "x": []}}),
            4,
        ),
    ];
    for (mut new, generation) in cases {
        prepare_for_update(d, None, &mut new, &old);
        assert_eq!(new["status"], old["status"]);
        assert_eq!(new["metadata"]["generation"], generation);
        assert_eq!(new["metadata"]["uid"], "u");
        assert_eq!(new["metadata"]["creationTimestamp"], "t");
    }
    let mut new = json!({"metadata": {"name": "d", "labels": {"x": "y"}, "annotations": {"patchedstatus": "true"}},
        "spec": {"replicas": 9}, "status": {"replicas": 7}});
    let job = kind("batch/v1", "Job");
    let mut for_job = new.clone();
    prepare_for_update(d, Some("status"), &mut new, &old);
    assert_eq!(new["spec"], old["spec"]);
    assert_eq!(new["status"]["replicas"], 7);
    assert!(new["metadata"].get("labels").is_none());
    prepare_for_update(job, Some("status"), &mut for_job, &old);
    assert_eq!(for_job["metadata"]["annotations"]["patchedstatus"], "true");
    assert_eq!(for_job["metadata"]["generation"], 4);
}

#[test]
fn custom_resources_separate_status() {
    let mut widget = Kind::custom("example.com", "v1", "Widget", "widgets");
    let old = json!({"metadata": {"name": "w", "generation": 1, "resourceVersion": "5"}, "spec": {"a": 1}, "status": {"b": 1}});
    let new = json!({"metadata": {"name": "w", "labels": {"x": "y"}, "resourceVersion": "5"}, "spec": {"a": 2}, "status": {"b": 2}});
    let mut plain = new.clone();
    prepare_for_update(&widget, None, &mut plain, &old);
    assert_eq!(plain["status"]["b"], 2);
    assert_eq!(plain["metadata"]["generation"], 2);
    widget.traits.status = true;
    let mut main = new.clone();
    prepare_for_update(&widget, None, &mut main, &old);
    assert_eq!((&main["status"]["b"], &main["spec"]["a"]), (&json!(1), &json!(2)));
    let mut status = new.clone();
    prepare_for_update(&widget, Some("status"), &mut status, &old);
    assert_eq!(
        (&status["status"]["b"], &status["spec"]["a"]),
        (&json!(2), &json!(1))
    );
    assert!(status["metadata"].get("labels").is_none());
    assert_eq!(status["metadata"]["generation"], 1);
}

#[test]
fn services_keep_what_was_allocated() {
    let s = kind("v1", "Service");
    let old = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}, "status": {}});
    let mut new = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
    prepare_for_update(s, None, &mut new, &old);
    assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.0.9"]));
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
    assert!(new["spec"]["ports"][1].get("nodePort").is_none());
    let mut plain = json!({"metadata": {"name": "s"}, "spec": {"type": "ClusterIP", "clusterIP": "10.43.0.9", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
    prepare_for_update(s, None, &mut plain, &old);
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    let mut external = json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"]}});
    prepare_for_update(s, None, &mut external, &old);
    assert!(external["spec"].get("clusterIP").is_none() && external["spec"].get("clusterIPs").is_none());
}

#[test]
fn pod_subresources_change_only_their_part() {
    let p = kind("v1", "Pod");
    let old = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"containers": [{"name": "a", "image": "x"}]}, "status": {"qosClass": "BestEffort"}});
    let mut new = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "y", "resources": {"limits": {"cpu": "1"}}}],
        "ephemeralContainers": [{"name": "debug"}]}});
    let mut resized = new.clone();
    prepare_for_update(p, Some("ephemeralcontainers"), &mut new, &old);
    assert_eq!(new["spec"]["containers"][0]["image"], "x");
    assert_eq!(new["spec"]["ephemeralContainers"][0]["name"], "debug");
    assert_eq!(new["metadata"]["generation"], 2);
    prepare_for_update(p, Some("resize"), &mut resized, &old);
    assert_eq!(
        resized["spec"]["containers"][0],
        json!({"name": "a", "image": "x", "resources": {"limits": {"cpu": "1"}}})
    );
    assert!(resized["spec"].get("ephemeralContainers").is_none());
}

#[test]
fn pods_carry_their_own_label_values_in_selectors() {
    let term = json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["v", "none"]});
    let mut pod = json!({"metadata": {"name": "p", "labels": {"v": "1"}}, "spec": {"containers": [],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
        "topologySpreadConstraints": [term]}});
    prepare_for_create(kind("v1", "Pod"), &mut pod);
    let wanted = json!([{"key": "v", "operator": "In", "values": ["1"]}]);
    assert_eq!(
        pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"],
        wanted
    );
    let anti =
        &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0];
    assert_eq!(anti["labelSelector"]["matchExpressions"], wanted);
}

#[test]
fn pod_status_keeps_what_old_clients_do_not_know() {
    let old = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"qosClass": "Burstable", "observedGeneration": 3,
        "conditions": [{"type": "Ready", "status": "True", "observedGeneration": 2}]}});
    let mut new = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"x": 1},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}});
    prepare_for_update(kind("v1", "Pod"), Some("status"), &mut new, &old);
    assert_eq!(
        new,
        json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Running", "qosClass": "Burstable",
        "observedGeneration": 3, "conditions": [{"type": "Ready", "status": "False", "observedGeneration": 2}]}})
    );
}

#[test]
fn certificate_decisions_are_made_in_one_place() {
    let csr = kind("certificates.k8s.io/v1", "CertificateSigningRequest");
    let old = json!({"metadata": {"name": "c"}, "spec": {"request": "x"}, "status": {}});
    let approved = json!({"metadata": {"name": "c"}, "spec": {"request": "evil"},
        "status": {"conditions": [{"type": "Approved", "status": "True"}], "certificate": "evil"}});
    let mut new = approved.clone();
    prepare_for_update(csr, Some("approval"), &mut new, &old);
    stamp(csr, &mut new, &old, UNIX_EPOCH);
    assert_eq!(new["spec"]["request"], "x");
    assert!(new["status"].get("certificate").is_none());
    assert_eq!(
        new["status"]["conditions"][0]["lastTransitionTime"],
        "1970-01-01T00:00:00Z"
    );
    let mut sneaky = approved;
    prepare_for_update(csr, Some("status"), &mut sneaky, &old);
    assert!(sneaky["status"].get("conditions").is_none());
}

#[test]
fn deletion_has_a_deadline_that_only_shrinks() {
    let p = kind("v1", "Pod");
    let pod = json!({"metadata": {"name": "p", "generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 10}, "status": {"phase": "Running"}});
    assert_eq!(grace_period(p, &pod, None), 10);
    assert_eq!(grace_period(p, &pod, Some(0)), 0);
    assert_eq!(grace_period(p, &json!({"spec": {}}), Some(30)), 0);
    assert_eq!(grace_period(kind("v1", "ConfigMap"), &pod, Some(30)), 0);
    let mut pod = pod;
    assert!(mark_deleting(&mut pod, UNIX_EPOCH, 10));
    assert_eq!(pod["metadata"]["deletionTimestamp"], "1970-01-01T00:00:10Z");
    assert_eq!(pod["metadata"]["generation"], 2);
    assert!(!mark_deleting(&mut pod, UNIX_EPOCH + Duration::from_secs(1), 30));
    assert!(mark_deleting(&mut pod, UNIX_EPOCH + Duration::from_secs(1), 5));
    assert_eq!(pod["metadata"]["deletionTimestamp"], "1970-01-01T00:00:05Z");
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 5);
}

#[test]
fn scale_shows_and_sets_replicas() {
    let mut d = json!({"metadata": {"name": "d", "uid": "u"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
    let mut s = scale::of(kind("apps/v1", "Deployment"), &d);
    assert_eq!(s["spec"]["replicas"], 2);
    assert_eq!(s["status"], json!({"replicas": 1, "selector": "a=b"}));
    s["spec"]["replicas"] = 5.into();
    scale::apply(kind("apps/v1", "Deployment"), &s, &mut d);
    assert_eq!(d["spec"]["replicas"], 5);
    let rc = json!({"spec": {"selector": {"a": "b"}}});
    assert_eq!(
        scale::of(kind("v1", "ReplicationController"), &rc)["status"]["selector"],
        "a=b"
    );
}
