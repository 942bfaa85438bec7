//! Images that a case makes itself: layers of entries written one by one, in the order and form that the case wants, and a
//! configuration. They are OCI layouts in a directory of the case's own, which [`crate::registry::Registry::serve_layouts`] serves.
//!
//! ```ignore
//! let layer = layer(&[directory("opt/kept").mode(0o750).owner(1000, 1001), file("opt/kept/file", "kept\n")]);
//! Image::based_on("busybox")?.layer(layer).config(json!({"Volumes": {"/opt/kept": {}}})).write(&layouts, "volumes")?;
//! ```
//!
//! What can be built by an image's usual means is in `tests/images`; this is for layers that no builder of ours would write.

use crate::artefacts;
use crate::registry::{blob, digest_of_tag};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// Media type of a layer that is a plain tar stream.
pub const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: String,
    kind: u8,
    link: String,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: u64,
    device: (u32, u32),
    xattrs: Vec<(String, Vec<u8>)>,
}

fn entry(path: &str, kind: u8, mode: u32) -> Entry {
    Entry {
        path: path.to_owned(),
        kind,
        link: String::new(),
        content: Vec::new(),
        mode,
        owner: (0, 0),
        // 2026-01-01
        mtime: 1_767_225_600,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// A directory, 0755 of root.
pub fn directory(path: &str) -> Entry {
    entry(path, b'5', 0o755)
}

/// A file, 0644 of root.
pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Entry {
    Entry { content: content.into(), ..entry(path, b'0', 0o644) }
}

/// A symbolic link.
pub fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: target.to_owned(), ..entry(path, b'2', 0o777) }
}

/// A hard link to an entry before it.
pub fn hard_link(path: &str, target: &str) -> Entry {
    Entry { link: target.to_owned(), ..entry(path, b'1', 0o644) }
}

/// A character device.
pub fn character_device(path: &str, major: u32, minor: u32) -> Entry {
    Entry { device: (major, minor), ..entry(path, b'3', 0o666) }
}

/// A pipe.
pub fn fifo(path: &str) -> Entry {
    entry(path, b'6', 0o644)
}

impl Entry {
    /// With these permission bits.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Of that user and group.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    /// Modified at that second since the epoch.
    #[must_use]
    pub fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    /// With an extended attribute more.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut pax = Vec::new();
        if self.path.len() > 100 {
            pax_record(&mut pax, "path", self.path.as_bytes());
        }
        if self.link.len() > 100 {
            pax_record(&mut pax, "linkpath", self.link.as_bytes());
        }
        for (name, value) in &self.xattrs {
            pax_record(&mut pax, &format!("SCHILY.xattr.{name}"), value);
        }
        if !pax.is_empty() {
            let mut header = entry("pax", b'x', 0o644);
            header.content = pax;
            header.write(tar);
        }
        tar.extend_from_slice(&self.header());
        tar.extend_from_slice(&self.content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }

    /// A ustar header; what does not fit its fields is in the pax header before it.
    fn header(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let first = |text: &str| text.as_bytes()[..text.len().min(100)].to_vec();
        put(0, &first(&self.path));
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.owner.0).as_bytes());
        put(116, format!("{:07o}", self.owner.1).as_bytes());
        put(124, format!("{:011o}", self.content.len()).as_bytes());
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, &first(&self.link));
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }
}

/// A record of a pax header: its length counts itself.
fn pax_record(pax: &mut Vec<u8>, name: &str, value: &[u8]) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} {name}=").as_bytes());
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// A layer of entries, as a tar stream.
pub fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut tar));
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

/// An image that is being made.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Blobs beside configuration and manifest: digest and content.
    blobs: Vec<(String, Vec<u8>)>,
    /// Descriptors, the lowest layer first.
    layers: Vec<Value>,
    diff_ids: Vec<String>,
    config: serde_json::Map<String, Value>,
}

impl Image {
    /// An image without layers.
    pub fn empty() -> Self {
        Self::default()
    }

    /// An image that begins with all layers and the configuration of one of `tests/images`.
    pub fn based_on(image: &str) -> Result<Self> {
        let layout = artefacts::images()?.join(image);
        let read = |digest: &str| fs::read(blob(&layout, digest)).with_context(|| digest.to_owned());
        let manifest: Value = serde_json::from_slice(&read(&digest_of_tag(&layout)?)?)?;
        let config = manifest["config"]["digest"].as_str().context("no configuration")?;
        let config: Value = serde_json::from_slice(&read(config.trim_start_matches("sha256:"))?)?;
        let mut image = Self::empty();
        image.layers = manifest["layers"].as_array().context("no layers")?.clone();
        for layer in &image.layers {
            let digest = layer["digest"].as_str().context("no digest")?.trim_start_matches("sha256:");
            image.blobs.push((digest.to_owned(), read(digest)?));
        }
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff ids")?;
        image.diff_ids = diff_ids.iter().filter_map(|id| Some(id.as_str()?.to_owned())).collect();
        image.config = config["config"].as_object().cloned().unwrap_or_default();
        Ok(image)
    }

    /// With one layer more, an uncompressed tar stream.
    #[must_use]
    pub fn layer(self, tar: Vec<u8>) -> Self {
        let diff_id = format!("sha256:{}", digest(&tar));
        self.raw_layer(TAR, tar, diff_id)
    }

    /// With one layer more, as it is to be in the registry.
    #[must_use]
    pub fn raw_layer(mut self, media_type: &str, bytes: Vec<u8>, diff_id: String) -> Self {
        let digest = digest(&bytes);
        let size = bytes.len();
        self.layers
            .push(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size}));
        self.diff_ids.push(diff_id);
        self.blobs.push((digest, bytes));
        self
    }

    /// With these fields of the configuration's `config`; others stay as they are.
    #[must_use]
    pub fn config(mut self, fields: Value) -> Self {
        if let Value::Object(fields) = fields {
            self.config.extend(fields);
        }
        self
    }

    /// Writes the image as layout `name` in `layouts`.
    pub fn write(mut self, layouts: &Path, name: &str) -> Result<()> {
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        let config = self.add("application/vnd.oci.image.config.v1+json", &config)?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": self.layers});
        let manifest = self.add(media_type, &manifest)?;
        let layout = layouts.join(name);
        let directory: PathBuf = layout.join("blobs/sha256");
        fs::create_dir_all(&directory)?;
        for (digest, bytes) in &self.blobs {
            fs::write(directory.join(digest), bytes)?;
        }
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
        Ok(())
    }

    /// Adds a document; answers its descriptor.
    fn add(&mut self, media_type: &str, document: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(document)?;
        let digest = digest(&bytes);
        let descriptor =
            json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()});
        self.blobs.push((digest, bytes));
        Ok(descriptor)
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn pax_record_counts_its_own_length() {
        let mut pax = Vec::new();
        pax_record(&mut pax, "path", &[b'x'; 90]);
        assert!(pax.starts_with(b"99 path=x"), "{}", String::from_utf8_lossy(&pax));
        assert_eq!(pax.len(), 99);
    }

    #[test]
    fn tar_reads_what_is_written() {
        let long = format!("a/{}", "n".repeat(150));
        let layer = layer(&[directory("a/").owner(7, 8), file(&long, "text").mode(0o600), symlink("l", "a")]);
        let mut tar =
            Command::new("tar").arg("-tvf-").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&layer).unwrap();
        let listed = String::from_utf8(tar.wait_with_output().unwrap().stdout).unwrap();
        for words in ["drwxr-xr-x 7/8", "-rw------- 0/0", &long, "l -> a"] {
            assert!(listed.contains(words), "{words} is not in {listed}");
        }
    }
}
