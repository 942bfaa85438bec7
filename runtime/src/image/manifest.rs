//! Manifests and indexes: OCI image specification 1.1 and Docker's schema 2, which differ in media types only.
//!
//! Called by `describe` with bytes whose digest has been checked. It must not ask the registry anything.

use super::descriptor::{Descriptor, Entry, Part, Sort};
use super::error::ImageError;
use super::json::{self, Beginning, JsonError, Kind, Read, Reader};

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

/// Most entries of one index: each may be looked at.
const MOST_ENTRIES: usize = 4096;

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
    Index(Vec<Entry>),
}

/// All fields that tell what a document is. `null` is absent.
#[derive(Default)]
struct Document {
    media_type: String,
    schema_version: i64,
    config: Part,
    layers: Beginning<Part, { MOST_LAYERS + 1 }>,
    manifests: Beginning<Entry, { MOST_ENTRIES + 1 }>,
    has_config: bool,
    has_layers: bool,
    has_manifests: bool,
    has_layers_of_schema_1: bool,
}

impl Read for Document {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        from.fields(|from, name| {
            let there = from.kind()? != Kind::Null;
            match name {
                "mediatype" => self.media_type.read(from),
                "schemaversion" => self.schema_version.read(from),
                "config" => {
                    self.has_config |= there;
                    self.config.read(from)
                }
                "layers" => {
                    self.has_layers |= there;
                    self.layers.read(from)
                }
                "manifests" => {
                    self.has_manifests |= there;
                    self.manifests.read(from)
                }
                "fslayers" => {
                    self.has_layers_of_schema_1 |= there;
                    from.skip()
                }
                _ => from.skip(),
            }
        })
    }
}

impl Manifest {
    /// Reads a manifest or an index; `announced` is the media type of the descriptor that led to it, empty where there was
    /// none, and `what` names it in errors.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] for anything else. A document that could be read as both is refused, as two programs
    /// could then see two images under one digest (OCI image specification, `mediaType`; CVE-2021-41190): one that has the
    /// fields of both, that calls itself the other, or that was announced as the other.
    pub fn parse(bytes: &[u8], announced: &str, what: &str) -> Result<Self, ImageError> {
        let unsupported = |reason: String| ImageError::Unsupported { what: what.to_owned(), reason };
        let document: Document =
            json::read(bytes).map_err(|error| unsupported(format!("is no image manifest: {error}")))?;
        let sorts = [
            Sort::of(&document.media_type),
            Sort::of(announced),
            (document.has_config || document.has_layers).then_some(Sort::Image),
            document.has_manifests.then_some(Sort::Index),
        ];
        let is = |sort| sorts.contains(&Some(sort));
        let schema_1 = document.schema_version == 1 && !is(Sort::Image) && !is(Sort::Index);
        if document.has_layers_of_schema_1 || schema_1 {
            let reason = "has a manifest of Docker's schema 1, which nothing verifies: push it again with a newer tool";
            return Err(unsupported(reason.to_owned()));
        }
        match (is(Sort::Image), is(Sort::Index)) {
            (true, false) => document.image().map_err(unsupported),
            (false, true) if document.manifests.0.len() > MOST_ENTRIES => {
                Err(unsupported(format!("is an index of more than {MOST_ENTRIES} entries")))
            }
            (false, true) => Ok(Self::Index(document.manifests.0)),
            (true, true) => Err(unsupported("can be read as an image manifest and as an index".to_owned())),
            (false, false) => Err(unsupported("is neither an image manifest nor an index".to_owned())),
        }
    }
}

impl Document {
    fn image(self) -> Result<Manifest, String> {
        if !self.has_config {
            return Err("is a manifest without a configuration".to_owned());
        }
        if self.layers.0.len() > MOST_LAYERS {
            return Err(format!("has more than {MOST_LAYERS} layers"));
        }
        let config =
            self.config.content().map_err(|fault| format!("has no usable configuration: {fault}"))?;
        let layer = |(number, layer): (usize, Part)| {
            layer.content().map_err(|fault| format!("cannot use layer {number} of the manifest: {fault}"))
        };
        let layers = self.layers.0.into_iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        Ok(Manifest::Image { config, layers })
    }
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
