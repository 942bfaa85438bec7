//! A container's root as the crate's own reader and its rules of overlayfs show it.

use crate::model::{Inode, Kind};
use crate::observe::{Seen, join};
use isopod_runtime::image::overlay::{Directory, Found, Node, Overlay};

/// Every path of a stack of `count` layers.
pub fn paths(overlay: &Overlay, count: usize) -> Vec<Seen> {
    let root: Directory = overlay.root().unwrap().expect("there are layers");
    let mut paths = Vec::new();
    let mut waiting = vec![(String::new(), Found::Directory(root))];
    while let Some((path, found)) = waiting.pop() {
        let node = match &found {
            Found::Directory(directory) => {
                for (name, child) in overlay.entries(directory).unwrap() {
                    let again = overlay.lookup(directory, &name).unwrap();
                    assert!(again.is_some(), "{name:?} is listed in {path}, but not found");
                    waiting.push((join(&path, &name), child));
                }
                directory.node()
            }
            Found::Other(node) => node,
        };
        let layer = count - 1 - node.layer;
        let inode = inode(overlay, node, layer);
        let (place, links) = ((layer as u64, node.inode.number), node.inode.links.into());
        paths.push(Seen { path: format!("{path}/"), inode, layer: Some(layer), place, links });
    }
    paths
}

fn inode(overlay: &Overlay, node: &Node, layer: usize) -> Inode {
    let (erofs, inode) = (overlay.layer(node), &node.inode);
    let (major, minor) = inode.device;
    let kind = match inode.mode & 0o170_000 {
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Link(erofs.read_link(inode).unwrap()),
        0o020_000 => Kind::Character(major, minor),
        0o060_000 => Kind::Block(major, minor),
        0o010_000 => Kind::Fifo,
        _ => {
            let mut bytes = vec![0; usize::try_from(inode.size).unwrap()];
            assert_eq!(erofs.read_at(inode, 0, &mut bytes).unwrap(), bytes.len());
            Kind::File(bytes)
        }
    };
    let attributes = erofs.attributes(inode).unwrap().into_iter();
    Inode {
        layer,
        kind,
        mode: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        // overlayfs keeps its own to itself
        attributes: attributes.filter(|(name, _)| !name.starts_with(b"trusted.overlay.")).collect(),
    }
}
