//! Any bytes as the archive of a layer upon another one: it becomes a file system that can be read, or is refused.

#![no_main]

use isopod_runtime::image::convert::{Limits, convert};
use isopod_runtime::image::erofs::Erofs;
use isopod_runtime::image::overlay::{Directory, Found, Overlay};
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::io;

const LIMITS: Limits = Limits { output: 16 << 20, names: 4 << 20 };

fuzz_target!(|bytes: &[u8]| {
    let (lower, upper) = bytes.split_at(bytes.len() / 1024 * 512);
    let Ok(lower) = layer(lower, || Ok(Overlay::new(Vec::new()))) else { return };
    let below = || Ok(Overlay::new(vec![Erofs::open(lower.try_clone()?).map_err(io::Error::other)?]));
    let Ok(upper) = layer(upper, below) else { return };
    let layers = [upper, lower].map(|file| Erofs::open(file).expect("what was written can be read"));
    let stack = Overlay::new(layers.into());
    let root = stack.root().expect("a root is written").expect("there are layers");
    read_all(&stack, &root, 0);
});

fn layer(archive: &[u8], below: impl FnOnce() -> io::Result<Overlay>) -> Result<File, String> {
    let file = tempfile::tempfile().expect("a temporary file");
    let output = file.try_clone().expect("a descriptor");
    convert(archive, output, below, LIMITS).map_err(|error| error.to_string())?;
    Ok(file)
}

fn read_all(stack: &Overlay, directory: &Directory, depth: usize) {
    assert!(depth < 70_000, "directories in a circle");
    for (_, found) in stack.entries(directory).expect("a directory is written whole") {
        match found {
            Found::Directory(inside) => read_all(stack, &inside, depth + 1),
            Found::Other(node) => {
                let layer = stack.layer(&node);
                layer.attributes(&node.inode).expect("attributes are written whole");
                if node.inode.is_symlink() {
                    layer.read_link(&node.inode).expect("a link is written whole");
                }
            }
        }
    }
}
