//! The request's interface as checked types, with an `address`, `route` or `rule` for each of its parts.
//!
//! Called by `identity` to check; `netlink` applies what is here. Pure.

use super::address::LinkAddress;
use super::field::{LinkError, MAX_ENTRIES, Mac, address, mac, mtu, name};
use super::route::LinkRoute;
use super::rule::LinkRule;
use isopod_protocols::agent::{Interface, Neighbour};
use std::net::IpAddr;

/// What the guest's card becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub(super) name: String,
    pub(super) mac: Mac,
    /// Absent: as the card has it.
    pub(super) mtu: Option<u32>,
    pub(super) addresses: Vec<LinkAddress>,
    /// In an order in which each can be added: those that a gateway is reached by come first.
    pub(super) routes: Vec<LinkRoute>,
    pub(super) neighbours: Vec<(IpAddr, Mac)>,
    pub(super) rules: Vec<LinkRule>,
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
    pub(super) fn uses_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.network.address.is_ipv6())
            || self.routes.iter().any(|route| route.destination.address.is_ipv6() && !route.refuses())
    }
}

fn neighbour(neighbour: &Neighbour) -> Result<(IpAddr, Mac), LinkError> {
    Ok((address("neighbours.address", &neighbour.address)?, mac("neighbours.mac", &neighbour.mac)?))
}

#[cfg(test)]
mod tests {
    use super::super::field::network;
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
