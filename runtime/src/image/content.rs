//! Content on disk, by digest, below one directory:
//!
//! ```text
//! blobs/HEX          manifests, indexes and configurations, as the registry sent them
//! layers/HEX.erofs   layers as EROFS file systems, by chain id
//! incoming/          what is being written or removed; emptied at the start
//! jail/              empty: where the root of a layer's converter is mounted, each in its own mount namespace
//! ```
//!
//! A file in `blobs` or `layers` is whole and on disk, or not there: it is written in `incoming` and renamed. What
//! refers to it is `records`' and `mod`'s business.

use super::digest::Digest;
use super::error::ImageError;
use crate::lock::lock;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// The store of content.
#[derive(Debug)]
pub struct Content {
    root: PathBuf,
    next: AtomicU64,
    /// Files in `incoming` that are out of sight and still to be removed.
    condemned: Mutex<Vec<PathBuf>>,
    /// Looks at the file system of a directory.
    space: fn(&Path) -> io::Result<Space>,
    /// Removes a file. The kernel frees all its blocks meanwhile, which takes seconds for a large one.
    unlink: fn(&Path) -> io::Result<()>,
}

/// Size of a file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// All of it; 0 where it does not tell.
    pub whole: u64,
    /// What can be written to.
    pub free: u64,
}

/// A file that is being written.
#[derive(Debug)]
pub struct Incoming {
    /// Where it is.
    pub path: PathBuf,
    /// Open for reading and writing.
    pub file: File,
}

