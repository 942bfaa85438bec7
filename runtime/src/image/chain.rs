//! An image's layers on this node: each brought here once, kept by its chain, and looked through for those that show.
//!
//! A layer's file depends on the layers below it (`convert`), so its name is the chain id: the digest of all `diff_ids` up to
//! its own (OCI image specification, config.md, "Layer ChainID"). Used by `pull`.

use super::content::Content;
use super::digest::Digest;
use super::erofs::{Erofs, OPAQUE};
use super::error::ImageError;
use super::layer::{Below, LayerSource};
use super::manifest::Descriptor;
use super::session::Session;
use super::{Images, blocking};
use futures_util::future::{BoxFuture, FutureExt};
use std::fs::File;
use std::sync::Arc;

/// Names the layers of a manifest, the lowest first, each with the digest of its uncompressed form.
pub fn layers(paired: Vec<(Descriptor, Digest)>) -> Arc<[LayerSource]> {
    let mut below: Option<Digest> = None;
    let name = |(blob, diff_id): (Descriptor, Digest)| {
        let chain_id = match below {
            None => diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        below = Some(chain_id);
        LayerSource { blob, diff_id, chain_id }
    };
    paired.into_iter().map(name).collect()
}

impl Images {
    /// Waits until the layer at `at` is on disk, fetching it where nobody else does, and gives its size there.
    pub(super) fn have_layer(
        &self,
        session: &Arc<Session>,
        layers: &Arc<[LayerSource]>,
        at: usize,
    ) -> BoxFuture<'static, Result<u64, ImageError>> {
        let (images, session, layers) = (self.clone(), Arc::clone(session), Arc::clone(layers));
        async move {
            let layer = &layers[at];
            loop {
                if let Some(size) = images.0.content.layer_size(&layer.chain_id)? {
                    return Ok(size);
                }
                let fetch = || {
                    let (converter, content) =
                        (Arc::clone(&images.0.converter), Arc::clone(&images.0.content));
                    let (images, layers, session) =
                        (images.clone(), Arc::clone(&layers), Arc::clone(&session));
                    let below = {
                        let session = Arc::clone(&session);
                        move || images.clone().below(Arc::clone(&session), Arc::clone(&layers), at)
                    };
                    converter.fetch(content, session, layer.clone(), below)
                };
                let landed = images.0.flights.board(layer.chain_id, fetch).await;
                match landed.outcome {
                    Ok(()) => {}
                    // that pull's credentials or name were refused: try with this pull's own
                    Err(error) if !landed.own && error.depends_on_who_asks() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        .boxed()
    }

    /// The files of the layers below the one at `at`, the topmost first.
    fn below(self, session: Arc<Session>, layers: Arc<[LayerSource]>, at: usize) -> Below {
        Box::pin(async move {
            for lower in 0..at {
                self.have_layer(&session, &layers, lower).await?;
            }
            let open = |layer: &LayerSource| {
                let path = self.0.content.layer_path(&layer.chain_id);
                File::open(&path).map_err(|error| ImageError::io(&path, error))
            };
            layers[..at].iter().rev().map(open).collect()
        })
    }

    /// Position of the lowest layer that shows: an opaque root hides all below it, which overlayfs would show.
    pub(super) async fn lowest_shown(&self, layers: &Arc<[LayerSource]>) -> Result<usize, ImageError> {
        let (content, layers) = (Arc::clone(&self.0.content), Arc::clone(layers));
        blocking(move || {
            for (at, layer) in layers.iter().enumerate().skip(1).rev() {
                if has_opaque_root(&content, layer)? {
                    return Ok(at);
                }
            }
            Ok(0)
        })
        .await
    }
}

fn has_opaque_root(content: &Content, layer: &LayerSource) -> Result<bool, ImageError> {
    let path = content.layer_path(&layer.chain_id);
    let file = File::open(&path).map_err(|error| ImageError::io(&path, error))?;
    let attributes = Erofs::open(file).and_then(|erofs| erofs.attributes(&erofs.root()?));
    let attributes = attributes
        .map_err(|error| ImageError::BadLayer { layer: layer.diff_id, reason: error.to_string() })?;
    Ok(attributes.iter().any(|(name, value)| (name.as_slice(), value.as_slice()) == OPAQUE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_layers_at_different_places_have_different_names() {
        let blob = |content: &str| Descriptor {
            media_type: String::new(),
            digest: Digest::of(content.as_bytes()),
            size: 3,
            urls: Vec::new(),
            data: Vec::new(),
        };
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let names: Vec<_> = layers(vec![(blob("one"), one), (blob("two"), two), (blob("one"), one)])
            .iter()
            .map(|layer| layer.chain_id)
            .collect();
        assert_eq!(names[0], one);
        assert_eq!(names[1], Digest::of(format!("{one} {two}").as_bytes()));
        assert_ne!(names[0], names[2]);
    }
}
