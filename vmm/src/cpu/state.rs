//! The whole state of one processor that is stopped: taken from a template's, given to a clone's.
//!
//! Order matters on both sides and is KVM's: the run state first when reading, as asking for it brings
//! pending events to rest; the local APIC before the model-specific registers when writing, as the deadline
//! timer is one of these and is refused while the APIC's timer is in another mode
//! (Documentation/virt/kvm/api.rst). Called by the machine and by `restore`.
#![allow(unsafe_code)]

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::cpuid::without_virtualization;

/// A part of a processor's state that KVM refused.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// An ioctl failed.
    #[error("kvm cannot {what}")]
    Ioctl {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: kvm_ioctls::Error,
    },
    /// A model-specific register does not take the value it had.
    #[error("kvm refuses the saved value of model-specific register {index:#x}")]
    Msr {
        /// Its number.
        index: u32,
    },
    /// Lists longer than KVM's own.
    #[error("processor state is too large")]
    Size(#[from] vmm_sys_util::fam::Error),
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Ioctl { what, source }
}

/// All that KVM keeps of a processor.
#[derive(Default, Serialize, Deserialize)]
pub struct VcpuState {
    features: Vec<kvm_cpuid_entry2>,
    run_state: kvm_mp_state,
    general: kvm_regs,
    special: kvm_sregs,
    extended: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    model_specific: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl VcpuState {
    /// Saves the state of a processor that is stopped and has no exit left to be completed. `msrs` are the
    /// numbers of all registers that KVM knows; those that it does not let be read, or be written back, are
    /// left out.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, VcpuStateError> {
        let run_state = vcpu.get_mp_state().map_err(failed("read the run state"))?;
        Ok(Self {
            run_state,
            general: vcpu.get_regs().map_err(failed("read the registers"))?,
            special: vcpu.get_sregs().map_err(failed("read the special registers"))?,
            extended: vcpu.get_xsave().map_err(failed("read the extended state"))?,
            extended_control: vcpu.get_xcrs().map_err(failed("read the extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(failed("read the debug registers"))?,
            local_apic: vcpu.get_lapic().map_err(failed("read the local apic"))?,
            model_specific: model_specific(vcpu, msrs)?,
            events: vcpu.get_vcpu_events().map_err(failed("read the pending events"))?,
            features: features(vcpu)?,
        })
    }

    /// The features that a new processor must have been made with before it can be given this state. Without
    /// `nested` the guest runs no VMs of its own, whatever the state says.
    pub fn features(&self, nested: bool) -> Result<CpuId, VcpuStateError> {
        let mut features = CpuId::from_entries(&self.features)?;
        if !nested {
            features.as_mut_slice().iter_mut().for_each(|entry| *entry = without_virtualization(*entry));
        }
        Ok(features)
    }

    /// Gives a new processor this state; it was made with the same [`Self::features`].
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        vcpu.set_mp_state(self.run_state).map_err(failed("set the run state"))?;
        vcpu.set_sregs(&self.special).map_err(failed("set the special registers"))?;
        vcpu.set_regs(&self.general).map_err(failed("set the registers"))?;
        // SAFETY: KVM reads as many bytes as guests may have by the features that this process asked the host for. It asked
        // for none, so these are the 4096 of the structure (`Vm::check_extended_state` saw to it when the template was saved).
        unsafe { vcpu.set_xsave(&self.extended) }.map_err(failed("set the extended state"))?;
        vcpu.set_xcrs(&self.extended_control).map_err(failed("set the extended control registers"))?;
        vcpu.set_debug_regs(&self.debug).map_err(failed("set the debug registers"))?;
        vcpu.set_lapic(&self.local_apic).map_err(failed("set the local apic"))?;
        let model_specific = Msrs::from_entries(&self.model_specific)?;
        let written = vcpu.set_msrs(&model_specific).map_err(failed("set model-specific registers"))?;
        if let Some(refused) = self.model_specific.get(written) {
            return Err(VcpuStateError::Msr { index: refused.index });
        }
        vcpu.set_vcpu_events(&self.events).map_err(failed("set the pending events"))?;
        // Tells the guest that it stood still, so that no watchdog barks. A guest without KVM's clock is not told.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }
}

/// The registers of `indices` that can be read and take back the value that was read.
fn model_specific(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let entry = |index: &u32| kvm_msr_entry { index: *index, ..Default::default() };
    let read = all_but_refused(indices.iter().map(entry).collect(), |batch| {
        vcpu.get_msrs(batch).map_err(failed("read model-specific registers"))
    })?;
    all_but_refused(read, |batch| vcpu.set_msrs(batch).map_err(failed("set model-specific registers")))
}

fn features(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, VcpuStateError> {
    let features = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("read the features"))?;
    Ok(features.as_slice().to_vec())
}

/// Hands `entries` to KVM, which stops at the first that it refuses: goes on behind it, without it.
fn all_but_refused(
    entries: Vec<kvm_msr_entry>,
    mut hand_over: impl FnMut(&mut Msrs) -> Result<usize, VcpuStateError>,
) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut taken = Vec::with_capacity(entries.len());
    let mut rest = entries.as_slice();
    while !rest.is_empty() {
        let mut batch = Msrs::from_entries(rest)?;
        let count = hand_over(&mut batch)?.min(rest.len());
        taken.extend_from_slice(&batch.as_slice()[..count]);
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::super::cpuid::tests::virtualizing;
    use super::*;

    #[test]
    fn features_of_a_state_have_no_virtualization_unless_it_nests() {
        let features = virtualizing().as_slice().to_vec();
        let state = VcpuState { features: features.clone(), ..Default::default() };
        let ecx = |nested| -> Vec<_> {
            state.features(nested).unwrap().as_slice().iter().map(|entry| entry.ecx).collect()
        };
        // VMX; SVM and its secure start; all that SVM has.
        assert_eq!(ecx(false), [!(1 << 5), !(1 << 2 | 1 << 12), 0]);
        assert_eq!(state.features(true).unwrap().as_slice(), features);
    }

    #[test]
    fn registers_that_kvm_refuses_are_left_out() {
        let entries = (0..6).map(|index| kvm_msr_entry { index, ..Default::default() }).collect();
        // Takes what comes before the first of these.
        let refused = [0, 3, 5];
        let taken = all_but_refused(entries, |batch| {
            batch.as_mut_slice().iter_mut().for_each(|entry| entry.data = 7);
            let first = batch.as_slice().iter().position(|entry| refused.contains(&entry.index));
            Ok(first.unwrap_or(batch.as_slice().len()))
        });
        let taken: Vec<_> = taken.unwrap().iter().map(|entry| (entry.index, entry.data)).collect();
        assert_eq!(taken, [(1, 7), (2, 7), (4, 7)]);
    }
}
