//! ConfigMaps and Secrets.

use super::Errors;
use super::check::{has, immutable, required};
use crate::status::FieldError;
use crate::strategy::same;
use crate::{meta, names};
use base64::Engine as _;
use serde_json::Value;

/// Payload of one object: what is read into every kubelet that mounts it.
const SIZE_MAX: usize = 1024 * 1024;

fn keys(errors: &mut Errors, obj: &Value, field: &str) {
    for key in meta::object_at(obj, field).into_iter().flatten().map(|(k, _)| k) {
        for detail in names::config_key(key) {
            errors.push(FieldError::invalid(
                format!("{field}[{key}]"),
                key.as_str(),
                detail,
            ));
        }
    }
}

/// Bytes behind base64 text, without decoding it.
fn decoded_len(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

pub(super) fn config_map(errors: &mut Errors, obj: &Value) {
    keys(errors, obj, "data");
    keys(errors, obj, "binaryData");
    let data = meta::object_at(obj, "data");
    let binary = meta::object_at(obj, "binaryData");
    let mut size = 0;
    for (key, value) in data.into_iter().flatten() {
        size += value.as_str().map_or(0, str::len);
        if binary.is_some_and(|b| b.contains_key(key)) {
            let text = format!("duplicate of key present in binaryData: {key}");
            errors.push(FieldError::invalid(format!("data[{key}]"), key.as_str(), text));
        }
    }
    size += binary
        .into_iter()
        .flatten()
        .map(|(_, v)| decoded_len(v.as_str().unwrap_or("")))
        .sum::<usize>();
    if size > SIZE_MAX {
        errors.push(FieldError::too_long("", SIZE_MAX));
    }
}

fn frozen(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    if !meta::bool_at(old, "immutable") {
        return;
    }
    let text = "field is immutable when `immutable` is set";
    if !meta::bool_at(new, "immutable") {
        errors.push(FieldError::forbidden("immutable", text));
    }
    for field in fields {
        if !same(meta::at(new, field), meta::at(old, field)) {
            errors.push(FieldError::forbidden(*field, text));
        }
    }
}

pub(super) fn config_map_update(errors: &mut Errors, new: &Value, old: &Value) {
    frozen(errors, new, old, &["data", "binaryData"]);
}

pub(super) fn secret(errors: &mut Errors, obj: &Value) {
    keys(errors, obj, "data");
    let data = meta::object_at(obj, "data");
    let size: usize = data
        .into_iter()
        .flatten()
        .map(|(_, v)| decoded_len(v.as_str().unwrap_or("")))
        .sum();
    if size > SIZE_MAX {
        errors.push(FieldError::too_long("data", SIZE_MAX));
    }
    let present = |key: &str| data.is_some_and(|d| d.contains_key(key));
    let mut need = |keys: &[&str]| {
        for key in keys.iter().filter(|k| !present(k)) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match meta::str_at(obj, "type") {
        "kubernetes.io/dockerconfigjson" => json_payload(errors, obj, ".dockerconfigjson"),
        "kubernetes.io/dockercfg" => json_payload(errors, obj, ".dockercfg"),
        "kubernetes.io/basic-auth" if !present("username") && !present("password") => {
            need(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => need(&["ssh-privatekey"]),
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        "kubernetes.io/service-account-token" => {
            const OWNER: &str = "kubernetes.io/service-account.name";
            if meta::annotation(obj, OWNER).is_none_or(str::is_empty) {
                errors.push(FieldError::required(format!("metadata.annotations[{OWNER}]"), ""));
            }
        }
        _ => {}
    }
}

fn json_payload(errors: &mut Errors, obj: &Value, key: &str) {
    let path = format!("data[{key}]");
    let Some(text) = meta::object_at(obj, "data")
        .and_then(|d| d.get(key))
        .and_then(Value::as_str)
    else {
        errors.push(FieldError::required(path, ""));
        return;
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap_or_default();
    let fine = serde_json::from_slice::<Value>(&bytes).is_ok_and(|v| v.is_object());
    if !fine {
        // The payload itself is secret and stays out of the message.
        errors.push(FieldError::invalid(
            path,
            "<secret contents redacted>",
            "must be a JSON object",
        ));
    }
}

pub(super) fn secret_update(errors: &mut Errors, new: &Value, old: &Value) {
    if has(old, "type") {
        immutable(errors, new, old, "type");
    } else {
        required(errors, new, "", "type");
    }
    frozen(errors, new, old, &["data"]);
}
