//! Which images there are and what they are called: one record per image id, and the rule that a tag names one image.
//!
//! Used by `mod`, `pull` and `remove` under the service's lock. It must not touch files: what has to be written is given
//! back to the caller.

use super::digest::Digest;
use super::error::ImageError;
use super::reference::{Query, Reference, Version};
use crate::id::{Mismatch, resolve};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most names of one image, tags and digests together; where it gets more, others are dropped.
pub const MOST_NAMES: usize = 256;

/// Most bytes of the list of all images, as the CRI's messages have it, with what the daemon keeps of their
/// layers: half of the largest answer that kubelet takes.
pub const LARGEST_LIST: usize = 8 << 20;

/// Bytes of an image in that list beside its names and its user: id, size, user id, and what frames the
/// fields.
const LISTED_FIXED: usize = 160;

/// Bytes that frame one name in it.
const LISTED_NAME: usize = 6;

/// Bytes that one layer takes in memory. Images may have layers in common, so that no bound of the disk holds
/// for their number.
const LISTED_LAYER: usize = size_of::<LayerRecord>();

/// An image as it is kept on disk, in `records/HEX.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Digest of the configuration: the image's id in all of the CRI.
    pub id: Digest,
    /// Digest of the manifest for this machine's platform.
    pub manifest: Digest,
    /// Full names with tags.
    pub repo_tags: BTreeSet<String>,
    /// Full names with digests of manifests or indexes.
    pub repo_digests: BTreeSet<String>,
    /// Layers, the lowest first.
    pub layers: Vec<LayerRecord>,
    /// Bytes of all its files.
    pub size: u64,
    /// When it was pulled last, in nanoseconds since 1970: of two records that claim a tag, the later one has it.
    pub pulled_at: u128,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the layer upon those below it: its name on disk. Records of older daemons have the digest of the layer
    /// alone here, which named the files that those made.
    #[serde(alias = "diff_id")]
    pub chain_id: Digest,
    /// Bytes of its EROFS image.
    pub size: u64,
}

/// All images, by id.
#[derive(Debug, Default)]
pub struct Records(BTreeMap<Digest, Record>);

impl Record {
    /// Everything on disk that this image needs.
    pub fn content(&self) -> impl Iterator<Item = Digest> + '_ {
        [self.id, self.manifest].into_iter().chain(self.layers.iter().map(|layer| layer.chain_id))
    }

    /// All its names.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().chain(&self.repo_digests)
    }

    /// Spells all names as they are looked for; returns whether that has changed any.
    fn spell_names(&mut self) -> bool {
        let spell =
            |name: &String| Reference::parse(name).map_or_else(|_| name.clone(), |name| name.to_string());
        let names: [BTreeSet<String>; 2] =
            [&self.repo_tags, &self.repo_digests].map(|names| names.iter().map(spell).collect());
        let changed = names != [self.repo_tags.clone(), self.repo_digests.clone()];
        [self.repo_tags, self.repo_digests] = names;
        changed
    }

    /// Takes a name away.
    pub fn drop_name(&mut self, name: &str) {
        self.repo_tags.remove(name);
        self.repo_digests.remove(name);
    }

    /// Drops names until [`MOST_NAMES`] are left, and none of `kept`. They are of the registry that has most
    /// of those that can go: whoever names the images of others very often drops none of theirs. Digests go
    /// last, as the statuses of pods tell them.
    fn bound_names(&mut self, kept: &BTreeSet<String>) {
        let mut droppable: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
        let names = self.repo_digests.iter().rev().chain(self.repo_tags.iter().rev());
        for name in names.filter(|name| !kept.contains(*name)) {
            droppable.entry(registry_of(name)).or_default().push(name);
        }
        let surplus = self.names().count().saturating_sub(MOST_NAMES);
        let next = |_| droppable.values_mut().max_by_key(|names| names.len())?.pop().cloned();
        let dropped: Vec<String> = (0..surplus).map_while(next).collect();
        for name in dropped {
            self.drop_name(&name);
        }
    }

    /// Bytes that count towards [`LARGEST_LIST`], less its user.
    pub fn listed(&self) -> usize {
        let names = self.names().map(|name| name.len() + LISTED_NAME).sum::<usize>();
        LISTED_FIXED + names + self.layers.len() * LISTED_LAYER
    }
}

/// The registry of a full name.
pub fn registry_of(name: &str) -> &str {
    name.split_once('/').map_or("", |(registry, _)| registry)
}

