//! A container's output on its way to the log: a task per stream, which opens the stream again after every break until
//! the container is done or its VM is gone.
//!
//! Called by `start` and by a starting daemon. `log_writer` does what may block.
//!
//! Whoever rotates logs looks at those of running containers only. So a stream of a container that does not
//! run is bounded by what an honest guest can still hold of it, in bytes and not in time, as a slow disk must
//! lose nothing.

use super::log_file::LogFile;
use super::log_writer::{LogWriter, PodSeats};
use super::record::State;
use super::stdio::{self, Address, Sink, StdioError};
use crate::hypervisor::VmHandle;
use isopod_protocols::agent::Stream;
use isopod_protocols::vsock::STDIO_PORT;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Pause before a stream that broke is opened again. It doubles with each break, up to [`LONGEST_PAUSE`],
/// until bytes arrive.
const PAUSE: Duration = Duration::from_millis(100);

/// An agent that breaks every stream costs a connection in this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Bytes that are taken of a stream while its container does not run. Of one that has exited an honest guest
/// holds no more than the agent's window of 256 KiB and a pipe of at most 1 MiB (`fs.pipe-max-size`); what a
/// break cut off comes twice.
const MOST_HELD: usize = 2 << 20;

/// Time to write what has come of a stream that is given up.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The task of one stream. Dropped, as when the daemon goes down, it leaves the rest of the stream to the next daemon.
pub struct Carried {
    task: JoinHandle<()>,
    give_up: oneshot::Sender<()>,
}

impl Carried {
    /// Waits for the stream's end. At `limit` the stream counts as ended: what has no line end yet is a last
    /// line. Answers whether the stream ended by itself.
    pub async fn finish(mut self, limit: Duration) -> bool {
        if tokio::time::timeout(limit, &mut self.task).await.is_ok() {
            return true;
        }
        let _ = self.give_up.send(());
        if tokio::time::timeout(LAST_WRITE, &mut self.task).await.is_err() {
            self.task.abort();
        }
        false
    }
}

/// Where a stream's position is kept.
pub fn position_path(directory: &Path, container_id: &str, stream: Stream) -> PathBuf {
    directory.join(format!("{container_id}.{}", name(stream)))
}

fn name(stream: Stream) -> &'static str {
    if stream == Stream::Stderr { "stderr" } else { "stdout" }
}

/// One output stream of a container, and where it goes.
pub struct OutputStream {
    /// Where the container is.
    pub vm: VmHandle,
    /// The container.
    pub container_id: String,
    /// Which of its streams.
    pub stream: Stream,
    /// The container's states.
    pub states: watch::Receiver<State>,
    /// Without a log the bytes are read and dropped, so that the container is not held up.
    pub log: Option<Arc<LogFile>>,
    /// Its pod's.
    pub seats: PodSeats,
}

/// Carries one stream to the log until its end. How far it has come is kept in the file `position`.
pub fn carry(from: OutputStream, position: &Path) -> io::Result<Carried> {
    let OutputStream { vm, container_id, stream, states, log, seats } = from;
    let address = Address { container_id, process_id: String::new(), stream };
    let writer = LogWriter::open(name(stream), log, seats, position)?;
    let mut taken = Taken { writer, states, left: MOST_HELD, is_spent: false, has_come: false };
    let (give_up, given_up) = oneshot::channel::<()>();
    let given_up = async {
        if given_up.await.is_err() {
            // Dropped and not sent: the stream goes on without this daemon.
            std::future::pending::<()>().await;
        }
    };
    let task = tokio::spawn(async move {
        tokio::select! {
            () = vm.ended() => {}
            () = carry_all(&vm, &address, &mut taken) => {}
            () = given_up => {}
        }
        taken.writer.finish().await;
    });
    Ok(Carried { task, give_up })
}

/// What is taken of a stream: all while the container runs, and [`MOST_HELD`] bytes while it does not.
struct Taken {
    writer: LogWriter,
    states: watch::Receiver<State>,
    left: usize,
    /// The container has exited, and more came.
    is_spent: bool,
    /// Bytes have come since this was last cleared.
    has_come: bool,
}

