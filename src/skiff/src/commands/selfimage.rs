//! An image made out of this very binary: what `skiff selftest` runs, on
//! machines without registry and internet.
//!
//! Every node makes it for itself when a pod asks for it ([`NAME`]).

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest, Sha256};

/// The reference under which every node makes the image.
pub const NAME: &str = concat!("skiff.local/self:", env!("CARGO_PKG_VERSION"));

/// Writes an OCI archive with this binary as `/skiff` to `out`.
pub fn write(out: &Path) -> io::Result<()> {
    write_with(&std::env::current_exe()?, out).map_err(io::Error::other)
}

fn write_with(binary: &Path, out: &Path) -> anyhow::Result<()> {
    let layer_path = out.with_extension("layer");
    let outcome = write_layer(binary, &layer_path).and_then(|layer| write_archive(&layer_path, &layer, out));
    let _ = std::fs::remove_file(&layer_path);
    outcome
}

/// Digest and size of a file that was written.
struct Written {
    digest: String,
    size: u64,
}

/// Counts and hashes what passes, so that a large file is never in memory.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_layer(binary: &Path, path: &Path) -> anyhow::Result<Written> {
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let hashing = Hashing {
        inner: io::BufWriter::new(file),
        hasher: Sha256::new(),
        size: 0,
    };
    let mut layer = tar::Builder::new(hashing);
    for folder in ["etc", "tmp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, format!("{folder}/"), io::empty())?;
    }
    append_file(&mut layer, "skiff", binary, 0o755)?;
    append(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/:/skiff\nnobody:x:65534:65534:nobody:/:/skiff\n",
        0o644,
    )?;
    let mut hashing = layer.into_inner()?;
    hashing.flush()?;
    Ok(Written {
        digest: hex(&hashing.hasher.finalize()),
        size: hashing.size,
    })
}

fn write_archive(layer_path: &Path, layer: &Written, out: &Path) -> anyhow::Result<()> {
    let config = serde_json::to_vec(&json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": {"Entrypoint": ["/skiff"], "Cmd": ["web"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer.digest,
            "size": layer.size,
        }],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let file = std::fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut archive = tar::Builder::new(io::BufWriter::new(file));
    append(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    append(&mut archive, "index.json", &index, 0o644)?;
    for blob in [&manifest, &config] {
        append(&mut archive, &blob_name(&digest(blob)), blob, 0o644)?;
    }
    append_file(&mut archive, &blob_name(&layer.digest), layer_path, 0o644)?;
    archive.into_inner()?.flush()?;
    Ok(())
}

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn append_file<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    path: &Path,
    mode: u32,
) -> anyhow::Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut header = tar::Header::new_gnu();
    header.set_size(file.metadata()?.len());
    header.set_mode(mode);
    Ok(archive.append_data(&mut header, name, io::BufReader::new(file))?)
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    name: &str,
    content: &[u8],
    mode: u32,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    Ok(archive.append_data(&mut header, name, content)?)
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_what_its_index_names() {
        let dir = tempfile::tempdir().expect("folder");
        let (binary, out) = (dir.path().join("skiff"), dir.path().join("image.tar"));
        std::fs::write(&binary, b"not really").expect("binary");
        write_with(&binary, &out).expect("archive");
        let mut archive = tar::Archive::new(std::fs::File::open(&out).expect("archive"));
        let mut names = Vec::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let name = entry.path().expect("path").display().to_string();
            if let Some(hash) = name.strip_prefix("blobs/sha256/") {
                let mut content = Vec::new();
                io::Read::read_to_end(&mut entry, &mut content).expect("content");
                assert_eq!(digest(&content), format!("sha256:{hash}"));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5);
        assert_eq!(&names[..2], ["oci-layout", "index.json"]);
    }
}
