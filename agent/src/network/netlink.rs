//! Applies a [`Link`] to the guest's card by rtnetlink, and takes it back.

use super::address::LinkAddress;
use super::field::Mac;
use super::link::Link;
use super::route::LinkRoute;
use super::rule::LinkRule;
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};
use std::fs;
use std::io;
use std::net::IpAddr;

/// Why the network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No netlink socket.
    #[error("netlink socket cannot be made")]
    Socket(#[source] io::Error),
    /// Not exactly one card.
    #[error("the guest has {0} network cards, one was expected")]
    Cards(usize),
    /// A setting of the card's IPv6 was refused.
    #[error("network: cannot set {path} to {value}")]
    Setting {
        /// Its file.
        path: String,
        /// What it should have been.
        value: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("network: cannot {step}")]
    Refused {
        /// What was tried, with the address or name.
        step: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

/// Brings the loopback up and, if there is one, makes the card what `link` says. The caller resets after a
/// failure.
pub async fn apply(link: Option<&Link>) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    netlink.bring_loopback_up().await?;
    if let Some(link) = link {
        let card = netlink.card().await?;
        netlink.configure(card, link).await?;
    }
    Ok(())
}

/// Takes back what [`apply`] did: a card that is down has neither routes nor neighbours, and its addresses
/// go. Rules and routes over no card are deleted one by one.
pub async fn reset(link: Option<&Link>) {
    let Ok(netlink) = Netlink::open() else { return };
    if let Some(link) = link {
        for rule in &link.rules {
            let _ = netlink.handle.rule().del(rule.message()).execute().await;
        }
        for route in link.routes.iter().filter(|route| route.refuses()) {
            let _ = netlink.handle.route().del(route.message(0)).execute().await;
        }
    }
    let Ok(card) = netlink.card().await else { return };
    let _ = netlink.handle.link().set(LinkUnspec::new_with_index(card).down().build()).execute().await;
    let mut addresses = netlink.handle.address().get().set_link_index_filter(card).execute();
    while let Ok(Some(address)) = addresses.try_next().await {
        let _ = netlink.handle.address().del(address).execute().await;
    }
}

/// Keeps the kernel from looking for what CNI has said already. By itself it takes a link-local address and
/// asks all others for a router, again and again: on a bridge each such frame wakes the VMs of all other
/// pods. Without an address of CNI's there is no IPv6; with one, its routes are CNI's. A pod's sysctls, which
/// come later, may have it otherwise.
fn quiet_ipv6(link: &Link) -> Result<(), NetworkError> {
    for (name, value) in ipv6_settings(link) {
        let path = format!("/proc/sys/net/ipv6/conf/{}/{name}", link.name);
        match fs::write(&path, value) {
            // A kernel without IPv6 says nothing.
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(NetworkError::Setting { path, value, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn ipv6_settings(link: &Link) -> [(&'static str, &'static str); 3] {
    [
        ("disable_ipv6", if link.uses_ipv6() { "0" } else { "1" }),
        ("accept_ra", "0"),
        ("router_solicitations", "0"),
    ]
}

/// A netlink connection whose task ends with it.
struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Netlink {
    fn open() -> Result<Netlink, NetworkError> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        Ok(Netlink { handle, task: tokio::spawn(connection) })
    }

    async fn bring_loopback_up(&self) -> Result<(), NetworkError> {
        // The loopback is the first device of every network namespace.
        let up = LinkUnspec::new_with_index(1).up().build();
        self.handle.link().set(up).execute().await.map_err(refused("bring the loopback up"))
    }

    /// Index of the only card.
    async fn card(&self) -> Result<u32, NetworkError> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(refused("list the cards"))?;
        let cards: Vec<u32> =
            links.iter().filter(|link| is_card(link)).map(|link| link.header.index).collect();
        match cards[..] {
            [card] => Ok(card),
            _ => Err(NetworkError::Cards(cards.len())),
        }
    }

    async fn configure(&self, card: u32, link: &Link) -> Result<(), NetworkError> {
        let mut settings =
            LinkUnspec::new_with_index(card).down().name(link.name.clone()).address(link.mac.to_vec());
        if let Some(mtu) = link.mtu {
            settings = settings.mtu(mtu);
        }
        let step = format!("name the card {:?} with MAC {:02x?} and MTU {:?}", link.name, link.mac, link.mtu);
        self.handle.link().set(settings.build()).execute().await.map_err(refused(step))?;
        quiet_ipv6(link)?;
        let up = LinkUnspec::new_with_index(card).up().build();
        self.handle.link().set(up).execute().await.map_err(refused("bring the card up"))?;
        for address in &link.addresses {
            self.add_address(card, address).await?;
        }
        for (address, mac) in &link.neighbours {
            self.add_neighbour(card, *address, mac).await?;
        }
        for route in &link.routes {
            self.add_route(card, route).await?;
        }
        for rule in &link.rules {
            self.add_rule(rule).await?;
        }
        Ok(())
    }

    async fn add_address(&self, card: u32, address: &LinkAddress) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::NewAddress(address.message(card));
        let step = format!("add address {}/{}", address.network.address, address.network.prefix);
        self.add(message, NLM_F_EXCL, step).await
    }

    async fn add_neighbour(&self, card: u32, address: IpAddr, mac: &Mac) -> Result<(), NetworkError> {
        // A permanent entry is this call's default.
        let request = self.handle.neighbours().add(card, address).link_layer_address(mac).replace();
        request.execute().await.map_err(refused(format!("add neighbour {address}")))
    }

    /// Adds the route behind others to the same destination, as a namespace may have several.
    async fn add_route(&self, card: u32, route: &LinkRoute) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::NewRoute(route.message(card));
        let network = route.destination;
        let by = route.gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
        let step =
            format!("add the route to {}/{}{by} in table {}", network.address, network.prefix, route.table);
        self.add(message, NLM_F_APPEND, step).await
    }

    async fn add_rule(&self, rule: &LinkRule) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::NewRule(rule.message());
        self.add(message, NLM_F_EXCL, format!("add the rule of priority {}", rule.priority)).await
    }

    async fn add(&self, message: RouteNetlinkMessage, flag: u16, step: String) -> Result<(), NetworkError> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | flag;
        let answers = self.handle.clone().request(request).map_err(refused(step.clone()))?;
        let failed = answers.filter_map(async |answer| match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Some(error),
            _ => None,
        });
        let mut failed = std::pin::pin!(failed);
        match failed.next().await {
            Some(error) => Err(refused(step)(rtnetlink::Error::NetlinkError(error))),
            None => Ok(()),
        }
    }
}

fn refused(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let step = step.into();
    move |source| NetworkError::Refused { step, source }
}

/// A real card: Ethernet, and not one that the kernel makes by itself (dummies and tunnels say what kind they
/// are).
fn is_card(link: &LinkMessage) -> bool {
    let made_by_kernel =
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkInfo(_)));
    link.header.link_layer_type == LinkLayerType::Ether
        && !link.header.flags.contains(LinkFlags::Loopback)
        && !made_by_kernel
}
