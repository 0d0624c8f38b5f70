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
    let content = std::fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["etc", "tmp"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, format!("{folder}/"), std::io::empty())?;
    }
    append(&mut layer, "skiff", &content, 0o755)?;
    append(&mut layer, "etc/passwd", b"root:x:0:0:root:/:/skiff\nnobody:x:65534:65534:nobody:/:/skiff\n", 0o644)?;
    let layer = layer.into_inner()?;
    let config = serde_json::to_vec(&json!({
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": {"Entrypoint": ["/skiff"], "Cmd": ["web"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": NAME});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let file = std::fs::File::create(out).with_context(|| format!("cannot write {}", out.display()))?;
    let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
    append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    append(&mut archive, "index.json", &index, 0o644)?;
    for blob in [&manifest, &config, &layer] {
        let name = digest(blob).replace(':', "/");
        append(&mut archive, &format!("blobs/{name}"), blob, 0o644)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn append<W: Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    Ok(archive.append_data(&mut header, name, content)?)
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
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
                std::io::Read::read_to_end(&mut entry, &mut content).expect("content");
                assert_eq!(digest(&content), format!("sha256:{hash}"));
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5);
        assert_eq!(&names[..2], ["oci-layout", "index.json"]);
    }
}
