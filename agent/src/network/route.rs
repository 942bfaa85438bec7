//! One route of the guest: checked here, and the rtnetlink message that makes it.
//!
//! Called by `link` to check and by `netlink` to apply. Scope, protocol, table and metrics are the
//! namespace's, so that what `ip route` shows in the guest is what it shows there.

use super::field::{LinkError, Network, RT_SCOPE, address, byte, network, optional_address, refuse};
use isopod_protocols::agent::{NextHop, Route};
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use std::net::IpAddr;

/// Most gateways of one route.
const MAX_NEXT_HOPS: usize = 256;

/// `RTAX_CC_ALGO`, which is no number.
const CONGESTION_ALGORITHM: u32 = 16;

/// `RTAX_MAX`
const LAST_METRIC: u32 = 17;

/// `RT_TABLE_LOCAL`: the kernel's own.
const LOCAL_TABLE: u32 = 255;

/// A route as the namespace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkRoute {
    pub(super) destination: Network,
    pub(super) gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    from: Option<Network>,
    onlink: bool,
    /// 0: the kernel's default.
    metric: u32,
    /// RTAX_* and value, by number.
    metrics: Vec<(u16, u32)>,
    pub(super) table: u32,
    kind: RouteType,
    scope: RouteScope,
    protocol: RouteProtocol,
    tos: u8,
    preference: u8,
    next_hops: Vec<Hop>,
}

/// One of a route's gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hop {
    gateway: Option<IpAddr>,
    onlink: bool,
    weight: u8,
}

