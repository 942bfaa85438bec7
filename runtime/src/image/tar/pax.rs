//! Records of a pax extended header: `LENGTH KEY=VALUE\n`, again and again.
//!
//! Called by `reader` with the whole of one extended header. Keeps only the records that decide something; of records with
//! one key the last counts.

use super::header::Header;
use super::number::{decimal, time};
use std::collections::BTreeMap;

const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";

/// Keys whose values the reader uses. `atime` and `ctime` are read because a damaged one makes Go refuse the entry.
const KEYS: [&str; 15] = [
    "path",
    "linkpath",
    "uid",
    "gid",
    "size",
    "mtime",
    "atime",
    "ctime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.numblocks",
    "GNU.sparse.map",
];

/// What an extended header says about the entry after it.
#[derive(Debug, Default)]
pub(super) struct Records {
    values: BTreeMap<&'static str, Vec<u8>>,
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Records {
    /// Reads an extended header. The error says what is wrong with it.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        let mut map = Vec::new();
        while !bytes.is_empty() {
            let (key, value) = take_record(&mut bytes)?;
            if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
                push_number(&mut map, key, value)?;
            } else if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                records.attributes.insert(name.to_owned(), value.to_owned());
            } else if let Some(known) = KEYS.into_iter().find(|known| known.as_bytes() == key) {
                records.values.insert(known, value.to_owned());
            }
        }
        // version 0.0 of GNU's sparse format repeats keys, which pax does not allow; 0.1 has the same as one record
        if !map.is_empty() {
            records.values.insert("GNU.sparse.map", map.join(&b','));
        }
        Ok(records)
    }

    /// The value of one of `KEYS`, empty where the header has none: an empty value means that there is none.
    pub(super) fn get(&self, key: &str) -> &[u8] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// Replaces the header's fields for which there is a record. The error says which record cannot be read.
    pub(super) fn apply(&self, header: &mut Header) -> Result<(), &'static str> {
        let number = |key, error| match self.get(key) {
            b"" => Ok(None),
            text => decimal(text).map(Some).ok_or(error),
        };
        let moment = |key, error| match self.get(key) {
            b"" => Ok(None),
            text => time(text).map(Some).ok_or(error),
        };
        header.uid = number("uid", "its record `uid` is no number")?.unwrap_or(header.uid);
        header.gid = number("gid", "its record `gid` is no number")?.unwrap_or(header.gid);
        header.size = number("size", "its record `size` is no number")?.unwrap_or(header.size);
        header.mtime = moment("mtime", "its record `mtime` is no time")?.unwrap_or(header.mtime);
        moment("atime", "its record `atime` is no time")?;
        moment("ctime", "its record `ctime` is no time")?;
        for (key, field) in [("path", &mut header.name), ("linkpath", &mut header.link)] {
            if !self.get(key).is_empty() {
                self.get(key).clone_into(field);
            }
        }
        Ok(())
    }

    /// The extended attributes by name.
    pub(super) fn into_attributes(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.attributes.into_iter().collect()
    }
}

/// Splits the first record off, and gives its key and its value.
fn take_record<'a>(bytes: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), &'static str> {
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or("a record has no length")?;
    let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok());
    let length = length
        .filter(|length| *length > space + 1 && *length <= bytes.len())
        .ok_or("the length of a record is wrong")?;
    let (record, rest) = bytes.split_at(length);
    *bytes = rest;
    let record = record[space + 1..].strip_suffix(b"\n").ok_or("a record does not end with its line")?;
    let equals = record.iter().position(|byte| *byte == b'=').ok_or("a record has no value")?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let checked = if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname" | b"GNU.sparse.name") {
        value
    } else {
        key
    };
    if checked.contains(&0) {
        return Err("a name in it has a NUL");
    }
    if key.is_empty() {
        return Err("a record has no key");
    }
    Ok((key, value))
}

/// Takes the next number of a map in version 0.0: offsets and lengths alternate.
fn push_number<'a>(map: &mut Vec<&'a [u8]>, key: &[u8], value: &'a [u8]) -> Result<(), &'static str> {
    let expected = if map.len().is_multiple_of(2) { SPARSE_OFFSET } else { SPARSE_LENGTH };
    if key != expected || value.contains(&b',') {
        return Err("the map of a sparse file is out of order");
    }
    map.push(value);
    Ok(())
}
