//! The plan as a table: what is there, what is to be done.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use skiff_cri::{Container, ContainerState, Sandbox, SandboxConfig};

use super::plan::{Action, Plan, plan};
use super::spec::specs;
use super::state::{Failure, ImageNote, Network, Notes, Observed, ProbeNote, Subject, Verdict, labels};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

/// What the tests call "now".
fn now() -> SystemTime {
    at(1000)
}

struct World {
    pod: Pod,
    observed: Observed,
    notes: Notes,
}

impl World {
    fn new(spec: serde_json::Value) -> World {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec});
        World {
            pod: serde_json::from_value(pod).unwrap(),
            observed: Observed::default(),
            notes: Notes {
                first_seen: Some(now()),
                ..Notes::default()
            },
        }
    }

    fn one(policy: &str) -> World {
        World::new(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]}))
    }

    /// Sandbox, network and volumes are there.
    fn ready(mut self) -> World {
        self.observed.sandboxes.push(sandbox("s0", 0, true));
        self.notes.network = Some(Network {
            sandbox: "s0".into(),
            ips: vec!["10.0.0.1".parse().unwrap()],
        });
        self.notes.volumes_ready = true;
        self
    }

    fn image(mut self, name: &str) -> World {
        self.notes
            .images
            .insert(name.into(), ImageNote::Present("img".into()));
        self
    }

    fn with(mut self, container: Container) -> World {
        let mut containers = std::mem::take(&mut self.observed.containers);
        containers.push(container);
        self.observed = Observed::new(std::mem::take(&mut self.observed.sandboxes), containers);
        self
    }

    fn started(mut self, id: &str) -> World {
        self.notes.started.insert(id.into());
        self
    }

    fn deleted(mut self, grace: u64) -> World {
        let stamp = super::status::api_time(now());
        self.pod.metadata.deletion_timestamp = Some(stamp);
        self.pod.metadata.deletion_grace_period_seconds = Some(grace as i64);
        self.notes.stop = Some((now() + Duration::from_secs(grace), grace as i64));
        self
    }

    fn busy(mut self, subject: Subject) -> World {
        self.notes.in_flight.insert(subject, None);
        self
    }

    fn plan(&self) -> Plan {
        plan(&self.pod, &specs(&self.pod), &self.observed, &self.notes, now())
    }

    fn text(&self) -> String {
        let plan = self.plan();
        let mut words: Vec<String> = plan.actions.iter().map(short).collect();
        if let Some(wake) = plan.wake {
            words.push(format!(
                "wake+{}",
                wake.duration_since(now()).unwrap_or_default().as_secs()
            ));
        }
        words.join(" ")
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::RunSandbox { attempt } => format!("sandbox{attempt}"),
        Action::Attach { sandbox } => format!("attach:{sandbox}"),
        Action::StopSandbox { sandbox } => format!("stop:{sandbox}"),
        Action::RemoveSandbox { sandbox } => format!("remove:{sandbox}"),
        Action::SetUpVolumes => "volumes".into(),
        Action::EnsureImage { container } => format!("image:{container}"),
        Action::Start {
            container,
            attempt,
            backoff_s,
            ..
        } => format!("start:{container}/{attempt}/{backoff_s}"),
        Action::Kill { id, deadline, .. } => {
            format!(
                "kill:{id}+{}",
                deadline.duration_since(now()).unwrap_or_default().as_secs()
            )
        }
        Action::Remove { id } => format!("forget:{id}"),
        Action::Fail(verdict) => format!("fail:{}", verdict.reason),
        Action::Abort(subject) => format!("abort:{subject:?}"),
        Action::CleanUp => "clean".into(),
        Action::Finish => "finish".into(),
    }
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    Sandbox {
        id: id.into(),
        config: SandboxConfig {
            uid: "u".into(),
            attempt,
            ..SandboxConfig::default()
        },
        ready,
        created_at: at(u64::from(attempt)),
        netns: None,
    }
}

