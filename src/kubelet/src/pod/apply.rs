//! Actions on sandbox, volumes and leftovers.
//!
//! Each function is one action: idempotent, safe to drop at any await, reporting through [`Done`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use skiff_base::backoff::Backoff;
use skiff_cri::{RuntimeError, Sandbox, SandboxConfig};

pub use super::shared::Job;
use super::spec;
use super::state::{Failure, labels};
use super::writer::Writer;
use crate::cgroup::convert;
use crate::config::{HostPort, NetworkError, PodAttach};
use crate::files::{self, DnsFacts};
use crate::resources::{self, Qos};
use crate::volumes::{self, Ready};

/// First wait before the API is asked again to remove a pod.
const FINISH_RETRY_FIRST: std::time::Duration = std::time::Duration::from_secs(1);
/// Longest wait before the API is asked again to remove a pod.
const FINISH_RETRY_MAX: std::time::Duration = std::time::Duration::from_secs(30);

/// Longest wait for a sandbox: a pod that hangs here could not even be deleted.
const SANDBOX_MAX: std::time::Duration = std::time::Duration::from_secs(120);
/// Longest wait for the network, for the same reason.
const NETWORK_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// The result of an action.
pub enum Done {
    /// The sandbox is connected.
    Connected {
        /// Sandbox id.
        sandbox: String,
        /// Addresses.
        ips: Vec<IpAddr>,
    },
    /// The sandbox is stopped or removed.
    Disconnected {
        /// Sandbox id.
        sandbox: String,
    },
    /// Sandbox, network or control groups made trouble.
    SandboxFailed(String),
    /// Volumes are in place (and must be made anew at a time), or why not.
    Volumes(Result<(BTreeMap<String, Ready>, Option<SystemTime>), String>),
    /// The image is there, by id, or why not.
    Image(Result<String, Failure>),
    /// The container was started and its hook ran.
    Started {
        /// Container id.
        id: String,
    },
    /// The container was not started.
    NotStarted {
        /// Reason as the API shows it.
        reason: String,
        /// Message as the API shows it.
        message: String,
        /// A container exists that counts as ended.
        created: bool,
    },
    /// Leftovers are gone (true: logs too), or why not.
    Cleaned(Result<bool, String>),
    /// The object is gone from the API.
    Finished,
    /// The runtime's state says it all.
    Nothing,
}

/// Ports of the node that lead into the pod.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    if spec::host_network(pod) {
        return Vec::new();
    }
    resources::all_containers(pod)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            })
        })
        .collect()
}

fn bandwidth(pod: &Pod, direction: &str) -> Option<u64> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let text = annotations.get(&format!("kubernetes.io/{direction}-bandwidth"))?;
    resources::whole(&Quantity(text.clone()))
        .and_then(|bits| u64::try_from(bits).ok())
        .filter(|bits| *bits > 0)
}

/// The sandbox a pod asks for.
fn sandbox_config(job: &Job, attempt: u32, host_resolv: String) -> SandboxConfig {
    let pod = &job.pod;
    let config = &job.shared.config;
    let spec = pod.spec.clone().unwrap_or_default();
    let dns = DnsFacts {
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        host_resolv,
    };
    let (mut hostname, domain) = files::hostname(pod, &config.cluster_domain);
    if spec.set_hostname_as_fqdn == Some(true)
        && let Some(domain) = domain
    {
        hostname = format!("{hostname}.{domain}");
    }
    let identity = [
        (labels::POD_NAME, spec::name(pod)),
        (labels::POD_NAMESPACE, spec::namespace(pod)),
        (labels::POD_UID, spec::uid(pod)),
    ];
    let mut all_labels = pod.metadata.labels.clone().unwrap_or_default();
    all_labels.extend(identity.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let grace = spec::grace_s(pod).to_string();
    let annotations = [(labels::NODE, config.node_name.clone()), (labels::GRACE_S, grace)];
    let sysctls = spec
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten());
    SandboxConfig {
        name: spec::name(pod).to_owned(),
        namespace: spec::namespace(pod).to_owned(),
        uid: spec::uid(pod).to_owned(),
        attempt,
        hostname,
        dns: Some(files::resolver(pod, &dns)),
        host_network: spec.host_network.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        share_process_namespace: spec.share_process_namespace.unwrap_or(false),
        cgroup_parent: job.group(),
        sysctls: sysctls
            .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
            .collect(),
        labels: all_labels,
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
    }
}

