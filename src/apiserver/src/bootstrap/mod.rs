//! The objects every cluster has: namespaces, priority classes, API services and
//! flow control ([`served`]), and the RBAC defaults from the table in `rbac.txt`.
//!
//! At every start what is missing is created, and default roles and bindings
//! get back the rules and subjects they lost (those marked
//! `rbac.authorization.kubernetes.io/autoupdate: "false"` excepted); what was
//! added to them stays. Aggregated roles are filled by the rules of the table.

mod served;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use skiff_api::meta;

use crate::authz::rules::{Rule, uncovered};
use crate::managed::Manager;
use crate::server::{ApiServer, Call, StartError};

const TABLE: &str = include_str!("rbac.txt");
const AGGREGATE: &str = "rbac.authorization.k8s.io/aggregate-to-";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const GROUP_VERSION: &str = "rbac.authorization.k8s.io/v1";
/// Default objects written at a time.
const CONCURRENT_WRITES: usize = 64;
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
/// Name, value, description.
const PRIORITY_CLASSES: &[(&str, i64, &str)] = &[
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// A line of the table that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("rbac table, line {line}: {reason}")]
pub struct TableError {
    line: usize,
    reason: &'static str,
}

/// Writes what is missing.
pub async fn reconcile(server: &Arc<ApiServer>) -> Result<(), StartError> {
    for name in NAMESPACES {
        server
            .ensure(
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }),
                &[],
            )
            .await?;
    }
    for (name, value, description) in PRIORITY_CLASSES {
        let object = json!({ "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": { "name": name }, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority" });
        server.ensure(object, &[]).await?;
    }
    if !server.client_ca_pem.is_empty() {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
            "data": { "client-ca-file": server.client_ca_pem } });
        server.ensure(object, &["data"]).await?;
    }
    served::reconcile(server).await?;
    let objects = parse(TABLE).map_err(|e| StartError::Bootstrap {
        object: "RBAC defaults".to_owned(),
        reason: e.to_string(),
    })?;
    // At once, so that one sync of the disk serves many.
    futures::stream::iter(objects)
        .map(|object| reconcile_rbac(server, object))
        .buffer_unordered(CONCURRENT_WRITES)
        .try_for_each(|()| async { Ok(()) })
        .await
}

async fn reconcile_rbac(server: &Arc<ApiServer>, wanted: Value) -> Result<(), StartError> {
    let (api_version, kind) = (meta::api_version(&wanted), meta::kind(&wanted));
    let kinds = server.kinds();
    let Some(row) = kinds.of(api_version, kind) else {
        return Err(StartError::Bootstrap {
            object: kind.to_owned(),
            reason: "unknown kind".to_owned(),
        });
    };
    let (namespace, name) = (meta::namespace(&wanted), meta::name(&wanted));
    let Some(entry) = server.store.get(&row.key(namespace, name)) else {
        return server.ensure(wanted, &[]).await;
    };
    let Ok(current) = serde_json::from_slice::<Value>(&entry.value) else {
        return Ok(());
    };
    if meta::annotation(&current, AUTOUPDATE) == Some("false") || is_complete(&current, &wanted) {
        return Ok(());
    }
    let mut call = Call::internal(row, "update", namespace, name);
    call.info.verb = "update";
    let result = server
        .modify(&call, false, Manager::server(), &mut |old| {
            Ok(completed(old, &wanted))
        })
        .await;
    result.map(|_| ()).map_err(|status| StartError::Bootstrap {
        object: format!("{kind} {name}"),
        reason: status.message,
    })
}

fn rules_of(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
}

/// Whether an object has everything the default has.
fn is_complete(current: &Value, wanted: &Value) -> bool {
    completed(current, wanted) == *current
}

