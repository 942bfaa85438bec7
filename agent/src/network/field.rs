//! Fields of the request's interface, read from their text: addresses, networks, names, numbers of one byte.
//!
//! Called by `link`, `address`, `route` and `rule`, each for its own fields. Pure.

use std::net::IpAddr;
use std::str::FromStr;

/// Longest name of an interface, in bytes (IFNAMSIZ less its terminator).
const MAX_NAME: usize = 15;

/// Smallest MTU that IPv4 allows, and the largest that a virtio card carries.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// Most addresses, routes, neighbours and rules, each.
pub const MAX_ENTRIES: usize = 1024;

/// What a scope is, for errors.
pub const RT_SCOPE: &str = "a scope of rtnetlink";

/// A hardware address.
pub type Mac = [u8; 6];

/// An address or destination with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address in it.
    pub address: IpAddr,
    /// Length of the prefix, in bits.
    pub prefix: u8,
}

/// Why the request's interface cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LinkError {
    /// A field's text is not what it should be.
    #[error("interface.{field}: {value:?} is not {expected}")]
    Field {
        /// Its path in the request.
        field: &'static str,
        /// Its text.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Lists without end.
    #[error("interface.{field}: more than {MAX_ENTRIES} entries")]
    TooMany {
        /// The list.
        field: &'static str,
    },
    /// Addresses of an address, route or rule that are not all of one family.
    #[error("interface: {0} mixes IPv4 and IPv6")]
    MixedFamilies(String),
}

/// Refuses a field; of its text as much is told as a message should hold.
pub fn refuse<T>(field: &'static str, value: &str, expected: &'static str) -> Result<T, LinkError> {
    Err(LinkError::Field { field, value: value.chars().take(64).collect(), expected })
}

/// Reads the name of an interface that is not the loopback.
pub fn name(text: &str) -> Result<String, LinkError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if text.is_empty() || text.len() > MAX_NAME || !plain || text == "." || text == ".." || text == "lo" {
        return refuse("name", text, "the name of an interface");
    }
    Ok(text.to_owned())
}

/// Reads a hardware address.
pub fn mac(field: &'static str, text: &str) -> Result<Mac, LinkError> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        // Two digits: the parser alone would take a sign for one.
        .map(|byte| {
            let digits = byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(byte, 16).ok().filter(|_| digits)
        })
        .collect();
    match bytes.map(Mac::try_from) {
        Some(Ok(mac)) => Ok(mac),
        _ => refuse(field, text, "six bytes in hexadecimal, separated by colons"),
    }
}

/// Reads an MTU, in bytes; 0 is none.
pub fn mtu(field: &'static str, mtu: u32) -> Result<Option<u32>, LinkError> {
    if mtu != 0 && !MTU.contains(&mtu) {
        return refuse(field, &mtu.to_string(), "0 or between 68 and 65535");
    }
    Ok(Some(mtu).filter(|mtu| *mtu != 0))
}

/// Reads an address with the length of its prefix.
pub fn network(field: &'static str, text: &str) -> Result<Network, LinkError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix) = (IpAddr::from_str(address).ok()?, prefix.parse::<u8>().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Network { address, prefix })
    });
    match parsed {
        Some(network) => Ok(network),
        None => refuse(field, text, "an address with its prefix length"),
    }
}

/// Reads an address without a prefix.
pub fn address(field: &'static str, text: &str) -> Result<IpAddr, LinkError> {
    IpAddr::from_str(text).or_else(|_| refuse(field, text, "an address"))
}

/// Reads an address that may be left out.
pub fn optional_address(field: &'static str, text: &str) -> Result<Option<IpAddr>, LinkError> {
    if text.is_empty() { Ok(None) } else { address(field, text).map(Some) }
}

/// Reads a number that the kernel has as one byte.
pub fn byte(field: &'static str, number: u32, expected: &'static str) -> Result<u8, LinkError> {
    u8::try_from(number).or_else(|_| refuse(field, &number.to_string(), expected))
}
