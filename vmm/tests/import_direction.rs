//! Holds the direction of imports in this crate: a module imports only from layers below its own (README.md
//! says what the layers are), and no files import each other in a circle.
//!
//! The files are read as text: `use` declarations, and paths that begin with `crate`, `super`, `self` or a
//! module. What is for tests only is left out. Where a `mod.rs` only passes a name on (`pub use`), the file
//! that has the name counts as imported, so that passing on makes no circle. No circle is allowed, not even
//! of a `mod.rs` and its parts: what both need is in a part of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// From the top: each module uses only those of later lines.
const LAYERS: &[&[&str]] = &[
    &["builder", "restore", "server"],
    &["machine"],
    &["vcpus", "snapshot", "ports"],
    &["devices", "vcpu", "power"],
    &["vm", "vmgenid", "pluggable", "exit"],
    &["virtio", "kernel", "cpu", "working_set"],
    &["memory", "acpi", "early_console", "confined", "jail", "control", "log"],
    &["layout", "bus", "seccomp", "sys", "console_log"],
];

/// Files that only tests have, and the two from which nothing can be imported.
const LEFT_OUT: &[&str] = &["main", "lib", "fuzzing", "fuzz_targets", "testing", "tests"];

/// A module by its names from the root of the crate, or any other path.
type Names = Vec<String>;

/// What the files of a crate import.
#[derive(Default)]
struct Imports {
    /// Paths that each file names.
    paths: BTreeMap<Names, Vec<Names>>,
    /// Where a name really is that a module passes on.
    passed_on: BTreeMap<(Names, String), Names>,
    /// What a name stands for that a file has imported.
    brought: BTreeMap<(Names, String), Names>,
}

impl Imports {
    fn of_crate() -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut imports = Self::default();
        for file in rust_files(&source) {
            let mut module: Names = file
                .strip_prefix(&source)
                .unwrap()
                .with_extension("")
                .iter()
                .map(|name| name.to_str().unwrap().to_owned())
                .collect();
            if module.iter().any(|name| LEFT_OUT.contains(&name.as_str())) {
                continue;
            }
            module.pop_if(|name| name == "mod");
            imports.add(module, &fs::read_to_string(file).unwrap());
        }
        imports
    }

    fn add(&mut self, module: Names, text: &str) {
        let tokens = without_tests(&tokens(text));
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            let begins = at == 0 || tokens[at - 1] != "::";
            if tokens[at] == "use" {
                let passes_on = at > 0 && ["pub", ")"].contains(&tokens[at - 1].as_str());
                let mut leaves = Vec::new();
                at = use_tree(&tokens, at + 1, &[], &mut leaves);
                for (path, name) in leaves {
                    if passes_on {
                        self.passed_on.insert((module.clone(), name), path);
                    } else {
                        self.brought.insert((module.clone(), name), path.clone());
                        paths.push(path);
                    }
                }
            } else if begins && is_name(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next == "::") {
                let mut path = vec![tokens[at].clone()];
                while tokens.get(at + 1).is_some_and(|next| next == "::") && is_name(&tokens[at + 2]) {
                    path.push(tokens[at + 2].clone());
                    at += 2;
                }
                paths.push(path);
                at += 1;
            } else {
                at += 1;
            }
        }
        self.paths.insert(module, paths);
    }

    /// The file of this crate that `path` leads to from `module`, if it is one.
    fn resolve(&self, module: &Names, path: &[String]) -> Option<Names> {
        let mut rest = path;
        let mut at = module.clone();
        match rest.first()?.as_str() {
            "crate" => {
                at.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {
                while rest.first().is_some_and(|name| name == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            first if !self.is_module(&at, first) => {
                let brought = self.brought.get(&(at, first.to_owned())).filter(|path| path[0] != first)?;
                return self.resolve(module, &[&brought[..], &rest[1..]].concat());
            }
            _ => {}
        }
        while let Some(name) = rest.first().filter(|name| self.is_module(&at, name)) {
            at.push(name.clone());
            rest = &rest[1..];
        }
        match rest.first().and_then(|name| self.passed_on.get(&(at.clone(), name.clone()))) {
            Some(real) => self.resolve(&at, real),
            None => Some(at).filter(|at| !at.is_empty()),
        }
    }

    fn is_module(&self, parent: &Names, name: &str) -> bool {
        self.paths.contains_key(&[&parent[..], &[name.to_owned()]].concat())
    }

    /// Each file and those that it imports from.
    fn graph(&self) -> BTreeMap<Names, BTreeSet<Names>> {
        let used = |module: &Names, paths: &[Names]| -> BTreeSet<Names> {
            paths.iter().filter_map(|path| self.resolve(module, path)).filter(|used| used != module).collect()
        };
        self.paths.iter().map(|(module, paths)| (module.clone(), used(module, paths))).collect()
    }
}

/// The modules that import each other in a circle, or lead to one. None, if there is no circle.
fn in_circles(mut graph: BTreeMap<Names, BTreeSet<Names>>) -> BTreeMap<Names, BTreeSet<Names>> {
    loop {
        let ends: Vec<_> =
            graph.iter().filter(|(_, used)| used.is_empty()).map(|(file, _)| file.clone()).collect();
        if ends.is_empty() {
            return graph;
        }
        graph.retain(|file, _| !ends.contains(file));
        graph.values_mut().for_each(|used| used.retain(|file| !ends.contains(file)));
    }
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(rust_files(&path)),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
    files
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, `::` and single marks of a file, without comments, texts and characters.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            text_length(rest)
        } else if first == '\'' {
            character_length(rest)
        } else if is_name(rest) {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        if !first.is_whitespace() && !token.starts_with("//") && first != '"' && first != '\'' {
            tokens.push(token.to_owned());
        }
        rest = after;
    }
    tokens
}

/// Length of the text in quotation marks that `rest` begins with.
fn text_length(rest: &str) -> usize {
    let mut escaped = false;
    let end = rest[1..].find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.unwrap() + 2
}

/// Length of the character that `rest` begins with, or of the mark before a lifetime.
fn character_length(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match (characters.next(), characters.next()) {
        (Some((_, '\\')), Some((after, _))) => after + 1 + rest[after + 1..].find('\'').unwrap() + 1,
        (_, Some((second, '\''))) => second + 1,
        _ => 1,
    }
}

/// What is left without the items behind `#[cfg(test)]`, or another condition that names tests.
fn without_tests(tokens: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let conditional = tokens[at..].iter().take(4).eq(["#", "[", "cfg", "("]);
        let end = if conditional { group_end(tokens, at + 1) } else { at };
        if tokens[at..end].iter().any(|token| token == "test") {
            at = item_end(tokens, end);
        } else {
            left.push(tokens[at].clone());
            at += 1;
        }
    }
    left
}

