//! Reads the routes and rules of a namespace in the form in which the guest makes them again.
//!
//! Called by `link` inside the namespace. Routes over interfaces other than the plugin's are not the guest's,
//! nor are those that a router advertised, which any neighbour can say to be. What cannot be made again in
//! the guest is an error: a pod whose routes differ from its namespace's loses packets without anybody
//! knowing why.

use isopod_protocols::agent::{NextHop, Route, Rule};
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use std::net::IpAddr;

/// `RT_TABLE_MAIN`
pub(super) const MAIN_TABLE: u32 = 254;

/// `RT_TABLE_LOCAL`: the kernel fills it from the addresses.
const LOCAL_TABLE: u32 = 255;

/// Priority and table of the rules that every namespace has; IPv6 has no last one.
const KERNEL_RULES: [(u32, u32); 3] = [(0, LOCAL_TABLE), (32766, MAIN_TABLE), (32767, 253)];

/// A part of a route or rule that the guest cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod network: the CNI plugins set {what}, and {part} is not supported in a VM: take it out of the network's configuration"
)]
pub struct Unsupported {
    what: String,
    part: String,
}

fn part(name: impl Into<String>) -> Unsupported {
    Unsupported { what: String::new(), part: name.into() }
}

/// Translates a listed route. `None` where it is not the guest's to have.
pub(super) fn route(message: &RouteMessage, index: u32) -> Result<Option<Route>, Unsupported> {
    let header = &message.header;
    let table = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or_else(|| header.table.into());
    let advertised = header.protocol == RouteProtocol::Ra;
    if table == LOCAL_TABLE
        || advertised
        || header.flags.contains(RouteFlags::Cloned)
        || !concerns(message, index)
    {
        return Ok(None);
    }
    let mut route = Route {
        table,
        onlink: header.flags.contains(RouteFlags::Onlink),
        kind: u8::from(header.kind).into(),
        scope: u8::from(header.scope).into(),
        protocol: u8::from(header.protocol).into(),
        tos: header.tos.into(),
        ..Route::default()
    };
    let v6 = header.address_family == AddressFamily::Inet6;
    route.destination = if v6 { "::" } else { "0.0.0.0" }.to_owned();
    let filled =
        message.attributes.iter().try_for_each(|a| fill(&mut route, a, header.source_prefix_length, index));
    route.destination = format!("{}/{}", route.destination, header.destination_prefix_length);
    match filled {
        Ok(()) => Ok(Some(route)),
        Err(one) => {
            let by = if route.gateway.is_empty() { String::new() } else { format!(" by {}", route.gateway) };
            Err(Unsupported { what: format!("a route to {}{by}", route.destination), ..one })
        }
    }
}

/// Whether a route leads over the interface, or over none.
fn concerns(message: &RouteMessage, index: u32) -> bool {
    match message.header.kind {
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => {
            message.header.protocol != RouteProtocol::Kernel
        }
        _ => message.attributes.iter().any(|attribute| match attribute {
            RouteAttribute::Oif(over) => *over == index,
            RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
            _ => false,
        }),
    }
}

fn fill(
    route: &mut Route,
    attribute: &RouteAttribute,
    from_length: u8,
    index: u32,
) -> Result<(), Unsupported> {
    match attribute {
        RouteAttribute::Destination(to) => route.destination = text(to)?,
        RouteAttribute::Source(from) => route.from = format!("{}/{from_length}", text(from)?),
        RouteAttribute::Gateway(via) => route.gateway = text(via)?,
        RouteAttribute::Via(via) => route.gateway = other_family(via)?,
        RouteAttribute::PrefSource(source) => route.source = text(source)?,
        RouteAttribute::Priority(metric) => route.metric = *metric,
        RouteAttribute::Preference(preference) => route.preference = u8::from(*preference).into(),
        RouteAttribute::Metrics(metrics) => {
            route.metrics = metrics.iter().map(metric).collect::<Result<_, _>>()?;
        }
        RouteAttribute::MultiPath(hops) => {
            route.next_hops = hops.iter().map(|hop| next_hop(hop, index)).collect::<Result<_, _>>()?;
        }
        RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => return Err(part("its encapsulation")),
        RouteAttribute::Realm(_) => return Err(part("its realm")),
        // What names the table and the interface was read before; caches and counters are the kernel's.
        _ => {}
    }
    Ok(())
}

