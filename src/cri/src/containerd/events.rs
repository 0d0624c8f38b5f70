//! containerd's event stream, kept up through restarts of containerd.
//!
//! After each (re)connection the world is listed once, after the subscription is in place, so that
//! nothing falls between; subscribers get a [`RuntimeEvent::Resync`].

use super::Inner;
use super::client::{CallError, call};
use super::container::time;
use crate::types::RuntimeEvent;
use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1 as api;
use containerd_client::types::Envelope;
use prost::Message;
use skiff_base::backoff::Backoff;
use std::sync::Arc;
use std::time::Duration;

/// Exits recorded at the same time; each is a few calls to containerd.
const FINISHES_MAX: usize = 8;

/// How often a mark is published until it comes back. Normally the first one does within a millisecond.
const MARK_INTERVAL: Duration = Duration::from_millis(200);
/// Topic of the mark.
const MARK_TOPIC: &str = "/skiff/subscribed";

/// Runs until dropped.
pub async fn run(inner: Arc<Inner>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let gate = Arc::new(tokio::sync::Semaphore::new(FINISHES_MAX));
    loop {
        match subscribe(&inner).await {
            Ok((early, mut stream)) => match inner.resync().await {
                Ok(()) => {
                    backoff.reset();
                    inner.emit(RuntimeEvent::Resync);
                    for envelope in early {
                        handle(&inner, &gate, envelope).await;
                    }
                    while let Ok(Some(envelope)) = stream.message().await {
                        handle(&inner, &gate, envelope).await;
                    }
                    tracing::warn!("containerd's event stream ended, subscribing again");
                }
                Err(error) => tracing::warn!(%error, "state of containerd cannot be read"),
            },
            Err(error) => tracing::debug!(%error, "containerd is not there"),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Subscribes and makes sure that the subscription is in place: containerd answers a subscription only
/// with its first event, so a mark of our own is published until it comes back. Returns what came before.
async fn subscribe(inner: &Inner) -> Result<(Vec<Envelope>, tonic::Streaming<Envelope>), CallError> {
    let filter = |topic: &str| format!("topic=={topic:?},namespace=={:?}", inner.config.namespace);
    let filters = ["/tasks/exit", "/tasks/oom", MARK_TOPIC].map(filter).to_vec();
    let mark = super::random_id(32).into_bytes();
    let wait_for_mark = async {
        let request = inner.client.endless(api::SubscribeRequest { filters });
        let mut service = inner.client.event_service();
        let mut stream = service
            .subscribe(request)
            .await
            .map_err(call("subscribe to events"))?
            .into_inner();
        let mut early = Vec::new();
        while let Some(envelope) = stream.message().await.map_err(call("read events"))? {
            if envelope.event.as_ref().is_some_and(|event| event.value == mark) {
                return Ok((early, stream));
            }
            early.push(envelope);
        }
        Err(call("read events")(tonic::Status::unavailable(
            "the stream ended",
        )))
    };
    let keep_marking = async {
        loop {
            let event = prost_types::Any {
                type_url: "skiff.io/mark".to_owned(),
                value: mark.clone(),
            };
            let message = api::PublishRequest {
                topic: MARK_TOPIC.to_owned(),
                event: Some(event),
            };
            if let Err(status) = inner
                .client
                .event_service()
                .publish(inner.client.request(message))
                .await
            {
                tracing::trace!(%status, "mark not published");
            }
            tokio::time::sleep(MARK_INTERVAL).await;
        }
    };
    tokio::select! {
        found = wait_for_mark => found,
        () = keep_marking => unreachable!("marking goes on for ever"),
    }
}

async fn handle(inner: &Arc<Inner>, gate: &Arc<tokio::sync::Semaphore>, envelope: Envelope) {
    let Some(event) = envelope.event else { return };
    let value = event.value.as_slice();
    match envelope.topic.as_str() {
        "/tasks/exit" => match TaskExit::decode(value) {
            // Execs end with their own id; only the container's first process matters here.
            Ok(exit) if exit.container_id == exit.id => {
                let at = time(exit.exited_at).unwrap_or_else(|| inner.clock.now());
                let Ok(permit) = gate.clone().acquire_owned().await else {
                    return;
                };
                let inner = inner.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Err(error) = inner.finish(&exit.id, exit.exit_status as i32, at).await {
                        tracing::warn!(container = exit.id, %error, "end of a container not recorded");
                    }
                });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "malformed exit event"),
        },
        "/tasks/oom" => match TaskOom::decode(value) {
            Ok(oom) => {
                inner.oomed.lock().insert(oom.container_id.clone());
                match inner.record(&oom.container_id).await {
                    Ok(record) if !record.is_init => {
                        inner.emit(RuntimeEvent::ContainerOom {
                            id: oom.container_id,
                            sandbox: record.sandbox,
                        });
                    }
                    _ => {}
                }
            }
            Err(error) => tracing::warn!(%error, "malformed out-of-memory event"),
        },
        _ => {}
    }
}
