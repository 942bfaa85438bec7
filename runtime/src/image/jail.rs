//! The room in which `mkfs.erofs` runs. It is a C program that parses what strangers wrote, so it is given a tar archive
//! on its standard input, one file to write, and nothing else:
//!
//! | taken away | by | why |
//! |---|---|---|
//! | files | mount namespace, root of one tmpfs with two names | nothing to read, one file to write |
//! | network, System V objects, host name | namespaces of its own, empty | nowhere to send what it learns |
//! | root | user and group of its own, no groups, no capabilities, no_new_privs | the output file is all it owns |
//! | processes, memory, disk, time | rlimits | no fork; a bomb ends itself |
//! | system calls | seccomp: those of a program that reads, writes and allocates | the rest of the kernel is out of reach |
//!
//! Two processes are involved. The daemon has threads, and a forked child of such a process may do next to nothing
//! safely; so it starts its own program again ([`Jail::command`]), which is single-threaded and confines itself before
//! it becomes `mkfs.erofs` ([`enter_if_asked`], first thing in `main`). When the daemon dies, the archive ends, and with it
//! the process.

use super::sys;
use nix::fcntl::{OFlag, open, readlink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chdir, fexecve, pivot_root, setgroups, setresgid, setresuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// First argument of the daemon's program where it is to become a jailed process.
const ARGUMENT: &str = "layer-jail";

/// Processes that the jail's user may have: its converters that run side by side are counted together
/// (`image.parallel_layers` is 64 at most), and execve fails where there are more.
const MOST_AT_ONCE: u64 = 64;

/// Exit status of a jail that could not be closed: its program did not run.
pub const NOT_JAILED: i32 = 125;

/// The output file's name inside the jail.
pub const OUTPUT: &str = "/image";

/// Address space in bytes: `mkfs.erofs` takes about 0.5 KiB for each file of the layer.
const ADDRESS_SPACE: u64 = 4 << 30;

/// Size of the jail's tmpfs, which holds two empty names.
const ROOT_OPTIONS: &str = "size=64k,nr_inodes=8,mode=0755";

/// What the static `mkfs.erofs` of erofs-utils 1.8 was seen to use, what allocation and errors of its C library take, and the
/// one call that starts it: there is nothing else to execute in the jail.
const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_execveat,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fchmod,
    libc::SYS_unlink,
    libc::SYS_umask,
    libc::SYS_ioctl,
    libc::SYS_readlink,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_sysinfo,
    libc::SYS_futex,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_gettimeofday,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What runs in the jail, and within which limits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jail {
    /// The program, static: there are no libraries in the jail.
    pub program: PathBuf,
    /// Its arguments, the program's name left out.
    pub arguments: Vec<String>,
    /// User and group id it runs as; the output file must be this user's.
    pub uid: u32,
    /// An empty directory to mount its root on, in a mount namespace of its own.
    pub mount_point: PathBuf,
    /// Largest file it may write, in bytes.
    pub largest_file: u64,
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
}

/// A step that failed, and with it the jail.
#[derive(Debug, thiserror::Error)]
enum JailError {
    #[error("its arguments cannot be read: {0}")]
    Arguments(#[from] serde_json::Error),
    #[error("an argument holds a zero byte")]
    ZeroByte(#[from] std::ffi::NulError),
    #[error("{0}: {1}")]
    Step(String, nix::errno::Errno),
    #[error("compile the seccomp filter: {0}")]
    Compile(#[from] seccompiler::BackendError),
    #[error("install the seccomp filter: {0}")]
    Filter(#[from] seccompiler::Error),
}

impl Jail {
    /// The command that starts the jailed process: `launcher` is the daemon's own program. The caller gives it the archive
    /// as standard input and the output file, open for writing, as standard output.
    ///
    /// # Errors
    /// A path that is no text.
    pub fn command(&self, launcher: &Path) -> Result<Command, serde_json::Error> {
        let mut command = Command::new(launcher);
        command.arg(ARGUMENT).arg(serde_json::to_string(self)?).env_clear().current_dir("/");
        Ok(command)
    }

    /// Confines this process and becomes the program.
    fn enter(&self) -> Result<Infallible, JailError> {
        // Whatever this process was started with, the program gets its input, its output and its complaints only.
        step("keep other files out", sys::close_others_on_exec())?;
        let opened = open(&self.program, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        let program = step(&format!("open {}", self.program.display()), opened)?;
        let mut arguments = vec![CString::new("mkfs.erofs")?];
        for argument in &self.arguments {
            arguments.push(CString::new(argument.as_str())?);
        }
        self.shut_out_the_node()?;
        self.limit()?;
        self.become_nobody()?;
        filter_system_calls()?;
        step("execute the program", fexecve(program, &arguments, &[] as &[CString]))
    }

    /// New namespaces, and a root that holds the output file and an empty `/tmp`.
    fn shut_out_the_node(&self) -> Result<(), JailError> {
        // By its path: the descriptor belongs to the namespace that is left here, and Linux 6.1 binds nothing
        // of another namespace's.
        let standard_output = step("find the output", readlink("/proc/self/fd/1"))?;
        let namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS;
        step("make namespaces", unshare(namespaces))?;
        step("cut off mount propagation", make_private())?;
        let root = &self.mount_point;
        let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        step("mount the root", mount(Some("jail"), root, Some("tmpfs"), hardened, Some(ROOT_OPTIONS)))?;
        let output = root.join(OUTPUT.trim_start_matches('/'));
        drop(step("name the output", open(&output, OFlag::O_CREAT | OFlag::O_WRONLY, Mode::empty()))?);
        step("bind the output", bind(Path::new(&standard_output), &output))?;
        // mkfs.erofs falls back to a temporary file where the output cannot be made sparse far beyond its limit; with data
        // written in order the file stays empty
        let temporary = root.join("tmp");
        step("make /tmp", nix::unistd::mkdir(&temporary, Mode::S_IRWXU))?;
        let owner = Uid::from_raw(self.uid);
        step("give /tmp", nix::unistd::chown(&temporary, Some(owner), Some(Gid::from_raw(self.uid))))?;
        step("enter the root", chdir(root))?;
        step("change the root", pivot_root(".", "."))?;
        step("leave the node's root", umount2(".", MntFlags::MNT_DETACH))?;
        step("enter the root", chdir("/"))
    }

    fn limit(&self) -> Result<(), JailError> {
        let limits = [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_NOFILE, 16),
            (Resource::RLIMIT_NPROC, MOST_AT_ONCE),
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

/// First thing in `main` of every program that may convert layers: does nothing unless [`Jail::command`] started it.
pub fn enter_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|argument| argument != ARGUMENT) {
        return;
    }
    let text = arguments.next().unwrap_or_default();
    let jail = serde_json::from_str::<Jail>(&text.to_string_lossy()).map_err(JailError::from);
    let Err(error) = jail.and_then(|jail| jail.enter());
    eprintln!("{error}");
    std::process::exit(NOT_JAILED);
}

/// From here on anything but [`SYSTEM_CALLS`] kills the process.
fn filter_system_calls() -> Result<(), JailError> {
    let rules: BTreeMap<_, _> = SYSTEM_CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?)
}

fn make_private() -> Result<(), nix::errno::Errno> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
}

fn bind(source: &Path, target: &Path) -> Result<(), nix::errno::Errno> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

fn step<T>(name: &str, result: Result<T, nix::errno::Errno>) -> Result<T, JailError> {
    result.map_err(|errno| JailError::Step(name.to_owned(), errno))
}
