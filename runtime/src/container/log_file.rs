//! The log file of a container: opened below the pod's log directory and nowhere else, appended to, and
//! opened anew when logs are rotated.
//!
//! Called by `create` and `events`, which open it, by `log_writer`, which appends, and for
//! ReopenContainerLog.
//!
//! Others may write to the directory of logs: collectors have it mounted. So the last part of the pod's
//! directory and all below it are opened one by one by descriptor, and no link is followed: the daemon is
//! root, and would write wherever the link leads. Only regular files are written: a FIFO takes no more than
//! its reader does. Where the directories above lead, as from `/var/log` to another disk, is the operator's
//! to say.

use crate::lock::lock;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Time that ReopenContainerLog waits for a disk that hangs.
const REOPENING: Duration = Duration::from_secs(30);

const DIRECTORY: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC);

/// A FIFO without a reader fails at once instead of holding the opening up; regular files do not know
/// `O_NONBLOCK`.
const LOG: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_APPEND)
    .union(OFlag::O_CREAT)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// A log file could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused.
    #[error("log file {path}: cannot {action}: {source}")]
    Io {
        /// The log file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A link, FIFO or device is where the log or a directory of it belongs.
    #[error("log file {path}: {part} is not a {wanted}, and links are not followed there: remove it")]
    Foreign {
        /// The log file.
        path: PathBuf,
        /// The part of the path that is something else.
        part: PathBuf,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// The disk hangs.
    #[error(
        "log file {0}: not reopened within {REOPENING:?}, as its disk takes no writes; it is reopened when it does"
    )]
    Slow(PathBuf),
}

/// Where a container's log is: the pod's log directory, and a place below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedPath")]
pub struct LogPath {
    directory: PathBuf,
    below: PathBuf,
}

/// A [`LogPath`] of a record, which may lead anywhere.
#[derive(Deserialize)]
struct UncheckedPath {
    directory: PathBuf,
    below: PathBuf,
}

impl TryFrom<UncheckedPath> for LogPath {
    type Error = String;

    fn try_from(path: UncheckedPath) -> Result<Self, String> {
        let reason = || format!("log path {} leaves the pod's log directory", path.below.display());
        Self::new(&path.directory, &path.below).ok_or_else(reason)
    }
}

impl LogPath {
    /// `None` where `below` is not a plain relative path: it would leave the directory.
    pub fn new(directory: &Path, below: &Path) -> Option<Self> {
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        let named = below.file_name().is_some();
        // Without a slash at the end, which would have a link followed.
        let directory = directory.components().collect();
        (plain && named).then(|| Self { directory, below: below.to_owned() })
    }

    /// From the whole path, as records of version 1 have it, and the part of it that is below the pod's log
    /// directory.
    pub fn of_record(path: &Path, below: &Path) -> Option<Self> {
        let directory = path.ancestors().nth(below.components().count())?;
        Self::new(directory, below).filter(|found| found.path() == path)
    }

    /// The whole path.
    pub fn path(&self) -> PathBuf {
        self.directory.join(&self.below)
    }

    /// Opens the file for appending, and makes it and its directories where they are missing.
    fn open(&self) -> Result<File, LogError> {
        fs::create_dir_all(&self.directory).map_err(|source| self.failed("make its directory", source))?;
        let mut at = self.directory.clone();
        let opened = open(&self.directory, DIRECTORY, Mode::empty());
        let mut directory = opened.map_err(|errno| self.refused(&at, "directory", errno))?;
        for part in self.below.parent().into_iter().flat_map(Path::components) {
            at.push(part);
            directory = open_directory(&directory, part.as_os_str().as_ref())
                .map_err(|errno| self.refused(&at, "directory", errno))?;
        }
        let at = self.path();
        let name = self.below.file_name().unwrap_or_default();
        let opened = openat(&directory, name, LOG, Mode::from_bits_truncate(0o640));
        let file = File::from(opened.map_err(|errno| self.refused(&at, "regular file", errno))?);
        let metadata = file.metadata().map_err(|source| self.failed("look at it", source))?;
        if metadata.is_file() { Ok(file) } else { Err(self.foreign(&at, "regular file")) }
    }

    /// The error of an opening at a part of the path.
    fn refused(&self, part: &Path, wanted: &'static str, errno: Errno) -> LogError {
        match errno {
            // A link; something that is no directory; a FIFO without a reader; a directory.
            Errno::ELOOP | Errno::ENOTDIR | Errno::ENXIO | Errno::EISDIR => self.foreign(part, wanted),
            _ => self.failed("open it", errno.into()),
        }
    }

