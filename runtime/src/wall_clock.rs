//! The time of day, as CRI and the agent's protocol count it.
//!
//! Used wherever something is dated. Durations are measured with `std::time::Instant`, which nobody sets.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch; 0 on a host whose clock is before it.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