/// The object with what it lacks of the default.
fn completed(current: &Value, wanted: &Value) -> Value {
    let mut new = current.clone();
    for (key, value) in meta::labels(wanted).into_iter().flatten() {
        meta::set_label(&mut new, key, value.as_str().unwrap_or_default());
    }
    if wanted.get("roleRef").is_some() {
        let mut subjects = meta::list_at(current, "subjects").to_vec();
        for subject in meta::list_at(wanted, "subjects") {
            if !subjects.contains(subject) {
                subjects.push(subject.clone());
            }
        }
        if !subjects.is_empty() {
            new["subjects"] = subjects.into();
        }
        // A binding cannot change its role; one that points elsewhere is left alone.
        return new;
    }
    if let Some(aggregation) = wanted.get("aggregationRule") {
        new["aggregationRule"] = aggregation.clone();
    }
    let missing = uncovered(&rules_of(current), &rules_of(wanted));
    if !missing.is_empty() {
        let mut rules = meta::list_at(current, "rules").to_vec();
        rules.extend(missing.iter().filter_map(|r| serde_json::to_value(r).ok()));
        new["rules"] = rules.into();
    }
    new
}

fn verbs(word: &str) -> Vec<String> {
    let mut verbs: Vec<&str> = Vec::new();
    for part in word.split(',') {
        match part {
            "R" => verbs.extend(["get", "list", "watch"]),
            "LW" => verbs.extend(["list", "watch"]),
            "W" => verbs.extend(["create", "delete", "deletecollection", "patch", "update"]),
            "RW" => verbs.extend([
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ]),
            other => verbs.push(other),
        }
    }
    verbs.sort_unstable();
    verbs.iter().map(|v| (*v).to_owned()).collect()
}

fn names(word: &str) -> Vec<String> {
    word.split(',')
        .map(|w| if w == "core" { String::new() } else { w.to_owned() })
        .collect()
}

fn parse_rule(words: &[&str]) -> Result<Rule, &'static str> {
    match words {
        ["events"] => Ok(Rule {
            verbs: verbs("create,patch,update"),
            api_groups: vec![String::new(), "events.k8s.io".to_owned()],
            resources: vec!["events".to_owned()],
            ..Rule::default()
        }),
        [v, "URL", urls] => Ok(Rule {
            verbs: verbs(v),
            non_resource_urls: names(urls),
            ..Rule::default()
        }),
        [v, groups, resources, rest @ ..] if rest.len() <= 1 => Ok(Rule {
            verbs: verbs(v),
            api_groups: names(groups),
            resources: names(resources),
            resource_names: rest.first().map(|n| names(n)).unwrap_or_default(),
            ..Rule::default()
        }),
        _ => Err("a rule has verbs, groups, resources and perhaps names"),
    }
}

