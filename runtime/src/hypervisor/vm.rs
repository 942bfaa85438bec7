//! A VM of ours: a VMM's process, its control socket, and the guest behind it.
//!
//! ```text
//!   start: sockets, process in its cgroup -> boot: Boot, ListenVsock, the agent's ready signal -> save: Save
//!                                         -> restore: Restore, the agent's port answers
//! ```
//!
//! Used by `local` and `template`. It boots from files, saves to files and restores from them; it must not
//! choose between these, nor know whose files they are. A VMM outlives the daemon; a later one finds it by
//! its process descriptor and its control socket.

use super::control::{Control, GuestConnections};
use super::files::{CONTROL, Files, Sockets, VSOCK, log_tail};
use super::pages::{self, pieces};
use super::process::{Process, Start};
use super::vsock::connect_guest;
use super::{HypervisorError, Vm, VmRecord, VmSpec};
use crate::hostile_text::Tail;
use crate::oom_score;
use crate::undo::Undo;
use async_trait::async_trait;
use isopod_protocols::vmm::{BootConfig, Extent, PageRange, Request, Response, Shape, Stats};
use isopod_protocols::vsock::{AGENT_PORT, READY_PORT};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{Instrument, info_span};

/// Limit of a request to a VMM that runs.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Limit of a connection to a guest's port.
const VSOCK_LIMIT: Duration = Duration::from_secs(10);

/// Time in which the end of a VMM shows whose socket broke.
const END_NOTICE: Duration = Duration::from_millis(500);

/// Most extents that a VM has at a time: those that its VMM has room for.
const MAX_EXTENTS: usize = 1024;

/// How a VMM is started: where, and as whom.
pub struct Launch<'a> {
    /// Name of the VM in logs.
    pub id: &'a str,
    /// Directory of its sockets and its log.
    pub directory: &'a Path,
    /// The cgroup it is born in.
    pub cgroup: Option<&'a Path>,
    /// Its host user and group.
    pub uid: u32,
    /// Size of the largest file that it may change, bytes.
    pub largest_file: u64,
    /// Its program.
    pub vmm: &'a Path,
    /// Every request to it and every connection to its guest has at least this long: what gives way to all
    /// others on the node answers late there. Zero for pods.
    pub patience: Duration,
}

impl<'a> Launch<'a> {
    /// As a pod's VMM is started.
    pub fn of_pod(spec: &'a VmSpec) -> Self {
        Self {
            id: &spec.id,
            directory: &spec.directory,
            cgroup: spec.cgroup.as_deref(),
            uid: spec.uid,
            largest_file: spec.largest_file,
            vmm: &spec.vmm,
            patience: Duration::ZERO,
        }
    }
}

/// A VM that was saved: what [`LocalVm::restore`] goes on from.
pub struct Snapshot<'a> {
    /// What [`LocalVm::save`] was told: a VMM refuses a state that says otherwise.
    pub built_from: &'a str,
    /// The machine that was booted: so is a state of another one.
    pub shape: Shape,
    /// Guest memory, for reading.
    pub memory: BorrowedFd<'a>,
    /// Processors and devices, for reading.
    pub state: BorrowedFd<'a>,
}

/// What a restored VM has written since, see [`LocalVm::working_set`].
pub struct WorkingSet {
    /// Pages that the snapshot's memory has, see [`pages::are_possible`].
    pub pages: Vec<PageRange>,
    /// Blocks of 2 MiB of the snapshot's memory that are large pages of the host now.
    pub large_pages: u32,
    /// Blocks that could be such pages, and of which the host made none.
    pub refused_large_pages: u32,
}

/// A VM.
pub struct LocalVm {
    id: String,
    directory: PathBuf,
    control: Control,
    process: Process,
    patience: Duration,
}

impl LocalVm {
    /// Starts a VMM; what kills it is pushed to `undo`. The listener is the guest's vsock, which the VMM is still to get.
    pub async fn start(
        launch: &Launch<'_>,
        undo: &mut Undo,
    ) -> Result<(Arc<Self>, UnixListener), HypervisorError> {
        let sockets = Sockets::bind(launch.directory)?;
        let (id, largest_file) = (launch.uid.to_string(), launch.largest_file.to_string());
        let start = Start {
            program: launch.vmm,
            words: &["isopod-vmm", "--uid", &id, "--gid", &id, "--largest-file", &largest_file],
            log: sockets.log.as_fd(),
            descriptors: &[sockets.control.as_fd()],
            cgroup: launch.cgroup,
            // A pod's gets that of its containers as soon as there are some.
            oom_score: oom_score::FIRST,
        };
        let process = Process::start(&start).instrument(info_span!("spawn")).await?;
        let vm = Self { patience: launch.patience, ..Self::new(launch.id, launch.directory, process) };
        let vm = Arc::new(vm);
        let killed = Arc::clone(&vm);
        undo.push("vmm", move || async move {
            killed.kill().await;
            Ok::<_, io::Error>(())
        })?;
        tracing::debug!(pid = vm.process.pid, "vmm started");
        Ok((vm, sockets.vsock))
    }

