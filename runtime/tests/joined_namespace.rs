//! Network namespaces that somebody else made: joined, and left as they were but for IPv6 on the interface.
//!
//! Needs root, and says so where it is not. The namespaces are made by `unshare` and `ip`, as containerd's
//! are by its CNI plugins, and looked into by `nsenter`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use isopod_runtime::network::{NetworkConfig, NetworkError, NetworkSource, Networks, Pod};
use isopod_runtime::undo::Undo;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// A namespace of another maker, who takes it down when this is dropped.
struct Foreign {
    path: PathBuf,
    directory: TempDir,
}

impl Foreign {
    /// With the interface that a CNI plugin would have made, unless that is not wanted; `None` where this is
    /// not root.
    fn new(interface: bool) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a network namespace is made by root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netns");
        File::create(&path).unwrap();
        let script = "ip link set lo up; [ $0 = false ] && exit; \
                      ip link add eth0 address 02:00:00:00:00:07 mtu 1400 type veth peer name peer0 && \
                      ip addr add 10.1.2.3/24 dev eth0 && ip link set eth0 up && ip link set peer0 up && \
                      ip route add default via 10.1.2.1";
        let made = Command::new("unshare")
            .arg(format!("--net={}", path.display()))
            .args(["sh", "-c", script, &interface.to_string()])
            .status()
            .unwrap();
        let foreign = Self { path, directory };
        assert!(made.success() || !interface, "the namespace cannot be made");
        Some(foreign)
    }

    /// What a command prints in the namespace.
    fn run(&self, command: &str) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.path.display()))
            .args(["sh", "-c", command])
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn networks(&self) -> Networks {
        let config = NetworkConfig {
            conf_dir: self.directory.path().join("conf"),
            bin_dirs: Vec::new(),
            state_dir: self.directory.path().join("state"),
            netns_dir: self.directory.path().join("ours"),
            networks: BTreeMap::new(),
            plugin_timeout: Duration::from_secs(1),
        };
        Networks::new(config).unwrap()
    }

    fn pod(&self) -> Pod {
        let source = NetworkSource::Namespace { path: self.path.clone() };
        Pod { sandbox_id: "s1".into(), source, ..Pod::default() }
    }

    /// Nothing of ours is in it, and all of its maker's is.
    fn is_as_it_was(&self) {
        let links = self.run("ip -o link");
        assert!(links.contains("eth0") && !links.contains("tap0"), "{links}");
        let queues = self.run("tc qdisc show dev eth0");
        assert!(!queues.contains("ingress"), "{queues}");
        assert!(self.run("ip -o addr show dev eth0").contains("10.1.2.3/24"));
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

#[tokio::test]
async fn namespace_is_joined_and_left_as_it_was() {
    let Some(foreign) = Foreign::new(true) else { return };
    let networks = foreign.networks();
    let mut undo = Undo::new("network");
    let network = networks.add(&foreign.pod(), &mut undo).await.unwrap();
    undo.keep();
    assert_eq!(network.addresses, ["10.1.2.3".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((network.interface.mac.as_str(), network.interface.mtu), ("02:00:00:00:00:07", 1400));
    assert!(network.interface.routes.iter().any(|route| route.gateway == "10.1.2.1"));
    assert!(foreign.run("ip -o link show dev tap0").contains("mtu 1400"));
    for (from, to) in [("eth0", "tap0"), ("tap0", "eth0")] {
        let filters = foreign.run(&format!("tc filter show dev {from} ingress"));
        assert!(filters.contains(&format!("Redirect to device {to}")), "{filters}");
    }
    assert_eq!(networks.known().unwrap(), ["s1"]);

    // The tap is still open, as in a VMM that has not ended yet.
    networks.remove("s1").await.unwrap();
    foreign.is_as_it_was();
    assert!(networks.known().unwrap().is_empty());
    networks.remove("s1").await.unwrap();

    // Another pod may have it next.
    let mut undo = Undo::new("network");
    networks.add(&foreign.pod(), &mut undo).await.unwrap();
    undo.run().await.unwrap();
    foreign.is_as_it_was();
    assert!(foreign.path.exists());
}

#[tokio::test]
async fn namespace_that_ended_before_its_pod_is_no_trouble() {
    let Some(foreign) = Foreign::new(true) else { return };
    let networks = foreign.networks();
    let mut undo = Undo::new("network");
    let network = networks.add(&foreign.pod(), &mut undo).await.unwrap();
    undo.keep();
    // Its maker left the mount point.
    assert!(Command::new("umount").arg(&foreign.path).status().unwrap().success());
    networks.remove("s1").await.unwrap();
    assert!(networks.known().unwrap().is_empty());
    drop(network);
}

#[tokio::test]
async fn what_would_have_to_be_ours_is_in_the_way_and_stays() {
    let Some(foreign) = Foreign::new(true) else { return };
    let networks = foreign.networks();
    for (make, words, show, end) in [
        (
            "ip link add tap0 type veth peer name tap1",
            "an interface tap0",
            "ip link show dev tap0",
            "ip link del tap0",
        ),
        (
            "tc qdisc add dev eth0 ingress",
            "an ingress queue of eth0",
            "tc qdisc show dev eth0 | grep ingress",
            "tc qdisc del dev eth0 ingress",
        ),
    ] {
        foreign.run(make);
        let mut undo = Undo::new("network");
        let error = networks.add(&foreign.pod(), &mut undo).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        undo.run().await.unwrap();
        networks.remove("s1").await.unwrap();
        foreign.run(show);
        foreign.run(end);
    }
    foreign.is_as_it_was();
}

#[tokio::test]
async fn namespace_without_interface_or_address_is_refused() {
    let Some(empty) = Foreign::new(false) else { return };
    let mut undo = Undo::new("network");
    let error = empty.networks().add(&empty.pod(), &mut undo).await.unwrap_err().to_string();
    assert!(error.contains("no interface eth0"), "{error}");
    undo.run().await.unwrap();

    let Some(foreign) = Foreign::new(true) else { return };
    foreign.run("ip addr flush dev eth0");
    let mut undo = Undo::new("network");
    let error = foreign.networks().add(&foreign.pod(), &mut undo).await.unwrap_err();
    assert!(
        matches!(&error, NetworkError::EmptyNamespace(path) if path == Path::new(&foreign.path)),
        "{error}"
    );
    undo.run().await.unwrap();
    assert!(!foreign.run("ip -o link").contains("tap0"));
}
