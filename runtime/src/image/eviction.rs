//! Room in the list of all images: before a pull, and where the list is nearly full, images that no container
//! uses leave it, as kubelet's garbage collection would have it where they filled the disk. Without that,
//! whoever fills the list keeps everybody from pulling what is not here.
//!
//! | who leaves | |
//! |---|---|
//! | which registry's | that of which most is in the list: who names much makes room for the others |
//! | which of its images | the one that was pulled longest ago, and none that was pulled just now |
//! | an image that another registry names too | loses the names of this one only |
//! | an image that a container was made from | stays, with its id and the names that containers were made by |
//!
//! Called by `cri/pull_image`, which knows the containers. It must not refuse anything: that is `pull`'s
//! business.

use super::digest::Digest;
use super::error::ImageError;
use super::records::{LARGEST_LIST, Record, registry_of};
use super::reference::Query;
use super::{ImageUser, Images, State, blocking};
use crate::wall_clock::now_ns;
use std::collections::{BTreeMap, BTreeSet};

/// With so many bytes the list is nearly full. What is left takes dozens of the largest images, for pulls
/// under way at once.
const NEARLY_FULL: usize = LARGEST_LIST / 16 * 15;

/// Age of an image from which on it can leave, in nanoseconds: until then, kubelet may be about to make a
/// container of it. The same as kubelet's `imageMinimumGCAge`.
const OLD_ENOUGH: u128 = 120_000_000_000;

/// What containers use.
#[derive(Default)]
struct Used {
    ids: BTreeSet<Digest>,
    names: BTreeSet<String>,
}

/// What leaves the list.
#[derive(Default)]
struct Leaving {
    images: BTreeSet<Digest>,
    /// Images that lose names, without these.
    changed: BTreeMap<Digest, Record>,
}

/// A registry's part of the list.
#[derive(Default)]
struct Share {
    bytes: usize,
    /// Images that can leave, or lose its names: the one that was pulled last is the first.
    images: Vec<Digest>,
}

impl Images {
    /// Makes room for a pull where the list of all images is nearly full. `used` gives then what images
    /// containers were made from, by their ids and by names of any form.
    ///
    /// # Errors
    /// A record that cannot be written or removed.
    pub async fn make_room(&self, used: impl FnOnce() -> Vec<String>) -> Result<(), ImageError> {
        if self.state().listed_bytes() <= NEARLY_FULL {
            return Ok(());
        }
        let (images, used) = (self.clone(), Used::new(used()));
        // as a task: a client that goes away leaves nothing half removed
        let evicting = tokio::spawn(async move { images.evict(&used).await });
        evicting.await.map_err(|_| ImageError::Interrupted("the list of images".to_owned()))?
    }

    async fn evict(&self, used: &Used) -> Result<(), ImageError> {
        {
            let _writing = self.0.writing.lock().await;
            let leaving = Leaving::of(&self.state(), used, now_ns().unsigned_abs().into());
            if leaving.images.is_empty() && leaving.changed.is_empty() {
                return Ok(());
            }
            let images = self.clone();
            let leaving = blocking(move || images.write(leaving)).await?;
            let mut state = self.state();
            for id in &leaving.images {
                state.records.remove(id);
                state.users.remove(id);
            }
            state.records.replace(leaving.changed.into_values().collect());
            tracing::info!(images = leaving.images.len(), "removed: the list of all images was nearly full");
        }
        self.collect_in_background().await
    }

    fn write(&self, leaving: Leaving) -> Result<Leaving, ImageError> {
        for id in &leaving.images {
            self.0.documents.remove(&id.hex())?;
        }
        for (id, record) in &leaving.changed {
            self.0.documents.put(&id.hex(), record)?;
        }
        Ok(leaving)
    }
}

impl Used {
    fn new(names: Vec<String>) -> Self {
        let mut used = Self::default();
        for name in names {
            match Query::parse(&name) {
                Ok(Query::Id(id)) => {
                    used.ids.insert(id);
                }
                Ok(Query::Name(reference, _)) => {
                    used.names.insert(reference.to_string());
                }
                // no image is called so
                Err(_) => {}
            }
        }
        used
    }
}

impl Leaving {
    fn of(state: &State, used: &Used, now: u128) -> Self {
        let mut leaving = Self::default();
        let (mut size, mut shares) = (state.listed_bytes(), shares(state, now));
        while size > NEARLY_FULL {
            let movable = shares.iter_mut().filter(|(_, share)| !share.images.is_empty());
            let Some((registry, share)) = movable.max_by_key(|(_, share)| share.bytes) else { break };
            let Some(id) = share.images.pop() else { break };
            let freed = leaving.take(state, used, registry, id);
            share.bytes = share.bytes.saturating_sub(freed);
            size = size.saturating_sub(freed);
        }
        leaving
    }

    /// Takes what of the image `id` is of `registry`; returns how many bytes that frees.
    fn take(&mut self, state: &State, used: &Used, registry: &str, id: Digest) -> usize {
        let Some(record) = self.changed.get(&id).or_else(|| state.records.get(&id)) else { return 0 };
        let (mut record, before) = (record.clone(), record.listed());
        let goes = |name: &&String| registry_of(name) == registry && !used.names.contains(*name);
        let names: Vec<_> = record.names().filter(goes).cloned().collect();
        for name in names {
            record.drop_name(&name);
        }
        if record.names().next().is_none() && !used.ids.contains(&id) {
            self.changed.remove(&id);
            self.images.insert(id);
            return before + state.users.get(&id).map_or(0, ImageUser::listed);
        }
        let freed = before - record.listed();
        if freed > 0 {
            self.changed.insert(id, record);
        }
        freed
    }
}

/// What each registry has of the list: its names, and its part of what images take beside names.
fn shares(state: &State, now: u128) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    let mut by_age: Vec<&Record> = state.records.all().collect();
    by_age.sort_by_key(|record| std::cmp::Reverse(record.pulled_at));
    for record in by_age {
        let mut named: BTreeMap<&str, usize> = BTreeMap::new();
        for name in record.names() {
            *named.entry(registry_of(name)).or_default() += name.len();
        }
        if named.is_empty() {
            named.insert("", 0);
        }
        let all_names = named.values().sum::<usize>();
        let beside = record.listed() - all_names + state.users.get(&record.id).map_or(0, ImageUser::listed);
        let part = beside / named.len();
        for (registry, names) in named {
            let share = shares.entry(registry.to_owned()).or_default();
            share.bytes += names + part;
            if now.saturating_sub(record.pulled_at) >= OLD_ENOUGH {
                share.images.push(record.id);
            }
        }
    }
    shares
}
