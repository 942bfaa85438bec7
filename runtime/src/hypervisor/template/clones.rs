//! How many clones of a template there are, and have been.
//!
//! Used by `holder`, which has the count, and by `cloning`, which holds a [`Lease`] as long as the clone
//! lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counts of one template.
#[derive(Debug, Default)]
pub struct Clones {
    alive: AtomicU64,
    made: AtomicU64,
    unpopulated: AtomicU64,
}

impl Clones {
    /// Clones that live.
    pub fn alive(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }

    /// Clones that were made, or found again, by this daemon.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Clones that were not given all of the working set, though it was known.
    pub fn unpopulated(&self) -> u64 {
        self.unpopulated.load(Ordering::Relaxed)
    }

    /// Counts one of those.
    pub fn not_populated(&self) {
        self.unpopulated.fetch_add(1, Ordering::Relaxed);
    }
}

/// One clone that lives.
#[derive(Debug)]
pub struct Lease {
    clones: Arc<Clones>,
}

impl Lease {
    /// Counts one more.
    pub fn new(clones: Arc<Clones>) -> Self {
        clones.alive.fetch_add(1, Ordering::Relaxed);
        clones.made.fetch_add(1, Ordering::Relaxed);
        Self { clones }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.clones.alive.fetch_sub(1, Ordering::Relaxed);
    }
}
