//! One task per running sandbox: it passes on what the agent says of its containers, and notices the end of the VM.
//!
//! Begun by `start` and `restore`. The agent may be in the hands of its guest: what it sends is checked by
//! `agent_client`, waits in a queue of this sandbox alone, and an agent whose streams keep breaking is asked
//! ever less often.

use super::{Machine, Sandbox, SandboxEvent, Sandboxes, State};
use crate::agent_client::AgentError;
use crate::hostile_text::Tail;
use crate::hypervisor::log_tail;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

/// Pause before a broken stream is opened again; it doubles with each break up to the longest one, until a
/// stream has lasted for as long as sound ones do.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
const SOUND: Duration = Duration::from_secs(60);

impl Sandboxes {
    /// Watches a sandbox that is Ready until its VM ends.
    pub(super) fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Some(machine) = sandbox.machine.get().cloned() else { return };
        let (sandboxes, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        let events = self.open_queue(&sandbox);
        tokio::spawn(async move {
            tokio::select! {
                () = machine.vm.ended() => {}
                () = forward(&sandbox, &machine, &events) => {}
            }
            sandboxes.lost(&sandbox);
            tell(&events, SandboxEvent::Gone).await;
        });
    }

    /// The VM has ended: by itself, unless a stop is under way.
    fn lost(&self, sandbox: &Sandbox) {
        sandbox.vm_has_ended();
        if sandbox.state() == State::Ready {
            let log = log_tail(&sandbox.directory);
            tracing::warn!(sandbox = sandbox.id, "vm ended by itself{}", Tail::new(&log));
            self.mark_lost(sandbox);
        }
    }

    /// Ready becomes Lost. A stop that began in between wins.
    pub(super) fn mark_lost(&self, sandbox: &Sandbox) {
        let lost = self.change(sandbox, |record| {
            if record.state == State::Ready {
                record.state = State::Lost;
            }
        });
        if let Err(error) = lost {
            tracing::error!(sandbox = sandbox.id, %error, "its loss cannot be recorded");
        }
    }
}

/// Forwards the agent's events. Returns only when nobody listens any more.
async fn forward(sandbox: &Sandbox, machine: &Machine, events: &Sender<SandboxEvent>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let opened = Instant::now();
        let broken = forward_stream(machine, events).await;
        if events.is_closed() {
            return machine.vm.ended().await;
        }
        if opened.elapsed() >= SOUND {
            pause = FIRST_PAUSE;
        }
        // A VM that ends takes its streams along first: its end is what is told then, and we come no further.
        sleep(pause).await;
        if let Err(error) = broken {
            tracing::warn!(sandbox = sandbox.id, %error, "watch of the agent broke; it is opened again");
        }
        pause = LONGEST_PAUSE.min(2 * pause);
    }
}

async fn forward_stream(machine: &Machine, events: &Sender<SandboxEvent>) -> Result<(), AgentError> {
    let mut stream = machine.agent.watch().await?;
    while let Some(event) = stream.next().await? {
        tell(events, SandboxEvent::Agent(event)).await;
    }
    Ok(())
}

pub(super) async fn tell(events: &Sender<SandboxEvent>, event: SandboxEvent) {
    // Nobody listens only when the daemon goes down.
    let _ = events.send(event).await;
}
