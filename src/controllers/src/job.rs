//! Runs pods of a Job until enough of them have succeeded.
//!
//! Counting an ended pod exactly once takes three steps, each safe to repeat:
//! its uid is written to `status.uncountedTerminatedPods`, then its finalizer
//! is taken away, and when that is seen the uid becomes part of the counters.
//! Until then the finalizer keeps the pod from disappearing uncounted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::{Api, Resource};
use serde_json::json;
use skiff_client::informer::{key_of, split_key};
use skiff_client::{Informer, WorkQueue};

use crate::objects::{controller_of, is_ready, phase, random_suffix};
use crate::ownership::{Owner, namespaced};
use crate::pods::{BURST, PodControl, new_pod};
use crate::{Context, Error, Outcome, is_conflict, is_gone};

const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// After a failure the next pod waits this long, doubling with every further
/// one up to the limit, as in Kubernetes.
const FIRST_BACKOFF_SECONDS: i64 = 10;
const MAX_BACKOFF_SECONDS: i64 = 600;
/// Pods counted in one status write: keeps the status small.
const MAX_UNCOUNTED: usize = 500;

/// Starts the loop.
pub fn start(context: &Context) {
    let jobs: Informer<Job> = context.informers.get();
    let (queue, control) = (WorkQueue::new(), PodControl::new(context));
    context.feed(&jobs, &queue, |change| vec![key_of(&**change.object())]);
    control.feed(&jobs, &queue);
    let ready = {
        let (jobs, pods) = (jobs.clone(), control.pods.clone());
        async move {
            jobs.synced().await;
            pods.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        jobs,
        control,
    });
    context.work("jobs", queue, 4, ready, move |key| {
        let this = this.clone();
        async move {
            match this.reconcile(&key).await {
                // Somebody was faster: the informer brings the newer state.
                Err(Error::Api(error)) if is_conflict(&error) => Ok(Some(Duration::from_millis(50))),
                other => other,
            }
        }
    });
}

impl Owner for Job {
    fn selector(&self) -> Option<LabelSelector> {
        self.spec.as_ref()?.selector.clone()
    }
}

