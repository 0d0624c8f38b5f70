use serde_json::json;

use super::*;

fn pod() -> View<'static> {
    Schema::builtin()
        .kind("", "v1", "Pod")
        .expect("pods are built in")
}

#[test]
fn kinds_and_fields_are_found() {
    let deployment = Schema::builtin()
        .kind("apps", "v1", "Deployment")
        .expect("deployments are built in");
    let replicas = deployment.descend(&["spec", "replicas"]).expect("replicas");
    assert!(matches!(replicas.shape(), Shape::Scalar(Scalar::Int32)));
    assert_eq!(deployment.type_name(), "v1.Deployment");
    assert!(Schema::builtin().kind("apps", "v1", "Deploymint").is_none());
    assert!(Schema::builtin().kind("", "v1", "PodList").is_some());
    assert!(Schema::builtin().kind("", "v1", "Status").is_some());
}

#[test]
fn list_and_patch_facts_are_there() {
    let spec = pod().descend(&["spec"]).expect("spec");
    let (field, containers) = spec.field("containers").expect("containers");
    assert_eq!(field.patch.merge_key.as_deref(), Some("name"));
    let Shape::List(_, ListKind::Map(keys)) = containers.shape() else {
        panic!("{:?}", containers.shape())
    };
    assert_eq!(&*keys[0].name, "name");
    let ports = containers
        .items()
        .and_then(|item| item.descend(&["ports"]))
        .expect("ports");
    let Shape::List(_, ListKind::Map(keys)) = ports.shape() else {
        panic!("{:?}", ports.shape())
    };
    assert_eq!(
        keys[1],
        ListKey {
            name: "protocol".into(),
            default: Some(json!("TCP"))
        }
    );
    assert!(spec.descend(&["nodeSelector"]).expect("nodeSelector").is_atomic());
    let (field, _) = spec.field("volumes").expect("volumes");
    assert!(field.patch.retain_keys && field.patch.merge);
}

#[test]
fn a_field_overrides_what_its_type_says() {
    let schema = Schema::builtin();
    let volume = schema.kind("", "v1", "PersistentVolume").expect("built in");
    assert!(
        !volume
            .descend(&["spec", "claimRef"])
            .expect("claimRef")
            .is_atomic()
    );
    assert!(
        schema
            .definition("io.k8s.api.core.v1.ObjectReference")
            .expect("defined")
            .is_atomic()
    );
}

#[test]
fn the_zero_value_holds_structs_and_required_fields() {
    assert_eq!(
        zero_value(pod()),
        json!({ "metadata": {}, "spec": { "containers": null }, "status": {} })
    );
}

#[test]
fn values_are_written_out() {
    let mut pod_value = json!({ "spec": { "containers": [{ "name": "a" }] } });
    fill_values(pod(), &mut pod_value);
    assert_eq!(
        pod_value,
        json!({ "metadata": {}, "spec": { "containers": [{ "name": "a", "resources": {} }] }, "status": {} })
    );
}

#[test]
fn custom_schemas_have_object_fields_and_defaults() {
    let schema = Schema::custom(&json!({
        "type": "object",
        "properties": {
            "spec": { "type": "object", "properties": {
                "size": { "type": "integer", "default": 3 },
                "ports": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port"],
                    "items": { "type": "object", "required": ["port"], "properties": { "port": { "type": "integer" } } } },
                "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            } }
        }
    }))
    .expect("a valid schema");
    let labels = schema
        .root()
        .descend(&["metadata", "labels"])
        .expect("metadata is known");
    assert!(matches!(labels.shape(), Shape::Map(_)));
    assert!(schema.root().descend(&["spec", "free", "anything"]).is_some());
    assert!(schema.root().descend(&["spec", "fred"]).is_none());
    let mut object = json!({ "spec": { "size": null } });
    apply_defaults(schema.root(), &mut object);
    assert_eq!(object, json!({ "spec": { "size": 3 } }));
}

#[test]
fn descriptions_are_separate() {
    let texts = descriptions();
    assert!(texts["io.k8s.api.core.v1.PodSpec"].1["containers"].contains("containers"));
    assert!(
        structure()["io.k8s.api.core.v1.PodSpec"]
            .get("description")
            .is_none()
    );
}

#[test]
fn endless_schemas_are_refused() {
    let mut schema = json!({ "type": "string" });
    for _ in 0..200 {
        schema = json!({ "type": "object", "properties": { "a": schema } });
    }
    assert!(matches!(Schema::custom(&schema), Err(SchemaError::TooDeep(_))));
}
