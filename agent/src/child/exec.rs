//! Makes another process in a container that runs.
//!
//! Not with the library's own exec: that one leaves out the container's resource limits and forks twice. Its
//! parts (capabilities, ids, terminal) are used here in the order in which it uses them for a container's
//! first process. The new process is born in the container's pid namespace, mounts and cgroup
//! ([`super::birth`]). The namespaces are those that the container was made with
//! (`container/namespaces.rs`): its first process may have left them.

use super::birth::Birthplace;
use super::create::receive_terminal;
use super::filter::Filter;
use super::message::{Descriptors, ExecRequest, Failure, Made};
use super::{command, environment};
use crate::sys::{self, process::Forked};
use libcontainer::config::PersonalityDomain;
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, tty};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, setresgid, setresuid, setsid,
};
use oci_spec::runtime::{Linux, LinuxPersonalityDomain, Process, Spec};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Exit code of a process that did not come to execute its command.
const NOT_MADE: i32 = 255;

/// What the new process's three standard descriptors become.
enum Stdio {
    Pipes([OwnedFd; 3]),
    /// The socket on which the terminal's controlling end is handed over.
    Terminal(UnixStream),
}

/// Makes the process. Whether it executes its command is told on the status pipe.
pub fn exec(request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<Made, Failure> {
    let mut fds = Descriptors::new(fds);
    let (status, first_process, mounts) = (fds.take()?, fds.take()?, fds.take()?);
    let others: Vec<OwnedFd> = (0..request.other_namespaces).map(|_| fds.take()).collect::<Result<_, _>>()?;
    let spec = Spec::load(&request.config)
        .map_err(|error| Failure::guest("the container's spec cannot be read", error))?;
    let missing = || Failure::request("the container's spec has no process or linux part".to_owned());
    let process = spec.process().as_ref().ok_or_else(missing)?;
    let linux = spec.linux().as_ref().ok_or_else(missing)?;
    let (stdio, console) = stdio(request.terminal, &mut fds)?;
    let bundle = request.config.parent().unwrap_or(Path::new("/"));
    let mut env = environment::read(bundle)?;
    env.extend(request.env.iter().cloned());
    let filter = Filter::read(bundle)?;
    hide(process)?;
    let mut birthplace = Birthplace::open(&request.cgroup, request.first_pid)?;
    // Takes effect for the fork.
    setns(&first_process, CloneFlags::CLONE_NEWPID).map_err(not_entered)?;
    // Before the fork, so that no process of the container's pid namespace ever has the guest's root.
    setns(&mounts, CloneFlags::CLONE_NEWNS).map_err(not_entered)?;
    drop(mounts);
    match birthplace.fork(first_process.as_fd())? {
        Forked::Child => {
            // Other containers' groups would be reached by its directory.
            drop(birthplace);
            let member = enter(&others).and_then(|()| become_member(process, linux, stdio, status.as_fd()));
            // Until it executes or ends, nothing here may use or drop a descriptor but `status`: the others
            // are closed.
            match member {
                Ok(()) => command::run(status, &request.args, env, filter.as_ref()),
                Err(failure) => command::give_up(status, &failure, NOT_MADE),
            }
        }
        Forked::Parent(pid) => {
            // Ours of both, or their ends would never be told.
            drop((status, stdio));
            // Where it does not come, the status pipe says why.
            let terminal = console.and_then(|socket| receive_terminal(&socket).ok());
            Ok(Made { pid, terminal })
        }
    }
}

/// What the process's streams become, and where its terminal's controlling end arrives.
fn stdio(terminal: bool, fds: &mut Descriptors) -> Result<(Stdio, Option<UnixStream>), Failure> {
    if !terminal {
        return Ok((Stdio::Pipes([fds.take()?, fds.take()?, fds.take()?]), None));
    }
    let (ours, theirs) =
        UnixStream::pair().map_err(|error| Failure::guest("console socket cannot be made", error))?;
    Ok((Stdio::Terminal(theirs), Some(ours)))
}

/// What must be done before the container can see the process.
fn hide(process: &Process) -> Result<(), Failure> {
    // Inherited by the fork. Written here, as the container's /proc may be masked.
    if let Some(score) = process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(|error| Failure::guest("OOM score cannot be set", error))?;
    }
    // Until the exec the container could otherwise trace the process and reach what it holds open.
    prctl::set_dumpable(false).map_err(|error| Failure::guest("process cannot be hidden", error))
}

