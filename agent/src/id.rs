//! Names that the runtime chose, checked before they become parts of paths.

use std::fmt;

/// Longest id, in bytes.
const MAX: usize = 128;

/// The id of a container, or of an exec in one: letters, digits, `_`, `-` and `.`, not beginning with a dot,
/// at most 128 bytes. So it is always one plain path component.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

/// An id that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{field} {value:?} is not an id: use 1 to {MAX} letters, digits, '_', '-' or '.', not beginning with '.'"
)]
pub struct IdError {
    field: &'static str,
    value: String,
}

impl Id {
    /// Checks an id; `field` is its name in the request, for the message.
    pub fn parse(field: &'static str, value: &str) -> Result<Id, IdError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if value.is_empty() || value.len() > MAX || value.starts_with('.') || !value.chars().all(allowed) {
            return Err(IdError { field, value: value.chars().take(MAX).collect() });
        }
        Ok(Id(value.to_owned()))
    }

    /// Checks an id that may be left out.
    pub fn parse_optional(field: &'static str, value: &str) -> Result<Option<Id>, IdError> {
        if value.is_empty() { Ok(None) } else { Id::parse(field, value).map(Some) }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_that_leaves_its_directory_is_refused() {
        for bad in ["", ".", "..", "a/b", "a\0b", ".hidden", "ä", &"x".repeat(129)] {
            assert!(Id::parse("container_id", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn kubernetes_ids_are_accepted() {
        for good in ["0123abcdef", "my-pod_1.2", &"x".repeat(128)] {
            assert_eq!(Id::parse("container_id", good).unwrap().as_str(), good);
        }
    }
}
