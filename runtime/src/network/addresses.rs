//! Reads the addresses of the plugin's interface in the form in which the guest makes them again, and tells which routes come
//! with them.
//!
//! Called by `link` inside the namespace. The kernel makes a route to the prefix of most addresses that it takes. A plugin may have
//! removed that route (ptp does, to lead pods of its own subnet over the node), and then the guest's kernel must not make it either.

use super::routes::MAIN_TABLE;
use isopod_protocols::agent::{Address, Route};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope, RouteType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metric of the routes to prefixes of IPv6 addresses (`IP6_RT_PRIO_ADDRCONF`).
const PREFIX_METRIC_V6: u32 = 256;

/// An address, and whether the kernel was told to make no route for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    address: Address,
    /// The kernel makes none: it was told so, or another address of the prefix has it.
    secondary: bool,
    no_prefix_route: bool,
}

/// Translates a listed address. `None` for link-local IPv6 addresses: the guest makes its own.
pub(super) fn address(message: &AddressMessage) -> Option<Found> {
    let header = &message.header;
    if header.family == AddressFamily::Inet6 && header.scope == AddressScope::Link {
        return None;
    }
    let (mut local, mut other, mut flags) = (None, None, AddressFlags::empty());
    let mut address = Address { scope: u8::from(header.scope).into(), ..Address::default() };
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => other = Some(*ip),
            AddressAttribute::Broadcast(ip) => address.broadcast = ip.to_string(),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::RoutePriority(metric) => address.metric = *metric,
            _ => {}
        }
    }
    let own = local.or(other)?;
    address.address = format!("{own}/{}", header.prefix_len);
    if let Some(peer) = other.filter(|peer| *peer != own) {
        address.peer = peer.to_string();
    }
    Some(Found {
        address,
        // For IPv6 the same bit says that an address is temporary.
        secondary: own.is_ipv4() && header.flags.contains(AddressHeaderFlags::Secondary),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
    })
}

/// Decides for each address whether the guest's kernel makes its route, and takes those routes out of `routes`: what stays is
/// for the agent to make.
pub(super) fn settle(found: Vec<Found>, routes: &mut Vec<Route>) -> Vec<Address> {
    let mut made = Vec::new();
    let settle = |mut one: Found| {
        let expected = prefix_route(&one.address).filter(|_| !one.secondary);
        one.address.prefix_route =
            !one.no_prefix_route && expected.as_ref().is_none_or(|route| routes.contains(route));
        if one.address.prefix_route {
            made.extend(expected);
        }
        made.extend(peer_route(&one.address));
        one.address
    };
    let addresses = found.into_iter().map(settle).collect();
    made.push(link_local_route());
    routes.retain(|route| !made.contains(route));
    addresses
}

/// The route that the kernel makes when it takes an address, as it lists it. `None` where it makes none.
fn prefix_route(address: &Address) -> Option<Route> {
    let (own, length) = address.address.split_once('/')?;
    let (own, length): (IpAddr, u8) = (own.parse().ok()?, length.parse().ok()?);
    match own {
        IpAddr::V4(own) => {
            let other: Ipv4Addr = if address.peer.is_empty() { own } else { address.peer.parse().ok()? };
            let network = network_v4(other, length);
            if length == 32 && network == own {
                return None;
            }
            let mut route = kernel_route(format!("{network}/{length}"), address.metric);
            route.source = own.to_string();
            route.scope = u8::from(RouteScope::Link).into();
            Some(route)
        }
        IpAddr::V6(own) => Some(route_v6(network_v6(own, length), length, address.metric)),
    }
}

/// The kernel makes this one for an IPv6 address with a peer whatever its flags say.
fn peer_route(address: &Address) -> Option<Route> {
    let peer: Ipv6Addr = address.peer.parse().ok()?;
    Some(route_v6(peer, 128, address.metric))
}

/// Comes with the link-local address that the guest makes itself.
fn link_local_route() -> Route {
    route_v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64, 0)
}

fn route_v6(network: Ipv6Addr, length: u8, metric: u32) -> Route {
    kernel_route(format!("{network}/{length}"), if metric == 0 { PREFIX_METRIC_V6 } else { metric })
}

fn kernel_route(destination: String, metric: u32) -> Route {
    Route {
        destination,
        metric,
        table: MAIN_TABLE,
        kind: u8::from(RouteType::Unicast).into(),
        protocol: u8::from(RouteProtocol::Kernel).into(),
        ..Route::default()
    }
}

