//! containerd's event stream, kept up through restarts of containerd.
//!
//! After each (re)connection the world is listed once, after the subscription is in place, so that
//! nothing falls between; subscribers get a [`RuntimeEvent::Resync`].

use super::Inner;
use super::client::call;
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

/// Runs until dropped.
pub async fn run(inner: Arc<Inner>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
    let gate = Arc::new(tokio::sync::Semaphore::new(FINISHES_MAX));
    loop {
        let filter = |topic: &str| format!("topic=={topic:?},namespace=={:?}", inner.config.namespace);
        let filters = vec![filter("/tasks/exit"), filter("/tasks/oom")];
        let request = inner.client.endless(api::SubscribeRequest { filters });
        match inner
            .client
            .event_service()
            .subscribe(request)
            .await
            .map_err(call("subscribe to events"))
        {
            Ok(answer) => {
                let mut stream = answer.into_inner();
                match inner.resync().await {
                    Ok(()) => {
                        backoff.reset();
                        inner.emit(RuntimeEvent::Resync);
                        while let Ok(Some(envelope)) = stream.message().await {
                            handle(&inner, &gate, envelope).await;
                        }
                        tracing::warn!("containerd's event stream ended, subscribing again");
                    }
                    Err(error) => tracing::warn!(%error, "state of containerd cannot be read"),
                }
            }
            Err(error) => tracing::debug!(%error, "containerd is not there"),
        }
        tokio::time::sleep(backoff.next()).await;
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
