//! Every link in the repository's own pages leads to something that is there, and every folder tells what it is for.
//! Needs neither root nor a node.

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
