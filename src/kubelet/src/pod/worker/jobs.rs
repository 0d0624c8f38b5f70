//! Actions: begun as tasks, and what their results mean.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::task::Id;

use super::{RETRY_FIRST, RETRY_MAX, Worker};
use crate::pod::apply::{self, Done, Job};
use crate::pod::plan::Action;
use crate::pod::spec::{self, Kind, Spec};
use crate::pod::state::{Failure, ImageNote, Network, Subject};
use crate::pod::{image, kill, start};

impl Worker {
    fn job(&self) -> Job {
        Job {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            config_maps: self.references.config_maps.clone(),
            secrets: self.references.secrets.clone(),
            volumes: self.volumes.clone(),
            ips: self
                .notes
                .network
                .as_ref()
                .map(|network| network.ips.clone())
                .unwrap_or_default(),
        }
    }

    pub(super) fn spec(&self, name: &str) -> Option<Spec> {
        self.specs
            .iter()
            .find(|spec| spec.container.name == name)
            .cloned()
    }

    /// Begins an action. True when the plan should be asked again at once.
    pub(super) fn begin(&mut self, action: Action) -> bool {
        let now = self.shared.clock().now();
        let job = self.job();
        let Some(subject) = action.subject() else {
            return match action {
                Action::Fail(verdict) => {
                    self.shared.recorder.normal(
                        &spec::reference(&self.pod, None),
                        &verdict.reason,
                        verdict.message.clone(),
                    );
                    self.notes.verdict = Some(verdict);
                    true
                }
                Action::Abort(subject) => {
                    if let Some(handle) = self.handles.get(&subject) {
                        handle.abort();
                    }
                    false
                }
                _ => false,
            };
        };
        if matches!(
            action,
            Action::RemoveSandbox { .. } | Action::CleanUp | Action::Finish
        ) {
            self.keep_final_status();
        }
        let mut deadline = None;
        let handle = match action {
            Action::RunSandbox { attempt } => self.jobs.spawn(apply::run_sandbox(job, attempt)),
            Action::Attach { sandbox } => {
                let sandbox = self.observed.sandboxes.iter().find(|s| s.id == sandbox).cloned();
                let Some(sandbox) = sandbox else { return false };
                self.jobs.spawn(apply::attach(job, sandbox))
            }
            Action::StopSandbox { sandbox } => self.jobs.spawn(apply::stop_sandbox(job, sandbox)),
            Action::RemoveSandbox { sandbox } => self.jobs.spawn(apply::remove_sandbox(job, sandbox)),
            Action::SetUpVolumes => {
                self.notes.volumes_dirty = false;
                self.notes.renew_at = None;
                self.jobs.spawn(apply::set_up_volumes(job))
            }
            Action::EnsureImage { container } => {
                let Some(spec) = self.spec(&container) else {
                    return false;
                };
                let previous = match self.notes.images.get(&container) {
                    Some(ImageNote::Failed(failure)) => Some(failure.clone()),
                    _ => None,
                };
                self.jobs.spawn(image::ensure(job, spec, previous))
            }
            Action::Start {
                container,
                attempt,
                backoff_s,
                image,
                replaces,
            } => {
                let (Some(spec), Some(sandbox)) = (self.spec(&container), self.observed.sandbox().cloned())
                else {
                    return false;
                };
                let target = match &spec.kind {
                    Kind::Ephemeral { target: Some(target) } => {
                        self.observed.latest(target).map(|container| container.id.clone())
                    }
                    _ => None,
                };
                let request = start::Request {
                    spec,
                    sandbox,
                    attempt,
                    backoff_s,
                    image,
                    replaces,
                    target,
                };
                let inbox = self.inbox.clone();
                self.jobs
                    .spawn(start::start(job, request, move || inbox.runtime()))
            }
            Action::Kill {
                id,
                name,
                deadline: at,
                message,
                hook,
            } => {
                deadline = Some(at);
                let hook = hook && !self.handles.contains_key(&subject);
                if let Some(earlier) = self.handles.remove(&subject) {
                    earlier.abort();
                }
                let spec = self.spec(&name);
                self.jobs.spawn(kill::kill(
                    job,
                    kill::Request {
                        id,
                        name,
                        spec,
                        deadline: at,
                        message,
                        hook,
                    },
                ))
            }
            Action::Remove { id } => {
                let log = self
                    .observed
                    .containers
                    .iter()
                    .find(|c| c.id == id)
                    .and_then(|c| c.log_path.clone());
                self.jobs.spawn(apply::remove_container(job, id, log))
            }
            Action::CleanUp => self.jobs.spawn(apply::clean_up(job, self.dying())),
            Action::Finish => {
                let writer = self.writer.clone();
                self.jobs.spawn(apply::finish(job, writer))
            }
            Action::Fail(_) | Action::Abort(_) => return false,
        };
        let _ = now;
        self.subjects.insert(handle.id(), subject.clone());
        self.handles.insert(subject.clone(), handle);
        self.notes.in_flight.insert(subject, deadline);
        true
    }

