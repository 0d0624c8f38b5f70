//! What every namespace gets: the service account `default`, the ConfigMap
//! `kube-root-ca.crt` with the cluster's CA, and tokens in Secrets of type
//! `kubernetes.io/service-account-token`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::informer::{key_of, split_key};
use skiff_client::{Informer, WorkQueue};

use crate::{Context, Outcome, is_conflict, is_gone};

const ROOT_CA: &str = "kube-root-ca.crt";
const DEFAULT_ACCOUNT: &str = "default";
const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

/// Tokens in Secrets are meant to stay: ten years.
const TOKEN_SECONDS: i64 = 10 * 365 * 24 * 3600;

/// Starts the loops.
pub fn start(context: &Context) {
    start_namespaces(context);
    start_tokens(context);
}

fn start_namespaces(context: &Context) {
    let namespaces: Informer<Namespace> = context.informers.get();
    let accounts: Informer<ServiceAccount> = context.informers.get();
    let maps: Informer<ConfigMap> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&namespaces, &queue, |change| vec![key_of(&**change.object())]);
    context.feed(&accounts, &queue, |change| {
        of_namespace(&change.object().metadata, DEFAULT_ACCOUNT)
    });
    context.feed(&maps, &queue, |change| {
        of_namespace(&change.object().metadata, ROOT_CA)
    });
    let (ready_namespaces, ready_accounts, ready_maps) = (namespaces.clone(), accounts.clone(), maps.clone());
    let ready = async move {
        ready_namespaces.synced().await;
        ready_accounts.synced().await;
        ready_maps.synced().await;
    };
    let context_ = context.clone();
    let state = Arc::new((namespaces, accounts, maps));
    context.work("service accounts", queue, 2, ready, move |name| {
        let (context, state) = (context_.clone(), state.clone());
        async move {
            let (namespaces, accounts, maps) = &*state;
            let active = namespaces
                .get(&name)
                .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none());
            if !active {
                return Ok(None);
            }
            if accounts.get(&format!("{name}/{DEFAULT_ACCOUNT}")).is_none() {
                let account = ServiceAccount {
                    metadata: named(&name, DEFAULT_ACCOUNT),
                    ..Default::default()
                };
                create(&Api::namespaced(context.client.clone(), &name), &account).await?;
            }
            let current = maps.get(&format!("{name}/{ROOT_CA}"));
            ensure_root_ca(&context.client, &name, current.as_deref(), &context.config.ca_pem).await
        }
    });
}

fn of_namespace(meta: &ObjectMeta, name: &str) -> Vec<String> {
    if meta.name.as_deref() == Some(name) {
        meta.namespace.clone().into_iter().collect()
    } else {
        Vec::new()
    }
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    }
}

async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}

async fn ensure_root_ca(
    client: &Client,
    namespace: &str,
    current: Option<&ConfigMap>,
    ca_pem: &str,
) -> Outcome {
    let data = BTreeMap::from([("ca.crt".to_owned(), ca_pem.to_owned())]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match current {
        Some(map) if map.data.as_ref() == Some(&data) => {}
        Some(_) => {
            let patch = Patch::Merge(json!({"data": data}));
            api.patch(ROOT_CA, &PatchParams::default(), &patch).await?;
        }
        None => {
            let mut map = ConfigMap {
                metadata: named(namespace, ROOT_CA),
                data: Some(data),
                ..Default::default()
            };
            map.metadata.annotations = Some(BTreeMap::from([(
                "kubernetes.io/description".to_owned(),
                "The CA certificate of this cluster: clients in pods verify the API server with it."
                    .to_owned(),
            )]));
            create(&api, &map).await?;
        }
    }
    Ok(None)
}

fn start_tokens(context: &Context) {
    let selection = skiff_client::informer::Selection::fields(format!("type={TOKEN_TYPE}"));
    let secrets: Informer<Secret> = context.informers.get_with(selection);
    let accounts: Informer<ServiceAccount> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&secrets, &queue, |change| vec![key_of(&**change.object())]);
    let by_account = secrets.clone();
    context.feed(&accounts, &queue, move |change| {
        let meta = &change.object().metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let mine =
            |secret: &Secret| account_of(secret).is_some_and(|name| Some(name) == meta.name.as_deref());
        by_account
            .list_in(namespace)
            .iter()
            .filter(|secret| mine(secret))
            .map(|secret| key_of(&**secret))
            .collect()
    });
    let (ready_secrets, ready_accounts) = (secrets.clone(), accounts.clone());
    let ready = async move {
        ready_secrets.synced().await;
        ready_accounts.synced().await;
    };
    let context_ = context.clone();
    context.work("service account tokens", queue, 1, ready, move |key| {
        let (context, secrets, accounts) = (context_.clone(), secrets.clone(), accounts.clone());
        async move {
            match secrets.get(&key) {
                Some(secret) => reconcile_token(&context, &secret, &accounts).await,
                None => Ok(None),
            }
        }
    });
}

fn account_of(secret: &Secret) -> Option<&str> {
    secret
        .metadata
        .annotations
        .as_ref()?
        .get(ACCOUNT_NAME)
        .map(String::as_str)
}

async fn reconcile_token(context: &Context, secret: &Secret, accounts: &Informer<ServiceAccount>) -> Outcome {
    let key = key_of(secret);
    let (namespace, name) = split_key(&key);
    let namespace = namespace.unwrap_or_default();
    let Some(account_name) = account_of(secret) else {
        return Ok(None);
    };
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let wanted_uid = secret
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(ACCOUNT_UID));
    let account = accounts.get(&format!("{namespace}/{account_name}"));
    let uid = account.as_ref().and_then(|account| account.metadata.uid.clone());
    // A token outlives its account only until this loop sees it.
    if wanted_uid.is_some() && wanted_uid != uid.as_ref() {
        return match api.delete(name, &Default::default()).await {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(None),
        };
    }
    let Some(uid) = uid else { return Ok(None) };
    if secret
        .data
        .as_ref()
        .is_some_and(|data| data.contains_key("token") && data.contains_key("ca.crt"))
    {
        return Ok(None);
    }
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Secret".to_owned()),
                name: secret.metadata.name.clone(),
                uid: secret.metadata.uid.clone(),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    let granted = accounts
        .create_token_request(account_name, &PostParams::default(), &request)
        .await?;
    let token = granted.status.and_then(|status| status.token).unwrap_or_default();
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let patch = json!({
        "metadata": {"annotations": {ACCOUNT_UID: uid}},
        "data": {
            "token": bytes(&token),
            "ca.crt": bytes(&context.config.ca_pem),
            "namespace": bytes(namespace),
        }
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(None)
}
