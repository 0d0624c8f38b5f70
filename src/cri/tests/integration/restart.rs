//! skiff goes and comes, containerd goes and comes, containers stay.

use crate::lab::*;
use futures::StreamExt;
use skiff_cri::*;
use std::time::Duration;

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"));
}

#[test]
fn a_new_skiff_derives_the_state_and_misses_no_output() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let counting = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exec sleep 1000";
        let mut config = lab.script("counter", counting);
        config.labels.insert("a".into(), "b".into());
        config.annotations.insert("long".into(), "x".repeat(10_000));
        let counter = start(&runtime, &sandbox, config).await;
        let short = start(
            &runtime,
            &sandbox,
            lab.script("short", "sleep 1; echo last words; exit 9"),
        )
        .await;
        let fresh = runtime
            .create_container(&sandbox.id, lab.script("fresh", "true"))
            .await
            .unwrap();
        let before = runtime.container(&counter).await.unwrap();
        lab.disconnect(runtime).await;

        tokio::time::sleep(Duration::from_millis(1500)).await; // the short one ends meanwhile
        let runtime = lab.connect().await;
        let after = runtime.container(&counter).await.unwrap();
        assert_eq!(after, before);
        assert_eq!(after.state, ContainerState::Running);
        assert_eq!(after.annotations["long"].len(), 10_000);
        assert_eq!(
            runtime.container(&fresh).await.unwrap().state,
            ContainerState::Created
        );
        let container = ended(&runtime, &short).await;
        assert_eq!(exit_code(&container), 9);
        let ContainerState::Exited { finished_at, .. } = container.state else {
            unreachable!()
        };
        let ran = finished_at.duration_since(container.started_at.unwrap()).unwrap();
        assert!(
            ran < Duration::from_millis(1450),
            "the time is that of the end, not of its discovery: {ran:?}"
        );
        assert_eq!(lines(&lab.log("short")), ["stdout F last words"]);
        let sandboxes = runtime.sandboxes().await.unwrap();
        assert_eq!(sandboxes.as_slice(), std::slice::from_ref(&sandbox));
        let log = lab.log("counter");
        until("the end of the count", || lines(&log).len() >= 300).await;
        let want: Vec<String> = (1..=300).map(|number| format!("stdout F {number}")).collect();
        assert_eq!(lines(&log), want);
        runtime.start_container(&fresh).await.unwrap();
        assert_eq!(exit_code(&ended(&runtime, &fresh).await), 0);
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn containers_survive_containerd() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let waiting = "echo up; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo gone; exit 6";
        let id = start(&runtime, &sandbox, lab.script("survivor", waiting)).await;
        let log = lab.log("survivor");
        until("output", || lines(&log).len() == 1).await;
        let pid = lab.daemon.pid().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        let daemon = lab.daemon.clone();
        until("a new containerd", || daemon.pid().is_some_and(|now| now != pid)).await;
        assert_eq!(
            runtime.container(&id).await.unwrap().state,
            ContainerState::Running
        );
        let command = vec!["busybox".to_owned(), "touch".to_owned(), "/tmp/go".to_owned()];
        assert_eq!(
            runtime
                .exec_sync(&id, &command, PATIENCE)
                .await
                .unwrap()
                .exit_code,
            0
        );
        assert_eq!(exit_code(&ended(&runtime, &id).await), 6);
        assert_eq!(lines(&log), ["stdout F up", "stdout F gone"]);
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn a_second_process_gives_orders_but_takes_nothing_until_the_first_is_gone() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let counting = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exec sleep 1000";
        let counter = start(&runtime, &sandbox, lab.script("counter", counting)).await;
        let shutdown = skiff_base::lifecycle::Shutdown::new();
        let clock = skiff_base::clock::system();
        let second = containerd::Containerd::connect(lab.config.clone(), clock, &shutdown)
            .await
            .unwrap();
        assert_eq!(second.images().await.unwrap().len(), 1);
        assert_eq!(
            second.container(&counter).await.unwrap().state,
            ContainerState::Running
        );
        let other = start(&second, &sandbox, lab.script("other", "echo mine; exit 2")).await;
        let mut events = second.events();
        let log = lab.log("counter");
        until("half of the count", || lines(&log).len() >= 100).await;
        lab.disconnect(runtime).await;
        let taken_over = async { while events.next().await.unwrap() != RuntimeEvent::Resync {} };
        tokio::time::timeout(PATIENCE, taken_over).await.unwrap();
        until("the end of the count", || lines(&log).len() >= 200).await;
        let want: Vec<String> = (1..=200).map(|number| format!("stdout F {number}")).collect();
        assert_eq!(lines(&log), want);
        assert_eq!(exit_code(&ended(&second, &other).await), 2);
        assert_eq!(lines(&lab.log("other")), ["stdout F mine"]);
        second.remove_sandbox(&sandbox.id).await.unwrap();
        assert!(shutdown.drain(PATIENCE).await);
        drop(second);
        lab
    });
}