struct Loop {
    context: Context,
    jobs: Informer<Job>,
    control: PodControl,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let job = self.jobs.get(key);
        self.free_orphans(key, job.as_deref()).await?;
        let Some(job) = job else { return Ok(None) };
        let Some(spec) = &job.spec else { return Ok(None) };
        if spec
            .managed_by
            .as_deref()
            .is_some_and(|by| by != "kubernetes.io/job-controller")
        {
            return Ok(None);
        }
        if let Some(field) = unsupported(spec) {
            let message = format!("spec.{field} is not supported yet: the job is not run");
            self.context
                .recorder
                .warning(&job.object_ref(&()), "UnsupportedField", message);
            return Ok(None);
        }
        let status = job.status.clone().unwrap_or_default();
        let now = self.context.now();
        let pods = self.control.claim(&*job, true).await?;
        if let Some(end) = finished(&status) {
            self.free(&pods, |_| true).await?;
            return self.expire(&job, spec, end, now).await;
        }
        let waiting = self.control.wait(key);
        let decision = decide(&job, &pods, now);
        if decision.status != status {
            let mut updated = (*job).clone();
            updated.status = Some(decision.status.clone());
            let api: Api<Job> = namespaced(&self.context, &job.metadata);
            let name = job.metadata.name.as_deref().unwrap_or_default();
            // Unlike other loops this one must know that the status was taken
            // before it goes on: a conflict ends this run.
            api.replace_status(name, &PostParams::default(), &updated).await?;
            self.tell(&job, &status, &decision.status);
        }
        let uncounted = decision.status.uncounted_terminated_pods.unwrap_or_default();
        let counted: BTreeSet<&String> = uncounted
            .succeeded
            .iter()
            .chain(&uncounted.failed)
            .flatten()
            .collect();
        let ended = decision.ended;
        self.free(&pods, |pod| {
            ended || pod.metadata.uid.as_ref().is_some_and(|uid| counted.contains(uid))
        })
        .await?;
        if waiting.is_some() || job.metadata.deletion_timestamp.is_some() {
            return Ok(waiting);
        }
        let victims: Vec<Arc<Pod>> = pods
            .iter()
            .filter(|pod| {
                decision
                    .delete
                    .contains(pod.metadata.name.as_deref().unwrap_or_default())
            })
            .take(BURST)
            .cloned()
            .collect();
        if !decision.over {
            // Pods given up by suspending or scaling down are no failures.
            self.free(&victims, |_| true).await?;
        }
        self.control.delete(key, &*job, victims).await?;
        let new = decision
            .create
            .iter()
            .take(BURST)
            .map(|index| pod_for(&job, spec, *index))
            .collect();
        self.control.create(key, &*job, new).await?;
        Ok(decision.look_again)
    }

    /// Takes the finalizer from pods whose job is gone: nobody counts them.
    async fn free_orphans(&self, key: &str, job: Option<&Job>) -> Result<(), Error> {
        let (namespace, name) = split_key(key);
        let uid = job.and_then(|job| job.metadata.uid.as_deref());
        let orphaned = |pod: &Pod| {
            controller_of(&pod.metadata).is_some_and(|owner| {
                owner.kind == "Job" && owner.name == name && Some(owner.uid.as_str()) != uid
            })
        };
        self.free(
            &self.control.pods.list_in(namespace.unwrap_or_default()),
            orphaned,
        )
        .await
    }

    async fn free(&self, pods: &[Arc<Pod>], which: impl Fn(&Pod) -> bool) -> Result<(), Error> {
        for pod in pods.iter().filter(|pod| tracked(pod) && which(pod)) {
            let api: Api<Pod> = namespaced(&self.context, &pod.metadata);
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}});
            match api
                .patch(name, &PatchParams::default(), &Patch::Strategic(patch))
                .await
            {
                Err(error) if !is_gone(&error) && !is_conflict(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Deletes a finished job when its time is over.
    async fn expire(&self, job: &Job, spec: &JobSpec, end: jiff::Timestamp, now: jiff::Timestamp) -> Outcome {
        let Some(ttl) = spec.ttl_seconds_after_finished else {
            return Ok(None);
        };
        let left = i64::from(ttl) - now.duration_since(end).as_secs();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left.unsigned_abs())));
        }
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            preconditions: Some(Preconditions {
                uid: job.metadata.uid.clone(),
                resource_version: job.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let api: Api<Job> = namespaced(&self.context, &job.metadata);
        match api
            .delete(job.metadata.name.as_deref().unwrap_or_default(), &params)
            .await
        {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(None),
        }
    }

    fn tell(&self, job: &Job, before: &JobStatus, after: &JobStatus) {
        let about = job.object_ref(&());
        for condition in after.conditions.iter().flatten() {
            let same =
                condition_of(before, &condition.type_).is_some_and(|old| old.status == condition.status);
            let text = condition.message.clone().unwrap_or_default();
            match (condition.type_.as_str(), condition.status.as_str()) {
                _ if same => {}
                ("Complete", "True") => self.context.recorder.normal(&about, "Completed", "Job completed"),
                ("Failed", "True") => {
                    let reason = condition.reason.clone().unwrap_or_default();
                    self.context.recorder.warning(&about, &reason, text);
                }
                ("Suspended", "True") => self.context.recorder.normal(&about, "Suspended", text),
                ("Suspended", _) => self.context.recorder.normal(&about, "Resumed", text),
                _ => {}
            }
        }
    }
}

/// What to do about a job now.
#[derive(Debug, Default)]
struct Decision {
    status: JobStatus,
    delete: BTreeSet<String>,
    /// One pod each, with its completion index in Indexed mode.
    create: Vec<Option<i32>>,
    /// The job has succeeded or failed: its pods are counted to the end.
    over: bool,
    /// Nothing is left to count.
    ended: bool,
    look_again: Option<Duration>,
}

fn tracked(pod: &Pod) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|one| one == FINALIZER)
}

fn condition_of<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

fn is_true(status: &JobStatus, kind: &str) -> bool {
    condition_of(status, kind).is_some_and(|condition| condition.status == "True")
}

