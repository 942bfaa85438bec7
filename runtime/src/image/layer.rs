//! A layer's way from the registry to an EROFS file, in one pass and without a file in between:
//!
//! ```text
//! download (digest of the blob) -> feed: gunzip -> pump thread: digest of the archive -> pipe -> worker, jailed -> file
//!                                  |        ^                          layers below -> socket --^ where it asks for them
//!                                  `-> decompressor, jailed: where it is zstd
//! ```
//!
//! The file becomes the layer only when both digests are right and the converter has succeeded without a message. A conversion has
//! a slot while it works (`slots`), for each piece of the download and for each turn of the pump; charges
//! what it takes to its image's quota (`quota`); and stops at the disk's reserve. Called by `chain`, in a
//! flight.

use super::blocking;
use super::compression::LONGEST_MAGIC;
use super::content::{Content, Incoming};
use super::descriptor::Descriptor;
use super::digest::Digest;
use super::download::{Download, MOST_BEGINNINGS};
use super::error::ImageError;
use super::feed::{Feed, pipe};
use super::output::{self, Written};
use super::process::{Process, broken};
use super::pull::Pull;
use super::pump::{PumpError, pump};
use super::quota::{Charge, file_limit};
use super::slots::{Claim, Requester, Slots};
use super::worker::{self, Jail, Worker};
use crate::undo::{Failed, Undo};
use bytes::Bytes;
use std::convert::Infallible;
use std::fs::File;
use std::io::PipeWriter;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Processor time of each process of a conversion, in seconds; a million files take two.
const CPU_SECONDS: u64 = 900;

/// Memory for the names of one layer, in bytes: four million files.
const NAMES: usize = 1 << 30;

/// Turns layers into EROFS files.
pub struct Converter {
    /// Program whose first act is [`worker::run_if_asked`]: the daemon's own.
    pub launcher: PathBuf,
    /// User and group id of the jails.
    pub uid: u32,
    /// Largest uncompressed layer, in bytes.
    pub largest_layer: u64,
    /// Bytes of the file system that stay free.
    pub reserve: u64,
    /// The cgroup that bounds the memory of all jails together; absent where each has its own limits only.
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
    /// Names what is fetched, and where: the registry, and the blobs of this layer and of those below it with
    /// their other addresses.
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
    /// The pump waits for a slot: neither is that.
    queued: AtomicBool,
    /// One of them has got what it waited for since somebody looked.
    moved: AtomicBool,
}

/// The pump asks for a turn by a sender of the answer.
type Turns = mpsc::Receiver<oneshot::Sender<()>>;

impl Converter {
    /// Fetches `layer` and makes it the file of its chain id. A corrupt download is begun again once,
    /// elsewhere if possible; one that broke off, and of which another place would send the rest,
    /// [`MOST_BEGINNINGS`] times in all. `below` is called where the layer refers to those below it; slots
    /// are for `requester`.
    ///
    /// # Errors
    /// Nothing is left of the layer after any of them.
    pub async fn fetch(
        self: Arc<Self>,
        content: Arc<Content>,
        pull: Arc<Pull>,
        requester: Requester,
        layer: LayerSource,
        below: impl Fn() -> Below,
    ) -> Result<(), ImageError> {
        if layer.blob.size > self.largest_layer {
            let (what, limit) = (format!("layer {}", layer.blob.digest), self.largest_layer);
            return Err(ImageError::TooLarge { what, limit, key: "image.max_layer_mib" });
        }
        let running = Running::new(self.slots.claim(requester));
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
        running.begin().await;
        let mut undo = Undo::new("PullLayer");
        let what = format!("layer {}", layer.blob.digest);
        let download = Download::new(&pull.session, &layer.blob, what, start);
        let charge = pull.quota.charge();
        let part = (download, Arc::clone(&charge));
        let outcome = self.steps(content, part, layer, below, running, &mut undo).await;
        if outcome.is_ok() {
            charge.keep();
        }
        // what could not be released is logged there, and removed at the next start
        undo.settle(outcome).await.map_err(Failed::into_cause)
    }

    async fn steps(
        &self,
        content: &Arc<Content>,
        (download, charge): (Download<'_>, Arc<Charge>),
        layer: &LayerSource,
        below: Below,
        running: &Running,
        undo: &mut Undo,
    ) -> Result<(), ImageError> {
        let incoming = output::make(content, layer.blob.size, (self.uid, self.reserve), undo).await?;
        let (process, archive, socket) = self.start(content, &incoming, undo)?;
        let written = Written::new(content, &incoming, &charge, self.reserve)?;
        let part = Part { download, charge, archive };
        let (input, turns) = self.input(content, part, running, undo).await?;
        let status = tokio::select! {
            status = self.convert(input, layer.diff_id, &process, running) => status?,
            never = running.grant(turns) => match never {},
            error = running.serve(socket, below) => return Err(error),
            error = written.watch() => return Err(error),
        };
        let judged = process.judge(layer.diff_id, status).await;
        output::blame_the_disk(content, judged).await?;

        let (content, chain_id) = (Arc::clone(content), layer.chain_id);
        blocking(move || {
            written.look()?;
            content.adopt_layer(&incoming, &chain_id)
        })
        .await
    }

    /// Begins the download, and the pump, which its first bytes tell what to read from.
    async fn input<'a>(
        &self,
        content: &Content,
        Part { mut download, charge, archive }: Part<'a>,
        running: &Running,
        undo: &mut Undo,
    ) -> Result<(Input<'a>, Turns), ImageError> {
        let mut head = Bytes::new();
        while head.len() < LONGEST_MAGIC
            && let Some(piece) = running.claim.while_idle(download.next()).await?
        {
            head = if head.is_empty() { piece } else { [head, piece].concat().into() };
        }
        let (feed, source) = Feed::new(&head, &self.launcher, self.jail(content, 0), undo)?;
        let (ask, turns) = mpsc::channel(1);
        let limit = self.largest_layer;
        let pumping = apart(move || pump(source.open(), archive, limit, &charge, || has_turn(&ask)))?;
        Ok((Input { download, head, feed, pumping }, turns))
    }

