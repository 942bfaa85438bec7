//! Any bytes as what the kernel lists of a pod's namespace: addresses, routes, rules and neighbours, in forms
//! that the agent can read, or refused.

#![no_main]

use isopod_runtime::network::listed;
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;

fn is_prefix(text: &str) -> bool {
    let parts = text.split_once('/');
    parts.is_some_and(|(ip, length)| ip.parse::<IpAddr>().is_ok() && length.parse::<u8>().is_ok())
}

fn is_ip_or_none(text: &str) -> bool {
    text.is_empty() || text.parse::<IpAddr>().is_ok()
}

fuzz_target!(|bytes: &[u8]| {
    let interface = match listed(bytes) {
        Ok(interface) => interface,
        Err(reason) => return assert!(!reason.is_empty()),
    };
    for address in &interface.addresses {
        assert!(is_prefix(&address.address) && is_ip_or_none(&address.peer), "{address:?}");
    }
    for route in &interface.routes {
        assert!(is_prefix(&route.destination), "{route:?}");
        assert!(is_ip_or_none(&route.gateway) && is_ip_or_none(&route.source), "{route:?}");
        assert!(route.next_hops.iter().all(|hop| is_ip_or_none(&hop.gateway)), "{route:?}");
    }
    for rule in &interface.rules {
        assert!([&rule.from, &rule.to].into_iter().all(|text| text.is_empty() || is_prefix(text)), "{rule:?}");
    }
    assert!(interface.neighbours.iter().all(|one| one.address.parse::<IpAddr>().is_ok() && !one.mac.is_empty()));
});
