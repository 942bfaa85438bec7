//! A layer's way from the registry to an EROFS file, in one pass and without a file in between:
//!
//! ```text
//! download (digest of the blob) -> pump thread: decompress, digest of the archive -> pipe -> worker, jailed -> file
//!                                                         layers below -> socket ----------^ where it asks for them
//! ```
//!
//! The file becomes the layer only when both digests are right and the converter has succeeded without a message. A conversion has
//! a slot while it works (`slots`), charges what it takes to its image's quota (`quota`), and stops at the disk's reserve. Called
//! by `chain`, in a flight.

use super::blocking;
use super::content::{Content, Incoming, remove};
use super::digest::Digest;
use super::download::{Download, MOST_BEGINNINGS};
use super::error::ImageError;
use super::manifest::Descriptor;
use super::pull::Pull;
use super::pump::{PumpError, pump};
use super::quota::{Charge, file_limit};
use super::slots::{Claim, Slots};
use super::worker::{self, JAIL_FAILED, Jail, Worker};
use crate::undo::Undo;
use std::fs::File;
use std::io::PipeWriter;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{Mutex, mpsc, oneshot};

/// Pieces of a download that wait for the pump.
const PIECES_WAITING: usize = 32;

/// Size of the pipe, in bytes: fewer switches between pump and worker.
const PIPE_SIZE: i32 = 1 << 20;

/// Longest text of the worker that is kept, in bytes.
const LONGEST_COMPLAINT: u64 = 4 << 10;

/// With less than so many bytes left, a failed conversion has failed for want of space.
const FULL: u64 = 4 << 20;

/// Processor time of one conversion, in seconds; a million files take two.
const CPU_SECONDS: u64 = 900;

/// Pause between two checks of a conversion's file and of the disk.
const LOOK_AFTER: Duration = Duration::from_millis(250);

/// Memory for the names of one layer, in bytes: four million files.
const NAMES: usize = 1 << 30;

/// Turns layers into EROFS files.
pub struct Converter {
    /// Program whose first act is [`worker::run_if_asked`]: the daemon's own.
    pub launcher: PathBuf,
    /// User and group id of the jail.
    pub uid: u32,
    /// Largest uncompressed layer, in bytes.
    pub largest_layer: u64,
    /// Bytes of the file system that stay free.
    pub reserve: u64,
    /// The cgroup that bounds the memory of all workers together; absent where each has its own limits only.
    pub cgroup: Option<PathBuf>,
    /// Longest wait for the worker to take more of its archive, or to finish after its end.
    pub patience: Duration,
    /// Conversions at the same time, less those that wait for another or for their registry.
    pub slots: Slots,
}

/// What is to be made.
#[derive(Debug, Clone)]
pub struct LayerSource {
    /// The blob in the registry.
    pub blob: Descriptor,
    /// Digest of the uncompressed blob.
    pub diff_id: Digest,
    /// Name of the file: the layer upon those below it.
    pub chain_id: Digest,
    /// Names what is fetched, and where: the registry, and the blobs of this layer and of those below it.
    pub origin: Digest,
}

impl LayerSource {
    /// As its origin, and of one pull alone.
    pub fn alone(&self, pull: u64) -> Digest {
        Digest::of(format!("{} {pull}", self.origin).as_bytes())
    }
}

/// Brings the layers below onto the disk and opens them, the topmost first.
pub type Below = Pin<Box<dyn Future<Output = Result<Vec<File>, ImageError>> + Send>>;

/// One conversion, as the parts of it that run at the same time see it.
struct Running {
    claim: Claim,
    /// The worker waits for layers below: that it gets nowhere is not its fault.
    waits: AtomicBool,
}

