//! Discovery documents, generated from the kind table.
//!
//! Two forms exist: the older lists (`/api`, `/apis`, one list per group version) and the aggregated form that
//! says everything in one answer per root. Both are pure functions of [`Kinds`].

use crate::kinds::{Kind, Kinds, Str, Subresource, api_version};
use base64::Engine as _;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// `/api`.
pub fn api_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

/// `/apis`.
pub fn group_list(kinds: &Kinds) -> Value {
    let groups: Vec<Value> = kinds
        .groups()
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .map(|(name, versions)| group_body(name, versions).into())
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/{group}`.
pub fn group(kinds: &Kinds, group: &str) -> Option<Value> {
    let (name, versions) = kinds
        .groups()
        .into_iter()
        .find(|(g, _)| g == group && !g.is_empty())?;
    let mut body = group_body(&name, &versions);
    body.insert("kind".into(), "APIGroup".into());
    body.insert("apiVersion".into(), "v1".into());
    Some(body.into())
}

fn group_body(name: &str, versions: &[Str]) -> Map<String, Value> {
    let entry = |v: &Str| json!({"groupVersion": api_version(name, v), "version": v});
    let mut body = Map::new();
    body.insert("name".into(), name.into());
    body.insert("versions".into(), versions.iter().map(entry).collect());
    if let Some(first) = versions.first() {
        body.insert("preferredVersion".into(), entry(first));
    }
    body
}

/// Rows of one group version in the order of their names.
fn rows<'a>(kinds: &'a Kinds, group: &str, version: &str) -> Vec<&'a Arc<Kind>> {
    let mut rows: Vec<_> = kinds
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    rows.sort_by(|a, b| a.plural.cmp(&b.plural));
    rows
}

/// `/api/v1` and `/apis/{group}/{version}`.
pub fn resource_list(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let rows = rows(kinds, group, version);
    if rows.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for kind in rows {
        let mut r = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": kind.verbs,
        });
        list(&mut r, "shortNames", &kind.short_names);
        list(&mut r, "categories", &kind.categories);
        if kind.hash_published {
            r["storageVersionHash"] = storage_version_hash(kind).into();
        }
        resources.push(r);
        for sub in &kind.subresources {
            let mut r = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if sub.foreign {
                r["group"] = sub.group.clone().into();
                r["version"] = sub.version.clone().into();
            }
            resources.push(r);
        }
    }
    let mut body = json!({
        "kind": "APIResourceList",
        "groupVersion": api_version(group, version),
        "resources": resources,
    });
    if !group.is_empty() {
        body["apiVersion"] = "v1".into();
    }
    Some(body)
}

fn list(body: &mut Value, field: &str, items: &[Str]) {
    if !items.is_empty() {
        body[field] = items.into();
    }
}

/// An opaque name of the stored version: clients only compare it.
pub fn storage_version_hash(kind: &Kind) -> String {
    let name = format!("{}/{}/{}", kind.storage.0, kind.storage.1, kind.kind);
    let digest = Sha256::digest(name.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// Aggregated discovery (`apidiscovery.k8s.io/v2`) of `/api` (`legacy`) or `/apis`.
pub fn aggregated(kinds: &Kinds, legacy: bool) -> Value {
    let items: Vec<Value> = kinds
        .groups()
        .iter()
        .filter(|(name, _)| name.is_empty() == legacy)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| aggregated_version(kinds, name, v))
                .collect();
            let metadata = if name.is_empty() {
                json!({})
            } else {
                json!({"name": name})
            };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_version(kinds: &Kinds, group: &str, version: &str) -> Value {
    let resources: Vec<Value> = rows(kinds, group, version)
        .into_iter()
        .map(|k| aggregated_resource(k))
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated_resource(kind: &Kind) -> Value {
    // Built-in kinds leave group and version to the enclosing entry.
    let own = |name: &Str| {
        if kind.traits.custom {
            name.clone()
        } else {
            Str::default()
        }
    };
    let mut r = json!({
        "resource": kind.plural,
        "responseKind": {"group": own(&kind.group), "version": own(&kind.version), "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    list(&mut r, "shortNames", &kind.short_names);
    list(&mut r, "categories", &kind.categories);
    let subresource = |s: &Subresource| {
        let own = |name: &Str| {
            if s.foreign || kind.traits.custom {
                name.clone()
            } else {
                Str::default()
            }
        };
        json!({
            "subresource": s.name,
            "responseKind": {"group": own(&s.group), "version": own(&s.version), "kind": s.kind},
            "verbs": s.verbs,
        })
    };
    if !kind.subresources.is_empty() {
        r["subresources"] = kind.subresources.iter().map(subresource).collect();
    }
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_preferred_versions() {
        let kinds = Kinds::builtin();
        let apis = group_list(kinds);
        let hpa = apis["groups"]
            .as_array()
            .unwrap()
            .iter()
            .find(|g| g["name"] == "autoscaling")
            .unwrap();
        assert_eq!(hpa["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(hpa["versions"].as_array().unwrap().len(), 2);
        assert_eq!(group(kinds, "apps").unwrap()["kind"], "APIGroup");
        assert!(group(kinds, "").is_none() && group(kinds, "nope").is_none());
    }

    #[test]
    fn lists_name_subresources_and_hashes() {
        let kinds = Kinds::builtin();
        let core = resource_list(kinds, "", "v1").unwrap();
        assert!(core.get("apiVersion").is_none());
        let find = |name: &str| {
            core["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .unwrap()
        };
        assert_eq!(find("pods")["storageVersionHash"], "xPOwRZ+Yhw8=");
        assert_eq!(find("pods")["shortNames"], json!(["po"]));
        assert_eq!(find("pods/eviction")["group"], "policy");
        assert!(find("pods/exec").get("group").is_none());
        assert!(find("bindings").get("storageVersionHash").is_none());
        assert!(resource_list(kinds, "apps", "v9").is_none());
        // Both groups of Event, and both versions of the autoscaler, are stored as one.
        let event = storage_version_hash(kinds.of("v1", "Event").unwrap());
        assert_eq!(
            event,
            storage_version_hash(kinds.of("events.k8s.io/v1", "Event").unwrap())
        );
    }

    #[test]
    fn aggregated_form_nests_subresources() {
        let mut kinds = Kinds::builtin().clone();
        kinds.insert(Kind::custom("example.com", "v1", "Widget", "widgets"));
        let apis = aggregated(&kinds, false);
        let groups = apis["items"].as_array().unwrap();
        let apps = groups.iter().find(|g| g["metadata"]["name"] == "apps").unwrap();
        let deployment = &apps["versions"][0]["resources"][2];
        assert_eq!(deployment["resource"], "deployments");
        assert_eq!(deployment["subresources"][0]["responseKind"]["kind"], "Scale");
        let custom = groups.last().unwrap();
        assert_eq!(
            custom["versions"][0]["resources"][0]["responseKind"]["group"],
            "example.com"
        );
        assert_eq!(aggregated(&kinds, true)["items"].as_array().unwrap().len(), 1);
    }
}
