//! Why an image could not be pulled, found or removed.
//!
//! `cri/status.rs` maps each variant to the gRPC code that kubelet reads. All are cheap to clone: several pulls may wait
//! for one layer, and each gets its answer.

use super::digest::Digest;
use crate::store::StoreError;
use crate::undo::Injected;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Failures of the image service.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The name cannot be that of an image.
    #[error(
        "image name {reference:?}: {reason}; a name looks like registry.example/path/name:tag or name@sha256:..."
    )]
    BadReference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The client's credentials cannot be understood.
    #[error("credentials for {registry}: {reason}")]
    BadCredentials {
        /// The registry they are for.
        registry: String,
        /// What is wrong with them.
        reason: &'static str,
    },
    /// A part of the configuration cannot be used.
    #[error("configuration of registry {registry}: {reason}")]
    BadConfiguration {
        /// The section's host.
        registry: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// No image of that name is on this node.
    #[error("image {0} is not on this node: pull it first")]
    NotPresent(String),
    /// The beginning of an id that several images share.
    #[error("{0} is the beginning of more than one image id: give more digits")]
    Ambiguous(String),
    /// The registry does not have it.
    #[error("{what} is not there: {answers}; check the name and the tag")]
    NotFound {
        /// The image, or a part of it.
        what: String,
        /// What each place that was asked said.
        answers: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{what} may not be pulled: {answers}; check the image pull secret and the name")]
    Unauthorized {
        /// The image, or a part of it.
        what: String,
        /// What each place that was asked said.
        answers: String,
    },
    /// No registry answered, or not in time. Kubelet knows this text by its beginning.
    #[error("RegistryUnavailable: {what}: {answers}; it is tried again at the next pull")]
    Unavailable {
        /// The image, or a part of it.
        what: String,
        /// What happened at each place that was asked.
        answers: String,
    },
    /// The download of a blob broke off, and another place would send the rest: it is begun anew, unless that
    /// happened often.
    #[error("RegistryUnavailable: {what}: {answers}; it is tried again at the next pull")]
    BrokenOff {
        /// The blob, as people know it.
        what: String,
        /// What happened.
        answers: String,
        /// Its digest.
        blob: Digest,
        /// How far the order of places is to be rotated for the next attempt.
        next: usize,
    },
    /// A registry answered with something that the distribution specification does not allow.
    #[error("{what}: {answers}")]
    BadAnswer {
        /// The image, or a part of it.
        what: String,
        /// What was answered.
        answers: String,
    },
    /// Content is not what its digest says. Its own digest is not told: with that, whoever can guess at what
    /// only this node reaches could have the guess checked.
    #[error(
        "{what} is corrupt: it is not what the digest {expected} names; the registry or what lies between is broken"
    )]
    Corrupt {
        /// Which content.
        what: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        got: Digest,
    },
    /// The image is for other machines.
    #[error("image {image} is not for linux/amd64, only for {available}")]
    WrongPlatform {
        /// The image.
        image: String,
        /// What it is for.
        available: String,
    },
    /// Manifest or configuration is not one, or of a kind that is not supported.
    #[error("{what}: {reason}")]
    Unsupported {
        /// Which document or layer.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A limit against content that would fill memory or disk.
    #[error("{what} is larger than {limit} bytes, the limit of this node ({key})")]
    TooLarge {
        /// Which content.
        what: String,
        /// The limit, in bytes.
        limit: u64,
        /// Where the limit comes from: a configuration key, or the reason.
        key: &'static str,
    },
    /// The list of all images would not fit into one answer.
    #[error(
        "image {image}: the list of all images with their names and layers would be larger than {limit} bytes: remove \
         images that are not used"
    )]
    TooManyImages {
        /// The id of the image that is not added.
        image: Digest,
        /// Largest list, in bytes.
        limit: usize,
    },
    /// The layer cannot become a file system.
    #[error("layer {layer} cannot be converted: {reason}")]
    BadLayer {
        /// Digest of the uncompressed layer.
        layer: Digest,
        /// What the converter said.
        reason: String,
    },
    /// The converter itself cannot run.
    #[error(
        "cannot run the layer converter: {reason}; look for a missing kernel feature or a limit of the daemon's"
    )]
    Converter {
        /// What happened.
        reason: String,
    },
    /// The image file system is full.
    #[error("no space left in {directory}: remove images that are not used, or make room")]
    DiskFull {
        /// The image directory.
        directory: PathBuf,
    },
    /// The image file system has no more than what stays free on it.
    #[error(
        "no space left in {directory} beside the {reserve_mib} MiB that stay free (image.disk_reserve_mib): remove \
         images that are not used, or make room"
    )]
    DiskReserve {
        /// The image directory.
        directory: PathBuf,
        /// What stays free, in MiB.
        reserve_mib: u64,
    },
    /// A file of the image store could not be read or written.
    #[error("image file {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A record could not be written.
    #[error(transparent)]
    Record(Arc<StoreError>),
    /// A task of the daemon ended before its result was known.
    #[error("work on {0} was interrupted: pull again")]
    Interrupted(String),
    /// A test ordered the failure.
    #[error(transparent)]
    Injected(Arc<Injected>),
}

impl ImageError {
    /// A failure on a file: a full disk is told apart, all else keeps what the system said.
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { directory: path.parent().unwrap_or(path).to_owned() }
            }
            _ => Self::Io { path: path.to_owned(), source: Arc::new(source) },
        }
    }
}

impl From<StoreError> for ImageError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { path, source } => Self::io(&path, source),
            other => Self::Record(Arc::new(other)),
        }
    }
}

impl From<Injected> for ImageError {
    fn from(error: Injected) -> Self {
        Self::Injected(Arc::new(error))
    }
}
