//! What the guest's processors say about themselves: all that KVM supports but virtualization, with the processor's own id
//! and a topology of one package of plain cores.
//!
//! KVM takes these features for what the guest may use: without VMX or SVM it refuses the control registers and
//! model-specific registers that belong to them. So the largest and most often broken part of KVM, running the VMs of a guest,
//! is closed unless the pod's handler asks for it.
//!
//! Without its id in every topology leaf, the second processor of a guest reports a broken firmware; without the
//! deadline timer bit the kernel spends a tenth of a second on calibrating another one.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX: virtualization of Intel.
const VMX: u32 = 1 << 5;
/// Leaf 0x8000_0001, ECX: virtualization of AMD, and its secure start.
const SVM: u32 = 1 << 2 | 1 << 12;
/// Leaf 1, ECX.
const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, EDX: leaf 1 EBX holds a processor count.
const HYPER_THREADING: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX, AMD: extra performance counters for cores and north bridge.
const AMD_PERFORMANCE_COUNTERS: u32 = 1 << 23 | 1 << 24;

/// Which of how many processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The processor's number and APIC id.
    pub id: u8,
    /// Processors of the machine, at least 1.
    pub vcpus: u8,
}

impl Topology {
    /// Bits of an APIC id that tell the cores of the package apart.
    fn core_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }
}

/// The processor at `place` on a host where KVM supports `supported`. With `nested`, the guest may run VMs of its own.
pub fn for_vcpu(supported: &CpuId, place: Topology, nested: bool) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|e| !matches!(e.function, 0xb | 0x1f))
        .map(|entry| adapt(*entry, place))
        .map(|entry| if nested { entry } else { without_virtualization(entry) })
        .collect();
    let last_basic_leaf = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    if last_basic_leaf >= 0xb {
        entries.extend(topology(place));
    }
    CpuId::from_entries(&entries)
}

fn adapt(mut entry: kvm_cpuid_entry2, place: Topology) -> kvm_cpuid_entry2 {
    let id = u32::from(place.id);
    let others = u32::from(place.vcpus) - 1;
    match entry.function {
        1 => {
            let count = u32::from(place.vcpus).next_power_of_two();
            entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
            entry.ecx |= HYPERVISOR | TSC_DEADLINE;
            entry.edx |= if others > 0 { HYPER_THREADING } else { 0 };
        }
        // Caches of Intel: the last level is shared by all cores, the others by none.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { others } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | others << 26;
        }
        // No performance counters: the kernel would only spend time on finding that they do not work.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !AMD_PERFORMANCE_COUNTERS,
        0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD: core count and the width of the core number in an APIC id.
        0x8000_0008 => entry.ecx = others | place.core_bits() << 12,
        // Caches of AMD.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { others } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // AMD: extended APIC id; core number, one thread per core; one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
    entry
}

/// The leaf without VMX and SVM. What depends on them is in model-specific registers, which KVM refuses then, and in the leaf
/// of SVM's own features.
pub(super) fn without_virtualization(mut entry: kvm_cpuid_entry2) -> kvm_cpuid_entry2 {
    match entry.function {
        1 => entry.ecx &= !VMX,
        0x8000_0001 => entry.ecx &= !SVM,
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
    entry
}

/// Leaf 0xb: one thread per core, all cores in one package, ids without gaps.
fn topology(place: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: u32::from(place.id),
        ..Default::default()
    };
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    [level(0, THREAD, 0, 1), level(1, CORE, place.core_bits(), u32::from(place.vcpus)), level(2, 0, 0, 0)]
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn host(functions: &[u32]) -> CpuId {
        let entries: Vec<_> = functions
            .iter()
            .map(|f| kvm_cpuid_entry2 {
                function: *f,
                eax: if *f == 0 { 0xd } else { 0xffff_ffff },
                ebx: 0xffff_ffff,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = |e: &&kvm_cpuid_entry2| e.function == function && e.index == index;
        *cpuid.as_slice().iter().find(found).unwrap()
    }

    #[test]
    fn leaf_1_has_id_count_and_the_deadline_timer() {
        let cpuid = for_vcpu(&host(&[0, 1]), Topology { id: 2, vcpus: 3 }, false).unwrap();
        let leaf = leaf(&cpuid, 1, 0);
        assert_eq!(leaf.ebx, 2 << 24 | 4 << 16 | 0xffff);
        assert_eq!(leaf.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(leaf.edx, HYPER_THREADING);
    }

    /// A host whose KVM would let guests run VMs, of both makers at once.
    pub fn virtualizing() -> CpuId {
        let all = |function| kvm_cpuid_entry2 {
            function,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        CpuId::from_entries(&[1, 0x8000_0001, 0x8000_000a].map(all)).unwrap()
    }

    #[test]
    fn guest_sees_no_virtualization() {
        let cpuid = for_vcpu(&virtualizing(), Topology { id: 0, vcpus: 1 }, false).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0).ecx, !VMX);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & (1 << 2 | 1 << 12), 0);
        let svm = leaf(&cpuid, 0x8000_000a, 0);
        assert_eq!((svm.eax, svm.ebx, svm.ecx, svm.edx), (0, 0, 0, 0));
    }

    #[test]
    fn guest_that_may_nest_sees_what_kvm_supports() {
        let cpuid = for_vcpu(&virtualizing(), Topology { id: 0, vcpus: 1 }, true).unwrap();
        assert_eq!(leaf(&cpuid, 1, 0).ecx & VMX, VMX);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & SVM, SVM);
        assert_eq!(leaf(&cpuid, 0x8000_000a, 0).ebx, !0);
    }

    #[test]
    fn topology_counts_cores_and_replaces_the_hosts() {
        let cpuid = for_vcpu(&host(&[0, 1, 0xb, 0x1f]), Topology { id: 3, vcpus: 4 }, false).unwrap();
        assert_eq!(leaf(&cpuid, 0xb, 0).ebx, 1);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 4, 3));
        assert_eq!(leaf(&cpuid, 0xb, 2).ebx, 0);
        assert!(!cpuid.as_slice().iter().any(|e| e.function == 0x1f));
    }

    #[test]
    fn last_level_cache_is_shared_and_the_first_is_not() {
        let first = kvm_cpuid_entry2 { function: 4, eax: 1 << 5 | 1, ..Default::default() };
        let last = kvm_cpuid_entry2 { function: 4, eax: 3 << 5 | 3, index: 3, ..Default::default() };
        let place = Topology { id: 0, vcpus: 4 };
        assert_eq!(adapt(first, place).eax >> 14 & 0xfff, 0);
        assert_eq!(adapt(last, place).eax >> 14 & 0xfff, 3);
    }

    #[test]
    fn amd_leaves_carry_the_core_count_and_id() {
        let cpuid =
            for_vcpu(&host(&[0x8000_0008, 0x8000_001e]), Topology { id: 1, vcpus: 2 }, false).unwrap();
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 1 << 12 | 1);
        let ids = leaf(&cpuid, 0x8000_001e, 0);
        assert_eq!((ids.eax, ids.ebx, ids.ecx), (1, 1, 0));
    }
}
