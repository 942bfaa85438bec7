//! One output stream: read from the process, kept until the host has it, sent on one connection at a time.

use super::connection::{Connection, send_opened};
use super::ring::{Ring, RingError};
use super::turn::Turn;
use crate::lock::locked;
use crate::sys;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

/// A stream that a process writes.
#[derive(Debug)]
pub struct Output {
    shared: Arc<Shared>,
    pump: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    ring: Mutex<Ring>,
    /// Bytes came, or the end.
    more: Notify,
    /// Bytes were acknowledged: there is room.
    room: Notify,
    turn: Turn,
    /// Nobody reads the stream any more: what the process writes is dropped.
    abandoned: AtomicBool,
}

impl Output {
    /// Begins to read `pipe`, which must not block.
    pub fn new(pipe: OwnedFd) -> io::Result<Output> {
        let shared = Arc::new(Shared::default());
        let pipe = sys::descriptor::watch_readiness(pipe)?;
        let pump = tokio::spawn(pump(shared.clone(), pipe)).abort_handle();
        Ok(Output { shared, pump })
    }

    /// Stops reading and ends the connection: what is held is given up.
    pub fn close(&self) {
        self.pump.abort();
        self.shared.turn.retire();
    }

    /// Ends the connection and drops what is held and all that follows. Whoever still writes to the pipe is
    /// neither held up nor killed by SIGPIPE; the pipe is closed when its last writer has closed it.
    pub fn abandon(&self) {
        self.shared.turn.retire();
        self.shared.abandoned.store(true, Ordering::Relaxed);
        *self.shared.ring() = Ring::default();
        self.shared.room.notify_one();
    }

    /// Serves the stream on a connection, until the connection ends or another one takes its place.
    pub async fn serve<C: Connection>(&self, mut connection: C, resume_at: Option<u64>) {
        let mut turn = self.shared.turn.take();
        let start = self.shared.ring().resume(resume_at);
        let opened = send_opened(&mut connection, start.as_ref().copied()).await;
        let (Ok(()), Ok(position)) = (opened, start) else { return };
        let (reader, writer) = tokio::io::split(connection);
        // Both directions at once: a host that waits for us to take its acknowledgements does not read, and
        // the other way round.
        tokio::select! {
            () = self.shared.send(position, writer) => {}
            () = self.shared.take_acknowledgements(reader) => {}
            () = turn.lost() => {}
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.shared.is_abandoned() {
            self.close();
        }
    }
}

impl Shared {
    fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        locked(&self.ring)
    }

    /// Sends bytes from number `position` on as they come, then the end of the stream. Comes back when the
    /// connection is broken.
    async fn send<C: Connection>(&self, mut position: u64, mut writer: WriteHalf<C>) {
        let mut chunk = vec![0; CHUNK];
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            // Before the look at the ring, so that what comes after the look is not missed.
            more.as_mut().enable();
            let (count, ended) = {
                let ring = self.ring();
                (ring.read(position, &mut chunk), ring.ended())
            };
            if count > 0 {
                if writer.write_all(&chunk[..count]).await.is_err() {
                    return;
                }
                position += count as u64;
            } else if ended {
                let _ = writer.shutdown().await;
                // The host closes when it has acknowledged all that it wants to.
                return std::future::pending().await;
            } else {
                more.await;
            }
        }
    }

    /// Drops what the host says it keeps. Comes back when the connection ends or makes no sense.
    async fn take_acknowledgements<C: Connection>(&self, mut reader: ReadHalf<C>) {
        while let Ok(total) = reader.read_u64_le().await {
            let acknowledged: Result<(), RingError> = self.ring().acknowledge(total);
            if acknowledged.is_err() {
                return;
            }
            self.room.notify_one();
        }
    }
}

/// Moves bytes from the process's pipe into the ring as long as there is room, until all writers have closed
/// it.
async fn pump(shared: Arc<Shared>, pipe: AsyncFd<OwnedFd>) {
    loop {
        while shared.ring().room() == 0 && !shared.is_abandoned() {
            shared.room.notified().await;
        }
        let Ok(mut ready) = pipe.readable().await else { break };
        match ready.try_io(|pipe| read_into(&shared, pipe)) {
            Ok(Ok(0)) | Ok(Err(_)) => break,
            Ok(Ok(_)) => shared.more.notify_waiters(),
            // Not ready after all.
            Err(_) => {}
        }
    }
    shared.ring().finish();
    shared.more.notify_waiters();
}

fn read_into(shared: &Shared, pipe: &AsyncFd<OwnedFd>) -> io::Result<usize> {
    let mut chunk = [0; CHUNK];
    let abandoned = shared.is_abandoned();
    let wanted = if abandoned { CHUNK } else { shared.ring().room().min(CHUNK) };
    match nix::unistd::read(pipe.as_fd(), &mut chunk[..wanted]) {
        Ok(count) => {
            if !abandoned {
                shared.ring().push(&chunk[..count]);
            }
            Ok(count)
        }
        // A terminal says so when the last process has closed its end.
        Err(Errno::EIO) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