impl LinkRoute {
    pub(super) fn parse(route: &Route) -> Result<LinkRoute, LinkError> {
        let destination = network("routes.destination", &route.destination)?;
        let source = optional_address("routes.source", &route.source)?;
        let from = Some(&route.from).filter(|from| !from.is_empty());
        let from = from.map(|from| network("routes.from", from)).transpose()?;
        let family = destination.address.is_ipv4();
        if source.iter().chain(from.iter().map(|from| &from.address)).any(|other| other.is_ipv4() != family) {
            return Err(LinkError::MixedFamilies(route.destination.clone()));
        }
        if route.table == 0 || route.table == LOCAL_TABLE {
            return refuse("routes.table", &route.table.to_string(), "a table other than the kernel's own");
        }
        if route.next_hops.len() > MAX_NEXT_HOPS {
            return Err(LinkError::TooMany { field: "routes.next_hops" });
        }
        Ok(LinkRoute {
            destination,
            gateway: optional_address("routes.gateway", &route.gateway)?,
            source,
            from,
            onlink: route.onlink,
            metric: route.metric,
            metrics: metrics(route)?,
            table: route.table,
            kind: byte("routes.kind", route.kind, "a type of route")?.into(),
            scope: byte("routes.scope", route.scope, RT_SCOPE)?.into(),
            protocol: byte("routes.protocol", route.protocol, "a routing protocol")?.into(),
            tos: byte("routes.tos", route.tos, "a type of service")?,
            preference: byte("routes.preference", route.preference, "a router preference")?,
            next_hops: route.next_hops.iter().map(hop).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the kernel must know a way to a gateway before it takes this route.
    pub(super) fn needs_others(&self) -> bool {
        self.gateway.is_some() || self.next_hops.iter().any(|hop| hop.gateway.is_some())
    }

    /// The request that adds it over `card`.
    pub(super) fn message(&self, card: u32) -> RouteMessage {
        let v4 = self.destination.address.is_ipv4();
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = if v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        header.destination_prefix_length = self.destination.prefix;
        header.source_prefix_length = self.from.map_or(0, |from| from.prefix);
        header.tos = self.tos;
        (header.protocol, header.scope, header.kind) = (self.protocol, self.scope, self.kind);
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        attributes.push(RouteAttribute::Destination(self.destination.address.into()));
        attributes.extend(self.from.map(|from| RouteAttribute::Source(from.address.into())));
        attributes.extend(self.gateway.map(|gateway| gateway_attribute(gateway, v4)));
        attributes.extend(self.source.map(|source| RouteAttribute::PrefSource(source.into())));
        if self.metric != 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        if !self.metrics.is_empty() {
            let metric = |(kind, value): &(u16, u32)| {
                RouteMetric::Other(DefaultNla::new(*kind, value.to_ne_bytes().to_vec()))
            };
            attributes.push(RouteAttribute::Metrics(self.metrics.iter().map(metric).collect()));
        }
        if self.preference != 0 {
            attributes.push(RouteAttribute::Preference(self.preference.into()));
        }
        if !self.next_hops.is_empty() {
            let hops = self.next_hops.iter().map(|hop| hop.message(card, v4)).collect();
            attributes.push(RouteAttribute::MultiPath(hops));
        } else if !self.refuses() {
            attributes.push(RouteAttribute::Oif(card));
        }
        message
    }

    /// Routes that drop what they match lead over no interface, and do not go when the card goes down.
    pub(super) fn refuses(&self) -> bool {
        use RouteType::{BlackHole, Prohibit, Throw, Unreachable};
        matches!(self.kind, BlackHole | Unreachable | Prohibit | Throw)
    }
}

impl Hop {
    fn message(&self, card: u32, v4: bool) -> RouteNextHop {
        let mut message = RouteNextHop::default();
        message.interface_index = card;
        message.hops = self.weight;
        if self.onlink {
            message.flags |= RouteNextHopFlags::Onlink;
        }
        message.attributes.extend(self.gateway.map(|gateway| gateway_attribute(gateway, v4)));
        message
    }
}

fn gateway_attribute(gateway: IpAddr, v4: bool) -> RouteAttribute {
    match gateway {
        IpAddr::V4(_) if v4 => RouteAttribute::Gateway(gateway.into()),
        IpAddr::V6(_) if !v4 => RouteAttribute::Gateway(gateway.into()),
        IpAddr::V4(other) => RouteAttribute::Via(RouteVia::Inet(other)),
        IpAddr::V6(other) => RouteAttribute::Via(RouteVia::Inet6(other)),
    }
}

fn metrics(route: &Route) -> Result<Vec<(u16, u32)>, LinkError> {
    let mut metrics = Vec::new();
    for (kind, value) in &route.metrics {
        match u16::try_from(*kind) {
            Ok(number) if (1..=LAST_METRIC).contains(kind) && *kind != CONGESTION_ALGORITHM => {
                metrics.push((number, *value));
            }
            _ => return refuse("routes.metrics", &kind.to_string(), "the number of a route's metric"),
        }
    }
    metrics.sort_unstable();
    Ok(metrics)
}

fn hop(hop: &NextHop) -> Result<Hop, LinkError> {
    Ok(Hop {
        gateway: Some(&hop.gateway)
            .filter(|gateway| !gateway.is_empty())
            .map(|gateway| address("routes.next_hops.gateway", gateway))
            .transpose()?,
        onlink: hop.onlink,
        weight: byte("routes.next_hops.weight", hop.weight, "a weight")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn route() -> Route {
        Route {
            destination: "10.1.1.0/24".into(),
            gateway: "10.1.1.1".into(),
            source: "10.1.1.5".into(),
            table: 254,
            kind: 1,
            protocol: 3,
            metrics: HashMap::from([(2, 1400), (8, 1360)]),
            ..Route::default()
        }
    }

    fn message(route: &Route) -> RouteMessage {
        LinkRoute::parse(route).unwrap().message(2)
    }

    #[test]
    fn form_is_the_namespaces() {
        let link = Route { scope: 253, protocol: 2, table: 1000, gateway: String::new(), ..route() };
        let message = message(&link);
        assert_eq!(message.header.scope, RouteScope::Link);
        assert_eq!(message.header.protocol, RouteProtocol::Kernel);
        assert!(message.attributes.contains(&RouteAttribute::Table(1000)), "{message:?}");
        assert!(message.attributes.contains(&RouteAttribute::Oif(2)), "{message:?}");
        let metrics = vec![
            RouteMetric::Other(DefaultNla::new(2, 1400_u32.to_ne_bytes().to_vec())),
            RouteMetric::Other(DefaultNla::new(8, 1360_u32.to_ne_bytes().to_vec())),
        ];
        assert!(message.attributes.contains(&RouteAttribute::Metrics(metrics)), "{message:?}");
    }

    #[test]
    fn gateway_of_the_other_family_is_allowed() {
        let message = message(&Route { gateway: "fe80::1".into(), source: String::new(), ..route() });
        let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        assert!(message.attributes.contains(&via), "{message:?}");
    }

    #[test]
    fn route_over_several_gateways_names_the_card_in_each() {
        let hops =
            ["10.1.1.1", "10.1.1.2"].map(|gateway| NextHop { gateway: gateway.into(), ..NextHop::default() });
        let message = message(&Route { gateway: String::new(), next_hops: hops.to_vec(), ..route() });
        let hops = message.attributes.iter().find_map(|a| match a {
            RouteAttribute::MultiPath(hops) => {
                Some(hops.iter().map(|hop| hop.interface_index).collect::<Vec<_>>())
            }
            _ => None,
        });
        assert_eq!(hops, Some(vec![2, 2]));
        assert!(!message.attributes.contains(&RouteAttribute::Oif(2)), "{message:?}");
    }

    #[test]
    fn route_that_drops_has_no_card() {
        let drops = Route { gateway: String::new(), source: String::new(), kind: 6, ..route() };
        assert!(!message(&drops).attributes.contains(&RouteAttribute::Oif(2)));
    }

    #[test]
    fn malformed_routes_are_refused() {
        let refused = |route: Route| LinkRoute::parse(&route).unwrap_err().to_string();
        assert!(refused(Route { gateway: "there".into(), ..route() }).contains("interface.routes.gateway"));
        assert!(refused(Route { source: "fd00::1".into(), ..route() }).contains("mixes"));
        assert!(refused(Route { table: 255, ..route() }).contains("routes.table"));
        assert!(refused(Route { scope: 999, ..route() }).contains("routes.scope"));
        assert!(refused(Route { metrics: HashMap::from([(16, 0)]), ..route() }).contains("routes.metrics"));
        assert!(refused(Route { next_hops: vec![NextHop::default(); 257], ..route() }).contains("more than"));
    }
}
