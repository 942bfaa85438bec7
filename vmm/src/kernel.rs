//! The guest kernel in guest memory: the ELF image, its command line, and the zero page that tells it about both and
//! about its memory. Called by the builder.
//!
//! The kernel file comes from the host's administrator; still, a damaged one ends in an error and never in a panic.

use std::{ffi::CString, fs::File};

use linux_loader::loader::{KernelLoader, bootparam, elf::Elf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{
    layout::{self, Range},
    memory::{self, GuestMemory},
};

/// Why the kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not a kernel, or damaged, or too large for the guest's memory.
    #[error("cannot load the kernel, which must be an uncompressed x86-64 ELF vmlinux: {0}")]
    Load(linux_loader::loader::Error),
    /// The entry point lies outside the file's segments.
    #[error("the kernel's entry point {entry:#x} lies outside its image")]
    Entry {
        /// Where the ELF header points.
        entry: u64,
    },
    /// A word of the command line that cannot be passed on.
    #[error("kernel argument {word:?} has a space or is not printable ascii")]
    Word {
        /// The word.
        word: String,
    },
    /// The command line is longer than the kernel reads.
    #[error("the kernel's command line of {length} bytes is longer than {}", layout::COMMAND_LINE_SIZE - 1)]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Guest memory refused a write.
    #[error("cannot write boot parameters into guest memory")]
    Write(#[from] GuestMemoryError),
}

/// What every guest gets, before the words of its boot request.
///
/// * The console is the virtio one, and no serial port is looked for.
/// * No interface is there but the pod's.
/// * A panic resets at once, by the ACPI register, so that the VMM sees the end.
/// * No PCI bus is there, so none is probed; the clock comes from KVM, so nothing is calibrated.
/// * Boot does not wait for RCU grace periods.
/// * Per-CPU memory is made of small pages: with large ones each chunk has tables for 2 MiB, and zeroing them takes 4 MiB.
/// * Of memory that is plugged in, as much as is safe (three times the rest, the kernel's default) is for movable pages only, so
///   that it can be unplugged again. Not all of it: page structures of more memory must lie in what is not.
/// * No pressure is accounted (PSI): its averages are computed every two seconds for each cgroup, which wakes an idle guest.
/// * The network card's driver takes back sent frames when it sends the next, and asks for no interrupt after
///   each: see docs/decisions/0018.
const COMMAND_LINE: &str = "console=hvc0 quiet panic=-1 reboot=a 8250.nr_uarts=0 pci=off dummy.numdummies=0 \
    tsc=reliable no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1 percpu_alloc=page \
    memory_hotplug.online_policy=auto-movable psi=0 virtio_net.napi_tx=0";

/// The root is a device-mapper device over the first `sectors` of 512 bytes of the disk: a mounted `/dev/vda` would be
/// claimed whole, and no other extent could be mapped.
fn root(sectors: u64) -> String {
    format!(
        "dm-mod.create=\"root,,0,ro,0 {sectors} linear /dev/vda 0\" root=/dev/dm-0 rootfstype=erofs ro init=/sbin/init"
    )
}

/// The command line for a guest root of `root_sectors` sectors of 512 bytes and a kernel that brings up `vcpus` processors at
/// its boot, with the words of `extra` behind.
pub fn command_line(root_sectors: u64, vcpus: u8, extra: &[String]) -> Result<CString, KernelError> {
    let mut line = format!("{COMMAND_LINE} maxcpus={vcpus} {}", root(root_sectors));
    for word in extra {
        let bad = |word: &String| KernelError::Word { word: word.clone() };
        if word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad(word));
        }
        line.push(' ');
        line.push_str(word);
    }
    let length = line.len();
    if length >= layout::COMMAND_LINE_SIZE {
        return Err(KernelError::TooLong { length });
    }
    CString::new(line).map_err(|_| KernelError::TooLong { length })
}

/// About where the kernel will lie: the file is nearly as long as what it fills. Empty for what is no file.
fn place(file: &File) -> Range {
    Range { start: layout::KERNEL, len: file.metadata().map_or(0, |about| about.len()) }
}

/// Copies the kernel to where its ELF header says. Returns the address of its first instruction.
pub fn load(guest: &GuestMemory, mut file: File) -> Result<u64, KernelError> {
    let lowest = GuestAddress(layout::HIGH_RAM);
    memory::advise_huge_pages(guest, place(&file));
    let loaded = Elf::load(guest, None, &mut file, Some(lowest)).map_err(KernelError::Load)?;
    let entry = loaded.kernel_load.0;
    if entry >= loaded.kernel_end || loaded.kernel_end > layout::HOLE {
        return Err(KernelError::Entry { entry });
    }
    Ok(entry)
}

