//! The last step of every container process: becoming the user's command, or saying on the status pipe why
//! not.

use super::environment;
use super::filter::Filter;
use super::message::{Failure, Fault};
use super::null;
use crate::sys::{self, exec::Prepared};
use nix::errno::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

/// Where a bare command name is looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit code of a process whose command was not found, as shells have it.
const NOT_FOUND: i32 = 127;

/// Exit code of a process whose command was found and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// Becomes the command under the filter, or reports why not and ends.
pub fn run(status: OwnedFd, args: &[String], env: Vec<Vec<u8>>, filter: Option<&Filter>) -> ! {
    // Rust programs ignore their signal, and exec would hand that on: `yes | head` would never end.
    sys::exec::stop_ignoring_broken_pipes();
    if let Err(error) = null::replace() {
        give_up(status, &Failure::guest("standard input cannot be opened", error), NOT_EXECUTABLE);
    }
    // Else keys that programs put into their session would be in that of their user, which all containers
    // share.
    match sys::exec::join_new_session_keyring() {
        // A kernel without keys has none to share.
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => {
            let failure = Failure::guest("session keyring cannot be made", error);
            give_up(status, &failure, NOT_EXECUTABLE);
        }
        _ => {}
    }
    let (failure, code) = match try_run(args, env, filter) {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    give_up(status, &failure, code)
}

/// Says on the status pipe why there will be no command, and ends.
pub fn give_up(status: OwnedFd, failure: &Failure, code: i32) -> ! {
    if let Ok(text) = serde_json::to_vec(failure) {
        // If the agent has gone there is nobody left to tell.
        let _ = File::from(status).write_all(&text);
    }
    std::process::exit(code)
}

fn try_run(
    args: &[String],
    env: Vec<Vec<u8>>,
    filter: Option<&Filter>,
) -> Result<std::convert::Infallible, (Failure, i32)> {
    let name = args.first().map_or("", String::as_str);
    let env = environment::last_of_each_name(env);
    let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH).to_vec();
    let args = args.iter().map(|argument| argument.as_bytes().to_vec());
    let prepared = c_strings(candidates(name, &path))
        .and_then(|files| Ok(Prepared::new(files, c_strings(args)?, c_strings(env)?)))
        .map_err(|failure| (failure, NOT_EXECUTABLE))?;
    let (why, code) = match execute(&prepared, filter).map_err(|failure| (failure, NOT_EXECUTABLE))? {
        NotExecuted::Missing if name.contains('/') => ("no such file in the container".to_owned(), NOT_FOUND),
        NotExecuted::Missing => {
            let path = String::from_utf8_lossy(&path);
            (format!("not found in the container's PATH ({path})"), NOT_FOUND)
        }
        NotExecuted::LoaderMissing => {
            ("the interpreter or loader that it names is not in the container".to_owned(), NOT_FOUND)
        }
        NotExecuted::Other(Errno::EACCES | Errno::EISDIR) => {
            ("permission denied: it must be an executable file".to_owned(), NOT_EXECUTABLE)
        }
        NotExecuted::Other(Errno::ENOEXEC) => {
            ("not a program of this machine, nor a script with #!".to_owned(), NOT_EXECUTABLE)
        }
        NotExecuted::Other(errno) => (errno.desc().to_owned(), NOT_EXECUTABLE),
    };
    let message = format!("command {name:?} cannot be executed: {why}");
    Err((Failure { fault: Fault::Command, message }, code))
}

/// Why no file could be executed.
enum NotExecuted {
    Missing,
    LoaderMissing,
    Other(Errno),
}

/// Tries files in turn as execvp does: one that is missing or forbidden is passed over, and if none works,
/// forbidden is told before missing. Unlike execvp it never hands a file without `#!` to a shell.
///
/// Which files are there is found out before the filter is loaded: a profile need not allow to tell that
/// there is none, and only files that exist are executed under it.
fn execute(prepared: &Prepared, filter: Option<&Filter>) -> Result<NotExecuted, Failure> {
    let mut told = NotExecuted::Missing;
    let mut there: Vec<&CString> = Vec::with_capacity(prepared.files().len());
    for file in prepared.files() {
        match nix::sys::stat::stat(file.as_c_str()) {
            Ok(_) => there.push(file),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EACCES) => told = NotExecuted::Other(Errno::EACCES),
            Err(other) => return Ok(NotExecuted::Other(other)),
        }
    }
    if there.is_empty() {
        return Ok(told);
    }
    if let Some(filter) = filter {
        filter.load().map_err(|error| Failure::guest("seccomp filter cannot be loaded", error))?;
    }
    for file in there {
        match prepared.execute(file) {
            // It is there.
            Errno::ENOENT | Errno::ENOTDIR => return Ok(NotExecuted::LoaderMissing),
            Errno::EACCES => told = NotExecuted::Other(Errno::EACCES),
            other => return Ok(NotExecuted::Other(other)),
        }
    }
    Ok(told)
}

/// The files that a command name may mean, in order.
fn candidates(name: &str, path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains('/') {
        return vec![name.as_bytes().to_vec()];
    }
    let directories = path.split(|byte| *byte == b':');
    let directories = directories.map(|directory| if directory.is_empty() { &b"."[..] } else { directory });
    directories.map(|directory| [directory, b"/", name.as_bytes()].concat()).collect()
}

fn c_strings(strings: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<CString>, Failure> {
    let converted: Result<_, _> = strings.into_iter().map(CString::new).collect();
    converted
        .map_err(|_| Failure::request("an argument or environment entry contains a zero byte".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_a_slash_is_not_looked_up() {
        let files = |name, path: &str| {
            let files = candidates(name, path.as_bytes()).into_iter();
            files.map(|file| String::from_utf8(file).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(files("./run", "/bin"), ["./run"]);
        assert_eq!(files("run", "/bin::/usr/bin"), ["/bin/run", "./run", "/usr/bin/run"]);
    }

    /// While a thread is in exec, the kernel refuses new threads (EAGAIN) to all that share its working
    /// directory and umask with it: the tests beside this one.
    fn share_no_directory_with_other_threads() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
    }

    #[test]
    fn commands_that_cannot_be_executed_are_named() {
        share_no_directory_with_other_threads();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("plain");
        std::fs::write(&file, "no program").unwrap();
        for (command, expected) in [
            ("/nonexistent/x", NOT_FOUND),
            ("nonexistent-command", NOT_FOUND),
            (file.to_str().unwrap(), NOT_EXECUTABLE),
            ("/", NOT_EXECUTABLE),
        ] {
            let (failure, code) = try_run(&[command.to_owned()], Vec::new(), None).unwrap_err();
            assert_eq!(code, expected, "{failure}");
            assert!(failure.fault == Fault::Command && failure.message.contains(command), "{failure}");
        }
    }

    #[test]
    fn missing_interpreter_is_not_taken_for_another_command() {
        share_no_directory_with_other_threads();
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "#!/nonexistent/interpreter\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let env = format!("PATH={}:/bin", directory.path().display());
        let (_, code) = try_run(&["tool".to_owned()], vec![env.into_bytes()], None).unwrap_err();
        assert_eq!(code, NOT_FOUND);
    }
}
