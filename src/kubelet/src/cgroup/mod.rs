//! Control groups of pods: the parents under which the runtime puts containers.
//!
//! ```text
//! <root>/kubepods                         all pods: what the node can give
//! <root>/kubepods/pod<uid>                guaranteed pods
//! <root>/kubepods/burstable/pod<uid>      weight = sum of requests
//! <root>/kubepods/besteffort/pod<uid>     the smallest weight
//! ```
//!
//! Version 1 repeats the tree in every hierarchy, version 2 has one tree whose controllers are enabled from the top
//! downwards. Removal goes through every hierarchy, children first, because the runtime makes groups in all of them.

pub mod convert;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use convert::Limits;

use crate::resources::Qos;

/// Controllers asked for in version 2; those the kernel lacks are left out.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// What went wrong with a control group.
#[derive(Debug, thiserror::Error)]
#[error("{action} control group {path}: {source}")]
pub struct CgroupError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> CgroupError + use<'a> {
    move |source| CgroupError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// How groups are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One tree.
    Unified(PathBuf),
    /// One tree a controller set: controller name to mount point.
    Split(BTreeMap<String, PathBuf>),
}

impl Layout {
    /// What `mount` (normally `/sys/fs/cgroup`) holds.
    pub fn detect(mount: &Path) -> Layout {
        if mount.join("cgroup.controllers").exists() {
            return Layout::Unified(mount.to_owned());
        }
        let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        Layout::Split(split(&text, mount))
    }

    /// Every place a group has a folder in.
    fn trees(&self) -> Vec<&Path> {
        match self {
            Layout::Unified(root) => vec![root],
            Layout::Split(trees) => {
                let mut list: Vec<&Path> = trees.values().map(PathBuf::as_path).collect();
                list.sort();
                list.dedup();
                list
            }
        }
    }
}

/// Version 1 hierarchies below `mount` by controller name.
fn split(mountinfo: &str, mount: &Path) -> BTreeMap<String, PathBuf> {
    let mut trees = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let mut right = right.split(' ');
        let (Some("cgroup"), Some(point)) = (right.next(), left.split(' ').nth(4)) else {
            continue;
        };
        let point = PathBuf::from(point);
        if !point.starts_with(mount) {
            continue;
        }
        for option in right.nth(1).unwrap_or_default().split(',') {
            if !matches!(option, "rw" | "ro" | "xattr" | "clone_children")
                && !option.contains("release_agent")
            {
                trees.entry(option.to_owned()).or_insert_with(|| point.clone());
            }
        }
    }
    trees
}

/// The pod groups of one node.
#[derive(Clone, Debug)]
pub struct Cgroups {
    layout: Layout,
    root: String,
}

impl Cgroups {
    /// Groups below `root` (for example `/`).
    pub fn new(layout: Layout, root: &str) -> Cgroups {
        Cgroups {
            layout,
            root: root.trim_matches('/').to_owned(),
        }
    }

    /// Whether the node uses the unified tree.
    pub fn unified(&self) -> bool {
        matches!(self.layout, Layout::Unified(_))
    }

    /// Path of the group that holds all pods.
    pub fn all_pods(&self) -> String {
        if self.root.is_empty() {
            "/kubepods".into()
        } else {
            format!("/{}/kubepods", self.root)
        }
    }

    /// Path of the group that holds the pods of a class.
    pub fn class(&self, qos: Qos) -> String {
        let all = self.all_pods();
        match qos {
            Qos::Guaranteed => all,
            Qos::Burstable => format!("{all}/burstable"),
            Qos::BestEffort => format!("{all}/besteffort"),
        }
    }

    /// Path of a pod's group.
    pub fn pod(&self, qos: Qos, uid: &str) -> String {
        format!("{}/pod{uid}", self.class(qos))
    }

