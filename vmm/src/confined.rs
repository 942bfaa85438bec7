//! A thread that confines itself before it does anything else. Used for processors, and for what makes more of them.

use std::{
    io,
    sync::mpsc,
    thread::{Builder, JoinHandle},
};

use crate::seccomp::{Filter, SeccompError};

/// Why a thread does not run.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The system refused it.
    #[error("the system refuses the thread")]
    Spawn(#[from] io::Error),
    /// It could not confine itself.
    #[error("the thread could not confine itself")]
    Confine(#[from] SeccompError),
}

/// Starts `body` on a thread bound by `filter`. Returns when it is; what joins it gets nothing if it never was.
pub fn spawn<T: Send + 'static>(
    thread: Builder,
    filter: Filter,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<Option<T>>, ThreadError> {
    let (report, confined) = mpsc::sync_channel(1);
    let thread = thread.spawn(move || {
        let outcome = filter.install();
        let bound = outcome.is_ok();
        // The receiver waits below until this was sent.
        let _ = report.send(outcome);
        bound.then(body)
    })?;
    let ended = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    confined.recv().map_err(ended)??;
    Ok(thread)
}
