//! One address of the card: checked here, and the rtnetlink message that makes it.
//!
//! Called by `link` to check and by `netlink` to apply.

use super::field::{LinkError, Network, RT_SCOPE, byte, network, optional_address, refuse};
use isopod_protocols::agent::Address;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use std::net::{IpAddr, Ipv4Addr};

/// An address as the namespace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkAddress {
    pub(super) network: Network,
    peer: Option<IpAddr>,
    broadcast: Option<Ipv4Addr>,
    scope: AddressScope,
    /// Whether the kernel makes a route to the prefix by itself.
    prefix_route: bool,
    /// Of that route; 0: the kernel's default.
    metric: u32,
}

impl LinkAddress {
    pub(super) fn parse(address: &Address) -> Result<LinkAddress, LinkError> {
        let network = network("addresses.address", &address.address)?;
        let peer = optional_address("addresses.peer", &address.peer)?;
        if peer.is_some_and(|peer| peer.is_ipv4() != network.address.is_ipv4()) {
            return Err(LinkError::MixedFamilies(address.address.clone()));
        }
        let broadcast = match optional_address("addresses.broadcast", &address.broadcast)? {
            Some(IpAddr::V4(broadcast)) if network.address.is_ipv4() => Some(broadcast),
            None => None,
            Some(_) => return refuse("addresses.broadcast", &address.broadcast, "an IPv4 address"),
        };
        Ok(LinkAddress {
            network,
            peer,
            broadcast,
            scope: byte("addresses.scope", address.scope, RT_SCOPE)?.into(),
            prefix_route: address.prefix_route,
            metric: address.metric,
        })
    }

    /// The request that adds it to `card`.
    pub(super) fn message(&self, card: u32) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family =
            if self.network.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.prefix_len = self.network.prefix;
        message.header.scope = self.scope;
        message.header.index = card;
        let attributes = &mut message.attributes;
        attributes.push(AddressAttribute::Local(self.network.address));
        attributes.push(AddressAttribute::Address(self.peer.unwrap_or(self.network.address)));
        attributes.extend(self.broadcast.map(AddressAttribute::Broadcast));
        if self.metric != 0 {
            attributes.push(AddressAttribute::RoutePriority(self.metric));
        }
        let mut flags = AddressFlags::empty();
        if !self.prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        if self.network.address.is_ipv6() {
            // CNI made sure that nobody else has it; a tentative address could not be a route's source.
            message.header.flags |= AddressHeaderFlags::Nodad;
            flags |= AddressFlags::Nodad;
        }
        if !flags.is_empty() {
            attributes.push(AddressAttribute::Flags(flags));
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address {
            address: "10.1.1.5/24".into(),
            broadcast: "10.1.1.255".into(),
            prefix_route: true,
            ..Address::default()
        }
    }

    fn flags(address: &Address) -> Option<AddressFlags> {
        let message = LinkAddress::parse(address).unwrap().message(2);
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        })
    }

    #[test]
    fn kernel_makes_the_route_where_the_namespace_has_it() {
        assert_eq!(flags(&address()), None);
        let bare = Address { prefix_route: false, ..address() };
        assert_eq!(flags(&bare), Some(AddressFlags::Noprefixroute));
        let v6 = Address { address: "fd00::5/64".into(), ..Address::default() };
        assert_eq!(flags(&v6), Some(AddressFlags::Noprefixroute | AddressFlags::Nodad));
    }

    #[test]
    fn peer_is_the_address_of_the_other_end() {
        let link = Address { address: "10.9.9.2/32".into(), peer: "10.9.9.1".into(), ..Address::default() };
        let message = LinkAddress::parse(&link).unwrap().message(2);
        let (own, peer) = ("10.9.9.2".parse().unwrap(), "10.9.9.1".parse().unwrap());
        assert!(message.attributes.contains(&AddressAttribute::Local(own)), "{message:?}");
        assert!(message.attributes.contains(&AddressAttribute::Address(peer)), "{message:?}");
    }

    #[test]
    fn malformed_addresses_are_refused() {
        let refused = |address: Address| LinkAddress::parse(&address).unwrap_err().to_string();
        let text = |address: &str| Address { address: address.into(), ..Address::default() };
        assert!(refused(text("10.0.0.1")).contains("interface.addresses"));
        assert!(refused(text("10.0.0.1/33")).contains("interface.addresses"));
        assert!(refused(Address { peer: "fd00::1".into(), ..address() }).contains("mixes"));
        assert!(refused(Address { broadcast: "fd00::1".into(), ..address() }).contains("broadcast"));
        assert!(refused(Address { scope: 256, ..address() }).contains("scope"));
    }
}
