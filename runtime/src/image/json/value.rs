//! What a value does to the field that it is read into, for each type of field that the documents of images have.
//!
//! Used by `configuration` and `manifest`. A field that has been read before keeps what the later value does not touch, as
//! in Go: the elements of a list, the names of a map, the fields of a struct.

use super::{JsonError, Kind, MOST_ELEMENTS, Reader};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use std::collections::BTreeSet;

/// A field that values are read into.
pub trait Read {
    /// Takes the next value.
    ///
    /// # Errors
    /// Documents that are no JSON. A value of another type is noted as a fault, and leaves the field as it is.
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError>;
}

/// The names of a map without values (`map[string]struct{}`). A document may have the field any number of times, so a name
/// is added in logarithmic time.
pub type Names = BTreeSet<String>;

impl Read for String {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        match from.kind()? {
            Kind::Null => from.skip(),
            Kind::String => {
                *self = from.string()?;
                Ok(())
            }
            _ => from.mismatch("a string"),
        }
    }
}

impl Read for i64 {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        match from.kind()? {
            Kind::Null => from.skip(),
            Kind::Number => {
                match from.number()?.parse() {
                    Ok(number) => *self = number,
                    Err(_) => from.fault("is no whole number of 64 bits"),
                }
                Ok(())
            }
            _ => from.mismatch("a whole number"),
        }
    }
}

impl<T: Read + Default> Read for Option<T> {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        if from.kind()? == Kind::Null {
            *self = None;
            return from.skip();
        }
        self.get_or_insert_default().read(from)
    }
}

impl<T: Read + Default> Read for Vec<T> {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        match from.kind()? {
            Kind::Null => {
                self.clear();
                from.skip()
            }
            Kind::Array => read_elements(self, from, MOST_ELEMENTS),
            _ => from.mismatch("a list"),
        }
    }
}

/// The first elements of a list, `N` at most: the others are not looked at. For lists that are refused where
/// they are long, with one element more than they may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning<T, const N: usize>(pub Vec<T>);

impl<T, const N: usize> Default for Beginning<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Read + Default, const N: usize> Read for Beginning<T, N> {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        match from.kind()? {
            Kind::Array => read_elements(&mut self.0, from, N),
            _ => self.0.read(from),
        }
    }
}

/// Reads the first `most` elements of the next value, a list, over those that `elements` has.
fn read_elements<T: Read + Default>(
    elements: &mut Vec<T>,
    from: &mut Reader<'_>,
    most: usize,
) -> Result<(), JsonError> {
    let mut length = 0;
    from.elements(|from, index| {
        if index >= most {
            return from.skip();
        }
        length = index + 1;
        if elements.len() < length {
            elements.push(T::default());
        }
        elements[index].read(from)
    })?;
    elements.truncate(length);
    Ok(())
}

impl Read for Names {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        match from.kind()? {
            Kind::Null => {
                self.clear();
                from.skip()
            }
            Kind::Object => from.pairs(|from, name| {
                if self.len() < MOST_ELEMENTS {
                    self.insert(name);
                } else {
                    from.fault(&format!("has more than {MOST_ELEMENTS} names"));
                }
                from.fields(|from, _| from.skip())
            }),
            _ => from.mismatch("an object"),
        }
    }
}

/// A map of strings, of which is kept whether it has one name. Names are compared as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HasName {
    /// The name.
    pub name: &'static str,
    /// Whether the map has it.
    pub there: bool,
}

impl Read for HasName {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        match from.kind()? {
            Kind::Null => {
                self.there = false;
                from.skip()
            }
            Kind::Object => from.pairs(|from, name| {
                self.there |= name == self.name;
                String::new().read(from)
            }),
            _ => from.mismatch("an object"),
        }
    }
}

/// Bytes, which documents hold in base64.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl Read for Base64 {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        // Go asks for the padding, and lets line ends and bits after the end be.
        let config = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
        let engine = GeneralPurpose::new(&alphabet::STANDARD, config);
        match from.kind()? {
            Kind::Null => {
                self.0.clear();
                from.skip()
            }
            Kind::String => {
                match engine.decode(from.string()?.replace(['\r', '\n'], "")) {
                    Ok(bytes) => self.0 = bytes,
                    Err(error) => from.fault(&format!("is no base64: {error}")),
                }
                Ok(())
            }
            _ => from.mismatch("a string"),
        }
    }
}
