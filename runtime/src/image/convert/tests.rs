//! Archives as builders write them, and what a container sees of them. The same rules under random layers, against a model,
//! are in `runtime/tests/layer_stacks`.

use super::*;
use crate::image::Digest;
use crate::image::erofs::{Erofs, Inode};
use crate::image::overlay::{Directory, Node};
use crate::image::tar::TarError;
use crate::image::tar::build::{Fields, device, dir, end, fifo, file, hard, pax, symlink};
use std::collections::BTreeMap;

const LIMITS: Limits = Limits { output: 16 << 20, names: 1 << 20 };

/// Layers as they are put upon each other.
#[derive(Default)]
struct Stack(Vec<File>);

impl Stack {
    fn of(layers: &[&[Vec<u8>]]) -> Self {
        let mut stack = Self::default();
        for layer in layers {
            stack.push(&end(layer)).unwrap();
        }
        stack
    }

    fn push(&mut self, archive: &[u8]) -> Result<(), ConvertError> {
        let output = tempfile::tempfile().unwrap();
        convert(archive, output.try_clone().unwrap(), || Ok(self.overlay()), LIMITS)?;
        self.0.push(output);
        Ok(())
    }

    fn overlay(&self) -> Overlay {
        let open = |file: &File| Erofs::open(file.try_clone().unwrap()).unwrap();
        Overlay::new(self.0.iter().rev().map(open).collect())
    }

    /// Every path with what is there: `755 0:0` of a directory, text of a file, `-> target`.
    fn shown(&self) -> BTreeMap<String, String> {
        let overlay = self.overlay();
        let mut shown = BTreeMap::new();
        let root = overlay.root().unwrap().unwrap();
        list(&overlay, &root, "/", &mut shown);
        shown
    }

    fn shows(&self, wanted: &[(&str, &str)]) {
        let shown = self.shown();
        for (path, what) in wanted {
            assert_eq!(shown.get(*path).map(String::as_str), Some(*what), "{path} of {shown:#?}");
        }
    }

    fn hides(&self, paths: &[&str]) {
        let shown = self.shown();
        assert!(paths.iter().all(|path| !shown.contains_key(*path)), "{paths:?} of {shown:#?}");
    }

    fn inode(&self, path: &str) -> Inode {
        let overlay = self.overlay();
        let (mut at, parts) = (overlay.root().unwrap().unwrap(), components(path.as_bytes()));
        for part in &parts {
            match overlay.lookup(&at, part).unwrap().unwrap() {
                Found::Directory(directory) => at = directory,
                Found::Other(node) => return node.inode,
            }
        }
        at.node().inode.clone()
    }
}

fn list(overlay: &Overlay, directory: &Directory, path: &str, shown: &mut BTreeMap<String, String>) {
    let Inode { mode, uid, gid, .. } = directory.node().inode;
    shown.insert(path.to_owned(), format!("{:o} {uid}:{gid}", mode & 0o7777));
    for (name, found) in overlay.entries(directory).unwrap() {
        let path = format!("{}/{}", path.trim_end_matches('/'), name.escape_ascii());
        match found {
            Found::Directory(directory) => list(overlay, &directory, &path, shown),
            Found::Other(node) => drop(shown.insert(path, content(overlay, &node))),
        }
    }
}

