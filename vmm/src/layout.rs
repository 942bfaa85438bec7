//! The guest-physical address map in one place: RAM, the boot structures in low memory, devices, ports; and
//! the sizes that a machine can have.
//!
//! Read by the builder, the ACPI tables and the tests; nothing else knows an address.
//!
//! ```text
//! 0x0000_0000  boot structures (GDT, zero page, page tables, command line)
//! 0x0009_fc00  reserved, as on every PC
//! 0x000e_0000  ACPI tables, and the VM's generation in the last page
//! 0x0010_0000  RAM: the kernel is loaded where its ELF header says
//! 0xc000_0000  end of low RAM; virtio-mmio devices from 0xd000_0000
//! 0xfec0_0000  I/O APIC, local APIC, KVM's private pages
//! 0x1_0000_0000 RAM that did not fit below, then the region that memory is plugged into
//! ```

use serde::{Deserialize, Serialize};

/// Global descriptor table for the first instructions of the kernel.
pub const GDT: u64 = 0x500;
/// `struct boot_params` (the "zero page" of the Linux x86 boot protocol).
pub const ZERO_PAGE: u64 = 0x7000;
/// First stack of the boot processor; the kernel leaves it at once.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the first GiB one to one: one page each for level 4, 3 and 2.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// `COMMAND_LINE_SIZE` of Linux on x86, with the final zero byte.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// End of RAM below the area that PCs reserve for the firmware.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Where the ACPI tables begin, the RSDP first.
pub const ACPI: u64 = 0xe_0000;
/// End of the space for ACPI tables.
pub const ACPI_END: u64 = VMGENID;
/// The VM's generation, in a page of the area that the memory map reserves.
pub const VMGENID: u64 = 0xf_f000;
/// Its size in bytes.
pub const VMGENID_SIZE: usize = 16;
/// RAM goes on here.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where a Linux kernel is linked to lie, `CONFIG_PHYSICAL_START`.
pub const KERNEL: u64 = 0x100_0000;
/// What an idle guest touches in part lies below: Linux hands out low memory first. Above are the page structures, at the very
/// end, which it fills, and what busy containers use. See docs/decisions/0008.
pub const IDLE_END: u64 = 0x280_0000;

/// How much memory behind what a template fills a clone gets in small pages: it is where an idle pod's few containers begin, and
/// large ones would be filled in part. See docs/decisions/0010.
pub const SETTLING: u64 = 32 << 20;

/// RAM below 4 GiB ends here at the latest.
pub const HOLE: u64 = 0xc000_0000;
/// RAM above the hole begins here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Linux adds memory in blocks of this size; of a region, it uses what holds whole ones.
const MEMORY_BLOCK: u64 = 128 * MIB;
/// A guest whose memory ends here or later may use blocks of up to [`LARGE_MEMORY_BLOCK`].
const LARGE_MEMORY: u64 = 64 << 30;
/// The largest that Linux uses.
const LARGE_MEMORY_BLOCK: u64 = 2 << 30;

/// First virtio-mmio device.
pub const DEVICES: u64 = 0xd000_0000;
/// Address space of one virtio-mmio device.
pub const DEVICE_SIZE: u64 = 0x1000;
/// Interrupt line of the first device. Lines below belong to PC devices that this machine does not have.
pub const FIRST_GSI: u32 = 5;
/// Interrupt line that tells of a new generation: behind those of the devices, which may become more.
pub const VMGENID_GSI: u32 = 15;

/// I/O APIC registers, as KVM has them.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers, as KVM has them.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM needs on Intel processors that cannot run real mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs for the same reason.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// ACPI sleep control register (one byte, I/O port): the guest powers off here.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (one byte, I/O port).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (one byte, I/O port).
pub const RESET_PORT: u16 = 0x602;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// Where PCs have their first serial port; answers only so that `earlyprintk=ttyS0` works in debugging.
pub const EARLY_CONSOLE_PORT: u16 = 0x3f8;

/// Most processors of a machine.
pub const MAX_VCPUS: u8 = 64;
/// Least memory that a kernel boots in, MiB.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Most memory of a machine, MiB.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

const MIB: u64 = 1 << 20;

/// The place of one virtio-mmio device: its registers and its interrupt line. Devices have them in the order
/// of their list (`devices/mod.rs`), in which the guest finds them by ACPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlot(u8);

impl DeviceSlot {
    /// How many there are: each has an interrupt line of its own below [`VMGENID_GSI`].
    pub const COUNT: usize = (VMGENID_GSI - FIRST_GSI) as usize;

    /// All places in bus order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// Its number, from 0.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// First guest-physical address of the device's registers.
    pub const fn address(self) -> u64 {
        DEVICES + self.0 as u64 * DEVICE_SIZE
    }

    /// The device's interrupt line.
    pub const fn gsi(self) -> u32 {
        FIRST_GSI + self.0 as u32
    }
}

/// A stretch of guest-physical addresses, or of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Range {
    /// The first address behind the range.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Where the guest's RAM lies: one range, or two around the hole below 4 GiB.
