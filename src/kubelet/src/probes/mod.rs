//! Probes and hooks: asking a container how it is, telling it what comes.
//!
//! Each probe of each running container is a task with real timers; [`Counter`] decides, purely, what a row of
//! answers means. The worker hears only of conclusions.

pub mod grpc;
pub mod http;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, ObjectReference, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_client::Recorder;
use skiff_cri::{Runtime, RuntimeError};

/// Longest output of a probe kept in an event.
const OUTPUT_MAX_BYTES: usize = 1024;
/// Time an HTTP hook may take: it has no timeout of its own.
const HOOK_HTTP_TIMEOUT: Duration = Duration::from_secs(30);

/// Which of the three probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Holds the others back until the container is up.
    Startup,
    /// Failing restarts the container.
    Liveness,
    /// Failing takes the pod out of services.
    Readiness,
}

impl ProbeKind {
    /// All three.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// A conclusion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeResult {
    /// Enough good answers.
    Success,
    /// Enough bad answers.
    Failure,
    /// Enough bad answers, and the container must end for it.
    Dead {
        /// The message of the kill.
        message: String,
        /// The probe's own grace.
        grace_s: Option<i64>,
    },
}

/// Where to ask.
#[derive(Clone)]
pub struct Target {
    /// Runs commands.
    pub runtime: Arc<dyn Runtime>,
    /// The container's id.
    pub id: String,
    /// The pod's address.
    pub host: Option<IpAddr>,
    /// The container's definition, for the names of its ports.
    pub container: Container,
}

/// Why a probe or a hook did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The container answered that it is not well.
    #[error("{0}")]
    Failed(String),
    /// The question could not be asked.
    #[error("{0}")]
    Broken(String),
}

/// Counts answers until they make a conclusion.
#[derive(Debug)]
pub struct Counter {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
    concluded: Option<bool>,
}

impl Counter {
    /// Thresholds of a probe; `concluded` is what was concluded before.
    pub fn new(probe: &Probe, concluded: Option<bool>) -> Counter {
        let at_least_one = |value: Option<i32>, default: u32| {
            value
                .and_then(|value| u32::try_from(value).ok())
                .filter(|value| *value > 0)
                .unwrap_or(default)
        };
        Counter {
            success: at_least_one(probe.success_threshold, 1),
            failure: at_least_one(probe.failure_threshold, 3),
            last: None,
            run: 0,
            concluded,
        }
    }

    /// Takes one answer; a conclusion is returned when it is new.
    pub fn take(&mut self, good: bool) -> Option<bool> {
        if self.last == Some(good) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(good);
            self.run = 1;
        }
        let enough = self.run >= if good { self.success } else { self.failure };
        (enough && self.concluded != Some(good)).then(|| {
            self.concluded = Some(good);
            good
        })
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|v| *v > 0)
            .unwrap_or(default),
    )
}

