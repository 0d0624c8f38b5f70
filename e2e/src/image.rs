//! Images made from files of this machine's Debian packages, without a
//! registry and without tools: a layer, a configuration and an OCI archive
//! around them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Name of the busybox image.
pub const BUSYBOX: &str = "docker.io/library/busybox:e2e";
/// Name of the nginx image.
pub const NGINX: &str = "docker.io/library/nginx:e2e";

/// Where busybox-static puts its program.
const BUSYBOX_PROGRAM: &str = "/bin/busybox";
/// Where the nginx packages put theirs.
const NGINX_PROGRAM: &str = "/usr/sbin/nginx";

/// Serves what is mounted at its document root and logs every request with
/// the address it came from.
const NGINX_CONF: &str = r#"
user root;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr warn;
events { worker_connections 256; }
http {
  log_format plain '$remote_addr "$request" $status';
  access_log /dev/stdout plain;
  default_type text/html;
  server {
    listen 80;
    root /usr/share/nginx/html;
    location = /hostname { return 200 "$hostname\n"; }
  }
}
"#;

/// One entry of the layer.
#[derive(Debug, Clone)]
enum Entry {
    Folder(u32),
    Text(String),
    Host(PathBuf),
    Link(String),
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entries: Vec<(String, Entry)>,
    command: Vec<String>,
}

impl Image {
    fn new(name: &str, command: &[&str]) -> Self {
        let mut image = Self {
            name: name.to_owned(),
            entries: Vec::new(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
        };
        for (path, mode) in [
            ("tmp", 0o1777),
            ("proc", 0o755),
            ("sys", 0o755),
            ("dev", 0o755),
            ("etc", 0o755),
            ("run", 0o755),
        ] {
            image.entries.push((path.to_owned(), Entry::Folder(mode)));
        }
        let text = |text: &str| Entry::Text(text.to_owned());
        image.entries.extend([
            ("etc/passwd".to_owned(), text("root:x:0:0:root:/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")),
            ("etc/group".to_owned(), text("root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")),
            // Names first from the file, then from the cluster.
            ("etc/nsswitch.conf".to_owned(), text("hosts: files dns\n")),
        ]);
        image
    }

    /// busybox with all its applets, from Debian's busybox-static.
    pub fn busybox() -> anyhow::Result<Self> {
        let mut image = Self::new(BUSYBOX, &["sh"]);
        image.add_busybox()?;
        Ok(image)
    }

    /// nginx from Debian's package, with the libraries it names, and a shell.
    pub fn nginx() -> anyhow::Result<Self> {
        let mut image = Self::new(NGINX, &["nginx", "-e", "stderr", "-g", "daemon off;"]);
        image.add_busybox()?;
        image.add_program(NGINX_PROGRAM, "nginx-light")?;
        for folder in ["var/log/nginx", "var/lib/nginx", "usr/share/nginx/html"] {
            image.entries.push((folder.to_owned(), Entry::Folder(0o755)));
        }
        image.entries.push((
            "etc/nginx/nginx.conf".to_owned(),
            Entry::Text(NGINX_CONF.to_owned()),
        ));
        let page = Entry::Text("the page of the image\n".to_owned());
        image
            .entries
            .push(("usr/share/nginx/html/index.html".to_owned(), page));
        Ok(image)
    }

    /// The same image under another name.
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// One more file, so that two images differ.
    pub fn with_file(mut self, path: &str, text: &str) -> Self {
        self.entries.push((
            path.trim_start_matches('/').to_owned(),
            Entry::Text(text.to_owned()),
        ));
        self
    }

    /// Its name with everything a file name cannot have replaced.
    pub fn file_name(&self) -> String {
        self.name.replace(['/', ':'], "_")
    }

    fn add_busybox(&mut self) -> anyhow::Result<()> {
        let output = Command::new(BUSYBOX_PROGRAM).arg("--list").output();
        let output = output.with_context(|| {
            format!("{BUSYBOX_PROGRAM}: install it with `apt-get install busybox-static`")
        })?;
        self.entries
            .push(("bin/busybox".to_owned(), Entry::Host(BUSYBOX_PROGRAM.into())));
        for applet in String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|applet| *applet != "busybox")
        {
            self.entries
                .push((format!("bin/{applet}"), Entry::Link("/bin/busybox".to_owned())));
        }
        Ok(())
    }

    fn add_program(&mut self, program: &str, package: &str) -> anyhow::Result<()> {
        if !Path::new(program).exists() {
            bail!("{program} is missing: install it with `apt-get install {package}`");
        }
        let output = Command::new("ldd").arg(program).output().context("ldd")?;
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        self.entries.push((
            program.trim_start_matches('/').to_owned(),
            Entry::Host(program.into()),
        ));
        for library in libraries(&listing) {
            self.entries.push((
                library.trim_start_matches('/').to_owned(),
                Entry::Host(library.into()),
            ));
        }
        Ok(())
    }

    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = tar::Header::new_gnu();
            match entry {
                Entry::Folder(mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, path, std::io::empty())?;
                }
                Entry::Text(text) => append(&mut tar, path, 0o644, text.as_bytes())?,
                Entry::Host(file) => {
                    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
                    append(&mut tar, path, 0o755, &bytes)?;
                }
                Entry::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    /// Writes the image as an OCI archive.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let layer = self.layer()?;
        let architecture = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else {
            "arm64"
        };
        let config = serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": self.command, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": digest(&layer), "size": layer.len(),
            }],
        }))?;
        let index = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&manifest), "size": manifest.len(),
                "annotations": {
                    "io.containerd.image.name": self.name,
                    "org.opencontainers.image.ref.name": self.name,
                },
            }],
        }))?;
        let mut tar = tar::Builder::new(Vec::new());
        append(
            &mut tar,
            "oci-layout",
            0o644,
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )?;
        for blob in [&layer, &config, &manifest] {
            append(
                &mut tar,
                &format!("blobs/{}", digest(blob).replace(':', "/")),
                0o644,
                blob,
            )?;
        }
        append(&mut tar, "index.json", 0o644, &index)?;
        std::fs::write(file, tar.into_inner()?).with_context(|| file.display().to_string())
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, path, bytes)
        .with_context(|| path.to_owned())
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The files `ldd` names: the right of the arrow, or the loader alone.
fn libraries(listing: &str) -> BTreeSet<String> {
    let file = |line: &str| {
        let right = line.split_once("=>").map_or(line, |(_, right)| right);
        right
            .split_whitespace()
            .next()
            .filter(|word| word.starts_with('/'))
            .map(str::to_owned)
    };
    listing.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_listing() {
        let listing =
            "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        let want: BTreeSet<String> = ["/lib/x/libz.so.1", "/lib64/ld.so.2"].map(str::to_owned).into();
        assert_eq!(libraries(listing), want);
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
