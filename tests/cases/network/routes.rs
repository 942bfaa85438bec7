//! Cases about routes: the guest has those of its network namespace, as many and in the same form.
//!
//! A last plugin of each network writes down what the namespace has: the node takes IPv6 off its end later.

use anyhow::{Context, Result, ensure};
use isopod_tests::cri::{Cri, Pod, container_config};
use isopod_tests::node_programs;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

const CONFIGURATION: &str = "/etc/cni/net.d/05-case.conflist";
const PLUGINS: &str = "/opt/cni/bin";
const LISTED: &str = "/tmp/case-routes";

/// What `ip` lists of the routes and rules that matter.
const LIST: &str = "-d route show table all; $IP -6 -d route show table all; $IP rule; $IP -6 rule";

/// Passes the result of the plugin before it on.
const RECORD: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD)
  IP="nsenter --net=$CNI_NETNS ip"
  { $IP LIST; } >LISTED-$CNI_CONTAINERID
  jq -c .prevResult ;;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
esac
"#;

const PTP: &str = r#"{"cniVersion": "1.0.0", "name": "case-ptp", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local",
    "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "case-record"}]}"#;

/// Addresses without a subnet, a gateway that is nobody's address, and a route of each form.
const ODD: &str = r#"#!/bin/sh
cat >/dev/null
host=case$(echo "$CNI_CONTAINERID" | cut -c1-8)
IP="nsenter --net=$CNI_NETNS ip"
case $CNI_COMMAND in
ADD)
  n=$(($(cat /run/case-odd 2>/dev/null || echo 1) + 1)); echo $n >/run/case-odd
  set -e
  ip link add "$host" type veth peer name eth0 netns "$CNI_NETNS"
  ip link set "$host" address ee:ee:ee:ee:ee:ee up
  echo 1 >"/proc/sys/net/ipv4/conf/$host/proxy_arp"
  echo 0 >"/proc/sys/net/ipv4/neigh/$host/proxy_delay"
  echo 1 >"/proc/sys/net/ipv4/conf/$host/forwarding"
  ip route add "10.77.0.$n/32" dev "$host"
  ip route replace 169.254.1.1/32 dev lo
  $IP addr add "10.77.0.$n/32" dev eth0
  $IP addr add "10.70.$n.1" peer 10.70.0.1/32 dev eth0
  $IP addr add "10.71.$n.1/24" dev eth0 metric 70
  $IP addr add "10.72.$n.1/24" dev eth0 noprefixroute
  $IP addr add "fd77::$n/128" dev eth0 nodad
  $IP addr add "fd78::$n/64" dev eth0 nodad noprefixroute
  $IP link set eth0 up
  $IP route add 169.254.1.1/32 dev eth0 scope link
  $IP route add default via 169.254.1.1 dev eth0 mtu lock 1400 advmss 1300 src "10.77.0.$n"
  $IP route add 10.80.0.0/16 via 169.254.1.1 metric 50 proto static
  $IP route append 10.80.0.0/16 via 169.254.1.2 dev eth0 onlink metric 50 proto static
  $IP route add 10.81.0.0/16 nexthop via 169.254.1.1 dev eth0 weight 2 nexthop via 169.254.1.2 dev eth0 onlink
  $IP route add blackhole 10.82.0.0/16
  $IP route add 10.83.0.0/16 tos 0x10 dev eth0 scope link
  $IP route add default via 169.254.1.1 dev eth0 table 100
  $IP rule add from "10.77.0.$n" fwmark 7 table 100 priority 1000
  $IP -6 route add fd80::/48 via fe80::1 dev eth0 metric 30 pref high
  $IP -6 route add default via fe80::1 dev eth0
  $IP -6 rule add to fd80::/48 table 100 priority 1001
  echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],
    "ips": [{"address": "10.77.0.'$n'/32", "interface": 0}]}' ;;
DEL) ip link del "$host" 2>/dev/null; exit 0 ;;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
esac
"#;

