//! Locks of tables in memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a table. A panic ends the VM, so no lock is ever poisoned where that could be seen.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
