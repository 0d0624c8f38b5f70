//! Image archives (OCI layout or `docker save`, plain, gzip or zstd) into the content store.
//!
//! One pass over the stream, nothing unpacked to disk on the way: each file goes straight into the
//! content store, `index.json` and `manifest.json` into memory. File names are only keys of a map, so
//! they cannot lead anywhere. Blobs of an OCI layout are verified against their names.

use super::client::Lease;
use super::content::{Descriptor, Document, Resolved, manifest_references, media, parse};
use super::images::{ImageError, Images};
use crate::reference::{Reference, is_sha256_hex};
use bytes::Bytes;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Files in an archive; an image has some tens of blobs, a bundle some thousands.
const FILES_MAX: usize = 100_000;
/// Size of `index.json` and `manifest.json`.
const TABLE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Data handed over at once, and how many such pieces wait.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES_MAX: usize = 4;

enum Entry {
    File {
        path: String,
        size: u64,
        head: Bytes,
        data: mpsc::Receiver<io::Result<Bytes>>,
    },
    Link {
        path: String,
        target: String,
    },
    Failed(io::Error),
}

/// One entry of docker's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Clone, Debug)]
struct Blob {
    digest: String,
    size: u64,
    head: Bytes,
}

/// Imports all images of an archive for this machine; returns their ids.
pub async fn import(
    images: &Images,
    lease: &Lease,
    archive: Box<dyn Read + Send>,
) -> Result<Vec<String>, ImageError> {
    let (sender, mut entries) = mpsc::channel(1);
    let reader = tokio::task::spawn_blocking(move || {
        if let Err(error) = read_entries(archive, &sender) {
            let _ = sender.blocking_send(Entry::Failed(error));
        }
    });
    let mut blobs: HashMap<String, Blob> = HashMap::new();
    let mut links: HashMap<String, String> = HashMap::new();
    let mut tables: HashMap<String, Vec<u8>> = HashMap::new();
    let broken = |error: io::Error| ImageError::Archive(format!("not a readable image archive: {error}"));
    while let Some(entry) = entries.recv().await {
        match entry {
            Entry::Failed(error) => return Err(broken(error)),
            Entry::Link { path, target } => {
                links.insert(path, target);
            }
            Entry::File {
                path, size, mut data, ..
            } if path == "index.json" || path == "manifest.json" => {
                if size > TABLE_MAX_BYTES {
                    return Err(ImageError::Archive(format!(
                        "{path} is larger than {TABLE_MAX_BYTES} bytes"
                    )));
                }
                let mut bytes = Vec::new();
                while let Some(piece) = data.recv().await {
                    bytes.extend_from_slice(&piece.map_err(broken)?);
                }
                tables.insert(path, bytes);
            }
            Entry::File { path, .. } if path == "oci-layout" || path == "repositories" => {}
            Entry::File {
                path,
                size,
                head,
                data,
            } => {
                let expected = path
                    .strip_prefix("blobs/sha256/")
                    .filter(|hex| is_sha256_hex(hex));
                let expected = expected.map(|hex| Descriptor {
                    digest: format!("sha256:{hex}"),
                    size: size as i64,
                    ..Descriptor::default()
                });
                let stream = ReceiverStream::new(data);
                let (digest, size) = images
                    .content
                    .write(lease, stream, expected.as_ref(), &path)
                    .await?;
                blobs.insert(path, Blob { digest, size, head });
            }
        }
    }
    reader
        .await
        .map_err(|error| ImageError::Archive(error.to_string()))?;
    let saved: Vec<Saved> = match tables.get("manifest.json") {
        Some(bytes) => parse(bytes, "manifest.json")?,
        None => Vec::new(),
    };
    match tables.get("index.json") {
        Some(bytes) => from_layout(images, lease, parse(bytes, "index.json")?, &saved, &blobs).await,
        None if !saved.is_empty() => from_saved(images, lease, &saved, &blobs, &links).await,
        None => Err(ImageError::Archive(
            "not an image archive: it has neither index.json nor manifest.json".to_owned(),
        )),
    }
}