const ODD_NETWORK: &str = r#"{"cniVersion": "1.0.0", "name": "case-odd", "plugins": [
  {"type": "case-odd"}, {"type": "case-record"}]}"#;

/// A network for new pods until it is dropped.
struct Network;

impl Network {
    fn set(configuration: &str) -> Result<Network> {
        let record = RECORD.replace("LISTED", LISTED).replace("LIST;", &format!("{LIST};"));
        for (name, script) in [("case-record", record.as_str()), ("case-odd", ODD)] {
            let path = format!("{PLUGINS}/{name}");
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(CONFIGURATION, configuration)?;
        Ok(Network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The next case's pods would get this network; it fails then and says so.
        let _ = fs::remove_file(CONFIGURATION);
    }
}

/// A pod with a container that has the full `ip`.
fn pod(cri: &Cri, name: &str) -> Result<(Pod, String)> {
    let pod = cri.run_pod(name)?;
    cri.pull(node_programs::IMAGE)?;
    let config = container_config("c", node_programs::IMAGE, &["sleep", "100000"]);
    let container = cri.run_container(&pod, config)?;
    Ok((pod, container))
}

fn addresses(cri: &Cri, pod: &Pod) -> Result<Vec<IpAddr>> {
    let network = cri.pod_status(&pod.id)?.network.unwrap_or_default();
    let more = network.additional_ips.iter().map(|ip| ip.ip.clone());
    std::iter::once(network.ip).chain(more).map(|ip| ip.parse().with_context(|| ip.clone())).collect()
}

/// What was listed, without what the kernel makes for itself: the local table, and what comes with the guest's own link-local
/// address.
fn own(listed: &str) -> Vec<String> {
    let kernels = ["table local", "dev lo ", "fe80::/64 ", "ff00::/8 "];
    let mut lines: Vec<String> = listed
        .lines()
        .filter(|line| !kernels.iter().any(|words| line.contains(words)))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort_unstable();
    lines
}

fn ensure_same_routes(cri: &Cri, pod: &Pod, container: &str) -> Result<()> {
    let path = format!("{LISTED}-{}", pod.id);
    let expected = own(&fs::read_to_string(&path).with_context(|| path)?);
    let list = format!("IP='{}'; $IP {LIST}", node_programs::command("ip"));
    let seen = own(&cri.shell(container, &list)?);
    ensure!(expected.len() > 6, "the namespace lists too little: {expected:#?}");
    ensure!(seen == expected, "the guest has {seen:#?}, the namespace {expected:#?}");
    Ok(())
}

/// ptp takes the kernel's route to the subnet away and makes one over its gateway, the node.
pub fn pods_of_a_ptp_network_reach_each_other_with_the_namespaces_routes() -> Result<()> {
    let cri = super::cri()?;
    let _network = Network::set(PTP)?;
    let (server, server_container) = pod(&cri, "ptp-one")?;
    let (client, client_container) = pod(&cri, "ptp-two")?;
    let to = addresses(&cri, &server)?;
    ensure!(to.len() == 2, "two families: {to:?}");
    for address in to {
        cri.shell(&client_container, &format!("ping -c 2 -W 5 {address}"))?;
    }
    ensure_same_routes(&cri, &server, &server_container)?;
    ensure_same_routes(&cri, &client, &client_container)?;
    cri.clean()
}

pub fn routes_and_rules_of_every_form_are_the_guests_too() -> Result<()> {
    let cri = super::cri()?;
    let _network = Network::set(ODD_NETWORK)?;
    let (server, _) = pod(&cri, "odd-one")?;
    let (client, container) = pod(&cri, "odd-two")?;
    ensure_same_routes(&cri, &client, &container)?;
    // By a gateway that only answers for itself.
    let address = addresses(&cri, &server)?[0];
    cri.shell(&container, &format!("ping -c 2 -W 5 {address}"))?;
    let flags = cri.shell(&container, "ip addr show eth0")?;
    let without = flags.matches("noprefixroute").count();
    ensure!(without == 2, "only addresses whose route the plugin did not want are without one: {flags}");
    cri.clean()
}
