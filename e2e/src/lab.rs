//! A LAN with nodes, and the guarantee that nothing of it stays.

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::cgroup::{self, Group};
use crate::node::Node;
use crate::process::{self, Output};
use crate::space::{Sockets, Space};
use crate::{binary, node};

/// What everything of every lab begins with; leftovers are known by it.
pub const PREFIX: &str = "skiff-e2e-";
/// Address of the LAN itself: services for nodes, such as a registry, go here.
pub const LAN_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// Nodes are numbered from here.
const FIRST_NODE: u8 = 11;
/// For commands that set up links and mounts.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// How often the lock is tried while another lab runs.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// A LAN and its nodes. Dropping it removes all.
pub struct Lab {
    /// Unique name, also of the control groups.
    pub name: String,
    /// Folder with everything the nodes write.
    pub folder: PathBuf,
    /// Whether each node added from now on gets its own copy of the program.
    pub separate_binaries: bool,
    nodes: Vec<Arc<Node>>,
    lan: Space,
    skiff: PathBuf,
    // Last: the lock is given up after everything is gone.
    _cleaner: Cleaner,
}

/// Removes what carries a lab's name, then lets the next lab run.
struct Cleaner {
    name: String,
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        for error in sweep_one(&self.name, &self.folder) {
            eprintln!("clean-up of {}: {error:#}", self.name);
        }
    }
}

fn base() -> PathBuf {
    std::env::var_os("SKIFF_E2E_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

async fn lock(base: &Path) -> anyhow::Result<Flock<File>> {
    let path = base.join("skiff-e2e.lock");
    let open = || {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))
    };
    let mut file = open()?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => {
                file = back;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            Err((_, error)) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

fn sweep_one(name: &str, folder: &Path) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    errors.extend(cgroup::kill_all(name).err());
    errors.extend(cgroup::remove(name).err());
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            errors.push(anyhow::Error::new(error).context(format!("cannot remove {}", folder.display())));
        }
        _ => {}
    }
    errors
}

/// Removes what killed runs have left. The lock is held, so nobody uses it.
fn sweep(base: &Path) {
    let mut names = cgroup::with_prefix(PREFIX);
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) && entry.path().is_dir() {
            names.insert(name);
        }
    }
    for name in names {
        for error in sweep_one(&name, &base.join(&name)) {
            eprintln!("leftover {name}: {error:#}");
        }
    }
}

impl Lab {
    /// Waits for its turn, sweeps leftovers, makes the LAN.
    pub async fn new() -> anyhow::Result<Self> {
        let base = base();
        let lock = lock(&base).await?;
        sweep(&base);
        let name = format!("{PREFIX}{:08x}", rand::random::<u32>());
        let folder = base.join(&name);
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let cleaner = Cleaner {
            name: name.clone(),
            folder: folder.clone(),
            _lock: lock,
        };
        let skiff = tokio::task::spawn_blocking(binary::skiff).await??;
        let lan = Space::create(Group::create(&format!("/{name}/lan"))?)?;
        let lab = Self {
            name,
            folder,
            separate_binaries: false,
            nodes: Vec::new(),
            lan,
            skiff,
            _cleaner: cleaner,
        };
        let script = format!(
            "mount --make-rprivate /
             ip link set lo up
             ip link add lan0 type bridge
             ip addr add {LAN_ADDRESS}/24 dev lan0
             ip link set lan0 up"
        );
        lab.on_lan("sh", &["-ec", &script]).await?.ok()?;
        Ok(lab)
    }

    /// A command that runs in the LAN's namespace, beside the nodes.
    pub fn lan_command(&self, program: &str, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program);
        command.args(args);
        self.lan.enter(&mut command)?;
        Ok(command)
    }

    /// Makes sockets on the LAN, beside the nodes.
    pub fn sockets(&self) -> Sockets {
        self.lan.sockets()
    }

    /// Runs a program in the LAN's namespace.
    pub async fn on_lan(&self, program: &str, args: &[&str]) -> anyhow::Result<Output> {
        process::run(self.lan_command(program, args)?, None, SETUP_LIMIT).await
    }

    /// Adds a node without skiff on it.
    pub async fn add_node(&mut self, name: &str) -> anyhow::Result<Arc<Node>> {
        let number = FIRST_NODE + u8::try_from(self.nodes.len())?;
        let address = Ipv4Addr::new(172, 31, 0, number);
        let space = Space::create(Group::create(&format!("/{}/{name}", self.name))?)?;
        let port = node::lan_port(name);
        let links = format!(
            "ip link add {port} type veth peer name eth0 netns {}
             ip link set {port} master lan0 up",
            space.pid()
        );
        self.on_lan("sh", &["-ec", &links]).await?.ok()?;
        let mut skiff = self.skiff.clone();
        if self.separate_binaries {
            skiff = self.folder.join(format!("skiff-{name}"));
            std::fs::copy(&self.skiff, &skiff).with_context(|| skiff.display().to_string())?;
        }
        let node = Arc::new(Node::create(name, address, &self.folder, space, &skiff).await?);
        self.nodes.push(node.clone());
        Ok(node)
    }

    /// All nodes, in the order they were added.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// Cuts a node off from the others: its cable is pulled.
    pub async fn unplug(&self, node: &Node) -> anyhow::Result<()> {
        self.on_lan("ip", &["link", "set", &node::lan_port(&node.name), "down"])
            .await?
            .ok()
            .map(drop)
    }

    /// Puts the cable back.
    pub async fn plug(&self, node: &Node) -> anyhow::Result<()> {
        self.on_lan("ip", &["link", "set", &node::lan_port(&node.name), "up"])
            .await?
            .ok()
            .map(drop)
    }
}