/// Writes the command line and the zero page that points to it.
pub fn write_boot_parameters(
    memory: &GuestMemory,
    command_line: &CString,
    ram: &[Range],
) -> Result<(), KernelError> {
    memory.write_slice(command_line.as_bytes_with_nul(), GuestAddress(layout::COMMAND_LINE))?;
    let page = zero_page(command_line.as_bytes().len() as u32, ram);
    memory.write_obj(page, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

fn zero_page(command_line_len: u32, ram: &[Range]) -> bootparam::boot_params {
    const BOOT_FLAG: u16 = 0xaa55;
    const HEADER_MAGIC: u32 = 0x5372_6448; // "HdrS"
    const UNREGISTERED_LOADER: u8 = 0xff;
    let mut page = bootparam::boot_params { acpi_rsdp_addr: layout::ACPI, ..Default::default() };
    page.hdr.boot_flag = BOOT_FLAG;
    page.hdr.header = HEADER_MAGIC;
    page.hdr.type_of_loader = UNREGISTERED_LOADER;
    page.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    page.hdr.cmdline_size = command_line_len;
    page.hdr.kernel_alignment = 0x20_0000;
    let map = e820(ram);
    page.e820_entries = map.len() as u8;
    page.e820_table[..map.len()].copy_from_slice(&map);
    page
}

/// The memory map: RAM but for the area below 1 MiB that holds the ACPI tables.
fn e820(ram: &[Range]) -> Vec<bootparam::boot_e820_entry> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let entry = |start, end, r#type| bootparam::boot_e820_entry { addr: start, size: end - start, r#type };
    let mut map =
        vec![entry(0, layout::LOW_RAM_END, RAM), entry(layout::LOW_RAM_END, layout::HIGH_RAM, RESERVED)];
    map.extend(ram.iter().map(|range| entry(range.start.max(layout::HIGH_RAM), range.end(), RAM)));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Backing;
    use std::io::Write;

    #[test]
    fn e820_covers_all_ram_without_overlap() {
        for mib in [64, 3072, 3073, 4096] {
            let map = e820(&layout::ram(mib));
            let mut end = 0;
            let mut usable = 0;
            for entry in &map {
                let (start, size, kind) = (entry.addr, entry.size, entry.r#type);
                assert!(start >= end, "{mib} MiB: {start:#x} lies below {end:#x}");
                end = start + size;
                usable += if kind == 1 { size } else { 0 };
            }
            let reserved = layout::HIGH_RAM - layout::LOW_RAM_END;
            assert_eq!(usable, (u64::from(mib) << 20) - reserved);
        }
    }

    #[test]
    fn zero_page_points_to_command_line_and_acpi() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        let line = command_line(8, 1, &["a=1".into()]).unwrap();
        write_boot_parameters(&memory, &line, &layout::ram(64)).unwrap();

        let page: bootparam::boot_params = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let (header, pointer, length) = (page.hdr.header, page.hdr.cmd_line_ptr, page.hdr.cmdline_size);
        assert_eq!(&header.to_le_bytes(), b"HdrS");
        assert_eq!({ page.acpi_rsdp_addr }, layout::ACPI);
        let mut text = vec![0; length as usize + 1];
        memory.read_slice(&mut text, GuestAddress(u64::from(pointer))).unwrap();
        assert_eq!(text, line.as_bytes_with_nul());
        assert!(text.ends_with(b" a=1\0"));
    }

    #[test]
    fn argument_with_a_space_is_refused() {
        let refused = command_line(8, 1, &["init=/bin/sh rw".into()]);
        assert!(matches!(refused, Err(KernelError::Word { .. })));
        assert!(matches!(command_line(8, 1, &[String::new()]), Err(KernelError::Word { .. })));
    }

    #[test]
    fn command_line_beyond_the_kernels_limit_is_refused() {
        let refused = command_line(8, 1, &["x".repeat(layout::COMMAND_LINE_SIZE)]);
        assert!(matches!(refused, Err(KernelError::TooLong { .. })));
    }

    #[test]
    fn file_that_is_no_kernel_is_refused() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"\x1f\x8b no kernel, but long enough to hold an ELF header of 64 bytes ....")
            .unwrap();
        assert!(matches!(load(&memory, file), Err(KernelError::Load(_))));
    }

    #[test]
    fn empty_kernel_file_is_refused() {
        let memory = memory::allocate(&layout::ram(64), Backing::Fresh { huge_pages: false }).unwrap();
        assert!(matches!(load(&memory, tempfile::tempfile().unwrap()), Err(KernelError::Load(_))));
    }
}
