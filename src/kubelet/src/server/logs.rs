//! `GET /containerLogs/...`: finds the container meant, then streams its log files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use http::StatusCode;
use k8s_openapi::api::core::v1::ContainerStatus;
use skiff_cri::{Container, ContainerState, Runtime, RuntimeEvent};

use super::Refusal;
use super::log_files::{Progress, Reader};
use super::log_lines::Options;
use super::log_watch::{Watch, Watcher};
use crate::kubelet::PodEntry;

/// Bytes gathered before they are sent.
const CHUNK_BYTES: usize = 64 * 1024;
/// Steps of 64 KiB read on a blocking thread at a time, so that a reader that skips much is still cut off soon when
/// its client goes.
const STEPS_MAX: usize = 64;

/// A container's log.
#[derive(Debug)]
pub struct Target {
    /// The container.
    pub id: String,
    /// Its current log file.
    pub path: PathBuf,
}

fn status_of<'a>(entry: &'a PodEntry, name: &str) -> Option<&'a ContainerStatus> {
    let status = entry.pod.status.as_ref()?;
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == name)
}

fn declared(entry: &PodEntry, name: &str) -> bool {
    entry.pod.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().any(|one| one.name == name)
            || spec.init_containers.iter().flatten().any(|one| one.name == name)
            || spec
                .ephemeral_containers
                .iter()
                .flatten()
                .any(|one| one.name == name)
    })
}

/// The id of the container that a state tells the end of.
fn ended(state: Option<&k8s_openapi::api::core::v1::ContainerState>) -> Option<&str> {
    let id = state?.terminated.as_ref()?.container_id.as_deref()?;
    Some(id.split_once("://").map_or(id, |(_, id)| id))
}

/// The container whose log is meant, in Kubernetes' words when there is none.
pub fn find(entry: &PodEntry, name: &str, previous: bool) -> Result<Target, Refusal> {
    let pod = entry.pod.metadata.name.as_deref().unwrap_or_default();
    if !declared(entry, name) {
        let message = format!("container {name:?} not found in pod {pod:?}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    }
    let status = status_of(entry, name);
    let started = |container: &&Container| {
        container.started_at.is_some() || !matches!(container.state, ContainerState::Created)
    };
    let mut containers = entry
        .containers
        .iter()
        .filter(|container| container.name == name)
        .filter(started);
    let found = if previous {
        // While the next attempt is waited for, the newest container is the previous one.
        let last = ended(status.and_then(|status| status.last_state.as_ref()));
        let named = last.and_then(|id| entry.containers.iter().find(|container| container.id == id));
        // The status may be a moment behind the runtime and name one that is removed.
        let current = ended(status.and_then(|status| status.state.as_ref()));
        let mut others = containers.filter(|container| {
            matches!(container.state, ContainerState::Exited { .. }) && current != Some(container.id.as_str())
        });
        named.or_else(|| others.next()).ok_or_else(|| {
            Refusal::bad(format!(
                "previous terminated container {name:?} in pod {pod:?} not found"
            ))
        })?
    } else {
        containers.next().ok_or_else(|| {
            let waiting =
                status.and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.as_deref());
            let why = match waiting {
                Some("ErrImagePull") => "image can't be pulled",
                Some("ImagePullBackOff") => "trying and failing to pull image",
                Some(reason) => reason,
                None => "ContainerCreating",
            };
            Refusal::bad(format!(
                "container {name:?} in pod {pod:?} is waiting to start: {why}"
            ))
        })?
    };
    match &found.log_path {
        Some(path) => Ok(Target {
            id: found.id.clone(),
            path: path.clone(),
        }),
        None => Err(Refusal::bad(format!(
            "container {name:?} in pod {pod:?} has no log"
        ))),
    }
}

/// Ends when the container does; the runtime has written all its output by then.
async fn end_of(runtime: Arc<dyn Runtime>, id: String) {
    // Subscribed before the look, so that nothing falls between.
    let mut events = runtime.events();
    loop {
        match runtime.container(&id).await {
            Ok(container) if matches!(container.state, ContainerState::Exited { .. }) => return,
            Err(error) if error.is_not_found() => return,
            // A runtime that is away says so when it is back.
            Ok(_) | Err(_) => {}
        }
        loop {
            match events.next().await {
                Some(RuntimeEvent::ContainerExited { id: other, .. }) if other == id => break,
                Some(RuntimeEvent::Resync) => break,
                Some(_) => {}
                // Events end with the runtime.
                None => return,
            }
        }
    }
}

struct Following {
    watch: Watch,
    end: BoxFuture<'static, ()>,
}

struct State {
    reader: Reader,
    following: Option<Following>,
}

/// The log as a stream of chunks. An error while reading ends it: the answer has begun.
pub async fn stream(
    target: Target,
    options: Options,
    runtime: Arc<dyn Runtime>,
    watcher: &Watcher,
) -> Result<BoxStream<'static, Bytes>, Refusal> {
    let failed = |path: &Path, error: &std::io::Error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("failed to read log {}: {error}", path.display()),
        )
    };
    let mut following = None;
    if options.follow {
        let folder = target.path.parent().unwrap_or(Path::new("/"));
        // The runtime makes it too, but maybe later.
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
        let watch = watcher.watch(folder).map_err(|error| failed(folder, &error))?;
        following = Some(Following {
            watch,
            end: end_of(runtime, target.id).boxed(),
        });
    }
    let path = target.path.clone();
    let opened = tokio::task::spawn_blocking(move || Reader::open(&path, &options)).await;
    let reader = opened.map_err(std::io::Error::other).and_then(|opened| opened);
    let reader = reader.map_err(|error| failed(&target.path, &error))?;
    let state = State { reader, following };
    Ok(futures::stream::unfold(Some(state), next).boxed())
}

async fn next(state: Option<State>) -> Option<(Bytes, Option<State>)> {
    let State {
        mut reader,
        mut following,
    } = state?;
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            let mut steps = 0;
            let progress = loop {
                steps += 1;
                match reader.step(&mut out) {
                    Ok(Progress::More) if out.len() < CHUNK_BYTES && steps < STEPS_MAX => {}
                    other => break other,
                }
            };
            if matches!(progress, Ok(Progress::End)) {
                reader.flush(&mut out);
            }
            (reader, out, progress)
        });
        let (back, out, progress) = read.await.ok()?;
        reader = back;
        let progress = progress.unwrap_or_else(|error| {
            tracing::warn!(%error, "a log cannot be read on");
            Progress::Full
        });
        let over = match progress {
            Progress::More => false,
            Progress::End => following.is_none(),
            Progress::Full => true,
        };
        if over {
            return if out.is_empty() {
                None
            } else {
                Some((out.into(), None))
            };
        }
        if !out.is_empty() {
            return Some((out.into(), Some(State { reader, following })));
        }
        if progress == Progress::End
            && let Some(Following { watch, end }) = &mut following
        {
            let ended = tokio::select! {
                biased;
                () = &mut *end => true,
                changed = watch.changed() => !changed,
            };
            if ended {
                // One more look at everything that was written before the end.
                following = None;
            }
        }
    }
}
