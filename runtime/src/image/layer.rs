//! A layer's way from the registry to an EROFS image, in one pass and without a file in between:
//!
//! ```text
//! download (digest of the blob) -> pump thread: decompress, digest of the archive -> pipe -> mkfs.erofs, jailed -> file
//! ```
//!
//! Nothing is believed until the end: the file becomes the layer only when both digests are right and the converter had
//! nothing to say. Called by `pull`, in a flight.

use super::content::{Content, Incoming, remove};
use super::digest::Digest;
use super::download::Download;
use super::error::ImageError;
use super::jail::{Jail, NOT_JAILED, OUTPUT};
use super::manifest::Descriptor;
use super::pump::{PumpError, pump};
use super::session::Session;
use crate::undo::Undo;
use std::io::PipeWriter;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{Mutex, Semaphore, mpsc};

/// Arguments that make the file a function of the layer alone, and of all of it:
/// data in archive order and outside of inodes, so that nothing is buffered; fixed UUID and build time, while files keep
/// their own times; `.wh.` names become overlayfs's whiteouts and opaque directories.
const MKFS_ARGUMENTS: [&str; 9] = [
    "--quiet",
    "--tar=f",
    "--aufs",
    "--sort=none",
    "-Enoinline_data",
    "-T0",
    "--mkfs-time",
    "-U00000000-0000-4000-8000-69736f706f64",
    OUTPUT,
];

/// Pieces of a download that wait for the pump.
const PIECES_WAITING: usize = 32;

/// Size of the pipe, in bytes: fewer switches between pump and converter.
const PIPE_SIZE: i32 = 1 << 20;

/// Longest text of the converter that is kept, in bytes.
const LONGEST_COMPLAINT: u64 = 4 << 10;

/// With less than so many bytes left, a failed conversion has failed for want of space.
const FULL: u64 = 4 << 20;

/// Processor time of one conversion, in seconds; 178 MB take 0.7 s.
const CPU_SECONDS: u64 = 3600;

/// Turns layers into EROFS images.
pub struct Converter {
    /// `mkfs.erofs` of erofs-utils 1.8 or later, static.
    pub program: PathBuf,
    /// Program that closes the jail: the daemon's own.
    pub launcher: PathBuf,
    /// User and group id of the jail.
    pub uid: u32,
    /// Largest uncompressed layer, in bytes.
    pub largest_layer: u64,
    /// Longest wait for the converter to take more of its archive, or to finish after its end.
    pub patience: Duration,
    /// Conversions at the same time.
    pub slots: Semaphore,
}

impl Converter {
    /// Fetches `layer` and makes it the file of `diff_id`. A corrupt download is begun again once, elsewhere if possible.
    ///
    /// # Errors
    /// Nothing is left of the layer after any of them.
    pub async fn fetch(
        self: Arc<Self>,
        content: Arc<Content>,
        session: Arc<Session>,
        layer: Descriptor,
        diff_id: Digest,
    ) -> Result<(), ImageError> {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        if layer.size > self.largest_layer {
            let (what, limit) = (format!("layer {}", layer.digest), self.largest_layer);
            return Err(ImageError::TooLarge { what, limit, key: "image.max_layer_mib" });
        }
        let first = self.attempt(&content, &session, &layer, diff_id, 0).await;
        match first {
            Err(ImageError::Corrupt { .. }) => {
                tracing::warn!(layer = %layer.digest, "corrupt download, trying again");
                self.attempt(&content, &session, &layer, diff_id, 1).await
            }
            other => other,
        }
    }