/// An OCI layout.
async fn from_layout(
    images: &Images,
    lease: &Lease,
    index: Document,
    saved: &[Saved],
    blobs: &HashMap<String, Blob>,
) -> Result<Vec<String>, ImageError> {
    // Several entries with one name are one image for several machines.
    let mut named: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
    for descriptor in index.manifests.unwrap_or_default() {
        named.entry(name_of(&descriptor)?).or_default().push(descriptor);
    }
    let mut ids = Vec::new();
    for (name, descriptors) in named {
        let target = match (&name, descriptors.len()) {
            // Without a name each stands for itself.
            (None, count) if count > 1 => {
                for target in descriptors {
                    let resolved = images.content.resolve(target).await?;
                    let id = resolved.config.digest.clone();
                    ids.push(images.adopt(lease, &resolved, &[id], &|_| {}).await?);
                }
                continue;
            }
            (_, 1) => descriptors[0].clone(),
            _ => {
                let document = Document {
                    schema_version: 2,
                    manifests: Some(descriptors),
                    ..Document::default()
                };
                let bytes = serde_json::to_vec(&document).unwrap_or_default();
                images
                    .content
                    .write_bytes(lease, bytes.into(), media::OCI_INDEX)
                    .await?
            }
        };
        let resolved = images.content.resolve(target).await?;
        let mut names: Vec<String> = name.into_iter().collect();
        if names.is_empty() {
            // Newer docker archives name images in manifest.json as well.
            let of_config = |entry: &&Saved| {
                blobs
                    .get(&entry.config)
                    .is_some_and(|b| b.digest == resolved.config.digest)
            };
            let tags = saved
                .iter()
                .find(of_config)
                .and_then(|entry| entry.repo_tags.clone());
            names = full_names(&tags.unwrap_or_default())?;
        }
        if names.is_empty() {
            names.push(resolved.config.digest.clone());
        }
        ids.push(images.adopt(lease, &resolved, &names, &|_| {}).await?);
    }
    match ids.is_empty() {
        true => Err(ImageError::Archive("the archive contains no image".to_owned())),
        false => Ok(ids),
    }
}

/// The output of `docker save`: a manifest has to be made.
async fn from_saved(
    images: &Images,
    lease: &Lease,
    saved: &[Saved],
    blobs: &HashMap<String, Blob>,
    links: &HashMap<String, String>,
) -> Result<Vec<String>, ImageError> {
    let find = |path: &String| {
        let mut path = path;
        // Links of links do not occur; two steps are one more than needed.
        for _ in 0..2 {
            match links.get(path) {
                Some(target) => path = target,
                None => break,
            }
        }
        blobs
            .get(path)
            .ok_or_else(|| ImageError::Archive(format!("the archive lacks {path}")))
    };
    let mut ids = Vec::new();
    for entry in saved {
        let config = find(&entry.config)?;
        let descriptor = |blob: &Blob, media_type: String| Descriptor {
            media_type,
            digest: blob.digest.clone(),
            size: blob.size as i64,
            ..Descriptor::default()
        };
        let config = descriptor(config, media::OCI_CONFIG.to_owned());
        let mut layers = Vec::new();
        for path in &entry.layers {
            let blob = find(path)?;
            let kind = match blob.head.as_ref() {
                [0x1f, 0x8b, ..] => "+gzip",
                [0x28, 0xb5, 0x2f, 0xfd, ..] => "+zstd",
                _ => "",
            };
            layers.push(descriptor(blob, format!("{}{kind}", media::OCI_LAYER)));
        }
        let document = Document {
            schema_version: 2,
            media_type: Some(media::OCI_MANIFEST.to_owned()),
            config: Some(config.clone()),
            layers: Some(layers.clone()),
            ..Document::default()
        };
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        let target = images
            .content
            .write_bytes(lease, bytes.into(), media::OCI_MANIFEST)
            .await?;
        let references = vec![(target.digest.clone(), manifest_references(&config, &layers))];
        let mut names = full_names(entry.repo_tags.as_deref().unwrap_or_default())?;
        if names.is_empty() {
            names.push(config.digest.clone());
        }
        let resolved = Resolved {
            target,
            references,
            config,
            layers,
        };
        ids.push(images.adopt(lease, &resolved, &names, &|_| {}).await?);
    }
    Ok(ids)
}

