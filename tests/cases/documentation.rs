//! Every link in the repository's own pages leads to something that is there, every folder tells what it is
//! for, and the ledger of public holes names tests that exist. Needs neither root nor a node.

use isopod_tests::artefacts::repository;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files that git knows.
fn tracked() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .arg("-C")
        .arg(repository())
        .args(["ls-files", "-co", "--exclude-standard"])
        .output();
    let listed = listed.expect("git is there").stdout;
    String::from_utf8_lossy(&listed).lines().map(PathBuf::from).collect()
}

/// Targets of `[text](target)`, without anchors.
fn links(text: &str) -> Vec<&str> {
    let after_bracket = text.split("](").skip(1);
    after_bracket
        .filter_map(|rest| rest.split(')').next())
        .map(|t| t.split('#').next().unwrap_or(t))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for page in tracked().iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(repository().join(page)).expect("a tracked page can be read");
        let folder = repository().join(page.parent().unwrap_or(Path::new("")));
        for link in links(&text).into_iter().filter(|l| !l.is_empty() && !l.contains("://")) {
            if !folder.join(link).exists() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn files_that_the_walk_names_are_there() {
    let walk =
        fs::read_to_string(repository().join("docs/run-pod-sandbox.md")).expect("the walk can be read");
    let named = walk.split('`').filter(|word| word.ends_with(".rs") && word.contains('/'));
    let missing: Vec<_> = named.filter(|path| !repository().join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

/// `src` of a crate is told by the crate's page, and a folder with one file by that file.
#[test]
fn every_folder_has_a_readme() {
    let mut files = BTreeMap::<PathBuf, usize>::new();
    for folder in tracked().iter().filter_map(|file| file.parent()) {
        *files.entry(folder.to_owned()).or_default() += 1;
    }
    let told = |folder: &Path| {
        let hidden = folder.starts_with(".cargo") || folder.starts_with(".ci");
        let of_crate = folder.ends_with("src") || folder.ends_with("src/bin");
        hidden || of_crate || repository().join(folder).join("README.md").exists()
    };
    let silent: Vec<_> = files.iter().filter(|(folder, count)| **count > 1 && !told(folder)).collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

/// The rows of the ledger in `docs/threat-model.md`: which hole, and the tests that hold its rule, as
/// `FILE::NAME`.
fn ledger() -> Vec<(String, Vec<String>)> {
    let page = fs::read_to_string(repository().join("docs/threat-model.md")).expect("the page can be read");
    let (_, table) = page.split_once("\n| hole |").expect("the page has the ledger");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    let row = |row: &str| {
        let cells: Vec<String> = cells(row);
        assert_eq!(cells.len(), 4, "not a row of four cells: {row}");
        let tests = cells[3].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (cells[0].clone(), tests)
    };
    rows.map(row).collect()
}

/// Whether a file has that test: marked as one, or in the list of an end-to-end program's cases.
fn has_test(text: &str, name: &str) -> bool {
    let Some((before, _)) = text.split_once(&format!("fn {name}(")) else { return false };
    let mut attributes = before.rsplit('\n').skip(1).take_while(|line| line.trim_start().starts_with('#'));
    let marked = attributes.any(|line| line.contains("test"));
    let cases = text.split_once("cases![").and_then(|(_, rest)| rest.split_once(']'));
    let listed = cases.is_some_and(|(cases, _)| cases.split([',', ':']).any(|case| case.trim() == name));
    marked || listed
}

#[test]
fn every_row_of_the_ledger_names_tests_that_exist() {
    let rows = ledger();
    assert!(rows.len() > 50, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for (hole, tests) in &rows {
        if tests.is_empty() {
            wrong.push(format!("{hole}: no test"));
        }
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or((test, ""));
            let text = fs::read_to_string(repository().join(file)).unwrap_or_default();
            if !has_test(&text, name) {
                wrong.push(format!("{hole}: {test}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_hole_has_one_row() {
    let mut holes: Vec<_> = ledger().into_iter().map(|(hole, _)| hole).collect();
    holes.sort();
    let twice: Vec<_> = holes.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:#?}");
}

/// The oldest versions of libraries without a hole that is known to the ledger.
const WHOLE: [(&str, [u64; 3]); 4] = [
    ("libcontainer", [0, 5, 7]),
    ("linux-loader", [0, 8, 1]),
    ("vm-memory", [0, 12, 2]),
    ("vmm-sys-util", [0, 12, 0]),
];

#[test]
fn libraries_are_newer_than_their_known_holes() {
    let lock = fs::read_to_string(repository().join("Cargo.lock")).expect("the lock file can be read");
    let field = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    for (name, whole) in WHOLE {
        let packages =
            lock.split("[[package]]").filter(|package| field(package, "name").as_deref() == Some(name));
        let versions: Vec<_> = packages.filter_map(|package| field(package, "version")).collect();
        assert!(!versions.is_empty(), "{name} is used no more: take it out of the list");
        for version in versions {
            let plain = version.split(['+', '-']).next().unwrap_or_default();
            let numbers: Vec<u64> = plain.split('.').filter_map(|part| part.parse().ok()).collect();
            assert!(numbers.as_slice() >= whole.as_slice(), "{name} {version} has a known hole");
        }
    }
}
