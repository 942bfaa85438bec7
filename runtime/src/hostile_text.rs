//! Words of a guest or a VMM, made fit for logs, error messages and terminals: printable, and cut.
//!
//! Used by `agent_client` and `hypervisor`; whoever passes on what a guest said takes it from here.

use std::fmt;

/// Most characters of an error message.
const MAX_MESSAGE: usize = 1024;

/// Most bytes of a console's or log's tail.
const MAX_TAIL: usize = 2048;

/// An error message of a guest: without control characters but newlines, and cut at the end.
pub fn message(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_MESSAGE).map(shown).collect();
    if text.chars().nth(MAX_MESSAGE).is_some() {
        cut.push_str(" ...");
    }
    cut
}

/// The end of a log or console, for an error message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail(String);

impl Tail {
    /// The last whole lines of `text`.
    pub fn new(text: &str) -> Self {
        let text = text.trim();
        let start = text.len().saturating_sub(MAX_TAIL);
        let start = (start..=text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(text.len());
        let tail = match (start, text[start..].find('\n')) {
            (0, _) | (_, None) => &text[start..],
            (_, Some(newline)) => &text[start + newline + 1..],
        };
        Self(tail.chars().map(shown).collect())
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => f.write_str("; it said nothing"),
            text => write!(f, "; its last lines:\n{text}"),
        }
    }
}

fn shown(c: char) -> char {
    if c.is_control() && c != '\n' { '?' } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_characters_are_replaced_and_length_is_cut() {
        assert_eq!(message("\u{1b}[2Jok\r\0"), "?[2Jok??");
        assert_eq!(message(&"x".repeat(5000)).len(), MAX_MESSAGE + 4);
    }

    #[test]
    fn tail_holds_the_last_whole_lines() {
        let text = format!("{}\nlast but one\nlast\n", "x".repeat(3000));
        assert_eq!(Tail::new(&text).to_string(), "; its last lines:\nlast but one\nlast");
        assert_eq!(Tail::new(" \n").to_string(), "; it said nothing");
    }

    proptest! {
        #[test]
        fn any_text_is_bounded_and_printable(text in ".*") {
            let tail = Tail::new(&text);
            prop_assert!(tail.0.len() <= MAX_TAIL);
            prop_assert!(tail.0.chars().all(|c| c == '\n' || !c.is_control()));
        }
    }
}
