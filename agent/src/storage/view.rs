//! A container's files as its processes will see them: its root with the mounts that are still to be made.
//!
//! `container::targets` and `volume` ask here where a path of the image leads, and have missing parts of it
//! made. The image wrote every name and link in the root, so the path is walked one name at a time: no open
//! ever follows a link, links are read and resolved here with the root as `/`, and `..` never leads above it.
//! The answer holds no links, so that who uses it later resolves nothing of the image's again. It must not be
//! used on the root of a container that runs: that one changes under the walk.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// Most links on the way to one path, as the kernel has it (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Longest path that the kernel takes (PATH_MAX), in bytes; it also bounds how many directories are open
/// during a walk.
const MAX_PATH: usize = 4096;

/// Mode of the directories that are made.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// Mode of the files that are made, which exist to be mounted over.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// Why a path leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A loop of links, or a chain as long as one.
    #[error("{} leads through more than {MAX_LINKS} symbolic links, or through a loop of them", path.display())]
    Loop {
        /// What was looked for.
        path: PathBuf,
    },
    /// A part of the path is there and is no directory.
    #[error("{} needs a directory at {}, where the image has something else", path.display(), at.display())]
    NotDirectory {
        /// What was looked for.
        path: PathBuf,
        /// The part.
        at: PathBuf,
    },
    /// A link of the image leads to files of the kernel's.
    #[error("{} leads by a symbolic link to {}, into a file system of type {file_system}", path.display(), at.display())]
    IntoFresh {
        /// What was looked for.
        path: PathBuf,
        /// Where it leads.
        at: PathBuf,
        /// The file system.
        file_system: String,
    },
    /// Longer than the kernel takes.
    #[error("{} leads to a path of more than {MAX_PATH} bytes", path.display())]
    TooLong {
        /// What was looked for.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{} cannot be opened or made at {}", path.display(), at.display())]
    Refused {
        /// What was looked for.
        path: PathBuf,
        /// The part that was refused.
        at: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// Anything else; a link it is not.
    File,
    /// A place in a file system that is new with the container, which cannot be looked at before; its type.
    Fresh(String),
}

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The same place by a path without links and without `..`.
    pub path: PathBuf,
    /// What is there.
    pub kind: FileKind,
    /// How many links were followed.
    pub links: usize,
}

/// What is done about a part of the path that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The answer is that there is nothing.
    Tell,
    /// It is made, with a directory at its end.
    MakeDirectory,
    /// It is made, with an empty file at its end.
    MakeFile,
}

/// What a mount shows.
#[derive(Debug)]
pub enum Content {
    /// A directory of the guest's.
    Directory(OwnedFd),
    /// A file.
    File,
    /// A new file system of this type.
    Fresh(String),
}

/// What is at a mount point.
#[derive(Debug, Clone)]
enum Mounted {
    Directory(Rc<OwnedFd>),
    File,
    Fresh(String),
}

/// The root of a container, and what will be mounted in it.
#[derive(Debug)]
pub struct View {
    root: Rc<OwnedFd>,
    /// By paths without links; none hides another.
    mounts: Vec<(PathBuf, Mounted)>,
}

/// Opens a directory or file to look at, following links: for paths of the agent's own.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

impl View {
    /// The files of a root that nothing is mounted in.
    pub fn of_root(root: &Path) -> io::Result<View> {
        Ok(View { root: Rc::new(open(root)?), mounts: Vec::new() })
    }

    /// Notes a mount at a path that [`View::find`] has answered. It hides what was mounted there or below.
    pub fn mount(&mut self, at: &Path, content: Content) {
        let tree = match content {
            Content::Directory(directory) => Mounted::Directory(Rc::new(directory)),
            Content::File => Mounted::File,
            Content::Fresh(file_system) => Mounted::Fresh(file_system),
        };
        self.mounts.retain(|(path, _)| !path.starts_with(at));
        self.mounts.push((at.to_owned(), tree));
    }

    /// The type of the new file system that will be mounted at a path that [`View::find`] has answered; none
    /// where another mount is there, or none at all.
    pub fn fresh_at(&self, path: &Path) -> Option<&str> {
        self.mounts.iter().find_map(|(at, tree)| match tree {
            Mounted::Fresh(file_system) if at == path => Some(file_system.as_str()),
            _ => None,
        })
    }

