//! Scratch disks: the file systems that hold what a pod's containers write. One sparse ext4 image is made per size; each
//! pod gets a copy of its few data blocks, in a file that has no name and so ends with the VMM that holds it,
//! and with whoever keeps the [`ScratchDisk`].
//!
//! Called by `sandbox`.

use crate::private;
use nix::unistd::{Whence, lseek};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;
use tokio::sync::Mutex;

/// Makes file systems; of e2fsprogs 1.47 or later.
pub const MKE2FS: &str = "mke2fs";

/// What the name of a pod's disk begins with, in the moment in which it has one.
const NAMED: &str = "pod-";

/// Most of its error output that is quoted, bytes.
const MAX_QUOTE: usize = 500;

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A file.
    #[error("scratch disk {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program cannot be run.
    #[error("{MKE2FS} cannot be run: {0}: install e2fsprogs")]
    NoProgram(io::Error),
    /// The program failed.
    #[error("{MKE2FS} failed to make {path}: {said}")]
    Failed {
        /// The image.
        path: PathBuf,
        /// The end of its error output.
        said: String,
    },
}

/// Makes scratch disks below one directory.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
    /// Only one template is made at a time.
    making: Mutex<()>,
}

/// A scratch disk. Kept until its VM has ended: whoever closes a file without a name as the last one waits
/// until the file system has freed all of it, which a VMM could have the daemon do, by sending it the
/// descriptor. So it is closed on a thread of its own.
#[derive(Debug)]
pub struct ScratchDisk {
    file: Option<File>,
    /// Its length in bytes.
    pub length: u64,
}

impl ScratchDisk {
    fn new(file: File, length: u64) -> Self {
        Self { file: Some(file), length }
    }

    /// Its file, open to read and write, without a name.
    ///
    /// # Errors
    /// Where there are too many descriptors.
    pub fn file(&self) -> io::Result<File> {
        self.file.as_ref().expect("it is taken only when this is dropped").try_clone()
    }
}

impl Drop for ScratchDisk {
    fn drop(&mut self) {
        let file = self.file.take();
        // Where there is no thread, it is closed here.
        let _ = std::thread::Builder::new().name("scratch".into()).stack_size(64 << 10).spawn(|| drop(file));
    }
}

impl Scratch {
    /// Disks below `directory`. What an earlier daemon was killed over has a name still, and goes.
    ///
    /// # Errors
    /// Where the directory cannot be made, or such a file not be removed.
    pub fn new(directory: PathBuf) -> Result<Self, ScratchError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ScratchError::Io { path, source }
        };
        private::directory(&directory).map_err(failed(&directory))?;
        for entry in fs::read_dir(&directory).map_err(failed(&directory))? {
            let entry = entry.map_err(failed(&directory))?;
            if entry.file_name().to_string_lossy().starts_with(NAMED) {
                fs::remove_file(entry.path()).map_err(failed(&entry.path()))?;
            }
        }
        Ok(Self { directory, making: Mutex::new(()) })
    }

    /// A new disk of that size for the pod `id`.
    ///
    /// # Errors
    /// Nothing is left behind.
    pub async fn disk(&self, id: &str, mib: u32) -> Result<ScratchDisk, ScratchError> {
        let template = self.template(mib).await?;
        let path = self.directory.join(format!("{NAMED}{id}"));
        let copied = tokio::task::spawn_blocking(move || {
            let file = copy_sparse(&template, &path);
            // From here on only the descriptor keeps it.
            let removed = fs::remove_file(&path);
            file.and_then(|file| removed.map(|()| file)).map_err(|source| ScratchError::Io { path, source })
        });
        let file = copied.await.expect("copying does not panic")?;
        Ok(ScratchDisk::new(file, u64::from(mib) << 20))
    }

    async fn template(&self, mib: u32) -> Result<PathBuf, ScratchError> {
        let path = self.directory.join(format!("template-{mib}m"));
        let _alone = self.making.lock().await;
        if path.exists() {
            return Ok(path);
        }
        let failed = |source| ScratchError::Io { path: path.clone(), source };
        let new = path.with_extension("new");
        private::new_file(&new).and_then(|file| file.set_len(u64::from(mib) << 20)).map_err(failed)?;
        make_file_system(&new).await?;
        fs::rename(&new, &path).map_err(failed)?;
        Ok(path)
    }
}

/// ext4 without a journal: what it holds ends with the pod. Fresh space reads as zeroes, so nothing is zeroed again, now
/// or later in the guest.
async fn make_file_system(image: &Path) -> Result<(), ScratchError> {
    let made = Command::new(MKE2FS)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-i", "32768", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "assume_storage_prezeroed=1,lazy_itable_init=1,nodiscard"])
        .arg(image)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(ScratchError::NoProgram)?;
    if made.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&made.stderr).trim().chars().take(MAX_QUOTE).collect();
    Err(ScratchError::Failed { path: image.to_owned(), said })
}

/// A copy of the data of `from`, with its holes.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<File> {
    let source = File::open(from)?;
    let target = private::new_file(to)?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let end = i64::try_from(length).map_err(io::Error::other)?;
    let mut position = 0;
    while position < end {
        let data = match lseek(&source, position, Whence::SeekData) {
            Err(nix::errno::Errno::ENXIO) => break,
            other => other?,
        };
        position = lseek(&source, data, Whence::SeekHole)?;
        lseek(&source, data, Whence::SeekSet)?;
        lseek(&target, data, Whence::SeekSet)?;
        let run = u64::try_from(position - data).map_err(io::Error::other)?;
        if io::copy(&mut (&source).take(run), &mut &target)? != run {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn sparse_copy_has_the_data_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for offset in [0u64, 5 << 20, (64 << 20) - 4096] {
            file.seek(SeekFrom::Start(offset)).unwrap();
            file.write_all(&[7; 4096]).unwrap();
        }
        let copy = copy_sparse(&from, &to).unwrap();
        let metadata = copy.metadata().unwrap();
        assert_eq!(metadata.len(), 64 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
        let mut page = [0; 4096];
        copy.read_exact_at(&mut page, 5 << 20).unwrap();
        assert_eq!(page, [7; 4096]);
        copy.read_exact_at(&mut page, 6 << 20).unwrap();
        assert_eq!(page, [0; 4096]);
    }

    #[tokio::test]
    async fn disk_is_an_ext4_without_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(directory.path().join("scratch")).unwrap();
        let disk = match scratch.disk("a", 1024).await {
            Err(ScratchError::NoProgram(_)) => {
                eprintln!("skipped: no {MKE2FS} on this machine");
                return;
            }
            other => other.unwrap(),
        };
        let file = disk.file().unwrap();
        assert_eq!(file.metadata().unwrap().len(), disk.length);
        // The ext4 magic of the superblock.
        let mut magic = [0; 2];
        file.read_exact_at(&mut magic, 1024 + 56).unwrap();
        assert_eq!(magic, [0x53, 0xef]);
        assert!(file.metadata().unwrap().blocks() * 512 < 4 << 20);
        let left: Vec<_> = fs::read_dir(directory.path().join("scratch")).unwrap().collect();
        assert_eq!(left.len(), 1, "only the template: {left:?}");
    }

    #[test]
    fn disk_that_a_killed_daemon_left_with_its_name_goes_and_templates_stay() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["pod-1", "template-1024m"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        Scratch::new(directory.path().to_owned()).unwrap();
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["template-1024m"]);
    }
}