/// Enters the container's other namespaces. After the fork: inside the container's cgroup namespace a process
/// could no longer be born into a cgroup from outside.
fn enter(namespaces: &[OwnedFd]) -> Result<(), Failure> {
    // Of whatever kind each is.
    namespaces.iter().try_for_each(|namespace| setns(namespace, CloneFlags::empty())).map_err(not_entered)
}

fn not_entered(errno: Errno) -> Failure {
    match errno {
        Errno::ESRCH => Failure::request("the container's first process has ended".to_owned()),
        errno => Failure::guest("namespaces of the container cannot be entered", errno),
    }
}

/// Takes on the container's user, limits and restrictions, and closes every descriptor but `status`.
fn become_member(
    process: &Process,
    linux: &Linux,
    stdio: Stdio,
    status: BorrowedFd<'_>,
) -> Result<(), Failure> {
    let syscall = create_syscall();
    let syscall = syscall.as_ref();
    setsid().map_err(|error| Failure::guest("session cannot be made", error))?;
    connect(stdio, process.user().uid(), syscall)?;
    for limit in process.rlimits().iter().flatten() {
        syscall.set_rlimit(limit).map_err(|error| Failure::guest("resource limit cannot be set", error))?;
    }
    if let Some(personality) = linux.personality() {
        let domain = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
            LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
        };
        syscall.personality(domain).map_err(|error| Failure::guest("personality cannot be set", error))?;
    }
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_bits_truncate(mask));
    }
    if process.no_new_privileges() == Some(true) {
        prctl::set_no_new_privs().map_err(|error| Failure::guest("no_new_privs cannot be set", error))?;
    }
    // Before the working directory is entered, which may be a link of the container's to `/proc/self/fd/N`
    // (CVE-2024-21626).
    sys::exec::close_all_but_standard_and(status)
        .map_err(|error| Failure::guest("descriptors cannot be closed", error))?;
    // The agent may enter directories that the user may not, as with the first process; but root on a network
    // file system may be less than the user.
    let entered = chdir(process.cwd()).is_ok();
    if entered {
        require_inside(process)?;
    }
    become_user(process, syscall)?;
    if let Some(kept) = process.capabilities() {
        capabilities::drop_privileges(kept, syscall)
            .map_err(|error| Failure::guest("capabilities cannot be dropped", error))?;
    }
    if !entered {
        chdir(process.cwd()).map_err(|errno| {
            let directory = process.cwd().display();
            Failure::request(format!("working directory {directory} cannot be entered: {}", errno.desc()))
        })?;
        require_inside(process)?;
    }
    Ok(())
}

/// Refuses a working directory outside the container's root. The container may have put a link to
/// `/proc/PID/root` in its place, of a process of another container or of the agent. Of what lies outside,
/// the kernel tells no path that begins with `/` (getcwd(2)).
fn require_inside(process: &Process) -> Result<(), Failure> {
    let entered = rustix::process::getcwd(Vec::new())
        .map_err(|error| Failure::guest("working directory cannot be looked up", error))?;
    if entered.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    let directory = process.cwd().display();
    Err(Failure::request(format!("working directory {directory} leads out of the container's root")))
}

fn connect(stdio: Stdio, uid: u32, syscall: &dyn Syscall) -> Result<(), Failure> {
    match stdio {
        Stdio::Pipes([stdin, stdout, stderr]) => dup2_stdin(stdin)
            .and_then(|()| dup2_stdout(stdout))
            .and_then(|()| dup2_stderr(stderr))
            .map_err(|error| Failure::guest("standard descriptors cannot be set", error)),
        // Closes the socket. /dev/console is the first process's.
        Stdio::Terminal(socket) => {
            tty::setup_console(syscall, socket.into_raw_fd(), false)
                .map_err(|error| Failure::guest("terminal cannot be made", error))?;
            // Before the command runs, which may open it anew.
            fchown(std::io::stdin(), Some(uid), None)
                .map_err(|error| Failure::guest("terminal cannot be given to the user", error))
        }
    }
}

/// Takes on the user's ids and keeps all capabilities: which of them go is decided after that.
fn become_user(process: &Process, syscall: &dyn Syscall) -> Result<(), Failure> {
    let user = process.user();
    let groups: Vec<Gid> =
        user.additional_gids().iter().flatten().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setgroups(&groups)
        .and_then(|()| prctl::set_keepcaps(true))
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(|error| Failure::guest("user cannot be set", error))?;
    capabilities::reset_effective(syscall)
        .map_err(|error| Failure::guest("capabilities cannot be kept", error))?;
    prctl::set_keepcaps(false).map_err(|error| Failure::guest("user cannot be set", error))
}
