//! PullImage: manifest, configuration, layers, record. Forward only; each thing taken pushes its undo.
//!
//! Called by `cri/pull_image`. Dropping the future abandons the pull: layers that nobody else waits for are aborted.

use super::auth::SentCredentials;
use super::describe::{Described, describe};
use super::digest::Digest;
use super::error::ImageError;
use super::flight::Passengers;
use super::quota::Quota;
use super::records::{LARGEST_LIST, LayerRecord, Record};
use super::reference::{Reference, Version};
use super::session::Session;
use super::slots::Requester;
use super::{ImageUser, Images, State, blocking, user};
use crate::undo::{Failed, Undo};
use crate::wall_clock::now_ns;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Layers of one image that are on their way at once. A layer that waits for those below it has given its
/// slot back, but its converter and its pump stay in memory, and its download goes on.
const LAYERS_AT_ONCE: usize = 8;

/// One pull: whom it asks, and what its image may take.
pub struct Pull {
    /// Its conversation with registries.
    pub session: Session,
    /// Bound of its image.
    pub quota: Arc<Quota>,
    /// Tells it from the daemon's other pulls.
    pub number: u64,
}

impl Pull {
    /// For whom one of its layers is made: `pulls` wait for it, all of them from this pull's registry.
    pub fn requester(&self, pulls: Passengers) -> Requester {
        Requester { registry: self.session.reference().registry().to_owned(), pulls }
    }
}

impl Images {
    /// Pulls an image, whatever of it is not here yet, and gives its id.
    ///
    /// # Errors
    /// Nothing is left of an image that was not here before.
    pub async fn pull(&self, reference: &str, credentials: &SentCredentials) -> Result<Digest, ImageError> {
        let reference = Reference::parse(reference)?;
        let mut undo = Undo::new("PullImage");
        let pulled = self.pull_steps(&reference, credentials, &mut undo).await;
        if let Ok(id) = &pulled {
            tracing::info!(image = %reference, %id, "pulled");
        }
        // what could not be released is logged there, and collected at the next removal or start
        undo.settle(pulled).await.map_err(Failed::into_cause)
    }

    async fn pull_steps(
        &self,
        reference: &Reference,
        credentials: &SentCredentials,
        undo: &mut Undo,
    ) -> Result<Digest, ImageError> {
        let pull = Arc::new(Pull {
            session: self.0.registry.session(reference, credentials)?,
            quota: Quota::new(format!("image {reference}"), self.0.largest_image),
            number: self.0.pulls.fetch_add(1, Ordering::Relaxed),
        });
        let described = describe(&pull.session).await?;
        let announced = described.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.blob.size));
        pull.quota.check_archives(announced)?;
        // before the layers are fetched; which of them show, and how large they are, makes little difference
        let expected = described.record(reference, &vec![0; described.layers.len()], 0);
        self.state().changes(expected, &user(&described.configuration))?;

        self.pin_until_undone(undo, described.content())?;
        self.check_room(&described).await?;
        self.put_documents(&described).await?;
        let (pull, layers) = (&pull, &described.layers);
        // in order: a layer waits for those below it only, which have begun before it
        let having = stream::iter(0..layers.len()).map(|at| self.have_layer(pull, layers, at));
        let sizes: Vec<u64> = having.buffered(LAYERS_AT_ONCE).try_collect().await?;
        // with the files of layers that were here, or that other pulls made
        pull.quota.check_files(sizes.iter().fold(0, |sum, size| sum.saturating_add(*size)))?;
        let lowest = self.lowest_shown(layers).await?;

        let pinned = described.content();
        let id = self.commit(reference, described, &sizes, lowest).await?;
        self.unpin(&pinned);
        Ok(id)
    }

    /// Checks that the disk has room for the documents and layers that are not here, as far as their sizes
    /// are known before they are. An image that is here as a whole wants none: it can be pulled again while
    /// the disk is full.
    async fn check_room(&self, described: &Described) -> Result<(), ImageError> {
        let (content, layers, reserve) =
            (Arc::clone(&self.0.content), Arc::clone(&described.layers), self.0.converter.reserve);
        let manifest = (described.manifest.0, described.manifest.1.len() as u64);
        let documents = [manifest, (described.config.0, described.config.1.len() as u64)];
        blocking(move || {
            let missing = documents.iter().filter(|(digest, _)| !content.has_blob(digest));
            let mut wanted = missing.map(|(_, size)| size).sum::<u64>();
            for layer in layers.iter() {
                if content.layer_size(&layer.chain_id)?.is_none() {
                    wanted = wanted.saturating_add(layer.blob.size);
                }
            }
            if wanted == 0 { Ok(()) } else { content.check_room(wanted, reserve) }
        })
        .await
    }

    /// Keeps the image's content from being collected while this pull lasts: one step, as each undo of one
    /// looks at all that is on disk.
    fn pin_until_undone(&self, undo: &mut Undo, content: Vec<Digest>) -> Result<(), ImageError> {
        self.pin(&content);
        let images = self.clone();
        let release = move || async move {
            images.unpin(&content);
            images.collect_in_background().await
        };
        Ok(undo.push("content", release)?)
    }

    async fn put_documents(&self, described: &Described) -> Result<(), ImageError> {
        let content = Arc::clone(&self.0.content);
        let (manifest, config) = (described.manifest.clone(), described.config.clone());
        blocking(move || {
            content.put_blob(&manifest.0, &manifest.1)?;
            content.put_blob(&config.0, &config.1)
        })
        .await
    }

    /// Writes the record: from here on the image is there, even if the client has gone away.
    async fn commit(
        &self,
        reference: &Reference,
        described: Described,
        sizes: &[u64],
        lowest: usize,
    ) -> Result<Digest, ImageError> {
        let record = described.record(reference, sizes, lowest);
        let id = record.id;
        let images = self.clone();
        let pinned = described.content();
        self.pin(&pinned);
        let committing = tokio::spawn(async move {
            let written = images.write_record(record, user(&described.configuration)).await;
            images.unpin(&pinned);
            written
        });
        committing.await.map_err(|_| ImageError::Interrupted(format!("image {reference}")))??;
        // an image that lost its last name with this pull is kubelet's to remove, as it is with other runtimes
        Ok(id)
    }

    async fn write_record(&self, record: Record, user: ImageUser) -> Result<(), ImageError> {
        let _writing = self.0.writing.lock().await;
        let id = record.id;
        let changed = self.state().changes(record, &user)?;
        let (images, written) = (self.clone(), changed.clone());
        blocking(move || {
            written.iter().try_for_each(|record| Ok(images.0.documents.put(&record.id.hex(), record)?))
        })
        .await?;
        let mut state = self.state();
        state.users.insert(id, user);
        state.records.replace(changed);
        Ok(())
    }

    fn pin(&self, content: &[Digest]) {
        let mut state = self.state();
        for digest in content {
            *state.pins.entry(*digest).or_default() += 1;
        }
    }

    fn unpin(&self, content: &[Digest]) {
        let mut state = self.state();
        for digest in content {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
            }
        }
        state.pins.retain(|_, count| *count > 0);
    }

    /// Removes content that neither an image nor a pull needs.
    pub(super) async fn collect_in_background(&self) -> Result<(), ImageError> {
        let images = self.clone();
        blocking(move || images.collect_garbage()).await
    }

    /// As [`Self::collect_in_background`], blocking.
    pub(super) fn collect_garbage(&self) -> Result<(), ImageError> {
        // The directories are read before the lock is taken, which every call waits for.
        let condemned = self.0.content.kept().and_then(|found| {
            let state = self.state();
            let live: HashSet<_> = state.live().collect();
            self.0.content.condemn(found, |digest| live.contains(digest))
        });
        // What is out of sight goes, whatever could not be taken away.
        self.0.content.remove_condemned().and(condemned)
    }
}

