//! The environment of a container, from what node, image and pod say, in time linear in the number of
//! entries.
//!
//! Called by `oci`. Entries are bytes: a Secret may hold any but zero, and JSON, hence the OCI spec, has no
//! place for them. They travel beside the spec. (containerd passes them through JSON, which replaces what is
//! not UTF-8 by U+FFFD.)
//!
//! Source: containerd's `replaceOrAppendEnvValues` (pkg/oci), runc's `prepareEnv` (libcontainer/env.go).

use std::collections::HashSet;

/// The node's `defaults`, changed and extended by `entries`, which are the image's followed by the pod's.
///
/// An entry that names a default takes its place; one without `=` removes the default of that name, and is
/// dropped otherwise. Of several entries of one name the last one stays, where it stands. An entry without a
/// name is dropped.
pub fn merge(defaults: Vec<Vec<u8>>, entries: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let names: Vec<Vec<u8>> = defaults.iter().map(|entry| name(entry).to_vec()).collect();
    let mut merged: Vec<Option<Vec<u8>>> = defaults.into_iter().map(Some).collect();
    for entry in entries {
        let default = names.iter().position(|default| default == name(&entry));
        match (default, entry.contains(&b'=')) {
            (Some(place), true) => merged[place] = Some(entry),
            (Some(place), false) => merged[place] = None,
            (None, true) => merged.push(Some(entry)),
            (None, false) => {}
        }
    }
    let mut seen = HashSet::new();
    let mut last: Vec<Vec<u8>> = Vec::with_capacity(merged.len());
    for entry in merged.into_iter().rev().flatten() {
        if !name(&entry).is_empty() && seen.insert(name(&entry).to_vec()) {
            last.push(entry);
        }
    }
    last.reverse();
    last
}

/// What stands before the first `=`.
fn name(entry: &[u8]) -> &[u8] {
    entry.split(|byte| *byte == b'=').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn merged(defaults: &[&str], entries: &[&str]) -> Vec<String> {
        let bytes = |list: &[&str]| list.iter().map(|entry| entry.as_bytes().to_vec()).collect::<Vec<_>>();
        let merged = merge(bytes(defaults), bytes(entries).into_iter());
        merged.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect()
    }

    #[test]
    fn later_entry_wins_where_it_stands_and_a_default_keeps_its_place() {
        let entries = ["A=1", "PATH=/image", "B=b=c", "A=2", "EMPTY=", "PATH=/pod"];
        assert_eq!(
            merged(&["PATH=/bin", "TERM=xterm"], &entries),
            ["PATH=/pod", "TERM=xterm", "B=b=c", "A=2", "EMPTY="]
        );
    }

    #[test]
    fn entries_without_equals_sign_or_name_are_dropped() {
        assert_eq!(merged(&["PATH=/bin"], &["NO_VALUE", "A=1", "A", "=x", "", "="]), ["PATH=/bin", "A=1"]);
        assert_eq!(merged(&["PATH=/bin", "TERM=xterm"], &["TERM"]), ["PATH=/bin"], "a bare name unsets");
    }

    #[test]
    fn bytes_stay_as_they_are() {
        let entry = b"SECRET=\xff\xfe\x01=".to_vec();
        assert_eq!(merge(Vec::new(), std::iter::once(entry.clone())), [entry]);
    }

    #[test]
    fn hundred_thousand_entries_take_no_time() {
        let begun = Instant::now();
        let entries = (0..100_000).map(|n| format!("NAME_{n}=value").into_bytes());
        assert_eq!(merge(Vec::new(), entries).len(), 100_000);
        // A quadratic algorithm would take minutes.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn every_name_appears_once_with_its_last_value(
            entries in proptest::collection::vec("[A-D]=[a-c]{0,2}", 0..12)
        ) {
            let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
            let merged = merged(&["A=default"], &entries);
            let mut names: Vec<_> = merged.iter().map(|entry| &entry[..1]).collect();
            names.sort_unstable();
            let before = names.len();
            names.dedup();
            prop_assert_eq!(names.len(), before);
            for entry in &entries {
                let last = entries.iter().rev().find(|other| other[..1] == entry[..1]).unwrap();
                prop_assert!(merged.iter().any(|entry| entry == last));
            }
        }
    }
}
