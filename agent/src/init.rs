//! PID 1: makes the guest fit to live in, serves until the VM ends, and never returns.
//!
//! Only what every pod needs and no pod can tell from another's happens here, so that a template VM can be
//! taken just after: identity comes with `SetUpSandbox`. Steps before the host is told cost every cold start,
//! so nothing waits and nothing is probed.

use crate::cgroup::{layout, tasks};
use crate::console::{self, Level};
use crate::sandbox::Sandbox;
use crate::{server, sys};
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::sync::Arc;

/// Why the guest could not be made fit.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A file system of the kernel cannot be mounted.
    #[error("{file_system} cannot be mounted at {target}; check the guest kernel's configuration")]
    Mount {
        /// Its type.
        file_system: &'static str,
        /// Where.
        target: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path could not be made or written.
    #[error("{path} cannot be made or written")]
    Path {
        /// The path.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The event loop cannot be made.
    #[error("event loop cannot be made")]
    EventLoop(#[source] io::Error),
}

/// One file system of the guest's tree.
struct KernelMount {
    file_system: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In this order, as later ones lie inside earlier ones.
const MOUNTS: [KernelMount; 8] = [
    KernelMount { file_system: "proc", target: "/proc", flags: NO_EXEC, options: c"" },
    KernelMount { file_system: "sysfs", target: "/sys", flags: NO_EXEC, options: c"" },
    KernelMount { file_system: "devtmpfs", target: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
    KernelMount {
        file_system: "devpts",
        target: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=0620,ptmxmode=0666,gid=5",
    },
    KernelMount { file_system: "mqueue", target: "/dev/mqueue", flags: NO_EXEC, options: c"" },
    KernelMount { file_system: "cgroup2", target: layout::ROOT, flags: NO_EXEC, options: c"nsdelegate" },
    KernelMount {
        file_system: "tmpfs",
        target: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=0755",
    },
    KernelMount {
        file_system: "tmpfs",
        target: "/tmp",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=1777",
    },
];

/// Names that programs expect in `/dev` beside the kernel's own.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Kernel settings under which containers live unless their pod asks for others.
const SYSCTLS: [(&str, &str); 14] = [
    // Or the kernel drops our lines after the tenth in five seconds. It wants the line end.
    ("kernel/printk_devkmsg", "on\n"),
    // The log has addresses and names of the guest, and lines about every container of the pod.
    ("kernel/dmesg_restrict", "1"),
    // As distributions have it: numbers of groups and sessions outlive the processes that they are named for,
    // so 32768, the kernel's own bound, could all be taken by fewer tasks than there may be.
    ("kernel/pid_max", "4194304"),
    // The kernel's bound is by memory at boot, for all processes of the guest without CAP_SYS_ADMIN: one
    // container could hold all files. Open files are charged to the memory of the container that opens them.
    ("fs/file-max", "9223372036854775807"),
    // Per user, by memory at boot: root of a container could leave the agent none for a connection. Watches
    // are charged.
    ("fs/epoll/max_user_watches", "9223372036854775807"),
    // Per user: past it, pipes of others of that number hold two pages instead of sixteen. Pages in pipes are
    // charged; 0 is no bound.
    ("fs/pipe-user-pages-soft", "0"),
    // What kubelet wants of a node.
    ("vm/overcommit_memory", "1"),
    // The kernel looks twice a second whether memory should be compacted before anybody needs it: an idle
    // guest shall sleep.
    ("vm/compaction_proactiveness", "0"),
    // Freed pages wait on lists of each processor before they are free for all, and only then go back to the
    // host: an eighth of all memory may, by default, and a thousandth so.
    ("vm/percpu_pagelist_high_fraction", "1000"),
    // A look once a minute, instead of every five seconds, for what is to be written to scratch: it outlives
    // nobody, and memory that runs short does not wait for it.
    ("vm/dirty_writeback_centisecs", "6000"),
    // What every distribution sets and the kernel does not.
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    // As containerd gives it to every pod: low ports and ping without capabilities, inside the pod's own
    // network.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];

/// Objects that the kernel counts per user (`/proc/sys/user`), by memory at boot or to a fixed number. The
/// agent's children and root of every container are one user to it, so one container could keep all others
/// from being made. They are charged to the memory of the container that makes them (network namespaces in
/// part, of which the kernel's own bound does not fit into memory either), so these bounds protect nothing.
///
/// Left as they are, as nothing charges them and the agent needs none: keys, events of asynchronous I/O,
/// terminals; and bytes in POSIX message queues, which are the pod's.
const COUNTED_PER_USER: [&str; 12] = [
    "max_cgroup_namespaces",
    "max_ipc_namespaces",
    "max_mnt_namespaces",
    "max_net_namespaces",
    "max_pid_namespaces",
    "max_time_namespaces",
    "max_user_namespaces",
    "max_uts_namespaces",
    "max_inotify_instances",
    "max_inotify_watches",
    "max_fanotify_groups",
    "max_fanotify_marks",
];

/// The most that the kernel takes for one of these.
const NO_BOUND: &str = "2147483647";

/// Open files that a process may have; containers inherit it where their spec sets nothing.
const OPEN_FILES: u64 = 1 << 20;

/// The life of the agent.
pub fn run() -> ! {
    end_vm_on_panic();
    match live() {
        Ok(()) => console::write(Level::Critical, format_args!("agent has no more calls to serve")),
        Err(error) => console::write(Level::Critical, format_args!("agent cannot go on: {error:#}")),
    }
    sys::kernel::power_off()
}

fn live() -> anyhow::Result<()> {
    set_up_guest()?;
    console::debug!("guest is set up {} us after boot", sys::kernel::since_boot().as_micros());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(InitError::EventLoop)?;
    runtime.block_on(server::serve(Arc::new(Sandbox::default())))?;
    Ok(())
}

/// A panic in any task would leave a guest that answers half of its calls: the VM ends instead, and says why.
fn end_vm_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        console::write(Level::Critical, format_args!("agent panicked: {panic}"));
        sys::kernel::power_off()
    }));
}

/// Mounts, settings and limits, before any identity.
pub fn set_up_guest() -> Result<(), InitError> {
    for mount in &MOUNTS {
        make_mount(mount)?;
    }
    for (original, link) in DEVICE_LINKS {
        // The kernel or the image may have made it.
        let _ = symlink(original, link);
    }
    let counted = COUNTED_PER_USER.map(|name| (format!("user/{name}"), NO_BOUND));
    let settings = SYSCTLS.map(|(name, value)| (name.to_owned(), value));
    for (name, value) in settings.into_iter().chain(counted) {
        let path = format!("/proc/sys/{name}");
        // A kernel without the knob needs no setting of it.
        if let Err(error) = fs::write(&path, value) {
            console::error!("{path} cannot be set to {value:?}: {error}");
        }
    }
    raise_limits();
    layout::prepare().map_err(|(path, source)| InitError::Path { path, source })?;
    tasks::bound().map_err(|(path, source)| InitError::Path { path: path.display().to_string(), source })
}

fn make_mount(mount: &KernelMount) -> Result<(), InitError> {
    let failed = |source| InitError::Mount { file_system: mount.file_system, target: mount.target, source };
    match fs::create_dir(mount.target) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let result =
        rustix::mount::mount(mount.file_system, mount.target, mount.file_system, mount.flags, mount.options);
    match result {
        Ok(()) => Ok(()),
        // The kernel mounted /dev itself (CONFIG_DEVTMPFS_MOUNT).
        Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}

fn raise_limits() {
    let open_files = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    let unlimited = Rlimit { current: None, maximum: None };
    // Signals in queues, which timers need as well, are counted per user and charged, too.
    for (resource, limit) in
        [(Resource::Nofile, open_files), (Resource::Nproc, unlimited), (Resource::Sigpending, unlimited)]
    {
        if let Err(error) = rustix::process::setrlimit(resource, limit) {
            console::error!("limit {resource:?} cannot be raised: {error}");
        }
    }
}
