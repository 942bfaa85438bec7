//! The reference: what a container's root is after layers were applied one after the other, entry by entry, to a file
//! system in memory. It knows nothing of EROFS and overlayfs; its rules are those of containerd's `archive.Apply`.
//!
//! ```text
//! Root after layers 0..n-1 ---+--> Layer: resolve, place, hide, link ---> Root after layers 0..n
//! archive of layer n       ---/
//! ```

use crate::tar::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

pub type Name = Vec<u8>;

const MOST_LINKS: usize = 255;
const LONGEST_NAME: usize = 255;

/// Everything that a container sees of a file, but its names. Names that share one `Rc` are hard links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// The layer that it is stored in.
    pub layer: usize,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub attributes: BTreeMap<Name, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Link(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// What a container sees.
#[derive(Debug, Clone)]
pub enum Tree {
    Directory(Rc<Inode>, BTreeMap<Name, Tree>),
    Other(Rc<Inode>),
}

impl Tree {
    pub fn inode(&self) -> &Rc<Inode> {
        match self {
            Self::Directory(inode, _) | Self::Other(inode) => inode,
        }
    }
}

/// The root where no layer lies below.
fn new_directory(layer: usize) -> Inode {
    let kind = Kind::Directory;
    Inode { layer, kind, mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), attributes: BTreeMap::new() }
}

/// A directory of the layer that is applied.
#[derive(Debug)]
struct Directory {
    inode: Inode,
    children: BTreeMap<Name, Child>,
    /// Names below which nothing of lower layers shows.
    hidden: BTreeSet<Name>,
    /// Nothing of lower layers shows.
    opaque: bool,
}

#[derive(Debug)]
enum Child {
    Directory(Directory),
    Other(Rc<Inode>),
}

impl Directory {
    fn new(inode: Inode) -> Self {
        Self { inode, children: BTreeMap::new(), hidden: BTreeSet::new(), opaque: false }
    }
}

