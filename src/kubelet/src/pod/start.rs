//! Creating and starting one container.
//!
//! [`config`] turns the pod's definition into what the runtime is asked for; it is pure but for looking at volumes
//! on disk (sub-paths). [`start`] creates, starts and runs the postStart hook.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::VolumeMount;
use skiff_cri::{
    ContainerConfig, ContainerState, ImageConfig, Mount, PidMode, Propagation, Resources, Sandbox, Seccomp,
    SecurityContext,
};

use super::apply::{Done, Job, create_reason};
use super::spec::{self, Spec};
use super::state::labels;
use crate::cgroup::convert;
use crate::probes::{self, Target};
use crate::volumes::subpath;
use crate::{env, files, resources};

/// Reason of a container that cannot be configured.
pub const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// How long a hook may run before the container is given up: hooks have no timeout of their own.
const HOOK_MAX: Duration = Duration::from_secs(600);

/// How long a start waits for the first list of services: a container that misses them would not find the API server.
const SERVICES_WAIT: Duration = Duration::from_secs(10);

/// What to start.
pub struct Request {
    /// The container's definition.
    pub spec: Spec,
    /// Where.
    pub sandbox: Sandbox,
    /// Restart count.
    pub attempt: u32,
    /// Back-off after this container's exit.
    pub backoff_s: u64,
    /// Image id.
    pub image: String,
    /// Record of an unfinished try to be removed first.
    pub replaces: Option<String>,
    /// The container whose processes an ephemeral container sees, by id.
    pub target: Option<String>,
}

/// Why a container cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    reason: &'static str,
    message: String,
}

fn config_error(message: impl ToString) -> StartError {
    StartError {
        reason: CONFIG_ERROR,
        message: message.to_string(),
    }
}

/// Creates and starts a container. `running` is called as soon as its process runs, before the hook.
pub async fn start(job: Job, request: Request, running: impl Fn() + Send + 'static) -> Done {
    let about = spec::reference(&job.pod, Some(request.spec.field_path()));
    let recorder = job.shared.recorder.clone();
    let runtime = job.shared.config.runtime.clone();
    let name = request.spec.container.name.clone();
    if let Some(id) = &request.replaces
        && let Err(error) = runtime.remove_container(id).await
        && !error.is_not_found()
    {
        return Done::NotStarted {
            reason: "CreateContainerError".into(),
            message: error.to_string(),
            created: false,
        };
    }
    let config = match config(&job, &request).await {
        Ok(config) => config,
        Err(error) => {
            recorder.warning(&about, "Failed", format!("Error: {}", error.message));
            return Done::NotStarted {
                reason: error.reason.into(),
                message: error.message,
                created: false,
            };
        }
    };
    let log = config.log_path.clone();
    let id = match runtime.create_container(&request.sandbox.id, config).await {
        Ok(id) => id,
        Err(error) => {
            recorder.warning(&about, "Failed", format!("Error: {error}"));
            let reason = create_reason(&error).into();
            return Done::NotStarted {
                reason,
                message: error.to_string(),
                created: false,
            };
        }
    };
    recorder.normal(&about, "Created", "Container created");
    if let Some(log) = log {
        link_log(&job, &name, &id, &log).await;
    }
    if let Err(error) = runtime.start_container(&id).await {
        recorder.warning(&about, "Failed", format!("Error: {error}"));
        // A runtime that records the failed start as an exit lets the crash-loop rules decide; else wait here.
        let created = match runtime.container(&id).await {
            Ok(container) => matches!(container.state, ContainerState::Exited { .. }),
            Err(_) => false,
        };
        return Done::NotStarted {
            reason: "RunContainerError".into(),
            message: error.to_string(),
            created,
        };
    }
    recorder.normal(&about, "Started", "Container started");
    running();
    if let Some(handler) = request
        .spec
        .lifecycle()
        .and_then(|lifecycle| lifecycle.post_start.as_ref())
    {
        let target = Target {
            runtime: runtime.clone(),
            id: id.clone(),
            host: job.ips.first().copied(),
            container: request.spec.container.clone(),
        };
        if let Err(error) = probes::run_hook(handler, &target, HOOK_MAX).await {
            recorder.warning(
                &about,
                "FailedPostStartHook",
                format!("PostStartHook failed: {error}"),
            );
            recorder.normal(&about, "Killing", "FailedPostStartHook".to_owned());
            let grace = Duration::from_secs(u64::try_from(spec::grace_s(&job.pod)).unwrap_or(0));
            let _ = runtime.stop_container(&id, grace).await;
            return Done::NotStarted {
                reason: "PostStartHookError".into(),
                message: format!("PostStartHookError: {error}"),
                created: true,
            };
        }
    }
    Done::Started { id }
}

