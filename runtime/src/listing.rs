//! How long the lists of all pods and of all containers may become. Each is one answer, and kubelet takes none of more
//! than 16 MiB: whoever labels and annotates pods must not be able to make one longer.
//!
//! Used by `sandbox` and `container`, which refuse what would not fit.

/// Bytes that an entry takes beside its text, in memory, on disk and in an answer.
pub const ENTRY: usize = 64;

/// Most bytes of all entries of a list: 12 MiB.
pub const MOST: usize = 12 << 20;

/// Bytes of labels or annotations.
pub fn length<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> usize {
    entries.into_iter().map(|(key, value)| key.len() + value.len() + ENTRY).sum()
}

/// A number of bytes, the most there may be, and of what.
pub type Bound = (usize, usize, &'static str);

/// The first of the bounds that does not hold.
pub fn exceeded(bounds: impl IntoIterator<Item = Bound>) -> Option<Bound> {
    bounds.into_iter().find(|(bytes, most, _)| bytes > most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_entries_are_as_long_as_what_they_take() {
        let entries: Vec<_> = (0..1000).map(|number| (number.to_string(), String::new())).collect();
        assert!(length(entries.iter().map(|(key, value)| (key, value))) > 1000 * ENTRY);
    }

    #[test]
    fn bound_holds_to_its_last_byte() {
        assert_eq!(exceeded([(1, 1, "one"), (2, 1, "another"), (3, 1, "a third")]), Some((2, 1, "another")));
        assert_eq!(exceeded([(MOST, MOST, "all")]), None);
    }
}