/// What the store takes of its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Content {
    /// Opens the store, makes it where it is missing, and removes what a killed daemon left half done.
    ///
    /// # Errors
    /// A directory that cannot be made or emptied.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        for name in ["blobs", "layers", "incoming", "jail"] {
            let path = root.join(name);
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|error| ImageError::io(&path, error))?;
        }
        let (next, condemned) = (AtomicU64::new(0), Mutex::default());
        let unlink = |path: &Path| fs::remove_file(path);
        let content = Self { root: root.to_owned(), next, condemned, space, unlink };
        let incoming = root.join("incoming");
        for path in files(&incoming)? {
            content.remove(&path)?;
        }
        Ok(content)
    }

    /// Believes `space` of its file system.
    #[cfg(test)]
    pub fn pretend(&mut self, space: fn(&Path) -> io::Result<Space>) {
        self.space = space;
    }

    /// Removes files by `unlink`.
    #[cfg(test)]
    pub fn pretend_to_remove(&mut self, unlink: fn(&Path) -> io::Result<()>) {
        self.unlink = unlink;
    }

    /// The directory of all this.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// An empty directory that never holds anything.
    pub fn empty_directory(&self) -> PathBuf {
        self.root.join("jail")
    }

    /// Path of a layer, whether it is there or not.
    pub fn layer_path(&self, chain_id: &Digest) -> PathBuf {
        self.root.join("layers").join(format!("{}.erofs", chain_id.hex()))
    }

    /// Size in bytes of a layer's file; `None` where it is not there.
    ///
    /// # Errors
    /// A file that cannot be looked at.
    pub fn layer_size(&self, chain_id: &Digest) -> Result<Option<u64>, ImageError> {
        let path = self.layer_path(chain_id);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io(&path, error)),
        }
    }

    /// Reads a blob and checks it: it may have been altered since.
    ///
    /// # Errors
    /// [`ImageError::Io`] where it is not there, [`ImageError::Corrupt`] where it is not what its name says.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        let bytes = fs::read(&path).map_err(|error| ImageError::io(&path, error))?;
        match Digest::of(&bytes) {
            got if got == *digest => Ok(bytes),
            got => Err(ImageError::Corrupt { what: path.display().to_string(), expected: *digest, got }),
        }
    }

    /// Whether a blob is there.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Writes a blob.
    ///
    /// # Errors
    /// Nothing is left of it after any of them.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        if self.has_blob(digest) {
            return Ok(());
        }
        let mut incoming = self.incoming()?;
        let written = incoming.file.write_all(bytes).map_err(|error| ImageError::io(&incoming.path, error));
        let placed = written.and_then(|()| place(&incoming, &path));
        if placed.is_err() {
            self.remove(&incoming.path)?;
        }
        placed
    }

    /// A new file to write content to.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn incoming(&self) -> Result<Incoming, ImageError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("incoming").join(number.to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| ImageError::io(&path, error))?;
        Ok(Incoming { path, file })
    }

    /// Checks that so many bytes can be written, and `reserve` bytes stay free after that: a tenth of the file system, where
    /// that is less.
    ///
    /// # Errors
    /// [`ImageError::DiskReserve`]; a file system that cannot be looked at.
    pub fn check_room(&self, wanted: u64, reserve: u64) -> Result<(), ImageError> {
        let Space { whole, free } =
            (self.space)(&self.root).map_err(|error| ImageError::io(&self.root, error))?;
        let reserve = reserve.min(whole / 10);
        // a file system that does not tell its size has no bounds to keep
        if whole == 0 || free >= reserve.saturating_add(wanted) {
            return Ok(());
        }
        Err(ImageError::DiskReserve { directory: self.root.clone(), reserve_mib: reserve >> 20 })
    }

    /// Makes a written file the layer `chain_id`: from here on it is read-only, root's, and survives a crash of the machine.
    /// Where the layer is there already, as another pull made it meanwhile, that one stays.
    ///
    /// # Errors
    /// The file stays incoming.
    pub fn adopt_layer(&self, incoming: &Incoming, chain_id: &Digest) -> Result<(), ImageError> {
        let failed = |error| ImageError::io(&incoming.path, error);
        if self.layer_size(chain_id)?.is_some() {
            return self.remove(&incoming.path);
        }
        if nix::unistd::geteuid().is_root() {
            chown(&incoming.path, Some(0), Some(0)).map_err(failed)?;
        }
        incoming.file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed)?;
        place(incoming, &self.layer_path(chain_id))
    }

    /// The files of all blobs and layers.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn kept(&self) -> Result<Vec<PathBuf>, ImageError> {
        let mut found = files(&self.root.join("blobs"))?;
        found.extend(files(&self.root.join("layers"))?);
        Ok(found)
    }

    /// Takes away all of `found` that is not `live`: the files are out of sight when this returns. Their
    /// space is freed by [`Self::remove_condemned`], for callers who hold a lock now and not then.
    ///
    /// # Errors
    /// A file that cannot be moved; the others are out of sight all the same.
    pub fn condemn(&self, found: Vec<PathBuf>, live: impl Fn(&Digest) -> bool) -> Result<(), ImageError> {
        let mut outcome = Ok(());
        for path in found {
            let digest = path.file_stem().and_then(|stem| Digest::from_hex(stem.to_str()?));
            if digest.is_some_and(|digest| live(&digest)) {
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let away = self.root.join("incoming").join(number.to_string());
            match fs::rename(&path, &away) {
                Ok(()) => self.condemned().push(away),
                // another call has taken it away since it was found
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => outcome = outcome.and(Err(ImageError::io(&path, error))),
            }
        }
        outcome
    }

    /// Removes what was condemned, also by earlier calls that could not.
    ///
    /// # Errors
    /// The first file that stays; the next call tries it again.
    pub fn remove_condemned(&self) -> Result<(), ImageError> {
        let condemned = std::mem::take(&mut *self.condemned());
        let mut outcome = Ok(());
        for path in condemned {
            if let Err(error) = self.remove(&path) {
                self.condemned().push(path);
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// Removes a file, which blocks. One that is not there is no error.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, path: &Path) -> Result<(), ImageError> {
        match (self.unlink)(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io(path, error)),
            _ => Ok(()),
        }
    }

    fn condemned(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        lock(&self.condemned)
    }

    /// What is taken of the file system.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        fn add(directory: &Path, usage: &mut Usage) -> io::Result<()> {
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let metadata = match entry.metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata?,
                };
                usage.bytes += metadata.blocks() * 512;
                usage.inodes += 1;
                if metadata.is_dir() {
                    add(&entry.path(), usage)?;
                }
            }
            Ok(())
        }
        let mut usage = Usage { bytes: 0, inodes: 1 };
        add(&self.root, &mut usage).map_err(|error| ImageError::io(&self.root, error))?;
        Ok(usage)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }
}

fn space(directory: &Path) -> io::Result<Space> {
    let space = nix::sys::statvfs::statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.fragment_size());
    Ok(Space { whole: bytes(space.blocks()), free: bytes(space.blocks_available()) })
}