fn full_names(tags: &[String]) -> Result<Vec<String>, ImageError> {
    tags.iter().map(|tag| full_name(tag)).collect()
}

fn full_name(text: &str) -> Result<String, ImageError> {
    match Reference::parse(text) {
        Ok(reference) => Ok(reference.full()),
        Err(error) => Err(ImageError::Archive(error.to_string())),
    }
}

/// The name an entry of `index.json` carries.
fn name_of(descriptor: &Descriptor) -> Result<Option<String>, ImageError> {
    let Some(annotations) = &descriptor.annotations else {
        return Ok(None);
    };
    let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let name = keys
        .iter()
        .find_map(|key| annotations.get(*key))
        .filter(|name| !name.is_empty());
    name.map(|name| full_name(name)).transpose()
}

/// Walks the archive in a blocking thread.
fn read_entries(archive: Box<dyn Read + Send>, entries: &mpsc::Sender<Entry>) -> io::Result<()> {
    let mut archive = tar::Archive::new(decompress(archive)?);
    for (number, entry) in archive.entries()?.enumerate() {
        if number >= FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files")));
        }
        let mut entry = entry?;
        let path = entry
            .path()?
            .to_string_lossy()
            .trim_start_matches("./")
            .to_owned();
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let target = entry
                .link_name()?
                .map(|target| target.to_string_lossy().into_owned())
                .unwrap_or_default();
            let target = if kind.is_symlink() {
                join(&path, &target)
            } else {
                target
            };
            if entries.blocking_send(Entry::Link { path, target }).is_err() {
                return Ok(());
            }
            continue;
        }
        if !kind.is_file() {
            continue;
        }
        let size = entry.size();
        let mut piece = read_piece(&mut entry)?;
        let head = piece.slice(..piece.len().min(8));
        let (sender, data) = mpsc::channel(PIECES_MAX);
        if entries
            .blocking_send(Entry::File {
                path,
                size,
                head,
                data,
            })
            .is_err()
        {
            return Ok(());
        }
        // A receiver that went away (the blob is there already) means: skip the rest of this file.
        while !piece.is_empty() && sender.blocking_send(Ok(piece)).is_ok() {
            match read_piece(&mut entry) {
                Ok(next) => piece = next,
                Err(error) => {
                    let _ = sender.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

fn read_piece(reader: &mut impl Read) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(PIECE_BYTES);
    reader
        .by_ref()
        .take(PIECE_BYTES as u64)
        .read_to_end(&mut buffer)?;
    Ok(buffer.into())
}

fn decompress(archive: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(PIECE_BYTES, archive);
    Ok(match reader.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
        _ => Box::new(reader),
    })
}

/// Resolves a relative link textually, as a key of the archive's map.
fn join(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_archive() {
        for (path, target, want) in [
            ("abc/layer.tar", "../def/layer.tar", "def/layer.tar"),
            ("a", "../../../etc/passwd", "etc/passwd"),
            ("a/b", "./c", "a/c"),
        ] {
            assert_eq!(join(path, target), want);
        }
    }

    #[test]
    fn names_come_from_annotations() {
        let with = |key: &str, value: &str| Descriptor {
            annotations: Some([(key.to_owned(), value.to_owned())].into()),
            ..Descriptor::default()
        };
        let name = |descriptor: &Descriptor| name_of(descriptor).unwrap();
        assert_eq!(
            name(&with("org.opencontainers.image.ref.name", "web:1")).as_deref(),
            Some("docker.io/library/web:1")
        );
        assert_eq!(
            name(&with("io.containerd.image.name", "a.b/c")).as_deref(),
            Some("a.b/c:latest")
        );
        assert_eq!(name(&Descriptor::default()), None);
        assert!(name_of(&with("io.containerd.image.name", "UPPER CASE")).is_err());
    }

    #[test]
    fn all_three_compressions_are_read() {
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"payload").unwrap();
        for bytes in [
            b"payload".to_vec(),
            gzip.finish().unwrap(),
            zstd::stream::encode_all(&b"payload"[..], 1).unwrap(),
        ] {
            let mut text = String::new();
            decompress(Box::new(io::Cursor::new(bytes)))
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "payload");
        }
    }
}