fn network_v4(address: Ipv4Addr, length: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

fn network_v6(address: Ipv6Addr, length: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn found(own: &str, length: u8, peer: Option<&str>) -> Found {
        let own: IpAddr = own.parse().unwrap();
        let mut message = AddressMessage::default();
        message.header.family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = length;
        let other = peer.map_or(own, |peer| peer.parse().unwrap());
        message.attributes = vec![AddressAttribute::Local(own), AddressAttribute::Address(other)];
        address(&message).unwrap()
    }

    fn on_link(destination: &str, source: &str) -> Route {
        let scope = if source.is_empty() { 0 } else { 253 };
        let metric = if source.is_empty() { 256 } else { 0 };
        Route { source: source.into(), scope, metric, ..kernel_route(destination.into(), 0) }
    }

    #[test]
    fn routes_that_the_kernel_makes_are_left_to_it() {
        let mut routes = vec![
            on_link("10.88.0.0/16", "10.88.0.4"),
            on_link("fd00::/64", ""),
            on_link("fe80::/64", ""),
            Route { destination: "0.0.0.0/0".into(), gateway: "10.88.0.1".into(), ..Route::default() },
        ];
        let addresses = settle(vec![found("10.88.0.4", 16, None), found("fd00::4", 64, None)], &mut routes);
        assert!(addresses.iter().all(|address| address.prefix_route), "{addresses:?}");
        assert_eq!(routes.len(), 1, "{routes:?}");
    }

    #[test]
    fn address_whose_route_the_plugin_removed_gets_none() {
        let gateway = Route { gateway: "10.1.1.1".into(), protocol: 3, ..on_link("10.1.1.0/24", "10.1.1.5") };
        let mut routes = vec![gateway.clone()];
        let addresses = settle(vec![found("10.1.1.5", 24, None), found("fd00::5", 64, None)], &mut routes);
        assert!(addresses.iter().all(|address| !address.prefix_route), "{addresses:?}");
        assert_eq!(routes, [gateway]);
    }

    #[test]
    fn single_address_has_no_prefix_to_reach() {
        let addresses = settle(vec![found("10.77.0.2", 32, None)], &mut Vec::new());
        assert!(addresses[0].prefix_route, "no flag is needed: {addresses:?}");
    }

    #[test]
    fn point_to_point_address_keeps_its_peer() {
        let mut routes = vec![on_link("10.9.9.1/32", "10.9.9.2")];
        let addresses = settle(vec![found("10.9.9.2", 32, Some("10.9.9.1"))], &mut routes);
        assert_eq!((addresses[0].peer.as_str(), addresses[0].prefix_route), ("10.9.9.1", true));
        assert_eq!(routes, []);
    }

    #[test]
    fn kernel_route_of_another_form_is_carried() {
        let odd = Route { metric: 50, ..on_link("10.88.0.0/16", "10.88.0.4") };
        let mut routes = vec![odd.clone()];
        let addresses = settle(vec![found("10.88.0.4", 16, None)], &mut routes);
        assert!(!addresses[0].prefix_route);
        assert_eq!(routes, [odd]);
    }

    #[test]
    fn secondary_address_needs_no_route_of_its_own() {
        let mut second = found("10.88.0.5", 16, None);
        second.secondary = true;
        let mut routes = vec![on_link("10.88.0.0/16", "10.88.0.4")];
        let addresses = settle(vec![found("10.88.0.4", 16, None), second], &mut routes);
        assert!(addresses.iter().all(|address| address.prefix_route), "{addresses:?}");
        assert_eq!(routes, []);
    }

    fn any_address() -> impl Strategy<Value = AddressMessage> {
        let attribute = prop_oneof![
            any::<IpAddr>().prop_map(AddressAttribute::Local),
            any::<IpAddr>().prop_map(AddressAttribute::Address),
            any::<[u8; 4]>().prop_map(|ip| AddressAttribute::Broadcast(ip.into())),
            any::<u32>().prop_map(|bits| AddressAttribute::Flags(AddressFlags::from_bits_retain(bits))),
            any::<u32>().prop_map(AddressAttribute::RoutePriority),
            any::<String>().prop_map(AddressAttribute::Label),
        ];
        (any::<[u8; 4]>(), vec(attribute, 0..6)).prop_map(|([family, length, flags, scope], attributes)| {
            let mut message = AddressMessage::default();
            message.header.family =
                [AddressFamily::Inet, AddressFamily::Inet6, family.into()][usize::from(family % 3)];
            message.header.prefix_len = length;
            message.header.flags = AddressHeaderFlags::from_bits_retain(flags);
            message.header.scope = scope.into();
            message.attributes = attributes;
            message
        })
    }

    proptest! {
        #[test]
        fn any_listed_addresses_keep_their_number_and_take_only_routes_away(
            listed in vec(any_address(), 0..5), with_routes in any::<bool>(),
        ) {
            let found: Vec<_> = listed.iter().filter_map(address).collect();
            let count = found.len();
            let before: Vec<_> =
                found.iter().filter(|_| with_routes).filter_map(|one| prefix_route(&one.address)).collect();
            let mut routes = before.clone();
            let settled = settle(found, &mut routes);
            prop_assert_eq!(settled.len(), count);
            prop_assert!(routes.iter().all(|route| before.contains(route)));
            for address in settled {
                let (own, length) = address.address.split_once('/').unwrap();
                prop_assert!(own.parse::<IpAddr>().is_ok() && length.parse::<u8>().is_ok());
                prop_assert!(address.peer.is_empty() || address.peer.parse::<IpAddr>().is_ok());
            }
        }
    }
}