/// What a name shows while the layer is applied.
enum View<'a> {
    Directory(&'a Inode),
    Upper(&'a Rc<Inode>),
    Lower(&'a Rc<Inode>),
}

/// A layer on top of what lower layers show.
pub struct Layer<'a> {
    number: usize,
    lower: Option<&'a Tree>,
    root: Directory,
}

/// Why an entry makes its whole layer unusable.
pub type Refusal = &'static str;

impl<'a> Layer<'a> {
    pub fn new(number: usize, lower: Option<&'a Tree>) -> Self {
        let inode = lower.map_or_else(|| new_directory(number), |tree| (**tree.inode()).clone());
        Self { number, lower, root: Directory::new(Inode { layer: number, ..inode }) }
    }

    /// What a container sees of this layer and those below.
    pub fn finish(self) -> Tree {
        merge(self.root, self.lower)
    }

    pub fn apply(&mut self, entry: &Entry) -> Result<(), Refusal> {
        if entry.kind == b'g' {
            return Ok(());
        }
        let path = clean(&entry.name);
        let Some((name, parents)) = path.split_last() else {
            if is_directory(entry) {
                self.root.inode = self.inode(entry);
            }
            return Ok(());
        };
        let opaque = *name == b".wh..wh..opq";
        let of_aufs = |part: &Name| part.starts_with(b".wh..wh.");
        if parents.iter().any(of_aufs) || (of_aufs(name) && !opaque) {
            return Ok(());
        }
        let hidden = name.strip_prefix(b".wh.");
        if !opaque && hidden.unwrap_or(name).len() > LONGEST_NAME {
            return Err("long name");
        }
        let parent = self.resolve(parents, true)?;
        if opaque {
            self.upper(&parent).opaque = true;
            return Ok(());
        }
        match hidden {
            Some(b"" | b"." | b"..") => Err("whiteout of nothing"),
            Some(hidden) => {
                self.upper(&parent).hidden.insert(hidden.to_vec());
                Ok(())
            }
            None => self.place(entry, &parent, name),
        }
    }

    fn place(&mut self, entry: &Entry, parent: &[Name], name: &Name) -> Result<(), Refusal> {
        if is_directory(entry) {
            let inode = self.inode(entry);
            let parent = self.upper(parent);
            match parent.children.get_mut(name) {
                Some(Child::Directory(directory)) => directory.inode = inode,
                _ => drop(parent.children.insert(name.clone(), Child::Directory(Directory::new(inode)))),
            }
            return Ok(());
        }
        let inode = match entry.kind {
            b'3' if entry.device == (0, 0) => {
                let parent = self.upper(parent);
                parent.children.remove(name);
                parent.hidden.insert(name.clone());
                return Ok(());
            }
            b'1' => self.linked(entry)?,
            _ => Rc::new(self.inode(entry)),
        };
        let parent = self.upper(parent);
        parent.children.insert(name.clone(), Child::Other(inode));
        // what it replaced does not come back, whatever becomes of the name
        parent.hidden.insert(name.clone());
        Ok(())
    }

    /// The file that a hard link names, with what the link says of it.
    fn linked(&mut self, entry: &Entry) -> Result<Rc<Inode>, Refusal> {
        let old = self.target(&entry.link)?;
        let is_link = matches!(old.kind, Kind::Link(_));
        let Inode { mode, uid, gid, mtime, .. } = self.inode(entry);
        let mode = if is_link { 0o777 } else { mode };
        let new = Rc::new(Inode { mode, uid, gid, mtime, ..(*old).clone() });
        replace(&mut self.root, &old, &new);
        Ok(new)
    }

    /// The file that a hard link names, which is one of this layer from then on.
    fn target(&mut self, link: &[u8]) -> Result<Rc<Inode>, Refusal> {
        let path = clean(link);
        let (name, parents) = path.split_last().ok_or("hard link to the root")?;
        let parent = self.resolve(parents, false)?;
        let whole = [&parent[..], std::slice::from_ref(name)].concat();
        let copy = match self.view(&whole) {
            None => return Err("hard link to nothing"),
            Some(View::Directory(_)) => return Err("hard link to a directory"),
            Some(View::Upper(inode)) => return Ok(Rc::clone(inode)),
            Some(View::Lower(inode)) => Rc::new(Inode { layer: self.number, ..(**inode).clone() }),
        };
        let parent = self.upper(&parent);
        parent.children.insert(name.clone(), Child::Other(Rc::clone(&copy)));
        parent.hidden.insert(name.clone());
        Ok(copy)
    }

    /// Follows symbolic links to the directory that `path` names; makes what is missing where `make` is set.
    fn resolve(&mut self, path: &[Name], make: bool) -> Result<Vec<Name>, Refusal> {
        let mut todo: VecDeque<Name> = path.iter().cloned().collect();
        let (mut at, mut links) = (Vec::new(), 0);
        while let Some(name) = todo.pop_front() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                name if name.len() > LONGEST_NAME => return Err("long name"),
                _ => at.push(name),
            }
            match self.view(&at) {
                Some(View::Directory(_)) => {}
                Some(View::Upper(inode) | View::Lower(inode)) if matches!(inode.kind, Kind::Link(_)) => {
                    let Kind::Link(target) = &inode.kind else { unreachable!() };
                    links += 1;
                    if links > MOST_LINKS {
                        return Err("loop of links");
                    }
                    at.pop();
                    if target.first() == Some(&b'/') {
                        at.clear();
                    }
                    target.split(|byte| *byte == b'/').rev().for_each(|part| todo.push_front(part.to_vec()));
                }
                Some(View::Upper(_)) => return Err("file on the path"),
                Some(View::Lower(_)) | None if make => drop(self.upper(&at)),
                Some(View::Lower(_)) | None => return Err("hard link to nothing"),
            }
        }
        Ok(at)
    }

    /// What is at a path without links.
    fn view(&self, path: &[Name]) -> Option<View<'_>> {
        let mut upper = Some(&self.root);
        let mut lower = self.lower.filter(|_| !self.root.opaque);
        let mut found = View::Directory(&self.root.inode);
        for name in path {
            lower = match lower {
                Some(Tree::Directory(_, children))
                    if upper.is_none_or(|upper| !upper.hidden.contains(name)) =>
                {
                    children.get(name)
                }
                _ => None,
            };
            let child = upper.and_then(|upper| upper.children.get(name));
            (upper, found) = match (child, lower) {
                (Some(Child::Directory(directory)), _) => {
                    (Some(directory), View::Directory(&directory.inode))
                }
                (Some(Child::Other(inode)), _) => (None, View::Upper(inode)),
                (None, Some(Tree::Directory(inode, _))) => (None, View::Directory(inode)),
                (None, Some(Tree::Other(inode))) => (None, View::Lower(inode)),
                (None, None) => return None,
            };
            if upper.is_some_and(|upper| upper.opaque) {
                lower = None;
            }
        }
        Some(found)
    }

    /// The directory at a path without links, as one of this layer: those on the way that are not yet are copies of the
    /// lower ones, or new.
    fn upper(&mut self, path: &[Name]) -> &mut Directory {
        for depth in 1..=path.len() {
            let inode = match self.view(&path[..depth]) {
                Some(View::Directory(inode)) => Inode { layer: self.number, ..inode.clone() },
                _ => new_directory(self.number),
            };
            let parent = existing(&mut self.root, &path[..depth - 1]);
            let child = parent.children.entry(path[depth - 1].clone());
            child.or_insert_with(|| Child::Directory(Directory::new(inode)));
        }
        existing(&mut self.root, path)
    }

    fn inode(&self, entry: &Entry) -> Inode {
        let kind = match entry.kind {
            _ if is_directory(entry) => Kind::Directory,
            b'2' => Kind::Link(entry.link.clone()),
            b'3' => Kind::Character(entry.device.0, entry.device.1),
            b'4' => Kind::Block(entry.device.0, entry.device.1),
            b'6' => Kind::Fifo,
            _ => Kind::File(entry.data.clone()),
        };
        Inode {
            layer: self.number,
            mode: if matches!(kind, Kind::Link(_)) { 0o777 } else { entry.mode },
            uid: entry.uid,
            gid: entry.gid,
            mtime: bounded(entry.mtime),
            attributes: entry
                .attributes
                .iter()
                .filter(|(name, value)| is_kept(name, value, &kind))
                .cloned()
                .collect(),
            kind,
        }
    }
}

