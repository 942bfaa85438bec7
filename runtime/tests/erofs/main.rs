//! The reader of EROFS layers and the view of their overlay, against files that the real mkfs.erofs made, against such files
//! with random damage, and the converter's own files against fsck.erofs. Needs no root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod damage;
#[path = "../layer_stacks/generate.rs"]
mod generate;
mod mkfs;
mod overlay;
#[path = "../layer_stacks/random.rs"]
mod random;
mod reader;
#[path = "../layer_stacks/tar.rs"]
mod tar;
mod written;
