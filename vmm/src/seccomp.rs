//! The system calls that each thread may make. Anything else kills the process on the spot.
//!
//! Filters are layers: a thread is bound by every filter that it or its creator installed.
//!
//! ```text
//! main thread   Boot ---- reads the boot request, builds the VM ---- EventLoop ---- serves devices and control
//!                  \                                                 Template ---- the same, and saves the VM
//! vCPU threads      +--- Vcpu ---- runs the guest
//!                   |      |
//! a thread for more +--- MoreVcpus ---- where there may be more processors, makes them, with their threads
//!                   |
//! the disk's worker +--- Disk ---- flushes files and makes holes in them
//!
//! a template's holder   Hold ---- sleeps
//! ```
//!
//! A thread that starts others may make threads of this process and nothing else: not a process, not a namespace. `clone3` has
//! its flags in memory, where no filter sees them, so it does not exist (`ENOSYS`), and the C library makes its threads by `clone`.
//!
//! `Boot` allows what all the others do and what building a VM takes, so it can be in place before the first byte is
//! read. Lists are kept as short as what the code really does; the tests run the real filters against it.

use std::collections::BTreeMap;

use kvm_bindings as kvm;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// Kinds of threads, each with its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The main thread, from the jail on.
    Boot,
    /// The main thread, once the VM runs.
    EventLoop,
    /// The main thread of a template in the making.
    Template,
    /// A virtual processor.
    Vcpu,
    /// The thread that makes processors while the VM runs. Those that it starts are bound by its filter, too.
    MoreVcpus,
    /// The worker of the disk.
    Disk,
    /// The process that only keeps a template's files open.
    Hold,
}

/// A filter that cannot be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list does not make a program.
    #[error("cannot compile the seccomp filter")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel refused it.
    #[error("cannot install the seccomp filter")]
    Install(#[from] seccompiler::Error),
}

/// A compiled filter.
#[derive(Clone)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Compiles the filter of a stage.
    pub fn new(stage: Stage) -> Result<Self, SeccompError> {
        let filter = SeccompFilter::new(
            rules(stage)?,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::x86_64,
        )?;
        let mut program: BpfProgram = filter.try_into()?;
        if matches!(stage, Stage::Boot | Stage::MoreVcpus) {
            drop(program.splice(..0, NO_CLONE3));
        }
        Ok(Self(program))
    }

    /// Binds the calling thread, and those that it starts, for good.
    pub fn install(&self) -> Result<(), SeccompError> {
        Ok(seccompiler::apply_filter(&self.0)?)
    }
}

/// A system call, or one of several forms of a call.
enum Allow {
    /// With any arguments.
    Call(c_long),
    /// With one of these values in the argument.
    With(c_long, u8, &'static [u64]),
    /// With none of these bits in the arguments.
    Without(c_long, &'static [(u8, u64)]),
}

use Allow::{Call, With, Without};

fn rules(stage: Stage) -> Result<BTreeMap<c_long, Vec<SeccompRule>>, SeccompError> {
    let lists: &[&[Allow]] = match stage {
        // What it installs later can only take away.
        Stage::Boot => &[EVERY_THREAD, EVENT_LOOP, SAVE, VCPU, THREAD, PROCESSOR, JOIN, DISK, BOOT, RESTORE],
        Stage::EventLoop => &[EVERY_THREAD, EVENT_LOOP],
        Stage::Template => &[EVERY_THREAD, EVENT_LOOP, SAVE],
        Stage::Vcpu => &[EVERY_THREAD, VCPU],
        Stage::MoreVcpus => &[EVERY_THREAD, VCPU, THREAD, PROCESSOR, JOIN],
        Stage::Disk => &[EVERY_THREAD, DISK],
        Stage::Hold => &[HOLD],
    };
    let mut rules = BTreeMap::<c_long, Vec<SeccompRule>>::new();
    for allow in lists.iter().copied().flatten() {
        match *allow {
            Call(call) => {
                rules.entry(call).or_default();
            }
            With(call, argument, values) => {
                for value in values {
                    let rule = SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, *value)?])?;
                    rules.entry(call).or_default().push(rule);
                }
            }
            // All in one rule: of the rules of one call, each alone lets it pass.
            Without(call, arguments) => {
                let without =
                    |&(argument, bits): &(u8, u64)| condition(argument, SeccompCmpOp::MaskedEq(bits), 0);
                let conditions = arguments.iter().map(without).collect::<Result<_, _>>()?;
                rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
            }
        }
    }
    Ok(rules)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, SeccompError> {
    Ok(SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?)
}

const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

/// Memory that no control group counts, or that cannot be taken back.
const UNCOUNTED: u64 = (libc::MAP_HUGETLB | libc::MAP_LOCKED) as u64;