/// Runs one probe until it has nothing more to say: a startup or liveness probe ends with its conclusion.
#[allow(clippy::too_many_arguments)]
pub async fn run(
    kind: ProbeKind,
    probe: Probe,
    target: Target,
    running_for: Duration,
    was_ready: bool,
    recorder: &Recorder,
    about: &ObjectReference,
    tell: impl Fn(ProbeResult),
) {
    let timeout = seconds(probe.timeout_seconds, 1);
    let period = seconds(probe.period_seconds, 10);
    let delay = seconds(probe.initial_delay_seconds, 0).saturating_sub(running_for);
    let concluded = match kind {
        ProbeKind::Startup => None,
        ProbeKind::Liveness => Some(true),
        ProbeKind::Readiness => Some(was_ready),
    };
    let mut counter = Counter::new(&probe, concluded);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + delay, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = check(&probe, &target, timeout).await;
        if let Err(error) = &answer {
            let verb = if matches!(error, ProbeError::Failed(_)) {
                "failed"
            } else {
                "errored"
            };
            let text = cut(&error.to_string());
            recorder.warning(
                about,
                "Unhealthy",
                format!("{} probe {verb}: {text}", kind.title()),
            );
        }
        let Some(good) = counter.take(answer.is_ok()) else {
            continue;
        };
        match (kind, good) {
            (ProbeKind::Readiness, true) => tell(ProbeResult::Success),
            (ProbeKind::Readiness, false) => tell(ProbeResult::Failure),
            (ProbeKind::Startup, true) => return tell(ProbeResult::Success),
            (ProbeKind::Liveness, true) => {}
            (ProbeKind::Startup | ProbeKind::Liveness, false) => {
                let what = if kind == ProbeKind::Startup {
                    "startup"
                } else {
                    "liveness"
                };
                let message = format!(
                    "Container {} failed {what} probe, will be restarted",
                    target.container.name
                );
                return tell(ProbeResult::Dead {
                    message,
                    grace_s: probe.termination_grace_period_seconds,
                });
            }
        }
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(OUTPUT_MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Asks once.
pub async fn check(probe: &Probe, target: &Target, timeout: Duration) -> Result<(), ProbeError> {
    if let Some(action) = &probe.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return exec(target, command, timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return http::get(action, target, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let port = port(&action.port, &target.container)?;
        let host = host(action.host.as_deref(), target)?;
        return tcp(&host, port, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        let port = port(&IntOrString::Int(action.port), &target.container)?;
        return grpc::check(&host(None, target)?, port, action.service.as_deref(), timeout).await;
    }
    Err(ProbeError::Broken("missing probe handler".into()))
}

async fn exec(target: &Target, command: &[String], timeout: Duration) -> Result<(), ProbeError> {
    match target.runtime.exec_sync(&target.id, command, timeout).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let mut text = output.stdout;
            text.extend(output.stderr);
            Err(ProbeError::Failed(cut(&String::from_utf8_lossy(&text))))
        }
        Err(RuntimeError::Timeout(_)) => Err(ProbeError::Failed(format!(
            "command timed out: {command:?} timed out after {}s",
            timeout.as_secs()
        ))),
        // A command that is not there is a failure of the container, not of the question.
        Err(RuntimeError::StartFailed(message)) => Err(ProbeError::Failed(message)),
        Err(error) => Err(ProbeError::Broken(error.to_string())),
    }
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<(), ProbeError> {
    match tokio::time::timeout(timeout, tokio::net::TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ProbeError::Failed(format!(
            "dial tcp {host}:{port}: connect: {error}"
        ))),
        Err(_) => Err(ProbeError::Failed(format!("dial tcp {host}:{port}: i/o timeout"))),
    }
}

/// The number of a port given by number or name.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, ProbeError> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number > 0)
        .ok_or_else(|| ProbeError::Broken(format!("couldn't find port: {port:?}")))
}

/// The host to ask: the one named, or the pod.
pub fn host(named: Option<&str>, target: &Target) -> Result<String, ProbeError> {
    match named.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => Ok(target.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string()),
    }
}

/// Runs a postStart or preStop hook.
pub async fn run_hook(
    handler: &LifecycleHandler,
    target: &Target,
    timeout: Duration,
) -> Result<(), ProbeError> {
    if let Some(action) = &handler.exec {
        let command = action.command.as_deref().unwrap_or_default();
        return match target.runtime.exec_sync(&target.id, command, timeout).await {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(ProbeError::Failed(format!(
                "command {command:?} exited with {}: {}",
                output.exit_code,
                cut(&String::from_utf8_lossy(&output.stderr))
            ))),
            Err(error) => Err(ProbeError::Failed(error.to_string())),
        };
    }
    if let Some(action) = &handler.http_get {
        return http::get(action, target, timeout.min(HOOK_HTTP_TIMEOUT)).await;
    }
    if let Some(action) = &handler.sleep {
        let seconds = u64::try_from(action.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds).min(timeout)).await;
        return Ok(());
    }
    Err(ProbeError::Broken("missing or unsupported handler".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conclusions() {
        let probe = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        };
        // Answers and the conclusion after each.
        type Row = (Option<bool>, &'static [(bool, Option<bool>)]);
        let table: [Row; 3] = [
            (
                Some(false),
                &[
                    (true, None),
                    (true, Some(true)),
                    (true, None),
                    (false, None),
                    (false, None),
                    (false, Some(false)),
                ],
            ),
            (
                Some(true),
                &[
                    (false, None),
                    (false, None),
                    (true, None),
                    (false, None),
                    (false, None),
                    (false, Some(false)),
                ],
            ),
            (
                None,
                &[(true, None), (false, None), (true, None), (true, Some(true))],
            ),
        ];
        for (start, answers) in table {
            let mut counter = Counter::new(&probe, start);
            for (n, (answer, expected)) in answers.iter().enumerate() {
                assert_eq!(counter.take(*answer), *expected, "from {start:?}, answer {n}");
            }
        }
    }

    #[test]
    fn ports() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "a", "ports": [{"name": "web", "containerPort": 8080}]}))
        .unwrap();
        let table = [
            (IntOrString::Int(80), Some(80)),
            (IntOrString::String("web".into()), Some(8080)),
            (IntOrString::String("9090".into()), Some(9090)),
            (IntOrString::String("none".into()), None),
            (IntOrString::Int(0), None),
            (IntOrString::Int(70000), None),
        ];
        for (given, expected) in table {
            assert_eq!(port(&given, &container).ok(), expected, "{given:?}");
        }
    }
}
