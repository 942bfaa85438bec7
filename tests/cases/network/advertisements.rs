//! A case about router advertisements: anybody on the pods' bridge can send them, and no pod is to believe
//! them.

use anyhow::{Result, ensure};
use isopod_tests::cri::{Cri, container_config};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BRIDGE: &str = "cni0";

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What all advertised prefixes begin with, and how it looks in the kernel's tables.
const PREFIX: u16 = 0xfd99;
const IN_TABLES: &str = "fd99";

/// A router advertisement of a prefix of its own (RFC 4861 4.2 and 4.6.2). The kernel fills the checksum in.
fn advertisement(number: u16) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(1800_u16.to_be_bytes());
    message.extend([0; 8]);
    // On the link, and addresses may be made of it; for an hour.
    message.extend([3, 4, 64, 0xc0]);
    message.extend([3600_u32.to_be_bytes(), 3600_u32.to_be_bytes(), [0; 4]].concat());
    message.extend(Ipv6Addr::new(PREFIX, number, 0, 0, 0, 0, 0, 0).octets());
    message
}

/// Claims to be a router on the bridge, a thousand times a second, until it is told to stop.
fn advertise(stop: &AtomicBool) -> Result<u32> {
    let sender =
        socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::IcmpV6))?;
    // Others may have come over a router.
    setsockopt(&sender, sockopt::Ipv6MulticastHops, &255)?;
    let to = SockaddrIn6::from(SocketAddrV6::new(ALL_NODES, 0, 0, if_nametoindex(BRIDGE)?));
    let mut sent = 0;
    for number in (0..=u16::MAX).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // The bridge may have no address to send from yet.
        sent += u32::from(sendto(sender.as_raw_fd(), &advertisement(number), &to, MsgFlags::empty()).is_ok());
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

pub fn router_that_a_neighbour_claims_to_be_is_no_new_pods_router() -> Result<()> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    // The first pod's plugins make the bridge.
    cri.run_pod("first")?;
    let stop = AtomicBool::new(false);
    let (sent, seen) = std::thread::scope(|threads| {
        let router = threads.spawn(|| advertise(&stop));
        let seen = (1..=3).map(|number| tables_of_a_new_pod(&cri, number)).collect::<Result<String>>();
        stop.store(true, Ordering::Relaxed);
        (router.join().expect("the sender does not panic"), seen)
    });
    let (sent, seen) = (sent?, seen?);
    ensure!(sent > 100, "only {sent} advertisements were sent");
    ensure!(!seen.contains(IN_TABLES), "a pod believes a neighbour's advertisement:\n{seen}");
    cri.clean()
}

/// IPv6 addresses and routes of a pod that starts now.
fn tables_of_a_new_pod(cri: &Cri, number: u32) -> Result<String> {
    let pod = cri.run_pod(&format!("new-{number}"))?;
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sleep", "1000"]))?;
    cri.shell(&container, "cat /proc/net/if_inet6 /proc/net/ipv6_route; true")
}
