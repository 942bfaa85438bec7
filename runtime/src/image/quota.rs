//! Bounds what one image takes of the node: its layers together, as archives and as the files made of them.
//!
//! ```text
//! Quota, one per pull <--- Charge, one per layer that is being made: archive, file
//!                          dropped: what it charged is given back, unless the layer was kept
//! ```
//!
//! Used by `pull`, `pump` and `layer`. `image.max_layer_mib` bounds one layer; this bounds their sum.

use super::error::ImageError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The bytes that one image may take.
#[derive(Debug)]
pub struct Quota {
    /// The image, for errors.
    what: String,
    /// Most bytes of all archives, uncompressed.
    limit: u64,
    archives: AtomicU64,
    files: AtomicU64,
}

/// What one layer charges to the quota of its image. Dropped, it gives that back unless the layer was kept.
#[derive(Debug)]
pub struct Charge {
    quota: Arc<Quota>,
    archive: AtomicU64,
    file: AtomicU64,
    kept: AtomicBool,
}

/// Most bytes of a file system that is made of so many bytes of archives: small files take more than their bytes.
pub fn file_limit(archives: u64) -> u64 {
    archives.saturating_add(archives / 2)
}

impl Quota {
    /// A quota of which nothing is used; `what` names the image in errors.
    pub fn new(what: String, limit: u64) -> Arc<Self> {
        Arc::new(Self { what, limit, archives: AtomicU64::new(0), files: AtomicU64::new(0) })
    }

    /// What a layer charges to the quota: nothing yet.
    pub fn charge(self: &Arc<Self>) -> Arc<Charge> {
        let none = || AtomicU64::new(0);
        let kept = AtomicBool::new(false);
        Arc::new(Charge { quota: Arc::clone(self), archive: none(), file: none(), kept })
    }

    /// Checks the length of all archives together, as a manifest announces it.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`].
    pub fn check_archives(&self, bytes: u64) -> Result<(), ImageError> {
        if bytes > self.limit { Err(self.exceeded()) } else { Ok(()) }
    }

    /// Checks the length of the files of all layers together, whoever made them.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`].
    pub fn check_files(&self, bytes: u64) -> Result<(), ImageError> {
        if bytes > file_limit(self.limit) { Err(self.exceeded()) } else { Ok(()) }
    }

    fn exceeded(&self) -> ImageError {
        ImageError::TooLarge { what: self.what.clone(), limit: self.limit, key: "image.max_image_mib" }
    }
}

impl Charge {
    /// Adds bytes of the layer's uncompressed archive.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`] where the image's archives are larger together than it may be.
    pub fn add_archive(&self, more: u64) -> Result<(), ImageError> {
        self.archive.fetch_add(more, Ordering::Relaxed);
        let all = self.quota.archives.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        self.quota.check_archives(all)
    }

    /// Sets the length of the layer's file.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`] where the image's files are larger together than they may be.
    pub fn set_file(&self, length: u64) -> Result<(), ImageError> {
        let more = length.wrapping_sub(self.file.swap(length, Ordering::Relaxed));
        let all = self.quota.files.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        self.quota.check_files(all)
    }

    /// Keeps the charge: the layer's file stays.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            self.quota.archives.fetch_sub(*self.archive.get_mut(), Ordering::Relaxed);
            self.quota.files.fetch_sub(*self.file.get_mut(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_full(result: Result<(), ImageError>) -> bool {
        matches!(result, Err(ImageError::TooLarge { limit: 100, key: "image.max_image_mib", .. }))
    }

    #[test]
    fn layers_together_are_bounded() {
        let quota = Quota::new("image a".to_owned(), 100);
        let (one, two) = (quota.charge(), quota.charge());
        one.add_archive(60).unwrap();
        two.add_archive(40).unwrap();
        assert!(is_full(two.add_archive(1)));
        one.set_file(100).unwrap();
        two.set_file(50).unwrap();
        assert!(is_full(two.set_file(51)));
        two.set_file(20).unwrap();
        one.set_file(130).unwrap();
    }

    #[test]
    fn failed_layer_gives_back_what_it_took_and_a_kept_one_does_not() {
        let quota = Quota::new("image a".to_owned(), 100);
        let failed = quota.charge();
        failed.add_archive(100).unwrap();
        failed.set_file(150).unwrap();
        drop(failed);
        let kept = quota.charge();
        kept.add_archive(100).unwrap();
        kept.set_file(150).unwrap();
        kept.keep();
        drop(kept);
        assert!(is_full(quota.charge().add_archive(1)));
        assert!(is_full(quota.charge().set_file(1)));
    }

    #[test]
    fn limit_is_for_all_layers_that_an_image_names() {
        let quota = Quota::new("image a".to_owned(), 100);
        quota.check_archives(100).unwrap();
        assert!(is_full(quota.check_archives(101)));
        quota.check_files(150).unwrap();
        assert!(is_full(quota.check_files(151)));
    }
}
