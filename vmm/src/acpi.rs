//! The ACPI tables of the machine: what processors and devices there are, how the guest powers off, and how it learns that
//! it is another copy of its VM.
//!
//! Hardware-reduced ACPI: no legacy timers, no PCI bus, no firmware. The guest finds its processors in the MADT and its
//! virtio-mmio devices in the DSDT, and ends through the sleep and reset registers of the FADT. Called by the builder,
//! which copies the bytes to [`layout::ACPI`].

use acpi_tables::{
    Aml,
    aml::{
        Arg, Device, Equal, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path,
        ResourceTemplate, Scope, ZERO,
    },
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

use crate::layout::{self, DeviceSlot};

const OEM: [u8; 6] = *b"ISOPOD";
const OEM_TABLE: [u8; 8] = *b"ISOPODVM";
const OEM_REVISION: u32 = 1;

/// Sleep type of the soft-off state, as `_S5` names it and the guest writes it to the sleep control register.
const SLEEP_TYPE_OFF: u8 = 5;
/// Bit of the sleep control register that starts the transition (ACPI 6.5, table 4.25).
const SLEEP_ENABLE: u8 = 1 << 5;

/// ACPI 6.5, table 5.10: the machine has no VGA, no message signalled interrupts, no CMOS clock. The absent bits say
/// that it has no legacy devices and no keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// The I/O APIC's id; only its being different from the processors' matters.
const IO_APIC_ID: u8 = 0xff;

/// Whether a byte written to the sleep control register powers the machine off.
pub fn is_power_off(value: u8) -> bool {
    value == SLEEP_TYPE_OFF << 2 | SLEEP_ENABLE
}

/// All tables for a machine of `vcpus` places for processors and the devices in `slots`, the RSDP first, to be placed at `base`.
pub fn tables(base: u64, vcpus: u8, slots: &[DeviceSlot]) -> Vec<u8> {
    let mut blob = Blob { base, bytes: vec![0; Rsdp::len()] };
    let dsdt = blob.append(&dsdt(slots));
    let fadt = blob.append(&fadt(dsdt));
    let madt = blob.append(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = blob.append(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    blob.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    blob.bytes
}

/// Tables one behind the other, each at a multiple of 16.
struct Blob {
    base: u64,
    bytes: Vec<u8>,
}

impl Blob {
    fn append(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut out = Vec::new();
    table.to_aml_bytes(&mut out);
    out
}

fn dsdt(slots: &[DeviceSlot]) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    let mut devices: Vec<Vec<u8>> = slots.iter().map(|slot| virtio_mmio(*slot)).collect();
    devices.extend([vmgenid(), events()]);
    dsdt.append_slice(&Scope::raw(Path::new("_SB_"), devices.concat()));
    let off = Package::new(vec![&SLEEP_TYPE_OFF, &0_u8, &0_u8, &0_u8]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &off)));
    dsdt.as_slice().to_vec()
}

/// The id under which Linux's `virtio_mmio` driver looks for devices.
const VIRTIO_MMIO: &str = "LNRO0005";

fn virtio_mmio(slot: DeviceSlot) -> Vec<u8> {
    let number = slot.number();
    let registers = Memory32Fixed::new(true, slot.address() as u32, layout::DEVICE_SIZE as u32);
    let line = Interrupt::new(true, true, false, false, slot.gsi());
    bytes(&Device::new(
        Path::new(&format!("V{number:03}")),
        vec![
            &Name::new(Path::new("_HID"), &VIRTIO_MMIO),
            &Name::new(Path::new("_UID"), &number),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers, &line])),
        ],
    ))
}

/// The compatible id and the description by which guests find the generation (Microsoft, "Virtual Machine Generation ID").
const VMGENID_NAME: &str = "VM_Gen_Counter";

/// Where the VM's generation lies, in two halves of the address.
fn vmgenid() -> Vec<u8> {
    let (low, high) = (layout::VMGENID as u32, (layout::VMGENID >> 32) as u32);
    bytes(&Device::new(
        Path::new("VGEN"),
        vec![
            &Name::new(Path::new("_HID"), &"ISOP0001"),
            &Name::new(Path::new("_CID"), &VMGENID_NAME),
            &Name::new(Path::new("_DDN"), &VMGENID_NAME),
            &Name::new(Path::new("ADDR"), &Package::new(vec![&low, &high])),
        ],
    ))
}

/// "Device specific" (ACPI 6.5, 5.6.6): for the generation, that it has changed.
const CHANGED: u8 = 0x80;

