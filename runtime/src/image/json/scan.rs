//! The grammar of JSON (RFC 8259), as strict as Go's scanner: over bytes, without recursion and without memory but for a
//! byte for each open bracket.
//!
//! Used by `Reader` alone.

use super::{JsonError, Kind};

/// Deepest nesting that Go reads.
const DEEPEST: usize = 10_000;

/// A place in a document.
pub struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Checks a whole document.
///
/// # Errors
/// [`JsonError::Syntax`] with the first byte that does not belong there.
pub fn well_formed(document: &[u8]) -> Result<(), JsonError> {
    let mut scanner = Scanner::new(document);
    scanner.value()?;
    match scanner.peek() {
        None => Ok(()),
        Some(_) => Err(scanner.expected("the end of the document")),
    }
}

/// The same document as text that every reader of JSON takes: what Go would replace in its strings is replaced.
///
/// # Errors
/// As [`well_formed`].
pub fn legible(document: &[u8]) -> Result<String, JsonError> {
    well_formed(document)?;
    let text = replace_invalid(document);
    let mut legible = String::with_capacity(text.len());
    let mut rest = text.as_str();
    // Escapes are in strings only, as the document is well-formed.
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        legible.push_str(before);
        let (character, length) = escaped(escape.as_bytes());
        if character == char::REPLACEMENT_CHARACTER {
            legible.push_str("\\ufffd");
        } else {
            legible.push_str(&escape[..length]);
        }
        rest = &escape[length..];
    }
    legible.push_str(rest);
    Ok(legible)
}

impl<'a> Scanner<'a> {
    /// The beginning of a document.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn expected(&self, expected: &'static str) -> JsonError {
        JsonError::Syntax { at: self.at, expected }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.bytes.get(self.at) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Passes over one byte after white space.
    pub fn byte(&mut self, wanted: u8, name: &'static str) -> Result<(), JsonError> {
        if self.peek() != Some(wanted) {
            return Err(self.expected(name));
        }
        self.at += 1;
        Ok(())
    }

    /// Opens a list or an object; whether anything is in it.
    pub fn open(&mut self, open: u8, close: u8) -> Result<bool, JsonError> {
        self.byte(open, "a list or an object")?;
        let empty = self.peek() == Some(close);
        self.at += usize::from(empty);
        Ok(!empty)
    }

    /// After an element: whether another one follows; else it is closed.
    pub fn next(&mut self, close: u8) -> Result<bool, JsonError> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.expected("a comma or the end of a list or object")),
        }
    }

    /// Type of the next value.
    pub fn kind(&mut self) -> Result<Kind, JsonError> {
        match self.peek() {
            Some(b'n') => Ok(Kind::Null),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b'"') => Ok(Kind::String),
            Some(b'[') => Ok(Kind::Array),
            Some(b'{') => Ok(Kind::Object),
            _ => Err(self.expected("a value")),
        }
    }

    /// Passes over one value.
    pub fn value(&mut self) -> Result<(), JsonError> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            let kind = self.kind()?;
            if open.len() >= DEEPEST && matches!(kind, Kind::Array | Kind::Object) {
                return Err(self.expected("less nesting"));
            }
            let entered = match kind {
                Kind::Array => self.open(b'[', b']')?.then_some(b']'),
                Kind::Object => self.open(b'{', b'}')?.then_some(b'}'),
                Kind::String => self.string().map(|_| None)?,
                Kind::Number => self.number().map(|_| None)?,
                Kind::Null => self.word("null")?,
                Kind::Bool if self.peek() == Some(b't') => self.word("true")?,
                Kind::Bool => self.word("false")?,
            };
            match entered {
                Some(close) => open.push(close),
                None => {
                    while let Some(close) = open.last().copied()
                        && !self.next(close)?
                    {
                        open.pop();
                    }
                }
            }
            match open.last() {
                None => return Ok(()),
                Some(b'}') => {
                    self.string()?;
                    self.byte(b':', "a colon")?;
                }
                Some(_) => {}
            }
        }
    }

    fn word(&mut self, word: &'static str) -> Result<Option<u8>, JsonError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected("null, true or false"));
        }
        self.at += word.len();
        Ok(None)
    }

    /// Passes over a number and gives its text.
    pub fn number(&mut self) -> Result<&'a str, JsonError> {
        self.peek();
        let begin = self.at;
        self.one_of(b"-");
        if !self.one_of(b"0") {
            self.digits()?;
        }
        if self.one_of(b".") {
            self.digits()?;
        }
        if self.one_of(b"eE") {
            self.one_of(b"+-");
            self.digits()?;
        }
        std::str::from_utf8(&self.bytes[begin..self.at]).map_err(|_| self.expected("a number"))
    }

    fn one_of(&mut self, wanted: &[u8]) -> bool {
        let there = self.bytes.get(self.at).is_some_and(|byte| wanted.contains(byte));
        self.at += usize::from(there);
        there
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let begin = self.at;
        while self.one_of(b"0123456789") {}
        if self.at == begin { Err(self.expected("a digit")) } else { Ok(()) }
    }

    /// Passes over a string and gives what is between its quotes.
    pub fn string(&mut self) -> Result<&'a [u8], JsonError> {
        self.byte(b'"', "a string")?;
        let begin = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(&self.bytes[begin..self.at - 1]);
                }
                Some(b'\\') => self.escape()?,
                Some(0..0x20) | None => return Err(self.expected("the end of a string")),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        if self.one_of(b"\"\\/bfnrt") {
            return Ok(());
        }
        if !self.one_of(b"u") {
            return Err(self.expected("a known escape"));
        }
        for _ in 0..4 {
            if !self.one_of(b"0123456789abcdefABCDEF") {
                return Err(self.expected("a hexadecimal digit"));
            }
        }
        Ok(())
    }
}

/// The string between quotes that [`Scanner::string`] has checked.
pub fn unquote(raw: &[u8]) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.iter().position(|&byte| byte == b'\\') {
        let (before, escape) = rest.split_at(at);
        text.push_str(&replace_invalid(before));
        let (character, length) = escaped(escape);
        text.push(character);
        rest = &escape[length..];
    }
    text.push_str(&replace_invalid(rest));
    text
}

/// The character of the escape at the beginning of `text`, and the bytes that it takes. Half a surrogate pair is U+FFFD.
fn escaped(text: &[u8]) -> (char, usize) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let simple = match text.get(1) {
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => {
            let first = unit(0).unwrap_or_default();
            let pair = char::decode_utf16([first, unit(6).unwrap_or_default()]).next();
            return match pair {
                Some(Ok(character)) => (character, 6 * character.len_utf16()),
                _ => (char::REPLACEMENT_CHARACTER, 6),
            };
        }
        Some(&byte) => char::from(byte),
        None => char::REPLACEMENT_CHARACTER,
    };
    (simple, 2.min(text.len()))
}

/// Puts U+FFFD in place of each byte that is no part of a character.
fn replace_invalid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}
