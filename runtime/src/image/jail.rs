//! The confinement of the processes that parse untrusted layers. The converter is given an archive on its
//! standard input, a file to write, a socket to the daemon, and nothing else; the decompressor is given two
//! pipes and nothing else:
//!
//! | taken away | by | why |
//! |---|---|---|
//! | files | mount namespace, an empty root | nothing to read or to write beside what it was given |
//! | network, System V objects, host name | namespaces of its own, empty | nowhere to send what it learns |
//! | root | user and group of its own, no groups, no capabilities, no_new_privs | the output file is all it owns |
//! | processes, memory, disk, time | rlimits | no fork; a bomb ends itself |
//! | memory of all of them together | a cgroup, where the daemon has one for them | many bombs end each other |
//! | system calls | seccomp: those of a program that reads, writes and allocates | the rest of the kernel is out of reach |
//! | signals to others | seccomp: no fcntl but to ask for flags | all jails have one user, and by its descriptors one could have the kernel send any signal to another |
//!
//! Entered by `worker` before a process reads its first byte. It must not know what is done inside.

use super::sys;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// Files that may be open at once: the layers below, of which an image has 255 at most, and a few.
const MOST_FILES: u64 = 300;

/// Exit status of a jail that could not be closed: its program did not run.
pub const JAIL_FAILED: i32 = 125;

/// Address space in bytes: names take the most of it, and `layer` bounds those.
const ADDRESS_SPACE: u64 = 2 << 30;

/// Size of the jail's tmpfs, which holds nothing.
const ROOT_OPTIONS: &str = "size=4k,nr_inodes=2,mode=0555";

/// What reading an archive, writing a file and taking files from a socket need, with what allocation and the end of a Rust
/// program do.
const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What of fcntl(2) they need: to see that a descriptor is open. Others set who gets a descriptor's signals,
/// and which.
const FCNTL_COMMANDS: &[libc::c_int] = &[libc::F_GETFD];

/// Name of the processes, for people who look at the node.
const NAME: &CStr = c"isopod-layer";

/// A jail's limits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jail {
    /// User and group id it runs as; a file that it writes must be this user's.
    pub uid: u32,
    /// The cgroup that bounds the memory of all such processes; absent where there is none.
    pub cgroup: Option<PathBuf>,
    /// An empty directory to mount its root on, in a mount namespace of its own.
    pub mount_point: PathBuf,
    /// Largest file it may write, in bytes. Pipes do not count.
    pub largest_file: u64,
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
}

