//! Writes the schemas of all served types into `OUT_DIR`.
//!
//! The k8s-openapi crate knows every field, its type and its description;
//! `src/schema/markers.txt` adds what it leaves out (list types, patch
//! strategies, kinds, defaults). Both are joined here, once, into two files:
//!
//! * `structure.z`: definitions without descriptions, decoded by every server;
//! * `descriptions.z`: `{definition: [text, {field: text}]}`, decoded only while
//!   an OpenAPI document is put together.
//!
//! A row of the table that names an unknown type or field stops the build.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use k8s_openapi::schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

const MARKERS: &str = "src/schema/markers.txt";

/// Adds each named type, and with it everything it refers to.
macro_rules! generate {
    ($generator:expr, $($($segment:ident)::+),+ $(,)?) => {
        $( $generator.subschema_for::<k8s_openapi::$($segment)::+>(); )+
    };
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={MARKERS}");
    let mut definitions = definitions();
    let table = std::fs::read_to_string(MARKERS).unwrap_or_else(|err| panic!("{MARKERS}: {err}"));
    let mut descriptions = take_descriptions(&mut definitions);
    apply_markers(&table, &mut definitions, &mut descriptions);
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    write(&Path::new(&out).join("structure.z"), &json!(definitions));
    write(&Path::new(&out).join("descriptions.z"), &json!(descriptions));
}