impl State {
    /// What an insertion of `record`, of which `user` is in the configuration, would write.
    ///
    /// # Errors
    /// [`ImageError::TooManyImages`], where the list of all images would grow beyond its bound.
    fn changes(&self, record: Record, user: &ImageUser) -> Result<Vec<Record>, ImageError> {
        let id = record.id;
        let changed = self.records.changes(record);
        let others = self.users.iter().filter(|(other, _)| **other != id).map(|(_, user)| user.listed());
        let with = self.records.listed_with(&changed) + others.sum::<usize>() + user.listed();
        match with > LARGEST_LIST && with > self.listed_bytes() {
            true => Err(ImageError::TooManyImages { image: id, limit: LARGEST_LIST }),
            false => Ok(changed),
        }
    }

    /// Bytes that count towards [`LARGEST_LIST`].
    pub(super) fn listed_bytes(&self) -> usize {
        self.records.listed_with(&[]) + self.users.values().map(ImageUser::listed).sum::<usize>()
    }

    fn live(&self) -> impl Iterator<Item = Digest> + '_ {
        self.records.all().flat_map(Record::content).chain(self.pins.keys().copied())
    }
}

impl Described {
    fn content(&self) -> Vec<Digest> {
        let documents = [self.manifest.0, self.config.0];
        documents.into_iter().chain(self.layers.iter().map(|layer| layer.chain_id)).collect()
    }

    /// The image with its layers from `lowest` on.
    fn record(&self, reference: &Reference, sizes: &[u64], lowest: usize) -> Record {
        let tag = match reference.version() {
            Version::Tag(_) => Some(reference.to_string()),
            Version::Digest(_) => None,
        };
        let layers = self.layers.iter().zip(sizes).skip(lowest);
        let documents = (self.manifest.1.len() + self.config.1.len()) as u64;
        Record {
            id: self.config.0,
            manifest: self.manifest.0,
            repo_tags: tag.into_iter().collect(),
            repo_digests: [reference.with_digest(self.named).to_string()].into(),
            layers: layers
                .map(|(layer, size)| LayerRecord { chain_id: layer.chain_id, size: *size })
                .collect(),
            size: documents + sizes[lowest..].iter().sum::<u64>(),
            pulled_at: now_ns().unsigned_abs().into(),
        }
    }
}
