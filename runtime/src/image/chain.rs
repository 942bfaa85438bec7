//! An image's layers on this node: each brought here once, kept by its chain, and looked through for those that show.
//!
//! A layer's file depends on the layers below it (`convert`), so its name is a chain id: a digest of all
//! `diff_ids` up to its own. It is not the "Layer ChainID" of the OCI image specification (config.md), by
//! which the lowest layer has its `diff_id` for a name: what is on disk is taken by its name alone, and an
//! image could give the name of a chain for a `diff_id`, and have another image's upper layers made without
//! that chain's lower ones.
//!
//! An image says itself which `diff_ids` it has, so until the content is here nothing of another image may depend on them: work
//! under way is shared only where registry, blobs and their addresses elsewhere are the same too, and its
//! failure is another pull's own. Used by `pull`.

use super::content::Content;
use super::descriptor::Descriptor;
use super::digest::Digest;
use super::erofs::{Erofs, OPAQUE};
use super::error::ImageError;
use super::layer::{Below, LayerSource};
use super::pull::Pull;
use super::{Images, blocking};
use futures_util::future::{BoxFuture, FutureExt};
use std::fs::File;
use std::sync::Arc;

/// Names the layers of a manifest of `registry`, the lowest first, each with the digest of its uncompressed form.
pub fn layers(registry: &str, paired: Vec<(Descriptor, Digest)>) -> Arc<[LayerSource]> {
    let mut below: Option<Digest> = None;
    let mut origin = Digest::of(registry.as_bytes());
    let name = |(blob, diff_id): (Descriptor, Digest)| {
        let chain_id = match below {
            // no text of the others begins like this one, so each name is that of one chain
            None => Digest::of(format!("layer {diff_id}").as_bytes()),
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        below = Some(chain_id);
        // quoted, so that no text of an address can be taken for more than one
        let Descriptor { digest, size, urls, .. } = &blob;
        origin = Digest::of(format!("{origin} {digest} {size} {diff_id} {urls:?}").as_bytes());
        LayerSource { blob, diff_id, chain_id, origin }
    };
    paired.into_iter().map(name).collect()
}

impl Images {
    /// Waits until the layer at `at` is on disk, fetching it where nobody else does, and gives its size there.
    pub(super) fn have_layer(
        &self,
        pull: &Arc<Pull>,
        layers: &Arc<[LayerSource]>,
        at: usize,
    ) -> BoxFuture<'static, Result<u64, ImageError>> {
        let (images, pull, layers) = (self.clone(), Arc::clone(pull), Arc::clone(layers));
        async move {
            let layer = &layers[at];
            let mut flight = layer.origin;
            loop {
                let (content, chain_id) = (Arc::clone(&images.0.content), layer.chain_id);
                if let Some(size) = blocking(move || content.layer_size(&chain_id)).await? {
                    return Ok(size);
                }
                let fetch = |passengers| {
                    let requester = pull.requester(passengers);
                    let (converter, content) =
                        (Arc::clone(&images.0.converter), Arc::clone(&images.0.content));
                    let (images, layers, pull) = (images.clone(), Arc::clone(&layers), Arc::clone(&pull));
                    let below = {
                        let pull = Arc::clone(&pull);
                        move || images.clone().below(Arc::clone(&pull), Arc::clone(&layers), at)
                    };
                    converter.fetch(content, pull, requester, layer.clone(), below)
                };
                let landed = images.0.flights.board(flight, pull.number, fetch).await;
                match landed.outcome {
                    Ok(()) => {}
                    Err(error) if landed.own => return Err(error),
                    Err(error) => {
                        // that pull's name, credentials or limits may be the reason: once more, with nobody else
                        tracing::debug!(layer = %layer.blob.digest, %error, "another pull's download failed");
                        flight = layer.alone(pull.number);
                    }
                }
            }
        }
        .boxed()
    }

    /// The files of the layers below the one at `at`, the topmost first.
    fn below(self, pull: Arc<Pull>, layers: Arc<[LayerSource]>, at: usize) -> Below {
        Box::pin(async move {
            for lower in 0..at {
                self.have_layer(&pull, &layers, lower).await?;
            }
            let open = move || {
                let open = |layer: &LayerSource| {
                    let path = self.0.content.layer_path(&layer.chain_id);
                    File::open(&path).map_err(|error| ImageError::io(&path, error))
                };
                layers[..at].iter().rev().map(open).collect()
            };
            blocking(open).await
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
    use bytes::Bytes;

    fn blob(content: &str) -> Descriptor {
        let digest = Digest::of(content.as_bytes());
        Descriptor { media_type: String::new(), digest, size: 3, urls: Vec::new(), data: Bytes::new() }
    }

    #[test]
    fn work_is_shared_between_the_same_blobs_of_the_same_registry_only() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let origin = |registry: &str, lower: Descriptor| {
            let layers = layers(registry, vec![(lower, one), (blob("two"), two)]);
            (layers[1].chain_id, layers[1].origin, layers[1].alone(1))
        };
        let (chain_id, honest, alone) = origin("r.test", blob("one"));
        assert_eq!(origin("r.test", blob("one")), (chain_id, honest, alone));
        // what follows has the same names for its content
        for (registry, lower) in [
            ("evil.test", blob("one")),
            ("r.test", blob("evil")),
            ("r.test", Descriptor { size: 4, ..blob("one") }),
            ("r.test", Descriptor { urls: vec!["https://evil.test/one".to_owned()], ..blob("one") }),
        ] {
            let evil = origin(registry, lower);
            assert_eq!(evil.0, chain_id);
            assert!(evil.1 != honest && evil.2 != alone, "{registry}");
        }
        assert_ne!(alone, honest);
        assert_ne!(alone, layers("r.test", vec![(blob("one"), one), (blob("two"), two)])[1].alone(2));
    }

    #[test]
    fn equal_layers_at_different_places_have_different_names() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let three = vec![(blob("one"), one), (blob("two"), two), (blob("one"), one)];
        let names: Vec<_> = layers("r.test", three).iter().map(|layer| layer.chain_id).collect();
        assert_eq!(names[0], Digest::of(format!("layer {one}").as_bytes()));
        assert_eq!(names[1], Digest::of(format!("{} {two}", names[0]).as_bytes()));
        assert_ne!(names[0], names[2]);
    }

    #[test]
    fn chain_id_given_for_a_diff_id_is_not_the_chain() {
        let names = |diff_ids: &[Digest]| -> Vec<Digest> {
            let paired = diff_ids.iter().map(|&diff_id| (blob("any"), diff_id)).collect();
            layers("r.test", paired).iter().map(|layer| layer.chain_id).collect()
        };
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let honest = names(&[a, b, c]);
        // the name on disk, and that of the specification, which daemons of before have on disk
        for chain in [honest[0], honest[1], Digest::of(format!("{a} {b}").as_bytes())] {
            for posing in [names(&[chain, c]), names(&[chain, b, c])] {
                assert!(posing.iter().all(|name| !honest.contains(name) && *name != chain), "{chain}");
            }
        }
        assert_eq!(names(&[a, b]), honest[..2], "layers that are the same from the bottom are shared");
    }
}
