//! Runs a guest with a known answer: whether KVM here can run an unmodified kernel. A KVM that only emulates (PVM without
//! hardware support behaves so) opens, answers all questions well, and stops at an instruction that every kernel has.
//!
//! ```text
//!   a VM of 2 MiB, one vCPU in 64-bit mode, pages mapped one to one:
//!   lock cmpxchg16b [rdi]; out 0x80, al; hlt
//! ```

use super::Finding;
use super::sys::give_memory;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Time after which a guest of three instructions is given up.
const LIMIT: Duration = Duration::from_secs(5);

const MEMORY: usize = 2 << 20;
const PAGE_TABLES: u64 = 0x1000;
const CODE: u64 = 0x4000;
const OPERAND: u64 = 0x5000;

/// `lock cmpxchg16b [rdi]; out 0x80, al; hlt`
const PROGRAM: [u8; 8] = [0xf0, 0x48, 0x0f, 0xc7, 0x0f, 0xe6, 0x80, 0xf4];

/// What the operand holds before and after, low and high half.
const BEFORE: (u64, u64) = (0x1111_2222_3333_4444, 0x5555_6666_7777_8888);
const AFTER: (u64, u64) = (0x99aa_bbcc_ddee_ff00, 0x0123_4567_89ab_cdef);

/// Why the guest did not give its answer.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("/dev/kvm: {0}")]
    Open(kvm_ioctls::Error),
    #[error("{what}: {source}")]
    Call { what: &'static str, source: kvm_ioctls::Error },
    #[error("no memory for a guest: {0}")]
    Memory(String),
    #[error("the known-answer guest stopped with {0} instead of its answer")]
    Exit(String),
    #[error("the known-answer guest answered {0:#x?} instead of {1:#x?}")]
    Answer((u64, u64), (u64, u64)),
    #[error("the known-answer guest of three instructions ran for more than {} s", LIMIT.as_secs())]
    Hangs,
}

/// Runs the guest and judges.
pub fn finding() -> Finding {
    let begin = Instant::now();
    let (done, answer) = mpsc::channel();
    // On a thread of its own: where KVM hangs, only the thread does.
    thread::spawn(move || done.send(probe()));
    let result = answer.recv_timeout(LIMIT).unwrap_or(Err(ProbeError::Hangs));
    match result {
        Ok(()) => Finding::good("kvm", format!("known-answer guest ran, {} us", begin.elapsed().as_micros())),
        Err(error) => Finding::bad("kvm", error.to_string(), remedy(&error)),
    }
}

fn remedy(error: &ProbeError) -> &'static str {
    match error {
        ProbeError::Open(error) if error.errno() == libc::ENOENT => {
            "turn on virtualization in the firmware (or nested virtualization in the host of this machine), and load \
             kvm_intel or kvm_amd"
        }
        ProbeError::Open(_) => "run it as root, outside of containers that hide /dev/kvm",
        _ if Path::new("/sys/module/kvm_pvm").exists() => {
            "this is a PVM host, whose KVM runs without hardware support and boots only kernels made for it: use bare \
             metal, or a machine with nested virtualization"
        }
        _ => {
            "KVM is there and cannot run an unmodified kernel: use a machine with working hardware virtualization"
        }
    }
}

fn probe() -> Result<(), ProbeError> {
    let call = |what| move |source| ProbeError::Call { what, source };
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| ProbeError::Memory(error.to_string()))?;
    let vm = kvm.create_vm().map_err(call("KVM_CREATE_VM"))?;
    give_memory(&vm, &memory).map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
    fill(&memory).map_err(|error| ProbeError::Memory(error.to_string()))?;
    let mut vcpu = vm.create_vcpu(0).map_err(call("KVM_CREATE_VCPU"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
    vcpu.set_regs(&registers()).map_err(call("KVM_SET_REGS"))?;

    run(&mut vcpu)?;
    let half = |at| memory.read_obj(GuestAddress(at)).map_err(|error| ProbeError::Memory(error.to_string()));
    let answer = (half(OPERAND)?, half(OPERAND + 8)?);
    if answer == AFTER { Ok(()) } else { Err(ProbeError::Answer(answer, AFTER)) }
}

/// The guest's two exits: `out`, then `hlt`.
fn run(vcpu: &mut VcpuFd) -> Result<(), ProbeError> {
    for expected in ["IoOut", "Hlt"] {
        let exit = vcpu.run().map_err(|source| ProbeError::Call { what: "KVM_RUN", source })?;
        match (expected, exit) {
            ("IoOut", VcpuExit::IoOut(0x80, _)) | ("Hlt", VcpuExit::Hlt) => {}
            (_, other) => return Err(ProbeError::Exit(format!("{other:?}"))),
        }
    }
    Ok(())
}

/// Page tables that map the first 2 MiB to themselves, the program, and its operand.
fn fill(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    memory.write_obj((PAGE_TABLES + 0x1000) | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES))?;
    memory.write_obj((PAGE_TABLES + 0x2000) | PRESENT_WRITABLE, GuestAddress(PAGE_TABLES + 0x1000))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, GuestAddress(PAGE_TABLES + 0x2000))?;
    memory.write_slice(&PROGRAM, GuestAddress(CODE))?;
    memory.write_obj(BEFORE.0, GuestAddress(OPERAND))?;
    memory.write_obj(BEFORE.1, GuestAddress(OPERAND + 8))
}

/// Control registers and segments of 64-bit mode (AMD64 manual, volume 2, section 14.6).
fn long_mode(sregs: &mut kvm_sregs) {
    const PROTECTED_PAGED: u64 = 1 | 1 << 4 | 1 << 31;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const LONG_MODE_ENABLED_ACTIVE: u64 = 1 << 8 | 1 << 10;
    sregs.cr0 = PROTECTED_PAGED;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = PHYSICAL_ADDRESS_EXTENSION;
    sregs.efer = LONG_MODE_ENABLED_ACTIVE;
    let data =
        kvm_segment { limit: u32::MAX, selector: 16, type_: 3, present: 1, db: 1, s: 1, g: 1, ..sregs.ds };
    sregs.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

fn registers() -> kvm_regs {
    kvm_regs {
        rip: CODE,
        rdi: OPERAND,
        rax: BEFORE.0,
        rdx: BEFORE.1,
        rbx: AFTER.0,
        rcx: AFTER.1,
        // The bit that is always set.
        rflags: 2,
        ..kvm_regs::default()
    }
}