/// What the allocator, locks, the log and the end of any thread need. Memory never becomes executable.
const EVERY_THREAD: &[Allow] = &[
    Call(libc::SYS_futex),
    Call(libc::SYS_brk),
    Without(libc::SYS_mmap, &[(2, EXECUTABLE), (3, UNCOUNTED)]),
    Without(libc::SYS_mprotect, &[(2, EXECUTABLE)]),
    Call(libc::SYS_munmap),
    Call(libc::SYS_mremap),
    Call(libc::SYS_madvise),
    Call(libc::SYS_read),
    Call(libc::SYS_write),
    Call(libc::SYS_close),
    // Without a stable TSC the host's vDSO falls back to the call.
    Call(libc::SYS_clock_gettime),
    Call(libc::SYS_sched_yield),
    Call(libc::SYS_sigaltstack),
    Call(libc::SYS_rt_sigprocmask),
    Call(libc::SYS_rt_sigreturn),
    Call(libc::SYS_restart_syscall),
    Call(libc::SYS_gettid),
    Call(libc::SYS_getpid),
    Call(libc::SYS_exit),
    Call(libc::SYS_exit_group),
];

/// What devices and the control socket need.
const EVENT_LOOP: &[Allow] = &[
    Call(libc::SYS_epoll_wait),
    Call(libc::SYS_epoll_pwait),
    Call(libc::SYS_epoll_ctl),
    // Extents.
    Call(libc::SYS_readv),
    Call(libc::SYS_writev),
    Call(libc::SYS_pread64),
    Call(libc::SYS_pwrite64),
    Call(libc::SYS_preadv),
    Call(libc::SYS_pwritev),
    // Of open files only: the C library makes `fstat` of these.
    Call(libc::SYS_fstat),
    With(libc::SYS_newfstatat, 3, &[libc::AT_EMPTY_PATH as u64]),
    With(libc::SYS_statx, 2, &[libc::AT_EMPTY_PATH as u64]),
    Call(libc::SYS_lseek),
    // Sockets: connections come through listeners that were given, or as pairs of which one end is given away.
    Call(libc::SYS_accept4),
    Call(libc::SYS_recvmsg),
    Call(libc::SYS_sendmsg),
    Call(libc::SYS_recvfrom),
    Call(libc::SYS_sendto),
    Call(libc::SYS_shutdown),
    Call(libc::SYS_getsockopt),
    With(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64]),
    With(
        libc::SYS_fcntl,
        1,
        &[
            libc::F_GETFL as u64,
            libc::F_SETFL as u64,
            libc::F_GETFD as u64,
            libc::F_SETFD as u64,
            libc::F_DUPFD_CLOEXEC as u64,
        ],
    ),
    Call(libc::SYS_timerfd_create),
    Call(libc::SYS_timerfd_settime),
    Call(libc::SYS_eventfd2),
    Call(libc::SYS_getrandom),
    With(libc::SYS_ioctl, 1, &[libc::FIONBIO]),
    // Kicks of vCPU threads when the VM ends.
    Call(libc::SYS_tgkill),
];

/// What running the guest needs.
const VCPU: &[Allow] = &[With(libc::SYS_ioctl, 1, &[KVM_RUN])];

/// What starting a thread and confining it needs.
const THREAD: &[Allow] = &[
    With(libc::SYS_clone, 0, &[THREAD_FLAGS]),
    Call(libc::SYS_rseq),
    Call(libc::SYS_set_robust_list),
    Call(libc::SYS_sched_getaffinity),
    Call(libc::SYS_prlimit64),
    With(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64]),
    With(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER as u64]),
];

/// What the C library makes a thread with: one that shares all there is to share with its process.
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// Goes before a filter: answers `clone3` as a kernel does that does not have it, and leaves all else to the filter.
const NO_CLONE3: [sock_filter; 3] = [
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, NUMBER_OF_CALL),
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, libc::SYS_clone3 as u32),
    instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
];

/// Where the number of the system call lies in `struct seccomp_data`.
const NUMBER_OF_CALL: u32 = 0;

/// An instruction that, if it is a jump, goes on with the next where its condition holds and skips `skipped` where not.
const fn instruction(code: u32, skipped: u8, operand: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: skipped, k: operand }
}

