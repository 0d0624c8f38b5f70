//! The status as a table: what is there, what the API shows.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::json;
use skiff_cri::{Container, ContainerState, Sandbox, SandboxConfig};

use super::{Facts, status};
use crate::pod::spec::specs;
use crate::pod::state::{Failure, ImageNote, Network, Notes, Observed, ProbeNote, Verdict, labels};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn facts() -> Facts {
    Facts {
        host_ips: vec!["192.0.2.1".into()],
        runtime: "containerd".into(),
    }
}

fn pod(spec: serde_json::Value, status: serde_json::Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3},
        "spec": spec, "status": status}),
    )
    .unwrap()
}

fn container(name: &str, attempt: u32, state: ContainerState) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        sandbox: "s".into(),
        name: name.into(),
        attempt,
        image: "img".into(),
        image_id: "img@sha256:1".into(),
        labels: Default::default(),
        annotations: [(
            labels::BACKOFF_S.to_owned(),
            if attempt > 0 { "40" } else { "0" }.to_owned(),
        )]
        .into(),
        log_path: None,
        state,
        created_at: at(0),
        started_at: Some(at(1)),
        pid: None,
        user: None,
    }
}

fn exited(name: &str, attempt: u32, exit_code: i32, reason: &str) -> Container {
    let state = ContainerState::Exited {
        exit_code,
        finished_at: at(5),
        reason: reason.into(),
        message: String::new(),
    };
    container(name, attempt, state)
}

fn observed(containers: Vec<Container>) -> Observed {
    let sandbox = Sandbox {
        id: "s".into(),
        config: SandboxConfig::default(),
        ready: true,
        created_at: at(0),
        netns: None,
    };
    Observed::new(vec![sandbox], containers)
}

fn notes(started: &[&str]) -> Notes {
    Notes {
        network: Some(Network {
            sandbox: "s".into(),
            ips: vec!["10.42.0.9".parse().unwrap()],
        }),
        started: started.iter().map(|id| (*id).to_owned()).collect(),
        first_seen: Some(at(0)),
        ..Notes::default()
    }
}

fn made(pod: &Pod, observed: &Observed, notes: &Notes) -> PodStatus {
    status(pod, &specs(pod), observed, notes, &facts(), at(10))
}

/// `name:state[reason]/ready/restarts` of each container.
fn text(list: Option<&Vec<ContainerStatus>>) -> String {
    let one = |status: &ContainerStatus| {
        let state = status.state.clone().unwrap_or_default();
        let state = if let Some(waiting) = state.waiting {
            format!("waiting[{}]", waiting.reason.unwrap_or_default())
        } else if let Some(ended) = state.terminated {
            format!(
                "terminated[{} {}]",
                ended.reason.unwrap_or_default(),
                ended.exit_code
            )
        } else {
            "running".into()
        };
        let last = status
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let last = last
            .map(|last| format!("<{}", last.exit_code))
            .unwrap_or_default();
        format!(
            "{}:{state}{last}/{}/{}",
            status.name, status.ready, status.restart_count
        )
    };
    list.into_iter().flatten().map(one).collect::<Vec<_>>().join(" ")
}

fn conditions(status: &PodStatus) -> String {
    let short = |condition: &k8s_openapi::api::core::v1::PodCondition| {
        let reason = condition
            .reason
            .as_deref()
            .map(|reason| format!("({reason})"))
            .unwrap_or_default();
        format!("{}={}{reason}", condition.type_, condition.status)
    };
    status
        .conditions
        .iter()
        .flatten()
        .map(short)
        .collect::<Vec<_>>()
        .join(" ")
}

const TWO: &str = r#"{"restartPolicy": "Always", "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]}"#;

