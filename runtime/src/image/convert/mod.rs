//! Makes a layer's archive an EROFS file system, with the meaning that Go's `archive/tar` and containerd's `archive.Apply`
//! give it.
//!
//! ```text
//! tar ---> entries ---> walk: where does it stand? ---> tree: names of this layer
//!             |              \--- lower: layers below, where the archive refers to them
//!             \---> erofs::Writer: content at once        |
//!                                        finish: directories, whiteouts, links <---/
//! ```
//!
//! Content is written as it comes, so memory is bounded by the names. What the archive leaves open is decided by the layers
//! below: mode and owner of directories that it does not list, links on its paths, files that its hard links name. So the
//! result depends on them, and layers are kept by their chain.
//! Called by `worker`, in the jail, and by tests. It opens nothing: archive, output and lower layers come open.

mod error;
mod finish;
mod lower;
mod tree;
mod walk;

pub use error::{ConvertError, Fault};

use super::erofs::{LONGEST_NAME, LONGEST_TARGET, Metadata, WriteError, Writer, encode_device};
use super::overlay::{Found, Node, Overlay};
use super::tar::{Archive, Entry, Kind};
use error::shown;
use lower::{Lower, is_kept};
use std::fs::File;
use std::io::{self, Read};
use tree::{Child, DirectoryId, Tree};
use walk::{Missing, components};

/// What a name begins with that hides another (image-spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";

/// Names of aufs itself, and the one among them that makes a directory opaque.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Bounds of one conversion.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most bytes of the file system.
    pub output: u64,
    /// Most bytes of memory for names.
    pub names: usize,
}

/// A layer on its way from an archive to a file system.
pub(super) struct Conversion<'a> {
    tree: Tree,
    lower: Lower<'a>,
    writer: Writer,
    /// The root's metadata, where the archive has an entry for it.
    root: Option<Metadata>,
}

/// Reads the archive `source` to its end and writes it as a file system to `output`, which is empty. `lower` waits for the
/// layers below, the topmost first; it is called once at most.
///
/// # Errors
/// Nothing of `output` is of use after any of them.
pub fn convert(
    source: impl Read,
    output: File,
    lower: impl FnOnce() -> io::Result<Overlay>,
    limits: Limits,
) -> Result<(), ConvertError> {
    let mut conversion = Conversion {
        tree: Tree::new(limits.names),
        lower: Lower::new(lower),
        writer: Writer::new(output, limits.output),
        root: None,
    };
    let mut archive = Archive::new(source);
    while let Some(entry) = archive.next()? {
        conversion.entry(&entry, &mut archive)?;
    }
    archive.finish()?;
    conversion.finish()
}