    /// Takes the result of a task.
    pub(super) async fn finish(&mut self, done: Result<(Id, Done), tokio::task::JoinError>) {
        let id = match &done {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let Some(subject) = self.subjects.remove(&id) else {
            return;
        };
        if self.handles.get(&subject).is_none_or(|handle| handle.id() != id) {
            return;
        }
        self.handles.remove(&subject);
        self.notes.in_flight.remove(&subject);
        let now = self.shared.clock().now();
        match done {
            Ok((_, done)) => self.result(&subject, done, now),
            Err(error) if error.is_panic() => {
                tracing::error!(pod = spec::full_name(&self.pod), ?subject, "task ended by a bug");
                let failure = Failure::after(
                    None,
                    now,
                    RETRY_MAX,
                    RETRY_MAX,
                    "InternalError",
                    "internal error".into(),
                );
                self.fail(&subject, failure);
            }
            Err(_) => {}
        }
        if !matches!(subject, Subject::Image(_) | Subject::Volumes | Subject::Finish) {
            self.observe().await;
        }
    }

    fn fail(&mut self, subject: &Subject, failure: Failure) {
        match subject {
            Subject::Volumes => self.notes.volumes_failure = Some(failure),
            Subject::Start(name) => {
                self.notes.start_failures.insert(name.clone(), failure);
            }
            Subject::Image(name) => {
                self.notes.images.insert(name.clone(), ImageNote::Failed(failure));
            }
            _ => self.notes.sandbox_failure = Some(failure),
        }
    }

    fn result(&mut self, subject: &Subject, done: Done, now: SystemTime) {
        let retry = |previous: Option<&Failure>, reason: &str, message: String| {
            Failure::after(previous, now, RETRY_FIRST, RETRY_MAX, reason, message)
        };
        match done {
            Done::Connected { sandbox, ips } => {
                self.notes.sandbox_failure = None;
                self.notes.network = Some(Network { sandbox, ips });
            }
            Done::Disconnected { sandbox } => {
                self.notes.sandbox_failure = None;
                if self
                    .notes
                    .network
                    .as_ref()
                    .is_some_and(|network| network.sandbox == sandbox)
                {
                    self.notes.network = None;
                }
            }
            Done::Volumes(Ok((volumes, renew_at))) => {
                self.volumes = Arc::new(volumes);
                self.notes.volumes_ready = true;
                self.notes.volumes_failure = None;
                self.notes.renew_at = renew_at;
            }
            Done::Volumes(Err(message)) => {
                let failure = retry(self.notes.volumes_failure.as_ref(), "FailedMount", message);
                if self.notes.volumes_ready {
                    // Running containers keep the files they have; try again later.
                    self.notes.renew_at = Some(failure.retry_at);
                }
                self.notes.volumes_failure = Some(failure);
            }
            Done::Image(Ok(image)) => {
                if let Subject::Image(name) = subject {
                    self.notes.images.insert(name.clone(), ImageNote::Present(image));
                }
            }
            Done::Image(Err(failure)) => self.fail(subject, failure),
            Done::Started { id } => {
                if let Subject::Start(name) = subject {
                    self.notes.start_failures.remove(name);
                    self.notes.images.remove(name);
                    self.begun(name, id);
                }
            }
            Done::NotStarted {
                reason,
                message,
                created,
            } => {
                if let Subject::Start(name) = subject {
                    self.notes.images.remove(name);
                    let failure = retry(self.notes.start_failures.get(name), &reason, message);
                    // A container that was created counts as ended: its restart waits by the crash-loop rules.
                    if !created {
                        self.notes.start_failures.insert(name.clone(), failure);
                    } else {
                        self.notes.start_failures.remove(name);
                    }
                }
            }
            Done::Cleaned(Ok(logs)) => {
                self.notes.cleaned = true;
                self.notes.purged |= logs;
                self.notes.volumes_ready = false;
                self.notes.sandbox_failure = None;
            }
            Done::Cleaned(Err(message)) | Done::SandboxFailed(message) => {
                let failure = retry(
                    self.notes.sandbox_failure.as_ref(),
                    "FailedCreatePodSandBox",
                    message,
                );
                self.notes.sandbox_failure = Some(failure);
            }
            Done::Finished => self.notes.finished = true,
            Done::Nothing => {}
        }
    }
}
