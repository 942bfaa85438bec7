//! ExecSync: another process in a running container, its output, and its exit code.
//!
//! An exec ends with its process. What the process left in the background lives on until the container ends; only the
//! exec's limit kills its descendants too, as far as their parents live: others are the container's. A client that leaves ends the exec's process alone, as containerd does, and so does a
//! daemon that follows one that was killed: the clients of that one are gone.

use super::exec_room::{Room, Share};
use super::stdio::{self, Address, Sink, StdioError};
use super::{Container, ContainerError, Containers};
use crate::agent_client::AgentError;
use crate::id::new_id;
use crate::sandbox::{Machine, Sandbox};
use isopod_protocols::agent::{
    RemoveExecRequest, SignalProcessRequest, StartExecRequest, Stream, WaitProcessRequest,
};
use isopod_protocols::vsock::STDIO_PORT;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes kept of each output stream; the rest is read and dropped. Both fit into one gRPC answer of 16 MiB.
/// Where many execs of a pod write at a time, less is kept of each, see [`super::exec_room`].
pub const MAX_OUTPUT: usize = 7 * 1024 * 1024;

/// Time that output has to arrive after the process has ended, as long as others hold its pipes. containerd waits here until
/// they are closed (`drain_exec_sync_io_timeout` = 0) or the client leaves, so that a hook which starts a daemon may never
/// end; with a limit set, it fails an exec that succeeded. Here the exec ends with its code and the output so far.
const DRAIN: Duration = Duration::from_secs(8);

/// Limit of an exec without one: longer than any pod lives, short enough to add to a clock.
const UNLIMITED: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Pauses before an exec that its agent did not end in time is ended once more: a guest may have too much to
/// do to answer.
const PAUSES: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25), Duration::from_secs(60)];

/// Most execs of a container that their clients have left and their agent is still asked to end. Each is a
/// task that lives as long as all of [`PAUSES`] and the calls between them, about six minutes, where the
/// agent never answers: a probe with a short limit would leave hundreds.
const MOST_UNENDED: usize = 8;

/// What an exec came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// At most [`MAX_OUTPUT`] bytes.
    pub stdout: Vec<u8>,
    /// At most [`MAX_OUTPUT`] bytes.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 and the signal.
    pub code: i32,
}

impl Containers {
    /// Runs a command in a container, and waits for its end. A process that still runs at `limit` is killed with its whole
    /// tree.
    ///
    /// # Errors
    /// [`ContainerError::ExecTimeout`] at the limit; a code other than 0 is no error.
    /// [`ContainerError::TooManyExecs`] where the agent does not end those that were left.
    pub async fn exec_sync(
        &self,
        sandbox: &Sandbox,
        container: &Container,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<Outcome, ContainerError> {
        if command.first().is_none_or(String::is_empty) {
            return Err(ContainerError::NoExecCommand);
        }
        if !container.is_running() {
            return Err(ContainerError::WrongState {
                id: container.id.clone(),
                wanted: "running",
                state: container.state(),
            });
        }
        container.unended.refuse_more(&container.id)?;
        let machine = sandbox.machine()?;
        container.end_stale_execs(&machine).await?;
        let process_id = new_id().map_err(|source| ContainerError::File {
            what: "random device",
            path: PathBuf::from("/dev/urandom"),
            source,
        })?;
        let unended = Arc::clone(&container.unended);
        let rooms = self.exec_rooms(&sandbox.id);
        let mut exec =
            Exec { machine, container_id: container.id.clone(), process_id, rooms, unended, ended: false };
        exec.start(command).await?;
        let outcome = exec.run(limit.unwrap_or(UNLIMITED)).await;
        if matches!(outcome, Err(ContainerError::ExecTimeout { .. })) {
            exec.kill_tree().await;
        }
        exec.end().await;
        outcome
    }
}

impl Container {
    /// Ends the execs that an earlier daemon began and whose clients went with it. Before the first exec of this daemon, so
    /// that it ends none of its own.
    pub(super) async fn end_stale_execs(&self, machine: &Machine) -> Result<(), ContainerError> {
        let all = RemoveExecRequest { container_id: self.id.clone(), process_id: String::new() };
        self.stale_execs.get_or_try_init(|| machine.agent.remove_exec(all)).await?;
        Ok(())
    }
}

/// Counts the execs of a container that nobody waits for any more, and that are still to be ended.
#[derive(Default)]
pub struct Unended(AtomicUsize);

impl Unended {
    fn refuse_more(&self, container_id: &str) -> Result<(), ContainerError> {
        match self.0.load(Ordering::Relaxed) {
            count if count < MOST_UNENDED => Ok(()),
            count => Err(ContainerError::TooManyExecs { id: container_id.to_owned(), count }),
        }
    }

    /// Counts one more, until what this returns is dropped.
    fn count(self: Arc<Self>) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }
}

