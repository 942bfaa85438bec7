//! One task per running sandbox: it passes on what the agent says of its containers, and notices the end of the VM.

use super::{Machine, Sandbox, SandboxEvent, Sandboxes, State};
use crate::agent_client::AgentError;
use crate::hostile_text::Tail;
use crate::hypervisor::log_tail;
use std::sync::Arc;
use std::time::Duration;

/// Pause before a broken stream is opened again.
const PAUSE: Duration = Duration::from_millis(500);

impl Sandboxes {
    /// Watches a sandbox that is Ready until its VM ends.
    pub(super) fn watch(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Some(machine) = sandbox.machine.get().cloned() else { return };
        let (sandboxes, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move {
            tokio::select! {
                () = machine.vm.ended() => {}
                () = sandboxes.forward(&sandbox, &machine) => {}
            }
            sandboxes.lost(&sandbox).await;
        });
    }

    /// Forwards the agent's events. Returns only when nobody listens any more.
    async fn forward(&self, sandbox: &Sandbox, machine: &Machine) {
        loop {
            let broken = self.forward_stream(sandbox, machine).await;
            if self.events.is_closed() {
                return machine.vm.ended().await;
            }
            // A VM that ends takes its streams along first: its end is what is told then, and we come no further.
            tokio::time::sleep(PAUSE).await;
            if let Err(error) = broken {
                tracing::warn!(sandbox = sandbox.id, %error, "watch of the agent broke; it is opened again");
            }
        }
    }

    async fn forward_stream(&self, sandbox: &Sandbox, machine: &Machine) -> Result<(), AgentError> {
        let mut stream = machine.agent.watch().await?;
        loop {
            match stream.message().await {
                Ok(Some(event)) => {
                    self.tell(SandboxEvent::Agent { sandbox_id: sandbox.id.clone(), event }).await;
                }
                Ok(None) => return Ok(()),
                Err(status) => return Err(machine.agent.broken("Watch", &status)),
            }
        }
    }

    /// The VM has ended: by itself, unless a stop is under way.
    async fn lost(&self, sandbox: &Sandbox) {
        if sandbox.state() == State::Ready {
            let log = log_tail(&sandbox.directory);
            tracing::warn!(sandbox = sandbox.id, "vm ended by itself{}", Tail::new(&log));
            self.mark_lost(sandbox);
        }
        self.tell(SandboxEvent::Gone { sandbox_id: sandbox.id.clone() }).await;
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

    pub(super) async fn tell(&self, event: SandboxEvent) {
        // Nobody listens only when the daemon goes down.
        let _ = self.events.send(event).await;
    }
}
