//! Our own VMM, a process per VM.
//!
//! ```text
//!   open files, bind sockets -> start isopod-vmm in the pod's cgroup -> Boot -> ListenVsock -> the agent knocks
//! ```
//!
//! The VMM opens nothing by path, so all that it uses is opened here. It outlives the daemon; a later one finds it by its
//! process descriptor and its control socket.

use super::control::{self, Control, GuestConnections};
use super::process::Process;
use super::{Hypervisor, HypervisorError, Vm, VmConfig, VmHandle, VmRecord};
use crate::hostile_text::Tail;
use crate::undo::Undo;
use async_trait::async_trait;
use isopod_protocols::vmm::{BootConfig, Extent, Request, Response, Stats};
use isopod_protocols::vsock::{MAX_HANDSHAKE, READY_PORT};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tracing::{Instrument, info_span};

/// Limit of a request to a VMM that runs.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Limit of a connection to a guest's port.
const VSOCK_LIMIT: Duration = Duration::from_secs(10);

/// Most bytes read from the end of a VMM's log.
const LOG_TAIL: u64 = 4096;

/// Starts VMMs.
#[derive(Debug, Default)]
pub struct LocalHypervisor {}

/// What a VMM is given at its boot, all of it open.
struct Files {
    kvm: File,
    kernel: File,
    root_image: File,
    vsock: UnixListener,
    control: OwnedFd,
    log: File,
}

impl Files {
    fn open(config: &VmConfig) -> Result<Self, HypervisorError> {
        let in_directory = |name| config.directory.join(name);
        let (vsock, control) = (in_directory(VSOCK), in_directory(CONTROL));
        let bound = |what, path: PathBuf| move |source| HypervisorError::File { what, path, source };
        let mut append = OpenOptions::new();
        append.append(true).create(true);
        Ok(Self {
            kvm: open(OpenOptions::new().read(true).write(true), "kvm device", Path::new("/dev/kvm"))?,
            kernel: open(OpenOptions::new().read(true), "guest kernel", &config.kernel)?,
            root_image: open(OpenOptions::new().read(true), "guest root", &config.root_image)?,
            vsock: UnixListener::bind(&vsock).map_err(bound("vsock socket", vsock))?,
            control: control::listener(&control).map_err(bound("control socket", control))?,
            log: open(&append, "vmm log", &in_directory(LOG))?,
        })
    }
}

const CONTROL: &str = "control.sock";
const VSOCK: &str = "vsock.sock";
const LOG: &str = "vmm.log";

fn open(how: &OpenOptions, what: &'static str, path: &Path) -> Result<File, HypervisorError> {
    how.open(path).map_err(|source| HypervisorError::File { what, path: path.to_owned(), source })
}

#[async_trait]
impl Hypervisor for LocalHypervisor {
    async fn boot(&self, config: &VmConfig, undo: &mut Undo) -> Result<VmHandle, HypervisorError> {
        let files = Files::open(config)?;
        let (control, log) = (files.control.as_fd(), files.log.as_fd());
        let process = info_span!("spawn").in_scope(|| Process::start_vmm(config, control, log))?;
        let vm = Arc::new(LocalVm {
            id: config.id.clone(),
            directory: config.directory.clone(),
            control: Control::new(&config.id, config.directory.join(CONTROL)),
            process,
        });
        let killed = Arc::clone(&vm);
        undo.push("vmm", move || async move {
            killed.kill().await;
            Ok::<_, io::Error>(())
        })?;
        tracing::debug!(pid = vm.process.pid, "vmm started");
        let booted = tokio::select! {
            // In this order: a VMM that died has also broken its socket, and its log tells why.
            biased;
            () = vm.process.ended() => Err(vm.ended_in_boot()),
            booted = timeout(config.boot_timeout, vm.boot(config, files)) => match booted {
                Ok(booted) => booted,
                Err(_) => Err(vm.too_slow(config.boot_timeout).await),
            },
        };
        match booted {
            // The end of the process may be seen a moment after the end of its socket.
            Err(HypervisorError::Control { source, .. }) if is_break(&source) => Err(vm.ended_in_boot()),
            other => other.map(|()| vm as VmHandle),
        }
    }

    async fn adopt(&self, id: &str, record: &VmRecord) -> Result<Option<VmHandle>, HypervisorError> {
        let found = Process::find(record.pid, record.started_at_ticks);
        let failed = |source| HypervisorError::Control { id: id.to_owned(), request: "adopt", source };
        let Some(process) = found.map_err(failed)? else { return Ok(None) };
        let control = Control::new(id, record.directory.join(CONTROL));
        let vm = LocalVm { id: id.to_owned(), directory: record.directory.clone(), control, process };
        vm.stats().await?;
        Ok(Some(Arc::new(vm)))
    }
}

fn is_break(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | UnexpectedEof)
}

struct LocalVm {
    id: String,
    directory: PathBuf,
    control: Control,
    process: Process,
}

