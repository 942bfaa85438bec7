//! The pod's link: what a CNI plugin made in the network namespace is read off and handed to the guest, and every frame
//! is passed between the plugin's interface and the VM's tap by two redirect filters, so no host address or bridge is
//! in the way.
//!
//! Called by `network`, on a thread inside the namespace. The guest then owns the address; the host's end
//! only forwards. A namespace that is ours goes with all of it; from one that was joined, [`leave`] takes out
//! what was added. IPv6 stays off on its interface: the addresses that this took are not ours to give back.

use super::cni::INTERFACE;
use super::routes::Unsupported;
use super::{addresses, routes, sys};
use futures_util::TryStreamExt;
use isopod_protocols::agent::{Address, Interface, Neighbour, Route, Rule};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::tc::TcHandle;
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use tokio::task::JoinHandle;

/// Name of the tap in the namespace.
const TAP: &str = "tap0";

/// Parent of filters on incoming frames: the ingress qdisc (`TC_H_INGRESS`, linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_0000;

/// Why the pod's link could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Netlink refused a step.
    #[error("pod network: cannot {action}: {source}")]
    Netlink {
        /// The step.
        action: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A system call failed.
    #[error("pod network: cannot {action}: {source}")]
    Io {
        /// The step.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// CNI, or whoever made the namespace, made no interface.
    #[error(
        "pod network: there is no interface {INTERFACE}: the CNI plugins, or the namespace's maker, made none"
    )]
    NoInterface,
    /// In a namespace that others made there is what would have to be ours.
    #[error("pod network: the namespace has {0} already, which the VM's link needs: remove it")]
    InTheWay(&'static str),
    /// A route or rule that the guest cannot be given.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

fn netlink(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |source| LinkError::Netlink { action, source }
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> LinkError {
    move |source| LinkError::Io { action, source }
}

/// Reads the interface, makes the tap, and joins the two. Runs inside the namespace.
///
/// # Errors
/// What was taken goes with the namespace.
pub async fn join() -> Result<(Interface, OwnedFd), LinkError> {
    let (handle, connection) = netlink_handle()?;
    let (index, interface) = read_interface(&handle).await?;
    let tap = sys::open_tap(TAP).map_err(system("make the tap"))?;
    for name in [INTERFACE, TAP] {
        silence_ipv6(name)?;
    }
    let tap_index = find_link(&handle, TAP).await?.ok_or(LinkError::NoInterface)?.0;
    let up = LinkUnspec::new_with_index(tap_index).mtu(interface.mtu).up().build();
    handle.link().set(up).execute().await.map_err(netlink("bring the tap up"))?;
    redirect(&handle, index, tap_index).await?;
    redirect(&handle, tap_index, index).await?;
    connection.abort();
    Ok((interface, tap))
}

/// Looks whether [`join`] would find its interface in a namespace that others made, and nothing in its way.
///
/// # Errors
/// What is missing or in the way.
pub async fn check() -> Result<(), LinkError> {
    let (handle, connection) = netlink_handle()?;
    let (index, _) = find_link(&handle, INTERFACE).await?.ok_or(LinkError::NoInterface)?;
    if find_link(&handle, TAP).await?.is_some() {
        return Err(LinkError::InTheWay("an interface tap0"));
    }
    if has_ingress(&handle, index).await? {
        return Err(LinkError::InTheWay("an ingress queue of eth0"));
    }
    connection.abort();
    Ok(())
}

/// Takes out what [`join`] added, as far as it is there. The tap goes by itself with the VM; here it may be
/// first.
///
/// # Errors
/// What stays.
pub async fn leave() -> Result<(), LinkError> {
    let (handle, connection) = netlink_handle()?;
    if let Some((index, _)) = find_link(&handle, INTERFACE).await?
        && has_ingress(&handle, index).await?
    {
        let mut removal = handle.qdisc().del(signed(index));
        removal.message_mut().header.parent = TcHandle::INGRESS;
        removal.execute().await.map_err(netlink("remove the ingress queue"))?;
    }
    if let Some((index, _)) = find_link(&handle, TAP).await? {
        match handle.link().del(index).execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => {}
            removed => removed.map_err(netlink("remove the tap"))?,
        }
    }
    connection.abort();
    Ok(())
}

/// A connection to the kernel in this thread's namespace, and the task that carries it.
fn netlink_handle() -> Result<(Handle, JoinHandle<()>), LinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(system("open netlink"))?;
    Ok((handle, tokio::spawn(connection)))
}

