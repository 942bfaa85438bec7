//! The last step of every container process: becoming the user's command, or saying on the status pipe why not.

use super::message::{Failure, Fault};
use crate::process::sys;
use nix::errno::Errno;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

/// Where a bare command name is looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Exit code of a process whose command was not found, as shells have it.
const NOT_FOUND: i32 = 127;

/// Exit code of a process whose command was found and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// Becomes the command, or reports why not and ends.
pub fn run(status: OwnedFd, args: &[String], env: &[String]) -> ! {
    // Rust programs ignore their signal, and exec would hand that on: `yes | head` would never end.
    sys::stop_ignoring_broken_pipes();
    let (failure, code) = match try_run(args, env) {
        Ok(never) => match never {},
        Err(refusal) => refusal,
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

fn try_run(args: &[String], env: &[String]) -> Result<std::convert::Infallible, (Failure, i32)> {
    let name = args.first().map_or("", String::as_str);
    let c_args = c_strings(args.iter().cloned()).map_err(|failure| (failure, NOT_EXECUTABLE))?;
    let merged = merge(env);
    let path = merged.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let path = path.to_owned();
    let files = c_strings(candidates(name, &path)).map_err(|failure| (failure, NOT_EXECUTABLE))?;
    let c_env = c_strings(merged).map_err(|failure| (failure, NOT_EXECUTABLE))?;
    let (why, code) = match execute(&files, &c_args, &c_env) {
        Refusal::Missing if name.contains('/') => ("no such file in the container".to_owned(), NOT_FOUND),
        Refusal::Missing => (format!("not found in the container's PATH ({path})"), NOT_FOUND),
        Refusal::LoaderMissing => {
            ("the interpreter or loader that it names is not in the container".to_owned(), NOT_FOUND)
        }
        Refusal::Other(Errno::EACCES | Errno::EISDIR) => {
            ("permission denied: it must be an executable file".to_owned(), NOT_EXECUTABLE)
        }
        Refusal::Other(Errno::ENOEXEC) => {
            ("not a program of this machine, nor a script with #!".to_owned(), NOT_EXECUTABLE)
        }
        Refusal::Other(errno) => (errno.desc().to_owned(), NOT_EXECUTABLE),
    };
    let message = format!("command {name:?} cannot be executed: {why}");
    Err((Failure { fault: Fault::Command, message }, code))
}

/// Why no file could be executed.
enum Refusal {
    Missing,
    LoaderMissing,
    Other(Errno),
}

/// Tries files in turn as execvp does: one that is missing or forbidden is passed over, and if none works, forbidden is
/// told before missing. Unlike execvp it never hands a file without `#!` to a shell.
fn execute(files: &[CString], args: &[CString], env: &[CString]) -> Refusal {
    let mut told = Refusal::Missing;
    for file in files {
        match nix::unistd::execve(file, args, env) {
            Ok(never) => match never {},
            Err(Errno::ENOENT | Errno::ENOTDIR) => {
                if nix::sys::stat::stat(file.as_c_str()).is_ok() {
                    return Refusal::LoaderMissing;
                }
            }
            Err(Errno::EACCES) => told = Refusal::Other(Errno::EACCES),
            Err(other) => return Refusal::Other(other),
        }
    }
    told
}

/// The files that a command name may mean, in order.
fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let directories = path.split(':').map(|directory| if directory.is_empty() { "." } else { directory });
    directories.map(|directory| format!("{directory}/{name}")).collect()
}

/// The environment with each name once, the last value winning, in the order of first mention.
fn merge(env: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = Vec::with_capacity(env.len());
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in env {
        let name = entry.split('=').next().unwrap_or_default();
        match places.get(name) {
            Some(place) => merged[*place].clone_from(entry),
            None => {
                places.insert(name, merged.len());
                merged.push(entry.clone());
            }
        }
    }
    merged
}

fn c_strings(strings: impl IntoIterator<Item = String>) -> Result<Vec<CString>, Failure> {
    let converted: Result<_, _> = strings.into_iter().map(CString::new).collect();
    converted
        .map_err(|_| Failure::request("an argument or environment entry contains a zero byte".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_a_slash_is_not_looked_up() {
        assert_eq!(candidates("./run", "/bin"), ["./run"]);
        assert_eq!(candidates("run", "/bin::/usr/bin"), ["/bin/run", "./run", "/usr/bin/run"]);
    }

    #[test]
    fn later_environment_wins_in_place() {
        let env = ["A=1", "B=2", "A=3=4"].map(str::to_owned);
        assert_eq!(merge(&env), ["A=3=4", "B=2"]);
    }

    /// While a thread is in exec, the kernel refuses new threads (EAGAIN) to all that share its working directory and
    /// umask with it: the tests beside this one.
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
            let (failure, code) = try_run(&[command.to_owned()], &[]).unwrap_err();
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
        let (_, code) = try_run(&["tool".to_owned()], &[env]).unwrap_err();
        assert_eq!(code, NOT_FOUND);
    }
}
