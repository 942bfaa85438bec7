//! What the layers' EROFS files and the rules of overlayfs give, in the model's terms, and where the two differ.

use crate::model::{Inode, Kind, Name, Tree};
use isopod_runtime::image::overlay::{Directory, Found, Node, Overlay};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Where an inode is stored: the layer, counted from the bottom, and its number there.
type Place = (usize, u64);

/// One path of a container's root.
struct Seen {
    path: String,
    inode: Inode,
    /// What tells its inode from others; names with one place are hard links.
    place: Place,
    links: u32,
}

/// Every difference between the model and a stack of `count` layers, as lines for a person.
pub fn differences(model: &Tree, overlay: &Overlay, count: usize) -> Vec<String> {
    let mut expected = Vec::new();
    model_paths("", model, &mut expected);
    let mut got = Vec::new();
    let root = overlay.root().unwrap().expect("there are layers");
    overlay_paths(overlay, count, &root, &mut got);
    let mut lines = Vec::new();
    let names = |paths: Vec<String>| paths.into_iter().collect::<std::collections::BTreeSet<_>>();
    let (model_names, overlay_names) = (
        names(expected.iter().map(|(path, _)| path.clone()).collect()),
        names(got.iter().map(|seen| seen.path.clone()).collect()),
    );
    lines.extend(model_names.difference(&overlay_names).map(|path| format!("{path} is missing")));
    lines.extend(overlay_names.difference(&model_names).map(|path| format!("{path} should not be there")));
    let got: BTreeMap<_, _> = got.into_iter().map(|seen| (seen.path.clone(), seen)).collect();
    for (path, inode) in &expected {
        if let Some(seen) = got.get(path).filter(|seen| !same(&seen.inode, inode)) {
            lines.push(format!("{path} should be {} but is {}", shown(inode), shown(&seen.inode)));
        }
    }
    lines.extend(sharing(&expected, &got));
    lines
}

/// A directory is the same wherever it is stored: layers may repeat those of lower ones, but not their files.
fn same(one: &Inode, other: &Inode) -> bool {
    let layer = if one.kind == Kind::Directory { one.layer } else { other.layer };
    *one == Inode { layer, ..other.clone() }
}

/// Paths that share an inode in one of both only, and link counts that are not the number of a layer's names.
fn sharing(expected: &[(String, Rc<Inode>)], got: &BTreeMap<String, Seen>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut places: BTreeMap<*const Inode, (&str, Place)> = BTreeMap::new();
    let mut inodes: BTreeMap<Place, (&str, *const Inode)> = BTreeMap::new();
    for (path, inode) in expected.iter().filter(|(_, inode)| inode.kind != Kind::Directory) {
        let Some(seen) = got.get(path) else { continue };
        let (other, place) = *places.entry(Rc::as_ptr(inode)).or_insert((path, seen.place));
        if place != seen.place {
            lines.push(format!("{other} and {path} should be one file"));
        }
        let (other, pointer) = *inodes.entry(seen.place).or_insert((path, Rc::as_ptr(inode)));
        if pointer != Rc::as_ptr(inode) {
            lines.push(format!("{other} and {path} should be two files"));
        }
        let shown = expected.iter().filter(|(_, other)| Rc::ptr_eq(inode, other)).count();
        // names that later layers hide still count
        if (seen.links as usize) < shown {
            lines.push(format!("{path} has {shown} names and the link count {}", seen.links));
        }
    }
    lines
}

fn model_paths(path: &str, tree: &Tree, into: &mut Vec<(String, Rc<Inode>)>) {
    into.push((format!("{path}/"), Rc::clone(tree.inode())));
    if let Tree::Directory(_, children) = tree {
        for (name, child) in children {
            model_paths(&join(path, name), child, into);
        }
    }
}

fn overlay_paths(overlay: &Overlay, count: usize, root: &Directory, into: &mut Vec<Seen>) {
    let mut waiting = vec![(String::new(), Found::Directory(root.clone()))];
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
        let place = (count - 1 - node.layer, node.inode.number);
        let inode = seen(overlay, node, place.0);
        into.push(Seen { path: format!("{path}/"), inode, place, links: node.inode.links });
    }
}

fn seen(overlay: &Overlay, node: &Node, layer: usize) -> Inode {
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

fn join(path: &str, name: &Name) -> String {
    let name =
        if name.len() > 40 { format!("({} bytes)", name.len()) } else { name.escape_ascii().to_string() };
    format!("{path}/{name}")
}

fn shown(inode: &Inode) -> String {
    let Inode { layer, kind, mode, uid, gid, mtime, attributes } = inode;
    let kind = match kind {
        Kind::File(bytes) => format!("File of {} bytes ending in {:?}", bytes.len(), bytes.last()),
        Kind::Link(target) => format!("Link to {:?}", target.escape_ascii().to_string()),
        other => format!("{other:?}"),
    };
    format!("{kind} of layer {layer}, {mode:04o} {uid}:{gid} {mtime:?} {attributes:?}")
}