pub fn ram(memory_mib: u32) -> Vec<Range> {
    let size = u64::from(memory_mib) * MIB;
    if size <= HOLE {
        return vec![Range { start: 0, len: size }];
    }
    vec![Range { start: 0, len: HOLE }, Range { start: HOLE_END, len: size - HOLE }]
}

/// The region that a machine plugs memory into to grow from `memory_mib` to `max_memory_mib`; `None` if it does not. It is
/// larger than what may be plugged where that makes whole blocks of it.
pub fn pluggable(memory_mib: u32, max_memory_mib: u32) -> Option<Range> {
    let more = max_memory_mib.checked_sub(memory_mib).filter(|more| *more > 0)?;
    let ram_end = ram(memory_mib).last().map_or(0, Range::end);
    let block = if ram_end < LARGE_MEMORY { MEMORY_BLOCK } else { LARGE_MEMORY_BLOCK };
    let start = ram_end.max(HOLE_END).next_multiple_of(block);
    Some(Range { start, len: (u64::from(more) * MIB).next_multiple_of(block) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed_ranges() -> Vec<(&'static str, Range)> {
        let range = |start: u64, len: u64| Range { start, len };
        let mut all = vec![
            ("gdt", range(GDT, 0x20)),
            ("zero page", range(ZERO_PAGE, 0x1000)),
            ("stack", range(BOOT_STACK - 0xff0, 0xff0)),
            ("page tables", range(PAGE_TABLES, 3 * 0x1000)),
            ("command line", range(COMMAND_LINE, COMMAND_LINE_SIZE as u64)),
            ("acpi", range(ACPI, ACPI_END - ACPI)),
            ("generation", range(VMGENID, VMGENID_SIZE as u64)),
            ("io apic", range(u64::from(IO_APIC), 0x1000)),
            ("local apic", range(u64::from(LOCAL_APIC), 0x1000)),
            ("identity map", range(KVM_IDENTITY_MAP, 0x1000)),
            ("tss", range(KVM_TSS, 3 * 0x1000)),
        ];
        all.extend(DeviceSlot::all().map(|d| ("device", range(d.address(), DEVICE_SIZE))));
        all
    }

    #[test]
    fn nothing_overlaps() {
        let mut all = fixed_ranges();
        all.sort_by_key(|(_, r)| r.start);
        for pair in all.windows(2) {
            assert!(pair[0].1.end() <= pair[1].1.start, "{pair:?}");
        }
    }

    #[test]
    fn devices_and_apics_lie_in_the_hole() {
        for (name, r) in fixed_ranges().into_iter().filter(|(_, r)| r.start >= HIGH_RAM) {
            assert!(r.start >= HOLE && r.end() <= HOLE_END, "{name} {r:?}");
        }
    }

    #[test]
    fn generation_lies_in_reserved_memory() {
        assert!(VMGENID >= LOW_RAM_END && VMGENID + VMGENID_SIZE as u64 <= HIGH_RAM);
    }

    #[test]
    fn boot_structures_lie_in_low_ram() {
        for (name, r) in fixed_ranges().into_iter().filter(|(_, r)| r.start < ACPI) {
            assert!(r.end() <= LOW_RAM_END, "{name} {r:?}");
        }
    }

    #[test]
    fn each_device_has_its_own_line_of_the_io_apic() {
        let devices = DeviceSlot::all().map(|d| d.gsi());
        let lines: std::collections::BTreeSet<u32> = devices.chain([VMGENID_GSI]).collect();
        assert_eq!(lines.len(), DeviceSlot::COUNT + 1);
        assert!(lines.iter().all(|line| *line < 24));
    }

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ram(64), [Range { start: 0, len: 64 * MIB }]);
        assert_eq!(ram(3072), [Range { start: 0, len: HOLE }]);
    }

    #[test]
    fn memory_beyond_3_gib_continues_above_the_hole() {
        assert_eq!(ram(4096), [Range { start: 0, len: HOLE }, Range { start: HOLE_END, len: 1024 * MIB }]);
    }
    #[test]
    fn pluggable_region_lies_behind_all_ram() {
        for (memory, most) in
            [(64, 66), (128, 1024), (3000, 3100), (4096, 8192), (5001, 6000), (64 << 10, 1 << 20)]
        {
            let region = pluggable(memory, most).unwrap();
            let block = if memory < 60 << 10 { MEMORY_BLOCK } else { LARGE_MEMORY_BLOCK };
            assert!(region.start >= HOLE_END && region.start.is_multiple_of(block), "{region:?}");
            assert!(ram(memory).iter().all(|range| range.end() <= region.start), "{region:?}");
            let more = u64::from(most - memory) * MIB;
            assert!(region.len >= more && region.len < more + block, "{region:?}");
            assert!(region.len.is_multiple_of(block), "{region:?}");
        }
    }

    #[test]
    fn machine_of_one_size_has_no_region() {
        assert_eq!(pluggable(128, 128), None);
        assert_eq!(pluggable(128, 64), None);
    }
}
