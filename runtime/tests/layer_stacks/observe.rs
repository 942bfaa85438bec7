//! What a stack of layers shows, and where that differs from the model.
//!
//! A container's root is seen in two ways: `reading` uses this crate's reader of EROFS and its rules of overlayfs, `mounting`
//! the kernel's.

use crate::model::{Inode, Kind, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// One path of a container's root.
pub struct Seen {
    pub path: String,
    /// A layer that is not known is the model's.
    pub inode: Inode,
    pub layer: Option<usize>,
    /// What tells its inode from others; names with one place are hard links.
    pub place: (u64, u64),
    pub links: u64,
}

/// Every difference, as lines for a person.
pub fn differences(model: &Tree, seen: Vec<Seen>) -> Vec<String> {
    let mut expected = Vec::new();
    model_paths("", model, &mut expected);
    let got: BTreeMap<_, _> = seen.into_iter().map(|seen| (seen.path.clone(), seen)).collect();
    let mut lines = Vec::new();
    let model_names: BTreeSet<_> = expected.iter().map(|(path, _)| path).collect();
    let names: BTreeSet<_> = got.keys().collect();
    lines.extend(model_names.difference(&names).map(|path| format!("{path} is missing")));
    lines.extend(names.difference(&model_names).map(|path| format!("{path} should not be there")));
    for (path, inode) in &expected {
        if let Some(seen) = got.get(path).filter(|seen| !same(seen, inode)) {
            lines.push(format!(
                "{path} should be {} but is {} of layer {:?}",
                shown(inode),
                shown(&seen.inode),
                seen.layer
            ));
        }
    }
    lines.extend(sharing(&expected, &got));
    lines
}

/// A directory is the same wherever it is stored: layers may repeat those of lower ones, but not their files.
fn same(seen: &Seen, inode: &Inode) -> bool {
    let layer = seen.layer.filter(|_| inode.kind != Kind::Directory).unwrap_or(inode.layer);
    *inode == Inode { layer, ..seen.inode.clone() }
}

/// Paths that share an inode in one of both only, and link counts that are not the number of a layer's names.
fn sharing(expected: &[(String, Rc<Inode>)], got: &BTreeMap<String, Seen>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut places: BTreeMap<*const Inode, (&str, (u64, u64))> = BTreeMap::new();
    let mut inodes: BTreeMap<(u64, u64), (&str, *const Inode)> = BTreeMap::new();
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
        if seen.links < shown as u64 {
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

pub fn join(path: &str, name: &[u8]) -> String {
    let name =
        if name.len() > 40 { format!("({} bytes)", name.len()) } else { name.escape_ascii().to_string() };
    format!("{path}/{name}")
}

fn shown(inode: &Inode) -> String {
    let Inode { layer: _, kind, mode, uid, gid, mtime, attributes } = inode;
    let kind = match kind {
        Kind::File(bytes) => format!("File of {} bytes ending in {:?}", bytes.len(), bytes.last()),
        Kind::Link(target) => format!("Link to {:?}", target.escape_ascii().to_string()),
        other => format!("{other:?}"),
    };
    format!("{kind}, {mode:04o} {uid}:{gid} {mtime:?} {attributes:?}")
}
