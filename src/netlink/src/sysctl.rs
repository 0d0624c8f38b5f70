//! Sysctls of the calling thread's network namespace, as paths below `/proc/sys`.
//!
//! Keys are written with slashes (`net/ipv4/conf/skiff.1/rp_filter`), because interface names may hold dots. For
//! another namespace call these inside [`crate::NetNs::run`].

use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

fn file(key: &str) -> PathBuf {
    Path::new("/proc/sys").join(key)
}

/// The value, or `None` when this kernel has no such key (a module may be absent).
pub fn read(key: &str) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(file(key)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Sysctl {
            verb: "read",
            key: key.to_owned(),
            source,
        }),
    }
}

/// Writes the value unless it is set already; tells whether it wrote. Absent keys are an error.
pub fn ensure(key: &str, value: &str) -> Result<bool, Error> {
    if read(key)?.as_deref() == Some(value) {
        return Ok(false);
    }
    match std::fs::write(file(key), value) {
        Ok(()) => Ok(true),
        Err(source) => Err(Error::Sysctl {
            verb: "write",
            key: key.to_owned(),
            source,
        }),
    }
}

/// Like [`ensure`], but an absent key is fine: there is nothing to set.
pub fn ensure_if_present(key: &str, value: &str) -> Result<bool, Error> {
    match read(key)? {
        None => Ok(false),
        Some(_) => ensure(key, value),
    }
}