    /// Where `path` leads; none where it leads to nothing and nothing is to be made.
    pub fn find(&self, path: &Path, missing: Missing) -> Result<Option<Found>, ViewError> {
        Walk {
            view: self,
            asked: path,
            missing,
            here: Vec::new(),
            length: 0,
            left: names(path).collect(),
            links: 0,
        }
        .run()
    }
}

/// The names of a path, with `..` and without what says nothing.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    })
}

/// A search on its way.
struct Walk<'a> {
    view: &'a View,
    asked: &'a Path,
    missing: Missing,
    /// The directories from the root to here.
    here: Vec<(OsString, Rc<OwnedFd>)>,
    /// Length of the path to here.
    length: usize,
    /// Names still to go.
    left: VecDeque<OsString>,
    links: usize,
}

/// What one name was.
enum Visited {
    /// The walk goes on.
    On,
    /// The walk has ended with this.
    End(Option<FileKind>, PathBuf),
}

impl Walk<'_> {
    fn run(mut self) -> Result<Option<Found>, ViewError> {
        while let Some(name) = self.left.pop_front() {
            if name == ".." {
                self.up();
                continue;
            }
            if let Visited::End(kind, path) = self.step(&name)? {
                let links = self.links;
                return Ok(kind.map(|kind| Found { path, kind, links }));
            }
        }
        Ok(Some(Found { path: self.path(), kind: FileKind::Directory, links: self.links }))
    }

    fn step(&mut self, name: &OsStr) -> Result<Visited, ViewError> {
        let at = self.path().join(name);
        if at.as_os_str().len() >= MAX_PATH {
            return Err(ViewError::TooLong { path: self.asked.to_owned() });
        }
        if let Some((_, tree)) = self.view.mounts.iter().find(|(path, _)| *path == at) {
            return match tree.clone() {
                Mounted::Directory(directory) => {
                    self.enter(name, directory);
                    Ok(Visited::On)
                }
                Mounted::File => self.end_with_file(at),
                Mounted::Fresh(file_system) => self.end_in_fresh(at, file_system),
            };
        }
        let (file, kind) = match self.look(name) {
            Ok(found) => found,
            Err(Errno::NOENT) => match (self.missing, self.left.is_empty()) {
                (Missing::Tell, _) => return Ok(Visited::End(None, at)),
                (Missing::MakeFile, true) => return self.make_file(name, at),
                (Missing::MakeDirectory, _) | (Missing::MakeFile, false) => self.make_directory(name, &at)?,
            },
            Err(errno) => return Err(self.refused(at, errno)),
        };
        match kind {
            FileType::Directory => {
                self.enter(name, Rc::new(file));
                Ok(Visited::On)
            }
            FileType::Symlink => {
                self.follow(&file, at)?;
                Ok(Visited::On)
            }
            _ => self.end_with_file(at),
        }
    }

    /// Opens a name of the directory here, whatever it is, to look at only.
    fn look(&self, name: &OsStr) -> rustix::io::Result<(OwnedFd, FileType)> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.directory(), name, flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        Ok((file, kind))
    }

    fn follow(&mut self, link: &OwnedFd, at: PathBuf) -> Result<(), ViewError> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(ViewError::Loop { path: self.asked.to_owned() });
        }
        let target = rustix::fs::readlinkat(link, "", Vec::new()).map_err(|errno| self.refused(at, errno))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.here.clear();
            self.length = 0;
        }
        for name in names(&target).rev() {
            self.left.push_front(name);
        }
        Ok(())
    }

    fn make_directory(&self, name: &OsStr, at: &Path) -> Result<(OwnedFd, FileType), ViewError> {
        rustix::fs::mkdirat(self.directory(), name, DIRECTORY_MODE)
            .and_then(|()| self.look(name))
            .map_err(|errno| self.refused(at.to_owned(), errno))
    }

    fn make_file(&self, name: &OsStr, at: PathBuf) -> Result<Visited, ViewError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(self.directory(), name, flags, FILE_MODE) {
            Ok(_) => Ok(Visited::End(Some(FileKind::File), at)),
            Err(errno) => Err(self.refused(at, errno)),
        }
    }

    fn end_with_file(&self, at: PathBuf) -> Result<Visited, ViewError> {
        if self.left.is_empty() {
            return Ok(Visited::End(Some(FileKind::File), at));
        }
        Err(ViewError::NotDirectory { path: self.asked.to_owned(), at })
    }

    /// Nothing is known of what follows: no link may have led here, and no name is looked up.
    fn end_in_fresh(&self, at: PathBuf, file_system: String) -> Result<Visited, ViewError> {
        let inside = self.left.iter().fold(at, |path, name| path.join(name));
        if self.links > 0 {
            return Err(ViewError::IntoFresh { path: self.asked.to_owned(), at: inside, file_system });
        }
        if self.left.iter().any(|name| name == "..") {
            return Err(self.refused(inside, Errno::INVAL));
        }
        Ok(Visited::End(Some(FileKind::Fresh(file_system)), inside))
    }

    fn enter(&mut self, name: &OsStr, directory: Rc<OwnedFd>) {
        self.length += name.as_bytes().len() + 1;
        self.here.push((name.to_owned(), directory));
    }

    fn up(&mut self) {
        if let Some((name, _)) = self.here.pop() {
            self.length -= name.as_bytes().len() + 1;
        }
    }

    fn directory(&self) -> impl AsFd + '_ {
        self.here.last().map_or(&*self.view.root, |(_, directory)| &**directory)
    }

    fn path(&self) -> PathBuf {
        let mut path = PathBuf::with_capacity(self.length + 1);
        path.push("/");
        path.extend(self.here.iter().map(|(name, _)| name));
        path
    }

    fn refused(&self, at: PathBuf, errno: Errno) -> ViewError {
        ViewError::Refused { path: self.asked.to_owned(), at, source: errno.into() }
    }
}

