//! Host users: the user and group id that the processes of a pod's VM have on the node, which are no other
//! pod's.
//!
//! ```text
//!   STATE_DIR/users/UID.json   names the owner, as long as the id is taken
//! ```
//!
//! Used by `sandbox`, an owner by its id. What is on disk is all there is: an id whose record is there is
//! given to nobody, whichever other records are lost or cannot be read. The last id of the configured range
//! is for templates ([`VmConfig::template_uid`](crate::config::VmConfig::template_uid)) and never allocated
//! here.

use crate::lock::lock;
use crate::store::{Collection, Durability, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

/// Allocates host users.
pub struct HostUsers {
    uids: Range<u32>,
    records: Collection<Taken>,
    /// Held from the look for a free id to its record.
    allocating: Mutex<()>,
}

/// The record of an id that is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    /// Who has it.
    owner: String,
}

impl HostUsers {
    /// Those of `uids` that have no record below `state_dir` are free.
    ///
    /// # Errors
    /// Where the directory of the records cannot be made.
    pub fn open(state_dir: &Path, uids: Range<u32>) -> Result<Self, StoreError> {
        // What an id is taken for ends with the machine, as its record does.
        let records = Collection::open(state_dir.join("users"), Durability::Process)?;
        Ok(Self { uids, records, allocating: Mutex::new(()) })
    }

    /// How many ids there are in all.
    pub fn count(&self) -> u32 {
        self.uids.end - self.uids.start
    }

    /// Takes the first free id for `owner`; `None` where all are taken.
    ///
    /// # Errors
    /// Where the records cannot be listed, or that of the id cannot be written.
    pub fn allocate(&self, owner: &str) -> Result<Option<u32>, StoreError> {
        let _one_at_a_time = lock(&self.allocating);
        let taken: HashSet<u32> = self.records.ids()?.iter().filter_map(|id| id.parse().ok()).collect();
        let Some(uid) = self.uids.clone().find(|uid| !taken.contains(uid)) else { return Ok(None) };
        self.take(uid, owner)?;
        Ok(Some(uid))
    }

    /// Frees an id that `owner` has; one that is free, or another owner's, stays as it is. No process may run
    /// as that user any more.
    ///
    /// # Errors
    /// Where the record cannot be read or removed: the id stays taken.
    pub fn release(&self, uid: u32, owner: &str) -> Result<(), StoreError> {
        let id = uid.to_string();
        match self.records.get(&id)? {
            Some(taken) if taken.owner == owner => self.records.remove(&id),
            _ => Ok(()),
        }
    }

    /// Brings the records in line with what a starting daemon found: `held` are the ids that owners have by
    /// their own records, of which a daemon of an earlier version wrote none here. Frees ids whose owner has
    /// none of these, except where `may_run` says that something of the owner may still run.
    ///
    /// # Errors
    /// Where a record cannot be read, written or removed.
    pub fn adopt(
        &self,
        held: &BTreeMap<u32, String>,
        may_run: impl Fn(&str) -> bool,
    ) -> Result<(), StoreError> {
        for (id, taken) in self.records.load()?.documents {
            let is_held = id.parse().is_ok_and(|uid| held.contains_key(&uid));
            if !is_held && !may_run(&taken.owner) {
                tracing::warn!(uid = id, owner = taken.owner, "host user of no pod is freed");
                self.records.remove(&id)?;
            }
        }
        held.iter().try_for_each(|(uid, owner)| self.take(*uid, owner))
    }

    fn take(&self, uid: u32, owner: &str) -> Result<(), StoreError> {
        self.records.put(&uid.to_string(), &Taken { owner: owner.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_until_they_are_released_by_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let users = HostUsers::open(directory.path(), 10..13).unwrap();
        let allocate = |owner| users.allocate(owner).unwrap();
        assert_eq!(["a", "b", "c", "d"].map(allocate), [Some(10), Some(11), Some(12), None]);
        users.release(11, "a").unwrap();
        assert_eq!(allocate("d"), None, "another owner released it");
        users.release(11, "b").unwrap();
        users.release(11, "b").unwrap();
        assert_eq!(allocate("d"), Some(11));
        assert_eq!(users.count(), 3);
    }

    #[test]
    fn another_daemon_gives_nobody_what_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let open = || HostUsers::open(directory.path(), 10..13).unwrap();
        assert_eq!(open().allocate("a").unwrap(), Some(10));
        std::fs::write(directory.path().join("users/11.json"), "not a record").unwrap();
        assert_eq!(open().allocate("b").unwrap(), Some(12), "what cannot be read is taken");
    }

    #[test]
    fn ids_at_once_are_all_different() {
        let directory = tempfile::tempdir().unwrap();
        let users = HostUsers::open(directory.path(), 0..100).unwrap();
        let mut uids: Vec<u32> = std::thread::scope(|scope| {
            let allocate = |owner: u32| users.allocate(&owner.to_string()).unwrap().unwrap();
            let threads: Vec<_> = (0..40).map(|owner| scope.spawn(move || allocate(owner))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        uids.sort_unstable();
        assert_eq!(uids, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn starting_daemon_writes_what_an_earlier_version_did_not_and_frees_what_nobody_has() {
        let directory = tempfile::tempdir().unwrap();
        let users = HostUsers::open(directory.path(), 10..20).unwrap();
        for owner in ["stays", "gone", "runs"] {
            users.allocate(owner).unwrap();
        }
        let held = BTreeMap::from([(10, "stays".to_owned()), (13, "old".to_owned())]);
        users.adopt(&held, |owner| owner == "runs").unwrap();
        assert_eq!(["b", "c"].map(|owner| users.allocate(owner).unwrap()), [Some(11), Some(14)]);
    }
}