    fn foreign(&self, part: &Path, wanted: &'static str) -> LogError {
        LogError::Foreign { path: self.path(), part: part.to_owned(), wanted }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> LogError {
        LogError::Io { path: self.path(), action, source }
    }
}

/// Opens a directory in another one, and makes it where it is missing.
fn open_directory(parent: &OwnedFd, name: &Path) -> nix::Result<OwnedFd> {
    match openat(parent, name, DIRECTORY, Mode::empty()) {
        Err(Errno::ENOENT) => {}
        opened => return opened,
    }
    match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => openat(parent, name, DIRECTORY, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

/// The open log file of one container, which its streams share. Its methods may block as long as the disk
/// does.
#[derive(Debug)]
pub struct LogFile {
    path: LogPath,
    file: Mutex<File>,
    /// Held by the job that opens the file anew: however often that is asked for, one job waits for a disk
    /// that hangs.
    reopening: Arc<tokio::sync::Mutex<()>>,
}

impl LogFile {
    /// Opens the file for appending, and makes it where it is missing.
    ///
    /// # Errors
    /// Where it cannot be opened, or something else than a regular file is there.
    pub fn open(path: LogPath) -> Result<Self, LogError> {
        let file = path.open()?;
        Ok(Self::of(path, file))
    }

    fn of(path: LogPath, file: File) -> Self {
        Self { path, file: Mutex::new(file), reopening: Arc::default() }
    }

    /// A log that goes to any file, such as a pipe that a test reads as slowly as it likes.
    #[cfg(test)]
    pub fn for_test(file: impl Into<File>) -> Arc<Self> {
        let path = LogPath::new(Path::new("/dev/null/none"), Path::new("0.log")).expect("a plain path");
        Arc::new(Self::of(path, file.into()))
    }

    /// Opens the path anew, after the file was renamed by whoever rotates logs. When this returns, nothing is
    /// written to the old file any more.
    ///
    /// # Errors
    /// The old file goes on being written.
    pub async fn reopen(self: &Arc<Self>) -> Result<(), LogError> {
        self.reopen_within(REOPENING).await
    }

    async fn reopen_within(self: &Arc<Self>, limit: Duration) -> Result<(), LogError> {
        let log = Arc::clone(self);
        let reopened = async move {
            let turn = Arc::clone(&log.reopening).lock_owned().await;
            // It waits for a write that is under way, so it must not run on a thread that serves calls.
            let job = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                let mut file = lock(&log.file);
                *file = log.path.open()?;
                Ok::<_, LogError>(())
            });
            job.await
        };
        match tokio::time::timeout(limit, reopened).await {
            Err(_) => Err(LogError::Slow(self.path.path())),
            Ok(Err(join)) => Err(self.path.failed("open it anew", io::Error::other(join))),
            Ok(Ok(outcome)) => outcome,
        }
    }

    /// Appends records that [`Lines`](super::log::Lines) made.
    ///
    /// # Errors
    /// Where the file takes no more: a full disk, for instance.
    pub fn append(&self, records: &[u8]) -> Result<(), LogError> {
        let mut file = lock(&self.file);
        file.write_all(records).map_err(|source| self.path.failed("write to it", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{OpenOptionsExt, symlink};
    use tempfile::TempDir;

    /// A pod's log directory, and the path of a log two levels below it.
    fn pod() -> (TempDir, LogPath) {
        let node = tempfile::tempdir().unwrap();
        fs::create_dir(node.path().join("pod")).unwrap();
        let path = LogPath::new(&node.path().join("pod/"), Path::new("container/0.log")).unwrap();
        (node, path)
    }

    fn refusal(path: &LogPath) -> String {
        match LogFile::open(path.clone()) {
            Err(error @ LogError::Foreign { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_directories_and_file_are_made() {
        let (node, path) = pod();
        LogFile::open(path.clone()).unwrap().append(b"one\n").unwrap();
        LogFile::open(path).unwrap().append(b"two\n").unwrap();
        assert_eq!(fs::read(node.path().join("pod/container/0.log")).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn log_that_is_a_link_is_refused_and_its_target_is_not_touched() {
        let (node, path) = pod();
        let (log, secret) = (node.path().join("pod/container/0.log"), node.path().join("secret"));
        fs::create_dir(log.parent().unwrap()).unwrap();
        for target in [&secret, &node.path().join("made-by-nobody")] {
            fs::write(&secret, "untouched").unwrap();
            symlink(target, &log).unwrap();
            let refusal = refusal(&path);
            assert!(refusal.contains("0.log is not a regular file"), "{refusal}");
            fs::remove_file(&log).unwrap();
        }
        assert_eq!(fs::read(secret).unwrap(), b"untouched");
        assert!(!node.path().join("made-by-nobody").exists());
    }

    #[test]
    fn directory_that_is_a_link_is_refused_at_every_level() {
        let (node, path) = pod();
        let elsewhere = node.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, node.path().join("pod/container")).unwrap();
        let inner = refusal(&path);
        assert!(inner.contains("pod/container is not a directory"), "{inner}");
        fs::remove_dir_all(node.path().join("pod")).unwrap();
        symlink(&elsewhere, node.path().join("pod")).unwrap();
        let outer = refusal(&path);
        assert!(outer.contains("pod is not a directory"), "{outer}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "nothing was made where the links lead");
    }

    #[test]
    fn links_above_the_pods_directory_are_the_operators() {
        let node = tempfile::tempdir().unwrap();
        fs::create_dir(node.path().join("disk")).unwrap();
        symlink(node.path().join("disk"), node.path().join("logs")).unwrap();
        let path = LogPath::new(&node.path().join("logs/pod"), Path::new("0.log")).unwrap();
        LogFile::open(path).unwrap();
        assert!(node.path().join("disk/pod/0.log").exists());
    }

    #[test]
    fn fifos_and_directories_are_refused_whether_somebody_reads_or_not() {
        let (node, path) = pod();
        let log = node.path().join("pod/container/0.log");
        fs::create_dir_all(&log).unwrap();
        assert!(refusal(&path).contains("not a regular file"));
        fs::remove_dir(&log).unwrap();
        nix::unistd::mkfifo(&log, Mode::from_bits_truncate(0o600)).unwrap();
        assert!(refusal(&path).contains("not a regular file"));
        let _reader = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&log).unwrap();
        assert!(refusal(&path).contains("not a regular file"));
    }

    #[test]
    fn paths_that_leave_the_directory_are_none() {
        for below in ["", ".", "../x", "a/../../x", "/etc/passwd"] {
            assert_eq!(LogPath::new(Path::new("/logs"), Path::new(below)), None, "{below:?}");
        }
    }

    #[test]
    fn path_of_a_record_that_leaves_the_directory_is_refused() {
        let path = LogPath::new(Path::new("/logs/pod"), Path::new("c/0.log")).unwrap();
        let written = serde_json::to_string(&path).unwrap();
        assert_eq!(serde_json::from_str::<LogPath>(&written).unwrap(), path);
        assert!(serde_json::from_str::<LogPath>(&written.replace("c/0.log", "../0.log")).is_err());
    }

    #[test]
    fn path_of_a_record_is_taken_apart_again() {
        let path = LogPath::new(Path::new("/logs/pod"), Path::new("c/0.log")).unwrap();
        assert_eq!(LogPath::of_record(&path.path(), Path::new("c/0.log")), Some(path.clone()));
        assert_eq!(LogPath::of_record(&path.path(), Path::new("d/0.log")), None);
        assert_eq!(LogPath::of_record(Path::new("0.log"), Path::new("c/0.log")), None);
    }

    #[tokio::test]
    async fn reopened_file_is_a_new_one() {
        let (node, path) = pod();
        let (log, rotated) = (path.path(), node.path().join("pod/container/0.log.old"));
        let file = Arc::new(LogFile::open(path).unwrap());
        file.append(b"one\n").unwrap();
        fs::rename(&log, &rotated).unwrap();
        file.reopen().await.unwrap();
        file.append(b"two\n").unwrap();
        assert_eq!(
            (fs::read(&rotated).unwrap(), fs::read(&log).unwrap()),
            (b"one\n".into(), b"two\n".into())
        );
        // What cannot be opened leaves the file that is.
        fs::rename(&log, &rotated).unwrap();
        symlink("/dev/null", &log).unwrap();
        assert!(matches!(file.reopen().await, Err(LogError::Foreign { .. })));
        file.append(b"three\n").unwrap();
        assert_eq!(fs::read(&rotated).unwrap(), b"two\nthree\n");
    }

    #[tokio::test]
    async fn reopening_on_a_disk_that_hangs_gives_up_and_blocks_no_call() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = LogFile::for_test(OwnedFd::from(writer));
        let stuck = Arc::clone(&log);
        let stuck = std::thread::spawn(move || stuck.append(&[b'x'; 1 << 20]));
        // The write holds the file when the pipe has its first byte.
        io::Read::read_exact(&mut reader, &mut [0]).unwrap();
        for _ in 0..3 {
            let outcome = log.reopen_within(Duration::from_millis(20)).await;
            assert!(matches!(outcome, Err(LogError::Slow(_))), "{outcome:?}");
        }
        drop(reader);
        stuck.join().unwrap().unwrap_err();
    }
}
