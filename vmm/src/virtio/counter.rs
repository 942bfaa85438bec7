//! A number that one thread counts and another reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that a device counts up and the control thread reads, without the device's lock.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts `amount` more.
    pub fn add(&self, amount: usize) {
        self.0.fetch_add(amount as u64, Ordering::Relaxed);
    }

    /// Sets it: for numbers that also go down.
    pub fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
