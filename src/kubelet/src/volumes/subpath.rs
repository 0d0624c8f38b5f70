//! One path inside a volume, mounted alone, without trusting what lies in the volume.
//!
//! Containers can write symbolic links into their volumes. The path is therefore walked with `openat2` and
//! `RESOLVE_BENEATH`: a link that leads out of the volume is an error, and what was opened is what gets mounted
//! (through `/proc/self/fd`), so that a change after the check has no effect.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::atomic::inside;
use super::{VolumeError, io, mounts};

/// Opens `path` inside `volume`, creating missing folders on the way.
fn open_inside(volume: &Path, path: &Path) -> Result<OwnedFd, VolumeError> {
    let full = volume.join(path);
    let root = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(volume)
        .map_err(io("open", volume))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut walked = PathBuf::new();
    // The volume itself, for a path that names no more.
    let mut here: OwnedFd = root.try_clone().map_err(io("open", volume))?.into();
    for part in path.components() {
        let parent = here;
        walked.push(part);
        // Always from the volume's root: a link may point elsewhere inside the volume.
        here = match openat2(&root, &walked, how) {
            Ok(fd) => fd,
            Err(nix::errno::Errno::ENOENT) => {
                let name = Path::new(part.as_os_str());
                match mkdirat(&parent, name, Mode::from_bits_truncate(0o750)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(errno) => return Err(io("create", &full)(errno.into())),
                }
                openat2(&root, &walked, how).map_err(|errno| io("open", &full)(errno.into()))?
            }
            Err(errno) => return Err(io("open", &full)(errno.into())),
        };
    }
    Ok(here)
}

/// Mounts `path` of `volume` at `target`, unless something is mounted there already.
pub fn mount(volume: &Path, path: &str, target: &Path) -> Result<(), VolumeError> {
    let path = inside(path)?;
    if mounts::is_mounted(target)? {
        return Ok(());
    }
    let fd = open_inside(volume, &path)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let meta = std::fs::metadata(&source).map_err(io("stat", &source))?;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(io("create", parent))?;
    }
    if meta.is_dir() {
        std::fs::create_dir_all(target).map_err(io("create", target))?;
    } else {
        File::options()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(target)
            .map_err(io("create", target))?;
    }
    mounts::bind(&source, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn stays_inside_the_volume() {
        let base = tempfile::tempdir().unwrap();
        let volume = base.path().join("volume");
        std::fs::create_dir_all(volume.join("real")).unwrap();
        std::fs::create_dir(base.path().join("outside")).unwrap();
        symlink("../outside", volume.join("escape")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("real", volume.join("inside")).unwrap();
        let table = [
            ("real", true),
            ("inside", true),
            ("new/deep", true),
            ("inside/new", true),
            ("escape", false),
            ("escape/new", false),
            ("absolute/passwd", false),
        ];
        for (path, good) in table {
            assert_eq!(open_inside(&volume, Path::new(path)).is_ok(), good, "{path}");
        }
        assert!(volume.join("real/new").is_dir(), "created through the inner link");
        assert!(!base.path().join("outside/new").exists());
        for path in ["../outside", "/etc", "a/../../outside"] {
            assert!(mount(&volume, path, &base.path().join("t")).is_err(), "{path:?}");
        }
    }

    #[test]
    fn mounts_files_and_folders() {
        let base = tempfile::tempdir().unwrap();
        let volume = base.path().join("volume");
        std::fs::create_dir_all(volume.join("dir")).unwrap();
        std::fs::write(volume.join("file"), "text").unwrap();
        std::fs::write(volume.join("dir/inner"), "deep").unwrap();
        mount(&volume, "file", &base.path().join("sub/0")).unwrap();
        mount(&volume, "dir", &base.path().join("sub/1")).unwrap();
        mount(&volume, "dir", &base.path().join("sub/1")).unwrap();
        assert_eq!(
            std::fs::read_to_string(base.path().join("sub/0")).unwrap(),
            "text"
        );
        assert_eq!(
            std::fs::read_to_string(base.path().join("sub/1/inner")).unwrap(),
            "deep"
        );
        mounts::unmount_below(base.path()).unwrap();
        assert!(!base.path().join("sub/1/inner").exists());
        assert!(
            volume.join("dir/inner").exists(),
            "the volume itself is untouched"
        );
    }
}
