//! Containers from creation to removal.

use crate::lab::*;
use futures::StreamExt;
use skiff_cri::*;
use std::time::Duration;

#[test]
fn a_container_runs_logs_and_leaves_nothing() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        assert!(sandbox.ready);
        let script =
            "echo out; echo err >&2; hostname; echo $FROM_IMAGE $MINE; cat /proc/self/cgroup; exit 3";
        let mut config = lab.script("one", script);
        config.env = vec![("MINE".into(), "mine".into())];
        let id = start(&runtime, &sandbox, config).await;
        let container = ended(&runtime, &id).await;
        assert_eq!((exit_code(&container), reason(&container)), (3, "Error"));
        assert!(container.started_at.unwrap() >= container.created_at - Duration::from_secs(1));
        let log = lines(&lab.log("one"));
        for line in [
            "stdout F out",
            "stderr F err",
            "stdout F pod-host",
            "stdout F yes mine",
        ] {
            assert!(log.contains(&line.to_owned()), "{line} in {log:?}");
        }
        assert!(
            log.iter()
                .any(|line| line.contains(&format!("{}/{id}", lab.cgroup))),
            "{log:?}"
        );
        assert!(matches!(
            runtime.start_container(&id).await,
            Err(RuntimeError::Precondition(_))
        ));

        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        assert_eq!(runtime.containers().await.unwrap(), []);
        assert_eq!(runtime.sandboxes().await.unwrap(), []);
        assert!(runtime.container(&id).await.unwrap_err().is_not_found());
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let left: Vec<&str> = mounts
            .lines()
            .filter(|line| line.contains("/run/skiff"))
            .collect();
        assert_eq!(left, Vec::<&str>::new());
        drop(runtime);
        lab
    });
}

