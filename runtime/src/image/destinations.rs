//! Where the answers of registries and the manifests of images may send this node: to no service of the node itself or of its
//! link, unless the configuration or the user names that host.
//!
//! Registries name token services and redirect, and manifests name addresses of layers. The operator wrote none of these, and
//! services on loopback or on the link (such as a cloud's metadata service) trust whoever reaches them. A
//! registry that is on loopback itself is one of the services there, and leads to none of the others. So:
//!
//! | host | is allowed |
//! |---|---|
//! | an address of loopback or of the link, `localhost`, or a cloud's metadata service | if the same host and port name it, or if `[registry."HOST"]` or a mirror names it |
//! | a name | if it resolves to other addresses; to these only if the configuration names it, or a pull under way is from there |
//!
//! Used by `hosts`, whose clients resolve names here, and by `endpoint`. It must not send requests.

use super::hosts::host_and_port;
use super::lookups::Lookups;
use crate::config::RegistryConfig;
use crate::lock::lock;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

/// Variables of the environment that name proxies, in capitals too.
const PROXIES: [&str; 3] = ["http_proxy", "https_proxy", "all_proxy"];

/// Metadata services of clouds beyond the link: of Alibaba Cloud, Azure (its `WireServer`) and Oracle Cloud
/// Classic.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// The same, of Google Cloud, Oracle Cloud, Scaleway and Akamai.
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
];

/// Prefix of Amazon EC2's own services: metadata (::254), names (::253), time (::123), identities of pods
/// (::23).
const EC2_SERVICES: [u16; 2] = [0xfd00, 0xec2];

/// Prefix of IPv4 addresses behind a translator, in their last 32 bits (RFC 6052, 2.1).
const TRANSLATED: [u16; 6] = [0x64, 0xff9b, 0, 0, 0, 0];

/// Longest host that errors tell, in characters.
const LONGEST_HOST: usize = 100;

/// The hosts that are allowed to be on this node or its link.
#[derive(Debug, Default)]
pub struct Destinations {
    /// Hosts of sections, with their ports where these name one, and those of mirrors, with their ports.
    hosts: BTreeSet<String>,
    /// The same without ports, and the proxies of the environment: names that may resolve to anything.
    names: BTreeSet<String>,
    /// Hosts that pulls under way ask, each with the number of places: users named them.
    asked: Mutex<BTreeMap<String, usize>>,
}

/// Allows the host of a place to resolve to any address, until it is dropped.
#[derive(Debug)]
pub struct AllowedHost {
    destinations: Arc<Destinations>,
    host: String,
}

impl Destinations {
    /// The hosts that the configuration and the environment name.
    pub fn new(sections: &BTreeMap<String, RegistryConfig>) -> Self {
        let mirrors = sections.values().flat_map(|section| &section.mirrors);
        let mirrors = mirrors.filter_map(|mirror| Url::parse(mirror).ok().map(|url| with_port(&url)));
        let hosts: BTreeSet<String> = sections.keys().cloned().chain(mirrors).collect();
        let url = |host: &String| Url::parse(&format!("http://{host}")).ok();
        let names = hosts.iter().filter_map(url).chain(proxies());
        let names = names.filter_map(|url| url.host_str().map(str::to_owned)).collect();
        Self { hosts, names, asked: Mutex::default() }
    }

    /// Allows the host of `place`, which a user or the configuration names, to resolve to any address.
    pub fn allow(self: &Arc<Self>, place: &Url) -> AllowedHost {
        let host = place.host_str().unwrap_or_default().to_owned();
        *self.asked().entry(host.clone()).or_default() += 1;
        AllowedHost { destinations: Arc::clone(self), host }
    }

    /// Checks an address that an answer of `place` names. Names are checked again when they are resolved.
    ///
    /// # Errors
    /// The host and why it is refused: the end of a sentence.
    pub fn check(&self, url: &Url, place: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let same = with_port(place) == with_port(url);
        let configured = self.hosts.contains(host) || self.hosts.contains(&with_port(url));
        if !is_near(host) || same || configured {
            return Ok(());
        }
        Err(refusal(&host_and_port(url)))
    }

    /// Whether `name` may resolve to addresses of this node or its link. `localhost` may: [`Self::check`], which knows who names
    /// it, has allowed it.
    fn may_be_near(&self, name: &str) -> bool {
        is_near(name) || self.names.contains(name) || self.asked().contains_key(name)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        lock(&self.asked)
    }
}

impl Drop for AllowedHost {
    fn drop(&mut self) {
        let mut asked = self.destinations.asked();
        if let Some(count) = asked.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                asked.remove(&self.host);
            }
        }
    }
}