#[derive(Default)]
struct Role {
    namespace: String,
    name: String,
    labels: Vec<String>,
    aggregates: Option<String>,
    rules: Vec<Rule>,
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({ "name": name, "annotations": { AUTOUPDATE: "true" },
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" } });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

fn split_name(word: &str) -> (&str, &str) {
    word.split_once('/').unwrap_or(("", word))
}

/// The objects of a table.
fn parse(table: &str) -> Result<Vec<Value>, TableError> {
    let mut roles: Vec<Role> = Vec::new();
    let mut bindings = Vec::new();
    for (at, raw) in table.lines().enumerate() {
        let error = |reason| TableError { line: at + 1, reason };
        let words: Vec<&str> = raw.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            ["role", name, marks @ ..] => {
                let (namespace, name) = split_name(name);
                let mut role = Role {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    ..Role::default()
                };
                for mark in marks {
                    match mark.split_at_checked(1) {
                        Some(("+", label)) => role.labels.push(label.to_owned()),
                        Some(("<", label)) => role.aggregates = Some(label.to_owned()),
                        _ => return Err(error("marks start with + or <")),
                    }
                }
                roles.push(role);
            }
            ["bind", name, role, subjects @ ..] => {
                let (namespace, name) = split_name(name);
                let role = if *role == "=" { name } else { role };
                let subjects: Option<Vec<Value>> = subjects.iter().map(|s| subject(s)).collect();
                let subjects = subjects.ok_or_else(|| error("subjects are user:, group: or sa:"))?;
                bindings.push(binding(namespace, name, role, subjects));
            }
            _ if raw.starts_with(' ') => {
                let role = roles.last_mut().ok_or_else(|| error("a rule before any role"))?;
                role.rules.push(parse_rule(&words).map_err(error)?);
            }
            _ => return Err(error("neither role nor bind nor rule")),
        }
    }
    for role in roles.iter().filter(|r| r.namespace.is_empty()) {
        if let Some(controller) = role.name.strip_prefix("system:controller:") {
            let account = json!({ "kind": "ServiceAccount", "name": controller, "namespace": "kube-system" });
            bindings.push(binding("", &role.name, &role.name, vec![account]));
        }
    }
    aggregate(&mut roles);
    let mut objects: Vec<Value> = roles.iter().map(role_object).collect();
    objects.extend(bindings);
    Ok(objects)
}

/// Fills roles that aggregate others; aggregated roles may be aggregated again.
fn aggregate(roles: &mut [Role]) {
    for _ in 0..roles.len() {
        let mut by_label: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for role in roles.iter() {
            for label in &role.labels {
                let rules = by_label.entry(label.clone()).or_default();
                for rule in &role.rules {
                    if !rules.contains(rule) {
                        rules.push(rule.clone());
                    }
                }
            }
        }
        let mut changed = false;
        for role in roles.iter_mut() {
            let Some(rules) = role.aggregates.as_ref().and_then(|label| by_label.get(label)) else {
                continue;
            };
            if role.rules.len() != rules.len() {
                role.rules.clone_from(rules);
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

fn role_object(role: &Role) -> Value {
    let kind = if role.namespace.is_empty() {
        "ClusterRole"
    } else {
        "Role"
    };
    let rules: Vec<Value> = role
        .rules
        .iter()
        .filter_map(|r| serde_json::to_value(r).ok())
        .collect();
    let mut object = json!({ "apiVersion": GROUP_VERSION, "kind": kind,
        "metadata": metadata(&role.namespace, &role.name), "rules": rules });
    for label in &role.labels {
        object["metadata"]["labels"][format!("{AGGREGATE}{label}")] = "true".into();
    }
    if let Some(label) = &role.aggregates {
        object["aggregationRule"] =
            json!({ "clusterRoleSelectors": [{ "matchLabels": { format!("{AGGREGATE}{label}"): "true" } }] });
    }
    object
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match kind {
        "user" => json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name }),
        "group" => json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name }),
        "sa" => json!({ "kind": "ServiceAccount", "name": name, "namespace": "kube-system" }),
        _ => return None,
    })
}

fn binding(namespace: &str, name: &str, role: &str, subjects: Vec<Value>) -> Value {
    let (kind, role_kind) = if namespace.is_empty() {
        ("ClusterRoleBinding", "ClusterRole")
    } else {
        ("RoleBinding", "Role")
    };
    let mut object = json!({ "apiVersion": GROUP_VERSION, "kind": kind, "metadata": metadata(namespace, name),
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role } });
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_and_is_whole() {
        let objects = parse(TABLE).unwrap();
        let named = |kind: &str, name: &str| {
            objects
                .iter()
                .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
                .cloned()
        };
        let count = |kind: &str| objects.iter().filter(|o| o["kind"] == kind).count();
        assert_eq!((count("Role"), count("RoleBinding")), (7, 7));
        // Kubernetes has 70 and 51; the rest are skiff's own.
        assert_eq!((count("ClusterRole"), count("ClusterRoleBinding")), (71, 55));
        let rules = |name: &str| rules_of(&named("ClusterRole", name).unwrap()).len();
        // What the real server shows: 29, 27 and 12 rules.
        assert_eq!((rules("admin"), rules("edit"), rules("view")), (29, 27, 12));
        let node = named("ClusterRoleBinding", "system:node").unwrap();
        assert!(node.get("subjects").is_none());
        let job = named("ClusterRoleBinding", "system:controller:job-controller").unwrap();
        assert_eq!(job["subjects"][0]["name"], "job-controller");
    }

    #[test]
    fn lost_rules_come_back_and_added_ones_stay() {
        let wanted = &parse("role a\n  get core pods,secrets\n").unwrap()[0];
        let mut current = wanted.clone();
        current["rules"] = json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["list"], "apiGroups": ["x"], "resources": ["y"]}]);
        assert!(!is_complete(&current, wanted));
        let fixed = completed(&current, wanted);
        assert_eq!(fixed["rules"].as_array().unwrap().len(), 3);
        assert!(is_complete(&fixed, wanted));
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(parse("role a\nnonsense").unwrap_err().line, 2);
        assert_eq!(parse("  get core pods").unwrap_err().line, 1);
    }
}