fn signed(index: u32) -> i32 {
    i32::try_from(index).expect("the kernel's interface numbers are positive ints")
}

async fn has_ingress(handle: &Handle, index: u32) -> Result<bool, LinkError> {
    let listed = handle.qdisc().get().index(signed(index)).execute().try_collect::<Vec<_>>().await;
    let listed = listed.map_err(netlink("list queues"))?;
    // The kernel lists those of all interfaces.
    Ok(listed
        .iter()
        .any(|queue| queue.header.index == signed(index) && queue.header.parent == TcHandle::INGRESS))
}

/// The kernel answers for the interface's IPv6 addresses as long as they are on the host's end: the guest, which takes
/// them over with the same MAC, would find them in use.
fn silence_ipv6(name: &str) -> Result<(), LinkError> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match fs::write(path, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(system("turn host IPv6 off")(error)),
        _ => Ok(()),
    }
}

/// Sends every frame that comes in at one interface out at the other.
async fn redirect(handle: &Handle, from: u32, to: u32) -> Result<(), LinkError> {
    let index = signed(from);
    handle
        .qdisc()
        .add(index)
        .ingress()
        .execute()
        .await
        .map_err(netlink("add an ingress queue (is the module sch_ingress there?)"))?;
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    let filter = handle.traffic_filter(index).add().parent(INGRESS).protocol(every_protocol);
    let filter = filter.redirect(to).map_err(netlink("build a redirect"))?;
    filter.execute().await.map_err(netlink("add a redirect (are the modules cls_u32 and act_mirred there?)"))
}

async fn find_link(handle: &Handle, name: &str) -> Result<Option<(u32, Vec<LinkAttribute>)>, LinkError> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|l| (l.header.index, l.attributes))),
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(netlink("find an interface")(error)),
    }
}

async fn read_interface(handle: &Handle) -> Result<(u32, Interface), LinkError> {
    let (index, attributes) = find_link(handle, INTERFACE).await?.ok_or(LinkError::NoInterface)?;
    let mut interface = Interface { name: INTERFACE.into(), ..Interface::default() };
    for attribute in attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Address(mac) => interface.mac = format_mac(&mac),
            _ => {}
        }
    }
    interface.routes = read_routes(handle, index).await?;
    interface.addresses = read_addresses(handle, index, &mut interface.routes).await?;
    interface.rules = read_rules(handle).await?;
    let neighbours = handle.neighbours().get().execute().try_collect::<Vec<_>>().await;
    interface.neighbours =
        neighbours.map_err(netlink("list neighbours"))?.iter().filter_map(|n| neighbour(n, index)).collect();
    Ok((index, interface))
}

/// Takes the routes that come with the addresses out of `routes`.
async fn read_addresses(
    handle: &Handle,
    index: u32,
    routes: &mut Vec<Route>,
) -> Result<Vec<Address>, LinkError> {
    let listed = handle.address().get().set_link_index_filter(index).execute().try_collect::<Vec<_>>().await;
    let found = listed.map_err(netlink("list addresses"))?.iter().filter_map(addresses::address).collect();
    Ok(addresses::settle(found, routes))
}

async fn read_routes(handle: &Handle, index: u32) -> Result<Vec<Route>, LinkError> {
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut found = Vec::new();
    for request in [v4, v6] {
        let family = request.header.address_family;
        let listed = handle.route().get(request).execute().try_collect::<Vec<_>>().await;
        // A kernel without IPv6 answers with the routes of all families that it has.
        let listed = listed.map_err(netlink("list routes"))?;
        for message in listed.iter().filter(|message| message.header.address_family == family) {
            found.extend(routes::route(message, index)?);
        }
    }
    Ok(found)
}

