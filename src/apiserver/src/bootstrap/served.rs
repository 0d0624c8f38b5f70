//! APIServices of the built-in group versions, and the flow control objects every cluster has.
//!
//! The objects are created when they are missing; what somebody changed stays. Their conditions
//! are facts about this server and are set at every start.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use skiff_api::kinds::Kinds;
use skiff_api::meta;

use super::CONCURRENT_WRITES;
use crate::server::{ApiServer, Call, StartError};

/// Groups by the order in which clients prefer them.
const PRIORITIES: &[(&str, u32)] = &[
    ("", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("apiextensions.k8s.io", 16700),
    ("admissionregistration.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("resource.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
];
/// Group versions with another priority than 15.
const VERSION_PRIORITIES: &[(&str, &str, u32)] = &[
    ("", "v1", 1),
    ("autoscaling", "v2", 30),
    ("flowcontrol.apiserver.k8s.io", "v1", 21),
    ("resource.k8s.io", "v1", 21),
];

/// Name, concurrency shares, percentage that may be lent, and (queues, hand size, queue length).
type Level = (&'static str, u32, u32, Option<(u32, u32, u32)>);

const LEVELS: &[Level] = &[
    ("system", 30, 33, Some((64, 6, 50))),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
    ("global-default", 20, 50, Some((128, 6, 50))),
    ("catch-all", 5, 0, None),
];

/// Which requests a flow takes.
#[derive(Clone, Copy)]
enum Take {
    Everything,
    Probes,
    LeaderLeases,
    NodeHeartbeats,
}

struct Flow {
    name: &'static str,
    precedence: u32,
    level: &'static str,
    /// How requests are told apart: by `User`, by `Namespace`, or not.
    by: &'static str,
    /// `user:`, `group:` or `sa:` (of kube-system).
    subjects: &'static [&'static str],
    take: Take,
}

const EVERYBODY: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];
const FLOWS: &[Flow] = &[
    flow(
        "exempt",
        1,
        "exempt",
        "",
        &["group:system:masters"],
        Take::Everything,
    ),
    flow("probes", 2, "exempt", "", EVERYBODY, Take::Probes),
    flow(
        "system-leader-election",
        100,
        "leader-election",
        "User",
        &[
            "user:system:kube-controller-manager",
            "user:system:kube-scheduler",
            "sa:*",
        ],
        Take::LeaderLeases,
    ),
    flow(
        "system-node-high",
        400,
        "node-high",
        "User",
        &["group:system:nodes"],
        Take::NodeHeartbeats,
    ),
    flow(
        "system-nodes",
        500,
        "system",
        "User",
        &["group:system:nodes"],
        Take::Everything,
    ),
    flow(
        "kube-controller-manager",
        800,
        "workload-high",
        "Namespace",
        &["user:system:kube-controller-manager"],
        Take::Everything,
    ),
    flow(
        "kube-scheduler",
        800,
        "workload-high",
        "Namespace",
        &["user:system:kube-scheduler"],
        Take::Everything,
    ),
    flow(
        "kube-system-service-accounts",
        900,
        "workload-high",
        "Namespace",
        &["sa:*"],
        Take::Everything,
    ),
    flow(
        "service-accounts",
        9000,
        "workload-low",
        "User",
        &["group:system:serviceaccounts"],
        Take::Everything,
    ),
    flow(
        "global-default",
        9900,
        "global-default",
        "User",
        EVERYBODY,
        Take::Everything,
    ),
    flow(
        "catch-all",
        10000,
        "catch-all",
        "User",
        EVERYBODY,
        Take::Everything,
    ),
];

const fn flow(
    name: &'static str,
    precedence: u32,
    level: &'static str,
    by: &'static str,
    subjects: &'static [&'static str],
    take: Take,
) -> Flow {
    Flow {
        name,
        precedence,
        level,
        by,
        subjects,
        take,
    }
}

