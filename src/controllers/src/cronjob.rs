//! Starts a Job whenever the schedule of a CronJob says so.
//!
//! The name of a Job is made of the minute it was due, so that it is started
//! once however often the loop runs. [`decide`] is pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource};
use skiff_client::informer::key_of;
use skiff_client::{Informer, WorkQueue, message};

use crate::job::finished;
use crate::objects::controller_of;
use crate::ownership::{namespaced, owner_reference, write_status};
use crate::schedule::{Schedule, parse};
use crate::{Context, Error, Outcome, is_conflict, is_gone};

const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A timer is set this much after the due time, so that it is surely over.
const AFTER_DUE: Duration = Duration::from_millis(100);
/// The longest a timer runs: the clock may be set while it does.
const LONGEST_TIMER: Duration = Duration::from_secs(600);

/// Starts the loop.
pub fn start(context: &Context) {
    let crons: Informer<CronJob> = context.informers.get();
    let jobs: Informer<Job> = context.informers.get();
    let queue = WorkQueue::new();
    context.feed(&crons, &queue, |change| vec![key_of(&**change.object())]);
    context.feed(&jobs, &queue, |change| {
        let meta = &change.object().metadata;
        let owner = controller_of(meta).filter(|owner| owner.kind == "CronJob");
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        owner
            .map(|owner| format!("{namespace}/{}", owner.name))
            .into_iter()
            .collect()
    });
    let ready = {
        let (crons, jobs) = (crons.clone(), jobs.clone());
        async move {
            crons.synced().await;
            jobs.synced().await;
        }
    };
    let this = Arc::new(Loop {
        context: context.clone(),
        crons,
        jobs,
    });
    context.work("cron jobs", queue, 2, ready, move |key| {
        let this = this.clone();
        async move { this.reconcile(&key).await }
    });
}

struct Loop {
    context: Context,
    crons: Informer<CronJob>,
    jobs: Informer<Job>,
}

impl Loop {
    async fn reconcile(&self, key: &str) -> Outcome {
        let Some(cron) = self.crons.get(key) else {
            return Ok(None);
        };
        let spec = &cron.spec;
        let mine: Vec<Arc<Job>> = self
            .jobs
            .list_in(cron.metadata.namespace.as_deref().unwrap_or_default())
            .into_iter()
            .filter(|job| controller_of(&job.metadata).map(|owner| &owner.uid) == cron.metadata.uid.as_ref())
            .collect();
        for job in history(spec, &mine) {
            self.delete(&cron, job, None).await?;
        }
        let mut status = observed(&cron, &mine);
        let mut outcome = Ok(None);
        if cron.metadata.deletion_timestamp.is_none() && spec.suspend != Some(true) {
            match parse(&spec.schedule, spec.time_zone.as_deref()) {
                Ok((schedule, zone)) => {
                    outcome = self.run(&cron, spec, &schedule, &zone, &mine, &mut status).await
                }
                Err(error) => {
                    let about = cron.object_ref(&());
                    self.context
                        .recorder
                        .warning(&about, "UnparseableSchedule", error.to_string());
                }
            }
        }
        if cron.status.clone().unwrap_or_default() != status {
            let mut updated = (*cron).clone();
            updated.status = Some(status);
            write_status(&self.context, &updated).await?;
        }
        outcome
    }

