//! Object metadata.

use super::Errors;
use super::check::{self, dot};
use crate::kinds::Kind;
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;

/// Total size of annotations: they travel with every copy of the object.
const ANNOTATIONS_MAX: usize = 256 * 1024;

type NameRule = fn(&str) -> Vec<String>;

/// Kinds whose names are not DNS subdomains.
const NAME_RULES: &[(&str, &str, NameRule)] = &[
    ("", "Namespace", names::label),
    ("", "Service", names::label_1035),
    ("rbac.authorization.k8s.io", "Role", names::path_segment),
    ("rbac.authorization.k8s.io", "ClusterRole", names::path_segment),
    ("rbac.authorization.k8s.io", "RoleBinding", names::path_segment),
    (
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        names::path_segment,
    ),
    ("apiregistration.k8s.io", "APIService", names::path_segment),
    ("networking.k8s.io", "IPAddress", names::ip),
];

fn name_rule(kind: &Kind) -> NameRule {
    let special = NAME_RULES
        .iter()
        .find(|(g, k, _)| kind.group == *g && kind.kind == *k);
    special.map_or(names::subdomain, |(.., rule)| *rule)
}

pub(super) fn create(errors: &mut Errors, kind: &Kind, obj: &Value) {
    let rule = name_rule(kind);
    let (name, prefix) = (meta::name(obj), meta::generate_name(obj));
    if !prefix.is_empty() {
        // The suffix comes later, so a trailing dash is fine.
        let probe = prefix
            .strip_suffix('-')
            .map_or_else(|| prefix.to_owned(), |p| format!("{p}a"));
        for detail in rule(&probe) {
            errors.push(FieldError::invalid("metadata.generateName", prefix, detail));
        }
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        check::name(errors, "metadata.name", name, rule);
    }
    let namespace = meta::namespace(obj);
    if !kind.namespaced {
        if !namespace.is_empty() {
            errors.push(FieldError::forbidden(
                "metadata.namespace",
                "not allowed on this type",
            ));
        }
    } else if namespace.is_empty() {
        errors.push(FieldError::required("metadata.namespace", ""));
    } else {
        check::name(errors, "metadata.namespace", namespace, names::label);
    }
    check::not_negative(errors, obj, "", &["metadata.generation"]);
    check::labels(errors, meta::labels(obj), "metadata.labels");
    annotations(errors, obj);
    owners(errors, obj);
    for (path, finalizer) in check::items(obj, "", "metadata.finalizers") {
        check::name(
            errors,
            &path,
            finalizer.as_str().unwrap_or(""),
            names::qualified_name,
        );
    }
}

fn annotations(errors: &mut Errors, obj: &Value) {
    const PATH: &str = "metadata.annotations";
    let mut size = 0;
    for (key, value) in meta::annotations(obj).into_iter().flatten() {
        // Annotation keys may be written in capitals.
        for detail in names::qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(PATH, key.as_str(), detail));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        errors.push(FieldError::too_long(PATH, ANNOTATIONS_MAX));
    }
}

fn owners(errors: &mut Errors, obj: &Value) {
    const PATH: &str = "metadata.ownerReferences";
    let mut manager: Option<&str> = None;
    for (path, owner) in check::items(obj, "", PATH) {
        for (field, text) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if meta::str_at(owner, field).is_empty() {
                errors.push(FieldError::invalid(dot(&path, field), "", text));
            }
        }
        if meta::str_at(owner, "apiVersion") == "v1" && meta::str_at(owner, "kind") == "Event" {
            errors.push(FieldError::invalid(
                &path,
                "/v1, Kind=Event",
                "is disallowed from being an owner",
            ));
        }
        if meta::bool_at(owner, "controller") {
            let name = meta::str_at(owner, "name");
            if let Some(first) = manager {
                errors.push(FieldError::invalid(
                    PATH,
                    meta::at(obj, PATH).cloned().unwrap_or_default(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                    ),
                ));
            }
            manager = Some(name);
        }
    }
}

pub(super) fn update(errors: &mut Errors, new: &Value, old: &Value) {
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        check::immutable(errors, new, old, &format!("metadata.{field}"));
    }
    if meta::is_deleting(old) {
        let before = meta::finalizers(old);
        let added: Vec<_> = meta::finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        if !added.is_empty() {
            let list: Vec<_> = added.iter().map(|f| crate::status::quote(f)).collect();
            errors.push(FieldError::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    if meta::generation(new) < meta::generation(old) {
        let text = "must not be decremented";
        errors.push(FieldError::invalid(
            "metadata.generation",
            meta::generation(new),
            text,
        ));
    }
}
