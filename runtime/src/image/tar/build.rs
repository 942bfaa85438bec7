//! Archives made by hand, for tests: each function gives one entry with its meta headers, padded to whole blocks.

use super::header::{BLOCK, Block};

/// Fields of a header as they are written: the builder does not care whether they make sense.
pub(crate) struct Fields {
    block: Block,
}

/// Layouts to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    V7,
    Ustar,
    Gnu,
    Star,
}

impl Fields {
    /// A header of type byte `kind`: mode 0644, owned by root, with time 0. Only the first 100 bytes of the name fit.
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let mut fields = Self { block: [0; BLOCK] };
        fields.block[156] = kind;
        fields.text(0, 100, name).mode(0o644).owner(0, 0).size(0).mtime(0).layout(Layout::Ustar)
    }

    pub(crate) fn mode(self, mode: i64) -> Self {
        self.number(100, 8, mode)
    }

    pub(crate) fn owner(self, uid: i64, gid: i64) -> Self {
        self.number(108, 8, uid).number(116, 8, gid)
    }

    pub(crate) fn size(self, size: i64) -> Self {
        self.number(124, 12, size)
    }

    pub(crate) fn mtime(self, seconds: i64) -> Self {
        self.number(136, 12, seconds)
    }

    pub(crate) fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.text(157, 100, target)
    }

    pub(crate) fn device(self, major: i64, minor: i64) -> Self {
        self.number(329, 8, major).number(337, 8, minor)
    }

    pub(crate) fn layout(self, layout: Layout) -> Self {
        match layout {
            Layout::V7 => self.bytes(257, &[0; 8]),
            Layout::Ustar => self.bytes(257, b"ustar\x0000"),
            Layout::Gnu => self.bytes(257, b"ustar  \0"),
            Layout::Star => self.bytes(257, b"ustar\x0000").bytes(508, b"tar\0"),
        }
    }

    /// Writes bytes at a place of the block.
    pub(crate) fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Writes as much of a text as fits a field, and NULs behind it.
    pub(crate) fn text(self, at: usize, width: usize, text: impl AsRef<[u8]>) -> Self {
        let text = text.as_ref();
        let fits = &text[..text.len().min(width)];
        self.bytes(at, &vec![0; width]).bytes(at, fits)
    }

    /// Writes a number in octal, or in base 256 where octal has no room.
    pub(crate) fn number(self, at: usize, width: usize, value: i64) -> Self {
        let octal = format!("{value:0digits$o}", digits = width - 1);
        if value >= 0 && octal.len() < width {
            return self.text(at, width, octal);
        }
        let mut bytes = i128::from(value).to_be_bytes()[16 - width..].to_vec();
        bytes[0] |= 0x80;
        self.bytes(at, &bytes)
    }

    /// Ends the header with its checksum.
    pub(crate) fn block(mut self) -> Vec<u8> {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.bytes(148, format!("{sum:06o}\0 ").as_bytes()).block.to_vec()
    }

    /// The header with content, and with its size.
    pub(crate) fn with(self, content: impl AsRef<[u8]>) -> Vec<u8> {
        let content = content.as_ref();
        let size = i64::try_from(content.len()).unwrap();
        [self.size(size).block(), padded(content)].concat()
    }
}

/// A regular file. Names beyond 100 bytes get a GNU long name.
pub(crate) fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Vec<u8> {
    [long_name_if_needed(&name), Fields::new(b'0', name).with(content)].concat()
}

/// A directory with mode 0755.
pub(crate) fn dir(name: impl AsRef<[u8]>) -> Vec<u8> {
    [long_name_if_needed(&name), Fields::new(b'5', name).mode(0o755).block()].concat()
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Vec<u8> {
    link(b'2', name, target)
}

pub(crate) fn hard(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Vec<u8> {
    link(b'1', name, target)
}

pub(crate) fn fifo(name: impl AsRef<[u8]>) -> Vec<u8> {
    Fields::new(b'6', name).block()
}

/// A character (`b'3'`) or block (`b'4'`) device.
pub(crate) fn device(kind: u8, name: impl AsRef<[u8]>, major: i64, minor: i64) -> Vec<u8> {
    Fields::new(kind, name).device(major, minor).block()
}

/// An extended header for the next entry.
pub(crate) fn pax<K: AsRef<[u8]>, V: AsRef<[u8]>>(records: &[(K, V)]) -> Vec<u8> {
    Fields::new(b'x', "PaxHeaders/x").with(pax_records(records))
}

/// A global extended header.
pub(crate) fn global<K: AsRef<[u8]>, V: AsRef<[u8]>>(records: &[(K, V)]) -> Vec<u8> {
    Fields::new(b'g', "pax_global_header").with(pax_records(records))
}

/// The content of an extended header.
pub(crate) fn pax_records<K: AsRef<[u8]>, V: AsRef<[u8]>>(records: &[(K, V)]) -> Vec<u8> {
    let record = |(key, value): &(K, V)| {
        let rest = [b" ", key.as_ref(), b"=", value.as_ref(), b"\n"].concat();
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        [length.to_string().as_bytes(), &rest].concat()
    };
    records.iter().flat_map(record).collect()
}

/// GNU's long name for the next entry.
pub(crate) fn long_name(name: impl AsRef<[u8]>) -> Vec<u8> {
    Fields::new(b'L', "././@LongLink").layout(Layout::Gnu).with([name.as_ref(), b"\0"].concat())
}

/// GNU's long link target for the next entry.
pub(crate) fn long_link(target: impl AsRef<[u8]>) -> Vec<u8> {
    Fields::new(b'K', "././@LongLink").layout(Layout::Gnu).with([target.as_ref(), b"\0"].concat())
}

/// The archive of these entries, with its end.
pub(crate) fn end<P: AsRef<[u8]>>(parts: &[P]) -> Vec<u8> {
    let mut archive = parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().concat();
    archive.extend([0; 2 * BLOCK]);
    archive
}

/// The content with zeros up to a whole block.
pub(crate) fn padded(content: &[u8]) -> Vec<u8> {
    let mut bytes = content.to_vec();
    bytes.resize(content.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn link(kind: u8, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Vec<u8> {
    let mut meta = long_name_if_needed(&name);
    if target.as_ref().len() > 100 {
        meta.extend(long_link(&target));
    }
    [meta, Fields::new(kind, name).mode(0o777).link(target).block()].concat()
}

fn long_name_if_needed(name: &impl AsRef<[u8]>) -> Vec<u8> {
    if name.as_ref().len() > 100 { long_name(name) } else { Vec::new() }
}