fn write(path: &Path, value: &Value) {
    let file = std::fs::File::create(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let mut encoder = flate2::write::ZlibEncoder::new(file, flate2::Compression::best());
    encoder
        .write_all(value.to_string().as_bytes())
        .expect("write to OUT_DIR");
    encoder.finish().expect("write to OUT_DIR");
}

type Definitions = BTreeMap<String, Map<String, Value>>;
type Descriptions = BTreeMap<String, (String, BTreeMap<String, String>)>;

fn definitions() -> Definitions {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    generate!(
        generator,
        api::admissionregistration::v1::MutatingAdmissionPolicy,
        api::admissionregistration::v1::MutatingAdmissionPolicyBinding,
        api::admissionregistration::v1::MutatingWebhookConfiguration,
        api::admissionregistration::v1::ValidatingAdmissionPolicy,
        api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
        api::admissionregistration::v1::ValidatingWebhookConfiguration,
        api::apps::v1::ControllerRevision,
        api::apps::v1::DaemonSet,
        api::apps::v1::Deployment,
        api::apps::v1::ReplicaSet,
        api::apps::v1::StatefulSet,
        api::authentication::v1::SelfSubjectReview,
        api::authentication::v1::TokenRequest,
        api::authentication::v1::TokenReview,
        api::authorization::v1::LocalSubjectAccessReview,
        api::authorization::v1::SelfSubjectAccessReview,
        api::authorization::v1::SelfSubjectRulesReview,
        api::authorization::v1::SubjectAccessReview,
        api::autoscaling::v1::HorizontalPodAutoscaler,
        api::autoscaling::v1::Scale,
        api::autoscaling::v2::HorizontalPodAutoscaler,
        api::batch::v1::CronJob,
        api::batch::v1::Job,
        api::certificates::v1::CertificateSigningRequest,
        api::coordination::v1::Lease,
        api::core::v1::Binding,
        api::core::v1::ComponentStatus,
        api::core::v1::ConfigMap,
        api::core::v1::Endpoints,
        api::core::v1::Event,
        api::core::v1::LimitRange,
        api::core::v1::Namespace,
        api::core::v1::Node,
        api::core::v1::PersistentVolume,
        api::core::v1::Pod,
        api::core::v1::PodTemplate,
        api::core::v1::ReplicationController,
        api::core::v1::ResourceQuota,
        api::core::v1::Secret,
        api::core::v1::Service,
        api::core::v1::ServiceAccount,
        api::discovery::v1::EndpointSlice,
        api::events::v1::Event,
        api::flowcontrol::v1::FlowSchema,
        api::flowcontrol::v1::PriorityLevelConfiguration,
        api::networking::v1::IPAddress,
        api::networking::v1::Ingress,
        api::networking::v1::IngressClass,
        api::networking::v1::NetworkPolicy,
        api::networking::v1::ServiceCIDR,
        api::node::v1::RuntimeClass,
        api::policy::v1::Eviction,
        api::policy::v1::PodDisruptionBudget,
        api::rbac::v1::ClusterRole,
        api::rbac::v1::ClusterRoleBinding,
        api::rbac::v1::Role,
        api::rbac::v1::RoleBinding,
        api::resource::v1::DeviceClass,
        api::resource::v1::ResourceClaim,
        api::resource::v1::ResourceClaimTemplate,
        api::resource::v1::ResourceSlice,
        api::scheduling::v1::PriorityClass,
        api::storage::v1::CSIDriver,
        api::storage::v1::CSINode,
        api::storage::v1::CSIStorageCapacity,
        api::storage::v1::StorageClass,
        api::storage::v1::VolumeAttachment,
        api::storage::v1::VolumeAttributesClass,
        apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        apimachinery::pkg::apis::meta::v1::APIGroupList,
        apimachinery::pkg::apis::meta::v1::APIResourceList,
        apimachinery::pkg::apis::meta::v1::APIVersions,
        apimachinery::pkg::apis::meta::v1::ListMeta,
        apimachinery::pkg::apis::meta::v1::Patch,
        apimachinery::pkg::apis::meta::v1::Status,
        apimachinery::pkg::version::Info,
        kube_aggregator::pkg::apis::apiregistration::v1::APIService,
    );
    let mut out = Definitions::new();
    out.insert(
        "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent".into(),
        watch_event(),
    );
    for (name, value) in generator.take_definitions(false) {
        let Value::Object(mut definition) = value else {
            panic!("{name} is no object schema")
        };
        shorten_references(&mut definition);
        if definition.get("type") == Some(&json!("object"))
            && !definition.contains_key("properties")
            && !definition.contains_key("additionalProperties")
        {
            definition.insert("x-kubernetes-preserve-unknown-fields".into(), json!(true));
        }
        // Metadata may be left out of all kinds but those that the table names.
        require(&mut definition, "metadata", false);
        out.insert(name, definition);
    }
    out
}

fn require(definition: &mut Map<String, Value>, field: &str, needed: bool) {
    let mut required = match definition.remove("required") {
        Some(Value::Array(names)) => names,
        _ => Vec::new(),
    };
    required.retain(|name| name != field);
    if needed {
        required.push(json!(field));
    }
    if !required.is_empty() {
        definition.insert("required".into(), Value::Array(required));
    }
}

/// Generic in the crate; on the wire its object is any object.
fn watch_event() -> Map<String, Value> {
    let Value::Object(event) = json!({
        "type": "object",
        "description": "One change, as sent on a watch.",
        "required": ["type", "object"],
        "properties": {
            "object": {
                "$ref": "io.k8s.apimachinery.pkg.runtime.RawExtension",
                "description": "The object after the change for ADDED and MODIFIED, before it for DELETED; \
                    a Status for ERROR; for BOOKMARK an object of which only the resource version counts.",
            },
            "type": { "type": "string" },
        },
    }) else {
        unreachable!("an object literal")
    };
    event
}

/// `#/$defs/NAME` becomes `NAME`.
fn shorten_references(map: &mut Map<String, Value>) {
    for (key, value) in map.iter_mut() {
        match value {
            Value::String(target) if key == "$ref" => {
                *target = target.rsplit('/').next().unwrap_or_default().to_owned();
            }
            Value::Object(inner) => shorten_references(inner),
            Value::Array(items) => {
                for item in items {
                    if let Value::Object(inner) = item {
                        shorten_references(inner);
                    }
                }
            }
            _ => {}
        }
    }
}

fn take_descriptions(definitions: &mut Definitions) -> Descriptions {
    let mut out = Descriptions::new();
    for (name, definition) in definitions {
        let text = take_text(definition);
        let mut fields = BTreeMap::new();
        if let Some(Value::Object(properties)) = definition.get_mut("properties") {
            for (field, schema) in properties.iter_mut() {
                let Value::Object(schema) = schema else {
                    panic!("{name}.{field} is no schema")
                };
                let text = take_text(schema);
                if !text.is_empty() {
                    fields.insert(field.clone(), text);
                }
            }
        }
        out.insert(name.clone(), (text, fields));
    }
    out
}

fn take_text(schema: &mut Map<String, Value>) -> String {
    match schema.remove("description") {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn apply_markers(table: &str, definitions: &mut Definitions, descriptions: &mut Descriptions) {
    let mut current = String::new();
    for (index, line) in table.lines().enumerate() {
        let place = format!("{MARKERS}:{}", index + 1);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            current = if name.starts_with("io.k8s.") {
                name.into()
            } else {
                format!("io.k8s.api.{name}")
            };
            assert!(
                definitions.contains_key(&current),
                "{place}: unknown type {current}"
            );
            continue;
        }
        if let Some(facts) = line.strip_prefix("  ") {
            let definition = definitions
                .get_mut(&current)
                .expect("checked at the section's head");
            mark_field(&place, definition, facts);
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let definition = definitions
            .get_mut(&current)
            .expect("checked at the section's head");
        match word {
            "type" => set(definition, "x-kubernetes-map-type", json!(rest)),
            "unions" => {
                let unions = serde_json::from_str(rest).unwrap_or_else(|err| panic!("{place}: {err}"));
                set(definition, "x-kubernetes-unions", unions);
            }
            "kind" => mark_kind(&place, &current, rest, definitions, descriptions),
            _ => panic!("{place}: unknown fact {word:?}"),
        }
    }
}

fn set(schema: &mut Map<String, Value>, key: &str, value: Value) {
    schema.insert(key.to_owned(), value);
}

fn mark_kind(
    place: &str,
    name: &str,
    facts: &str,
    definitions: &mut Definitions,
    descriptions: &mut Descriptions,
) {
    let mut words = facts.split(' ');
    let (group, version) = words
        .next()
        .and_then(|gv| gv.split_once('/'))
        .unwrap_or_else(|| panic!("{place}: no group/version"));
    let group = if group == "core" { "" } else { group };
    let kind = name.rsplit('.').next().unwrap_or_default();
    let definition = definitions.get_mut(name).expect("checked at the section's head");
    let gvk = |kind: &str| json!([{ "group": group, "version": version, "kind": kind }]);
    set(definition, "x-kubernetes-group-version-kind", gvk(kind));
    match words.next() {
        Some("every-group") => set(definition, "x-skiff-every-group", json!(true)),
        Some("list") => {
            let Value::Object(list) = json!({
                "type": "object",
                "required": ["items"],
                "properties": {
                    "apiVersion": { "type": "string" },
                    "items": { "type": "array", "items": { "$ref": name } },
                    "kind": { "type": "string" },
                    "metadata": { "$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta", "default": {} },
                },
                "x-kubernetes-group-version-kind": gvk(&format!("{kind}List")),
            }) else {
                unreachable!("an object literal")
            };
            let fields = BTreeMap::from([
                (
                    "apiVersion".to_owned(),
                    "The group and version of this representation.".to_owned(),
                ),
                ("items".to_owned(), format!("The {kind} objects of the list.")),
                ("kind".to_owned(), "The kind of this list.".to_owned()),
                (
                    "metadata".to_owned(),
                    "Resource version and continuation of the list.".to_owned(),
                ),
            ]);
            definitions.insert(format!("{name}List"), list);
            descriptions.insert(
                format!("{name}List"),
                (format!("{kind}List is a list of {kind} objects."), fields),
            );
        }
        Some(other) => panic!("{place}: unknown fact {other:?}"),
        None => {}
    }
}

fn mark_field(place: &str, definition: &mut Map<String, Value>, facts: &str) {
    let (facts, choices) = match facts.split_once(" enum=") {
        Some((facts, choices)) => (facts, Some(choices)),
        None => (facts, None),
    };
    let mut words = facts.split(' ');
    let field = words.next().unwrap_or_default();
    let Some(Value::Object(schema)) = definition
        .get_mut("properties")
        .and_then(|properties| properties.get_mut(field))
    else {
        panic!("{place}: unknown field {field:?}");
    };
    let mut needed = None;
    if let Some(choices) = choices {
        let choices = json!(choices.split('|').collect::<Vec<_>>());
        match schema.get("type").and_then(Value::as_str) {
            Some("array") => schema["items"]["enum"] = choices,
            Some("object") => schema["additionalProperties"]["enum"] = choices,
            _ => set(schema, "enum", choices),
        }
    }
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("atomic" | "set", "") => set(schema, "x-kubernetes-list-type", json!(word)),
            ("map", keys) => {
                set(schema, "x-kubernetes-list-type", json!("map"));
                set(
                    schema,
                    "x-kubernetes-list-map-keys",
                    json!(keys.split(',').collect::<Vec<_>>()),
                );
            }
            ("keys", how) => set(schema, "x-kubernetes-map-type", json!(how)),
            ("patch", how) => {
                let (strategies, key) = how.split_once(':').unwrap_or((how, ""));
                set(schema, "x-kubernetes-patch-strategy", json!(strategies));
                if !key.is_empty() {
                    set(schema, "x-kubernetes-patch-merge-key", json!(key));
                }
            }
            ("value", "") => set(schema, "default", json!({})),
            ("zero", "") => {
                let zero = zero(schema).unwrap_or_else(|| panic!("{place}: {field} is no scalar"));
                set(schema, "default", zero);
            }
            ("pointer", "") => set(schema, "x-skiff-pointer", json!(true)),
            ("default", text) => {
                let value = serde_json::from_str(text).unwrap_or_else(|err| panic!("{place}: {err}"));
                set(schema, "default", value);
            }
            ("optional", "") => needed = Some(false),
            ("required", "") => needed = Some(true),
            _ => panic!("{place}: unknown fact {word:?}"),
        }
    }
    if let Some(needed) = needed {
        require(definition, field, needed);
    }
}

fn zero(schema: &Map<String, Value>) -> Option<Value> {
    match schema.get("type")?.as_str()? {
        "string" => Some(json!("")),
        "integer" => Some(json!(0)),
        "boolean" => Some(json!(false)),
        _ => None,
    }
}