/// Resolves names for HTTP clients, and leaves out the addresses that they may not have.
pub struct Resolver {
    /// Who may be where.
    pub destinations: Arc<Destinations>,
    /// What looks names up.
    pub lookups: Lookups,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (destinations, lookups) = (Arc::clone(&self.destinations), self.lookups.clone());
        Box::pin(async move {
            let name = name.as_str();
            let found = lookups.addresses(name).await?;
            let kept = if destinations.may_be_near(name) { found } else { far_ones(name, found)? };
            Ok(Box::new(kept.into_iter()) as Addrs)
        })
    }
}

/// What of the addresses of `name` is neither this node nor on its link.
fn far_ones(name: &str, found: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    let any = !found.is_empty();
    let far: Vec<_> = found.into_iter().filter(|address| !is_near_address(address.ip())).collect();
    match far.is_empty() && any {
        true => Err(io::Error::other(format!("resolves to {}", refusal(name)))),
        false => Ok(far),
    }
}

fn refusal(host: &str) -> String {
    let host: String = host.chars().take(LONGEST_HOST).collect();
    format!(
        "{host}, which is this node or on its link, or a metadata service: add [registry.{host:?}] to the \
         configuration to allow that"
    )
}

/// The addresses of the environment's proxies.
fn proxies() -> impl Iterator<Item = Url> {
    let variables = PROXIES.into_iter().flat_map(|name| [name.to_owned(), name.to_ascii_uppercase()]);
    let values = variables.filter_map(|name| std::env::var(name).ok());
    values.filter_map(|value| {
        let url = Url::parse(&value).ok().filter(Url::has_host);
        url.or_else(|| Url::parse(&format!("http://{value}")).ok())
    })
}

/// The host of an address with its port, that of its scheme where it names none.
fn with_port(url: &Url) -> String {
    let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default());
    port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Whether a host names this node, an address on its link or a metadata service without being resolved.
fn is_near(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let local = host == "localhost" || host.ends_with(".localhost");
    local || address.parse::<IpAddr>().is_ok_and(is_near_address)
}

fn is_near_address(address: IpAddr) -> bool {
    let address = match address {
        IpAddr::V6(address) => {
            address.to_ipv4_mapped().or_else(|| translated(address)).map_or(IpAddr::V6(address), IpAddr::V4)
        }
        address => address,
    };
    match address {
        IpAddr::V4(address) => {
            let metadata = METADATA_V4.contains(&address);
            address.is_loopback() || address.is_link_local() || address.is_unspecified() || metadata
        }
        IpAddr::V6(address) => {
            let metadata = METADATA_V6.contains(&address) || address.segments().starts_with(&EC2_SERVICES);
            address.is_loopback() || address.is_unspecified() || is_link_local(address) || metadata
        }
    }
}

/// The IPv4 address that a translator makes of an IPv6 one.
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [.., a, b, c, d] = address.octets();
    address.segments().starts_with(&TRANSLATED).then(|| Ipv4Addr::new(a, b, c, d))
}

