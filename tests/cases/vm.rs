//! Cases about one virtual machine: how it boots, what it can be, and the ways in which it ends.

use anyhow::{Context, Result, ensure};
use isopod_protocols::vmm::{BootConfig, ErrorKind, Request, Response};
use isopod_tests::agent::Agent;
use isopod_tests::cases;
use isopod_tests::cri::wait_for;
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::vmm::{Vmm, small, tiny_kernel};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    isopod_tests::case::run(
        Settings { isopod: Isopod::Installed, ..Settings::default() },
        cases!["vm":
            agent_answers_in_the_smallest_vm,
            agent_answers_in_a_vm_around_the_hole_below_4_gib,
            four_processors_come_up,
            processors_are_added_to_a_guest_that_booted,
            guest_that_powers_off_ends_the_vmm_cleanly,
            guest_that_resets_ends_the_vmm_with_its_console,
            triple_fault_is_named,
            instruction_that_kvm_cannot_emulate_is_named,
            kernel_panic_is_told_with_the_console,
            request_to_stop_ends_the_vmm,
            file_that_is_no_kernel_is_refused,
            machine_that_cannot_be_is_refused,
            client_that_leaves_before_boot_ends_the_vmm,
            bad_requests_are_answered_and_the_vm_runs_on,
            another_client_goes_on_with_the_vm,
            extents_come_and_go,
            memory_grows_and_shrinks,
            memory_stays_within_its_bounds,
        ],
    )
}

fn sized(vcpus: u8, memory_mib: u32) -> BootConfig {
    BootConfig { vcpus, max_vcpus: vcpus, memory_mib, max_memory_mib: memory_mib, ..small(&["loglevel=7"]) }
}

fn agent_answers_in_the_smallest_vm() -> Result<()> {
    Vmm::start()?.boot_to_agent(sized(1, 64))
}

fn agent_answers_in_a_vm_around_the_hole_below_4_gib() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(sized(1, 4096))?;
    ensure!(!vmm.console()?.contains("[Firmware Bug]"), "{}", vmm.console()?);
    Ok(())
}

fn four_processors_come_up() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(sized(4, 256))?;
    // The console's tail begins after the processors came up: what it must not hold is a complaint.
    ensure!(!vmm.console()?.contains("[Firmware Bug]"), "{}", vmm.console()?);
    Ok(())
}

fn processors_are_added_to_a_guest_that_booted() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(BootConfig { max_vcpus: 4, ..sized(2, 256) })?;
    let agent = Agent::connect(&vmm)?;
    for _ in 0..2 {
        vmm.done(&Request::AddVcpus { vcpus: 3 }, &[])?;
    }
    agent.use_processors(3).with_context(|| vmm.log().unwrap_or_default())?;
    ensure!(vmm.stats()?.vcpus == 3, "{:?}", vmm.stats()?);
    ensure!(!vmm.console()?.contains("[Firmware Bug]"), "{}", vmm.console()?);
    Ok(())
}

/// Boots a few instructions and returns how the VMM ended: its exit code and its log.
fn ending_of(code: &[u8]) -> Result<(Option<i32>, String)> {
    let mut vmm = Vmm::start()?;
    let kernel = tiny_kernel(code)?;
    // The guest may end before the answer is read.
    let _ = vmm.boot_kernel(small(&[]), kernel.path());
    let status = vmm.ended(SOON)?;
    Ok((status.code(), vmm.log()?))
}

fn guest_that_powers_off_ends_the_vmm_cleanly() -> Result<()> {
    // mov dx, 0x600; mov al, 0x34; out dx, al; hlt
    let (code, log) = ending_of(b"\x66\xba\x00\x06\xb0\x34\xee\xf4")?;
    ensure!(code == Some(0) && log.ends_with("end: guest powered off\n"), "{code:?} {log}");
    Ok(())
}

fn guest_that_resets_ends_the_vmm_with_its_console() -> Result<()> {
    // mov dx, 0x3f8; mov al, '!'; out dx, al; mov dx, 0x602; mov al, 1; out dx, al; hlt
    let (code, log) = ending_of(b"\x66\xba\xf8\x03\xb0!\xee\x66\xba\x02\x06\xb0\x01\xee\xf4")?;
    ensure!(code == Some(2), "{code:?} {log}");
    ensure!(log.contains("end: guest reset itself") && log.ends_with("--- guest console ---\n!\n"), "{log}");
    Ok(())
}

