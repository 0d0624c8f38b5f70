//! Mount system calls and the kernel's list of mounts.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{VolumeError, io};

/// Mount points below a folder (and the folder itself), the last mounted first. Asked of this thread, which is where
/// mounts are made: several nodes may share a process, each in a mount namespace of its own.
pub fn below(dir: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let path = Path::new("/proc/thread-self/mountinfo");
    let text = std::fs::read_to_string(path).map_err(io("read", path))?;
    let mut list = points(&text, dir);
    list.reverse();
    Ok(list)
}

/// The mount points in `mountinfo` that are `dir` or below it, in the order they were made.
fn points(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// The kernel writes blanks and backslashes as octal numbers.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(
        out,
    ))
}

/// Whether something is mounted exactly here.
pub fn is_mounted(dir: &Path) -> Result<bool, VolumeError> {
    Ok(below(dir)?.iter().any(|point| point == dir))
}

/// Unmounts everything at or below a folder, the last mounted first.
pub fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    for point in below(dir)? {
        unmount(&point)?;
    }
    Ok(())
}

/// Unmounts one place; a busy one is taken out of sight and ends with its last user.
pub fn unmount(point: &Path) -> Result<(), VolumeError> {
    match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
        Err(nix::errno::Errno::EBUSY) => umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
            .map_err(|errno| io("unmount", point)(errno.into())),
        // Not mounted (any more).
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(errno) => Err(io("unmount", point)(errno.into())),
    }
}

/// Mounts a memory filesystem unless one is there already.
pub fn tmpfs(dir: &Path, size: Option<u64>, mode: u32) -> Result<(), VolumeError> {
    if is_mounted(dir)? {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|errno| io("mount tmpfs on", dir)(errno.into()))
}

/// Binds one place to another.
pub fn bind(from: &Path, to: &Path) -> Result<(), VolumeError> {
    mount(
        Some(from),
        to,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|errno| io("bind mount on", to)(errno.into()))
}

/// Makes a folder a mount point of its own whose mounts are seen by containers that ask for it.
pub fn make_shared(dir: &Path) -> Result<(), VolumeError> {
    if !is_mounted(dir)? {
        bind(dir, dir)?;
    }
    mount(
        None::<&str>,
        dir,
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|errno| io("make shared", dir)(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo() {
        let text = "25 1 0:22 / /a rw - tmpfs t rw\n26 25 0:23 / /a/b\\040c rw - tmpfs t rw\n27 1 0:1 / /ab rw - x x rw\n";
        assert_eq!(
            points(text, Path::new("/a")),
            [PathBuf::from("/a"), PathBuf::from("/a/b c")]
        );
    }

    #[test]
    fn tmpfs_is_mounted_once_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("m");
        std::fs::create_dir(&inner).unwrap();
        tmpfs(&inner, Some(1 << 20), 0o777).unwrap();
        std::fs::write(inner.join("f"), "x").unwrap();
        tmpfs(&inner, Some(1 << 20), 0o777).unwrap();
        assert!(inner.join("f").exists());
        assert!(
            std::fs::write(inner.join("big"), vec![0u8; 2 << 20]).is_err(),
            "the size limit holds"
        );
        unmount_below(dir.path()).unwrap();
        assert!(!is_mounted(&inner).unwrap());
        assert!(!inner.join("f").exists());
    }
}
