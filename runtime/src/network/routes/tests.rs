use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use rtnetlink::packet_route::route::{RouteLwEnCapType, RouteScope};
use std::collections::HashMap;
use std::net::Ipv4Addr;

const GATEWAY: RouteAddress = RouteAddress::Inet(Ipv4Addr::new(10, 88, 0, 1));

fn message(attributes: Vec<RouteAttribute>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.attributes = attributes;
    message
}

fn read(message: &RouteMessage) -> Option<Route> {
    route(message, 3).unwrap()
}

#[test]
fn default_route_keeps_all_that_it_has() {
    let mut listed = message(vec![
        RouteAttribute::Oif(3),
        RouteAttribute::Gateway(GATEWAY),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400), RouteMetric::Advmss(1360)]),
    ]);
    listed.header.flags = RouteFlags::Onlink | RouteFlags::Dead;
    let expected = Route {
        destination: "0.0.0.0/0".into(),
        gateway: "10.88.0.1".into(),
        metrics: HashMap::from([(2, 1400), (8, 1360)]),
        onlink: true,
        table: 254,
        kind: 1,
        protocol: 3,
        ..Route::default()
    };
    assert_eq!(read(&listed), Some(expected));
}

#[test]
fn scope_protocol_and_table_are_the_namespaces() {
    let mut listed = message(vec![RouteAttribute::Oif(3), RouteAttribute::Table(1000)]);
    listed.header.protocol = RouteProtocol::Kernel;
    listed.header.scope = RouteScope::Link;
    let found = read(&listed).unwrap();
    assert_eq!((found.table, found.scope, found.protocol), (1000, 253, 2));
}

#[test]
fn route_that_a_router_advertised_is_left_out() {
    let mut listed = message(vec![RouteAttribute::Oif(3), RouteAttribute::Gateway(GATEWAY)]);
    assert!(read(&listed).is_some());
    listed.header.protocol = RouteProtocol::Ra;
    assert_eq!(read(&listed), None);
}

#[test]
fn local_table_and_other_interfaces_are_left_out() {
    assert_eq!(read(&message(vec![RouteAttribute::Oif(4)])), None);
    assert_eq!(read(&message(vec![RouteAttribute::Oif(3), RouteAttribute::Table(255)])), None);
}

#[test]
fn route_that_refuses_needs_no_interface() {
    let mut listed = message(vec![]);
    listed.header.kind = RouteType::BlackHole;
    assert_eq!(read(&listed).unwrap().kind, 6);
    listed.header.protocol = RouteProtocol::Kernel;
    assert_eq!(read(&listed), None, "the kernel's own");
}

fn hop(index: u32, weight: u8) -> RouteNextHop {
    let mut hop = RouteNextHop::default();
    hop.interface_index = index;
    hop.hops = weight;
    hop.attributes = vec![RouteAttribute::Gateway(GATEWAY)];
    hop
}

#[test]
fn gateways_of_equal_cost_keep_their_weights() {
    let found = read(&message(vec![RouteAttribute::MultiPath(vec![hop(3, 0), hop(3, 4)])])).unwrap();
    let weights: Vec<u32> = found.next_hops.iter().map(|hop| hop.weight).collect();
    assert_eq!(weights, [0, 4]);
}

#[test]
fn what_the_guest_cannot_have_is_an_error_with_the_route() {
    let split = message(vec![RouteAttribute::MultiPath(vec![hop(3, 0), hop(4, 0)])]);
    let error = route(&split, 3).unwrap_err().to_string();
    assert!(error.contains("a route to 0.0.0.0/0") && error.contains("another interface"), "{error}");
    let wrapped = message(vec![RouteAttribute::Oif(3), RouteAttribute::EncapType(RouteLwEnCapType::Mpls)]);
    assert!(route(&wrapped, 3).unwrap_err().to_string().contains("encapsulation"));
}

fn rule_message(priority: u32, table: u8, attributes: Vec<RuleAttribute>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.table = table;
    message.header.action = RuleAction::ToTable;
    message.attributes = attributes;
    message.attributes.push(RuleAttribute::Priority(priority));
    message.attributes.push(RuleAttribute::SuppressPrefixLen(u32::MAX));
    message
}

#[test]
fn rules_of_every_namespace_are_left_out() {
    for (priority, table) in [(0, 255), (32766, 254), (32767, 253)] {
        assert_eq!(rule(&rule_message(priority, table, vec![])), Ok(None));
    }
}

#[test]
fn rule_of_a_plugin_is_carried() {
    let mut listed = rule_message(100, 100, vec![RuleAttribute::Source("10.88.0.4".parse().unwrap())]);
    listed.header.src_len = 32;
    let expected =
        Rule { priority: 100, table: 100, action: 1, from: "10.88.0.4/32".into(), ..Rule::default() };
    assert_eq!(rule(&listed), Ok(Some(expected)));
    let error = rule(&rule_message(9, 0, vec![RuleAttribute::Goto(10)])).unwrap_err().to_string();
    assert!(error.contains("a rule of priority 9") && error.contains("its jump"), "{error}");
}