impl Taken {
    /// Counts bytes that have come. Those of a container that has not begun, as far as this daemon knows,
    /// wait where they are too many: its agent is to tell first that it runs.
    async fn count(&mut self, bytes: usize) -> io::Result<()> {
        loop {
            let state = self.states.borrow_and_update().clone();
            match (state, self.left.checked_sub(bytes)) {
                (State::Running { .. }, _) => {
                    self.left = MOST_HELD;
                    return Ok(());
                }
                (_, Some(left)) => {
                    self.left = left;
                    return Ok(());
                }
                (State::Created, None) if self.states.changed().await.is_ok() => {}
                // Or it is there no more.
                (State::Created | State::Exited(_), None) => {
                    self.is_spent = true;
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
            }
        }
    }

    /// Lets time pass, but no more than until the container's state changes: one that has exited is removed
    /// soon.
    async fn pause(&mut self, pause: Duration) {
        let changed = async {
            if self.states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        // Either is the end of the pause.
        let _ = tokio::time::timeout(pause, changed).await;
    }
}

impl Sink for Taken {
    async fn take(&mut self, bytes: Vec<u8>) -> io::Result<u64> {
        self.has_come = true;
        self.count(bytes.len()).await?;
        self.writer.take(bytes).await
    }
}

async fn carry_all(vm: &VmHandle, address: &Address, taken: &mut Taken) {
    let mut pause = PAUSE;
    loop {
        taken.has_come = false;
        match carry_once(vm, address, taken).await {
            Ok(()) => return,
            Err(_) if taken.is_spent => {
                tracing::warn!(
                    container = address.container_id,
                    bytes = MOST_HELD,
                    "output stream is given up: its container has exited, and more came than a guest can hold"
                );
                return;
            }
            Err(StdioError::Refused { reason, .. }) => {
                tracing::warn!(container = address.container_id, reason, "output stream refused");
                return;
            }
            // No break, which the next connection could mend: the agent does not keep to the protocol.
            Err(error @ (StdioError::Answer { .. } | StdioError::WrongOffset { .. })) => {
                tracing::warn!(container = address.container_id, %error, "output stream is given up");
                return;
            }
            Err(error) => tracing::debug!(container = address.container_id, %error, "output stream broke"),
        }
        if taken.has_come {
            pause = PAUSE;
        }
        taken.pause(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn carry_once(vm: &VmHandle, address: &Address, taken: &mut Taken) -> Result<(), StdioError> {
    let broken = |source| StdioError::Io { container: address.container_id.clone(), source };
    let connection = vm.connect_vsock(STDIO_PORT).await;
    let mut connection = connection.map_err(|e| broken(io::Error::other(e)))?;
    let begin = taken.writer.resume().await;
    stdio::open(&mut connection, address, Some(begin)).await?;
    stdio::pump(&mut connection, taken).await.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::super::log_file::LogPath;
    use super::super::record::Exit;
    use super::*;
    use crate::config;
    use crate::hypervisor::fake::{Connection, FakeHypervisor, FakeVm};
    use crate::hypervisor::{Hypervisor, VmSpec};
    use crate::undo::Undo;
    use isopod_protocols::agent::StreamOpened;
    use isopod_protocols::stdio as wire;
    use std::fs;
    use std::pin::pin;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc::UnboundedReceiver;
    use tokio::time::{Instant, timeout};

    /// More than any of this takes.
    const LONG: Duration = Duration::from_secs(30);

    /// A container whose standard output is carried, and its guest.
    struct Carrying {
        directory: TempDir,
        vm: Arc<FakeVm>,
        guest: UnboundedReceiver<Connection>,
        states: watch::Sender<State>,
        carried: Carried,
    }

    impl Carrying {
        async fn begin() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (hypervisor, guest) = FakeHypervisor::with_connections();
            let mut undo = Undo::new("carry");
            let spec = VmSpec { id: "vm".into(), ..VmSpec::new(config::VmConfig::default()) };
            let handle = hypervisor.boot(&spec, &mut undo).await.unwrap().vm;
            undo.keep();
            let path = LogPath::new(directory.path(), Path::new("0.log")).unwrap();
            let log = Arc::new(LogFile::open(path).unwrap());
            let position = position_path(directory.path(), "c", Stream::Stdout);
            let states = watch::Sender::new(State::Running { started_at_ns: 1 });
            let stream = OutputStream {
                vm: handle,
                container_id: "c".into(),
                stream: Stream::Stdout,
                states: states.subscribe(),
                log: Some(log),
                seats: PodSeats::default(),
            };
            let carried = carry(stream, &position).unwrap();
            Self { directory, vm: hypervisor.vm("vm").unwrap(), guest, states, carried }
        }

        /// The agent's end of the stream, opened as the host asked.
        async fn accept(&mut self) -> (u64, UnixStream) {
            let Connection { stream: mut agent, .. } = self.guest.recv().await.unwrap();
            let mut prefix = [0; 2];
            agent.read_exact(&mut prefix).await.unwrap();
            let mut body = vec![0; wire::opening_length(prefix).unwrap()];
            agent.read_exact(&mut body).await.unwrap();
            let offset = wire::decode_open(&body).unwrap().resume_at.unwrap();
            let opened = StreamOpened { error: String::new(), offset };
            agent.write_all(&wire::encode_opened(&opened)).await.unwrap();
            (offset, agent)
        }

        fn log(&self) -> String {
            fs::read_to_string(self.directory.path().join("0.log")).unwrap()
        }
    }

    /// Sends lines of 1 KiB for as long as they are taken; answers how many bytes were acknowledged.
    async fn flood(agent: UnixStream, most: usize) -> u64 {
        let (mut acknowledgements, mut stream) = agent.into_split();
        let sent = async {
            let line = [b"x".repeat(1023), b"\n".into()].concat();
            for _ in 0..most / line.len() {
                if stream.write_all(&line).await.is_err() {
                    break;
                }
            }
            // The other half keeps the connection open.
        };
        let heard = async {
            let mut last = 0;
            while let Ok(arrived) = acknowledgements.read_u64_le().await {
                last = arrived;
                if last >= most as u64 {
                    break;
                }
            }
            last
        };
        tokio::join!(sent, heard).1
    }

    #[tokio::test]
    async fn stream_that_is_given_up_writes_what_came() {
        let mut carrying = Carrying::begin().await;
        let (_, mut agent) = carrying.accept().await;
        agent.write_all(b"whole\nno end").await.unwrap();
        assert_eq!(agent.read_u64_le().await.unwrap(), 6);
        let log = carrying.directory.path().join("0.log");
        assert!(!carrying.carried.finish(Duration::ZERO).await);
        let log = fs::read_to_string(log).unwrap();
        assert!(log.ends_with(" stdout F no end\n"), "{log}");
    }

    #[tokio::test]
    async fn what_came_before_the_vm_ended_is_in_the_log() {
        let mut carrying = Carrying::begin().await;
        let (_, mut agent) = carrying.accept().await;
        agent.write_all(b"whole\nlast words").await.unwrap();
        assert_eq!(agent.read_u64_le().await.unwrap(), 6);
        carrying.vm.crash();
        (&mut carrying.carried.task).await.unwrap();
        assert!(carrying.log().ends_with(" stdout F last words\n"), "{}", carrying.log());
    }

    #[tokio::test]
    async fn agent_that_answers_nonsense_is_not_asked_again() {
        let mut carrying = Carrying::begin().await;
        let Connection { stream: mut agent, .. } = carrying.guest.recv().await.unwrap();
        let lie = StreamOpened { error: String::new(), offset: 99 };
        agent.write_all(&wire::encode_opened(&lie)).await.unwrap();
        (&mut carrying.carried.task).await.unwrap();
        assert_eq!(carrying.log(), "");
    }
    #[tokio::test]
    async fn stream_of_an_exited_container_ends_after_what_a_guest_can_hold() {
        let mut carrying = Carrying::begin().await;
        let (_, agent) = carrying.accept().await;
        carrying.states.send_replace(State::Exited(Exit::lost(1, 2)));
        let arrived = timeout(LONG, flood(agent, 3 * MOST_HELD)).await;
        let arrived = arrived.expect("the flood of an exited container has no end") as usize;
        timeout(LONG, &mut carrying.carried.task).await.expect("its stream is carried on").unwrap();
        assert!(arrived > MOST_HELD - 80 * 1024 && arrived <= MOST_HELD, "{arrived}");
        assert!(carrying.log().len() <= MOST_HELD + MOST_HELD / 16);
    }

    #[tokio::test]
    async fn stream_of_a_running_container_has_no_bound() {
        let mut carrying = Carrying::begin().await;
        let (_, agent) = carrying.accept().await;
        let arrived = timeout(LONG, flood(agent, 3 * MOST_HELD)).await.unwrap();
        assert_eq!(arrived, 3 * MOST_HELD as u64);
    }

    #[tokio::test]
    async fn stream_of_a_container_that_has_not_begun_waits_for_its_begin() {
        let mut carrying = Carrying::begin().await;
        carrying.states.send_replace(State::Created);
        let (_, agent) = carrying.accept().await;
        let mut flood = pin!(flood(agent, 2 * MOST_HELD));
        let held = timeout(Duration::from_millis(500), &mut flood).await;
        assert!(held.is_err(), "more than it can hold is taken");
        carrying.states.send_replace(State::Running { started_at_ns: 1 });
        assert_eq!(timeout(LONG, flood).await.unwrap(), 2 * MOST_HELD as u64);
    }

    #[tokio::test]
    async fn stream_that_breaks_is_opened_again_ever_more_seldom_until_bytes_arrive() {
        let mut carrying = Carrying::begin().await;
        let begun = Instant::now();
        for _ in 0..4 {
            drop(carrying.guest.recv().await.unwrap());
        }
        let (_, mut agent) = carrying.accept().await;
        // 100, 200, 400 and 800 ms.
        assert!(begun.elapsed() >= 15 * PAUSE, "{:?}", begun.elapsed());
        agent.write_all(b"line\n").await.unwrap();
        assert_eq!(agent.read_u64_le().await.unwrap(), 5);
        // Its acknowledgement is not read: so the stream breaks, and does not end.
        agent.write_all(b"more\n").await.unwrap();
        drop(agent);
        let broken = Instant::now();
        assert_eq!(carrying.accept().await.0, 10);
        assert!(broken.elapsed() < 14 * PAUSE, "{:?}", broken.elapsed());
    }
}