/// Makes a sandbox and connects it.
pub async fn run_sandbox(job: Job, attempt: u32) -> Done {
    job.shared.weigh_classes();
    let limits = convert::pod_limits(&job.pod, job.shared.config.pod_pids_limit);
    let group = job.group();
    if let Err(error) = job.shared.cgroups.ensure(&group, &limits) {
        job.warn(
            "FailedCreatePodContainer",
            format!("unable to ensure pod container exists: {error}"),
        );
        return Done::SandboxFailed(error.to_string());
    }
    let host_resolv = tokio::fs::read_to_string(&job.shared.config.dirs.host_resolv_conf)
        .await
        .unwrap_or_default();
    let config = sandbox_config(&job, attempt, host_resolv);
    let made = tokio::time::timeout(SANDBOX_MAX, job.shared.config.runtime.run_sandbox(config)).await;
    match made.unwrap_or_else(|_| Err(RuntimeError::Timeout("making the sandbox".into()))) {
        Ok(sandbox) => attach(job, sandbox).await,
        Err(error) => {
            job.warn(
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {error}"),
            );
            Done::SandboxFailed(error.to_string())
        }
    }
}

/// Connects a sandbox, or learns the addresses it has.
pub async fn attach(job: Job, sandbox: Sandbox) -> Done {
    let Some(netns) = sandbox.netns.clone().filter(|_| !sandbox.config.host_network) else {
        return Done::Connected {
            sandbox: sandbox.id,
            ips: job.shared.config.node_ips.clone(),
        };
    };
    let request = PodAttach {
        namespace: sandbox.config.namespace.clone(),
        name: sandbox.config.name.clone(),
        uid: sandbox.config.uid.clone(),
        sandbox_id: sandbox.id.clone(),
        netns,
        host_ports: host_ports(&job.pod),
        ingress_bandwidth: bandwidth(&job.pod, "ingress"),
        egress_bandwidth: bandwidth(&job.pod, "egress"),
    };
    let attached = tokio::time::timeout(NETWORK_MAX, job.shared.config.network.attach(&request)).await;
    match attached.unwrap_or_else(|_| Err(NetworkError("timed out".into()))) {
        Ok(ips) => Done::Connected {
            sandbox: sandbox.id,
            ips,
        },
        Err(error) => {
            job.warn(
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: failed to set up network for sandbox: {error}"),
            );
            Done::SandboxFailed(error.to_string())
        }
    }
}

/// Disconnects and stops a sandbox.
pub async fn stop_sandbox(job: Job, id: String) -> Done {
    let detached = tokio::time::timeout(NETWORK_MAX, job.shared.config.network.detach(&id)).await;
    if let Err(error) = detached.unwrap_or_else(|_| Err(NetworkError("timed out".into()))) {
        return Done::SandboxFailed(format!("network of sandbox {id}: {error}"));
    }
    match job.shared.config.runtime.stop_sandbox(&id).await {
        Ok(()) => Done::Disconnected { sandbox: id },
        Err(error) if error.is_not_found() => Done::Disconnected { sandbox: id },
        Err(error) => Done::SandboxFailed(error.to_string()),
    }
}

/// Disconnects and removes a sandbox with its containers.
pub async fn remove_sandbox(job: Job, id: String) -> Done {
    let runtime = job.shared.config.runtime.clone();
    match stop_sandbox(job, id.clone()).await {
        Done::Disconnected { .. } => {}
        other => return other,
    }
    match runtime.remove_sandbox(&id).await {
        Ok(()) => Done::Disconnected { sandbox: id },
        Err(error) if error.is_not_found() => Done::Disconnected { sandbox: id },
        Err(error) => Done::SandboxFailed(error.to_string()),
    }
}

/// Removes the record of an ended container and its log.
pub async fn remove_container(job: Job, id: String, log: Option<PathBuf>) -> Done {
    match job.shared.config.runtime.remove_container(&id).await {
        Ok(()) => {}
        Err(error) if error.is_not_found() => {}
        Err(error) => tracing::warn!(container = id, %error, "container not removed"),
    }
    if let Some(log) = log {
        let _ = tokio::fs::remove_file(&log).await;
    }
    remove_log_links(&job, Some(&id)).await;
    Done::Nothing
}

