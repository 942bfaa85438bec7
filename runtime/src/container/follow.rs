//! What happens to a sandbox moves the states of its containers: one task per sandbox takes its events, in
//! order. So an agent that never stops talking holds up the containers of its own pod only.
//!
//! The queues come from `sandbox`. The task must not wait for anything but events: what has to wait for
//! somebody else is done beside them, in the same task, and each such piece of work only once at a time.

use super::record::{Exit, State};
use super::{Container, Containers};
use crate::agent_client::AgentEvent;
use crate::sandbox::{SandboxEvent, SandboxEvents};
use crate::wall_clock::now_ns;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use isopod_protocols::agent::{self, ContainerState, RemoveContainerRequest};
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Most containers without a record that are removed at once: a guest may name as many as it likes.
const MOST_STRANGERS: usize = 64;

impl Containers {
    /// Follows every sandbox, by a task of its own.
    pub(super) async fn follow_all(self: Arc<Self>, mut all: mpsc::UnboundedReceiver<SandboxEvents>) {
        while let Some(events) = all.recv().await {
            tokio::spawn(Follower::new(Arc::clone(&self), events.sandbox_id).follow(events.queue));
        }
    }
}

/// What is done beside the events. A container that fails to start is one of this pod that is Created, so
/// there are no more of these than such containers, and one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Work {
    RemoveStrangers,
    RecordFailedStart { container_id: String },
}

/// Follows one sandbox.
struct Follower {
    containers: Arc<Containers>,
    sandbox_id: String,
    /// Answers what it was when it is done.
    work: FuturesUnordered<BoxFuture<'static, Work>>,
    under_way: HashSet<Work>,
}

impl Follower {
    fn new(containers: Arc<Containers>, sandbox_id: String) -> Self {
        Self { containers, sandbox_id, work: FuturesUnordered::new(), under_way: HashSet::new() }
    }

    /// Takes every event until the sandbox has no more. Work that is still under way is dropped then: its VM
    /// is gone.
    async fn follow(mut self, mut queue: mpsc::Receiver<SandboxEvent>) {
        loop {
            tokio::select! {
                event = queue.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                Some(done) = self.work.next(), if !self.work.is_empty() => {
                    self.under_way.remove(&done);
                }
            }
        }
    }

    fn take(&mut self, event: SandboxEvent) {
        match event {
            SandboxEvent::Agent(AgentEvent::Snapshot(all)) => self.compare(&all),
            SandboxEvent::Agent(AgentEvent::Changed(one)) => self.hear(&one),
            SandboxEvent::Gone => self.containers.lose_all(&self.sandbox_id),
        }
    }

    /// A guest speaks only of its own containers: reports about others are ignored.
    fn hear(&mut self, told: &ContainerState) {
        let Some(container) = self.containers.exact(&told.container_id) else { return };
        if container.sandbox_id() != self.sandbox_id {
            return;
        }
        let state = match (told.state(), &told.exit) {
            (agent::State::Running, _) => State::Running { started_at_ns: told.started_at_ns },
            (agent::State::Exited, Some(exit)) => State::Exited(Exit::told(told.started_at_ns, exit)),
            _ => return,
        };
        if container.state() == State::Created {
            // An earlier daemon let it run and was killed before it noted that.
            self.containers.resume_output(&container);
            if matches!(&state, State::Exited(exit) if exit.started_at_ns == 0) {
                let key = Work::RecordFailedStart { container_id: container.id.clone() };
                let containers = Arc::clone(&self.containers);
                self.begin(key, async move { containers.record_failed_start(&container).await });
                return;
            }
        }
        self.containers.advance(&container, state);
    }

    /// A snapshot: it also tells of containers that it leaves out.
    fn compare(&mut self, all: &[ContainerState]) {
        all.iter().for_each(|told| self.hear(told));
        let named: HashSet<_> = all.iter().map(|told| told.container_id.as_str()).collect();
        for container in self.containers.of_sandbox(&self.sandbox_id) {
            if container.is_running() && !named.contains(container.id.as_str()) {
                self.containers.lose(&container);
            }
        }
        let strange = named.into_iter().filter(|id| self.containers.exact(id).is_none());
        let strange = strange.take(MOST_STRANGERS).map(str::to_owned).collect();
        let (containers, sandbox_id) = (Arc::clone(&self.containers), self.sandbox_id.clone());
        self.begin(
            Work::RemoveStrangers,
            async move { containers.remove_strangers(&sandbox_id, strange).await },
        );
    }

    /// Begins a piece of work, unless it is under way already.
    fn begin(&mut self, key: Work, work: impl Future<Output = ()> + Send + 'static) {
        if self.under_way.insert(key.clone()) {
            self.work.push(Box::pin(async move {
                work.await;
                key
            }));
        }
    }
}

impl Containers {
    /// A container has ended without having begun. Why is in the answer to its start, which goes first; none
    /// comes where an earlier daemon had asked.
    async fn record_failed_start(&self, container: &Container) {
        let _start = container.operation.lock().await;
        // One that was removed meanwhile ends that way too, and must not be recorded again.
        if self.exact(&container.id).is_none() {
            return;
        }
        let message = "it ended before its command ran; the reason went to an earlier daemon".to_owned();
        self.advance(container, State::Exited(Exit::never_started(now_ns(), message)));
    }

    /// Removes containers from their guest that have no record, and the layers that were mapped for them: an
    /// earlier daemon was killed while it made them.
    async fn remove_strangers(&self, sandbox_id: &str, ids: Vec<String>) {
        let Ok(sandbox) = self.sandboxes.get(sandbox_id) else { return };
        let Ok(entered) = sandbox.enter().await else { return };
        // Under the pod's lock none is half made: it has a record by now, or never will.
        let _pod = self.pod_lock(sandbox_id).await;
        for id in ids.into_iter().filter(|id| self.exact(id).is_none()) {
            let request = RemoveContainerRequest { container_id: id.clone() };
            match entered.machine.agent.remove_container(request).await {
                Ok(_) => {
                    tracing::info!(sandbox = sandbox_id, container = id, "half-made container is removed")
                }
                Err(error) => {
                    tracing::warn!(sandbox = sandbox_id, container = id, %error, "half-made container stays");
                }
            }
        }
        self.detach_unused_layers(sandbox_id, &entered.machine.vm).await;
    }
}
