//! Cases about the two ways in which the CNI plugins write their rules. The node's own network has nftables, as a host of today;
//! hosts that still have iptables are one more network here.

use super::{cri, run_web, wait_for_page};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;

const CONFIGURATION: &str = "/etc/cni/net.d/05-case.conflist";

const IPTABLES: &str = r#"{"cniVersion": "1.0.0", "name": "case-iptables", "plugins": [
  {"type": "bridge", "bridge": "cni-case", "isGateway": true, "ipMasq": true, "ipMasqBackend": "iptables",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": true}}]}"#;

/// All rules of nftables; iptables keeps its own there too, in tables of other names.
fn nftables() -> Result<String> {
    printed("nft", &["list", "ruleset"])
}

fn iptables() -> Result<String> {
    printed("iptables-save", &["-t", "nat"])
}

fn printed(program: &str, arguments: &[&str]) -> Result<String> {
    let ran = Command::new(program).args(arguments).output().context(program.to_owned())?;
    ensure!(ran.status.success(), "{program}: {ran:?}");
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

pub fn host_ports_and_masquerading_are_in_nftables() -> Result<()> {
    let cri = cri()?;
    let pod = run_web(&cri, "nft", 12081)?;
    wait_for_page("10.88.0.1:12081")?;
    let (rules, legacy) = (nftables()?, iptables()?);
    for words in
        ["table inet cni_plugins_masquerade", "table ip cni_hostport", "tcp dport 12081 dnat to", &pod.id]
    {
        ensure!(rules.contains(words), "no {words:?} in {rules}");
    }
    ensure!(!legacy.contains(&pod.id), "iptables has rules of the pod: {legacy}");
    cri.clean()?;
    let rules = nftables()?;
    ensure!(!rules.contains(&pod.id), "rules of a pod that is gone: {rules}");
    Ok(())
}

pub fn pods_of_an_iptables_network_have_their_host_ports() -> Result<()> {
    let cri = cri()?;
    fs::write(CONFIGURATION, IPTABLES)?;
    let pod = run_web(&cri, "iptables", 12082);
    // The next case's pods would get this network.
    fs::remove_file(CONFIGURATION)?;
    let pod = pod?;
    wait_for_page("10.89.0.1:12082")?;
    let rules = iptables()?;
    ensure!(rules.contains(&pod.id) && rules.contains("--dport 12082"), "not the pod's rules: {rules}");
    // Its teardown has the configuration that the pod began with.
    cri.clean()?;
    let rules = iptables()?;
    ensure!(!rules.contains(&pod.id), "rules of a pod that is gone: {rules}");
    Ok(())
}