    /// The VM of a process that runs.
    pub fn new(id: &str, directory: &Path, process: Process) -> Self {
        Self {
            id: id.to_owned(),
            directory: directory.to_owned(),
            control: Control::new(id, directory.join(CONTROL)),
            process,
            patience: Duration::ZERO,
        }
    }

    /// What [`Hypervisor::adopt`](super::Hypervisor::adopt) needs. It names no template.
    pub fn record(&self) -> VmRecord {
        VmRecord {
            pid: self.process.pid,
            started_at_ticks: self.process.started_at_ticks,
            directory: self.directory.clone(),
            template: None,
        }
    }

    /// Does the first work with a VMM, within `limit`. Its death and its slowness become errors that bring its last words.
    pub async fn bring_up<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, HypervisorError>>,
    ) -> Result<T, HypervisorError> {
        let done = tokio::select! {
            // In this order: a VMM that died has also broken its socket, and its log tells why.
            biased;
            () = self.process.ended() => Err(self.ended_in_boot()),
            done = timeout(limit, work) => match done {
                Ok(done) => done,
                Err(_) => Err(self.too_slow(limit).await),
            },
        };
        match done {
            // The end of the process may be seen a moment after the end of its socket.
            Err(HypervisorError::Control { source, .. } | HypervisorError::Vsock { source, .. })
                if is_break(&source) && timeout(END_NOTICE, self.process.ended()).await.is_ok() =>
            {
                Err(self.ended_in_boot())
            }
            other => other,
        }
    }

    /// From the first request to the agent's ready signal. With `memory`, that file is the guest's memory,
    /// and the VM can be saved. The caller sets the deadline, by [`Self::bring_up`].
    pub async fn boot(
        &self,
        config: &BootConfig,
        files: &Files,
        vsock: UnixListener,
        memory: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<(), HypervisorError> {
        let request = match memory {
            None => Request::Boot(config.clone()),
            Some(_) => Request::BootTemplate(config.clone()),
        };
        let mut descriptors =
            vec![files.kvm.as_fd(), files.kernel.as_fd(), files.root_image.as_fd(), vsock.as_fd()];
        descriptors.extend(memory);
        let built = self.done("boot", &request, &descriptors, limit);
        built.instrument(info_span!("machine")).await?;

        let failed =
            |source| HypervisorError::Control { id: self.id.clone(), request: "listen_vsock", source };
        let (guest, for_vmm) = GuestConnections::new().map_err(failed)?;
        let listen = Request::ListenVsock { port: READY_PORT };
        self.done("listen_vsock", &listen, &[for_vmm.as_fd()], REQUEST_LIMIT).await?;
        // The VMM alone holds the other end now, so its death is seen here too.
        drop(for_vmm);
        guest.ready(READY_PORT).instrument(info_span!("guest")).await.map_err(failed)
    }

    /// Goes on from a snapshot, whose agent serves already; answers the connection by which that was seen.
    /// The caller sets the deadline, by [`Self::bring_up`].
    pub async fn restore(
        &self,
        snapshot: &Snapshot<'_>,
        files: &Files,
        vsock: UnixListener,
        limit: Duration,
    ) -> Result<UnixStream, HypervisorError> {
        let request = Request::Restore { built_from: snapshot.built_from.to_owned(), shape: snapshot.shape };
        let descriptors =
            [files.kvm.as_fd(), snapshot.memory, snapshot.state, files.root_image.as_fd(), vsock.as_fd()];
        self.done("restore", &request, &descriptors, limit).await?;
        drop(vsock);
        // A guest that runs and does not live would fail its pod, which a cold boot would not. The first call
        // to the agent needs this connection anyway.
        self.connect_vsock(AGENT_PORT).await
    }

    /// What this VM has written since it was restored from a snapshot with that memory, which has so many
    /// bytes. What it has not becomes large pages of the snapshot, as far as the host has some.
    pub async fn working_set(
        &self,
        memory: BorrowedFd<'_>,
        memory_bytes: u64,
    ) -> Result<WorkingSet, HypervisorError> {
        match self.ask("rehearsed", &Request::Rehearsed {}, &[memory], REQUEST_LIMIT).await? {
            Response::WorkingSet { pages, large_pages, refused_large_pages }
                if pages::are_possible(&pages, memory_bytes) =>
            {
                Ok(WorkingSet { pages, large_pages, refused_large_pages })
            }
            _ => Err(self.control.unexpected("rehearsed")),
        }
    }

    /// Gives the guest pages for all that it will write, before it asks one by one. Between the pieces the VMM serves the guest.
    pub async fn populate(&self, pages: &[PageRange]) -> Result<(), HypervisorError> {
        for pages in pieces(pages) {
            self.done("populate", &Request::Populate { pages }, &[], REQUEST_LIMIT).await?;
        }
        Ok(())
    }

    /// Stops the guest for good, and has its state written to `state`; with the memory that it booted with,
    /// that is a [`Snapshot`].
    pub async fn save(&self, built_from: &str, state: &File, limit: Duration) -> Result<(), HypervisorError> {
        let request = Request::Save { built_from: built_from.to_owned() };
        self.done("save", &request, &[state.as_fd()], limit).await
    }

    async fn ask(
        &self,
        name: &'static str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Response, HypervisorError> {
        self.control.ask(name, request, descriptors, limit.max(self.patience)).await
    }

    async fn done(
        &self,
        name: &'static str,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), HypervisorError> {
        match self.ask(name, request, descriptors, limit).await? {
            Response::Done {} => Ok(()),
            _ => Err(self.control.unexpected(name)),
        }
    }

    fn ended_in_boot(&self) -> HypervisorError {
        HypervisorError::Ended { id: self.id.clone(), tail: Tail::new(&log_tail(&self.directory)) }
    }

    async fn too_slow(&self, limit: Duration) -> HypervisorError {
        let tail = self.last_words().await;
        HypervisorError::BootTimeout { id: self.id.clone(), seconds: limit.as_secs(), tail }
    }

    /// The console's tail, or what there is in its place.
    pub async fn last_words(&self) -> Tail {
        let console = match self.console().await {
            Ok(console) => console,
            Err(error) => format!("{}\n(no console: {error})", log_tail(&self.directory)),
        };
        Tail::new(&console)
    }
}