/// When the job ended, if it has.
pub(crate) fn finished(status: &JobStatus) -> Option<jiff::Timestamp> {
    let end = ["Complete", "Failed"]
        .iter()
        .filter_map(|kind| condition_of(status, kind))
        .find(|condition| condition.status == "True")?;
    Some(
        end.last_transition_time
            .as_ref()
            .map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0),
    )
}

fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: &str,
    reason: &str,
    text: &str,
    now: jiff::Timestamp,
) {
    let list = status.conditions.get_or_insert_default();
    if list.iter().any(|one| one.type_ == kind && one.status == value) {
        return;
    }
    list.retain(|one| one.type_ != kind);
    list.push(JobCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(text.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Active,
    Terminating,
    Succeeded,
    Failed,
}

fn fate(pod: &Pod, spec: &JobSpec) -> Fate {
    let replace_failed_only = spec.pod_replacement_policy.as_deref() == Some("Failed");
    match (phase(pod), pod.metadata.deletion_timestamp.is_some()) {
        ("Succeeded", _) => Fate::Succeeded,
        ("Failed", _) => Fate::Failed,
        (_, true) if replace_failed_only => Fate::Terminating,
        // A pod being deleted may never say how it ended: it has failed.
        (_, true) => Fate::Failed,
        _ => Fate::Active,
    }
}

fn index_of(pod: &Pod) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

fn decide(job: &Job, pods: &[Arc<Pod>], now: jiff::Timestamp) -> Decision {
    let spec = job.spec.clone().unwrap_or_default();
    let mut status = job.status.clone().unwrap_or_default();
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let suspended = spec.suspend == Some(true);
    let mut decision = Decision::default();
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(Time(now));
    }
    let pending = count(&mut status, &spec, pods, indexed);

    let spec = &spec;
    let of = |wanted: Fate| pods.iter().filter(move |pod| fate(pod, spec) == wanted);
    let active: Vec<&Arc<Pod>> = of(Fate::Active).collect();
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let length =
        |list: &Option<Vec<String>>| i32::try_from(list.as_ref().map_or(0, Vec::len)).unwrap_or(i32::MAX);
    let failed = status
        .failed
        .unwrap_or(0)
        .saturating_add(length(&uncounted.failed));
    let succeeded = if indexed {
        i32::try_from(completed(&status, spec, pods).len()).unwrap_or(i32::MAX)
    } else {
        status
            .succeeded
            .unwrap_or(0)
            .saturating_add(length(&uncounted.succeeded))
    };
    let terminating = pods
        .iter()
        .filter(|pod| {
            pod.metadata.deletion_timestamp.is_some() && !matches!(phase(pod), "Succeeded" | "Failed")
        })
        .count();

    let backoff = spec.backoff_limit.unwrap_or(6);
    let deadline = spec
        .active_deadline_seconds
        .zip(status.start_time.as_ref())
        .map(|(limit, start)| limit - now.duration_since(start.0).as_secs());
    if !is_true(&status, "FailureTarget") && !is_true(&status, "SuccessCriteriaMet") {
        let enough = match spec.completions {
            Some(completions) => succeeded >= completions,
            None => succeeded > 0 && active.is_empty(),
        };
        if failed > backoff || restarts_exhausted(spec, &active, backoff) {
            let text = "Job has reached the specified backoff limit";
            set_condition(
                &mut status,
                "FailureTarget",
                "True",
                "BackoffLimitExceeded",
                text,
                now,
            );
        } else if !suspended && deadline.is_some_and(|left| left <= 0) {
            let text = "Job was active longer than specified deadline";
            set_condition(
                &mut status,
                "FailureTarget",
                "True",
                "DeadlineExceeded",
                text,
                now,
            );
        } else if enough {
            let text = "Reached expected number of succeeded pods";
            set_condition(
                &mut status,
                "SuccessCriteriaMet",
                "True",
                "CompletionsReached",
                text,
                now,
            );
        }
    }
    let over = is_true(&status, "FailureTarget") || is_true(&status, "SuccessCriteriaMet");
    let names = |pods: &[&Arc<Pod>]| pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
    decision.over = over;
    let mut running = active.len();
    if over || suspended {
        decision.delete = names(&active);
        running = 0;
    }
    if over && active.is_empty() && terminating == 0 && !pending {
        let failure = condition_of(&status, "FailureTarget")
            .filter(|one| one.status == "True")
            .cloned();
        match failure {
            Some(why) => {
                let text = why.message.unwrap_or_default();
                set_condition(
                    &mut status,
                    "Failed",
                    "True",
                    &why.reason.unwrap_or_default(),
                    &text,
                    now,
                );
            }
            None => {
                let text = "Reached expected number of succeeded pods";
                set_condition(&mut status, "Complete", "True", "CompletionsReached", text, now);
                status.completion_time = Some(Time(now));
            }
        }
        decision.ended = true;
    } else if !over && suspended {
        set_condition(
            &mut status,
            "Suspended",
            "True",
            "JobSuspended",
            "Job suspended",
            now,
        );
        status.start_time = None;
    } else if !over {
        if is_true(&status, "Suspended") {
            set_condition(
                &mut status,
                "Suspended",
                "False",
                "JobResumed",
                "Job resumed",
                now,
            );
            status.start_time = Some(Time(now));
        }
        let parallelism = usize::try_from(spec.parallelism.unwrap_or(1)).unwrap_or(0);
        let wanted = match spec.completions {
            None if succeeded > 0 => active.len().min(parallelism),
            None => parallelism,
            Some(completions) => parallelism.min(usize::try_from(completions - succeeded).unwrap_or(0)),
        };
        let done = completed(&status, spec, pods);
        let surplus = surplus(&active, wanted, indexed.then_some(&done));
        running -= surplus.len();
        decision.delete = surplus;
        let held = of(Fate::Terminating).count();
        let missing = wanted.saturating_sub(running + held);
        let delay = backoff_left(pods, spec, now);
        if missing > 0 && delay.is_none() {
            decision.create = if indexed {
                let taken: BTreeSet<i32> = active
                    .iter()
                    .copied()
                    .chain(of(Fate::Terminating))
                    .filter_map(|pod| index_of(pod))
                    .collect();
                let total = spec.completions.unwrap_or(0);
                let open = (0..total).filter(|index| !done.contains(index) && !taken.contains(index));
                open.take(missing).map(Some).collect()
            } else {
                vec![None; missing]
            };
        }
        let left = deadline
            .and_then(|left| u64::try_from(left).ok())
            .map(Duration::from_secs);
        decision.look_again = [left, delay].into_iter().flatten().min();
    }
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let kept = active.iter().filter(|pod| {
        !decision
            .delete
            .contains(pod.metadata.name.as_deref().unwrap_or_default())
    });
    status.ready = Some(number(kept.filter(|pod| is_ready(pod)).count()));
    let shown = running + decision.create.len().min(BURST);
    status.active = Some(number(shown)).filter(|n| *n > 0);
    status.terminating = Some(number(terminating));
    decision.status = status;
    decision
}

/// Moves ended pods into `uncountedTerminatedPods` and, when their finalizer
/// is gone, into the counters. Answers whether anything is still on its way.
fn count(status: &mut JobStatus, spec: &JobSpec, pods: &[Arc<Pod>], indexed: bool) -> bool {
    let by_uid: BTreeMap<&str, &Arc<Pod>> = pods
        .iter()
        .filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod)))
        .collect();
    let mut uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let still = |uid: &String| by_uid.get(uid.as_str()).is_some_and(|pod| tracked(pod));
    let settle = |list: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
        let all = list.take().unwrap_or_default();
        let (waiting, done): (Vec<_>, Vec<_>) = all.into_iter().partition(still);
        if !done.is_empty() {
            let more = i32::try_from(done.len()).unwrap_or(i32::MAX);
            *counter = Some(counter.unwrap_or(0).saturating_add(more));
        }
        waiting
    };
    let indexes = indexed.then(|| completed(status, spec, pods));
    let mut succeeded = settle(&mut uncounted.succeeded, &mut status.succeeded);
    let mut failed = settle(&mut uncounted.failed, &mut status.failed);
    for pod in pods.iter().filter(|pod| tracked(pod)) {
        let Some(uid) = &pod.metadata.uid else { continue };
        if succeeded.len() + failed.len() >= MAX_UNCOUNTED || succeeded.contains(uid) || failed.contains(uid)
        {
            continue;
        }
        match fate(pod, spec) {
            // In Indexed mode the indexes below are the count.
            Fate::Succeeded => succeeded.push(uid.clone()),
            Fate::Failed => failed.push(uid.clone()),
            Fate::Active | Fate::Terminating => {}
        }
    }
    if let Some(indexes) = indexes {
        status.succeeded = Some(i32::try_from(indexes.len()).unwrap_or(i32::MAX)).filter(|n| *n > 0);
        status.completed_indexes = Some(write_indexes(&indexes)).filter(|text| !text.is_empty());
    }
    let pending = !succeeded.is_empty() || !failed.is_empty();
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        succeeded: Some(succeeded).filter(|list| !list.is_empty()),
        failed: Some(failed).filter(|list| !list.is_empty()),
    });
    pending
}

