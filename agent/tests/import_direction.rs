//! Holds the layers of `agent/README.md`: modules import only downwards, and no files use each other in a
//! circle.
//!
//! One file uses another when it imports from it or names it by a path. In a folder, `mod.rs` shows what the
//! folder has: its `mod` and `pub use` lines are no uses, and a name that it re-exports counts as the file's
//! that has it. So a `mod.rs` may work with the files of its folder, and what these share with each other
//! must be in one of them: a file that uses its own `mod.rs`, which works with it, is a circle too. There is
//! no exception. Tests do not count.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Modules and what each may use, beside those of the lowest level.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["init", "child"]),
    ("init", &["server", "sandbox", "cgroup"]),
    ("server", &["sandbox", "container", "process", "stdio", "stats", "processors", "reaper"]),
    // Names the errors of all.
    ("server/status", &["identity", "child", "storage", "network", "sysctl", "cgroup"]),
    ("sandbox", &["identity", "container", "stats", "storage", "network", "sysctl"]),
    ("identity", &["storage", "network", "sysctl"]),
    ("container", &["process", "stdio", "reaper", "child", "storage", "cgroup"]),
    ("stats", &["storage", "cgroup"]),
    ("process", &["stdio", "reaper"]),
    ("child", &["cgroup"]),
    ("stdio", &[]),
    ("reaper", &[]),
    ("processors", &[]),
    ("storage", &[]),
    ("network", &[]),
    ("sysctl", &[]),
    ("cgroup", &[]),
];

/// What everybody may use, and what uses nothing but its own kind.
const LOWEST: &[&str] = &["id", "directory", "console", "clock", "lock", "event_loop", "sys"];

/// Modules that only tests have.
const TESTS: &[&str] = &["in_guest", "tests"];

/// The path of a module from the top of the crate; empty for `main`.
type Module = Vec<String>;

/// The files of the crate, without their tests, by module.
struct Sources {
    code: BTreeMap<Module, String>,
}

impl Sources {
    fn read() -> Sources {
        let mut sources = Sources { code: BTreeMap::new() };
        sources.read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Vec::new());
        sources
    }

    fn read_folder(&mut self, folder: &Path, module: &Module) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let of = match name.as_str() {
                name if TESTS.contains(&name) => continue,
                "mod" | "main" => module.clone(),
                name => [module.as_slice(), &[name.to_owned()]].concat(),
            };
            if path.is_dir() {
                self.read_folder(&path, &of);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.code.insert(of, without_tests_and_comments(&fs::read_to_string(&path).unwrap()));
            }
        }
    }

    /// Which file has what `path` names, if it is one of this crate; `here` is the module whose code names
    /// it.
    fn file_of(&self, here: &Module, path: &[String]) -> Option<Module> {
        let (first, mut rest) = path.split_first()?;
        let mut module = match first.as_str() {
            "crate" => Vec::new(),
            "self" => here.clone(),
            "super" => here[..here.len() - 1].to_vec(),
            name => {
                rest = path;
                let child = [here.as_slice(), &[name.to_owned()]].concat();
                match self.code.contains_key(&child) {
                    true => here.clone(),
                    false => return None,
                }
            }
        };
        for name in rest {
            let below = [module.as_slice(), std::slice::from_ref(name)].concat();
            if name == "super" {
                module.pop();
            } else if self.code.contains_key(&below) {
                module = below;
            } else {
                return Some(self.re_exported(&module, name).unwrap_or(module));
            }
        }
        Some(module)
    }

    /// The file that has a name which a module re-exports.
    fn re_exported(&self, module: &Module, name: &str) -> Option<Module> {
        let (imports, _) = split(&self.code[module]);
        let mut paths = imports.iter().filter(|(public, _)| *public).flat_map(|(_, tree)| expanded(tree));
        let path = paths.find(|path| path.last().is_some_and(|last| last == name))?;
        self.file_of(module, &path)
    }

    /// The files that the file of a module uses.
    fn uses(&self, module: &Module) -> BTreeSet<Module> {
        let (imports, code) = split(&self.code[module]);
        let imports: Vec<Vec<String>> =
            imports.iter().filter(|(public, _)| !public).flat_map(|(_, tree)| expanded(tree)).collect();
        let mut uses: BTreeSet<Module> =
            imports.iter().filter_map(|path| self.file_of(module, path)).collect();
        for path in named_paths(&code) {
            // A path may begin with a module that was imported.
            let imported = imports.iter().find(|import| import.last() == path.first());
            let whole = match imported {
                Some(import) => [import.as_slice(), &path[1..]].concat(),
                None => path,
            };
            uses.extend(self.file_of(module, &whole));
        }
        uses.remove(module);
        uses
    }

    /// All uses of one file by another.
    fn all_uses(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        self.code.keys().map(|module| (module.clone(), self.uses(module))).collect()
    }
}

