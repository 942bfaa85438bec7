//! Why a VM ended, and the one place where the first reason is kept.
//!
//! vCPU threads, devices and the control socket call [`ExitHandle::end`]; the event loop then stops and
//! `main` reads the reason. Later reasons are consequences of the first and are dropped.

use std::sync::{Arc, Mutex};

use crate::virtio::{DeviceError, event_loop::Stop};

/// Suberror of `KVM_EXIT_INTERNAL_ERROR`: KVM met an instruction that it cannot emulate.
const SUBERROR_EMULATION: u32 = 1;

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmExit {
    /// The guest powered off.
    #[error("guest powered off")]
    PowerOff,
    /// A client asked for it.
    #[error("stopped by request")]
    Stopped,
    /// It is a template now.
    #[error("saved as a template")]
    Saved,
    /// The guest reset itself. The kernel does so after a panic.
    #[error("guest reset itself, as its kernel does after a panic")]
    Reset,
    /// A processor could not even report its own fault.
    #[error("vcpu {vcpu}: triple fault")]
    TripleFault {
        /// The processor.
        vcpu: u8,
    },
    /// KVM gave up on the guest.
    #[error("vcpu {vcpu}: kvm internal error, suberror {suberror}{}", emulation_advice(*.suberror))]
    InternalError {
        /// The processor.
        vcpu: u8,
        /// `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
    },
    /// The hardware refused to enter the guest.
    #[error("vcpu {vcpu}: the processor refused to enter the guest, hardware reason {reason:#x}")]
    EntryFailed {
        /// The processor.
        vcpu: u8,
        /// As the hardware reports it.
        reason: u64,
    },
    /// An exit that a guest of this machine cannot cause.
    #[error("vcpu {vcpu}: unexpected exit {exit}")]
    Unexpected {
        /// The processor.
        vcpu: u8,
        /// KVM's name for it.
        exit: String,
    },
    /// `KVM_RUN` failed.
    #[error("vcpu {vcpu}: cannot run: {error}")]
    Run {
        /// The processor.
        vcpu: u8,
        /// The system's answer.
        error: vmm_sys_util::errno::Error,
    },
    /// A device gave up on its guest.
    #[error("{0}")]
    Device(DeviceError),
    /// The event loop failed.
    #[error("event loop failed: errno {errno}")]
    EventLoop {
        /// The system's answer.
        errno: i32,
    },
}

fn emulation_advice(suberror: u32) -> &'static str {
    if suberror != SUBERROR_EMULATION {
        return "";
    }
    "; it met an instruction that it cannot emulate; if every boot ends so, kvm on this host interprets its guests \
     instead of running them, and no stock kernel boots: use a host with hardware virtualization"
}

impl VmExit {
    /// Whether the end was asked for, by the guest or by a client.
    pub fn is_clean(&self) -> bool {
        matches!(self, VmExit::PowerOff | VmExit::Stopped | VmExit::Saved)
    }
}

/// Ends the VM, from any thread. The first reason counts.
#[derive(Clone)]
pub struct ExitHandle {
    reason: Arc<Mutex<Option<VmExit>>>,
    stop: Stop,
}

impl ExitHandle {
    /// Ends the loop that `stop` belongs to.
    pub fn new(stop: Stop) -> Self {
        Self { reason: Arc::default(), stop }
    }

    /// Ends the VM for `reason`.
    pub fn end(&self, reason: VmExit) {
        self.reason.lock().expect("nobody panics with this lock").get_or_insert(reason);
        self.stop.stop();
    }

    /// Why the VM ended, if it did.
    pub fn reason(&self) -> Option<VmExit> {
        self.reason.lock().expect("nobody panics with this lock").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::EventLoop;

    #[test]
    fn first_reason_counts() {
        let exit = ExitHandle::new(EventLoop::new().unwrap().stopper());
        assert_eq!(exit.reason(), None);
        exit.end(VmExit::TripleFault { vcpu: 1 });
        exit.end(VmExit::Stopped);
        assert_eq!(exit.reason(), Some(VmExit::TripleFault { vcpu: 1 }));
    }

    #[test]
    fn interpreting_kvm_is_named_with_what_to_do() {
        let text = VmExit::InternalError { vcpu: 0, suberror: 1 }.to_string();
        assert!(text.contains("interprets its guests") && text.contains("use a host"), "{text}");
        let other = VmExit::InternalError { vcpu: 0, suberror: 3 }.to_string();
        assert_eq!(other, "vcpu 0: kvm internal error, suberror 3");
    }
}