impl LocalVm {
    /// From the first request to the agent's knock. The caller sets the deadline.
    async fn boot(&self, config: &VmConfig, files: Files) -> Result<(), HypervisorError> {
        let request = Request::Boot(BootConfig {
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            max_memory_mib: config.memory_mib,
            huge_pages: config.huge_pages,
            kernel_args: config.kernel_args.clone(),
        });
        let descriptors =
            [files.kvm.as_fd(), files.kernel.as_fd(), files.root_image.as_fd(), files.vsock.as_fd()];
        let built = self.done("boot", &request, &descriptors, config.boot_timeout);
        built.instrument(info_span!("machine")).await?;

        let failed =
            |source| HypervisorError::Control { id: self.id.clone(), request: "listen_vsock", source };
        let (guest, for_vmm) = GuestConnections::new().map_err(failed)?;
        let listen = Request::ListenVsock { port: READY_PORT };
        self.done("listen_vsock", &listen, &[for_vmm.as_fd()], REQUEST_LIMIT).await?;
        // The VMM alone holds the other end now, so its death is seen here too.
        drop(for_vmm);
        guest.knock(READY_PORT).instrument(info_span!("guest")).await.map_err(failed)
    }

    async fn ask(
        &self,
        name: &'static str,
        request: &Request,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Response, HypervisorError> {
        self.control.ask(name, request, descriptors, limit).await
    }

    async fn done(
        &self,
        name: &'static str,
        request: &Request,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), HypervisorError> {
        match self.ask(name, request, descriptors, limit).await? {
            Response::Done {} => Ok(()),
            _ => Err(self.control.unexpected(name)),
        }
    }

    fn ended_in_boot(&self) -> HypervisorError {
        HypervisorError::Ended { id: self.id.clone(), tail: Tail::new(&self.log_tail()) }
    }

    async fn too_slow(&self, limit: Duration) -> HypervisorError {
        let console = match self.console().await {
            Ok(console) => console,
            Err(error) => format!("{}\n(no console: {error})", self.log_tail()),
        };
        HypervisorError::BootTimeout {
            id: self.id.clone(),
            seconds: limit.as_secs(),
            tail: Tail::new(&console),
        }
    }

    /// The VMM's last words; its log ends with the guest's console where there was one.
    fn log_tail(&self) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut log = File::open(self.directory.join(LOG))?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
            let mut tail = Vec::new();
            log.take(LOG_TAIL).read_to_end(&mut tail)?;
            Ok(tail)
        };
        match read() {
            Ok(tail) => String::from_utf8_lossy(&tail).into_owned(),
            Err(error) => format!("(no log: {error})"),
        }
    }
}

#[async_trait]
impl Vm for LocalVm {
    fn record(&self) -> VmRecord {
        VmRecord {
            pid: self.process.pid,
            started_at_ticks: self.process.started_at_ticks,
            directory: self.directory.clone(),
        }
    }

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
            Response::Extents { extents } => Ok(extents),
            _ => Err(self.control.unexpected("list_extents")),
        }
    }

    async fn attach_tap(&self, tap: OwnedFd) -> Result<(), HypervisorError> {
        self.done("attach_tap", &Request::AttachTap {}, &[tap.as_fd()], REQUEST_LIMIT).await
    }

    async fn connect_vsock(&self, port: u32) -> Result<UnixStream, HypervisorError> {
        let path = self.directory.join(VSOCK);
        let connected = timeout(VSOCK_LIMIT, connect_guest(&path, port)).await;
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

/// The handshake of `isopod_protocols::vsock`. Its answer is read byte by byte: what follows is the guest's stream.
async fn connect_guest(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut line = Vec::with_capacity(MAX_HANDSHAKE);
    while line.last() != Some(&b'\n') {
        if line.len() == MAX_HANDSHAKE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the answer to the handshake is too long",
            ));
        }
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(error) => return Err(error),
        }
    }
    match line.starts_with(b"OK ") {
        true => Ok(stream),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to the handshake is not OK")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn handshake(answer: &'static [u8]) -> io::Result<Vec<u8>> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("v");
        let listener = tokio::net::UnixListener::bind(&path)?;
        let guest = async {
            let (mut stream, _) = listener.accept().await?;
            let mut line = [0; 13];
            stream.read_exact(&mut line).await?;
            assert_eq!(&line, b"CONNECT 1024\n");
            stream.write_all(answer).await
        };
        let (connected, served) = tokio::join!(connect_guest(&path, 1024), guest);
        served?;
        let mut rest = Vec::new();
        connected?.read_to_end(&mut rest).await?;
        Ok(rest)
    }

    #[tokio::test]
    async fn handshake_leaves_the_guests_first_bytes_in_the_stream() {
        assert_eq!(handshake(b"OK 1073741824\nPRI * HTTP").await.unwrap(), b"PRI * HTTP");
    }

    #[tokio::test]
    async fn closed_or_strange_handshake_is_an_error() {
        let kind = async |answer| handshake(answer).await.unwrap_err().kind();
        assert_eq!(kind(b"").await, io::ErrorKind::ConnectionRefused);
        assert_eq!(kind(b"NO\n").await, io::ErrorKind::InvalidData);
        assert_eq!(kind(&[b'O'; 100]).await, io::ErrorKind::InvalidData);
    }
}
