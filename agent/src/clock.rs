//! The guest's wall clock: set once, in `SetUpSandbox`, and read for ends of processes and usage figures.
//!
//! The time in the call is old by as long as the call took to arrive, which is many milliseconds where the
//! host is busy. The host's clock itself can be read through KVM, where host and guest count time alike. It
//! must not overrule the call, only make it exact.

use rustix::io;
use rustix::time::{ClockId, DynamicClockId, Timespec, clock_gettime, clock_gettime_dynamic, clock_settime};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

/// The host's wall clock (drivers/ptp/ptp_kvm_common.c). It is the only clock of its kind in a guest.
const HOST_CLOCK: &str = "/dev/ptp0";

/// Longest way of a call, and some more. Whoever is further off has another idea of the time, and the call
/// counts.
const LONGEST_WAY: Duration = Duration::from_secs(60);

/// Returns the wall clock, in nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// Sets the wall clock to what a call told, or to what it is by now.
pub fn set(told: Duration) -> io::Result<()> {
    let time = exact(told, host_clock());
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() })
}

/// `None` where the guest has no such clock, or this host cannot tell it.
fn host_clock() -> Option<Duration> {
    let device = File::open(HOST_CLOCK).ok()?;
    let time = clock_gettime_dynamic(DynamicClockId::Dynamic(device.as_fd())).ok()?;
    Some(Duration::new(u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?))
}

fn exact(told: Duration, host: Option<Duration>) -> Duration {
    host.filter(|host| host.abs_diff(told) <= LONGEST_WAY).unwrap_or(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_clock_makes_the_told_time_exact_and_does_not_overrule_it() {
        let (told, second) = (Duration::from_secs(1_700_000_000), Duration::from_secs(1));
        assert_eq!(exact(told, None), told);
        assert_eq!(exact(told, Some(told + second)), told + second);
        assert_eq!(exact(told, Some(told + 61 * second)), told);
        assert_eq!(exact(told, Some(told - 61 * second)), told);
    }
}
