//! Amounts: requests, limits, capacities.

use super::Errors;
use super::check::{NOT_NEGATIVE, dot};
use crate::quantity::{PATTERN_ERROR, Quantity};
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;

/// Reads a quantity and complains when it is malformed or negative.
pub(super) fn quantity(errors: &mut Errors, value: &Value, path: &str) -> Option<Quantity> {
    match Quantity::from_value(value) {
        Err(_) => {
            errors.push(FieldError::invalid(path, value.clone(), PATTERN_ERROR));
            None
        }
        Ok(q) if q.sign() < 0 => {
            errors.push(FieldError::invalid(path, q.to_string(), NOT_NEGATIVE));
            None
        }
        Ok(q) => Some(q),
    }
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// Resources that are counted, not shared: whole numbers, request equal to limit.
fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.")
}

fn container_resource_name(errors: &mut Errors, name: &str, path: &str) {
    for detail in names::qualified_name(name) {
        errors.push(FieldError::invalid(path, name, detail));
    }
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        let text = "must be a standard resource type or fully qualified";
        errors.push(FieldError::invalid(path, name, text));
        errors.push(FieldError::invalid(
            path,
            name,
            "must be a standard resource for containers",
        ));
    }
}

/// The `resources` of a container or pod.
pub(super) fn requirements(errors: &mut Errors, resources: &Value, path: &str) {
    let limits = meta::object_at(resources, "limits");
    for (name, amount) in limits.into_iter().flatten() {
        let at = format!("{path}.limits[{name}]");
        container_resource_name(errors, name, &at);
        let q = quantity(errors, amount, &at);
        whole(errors, name, q, &at);
    }
    for (name, amount) in meta::object_at(resources, "requests").into_iter().flatten() {
        let at = format!("{path}.requests[{name}]");
        container_resource_name(errors, name, &at);
        let Some(request) = quantity(errors, amount, &at) else {
            continue;
        };
        whole(errors, name, Some(request), &at);
        let limit = limits
            .and_then(|l| l.get(name))
            .and_then(|v| Quantity::from_value(v).ok());
        let counted = is_extended(name) || name.starts_with("hugepages-");
        let list = dot(path, "requests");
        match limit {
            Some(limit) if counted && request != limit => errors.push(FieldError::invalid(
                list,
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            )),
            Some(limit) if request > limit => errors.push(FieldError::invalid(
                list,
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            )),
            None if counted => {
                let text = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(dot(path, "limits"), text));
            }
            _ => {}
        }
    }
}

fn whole(errors: &mut Errors, name: &str, q: Option<Quantity>, path: &str) {
    if let Some(q) = q
        && is_extended(name)
        && !q.is_whole()
    {
        errors.push(FieldError::invalid(path, q.to_string(), "must be an integer"));
    }
}

/// A map of amounts: quota, capacity, limit range.
pub(super) fn amounts(errors: &mut Errors, map: Option<&meta::Object>, path: &str) {
    for (name, amount) in map.into_iter().flatten() {
        let at = format!("{path}[{name}]");
        for detail in names::qualified_name(name) {
            errors.push(FieldError::invalid(&at, name.as_str(), detail));
        }
        quantity(errors, amount, &at);
    }
}
