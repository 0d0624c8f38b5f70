//! What extends the API: custom resource definitions, webhooks, API services.

use super::Errors;
use super::check::{
    between, dot, has, immutable, items, name, one_of, required, required_name, required_one_of,
};
use crate::custom::Custom;
use crate::status::FieldError;
use crate::{meta, names};
use serde_json::Value;

const NULL: &Value = &Value::Null;

pub(super) fn webhooks(errors: &mut Errors, obj: &Value) {
    let mut seen = Vec::new();
    for (path, hook) in items(obj, "", "webhooks") {
        let text = meta::str_at(hook, "name");
        if required(errors, hook, &path, "name") {
            name(errors, &dot(&path, "name"), text, names::subdomain);
            if text.split('.').count() < 3 {
                let why = "should be a domain with at least three segments separated by dots";
                errors.push(FieldError::invalid(dot(&path, "name"), text, why));
            }
            if seen.contains(&text) {
                errors.push(FieldError::duplicate(dot(&path, "name"), text));
            }
            seen.push(text);
        }
        one_of(errors, hook, &path, "failurePolicy", &["Fail", "Ignore"]);
        one_of(errors, hook, &path, "matchPolicy", &["Equivalent", "Exact"]);
        one_of(errors, hook, &path, "reinvocationPolicy", &["IfNeeded", "Never"]);
        required_one_of(errors, hook, &path, "sideEffects", &["None", "NoneOnDryRun"]);
        if meta::list_at(hook, "admissionReviewVersions").is_empty() {
            let why = "must specify one of v1, v1beta1";
            errors.push(FieldError::required(dot(&path, "admissionReviewVersions"), why));
        }
        between(errors, hook, &path, "timeoutSeconds", 1, 30);
        client(
            errors,
            hook.get("clientConfig").unwrap_or(NULL),
            &dot(&path, "clientConfig"),
        );
        for (p, rule) in items(hook, &path, "rules") {
            for field in ["operations", "apiGroups", "apiVersions", "resources"] {
                required(errors, rule, &p, field);
            }
            one_of(errors, rule, &p, "scope", &["*", "Cluster", "Namespaced"]);
        }
    }
}

fn client(errors: &mut Errors, config: &Value, path: &str) {
    let (url, service) = (has(config, "url"), has(config, "service"));
    if url == service {
        errors.push(FieldError::required(
            path,
            "exactly one of url or service is required",
        ));
    }
    if url && !meta::str_at(config, "url").starts_with("https://") {
        let text = meta::str_at(config, "url");
        let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
        errors.push(FieldError::invalid(dot(path, "url"), text, why));
    }
    if let Some(s) = meta::at(config, "service") {
        let p = dot(path, "service");
        required(errors, s, &p, "name");
        required(errors, s, &p, "namespace");
        between(errors, s, &p, "port", 1, 65535);
    }
}

pub(super) fn definition(errors: &mut Errors, obj: &Value) {
    let spec = obj.get("spec").unwrap_or(NULL);
    let (group, plural) = (meta::str_at(spec, "group"), meta::str_at(spec, "names.plural"));
    let wanted = format!("{plural}.{group}");
    if meta::name(obj) != wanted {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid("metadata.name", meta::name(obj), why));
    }
    if required(errors, spec, "spec", "group") {
        name(errors, "spec.group", group, names::subdomain);
        if group.split('.').count() < 2 {
            let why = "should be a domain with at least one dot";
            errors.push(FieldError::invalid("spec.group", group, why));
        }
    }
    required_one_of(errors, spec, "spec", "scope", &["Cluster", "Namespaced"]);
    let parts = spec.get("names").unwrap_or(NULL);
    required_name(errors, parts, "spec.names", "plural", names::label_1035);
    required_name(errors, parts, "spec.names", "singular", names::label_1035);
    let lower_label = |s: &str| names::label_1035(&s.to_lowercase());
    for field in ["kind", "listKind"] {
        if required(errors, parts, "spec.names", field) {
            let text = meta::str_at(parts, field);
            for detail in lower_label(text) {
                let why = format!("may have mixed case, but should otherwise match: {detail}");
                errors.push(FieldError::invalid(dot("spec.names", field), text, why));
            }
        }
    }
    if meta::str_at(parts, "kind") == meta::str_at(parts, "listKind") {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            meta::str_at(parts, "listKind"),
            why,
        ));
    }
    for list in ["shortNames", "categories"] {
        for (path, text) in items(parts, "spec.names", list) {
            name(errors, &path, text.as_str().unwrap_or(""), names::label_1035);
        }
    }
    versions(errors, spec);
    let conversion = spec.get("conversion").unwrap_or(NULL);
    required_one_of(
        errors,
        conversion,
        "spec.conversion",
        "strategy",
        &["None", "Webhook"],
    );
    if meta::str_at(conversion, "strategy") == "Webhook" {
        let why = "conversion webhooks are not called by this server: serve versions that need no conversion";
        errors.push(FieldError::invalid("spec.conversion.strategy", "Webhook", why));
        let webhook = conversion.get("webhook").unwrap_or(NULL);
        required(
            errors,
            webhook,
            "spec.conversion.webhook",
            "conversionReviewVersions",
        );
        let config = webhook.get("clientConfig").unwrap_or(NULL);
        client(errors, config, "spec.conversion.webhook.clientConfig");
    }
}

