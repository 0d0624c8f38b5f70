//! Volumes that are plain folders: `emptyDir` and `hostPath`.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{Context, Ready, Type, VolumeError, io, mounts};
use crate::resources;

/// An empty folder, on disk or in memory, that ends with the pod.
pub struct EmptyDir;

#[async_trait]
impl Type for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io~empty-dir"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    async fn set_up(&self, context: &Context<'_>, volume: &Volume, dir: &Path) -> Result<Ready, VolumeError> {
        let source = volume.empty_dir.clone().unwrap_or_default();
        let fresh = make(dir, 0o777)?;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => {
                let limit = source
                    .size_limit
                    .as_ref()
                    .and_then(resources::whole)
                    .filter(|size| *size > 0);
                let pod = Some(resources::pod_limit(context.pod, "memory"));
                let pod = pod
                    .filter(|(bytes, all)| *all && *bytes > 0)
                    .map(|(bytes, _)| bytes);
                let size = [limit, pod]
                    .into_iter()
                    .flatten()
                    .min()
                    .and_then(|size| u64::try_from(size).ok());
                mounts::tmpfs(dir, size, 0o777)?;
            }
            _ => return Err(VolumeError::Unsupported(volume.name.clone())),
        }
        if let Some(group) = context.fs_group() {
            give_to_group(dir, group, fresh)?;
        }
        Ok(Ready {
            path: dir.to_owned(),
            read_only: false,
            renew_at: None,
        })
    }
}

/// Makes a folder with exactly this mode. True when it was not there.
pub fn make(dir: &Path, mode: u32) -> Result<bool, VolumeError> {
    if let Some(parent) = dir.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(parent)
            .map_err(io("create", parent))?;
    }
    match fs::create_dir(dir) {
        Ok(()) => {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(io("chmod", dir))?;
            Ok(true)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io("create", dir)(error)),
    }
}

/// Makes a folder belong to a group, with everything created in it later belonging to it too.
pub fn give_to_group(dir: &Path, group: u32, _fresh: bool) -> Result<(), VolumeError> {
    let meta = fs::metadata(dir).map_err(io("stat", dir))?;
    let mode = meta.permissions().mode() & 0o7777;
    let wanted = mode | 0o2770;
    if meta.gid() != group {
        std::os::unix::fs::chown(dir, None, Some(group)).map_err(io("chown", dir))?;
    }
    if mode != wanted || meta.gid() != group {
        fs::set_permissions(dir, fs::Permissions::from_mode(wanted)).map_err(io("chmod", dir))?;
    }
    Ok(())
}

/// A path of the node itself.
pub struct HostPath;

#[async_trait]
impl Type for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io~host-path"
    }

    fn is(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    async fn set_up(&self, _: &Context<'_>, volume: &Volume, _: &Path) -> Result<Ready, VolumeError> {
        let source = volume.host_path.clone().unwrap_or_default();
        let path = Path::new(&source.path);
        if !path.is_absolute()
            || path
                .components()
                .any(|part| part == std::path::Component::ParentDir)
        {
            return Err(VolumeError::BadPath(
                source.path.clone(),
                "must be absolute, without '..'",
            ));
        }
        ensure_host_path(path, source.type_.as_deref().unwrap_or_default())?;
        Ok(Ready {
            path: path.to_owned(),
            read_only: false,
            renew_at: None,
        })
    }
}

/// Checks a path against its type; creates what the type says to create.
fn ensure_host_path(path: &Path, kind: &str) -> Result<(), VolumeError> {
    let found = fs::metadata(path).ok();
    let wrong = |what| Err(VolumeError::HostPathType(path.display().to_string(), what));
    let check = |good: fn(&fs::FileType) -> bool, what| match &found {
        Some(meta) if good(&meta.file_type()) => Ok(()),
        _ => wrong(what),
    };
    match kind {
        "" => match found {
            Some(_) => Ok(()),
            // Docker's old habit, which Kubernetes keeps: a missing path becomes a folder.
            None => fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .map_err(io("create", path)),
        },
        "DirectoryOrCreate" if found.is_none() => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(io("create", path)),
        "FileOrCreate" if found.is_none() => {
            let options = fs::OpenOptions::new().create_new(true).write(true).to_owned();
            options.open(path).map_err(io("create", path))?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(io("chmod", path))
        }
        "Directory" | "DirectoryOrCreate" => check(fs::FileType::is_dir, "a directory"),
        "File" | "FileOrCreate" => check(fs::FileType::is_file, "a file"),
        "Socket" => check(fs::FileType::is_socket, "a socket"),
        "CharDevice" => check(fs::FileType::is_char_device, "a character device"),
        "BlockDevice" => check(fs::FileType::is_block_device, "a block device"),
        _ => wrong("a known hostPath type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        fs::create_dir(at("dir")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let table = [
            ("file", "", true),
            ("file", "File", true),
            ("file", "Directory", false),
            ("dir", "Directory", true),
            ("dir", "File", false),
            ("dir", "FileOrCreate", false),
            ("none", "File", false),
            ("none", "Directory", false),
            ("socket", "Socket", true),
            ("socket", "CharDevice", false),
            ("new/deep", "DirectoryOrCreate", true),
            ("newfile", "FileOrCreate", true),
            ("file", "Nonsense", false),
        ];
        for (name, kind, good) in table {
            assert_eq!(
                ensure_host_path(&at(name), kind).is_ok(),
                good,
                "{name} as {kind}"
            );
        }
        assert!(at("new/deep").is_dir() && at("newfile").is_file());
    }

    #[test]
    fn groups_own_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        make(&path, 0o777).unwrap();
        give_to_group(&path, 4321, true).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.gid(), meta.permissions().mode() & 0o7777), (4321, 0o2777));
    }
}