async fn read_rules(handle: &Handle) -> Result<Vec<Rule>, LinkError> {
    let mut found = Vec::new();
    for family in [IpVersion::V4, IpVersion::V6] {
        let listed = handle.rule().get(family).execute().try_collect::<Vec<_>>().await;
        let listed = match listed {
            Err(rtnetlink::Error::NetlinkError(error)) if has_no_rules(error.raw_code()) => continue,
            listed => listed.map_err(netlink("list rules"))?,
        };
        for message in &listed {
            found.extend(routes::rule(message)?);
        }
    }
    Ok(found)
}

/// Whether the kernel says that it has no such family, or no rules at all.
fn has_no_rules(code: i32) -> bool {
    [-libc::EAFNOSUPPORT, -libc::EOPNOTSUPP].contains(&code)
}

/// A neighbour that somebody set by hand: learnt ones the guest learns itself.
fn neighbour(message: &NeighbourMessage, index: u32) -> Option<Neighbour> {
    if message.header.ifindex != index || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut found = Neighbour::default();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => found.address = ip.to_string(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) if !ip.is_multicast() => {
                found.address = ip.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => found.mac = format_mac(mac),
            _ => {}
        }
    }
    (!found.address.is_empty() && !found.mac.is_empty()).then_some(found)
}

/// What the guest is given of a namespace that answers with `bytes`: netlink messages, one after another. For
/// the fuzz target `netlink`.
///
/// # Errors
/// Bytes that are no such messages, and what a guest cannot be given, which the text names.
#[cfg(any(test, feature = "testing"))]
pub fn listed(bytes: &[u8]) -> Result<Interface, String> {
    use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
    use rtnetlink::packet_route::RouteNetlinkMessage;
    const INDEX: u32 = 3;
    let (mut interface, mut found, mut rest) = (Interface::default(), Vec::new(), bytes);
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(|e| e.to_string())?;
        let length = usize::try_from(message.header.length).map_err(|e| e.to_string())?;
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(m)) => {
                found.extend(addresses::address(&m))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(m)) => {
                interface.routes.extend(routes::route(&m, INDEX).map_err(|e| e.to_string())?);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(m)) => {
                interface.rules.extend(routes::rule(&m).map_err(|e| e.to_string())?);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(m)) => {
                interface.neighbours.extend(neighbour(&m, INDEX));
            }
            _ => {}
        }
        // Messages begin at multiples of four (`NLMSG_ALIGN`).
        rest = rest.get(length.max(1).next_multiple_of(4)..).unwrap_or_default();
    }
    interface.addresses = addresses::settle(found, &mut interface.routes);
    Ok(interface)
}

fn format_mac(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::net::IpAddr;

    #[test]
    fn only_permanent_neighbours_count() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(Ipv4Addr::new(169, 254, 1, 1))),
            NeighbourAttribute::LinkLayerAddress(vec![0xee; 6]),
        ];
        let expected = Neighbour { address: "169.254.1.1".into(), mac: "ee:ee:ee:ee:ee:ee".into() };
        assert_eq!(neighbour(&message, 3), Some(expected));
        message.header.state = NeighbourState::Reachable;
        assert_eq!(neighbour(&message, 3), None);
    }

    proptest! {
        #[test]
        fn any_listed_neighbour_is_whole_or_left_out(
            state: u16, index in 2..5u32, addresses in vec(any::<IpAddr>(), 0..3),
            macs in vec(vec(any::<u8>(), 0..40), 0..3), other: Vec<u8>,
        ) {
            let mut message = NeighbourMessage::default();
            message.header.ifindex = index;
            message.header.state = if state % 2 == 0 { NeighbourState::Permanent } else { state.into() };
            let destination = |ip| match ip {
                IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
                IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
            };
            message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Other(other)));
            let addresses = addresses.into_iter().map(destination);
            message.attributes.extend(addresses.map(NeighbourAttribute::Destination));
            message.attributes.extend(macs.into_iter().map(NeighbourAttribute::LinkLayerAddress));
            if let Some(found) = neighbour(&message, 3) {
                prop_assert_eq!(index, 3);
                prop_assert!(found.address.parse::<IpAddr>().is_ok() && !found.mac.is_empty());
            }
        }
    }
}