fn versions(errors: &mut Errors, spec: &Value) {
    let mut seen = Vec::new();
    let mut stored = 0;
    for (path, version) in items(spec, "spec", "versions") {
        let text = meta::str_at(version, "name");
        name(errors, &dot(&path, "name"), text, names::label_1035);
        if seen.contains(&text) {
            errors.push(FieldError::duplicate(dot(&path, "name"), text));
        }
        seen.push(text);
        stored += usize::from(meta::bool_at(version, "storage"));
        let p = dot(&path, "schema.openAPIV3Schema");
        match meta::at(version, "schema.openAPIV3Schema").filter(|s| !s.is_null()) {
            None => errors.push(FieldError::required(p, "schemas are required")),
            Some(schema) => {
                if let Err(error) = Custom::new(schema.clone(), None, false) {
                    errors.push(FieldError::invalid(p.as_str(), "", error.to_string()));
                }
                let kind = meta::str_at(schema, "type");
                if kind.is_empty() {
                    errors.push(FieldError::required(
                        dot(&p, "type"),
                        "must not be empty at the root",
                    ));
                } else if kind != "object" {
                    errors.push(FieldError::invalid(
                        dot(&p, "type"),
                        kind,
                        "must be object at the root",
                    ));
                }
            }
        }
        for (p, column) in items(version, &path, "additionalPrinterColumns") {
            required(errors, column, &p, "name");
            let types = &["boolean", "date", "integer", "number", "string"];
            required_one_of(errors, column, &p, "type", types);
            if required(errors, column, &p, "jsonPath")
                && crate::jsonpath::JsonPath::parse(meta::str_at(column, "jsonPath")).is_err()
            {
                let text = meta::str_at(column, "jsonPath");
                errors.push(FieldError::invalid(
                    dot(&p, "jsonPath"),
                    text,
                    "must be a simple json path with leading .",
                ));
            }
        }
        if let Some(scale) = meta::at(version, "subresources.scale").filter(|s| !s.is_null()) {
            let p = dot(&path, "subresources.scale");
            required(errors, scale, &p, "specReplicasPath");
            required(errors, scale, &p, "statusReplicasPath");
        }
    }
    if stored != 1 {
        let value = spec.get("versions").cloned();
        let why = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid("spec.versions", value, why));
    }
}

pub(super) fn definition_update(errors: &mut Errors, new: &Value, old: &Value) {
    let established = meta::list_at(old, "status.conditions")
        .iter()
        .any(|c| meta::str_at(c, "type") == "Established" && meta::str_at(c, "status") == "True");
    immutable(errors, new, old, "spec.group");
    immutable(errors, new, old, "spec.names.plural");
    if established {
        immutable(errors, new, old, "spec.scope");
        immutable(errors, new, old, "spec.names.kind");
    }
    for stored in meta::list_at(old, "status.storedVersions") {
        let kept = meta::list_at(new, "spec.versions")
            .iter()
            .any(|v| v.get("name") == Some(stored));
        if !kept {
            let text = stored.as_str().unwrap_or("");
            let why = format!(
                "missing from spec.versions; {text} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {text} and removes {text} from status.storedVersions"
            );
            errors.push(FieldError::invalid("status.storedVersions[0]", text, why));
        }
    }
}

pub(super) fn api_service(errors: &mut Errors, obj: &Value) {
    let spec = obj.get("spec").unwrap_or(NULL);
    let (group, version) = (meta::str_at(spec, "group"), meta::str_at(spec, "version"));
    let wanted = format!("{version}.{group}");
    if meta::name(obj) != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: \"{wanted}\"");
        errors.push(FieldError::invalid("metadata.name", meta::name(obj), why));
    }
    required_name(errors, spec, "spec", "version", names::label_1035);
    for (field, high) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
        let value = meta::int_at(spec, field).unwrap_or(0);
        if !(1..=high).contains(&value) {
            let why = format!("must be positive and less than {high}");
            errors.push(FieldError::invalid(dot("spec", field), value, why));
        }
    }
    if let Some(service) = meta::at(spec, "service").filter(|s| !s.is_null()) {
        required(errors, service, "spec.service", "name");
        required(errors, service, "spec.service", "namespace");
        between(errors, service, "spec.service", "port", 1, 65535);
        if meta::bool_at(spec, "insecureSkipTLSVerify") && !meta::str_at(spec, "caBundle").is_empty() {
            let why = "may not be true if caBundle is present";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, why));
        }
    } else if !meta::str_at(spec, "caBundle").is_empty() {
        errors.push(FieldError::invalid(
            "spec.caBundle",
            "",
            "local APIServices may not have a caBundle",
        ));
    }
}
