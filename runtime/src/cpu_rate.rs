//! CPU use as a rate (`usage_nano_cores`), from two readings of a counter, as containerd has it: the rate since the reading
//! before, which the next one follows on. Kept in memory by whoever owns the counter, so nothing is read on a timer, which
//! would wake idle guests.

use crate::lock::lock;
use std::sync::Mutex;

/// Readings that are closer together say little: the rate of those before is given again.
const CLOSE_NS: i64 = 1_000_000_000;

/// The last reading, and the rate that it ended.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at_ns: i64,
    used_ns: u64,
    rate: Option<u64>,
}

/// The rate of one counter of CPU time.
#[derive(Debug, Default)]
pub struct CpuRate(Mutex<Option<Reading>>);

impl CpuRate {
    /// Takes a reading: nanoseconds of CPU time used until a point in time. Answers nanoseconds per second since the reading
    /// before; none at the first one.
    pub fn read(&self, at_ns: i64, used_ns: u64) -> Option<u64> {
        let mut last = lock(&self.0);
        let rate = match *last {
            // A counter that goes back is another one: it begins anew.
            Some(before) if used_ns >= before.used_ns => {
                let elapsed = at_ns.saturating_sub(before.at_ns);
                let first = before.rate.is_none() && elapsed > 0;
                if elapsed < CLOSE_NS && !first {
                    return before.rate;
                }
                let used = u128::from(used_ns - before.used_ns) * 1_000_000_000;
                u64::try_from(used / u128::from(elapsed.unsigned_abs())).ok()
            }
            _ => None,
        };
        *last = Some(Reading { at_ns, used_ns, rate });
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn second_reading_gives_the_rate_since_the_first() {
        let rate = CpuRate::default();
        assert_eq!(rate.read(5 * SECOND, 100), None);
        assert_eq!(rate.read(7 * SECOND, 100 + 3_000_000_000), Some(1_500_000_000));
        assert_eq!(rate.read(9 * SECOND, 100 + 3_000_000_000), Some(0));
    }

    #[test]
    fn readings_that_are_close_together_keep_the_rate() {
        let rate = CpuRate::default();
        rate.read(0, 0);
        assert_eq!(rate.read(0, 0), None, "no time has passed");
        assert_eq!(rate.read(2 * SECOND, 2_000_000_000), Some(1_000_000_000));
        assert_eq!(rate.read(2 * SECOND + 5, 2_000_000_500), Some(1_000_000_000));
        assert_eq!(rate.read(4 * SECOND, 2_000_000_500), Some(250));
    }

    #[test]
    fn counter_that_goes_back_begins_anew() {
        let rate = CpuRate::default();
        rate.read(0, 1000);
        assert_eq!(rate.read(2 * SECOND, 10), None);
        assert_eq!(rate.read(4 * SECOND, 2_000_000_010), Some(1_000_000_000));
    }
}