fn container(id: &str, name: &str, attempt: u32, state: ContainerState) -> Container {
    Container {
        id: id.into(),
        sandbox: "s0".into(),
        name: name.into(),
        attempt,
        image: "img".into(),
        image_id: "img".into(),
        labels: Default::default(),
        annotations: [(labels::IMAGE.to_owned(), "i".to_owned())].into(),
        log_path: None,
        state,
        created_at: at(500),
        started_at: Some(at(500)),
        pid: None,
        user: None,
    }
}

fn running(id: &str, name: &str) -> Container {
    container(id, name, 0, ContainerState::Running)
}

/// Ended `ago` seconds before now.
fn exited(id: &str, name: &str, attempt: u32, exit_code: i32, ago: u64) -> Container {
    let state = ContainerState::Exited {
        exit_code,
        finished_at: at(1000 - ago),
        reason: String::new(),
        message: String::new(),
    };
    container(id, name, attempt, state)
}

fn backoff(mut container: Container, seconds: u64) -> Container {
    container
        .annotations
        .insert(labels::BACKOFF_S.into(), seconds.to_string());
    container
}

fn failure(due_in: u64) -> Failure {
    Failure {
        reason: "ErrImagePull".into(),
        message: "m".into(),
        retry_at: now() + Duration::from_secs(due_in),
        delay: Duration::from_secs(20),
    }
}

#[test]
fn a_start() {
    let table = [
        ("nothing there", World::one("Always"), "sandbox0 volumes"),
        (
            "both under way",
            World::one("Always").busy(Subject::Sandbox).busy(Subject::Volumes),
            "",
        ),
        ("image first", World::one("Always").ready(), "image:a"),
        (
            "image on its way",
            World::one("Always").ready().busy(Subject::Image("a".into())),
            "",
        ),
        (
            "then the container",
            World::one("Always").ready().image("a"),
            "start:a/0/0",
        ),
        (
            "starting",
            World::one("Always")
                .ready()
                .image("a")
                .busy(Subject::Start("a".into())),
            "",
        ),
        ("runs", World::one("Always").ready().with(running("c", "a")), ""),
    ];
    for (what, world, expected) in table {
        assert_eq!(world.text(), expected, "{what}");
    }
}

#[test]
fn nothing_starts_before_network_and_volumes() {
    let mut world = World::one("Always").ready().image("a");
    world.notes.network = None;
    assert_eq!(world.text(), "attach:s0");
    let mut world = World::one("Always").ready().image("a");
    world.notes.volumes_ready = false;
    world.notes.volumes_failure = Some(failure(7));
    assert_eq!(world.text(), "wake+7");
    let mut world = World::one("Always");
    world.notes.sandbox_failure = Some(failure(9));
    assert_eq!(world.text(), "volumes wake+9");
}

#[test]
fn restarts() {
    let table = [
        ("Always", exited("c", "a", 0, 0, 1), "start:a/1/10"),
        ("Always", exited("c", "a", 0, 1, 1), "start:a/1/10"),
        ("OnFailure", exited("c", "a", 0, 1, 1), "start:a/1/10"),
        ("OnFailure", exited("c", "a", 0, 0, 1), "stop:s0"),
        ("Never", exited("c", "a", 0, 1, 1), "stop:s0"),
        ("Always", backoff(exited("c", "a", 1, 1, 3), 10), "wake+7"),
        ("Always", backoff(exited("c", "a", 1, 1, 10), 10), "start:a/2/20"),
        ("Always", backoff(exited("c", "a", 5, 1, 1), 300), "wake+299"),
        (
            "Always",
            backoff(exited("c", "a", 9, 1, 301), 300),
            "start:a/10/300",
        ),
    ];
    for (policy, container, expected) in table {
        let what = format!("{policy} {:?}", container.state);
        let mut world = World::one(policy).ready().image("a").with(container);
        for container in &mut world.observed.containers {
            // A short run: the crash-loop rules apply.
            if let ContainerState::Exited { finished_at, .. } = container.state {
                container.started_at = Some(finished_at - Duration::from_secs(1));
            }
        }
        assert_eq!(world.text(), expected, "{what}");
    }
    let mut long = World::one("Always")
        .ready()
        .image("a")
        .with(backoff(exited("c", "a", 5, 1, 1), 300));
    long.observed.containers[0].started_at = Some(at(0));
    assert_eq!(
        long.text(),
        "start:a/6/10",
        "a long run starts over without delay"
    );
}