    async fn attempt(
        &self,
        content: &Arc<Content>,
        session: &Session,
        layer: &Descriptor,
        diff_id: Digest,
        number: usize,
    ) -> Result<(), ImageError> {
        let mut undo = Undo::new("PullLayer");
        let download = Download::new(session, layer, format!("layer {}", layer.digest), number);
        match self.steps(content, download, diff_id, &mut undo).await {
            Ok(()) => {
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
        mut download: Download<'_>,
        diff_id: Digest,
        undo: &mut Undo,
    ) -> Result<(), ImageError> {
        let incoming = content.incoming()?;
        let path = incoming.path.clone();
        undo.push("incoming file", move || async move { remove(&path) })?;

        let (mut process, archive) = self.start(content, &incoming)?;
        let complaints = tokio::spawn(read_complaints(process.stderr.take()));
        let process = Arc::new(Mutex::new(process));
        let killed = Arc::clone(&process);
        undo.push("converter", move || async move { killed.lock().await.kill().await })?;

        let interrupted = || ImageError::Interrupted(format!("layer {diff_id}"));
        let (pieces, waiting) = mpsc::channel(PIECES_WAITING);
        let limit = self.largest_layer;
        let pumping = tokio::task::spawn_blocking(move || pump(waiting, archive, limit));
        while let Some(piece) = download.next().await? {
            // a pump that has ended says below how it went; the digest still wants every byte
            let _ = self.soon(diff_id, pieces.send(piece)).await?;
        }
        drop(pieces);
        let pumped = self.soon(diff_id, pumping).await?.map_err(|_| interrupted())?;
        let got = pumped.map_err(|error| pump_error(diff_id, error))?;
        if got != diff_id {
            let what = format!("uncompressed layer {diff_id}");
            return Err(ImageError::Corrupt { what, expected: diff_id, got });
        }
        let status = self.soon(diff_id, async { process.lock().await.wait().await }).await?;
        let status = status.map_err(|error| self.broken(error.to_string()))?;
        self.judge(content, diff_id, status, &complaints.await.unwrap_or_default())?;

        let content = Arc::clone(content);
        let adopted = tokio::task::spawn_blocking(move || content.adopt_layer(&incoming, &diff_id)).await;
        adopted.map_err(|_| interrupted())?
    }

    /// Waits for the converter, which is always at work, but not for ever: an archive may have sent it astray.
    async fn soon<T>(&self, layer: Digest, work: impl Future<Output = T>) -> Result<T, ImageError> {
        let ended = tokio::time::timeout(self.patience, work).await;
        ended.map_err(|_| {
            let reason = format!("mkfs.erofs got nowhere for {} s", self.patience.as_secs());
            ImageError::BadLayer { layer, reason }
        })
    }

    fn start(&self, content: &Content, incoming: &Incoming) -> Result<(Child, PipeWriter), ImageError> {
        let failed = |error| ImageError::io(&incoming.path, error);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&incoming.path, Some(self.uid), Some(self.uid)).map_err(failed)?;
        }
        let jail = Jail {
            program: self.program.clone(),
            arguments: MKFS_ARGUMENTS.map(str::to_owned).to_vec(),
            uid: self.uid,
            mount_point: content.empty_directory(),
            largest_file: self.largest_layer.saturating_add(self.largest_layer / 2),
            cpu_seconds: CPU_SECONDS,
        };
        let (reader, writer) = std::io::pipe().map_err(|error| self.broken(format!("no pipe: {error}")))?;
        // a smaller pipe is slower, not wrong: the size is capped for users without privileges
        let _ = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
        let mut command = jail.command(&self.launcher).map_err(|error| self.broken(error.to_string()))?;
        command
            .stdin(Stdio::from(reader))
            .stdout(Stdio::from(incoming.file.try_clone().map_err(failed)?))
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| self.broken(format!("cannot be started: {error}")))?;
        Ok((child, writer))
    }

    /// Whether the converter did its work. Its exit status alone does not tell: mkfs.erofs 1.8 goes on after a failed write
    /// and may then exit with 0, so anything it says counts.
    fn judge(
        &self,
        content: &Content,
        diff_id: Digest,
        status: ExitStatus,
        complaints: &str,
    ) -> Result<(), ImageError> {
        if status.success() && complaints.is_empty() {
            return Ok(());
        }
        if status.code() == Some(NOT_JAILED) {
            return Err(self.broken(format!("its jail cannot be closed: {complaints}")));
        }
        let space = nix::sys::statvfs::statvfs(content.root());
        if space.is_ok_and(|space| space.blocks_available() * space.fragment_size() < FULL) {
            return Err(ImageError::DiskFull { directory: content.root().to_owned() });
        }
        let said = if complaints.is_empty() { "said nothing" } else { complaints };
        Err(ImageError::BadLayer {
            layer: diff_id,
            reason: format!("mkfs.erofs ended with {status}: {said}"),
        })
    }

    fn broken(&self, reason: String) -> ImageError {
        ImageError::Converter { program: self.program.clone(), reason }
    }
}

fn pump_error(layer: Digest, error: PumpError) -> ImageError {
    match error {
        PumpError::TooLarge { limit } => {
            let what = format!("uncompressed layer {layer}");
            ImageError::TooLarge { what, limit, key: "image.max_layer_mib" }
        }
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
