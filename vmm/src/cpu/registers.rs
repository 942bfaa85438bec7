//! Registers, descriptor table and page tables for the 64-bit entry of the Linux x86 boot protocol
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): long mode, the first GiB mapped one to one, RSI on the
//! zero page, interrupts off.
//!
//! Only the boot processor gets them: the others wait in KVM until the kernel sends them a start-up interrupt.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{layout, memory::GuestMemory};

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;

const PAGE_PRESENT: u64 = 1;
const PAGE_WRITABLE: u64 = 1 << 1;
const PAGE_LARGE: u64 = 1 << 7;

/// Descriptors at the places that the boot protocol names: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18; a task state behind.
const DESCRIPTORS: [u64; 5] = [0, 0, CODE, DATA, TASK];
/// 64-bit code, present, readable, 4 GiB.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Data, present, writable, 4 GiB.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy 64-bit task state, which KVM's entry checks demand; the kernel loads its own.
const TASK: u64 = 0x008f_8b00_0000_ffff;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Memory type ranges on, all memory write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the page tables and the descriptor table into guest memory.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let [level4, level3, level2] = [0, 1, 2].map(|n| layout::PAGE_TABLES + n * 0x1000);
    memory.write_obj(level3 | PAGE_PRESENT | PAGE_WRITABLE, GuestAddress(level4))?;
    memory.write_obj(level2 | PAGE_PRESENT | PAGE_WRITABLE, GuestAddress(level3))?;
    let mut table = [0_u8; 0x1000];
    for (index, entry) in table.chunks_exact_mut(8).enumerate() {
        let page = (index as u64) << 21 | PAGE_PRESENT | PAGE_WRITABLE | PAGE_LARGE;
        entry.copy_from_slice(&page.to_le_bytes());
    }
    memory.write_slice(&table, GuestAddress(level2))?;
    memory.write_obj(DESCRIPTORS, GuestAddress(layout::GDT))
}

/// Turns the special registers that KVM starts with into those of the entry.
pub fn special(mut sregs: kvm_sregs) -> kvm_sregs {
    sregs.cr0 = CR0_PROTECTED | CR0_PAGING;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = size_of_val(&DESCRIPTORS) as u16 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(2);
    let data = segment(3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(4);
    sregs
}

/// The general registers at the kernel's entry point.
pub fn general(entry: u64) -> kvm_regs {
    const RESERVED_ALWAYS_ONE: u64 = 2;
    kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: RESERVED_ALWAYS_ONE,
        ..Default::default()
    }
}

/// The floating point unit after reset, as the ABI has it: all exceptions masked.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// Model-specific registers that every processor starts with.
pub fn model_specific() -> Result<Msrs, vmm_sys_util::fam::Error> {
    let register = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[
        register(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        register(MSR_MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK),
    ])
}

/// What the processor would load for selector `index * 8`.
fn segment(index: u8) -> kvm_segment {
    let descriptor = DESCRIPTORS[usize::from(index)];
    let bits = |shift: u32, width: u32| (descriptor >> shift & ((1 << width) - 1)) as u8;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    let granular = bits(55, 1);
    kvm_segment {
        base: descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000,
        limit: if granular == 1 { limit << 12 | 0xfff } else { limit },
        selector: u16::from(index) * 8,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: granular,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{self, Backing};

    #[test]
    fn page_tables_map_the_first_gib_one_to_one() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        write_tables(&memory).unwrap();
        let walk = |address: u64| {
            let mut table = special(kvm_sregs::default()).cr3;
            for shift in [39, 30, 21] {
                let entry: u64 =
                    memory.read_obj(GuestAddress(table + (address >> shift & 0x1ff) * 8)).unwrap();
                assert_eq!(entry & 3, 3, "present and writable");
                table = entry & !0xfff;
            }
            table + (address & 0x1f_ffff)
        };
        for address in [0, 0x10_0000, 0x100_1234, (1 << 30) - 1] {
            assert_eq!(walk(address), address);
        }
    }

    #[test]
    fn code_segment_is_flat_64_bit_code() {
        let cs = segment(2);
        assert_eq!((cs.selector, cs.base, cs.limit), (0x10, 0, 0xffff_ffff));
        assert_eq!((cs.type_, cs.s, cs.present, cs.l, cs.db, cs.g), (0xb, 1, 1, 1, 0, 1));
    }

    #[test]
    fn data_segment_is_flat_and_writable() {
        let ds = segment(3);
        assert_eq!((ds.selector, ds.limit, ds.type_, ds.db), (0x18, 0xffff_ffff, 3, 1));
    }
}