impl Converter {
    /// Fetches `layer` and makes it the file of its chain id. A corrupt download is begun again once, elsewhere if possible; one
    /// that broke off, and of which another place would send the rest, [`MOST_BEGINNINGS`] times in all.
    /// `below` is called where the layer refers to those below it.
    ///
    /// # Errors
    /// Nothing is left of the layer after any of them.
    pub async fn fetch(
        self: Arc<Self>,
        content: Arc<Content>,
        pull: Arc<Pull>,
        layer: LayerSource,
        below: impl Fn() -> Below,
    ) -> Result<(), ImageError> {
        if layer.blob.size > self.largest_layer {
            let (what, limit) = (format!("layer {}", layer.blob.digest), self.largest_layer);
            return Err(ImageError::TooLarge { what, limit, key: "image.max_layer_mib" });
        }
        let running = Running { claim: self.slots.claim(pull.requester()), waits: AtomicBool::new(false) };
        let (mut start, mut corrupt) = (0, false);
        for _ in 1..MOST_BEGINNINGS {
            match self.attempt(&content, &pull, &layer, below(), &running, start).await {
                // not the corruption of a layer below, which has had its second attempt
                Err(ImageError::Corrupt { expected, .. })
                    if !corrupt && (expected == layer.blob.digest || expected == layer.diff_id) =>
                {
                    tracing::warn!(layer = %layer.blob.digest, "corrupt download, trying again");
                    (start, corrupt) = (start + 1, true);
                }
                Err(ImageError::BrokenOff { blob, next, .. }) if blob == layer.blob.digest => {
                    tracing::debug!(layer = %layer.blob.digest, "broke off, beginning anew");
                    start = next;
                }
                other => return other,
            }
        }
        self.attempt(&content, &pull, &layer, below(), &running, start).await
    }

    async fn attempt(
        &self,
        content: &Arc<Content>,
        pull: &Pull,
        layer: &LayerSource,
        below: Below,
        running: &Running,
        start: usize,
    ) -> Result<(), ImageError> {
        running.waits.store(false, Ordering::Relaxed);
        running.claim.acquire().await;
        let mut undo = Undo::new("PullLayer");
        let what = format!("layer {}", layer.blob.digest);
        let part = Part {
            download: Download::new(&pull.session, &layer.blob, what, start),
            charge: pull.quota.charge(),
        };
        let charge = Arc::clone(&part.charge);
        match self.steps(content, part, layer, below, running, &mut undo).await {
            Ok(()) => {
                charge.keep();
                undo.keep();
                Ok(())
            }
            Err(error) => {
                // what could not be released is logged there, and removed at the next start
                let _ = undo.run().await;
                Err(error)
            }
        }
    }

    async fn steps(
        &self,
        content: &Arc<Content>,
        part: Part<'_>,
        layer: &LayerSource,
        below: Below,
        running: &Running,
        undo: &mut Undo,
    ) -> Result<(), ImageError> {
        content.check_room(layer.blob.size, self.reserve)?;
        let incoming = content.incoming()?;
        let path = incoming.path.clone();
        undo.push("incoming file", move || async move { remove(&path) })?;

        let (mut process, archive, socket) = self.start(content, &incoming)?;
        let complaints = tokio::spawn(read_complaints(process.stderr.take()));
        let process = Arc::new(Mutex::new(process));
        let killed = Arc::clone(&process);
        undo.push("converter", move || async move { killed.lock().await.kill().await })?;

        let written = Written {
            content: Arc::clone(content),
            file: Arc::new(incoming.file.try_clone().map_err(|error| ImageError::io(&incoming.path, error))?),
            charge: Arc::clone(&part.charge),
            reserve: self.reserve,
        };
        let status = tokio::select! {
            status = self.convert(part, layer.diff_id, archive, &process, running) => status?,
            error = running.serve(socket, below) => return Err(error),
            error = written.watch() => return Err(error),
        };
        judge(content, layer.diff_id, status, &complaints.await.unwrap_or_default())?;

        let (content, chain_id) = (Arc::clone(content), layer.chain_id);
        blocking(move || {
            written.look()?;
            content.adopt_layer(&incoming, &chain_id)
        })
        .await
    }