/// The generic event device (ACPI 6.5, 5.6.9), which makes notifications of interrupts where there is no GPE block.
fn events() -> Vec<u8> {
    let line = Interrupt::new(true, true, false, false, layout::VMGENID_GSI);
    let vmgenid = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&vmgenid, &CHANGED);
    bytes(&Device::new(
        Path::new("GED0"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&line])),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&If::new(&Equal::new(&Arg(0), &layout::VMGENID_GSI), vec![&notify])],
            ),
        ],
    ))
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let local_apic = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local_apic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IO_APIC_ID, layout::IO_APIC, 0));
    bytes(&madt)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = layout::ACPI;

    fn all_slots() -> Vec<DeviceSlot> {
        DeviceSlot::all().collect()
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    /// The table at a guest address, its checksum and signature verified.
    fn table<'a>(blob: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let start = (address - BASE) as usize;
        let len = u32_at(blob, start + 4) as usize;
        let table = &blob[start..start + len];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "checksum of {}", String::from_utf8_lossy(signature));
        table
    }

    /// What the guest does: RSDP, XSDT, then the tables it names.
    fn walk(blob: &[u8]) -> (&[u8], &[u8], &[u8]) {
        assert_eq!(&blob[..8], b"RSD PTR ");
        assert_eq!(sum(&blob[..20]), 0);
        assert_eq!(sum(&blob[..36]), 0);
        let xsdt = table(blob, u64_at(blob, 24), b"XSDT");
        let fadt = table(blob, u64_at(xsdt, 36), b"FACP");
        let madt = table(blob, u64_at(xsdt, 44), b"APIC");
        let dsdt = table(blob, u64_at(fadt, 140), b"DSDT");
        (fadt, madt, dsdt)
    }

    #[test]
    fn tables_are_found_from_the_rsdp_with_right_checksums() {
        walk(&tables(BASE, 1, &all_slots()));
    }

    #[test]
    fn tables_of_the_largest_machine_fit_their_space() {
        let blob = tables(BASE, 64, &all_slots());
        assert!(BASE + blob.len() as u64 <= layout::ACPI_END, "{} bytes", blob.len());
    }

    #[test]
    fn madt_lists_every_processor_and_the_io_apic() {
        let blob = tables(BASE, 4, &all_slots());
        let (_, madt, _) = walk(&blob);
        let mut rest = &madt[44..];
        let (mut processors, mut io_apics) = (vec![], 0);
        while !rest.is_empty() {
            match rest[0] {
                0 => processors.push((rest[3], u32_at(rest, 4))),
                1 => io_apics += 1,
                other => panic!("unexpected structure {other}"),
            }
            rest = &rest[usize::from(rest[1])..];
        }
        assert_eq!(processors, [(0, 1), (1, 1), (2, 1), (3, 1)]);
        assert_eq!(io_apics, 1);
    }

    #[test]
    fn fadt_is_hardware_reduced_and_names_the_end_registers() {
        let blob = tables(BASE, 1, &all_slots());
        let (fadt, ..) = walk(&blob);
        let flags = u32_at(fadt, 112);
        assert_ne!(flags & 1 << 20, 0, "hardware reduced");
        assert_ne!(flags & 1 << 10, 0, "reset register");
        assert_eq!(u64_at(fadt, 120), u64::from(layout::RESET_PORT));
        assert_eq!(fadt[128], layout::RESET_VALUE);
        assert_eq!(u64_at(fadt, 248), u64::from(layout::SLEEP_CONTROL_PORT));
        assert_eq!(u64_at(fadt, 260), u64::from(layout::SLEEP_STATUS_PORT));
    }

    #[test]
    fn dsdt_names_every_device_with_its_registers() {
        let blob = tables(BASE, 1, &all_slots());
        let (_, _, dsdt) = walk(&blob);
        let found = |needle: &[u8]| dsdt.windows(needle.len()).filter(|w| *w == needle).count();
        assert_eq!(found(VIRTIO_MMIO.as_bytes()), DeviceSlot::COUNT);
        for slot in all_slots() {
            assert_eq!(found(&(slot.address() as u32).to_le_bytes()), 1, "{slot:?}");
        }
    }

    #[test]
    fn dsdt_leaves_out_a_device_that_is_not_there() {
        let mut slots = all_slots();
        let absent = slots.remove(2);
        let blob = tables(BASE, 1, &slots);
        let (_, _, dsdt) = walk(&blob);
        let found = |needle: &[u8]| dsdt.windows(needle.len()).filter(|w| *w == needle).count();
        assert_eq!(found(VIRTIO_MMIO.as_bytes()), DeviceSlot::COUNT - 1);
        assert_eq!(found(&(absent.address() as u32).to_le_bytes()), 0);
    }

    #[test]
    fn dsdt_names_the_generation_and_notifies_of_it() {
        let blob = tables(BASE, 1, &all_slots());
        let (_, _, dsdt) = walk(&blob);
        let found = |needle: &[u8]| dsdt.windows(needle.len()).filter(|w| *w == needle).count();
        // Name (ADDR, Package (2) { a double word, zero })
        let address = (layout::VMGENID as u32).to_le_bytes();
        assert_eq!(found(&[b"\x08ADDR\x12\x08\x02\x0c", &address[..], b"\0"].concat()), 1);
        assert_eq!(found(&[VMGENID_NAME.as_bytes(), b"\0"].concat()), 2);
        // If (Arg0 == line) { Notify (\_SB_.VGEN, 0x80) }
        let line = layout::VMGENID_GSI as u8;
        let condition = [b"\x93\x68\x0a", &[line][..]].concat();
        let notification = b"\x86\\\x2e_SB_VGEN\x0a\x80";
        assert_eq!(found(&[&condition[..], notification].concat()), 1);
        assert_eq!(found(b"ACPI0013\0"), 1);
    }

    #[test]
    fn only_the_soft_off_state_powers_off() {
        assert!(is_power_off(0x34));
        assert!(!is_power_off(0x14));
        assert!(!is_power_off(0x30));
        assert!(!is_power_off(0));
    }
}