/// A flat name for the log, for shippers that look in one folder.
async fn link_log(job: &Job, name: &str, id: &str, log: &Path) {
    let dir = &job.shared.config.dirs.container_logs;
    let link = dir.join(format!(
        "{}_{}_{name}-{id}.log",
        spec::name(&job.pod),
        spec::namespace(&job.pod)
    ));
    let made = async {
        tokio::fs::create_dir_all(dir).await?;
        tokio::fs::symlink(log, &link).await
    };
    if let Err(error) = made.await {
        tracing::debug!(link = %link.display(), %error, "log not linked");
    }
}

/// What the runtime is asked for.
async fn config(job: &Job, request: &Request) -> Result<ContainerConfig, StartError> {
    let pod = &job.pod;
    let container = &request.spec.container;
    let referred = job.referred().await.map_err(config_error)?;
    if tokio::time::timeout(SERVICES_WAIT, job.shared.services.synced())
        .await
        .is_err()
    {
        return Err(config_error(
            "services have not yet been read at least once, cannot construct envvars",
        ));
    }
    let services = job.shared.services.list();
    let vars = env::environment(pod, container, &job.facts(), &referred, &services).map_err(config_error)?;
    let expand = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|text| env::expand(text, |name| vars.get(name).cloned()))
            .collect()
    };
    let image = job
        .shared
        .config
        .runtime
        .image(&request.image)
        .await
        .ok()
        .flatten();
    let image_config = image.map(|image| image.config).unwrap_or_default();
    let security = security(job, request, &image_config)?;
    let mut mounts = volume_mounts(job, request, &vars)?;
    let message_file = own_files(job, request, &mut mounts).map_err(|error| StartError {
        reason: "CreateContainerError",
        message: format!("files of container {}: {error}", container.name),
    })?;
    let pod_logs = job
        .shared
        .config
        .dirs
        .pod_log(spec::namespace(pod), spec::name(pod), spec::uid(pod));
    let policy = container
        .termination_message_policy
        .clone()
        .unwrap_or_else(|| "File".into());
    let annotations = [
        (labels::RESTART_COUNT, request.attempt.to_string()),
        (labels::IMAGE, container.image.clone().unwrap_or_default()),
        (labels::BACKOFF_S, request.backoff_s.to_string()),
        (labels::MESSAGE_FILE, message_file.display().to_string()),
        (labels::MESSAGE_POLICY, policy),
    ];
    let container_labels = [
        (labels::POD_NAME, spec::name(pod)),
        (labels::POD_NAMESPACE, spec::namespace(pod)),
        (labels::POD_UID, spec::uid(pod)),
        (labels::CONTAINER_NAME, container.name.as_str()),
    ];
    let pid = match &request.target {
        Some(id) => PidMode::Container(id.clone()),
        None => PidMode::Own,
    };
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt: request.attempt,
        image: request.image.clone(),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        env: vars.into_iter().collect(),
        mounts,
        devices: Vec::new(),
        labels: container_labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        log_path: Some(
            pod_logs
                .join(&container.name)
                .join(format!("{}.log", request.attempt)),
        ),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        resources: limits(job, &request.spec),
        security,
        pid,
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
    })
}