impl Records {
    /// Takes what was on disk. A daemon that was killed between two writes left a tag with two images: the later one keeps
    /// it. Older daemons kept names as they were spelled. Gives back the ids of records that differ from
    /// their files now.
    pub fn load(records: impl IntoIterator<Item = Record>) -> (Self, Vec<Digest>) {
        let (mut all, mut changed) = (Self::default(), BTreeSet::new());
        let mut spell = |mut record: Record| {
            if record.spell_names() {
                changed.insert(record.id);
            }
            record
        };
        let mut by_time: Vec<_> = records.into_iter().map(&mut spell).collect();
        by_time.sort_by_key(|record| record.pulled_at);
        for record in by_time {
            changed.extend(all.insert(record).into_iter().map(|record| record.id));
        }
        (all, changed.into_iter().collect())
    }

    /// What an insertion of `record` would write: the record with the names that its image has already, as
    /// far as there is room for them ([`MOST_NAMES`]), then every other image that loses a tag by it.
    pub fn changes(&self, record: Record) -> Vec<Record> {
        let new = record.names().cloned().collect();
        let mut changed = self.changes_unbounded(record);
        if let Some(record) = changed.first_mut() {
            record.bound_names(&new);
        }
        changed
    }

    fn changes_unbounded(&self, mut record: Record) -> Vec<Record> {
        if let Some(old) = self.0.get(&record.id) {
            record.repo_tags.extend(old.repo_tags.iter().cloned());
            record.repo_digests.extend(old.repo_digests.iter().cloned());
        }
        let others = self.0.values().filter(|other| other.id != record.id);
        let losing = others.filter(|other| !other.repo_tags.is_disjoint(&record.repo_tags)).cloned();
        let losing = losing.map(|mut other| {
            other.repo_tags.retain(|tag| !record.repo_tags.contains(tag));
            other
        });
        let losing: Vec<_> = losing.collect();
        std::iter::once(record).chain(losing).collect()
    }

    /// Puts records in place of older ones of the same ids.
    pub fn replace(&mut self, changed: Vec<Record>) {
        self.0.extend(changed.into_iter().map(|record| (record.id, record)));
    }

    fn insert(&mut self, record: Record) -> Vec<Record> {
        let changed = self.changes_unbounded(record);
        self.replace(changed.clone());
        changed.into_iter().skip(1).collect()
    }

    /// Bytes of the list of all images with `changed` in place of older records, less their users.
    pub fn listed_with(&self, changed: &[Record]) -> usize {
        let kept = self.0.values().filter(|record| changed.iter().all(|other| other.id != record.id));
        kept.chain(changed).map(Record::listed).sum()
    }

    /// Forgets an image.
    pub fn remove(&mut self, id: &Digest) {
        self.0.remove(id);
    }

    /// Finds an image by id, by any of its names, or by the beginning of its id.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`] for a beginning of several ids.
    pub fn find(&self, query: &Query) -> Result<Option<&Record>, ImageError> {
        let (reference, beginning) = match query {
            Query::Id(id) => return Ok(self.0.get(id)),
            Query::Name(reference, beginning) => (reference, beginning),
        };
        if let Some(record) = self.named(reference) {
            return Ok(Some(record));
        }
        let Some(beginning) = beginning else { return Ok(None) };
        let ids: Vec<String> = self.0.keys().map(Digest::hex).collect();
        match resolve(beginning, ids.iter().map(String::as_str)) {
            Ok(hex) => Ok(Digest::from_hex(hex).and_then(|id| self.0.get(&id))),
            Err(Mismatch::None) => Ok(None),
            Err(Mismatch::Ambiguous) => Err(ImageError::Ambiguous(beginning.clone())),
        }
    }

    fn named(&self, reference: &Reference) -> Option<&Record> {
        let name = reference.to_string();
        self.0.values().find(|record| match reference.version() {
            Version::Tag(_) => record.repo_tags.contains(&name),
            Version::Digest(_) => record.repo_digests.contains(&name),
        })
    }

    /// The image of an id.
    pub fn get(&self, id: &Digest) -> Option<&Record> {
        self.0.get(id)
    }

    /// All images, by id.
    pub fn all(&self) -> impl Iterator<Item = &Record> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(content: &str, tags: &[&str], pulled_at: u128) -> Record {
        let id = Digest::of(content.as_bytes());
        Record {
            id,
            manifest: Digest::of(format!("manifest of {content}").as_bytes()),
            repo_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            repo_digests: [format!("docker.io/library/a@{id}")].into(),
            layers: Vec::new(),
            size: 1,
            pulled_at,
        }
    }

    const TAG: &str = "docker.io/library/a:1";
    const OTHER: &str = "docker.io/library/a:2";