/// A step that failed, and with it the jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// What the daemon wrote for this process makes no sense to it.
    #[error("its arguments cannot be read: {0}")]
    Arguments(#[from] serde_json::Error),
    /// A system call was refused.
    #[error("{0}: {1}")]
    Step(&'static str, nix::errno::Errno),
    /// The cgroup does not take this process.
    #[error("enter cgroup {0}: {1}")]
    Cgroup(PathBuf, std::io::Error),
    /// The filter's rules make no program.
    #[error("compile the seccomp filter: {0}")]
    Compile(#[from] seccompiler::BackendError),
    /// The kernel does not take the filter.
    #[error("install the seccomp filter: {0}")]
    Filter(#[from] seccompiler::Error),
}

impl Jail {
    /// Confines this process, for good. `has_socket`: it may speak with the daemon.
    ///
    /// # Errors
    /// The process must end: it may be half confined.
    pub fn enter(&self, has_socket: bool) -> Result<(), JailError> {
        // Whatever this process was started with, it keeps its input, its output, its complaints and its socket only.
        step("close other files", sys::close_others(has_socket))?;
        step("take a name", prctl::set_name(NAME))?;
        self.enter_cgroup()?;
        self.shut_out_the_node()?;
        self.limit()?;
        self.become_nobody()?;
        filter_system_calls()
    }

    /// Moves this process. It does so itself, as the kernel may take tens of milliseconds for that, which the daemon would
    /// wait for otherwise.
    fn enter_cgroup(&self) -> Result<(), JailError> {
        let Some(cgroup) = &self.cgroup else { return Ok(()) };
        // opened and not made: the directory may be gone
        let file = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"));
        let entered = file.and_then(|mut file| file.write_all(b"0"));
        entered.map_err(|error| JailError::Cgroup(cgroup.clone(), error))
    }

    /// New namespaces, and an empty root.
    fn shut_out_the_node(&self) -> Result<(), JailError> {
        let namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        step("make namespaces", unshare(namespaces))?;
        step("cut off mount propagation", make_private())?;
        let root = &self.mount_point;
        let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        step("mount the root", mount(Some("jail"), root, Some("tmpfs"), hardened, Some(ROOT_OPTIONS)))?;
        step("enter the root", chdir(root))?;
        step("change the root", pivot_root(".", "."))?;
        step("leave the node's root", umount2(".", MntFlags::MNT_DETACH))?;
        step("enter the root", chdir("/"))
    }

    fn limit(&self) -> Result<(), JailError> {
        let limits = [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_NOFILE, MOST_FILES),
            (Resource::RLIMIT_NPROC, 0),
            (Resource::RLIMIT_MEMLOCK, 0),
            (Resource::RLIMIT_AS, ADDRESS_SPACE),
            (Resource::RLIMIT_FSIZE, self.largest_file),
            (Resource::RLIMIT_CPU, self.cpu_seconds),
        ];
        for (resource, limit) in limits {
            step("set limits", setrlimit(resource, limit, limit))?;
        }
        // so that a write beyond the limit is an error that the program reports, and not its death
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGXFSZ);
        step("block SIGXFSZ", blocked.thread_block())
    }

    /// Drops root for good: leaving user 0 clears all capabilities, and no_new_privs keeps them away.
    fn become_nobody(&self) -> Result<(), JailError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.uid));
        step("drop groups", setgroups(&[]))?;
        step("change group", setresgid(gid, gid, gid))?;
        step("change user", setresuid(uid, uid, uid))?;
        step("give up new privileges", prctl::set_no_new_privs())
    }
}

/// From here on anything but [`SYSTEM_CALLS`] and [`FCNTL_COMMANDS`] kills the process.
fn filter_system_calls() -> Result<(), JailError> {
    let mut rules: BTreeMap<_, _> = SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let command = |command: &libc::c_int| {
        let is = SeccompCondition::new(
            1,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            command.cast_unsigned().into(),
        )?;
        SeccompRule::new(vec![is])
    };
    rules.insert(libc::SYS_fcntl, FCNTL_COMMANDS.iter().map(command).collect::<Result<_, _>>()?);
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?)
}

fn make_private() -> Result<(), nix::errno::Errno> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

fn step<T>(name: &'static str, result: Result<T, nix::errno::Errno>) -> Result<T, JailError> {
    result.map_err(|errno| JailError::Step(name, errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus, Stdio};

    /// Names the command of fcntl that this program, started once more, is to try behind the filter.
    const TRIED: &str = "ISOPOD_TEST_FCNTL";

    /// How a process ends that makes the call `command` of fcntl(2) on its standard input.
    fn tried(command: libc::c_int) -> ExitStatus {
        let this_test = "image::jail::tests::fcntl_that_could_send_signals_to_others_ends_the_process";
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", this_test]).env(TRIED, command.to_string());
        again.stdin(Stdio::piped()).stdout(Stdio::null()).status().unwrap()
    }

    #[test]
    #[allow(unsafe_code, reason = "no crate of ours knows all commands of fcntl")]
    fn fcntl_that_could_send_signals_to_others_ends_the_process() {
        if let Ok(command) = std::env::var(TRIED) {
            let command = command.parse().unwrap();
            filter_system_calls().unwrap();
            // SAFETY: each command takes an integer, and 0 is one.
            unsafe { libc::fcntl(0, command, 0) };
            return;
        }
        assert!(tried(libc::F_GETFD).success());
        // F_SETOWN, F_SETSIG and F_SETOWN_EX are Linux's; O_ASYNC is set by F_SETFL
        for command in [libc::F_SETOWN, 10, 15, libc::F_SETFL, libc::F_SETLEASE, libc::F_DUPFD] {
            assert_eq!(tried(command).signal(), Some(libc::SIGSYS), "fcntl {command}");
        }
    }
}