fn triple_fault_is_named() -> Result<()> {
    // ud2, without an interrupt table
    let (code, log) = ending_of(b"\x0f\x0b")?;
    ensure!(code == Some(2) && log.contains("end: vcpu 0: triple fault"), "{code:?} {log}");
    Ok(())
}

fn instruction_that_kvm_cannot_emulate_is_named() -> Result<()> {
    // mov eax, 0x3ff00000 (in the first GiB, beyond RAM); jmp rax: instructions cannot be fetched from a device
    let (code, log) = ending_of(b"\xb8\x00\x00\xf0\x3f\xff\xe0")?;
    ensure!(code == Some(2), "{code:?} {log}");
    ensure!(log.contains("kvm internal error, suberror 1"), "{log}");
    Ok(())
}

fn kernel_panic_is_told_with_the_console() -> Result<()> {
    let mut vmm = Vmm::start()?;
    let kernel = isopod_tests::vmm::installed("ISOPOD_KERNEL")?;
    let booted = vmm.boot_kernel(small(&["init=/nothing", "rdinit=/nothing"]), &kernel)?;
    ensure!(booted == Response::Done {}, "{booted:?}");
    let status = vmm.ended(Duration::from_secs(90))?;
    let log = vmm.log()?;
    ensure!(status.code() == Some(2) && log.contains("Kernel panic - not syncing"), "{status} {log}");
    Ok(())
}

fn request_to_stop_ends_the_vmm() -> Result<()> {
    let mut vmm = Vmm::start()?;
    vmm.boot_to_agent(small(&[]))?;
    vmm.done(&Request::Stop {}, &[])?;
    let status = vmm.ended(SOON)?;
    ensure!(status.code() == Some(0) && vmm.log()?.ends_with("end: stopped by request\n"), "{status}");
    Ok(())
}

fn refused(response: Response, expected: ErrorKind, text: &str) -> Result<()> {
    match &response {
        Response::Error { kind, message } if *kind == expected && message.contains(text) => Ok(()),
        _ => anyhow::bail!("expected {expected:?} with {text:?}, got {response:?}"),
    }
}

fn file_that_is_no_kernel_is_refused() -> Result<()> {
    let mut vmm = Vmm::start()?;
    let booted = vmm.boot_kernel(small(&[]), "/etc/passwd".as_ref())?;
    refused(booted, ErrorKind::Kernel, "ELF")?;
    ensure!(vmm.ended(SOON)?.code() == Some(1));
    Ok(())
}

fn machine_that_cannot_be_is_refused() -> Result<()> {
    let kernel = isopod_tests::vmm::installed("ISOPOD_KERNEL")?;
    for (config, text) in [
        (BootConfig { vcpus: 0, ..small(&[]) }, "vcpus"),
        (BootConfig { vcpus: 65, ..small(&[]) }, "vcpus"),
        (BootConfig { vcpus: 2, ..small(&[]) }, "max_vcpus"),
        (BootConfig { max_vcpus: 65, ..small(&[]) }, "max_vcpus"),
        (BootConfig { memory_mib: 63, ..small(&[]) }, "memory_mib"),
        (BootConfig { memory_mib: u32::MAX, ..small(&[]) }, "memory_mib"),
        (BootConfig { max_memory_mib: 126, ..small(&[]) }, "max_memory_mib"),
        (BootConfig { max_memory_mib: (1 << 20) + 2, ..small(&[]) }, "max_memory_mib"),
        (BootConfig { max_memory_mib: 129, ..small(&[]) }, "multiple of 2"),
        (small(&["two words"]), "two words"),
    ] {
        refused(Vmm::start()?.boot_kernel(config, &kernel)?, ErrorKind::Invalid, text)?;
    }
    Ok(())
}

fn client_that_leaves_before_boot_ends_the_vmm() -> Result<()> {
    let mut vmm = Vmm::start()?;
    refused(vmm.call(&Request::Stats {}, &[])?, ErrorKind::State, "boot")?;
    // The second connection waits behind the first, which is closed here.
    vmm.reconnect()?;
    ensure!(vmm.ended(SOON)?.code() == Some(1), "{}", vmm.log()?);
    Ok(())
}