/// The completion indexes that have succeeded.
fn completed(status: &JobStatus, spec: &JobSpec, pods: &[Arc<Pod>]) -> BTreeSet<i32> {
    let total = spec.completions.unwrap_or(0);
    let before = read_indexes(status.completed_indexes.as_deref().unwrap_or_default(), total);
    let now = pods
        .iter()
        .filter(|pod| fate(pod, spec) == Fate::Succeeded)
        .filter_map(|pod| index_of(pod));
    before
        .into_iter()
        .chain(now)
        .filter(|index| (0..total).contains(index))
        .collect()
}

/// `1,3-5,7`, as the status writes it. Indexes from `total` on are left out.
fn read_indexes(text: &str, total: i32) -> BTreeSet<i32> {
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            all.extend(first.max(0)..=last.min(total - 1));
        }
    }
    all
}

fn write_indexes(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let write = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(write).collect::<Vec<_>>().join(",")
}

/// Active pods to give up: in Indexed mode duplicates and those of indexes
/// already done, then those that run least, until `wanted` are left.
fn surplus(active: &[&Arc<Pod>], wanted: usize, done: Option<&BTreeSet<i32>>) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    let mut ranked: Vec<_> = active
        .iter()
        .map(|pod| {
            let useless = done.is_some_and(|done| {
                index_of(pod).is_none_or(|index| done.contains(&index) || !taken.insert(index))
            });
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (
                !useless,
                phase(pod) == "Running",
                is_ready(pod),
                std::cmp::Reverse(created),
                pod.metadata.name.clone(),
            )
        })
        .collect();
    ranked.sort();
    let useless = ranked.iter().filter(|rank| !rank.0).count();
    let count = useless.max(active.len().saturating_sub(wanted));
    ranked.into_iter().take(count).filter_map(|rank| rank.4).collect()
}

