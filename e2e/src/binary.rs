//! The program under test.
//!
//! `SKIFF_BINARY` names it, otherwise it is `skiff` beside the test's own
//! target folder. A copy without debug information is used: skiff makes an
//! image of itself, and hundreds of megabytes of line tables would be in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};

/// The stripped copy of the program under test.
pub fn skiff() -> anyhow::Result<PathBuf> {
    let source = source()?;
    let meta = std::fs::metadata(&source)
        .with_context(|| format!("{}: build it with `cargo build -p skiff`", source.display()))?;
    let age = meta.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    let cache = cache_folder()?;
    let copy = cache.join(format!("skiff-{age:x}-{:x}", meta.len()));
    if !copy.exists() {
        forget_older(&cache);
        let fresh = cache.join(format!("new-{}", std::process::id()));
        let status = Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&fresh)
            .arg(&source)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            std::fs::copy(&source, &fresh).with_context(|| format!("cannot copy {}", source.display()))?;
        }
        std::fs::rename(&fresh, &copy)?;
    }
    Ok(copy)
}

fn source() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("SKIFF_BINARY") {
        let path = PathBuf::from(given);
        if !path.is_file() {
            bail!("SKIFF_BINARY names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    // <target>/[<triple>/]debug/deps/integration-…, or …/debug/bench
    let own = std::env::current_exe()?;
    let folder = own.parent().context("the test has no folder")?;
    let folder = if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    };
    Ok(folder.join("skiff"))
}

/// A folder for what is kept between runs: beside the build's output.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists());
    let folder = target
        .map_or_else(std::env::temp_dir, Path::to_path_buf)
        .join("e2e");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn forget_older(cache: &Path) {
    for entry in std::fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("skiff-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