/// fe80::/10 (RFC 4291, 2.5.6).
fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(hosts: &[&str], mirrors: &[&str]) -> Arc<Destinations> {
        let mut sections: BTreeMap<String, RegistryConfig> =
            hosts.iter().map(|host| ((*host).to_owned(), RegistryConfig::default())).collect();
        let mirrors = mirrors.iter().map(|&mirror| mirror.to_owned()).collect();
        sections.insert("docker.io".to_owned(), RegistryConfig { mirrors, ..Default::default() });
        Arc::new(Destinations::new(&sections))
    }

    fn check(destinations: &Destinations, url: &str, place: &str) -> Result<(), String> {
        destinations.check(&Url::parse(url).unwrap(), &Url::parse(place).unwrap())
    }

    #[test]
    fn registry_cannot_send_this_node_to_itself_or_its_link() {
        let destinations = destinations(&[], &[]);
        for url in [
            "https://127.0.0.1/token",
            "https://127.9.9.9/token",
            "https://2130706433/token",
            "https://0x7f.1/token",
            "https://[::1]/token",
            "https://[::ffff:127.0.0.1]/token",
            "https://0.0.0.0/token",
            "https://[::]/token",
            "https://169.254.169.254/latest",
            "https://[::ffff:169.254.169.254]/latest",
            "https://[fe80::1]/token",
            "https://[febf::1]/token",
            "https://localhost:10250/token",
            "https://localhost./token",
            "https://x.localhost/token",
        ] {
            let refused = check(&destinations, url, "https://evil.test/v2/").unwrap_err();
            assert!(
                refused.contains("this node or on its link") && refused.contains("[registry."),
                "{refused}"
            );
        }
        for url in ["https://auth.test/token", "https://10.0.0.1/token", "https://[fec0::1]/token"] {
            assert_eq!(check(&destinations, url, "https://evil.test/v2/"), Ok(()), "{url}");
        }
    }

    #[test]
    fn host_that_the_configuration_or_the_user_names_is_allowed() {
        let destinations = destinations(&["169.254.1.1:5000", "[::1]"], &["http://127.0.0.1:5000/hub"]);
        for (url, place) in [
            ("https://169.254.1.1:5000/token", "https://a.test/"),
            ("https://[::1]:7/token", "https://a.test/"),
            ("http://127.0.0.1:5000/token", "https://a.test/"),
            ("http://127.0.0.1:7/token", "http://127.0.0.1:7/v2/"),
            ("http://localhost/token", "http://localhost:80/v2/"),
            ("http://169.254.7.7/token", "http://169.254.7.7/"),
        ] {
            assert_eq!(check(&destinations, url, place), Ok(()), "{url}");
        }
        assert!(check(&destinations, "https://169.254.1.1:22/token", "https://a.test/").is_err());
        assert!(check(&destinations, "http://127.0.0.1:7/token", "https://a.test/").is_err());
        assert!(check(&destinations, "http://169.254.169.254/", "http://127.0.0.1:5000/").is_err());
    }

    #[test]
    fn registry_on_loopback_leads_to_no_other_port() {
        let named = destinations(&["127.0.0.1:5001", "localhost"], &["http://127.0.0.2/hub"]);
        let place = "http://127.0.0.1:5000/v2/";
        for url in [
            "http://127.0.0.1:10250/pods",
            "http://127.0.0.1/token",
            "https://127.0.0.1/token",
            "http://127.0.0.2:5000/token",
            "http://[::1]:5000/token",
            "http://[::ffff:127.0.0.1]:5000/token",
            "http://0.0.0.0:5000/token",
            "http://x.localhost:5000/token",
        ] {
            let refused = check(&named, url, place).unwrap_err();
            assert!(refused.contains("which is this node or on its link"), "{url}: {refused}");
        }
        for url in ["http://127.0.0.1:5000/token", "http://127.0.0.1:5001/token", "http://localhost:7/token"]
        {
            assert_eq!(check(&named, url, place), Ok(()), "{url}");
        }
        assert_eq!(check(&named, "http://127.0.0.2:80/token", place), Ok(()), "the port of the mirror");
    }

    #[test]
    fn metadata_services_beyond_the_link_are_near() {
        let nobody = destinations(&[], &[]);
        let addresses = [
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd00:ec2::253",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "fd00:a9fe:a9fe::1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::ffff:168.63.129.16",
            "64:ff9b::169.254.169.254",
            "64:ff9b::127.0.0.1",
        ];
        for address in addresses {
            let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
            let url = format!("https://{host}/latest/meta-data");
            assert!(check(&nobody, &url, "https://evil.test/v2/").is_err(), "{host}");
            assert!(check(&nobody, &url, "http://127.0.0.1:5000/v2/").is_err(), "{host}");
            assert!(far_ones("evil.test", vec![SocketAddr::new(address.parse().unwrap(), 0)]).is_err());
        }
        for host in ["100.100.100.201", "[fd00:42::43]", "[fd00:ec3::254]", "[64:ff9b::192.0.2.1]"] {
            assert_eq!(check(&nobody, &format!("https://{host}/"), "https://evil.test/"), Ok(()), "{host}");
        }
        let named = destinations(&["168.63.129.16"], &[]);
        assert_eq!(check(&named, "https://168.63.129.16/", "https://evil.test/"), Ok(()));
    }

    #[tokio::test]
    async fn name_is_resolved_to_loopback_only_while_a_pull_is_from_there() {
        let destinations = destinations(&["named.test"], &[]);
        assert!(!destinations.may_be_near("evil.test"));
        assert!(destinations.may_be_near("named.test"));
        let place = Url::parse("https://user.test:444/v2/").unwrap();
        let (first, second) = (destinations.allow(&place), destinations.allow(&place));
        drop(first);
        assert!(destinations.may_be_near("user.test"));
        drop(second);
        assert!(!destinations.may_be_near("user.test"));

        // the only name that every machine resolves to itself
        let resolver = Resolver { destinations: Arc::clone(&destinations), lookups: Lookups::default() };
        let addresses = resolver.resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(addresses.count() > 0);
    }

    #[test]
    fn near_addresses_of_a_name_are_left_out() {
        let addresses = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
        };
        let far = far_ones("evil.test", addresses(&["127.0.0.1", "192.0.2.1", "fe80::1", "2001:db8::1"]));
        assert_eq!(far.unwrap(), addresses(&["192.0.2.1", "2001:db8::1"]));
        let refused = far_ones("evil.test", addresses(&["169.254.169.254", "::1"])).unwrap_err().to_string();
        assert!(refused.contains("resolves to evil.test, which is this node"), "{refused}");
        assert_eq!(far_ones("evil.test", Vec::new()).unwrap(), []);
    }

    #[test]
    fn long_hosts_are_cut_in_errors() {
        let host = format!("{}localhost", "a.".repeat(100));
        let refused =
            check(&destinations(&[], &[]), &format!("https://{host}/"), "https://evil.test/").unwrap_err();
        assert!(refused.len() < 350, "{refused}");
    }
}
