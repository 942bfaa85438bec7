//! The machine's own programs, run in a container of the image `kernel`: those that busybox has not or only in part, such as `nft`
//! and the full `ip`.
//!
//! Used by cases. `tests/images` puts them below `/node` with their libraries and loader, so that they touch nothing of the
//! container's own root.

/// The image that has them.
pub const IMAGE: &str = "kernel";

/// A shell's words for one of them, given by its name in `/usr/sbin`.
pub fn command(program: &str) -> String {
    format!("/node/ld-linux-x86-64.so.2 --library-path /node/lib /node/{program}")
}