    fn tags(records: &Records, content: &str) -> Vec<String> {
        records.0[&Digest::of(content.as_bytes())].repo_tags.iter().cloned().collect()
    }

    /// Records as any daemon could have left them: few images and tags, so that many share them.
    fn any_records() -> impl Strategy<Value = Vec<Record>> {
        let tags = prop::collection::btree_set((0u8..6).prop_map(|tag| format!("r.test/a:{tag}")), 0..4);
        let any = ((0u8..4), tags, 0u128..4);
        let any = any.prop_map(|(content, tags, pulled_at)| {
            let tags: Vec<_> = tags.iter().map(String::as_str).collect();
            record(&content.to_string(), &tags, pulled_at)
        });
        prop::collection::vec(any, 0..12)
    }

    proptest! {
        #[test]
        fn whatever_is_on_disk_a_tag_names_one_image(on_disk in any_records()) {
            let (records, changed) = Records::load(on_disk.clone());
            let tags: Vec<_> = records.all().flat_map(|record| &record.repo_tags).collect();
            let distinct: BTreeSet<_> = tags.iter().collect();
            prop_assert_eq!(distinct.len(), tags.len());
            let before: BTreeSet<_> = on_disk.iter().flat_map(|record| &record.repo_tags).collect();
            prop_assert!(tags.iter().all(|tag| before.contains(tag)));
            for record in records.all() {
                let id = record.id;
                prop_assert!(on_disk.iter().any(|old| old.id == id));
                prop_assert!(changed.contains(&id) || on_disk.iter().any(|old| old.id == id && old.repo_tags.is_subset(&record.repo_tags)));
            }
        }

        #[test]
        fn any_file_is_a_record_or_is_none(bytes: Vec<u8>, text in "[\\[\\]{}:,\"a-z0-9_]{0,200}") {
            for bytes in [bytes, text.into_bytes()] {
                prop_assert!(serde_json::from_slice::<Record>(&bytes).is_err());
            }
        }

        #[test]
        fn record_that_is_read_is_the_one_written(on_disk in any_records()) {
            for record in on_disk {
                let text = serde_json::to_vec(&record).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), record);
            }
        }
    }

    #[test]
    fn moved_tag_leaves_the_old_image_with_its_other_names() {
        let (mut records, changed) = Records::load([record("old", &[TAG, OTHER], 1)]);
        assert!(changed.is_empty());
        let changed = records.changes(record("new", &[TAG], 2));
        assert_eq!(changed.len(), 2);
        records.replace(changed);
        assert_eq!(
            (tags(&records, "old"), tags(&records, "new")),
            (vec![OTHER.to_owned()], vec![TAG.to_owned()])
        );
    }

    #[test]
    fn second_tag_of_one_image_joins_its_record() {
        let (mut records, _) = Records::load([record("a", &[TAG], 1)]);
        records.replace(records.changes(record("a", &[OTHER], 2)));
        assert_eq!(tags(&records, "a"), [TAG, OTHER]);
        assert_eq!(records.all().count(), 1);
    }

    #[test]
    fn tag_with_two_images_after_a_crash_is_the_later_ones() {
        let (records, changed) = Records::load([record("late", &[TAG], 2), record("early", &[TAG], 1)]);
        assert_eq!((tags(&records, "late"), tags(&records, "early")), (vec![TAG.to_owned()], vec![]));
        assert_eq!(changed, [Digest::of(b"early")]);
    }

    #[test]
    fn names_of_older_daemons_are_found_in_their_one_spelling() {
        let (records, changed) = Records::load([record("a", &["Quay.IO/a:1"], 1)]);
        assert_eq!(changed, [Digest::of(b"a")]);
        assert_eq!(tags(&records, "a"), ["quay.io/a:1"]);
        let found = records.find(&Query::parse("Quay.IO/a:1").unwrap()).unwrap();
        assert_eq!(found.map(|record| record.id), Some(Digest::of(b"a")));
    }

    #[test]
    fn image_is_found_by_id_name_digest_and_beginning_of_id() {
        let (records, _) = Records::load([record("a", &[TAG], 1), record("b", &[], 1)]);
        let id = Digest::of(b"a");
        let queries =
            [id.to_string(), id.hex(), id.hex()[..12].to_owned(), "a:1".to_owned(), format!("a@{id}")];
        for query in queries {
            let found = records.find(&Query::parse(&query).unwrap()).unwrap();
            assert_eq!(found.map(|record| record.id), Some(id), "{query}");
        }
        assert_eq!(records.find(&Query::parse("a:3").unwrap()).unwrap(), None);
    }
}