/// The place behind the brackets that open at `at`.
fn group_end(tokens: &[String], mut at: usize) -> usize {
    let mut depth = 0;
    loop {
        match tokens[at].as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
}

/// The place behind the item that begins at `at`, by its attributes if it has any.
fn item_end(tokens: &[String], mut at: usize) -> usize {
    loop {
        match tokens[at].as_str() {
            ";" => return at + 1,
            "{" => return group_end(tokens, at),
            "(" | "[" => at = group_end(tokens, at),
            _ => at += 1,
        }
    }
}

/// Reads the tree of a `use` declaration that begins at `at` below `prefix`: its paths, and the names that
/// they bring. Returns the place behind it.
fn use_tree(tokens: &[String], mut at: usize, prefix: &[String], leaves: &mut Vec<(Names, String)>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        if tokens[at] == "{" {
            at += 1;
            while tokens[at] != "}" {
                at = use_tree(tokens, at, &path, leaves);
                at += usize::from(tokens[at] == ",");
            }
            return at + 1;
        }
        path.push(tokens[at].clone());
        at += 1;
        match tokens[at].as_str() {
            "::" => at += 1,
            "as" => {
                leaves.push((path, tokens[at + 1].clone()));
                return at + 2;
            }
            _ => {
                // `a::{self}` is `a`.
                path.pop_if(|name| name == "self" && !prefix.is_empty());
                let name = path.last().unwrap().clone();
                leaves.push((path, name));
                return at;
            }
        }
    }
}

#[test]
fn modules_import_only_from_layers_below() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut wrong = Vec::new();
    for (file, used) in Imports::of_crate().graph() {
        let own = layer(&file[0]).unwrap_or_else(|| panic!("module {} is in no layer of this test", file[0]));
        for other in used.iter().filter(|other| other[0] != file[0]) {
            if layer(&other[0]).is_none_or(|other| other <= own) {
                wrong.push(format!("{} imports {}", file.join("::"), other.join("::")));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that go the wrong way:\n{}", wrong.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let circles = in_circles(Imports::of_crate().graph());
    let line = |(file, used): (&Names, &BTreeSet<Names>)| {
        let used: Vec<_> = used.iter().map(|file| file.join("::")).collect();
        format!("{} imports {}", file.join("::"), used.join(", "))
    };
    let lines: Vec<_> = circles.iter().map(line).collect();
    assert!(circles.is_empty(), "files in a circle, or that lead to one:\n{}", lines.join("\n"));
}

/// README.md and this file say the same.
#[test]
fn readme_has_every_module_in_its_layer() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, layers) = readme.split_once("\n## Layers\n").unwrap();
    let mut rows = layers.lines().filter(|line| line.starts_with("| ")).skip(2);
    for layer in LAYERS {
        let named: BTreeSet<_> = rows.next().unwrap().split('`').skip(1).step_by(2).collect();
        assert_eq!(named, layer.iter().copied().collect());
    }
}

/// That a circle is found, also one through a `mod.rs` that passes names on, and that what is for tests is
/// not seen.
#[test]
fn circles_are_found_in_what_is_not_for_tests() {
    let mut imports = Imports::default();
    let mut add = |module: &[&str], text: &str| {
        imports.add(module.iter().map(|name| (*name).to_owned()).collect(), text);
    };
    add(&["a"], "pub mod b;\nmod c;\npub use b::{B as Other, D};\n/// See [`crate::e`].\nuse c::C;");
    add(&["a", "b"], "use std::{io, fs};\nfn f<'m>(x: &'m str) -> C { super::c::new('\"', \"crate::e\") }");
    add(&["a", "c"], "#[cfg(test)]\n#[allow(x)]\nmod tests { use crate::e::E; }\nstruct C;");
    add(&["e"], "use crate::a::{self};\nfn f() -> usize { a::Other::new() }");
    let graph = imports.graph();
    let names = |module: &str| module.split("::").map(str::to_owned).collect::<Names>();
    let used = |module: &str| graph[&names(module)].iter().map(|file| file.join("::")).collect::<Vec<_>>();
    assert_eq!((used("a"), used("a::b")), (vec!["a::c".to_owned()], vec!["a::c".to_owned()]));
    assert_eq!((used("a::c"), used("e")), (vec![], vec!["a".to_owned(), "a::b".to_owned()]));
    assert!(in_circles(graph).is_empty());

    imports.add(names("a::c"), "use super::Other;");
    let circle: Vec<_> = in_circles(imports.graph()).into_keys().map(|file| file.join("::")).collect();
    assert_eq!(circle, ["a", "a::b", "a::c", "e"]);
}
