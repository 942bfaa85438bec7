//! Stacks of layers against the rules of overlayfs.

use crate::mkfs;
use crate::reader::image;
use crate::tar::Entry;
use isopod_runtime::image::overlay::{Found, Overlay};

fn stack(layers: &[&[Entry]]) -> Overlay {
    Overlay::new(layers.iter().map(|entries| image(entries, mkfs::LAYER)).collect())
}

/// Every path of the stack with the layer that decides about it.
fn shown(overlay: &Overlay) -> Vec<String> {
    let mut paths = Vec::new();
    let mut waiting = vec![(String::new(), overlay.root().unwrap().unwrap())];
    while let Some((parent, directory)) = waiting.pop() {
        for (name, found) in overlay.entries(&directory).unwrap() {
            let path = format!("{parent}/{}", String::from_utf8_lossy(&name));
            let again = overlay.lookup(&directory, &name).unwrap().unwrap();
            let (node, looked_up) = (node_of(&found), node_of(&again));
            assert_eq!((node.0, node.1), (looked_up.0, looked_up.1), "{path}");
            paths.push(format!("{path} {}", node.0));
            if let Found::Directory(directory) = found {
                waiting.push((path, directory));
            }
        }
    }
    paths.sort();
    paths
}

fn node_of(found: &Found) -> (usize, u64) {
    let node = match found {
        Found::Directory(directory) => directory.node(),
        Found::Other(node) => node,
    };
    (node.layer, node.inode.number)
}

#[test]
fn layers_are_merged_as_overlayfs_does() {
    let overlay = stack(&[
        &[
            Entry::file("merged/top", ""),
            Entry::file("merged/.wh.hidden", ""),
            Entry::file("opaque/top", ""),
            Entry::file("opaque/.wh..wh..opq", ""),
            Entry::file("over file/top", ""),
            Entry::file("over directory", ""),
            Entry::file(".wh.absent", ""),
        ],
        &[
            Entry::file("merged/hidden", ""),
            Entry::file("merged/middle", ""),
            Entry::file("opaque/middle", ""),
            Entry::file("over file", ""),
            Entry::file("over directory/middle", ""),
            Entry::file(".wh.once", ""),
        ],
        &[
            Entry::file("merged/bottom", ""),
            Entry::file("merged/middle/below a file", ""),
            Entry::file("once/bottom", ""),
            Entry::file("over file/bottom", ""),
        ],
    ]);
    assert_eq!(
        shown(&overlay),
        [
            "/merged 0",
            "/merged/bottom 2",
            "/merged/middle 1",
            "/merged/top 0",
            "/opaque 0",
            "/opaque/top 0",
            "/over directory 0",
            "/over file 0",
            "/over file/top 0",
        ]
    );
}

#[test]
fn opaque_root_hides_the_layers_below_it() {
    let overlay = stack(&[
        &[Entry::file("top", "")],
        &[Entry::new(b'5', "./").with_attribute("trusted.overlay.opaque", "y"), Entry::file("middle", "")],
        &[Entry::file("bottom", "")],
    ]);
    assert_eq!(shown(&overlay), ["/middle 1", "/top 0"]);
    assert!(Overlay::new(Vec::new()).root().unwrap().is_none() && Overlay::new(Vec::new()).is_empty());
}