fn text(address: &RouteAddress) -> Result<String, Unsupported> {
    match address {
        RouteAddress::Inet(v4) => Ok(v4.to_string()),
        RouteAddress::Inet6(v6) => Ok(v6.to_string()),
        _ => Err(part("an address that is not IP's")),
    }
}

fn other_family(via: &RouteVia) -> Result<String, Unsupported> {
    match via {
        RouteVia::Inet(v4) => Ok(v4.to_string()),
        RouteVia::Inet6(v6) => Ok(v6.to_string()),
        _ => Err(part("a gateway that is not IP's")),
    }
}

fn metric(metric: &RouteMetric) -> Result<(u32, u32), Unsupported> {
    if metric.value_len() != size_of::<u32>() || matches!(metric, RouteMetric::CcAlgo(_)) {
        return Err(part("its congestion algorithm"));
    }
    let mut value = [0; size_of::<u32>()];
    metric.emit_value(&mut value);
    Ok((metric.kind().into(), u32::from_ne_bytes(value)))
}

fn next_hop(hop: &RouteNextHop, index: u32) -> Result<NextHop, Unsupported> {
    if hop.interface_index != index {
        return Err(part("a next hop over another interface"));
    }
    let onlink = hop.flags.contains(RouteNextHopFlags::Onlink);
    let mut found = NextHop { onlink, weight: hop.hops.into(), ..NextHop::default() };
    for attribute in &hop.attributes {
        match attribute {
            RouteAttribute::Gateway(via) => found.gateway = text(via)?,
            RouteAttribute::Via(via) => found.gateway = other_family(via)?,
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => {
                return Err(part("the encapsulation of a next hop"));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Translates a listed rule. `None` for those that every namespace has.
pub(super) fn rule(message: &RuleMessage) -> Result<Option<Rule>, Unsupported> {
    let header = &message.header;
    let priority = message.attributes.iter().find_map(|a| match a {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    // The kernel does not list a priority of zero.
    let priority = priority.unwrap_or_default();
    let mut rule = Rule {
        priority,
        ipv6: header.family == AddressFamily::Inet6,
        table: header.table.into(),
        action: u8::from(header.action).into(),
        invert: header.flags.contains(RuleFlags::Invert),
        tos: header.tos.into(),
        ..Rule::default()
    };
    let filled = message.attributes.iter().try_for_each(|attribute| {
        match attribute {
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(from) => rule.from = prefix(*from, header.src_len),
            RuleAttribute::Destination(to) => rule.to = prefix(*to, header.dst_len),
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            RuleAttribute::Iifname(name) => rule.input.clone_from(name),
            RuleAttribute::Oifname(name) => rule.output.clone_from(name),
            RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol).into(),
            // The kernel lists "none" as all ones.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(length) => rule.suppress_prefix_length = Some(*length),
            RuleAttribute::Goto(_) => return Err(part("its jump")),
            RuleAttribute::Realm(_) => return Err(part("its realm")),
            RuleAttribute::TunId(_) | RuleAttribute::L3MDev(true) => return Err(part("its device")),
            RuleAttribute::UidRange(_) => return Err(part("its range of users")),
            RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
            | RuleAttribute::SuppressIfGroup(_) => return Err(part("its match of ports or groups")),
            _ => {}
        }
        Ok(())
    });
    filled.map_err(|one| Unsupported { what: format!("a rule of priority {priority}"), ..one })?;
    Ok(Some(rule).filter(|rule| !is_kernel_rule(rule)))
}

fn is_kernel_rule(rule: &Rule) -> bool {
    let unconditional = Rule {
        ipv6: rule.ipv6,
        priority: rule.priority,
        table: rule.table,
        protocol: rule.protocol,
        action: u8::from(RuleAction::ToTable).into(),
        ..Rule::default()
    };
    *rule == unconditional && KERNEL_RULES.contains(&(rule.priority, rule.table))
}

fn prefix(address: IpAddr, length: u8) -> String {
    format!("{address}/{length}")
}

#[cfg(test)]
mod tests;
