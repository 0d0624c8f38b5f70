//! Static linking of libnftnl without a static libmnl.
//!
//! Distributions ship `libnftnl.a` but often no `libmnl.a`. The few `mnl_*`
//! functions libnftnl calls are written in Rust (`src/mnl.rs`), so the linker's
//! `-lmnl` only needs to find *an* archive: an empty one, in a directory that
//! is searched first. A link to `libnftnl.a` beside it keeps the linker from
//! preferring the shared library.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBNFTNL_LIB_DIR");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("libmnl.a"), b"!<arch>\n").expect("write an empty libmnl.a");
    match find_archive() {
        Some(archive) => {
            let copy = out.join("libnftnl.a");
            fs::copy(&archive, &copy).unwrap_or_else(|e| panic!("copy {}: {e}", archive.display()));
        }
        None => println!(
            "cargo:warning=no libnftnl.a found: the binary will need libnftnl.so (install libnftnl-dev)"
        ),
    }
    println!("cargo:rustc-link-search=native={}", out.display());
}

/// The archive in `LIBNFTNL_LIB_DIR`, else in the multiarch directory of the target.
fn find_archive() -> Option<PathBuf> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let mut directories = Vec::new();
    directories.extend(env::var_os("LIBNFTNL_LIB_DIR").map(PathBuf::from));
    directories.push(PathBuf::from(format!("/usr/lib/{arch}-linux-gnu")));
    let pkg_config = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    if let Ok(output) = Command::new(pkg_config)
        .args(["--variable=libdir", "libnftnl"])
        .output()
    {
        directories.push(Path::new(String::from_utf8_lossy(&output.stdout).trim()).to_path_buf());
    }
    directories.push("/usr/lib64".into());
    directories.push("/usr/lib".into());
    directories
        .into_iter()
        .map(|d| d.join("libnftnl.a"))
        .find(|p| p.is_file())
}