    /// Makes a group and sets its limits.
    pub fn ensure(&self, group: &str, limits: &Limits) -> Result<(), CgroupError> {
        let relative = group.trim_start_matches('/');
        match &self.layout {
            Layout::Unified(root) => {
                let mut dir = root.clone();
                for part in Path::new(relative).components() {
                    enable(&dir)?;
                    dir.push(part);
                    make(&dir)?;
                }
                enable(&dir)?;
                for (file, value) in unified_files(limits) {
                    set(&dir, file, &value)?;
                }
            }
            Layout::Split(trees) => {
                for (controller, files) in split_files(limits) {
                    let Some(root) = trees.get(controller) else {
                        continue;
                    };
                    let dir = root.join(relative);
                    fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
                    for (file, value) in files {
                        set(&dir, file, &value)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a group with everything below it, in every tree; goes on after an error and reports the first.
    pub fn remove(&self, group: &str) -> Result<(), CgroupError> {
        let relative = group.trim_start_matches('/');
        let mut first = None;
        for root in self.layout.trees() {
            if let Err(error) = remove_tree(&root.join(relative)) {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// UIDs of pods that have a group, of any class.
    pub fn pods(&self) -> Vec<(Qos, String)> {
        let mut list = Vec::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let class = self.class(qos);
            for root in self.layout.trees() {
                let entries = fs::read_dir(root.join(class.trim_start_matches('/')));
                for entry in entries.into_iter().flatten().flatten() {
                    if let Some(uid) = entry
                        .file_name()
                        .to_str()
                        .and_then(|name| name.strip_prefix("pod"))
                    {
                        list.push((qos, uid.to_owned()));
                    }
                }
            }
        }
        list.sort();
        list.dedup();
        list
    }

    /// A figure the kernel keeps for a group, for example memory in use.
    pub fn read(&self, group: &str, controller: &str, file: &str) -> Option<String> {
        let relative = group.trim_start_matches('/');
        let root = match &self.layout {
            Layout::Unified(root) => root,
            Layout::Split(trees) => trees.get(controller)?,
        };
        fs::read_to_string(root.join(relative).join(file)).ok()
    }
}

/// What version 2 is told.
fn unified_files(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        files.push(("cpu.weight", convert::weight(shares).to_string()));
        let quota = limits
            .cpu_quota_us
            .map_or("max".to_owned(), |quota| quota.to_string());
        files.push(("cpu.max", format!("{quota} {}", convert::QUOTA_PERIOD_US)));
    }
    if let Some(memory) = limits.memory_bytes {
        files.push(("memory.max", memory.to_string()));
    }
    if let Some(pids) = limits.pids {
        files.push(("pids.max", pids.to_string()));
    }
    files
}

/// What version 1 is told, by controller. Every controller is listed so that the group exists in its tree.
fn split_files(limits: &Limits) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let mut cpu = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.push(("cpu.shares", shares.to_string()));
        cpu.push(("cpu.cfs_period_us", convert::QUOTA_PERIOD_US.to_string()));
        cpu.push(("cpu.cfs_quota_us", limits.cpu_quota_us.unwrap_or(-1).to_string()));
    }
    let memory = limits
        .memory_bytes
        .map(|bytes| ("memory.limit_in_bytes", bytes.to_string()));
    let pids = limits.pids.map(|pids| ("pids.max", pids.to_string()));
    vec![
        ("cpu", cpu),
        ("memory", memory.into_iter().collect()),
        ("pids", pids.into_iter().collect()),
    ]
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed("create", dir)(error)),
        _ => Ok(()),
    }
}

/// Writes a file unless it says so already.
fn set(dir: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = dir.join(file);
    let current = fs::read_to_string(&path).unwrap_or_default();
    if current.trim() == value {
        return Ok(());
    }
    match fs::write(&path, value) {
        // A kernel without the controller has no such file: then there is nothing to limit with.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && dir.exists() => Ok(()),
        // The limit below the use of now is refused on version 1; it is tried again with the next change.
        Err(error) => Err(failed("write", &path)(error)),
        Ok(()) => Ok(()),
    }
}

/// Hands the controllers of a group on to its children.
fn enable(dir: &Path) -> Result<(), CgroupError> {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let path = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&path).unwrap_or_default();
    for controller in missing(&available, &enabled) {
        fs::write(&path, format!("+{controller}")).map_err(failed("enable a controller in", &path))?;
    }
    Ok(())
}

fn missing<'a>(available: &'a str, enabled: &str) -> Vec<&'a str> {
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    available
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name) && !enabled.contains(name))
        .collect()
}

fn remove_tree(dir: &Path) -> Result<(), CgroupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", dir)(error)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", dir)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hierarchies() {
        let text = "30 1 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                    31 1 0:27 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n\
                    32 1 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 1 0:29 / /other/pids rw - cgroup cgroup rw,pids\n";
        let trees = split(text, Path::new("/sys/fs/cgroup"));
        let names: Vec<&str> = trees.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory"]);
        assert_eq!(Layout::Split(trees).trees().len(), 2);
    }

    #[test]
    fn paths() {
        let layout = Layout::Unified("/x".into());
        let groups = Cgroups::new(layout.clone(), "/");
        assert_eq!(groups.pod(Qos::Guaranteed, "u"), "/kubepods/podu");
        assert_eq!(
            Cgroups::new(layout, "/node-a/").pod(Qos::BestEffort, "u"),
            "/node-a/kubepods/besteffort/podu"
        );
    }

    #[test]
    fn version_2_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        fs::write(root.join("cgroup.controllers"), "cpuset cpu io memory rdma pids").unwrap();
        fs::write(root.join("cgroup.subtree_control"), "").unwrap();
        let groups = Cgroups::new(Layout::detect(&root), "/");
        assert!(groups.unified());
        let group = groups.pod(Qos::Burstable, "u1");
        let limits = Limits {
            cpu_shares: Some(1024),
            cpu_quota_us: None,
            memory_bytes: Some(4096),
            pids: None,
        };
        groups.ensure(&group, &limits).unwrap();
        let at = root.join("kubepods/burstable/podu1");
        assert_eq!(
            fs::read_to_string(root.join("cgroup.subtree_control")).unwrap(),
            "+pids"
        );
        assert_eq!(fs::read_to_string(at.join("cpu.weight")).unwrap(), "100");
        assert_eq!(fs::read_to_string(at.join("cpu.max")).unwrap(), "max 100000");
        assert_eq!(fs::read_to_string(at.join("memory.max")).unwrap(), "4096");
        assert_eq!(groups.pods(), [(Qos::Burstable, "u1".to_owned())]);
        assert_eq!(missing("cpuset cpu rdma", "cpu"), ["cpuset"]);
    }

    #[test]
    fn the_kernels_own_tree() {
        // Needs a machine where this process may make groups, as the kubelet itself does.
        let mount = Path::new("/sys/fs/cgroup");
        let groups = Cgroups::new(
            Layout::detect(mount),
            &format!("skiff-test-{}", std::process::id()),
        );
        let group = groups.pod(Qos::Guaranteed, "u2");
        let limits = Limits {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(64 << 20),
            pids: Some(100),
        };
        groups.ensure(&group, &limits).unwrap();
        groups.ensure(&group, &limits).unwrap();
        let memory = if groups.unified() {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        assert_eq!(
            groups.read(&group, "memory", memory).unwrap().trim(),
            (64 << 20).to_string()
        );
        let root = groups.all_pods();
        groups.remove(&root).unwrap();
        assert!(groups.read(&group, "memory", memory).is_none());
        groups.remove(root.trim_end_matches("/kubepods")).unwrap();
    }
}
