//! Kernel settings services depend on, made as they should be and left alone when they are.
//!
//! `/proc/sys/net` shows the network namespace of the thread that opens it.

use std::path::Path;
use std::{fs, io};

use skiff_nft::Family;

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {path} to {value}")]
pub struct Error {
    path: &'static str,
    value: &'static str,
    source: io::Error,
}

/// Has the node forward packets of a family: without it no service leads anywhere.
pub fn ensure(family: Family) -> Result<(), Error> {
    let settings: &[(&'static str, &'static str)] = match family {
        Family::Ip6 => &[("/proc/sys/net/ipv6/conf/all/forwarding", "1")],
        _ => &[("/proc/sys/net/ipv4/ip_forward", "1")],
    };
    for (path, value) in settings {
        ensure_file(Path::new(path), value).map_err(|source| Error { path, value, source })?;
    }
    Ok(())
}

fn ensure_file(path: &Path, value: &str) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() == value {
        return Ok(());
    }
    fs::write(path, value)
}
