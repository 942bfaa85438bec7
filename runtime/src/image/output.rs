//! The file that a conversion writes: made for its jail, checked while it grows, removed where the conversion
//! fails.
//!
//! All calls on it are made off the threads that serve calls: a full disk makes them wait, and the kernel
//! frees tens of gigabytes within the call that removes a file. Used by `layer`. It must not know what is in
//! the file.

use super::blocking;
use super::content::{Content, Incoming};
use super::error::ImageError;
use super::quota::Charge;
use crate::undo::Undo;
use std::fs::File;
use std::os::unix::fs::chown;
use std::sync::Arc;
use std::time::Duration;

/// With less than so many bytes left, a failed conversion has failed for want of space.
const FULL: u64 = 4 << 20;

/// Pause between two checks of the file and of the disk.
const LOOK_AFTER: Duration = Duration::from_millis(250);

/// A file that was made for a conversion which may have been given up meanwhile: removed unless it is
/// claimed.
struct Unclaimed {
    content: Arc<Content>,
    incoming: Option<Incoming>,
}

/// A conversion's file, and what bounds it.
#[derive(Clone)]
pub struct Written {
    content: Arc<Content>,
    file: Arc<File>,
    charge: Arc<Charge>,
    reserve: u64,
}

/// Makes the file of a conversion of `wanted` bytes for the user `owner`, where the disk keeps its reserve.
/// `undo` removes it.
///
/// # Errors
/// [`ImageError::DiskReserve`]; a file that cannot be made.
pub async fn make(
    content: &Arc<Content>,
    wanted: u64,
    (owner, reserve): (u32, u64),
    undo: &mut Undo,
) -> Result<Incoming, ImageError> {
    let (making, removing) = (Arc::clone(content), Arc::clone(content));
    let made = blocking(move || {
        making.check_room(wanted, reserve)?;
        let incoming = making.incoming()?;
        let given = match nix::unistd::geteuid().is_root() {
            true => chown(&incoming.path, Some(owner), Some(owner)),
            false => Ok(()),
        };
        let given = given.map_err(|error| ImageError::io(&incoming.path, error));
        let made = Unclaimed { content: making, incoming: Some(incoming) };
        given.map(|()| made)
    });
    let incoming = made.await?.claim()?;
    let path = incoming.path.clone();
    undo.push("incoming file", move || blocking(move || removing.remove(&path)))?;
    Ok(incoming)
}

impl Unclaimed {
    fn claim(mut self) -> Result<Incoming, ImageError> {
        self.incoming.take().ok_or_else(|| ImageError::Interrupted("a layer".to_owned()))
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take()
            && let Err(error) = self.content.remove(&incoming.path)
        {
            tracing::error!(%error, "file of a layer that was given up: it is removed at the next start");
        }
    }
}

impl Written {
    /// Watches the file `incoming`, which `charge` accounts for.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(
        content: &Arc<Content>,
        incoming: &Incoming,
        charge: &Arc<Charge>,
        reserve: u64,
    ) -> Result<Self, ImageError> {
        let file = incoming.file.try_clone().map_err(|error| ImageError::io(&incoming.path, error))?;
        let (content, file, charge) = (Arc::clone(content), Arc::new(file), Arc::clone(charge));
        Ok(Self { content, file, charge, reserve })
    }

    /// Checks again and again; ends with the first bound that is exceeded.
    pub async fn watch(&self) -> ImageError {
        loop {
            tokio::time::sleep(LOOK_AFTER).await;
            let written = self.clone();
            if let Err(error) = blocking(move || written.look()).await {
                return error;
            }
        }
    }

    /// Checks the file against its image's quota, and the disk against its reserve. Blocks.
    ///
    /// # Errors
    /// The bound that is exceeded.
    pub fn look(&self) -> Result<(), ImageError> {
        let length = self.file.metadata().map_err(|error| ImageError::io(self.content.root(), error))?.len();
        self.charge.set_file(length)?;
        self.content.check_room(0, self.reserve)
    }
}

/// Tells of a full disk in place of what a converter made of it.
///
/// # Errors
/// [`ImageError::DiskFull`], or what `judged` has.
pub async fn blame_the_disk(
    content: &Arc<Content>,
    judged: Result<(), ImageError>,
) -> Result<(), ImageError> {
    if !matches!(judged, Err(ImageError::BadLayer { .. })) {
        return judged;
    }
    let directory = content.root().to_owned();
    let looked = blocking(move || match nix::sys::statvfs::statvfs(&directory) {
        Ok(space) if space.blocks_available() * space.fragment_size() < FULL => {
            Err(ImageError::DiskFull { directory })
        }
        Ok(_) | Err(_) => Ok(()),
    });
    looked.await?;
    judged
}
