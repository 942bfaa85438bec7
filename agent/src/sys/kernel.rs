//! The guest's kernel as a whole: how long it has run, and its end.

use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time since the guest's kernel began.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Ends the VM. What is not yet on a disk is lost, as all of it is thrown away with the pod.
pub fn power_off() -> ! {
    // With no way to switch off, the kernel halts; a restart ends the VM as well, as its VMM never boots
    // twice.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    let _ = rustix::system::reboot(RebootCommand::Restart);
    // PID 1 must not end: the kernel would panic and hide the reason that was just written.
    loop {
        std::thread::park();
    }
}