#[test]
fn containers_of_a_sandbox_share_what_a_pod_shares() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let namespace = |kind: &str| std::fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
        let show = "for k in net ipc uts pid; do readlink -f /proc/self/ns/$k; done; echo x > /dev/shm/$N; ls /dev/shm";
        let show = show
            .replace("readlink -f", "busybox readlink")
            .replace("ls /", "busybox ls /");
        let mut seen = Vec::new();
        for name in ["a", "b"] {
            let mut config = lab.script(name, &show);
            config.env = vec![("N".into(), name.into())];
            // Both live on, else the kernel may use the number of a namespace again.
            config.command[2] += "; echo done; exec sleep 1000";
            start(&runtime, &sandbox, config).await;
            while lines(&lab.log(name))
                .last()
                .is_none_or(|line| line != "stdout F done")
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            seen.push(lines(&lab.log(name)));
        }
        assert_eq!(seen[0][..3], seen[1][..3], "net, ipc, uts are shared");
        assert_ne!(seen[0][3], seen[1][3], "pid is not");
        assert_eq!(
            seen[1][4..],
            ["stdout F a", "stdout F b", "stdout F done"],
            "/dev/shm is shared"
        );
        for (line, kind) in seen[0].iter().zip(["net", "ipc", "uts"]) {
            assert!(
                !line.ends_with(&*namespace(kind).to_string_lossy()),
                "{kind} is not the host's"
            );
        }
        runtime.remove_sandbox(&sandbox.id).await.unwrap();

        let host = SandboxConfig {
            host_network: true,
            host_ipc: true,
            host_pid: true,
            ..lab.sandbox_config()
        };
        let sandbox = runtime.run_sandbox(host).await.unwrap();
        assert_eq!(sandbox.netns, None);
        let id = start(
            &runtime,
            &sandbox,
            lab.script("h", &show.replace("; echo x > /dev/shm/$N", "")),
        )
        .await;
        ended(&runtime, &id).await;
        let log = lines(&lab.log("h"));
        for (line, kind) in log.iter().zip(["net", "ipc", "uts", "pid"]) {
            assert!(
                line.ends_with(&*namespace(kind).to_string_lossy()),
                "{kind} is the host's: {line}"
            );
        }
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn a_shared_process_namespace_has_an_init_of_its_own() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let config = SandboxConfig {
            share_process_namespace: true,
            ..lab.sandbox_config()
        };
        let sandbox = runtime.run_sandbox(config).await.unwrap();
        let sleeper = start(&runtime, &sandbox, lab.script("sleeper", "exec sleep 1000")).await;
        let id = start(&runtime, &sandbox, lab.script("looker", "ps")).await;
        ended(&runtime, &id).await;
        let log = lines(&lab.log("looker")).join("\n");
        assert!(
            log.contains("/skiff pause") && log.contains("sleep 1000"),
            "{log}"
        );
        assert_eq!(
            runtime.containers().await.unwrap().len(),
            2,
            "the init is not listed"
        );
        runtime
            .stop_container(&sleeper, Duration::from_secs(1))
            .await
            .unwrap();
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn users_groups_and_privileges() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let script = "id; busybox grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
                      busybox touch /x && echo writable; busybox mount -t tmpfs t /tmp && echo mounted; true";
        let mut config = lab.script("user", script);
        config.security = SecurityContext {
            run_as_user: Some(101),
            supplemental_groups: vec![2000],
            readonly_rootfs: true,
            no_new_privileges: true,
            seccomp: Seccomp::RuntimeDefault,
            ..SecurityContext::default()
        };
        let id = start(&runtime, &sandbox, config).await;
        let container = ended(&runtime, &id).await;
        assert_eq!(
            container.user,
            Some(ContainerUser {
                uid: 101,
                gid: 102,
                groups: vec![102, 103, 2000]
            })
        );
        let log = lines(&lab.log("user")).join("\n");
        for part in [
            "uid=101(web) gid=102(web)",
            "2000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(log.contains(part), "{part} in {log}");
        }
        assert!(!log.contains("writable") && !log.contains("F mounted"), "{log}");

        let mut config = lab.script("privileged", "mount -t tmpfs t /tmp && echo mounted");
        config.security = SecurityContext {
            privileged: true,
            ..SecurityContext::default()
        };
        let id = start(&runtime, &sandbox, config).await;
        assert_eq!(
            exit_code(&ended(&runtime, &id).await),
            0,
            "{:?}",
            lines(&lab.log("privileged"))
        );

        let mut config = lab.script("non-root", "true");
        config.security.run_as_non_root = true;
        let refused = runtime.create_container(&sandbox.id, config).await;
        assert!(matches!(refused, Err(RuntimeError::Invalid(_))), "{refused:?}");
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn a_bad_command_is_a_start_error_with_the_reason() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let config = ContainerConfig {
            command: vec!["/no/such".into()],
            ..lab.script("bad", "")
        };
        let id = runtime.create_container(&sandbox.id, config).await.unwrap();
        let error = runtime.start_container(&id).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::StartFailed(text) if text.contains("/no/such")),
            "{error}"
        );
        let container = runtime.container(&id).await.unwrap();
        assert_eq!((exit_code(&container), reason(&container)), (128, "StartError"));
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn stopping_is_gentle_first_and_sure_at_last() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let polite = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
        let deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        for (name, script, grace, want) in [("polite", polite, 30, 0), ("deaf", deaf, 1, 137)] {
            let id = start(&runtime, &sandbox, lab.script(name, script)).await;
            while !lines(&lab.log(name)).contains(&"stdout F ready".to_owned()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let begin = tokio::time::Instant::now();
            runtime
                .stop_container(&id, Duration::from_secs(grace))
                .await
                .unwrap();
            let container = runtime.container(&id).await.unwrap();
            assert_eq!(exit_code(&container), want, "{name}");
            assert!(begin.elapsed() < Duration::from_secs(20), "{name}");
            runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        }
        assert!(lines(&lab.log("polite")).contains(&"stdout F bye".to_owned()));
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn limits_bind_and_running_out_of_memory_is_told() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let mut events = runtime.events();
        let mut config = lab.script("oom", "exec tail -c 100000000 /dev/zero");
        config.resources = Resources {
            memory_limit_bytes: 16 << 20,
            cpu_shares: 512,
            pids_limit: 20,
            oom_score_adj: -997,
            ..Resources::default()
        };
        let id = start(&runtime, &sandbox, config).await;
        let container = ended(&runtime, &id).await;
        assert_eq!((exit_code(&container), reason(&container)), (137, "OOMKilled"));
        let told = async {
            while let Some(event) = events.next().await {
                if matches!(&event, RuntimeEvent::ContainerOom { id: of, .. } if *of == id) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap();

        let mut config = lab.script("sleeper", "exec sleep 1000");
        config.resources.memory_limit_bytes = 16 << 20;
        let id = start(&runtime, &sandbox, config).await;
        let stats = runtime.container_stats(&id).await.unwrap();
        assert!(
            stats.memory_usage_bytes > 0 && stats.cpu_usage_ns > 0 && stats.pids >= 1,
            "{stats:?}"
        );
        let more = Resources {
            memory_limit_bytes: 32 << 20,
            ..Resources::default()
        };
        runtime.update_resources(&id, &more).await.unwrap();
        let group = format!("{}/{id}", lab.cgroup);
        let v1 = std::fs::read_to_string(format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"));
        let limit = v1
            .or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.max")))
            .unwrap();
        assert_eq!(limit.trim(), (32 << 20).to_string());
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}

#[test]
fn logs_rotate() {
    run(|mut lab| async move {
        let runtime = lab.ready().await;
        let sandbox = lab.sandbox(&runtime).await;
        let id = start(
            &runtime,
            &sandbox,
            lab.script("chatty", "yes 0123456789 | head -n 10000"),
        )
        .await;
        assert_eq!(exit_code(&ended(&runtime, &id).await), 0);
        let log = lab.log("chatty");
        let old = log.with_extension("log.1");
        assert!(log.exists() && old.exists() && !log.with_extension("log.3").exists());
        assert!(std::fs::metadata(&old).unwrap().len() <= 64 * 1024);
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
        drop(runtime);
        lab
    });
}
