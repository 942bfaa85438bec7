//! Manifests and indexes: OCI image specification 1.1 and Docker's schema 2, which differ in media types only.
//!
//! Called by `pull` with bytes whose digest has been checked. It must not ask the registry anything.

use super::digest::Digest;
use super::error::ImageError;
use serde::Deserialize;

/// What is asked for, in `Accept` headers.
pub const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Largest manifest or index, in bytes; the OCI distribution specification asks registries to take 4 MiB.
pub const LARGEST_MANIFEST: u64 = 4 << 20;

/// Largest image configuration, in bytes.
pub const LARGEST_CONFIG: u64 = 8 << 20;

/// Most layers of one image: the guest's overlayfs takes 500, and Docker makes 127 at most.
const MOST_LAYERS: usize = 256;

/// Names content and tells its size (OCI image specification, descriptor).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Kind of the content.
    pub media_type: String,
    /// Name of the content.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// In an index: what the image is for.
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

/// A manifest or an index, as far as pulling needs it.
#[derive(Debug)]
pub enum Manifest {
    /// One image: its configuration and its layers, the lowest first.
    Image {
        /// The configuration.
        config: Descriptor,
        /// The layers.
        layers: Vec<Descriptor>,
    },
    /// Images for several platforms.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u32>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Reads a manifest or an index; `what` names it in errors.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for anything else. A document that could be read as both is refused, as two programs
    /// could then see two images under one digest (OCI image specification, `mediaType`; CVE-2021-41190).
    pub fn parse(bytes: &[u8], what: &str) -> Result<Self, ImageError> {
        let unsupported = |reason: String| ImageError::Unsupported { what: what.to_owned(), reason };
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| unsupported(format!("is no image manifest: {error}")))?;
        if document.schema_version == Some(1) {
            let reason = "has a manifest of Docker's schema 1, which nothing verifies: push it again with a newer tool";
            return Err(unsupported(reason.to_owned()));
        }
        match document {
            Document { config: Some(config), layers: Some(layers), manifests: None, .. } => {
                if layers.len() > MOST_LAYERS {
                    return Err(unsupported(format!("has {} layers, more than {MOST_LAYERS}", layers.len())));
                }
                Ok(Self::Image { config, layers })
            }
            Document { config: None, layers: None, manifests: Some(manifests), .. } => {
                Ok(Self::Index(manifests))
            }
            _ => Err(unsupported("is neither an image manifest nor an index".to_owned())),
        }
    }
}

/// The entry of an index for linux/amd64; the plain one before variants (v2, v3) that this CPU may not have.
///
/// # Errors
/// [`ImageError::WrongPlatform`] lists what there is.
pub fn for_this_machine<'a>(entries: &'a [Descriptor], image: &str) -> Result<&'a Descriptor, ImageError> {
    let fits = |entry: &&Descriptor| {
        entry.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == "amd64")
    };
    let plain = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|p| p.variant.is_none());
    let mut fitting = entries.iter().filter(fits);
    fitting.clone().find(plain).or_else(|| fitting.next()).ok_or_else(|| {
        let names = entries
            .iter()
            .filter_map(|e| e.platform.as_ref())
            .map(|p| format!("{}/{}", p.os, p.architecture));
        let mut names: Vec<_> = names.take(20).collect();
        names.sort();
        names.dedup();
        let available = if names.is_empty() { "nothing that is named".to_owned() } else { names.join(", ") };
        ImageError::WrongPlatform { image: image.to_owned(), available }
    })
}

/// Checks that a layer is a tar archive that can be read. How it is compressed shows in its first bytes: some builders
/// write gzip's media type over plain tar and the other way round.
///
/// # Errors
/// [`ImageError::Unsupported`] for encrypted layers and artifacts that are no layers.
pub fn check_layer(layer: &Descriptor) -> Result<(), ImageError> {
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ];
    if known.contains(&layer.media_type.as_str()) {
        return Ok(());
    }
    let reason = if layer.media_type.contains("encrypted") {
        "is encrypted, and this runtime holds no keys for images".to_owned()
    } else {
        format!("has media type {:?}, which is no layer of a container image", layer.media_type)
    };
    Err(ImageError::Unsupported { what: format!("layer {}", layer.digest), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn entry(os: &str, architecture: &str, variant: Option<&str>, content: &str) -> serde_json::Value {
        json!({"mediaType": "m", "digest": Digest::of(content.as_bytes()), "size": 1,
            "platform": {"os": os, "architecture": architecture, "variant": variant}})
    }

    fn index(entries: &[serde_json::Value]) -> Vec<Descriptor> {
        let bytes = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        match Manifest::parse(bytes.as_bytes(), "test").unwrap() {
            Manifest::Index(entries) => entries,
            Manifest::Image { .. } => panic!("an index is no image"),
        }
    }

    #[test]
    fn index_gives_plain_linux_amd64() {
        let entries = index(&[
            entry("linux", "arm64", Some("v8"), "arm"),
            entry("linux", "amd64", Some("v3"), "v3"),
            entry("linux", "amd64", None, "plain"),
            entry("unknown", "unknown", None, "attestation"),
        ]);
        assert_eq!(for_this_machine(&entries, "x").unwrap().digest, Digest::of(b"plain"));
        assert_eq!(for_this_machine(&entries[..2], "x").unwrap().digest, Digest::of(b"v3"));
    }

    #[test]
    fn index_without_this_platform_tells_what_there_is() {
        let entries = index(&[entry("linux", "s390x", None, "a"), entry("windows", "amd64", None, "b")]);
        let error = for_this_machine(&entries, "x").unwrap_err().to_string();
        assert!(error.contains("linux/s390x, windows/amd64"), "{error}");
    }

    #[test]
    fn document_that_is_manifest_and_index_is_refused() {
        let descriptor = entry("linux", "amd64", None, "a");
        let both =
            json!({"schemaVersion": 2, "config": descriptor, "layers": [], "manifests": []}).to_string();
        assert!(Manifest::parse(both.as_bytes(), "x").is_err());
    }

    #[test]
    fn schema_1_and_encrypted_layers_are_refused_with_the_reason() {
        let error = Manifest::parse(br#"{"schemaVersion": 1, "fsLayers": []}"#, "x").unwrap_err().to_string();
        assert!(error.contains("schema 1"), "{error}");
        let mut layer = index(&[entry("", "", None, "a")]).remove(0);
        layer.media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".to_owned();
        assert!(check_layer(&layer).unwrap_err().to_string().contains("encrypted"));
        layer.media_type = "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned();
        assert!(check_layer(&layer).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes: Vec<u8>) {
            let _ = Manifest::parse(&bytes, "x");
        }
    }
}
