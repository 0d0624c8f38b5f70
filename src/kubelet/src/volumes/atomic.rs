//! Files that change all at once.
//!
//! ```text
//! volume/
//!   ..2026_11_22_10_00_00.123456789/   the files, written and then never touched
//!   ..data -> ..2026_11_22_10_00_00.123456789      replaced by rename: the moment of change
//!   key    -> ..data/key
//! ```
//!
//! A reader that opens `..data` once sees one version. A crash leaves the old version in place; the next write
//! clears what is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

use super::{VolumeError, io};

/// The link that names the version in use.
const DATA: &str = "..data";
/// The link while it is made.
const DATA_TMP: &str = "..data_tmp";

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, root when absent.
    pub uid: Option<u32>,
}

/// All files of a volume by relative path.
pub type Payload = BTreeMap<PathBuf, File>;

/// A path a user gave for a file of a volume: inside it, and not beginning with `..`, which names versions.
pub fn checked(path: &str) -> Result<PathBuf, VolumeError> {
    let bad = |why| VolumeError::BadPath(path.to_owned(), why);
    if path.starts_with("..") {
        return Err(bad("must not start with '..'"));
    }
    let inside = inside(path)?;
    if inside.as_os_str().is_empty() {
        Err(bad("empty"))
    } else {
        Ok(inside)
    }
}

/// A relative path without `..`; empty for the volume itself.
pub fn inside(path: &str) -> Result<PathBuf, VolumeError> {
    let mut out = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => out.push(part),
            Component::CurDir => {}
            _ => {
                return Err(VolumeError::BadPath(
                    path.to_owned(),
                    "must be relative and inside the volume",
                ));
            }
        }
    }
    Ok(out)
}

/// Makes the volume hold exactly `payload`. True when something changed.
pub fn write(
    dir: &Path,
    payload: &Payload,
    group: Option<u32>,
    now: SystemTime,
) -> Result<bool, VolumeError> {
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && matches(&dir.join(current), payload, group)
    {
        links(dir, payload)?;
        return Ok(false);
    }
    let version = dir.join(version_name(dir, now));
    fs::DirBuilder::new()
        .mode(0o755)
        .create(&version)
        .map_err(io("create", &version))?;
    own(&version, None, group, 0o755)?;
    for (path, file) in payload {
        let target = version.join(path);
        let mut parent = version.clone();
        for part in path.parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            match fs::DirBuilder::new().mode(0o755).create(&parent) {
                Ok(()) => own(&parent, None, group, 0o755)?,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io("create", &parent)(error)),
            }
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut handle = options.open(&target).map_err(io("create", &target))?;
        std::io::Write::write_all(&mut handle, &file.data).map_err(io("write", &target))?;
        own(&target, file.uid, group, file.mode)?;
    }
    let tmp = dir.join(DATA_TMP);
    match fs::remove_file(&tmp) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", &tmp)(error)),
        _ => {}
    }
    symlink(version.file_name().unwrap_or_default(), &tmp).map_err(io("link", &tmp))?;
    let data = dir.join(DATA);
    fs::rename(&tmp, &data).map_err(io("replace", &data))?;
    links(dir, payload)?;
    sweep(
        dir,
        version
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default(),
    )?;
    Ok(true)
}

/// A name no earlier version has.
fn version_name(dir: &Path, now: SystemTime) -> String {
    let stamp = Timestamp::try_from(now).unwrap_or_default();
    let base = stamp.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let mut name = base.clone();
    let mut n = 0u32;
    while dir.join(&name).symlink_metadata().is_ok() {
        n += 1;
        name = format!("{base}_{n}");
    }
    name
}

fn own(path: &Path, uid: Option<u32>, group: Option<u32>, mode: u32) -> Result<(), VolumeError> {
    if uid.is_some() || group.is_some() {
        std::os::unix::fs::chown(path, uid, group).map_err(io("chown", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io("chmod", path))
}

/// Whether a version holds exactly these files.
fn matches(version: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut seen = BTreeSet::new();
    if collect(version, Path::new(""), &mut seen).is_err() || seen.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let full = version.join(path);
        let same = |meta: fs::Metadata| {
            meta.permissions().mode() & 0o7777 == file.mode
                && group.is_none_or(|group| meta.gid() == group)
                && file.uid.is_none_or(|uid| meta.uid() == uid)
                && meta.len() == file.data.len() as u64
        };
        seen.contains(path)
            && full.symlink_metadata().is_ok_and(same)
            && fs::read(&full).is_ok_and(|data| data == file.data)
    })
}

fn collect(dir: &Path, prefix: &Path, into: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir.join(prefix))? {
        let entry = entry?;
        let path = prefix.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(dir, &path, into)?;
        } else {
            into.insert(path);
        }
    }
    Ok(())
}

/// One link for each first component; links of keys that are gone are removed.
fn links(dir: &Path, payload: &Payload) -> Result<(), VolumeError> {
    let wanted: BTreeSet<PathBuf> = payload
        .keys()
        .filter_map(|path| path.components().next())
        .map(|part| PathBuf::from(part.as_os_str()))
        .collect();
    for name in &wanted {
        let link = dir.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).is_ok_and(|have| have == target) {
            continue;
        }
        let _ = fs::remove_file(&link);
        symlink(&target, &link).map_err(io("link", &link))?;
    }
    for entry in fs::read_dir(dir).map_err(io("read", dir))?.flatten() {
        let name = PathBuf::from(entry.file_name());
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            let path = entry.path();
            fs::remove_file(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

/// Removes versions that are not in use.
fn sweep(dir: &Path, keep: &str) -> Result<(), VolumeError> {
    for entry in fs::read_dir(dir).map_err(io("read", dir))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != keep && name != DATA {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        File {
            data: text.into(),
            mode: 0o640,
            uid: None,
        }
    }

    #[test]
    fn paths() {
        for (path, good) in [
            ("a", true),
            ("a/b", true),
            ("./a", true),
            ("", false),
            ("/a", false),
            ("../a", false),
            ("a/../b", false),
            ("..a", false),
            (".", false),
        ] {
            assert_eq!(checked(path).is_ok(), good, "{path}");
        }
    }

    #[test]
    fn versions_replace_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let now = SystemTime::UNIX_EPOCH;
        let mut payload = Payload::from([
            ("a".into(), file("1")),
            ("sub/b".into(), file("2")),
            ("gone".into(), file("3")),
        ]);
        assert!(write(dir, &payload, None, now).unwrap());
        let first = fs::read_link(dir.join(DATA)).unwrap();
        assert!(
            !write(dir, &payload, None, now).unwrap(),
            "the same files are not written twice"
        );
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), first);
        payload.remove(Path::new("gone"));
        payload.insert("a".into(), file("new"));
        assert!(write(dir, &payload, None, now).unwrap());
        assert_ne!(fs::read_link(dir.join(DATA)).unwrap(), first);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(
            fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with("..19"))
            .collect();
        names.sort();
        assert_eq!(names, ["..data", "a", "sub"]);
        payload.get_mut(Path::new("a")).unwrap().mode = 0o600;
        assert!(write(dir, &payload, None, now).unwrap(), "a changed mode counts");
    }
}
