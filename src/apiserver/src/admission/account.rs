//! Every pod runs as a service account and finds its token in a volume.

use std::time::Duration;

use futures::StreamExt;
use rand::Rng;
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::names;
use skiff_api::status::Status;

use super::Attempt;
use crate::server::{ApiServer, Call};

/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Life of a pod's token: an hour and some seconds, by which Kubernetes tells it from others.
const TOKEN_SECONDS: i64 = 3607;
/// What the name of the token volume starts with.
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// How long a pod waits for the account that its namespace is about to get.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

/// A namespace gets its account `default` a moment after it was made: a pod that comes in between waits for it.
pub async fn await_account(server: &ApiServer, call: &Call, pod: &Value) {
    let kind = &call.kind;
    if !kind.group.is_empty() || kind.plural != "pods" || !call.sub_name().is_empty() {
        return;
    }
    if !["", "default"].contains(&meta::str_at(pod, "spec.serviceAccountName")) {
        return;
    }
    let key = server
        .core("serviceaccounts")
        .key(&call.info.namespace, "default");
    let Ok(mut watch) = server.store.watch(&key, None) else {
        return;
    };
    if server.store.get(&key).is_none() {
        // Missing after that is an error that admission tells.
        let _ = tokio::time::timeout(ACCOUNT_WAIT, watch.next()).await;
    }
}

/// Sets the service account of a new pod, checks that it exists, mounts its token.
pub fn service_account(attempt: &Attempt<'_>, pod: &mut Value, _: Option<&Value>) -> Result<(), Status> {
    if !attempt.creates("", "pods") {
        return Ok(());
    }
    let pod_name = meta::name(pod).to_owned();
    if meta::annotation(pod, MIRROR).is_some() {
        for (field, why) in [(
            "serviceAccountName",
            "a mirror pod may not reference service accounts",
        )] {
            if !meta::str_at(pod, &format!("spec.{field}")).is_empty() {
                return Err(attempt.forbidden(&pod_name, why));
            }
        }
        return Ok(());
    }
    let mut account = meta::str_at(pod, "spec.serviceAccountName").to_owned();
    if account.is_empty() {
        account = match meta::str_at(pod, "spec.serviceAccount") {
            "" => "default".to_owned(),
            old => old.to_owned(),
        };
    }
    meta::set(pod, "spec.serviceAccountName", account.as_str());
    meta::set(pod, "spec.serviceAccount", account.as_str());
    let namespace = attempt.call.info.namespace.as_str();
    let Some(found) = attempt.server.object("serviceaccounts", namespace, &account) else {
        let why = format!(
            "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
        );
        return Err(attempt.forbidden(&pod_name, &why));
    };
    if meta::list_at(pod, "spec.imagePullSecrets").is_empty()
        && let Some(secrets) = found
            .get("imagePullSecrets")
            .filter(|s| s.as_array().is_some_and(|a| !a.is_empty()))
    {
        meta::set(pod, "spec.imagePullSecrets", secrets.clone());
    }
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| found["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(pod);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let existing = meta::list_at(pod, "spec.volumes")
        .iter()
        .filter_map(|v| v["name"].as_str())
        .find(|n| n.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let volume = existing
        .clone()
        .unwrap_or_else(|| names::generate(VOLUME_PREFIX, rand::rng().random()));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        // Not by index, which would leave a null where there is no list.
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers.iter_mut().filter(|c| c.is_object()) {
            let taken = container["volumeMounts"]
                .as_array()
                .is_some_and(|mounts| mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH));
            if taken {
                continue;
            }
            if !container["volumeMounts"].is_array() {
                container["volumeMounts"] = json!([]);
            }
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({ "name": volume, "readOnly": true, "mountPath": MOUNT_PATH }));
                used = true;
            }
        }
    }
    if used && existing.is_none() {
        if !pod["spec"]["volumes"].is_array() {
            pod["spec"]["volumes"] = json!([]);
        }
        if let Some(volumes) = pod["spec"]["volumes"].as_array_mut() {
            volumes.push(json!({ "name": volume, "projected": { "defaultMode": 0o644, "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{ "path": "namespace",
                    "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } }] } },
            ]}}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_and_respects_own_mounts() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod);
        mount_token(&mut pod);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert!(
            pod["spec"]["volumes"][0]["name"]
                .as_str()
                .unwrap()
                .starts_with(VOLUME_PREFIX)
        );
    }
}
