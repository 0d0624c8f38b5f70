//! What a machine must have before skiff starts, each with what to do about it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Programs of the distribution that run containers.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "runc"];
/// Control groups without which limits do not hold.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Folders searched besides `PATH`: service managers set a short one.
const MORE_FOLDERS: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/sbin"];

/// Fails unless this process may do everything.
pub fn root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("must run as root: try again with sudo")
}

/// Fails unless `dir` exists (it is made) and can be written.
pub fn writable(dir: &Path) -> anyhow::Result<()> {
    let advice = || {
        format!(
            "cannot write to the data folder {}: check its owner, mount options and free space, or choose another with --data-dir",
            dir.display()
        )
    };
    std::fs::create_dir_all(dir).with_context(advice)?;
    let probe = dir.join(".write-test");
    std::fs::write(&probe, b"skiff").with_context(advice)?;
    std::fs::remove_file(&probe).with_context(advice)
}

/// Fails unless containerd and runc are installed.
pub fn programs() -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in PROGRAMS {
        if find(program, &path).is_none() {
            bail!("{program} not found in PATH: install it with `apt-get install containerd runc`");
        }
    }
    Ok(())
}

fn find(program: &str, path: &OsString) -> Option<PathBuf> {
    let listed = std::env::split_paths(path);
    listed
        .chain(MORE_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Fails unless the control groups that limits need are there, in either version.
pub fn control_groups(mount: &Path) -> anyhow::Result<()> {
    let unified = std::fs::read_to_string(mount.join("cgroup.controllers")).ok();
    for controller in CONTROLLERS {
        let there = match &unified {
            Some(list) => list.split_whitespace().any(|name| name == controller),
            None => ["tasks", "cgroup.procs"]
                .iter()
                .any(|file| mount.join(controller).join(file).exists()),
        };
        if !there {
            let fix = match controller {
                "memory" => {
                    "add cgroup_memory=1 cgroup_enable=memory to the kernel command line \
                    (on a Raspberry Pi the one line in /boot/firmware/cmdline.txt) and reboot"
                }
                _ => "mount the cgroup file systems (systemd does) or use a kernel that has it",
            };
            bail!(
                "the {controller} cgroup controller is missing below {}: {fix}",
                mount.display()
            );
        }
    }
    Ok(())
}

/// Everything a node needs.
pub fn node(data: &Path) -> anyhow::Result<()> {
    root()?;
    writable(data)?;
    programs()?;
    control_groups(Path::new("/sys/fs/cgroup"))
}

/// Listens on the API's address, or says who is in the way.
pub async fn listen(address: std::net::SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "port {} is in use: stop what listens there (`ss -ltnp 'sport = :{}'` names it) or choose another with --https-listen-port",
            address.port(),
            address.port()
        ),
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow::anyhow!("this machine has no address {}: correct --bind-address", address.ip())
        }
        _ => anyhow::anyhow!("cannot listen on {address}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_controllers_are_named_with_the_fix() {
        let dir = tempfile::tempdir().expect("folder");
        let missing = |mount: &Path| control_groups(mount).expect_err("missing").to_string();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu pids\n").expect("file");
        assert!(
            missing(dir.path()).contains("cgroup_enable=memory"),
            "{}",
            missing(dir.path())
        );
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids\n").expect("file");
        control_groups(dir.path()).expect("complete");
        std::fs::remove_file(dir.path().join("cgroup.controllers")).expect("removed");
        assert!(missing(dir.path()).starts_with("the cpu cgroup controller is missing"));
        for controller in CONTROLLERS {
            std::fs::create_dir(dir.path().join(controller)).expect("folder");
            std::fs::write(dir.path().join(controller).join("tasks"), "").expect("file");
        }
        control_groups(dir.path()).expect("complete");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = listen("127.0.0.1:0".parse().expect("address"))
            .await
            .expect("free");
        let taken = first.local_addr().expect("address");
        let error = listen(taken).await.expect_err("taken").to_string();
        assert!(
            error.starts_with(&format!("port {} is in use", taken.port())),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().expect("folder");
        writable(&dir.path().join("new")).expect("made");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("file");
        assert!(
            writable(&file)
                .expect_err("a file")
                .to_string()
                .contains("--data-dir")
        );
    }
}