/// Returns the kind of a path of the agent's own, links followed.
pub fn kind_of(file: &OwnedFd) -> io::Result<FileKind> {
    let stat = rustix::fs::statat(file, "", AtFlags::EMPTY_PATH)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => FileKind::Directory,
        _ => FileKind::File,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Root {
            Root(tempfile::tempdir().unwrap())
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn directory(self, path: &str) -> Root {
            fs::create_dir_all(self.path(path)).unwrap();
            self
        }

        fn link(self, path: &str, target: &str) -> Root {
            symlink(target, self.path(path)).unwrap();
            self
        }

        fn view(&self) -> View {
            View::of_root(self.0.path()).unwrap()
        }
    }

    fn found(view: &View, path: &str, missing: Missing) -> (String, FileKind) {
        let found = view.find(Path::new(path), missing).unwrap().unwrap();
        (found.path.display().to_string(), found.kind)
    }

    #[test]
    fn dangling_link_is_made_inside_the_root() {
        let root = Root::new().directory("etc").link("etc/resolv.conf", "../run/systemd/resolve/stub");
        let made = found(&root.view(), "/etc/resolv.conf", Missing::MakeFile);
        assert_eq!(made, ("/run/systemd/resolve/stub".into(), FileKind::File));
        assert!(root.path("run/systemd/resolve/stub").is_file());
        let mode = fs::metadata(root.path("run/systemd")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn links_and_dots_stay_inside_the_root() {
        let root = Root::new().directory("a").link("a/up", "../../../../..").link("a/absolute", "/b");
        let view = root.view();
        assert_eq!(found(&view, "/a/up/made", Missing::MakeDirectory).0, "/made");
        assert_eq!(found(&view, "/a/absolute/made", Missing::MakeDirectory).0, "/b/made");
        assert_eq!(found(&view, "/../../a/../c", Missing::MakeDirectory).0, "/c");
        assert!(root.path("made").is_dir() && root.path("b/made").is_dir() && root.path("c").is_dir());
    }

    #[test]
    fn loops_are_refused_by_path() {
        let root =
            Root::new().directory("etc").link("etc/hosts", "hosts").link("one", "two").link("two", "one");
        for path in ["/etc/hosts", "/one", "/two/below"] {
            let error = root.view().find(Path::new(path), Missing::MakeFile).unwrap_err();
            assert!(matches!(error, ViewError::Loop { .. }) && error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn file_in_place_of_a_directory_is_named() {
        let root = Root::new().link("link", "/file");
        fs::write(root.path("file"), "").unwrap();
        let error = root.view().find(Path::new("/link/below"), Missing::MakeDirectory).unwrap_err();
        assert!(error.to_string().contains("/link/below needs a directory at /file"), "{error}");
        assert_eq!(found(&root.view(), "/link", Missing::MakeDirectory), ("/file".into(), FileKind::File));
    }

    #[test]
    fn what_is_missing_is_told_and_not_made() {
        let root = Root::new().link("link", "nothing");
        assert_eq!(root.view().find(Path::new("/link/x"), Missing::Tell).unwrap(), None);
        assert!(!root.path("nothing").exists());
    }

    #[test]
    fn links_of_the_root_lead_into_mounts_and_those_of_mounts_too() {
        let (root, other) = (Root::new().link("etc", "/volume/etc"), Root::new().directory("etc"));
        let other = other.link("etc/hosts", "/volume/here/hosts");
        let mut view = root.view();
        view.mount(Path::new("/volume"), Content::Directory(open(other.0.path()).unwrap()));
        assert_eq!(found(&view, "/etc/hosts", Missing::MakeFile).0, "/volume/here/hosts");
        assert!(other.path("here/hosts").is_file() && !root.path("volume").exists());
    }

    #[test]
    fn new_file_systems_are_not_entered_by_links() {
        let root = Root::new().link("hosts", "proc/self/hosts").link("procfs", "/proc");
        let mut view = root.view();
        view.mount(Path::new("/proc"), Content::Fresh("proc".into()));
        let expected = ("/proc/sys/x".into(), FileKind::Fresh("proc".into()));
        assert_eq!(found(&view, "/proc/sys/x", Missing::MakeFile), expected);
        for path in ["/hosts", "/procfs"] {
            let error = view.find(Path::new(path), Missing::MakeFile).unwrap_err();
            assert!(matches!(error, ViewError::IntoFresh { .. }), "{error}");
        }
    }

    #[test]
    fn later_mount_hides_what_was_below_it() {
        let (root, other) = (Root::new(), Root::new());
        let mut view = root.view();
        view.mount(Path::new("/sys/fs/cgroup"), Content::Fresh("cgroup2".into()));
        view.mount(Path::new("/sys"), Content::Directory(open(other.0.path()).unwrap()));
        assert_eq!(found(&view, "/sys/fs/cgroup", Missing::MakeDirectory).1, FileKind::Directory);
        assert!(other.path("fs/cgroup").is_dir() && !root.path("sys").exists());
    }

    #[test]
    fn endless_path_is_refused() {
        let root = Root::new();
        let path = format!("/{}", "name/".repeat(1000));
        let error = root.view().find(Path::new(&path), Missing::MakeDirectory).unwrap_err();
        assert!(matches!(error, ViewError::TooLong { .. }), "{error}");
    }

    proptest! {
        /// Whatever links the image has, what is made is in the root, and the answer leads there without
        /// links.
        #[test]
        fn nothing_is_made_outside(
            links in proptest::collection::vec(("[ab](/[ab])?", "(/|\\.\\./){0,4}[abc](/[abc]|/\\.\\.){0,3}"), 0..6),
            path in "(/[abc]|/\\.\\.){1,5}",
        ) {
            let outside = Root::new().directory("root/a").directory("root/b");
            for (name, target) in &links {
                let _ = symlink(target, outside.path("root").join(name));
            }
            let view = View::of_root(&outside.path("root")).unwrap();
            if let Ok(Some(found)) = view.find(Path::new(&path), Missing::MakeDirectory) {
                let real = outside.path("root").join(found.path.strip_prefix("/").unwrap());
                prop_assert_eq!(fs::canonicalize(&real).unwrap(), real.clone());
                prop_assert!(fs::symlink_metadata(&real).is_ok());
            }
            let siblings: Vec<_> = fs::read_dir(outside.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            prop_assert_eq!(siblings, ["root"]);
        }
    }
}
