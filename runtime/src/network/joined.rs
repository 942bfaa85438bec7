//! A network namespace that somebody else made, as containerd does for the pods of its shims: its interface
//! goes into the VM, and at the end of the pod what was added for that is taken out again. The namespace
//! stays.
//!
//! Called by `network`. What a client names as a namespace may be anything: the node's own is refused, and
//! links are not followed.

use super::{NetworkError, link, netns};
use isopod_protocols::agent::Interface;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// What is kept until the namespace is left. When it is written nothing of ours is in there yet, and nothing
/// that could be taken for it: what is there at the end under our names is ours.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Joined {
    /// Where the namespace is mounted.
    pub joined_namespace: PathBuf,
}

impl Joined {
    /// Looks whether the namespace can be joined: it is not the node's own, has the interface, and nothing in
    /// the way of what is added.
    pub async fn check(path: &Path) -> Result<Self, NetworkError> {
        if netns::is_own(path)? {
            return Err(NetworkError::NodeNamespace(path.to_owned()));
        }
        netns::within(path, link::check).await??;
        Ok(Self { joined_namespace: path.to_owned() })
    }

    /// Takes out what was added. A namespace that is gone took that along.
    pub async fn leave(&self) -> Result<(), NetworkError> {
        if !netns::is_mounted(&self.joined_namespace) {
            return Ok(());
        }
        Ok(netns::within(&self.joined_namespace, link::leave).await??)
    }
}

/// The addresses of the interface, IPv4 first.
pub(super) fn addresses(interface: &Interface) -> Vec<IpAddr> {
    let own = |address: &str| address.split('/').next().and_then(|ip| ip.parse().ok());
    let mut found: Vec<IpAddr> =
        interface.addresses.iter().filter_map(|address| own(&address.address)).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::agent::Address;

    #[test]
    fn addresses_come_ipv4_first_and_keep_their_order() {
        let listed = ["fd00::2/64", "10.1.2.3/24", "10.1.2.4/24", "fd00::3/64"];
        let address = |text: &str| Address { address: text.into(), ..Address::default() };
        let interface = Interface { addresses: listed.map(address).to_vec(), ..Interface::default() };
        let found: Vec<String> = addresses(&interface).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.1.2.3", "10.1.2.4", "fd00::2", "fd00::3"]);
        assert!(addresses(&Interface::default()).is_empty());
    }

    /// The node's own network must not end in a VM, nor lose its queue at the end of a pod.
    #[tokio::test]
    async fn namespace_of_the_node_is_refused() {
        let refused = Joined::check(Path::new("/proc/self/ns/net")).await.err().unwrap();
        assert!(matches!(refused, NetworkError::NodeNamespace(_)), "{refused}");
    }
}
