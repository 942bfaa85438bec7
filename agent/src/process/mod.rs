//! A process of a container: the first one, or an exec.
//!
//! ```text
//!  made --(command executes)--> running --(collected by the reaper)--> ended --(removed)--> gone
//! ```
//!
//! An exit and what was written stay readable until the process is removed. `container::create` makes the
//! first process of a container, `container::exec` the others; calls on both are in `container::processes`.

pub mod tree;

use crate::reaper::ProcessHandle;
use crate::stdio::Streams;
use isopod_protocols::agent::ProcessExit;
use tokio::sync::watch;

/// A process that was made.
#[derive(Debug)]
pub struct Process {
    handle: ProcessHandle,
    streams: Streams,
    exit: watch::Sender<Option<ProcessExit>>,
}

impl Process {
    /// A process that is registered with the reaper.
    pub fn new(handle: ProcessHandle, streams: Streams) -> Process {
        Process { handle, streams, exit: watch::Sender::new(None) }
    }

    /// The process for signals and lookups, and its end for those who wait.
    pub fn handle(&self) -> &ProcessHandle {
        &self.handle
    }

    /// Its streams.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Waits for its end; at once if it has ended.
    pub async fn exit(&self) -> ProcessExit {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.map(|exit| *exit);
        // The sender is ours, so it cannot be gone, and the condition is that there is a value.
        exit.ok().flatten().expect("an exit was waited for")
    }

    /// Makes the exit known to all who wait for it.
    pub fn set_exit(&self, exit: ProcessExit) {
        self.streams.close_stdin();
        self.exit.send_replace(Some(exit));
    }
}
