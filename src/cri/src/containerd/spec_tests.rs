//! Tables over the specification.

use super::*;
use std::collections::BTreeMap;

fn host() -> HostFacts {
    HostFacts {
        capabilities: cgroup::CAPABILITIES
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        oom_score_adj_min: 0,
        nofile_max: 20_000,
        seccomp: true,
        hostname: "node".into(),
        ..HostFacts::default()
    }
}

fn sandbox() -> SandboxView {
    SandboxView {
        id: "s1".into(),
        config: SandboxConfig {
            hostname: "web-0".into(),
            cgroup_parent: "/kubepods/podx".into(),
            ..SandboxConfig::default()
        },
        net: Some("/ns/net".into()),
        ipc: Some("/ns/ipc".into()),
        uts: Some("/ns/uts".into()),
        ..SandboxView::default()
    }
}

fn config() -> ContainerConfig {
    ContainerConfig {
        name: "web".into(),
        command: vec!["/web".into()],
        ..ContainerConfig::default()
    }
}

fn spec(config: &ContainerConfig, sandbox: &SandboxView, host: &HostFacts) -> Value {
    let (image, user) = (ImageConfig::default(), ContainerUser::default());
    build(Input {
        id: "c1",
        config,
        image: &image,
        sandbox,
        user: &user,
        devices: &[],
        host,
    })
    .unwrap()
}

