//! The seccomp filter of containers that ask for `RuntimeDefault`: every system call fails with EPERM but
//! those that programs need, and those that a granted capability is there for.
//!
//! Called by `security`. Names the guest's kernel does not know are passed over when the filter is made. What
//! needs no condition is listed in `files` and `processes`. It must not touch the guest: the agent applies
//! what is described here.

mod files;
mod processes;

use oci_spec::runtime::{
    Arch, Capability, LinuxCapabilities, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// `personality` values that programs may ask for: Linux, with or without 2.6 numbers and short inodes, and
/// "tell me".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Flags of `clone` that make namespaces.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// The filter for a process with these capabilities.
pub fn default_profile(capabilities: &LinuxCapabilities) -> LinuxSeccomp {
    let has = |c: Capability| capabilities.bounding().as_ref().is_some_and(|set| set.contains(&c));
    let mut rules = vec![allow(&ALWAYS.concat())];
    rules.extend(
        PERSONALITIES
            .map(|value| allow_where("personality", 0, value, None, LinuxSeccompOperator::ScmpCmpEq)),
    );
    for (capability, names) in WITH_CAPABILITY {
        if has(*capability) {
            rules.push(allow(names));
        }
    }
    if !has(Capability::SysAdmin) {
        rules.push(allow_where("clone", 0, CLONE_NAMESPACES, Some(0), LinuxSeccompOperator::ScmpCmpMaskedEq));
        // Its flags lie in memory, where a filter cannot look: ENOSYS makes the C library fall back to clone.
        let mut clone3 = refuse(&["clone3"]);
        clone3.set_errno_ret(Some(libc::ENOSYS.cast_unsigned()));
        rules.push(clone3);
    }
    // No program has business with the host: AF_VSOCK is refused, as by containerd. This is no wall.
    // `socketcall` of 32-bit programs takes the family from memory, where a filter cannot look, and
    // libseccomp allows that call with this rule anyway; moby refused it in 2026 for some days, and broke C
    // libraries and Go of i386. What holds is elsewhere: the agent serves the host alone, a guest has no
    // vsock to itself, and the host takes up connections to its ready port alone.
    rules.push(allow_where("socket", 0, 40, None, LinuxSeccompOperator::ScmpCmpNe));

    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.cast_unsigned()))
        .set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]))
        .set_syscalls(Some(rules));
    profile
}

fn rule(names: &[&str], action: LinuxSeccompAction) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|&n| n.to_owned()).collect())
        .set_action(action)
        .set_errno_ret(None)
        .set_args(None);
    rule
}

fn allow(names: &[&str]) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow)
}

fn refuse(names: &[&str]) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActErrno)
}

fn allow_where(
    name: &str,
    index: usize,
    value: u64,
    two: Option<u64>,
    op: LinuxSeccompOperator,
) -> LinuxSyscall {
    let argument = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let argument = match two {
        Some(two) => argument.value_two(two),
        None => argument,
    };
    let argument = argument.build().expect("index, value and operator are set");
    let mut rule = allow(&[name]);
    rule.set_args(Some(vec![argument]));
    rule
}

/// Calls that only do something with a capability, allowed with it.
const WITH_CAPABILITY: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (
        Capability::SysAdmin,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "init_module", "finit_module"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (Capability::SysRawio, &["iopl", "ioperm"]),
    (Capability::SysTime, &["settimeofday", "stime", "clock_settime", "clock_settime64"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// Calls that every program may make.
const ALWAYS: [&[&str]; 10] = [
    files::FILES,
    files::WAITING,
    processes::MEMORY,
    processes::PROCESSES,
    processes::USERS,
    processes::SIGNALS,
    files::SOCKETS,
    files::QUEUES,
    processes::TIME,
    processes::SYSTEM,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn allowed(granted: &[Capability]) -> HashSet<String> {
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some(granted.iter().copied().collect()));
        let profile = default_profile(&capabilities);
        let rules = profile.syscalls().clone().unwrap();
        let open =
            rules.iter().filter(|r| r.action() == LinuxSeccompAction::ScmpActAllow && r.args().is_none());
        open.flat_map(|r| r.names().clone()).collect()
    }

    #[test]
    fn calls_that_change_the_kernel_need_their_capability() {
        let plain = allowed(&[]);
        for name in
            ["mount", "bpf", "init_module", "reboot", "kcmp", "setns", "unshare", "keyctl", "userfaultfd"]
        {
            assert!(!plain.contains(name), "{name}");
        }
        assert!(allowed(&[Capability::SysAdmin]).contains("mount"));
        assert!(!allowed(&[Capability::SysAdmin]).contains("init_module"));
    }

    #[test]
    fn sockets_are_made_of_every_family_but_vsock() {
        let profile = default_profile(&LinuxCapabilities::default());
        let rules = profile.syscalls().clone().unwrap();
        let of = |name: &str| -> Vec<_> {
            rules.iter().filter(|rule| rule.names().iter().any(|named| named == name)).collect()
        };
        let sockets = of("socket");
        let rule = sockets[0];
        assert!(sockets.len() == 1 && rule.action() == LinuxSeccompAction::ScmpActAllow);
        let conditions = rule.args().as_deref().unwrap();
        let vsock = u64::from(libc::AF_VSOCK.cast_unsigned());
        assert_eq!(conditions.len(), 1);
        assert_eq!((conditions[0].index(), conditions[0].value()), (0, vsock));
        assert_eq!(conditions[0].op(), LinuxSeccompOperator::ScmpCmpNe);
        // 32-bit programs have no sockets without it.
        let calls = of("socketcall");
        assert!(calls.len() == 1 && calls[0].args().is_none());
    }

    // since Linux 4.8 a tracer cannot get its child around the filter, and containerd's filter allows it too
    #[test]
    fn programs_may_trace_their_children() {
        let plain = allowed(&[]);
        assert!(["ptrace", "process_vm_readv", "process_vm_writev"].iter().all(|name| plain.contains(*name)));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut seen = HashSet::new();
        assert!(ALWAYS.concat().into_iter().all(|name| seen.insert(name)));
    }
}