#[test]
fn waiting_for_what_failed() {
    let mut world = World::one("Always").ready();
    world
        .notes
        .images
        .insert("a".into(), ImageNote::Failed(failure(18)));
    assert_eq!(world.text(), "wake+3", "the reason shown changes first");
    world
        .notes
        .images
        .insert("a".into(), ImageNote::Failed(failure(4)));
    assert_eq!(world.text(), "wake+4");
    world
        .notes
        .images
        .insert("a".into(), ImageNote::Failed(failure(0)));
    assert_eq!(world.text(), "image:a");
    let mut world = World::one("Always").ready().image("a");
    world.notes.start_failures.insert("a".into(), failure(5));
    assert_eq!(world.text(), "wake+5");
}

fn with_init() -> World {
    World::new(json!({
        "restartPolicy": "Always",
        "initContainers": [
            {"name": "i1", "image": "i"},
            {"name": "side", "image": "i", "restartPolicy": "Always"},
            {"name": "i2", "image": "i"},
        ],
        "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}],
    }))
    .ready()
    .image("i1")
    .image("side")
    .image("i2")
    .image("a")
    .image("b")
}

#[test]
fn init_containers_run_in_order() {
    let done = || with_init().with(exited("1", "i1", 0, 0, 9));
    let table = [
        ("first", with_init(), "start:i1/0/0"),
        ("first runs", with_init().with(running("1", "i1")), ""),
        (
            "first failed",
            with_init().with(exited("1", "i1", 0, 1, 9)),
            "start:i1/1/10",
        ),
        ("sidecar next", done(), "start:side/0/0"),
        ("sidecar not started yet", done().with(running("2", "side")), ""),
        (
            "sidecar started",
            done().with(running("2", "side")).started("2"),
            "start:i2/0/0",
        ),
        (
            "all done",
            done()
                .with(running("2", "side"))
                .started("2")
                .with(exited("3", "i2", 0, 0, 5)),
            "start:a/0/0 start:b/0/0",
        ),
        (
            "a sidecar that ended comes back beside the others",
            done()
                .with(exited("2", "side", 0, 0, 1))
                .with(exited("3", "i2", 0, 0, 5))
                .with(running("4", "a"))
                .with(running("5", "b")),
            "start:side/1/10",
        ),
    ];
    for (what, world, expected) in table {
        assert_eq!(world.text(), expected, "{what}");
    }
    let mut never = with_init().with(exited("1", "i1", 0, 1, 9));
    never.pod.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    assert_eq!(
        never.text(),
        "stop:s0",
        "a failed init container ends a pod that never restarts"
    );
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_the_next_back() {
    let mut world = with_init()
        .with(exited("1", "i1", 0, 0, 9))
        .with(running("2", "side"))
        .started("2");
    world.notes.probes.insert(
        "2".into(),
        ProbeNote {
            started: false,
            ready: false,
            dead: None,
        },
    );
    assert_eq!(world.text(), "");
    world.notes.probes.insert(
        "2".into(),
        ProbeNote {
            started: true,
            ready: false,
            dead: None,
        },
    );
    assert_eq!(world.text(), "start:i2/0/0");
}

#[test]
fn kills() {
    let mut world = World::one("Always").ready().with(running("c", "a"));
    world.notes.probes.insert(
        "c".into(),
        ProbeNote {
            started: true,
            ready: true,
            dead: Some(("m".into(), None)),
        },
    );
    assert_eq!(world.text(), "kill:c+30");
    world.notes.probes.insert(
        "c".into(),
        ProbeNote {
            started: true,
            ready: true,
            dead: Some(("m".into(), Some(5))),
        },
    );
    assert_eq!(world.text(), "kill:c+5", "a probe may have a grace of its own");
    let world = world.busy(Subject::Kill("c".into()));
    assert_eq!(world.text(), "", "once is enough");
    let mut world = World::one("Always").ready().with(running("c", "a"));
    world.pod.spec.as_mut().unwrap().containers[0].image = Some("other".into());
    assert_eq!(world.text(), "kill:c+30", "another image");
}

#[test]
fn deletion() {
    let sandboxed = || World::one("Always").ready();
    let mut cleaned = World::one("Always").deleted(30);
    cleaned.notes.cleaned = true;
    cleaned.notes.purged = true;
    let mut gone = World::one("Always");
    gone.notes.gone = true;
    gone.notes.cleaned = true;
    gone.notes.purged = true;
    let table = [
        ("never ran here", World::one("Always").deleted(30), "clean"),
        ("nothing left", cleaned, "finish"),
        ("nobody to tell", gone, ""),
        (
            "runs",
            sandboxed().with(running("c", "a")).deleted(30),
            "kill:c+30",
        ),
        (
            "being killed",
            sandboxed()
                .with(running("c", "a"))
                .deleted(30)
                .busy(Subject::Kill("c".into())),
            "",
        ),
        (
            "ended",
            sandboxed().with(exited("c", "a", 0, 0, 1)).deleted(30),
            "remove:s0",
        ),
        (
            "a pull is given up",
            sandboxed().deleted(30).busy(Subject::Image("a".into())),
            "abort:Image(\"a\")",
        ),
    ];
    for (what, world, expected) in table {
        assert_eq!(world.text(), expected, "{what}");
    }
}

#[test]
fn a_shorter_grace_hurries_a_kill() {
    let mut world = World::one("Always").ready().with(running("c", "a")).deleted(2);
    let subject = Subject::Kill("c".into());
    world
        .notes
        .in_flight
        .insert(subject.clone(), Some(now() + Duration::from_secs(30)));
    assert_eq!(world.text(), "kill:c+2");
    world
        .notes
        .in_flight
        .insert(subject, Some(now() + Duration::from_secs(2)));
    assert_eq!(world.text(), "");
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let spec = json!({
        "initContainers": [
            {"name": "s1", "image": "i", "restartPolicy": "Always"},
            {"name": "s2", "image": "i", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]});
    let base = || {
        let world = World::new(spec.clone()).ready().deleted(30);
        world.with(running("1", "s1")).with(running("2", "s2"))
    };
    let table = [
        (
            "main containers together",
            base().with(running("3", "a")).with(running("4", "b")),
            "kill:3+30 kill:4+30",
        ),
        ("then the last sidecar", base(), "kill:2+30"),
        (
            "then the first",
            World::new(spec.clone())
                .ready()
                .deleted(30)
                .with(running("1", "s1")),
            "kill:1+30",
        ),
    ];
    for (what, world, expected) in table {
        assert_eq!(world.text(), expected, "{what}");
    }
}

#[test]
fn completion_ends_sidecars_and_the_sandbox_but_keeps_records() {
    let spec = json!({"restartPolicy": "Never",
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "image": "i"}]});
    let base = || {
        let mut world = World::new(spec.clone()).ready().with(exited("c", "a", 0, 0, 1));
        world.notes.stop = Some((now() + Duration::from_secs(30), 30));
        world
    };
    assert_eq!(base().with(running("2", "s")).text(), "kill:2+30");
    assert_eq!(base().text(), "stop:s0");
    let mut stopped = base();
    stopped.observed.sandboxes[0].ready = false;
    assert_eq!(stopped.text(), "clean");
    stopped.notes.cleaned = true;
    assert_eq!(stopped.text(), "");
    stopped.observed.sandboxes.clear();
    assert_eq!(stopped.deleted(1).text(), "clean", "its logs go with the object");
}

