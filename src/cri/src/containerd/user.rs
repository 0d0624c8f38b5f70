//! Who a container runs as.
//!
//! Numbers win over names, the pod over the image. Names, the primary group and supplementary groups
//! come from the image's `/etc/passwd` and `/etc/group`, read from its layers without mounting them.

use crate::types::{ContainerUser, SecurityContext};
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Largest `/etc/passwd` or `/etc/group` read from an image.
const DATABASE_MAX_BYTES: u64 = 1024 * 1024;

/// The user cannot be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// A name the image does not know.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    NoUser(String),
    /// A group name the image does not know.
    #[error("group {0:?} is not in the image's /etc/group")]
    NoGroup(String),
    /// A number out of range.
    #[error("{0} is not a user or group id")]
    Range(i64),
    /// runAsNonRoot and user 0.
    #[error("container has runAsNonRoot and image will run as root")]
    Root,
    /// runAsNonRoot and a name, which could mean anything.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root"
    )]
    NotNumeric(String),
}

/// The image's user databases; empty when the image has none.
#[derive(Clone, Debug, Default)]
pub struct Databases {
    /// `/etc/passwd`
    pub passwd: String,
    /// `/etc/group`
    pub group: String,
}

impl Databases {
    /// Reads both from layers, topmost first.
    pub fn read(layers: &[PathBuf]) -> Self {
        Self {
            passwd: read_in_layers(layers, "etc/passwd"),
            group: read_in_layers(layers, "etc/group"),
        }
    }

    fn user(&self, wanted: impl Fn(&str, u32) -> bool) -> Option<(&str, u32, u32)> {
        self.passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            wanted(name, uid).then_some((name, uid, gid))
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((
                fields.next()?,
                fields.nth(1)?.parse().ok()?,
                fields.next().unwrap_or(""),
            ))
        })
    }
}

/// Decides user, group and supplementary groups.
pub fn resolve(
    image_user: &str,
    security: &SecurityContext,
    databases: &Databases,
) -> Result<ContainerUser, UserError> {
    let id = |number: i64| u32::try_from(number).map_err(|_| UserError::Range(number));
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    let image_name = if image_name.is_empty() { "0" } else { image_name };
    let found = match security.run_as_user {
        Some(number) => {
            let uid = id(number)?;
            databases
                .user(|_, candidate| candidate == uid)
                .unwrap_or(("", uid, 0))
        }
        None => match image_name.parse::<u32>() {
            Ok(uid) => databases
                .user(|_, candidate| candidate == uid)
                .unwrap_or(("", uid, 0)),
            Err(_) if security.run_as_non_root => return Err(UserError::NotNumeric(image_name.to_owned())),
            Err(_) => databases
                .user(|name, _| name == image_name)
                .ok_or_else(|| UserError::NoUser(image_name.to_owned()))?,
        },
    };
    let (name, uid, primary) = found;
    if security.run_as_non_root && uid == 0 {
        return Err(UserError::Root);
    }
    let gid = match (security.run_as_group, security.run_as_user, image_group) {
        (Some(number), _, _) => id(number)?,
        (None, None, Some(group)) if !group.is_empty() => match group.parse() {
            Ok(gid) => gid,
            Err(_) => databases
                .groups()
                .find(|(candidate, _, _)| *candidate == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| UserError::NoGroup(group.to_owned()))?,
        },
        _ => primary,
    };
    let mut groups = vec![gid];
    for number in &security.supplemental_groups {
        groups.push(id(*number)?);
    }
    if !security.supplemental_groups_strict && !name.is_empty() {
        let member = |members: &str| members.split(',').any(|member| member.trim() == name);
        groups.extend(
            databases
                .groups()
                .filter(|(_, _, members)| member(members))
                .map(|(_, gid, _)| gid),
        );
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(ContainerUser { uid, gid, groups })
}

/// Finds a file in the topmost layer that has it or hides it. Symbolic links resolve inside one layer.
fn read_in_layers(layers: &[PathBuf], path: &str) -> String {
    for layer in layers {
        match open_in_root(layer, path) {
            Some(file) => {
                let Ok(metadata) = file.metadata() else { continue };
                // A whiteout: the layer removed the file of those below.
                if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                    return String::new();
                }
                if !metadata.is_file() {
                    continue;
                }
                let Some(file) = reopen(&file) else { continue };
                let mut bytes = Vec::new();
                if file.take(DATABASE_MAX_BYTES).read_to_end(&mut bytes).is_ok() {
                    return String::from_utf8_lossy(&bytes).into_owned();
                }
            }
            None => continue,
        }
    }
    String::new()
}

