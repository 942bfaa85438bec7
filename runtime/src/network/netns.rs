//! Network namespaces: made and kept by a bind mount, entered by a thread of its own.
//!
//! Called by `network`. Namespaces are a property of threads, so nothing here may run on a thread of the runtime.
//!
//! No link is followed at a namespace's path: the daemon is root, and would mount over, enter or unmount what
//! the link leads to.

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[error("network namespace {path}: cannot {action}: {source}")]
pub struct NetnsError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// Makes a namespace and keeps it under `path`.
///
/// # Errors
/// Nothing is left behind.
pub async fn create(path: &Path) -> Result<(), NetnsError> {
    let failed = |action| move |source: io::Error| NetnsError { path: path.to_owned(), action, source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make its directory"))?;
    }
    let point = File::create_new(path).map_err(failed("make its mount point"))?;
    let made = on_thread(move || {
        // The file that was made, whatever is at its path by now.
        let target = PathBuf::from(format!("/proc/thread-self/fd/{}", point.as_raw_fd()));
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
        quiet_ipv6()?;
        // The namespace lives as long as this mount, not as long as this thread.
        nix::mount::mount(
            Some("/proc/thread-self/ns/net"),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    });
    made.await.map_err(|source| {
        let _ = fs::remove_file(path);
        failed("make it")(source)
    })
}

/// Keeps the kernel from an IPv6 of its own in this thread's namespace while plugins work. It takes no
/// link-local addresses and asks nobody about them: the addresses are the guest's, and on a bridge each
/// question wakes the VMs of all other pods. It believes no router advertisement: any pod on the bridge can
/// send one, and what it says would become the guest's address and route. Plugins can still set any.
fn quiet_ipv6() -> io::Result<()> {
    /// The settings of interfaces that are made from now on. The first is `IN6_ADDR_GEN_MODE_NONE`.
    const SETTINGS: [(&str, &str); 3] = [("addr_gen_mode", "1"), ("accept_ra", "0"), ("autoconf", "0")];
    for (name, value) in SETTINGS {
        match fs::write(Path::new("/proc/sys/net/ipv6/conf/default").join(name), value) {
            // A kernel without IPv6 says nothing.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether there is a namespace, or its mount point. A link is none: plugins would enter what it leads to.
pub fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Whether a namespace is mounted there: a mount point alone is a file as any other.
pub fn is_mounted(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Whether it is the namespace of this process: the node's own.
///
/// # Errors
/// Where it cannot be looked at.
pub fn is_own(path: &Path) -> Result<bool, NetnsError> {
    let failed = |source| NetnsError { path: path.to_owned(), action: "look at it", source };
    let own = fs::metadata("/proc/self/ns/net").map_err(failed)?;
    let found = fs::metadata(path).map_err(failed)?;
    Ok((found.dev(), found.ino()) == (own.dev(), own.ino()))
}

/// Removes a namespace that [`create`] made. One that is gone is no error.
///
/// # Errors
/// Where the mount or the file stays.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let failed = |action, source| NetnsError { path: path.to_owned(), action, source };
    match nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(failed("unmount it", errno.into())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove it", error)),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread inside the namespace, with a tokio runtime for netlink.
///
/// # Errors
/// Where the namespace cannot be entered; what `work` fails with is its own.
pub async fn within<T, E, W>(path: &Path, work: W) -> Result<Result<T, E>, NetnsError>
where
    T: Send + 'static,
    E: Send + 'static,
    W: AsyncFnOnce() -> Result<T, E> + Send + 'static,
{
    let failed = |source| NetnsError { path: path.to_owned(), action: "enter it", source };
    let mut plain = OpenOptions::new();
    let namespace = plain.read(true).custom_flags(libc::O_NOFOLLOW).open(path).map_err(failed)?;
    let entered = on_thread(move || {
        nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        Ok(runtime.block_on(work()))
    });
    entered.await.map_err(failed)
}

/// Runs `work` on a thread that ends with it.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).stack_size(256 * 1024).spawn(move || {
        // The caller may have gone; then nobody wants the result.
        let _ = done.send(work());
    })?;
    result.await.unwrap_or_else(|_| Err(io::Error::other("the thread inside it panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_no_namespace_whatever_it_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(is_there(&file) && !is_there(&link) && !is_there(directory.path()));
    }

    #[test]
    fn namespace_of_the_node_is_told_from_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(is_own(Path::new("/proc/self/ns/net")).unwrap());
        assert!(is_mounted(Path::new("/proc/self/ns/net")) && !is_mounted(file.path()));
        assert!(!is_own(file.path()).unwrap());
        assert!(is_own(Path::new("/nonexistent")).is_err());
    }

    #[tokio::test]
    async fn link_is_not_entered() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink("/proc/self/ns/net", &link).unwrap();
        let entered = within(&link, async || Ok::<_, io::Error>(())).await;
        assert!(entered.is_err_and(|error| error.to_string().contains("cannot enter it")));
    }
}
