//! Writes tar archives in the header formats that builders use. Written for tests: it writes whatever it is told.
#![allow(dead_code, reason = "the tests of `erofs` use other parts of it")]

use std::io::Write;

/// How an entry's header is written. What a format cannot hold is written as that format's writers do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ustar, with a GNU record for long names and base-256 for numbers that do not fit.
    Gnu,
    /// ustar, with a pax header for what does not fit.
    Pax,
}

/// One entry; `kind` is its type flag.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub data: Vec<u8>,
    pub format: Format,
}

impl Entry {
    /// An entry of root's without content, of 1970.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            link: Vec::new(),
            device: (0, 0),
            attributes: Vec::new(),
            data: Vec::new(),
            format: Format::Pax,
        }
    }

    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self { data: data.as_ref().to_vec(), ..Self::new(b'0', name) }
    }

    pub fn linked(kind: u8, name: impl AsRef<[u8]>, link: impl AsRef<[u8]>) -> Self {
        Self { link: link.as_ref().to_vec(), ..Self::new(kind, name) }
    }

    pub fn with_attribute(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.attributes.push((name.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, archive: &mut Vec<u8>) {
        match self.format {
            Format::Pax => {
                let records = self.pax_records();
                if !records.is_empty() {
                    block(archive, &header(b"pax", b'x', &[], records.len() as u64, None), &records);
                }
            }
            Format::Gnu => {
                for (kind, text, limit) in [(b'K', &self.link, 100), (b'L', &self.name, 100)] {
                    if text.len() > limit {
                        let text = [&text[..], &[0]].concat();
                        block(archive, &header(b"././@LongLink", kind, &[], text.len() as u64, None), &text);
                    }
                }
            }
        }
        let header = header(&self.name, self.kind, &self.link, self.data.len() as u64, Some(self));
        block(archive, &header, &self.data);
    }

    fn pax_records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if self.name.len() > 100 || !self.name.is_ascii() {
            record(&mut records, b"path", &self.name);
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            record(&mut records, b"linkpath", &self.link);
        }
        for (key, id) in [(b"uid", self.uid), (b"gid", self.gid)] {
            if id > 0o777_7777 {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        if !(0..1 << 33).contains(&self.mtime.0) || self.mtime.1 != 0 {
            record(&mut records, b"mtime", pax_time(self.mtime).as_bytes());
        }
        for (name, value) in &self.attributes {
            record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        records
    }
}

/// The whole archive of `entries`.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        entry.write(&mut archive);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// `-1.5` is a second and a half before 1970: the fraction has the sign of the whole number.
fn pax_time((seconds, nanoseconds): (i64, u32)) -> String {
    if seconds < 0 && nanoseconds != 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// `LENGTH KEY=VALUE\n`, where LENGTH counts all of it.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    write!(records, "{length} ").unwrap();
    records.extend([key, b"=", value, b"\n"].concat());
}

fn block(archive: &mut Vec<u8>, header: &[u8; 512], data: &[u8]) {
    archive.extend(header);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn header(name: &[u8], kind: u8, link: &[u8], size: u64, entry: Option<&Entry>) -> [u8; 512] {
    let mut header = [0; 512];
    let gnu = entry.is_some_and(|entry| entry.format == Format::Gnu);
    copy(&mut header[..100], name);
    number(&mut header[100..108], entry.map_or(0o644, |entry| entry.mode.into()), gnu);
    number(&mut header[108..116], entry.map_or(0, |entry| entry.uid.into()), gnu);
    number(&mut header[116..124], entry.map_or(0, |entry| entry.gid.into()), gnu);
    number(&mut header[124..136], i64::try_from(size).unwrap(), gnu);
    number(&mut header[136..148], entry.map_or(0, |entry| entry.mtime.0), gnu);
    header[156] = kind;
    copy(&mut header[157..257], link);
    copy(&mut header[257..265], if gnu { b"ustar  \0" } else { b"ustar\x0000" });
    if let Some(entry) = entry.filter(|entry| matches!(entry.kind, b'3' | b'4')) {
        number(&mut header[329..337], entry.device.0.into(), gnu);
        number(&mut header[337..345], entry.device.1.into(), gnu);
    }
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn copy(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Octal where it fits; else base-256 as GNU writes it, or zero, for which a pax record stands.
fn number(field: &mut [u8], value: i64, base256: bool) {
    let digits = field.len() - 1;
    let octal = format!("{value:0digits$o}");
    if value >= 0 && octal.len() == digits {
        field[..digits].copy_from_slice(octal.as_bytes());
    } else if base256 {
        let bytes = value.to_be_bytes();
        field.fill(if value < 0 { 0xFF } else { 0 });
        let kept = field.len().min(bytes.len());
        let start = field.len() - kept;
        field[start..].copy_from_slice(&bytes[bytes.len() - kept..]);
        field[0] = if value < 0 { 0xFF } else { field[0] | 0x80 };
    } else {
        field[..digits].fill(b'0');
    }
}
