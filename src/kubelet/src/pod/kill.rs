//! Ending a container: preStop hook, stop signal, SIGKILL, within one deadline.

use std::time::{Duration, SystemTime};

use super::apply::{Done, Job};
use super::spec::{self, Spec};
use crate::probes::{self, Target};

/// What is left for the stop signal even when the hook used the grace up.
const MIN_STOP: Duration = Duration::from_secs(2);

/// Which container to end and how.
pub struct Request {
    /// Container id.
    pub id: String,
    /// Container name.
    pub name: String,
    /// Its definition, when the pod still has it.
    pub spec: Option<Spec>,
    /// SIGKILL at this time.
    pub deadline: SystemTime,
    /// Why.
    pub message: String,
    /// Run the preStop hook first.
    pub hook: bool,
}

/// Ends a container. Returns after its exit.
pub async fn kill(job: Job, request: Request) -> Done {
    let path = request.spec.as_ref().map(Spec::field_path);
    let about = spec::reference(&job.pod, path);
    if request.hook {
        job.shared
            .recorder
            .normal(&about, "Killing", request.message.clone());
    }
    let left = || {
        request
            .deadline
            .duration_since(job.shared.clock().now())
            .unwrap_or_default()
    };
    let mut hooked = false;
    if let Some(spec) = request.spec.as_ref().filter(|_| request.hook)
        && let Some(handler) = spec.lifecycle().and_then(|lifecycle| lifecycle.pre_stop.as_ref())
        && !left().is_zero()
    {
        hooked = true;
        let target = Target {
            runtime: job.shared.config.runtime.clone(),
            id: request.id.clone(),
            host: job.ips.first().copied(),
            container: spec.container.clone(),
        };
        match tokio::time::timeout(left(), probes::run_hook(handler, &target, left())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                job.shared.recorder.warning(
                    &about,
                    "FailedPreStopHook",
                    format!("PreStopHook failed: {error}"),
                );
            }
            Err(_) => job.shared.recorder.warning(
                &about,
                "FailedPreStopHook",
                "PreStopHook did not complete in the grace period",
            ),
        }
    }
    let grace = if hooked { left().max(MIN_STOP) } else { left() };
    match job.shared.config.runtime.stop_container(&request.id, grace).await {
        Ok(()) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => {
            tracing::warn!(container = request.name, %error, "container not stopped");
            // The plan sees it running and tries again; not at once.
            tokio::time::sleep(MIN_STOP).await;
        }
    }
    Done::Nothing
}
