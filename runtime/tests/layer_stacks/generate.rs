//! Random layers: few names at little depth, so that entries meet, in every spelling that builders use and some that
//! nobody should.

use crate::random::Random;
use crate::tar::{Entry, Format};

/// `cap_net_raw+ep`, as Linux keeps it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Read and write for the owner and for user 5, read for the rest, in version 2.
const ACCESS_LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xFF\xFF\xFF\xFF\x02\0\x06\0\x05\0\0\0\x04\0\x04\0\xFF\xFF\xFF\xFF\
    \x10\0\x06\0\xFF\xFF\xFF\xFF\x20\0\x04\0\xFF\xFF\xFF\xFF";

/// A random entry. Whether it makes sense where it comes is for the model to say.
pub fn entry(random: &mut Random) -> Entry {
    let kind = random.pick(b"00000005555551111222223346\0");
    let mut entry = Entry::new(kind, name(random));
    if entry.kind == 0 && random.percent(60) {
        entry.name.push(b'/');
    }
    if random.percent(3) && kind == b'5' {
        entry.name = random.pick(&[&b"/"[..], b"./", b".", b"", b"//", b"../", b"a/.."]).to_vec();
    }
    entry.format = random.pick(&[Format::Pax, Format::Pax, Format::Gnu]);
    entry.mode = random.pick(&[0o644, 0o755, 0o600, 0o4755, 0o2775, 0o1777, 0, 0o7777]);
    entry.uid = random.pick(&[0, 1, 1000, 65_535, 65_536, 2_097_151, 2_097_152, 4_000_000_000]);
    entry.gid = random.pick(&[0, 5, 100_000, 4_294_967_294]);
    let seconds =
        random.pick(&[0, 1, 1_700_000_000, 8_589_934_591, 8_589_934_592, 9_223_372_036, 1 << 40, -1]);
    entry.mtime = (seconds, random.pick(&[0, 1, 500_000_000, 999_999_999]));
    match kind {
        b'1' => entry.link = name(random),
        b'2' => entry.link = link_target(random),
        b'3' => entry.device = random.pick(&[(0, 0), (0, 0), (1, 3), (4095, 1_048_575)]),
        b'4' => entry.device = random.pick(&[(0, 0), (8, 1), (259, 256)]),
        b'0' | 0 if !entry.name.ends_with(b"/") => entry.data = content(random),
        _ => {}
    }
    if entry.format == Format::Gnu {
        entry.mtime.1 = 0;
    } else {
        attributes(random, &mut entry);
    }
    entry
}

fn component(random: &mut Random) -> Vec<u8> {
    match random.below(60) {
        0 => vec![b'n'; 255],
        1 => vec![b'n'; 256],
        2 => b"line\nend".to_vec(),
        3 => b"\xFF\xFE".to_vec(),
        4 => "\u{e9}".as_bytes().to_vec(),
        5 => b" a ".to_vec(),
        6 => b"..a".to_vec(),
        7 => b"a=b\\".to_vec(),
        8 => b".wh.a".to_vec(),
        9 => b".wh..wh.x".to_vec(),
        _ => vec![random.pick(b"aaabbcd")],
    }
}

/// A path, with a last component that may hide another.
fn name(random: &mut Random) -> Vec<u8> {
    let depth = random.pick(&[1, 1, 1, 2, 2, 2, 2, 3, 3, 4]);
    let mut parts: Vec<Vec<u8>> = (0..depth).map(|_| component(random)).collect();
    let last = parts.last_mut().unwrap();
    match random.below(100) {
        0..16 => *last = [b".wh.", &last[..]].concat(),
        16..20 => *last = b".wh..wh..opq".to_vec(),
        20 => {
            *last = random
                .pick(&[&b".wh."[..], b".wh..", b".wh...", b".wh..wh.plnk", b".wh....", b".wh"])
                .to_vec()
        }
        _ => {}
    }
    if random.percent(4) {
        let odd: &[u8] = random.pick(&[&b".."[..], b".", b"", b"..."]);
        parts.insert(random.below(depth), odd.to_vec());
    }
    let begin: &[u8] =
        random.pick(&[&b""[..], b"", b"", b"", b"/", b"./", b"../", b"//", b"/../", "x/../".as_bytes()]);
    [begin, &parts.join(&b'/')].concat()
}

fn link_target(random: &mut Random) -> Vec<u8> {
    match random.below(12) {
        0 => b"/".to_vec(),
        1 => b".".to_vec(),
        2 => b"..".to_vec(),
        3 => b"../../../a".to_vec(),
        4 | 9 => [&b"/"[..], &name(random)].concat(),
        5 => [&b"../"[..], &component(random)].concat(),
        6 => [&component(random)[..], b"/../", &component(random)].concat(),
        7 => [&component(random)[..], b"//./"].concat(),
        8 => name(random),
        _ => component(random),
    }
}

fn content(random: &mut Random) -> Vec<u8> {
    let length = random.pick(&[0, 1, 5, 100, 511, 512, 513, 4032, 4033, 4096, 5000, 70_000]);
    let byte = random.pick(b"\0xyz");
    let mut bytes = vec![byte; length];
    if let Some(last) = bytes.last_mut() {
        *last = random.next().to_le_bytes()[0];
    }
    bytes
}

fn attributes(random: &mut Random, entry: &mut Entry) {
    // a hard link cannot change the attributes that a file has
    if entry.kind == b'1' {
        return;
    }
    let choices: [(&[u8], &[&[u8]]); 7] = [
        (b"user.a", &[b"y", b"\0\x01=\n", b"", &[7; 300]]),
        (b"security.capability", &[CAPABILITY]),
        (b"security.note", &[b"y", b""]),
        (b"trusted.x", &[b"y"]),
        (b"system.posix_acl_access", &[ACCESS_LIST, b"\x03\0\0\0", b""]),
        (b"trusted.overlay.opaque", &[b"y"]),
        (b"foreign.x", &[b"y"]),
    ];
    for (name, values) in choices {
        if random.percent(7) {
            entry.attributes.push((name.to_vec(), random.pick(values).to_vec()));
        }
    }
}