#[async_trait]
impl Vm for LocalVm {
    async fn attach_extent(&self, file: File, length: u64, read_only: bool) -> Result<u64, HypervisorError> {
        let request = Request::AttachExtent { length, read_only };
        match self.ask("attach_extent", &request, &[file.as_fd()], REQUEST_LIMIT).await? {
            Response::Extent { offset } => Ok(offset),
            _ => Err(self.control.unexpected("attach_extent")),
        }
    }

    async fn detach_extent(&self, offset: u64) -> Result<(), HypervisorError> {
        self.done("detach_extent", &Request::DetachExtent { offset }, &[], REQUEST_LIMIT).await
    }

    async fn extents(&self) -> Result<Vec<Extent>, HypervisorError> {
        match self.ask("list_extents", &Request::ListExtents {}, &[], REQUEST_LIMIT).await? {
            Response::Extents { extents } if are_possible(&extents) => Ok(extents),
            _ => Err(self.control.unexpected("list_extents")),
        }
    }

    async fn resize(&self, memory_mib: u32) -> Result<(), HypervisorError> {
        self.done("resize_memory", &Request::ResizeMemory { memory_mib }, &[], REQUEST_LIMIT).await
    }

    async fn add_vcpus(&self, vcpus: u8) -> Result<(), HypervisorError> {
        self.done("add_vcpus", &Request::AddVcpus { vcpus }, &[], REQUEST_LIMIT).await
    }

    async fn attach_tap(&self, tap: OwnedFd) -> Result<(), HypervisorError> {
        self.done("attach_tap", &Request::AttachTap {}, &[tap.as_fd()], REQUEST_LIMIT).await
    }

    async fn connect_vsock(&self, port: u32) -> Result<UnixStream, HypervisorError> {
        let path = self.directory.join(VSOCK);
        let connected = timeout(VSOCK_LIMIT.max(self.patience), connect_guest(&path, port)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|source| HypervisorError::Vsock { id: self.id.clone(), port, source })
    }

    async fn stats(&self) -> Result<Stats, HypervisorError> {
        match self.ask("stats", &Request::Stats {}, &[], REQUEST_LIMIT).await? {
            Response::Stats(stats) => Ok(stats),
            _ => Err(self.control.unexpected("stats")),
        }
    }

    async fn console(&self) -> Result<String, HypervisorError> {
        match self.ask("console", &Request::Console {}, &[], REQUEST_LIMIT).await? {
            Response::Console { text } => Ok(text),
            _ => Err(self.control.unexpected("console")),
        }
    }

    async fn kill(&self) {
        self.process.kill().await;
    }

    async fn ended(&self) {
        self.process.ended().await;
    }
}

/// Whether a VMM can have so many. Whoever works through them one by one has a bound.
fn are_possible(extents: &[Extent]) -> bool {
    extents.len() <= MAX_EXTENTS
}

fn is_break(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_extents_beyond_the_limit_is_refused() {
        let extent = Extent { offset: 0, read_only: true };
        assert!(are_possible(&vec![extent; MAX_EXTENTS]));
        assert!(!are_possible(&vec![extent; MAX_EXTENTS + 1]));
    }
}