    /// From the first byte of the download to the end of the worker.
    async fn convert(
        &self,
        Part { mut download, charge }: Part<'_>,
        diff_id: Digest,
        archive: PipeWriter,
        process: &Mutex<Child>,
        running: &Running,
    ) -> Result<ExitStatus, ImageError> {
        let (pieces, waiting) = mpsc::channel(PIECES_WAITING);
        let limit = self.largest_layer;
        let pumping = apart(move || pump(waiting, archive, limit, &charge))?;
        while let Some(piece) = running.claim.while_idle(download.next()).await? {
            running.hold_slot().await;
            // a pump that has ended says below how it went; the digest still wants every byte
            let _ = self.soon(diff_id, running, pieces.send(piece)).await?;
        }
        drop(pieces);
        let pumped = self.soon(diff_id, running, pumping).await?.map_err(|_| interrupted(diff_id))?;
        let got = pumped.map_err(|error| pump_error(diff_id, error))?;
        if got != diff_id {
            let what = format!("uncompressed layer {diff_id}");
            return Err(ImageError::Corrupt { what, expected: diff_id, got });
        }
        let status = self.soon(diff_id, running, async { process.lock().await.wait().await }).await?;
        status.map_err(|error| broken(error.to_string()))
    }

    /// Waits for the worker. Unless it waits for other layers, it must make progress within `patience`: a hostile archive
    /// could stop it.
    async fn soon<T>(
        &self,
        layer: Digest,
        running: &Running,
        work: impl Future<Output = T>,
    ) -> Result<T, ImageError> {
        let mut work = pin!(work);
        loop {
            match tokio::time::timeout(self.patience, &mut work).await {
                Ok(done) => return Ok(done),
                Err(_) if running.waits.load(Ordering::Relaxed) => {}
                Err(_) => {
                    let reason = format!("its conversion made no progress for {} s", self.patience.as_secs());
                    return Err(ImageError::BadLayer { layer, reason });
                }
            }
        }
    }

    fn start(
        &self,
        content: &Content,
        incoming: &Incoming,
    ) -> Result<(Child, PipeWriter, UnixStream), ImageError> {
        let failed = |error| ImageError::io(&incoming.path, error);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&incoming.path, Some(self.uid), Some(self.uid)).map_err(failed)?;
        }
        let output = file_limit(self.largest_layer);
        let jail = Jail {
            uid: self.uid,
            cgroup: self.cgroup.clone(),
            mount_point: content.empty_directory(),
            largest_file: output,
            cpu_seconds: CPU_SECONDS,
        };
        let broken = |what, error| broken(format!("{what}: {error}"));
        let (reader, writer) = std::io::pipe().map_err(|error| broken("no pipe", error))?;
        // a smaller pipe is slower, not wrong: the size is capped for users without privileges
        let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        let (ours, theirs) = UnixStream::pair().map_err(|error| broken("no socket", error))?;
        ours.set_nonblocking(true).map_err(|error| broken("no socket", error))?;
        let worker = Worker { jail, output, names: NAMES };
        let command = worker.command(&self.launcher, &theirs);
        let mut command = command.map_err(|error| broken("no socket", error))?;
        command
            .stdin(Stdio::from(reader))
            .stdout(Stdio::from(incoming.file.try_clone().map_err(failed)?))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| broken("cannot be started", error))?;
        Ok((child, writer, ours))
    }
}

impl Running {
    /// Acquires a slot where this conversion has none any more. One that waits for layers below must have none: they need it.
    async fn hold_slot(&self) {
        if self.waits.load(Ordering::Relaxed) {
            return;
        }
        self.claim.acquire().await;
        if self.waits.load(Ordering::Relaxed) {
            self.claim.release();
        }
    }