struct Counted(Arc<Unended>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An exec in a guest. Dropped in the middle, as when its client goes, its process is killed.
struct Exec {
    machine: Machine,
    container_id: String,
    process_id: String,
    /// Of its pod, and of the node.
    rooms: (Arc<Room>, Arc<Room>),
    unended: Arc<Unended>,
    ended: bool,
}

impl Drop for Exec {
    fn drop(&mut self) {
        if !self.ended {
            let (machine, container, process) =
                (self.machine.clone(), self.container_id.clone(), self.process_id.clone());
            let counted = Arc::clone(&self.unended).count();
            tokio::spawn(async move {
                let _counted = counted;
                let attempt = || end(&machine, &container, &process);
                let ended = tokio::select! {
                    // Its processes end with their guest.
                    () = machine.vm.ended() => return,
                    ended = until_ended(&PAUSES, attempt) => ended,
                };
                if let Err(error) = ended {
                    tracing::error!(container, %error, "exec is not ended: it lives until its container ends");
                }
            });
        }
    }
}

impl Exec {
    async fn start(&self, args: Vec<String>) -> Result<(), ContainerError> {
        let request = StartExecRequest {
            container_id: self.container_id.clone(),
            process_id: self.process_id.clone(),
            args,
            ..StartExecRequest::default()
        };
        self.machine.agent.start_exec(request).await?;
        Ok(())
    }

    async fn run(&self, limit: Duration) -> Result<Outcome, ContainerError> {
        let (mut stdout, mut stderr) = (Collected::new(&self.rooms), Collected::new(&self.rooms));
        let code = {
            let streams = async {
                let out = self.collect(Stream::Stdout, &mut stdout);
                let err = self.collect(Stream::Stderr, &mut stderr);
                futures_util::future::try_join(out, err).await
            };
            let mut streams = std::pin::pin!(streams);
            let mut wait = std::pin::pin!(self.wait(limit));
            tokio::select! {
                code = &mut wait => {
                    let code = code?;
                    if let Ok(read) = tokio::time::timeout(DRAIN, streams).await {
                        read?;
                    }
                    code
                }
                read = &mut streams => {
                    read?;
                    wait.await?
                }
            }
        };
        if stdout.is_cut || stderr.is_cut {
            tracing::warn!(
                container = self.container_id,
                "output of an exec is cut: its pod has too much of it"
            );
        }
        Ok(Outcome { stdout: stdout.kept, stderr: stderr.kept, code })
    }

    async fn wait(&self, limit: Duration) -> Result<i32, ContainerError> {
        let request = WaitProcessRequest {
            container_id: self.container_id.clone(),
            process_id: self.process_id.clone(),
        };
        let answer = tokio::time::timeout(limit, self.machine.agent.wait_process(request, UNLIMITED)).await;
        let late =
            |_| ContainerError::ExecTimeout { id: self.container_id.clone(), seconds: limit.as_secs() };
        let answer = answer.map_err(late)??;
        Ok(answer.exit.unwrap_or_default().code)
    }

    async fn collect(&self, stream: Stream, sink: &mut Collected) -> Result<(), ContainerError> {
        let address =
            Address { container_id: self.container_id.clone(), process_id: self.process_id.clone(), stream };
        let mut connection = self.machine.vm.connect_vsock(STDIO_PORT).await?;
        stdio::open(&mut connection, &address, None).await?;
        let broken = |source| StdioError::Io { container: self.container_id.clone(), source };
        Ok(stdio::pump(&mut connection, sink).await.map_err(broken)?)
    }

    async fn kill_tree(&self) {
        let kill = SignalProcessRequest {
            container_id: self.container_id.clone(),
            process_id: self.process_id.clone(),
            signal: libc::SIGKILL.cast_unsigned(),
            whole_tree: true,
        };
        if let Err(error) = self.machine.agent.signal_process(kill).await {
            tracing::warn!(container = self.container_id, %error, "exec that took too long is not killed");
        }
    }

    /// Lets the agent forget it; the agent kills the process if it still runs. What fails here is tried again
    /// when this is dropped.
    async fn end(&mut self) {
        match end(&self.machine, &self.container_id, &self.process_id).await {
            // It is not there, or its container is not.
            Ok(()) | Err(AgentError::Refused { .. }) => self.ended = true,
            Err(error) => tracing::debug!(container = self.container_id, %error, "exec is not ended yet"),
        }
    }
}

async fn end(machine: &Machine, container_id: &str, process_id: &str) -> Result<(), AgentError> {
    let request =
        RemoveExecRequest { container_id: container_id.to_owned(), process_id: process_id.to_owned() };
    machine.agent.remove_exec(request).await
}

/// Tries again while the agent does not answer; what it refuses it will refuse the next time.
async fn until_ended<F: Future<Output = Result<(), AgentError>>>(
    pauses: &[Duration],
    attempt: impl Fn() -> F,
) -> Result<(), AgentError> {
    for pause in pauses {
        match attempt().await {
            Err(AgentError::Timeout { .. } | AgentError::Unreachable { .. }) => {
                tokio::time::sleep(*pause).await;
            }
            done => return done,
        }
    }
    attempt().await
}

/// Keeps the first bytes of a stream and drops the rest.
struct Collected {
    kept: Vec<u8>,
    share: Share,
    /// Bytes were dropped that an exec alone may have.
    is_cut: bool,
    seen: u64,
}

impl Collected {
    fn new((pod, node): &(Arc<Room>, Arc<Room>)) -> Self {
        let share = Share::new(Arc::clone(pod), Arc::clone(node));
        Self { kept: Vec::new(), share, is_cut: false, seen: 0 }
    }
}

impl Sink for Collected {
    async fn take(&mut self, bytes: Vec<u8>) -> io::Result<u64> {
        let wanted = bytes.len().min(MAX_OUTPUT - self.kept.len());
        // What is kept is the begin of the output, without gaps.
        let taken = if self.is_cut { 0 } else { self.share.take(wanted) };
        self.is_cut |= taken < wanted;
        self.kept.extend_from_slice(&bytes[..taken]);
        self.seen += bytes.len() as u64;
        Ok(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an exec is ended whose agent answers so, each time one of these, and what comes of it.
    async fn attempts(answers: &[fn() -> Result<(), AgentError>]) -> (usize, Result<(), AgentError>) {
        let asked = std::cell::Cell::new(0);
        let attempt = || {
            let answer = answers[asked.get().min(answers.len() - 1)]();
            asked.set(asked.get() + 1);
            async move { answer }
        };
        let ended = until_ended(&[Duration::ZERO; 4], attempt).await;
        (asked.get(), ended)
    }

    #[tokio::test]
    async fn exec_is_ended_though_its_agent_is_late_and_not_again_when_it_refuses() {
        fn late() -> Result<(), AgentError> {
            Err(AgentError::Timeout { id: String::new(), method: "RemoveExec", seconds: 60 })
        }
        fn away() -> Result<(), AgentError> {
            Err(AgentError::Unreachable { id: String::new(), method: "RemoveExec", message: String::new() })
        }
        fn refused() -> Result<(), AgentError> {
            let (id, message, code) = (String::new(), String::new(), tonic::Code::NotFound);
            Err(AgentError::Refused { id, method: "RemoveExec", code, message })
        }
        fn done() -> Result<(), AgentError> {
            Ok(())
        }
        let (asked, ended) = attempts(&[late, away, done]).await;
        assert!(asked == 3 && ended.is_ok(), "{asked} {ended:?}");
        let (asked, ended) = attempts(&[refused]).await;
        assert!(asked == 1 && ended.is_err(), "{asked} {ended:?}");
        let (asked, ended) = attempts(&[late]).await;
        assert!(asked == 5 && ended.is_err(), "{asked} {ended:?}");
    }

    #[test]
    fn execs_are_refused_while_too_many_are_not_ended() {
        let unended = Arc::new(Unended::default());
        let mut left: Vec<_> = (0..MOST_UNENDED - 1).map(|_| Arc::clone(&unended).count()).collect();
        unended.refuse_more("c").unwrap();
        left.push(Arc::clone(&unended).count());
        let error = unended.refuse_more("c").unwrap_err().to_string();
        assert!(error.starts_with("container c has 8 execs that its agent has not ended yet"), "{error}");
        left.pop();
        unended.refuse_more("c").unwrap();
    }

    #[tokio::test]
    async fn endless_output_is_acknowledged_and_cut() {
        let mut sink = Collected::new(&(Room::of_pod(), Room::of_node()));
        for n in 1..=8 {
            assert_eq!(sink.take(vec![1; 1024 * 1024]).await.unwrap(), n * 1024 * 1024);
        }
        assert_eq!(sink.kept.len(), MAX_OUTPUT);
        assert!(!sink.is_cut);
    }

    #[tokio::test]
    async fn output_is_cut_where_the_pods_execs_have_no_room_and_acknowledged_all_the_same() {
        let rooms = (Room::of_pod(), Room::of_node());
        let _others = {
            let mut share = Share::new(Arc::clone(&rooms.0), Arc::clone(&rooms.1));
            share.take((32 << 20) - 5);
            share
        };
        let mut sink = Collected::new(&rooms);
        assert_eq!(sink.take(b"beginning".to_vec()).await.unwrap(), 9);
        assert_eq!(sink.take(b"end".to_vec()).await.unwrap(), 12);
        assert_eq!((&sink.kept[..], sink.is_cut), (&b"begin"[..], true));
    }
}