/// Opens a path that cannot leave `root`, without side effects on devices or FIFOs.
fn open_in_root(root: &Path, path: &str) -> Option<File> {
    let folder = File::open(root).ok()?;
    let path = CString::new(path).ok()?;
    // SAFETY: open_how is plain data, all zeroes is valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_IN_ROOT;
    // SAFETY: all pointers outlive the call, the size matches the structure, the result is checked.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            folder.as_raw_fd(),
            path.as_ptr(),
            &how as *const libc::open_how,
            size_of::<libc::open_how>(),
        )
    };
    // SAFETY: a non-negative result is a fresh descriptor that nobody else owns.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd as i32) })
}

fn reopen(file: &File) -> Option<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn databases() -> Databases {
        Databases {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbroken\n".into(),
            group: "root:x:0:\nwheel:x:10:root\nweb:x:102:\nextra:x:103:web,other\n".into(),
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> ContainerUser {
        ContainerUser {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn the_table_of_users() {
        let plain = SecurityContext::default();
        let with = |run_as_user: Option<i64>, run_as_group: Option<i64>| SecurityContext {
            run_as_user,
            run_as_group,
            ..SecurityContext::default()
        };
        let fs_group = SecurityContext {
            supplemental_groups: vec![2000],
            ..SecurityContext::default()
        };
        let strict = SecurityContext {
            supplemental_groups_strict: true,
            run_as_user: Some(101),
            ..SecurityContext::default()
        };
        for (image, security, want) in [
            ("", &plain, Ok(user(0, 0, &[0, 10]))),
            ("web", &plain, Ok(user(101, 102, &[102, 103]))),
            ("web:root", &plain, Ok(user(101, 0, &[0, 103]))),
            ("101:7", &plain, Ok(user(101, 7, &[7, 103]))),
            ("4242", &plain, Ok(user(4242, 0, &[0]))),
            ("web", &with(Some(5), None), Ok(user(5, 0, &[0]))),
            (
                "web:extra",
                &with(Some(101), None),
                Ok(user(101, 102, &[102, 103])),
            ),
            ("web", &with(Some(5), Some(6)), Ok(user(5, 6, &[6]))),
            ("web", &with(None, Some(6)), Ok(user(101, 6, &[6, 103]))),
            ("4242", &fs_group, Ok(user(4242, 0, &[0, 2000]))),
            ("", &strict, Ok(user(101, 102, &[102]))),
            ("nobody", &plain, Err(UserError::NoUser("nobody".into()))),
            ("web:nogroup", &plain, Err(UserError::NoGroup("nogroup".into()))),
            ("", &with(Some(-1), None), Err(UserError::Range(-1))),
        ] {
            assert_eq!(
                resolve(image, security, &databases()),
                want,
                "{image} {security:?}"
            );
        }
    }

    #[test]
    fn non_root_is_verified() {
        let security = SecurityContext {
            run_as_non_root: true,
            ..SecurityContext::default()
        };
        assert_eq!(resolve("", &security, &databases()), Err(UserError::Root));
        assert_eq!(
            resolve("web", &security, &databases()),
            Err(UserError::NotNumeric("web".into()))
        );
        assert_eq!(resolve("101", &security, &databases()).unwrap().uid, 101);
    }

    #[test]
    fn files_come_from_the_topmost_layer_and_never_from_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let (top, bottom) = (folder.path().join("top"), folder.path().join("bottom"));
        for layer in [&top, &bottom] {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(bottom.join("etc/passwd"), "below").unwrap();
        std::fs::write(bottom.join("etc/group"), "groups").unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/hostname", top.join("etc/group")).unwrap();
        let layers = [top.clone(), bottom];
        assert_eq!(read_in_layers(&layers, "etc/passwd"), "below");
        assert_eq!(
            read_in_layers(&layers, "etc/group"),
            "groups",
            "a link out of the layer finds nothing"
        );
        std::fs::write(top.join("etc/passwd"), "above").unwrap();
        assert_eq!(read_in_layers(&layers, "etc/passwd"), "above");
    }
}