/// Pods that restart their containers themselves count their restarts.
fn restarts_exhausted(spec: &JobSpec, active: &[&Arc<Pod>], limit: i32) -> bool {
    let policy = spec
        .template
        .spec
        .as_ref()
        .and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let restarts: i32 = active
        .iter()
        .filter_map(|pod| pod.status.as_ref())
        .flat_map(|status| {
            status
                .init_container_statuses
                .iter()
                .flatten()
                .chain(status.container_statuses.iter().flatten())
        })
        .map(|container| container.restart_count)
        .sum();
    restarts > 0 && restarts >= limit
}

/// When the pod's last container ended.
fn end_of(pod: &Pod) -> Option<jiff::Timestamp> {
    let ends = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ends = ends.filter_map(|container| {
        let ended = container.state.as_ref()?.terminated.as_ref()?;
        ended.finished_at.as_ref().map(|time| time.0)
    });
    ends.max()
        .or_else(|| pod.metadata.deletion_timestamp.as_ref().map(|time| time.0))
        .or_else(|| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// How long the next pod has to wait: failures since the last success.
fn backoff_left(pods: &[Arc<Pod>], spec: &JobSpec, now: jiff::Timestamp) -> Option<Duration> {
    // A pod this loop gave up itself has no finalizer and never ended.
    let ended = |pod: &Pod| tracked(pod) || matches!(phase(pod), "Succeeded" | "Failed");
    let ends = |wanted: Fate| {
        let of = pods
            .iter()
            .filter(move |pod| ended(pod) && fate(pod, spec) == wanted);
        of.filter_map(|pod| end_of(pod))
    };
    let success = ends(Fate::Succeeded).max();
    let failures: Vec<_> = ends(Fate::Failed)
        .filter(|end| success.is_none_or(|success| *end > success))
        .collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    let delay = (FIRST_BACKOFF_SECONDS << doublings).min(MAX_BACKOFF_SECONDS);
    let left = delay - now.duration_since(*last).as_secs();
    u64::try_from(left)
        .ok()
        .filter(|left| *left > 0)
        .map(Duration::from_secs)
}

fn pod_for(job: &Job, spec: &JobSpec, index: Option<i32>) -> Pod {
    let mut pod = new_pod(job, spec.template.clone());
    pod.metadata
        .finalizers
        .get_or_insert_default()
        .push(FINALIZER.to_owned());
    let Some(index) = index else { return pod };
    let name = job.metadata.name.clone().unwrap_or_default();
    for map in [&mut pod.metadata.annotations, &mut pod.metadata.labels] {
        map.get_or_insert_default()
            .insert(INDEX.to_owned(), index.to_string());
    }
    let prefix = format!("{name}-{index}-");
    pod.metadata.name = Some(format!("{prefix}{}", random_suffix()));
    pod.metadata.generate_name = Some(prefix);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname.get_or_insert_with(|| format!("{name}-{index}"));
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if env.iter().any(|one| one.name == "JOB_COMPLETION_INDEX") {
            continue;
        }
        env.push(EnvVar {
            name: "JOB_COMPLETION_INDEX".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: format!("metadata.labels['{INDEX}']"),
                }),
                ..EnvVarSource::default()
            }),
        });
    }
    pod
}

