//! A jailed process of a conversion, as the daemon sees it: killed and reaped with the pull, judged by its
//! exit status and by what it complained of.
//!
//! Started by `layer` and `feed`. It must not know what the process does.

use super::digest::Digest;
use super::error::ImageError;
use super::worker::JAIL_FAILED;
use crate::undo::Undo;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Longest text of a process that is kept, in bytes.
const LONGEST_COMPLAINT: u64 = 4 << 10;

/// A process that was started.
pub struct Process {
    /// What it is, for errors and for the step that ends it.
    what: &'static str,
    child: Arc<Mutex<Child>>,
    complaints: JoinHandle<String>,
}

impl Process {
    /// Starts `command`, of which the caller has set input and output. Gives its input too, where that is a
    /// new pipe.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        what: &'static str,
        command: &mut Command,
        undo: &mut Undo,
    ) -> Result<(Self, Option<ChildStdin>), ImageError> {
        let started = command.stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let mut child = started.map_err(|error| broken(format!("the {what} cannot be started: {error}")))?;
        let (input, complaints) = (child.stdin.take(), tokio::spawn(read_complaints(child.stderr.take())));
        let child = Arc::new(Mutex::new(child));
        let killed = Arc::clone(&child);
        undo.push(what, move || async move { kill(&killed).await })?;
        Ok((Self { what, child, complaints }, input))
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn end(&self) -> Result<ExitStatus, ImageError> {
        let ended = self.child.lock().await.wait().await;
        ended.map_err(|error| broken(format!("the {} cannot be waited for: {error}", self.what)))
    }

    /// Whether it did its work on `layer`.
    ///
    /// # Errors
    /// [`ImageError::BadLayer`] with what it said, and [`ImageError::Converter`] where it never worked.
    pub async fn judge(self, layer: Digest, status: ExitStatus) -> Result<(), ImageError> {
        let complaints = self.complaints.await.unwrap_or_default();
        if status.success() && complaints.is_empty() {
            return Ok(());
        }
        if status.code() == Some(JAIL_FAILED) {
            return Err(broken(format!("the jail cannot be closed: {complaints}")));
        }
        let what = self.what;
        let reason = match complaints.as_str() {
            "" if status.signal() == Some(libc::SIGKILL) => format!(
                "the kernel killed the {what}, for want of memory (image.converter_memory_mib) or of processor time"
            ),
            "" => format!("the {what} ended with {status} and printed no error"),
            _ => complaints,
        };
        Err(ImageError::BadLayer { layer, reason })
    }
}

/// What keeps layers from being converted at all.
pub fn broken(reason: String) -> ImageError {
    ImageError::Converter { reason }
}

/// Kills and reaps what still runs.
async fn kill(child: &Mutex<Child>) -> io::Result<()> {
    let mut child = child.lock().await;
    match child.try_wait()? {
        Some(_) => Ok(()),
        None => child.kill().await,
    }
}

async fn read_complaints(stderr: Option<ChildStderr>) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = stderr {
        let mut bounded = stderr.take(LONGEST_COMPLAINT);
        // what was read before an error is still worth telling
        let _ = bounded.read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(bounded.get_mut(), &mut tokio::io::sink()).await;
    }
    let text = String::from_utf8_lossy(&bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
