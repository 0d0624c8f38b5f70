use serde_json::json;

use super::*;

fn reference_targets(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| match inner {
            Value::String(target) if key == "$ref" => {
                out.insert(target.clone());
            }
            _ => reference_targets(inner, out),
        }),
        Value::Array(items) => items.iter().for_each(|inner| reference_targets(inner, out)),
        _ => {}
    }
}

#[test]
fn every_document_of_the_index_is_there_and_complete() {
    let source = Source::builtin();
    let index = v3_index(&source);
    let paths = index["paths"].as_object().expect("paths");
    assert!(
        paths.contains_key("apis/apps/v1") && paths.contains_key("api/v1") && paths.contains_key("version")
    );
    for (name, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().expect("a URL");
        assert_eq!(url, format!("/openapi/v3/{name}?hash={}", v3_hash(&source, name)));
        let document = v3_document(&source, name).unwrap_or_else(|| panic!("{name} is missing"));
        let mut targets = BTreeSet::new();
        reference_targets(&document, &mut targets);
        for target in targets {
            let schema = target.strip_prefix("#/components/schemas/").expect("a component");
            assert!(
                document["components"]["schemas"].get(schema).is_some(),
                "{name} lacks {schema}"
            );
        }
    }
    assert_eq!(v3_document(&source, "apis/nothing/v1"), None);
    assert_eq!(v3_document(&source, "apis/nothing"), None);
}

#[test]
fn operations_say_what_clients_look_for() {
    let document = v3_group(&Source::builtin(), "apps", "v1").expect("apps");
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(patch["operationId"], "patchAppsV1NamespacedDeployment");
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({ "group": "apps", "version": "v1", "kind": "Deployment" })
    );
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .expect("parameters")
        .iter()
        .filter_map(|item| item["name"].as_str())
        .collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    let scale = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
}

#[test]
fn definitions_carry_markers_and_texts() {
    let document = v3_group(&Source::builtin(), "", "v1").expect("core");
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert!(
        containers["description"]
            .as_str()
            .is_some_and(|text| text.contains("ontainers"))
    );
    assert_eq!(
        containers["items"],
        json!({ "$ref": "#/components/schemas/io.k8s.api.core.v1.Container" })
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"]["default"],
        "TCP"
    );
    assert!(schemas.get("io.k8s.api.apps.v1.Deployment").is_none());
    let text = document.to_string();
    assert!(!text.contains("x-skiff"));
}

#[test]
fn version_2_is_complete_and_has_no_strangers() {
    let document = v2(&Source::builtin());
    let mut targets = BTreeSet::new();
    reference_targets(&document, &mut targets);
    for target in targets {
        let mut parts = target.trim_start_matches("#/").splitn(2, '/');
        let (section, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        assert!(document[section].get(name).is_some(), "{target} is missing");
    }
    assert!(
        document["definitions"]
            .as_object()
            .is_some_and(|all| all.len() > 500)
    );
    let protobuf = v2_protobuf(&document);
    // Field 1, length 3: the version comes first.
    assert!(protobuf.starts_with(b"\x0a\x032.0"));
}

#[test]
fn custom_resources_are_described() {
    let mut kinds = Kinds::builtin().clone();
    let before = v3_index(&Source {
        kinds: &kinds,
        custom: &|_| None,
    });
    kinds.insert(Kind::custom("stable.example.com", "v1", "CronTab", "crontabs"));
    let schema = json!({ "type": "object", "properties": { "spec": { "type": "object",
        "properties": { "size": { "type": "integer", "nullable": true }, "any": { "x-kubernetes-int-or-string": true,
            "anyOf": [{ "type": "integer" }, { "type": "string" }] } } } } });
    let custom = |_: &Kind| Some(schema.clone());
    let source = Source {
        kinds: &kinds,
        custom: &custom,
    };
    let document = v3_group(&source, "stable.example.com", "v1").expect("a document");
    let definition = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(
        definition["properties"]["spec"]["properties"]["size"]["nullable"],
        true
    );
    assert_eq!(
        definition["x-kubernetes-group-version-kind"][0]["kind"],
        "CronTab"
    );
    assert!(
        document["components"]["schemas"]
            .get("com.example.stable.v1.CronTabList")
            .is_some()
    );
    let old = v2(&source);
    let spec = &old["definitions"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"];
    assert_eq!(
        spec,
        &json!({ "size": {}, "any": { "x-kubernetes-int-or-string": true } })
    );
    let after = v3_index(&source);
    assert_eq!(before["paths"]["apis/apps/v1"], after["paths"]["apis/apps/v1"]);
    assert!(after["paths"].get("apis/stable.example.com/v1").is_some());
    let changed = |_: &Kind| Some(json!({ "type": "object" }));
    let changed = Source {
        kinds: &kinds,
        custom: &changed,
    };
    assert_ne!(
        v3_hash(&source, "apis/stable.example.com/v1"),
        v3_hash(&changed, "apis/stable.example.com/v1")
    );
    assert_ne!(v2_hash(&source), v2_hash(&changed));
}
