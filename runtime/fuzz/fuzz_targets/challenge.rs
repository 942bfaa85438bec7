//! Any text as the `WWW-Authenticate` header of a registry, and behind a zero byte as the answer of its token
//! service: what is read of the header, the header holds; where it leads is no place of the node; a token is
//! one header's value.

#![no_main]

use isopod_runtime::image::{Challenge, token_address, token_in};
use libfuzzer_sys::fuzz_target;
use std::net::IpAddr;

/// Whether an address is this node itself or on its link.
fn is_near(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.segments()[0] & 0xffc0 == 0xfe80,
        Err(_) => host == "localhost",
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let header = parts.next().unwrap_or_default();
    if let Ok(value) = token_in(parts.next().unwrap_or_default()) {
        assert!(value.is_sensitive() && value.as_bytes().starts_with(b"Bearer ") && value.len() > 7);
    }
    let Ok(header) = std::str::from_utf8(header) else { return };
    if let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(header) {
        let read = [Some(realm), service, scope];
        assert!(read.iter().flatten().map(String::len).sum::<usize>() <= header.len());
    }
    for (place, identity) in [("https://r.test/v2/", None), ("http://127.0.0.1:5000/v2/", Some("s3cret"))] {
        let place = place.parse().expect("an address");
        match token_address(header, &place, identity) {
            Some(Ok(asked)) => {
                let (url, host) = (&asked.url, asked.url.host_str().expect("a host"));
                assert!(url.scheme() == "https" || (url.scheme() == "http" && place.scheme() == "http"));
                let same = (url.host(), url.port_or_known_default()) == (place.host(), place.port_or_known_default());
                assert!(!is_near(host) || same, "{url}");
                assert!(!url.as_str().contains("s3cret"), "{url}");
                assert_eq!(asked.form.is_some_and(|form| form.contains("s3cret")), identity.is_some());
            }
            Some(Err(reason)) => assert!(reason.len() < 1000, "{reason}"),
            None => {}
        }
    }
});
