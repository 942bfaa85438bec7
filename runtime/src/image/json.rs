//! JSON documents of images, read as Go's `encoding/json` reads them into structs, because every builder and registry is
//! tried with Go programs only.
//!
//! What differs from `serde_json`: `null` leaves a field as it was and empties a list; field names match in any case; of
//! two fields with one name the later one is read over the earlier one; a byte that is no UTF-8 and half a surrogate
//! pair become U+FFFD; values nest 10 000 deep. A value of the wrong type does not end the reading: the first
//! such fault is told at the end, or kept apart where it spoils one element only.
//!
//! Used by `configuration` and `manifest`, which bound the size of the document. Takes linear time, and no memory for what
//! nobody asks for. It must not know what the documents mean.

mod scan;
mod value;

pub use scan::legible;
pub use value::{Base64, Beginning, HasName, Names, Read};

use scan::{Scanner, well_formed};

/// Most elements of one list, so that a document of nothing but `null,` does not become a hundred times as large.
const MOST_ELEMENTS: usize = 1 << 16;

/// Why a document was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// It is no JSON at all.
    #[error("no JSON at byte {at}: {expected} expected")]
    Syntax {
        /// Offset of what does not belong there.
        at: usize,
        /// What does.
        expected: &'static str,
    },
    /// A value has a type that Go does not put into the field.
    #[error("{0}")]
    Type(String),
}

/// Type of the value that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// A number.
    Number,
    /// A string.
    String,
    /// A list.
    Array,
    /// An object.
    Object,
}

/// Reads one document, forward only.
pub struct Reader<'a> {
    scanner: Scanner<'a>,
    /// Names of the fields that are being read, the outermost first.
    path: Vec<String>,
    fault: Option<String>,
}

/// Reads a whole document into a value that is empty at the beginning.
///
/// # Errors
/// What is no JSON; the first value of a wrong type.
pub fn read<T: Read + Default>(document: &[u8]) -> Result<T, JsonError> {
    well_formed(document)?;
    let mut reader = Reader { scanner: Scanner::new(document), path: Vec::new(), fault: None };
    let mut value = T::default();
    value.read(&mut reader)?;
    match reader.fault {
        Some(fault) => Err(JsonError::Type(fault)),
        None => Ok(value),
    }
}

impl<'a> Reader<'a> {
    /// Type of the next value.
    pub fn kind(&mut self) -> Result<Kind, JsonError> {
        self.scanner.kind()
    }

    /// Passes over the next value, however deep it is.
    pub fn skip(&mut self) -> Result<(), JsonError> {
        self.scanner.value()
    }

    /// Passes over the next value, whose type is not `wanted`, and notes that.
    pub fn mismatch(&mut self, wanted: &str) -> Result<(), JsonError> {
        let found = match self.kind()? {
            Kind::Null => "null",
            Kind::Bool => "a boolean",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::Array => "a list",
            Kind::Object => "an object",
        };
        self.fault(&format!("is {found} where {wanted} belongs"));
        self.skip()
    }

    /// Notes what is wrong with the field that is being read; the first fault of a document is the one told.
    pub fn fault(&mut self, what: &str) {
        let path = if self.path.is_empty() { "the document".to_owned() } else { self.path.join(".") };
        self.fault.get_or_insert_with(|| format!("{path} {what}"));
    }

    /// Takes the fault of what `read` reads away from the document: one bad element does not spoil the others.
    pub fn apart<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, JsonError>,
    ) -> Result<(T, Option<String>), JsonError> {
        let before = self.fault.take();
        let value = read(self)?;
        Ok((value, std::mem::replace(&mut self.fault, before)))
    }

    /// The next value, a string.
    fn string(&mut self) -> Result<String, JsonError> {
        self.scanner.string().map(scan::unquote)
    }

    /// The text of the next value, a number.
    fn number(&mut self) -> Result<&'a str, JsonError> {
        self.scanner.number()
    }

    /// The fields of the next value, an object; names are in lower case. `field` reads each value or skips it. `null` has no
    /// fields, and anything else is a fault.
    pub fn fields(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        match self.kind()? {
            Kind::Null => self.skip(),
            Kind::Object => self.pairs(|reader, name| {
                let folded = fold(&name);
                reader.path.push(name.chars().take(100).collect());
                field(reader, &folded)?;
                reader.path.pop();
                Ok(())
            }),
            _ => self.mismatch("an object"),
        }
    }

    /// The names and values of the next value, an object, as they are.
    fn pairs(
        &mut self,
        mut pair: impl FnMut(&mut Self, String) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        let mut more = self.scanner.open(b'{', b'}')?;
        while more {
            let name = self.string()?;
            self.scanner.byte(b':', "a colon")?;
            pair(self, name)?;
            more = self.scanner.next(b'}')?;
        }
        Ok(())
    }

    /// The elements of the next value, a list.
    fn elements(
        &mut self,
        mut element: impl FnMut(&mut Self, usize) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        let mut index = 0;
        let mut more = self.scanner.open(b'[', b']')?;
        while more {
            if index < MOST_ELEMENTS {
                element(self, index)?;
            } else {
                self.fault(&format!("has more than {MOST_ELEMENTS} elements"));
                self.skip()?;
            }
            index += 1;
            more = self.scanner.next(b']')?;
        }
        Ok(())
    }
}

/// A name as it is compared: Go folds by Unicode's simple folding, where two characters beyond ASCII fall on ASCII ones.
fn fold(name: &str) -> String {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

#[cfg(test)]
mod tests;
