//! Volumes, claims and storage classes.

use super::Errors;
use super::check::{
    dot, has, immutable, items, label_selector, name, one_of, optional_name, required, required_one_of,
};
use super::{resources, volume as pod_volume};
use crate::quantity::Quantity;
use crate::status::FieldError;
use crate::strategy::same;
use crate::{meta, names};
use serde_json::Value;

const NULL: &Value = &Value::Null;
const ACCESS_MODES: &[&str] = &[
    "ReadWriteOnce",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOncePod",
];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// Fields of a PersistentVolume's spec that are not a volume source.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn access_modes(errors: &mut Errors, spec: &Value, path: &str, missing: &str) {
    let modes = meta::list_at(spec, "accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(dot(path, "accessModes"), missing));
    }
    for (_, mode) in items(spec, path, "accessModes") {
        if !mode.as_str().is_some_and(|m| ACCESS_MODES.contains(&m)) {
            errors.push(FieldError::not_supported(
                dot(path, "accessModes"),
                mode.clone(),
                ACCESS_MODES,
            ));
        }
    }
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let text = "may not use ReadWriteOncePod with other access modes";
        errors.push(FieldError::forbidden(dot(path, "accessModes"), text));
    }
}

fn storage_amount(errors: &mut Errors, value: Option<&Value>, path: &str) {
    match value {
        None => errors.push(FieldError::required(path, "")),
        Some(v) => {
            if resources::quantity(errors, v, path).is_some_and(|q| q.sign() == 0) {
                errors.push(FieldError::invalid(path, v.clone(), "must be greater than zero"));
            }
        }
    }
}

pub(super) fn claim_spec(errors: &mut Errors, spec: &Value, path: &str) {
    access_modes(errors, spec, path, "at least 1 access mode is required");
    let requests = meta::object_at(spec, "resources.requests");
    storage_amount(
        errors,
        requests.and_then(|r| r.get("storage")),
        &dot(path, "resources[storage]"),
    );
    if let Some(selector) = meta::at(spec, "selector") {
        label_selector(errors, selector, &dot(path, "selector"));
    }
    optional_name(errors, spec, path, "storageClassName", names::subdomain);
    one_of(errors, spec, path, "volumeMode", VOLUME_MODES);
    for source in ["dataSource", "dataSourceRef"] {
        if let Some(s) = meta::at(spec, source).filter(|s| !s.is_null()) {
            let p = dot(path, source);
            required(errors, s, &p, "kind");
            required(errors, s, &p, "name");
            if meta::str_at(s, "apiGroup").is_empty() && meta::str_at(s, "kind") != "PersistentVolumeClaim" {
                let text = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
                errors.push(FieldError::invalid(p, meta::str_at(s, "kind"), text));
            }
        }
    }
}

pub(super) fn claim(errors: &mut Errors, obj: &Value) {
    claim_spec(errors, obj.get("spec").unwrap_or(NULL), "spec");
}

pub(super) fn claim_update(errors: &mut Errors, new: &Value, old: &Value) {
    let (now, before) = (new.get("spec").unwrap_or(NULL), old.get("spec").unwrap_or(NULL));
    let mut rest = now.clone();
    let bound = meta::str_at(old, "status.phase") == "Bound";
    if meta::str_at(before, "volumeName").is_empty() {
        meta::copy(before, &mut rest, "volumeName");
    }
    // A default class may be filled in later, while the claim is unbound.
    if !has(before, "storageClassName") {
        meta::copy(before, &mut rest, "storageClassName");
    }
    meta::copy(before, &mut rest, "volumeAttributesClassName");
    if bound {
        meta::copy(before, &mut rest, "resources.requests");
        let size = |s: &Value| {
            let value = meta::object_at(s, "resources.requests").and_then(|r| r.get("storage"));
            value.and_then(|v| Quantity::from_value(v).ok())
        };
        if let (Some(a), Some(b)) = (size(now), size(before))
            && a < b
        {
            let text = "field can not be less than status.capacity";
            errors.push(FieldError::forbidden("spec.resources.requests.storage", text));
        }
    }
    if !same(Some(&rest), Some(before)) {
        let text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", text));
    }
}

