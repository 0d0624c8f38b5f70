//! Files with secrets: readable by their owner alone, and never half-written.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::PkiError;

/// Larger than any key, certificate or kubeconfig.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Replaces a file in one step, with mode 0600: whoever reads it sees the old
/// or the new content, also after a power cut.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let temporary = temporary_name(path);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        // The mode above is only for new files; this one may be left over.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        PkiError::Io {
            path: path.to_owned(),
            source,
        }
    })
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// Makes a directory that only its owner may enter.
pub(crate) fn private_dir(path: &Path) -> Result<(), PkiError> {
    let make = || -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
    };
    make().map_err(|source| PkiError::Io {
        path: path.to_owned(),
        source,
    })
}

/// The text of a file, none when it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>, PkiError> {
    let read = || -> io::Result<Option<String>> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(meta) if meta.len() > MAX_FILE_BYTES => return Err(io::Error::other("the file is too large")),
            Ok(_) => {}
        }
        fs::read_to_string(path).map(Some)
    };
    read().map_err(|source| PkiError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_with_private_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("new"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left over"
        );
        assert_eq!(read(&dir.path().join("none")).unwrap(), None);
        assert!(
            write_private(&dir.path().join("no/dir/key"), b"x")
                .unwrap_err()
                .to_string()
                .contains("no/dir/key")
        );
    }
}