/// A field that asks for what this loop does not do; running the job without
/// it would be wrong.
fn unsupported(spec: &JobSpec) -> Option<&'static str> {
    let asked = [
        ("podFailurePolicy", spec.pod_failure_policy.is_some()),
        ("successPolicy", spec.success_policy.is_some()),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.is_some()),
        ("maxFailedIndexes", spec.max_failed_indexes.is_some()),
    ];
    asked.iter().find(|(_, asked)| *asked).map(|(field, _)| *field)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2030-01-01T01:00:00Z";

    fn now() -> jiff::Timestamp {
        NOW.parse().expect("time")
    }

    fn job(spec: serde_json::Value) -> Job {
        serde_json::from_value(json!({"metadata": {"name": "sum", "uid": "u"}, "spec": spec})).expect("job")
    }

    fn pod(name: &str, phase: &str, tracked: bool) -> Arc<Pod> {
        let finalizers: &[&str] = if tracked { &[FINALIZER] } else { &[] };
        let pod = json!({
            "metadata": {"name": name, "uid": name, "finalizers": finalizers, "creationTimestamp": "2030-01-01T00:00:00Z",
                "annotations": {INDEX: name.rsplit('-').next()}},
            "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).expect("pod"))
    }

    fn spec(parallelism: i32, completions: i32) -> serde_json::Value {
        json!({"parallelism": parallelism, "completions": completions, "backoffLimit": 1, "template": {}})
    }

    #[test]
    fn no_more_pods_run_than_are_needed() {
        for (parallelism, completions, pods, create, delete) in [
            (2, 3, vec![], 2, 0),
            (2, 3, vec![pod("a", "Running", true)], 1, 0),
            (
                2,
                2,
                vec![pod("a", "Succeeded", true), pod("b", "Running", true)],
                0,
                0,
            ),
            (
                1,
                3,
                vec![pod("a", "Running", true), pod("b", "Pending", true)],
                0,
                1,
            ),
            (2, 3, vec![pod("a", "Failed", true)], 2, 0),
        ] {
            let decision = decide(&job(spec(parallelism, completions)), &pods, now());
            assert_eq!(
                (decision.create.len(), decision.delete.len()),
                (create, delete),
                "{pods:?}"
            );
        }
    }

    #[test]
    fn an_ended_pod_is_counted_once_its_finalizer_is_gone() {
        let mut job = job(spec(1, 1));
        let first = decide(&job, &[pod("a", "Succeeded", true)], now()).status;
        assert_eq!(first.succeeded, None);
        assert!(is_true(&first, "SuccessCriteriaMet") && finished(&first).is_none());
        let waiting = first
            .uncounted_terminated_pods
            .clone()
            .and_then(|pods| pods.succeeded);
        assert_eq!(waiting, Some(vec!["a".to_owned()]));
        job.status = Some(first);
        for pods in [vec![pod("a", "Succeeded", false)], vec![]] {
            let second = decide(&job, &pods, now()).status;
            assert_eq!(second.succeeded, Some(1));
            assert!(is_true(&second, "Complete") && second.completion_time.is_some());
        }
    }

    #[test]
    fn too_many_failures_and_too_much_time_end_a_job() {
        let failures = [
            pod("a", "Failed", true),
            pod("b", "Failed", true),
            pod("c", "Running", true),
        ];
        let decision = decide(&job(spec(1, 1)), &failures, now());
        assert!(is_true(&decision.status, "FailureTarget") && !is_true(&decision.status, "Failed"));
        assert_eq!(decision.delete, BTreeSet::from(["c".to_owned()]));
        let mut late = job(json!({"activeDeadlineSeconds": 60, "completions": 1, "template": {}}));
        late.status.get_or_insert_default().start_time =
            Some(Time("2030-01-01T00:00:00Z".parse().expect("time")));
        let status = decide(&late, &[], now()).status;
        let failed = condition_of(&status, "Failed").and_then(|one| one.reason.as_deref());
        assert_eq!(failed, Some("DeadlineExceeded"));
    }

    #[test]
    fn a_suspended_job_has_no_pods_and_no_start() {
        let mut suspended = job(json!({"suspend": true, "completions": 1, "template": {}}));
        let decision = decide(&suspended, &[pod("a", "Running", true)], now());
        assert_eq!(decision.delete.len(), 1);
        assert!(is_true(&decision.status, "Suspended") && decision.status.start_time.is_none());
        suspended.status = Some(decision.status);
        suspended.spec.get_or_insert_default().suspend = None;
        let resumed = decide(&suspended, &[], now());
        assert!(!is_true(&resumed.status, "Suspended") && resumed.status.start_time.is_some());
        assert_eq!(resumed.create.len(), 1);
    }

    #[test]
    fn indexed_jobs_run_the_open_indexes() {
        let mut spec = spec(2, 4);
        spec["completionMode"] = json!("Indexed");
        let pods = [pod("sum-0", "Succeeded", true), pod("sum-2", "Running", true)];
        let decision = decide(&job(spec.clone()), &pods, now());
        assert_eq!(decision.create, [Some(1)]);
        assert_eq!(decision.status.completed_indexes.as_deref(), Some("0"));
        let made = pod_for(&job(spec.clone()), &job(spec).spec.expect("spec"), Some(3));
        assert_eq!(index_of(&made), Some(3));
        assert_eq!(made.spec.and_then(|spec| spec.hostname).as_deref(), Some("sum-3"));
        let all = read_indexes("0,2-4,6,7", 8);
        assert_eq!(all, BTreeSet::from([0, 2, 3, 4, 6, 7]));
        assert_eq!(write_indexes(&all), "0,2-4,6,7");
    }

    #[test]
    fn failures_delay_the_next_pod() {
        let spec = JobSpec::default();
        let at = |seconds: i64| {
            "2030-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("time")
                + jiff::SignedDuration::from_secs(seconds)
        };
        let (one, two) = (
            [pod("a", "Failed", true)],
            [pod("a", "Failed", true), pod("b", "Failed", true)],
        );
        for (pods, seconds, left) in [
            (&one[..], 4, Some(6)),
            (&one, 10, None),
            (&two, 10, Some(10)),
            (&[], 0, None),
        ] {
            assert_eq!(
                backoff_left(pods, &spec, at(seconds)),
                left.map(Duration::from_secs)
            );
        }
    }
}