/// A file's code up to its tests, which stand last, without comments.
fn without_tests_and_comments(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// A `use` statement: whether it is a re-export, and what stands between `use` and `;`.
type Import = (bool, String);

/// Splits a file's code into its `use` statements and the rest.
fn split(code: &str) -> (Vec<Import>, String) {
    let (mut imports, mut others) = (Vec::new(), String::new());
    let mut left = code;
    while let Some(at) = left.find("use ") {
        let before = left[..at].rsplit('\n').next().unwrap_or_default().trim();
        let is_import = before.is_empty() || before.starts_with("pub");
        others.push_str(&left[..at]);
        left = &left[at + 4..];
        if is_import {
            let (tree, after) = left.split_once(';').unwrap();
            imports.push((before.starts_with("pub"), tree.split_whitespace().collect()));
            left = after;
        }
    }
    (imports, others + left)
}

/// The paths of an import with braces: `a::{self, b::C}` is `a` and `a::b::C`.
fn expanded(tree: &str) -> Vec<Vec<String>> {
    let Some((prefix, list)) = tree.split_once('{') else {
        let names = tree.split("::").filter(|name| !name.is_empty() && *name != "*");
        return vec![names.map(str::to_owned).collect()];
    };
    let list = list.strip_suffix('}').unwrap();
    let mut depth = 0;
    let parts = list.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let paths = parts.filter(|part| !part.is_empty()).flat_map(|part| match part {
        "self" => expanded(prefix),
        part => expanded(&format!("{prefix}{part}")),
    });
    paths.collect()
}

/// The paths of two names and more in a file's code.
fn named_paths(code: &str) -> Vec<Vec<String>> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    let words = code.split(|c| !is_part(c)).filter(|word| word.contains("::"));
    let paths =
        words.map(|word| word.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect());
    paths.filter(|path: &Vec<String>| path.len() > 1).collect()
}

/// What is left of `uses` when files are taken out that are in no circle: those that use none of the others,
/// and those that none of the others uses.
fn circles(mut uses: BTreeMap<Module, BTreeSet<Module>>) -> Vec<String> {
    loop {
        let used: BTreeSet<Module> = uses.values().flatten().cloned().collect();
        let left: BTreeSet<Module> = uses.keys().cloned().collect();
        uses.retain(|module, used_here| {
            used_here.retain(|other| left.contains(other));
            !used_here.is_empty() && used.contains(module)
        });
        if uses.len() == left.len() {
            let line = |used: &BTreeSet<Module>| used.iter().map(shown).collect::<Vec<_>>().join(", ");
            return uses
                .iter()
                .map(|(module, used)| format!("{} uses {}", shown(module), line(used)))
                .collect();
        }
    }
}

fn shown(module: &Module) -> String {
    if module.is_empty() { "main".to_owned() } else { module.join("/") }
}

/// What the files of a module may use: those of its own, of the lowest level, and of the table, where a file
/// may have a line of its own.
fn may_use(from: &Module, to: &Module) -> bool {
    let (from, to) = (shown(from), shown(to));
    let top = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
    let (of, used) = (top(&from), top(&to));
    if of == used || LOWEST.contains(&used.as_str()) {
        return true;
    }
    assert!(
        LOWEST.contains(&of.as_str()) || MAY_USE.iter().any(|(name, _)| *name == of),
        "module {of} has no line in this test: say what it may use"
    );
    let lines = MAY_USE.iter().filter(|(name, _)| *name == of || *name == from);
    lines.flat_map(|(_, uses)| uses.iter()).any(|name| *name == used)
}

#[test]
fn modules_import_only_downwards() {
    let mut wrong = Vec::new();
    for (from, uses) in Sources::read().all_uses() {
        wrong.extend(uses.iter().filter(|to| !may_use(&from, to)).map(|to| (shown(&from), shown(to))));
    }
    assert!(wrong.is_empty(), "imports that go the wrong way: {wrong:#?}");
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let uses = Sources::read().all_uses();
    assert!(uses.len() > 50 && uses.values().map(BTreeSet::len).sum::<usize>() > 100, "files are not read");
    let circles = circles(uses);
    assert!(circles.is_empty(), "files that use each other in a circle:\n{}", circles.join("\n"));
}

#[test]
fn only_the_server_knows_grpc() {
    for (module, code) in &Sources::read().code {
        let is_servers = module.first().is_some_and(|top| top == "server");
        assert!(is_servers || !code.contains("tonic::"), "{} uses tonic", shown(module));
    }
}

#[test]
fn uses_and_circles_are_read_from_imports_and_paths() {
    let module = |path: &str| -> Module { path.split('/').map(str::to_owned).collect() };
    let code = [
        ("a", "pub use b::Item;\nmod b;\nmod c;\nfn work() { c::work() }\n"),
        ("a/b", "use super::c::{self, Other};\nuse crate::d;\nfn f() { d::e::work(); std::fs::read(\"\"); }"),
        ("a/c", "use crate::{a::Item, d::e};"),
        ("d", "pub mod e;"),
        ("d/e", "pub fn work() {} #[cfg(test)]\nmod tests { use crate::a::Item; }"),
    ];
    let code = code.map(|(path, code)| (module(path), without_tests_and_comments(code)));
    let sources = Sources { code: code.into() };
    let uses = |path: &str| sources.uses(&module(path)).iter().map(shown).collect::<Vec<_>>().join(" ");
    assert_eq!(uses("a"), "a/c");
    assert_eq!(uses("a/b"), "a/c d d/e");
    assert_eq!(uses("a/c"), "a/b d/e");
    assert_eq!(uses("d"), "");
    assert_eq!(uses("d/e"), "");
    assert_eq!(circles(sources.all_uses()), ["a/b uses a/c", "a/c uses a/b"]);
}