    async fn run(
        &self,
        cron: &CronJob,
        spec: &CronJobSpec,
        schedule: &Schedule,
        zone: &TimeZone,
        mine: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Outcome {
        let now = self.context.now();
        let (about, running) = (cron.object_ref(&()), status.active.as_ref().map_or(0, Vec::len));
        let decision = decide(cron, spec, schedule, zone, running, now);
        let due = match decision {
            Decision::Wait => return Ok(timer(schedule, zone, now)),
            Decision::TooLate(due) => {
                let text = format!("Missed scheduled time to start a job: {due}");
                self.context.recorder.warning(&about, "MissSchedule", text);
                return Ok(timer(schedule, zone, now));
            }
            Decision::StillRunning => {
                let text =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.context.recorder.normal(&about, "JobAlreadyActive", text);
                return Ok(timer(schedule, zone, now));
            }
            Decision::Start(due) => due,
        };
        if spec.concurrency_policy.as_deref() == Some("Replace") {
            for job in mine.iter().filter(|job| !is_finished(job)) {
                self.delete(cron, job, Some(&mut *status)).await?;
            }
        }
        let job = job_for(cron, spec, due);
        let name = job.metadata.name.clone().unwrap_or_default();
        let api: Api<Job> = namespaced(&self.context, &cron.metadata);
        match api.create(&PostParams::default(), &job).await {
            Ok(made) => {
                self.context
                    .recorder
                    .normal(&about, "SuccessfulCreate", format!("Created job {name}"));
                status.active.get_or_insert_default().push(reference(&made));
            }
            // It was started before the status could say so.
            Err(error) if is_conflict(&error) => {}
            Err(error) => {
                let text = format!("Error creating job: {}", message(&error));
                self.context.recorder.warning(&about, "FailedCreate", text);
                return Err(error.into());
            }
        }
        status.last_schedule_time = Some(Time(due));
        Ok(timer(schedule, zone, now))
    }

    async fn delete(
        &self,
        cron: &CronJob,
        job: &Job,
        status: Option<&mut CronJobStatus>,
    ) -> Result<(), Error> {
        let api: Api<Job> = namespaced(&self.context, &job.metadata);
        let name = job.metadata.name.as_deref().unwrap_or_default();
        match api.delete(name, &DeleteParams::background()).await {
            Err(error) if !is_gone(&error) => return Err(error.into()),
            _ => {}
        }
        let text = format!("Deleted job {name}");
        self.context
            .recorder
            .normal(&cron.object_ref(&()), "SuccessfulDelete", text);
        if let Some(active) = status.and_then(|status| status.active.as_mut()) {
            active.retain(|one| one.uid != job.metadata.uid);
        }
        Ok(())
    }
}

/// What a CronJob calls for now.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Nothing is due.
    Wait,
    /// A job was due longer ago than it may start.
    TooLate(jiff::Timestamp),
    /// A job is due and the one before still runs.
    StillRunning,
    /// A job is due since then.
    Start(jiff::Timestamp),
}

fn decide(
    cron: &CronJob,
    spec: &CronJobSpec,
    schedule: &Schedule,
    zone: &TimeZone,
    running: usize,
    now: jiff::Timestamp,
) -> Decision {
    let last = cron
        .status
        .as_ref()
        .and_then(|status| status.last_schedule_time.as_ref());
    let Some(since) = last.or(cron.metadata.creation_timestamp.as_ref()) else {
        return Decision::Wait;
    };
    let Some(due) = schedule.last(since.0, now, zone) else {
        return Decision::Wait;
    };
    let late = now.duration_since(due).as_secs();
    match spec.concurrency_policy.as_deref() {
        _ if spec.starting_deadline_seconds.is_some_and(|limit| late > limit) => Decision::TooLate(due),
        Some("Forbid") if running > 0 => Decision::StillRunning,
        _ => Decision::Start(due),
    }
}

fn timer(schedule: &Schedule, zone: &TimeZone, now: jiff::Timestamp) -> Option<Duration> {
    let left = now.duration_until(schedule.next(now, zone)?);
    let left = Duration::try_from(left).unwrap_or_default();
    Some((left + AFTER_DUE).min(LONGEST_TIMER))
}

fn is_finished(job: &Job) -> bool {
    job.status
        .as_ref()
        .is_some_and(|status| finished(status).is_some())
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        field_path: None,
        ..job.object_ref(&())
    }
}

/// The status as the jobs show it.
fn observed(cron: &CronJob, jobs: &[Arc<Job>]) -> CronJobStatus {
    let mut status = cron.status.clone().unwrap_or_default();
    let known = status.active.take().unwrap_or_default();
    let running = jobs.iter().filter(|job| !is_finished(job));
    // A reference that is there stays as it is: its resource version would
    // otherwise change the status with every change of the job.
    let active: Vec<_> = running
        .map(|job| {
            let before = known.iter().find(|one| one.uid == job.metadata.uid);
            before.cloned().unwrap_or_else(|| reference(job))
        })
        .collect();
    status.active = Some(active).filter(|active| !active.is_empty());
    let successes = jobs
        .iter()
        .filter_map(|job| job.status.as_ref()?.completion_time.as_ref().map(|time| time.0));
    let latest = successes
        .chain(status.last_successful_time.as_ref().map(|time| time.0))
        .max();
    status.last_successful_time = latest.map(Time);
    status
}

