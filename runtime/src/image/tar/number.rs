//! Numbers and times in headers: octal text, GNU's base 256, and the decimals of extended headers.
//!
//! Called by `header`, `pax` and `sparse`. Each function takes exactly what Go's reader takes: sloppy writers are read as
//! Go reads them, and nothing is guessed beyond that.

use std::str;

const NANOSECOND_DIGITS: usize = 9;

/// A moment, as seconds since the Unix epoch rounded down and nanoseconds (below 10^9) since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds since the epoch; negative before it.
    pub seconds: i64,
    /// Nanoseconds after `seconds`.
    pub nanoseconds: u32,
}

/// Reads octal digits between any number of spaces and NULs. A NUL ends the digits. A blank field is 0.
pub(super) fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Some(0) };
    let end = field.iter().rposition(|byte| !blank(byte))? + 1;
    let digits = c_string(&field[start..end]);
    let value = digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => Some(value.checked_mul(8)? + u64::from(digit - b'0')),
        _ => None,
    })?;
    Some(value.cast_signed())
}

/// Reads a number in base 256 (two's complement, marked by the first bit) or in octal.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    let Some(first) = field.first().filter(|first| *first & 0x80 != 0) else { return octal(field) };
    // a negative number is the complement of a number that is not
    let inversion = if first & 0x40 == 0 { 0 } else { 0xff };
    let leading = u64::from((first ^ inversion) & 0x7f);
    let value = field[1..]
        .iter()
        .try_fold(leading, |value, byte| Some(value.checked_mul(256)? | u64::from(byte ^ inversion)))?;
    let value = i64::try_from(value).ok()?;
    Some(if inversion == 0 { value } else { !value })
}

/// Reads a decimal number with an optional sign.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// Reads a time of an extended header, such as `1350244992.023960108` or `-1.5`. Digits below a nanosecond are dropped.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let dot = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = (&text[..dot], text.get(dot + 1..).unwrap_or_default());
    let seconds = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(NANOSECOND_DIGITS);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    if whole.starts_with(b"-") && nanoseconds > 0 {
        // -1.5 is half a second after -2; `-0` has no sign as a number, so the text decides
        let nanoseconds = 1_000_000_000 - nanoseconds;
        return Some(Time { seconds: seconds.wrapping_sub(1), nanoseconds });
    }
    Some(Time { seconds, nanoseconds })
}

/// Cuts the bytes at their first NUL.
pub(super) fn c_string(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}