impl Conversion<'_> {
    fn entry(&mut self, entry: &Entry, archive: &mut Archive<impl Read>) -> Result<(), ConvertError> {
        let fault = |fault| ConvertError::entry(&entry.name, fault);
        if let Kind::Other(kind) = entry.kind {
            // a global header says nothing about any file
            return if kind == b'g' { Ok(()) } else { Err(fault(Fault::UnknownKind(kind.into()))) };
        }
        let path = components(&entry.name);
        let Some((name, parents)) = path.split_last() else {
            return self.root_entry(entry);
        };
        let of_aufs = |part: &&[u8]| part.starts_with(AUFS);
        if parents.iter().any(of_aufs) || (of_aufs(name) && *name != OPAQUE) {
            return Ok(());
        }
        // a whiteout is longer than the name that it hides
        if name.strip_prefix(WHITEOUT).unwrap_or(name).len() > LONGEST_NAME {
            return Err(fault(Fault::NameTooLong));
        }
        let parent = self.walk(&entry.name, parents, Missing::Make)?;
        let parent = self.make(parent.expect("what is missing is made"))?;
        match name.strip_prefix(WHITEOUT) {
            _ if *name == OPAQUE => {
                self.tree.directory_mut(parent).opaque = true;
                Ok(())
            }
            Some(b"" | b"." | b"..") => Err(fault(Fault::BadWhiteout)),
            Some(hidden) => self.tree.white_out(parent, hidden),
            None => self.file(entry, archive, parent, name),
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), ConvertError> {
        // anything else under this name is passed over, as by containerd
        if entry.kind == Kind::Directory {
            self.root = Some(metadata(entry)?);
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<impl Read>,
        parent: DirectoryId,
        name: &[u8],
    ) -> Result<(), ConvertError> {
        let fault = |fault| ConvertError::entry(&entry.name, fault);
        let metadata = metadata(entry)?;
        let mode = metadata.mode;
        let number = match entry.kind {
            Kind::Directory => return self.directory(parent, name, metadata),
            Kind::HardLink => return self.hard_link(entry, metadata, parent, name),
            Kind::SymbolicLink => {
                if entry.link.is_empty() || entry.link.len() > LONGEST_TARGET {
                    return Err(fault(Fault::BadTarget));
                }
                self.writer.symbolic_link(&metadata, &entry.link)?
            }
            Kind::CharacterDevice if entry.device == (0, 0) => {
                // what overlayfs takes for a whiteout is one, wherever it comes from
                self.tree.directory_mut(parent).children.remove(name);
                return self.tree.white_out(parent, name);
            }
            Kind::CharacterDevice | Kind::BlockDevice => {
                let (major, minor) = entry.device;
                if major > 0xfff || minor > 0xf_ffff {
                    return Err(fault(Fault::Device { major, minor }));
                }
                let number = |half| u32::try_from(half).expect("compared above");
                self.writer.special(&metadata, encode_device(number(major), number(minor)))?
            }
            Kind::Fifo => self.writer.special(&metadata, 0)?,
            Kind::File | Kind::Other(_) => {
                self.writer.file(&metadata, entry.size, |buffer| read_exactly(archive, buffer))?
            }
        };
        let inode = self.tree.add_inode(number, mode)?;
        let child = match entry.kind {
            Kind::SymbolicLink => Child::Link { inode, target: entry.link.clone().into() },
            _ => Child::Other(inode),
        };
        self.tree.put(parent, name, child)
    }

    fn directory(
        &mut self,
        parent: DirectoryId,
        name: &[u8],
        metadata: Metadata,
    ) -> Result<(), ConvertError> {
        match self.tree.directory(parent).children.get(name) {
            Some(&Child::Directory(id)) => self.tree.set_metadata(id, metadata)?,
            _ => drop(self.tree.add_directory(parent, name, metadata)?),
        }
        Ok(())
    }

    /// Another name for a file of this layer, or of a lower one, which then becomes one of this layer too, so that both
    /// names are one file.
    fn hard_link(
        &mut self,
        entry: &Entry,
        metadata: Metadata,
        parent: DirectoryId,
        name: &[u8],
    ) -> Result<(), ConvertError> {
        let fault = |fault| ConvertError::entry(&entry.name, fault);
        let target = components(&entry.link);
        let Some((last, parents)) = target.split_last() else {
            return Err(fault(Fault::TargetIsDirectory(shown(&entry.link))));
        };
        let missing = || fault(Fault::NoTarget(shown(&entry.link)));
        let directory = self.walk(&entry.name, parents, Missing::Fail)?.ok_or_else(missing)?;
        let own = directory.own().and_then(|id| self.tree.directory(id).children.get(*last));
        let child = match own {
            Some(Child::Directory(_)) => return Err(fault(Fault::TargetIsDirectory(shown(&entry.link)))),
            Some(child) => child.clone(),
            None => match self.find_below(&directory, last)?.ok_or_else(missing)? {
                Found::Other(node) => {
                    let directory = self.make(directory)?;
                    self.copy_up(directory, last, &node)?
                }
                Found::Directory(_) => return Err(fault(Fault::TargetIsDirectory(shown(&entry.link)))),
            },
        };
        if let Some(inode) = child.inode() {
            // containerd gives the file what its last link says, but for attributes, which are written already
            let inode = self.tree.inodes()[inode];
            let permissions =
                if inode.mode & libc::S_IFMT == libc::S_IFLNK { 0o777 } else { metadata.mode & 0o7777 };
            let mode = inode.mode & libc::S_IFMT | permissions;
            self.writer.change(inode.number, &Metadata { mode, ..metadata })?;
        }
        self.tree.put(parent, name, child)
    }

    /// Copies a file that only lower layers have into this one, with all that belongs to it. Gives the child for its further
    /// names.
    fn copy_up(&mut self, directory: DirectoryId, name: &[u8], node: &Node) -> Result<Child, ConvertError> {
        let metadata = self.lower.metadata(node)?;
        let layer = self.lower.overlay()?.layer(node);
        let inode = &node.inode;
        let child = if inode.is_symlink() {
            let target = layer.read_link(inode)?;
            let number = self.writer.symbolic_link(&metadata, &target)?;
            Child::Link { inode: self.tree.add_inode(number, metadata.mode)?, target: target.into() }
        } else {
            let number = if inode.is_file() {
                let mut done = 0;
                self.writer.file(&metadata, inode.size, |buffer| {
                    let read = layer.read_at(inode, done, buffer)?;
                    done += read as u64;
                    if read == buffer.len() { Ok(()) } else { Err(cut_short()) }
                })?
            } else {
                self.writer.special(&metadata, encode_device(inode.device.0, inode.device.1))?
            };
            Child::Other(self.tree.add_inode(number, metadata.mode)?)
        };
        self.tree.put(directory, name, child.clone())?;
        Ok(child)
    }
}

/// Fills `buffer` with the content of the archive's current entry.
fn read_exactly(archive: &mut Archive<impl Read>, mut buffer: &mut [u8]) -> Result<(), ConvertError> {
    while !buffer.is_empty() {
        let read = archive.read(buffer)?;
        if read == 0 {
            return Err(cut_short());
        }
        buffer = &mut buffer[read..];
    }
    Ok(())
}

/// Content that is shorter than its size said: the readers of archives and images never let that pass themselves.
fn cut_short() -> ConvertError {
    WriteError::Io(io::ErrorKind::UnexpectedEof.into()).into()
}

/// What the entry says of its inode.
fn metadata(entry: &Entry) -> Result<Metadata, ConvertError> {
    // the last number means "unchanged" to chown(2)
    let id = |id: i64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    let (Some(uid), Some(gid)) = (id(entry.uid), id(entry.gid)) else {
        let fault = Fault::Owner { uid: entry.uid, gid: entry.gid };
        return Err(ConvertError::entry(&entry.name, fault));
    };
    let kind = match entry.kind {
        Kind::Directory => libc::S_IFDIR,
        Kind::SymbolicLink => libc::S_IFLNK,
        Kind::CharacterDevice => libc::S_IFCHR,
        Kind::BlockDevice => libc::S_IFBLK,
        Kind::Fifo => libc::S_IFIFO,
        Kind::File | Kind::HardLink | Kind::Other(_) => libc::S_IFREG,
    };
    let permissions = if entry.kind == Kind::SymbolicLink { 0o777 } else { entry.mode & 0o7777 };
    let mode = kind | permissions;
    let mtime = bounded((entry.mtime.seconds, entry.mtime.nanoseconds));
    let attributes =
        entry.attributes.iter().filter(|(name, value)| is_kept(name, value, mode)).cloned().collect();
    Ok(Metadata { mode, uid, gid, mtime, attributes })
}

/// A time that containerd would give a file: 1970 where it lies before that, or is more nanoseconds after it than 63 bits
/// hold (`boundTime` in its `archive`).
fn bounded(time: (i64, u32)) -> (i64, u32) {
    let latest = (i64::MAX / 1_000_000_000, 854_775_807);
    if ((0, 0)..=latest).contains(&time) { time } else { (0, 0) }
}

#[cfg(test)]
mod tests;