    /// From the first byte of the archive to the end of the worker.
    async fn convert(
        &self,
        Input { mut download, head, mut feed, pumping }: Input<'_>,
        diff_id: Digest,
        process: &Process,
        running: &Running,
    ) -> Result<ExitStatus, ImageError> {
        let mut next = Some(head);
        while let Some(piece) = next {
            running.hold_slot().await;
            // the digest of the blob wants every byte, whether or not somebody still takes them
            self.soon(diff_id, running, feed.give(piece)).await?;
            next = running.claim.while_idle(download.next()).await?;
        }
        let decompressor = feed.end();
        let pumped = self.soon(diff_id, running, pumping).await?.map_err(|_| interrupted(diff_id))?;
        let got = pumped.map_err(|error| pump_error(diff_id, error))?;
        if let Some(decompressor) = decompressor {
            let status = self.soon(diff_id, running, decompressor.end()).await??;
            decompressor.judge(diff_id, status).await?;
        }
        if got != diff_id {
            let what = format!("uncompressed layer {diff_id}");
            return Err(ImageError::Corrupt { what, expected: diff_id, got });
        }
        self.soon(diff_id, running, process.end()).await?
    }

    /// Waits for the processes. Unless they wait for other layers or for a slot, they must make progress
    /// within `patience`: a hostile layer could stop them.
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
                Err(_) if running.is_held_up() => {}
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
        undo: &mut Undo,
    ) -> Result<(Process, PipeWriter, UnixStream), ImageError> {
        let failed = |error| ImageError::io(&incoming.path, error);
        let output = file_limit(self.largest_layer);
        let no_socket = |error| broken(format!("no socket: {error}"));
        let (reader, writer) = pipe()?;
        let (ours, theirs) = UnixStream::pair().map_err(no_socket)?;
        ours.set_nonblocking(true).map_err(no_socket)?;
        let worker = Worker { jail: self.jail(content, output), output, names: NAMES };
        let mut command = worker.command(&self.launcher, &theirs).map_err(no_socket)?;
        let file = incoming.file.try_clone().map_err(failed)?;
        command.stdin(Stdio::from(reader)).stdout(Stdio::from(file));
        let (process, _) = Process::start("converter", &mut command, undo)?;
        Ok((process, writer, ours))
    }

    /// That of a process which may write a file of `largest_file` bytes.
    fn jail(&self, content: &Content, largest_file: u64) -> Jail {
        Jail {
            uid: self.uid,
            cgroup: self.cgroup.clone(),
            mount_point: content.empty_directory(),
            largest_file,
            cpu_seconds: CPU_SECONDS,
        }
    }
}

impl Running {
    fn new(claim: Claim) -> Self {
        Self {
            claim,
            waits: AtomicBool::default(),
            queued: AtomicBool::default(),
            moved: AtomicBool::default(),
        }
    }

    /// For an attempt: nothing is left of the one before. Waits for a slot.
    async fn begin(&self) {
        self.waits.store(false, Ordering::Relaxed);
        self.queued.store(false, Ordering::Relaxed);
        self.claim.acquire().await;
    }

    /// Whether the conversion waits, or has waited since this was asked, for what is not its own doing.
    fn is_held_up(&self) -> bool {
        let moved = self.moved.swap(false, Ordering::Relaxed);
        moved || self.waits.load(Ordering::Relaxed) || self.queued.load(Ordering::Relaxed)
    }

    /// Gives the pump its turns, each once there is a slot for it.
    async fn grant(&self, mut turns: Turns) -> Infallible {
        while let Some(asked) = turns.recv().await {
            self.queued.store(true, Ordering::Relaxed);
            self.hold_slot().await;
            self.moved.store(true, Ordering::Relaxed);
            self.queued.store(false, Ordering::Relaxed);
            // a pump that has ended needs none
            let _ = asked.send(());
        }
        std::future::pending().await
    }

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
        self.moved.store(true, Ordering::Relaxed);
        self.waits.store(false, Ordering::Relaxed);
        // a worker that has ended tells why itself
        let _ = worker::send_files(&socket, &files).await;
        drop(files);
        std::future::pending().await
    }
}

/// The input of a conversion, what it charges to its image's quota, and where its archive goes.
struct Part<'a> {
    download: Download<'a>,
    charge: Arc<Charge>,
    archive: PipeWriter,
}

/// The input of a conversion, from the first bytes on.
struct Input<'a> {
    download: Download<'a>,
    head: Bytes,
    feed: Feed,
    pumping: oneshot::Receiver<Result<Digest, PumpError>>,
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

/// Asks for a turn on the pump's thread, and waits for it; false where nobody gives turns any more.
fn has_turn(ask: &mpsc::Sender<oneshot::Sender<()>>) -> bool {
    let (grant, granted) = oneshot::channel();
    ask.blocking_send(grant).is_ok() && granted.blocking_recv().is_ok()
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
        PumpError::GivenUp => interrupted(layer),
        PumpError::Layer(error) => ImageError::BadLayer { layer, reason: error.to_string() },
    }
}