/// What the kernel may list, and more: plugins set what they like, and a kernel that is newer lists what this
/// crate has no name for.
fn any_route() -> impl Strategy<Value = RouteMessage> {
    (any::<[u8; 8]>(), any::<u32>(), vec(any_attribute(), 0..8)).prop_map(|(bytes, flags, attributes)| {
        let mut message = RouteMessage::default();
        let [family, to_length, from_length, tos, table, protocol, scope, kind] = bytes;
        message.header.address_family =
            [AddressFamily::Inet, AddressFamily::Inet6, family.into()][usize::from(family % 3)];
        message.header.destination_prefix_length = to_length;
        message.header.source_prefix_length = from_length;
        message.header.tos = tos;
        message.header.table = table;
        message.header.protocol = protocol.into();
        message.header.scope = scope.into();
        message.header.kind = (kind % 16).into();
        message.header.flags = RouteFlags::from_bits_retain(flags);
        message.attributes = attributes;
        message
    })
}

fn any_address() -> impl Strategy<Value = RouteAddress> {
    prop_oneof![
        any::<IpAddr>().prop_map(RouteAddress::from),
        vec(any::<u8>(), 0..20).prop_map(RouteAddress::Other),
    ]
}

fn any_attribute() -> impl Strategy<Value = RouteAttribute> {
    let metrics = prop_oneof![
        any::<u32>().prop_map(RouteMetric::Mtu),
        any::<u32>().prop_map(RouteMetric::Hoplimit),
        any::<u32>().prop_map(RouteMetric::Advmss),
    ];
    let via = prop_oneof![
        any::<[u8; 16]>().prop_map(|ip| RouteVia::Inet6(ip.into())),
        vec(any::<u8>(), 0..9).prop_map(RouteVia::Packet),
    ];
    let hop = (0..5u32, any::<(u8, u8)>(), any_address()).prop_map(|(index, (weight, flags), gateway)| {
        let mut hop = hop(index, weight);
        hop.flags = RouteNextHopFlags::from_bits_retain(flags);
        hop.attributes.push(RouteAttribute::Gateway(gateway));
        hop
    });
    prop_oneof![
        any_address().prop_map(RouteAttribute::Destination),
        any_address().prop_map(RouteAttribute::Source),
        any_address().prop_map(RouteAttribute::Gateway),
        any_address().prop_map(RouteAttribute::PrefSource),
        via.prop_map(RouteAttribute::Via),
        (0..5u32).prop_map(RouteAttribute::Oif),
        any::<u32>().prop_map(RouteAttribute::Table),
        any::<u32>().prop_map(RouteAttribute::Priority),
        any::<u8>().prop_map(|preference| RouteAttribute::Preference(preference.into())),
        vec(metrics, 0..4).prop_map(RouteAttribute::Metrics),
        vec(hop, 0..4).prop_map(RouteAttribute::MultiPath),
        Just(RouteAttribute::EncapType(RouteLwEnCapType::Mpls)),
    ]
}

fn any_rule() -> impl Strategy<Value = RuleMessage> {
    let attribute = prop_oneof![
        any::<IpAddr>().prop_map(RuleAttribute::Source),
        any::<IpAddr>().prop_map(RuleAttribute::Destination),
        any::<String>().prop_map(RuleAttribute::Iifname),
        any::<u32>().prop_map(RuleAttribute::Table),
        any::<u32>().prop_map(RuleAttribute::FwMark),
        any::<u32>().prop_map(RuleAttribute::SuppressPrefixLen),
        any::<u32>().prop_map(RuleAttribute::SuppressIfGroup),
        any::<u32>().prop_map(RuleAttribute::Goto),
        any::<bool>().prop_map(RuleAttribute::L3MDev),
        any::<u8>().prop_map(|protocol| RuleAttribute::Protocol(protocol.into())),
    ];
    (any::<[u8; 5]>(), any::<u32>(), vec(attribute, 0..6)).prop_map(|(bytes, priority, attributes)| {
        let mut message = rule_message(priority, bytes[0], attributes);
        message.header.src_len = bytes[1];
        message.header.dst_len = bytes[2];
        message.header.tos = bytes[3];
        message.header.action = bytes[4].into();
        message
    })
}

proptest! {
    #[test]
    fn any_listed_route_is_the_guests_or_left_out_or_refused(listed in any_route()) {
        match route(&listed, 3) {
            Ok(Some(found)) => {
                prop_assert_ne!(found.table, LOCAL_TABLE);
                let (to, length) = found.destination.split_once('/').unwrap();
                prop_assert!(to.parse::<IpAddr>().is_ok() && length.parse::<u8>().is_ok(), "{:?}", found);
                prop_assert!(found.gateway.is_empty() || found.gateway.parse::<IpAddr>().is_ok());
                prop_assert!(found.next_hops.iter().all(|hop| hop.gateway.parse::<IpAddr>().is_ok()));
            }
            Ok(None) => {}
            Err(error) => prop_assert!(error.to_string().contains("take it out of the network's configuration")),
        }
    }

    #[test]
    fn any_listed_rule_is_the_guests_or_left_out_or_refused(listed in any_rule()) {
        match rule(&listed) {
            Ok(Some(found)) => prop_assert!(!is_kernel_rule(&found)),
            Ok(None) => {}
            Err(error) => prop_assert!(error.to_string().contains("a rule of priority")),
        }
    }
}