fn bad_requests_are_answered_and_the_vm_runs_on() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(small(&[]))?;
    let null = std::fs::File::open("/dev/null")?;
    let attach = Request::AttachExtent { length: 4096, read_only: true };
    refused(vmm.call_raw(b"\xff\xfe", &[])?, ErrorKind::Invalid, "not a request")?;
    refused(vmm.call_raw(b"{\"request\":\"fly\"}", &[])?, ErrorKind::Invalid, "fly")?;
    refused(vmm.call_raw(&vec![b' '; 65 * 1024], &[])?, ErrorKind::Invalid, "longer")?;
    refused(vmm.call(&Request::Stats {}, &[&null as _; 9])?, ErrorKind::Invalid, "descriptors")?;
    refused(vmm.call(&Request::Boot(small(&[])), &[])?, ErrorKind::State, "once")?;
    refused(vmm.call(&attach, &[])?, ErrorKind::Invalid, "descriptor")?;
    refused(vmm.call(&attach, &[&null])?, ErrorKind::Invalid, "regular file")?;
    refused(vmm.call(&Request::AttachTap {}, &[&null])?, ErrorKind::Invalid, "tap")?;
    refused(vmm.call(&Request::DetachExtent { offset: 1 }, &[])?, ErrorKind::State, "no extent")?;
    refused(vmm.call(&Request::DetachExtent { offset: 0 }, &[])?, ErrorKind::Invalid, "root")?;
    ensure!(matches!(vmm.call(&Request::Stats {}, &[])?, Response::Stats(stats) if stats.exits > 0));
    Ok(())
}

fn another_client_goes_on_with_the_vm() -> Result<()> {
    let mut vmm = Vmm::start()?;
    vmm.boot_to_agent(small(&[]))?;
    for _ in 0..3 {
        vmm.reconnect()?;
        let answer = vmm.call(&Request::Stats {}, &[])?;
        ensure!(matches!(answer, Response::Stats(_)), "{answer:?}");
    }
    vmm.done(&Request::Stop {}, &[])?;
    ensure!(vmm.ended(SOON)?.code() == Some(0));
    Ok(())
}

fn extents_come_and_go() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(small(&[]))?;
    let mut file = tempfile::tempfile()?;
    file.write_all(&[7; 8192])?;
    let attach = Request::AttachExtent { length: 8192, read_only: false };
    let mut offsets = Vec::new();
    for _ in 0..2 {
        let Response::Extent { offset } = vmm.call(&attach, &[&file])? else { anyhow::bail!("not attached") };
        ensure!(offset % (1 << 20) == 0 && offset > 0 && !offsets.contains(&offset), "{offset} {offsets:?}");
        offsets.push(offset);
    }
    for offset in offsets {
        vmm.done(&Request::DetachExtent { offset }, &[])?;
        refused(vmm.call(&Request::DetachExtent { offset }, &[])?, ErrorKind::State, "no extent")?;
    }
    Ok(())
}

/// Asks for a size and waits until the guest has it.
fn resize(vmm: &Vmm, memory_mib: u32) -> Result<()> {
    vmm.done(&Request::ResizeMemory { memory_mib }, &[])?;
    let wanted = u64::from(memory_mib) << 20;
    wait_for(&format!("{memory_mib} MiB"), || match vmm.call(&Request::Stats {}, &[])? {
        Response::Stats(stats) => Ok((stats.memory_bytes == wanted).then_some(())),
        other => anyhow::bail!("{other:?}"),
    })
}

fn memory_grows_and_shrinks() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(BootConfig { max_memory_mib: 1024, ..sized(1, 128) })?;
    // A part of what is plugged may come to hold the kernel's own, which cannot be moved away: only what surely can is asked back.
    for memory_mib in [128, 512, 256, 1024] {
        resize(&vmm, memory_mib)?;
    }
    Ok(())
}

fn memory_stays_within_its_bounds() -> Result<()> {
    let vmm = Vmm::start()?;
    vmm.boot_to_agent(BootConfig { max_memory_mib: 256, ..sized(1, 128) })?;
    for memory_mib in [0, 126, 129, 258, u32::MAX] {
        let asked = vmm.call(&Request::ResizeMemory { memory_mib }, &[])?;
        refused(asked, ErrorKind::Invalid, "from 128")?;
    }
    resize(&vmm, 128)
}
