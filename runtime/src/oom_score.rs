//! Whom the kernel kills first where the *node* runs out of memory: `oom_score_adj` (proc(5)) of what the
//! daemon starts.
//!
//! ```text
//!   VMM of a pod        the lowest of its containers that have not ended; 1000 without any   (`container`)
//!   VMM of a template   1000: what is lost is a rehearsal, or a template that is made anew
//!   holder of one       0
//!   converter           1000: its pull fails and is tried again
//! ```
//!
//! None of these keeps the daemon's own score, which may be -999. Called by `cgroup` for pods, by
//! `hypervisor` for what it starts and by the jailed processes of `image`. A score that cannot be set is told
//! at `debug`, and is no error: to lower one takes `CAP_SYS_RESOURCE`.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Of what is killed first.
pub const FIRST: i32 = 1000;

/// Of what nobody has set: that of most processes of a node.
pub const USUAL: i32 = 0;

/// The lowest that a process is given. One of -1000 is never killed, not even where its own cgroup is full: a
/// guest that takes more than its pod may have would hang there.
pub const LOWEST: i32 = -999;

/// Sets the score of a process. `is_meant` is asked when the process that has the number now is held open:
/// where it answers no, nothing is written. So no other process is hit, whatever becomes of the number.
pub fn set(pid: i32, score: i32, is_meant: impl FnOnce() -> bool) {
    let path = format!("/proc/{pid}/oom_score_adj");
    match write(path.as_ref(), score, is_meant) {
        Ok(()) => {}
        // It has ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(error) => tracing::debug!(pid, score, %error, "oom score stays as it is"),
    }
}

/// Sets that of this process.
///
/// # Errors
/// Where it cannot be written.
pub fn set_own(score: i32) -> io::Result<()> {
    write("/proc/self/oom_score_adj".as_ref(), score, || true)
}

fn write(path: &Path, score: i32, is_meant: impl FnOnce() -> bool) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut now = String::new();
    file.read_to_string(&mut now)?;
    if now.trim().parse() == Ok(score) || !is_meant() {
        return Ok(());
    }
    file.rewind()?;
    file.write_all(score.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn score_is_written_only_to_who_is_meant_and_one_that_has_ended_is_no_error() {
        let mut child = Command::new("/usr/bin/sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let score = || fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().to_owned();
        set(pid, 901, || true);
        assert_eq!(score(), "901");
        set(pid, 902, || false);
        assert_eq!(score(), "901", "it was not meant");
        child.kill().unwrap();
        child.wait().unwrap();
        set(pid, 903, || true);
    }
}