/// What may take long on a file of the disk. No file is made longer.
const DISK: &[Allow] = &[
    Call(libc::SYS_fdatasync),
    With(libc::SYS_fallocate, 1, &[(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64]),
];

/// What making a processor of a guest that boots needs.
const PROCESSOR: &[Allow] = &[With(
    libc::SYS_ioctl,
    1,
    &[
        both::<kvm::kvm_cpuid2>(0x05),  // KVM_GET_SUPPORTED_CPUID
        none(0x41),                     // KVM_CREATE_VCPU
        write::<kvm::kvm_msrs>(0x89),   // KVM_SET_MSRS
        write::<kvm::kvm_fpu>(0x8d),    // KVM_SET_FPU
        write::<kvm::kvm_cpuid2>(0x90), // KVM_SET_CPUID2
    ],
)];

/// What making one known to a machine that runs needs.
const JOIN: &[Allow] = &[With(
    libc::SYS_ioctl,
    1,
    &[
        read::<kvm::kvm_lapic_state>(0x8e),  // KVM_GET_LAPIC
        write::<kvm::kvm_lapic_state>(0x8f), // KVM_SET_LAPIC
    ],
)];

/// What building a VM needs beside that.
const BOOT: &[Allow] = &[
    Call(libc::SYS_poll),
    Call(libc::SYS_ppoll),
    Call(libc::SYS_epoll_create1),
    Call(libc::SYS_rt_sigaction),
    With(
        libc::SYS_ioctl,
        1,
        &[
            none(0x00),                                      // KVM_GET_API_VERSION
            none(0x01),                                      // KVM_CREATE_VM
            none(0x03),                                      // KVM_CHECK_EXTENSION
            none(0x04),                                      // KVM_GET_VCPU_MMAP_SIZE
            write::<kvm::kvm_userspace_memory_region>(0x46), // KVM_SET_USER_MEMORY_REGION
            none(0x47),                                      // KVM_SET_TSS_ADDR
            write::<u64>(0x48),                              // KVM_SET_IDENTITY_MAP_ADDR
            none(0x60),                                      // KVM_CREATE_IRQCHIP
            write::<kvm::kvm_irqfd>(0x76),                   // KVM_IRQFD
            write::<kvm::kvm_ioeventfd>(0x79),               // KVM_IOEVENTFD
            write::<kvm::kvm_regs>(0x82),                    // KVM_SET_REGS
            write::<kvm::kvm_enable_cap>(0xa3),              // KVM_ENABLE_CAP
            read::<kvm::kvm_sregs>(0x83),                    // KVM_GET_SREGS
            write::<kvm::kvm_sregs>(0x84),                   // KVM_SET_SREGS
        ],
    ),
];

/// What building a VM from a saved state needs beside that.
const RESTORE: &[Allow] = &[With(
    libc::SYS_ioctl,
    1,
    &[
        read::<kvm::kvm_irqchip>(0x63), // KVM_SET_IRQCHIP, whose direction is wrong in the kernel's header
        write::<kvm::kvm_clock_data>(0x7b), // KVM_SET_CLOCK
        write::<kvm::kvm_lapic_state>(0x8f), // KVM_SET_LAPIC
        write::<kvm::kvm_mp_state>(0x99), // KVM_SET_MP_STATE
        write::<kvm::kvm_vcpu_events>(0xa0), // KVM_SET_VCPU_EVENTS
        write::<kvm::kvm_debugregs>(0xa2), // KVM_SET_DEBUGREGS
        write::<kvm::kvm_xsave>(0xa5),  // KVM_SET_XSAVE
        write::<kvm::kvm_xcrs>(0xa7),   // KVM_SET_XCRS
        none(0xad),                     // KVM_KVMCLOCK_CTRL
    ],
)];

/// What saving a VM needs.
const SAVE: &[Allow] = &[With(
    libc::SYS_ioctl,
    1,
    &[
        both::<kvm::kvm_msr_list>(0x02),    // KVM_GET_MSR_INDEX_LIST
        none(0x03),                         // KVM_CHECK_EXTENSION
        both::<kvm::kvm_irqchip>(0x62),     // KVM_GET_IRQCHIP
        read::<kvm::kvm_clock_data>(0x7c),  // KVM_GET_CLOCK
        read::<kvm::kvm_regs>(0x81),        // KVM_GET_REGS
        read::<kvm::kvm_sregs>(0x83),       // KVM_GET_SREGS
        both::<kvm::kvm_msrs>(0x88),        // KVM_GET_MSRS
        write::<kvm::kvm_msrs>(0x89),       // KVM_SET_MSRS, to see which can be written back
        read::<kvm::kvm_lapic_state>(0x8e), // KVM_GET_LAPIC
        both::<kvm::kvm_cpuid2>(0x91),      // KVM_GET_CPUID2
        read::<kvm::kvm_mp_state>(0x98),    // KVM_GET_MP_STATE
        read::<kvm::kvm_vcpu_events>(0x9f), // KVM_GET_VCPU_EVENTS
        read::<kvm::kvm_debugregs>(0xa1),   // KVM_GET_DEBUGREGS
        read::<kvm::kvm_xsave>(0xa4),       // KVM_GET_XSAVE
        read::<kvm::kvm_xcrs>(0xa6),        // KVM_GET_XCRS
    ],
)];

/// What sleeping needs.
const HOLD: &[Allow] =
    &[Call(libc::SYS_pause), Call(libc::SYS_rt_sigreturn), Call(libc::SYS_restart_syscall)];

const KVM_RUN: u64 = none(0x80);

const fn none(number: u32) -> u64 {
    ioctl_expr(_IOC_NONE, kvm::KVMIO, number, 0)
}

const fn read<T>(number: u32) -> u64 {
    ioctl_expr(_IOC_READ, kvm::KVMIO, number, size_of::<T>() as u32)
}

const fn write<T>(number: u32) -> u64 {
    ioctl_expr(_IOC_WRITE, kvm::KVMIO, number, size_of::<T>() as u32)
}

const fn both<T>(number: u32) -> u64 {
    ioctl_expr(_IOC_READ | _IOC_WRITE, kvm::KVMIO, number, size_of::<T>() as u32)
}
