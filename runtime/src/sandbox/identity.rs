//! What a guest is told of its identity: host name, resolv.conf, hosts, time, network card, sysctls, scratch.

use super::{Dns, Sandbox, SandboxError};
use crate::wall_clock::now_ns;
use isopod_protocols::agent::{Extent, Interface, SetUpSandboxRequest};
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;

/// Where the node keeps its own resolver's settings.
const NODE_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Most bytes taken of it.
const MAX_RESOLV_CONF: u64 = 64 * 1024;

/// The request that gives a guest its identity.
pub fn request(
    sandbox: &Sandbox,
    interface: Interface,
    addresses: &[IpAddr],
    scratch: Extent,
) -> Result<SetUpSandboxRequest, SandboxError> {
    let failed = |what, path: &str, source| SandboxError::File {
        id: sandbox.id.clone(),
        what,
        path: path.into(),
        source,
    };
    let resolv_conf = match &sandbox.spec.dns {
        dns if *dns != Dns::default() => resolv_conf(dns).into_bytes(),
        _ => node_resolv_conf().map_err(|e| failed("the node's", NODE_RESOLV_CONF, e))?,
    };
    let hostname = hostname(&sandbox.spec.hostname);
    Ok(SetUpSandboxRequest {
        sandbox_id: sandbox.id.clone(),
        hosts: hosts(&hostname, addresses).into_bytes(),
        hostname,
        resolv_conf,
        interface: Some(interface),
        sysctls: sandbox.spec.sysctls.clone().into_iter().collect(),
        realtime_ns: now_ns(),
        scratch: Some(scratch),
        shm_bytes: 0,
    })
}

/// The name that kubelet chose; a pod that has none is called like its node.
fn hostname(asked: &str) -> String {
    if !asked.is_empty() {
        return asked.to_owned();
    }
    let node = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    node.unwrap_or_else(|| "localhost".to_owned())
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    let mut line = |words: &[&str]| {
        text.push_str(&words.join(" "));
        text.push('\n');
    };
    if !dns.searches.is_empty() {
        line(&["search", &dns.searches.join(" ")]);
    }
    for server in &dns.servers {
        line(&["nameserver", server]);
    }
    if !dns.options.is_empty() {
        line(&["options", &dns.options.join(" ")]);
    }
    text
}

fn node_resolv_conf() -> io::Result<Vec<u8>> {
    let file = match File::open(NODE_RESOLV_CONF) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(MAX_RESOLV_CONF).read_to_end(&mut text)?;
    Ok(text)
}

fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for address in addresses {
        writeln!(text, "{address}\t{hostname}").expect("writing to a string does not fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_a_line_for_each_setting() {
        let words = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let dns = Dns {
            servers: words(&["10.0.0.10", "10.0.0.11"]),
            searches: words(&["a.b", "c"]),
            options: words(&["ndots:5"]),
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.b c\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"
        );
    }

    #[test]
    fn hosts_names_the_pod_at_each_address() {
        let addresses = ["10.1.2.3".parse().unwrap(), "fd00::5".parse().unwrap()];
        let text = hosts("web", &addresses);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.1.2.3\tweb\nfd00::5\tweb\n"));
    }

    #[test]
    fn pod_without_a_name_is_called_like_its_node() {
        assert_eq!(hostname("web"), "web");
        assert!(!hostname("").is_empty());
    }
}
