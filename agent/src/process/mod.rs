//! A process of a container: the first one, or an exec.
//!
//! ```text
//!  made --(command executes)--> running --(collected by the reaper)--> ended --(removed)--> gone
//! ```
//!
//! An exit and what was written stay readable until the process is removed. `container::create` makes the first process of a
//! container, `container::exec` the others; calls on both are in `container::processes`.

pub mod tree;

use crate::reaper::Child;
use crate::stdio::Streams;
use isopod_protocols::agent::ProcessExit;
use tokio::sync::watch;

/// A process that was made.
#[derive(Debug)]
pub struct Process {
    child: Child,
    streams: Streams,
    exit: watch::Sender<Option<ProcessExit>>,
}

impl Process {
    /// A process that is written down in the reaper's book.
    pub fn new(child: Child, streams: Streams) -> Process {
        Process { child, streams, exit: watch::Sender::new(None) }
    }

    /// The process itself.
    pub fn child(&self) -> &Child {
        &self.child
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
