//! The real seccomp filters, in child processes: what a thread needs works, anything else kills.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use isopod_vmm::seccomp::{Filter, Stage};
use libc::{c_int, c_long};

/// Installs the filter of `stage` in a child, makes the call there, and says how the child ended.
fn ending_of(stage: Stage, number: c_long, arguments: [c_long; 4]) -> c_int {
    let filter = Filter::new(stage).expect("the lists make a program");
    // SAFETY: the child only makes system calls, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let installed = filter.install().is_ok();
        let [a, b, c, d] = arguments;
        // SAFETY: either the filter kills the child, or the call is one of those below, with arguments that touch no memory.
        unsafe { libc::syscall(number, a, b, c, d) };
        // SAFETY: ends the child.
        unsafe { libc::_exit(if installed { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &mut status, 0) };
    status
}

/// Makes the call in a child bound by the filter of `stage`, and returns its error number.
fn errno_of(stage: Stage, number: c_long) -> c_int {
    let filter = Filter::new(stage).expect("the lists make a program");
    in_child(|| {
        let installed = filter.install().is_ok();
        // SAFETY: a call that the filter answers, without arguments.
        unsafe { libc::syscall(number, 0, 0, 0, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if installed { errno } else { 255 }
    })
}

/// Runs `work` in a child; returns its exit code, or -1 where a signal ended it.
fn in_child(work: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: the child does what is asked for and ends by `_exit`; the C library keeps its allocator usable over a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = work();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
}

#[track_caller]
fn kills(stage: Stage, number: c_long, arguments: [c_long; 4]) {
    let status = ending_of(stage, number, arguments);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "{stage:?} {status:#x}");
}

#[track_caller]
fn allows(stage: Stage, number: c_long, arguments: [c_long; 4]) {
    let status = ending_of(stage, number, arguments);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{stage:?} {status:#x}");
}

const ALL: [Stage; 7] =
    [Stage::Boot, Stage::EventLoop, Stage::Template, Stage::Vcpu, Stage::MoreVcpus, Stage::Disk, Stage::Hold];

/// Flags with which the C library makes a thread.
const THREAD: c_long = 0x3d_0f00;

#[test]
fn no_thread_opens_files_makes_sockets_or_runs_programs() {
    let forbidden = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_kill,
        libc::SYS_bpf,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_memfd_create,
        libc::SYS_ftruncate,
        libc::SYS_io_setup,
        libc::SYS_vfork,
    ];
    for stage in ALL {
        for number in forbidden {
            kills(stage, number, [-1; 4]);
        }
    }
}

#[test]
fn no_memory_becomes_executable() {
    let executable = c_long::from(libc::PROT_READ | libc::PROT_EXEC);
    let readable = c_long::from(libc::PROT_READ);
    for stage in ALL {
        kills(stage, libc::SYS_mmap, [0, 4096, executable, 0]);
        kills(stage, libc::SYS_mprotect, [0, 4096, executable, 0]);
        if stage != Stage::Hold {
            allows(stage, libc::SYS_mprotect, [0, 0, readable, 0]);
        }
    }
}

/// The node's huge pages are in no control group's memory, and locked pages cannot be taken back.
#[test]
fn no_memory_is_taken_that_is_not_counted() {
    let plain = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let map = |flags: c_int| [0, 2 << 20, c_long::from(libc::PROT_READ), c_long::from(flags)];
    for stage in ALL {
        kills(stage, libc::SYS_mmap, map(plain | libc::MAP_HUGETLB));
        kills(stage, libc::SYS_mmap, map(plain | libc::MAP_LOCKED));
        if stage != Stage::Hold {
            allows(stage, libc::SYS_mmap, map(plain));
        }
    }
}

/// Each such request takes a lock that all networks of the node share.
#[test]
fn no_thread_sets_what_a_tap_is() {
    for stage in ALL {
        for request in [libc::TUNSETOFFLOAD, libc::TUNSETVNETHDRSZ, libc::TUNSETIFF] {
            kills(stage, libc::SYS_ioctl, [-1, request.cast_signed(), 0, 0]);
        }
    }
}

#[test]
fn state_of_a_vm_is_read_only_from_a_template_and_set_only_at_its_making() {
    const KVM_GET_MP_STATE: c_long = 0x8004_ae98;
    const KVM_SET_MP_STATE: c_long = 0x4004_ae99;
    for (stage, reads, sets) in
        [(Stage::Boot, true, true), (Stage::Template, true, false), (Stage::EventLoop, false, false)]
    {
        let check = |allowed: bool, request| match allowed {
            true => allows(stage, libc::SYS_ioctl, [-1, request, 0, 0]),
            false => kills(stage, libc::SYS_ioctl, [-1, request, 0, 0]),
        };
        check(reads, KVM_GET_MP_STATE);
        check(sets, KVM_SET_MP_STATE);
    }
}

/// What KVM gives a machine is decided before anything of its guest runs.
#[test]
fn capabilities_of_a_vm_are_chosen_only_at_its_making() {
    const KVM_ENABLE_CAP: c_long = 0x4068_aea3;
    for stage in ALL {
        match stage {
            Stage::Boot => allows(stage, libc::SYS_ioctl, [-1, KVM_ENABLE_CAP, 0, 0]),
            _ => kills(stage, libc::SYS_ioctl, [-1, KVM_ENABLE_CAP, 0, 0]),
        }
    }
}

#[test]
fn holder_of_a_template_touches_nothing() {
    for number in [libc::SYS_read, libc::SYS_write, libc::SYS_mmap, libc::SYS_sendmsg, libc::SYS_ioctl] {
        kills(Stage::Hold, number, [-1; 4]);
    }
}

#[test]
fn vcpu_thread_runs_the_guest_and_makes_no_other_ioctl() {
    const KVM_RUN: c_long = 0xae80;
    const KVM_CREATE_VM: c_long = 0xae01;
    let file = File::open("/dev/null").unwrap();
    let fd = c_long::from(file.as_raw_fd());
    allows(Stage::Vcpu, libc::SYS_ioctl, [fd, KVM_RUN, 0, 0]);
    kills(Stage::Vcpu, libc::SYS_ioctl, [fd, KVM_CREATE_VM, 0, 0]);
    kills(Stage::Vcpu, libc::SYS_ioctl, [fd, libc::TIOCSTI as c_long, 0, 0]);
    kills(Stage::Vcpu, libc::SYS_recvmsg, [-1; 4]);
    kills(Stage::Vcpu, libc::SYS_pwritev, [-1; 4]);
}

#[test]
fn only_the_thread_for_it_makes_processors_of_a_running_vm() {
    const KVM_CREATE_VCPU: c_long = 0xae41;
    const KVM_SET_SREGS: c_long = 0x4138_ae84;
    allows(Stage::MoreVcpus, libc::SYS_ioctl, [-1, KVM_CREATE_VCPU, 0, 0]);
    kills(Stage::EventLoop, libc::SYS_ioctl, [-1, KVM_CREATE_VCPU, 0, 0]);
    kills(Stage::Vcpu, libc::SYS_ioctl, [-1, KVM_CREATE_VCPU, 0, 0]);
    allows(Stage::Boot, libc::SYS_ioctl, [-1, KVM_SET_SREGS, 0, 0]);
    kills(Stage::MoreVcpus, libc::SYS_ioctl, [-1, KVM_SET_SREGS, 0, 0]);
    kills(Stage::MoreVcpus, libc::SYS_recvmsg, [-1; 4]);
    kills(Stage::MoreVcpus, libc::SYS_accept4, [-1; 4]);
}

#[test]
fn running_vm_makes_no_thread_and_no_other_vm() {
    const KVM_CREATE_VM: c_long = 0xae01;
    kills(Stage::EventLoop, libc::SYS_clone, [0; 4]);
    kills(Stage::EventLoop, libc::SYS_clone3, [0; 4]);
    kills(Stage::EventLoop, libc::SYS_ioctl, [-1, KVM_CREATE_VM, 0, 0]);
    kills(Stage::EventLoop, libc::SYS_seccomp, [0; 4]);
    kills(Stage::Disk, libc::SYS_clone, [THREAD, 0, 0, 0]);
    kills(Stage::Disk, libc::SYS_clone3, [0; 4]);
    allows(Stage::EventLoop, libc::SYS_preadv, [-1, 0, 0, 0]);
    allows(Stage::Boot, libc::SYS_ioctl, [-1, KVM_CREATE_VM, 0, 0]);
}

#[test]
fn what_starts_threads_starts_nothing_else() {
    const NEW_USER: c_long = libc::CLONE_NEWUSER as c_long;
    const NEW_NETWORK: c_long = libc::CLONE_NEWNET as c_long;
    for stage in [Stage::Boot, Stage::MoreVcpus] {
        for flags in [0, libc::SIGCHLD.into(), NEW_USER, THREAD | NEW_USER, THREAD | NEW_NETWORK] {
            kills(stage, libc::SYS_clone, [flags, 0, 0, 0]);
        }
        // Its flags lie in memory, which no filter can look at.
        assert_eq!(errno_of(stage, libc::SYS_clone3), libc::ENOSYS, "{stage:?}");
        let filter = Filter::new(stage).expect("the lists make a program");
        let answer = in_child(|| match filter.install() {
            Ok(()) => std::thread::spawn(|| 7).join().unwrap_or(1),
            Err(_) => 2,
        });
        assert_eq!(answer, 7, "{stage:?} starts threads");
    }
}

#[test]
fn only_the_disks_worker_waits_for_files_and_it_makes_none_longer() {
    let punch = c_long::from(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
    let longer = c_long::from(libc::FALLOC_FL_KEEP_SIZE);
    allows(Stage::Disk, libc::SYS_fdatasync, [-1, 0, 0, 0]);
    allows(Stage::Disk, libc::SYS_fallocate, [-1, punch, 0, 1]);
    for stage in [Stage::Boot, Stage::Disk, Stage::EventLoop] {
        kills(stage, libc::SYS_fallocate, [-1, 0, 0, 1]);
        kills(stage, libc::SYS_fallocate, [-1, longer, 0, 1]);
    }
    for number in [libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_fallocate] {
        kills(Stage::EventLoop, number, [-1, punch, 0, 1]);
    }
    for number in [libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_ioctl, libc::SYS_pwritev, libc::SYS_preadv]
    {
        kills(Stage::Disk, number, [-1; 4]);
    }
}

#[test]
fn only_unix_socket_pairs_are_made() {
    kills(Stage::EventLoop, libc::SYS_socketpair, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0]);
    allows(Stage::EventLoop, libc::SYS_socketpair, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0]);
}
