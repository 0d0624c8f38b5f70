//! Removes expired bootstrap tokens (Secrets of type
//! `bootstrap.kubernetes.io/token` in `kube-system`) when their time is up.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use skiff_client::informer::{Selection, key_of, split_key};
use skiff_client::{Informer, WorkQueue};

use crate::{Context, is_gone};

const NAMESPACE: &str = "kube-system";
const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";

/// Starts the loop.
pub fn start(context: &Context) {
    let selection = Selection {
        namespace: Some(NAMESPACE.to_owned()),
        fields: Some(format!("type={TOKEN_TYPE}")),
        labels: None,
    };
    let secrets: Informer<Secret> = context.informers.get_with(selection);
    let queue = WorkQueue::new();
    context.feed(&secrets, &queue, |change| vec![key_of(&**change.object())]);
    let (ready, context_) = (secrets.clone(), context.clone());
    context.work(
        "bootstrap tokens",
        queue,
        1,
        async move { ready.synced().await },
        move |key| {
            let (context, secrets) = (context_.clone(), secrets.clone());
            async move {
                let Some(expiration) = secrets.get(&key).as_deref().and_then(expiration) else {
                    return Ok(None);
                };
                if let Some(left) = time_left(expiration, context.now()) {
                    return Ok(Some(left));
                }
                let api: Api<Secret> = Api::namespaced(context.client.clone(), NAMESPACE);
                match api.delete(split_key(&key).1, &Default::default()).await {
                    Err(error) if !is_gone(&error) => Err(error.into()),
                    _ => {
                        tracing::info!(token = split_key(&key).1, "removed an expired join token");
                        Ok(None)
                    }
                }
            }
        },
    );
}

fn expiration(secret: &Secret) -> Option<Timestamp> {
    let raw = secret.data.as_ref()?.get("expiration")?;
    std::str::from_utf8(&raw.0).ok()?.parse().ok()
}

fn time_left(expiration: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(expiration.duration_since(now))
        .ok()
        .filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry() {
        let at: Timestamp = "2030-01-01T00:00:00Z".parse().expect("time");
        let before: Timestamp = "2029-12-31T23:59:50Z".parse().expect("time");
        assert_eq!(time_left(at, before), Some(Duration::from_secs(10)));
        assert_eq!(time_left(at, at), None);
        let mut secret = Secret::default();
        assert_eq!(expiration(&secret), None);
        let data = [(
            "expiration".to_owned(),
            k8s_openapi::ByteString(b"2030-01-01T00:00:00Z".to_vec()),
        )];
        secret.data = Some(data.into());
        assert_eq!(expiration(&secret), Some(at));
    }
}
