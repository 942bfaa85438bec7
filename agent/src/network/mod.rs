//! The guest's network: the request's interface as checked types here, its making in [`netlink`].

mod address;
pub mod netlink;
mod route;
mod rule;

use address::LinkAddress;
use isopod_protocols::agent::{Interface, Neighbour};
use route::LinkRoute;
use rule::LinkRule;
use std::net::IpAddr;
use std::str::FromStr;

/// Longest name of an interface, in bytes (IFNAMSIZ less its terminator).
const MAX_NAME: usize = 15;

/// Smallest MTU that IPv4 allows, and the largest that a virtio card carries.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// Most addresses, routes, neighbours and rules, each.
const MAX_ENTRIES: usize = 1024;

/// What a scope is, for errors.
const RT_SCOPE: &str = "a scope of rtnetlink";

/// A hardware address.
pub type Mac = [u8; 6];

/// What the guest's card becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    name: String,
    mac: Mac,
    /// Absent: as the card has it.
    mtu: Option<u32>,
    addresses: Vec<LinkAddress>,
    /// In an order in which each can be added: those that a gateway is reached by come first.
    routes: Vec<LinkRoute>,
    neighbours: Vec<(IpAddr, Mac)>,
    rules: Vec<LinkRule>,
}

/// An address or destination with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

/// A network that cannot be.
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

impl Link {
    /// Checks the request's interface.
    pub fn parse(interface: &Interface) -> Result<Link, LinkError> {
        for (field, length) in [
            ("addresses", interface.addresses.len()),
            ("routes", interface.routes.len()),
            ("neighbours", interface.neighbours.len()),
            ("rules", interface.rules.len()),
        ] {
            if length > MAX_ENTRIES {
                return Err(LinkError::TooMany { field });
            }
        }
        let mut routes: Vec<LinkRoute> =
            interface.routes.iter().map(LinkRoute::parse).collect::<Result<_, _>>()?;
        routes.sort_by_key(|route| (route.needs_others(), std::cmp::Reverse(route.destination.prefix)));
        Ok(Link {
            name: name(&interface.name)?,
            mac: mac("mac", &interface.mac)?,
            mtu: mtu("mtu", interface.mtu)?,
            addresses: interface.addresses.iter().map(LinkAddress::parse).collect::<Result<_, _>>()?,
            routes,
            neighbours: interface.neighbours.iter().map(neighbour).collect::<Result<_, _>>()?,
            rules: interface.rules.iter().map(LinkRule::parse).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the namespace has IPv6 on the interface.
    fn uses_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.network.address.is_ipv6())
            || self.routes.iter().any(|route| route.destination.address.is_ipv6() && !route.refuses())
    }
}

fn refuse<T>(field: &'static str, value: &str, expected: &'static str) -> Result<T, LinkError> {
    Err(LinkError::Field { field, value: value.chars().take(64).collect(), expected })
}

fn name(text: &str) -> Result<String, LinkError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if text.is_empty() || text.len() > MAX_NAME || !plain || text == "." || text == ".." || text == "lo" {
        return refuse("name", text, "the name of an interface");
    }
    Ok(text.to_owned())
}

fn mac(field: &'static str, text: &str) -> Result<Mac, LinkError> {
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

fn mtu(field: &'static str, mtu: u32) -> Result<Option<u32>, LinkError> {
    if mtu != 0 && !MTU.contains(&mtu) {
        return refuse(field, &mtu.to_string(), "0 or between 68 and 65535");
    }
    Ok(Some(mtu).filter(|mtu| *mtu != 0))
}

fn network(field: &'static str, text: &str) -> Result<Network, LinkError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix) = (IpAddr::from_str(address).ok()?, prefix.parse::<u8>().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Network { address, prefix })
    });
    match parsed {
        Some(network) => Ok(network),
        None => refuse(field, text, "an address with its prefix length"),
    }
}

fn address(field: &'static str, text: &str) -> Result<IpAddr, LinkError> {
    IpAddr::from_str(text).or_else(|_| refuse(field, text, "an address"))
}

fn optional_address(field: &'static str, text: &str) -> Result<Option<IpAddr>, LinkError> {
    if text.is_empty() { Ok(None) } else { address(field, text).map(Some) }
}

/// A number that the kernel has as one byte.
fn byte(field: &'static str, number: u32, expected: &'static str) -> Result<u8, LinkError> {
    u8::try_from(number).or_else(|_| refuse(field, &number.to_string(), expected))
}

fn neighbour(neighbour: &Neighbour) -> Result<(IpAddr, Mac), LinkError> {
    Ok((address("neighbours.address", &neighbour.address)?, mac("neighbours.mac", &neighbour.mac)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::agent::{Address, Route};
    use proptest::prelude::*;

    fn address_of(text: &str) -> Address {
        Address { address: text.into(), prefix_route: true, ..Address::default() }
    }

    fn route_to(destination: &str, gateway: &str) -> Route {
        Route {
            destination: destination.into(),
            gateway: gateway.into(),
            table: 254,
            kind: 1,
            ..Route::default()
        }
    }

    fn interface() -> Interface {
        Interface {
            name: "eth0".into(),
            mac: "0a:58:0a:58:00:04".into(),
            mtu: 1450,
            addresses: vec![address_of("10.88.0.4/16"), address_of("fd00::4/64")],
            routes: vec![
                route_to("0.0.0.0/0", "10.88.0.1"),
                route_to("10.0.0.0/8", ""),
                route_to("10.88.0.1/32", ""),
            ],
            neighbours: vec![Neighbour { address: "10.88.0.1".into(), mac: "0a:58:0a:58:00:01".into() }],
            rules: vec![],
        }
    }

    fn refused(change: impl FnOnce(&mut Interface)) -> String {
        let mut interface = interface();
        change(&mut interface);
        Link::parse(&interface).unwrap_err().to_string()
    }

    #[test]
    fn routes_that_gateways_need_come_first() {
        let link = Link::parse(&interface()).unwrap();
        let prefixes: Vec<u8> = link.routes.iter().map(|route| route.destination.prefix).collect();
        assert_eq!(prefixes, [32, 8, 0]);
        assert_eq!(link.mac, [0x0a, 0x58, 0x0a, 0x58, 0, 4]);
        assert_eq!(link.mtu, Some(1450));
    }

    #[test]
    fn malformed_fields_are_named() {
        assert!(refused(|i| i.mac = "0a:58".into()).contains("interface.mac"));
        assert!(refused(|i| i.mac = "+a:58:0a:58:00:04".into()).contains("interface.mac"));
        assert!(refused(|i| i.name = "way-too-long-a-name".into()).contains("interface.name"));
        assert!(refused(|i| i.name = "lo".into()).contains("interface.name"));
        assert!(refused(|i| i.mtu = 10).contains("interface.mtu"));
        assert!(refused(|i| i.neighbours[0].mac.clear()).contains("interface.neighbours.mac"));
    }

    #[test]
    fn list_without_end_is_refused() {
        assert!(refused(|i| i.addresses = vec![address_of("10.0.0.1/8"); 1025]).contains("more than"));
    }

    #[test]
    fn ipv6_is_used_where_the_namespace_has_any() {
        let mut interface = interface();
        assert!(Link::parse(&interface).unwrap().uses_ipv6());
        interface.addresses.pop();
        assert!(!Link::parse(&interface).unwrap().uses_ipv6());
        interface.routes.push(route_to("::/0", "fe80::1"));
        assert!(Link::parse(&interface).unwrap().uses_ipv6());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = (name(&text), mac("mac", &text), network("addresses", &text), address("a", &text));
        }
    }
}