fn strings(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn command_and_arguments_combine_as_in_kubernetes() {
    let image = ImageConfig {
        entrypoint: strings(&["/entry"]),
        cmd: strings(&["a", "b"]),
        ..ImageConfig::default()
    };
    for (command, args, want) in [
        (&[][..], &[][..], &["/entry", "a", "b"][..]),
        (&[], &["x"], &["/entry", "x"]),
        (&["/c"], &[], &["/c"]),
        (&["/c"], &["x"], &["/c", "x"]),
    ] {
        let config = ContainerConfig {
            command: strings(command),
            args: strings(args),
            ..ContainerConfig::default()
        };
        assert_eq!(arguments(&config, &image).unwrap(), want);
    }
    let nothing = arguments(&ContainerConfig::default(), &ImageConfig::default());
    assert_eq!(nothing, Err(SpecError::NoCommand(String::new())));
}

#[test]
fn environment_of_pod_wins_over_image_and_names_the_host() {
    let image = ImageConfig {
        env: strings(&["PATH=/img", "A=1", "B"]),
        ..ImageConfig::default()
    };
    let mut config = config();
    config.env = vec![("A".into(), "2".into()), ("C".into(), "x=y".into())];
    let got = environment(&config, &image, &sandbox(), &host()).unwrap();
    assert_eq!(got, ["PATH=/img", "HOSTNAME=web-0", "A=2", "B=", "C=x=y"]);
    config.env = vec![("".into(), "2".into())];
    assert!(environment(&config, &image, &sandbox(), &host()).is_err());
}

#[test]
fn capabilities_are_added_dropped_and_limited_to_what_the_host_has() {
    let with = |add: &[&str], drop: &[&str]| SecurityContext {
        capabilities_add: strings(add),
        capabilities_drop: strings(drop),
        ..SecurityContext::default()
    };
    let set = |security: &SecurityContext, host: &HostFacts| -> Vec<String> {
        serde_json::from_value(capabilities(security, host).unwrap()["bounding"].clone()).unwrap()
    };
    assert_eq!(set(&with(&[], &[]), &host()).len(), DEFAULT_CAPABILITIES.len());
    assert_eq!(set(&with(&["net_admin"], &["ALL"]), &host()), ["CAP_NET_ADMIN"]);
    assert!(!set(&with(&["ALL"], &["CAP_KILL"]), &host()).contains(&"CAP_KILL".to_owned()));
    assert_eq!(
        set(&with(&["ALL"], &[]), &host()).len(),
        cgroup::CAPABILITIES.len()
    );
    let poor = HostFacts {
        capabilities: ["CAP_KILL".to_owned()].into(),
        ..host()
    };
    assert_eq!(set(&with(&["SYS_ADMIN"], &[]), &poor), ["CAP_KILL"]);
    assert!(capabilities(&with(&["FLY"], &[]), &host()).is_err());
    let privileged = SecurityContext {
        privileged: true,
        ..SecurityContext::default()
    };
    assert_eq!(set(&privileged, &host()).len(), cgroup::CAPABILITIES.len());
}

#[test]
fn namespaces_follow_the_sandbox() {
    let kinds = |sandbox: &SandboxView, host: &HostFacts| -> Vec<String> {
        let list = namespaces(&config(), sandbox, host);
        let text = |entry: &Value| match entry["path"].as_str() {
            Some(path) => format!("{}={path}", entry["type"].as_str().unwrap()),
            None => entry["type"].as_str().unwrap().to_owned(),
        };
        list.iter().map(text).collect()
    };
    let own = sandbox();
    assert_eq!(
        kinds(&own, &host()),
        ["mount", "network=/ns/net", "ipc=/ns/ipc", "uts=/ns/uts", "pid"]
    );
    let mut of_host = SandboxView::default();
    of_host.config.host_pid = true;
    assert_eq!(kinds(&of_host, &host()), ["mount"]);
    let shared = SandboxView {
        pid: Some("/proc/7/ns/pid".into()),
        ..SandboxView::default()
    };
    assert_eq!(
        kinds(
            &shared,
            &HostFacts {
                cgroup_v2: true,
                ..host()
            }
        ),
        ["mount", "pid=/proc/7/ns/pid", "cgroup"]
    );
}

#[test]
fn limits_are_clamped_and_written_for_the_hierarchy() {
    let mut config = config();
    config.resources = Resources {
        cpu_shares: 102,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
        memory_limit_bytes: 1 << 20,
        pids_limit: 10,
        oom_score_adj: -997,
        hugepages: BTreeMap::from([("2MB".to_owned(), 4)]),
        ..Resources::default()
    };
    let got = spec(&config, &sandbox(), &host());
    assert_eq!(got["linux"]["cgroupsPath"], "/kubepods/podx/c1");
    assert_eq!(
        got["linux"]["resources"]["cpu"],
        json!({"shares": 102, "quota": 50_000, "period": 100_000})
    );
    assert_eq!(got["linux"]["resources"]["memory"], json!({"limit": 1 << 20}));
    assert_eq!(got["linux"]["resources"]["pids"], json!({"limit": 10}));
    assert_eq!(
        got["linux"]["resources"]["hugepageLimits"],
        json!([{"pageSize": "2MB", "limit": 4}])
    );
    assert_eq!(got["process"]["oomScoreAdj"], 0);
    assert_eq!(got["process"]["rlimits"][0]["hard"], 20_000);
    let v2 = HostFacts {
        cgroup_v2: true,
        oom_score_adj_min: -1000,
        ..host()
    };
    let got = spec(&config, &sandbox(), &v2);
    assert_eq!(
        got["linux"]["resources"]["memory"],
        json!({"limit": 1 << 20, "swap": 1 << 20})
    );
    assert_eq!(got["process"]["oomScoreAdj"], -997);
}

#[test]
fn mounts_put_parents_first_and_replace_defaults() {
    let mut config = config();
    let mount = |inside: &str, propagation| Mount {
        container_path: inside.into(),
        host_path: "/x".into(),
        propagation,
        ..Mount::default()
    };
    config.mounts = vec![
        mount("/data/deep/er", Propagation::Private),
        mount("/data", Propagation::Bidirectional),
        mount("/etc/hostname", Propagation::Private),
    ];
    let got = spec(&config, &sandbox(), &host());
    let order: Vec<&str> = got["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].as_str().unwrap())
        .collect();
    let place = |path: &str| order.iter().position(|found| *found == path).unwrap();
    assert!(place("/data") < place("/data/deep/er"));
    assert_eq!(order.iter().filter(|path| **path == "/etc/hostname").count(), 1);
    assert_eq!(got["linux"]["rootfsPropagation"], "rshared");
    config.mounts = vec![mount("relative", Propagation::Private)];
    let (image, user) = (ImageConfig::default(), ContainerUser::default());
    let input = Input {
        id: "c",
        config: &config,
        image: &image,
        sandbox: &sandbox(),
        user: &user,
        devices: &[],
        host: &host(),
    };
    assert_eq!(build(input), Err(SpecError::Relative("relative".into())));
}

#[test]
fn privileged_opens_devices_paths_and_filter() {
    let device = HostDevice {
        path: "/dev/sda".into(),
        kind: 'b',
        major: 8,
        minor: 0,
        mode: 0o60660,
        uid: 0,
        gid: 6,
    };
    let host = HostFacts {
        devices: vec![device],
        ..host()
    };
    let mut config = config();
    config.security.seccomp = Seccomp::RuntimeDefault;
    let plain = spec(&config, &sandbox(), &host);
    assert_eq!(
        plain["linux"]["resources"]["devices"],
        json!([{"allow": false, "access": "rwm"}])
    );
    assert_eq!(plain["linux"]["devices"], json!([]));
    assert_eq!(plain["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert!(plain["linux"]["maskedPaths"].as_array().unwrap().len() > 5);
    config.security.privileged = true;
    let open = spec(&config, &sandbox(), &host);
    assert_eq!(
        open["linux"]["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
    assert_eq!(open["linux"]["devices"][0]["fileMode"], 0o660);
    assert!(open["linux"].get("seccomp").is_none());
    assert_eq!(open["linux"]["maskedPaths"], json!([]));
}

#[test]
fn one_shim_serves_the_sandbox() {
    let got = spec(&config(), &sandbox(), &host());
    assert_eq!(got["annotations"][SHIM_GROUP_ANNOTATION], "s1");
}

#[test]
fn exec_inherits_the_process_and_gets_a_terminal() {
    let whole = spec(&config(), &sandbox(), &host());
    let process = exec_process(&whole, &strings(&["sh"]), true);
    assert_eq!(process["args"], json!(["sh"]));
    assert_eq!(process["capabilities"], whole["process"]["capabilities"]);
    assert!(process["env"].as_array().unwrap().contains(&json!("TERM=xterm")));
}
