//! Volumes of pods.

use super::Errors;
use super::check::{dot, has, items, name, one_of, required};
use super::resources;
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;
use std::collections::BTreeSet;

/// Checks the volumes and gives back their names.
pub(super) fn volumes<'a>(errors: &mut Errors, spec: &'a Value, path: &str) -> BTreeSet<&'a str> {
    let mut known = BTreeSet::new();
    for (p, volume) in items(spec, path, "volumes") {
        let text = meta::str_at(volume, "name");
        if text.is_empty() {
            errors.push(FieldError::required(dot(&p, "name"), ""));
        } else {
            name(errors, &dot(&p, "name"), text, names::label);
            if !known.insert(text) {
                errors.push(FieldError::duplicate(dot(&p, "name"), text));
            }
        }
        volume_source(errors, volume, &p);
    }
    known
}

/// One source and only one.
pub(super) fn volume_source(errors: &mut Errors, volume: &Value, path: &str) {
    let sources: Vec<_> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(k, v)| k.as_str() != "name" && !v.is_null())
        .collect();
    let Some((kind, source)) = sources.first() else {
        errors.push(FieldError::required(path, "must specify a volume type"));
        return;
    };
    for (other, _) in &sources[1..] {
        errors.push(FieldError::forbidden(
            dot(path, other),
            "may not specify more than 1 volume type",
        ));
    }
    let p = dot(path, kind);
    match kind.as_str() {
        "hostPath" => host_path(errors, source, &p),
        "emptyDir" => {
            if let Some(limit) = meta::at(source, "sizeLimit") {
                resources::quantity(errors, limit, &dot(&p, "sizeLimit"));
            }
        }
        "secret" => {
            required(errors, source, &p, "secretName");
            mode(errors, source, &p, "defaultMode");
            key_paths(errors, source, &p);
        }
        "configMap" => {
            required(errors, source, &p, "name");
            mode(errors, source, &p, "defaultMode");
            key_paths(errors, source, &p);
        }
        "persistentVolumeClaim" => {
            required(errors, source, &p, "claimName");
        }
        "projected" => projected(errors, source, &p),
        "downwardAPI" => {
            mode(errors, source, &p, "defaultMode");
            downward(errors, source, &p);
        }
        "nfs" => {
            required(errors, source, &p, "server");
            if required(errors, source, &p, "path") && !meta::str_at(source, "path").starts_with('/') {
                let text = meta::str_at(source, "path");
                errors.push(FieldError::invalid(
                    dot(&p, "path"),
                    text,
                    "must be an absolute path",
                ));
            }
        }
        "csi" => {
            required(errors, source, &p, "driver");
        }
        "image" => {
            required(errors, source, &p, "reference");
        }
        _ => {}
    }
}

pub(super) fn host_path(errors: &mut Errors, source: &Value, path: &str) {
    required(errors, source, path, "path");
    no_back_steps(errors, meta::str_at(source, "path"), &dot(path, "path"));
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    one_of(errors, source, path, "type", TYPES);
}

fn no_back_steps(errors: &mut Errors, text: &str, path: &str) {
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

fn mode(errors: &mut Errors, source: &Value, path: &str, field: &str) {
    if let Some(mode) = meta::int_at(source, field).filter(|m| !(0..=0o777).contains(m)) {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(dot(path, field), mode, text));
    }
}

/// A path inside a volume.
pub(super) fn local_path(errors: &mut Errors, text: &str, path: &str) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    no_back_steps(errors, text, path);
}

fn key_paths(errors: &mut Errors, source: &Value, path: &str) {
    for (p, item) in items(source, path, "items") {
        required(errors, item, &p, "key");
        if required(errors, item, &p, "path") {
            let text = meta::str_at(item, "path");
            local_path(errors, text, &dot(&p, "path"));
            if text.starts_with("..") && !text.starts_with("../") {
                errors.push(FieldError::invalid(
                    dot(&p, "path"),
                    text,
                    "must not start with '..'",
                ));
            }
        }
        mode(errors, item, &p, "mode");
    }
}

fn downward(errors: &mut Errors, source: &Value, path: &str) {
    for (p, item) in items(source, path, "items") {
        if required(errors, item, &p, "path") {
            local_path(errors, meta::str_at(item, "path"), &dot(&p, "path"));
        }
        match (has(item, "fieldRef"), has(item, "resourceFieldRef")) {
            (true, true) => errors.push(FieldError::invalid(
                &p,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
            (false, false) => {
                errors.push(FieldError::required(
                    &p,
                    "one of fieldRef and resourceFieldRef is required",
                ));
            }
            _ => {}
        }
        mode(errors, item, &p, "mode");
    }
}

fn projected(errors: &mut Errors, source: &Value, path: &str) {
    mode(errors, source, path, "defaultMode");
    for (p, item) in items(source, path, "sources") {
        let Some((kind, inner)) = item
            .as_object()
            .and_then(|o| o.iter().find(|(_, v)| !v.is_null()))
        else {
            errors.push(FieldError::required(&p, "must specify a volume type"));
            continue;
        };
        let at = dot(&p, kind);
        match kind.as_str() {
            "secret" | "configMap" => {
                required(errors, inner, &at, "name");
                key_paths(errors, inner, &at);
            }
            "downwardAPI" => downward(errors, inner, &at),
            "serviceAccountToken" => {
                if meta::int_at(inner, "expirationSeconds").is_some_and(|s| s < 600) {
                    let value = meta::int_at(inner, "expirationSeconds");
                    let text = "may not specify a duration less than 10 minutes";
                    errors.push(FieldError::invalid(dot(&at, "expirationSeconds"), value, text));
                }
                required(errors, inner, &at, "path");
            }
            _ => {}
        }
    }
}