    /// Gives the worker the layers below once it asks for them; ends only where that fails.
    async fn serve(&self, socket: UnixStream, below: Below) -> ImageError {
        let mut socket = match tokio::net::UnixStream::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => return ImageError::Interrupted(format!("a layer's conversion ({error})")),
        };
        worker::wait_for_request(&mut socket).await;
        self.waits.store(true, Ordering::Relaxed);
        // others go on meanwhile: the layers waited for may be among them
        self.claim.release();
        let files = match below.await {
            Ok(files) => files,
            Err(error) => return error,
        };
        self.claim.acquire().await;
        self.waits.store(false, Ordering::Relaxed);
        // a worker that has ended tells why itself
        let _ = worker::send_files(&socket, &files).await;
        drop(files);
        std::future::pending().await
    }
}

/// The input of a conversion, and what it charges to its image's quota.
struct Part<'a> {
    download: Download<'a>,
    charge: Arc<Charge>,
}

/// The output of a conversion, and what bounds it.
#[derive(Clone)]
struct Written {
    content: Arc<Content>,
    file: Arc<File>,
    charge: Arc<Charge>,
    reserve: u64,
}

impl Written {
    /// Checks again and again; ends with the first bound that is exceeded.
    async fn watch(&self) -> ImageError {
        loop {
            tokio::time::sleep(LOOK_AFTER).await;
            let written = self.clone();
            if let Err(error) = blocking(move || written.look()).await {
                return error;
            }
        }
    }

    /// Checks the file against its image's quota, and the disk against its reserve.
    fn look(&self) -> Result<(), ImageError> {
        let length = self.file.metadata().map_err(|error| ImageError::io(self.content.root(), error))?.len();
        self.charge.set_file(length)?;
        self.content.check_room(0, self.reserve)
    }
}

/// Runs the pump on a thread of its own: it may wait for a registry for hours, and the runtime's blocking threads are bounded.
fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, ImageError> {
    let (tell, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("layer-pump".to_owned());
    // nobody listens to the pump of a pull that was given up
    let started = thread.spawn(move || {
        let _ = tell.send(work());
    });
    started.map_err(|error| broken(format!("no thread: {error}")))?;
    Ok(done)
}

/// Whether the worker did its work.
fn judge(content: &Content, diff_id: Digest, status: ExitStatus, complaints: &str) -> Result<(), ImageError> {
    if status.success() && complaints.is_empty() {
        return Ok(());
    }
    if status.code() == Some(JAIL_FAILED) {
        return Err(broken(format!("its jail cannot be closed: {complaints}")));
    }
    let space = nix::sys::statvfs::statvfs(content.root());
    if space.is_ok_and(|space| space.blocks_available() * space.fragment_size() < FULL) {
        return Err(ImageError::DiskFull { directory: content.root().to_owned() });
    }
    let reason = match complaints {
        "" if status.signal() == Some(libc::SIGKILL) => {
            "the kernel killed the converter, for want of memory (image.converter_memory_mib) or of processor time"
                .to_owned()
        }
        "" => format!("the converter ended with {status} and printed no error"),
        complaints => complaints.to_owned(),
    };
    Err(ImageError::BadLayer { layer: diff_id, reason })
}

fn broken(reason: String) -> ImageError {
    ImageError::Converter { reason }
}

fn interrupted(layer: Digest) -> ImageError {
    ImageError::Interrupted(format!("layer {layer}"))
}

fn pump_error(layer: Digest, error: PumpError) -> ImageError {
    match error {
        PumpError::TooLarge { limit } => {
            let what = format!("uncompressed layer {layer}");
            ImageError::TooLarge { what, limit, key: "image.max_layer_mib" }
        }
        PumpError::Image(error) => error,
        PumpError::Layer(error) => ImageError::BadLayer { layer, reason: error.to_string() },
    }
}

async fn read_complaints(stderr: Option<ChildStderr>) -> String {
    let mut bytes = Vec::new();
    if let Some(stderr) = stderr {
        let mut bounded = stderr.take(LONGEST_COMPLAINT);
        // what was read before an error is still worth telling
        let _ = bounded.read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(bounded.get_mut(), &mut tokio::io::sink()).await;
    }
    let text = String::from_utf8_lossy(&bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