fn content(overlay: &Overlay, node: &Node) -> String {
    let (layer, inode) = (overlay.layer(node), &node.inode);
    if inode.is_symlink() {
        return format!("-> {}", layer.read_link(inode).unwrap().escape_ascii());
    }
    if !inode.is_file() {
        return format!("{:o} {:?}", inode.mode, inode.device);
    }
    let mut bytes = vec![0; usize::try_from(inode.size).unwrap()];
    layer.read_at(inode, 0, &mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn refused(lower: &[&[Vec<u8>]], layer: &[Vec<u8>]) -> String {
    Stack::of(lower).push(&end(layer)).unwrap_err().to_string()
}

fn owned(name: &str, mode: i64, uid: i64, gid: i64) -> Vec<u8> {
    Fields::new(b'5', name).mode(mode).owner(uid, gid).block()
}

/// A base as distributions have it.
fn base() -> Vec<Vec<u8>> {
    vec![
        owned("tmp/", 0o1777, 0, 0),
        owned("srv/data/", 0o2775, 1500, 1600),
        dir("usr/lib/"),
        file("usr/lib/old", "old"),
        symlink("lib", "usr/lib"),
        symlink("absolute", "/usr/lib"),
        symlink("out", "../../../usr"),
    ]
}

/// Layers have the digests of such texts for their names. Where the lowest layer has its `diff_id` for a
/// name, as with daemons of before, whose files stay, a layer that *is* the text would take the place of
/// others for every image.
#[test]
fn text_that_names_a_chain_of_layers_is_no_layer() {
    let text = format!("{} {}", Digest::of(b"lower"), Digest::of(b"upper"));
    let upper = format!("{} {}", Digest::of(text.as_bytes()), Digest::of(b"third"));
    for archive in [format!("layer {}", Digest::of(b"lower")), text, upper] {
        let refused = Stack::default().push(archive.as_bytes());
        assert!(matches!(refused, Err(ConvertError::Archive(TarError::Truncated { .. }))), "{refused:?}");
    }
}

#[test]
fn names_are_relative_to_the_root_whatever_they_begin_with() {
    let names = ["/a", "./b", "../c", "//d//", "x/../e", "../../f/./g"].map(|name| file(name, name));
    let stack = Stack::of(&[&[&[dir("/"), dir("./"), file("", "ignored")][..], &names].concat()]);
    stack.shows(&[
        ("/a", "/a"),
        ("/b", "./b"),
        ("/c", "../c"),
        ("/d", "//d//"),
        ("/e", "x/../e"),
        ("/f/g", "../../f/./g"),
    ]);
    assert_eq!(stack.shown().len(), 8, "the root, six files and /f");
}

#[test]
fn directory_without_entry_keeps_what_lower_layers_say_and_is_ordinary_where_it_is_new() {
    let stack = Stack::of(&[
        &base(),
        &[file("tmp/note", "n"), file("srv/data/x", "x"), file("fresh/deep/file", "f")],
    ]);
    stack.shows(&[("/", "755 0:0"), ("/tmp", "1777 0:0"), ("/srv/data", "2775 1500:1600")]);
    stack.shows(&[("/fresh", "755 0:0"), ("/fresh/deep", "755 0:0"), ("/usr/lib/old", "old")]);
}

#[test]
fn entry_of_the_root_holds_until_a_later_layer_has_another() {
    let mut stack = Stack::of(&[&[owned("./", 0o775, 1000, 1001)], &[file("a", "a")]]);
    stack.shows(&[("/", "775 1000:1001")]);
    stack.push(&end(&[owned("/", 0o700, 0, 5)])).unwrap();
    stack.shows(&[("/", "700 0:5")]);
}

#[test]
fn path_through_a_link_is_followed_inside_the_root() {
    let same = [dir("opt/real/"), symlink("opt/link", "real"), file("opt/link/file", "through")];
    Stack::of(&[&same]).shows(&[("/opt/link", "-> real"), ("/opt/real/file", "through")]);
    let lower = [file("lib/new", "new"), file("absolute/too", "too"), file("out/lib/third", "third")];
    let stack = Stack::of(&[&base(), &lower]);
    stack.shows(&[
        ("/lib", "-> usr/lib"),
        ("/usr/lib/new", "new"),
        ("/usr/lib/too", "too"),
        ("/usr/lib/third", "third"),
    ]);
    stack.shows(&[("/usr/lib/old", "old")]);
}

#[test]
fn loop_of_links_and_file_on_the_path_are_refused_by_name() {
    let looped = refused(&[], &[symlink("a", "b"), symlink("b", "a"), file("a/x", "x")]);
    assert!(looped.contains("entry \"a/x\"") && looped.contains("255 symbolic links"), "{looped}");
    let blocked = refused(&[], &[file("a", "a"), file("a/x", "x")]);
    assert!(blocked.contains("\"a\" is not a directory"), "{blocked}");
}

#[test]
fn path_through_many_lower_layers_has_a_bound_of_work() {
    let layers = vec![[dir("d/"), dir("d/e/")]; 40];
    let layers: Vec<&[_]> = layers.iter().map(<[_; 2]>::as_slice).collect();
    let loops = "d/../".repeat(800);
    let evil = [symlink("link", format!("{loops}d")), file("link/f", "")];
    let error = refused(&layers, &evil);
    assert!(
        error.starts_with("entry \"link/f\": looking its path up takes more than 16320 lookups"),
        "{error}"
    );
    let hard_link = [symlink("link", format!("{loops}d")), hard("h", "link/f")];
    assert!(refused(&layers, &hard_link).starts_with("entry \"h\": looking"));
    // as deep as names of Linux may be, in few layers; and not as deep, in many
    let deep = "d/../".repeat(400);
    let mut stack = Stack::of(&layers[..3]);
    stack.push(&end(&[symlink("link", format!("{deep}d/e")), file("link/f", "deep")])).unwrap();
    stack.shows(&[("/d/e/f", "deep")]);
    let mut stack = Stack::of(&layers);
    stack.push(&end(&[symlink("link", "d/../d/../d/e"), file("link/f", "many")])).unwrap();
    stack.shows(&[("/d/e/f", "many")]);
}

#[test]
fn file_of_a_lower_layer_gives_way_to_a_directory() {
    let stack = Stack::of(&[&[file("a", "file")], &[file("a/x", "x")]]);
    stack.shows(&[("/a", "755 0:0"), ("/a/x", "x")]);
}

#[test]
fn whiteout_hides_lower_layers_only_whatever_its_type_and_place() {
    let lower = [file("d/old", "old"), file("gone", "g"), file("tmp/lower", "l"), file("tmp/gone", "g")];
    let upper = [
        file("d/new", "new"),
        file(".wh.d", ""),
        hard("tmp/.wh.gone", "nowhere"),
        device(b'3', ".wh.gone", 1, 3),
    ];
    let stack = Stack::of(&[&lower, &upper]);
    stack.shows(&[("/d/new", "new"), ("/tmp/lower", "l")]);
    stack.hides(&["/d/old", "/gone", "/tmp/gone"]);
    let again = Stack::of(&[&lower, &[file(".wh.d", ""), dir("d/"), file("d/new", "new")]]);
    again.shows(&[("/d/new", "new")]);
    again.hides(&["/d/old"]);
}

#[test]
fn whiteout_of_nothing_hides_nothing_and_does_not_show() {
    let stack = Stack::of(&[
        &[file("d/.wh.never", ""), file("d/new", "new")],
        &[file("d/.wh.x", ""), file(".wh.y", "")],
    ]);
    assert_eq!(stack.shown().len(), 3, "{:?}", stack.shown());
}

#[test]
fn opaque_directory_and_opaque_root_show_this_layer_only() {
    let lower = [file("d/old", "old"), file("old", "old")];
    let opaque = Stack::of(&[&lower, &[file("d/new", "new"), file("d/.wh..wh..opq", "")]]);
    opaque.shows(&[("/d/new", "new"), ("/old", "old")]);
    opaque.hides(&["/d/old"]);
    let root = Stack::of(&[&lower, &[file(".wh..wh..opq", ""), file("new", "new")]]);
    root.shows(&[("/new", "new")]);
    root.hides(&["/d", "/old"]);
}

#[test]
fn names_of_aufs_are_dropped_and_whiteouts_without_a_name_refused() {
    let stack = Stack::of(&[&[
        dir(".wh..wh.plnk/"),
        file(".wh..wh.plnk/1.2", "x"),
        file(".wh..wh.aufs", ""),
        file("a", "a"),
    ]]);
    assert_eq!(stack.shown().len(), 2, "{:?}", stack.shown());
    for name in [".wh.", "d/.wh..", "d/.wh..."] {
        assert!(refused(&[], &[file(name, "")]).contains("a whiteout needs the name of a file"), "{name}");
    }
}

#[test]
fn hard_link_is_another_name_of_the_same_file() {
    let stack = Stack::of(&[&[
        dir("app/"),
        file("app/hello", "hi"),
        hard("app/again", "/app/hello"),
        hard("third", "./app/again"),
    ]]);
    let first = stack.inode("app/hello");
    assert_eq!((first.number, first.links), (stack.inode("third").number, 3));
    stack.shows(&[("/app/again", "hi")]);
}

#[test]
fn hard_link_to_a_file_of_a_lower_layer_makes_one_file_of_both_names() {
    let attributes = [("SCHILY.xattr.security.capability", "cap")];
    let link = |name, to| Fields::new(b'1', name).link(to).mode(0o4755).owner(7, 8).block();
    let mut lower = pax(&attributes);
    lower.extend(Fields::new(b'0', "bin/tool").mode(0o4755).owner(7, 8).with("tool"));
    let stack = Stack::of(&[&[lower], &[link("bin/link", "bin/tool"), link("usr/other", "bin/link")]]);
    let (tool, link) = (stack.inode("bin/tool"), stack.inode("usr/other"));
    assert_eq!((tool.number, link.links, link.uid, link.mode & 0o7777), (link.number, 3, 7, 0o4755));
    stack.shows(&[("/bin/tool", "tool"), ("/bin/link", "tool")]);
    let overlay = stack.overlay();
    let kept = overlay.layer(&Node { layer: 0, inode: tool.clone() }).attributes(&tool).unwrap();
    assert_eq!(kept, [(b"security.capability".to_vec(), b"cap".to_vec())]);
}

#[test]
fn hard_link_to_nothing_or_to_a_directory_is_refused() {
    assert!(
        refused(&[&base()], &[hard("a", "no/where")]).contains("hard link to \"no/where\", which neither")
    );
    assert!(refused(&[&base()], &[hard("a", "usr")]).contains("hard link to \"usr\", which is a directory"));
    assert!(refused(&[&base()], &[file(".wh.usr", ""), hard("a", "usr/lib/old")]).contains("neither"));
}

#[test]
fn last_of_a_name_wins_and_earlier_links_keep_the_earlier_file() {
    let stack = Stack::of(&[&[
        file("a", "first"),
        hard("b", "a"),
        file("a", "second"),
        dir("d/"),
        file("d/x", "x"),
        symlink("d", "a"),
        file("e", "e"),
        dir("e/"),
    ]]);
    stack.shows(&[("/a", "second"), ("/b", "first"), ("/d", "-> a"), ("/e", "755 0:0")]);
    assert_eq!((stack.inode("a").links, stack.inode("b").links), (1, 1));
}

#[test]
fn directory_made_anew_over_a_file_of_its_layer_hides_what_is_below() {
    let stack = Stack::of(&[&[file("d/old", "old")], &[file("d", "file"), dir("d/"), file("d/new", "new")]]);
    stack.shows(&[("/d/new", "new")]);
    stack.hides(&["/d/old"]);
}

#[test]
fn equal_layers_change_nothing() {
    let layer = [file("a", "a"), file(".wh.b", "")];
    let stack = Stack::of(&[&[file("b", "b")], &layer, &layer, &[], &[]]);
    assert_eq!(stack.shown().len(), 2, "{:?}", stack.shown());
}

#[test]
fn kinds_owners_times_and_attributes_are_kept() {
    let mut special = device(b'3', "null", 1, 3);
    special.extend(device(b'4', "disk", 259, 70_000));
    special.extend(fifo("pipe"));
    let dropped = ["trusted.overlay.opaque", "trusted.x", "system.other"]
        .map(|name| (format!("SCHILY.xattr.{name}"), "y"));
    special.extend(pax(
        &[&dropped[..], &[("mtime".into(), "1.5"), ("SCHILY.xattr.user.empty".into(), "")]].concat()
    ));
    special.extend(Fields::new(b'0', "f").owner(4_294_967_294, 70_000).with(""));
    let stack = Stack::of(&[&[special]]);
    stack.shows(&[("/null", "20644 (1, 3)"), ("/disk", "60644 (259, 70000)"), ("/pipe", "10644 (0, 0)")]);
    let inode = stack.inode("f");
    assert_eq!((inode.uid, inode.gid, inode.mtime), (4_294_967_294, 70_000, (1, 500_000_000)));
    let overlay = stack.overlay();
    let attributes = overlay.layer(&Node { layer: 0, inode: inode.clone() }).attributes(&inode).unwrap();
    assert_eq!(attributes, [(b"user.empty".to_vec(), Vec::new())]);
    let refusal = refused(&[], &[Fields::new(b'0', "f").owner(4_294_967_295, 0).with("")]);
    assert!(refusal.contains("owner 4294967295:0 is out of range"), "{refusal}");
}

#[test]
fn time_before_1970_becomes_1970_as_in_containerd() {
    let stack = Stack::of(&[&[[pax(&[("mtime", "-1.5")]), file("f", "")].concat()]]);
    assert_eq!(stack.inode("f").mtime, (0, 0));
}

#[test]
fn contents_of_all_sizes_are_read_back() {
    let sizes = [0, 1, 4031, 4032, 4033, 4096, 4097, 8192, 65_535, 65_536, 65_537, 3 << 20];
    let bytes = |size: usize| {
        (0..size).map(|at| char::from(b'a' + u8::try_from(at % 7919 % 26).unwrap())).collect::<String>()
    };
    let files: Vec<_> = sizes.iter().map(|size| file(format!("f{size}"), bytes(*size))).collect();
    let holes = file("holes", [vec![0; 1 << 20], b"x".to_vec(), vec![0; 1 << 20]].concat());
    let stack = Stack::of(&[&[&files[..], &[holes]].concat()]);
    for size in sizes {
        stack.shows(&[(&format!("/f{size}"), &bytes(size))]);
    }
    assert_eq!(stack.shown()["/holes"].trim_matches('\0'), "x");
}

#[test]
fn directories_of_all_sizes_are_read_back() {
    let names = |count: usize| (0..count).map(move |at| format!("d{count}/{at}{}", "x".repeat(at % 200)));
    let mut files = Vec::new();
    for count in [0, 1, 50, 300, 3000] {
        files.push(dir(format!("d{count}/")));
        files.extend(names(count).map(|name| file(name, "")));
    }
    files.push(file(format!("long/{}", "l".repeat(255)), ""));
    files.push(file("odd/é\n-and-a-line", ""));
    let stack = Stack::of(&[&files]);
    let shown = stack.shown();
    assert_eq!(shown.len(), 1 + 5 + 3351 + 4);
    assert!(shown.contains_key("/odd/\\xc3\\xa9\\n-and-a-line"));
    assert!(refused(&[], &[file("l".repeat(256), "")]).contains("longer than 255 bytes"));
}

#[test]
fn layers_below_are_not_waited_for_while_every_directory_has_its_entry() {
    struct Source<'a>(&'a [u8], &'a std::cell::Cell<bool>);
    impl Read for Source<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1.set(read == 0);
            Ok(read)
        }
    }
    let archive = end(&[
        dir("a/"),
        file("a/x", "x"),
        hard("a/y", "a/x"),
        symlink("l", "a"),
        file("l/z", "z"),
        file(".wh.b", ""),
    ]);
    let ended = std::cell::Cell::new(false);
    let lower = || {
        assert!(ended.get(), "the layers below are waited for before the archive has ended");
        Ok(Overlay::new(Vec::new()))
    };
    convert(Source(&archive, &ended), tempfile::tempfile().unwrap(), lower, LIMITS).unwrap();
}

#[test]
fn layers_below_that_do_not_come_are_an_error() {
    let gone = || Err(io::Error::other("gone"));
    let error =
        convert(&end(&[file("a/b", "")])[..], tempfile::tempfile().unwrap(), gone, LIMITS).unwrap_err();
    assert_eq!(error.to_string(), "the layers below it are not available: gone");
}

#[test]
fn image_is_a_function_of_its_layers() {
    let make = || {
        let mut bytes = Vec::new();
        let file = Stack::of(&[&base()]).0.remove(0);
        io::Read::read_to_end(&mut { file }, &mut bytes).unwrap_or_default();
        bytes
    };
    assert_eq!(make(), make());
}