#[test]
fn phases_and_container_states() {
    let spec = |policy: &str| {
        let mut spec: serde_json::Value = serde_json::from_str(TWO).unwrap();
        spec["restartPolicy"] = json!(policy);
        spec
    };
    let run = |name: &str| container(name, 0, ContainerState::Running);
    let table = [
        (
            "Always",
            vec![],
            "Pending",
            "a:waiting[ContainerCreating]/false/0 b:waiting[ContainerCreating]/false/0",
        ),
        (
            "Always",
            vec![run("a")],
            "Pending",
            "a:running/true/0 b:waiting[ContainerCreating]/false/0",
        ),
        (
            "Always",
            vec![run("a"), run("b")],
            "Running",
            "a:running/true/0 b:running/true/0",
        ),
        (
            "Always",
            vec![run("a"), exited("b", 0, 1, "Error")],
            "Running",
            "a:running/true/0 b:terminated[Error 1]/false/0",
        ),
        (
            "Always",
            vec![run("a"), exited("b", 3, 1, "Error")],
            "Running",
            "a:running/true/0 b:waiting[CrashLoopBackOff]<1/false/3",
        ),
        (
            "Always",
            vec![exited("a", 1, 137, "OOMKilled"), exited("b", 1, 0, "")],
            "Running",
            "a:waiting[CrashLoopBackOff]<137/false/1 b:waiting[CrashLoopBackOff]<0/false/1",
        ),
        (
            "OnFailure",
            vec![exited("a", 0, 0, "Completed"), exited("b", 0, 0, "Completed")],
            "Succeeded",
            "a:terminated[Completed 0]/false/0 b:terminated[Completed 0]/false/0",
        ),
        (
            "Never",
            vec![exited("a", 0, 0, ""), exited("b", 0, 2, "")],
            "Failed",
            "a:terminated[Completed 0]/false/0 b:terminated[Error 2]/false/0",
        ),
        (
            "Always",
            vec![
                run("a"),
                container("b", 2, ContainerState::Running),
                exited("b", 1, 3, "Error"),
            ],
            "Running",
            "a:running/true/0 b:running<3/true/2",
        ),
    ];
    for (policy, containers, phase, expected) in table {
        let pod = pod(spec(policy), json!({}));
        let what = format!(
            "{policy} {:?}",
            containers.iter().map(|c| &c.state).collect::<Vec<_>>()
        );
        let status = made(&pod, &observed(containers), &notes(&["a0", "b0", "b2"]));
        assert_eq!(status.phase.as_deref(), Some(phase), "{what}");
        assert_eq!(text(status.container_statuses.as_ref()), expected, "{what}");
    }
}

#[test]
fn conditions_of_a_life() {
    let pod = pod(serde_json::from_str(TWO).unwrap(), json!({}));
    let all = |state: fn() -> ContainerState| vec![container("a", 0, state()), container("b", 0, state())];
    let started = notes(&["a0", "b0"]);
    let starting = made(
        &pod,
        &Observed::default(),
        &Notes {
            network: None,
            ..notes(&[])
        },
    );
    assert_eq!(
        conditions(&starting),
        "PodReadyToStartContainers=False Initialized=True Ready=False(ContainersNotReady) \
         ContainersReady=False(ContainersNotReady) PodScheduled=True"
    );
    assert_eq!(starting.pod_ip, None);
    let ready = made(&pod, &observed(all(|| ContainerState::Running)), &started);
    assert_eq!(
        conditions(&ready),
        "PodReadyToStartContainers=True Initialized=True Ready=True ContainersReady=True PodScheduled=True"
    );
    assert_eq!(ready.pod_ip.as_deref(), Some("10.42.0.9"));
    assert_eq!(ready.host_ip.as_deref(), Some("192.0.2.1"));
    let mut unready = started.clone();
    unready.probes.insert(
        "b0".into(),
        ProbeNote {
            started: true,
            ready: false,
            dead: None,
        },
    );
    let status = made(&pod, &observed(all(|| ContainerState::Running)), &unready);
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Ready")
        .unwrap();
    assert_eq!(
        condition.message.as_deref(),
        Some("containers with unready status: [b]")
    );
}

#[test]
fn readiness_gates_hold_a_pod_back() {
    let spec =
        json!({"containers": [{"name": "a", "image": "i"}], "readinessGates": [{"conditionType": "x/y"}]});
    let running = || observed(vec![container("a", 0, ContainerState::Running)]);
    for (condition, expected) in [
        (json!([]), "False"),
        (json!([{"type": "x/y", "status": "True"}]), "True"),
    ] {
        let status = made(
            &pod(spec.clone(), json!({"conditions": condition})),
            &running(),
            &notes(&["a0"]),
        );
        let ready = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Ready")
            .unwrap();
        assert_eq!(ready.status, expected);
    }
}

