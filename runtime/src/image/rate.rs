//! Requires a minimum rate of a registry: bytes a second, over the time in which the download waited for them, with a grace
//! period for pauses.
//!
//! Waiting uses the grace period up, and bytes restore it, at most to its full length: a fast beginning does not pay for a slow
//! end. Time in which the download waits for the converter does not count. Used by `download`.

use super::answer::Refusal;
use std::time::Duration;

/// The rate of one place, as far as it matters: what is left of its grace period.
#[derive(Debug, Clone)]
pub struct MinimumRate {
    /// Bytes a second.
    least: u64,
    grace: Duration,
    left: Duration,
}

impl MinimumRate {
    /// The whole grace period is left. `least` is in bytes a second; 0 accepts any rate.
    pub fn new(least: u64, grace: Duration) -> Self {
        Self { least, grace, left: grace }
    }

    /// Counts bytes that came.
    pub fn received(&mut self, bytes: usize) {
        if let Some(earned) = (bytes as u64).saturating_mul(1_000_000).checked_div(self.least) {
            self.left = self.left.saturating_add(Duration::from_micros(earned)).min(self.grace);
        }
    }

    /// Counts time in which the download waited for bytes.
    pub fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// The refusal that gives the place up, once its grace period is used up.
    pub fn refusal(&self) -> Option<Refusal> {
        let too_slow = self.least > 0 && self.left.is_zero();
        let reason = || {
            let (least, grace) = (self.least, self.grace.as_secs_f32());
            format!("sent less than {least} bytes a second for {grace} s (image.min_rate_kib_s)")
        };
        too_slow.then(|| Refusal::unavailable(reason()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_too_slow(rate: &MinimumRate) -> bool {
        rate.refusal().is_some()
    }

    #[test]
    fn byte_now_and_then_is_too_slow_after_the_grace_period() {
        let mut rate = MinimumRate::new(1000, Duration::from_secs(300));
        for _ in 0..10 {
            assert!(!is_too_slow(&rate));
            rate.received(1);
            rate.waited(Duration::from_secs(29));
        }
        rate.waited(Duration::from_secs(29));
        assert!(is_too_slow(&rate));
        assert!(rate.refusal().unwrap().reason.contains("less than 1000 bytes a second for 300 s"));
    }

    #[test]
    fn minimum_rate_may_last_for_ever() {
        let mut rate = MinimumRate::new(1000, Duration::from_secs(10));
        for _ in 0..1000 {
            rate.waited(Duration::from_secs(5));
            rate.received(5000);
        }
        assert!(!is_too_slow(&rate));
    }

    #[test]
    fn fast_beginning_does_not_pay_for_a_slow_end() {
        let mut rate = MinimumRate::new(1000, Duration::from_secs(10));
        rate.received(1 << 30);
        rate.waited(Duration::from_secs(11));
        assert!(is_too_slow(&rate));
    }

    #[test]
    fn without_a_minimum_any_rate_is_accepted() {
        let mut rate = MinimumRate::new(0, Duration::from_secs(1));
        rate.received(1);
        rate.waited(Duration::from_secs(1000));
        assert!(!is_too_slow(&rate));
    }
}
