//! The disk's worker: a thread for work on files that may take long, which the event loop must not wait for.
//!
//! ```text
//! event loop   Disk::queue_event --begin--> jobs --+                    +--> finished --event--> Disk::event: chain given back
//! control      detach ------------close--> jobs --+--> Worker::serve ---+--> file closed
//! ```
//!
//! Jobs are done one at a time and in their order, so a flush covers all that was finished before it was asked for, holes too.
//! At most as many requests wait as the ring has entries: each has a chain that was not given back, of which
//! the ring hands out no more (`Ring::pop`), and a driver that resets its device takes its requests with it.
//! Started by `root.rs`, on a thread that may flush files, make holes in them and close them, and nothing
//! else.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::extents::{Extent, Extents, Piece};

/// Why a request that was well formed failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestError {
    /// The host's file failed, or the request reaches where it may not.
    IoError,
    /// The disk or the file behind it knows no such request.
    Unsupported,
}

/// What a request asks for that may take long.
pub enum Work {
    /// Have what was written survive a crash of the host.
    Flush,
    /// Make holes, which read as zeroes. Where the file system cannot, a discard is done, and zeroes are not.
    Holes {
        /// Where; all of them may be changed.
        pieces: Vec<Piece>,
        /// Whether it is only advice.
        discard: bool,
    },
}

/// A request that is answered when its work is done.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    /// The chain to give back.
    pub head: u16,
    /// Where its status byte goes.
    pub status: GuestAddress,
}

/// A request whose work is done.
pub struct Finished {
    /// Which.
    pub ticket: Ticket,
    /// Whether it succeeded.
    pub outcome: Result<(), RequestError>,
}

enum Job {
    Request(Ticket, Work),
    Close(Arc<Extent>),
}

#[derive(Default)]
struct WorkerState {
    jobs: VecDeque<Job>,
    finished: Vec<Finished>,
    /// The worker is at a request.
    busy: bool,
    /// Counts the driver's resets: what was begun before the last one is not answered.
    reset: u64,
    /// The disk is gone.
    ended: bool,
}

impl WorkerState {
    fn has_requests(&self) -> bool {
        self.busy || self.jobs.iter().any(|job| matches!(job, Job::Request(..)))
    }
}

/// The line of jobs between the threads.
pub struct Worker {
    state: Mutex<WorkerState>,
    /// Told when there is a job, or the end.
    work: Condvar,
    /// Told when a request is finished.
    done: Condvar,
    event: EventFd,
}

impl Worker {
    /// A worker that [`Self::serve`] is still to be called for, on its thread.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Signalled when requests are finished.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Begins a request's work, behind all that was begun before.
    pub fn begin(&self, ticket: Ticket, work: Work) {
        self.lock().jobs.push_back(Job::Request(ticket, work));
        self.work.notify_one();
    }

    /// Closes the file of an extent once nothing works on it any more: a file without a name is freed then, which takes long if it
    /// is large.
    pub fn close(&self, extent: Arc<Extent>) {
        self.lock().jobs.push_back(Job::Close(extent));
        self.work.notify_one();
    }

    /// Whether no request is waiting or being worked on.
    pub fn is_idle(&self) -> bool {
        !self.lock().has_requests()
    }

    /// Requests that wait for the worker, or to be given back.
    #[cfg(any(test, feature = "testing"))]
    pub fn waiting(&self) -> usize {
        let state = self.lock();
        let jobs = state.jobs.iter().filter(|job| matches!(job, Job::Request(..)));
        jobs.count() + state.finished.len()
    }

    /// Takes the requests that were finished since the last call.
    pub fn take_finished(&self) -> Vec<Finished> {
        std::mem::take(&mut self.lock().finished)
    }

    /// Drops all requests: the driver has forgotten them. One that is being worked on is not answered.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.jobs.retain(|job| matches!(job, Job::Close(_)));
        state.finished.clear();
        state.reset += 1;
    }

    /// Waits until all requests are finished.
    pub fn settle(&self) {
        let state = self.lock();
        drop(
            self.done.wait_while(state, |state| state.has_requests()).expect("nobody panics with this lock"),
        );
    }

    /// Ends [`Self::serve`] after the job that it is at.
    pub fn end(&self) {
        self.lock().ended = true;
        self.work.notify_one();
    }

    /// Does jobs until [`Self::end`].
    pub fn serve(&self, extents: &Extents) {
        loop {
            let waiting = |state: &mut WorkerState| state.jobs.is_empty() && !state.ended;
            let mut state = self.work.wait_while(self.lock(), waiting).expect("nobody panics with this lock");
            if state.ended {
                return;
            }
            match state.jobs.pop_front() {
                Some(Job::Request(ticket, work)) => {
                    state.busy = true;
                    let reset = state.reset;
                    drop(state);
                    let outcome = work.run(extents);
                    self.finish(Finished { ticket, outcome }, reset);
                }
                Some(Job::Close(extent)) => {
                    drop(state);
                    drop(extent);
                }
                None => {}
            }
        }
    }

    fn finish(&self, finished: Finished, reset: u64) {
        let mut state = self.lock();
        state.busy = false;
        if state.reset == reset {
            state.finished.push(finished);
        }
        drop(state);
        self.done.notify_all();
        // Fails only when the counter is full, and then the event is pending.
        let _ = self.event.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, WorkerState> {
        self.state.lock().expect("nobody panics with this lock")
    }
}

impl Work {
    fn run(self, extents: &Extents) -> Result<(), RequestError> {
        match self {
            Work::Flush => flush(extents),
            Work::Holes { pieces, discard } => pieces.iter().try_for_each(|piece| punch(piece, discard)),
        }
    }
}

fn flush(extents: &Extents) -> Result<(), RequestError> {
    let mut outcome = Ok(());
    for extent in extents.take_dirty() {
        if nix::unistd::fdatasync(extent.file()).is_err() {
            // The next flush must not take it for done.
            extent.mark_dirty();
            outcome = Err(RequestError::IoError);
        }
    }
    outcome
}

fn punch(piece: &Piece, discard: bool) -> Result<(), RequestError> {
    let file = piece.extent.file_to_change().ok_or(RequestError::IoError)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let punched = fallocate(file, hole, piece.offset as i64, piece.length as i64);
    piece.extent.mark_dirty();
    match punched {
        Ok(()) => Ok(()),
        // A discard is advice; zeroes are not, and the driver writes them itself when told.
        Err(Errno::EOPNOTSUPP) if discard => Ok(()),
        Err(Errno::EOPNOTSUPP) => Err(RequestError::Unsupported),
        Err(_) => Err(RequestError::IoError),
    }
}