/// Puts volumes and files in place.
pub async fn set_up_volumes(job: Job) -> Done {
    let dir = job.dir();
    let referred = match job.referred().await {
        Ok(referred) => referred,
        Err(error) => {
            job.warn("FailedMount", format!("MountVolume.SetUp failed: {error}"));
            return Done::Volumes(Err(error.to_string()));
        }
    };
    let facts = job.facts();
    let context = volumes::Context {
        pod: &job.pod,
        facts: &facts,
        pod_dir: &dir,
        referred: &referred,
        tokens: &job.shared.tokens,
    };
    if let Err(error) = tokio::fs::create_dir_all(dir.join("containers")).await {
        return Done::Volumes(Err(format!("create {}: {error}", dir.display())));
    }
    match volumes::set_up(&context).await {
        Ok(ready) => {
            let renew_at = ready.values().filter_map(|volume| volume.renew_at).min();
            Done::Volumes(Ok((ready, renew_at)))
        }
        Err((volume, error)) => {
            let message = format!("MountVolume.SetUp failed for volume {volume:?} : {error}");
            job.warn("FailedMount", message.clone());
            Done::Volumes(Err(message))
        }
    }
}

/// Removes volumes, files and control groups; with `logs` also the logs.
pub async fn clean_up(job: Job, logs: bool) -> Done {
    let uid = spec::uid(&job.pod);
    let mut problems = Vec::new();
    if uid.is_empty() || uid.contains('/') {
        return Done::Cleaned(Ok(logs));
    }
    if let Err(error) = volumes::tear_down(&job.dir()).await {
        problems.push(error.to_string());
    }
    for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        if let Err(error) = job.shared.cgroups.remove(&job.shared.cgroups.pod(qos, uid)) {
            problems.push(error.to_string());
        }
    }
    job.shared.weigh_classes();
    job.shared.tokens.forget(uid);
    if logs {
        let dir = job
            .shared
            .config
            .dirs
            .pod_log(spec::namespace(&job.pod), spec::name(&job.pod), uid);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                problems.push(format!("remove {}: {error}", dir.display()));
            }
            _ => {}
        }
        remove_log_links(&job, None).await;
    }
    if problems.is_empty() {
        Done::Cleaned(Ok(logs))
    } else {
        tracing::warn!(
            pod = spec::full_name(&job.pod),
            problems = problems.join("; "),
            "clean-up incomplete"
        );
        Done::Cleaned(Err(problems.join("; ")))
    }
}

/// Removes the flat links to a pod's logs, or to those of one container.
async fn remove_log_links(job: &Job, id: Option<&str>) {
    let prefix = format!("{}_{}_", spec::name(&job.pod), spec::namespace(&job.pod));
    let logs = job.shared.config.dirs.pod_log(
        spec::namespace(&job.pod),
        spec::name(&job.pod),
        spec::uid(&job.pod),
    );
    let Ok(mut entries) = tokio::fs::read_dir(&job.shared.config.dirs.container_logs).await else {
        return;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = match id {
            Some(id) => name.ends_with(&format!("-{id}.log")),
            // Another pod may have had the name before: only links into this pod's folder are ours.
            None => std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&logs)),
        };
        if name.starts_with(&prefix) && ours {
            let _ = tokio::fs::remove_file(entry.path()).await;
        }
    }
}

/// Sends the last status, then removes the object: only this object, not a namesake.
pub async fn finish(job: Job, writer: Writer) -> Done {
    writer.flush().await;
    let api: Api<Pod> = Api::namespaced(job.shared.config.client.clone(), spec::namespace(&job.pod));
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: job.pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let mut backoff = Backoff::new(FINISH_RETRY_FIRST, FINISH_RETRY_MAX);
    loop {
        match api.delete(spec::name(&job.pod), &params).await {
            Ok(_) => return Done::Finished,
            // Gone, or somebody else by that name: either way this pod exists no more.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {
                return Done::Finished;
            }
            Err(error) => {
                tracing::warn!(pod = spec::full_name(&job.pod), %error, "pod not removed from the API");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// How an error of the runtime is shown when a container cannot be made.
pub fn create_reason(error: &RuntimeError) -> &'static str {
    match error {
        RuntimeError::Invalid(_) => super::start::CONFIG_ERROR,
        _ => "CreateContainerError",
    }
}