#[test]
fn init_containers() {
    let spec = json!({"restartPolicy": "Always", "initContainers": [{"name": "i", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}]});
    let table = [
        (
            vec![],
            "Pending",
            "i:waiting[PodInitializing]/false/0",
            "a:waiting[PodInitializing]/false/0",
            "False",
        ),
        (
            vec![exited("i", 2, 1, "")],
            "Pending",
            "i:waiting[CrashLoopBackOff]<1/false/2",
            "a:waiting[PodInitializing]/false/0",
            "False",
        ),
        (
            vec![exited("i", 0, 0, ""), container("a", 0, ContainerState::Running)],
            "Running",
            "i:terminated[Completed 0]/true/0",
            "a:running/true/0",
            "True",
        ),
    ];
    for (containers, phase, init, main, initialized) in table {
        let status = made(
            &pod(spec.clone(), json!({})),
            &observed(containers),
            &notes(&["a0"]),
        );
        assert_eq!(status.phase.as_deref(), Some(phase));
        assert_eq!(text(status.init_container_statuses.as_ref()), init);
        assert_eq!(text(status.container_statuses.as_ref()), main);
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Initialized")
            .unwrap();
        assert_eq!(condition.status, initialized);
    }
}

#[test]
fn troubles() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "i"}]}), json!({}));
    let failure = |reason: &str, ago: u64| Failure {
        reason: reason.into(),
        message: "m".into(),
        retry_at: at(10 - ago) + Duration::from_secs(20),
        delay: Duration::from_secs(20),
    };
    let table = [
        (
            Some(failure("ErrImagePull", 1)),
            None,
            "a:waiting[ErrImagePull]/false/0",
        ),
        (
            Some(failure("ErrImagePull", 6)),
            None,
            "a:waiting[ImagePullBackOff]/false/0",
        ),
        (
            Some(failure("ErrImageNeverPull", 6)),
            None,
            "a:waiting[ErrImageNeverPull]/false/0",
        ),
        (
            None,
            Some(failure("CreateContainerConfigError", 1)),
            "a:waiting[CreateContainerConfigError]/false/0",
        ),
    ];
    for (image, start, expected) in table {
        let mut notes = notes(&[]);
        notes
            .images
            .extend(image.map(|failure| ("a".to_owned(), ImageNote::Failed(failure))));
        notes
            .start_failures
            .extend(start.map(|failure| ("a".to_owned(), failure)));
        let status = made(&pod, &observed(vec![]), &notes);
        assert_eq!(text(status.container_statuses.as_ref()), expected);
    }
}

#[test]
fn a_verdict_fails_the_pod_once_nothing_runs() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "i"}]}), json!({}));
    let mut notes = notes(&["a0"]);
    notes.verdict = Some(Verdict {
        reason: "OutOfcpu".into(),
        message: "m".into(),
    });
    let running = made(
        &pod,
        &observed(vec![container("a", 0, ContainerState::Running)]),
        &notes,
    );
    assert_eq!(running.phase.as_deref(), Some("Running"));
    let ended = made(&pod, &observed(vec![exited("a", 0, 0, "")]), &notes);
    assert_eq!(
        (ended.phase.as_deref(), ended.reason.as_deref()),
        (Some("Failed"), Some("OutOfcpu"))
    );
}

#[test]
fn what_the_runtime_forgot_is_taken_from_the_api() {
    let old = json!({"phase": "Running", "podIP": "10.42.0.9", "startTime": "1970-01-12T00:00:00Z",
        "containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 4,
            "containerID": "containerd://old", "state": {"running": {}}, "lastState": {}}]});
    let pod = pod(
        json!({"restartPolicy": "Always", "containers": [{"name": "a", "image": "i"}]}),
        old,
    );
    let status = made(&pod, &observed(vec![]), &notes(&[]));
    assert_eq!(
        text(status.container_statuses.as_ref()),
        "a:waiting[ContainerCreating]<137/false/4"
    );
    let next = crate::pod::plan::next_attempt(&pod, &Observed::default(), "a");
    assert_eq!(next, 5);
    assert_eq!(status.start_time, pod.status.as_ref().unwrap().start_time);
}

#[test]
fn times_of_conditions_change_only_with_their_status() {
    let first_pod = pod(serde_json::from_str(TWO).unwrap(), json!({}));
    let first = made(&first_pod, &observed(vec![]), &notes(&[]));
    let mut second_pod = first_pod.clone();
    second_pod.status = Some(first.clone());
    let second = status(
        &second_pod,
        &specs(&second_pod),
        &observed(vec![]),
        &notes(&[]),
        &facts(),
        at(99),
    );
    assert_eq!(first, second, "nothing changed: nothing to write");
}