fn limits(job: &Job, spec: &Spec) -> Resources {
    let resources = spec.container.resources.as_ref();
    let cpu_request = resources::request(resources, "cpu").unwrap_or(0);
    let cpu_limit = resources::limit(resources, "cpu").unwrap_or(0);
    let quota = convert::quota(cpu_limit);
    let hugepages = resources
        .and_then(|resources| resources.limits.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|(name, quantity)| {
            let size = name.strip_prefix("hugepages-")?.replace('i', "B");
            Some((size, u64::try_from(resources::whole(quantity)?).ok()?))
        })
        .collect();
    Resources {
        cpu_shares: convert::shares(cpu_request),
        cpu_quota_us: quota.unwrap_or(0),
        cpu_period_us: if quota.is_some() {
            convert::QUOTA_PERIOD_US
        } else {
            0
        },
        memory_limit_bytes: resources::limit(resources, "memory").unwrap_or(0),
        hugepages,
        oom_score_adj: resources::oom_score_adj(&job.pod, &spec.container, job.shared.node_memory),
        ..Resources::default()
    }
}

fn security(job: &Job, request: &Request, image: &ImageConfig) -> Result<SecurityContext, StartError> {
    let container = &request.spec.container;
    let pod_context = job
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.clone())
        .unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged.unwrap_or(false);
    let run_as_user = own.run_as_user.or(pod_context.run_as_user);
    let run_as_group = own.run_as_group.or(pod_context.run_as_group);
    let run_as_non_root = own
        .run_as_non_root
        .or(pod_context.run_as_non_root)
        .unwrap_or(false);
    if run_as_non_root {
        non_root(job, &container.name, run_as_user, image)?;
    }
    let profile = own
        .seccomp_profile
        .as_ref()
        .or(pod_context.seccomp_profile.as_ref());
    let seccomp = match profile.map(|profile| profile.type_.as_str()) {
        _ if privileged => Seccomp::Unconfined,
        Some("RuntimeDefault") => Seccomp::RuntimeDefault,
        Some("Localhost") => {
            let name = profile
                .and_then(|profile| profile.localhost_profile.clone())
                .unwrap_or_default();
            let relative = crate::volumes::atomic::checked(&name).map_err(config_error)?;
            let path = job.shared.config.dirs.seccomp.join(relative);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| config_error(format!("seccomp profile {}: {error}", path.display())))?;
            Seccomp::Profile(text)
        }
        _ => Seccomp::Unconfined,
    };
    let apparmor = own
        .app_armor_profile
        .as_ref()
        .or(pod_context.app_armor_profile.as_ref());
    let apparmor_profile = apparmor
        .filter(|profile| profile.type_ == "Localhost")
        .and_then(|profile| profile.localhost_profile.clone())
        .unwrap_or_default();
    let mut supplemental_groups = pod_context.supplemental_groups.unwrap_or_default();
    supplemental_groups.extend(pod_context.fs_group);
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(SecurityContext {
        privileged,
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        run_as_user,
        run_as_group,
        run_as_non_root,
        supplemental_groups,
        supplemental_groups_strict: pod_context.supplemental_groups_policy.as_deref() == Some("Strict"),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        seccomp,
        apparmor_profile,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

/// Refuses a container that would run as root though it must not.
fn non_root(job: &Job, name: &str, user: Option<i64>, image: &ImageConfig) -> Result<(), StartError> {
    let whose = format!("(pod: {:?}, container: {name})", spec::full_name(&job.pod));
    match user {
        Some(0) => Err(config_error(format!(
            "container's runAsUser breaks non-root policy {whose}"
        ))),
        Some(_) => Ok(()),
        None => {
            let user = image.user.split(':').next().unwrap_or_default();
            match user.parse::<i64>() {
                Ok(0) => Err(config_error(format!(
                    "container has runAsNonRoot and image will run as root {whose}"
                ))),
                Ok(_) => Ok(()),
                Err(_) if user.is_empty() => Err(config_error(format!(
                    "container has runAsNonRoot and image will run as root {whose}"
                ))),
                Err(_) => Err(config_error(format!(
                    "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is \
                     non-root {whose}"
                ))),
            }
        }
    }
}

fn volume_mounts(
    job: &Job,
    request: &Request,
    vars: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, StartError> {
    let container = &request.spec.container;
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = job.volumes.get(&mount.name).ok_or_else(|| {
            config_error(format!(
                "volume {:?} of container {} is not there",
                mount.name, container.name
            ))
        })?;
        let host_path = match sub_path(mount, vars)? {
            None => volume.path.clone(),
            Some(path) => {
                let target = job
                    .dir()
                    .join("volume-subpaths")
                    .join(&mount.name)
                    .join(&container.name)
                    .join(index.to_string());
                // A restarted container looks at the path anew.
                crate::volumes::mounts::unmount_below(&target).map_err(config_error)?;
                subpath::mount(&volume.path, &path, &target).map_err(|error| {
                    config_error(format!(
                        "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                        mount.name, container.name
                    ))
                })?;
                target
            }
        };
        let readonly = mount.read_only.unwrap_or(false) || volume.read_only;
        mounts.push(Mount {
            container_path: PathBuf::from(&mount.mount_path),
            host_path,
            readonly,
            recursive_readonly: readonly
                && matches!(
                    mount.recursive_read_only.as_deref(),
                    Some("Enabled" | "IfPossible")
                ),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

fn sub_path(mount: &VolumeMount, vars: &BTreeMap<String, String>) -> Result<Option<String>, StartError> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) {
        let missing = std::cell::Cell::new(false);
        let path = env::expand(expression, |name| {
            let value = vars.get(name).cloned();
            missing.set(missing.get() || value.is_none());
            value
        });
        if missing.get() {
            return Err(config_error(format!("missing value for {expression:?}")));
        }
        return Ok(Some(path));
    }
    Ok(mount.sub_path.clone().filter(|path| !path.is_empty()))
}

/// Hosts file and termination log; returns the log's path on the node.
fn own_files(job: &Job, request: &Request, mounts: &mut Vec<Mount>) -> std::io::Result<PathBuf> {
    let pod = &job.pod;
    let dir = job.dir();
    let container = &request.spec.container;
    let taken = |mounts: &[Mount], path: &str| mounts.iter().any(|m| m.container_path == Path::new(path));
    let file = |host_path: PathBuf, path: &str| Mount {
        container_path: PathBuf::from(path),
        host_path,
        ..Mount::default()
    };
    std::fs::create_dir_all(&dir)?;
    if !taken(mounts, "/etc/hosts") {
        let path = dir.join("etc-hosts");
        let host = spec::host_network(pod)
            .then(|| std::fs::read_to_string(&job.shared.config.dirs.host_hosts).unwrap_or_default());
        let text = files::hosts(pod, &job.ips, &job.shared.config.cluster_domain, host.as_deref());
        write_if_new(&path, &text)?;
        mounts.push(file(path, "/etc/hosts"));
    }
    let own = dir.join("containers").join(&container.name);
    std::fs::create_dir_all(&own)?;
    let log = own.join(request.attempt.to_string());
    std::fs::write(&log, "")?;
    std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let path = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    if !path.is_empty() {
        mounts.push(file(log.clone(), path));
    }
    // Records older than the one kept for the last state are of no use.
    if let Some(old) = request.attempt.checked_sub(2) {
        let _ = std::fs::remove_file(own.join(old.to_string()));
    }
    Ok(log)
}

/// Writes in place, so that a file mounted into running containers stays the same file.
fn write_if_new(path: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
}
