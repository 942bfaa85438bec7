//! Descriptors: what names content in manifests and indexes, with its kind, its size and its other addresses
//! (OCI image specification, descriptor).
//!
//! Used by `manifest`, which reads documents of them, and by whoever fetches what they name. It must not ask
//! the registry anything.

use super::digest::Digest;
use super::error::ImageError;
use super::json::{Base64, Beginning, HasName, JsonError, Read, Reader};
use super::platform::Platform;
use bytes::Bytes;

/// Most addresses elsewhere of one blob.
pub(super) const MOST_URLS: usize = 16;

/// Annotation of what belongs to an image in an index and is none, such as BuildKit's attestations.
const BELONGS_TO_AN_IMAGE: &str = "vnd.docker.reference.type";

/// Names content and tells its size (OCI image specification, descriptor), checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Kind of the content; empty where the document does not say.
    pub media_type: String,
    /// Name of the content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where else than in the registry it may be.
    pub urls: Vec<String>,
    /// The content itself, where the document of an image holds it; else empty.
    pub data: Bytes,
}

/// A descriptor as a document has it. Whether it is of any use is asked when it is wanted, as in Go: what is
/// wrong with one entry of an index is nothing to the others.
///
/// Of what is not used nothing is kept: an index may be megabytes of annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    media_type: String,
    digest: String,
    size: i64,
    pub(super) urls: Beginning<String, { MOST_URLS + 1 }>,
    belongs_to_an_image: HasName,
    platform: Option<Platform>,
    /// What in it has a type that it may not have.
    fault: Option<String>,
}

/// A descriptor in the document of an image, which may hold the content too; in an index, `data` is not
/// looked at.
#[derive(Default)]
pub struct Part {
    entry: Entry,
    data: Base64,
}

/// The two kinds of documents that a media type can announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// A manifest.
    Image,
    /// An index.
    Index,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            media_type: String::new(),
            digest: String::new(),
            size: 0,
            urls: Beginning::default(),
            belongs_to_an_image: HasName { name: BELONGS_TO_AN_IMAGE, there: false },
            platform: None,
            fault: None,
        }
    }
}

impl Read for Entry {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        let ((), fault) = from.apart(|from| from.fields(|from, name| self.read_field(from, name)))?;
        self.fault = self.fault.take().or(fault);
        Ok(())
    }
}

impl Read for Part {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        let Self { entry, data } = self;
        let ((), fault) = from.apart(|from| {
            from.fields(|from, name| match name {
                "data" => data.read(from),
                _ => entry.read_field(from, name),
            })
        })?;
        entry.fault = entry.fault.take().or(fault);
        Ok(())
    }
}

impl Sort {
    /// What a media type announces; `None` for others.
    pub fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::Image),
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::Index),
            _ => None,
        }
    }
}

impl Part {
    /// As [`Entry::descriptor`], with the addresses of the content, and the content that the document holds,
    /// where that is what its digest says.
    ///
    /// # Errors
    /// Why it names nothing that can be fetched.
    pub fn content(self) -> Result<Descriptor, String> {
        let descriptor = self.entry.descriptor()?;
        let (urls, data) = (self.entry.urls.0, self.data.0);
        if urls.len() > MOST_URLS {
            return Err(format!("{} has more than {MOST_URLS} addresses", descriptor.digest));
        }
        let whole = data.len() as u64 == descriptor.size && Digest::of(&data) == descriptor.digest;
        Ok(Descriptor { urls, data: if whole { data.into() } else { Bytes::new() }, ..descriptor })
    }
}

impl Entry {
    /// Reads one field.
    fn read_field(&mut self, from: &mut Reader<'_>, name: &str) -> Result<(), JsonError> {
        match name {
            "mediatype" => self.media_type.read(from),
            "digest" => self.digest.read(from),
            "size" => self.size.read(from),
            "urls" => self.urls.read(from),
            "annotations" => self.belongs_to_an_image.read(from),
            "platform" => self.platform.read(from),
            _ => from.skip(),
        }
    }

    /// What it names, checked, without addresses and content.
    ///
    /// # Errors
    /// Why it names nothing that can be fetched. Containerd also refuses content without a size.
    pub(super) fn descriptor(&self) -> Result<Descriptor, String> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let digest = self.digest.parse().map_err(|error| format!("{error}"))?;
        let size = u64::try_from(self.size).ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| format!("{digest} is said to have {} bytes", self.size))?;
        let media_type = self.media_type.clone();
        Ok(Descriptor { media_type, digest, size, urls: Vec::new(), data: Bytes::new() })
    }

    /// The platform that an index says it is for.
    pub fn platform(&self) -> Option<&Platform> {
        self.platform.as_ref()
    }

    /// What it names, an image or an index, whose addresses and content do not matter.
    ///
    /// # Errors
    /// Why it names neither that could be fetched.
    pub fn image(&self) -> Result<Descriptor, String> {
        let descriptor = self.descriptor()?;
        if self.media_type.is_empty() || Sort::of(&self.media_type).is_some() {
            return Ok(descriptor);
        }
        let media_type: String = self.media_type.chars().take(100).collect();
        Err(format!("{} has media type {media_type:?}", descriptor.digest))
    }

    /// Whether it is about an image beside it: an attestation, which is never run.
    pub fn belongs_to_an_image(&self) -> bool {
        self.belongs_to_an_image.there
    }
}

/// Checks that a layer is a tar archive that can be read. How it is compressed shows in its first bytes: some
/// builders write gzip's media type over plain tar and the other way round, or none.
///
/// # Errors
/// [`ImageError::Unsupported`] for encrypted layers and artifacts that are no layers.
pub fn check_layer(layer: &Descriptor) -> Result<(), ImageError> {
    if is_layer(layer) {
        return Ok(());
    }
    let reason = if is_encrypted(layer) {
        "is encrypted, and this runtime holds no keys for images".to_owned()
    } else {
        let media_type: String = layer.media_type.chars().take(100).collect();
        format!("has media type {media_type:?}, which is no layer of a container image")
    };
    Err(ImageError::Unsupported { what: format!("layer {}", layer.digest), reason })
}

/// Whether its media type is that of an image's layer, encrypted or not. Others may lie between layers, for
/// which configurations have no digest: containerd sets them aside.
pub fn counts_as_layer(layer: &Descriptor) -> bool {
    is_layer(layer) || is_encrypted(layer)
}

fn is_encrypted(layer: &Descriptor) -> bool {
    layer.media_type.contains("encrypted")
}

fn is_layer(layer: &Descriptor) -> bool {
    let known = [
        "",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
    ];
    known.contains(&layer.media_type.as_str())
}
