//! Ids of sandboxes and containers: random, or given by whoever asks for them; plain file names, and short
//! enough that a socket below a directory named by one fits into a `sockaddr_un` (108 bytes).
//!
//! Used by `sandbox` and `container`.

use std::fs::File;
use std::io::{self, Read};

/// Bytes of randomness in an id; it has twice as many characters.
const BYTES: usize = 16;

/// Longest id that is taken, bytes: those of containerd have 64, and 76 at most.
const LONGEST: usize = 76;

/// A new id: 32 lower-case hexadecimal digits.
///
/// # Errors
/// Where the kernel's random device cannot be read.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0; BYTES];
    fill_random(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether a text could be an id of ours, whoever it comes from.
pub fn is_id(text: &str) -> bool {
    text.len() == 2 * BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a text may be an id, whoever chose it: letters, digits, `_`, `-` and `.`, not beginning with a
/// dot. Agents take the same.
pub fn is_valid(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !text.is_empty() && text.len() <= LONGEST && !text.starts_with('.') && text.bytes().all(allowed)
}

/// Fills `bytes` from the kernel's random device.
///
/// # Errors
/// Where it cannot be read.
pub fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

/// Why an id or a prefix of one names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// No id begins like this.
    None,
    /// More than one does.
    Ambiguous,
}

/// The one of `sorted` ids that is `wanted`, or else the only one that begins with it. An empty `wanted` names none.
///
/// # Errors
/// Where there is none, or more than one.
pub fn resolve<'a>(wanted: &str, sorted: impl Iterator<Item = &'a str>) -> Result<&'a str, Mismatch> {
    if wanted.is_empty() {
        return Err(Mismatch::None);
    }
    let mut found = Err(Mismatch::None);
    for id in sorted.filter(|id| id.starts_with(wanted)) {
        match found {
            _ if id == wanted => return Ok(id),
            Err(Mismatch::None) => found = Ok(id),
            _ => found = Err(Mismatch::Ambiguous),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(a.len(), 32);
        assert!(is_id(&a) && is_id(&b));
        for other in ["", "../../../../../../../../etc/passwd", &a[1..], &a.to_uppercase().replace('0', "G")]
        {
            assert!(!is_id(other), "{other}");
        }
        assert_ne!(a, b);
    }

    #[test]
    fn ids_of_others_are_plain_names_of_bounded_length() {
        for id in ["web-1", "a.b_c", &"f".repeat(64), &new_id().unwrap()] {
            assert!(is_valid(id), "{id}");
        }
        for other in ["", ".", "..", ".hidden", "a/b", "a b", "a\n", "\u{e9}", &"f".repeat(77)] {
            assert!(!is_valid(other), "{other:?}");
        }
    }

    #[test]
    fn unique_prefix_finds_and_ambiguous_or_empty_does_not() {
        let ids = ["ab", "abcd", "b1", "b2"];
        let find = |wanted| resolve(wanted, ids.iter().copied());
        assert_eq!(find("ab"), Ok("ab"), "an exact match wins over a longer one");
        assert_eq!(find("abc"), Ok("abcd"));
        assert_eq!(find("b"), Err(Mismatch::Ambiguous));
        assert_eq!(find("c"), Err(Mismatch::None));
        assert_eq!(find(""), Err(Mismatch::None));
    }
}
