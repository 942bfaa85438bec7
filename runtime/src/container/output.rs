//! A container's output on its way to the log: a task per stream, which opens the stream again after every break until
//! the container is done or its VM is gone.
//!
//! Called by `start` and by a starting daemon. `log_writer` does what may block.

use super::log_file::LogFile;
use super::log_writer::LogWriter;
use super::stdio::{self, Address, StdioError};
use crate::hypervisor::VmHandle;
use isopod_protocols::agent::Stream;
use isopod_protocols::vsock::STDIO_PORT;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Pause before a stream that broke is opened again.
const PAUSE: Duration = Duration::from_millis(100);

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

/// Carries one stream to the log until its end. Without a log the bytes are read and dropped, so that the container is
/// not held up.
pub fn carry(
    vm: VmHandle,
    container_id: &str,
    stream: Stream,
    log: Option<Arc<LogFile>>,
    position: &Path,
) -> io::Result<Carried> {
    let address = Address { container_id: container_id.to_owned(), process_id: String::new(), stream };
    let mut writer = LogWriter::open(name(stream), log, position)?;
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
            () = carry_all(&vm, &address, &mut writer) => {}
            () = given_up => {}
        }
        writer.finish().await;
    });
    Ok(Carried { task, give_up })
}

async fn carry_all(vm: &VmHandle, address: &Address, writer: &mut LogWriter) {
    loop {
        match carry_once(vm, address, writer).await {
            Ok(()) => return,
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
        tokio::time::sleep(PAUSE).await;
    }
}

async fn carry_once(vm: &VmHandle, address: &Address, writer: &mut LogWriter) -> Result<(), StdioError> {
    let broken = |source| StdioError::Io { container: address.container_id.clone(), source };
    let connection = vm.connect_vsock(STDIO_PORT).await;
    let mut connection = connection.map_err(|e| broken(io::Error::other(e)))?;
    let begin = writer.resume().await;
    stdio::open(&mut connection, address, Some(begin)).await?;
    stdio::pump(&mut connection, writer).await.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::super::log_file::LogPath;
    use super::*;
    use crate::config;
    use crate::hypervisor::fake::{Connection, FakeHypervisor, FakeVm};
    use crate::hypervisor::{Hypervisor, VmConfig};
    use crate::undo::Undo;
    use isopod_protocols::agent::StreamOpened;
    use isopod_protocols::stdio as wire;
    use std::fs;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::mpsc::UnboundedReceiver;

    /// A container whose standard output is carried, and its guest.
    struct Carrying {
        directory: TempDir,
        vm: Arc<FakeVm>,
        guest: UnboundedReceiver<Connection>,
        carried: Carried,
    }

    impl Carrying {
        async fn begin() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let (hypervisor, guest) = FakeHypervisor::with_connections();
            let mut undo = Undo::new("carry");
            let config = VmConfig { id: "vm".into(), ..VmConfig::new(config::VmConfig::default()) };
            let handle = hypervisor.boot(&config, &mut undo).await.unwrap();
            undo.keep();
            let path = LogPath::new(directory.path(), Path::new("0.log")).unwrap();
            let log = Arc::new(LogFile::open(path).unwrap());
            let position = position_path(directory.path(), "c", Stream::Stdout);
            let carried = carry(handle, "c", Stream::Stdout, Some(log), &position).unwrap();
            Self { directory, vm: hypervisor.vm("vm").unwrap(), guest, carried }
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
}
