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

const ALL: [Stage; 6] =
    [Stage::Boot, Stage::EventLoop, Stage::Template, Stage::Vcpu, Stage::MoreVcpus, Stage::Hold];

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
    allows(Stage::EventLoop, libc::SYS_fdatasync, [-1, 0, 0, 0]);
    allows(Stage::Boot, libc::SYS_ioctl, [-1, KVM_CREATE_VM, 0, 0]);
}

#[test]
fn only_unix_socket_pairs_are_made() {
    kills(Stage::EventLoop, libc::SYS_socketpair, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0]);
    allows(Stage::EventLoop, libc::SYS_socketpair, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0]);
}