#[test]
fn a_deadline() {
    let mut world = World::one("Always").ready().with(running("c", "a"));
    world.pod.spec.as_mut().unwrap().active_deadline_seconds = Some(60);
    assert_eq!(world.text(), "wake+60");
    world.notes.first_seen = Some(at(900));
    assert_eq!(world.text(), "fail:DeadlineExceeded");
    world.notes.verdict = Some(Verdict {
        reason: "DeadlineExceeded".into(),
        message: "m".into(),
    });
    world.notes.stop = Some((now() + Duration::from_secs(30), 30));
    assert_eq!(world.text(), "kill:c+30");
}

#[test]
fn after_a_reboot() {
    let lost = |policy: &str| {
        let mut world = World::one(policy).with(exited("c", "a", 2, 255, 5));
        world.observed.sandboxes.push(sandbox("s0", 0, false));
        world
    };
    assert_eq!(lost("Always").text(), "sandbox1 volumes");
    assert_eq!(lost("Never").text(), "clean", "what ended does not run again");
    let mut again = lost("Always").image("a");
    again.observed.sandboxes.insert(0, sandbox("s1", 1, true));
    again.notes.network = Some(Network {
        sandbox: "s1".into(),
        ips: Vec::new(),
    });
    again.notes.volumes_ready = true;
    assert_eq!(
        again.text(),
        "start:a/3/10",
        "at once: a reboot is not a crash; the record is still needed"
    );
    let mut fresh = running("n", "a");
    fresh.sandbox = "s1".into();
    fresh.attempt = 3;
    assert_eq!(
        again.with(fresh).text(),
        "remove:s0",
        "the old sandbox goes when something newer runs"
    );
}