/// Old archives write directories as files whose names end in a slash.
fn is_directory(entry: &Entry) -> bool {
    entry.kind == b'5' || (entry.kind == 0 && entry.name.ends_with(b"/"))
}

/// containerd takes no trusted attribute from an archive, and goes on where the kernel has no such attribute for the file, or
/// not this version of access control lists.
fn is_kept(name: &[u8], value: &[u8], kind: &Kind) -> bool {
    match kind {
        Kind::Link(_) => name.starts_with(b"security."),
        Kind::File(_) | Kind::Directory if name.starts_with(b"user.") => true,
        _ => {
            name.starts_with(b"security.")
                || (name.starts_with(b"system.posix_acl_") && value.starts_with(&[2, 0, 0, 0, 1]))
        }
    }
}

fn existing<'a>(root: &'a mut Directory, path: &[Name]) -> &'a mut Directory {
    path.iter().fold(root, |directory, name| match directory.children.get_mut(name) {
        Some(Child::Directory(directory)) => directory,
        other => panic!("{name:?} is {other:?}"),
    })
}

/// Changes an inode under all its names.
fn replace(directory: &mut Directory, old: &Rc<Inode>, new: &Rc<Inode>) {
    for child in directory.children.values_mut() {
        match child {
            Child::Directory(directory) => replace(directory, old, new),
            Child::Other(inode) if Rc::ptr_eq(inode, old) => *inode = Rc::clone(new),
            Child::Other(_) => {}
        }
    }
}

/// containerd puts times in the future of 2262 and the past of 1970 to 1970.
fn bounded(time: (i64, u32)) -> (i64, u32) {
    let nanoseconds = i128::from(time.0) * 1_000_000_000 + i128::from(time.1);
    if u64::try_from(nanoseconds).is_ok_and(|time| time <= u64::MAX / 2) { time } else { (0, 0) }
}

fn merge(upper: Directory, lower: Option<&Tree>) -> Tree {
    let mut children = BTreeMap::new();
    let mut below = BTreeMap::new();
    if let (Some(Tree::Directory(_, lower)), false) = (lower, upper.opaque) {
        below.extend(lower.iter().filter(|(name, _)| !upper.hidden.contains(*name)));
    }
    for (name, child) in upper.children {
        let lower = below.remove(&name);
        let tree = match child {
            Child::Directory(directory) => merge(directory, lower),
            Child::Other(inode) => Tree::Other(inode),
        };
        children.insert(name, tree);
    }
    children.extend(below.into_iter().map(|(name, tree)| (name.clone(), tree.clone())));
    Tree::Directory(Rc::new(upper.inode), children)
}

/// As Go's `filepath.Clean`, below a root that `..` does not leave.
fn clean(path: &[u8]) -> Vec<Name> {
    let mut parts: Vec<Name> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part.to_vec()),
        }
    }
    parts
}