/// Writes what is missing.
pub async fn reconcile(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let now = meta::timestamp(server.clock.now());
    let mut objects = api_services(&now);
    objects.extend(levels());
    objects.extend(FLOWS.iter().map(|flow| flow_schema(flow, &now)));
    futures::stream::iter(objects)
        .map(|object| ensure(server, object))
        .buffer_unordered(CONCURRENT_WRITES)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// Creates an object that is missing and sets its conditions where it has none.
async fn ensure(server: &Arc<ApiServer>, object: Value) -> Result<(), StartError> {
    let (kind, name) = (meta::kind(&object).to_owned(), meta::name(&object).to_owned());
    let conditions = meta::at(&object, "status.conditions").cloned();
    let row = server.kinds().of(meta::api_version(&object), &kind).cloned();
    server.ensure(object, &[]).await?;
    let (Some(row), Some(conditions)) = (row, conditions) else {
        return Ok(());
    };
    let call = Call::internal(&row, "update", "", &name);
    let amended = server
        .amend(&call, &row.key("", &name), &name, |object| {
            let missing = meta::list_at(object, "status.conditions").is_empty();
            if missing {
                meta::set(object, "status.conditions", conditions.clone());
            }
            Ok(missing)
        })
        .await;
    amended.map(|_| ()).map_err(|status| StartError::Bootstrap {
        object: format!("{kind} {name}"),
        reason: status.message,
    })
}

fn api_services(now: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for (group, versions) in Kinds::builtin().groups() {
        // A group that is not listed is served after those that are.
        let minimum = PRIORITIES
            .iter()
            .find(|(g, _)| *g == group)
            .map_or(16000, |(_, p)| *p);
        for version in versions {
            let priority = VERSION_PRIORITIES
                .iter()
                .find(|(g, v, _)| *g == group && *v == version);
            let mut spec = json!({ "version": version, "groupPriorityMinimum": minimum,
                "versionPriority": priority.map_or(15, |(_, _, p)| *p) });
            if !group.is_empty() {
                spec["group"] = group.clone().into_owned().into();
            }
            out.push(
                json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {
                    "name": format!("{version}.{group}"),
                    "labels": { "kube-aggregator.kubernetes.io/automanaged": "onstart" } },
                "spec": spec, "status": { "conditions": [{ "type": "Available", "status": "True",
                    "lastTransitionTime": now, "reason": "Local",
                    "message": "Local APIServices are always available" }] } }),
            );
        }
    }
    // The registry of API services does not list itself.
    out.retain(|o| meta::str_at(o, "spec.group") != "apiregistration.k8s.io");
    out
}

fn flow_object(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": kind, "metadata": { "name": name,
        "annotations": { "apf.kubernetes.io/autoupdate-spec": "true" } }, "spec": spec })
}

fn levels() -> Vec<Value> {
    let exempt =
        json!({ "type": "Exempt", "exempt": { "nominalConcurrencyShares": 0, "lendablePercent": 0 } });
    let mut out = vec![flow_object("PriorityLevelConfiguration", "exempt", exempt)];
    for (name, shares, lendable, queuing) in LEVELS {
        let response = match queuing {
            None => json!({ "type": "Reject" }),
            Some((queues, hand, length)) => json!({ "type": "Queue", "queuing": {
                "queues": queues, "handSize": hand, "queueLengthLimit": length } }),
        };
        let spec = json!({ "type": "Limited", "limited": { "nominalConcurrencyShares": shares,
            "lendablePercent": lendable, "limitResponse": response } });
        out.push(flow_object("PriorityLevelConfiguration", name, spec));
    }
    out
}

fn flow_schema(flow: &Flow, now: &str) -> Value {
    let subjects: Vec<Value> = flow.subjects.iter().map(|s| subject(s)).collect();
    let mut rules = match flow.take {
        Take::Everything => json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }] }),
        Take::Probes => json!({ "nonResourceRules": [{ "verbs": ["get"],
            "nonResourceURLs": ["/healthz", "/readyz", "/livez"] }] }),
        Take::LeaderLeases => json!({ "resourceRules": [{ "verbs": ["get", "create", "update"],
            "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"] }] }),
        Take::NodeHeartbeats => json!({ "resourceRules": [
            { "verbs": ["*"], "apiGroups": [""], "resources": ["nodes", "nodes/status"], "clusterScope": true, "namespaces": ["*"] },
            { "verbs": ["*"], "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": ["*"] }] }),
    };
    rules["subjects"] = subjects.into();
    let mut spec = json!({ "matchingPrecedence": flow.precedence,
        "priorityLevelConfiguration": { "name": flow.level }, "rules": [rules] });
    if !flow.by.is_empty() {
        spec["distinguisherMethod"] = json!({ "type": format!("By{}", flow.by) });
    }
    let mut object = flow_object("FlowSchema", flow.name, spec);
    let level = flow.level;
    object["status"] = json!({ "conditions": [{ "type": "Dangling", "status": "False", "lastTransitionTime": now,
        "reason": "Found",
        "message": format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} and it exists") }] });
    object
}

fn subject(text: &str) -> Value {
    match text.split_once(':') {
        Some(("user", name)) => json!({ "kind": "User", "user": { "name": name } }),
        Some(("sa", name)) => {
            json!({ "kind": "ServiceAccount", "serviceAccount": { "name": name, "namespace": "kube-system" } })
        }
        _ => {
            json!({ "kind": "Group", "group": { "name": text.strip_prefix("group:").unwrap_or(text) } })
        }
    }
}