#[test]
fn a_running_container_in_a_broken_sandbox_is_ended_first() {
    let mut world = World::one("Always").with(running("c", "a"));
    world.observed.sandboxes.push(sandbox("s0", 0, false));
    assert_eq!(world.text(), "kill:c+0 volumes");
}

#[test]
fn old_records_are_forgotten() {
    let world = World::one("Always")
        .ready()
        .with(container("c2", "a", 2, ContainerState::Running))
        .with(exited("c1", "a", 1, 1, 5))
        .with(exited("c0", "a", 0, 1, 9));
    assert_eq!(world.text(), "forget:c0");
}

#[test]
fn restart_rules_of_a_container() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "i", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    let world = |code| {
        World::new(spec.clone())
            .ready()
            .image("a")
            .with(exited("c", "a", 0, code, 1))
    };
    assert_eq!(world(42).text(), "start:a/1/10");
    assert_eq!(world(1).text(), "stop:s0");
}

#[test]
fn ephemeral_containers_run_once() {
    let spec = json!({"containers": [{"name": "a", "image": "i"}],
        "ephemeralContainers": [{"name": "debug", "image": "i", "targetContainerName": "a"}]});
    let base = || {
        World::new(spec.clone())
            .ready()
            .image("debug")
            .with(running("c", "a"))
    };
    assert_eq!(base().text(), "start:debug/0/0");
    assert_eq!(base().with(exited("d", "debug", 0, 1, 1)).text(), "");
}

#[test]
fn the_plan_settles_for_any_state() {
    // Whatever is observed, a plan never asks twice for work on one subject.
    let states = [
        None,
        Some(ContainerState::Created),
        Some(ContainerState::Running),
        Some(ContainerState::Exited {
            exit_code: 1,
            finished_at: at(999),
            reason: String::new(),
            message: String::new(),
        }),
    ];
    for policy in ["Always", "OnFailure", "Never"] {
        for sandbox_ready in [None, Some(true), Some(false)] {
            for volumes in [true, false] {
                for deleted in [true, false] {
                    for state in &states {
                        let mut world = World::one(policy).image("a");
                        if let Some(ready) = sandbox_ready {
                            world.observed.sandboxes.push(sandbox("s0", 0, ready));
                        }
                        world.notes.network = Some(Network {
                            sandbox: "s0".into(),
                            ips: Vec::new(),
                        });
                        world.notes.volumes_ready = volumes;
                        if let Some(state) = state {
                            world = world.with(container("c", "a", 0, state.clone()));
                        }
                        if deleted {
                            world = world.deleted(1);
                        }
                        let subjects: Vec<_> =
                            world.plan().actions.iter().filter_map(Action::subject).collect();
                        let mut unique = subjects.clone();
                        unique.sort();
                        unique.dedup();
                        assert_eq!(unique.len(), subjects.len(), "{subjects:?}");
                        for subject in subjects {
                            world.notes.in_flight.insert(subject, Some(now()));
                        }
                        let again = world.plan().actions;
                        assert!(
                            again.iter().all(|action| matches!(action, Action::Abort(_))),
                            "{again:?}"
                        );
                    }
                }
            }
        }
    }
}
