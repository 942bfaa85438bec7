//! Makes text that a guest, a VMM, a plugin or an image chose fit for logs, error messages and terminals: one
//! line, printable, and bounded.
//!
//! Used by every module that passes such text on. `trace` and `cri` put whole log records and error messages
//! through [`line()`] and [`push`] once more, so that text which reached them by a way that nobody thought of
//! cannot forge a second line either.

use std::fmt;

/// Longest error message, bytes.
const MAX_MESSAGE: usize = 1024;

/// Longest tail of a console or log, bytes.
const MAX_TAIL: usize = 2048;

/// Stands between the lines of a tail: what an escaped line end looks like.
const LINE_END: &str = "\\n";

/// Marks text that was cut.
const ELLIPSIS: &str = " ...";

/// Appends a character, or its escape where it is not printable: control characters, line and paragraph
/// separators, and format characters such as the marks that change the direction of text (Unicode's
/// categories Cc, Cf, Zl and Zp; also Co, Cn, spaces other than the plain one, and characters that combine
/// with the one before).
pub fn push(text: &mut String, c: char) {
    match c {
        // `escape_debug` escapes them for a reader that is a compiler.
        '"' | '\'' | '\\' => text.push(c),
        _ => text.extend(c.escape_debug()),
    }
}

/// Returns `text` as one printable line of at most `most` bytes, and an ellipsis where it was cut.
pub fn line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars() {
        let before = line.len();
        push(&mut line, c);
        if line.len() > most {
            line.truncate(before);
            line.push_str(ELLIPSIS);
            break;
        }
    }
    line
}

/// An error message of a guest, a VMM or a plugin: see [`line()`].
pub fn message(text: &str) -> String {
    line(text, MAX_MESSAGE)
}

/// The end of a log or console, for an error message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tail(String);

impl Tail {
    /// Keeps as many of the last whole lines of `text` as fit; of a single line that is too long, its
    /// beginning.
    pub fn new(text: &str) -> Self {
        let mut lines = Vec::new();
        let mut length = 0;
        for text in text.trim().lines().rev() {
            let line = line(text, MAX_TAIL - ELLIPSIS.len());
            length += line.len() + LINE_END.len();
            if length > MAX_TAIL + LINE_END.len() {
                break;
            }
            lines.push(line);
        }
        lines.reverse();
        Self(lines.join(LINE_END))
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "" => f.write_str("; its log is empty"),
            text => write!(f, "; its last lines: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One of every kind that a terminal or a reader takes for something else than text.
    const HOSTILE: &str = "\0\u{7}\t\n\u{b}\r\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{180e}\u{200b}\u{200e}\u{200f}\
        \u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2060}\u{2066}\u{2067}\u{2068}\u{2069}\u{206f}\
        \u{fe0f}\u{feff}\u{fff9}\u{1d173}\u{e0001}\u{e0041}\u{f0000}";

    #[test]
    fn line_ends_and_marks_of_direction_are_escaped() {
        let forged = "ok\n2026-01-01T00:00:00Z ERROR forged\u{2028}x\u{202e}gnp.exe";
        assert_eq!(message(forged), "ok\\n2026-01-01T00:00:00Z ERROR forged\\u{2028}x\\u{202e}gnp.exe");
        let shown = message(HOSTILE);
        assert!(shown.chars().all(|c| matches!(c, ' '..='~')), "{shown}");
    }

    #[test]
    fn printable_text_stays_as_it_is() {
        let text = r#"exec "sh": größer als 3 °C, 日本 \o/ it's"#;
        assert_eq!(message(text), text);
    }

    #[test]
    fn length_is_cut_after_escaping() {
        assert_eq!(message(&"x".repeat(5000)).len(), MAX_MESSAGE + ELLIPSIS.len());
        let escaped = message(&"\u{202e}".repeat(5000));
        assert!(escaped.len() <= MAX_MESSAGE + ELLIPSIS.len() && escaped.ends_with("\\u{202e} ..."));
    }

    #[test]
    fn tail_holds_the_last_whole_lines() {
        let text = format!("{}\nlast but one\nlast\n", "x".repeat(3000));
        assert_eq!(Tail::new(&text).to_string(), "; its last lines: last but one\\nlast");
        assert_eq!(Tail::new(" \n").to_string(), "; its log is empty");
        let long = Tail::new(&"x".repeat(3000)).to_string();
        assert!(long.ends_with("xxx ..."), "{long}");
    }

    proptest! {
        #[test]
        fn any_text_is_bounded_and_printable(text in any::<Vec<char>>(), ends in 0..4usize) {
            let text = String::from_iter(text) + &"\u{1b}[2J\n".repeat(ends * 300);
            for shown in [message(&text), Tail::new(&text).0] {
                prop_assert!(shown.len() <= MAX_TAIL);
                prop_assert!(!shown.chars().any(|c| c.is_control() || HOSTILE.contains(c)), "{}", shown);
            }
        }
    }
}
