//! A whole machine in namespaces, and comparing it before and after.
//!
//! A node shares the process numbers, the host name and the roots of the
//! control groups with the machine the tests run on. Where these matter (an
//! installer starts daemons, an uninstaller kills processes and removes
//! groups) a [`Machine`] has namespaces of its own for them too.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::access::{PATIENCE, retry};
use crate::cgroup;
use crate::node::Node;
use crate::process::{self, Output, Process};

/// For an installation with everything it waits for.
const LIMIT: Duration = Duration::from_secs(180);

/// Makes the first process's surroundings; then it does nothing for ever.
const SETUP: &str = r#"
mount --make-rprivate /
hostname lone
umount /usr/local/bin/skiff
rm /usr/local/bin/skiff
mount -t tmpfs -o mode=1777 tmpfs /tmp
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup /sys/fs/cgroup
  mkdir /sys/fs/cgroup/init
  echo $$ >/sys/fs/cgroup/init/cgroup.procs
else
  # Mount point and controllers of each hierarchy: fields 5 and last.
  table=$(sed -n 's/^\S* \S* \S* \S* \(\/sys\/fs\/cgroup\/\S*\) .* - cgroup \S* \(\S*\)$/\1 \2/p' /proc/self/mountinfo)
  mount -t tmpfs tmpfs /sys/fs/cgroup
  echo "$table" | while read -r at options; do
    mkdir "$at"
    mount -t cgroup -o "$(echo "$options" | sed 's/^rw,//; s/xattr,//')" cgroup "$at"
  done
fi
: >/run/machine-is-up
exec sleep infinity
"#;

/// What is compared, each a command whose output lines are a set.
const VIEWS: [(&str, &str); 6] = [
    (
        "links",
        "ip -o link | sed 's/^[0-9]*: //'; ip -o addr | sed 's/^[0-9]*: //'; ip route show table all; ip neigh show nud permanent",
    ),
    ("rules", "nft list ruleset"),
    (
        "mounts",
        "sed 's/^[0-9]* [0-9]* //; s/ shared:[0-9]*//' /proc/self/mountinfo",
    ),
    (
        "processes",
        "ps -eo stat=,comm= | grep -v '^Z' | sed 's/^[^ ]* *//' | grep -vxE 'ps|sh|grep|sed|sort'",
    ),
    (
        "files",
        "find /usr/local /etc /var/lib /var/log /run /opt /tmp /root -xdev \\( -path /run/overlay -o -path /var/lib/dpkg \\) -prune \
         -o -type d -printf '%p %y %m\\n' -o -printf '%p %y %m %s %l\\n'",
    ),
    ("control groups", "find /sys/fs/cgroup -type d"),
];

/// What a machine looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<BTreeSet<String>>);

impl Snapshot {
    /// What came (`+`) and went (`-`) since an earlier one.
    pub fn changes_since(&self, before: &Snapshot) -> Vec<String> {
        let mut changes = Vec::new();
        for (((name, _), old), new) in VIEWS.iter().zip(&before.0).zip(&self.0) {
            changes.extend(new.difference(old).map(|line| format!("{name}: + {line}")));
            changes.extend(old.difference(new).map(|line| format!("{name}: - {line}")));
        }
        changes
    }
}

/// A machine on a node's network, without skiff on it.
pub struct Machine {
    node: Arc<Node>,
    first: i32,
}

impl Machine {
    /// Boots it.
    pub async fn boot(node: Arc<Node>) -> anyhow::Result<Self> {
        let group = format!("{}/machine", node.cgroup_root().trim_start_matches('/'));
        let mut join = String::new();
        for root in cgroup::hierarchies() {
            let folder = root.join(&group);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            // A cpuset without processors takes no processes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                inherit(&root, &group, file)?;
            }
            join.push_str(&format!("echo $$ >{}/cgroup.procs\n", folder.display()));
        }
        let script = format!(
            "{join}exec unshare --pid --fork --mount --mount-proc --uts --ipc --cgroup sh -ec '{}'",
            SETUP.replace('\'', "'\\''")
        );
        let command = node.command("sh", &["-ec", &script])?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(node.folder.join("skiff.log"))?;
        let outer = Process::start(command, log)?;
        let first = retry(PATIENCE, async || {
            ensure!(outer.is_running(), "the machine did not boot: {}", node.log());
            let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", outer.pid))?;
            let first: i32 = children.trim().parse().context("no first process yet")?;
            let up = format!("/proc/{first}/root/run/machine-is-up");
            ensure!(std::path::Path::new(&up).exists(), "still booting");
            Ok(first)
        })
        .await?;
        Ok(Self { node, first })
    }

    /// Runs a script on it.
    pub async fn sh(&self, script: &str) -> anyhow::Result<Output> {
        let target = self.first.to_string();
        let args = [
            "--target", &target, "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--wd=/", "sh",
            "-ec", script,
        ];
        process::run(self.node.command("nsenter", &args)?, None, LIMIT).await
    }

    /// Looks at everything that is compared.
    pub async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let mut views = Vec::new();
        for (name, command) in VIEWS {
            let text = self.sh(command).await?.ok().with_context(|| name.to_owned())?;
            views.push(text.lines().map(str::to_owned).collect());
        }
        Ok(Snapshot(views))
    }
}

/// Gives a group and those above it the values of the root, where they are empty.
fn inherit(root: &std::path::Path, group: &str, file: &str) -> anyhow::Result<()> {
    let mut folder = root.to_path_buf();
    let Ok(mut value) = std::fs::read_to_string(folder.join(file)) else {
        return Ok(());
    };
    for part in group.split('/') {
        folder.push(part);
        let path = folder.join(file);
        let own = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if own.trim().is_empty() {
            std::fs::write(&path, value.trim()).with_context(|| path.display().to_string())?;
        } else {
            value = own;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_named_by_view() {
        let snapshot = |links: &[&str], rules: &[&str]| {
            let set = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
            Snapshot(vec![set(links), set(rules)])
        };
        let before = snapshot(&["lo", "eth0"], &[]);
        let after = snapshot(&["lo", "skiff0"], &["table ip skiff"]);
        assert_eq!(
            after.changes_since(&before),
            ["links: + skiff0", "links: - eth0", "rules: + table ip skiff"]
        );
        assert!(before.changes_since(&before).is_empty());
    }
}
