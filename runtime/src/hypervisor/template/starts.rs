//! Pods' VMs that are being started, so that background work can wait for a moment when there are none.
//!
//! [`super::Templates`] holds the count; `cloning` counts each VM that it starts. It must never hold a pod's
//! start up.

use crate::lock::lock;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Counts the starts of one node.
#[derive(Debug, Clone, Default)]
pub struct Starts(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    under_way: u32,
    last_end: Option<Instant>,
}

/// One VM that is being started, until this is dropped.
#[derive(Debug)]
pub struct Starting(Starts);

impl Starts {
    /// Counts one more.
    pub fn begin(&self) -> Starting {
        self.counts().under_way += 1;
        Starting(self.clone())
    }

    /// Waits until no start has been under way for as long as `length`, but not longer than `limit`. Answers
    /// whether it is quiet.
    pub async fn quiet(&self, length: Duration, limit: Duration) -> bool {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let missing = length.saturating_sub(self.quiet_since(now));
            let left = limit.saturating_sub(now.duration_since(begun));
            if missing.is_zero() || left.is_zero() {
                return missing.is_zero();
            }
            sleep(missing.min(left)).await;
        }
    }

    /// Time since the last start ended; none while one is under way.
    fn quiet_since(&self, now: Instant) -> Duration {
        match *self.counts() {
            Counts { under_way: 0, last_end: None } => Duration::MAX,
            Counts { under_way: 0, last_end: Some(end) } => now.saturating_duration_since(end),
            _ => Duration::ZERO,
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.0)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut counts = self.0.counts();
        counts.under_way -= 1;
        counts.last_end = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn node_without_starts_is_quiet_at_once() {
        assert!(Starts::default().quiet(LONG, Duration::ZERO).await);
    }

    #[tokio::test]
    async fn start_under_way_and_the_time_after_it_are_waited_for() {
        let starts = Starts::default();
        let (first, second) = (starts.begin(), starts.begin());
        drop(first);
        assert!(!starts.quiet(SHORT, SHORT).await, "one is under way");
        let waiting = starts.clone();
        let waited = tokio::spawn(async move { waiting.quiet(SHORT, LONG).await });
        sleep(SHORT / 3).await;
        let ended = Instant::now();
        drop(second);
        assert!(waited.await.unwrap());
        assert!(ended.elapsed() >= SHORT, "it did not wait after the last start");
    }

    #[tokio::test]
    async fn node_that_is_never_quiet_is_waited_for_up_to_the_limit() {
        let starts = Starts::default();
        let _busy = starts.begin();
        let begun = Instant::now();
        assert!(!starts.quiet(LONG, SHORT).await);
        assert!(begun.elapsed() < LONG);
    }
}