/// Finished jobs beyond the limits, the oldest first.
fn history<'a>(spec: &CronJobSpec, jobs: &'a [Arc<Job>]) -> Vec<&'a Arc<Job>> {
    let succeeded = |job: &Job| {
        job.status
            .as_ref()
            .is_some_and(|status| status.completion_time.is_some())
    };
    let mut gone = Vec::new();
    for (success, limit) in [
        (true, spec.successful_jobs_history_limit.unwrap_or(3)),
        (false, spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let mut ended: Vec<_> = jobs
            .iter()
            .filter(|job| {
                is_finished(job) && succeeded(job) == success && job.metadata.deletion_timestamp.is_none()
            })
            .collect();
        ended.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
            (started.map(|time| time.0), job.metadata.name.clone())
        });
        let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        gone.extend(ended.into_iter().take(surplus));
    }
    gone
}

fn job_for(cron: &CronJob, spec: &CronJobSpec, due: jiff::Timestamp) -> Job {
    let template = spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED_AT.to_owned(), due.to_string());
    let minutes = due.as_second().div_euclid(60);
    Job {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{minutes}",
                cron.metadata.name.as_deref().unwrap_or_default()
            )),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cron(spec: serde_json::Value) -> CronJob {
        let meta = json!({"name": "tick", "creationTimestamp": "2030-01-01T00:00:30Z"});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).expect("cron job")
    }

    #[test]
    fn a_job_is_due_once_and_not_too_late() {
        let start = |at: &str| Decision::Start(at.parse().expect("time"));
        let minute = "2030-01-01T00:05:00Z";
        for (policy, deadline, last, running, expected) in [
            ("Allow", None, None, 1, start(minute)),
            ("Forbid", None, None, 1, Decision::StillRunning),
            ("Forbid", None, None, 0, start(minute)),
            ("Replace", None, None, 1, start(minute)),
            ("Allow", None, Some(minute), 0, Decision::Wait),
            (
                "Allow",
                Some(10),
                None,
                0,
                Decision::TooLate(minute.parse().expect("time")),
            ),
            ("Allow", Some(60), None, 0, start(minute)),
        ] {
            let mut cron = cron(json!({"schedule": "*/5 * * * *", "concurrencyPolicy": policy,
                "startingDeadlineSeconds": deadline, "jobTemplate": {}}));
            cron.status.get_or_insert_default().last_schedule_time =
                last.map(|at: &str| Time(at.parse().expect("time")));
            let spec = cron.spec.clone();
            let (schedule, zone) = parse(&spec.schedule, None)
                .map(|(s, _)| (s, TimeZone::UTC))
                .expect("schedule");
            let now = "2030-01-01T00:05:20Z".parse().expect("time");
            assert_eq!(decide(&cron, &spec, &schedule, &zone, running, now), expected);
            assert_eq!(timer(&schedule, &zone, now), Some(Duration::from_millis(280_100)));
        }
    }

    #[test]
    fn old_jobs_go_and_running_ones_are_listed() {
        let job = |name: &str, done: &str| {
            let job = json!({"metadata": {"name": name, "uid": name}, "status": {"startTime": "2030-01-01T00:00:00Z",
                "completionTime": (done == "Complete").then_some("2030-01-01T00:01:00Z"),
                "conditions": [{"type": done, "status": "True"}]}});
            Arc::new(serde_json::from_value::<Job>(job).expect("job"))
        };
        let jobs = [
            job("a", "Complete"),
            job("b", "Complete"),
            job("c", "Failed"),
            job("d", "Suspended"),
        ];
        let spec = json!({"schedule": "@daily", "successfulJobsHistoryLimit": 1, "jobTemplate": {}});
        let cron = cron(spec);
        let gone = history(&cron.spec, &jobs);
        assert_eq!(
            gone.iter()
                .map(|job| job.metadata.name.as_deref())
                .collect::<Vec<_>>(),
            [Some("a")]
        );
        let status = observed(&cron, &jobs);
        let active: Vec<_> = status
            .active
            .iter()
            .flatten()
            .map(|one| one.name.as_deref())
            .collect();
        assert_eq!(active, [Some("d")]);
        assert!(status.last_successful_time.is_some());
    }

    #[test]
    fn a_job_is_named_after_its_minute() {
        let cron = cron(json!({"schedule": "@daily", "jobTemplate": {"spec": {"template": {}}}}));
        let made = job_for(
            &cron,
            &cron.spec,
            jiff::Timestamp::from_second(120).expect("time"),
        );
        assert_eq!(made.metadata.name.as_deref(), Some("tick-2"));
        assert_eq!(
            controller_of(&made.metadata).map(|owner| owner.kind.as_str()),
            Some("CronJob")
        );
    }
}