/// Puts a written file in its place so that it is there, whole, after a crash of the machine too.
fn place(incoming: &Incoming, path: &Path) -> Result<(), ImageError> {
    let failed = |error| ImageError::io(path, error);
    incoming.file.sync_all().map_err(failed)?;
    fs::rename(&incoming.path, path).map_err(failed)?;
    let directory = path.parent().expect("every place is a file in a directory of the store");
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = |error| ImageError::io(directory, error);
    let entries = fs::read_dir(directory).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Content) {
        let directory = tempfile::tempdir().unwrap();
        let content = Content::open(&directory.path().join("images")).unwrap();
        (directory, content)
    }

    fn layer(content: &Content, bytes: &[u8]) -> Digest {
        let mut incoming = content.incoming().unwrap();
        incoming.file.write_all(bytes).unwrap();
        content.adopt_layer(&incoming, &Digest::of(bytes)).unwrap();
        Digest::of(bytes)
    }

    #[test]
    fn half_written_files_are_gone_after_a_restart_and_whole_ones_stay() {
        let (_directory, content) = store();
        let kept = layer(&content, b"layer");
        let half = content.incoming().unwrap();
        let content = Content::open(content.root()).unwrap();
        assert!(!half.path.exists());
        assert_eq!(content.layer_size(&kept).unwrap(), Some(5));
        assert_eq!(content.layer_size(&Digest::of(b"other")).unwrap(), None);
    }

    #[test]
    fn altered_blob_is_found_out() {
        let (_directory, content) = store();
        let digest = Digest::of(b"manifest");
        content.put_blob(&digest, b"manifest").unwrap();
        assert_eq!(content.read_blob(&digest).unwrap(), b"manifest");
        fs::write(content.blob_path(&digest), b"munifest").unwrap();
        assert!(matches!(content.read_blob(&digest), Err(ImageError::Corrupt { .. })));
    }

    #[test]
    fn condemned_files_are_out_of_sight_and_open_ones_stay_readable() {
        let (_directory, content) = store();
        let (dead, alive) = (layer(&content, b"dead"), layer(&content, b"alive"));
        let open = File::open(content.layer_path(&dead)).unwrap();
        content.condemn(content.kept().unwrap(), |digest| *digest == alive).unwrap();
        assert_eq!((content.condemned().len(), content.layer_size(&dead).unwrap()), (1, None));
        content.remove_condemned().unwrap();
        assert_eq!(open.metadata().unwrap().len(), 4);
        assert_eq!(content.layer_size(&alive).unwrap(), Some(5));
        assert_eq!(files(&content.root().join("incoming")).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn file_that_cannot_be_removed_keeps_no_other_and_is_tried_again() {
        let (_directory, content) = store();
        for name in ["first", "second", "third"] {
            layer(&content, name.as_bytes());
        }
        content.condemn(content.kept().unwrap(), |_| false).unwrap();
        // A directory cannot be removed as a file.
        let stuck = content.condemned()[0].clone();
        fs::remove_file(&stuck).unwrap();
        fs::create_dir(&stuck).unwrap();
        assert!(content.remove_condemned().is_err());
        assert_eq!(files(&content.root().join("incoming")).unwrap(), std::slice::from_ref(&stuck));
        fs::remove_dir(&stuck).unwrap();
        fs::write(&stuck, "").unwrap();
        content.remove_condemned().unwrap();
        assert!(!stuck.exists());
    }

    #[test]
    fn reserve_of_the_disk_is_kept_and_is_never_most_of_a_small_one() {
        let (_directory, content) = store();
        let space = nix::sys::statvfs::statvfs(content.root()).unwrap();
        let whole = space.blocks() * space.fragment_size();
        let free = space.blocks_available() * space.fragment_size();
        content.check_room(free / 2, 0).unwrap();
        let refused = content.check_room(whole, u64::MAX).unwrap_err();
        let tenth = (whole / 10) >> 20;
        assert!(
            matches!(refused, ImageError::DiskReserve { reserve_mib, .. } if reserve_mib == tenth),
            "{refused}"
        );
        assert!(refused.to_string().contains("image.disk_reserve_mib"), "{refused}");
    }

    #[test]
    fn layer_that_another_pull_has_made_meanwhile_stays() {
        let (_directory, content) = store();
        let first = layer(&content, b"layer");
        let open = File::open(content.layer_path(&first)).unwrap().metadata().unwrap().ino();
        layer(&content, b"layer");
        assert_eq!(fs::metadata(content.layer_path(&first)).unwrap().ino(), open);
        assert_eq!(files(&content.root().join("incoming")).unwrap().len(), 0);
    }

    #[test]
    fn usage_counts_what_is_allocated() {
        let (_directory, content) = store();
        let empty = content.usage().unwrap();
        layer(&content, &[1; 100_000]);
        let full = content.usage().unwrap();
        assert!(full.bytes >= empty.bytes + 100_000, "{full:?}");
        assert_eq!(full.inodes, empty.inodes + 1);
    }
}