pub(super) fn volume(errors: &mut Errors, obj: &Value) {
    let spec = obj.get("spec").unwrap_or(NULL);
    access_modes(errors, spec, "spec", "");
    let capacity = meta::object_at(spec, "capacity");
    if capacity.is_none_or(serde_json::Map::is_empty) {
        errors.push(FieldError::required("spec.capacity", ""));
    } else {
        let storage = capacity.and_then(|c| c.get("storage"));
        if storage.is_none() || capacity.is_some_and(|c| c.len() > 1) {
            errors.push(FieldError::not_supported(
                "spec.capacity",
                spec["capacity"].clone(),
                &["storage"],
            ));
        } else {
            storage_amount(errors, storage, "spec.capacity[storage]");
        }
    }
    const POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
    one_of(errors, spec, "spec", "persistentVolumeReclaimPolicy", POLICIES);
    one_of(errors, spec, "spec", "volumeMode", VOLUME_MODES);
    optional_name(errors, spec, "spec", "storageClassName", names::subdomain);
    let source: serde_json::Map<String, Value> = spec
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, _)| !NOT_SOURCES.contains(&k.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let local = source.get("local").cloned();
    pod_volume::volume_source(errors, &Value::Object(source), "spec");
    if let Some(local) = local {
        required(errors, &local, "spec.local", "path");
        if !has(spec, "nodeAffinity") {
            let text = "Local volume requires node affinity";
            errors.push(FieldError::required("metadata.annotations", text));
        }
    }
}

pub(super) fn volume_update(errors: &mut Errors, new: &Value, old: &Value) {
    let source = |obj: &Value| -> serde_json::Map<String, Value> {
        let fields = meta::object_at(obj, "spec").into_iter().flatten();
        fields
            .filter(|(k, _)| !NOT_SOURCES.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    let (now, before) = (Value::Object(source(new)), Value::Object(source(old)));
    if !same(Some(&now), Some(&before)) {
        let text = "spec.persistentvolumesource is immutable after creation";
        errors.push(FieldError::forbidden("spec.persistentvolumesource", text));
    }
    immutable(errors, new, old, "spec.volumeMode");
}

pub(super) fn class(errors: &mut Errors, obj: &Value) {
    if required(errors, obj, "", "provisioner") {
        let text = meta::str_at(obj, "provisioner").to_lowercase();
        name(errors, "provisioner", &text, names::qualified_name);
    }
    one_of(errors, obj, "", "reclaimPolicy", &["Delete", "Retain"]);
    required_one_of(
        errors,
        obj,
        "",
        "volumeBindingMode",
        &["Immediate", "WaitForFirstConsumer"],
    );
}

pub(super) fn class_update(errors: &mut Errors, new: &Value, old: &Value) {
    for (field, text) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
    ] {
        if !same(new.get(field), old.get(field)) {
            errors.push(FieldError::forbidden(field, text));
        }
    }
    immutable(errors, new, old, "reclaimPolicy");
    immutable(errors, new, old, "volumeBindingMode");
}

pub(super) fn attachment(errors: &mut Errors, obj: &Value) {
    let spec = obj.get("spec").unwrap_or(NULL);
    required(errors, spec, "spec", "attacher");
    required(errors, spec, "spec", "nodeName");
    let sources = ["source.persistentVolumeName", "source.inlineVolumeSpec"];
    if sources.iter().filter(|s| has(spec, s)).count() != 1 {
        let text = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
        errors.push(FieldError::invalid(
            "spec.source",
            spec.get("source").cloned(),
            text,
        ));
    }
}

pub(super) fn attachment_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "spec");
}

pub(super) fn csi_driver(errors: &mut Errors, obj: &Value) {
    const POLICIES: &[&str] = &["ReadWriteOnceWithFSType", "File", "None"];
    let spec = obj.get("spec").unwrap_or(NULL);
    one_of(errors, spec, "spec", "fsGroupPolicy", POLICIES);
    for (path, mode) in items(spec, "spec", "volumeLifecycleModes") {
        if !matches!(mode.as_str(), Some("Persistent" | "Ephemeral")) {
            errors.push(FieldError::not_supported(
                path,
                mode.clone(),
                &["Ephemeral", "Persistent"],
            ));
        }
    }
}
