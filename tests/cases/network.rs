//! Cases about the pod network.

#[path = "network/advertisements.rs"]
mod advertisements;
#[path = "network/backends.rs"]
mod backends;
#[path = "network/routes.rs"]
mod routes;

use advertisements::router_that_a_neighbour_claims_to_be_is_no_new_pods_router;
use anyhow::{Context, Result, ensure};
use backends::{
    host_ports_and_masquerading_are_in_nftables, pods_of_an_iptables_network_have_their_host_ports,
};
use isopod_protocols::cri as v1;
use isopod_tests::cases;
use isopod_tests::cri::{Cri, Pod, container_config, pod_config, wait_for};
use isopod_tests::held;
use isopod_tests::node::{Isopod, Settings};
use routes::{
    pods_of_a_ptp_network_reach_each_other_with_the_namespaces_routes,
    routes_and_rules_of_every_form_are_the_guests_too,
};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tonic::Code;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["network":
            pods_reach_each_other_and_the_node_reaches_them,
            guest_has_the_address_that_cni_gave,
            pod_that_starts_does_not_wake_the_others,
            router_that_a_neighbour_claims_to_be_is_no_new_pods_router,
            large_transfer_arrives_whole,
            host_port_leads_to_the_pod,
            host_ports_and_masquerading_are_in_nftables,
            pods_of_an_iptables_network_have_their_host_ports,
            names_come_from_the_pods_dns_config,
            pods_of_a_ptp_network_reach_each_other_with_the_namespaces_routes,
            routes_and_rules_of_every_form_are_the_guests_too,
            without_cni_configuration_the_pod_is_refused_and_status_says_why,
            missing_plugin_is_named,
            link_in_place_of_a_namespace_leads_to_no_other_one,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull("busybox")?;
    cri.pull("web")?;
    Ok(cri)
}

fn pods_reach_each_other_and_the_node_reaches_them() -> Result<()> {
    let cri = cri()?;
    let server = cri.run_pod("server")?;
    cri.run_container(&server, container_config("web", "web", &[]))?;
    let address = cri.pod_status(&server.id)?.network.unwrap_or_default().ip;
    let (_, client) = cri.run_sleeper("client")?;
    let fetch = format!("wget -q -O - http://{address}/");
    let page = wait_for("the page, from a pod", || Ok(cri.shell(&client, &fetch).ok()))?;
    ensure!(page.contains("Hello from a pod"), "{page}");
    let from_node = Command::new("sh").args(["-c", &fetch]).output()?;
    ensure!(String::from_utf8_lossy(&from_node.stdout).contains("Hello from a pod"), "{from_node:?}");
    cri.clean()
}

fn guest_has_the_address_that_cni_gave() -> Result<()> {
    let cri = cri()?;
    let (pod, container) = cri.run_sleeper("address")?;
    let address = cri.pod_status(&pod.id)?.network.unwrap_or_default().ip;
    let seen = cri.shell(&container, "ip -4 addr show eth0; ip route")?;
    ensure!(seen.contains(&format!("inet {address}/16")) && seen.contains("default via 10.88.0.1"), "{seen}");
    cri.clean()
}

/// Names of the pods' network namespaces.
fn namespaces() -> Result<Vec<String>> {
    Ok(fs::read_dir("/run/netns")?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

/// Frames that the node has handed to the guests of these.
fn frames_to_guests(namespaces: &[String]) -> Result<u64> {
    let mut frames = 0;
    for namespace in namespaces {
        let show = ["-n", namespace, "-s", "-j", "link", "show", "tap0"];
        let shown: serde_json::Value =
            serde_json::from_slice(&Command::new("ip").args(show).output()?.stdout)?;
        frames += shown[0]["stats64"]["tx"]["packets"].as_u64().context("no counter of a tap")?;
    }
    Ok(frames)
}

fn pod_that_starts_does_not_wake_the_others() -> Result<()> {
    let cri = cri()?;
    for name in ["one", "two", "three"] {
        cri.run_pod(name)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let others = namespaces()?;
    let before = frames_to_guests(&others)?;
    let (_, container) = cri.run_sleeper("late")?;
    // Time for the questions that a kernel asks by itself when a link comes up.
    std::thread::sleep(Duration::from_secs(6));
    let frames = frames_to_guests(&others)? - before;
    ensure!(frames == 0, "{frames} frames went to guests whom nobody asked anything");
    let addresses = cri.shell(&container, "ip addr show eth0")?;
    ensure!(addresses.contains("inet ") && !addresses.contains("inet6"), "{addresses}");
    cri.clean()
}

/// 20 MB in frames of up to 64 KiB, each of which takes many of the sink's buffers while the sink looks at them.
fn large_transfer_arrives_whole() -> Result<()> {
    const SERVE: &str = "mkdir -p /tmp; head -c 20000000 /dev/urandom > /tmp/made; mv /tmp/made /tmp/file; \
        while true; do nc -l -p 9000 < /tmp/file > /dev/null; done";
    let cri = cri()?;
    let source_pod = cri.run_pod("source")?;
    let source = cri.run_container(&source_pod, container_config("c", "busybox", &["sh", "-c", SERVE]))?;
    let (_, sink) = cri.run_sleeper("sink")?;
    let address = cri.pod_status(&source_pod.id)?.network.unwrap_or_default().ip;
    let sent = wait_for("the file", || Ok(cri.shell(&source, "md5sum < /tmp/file").ok()))?;
    let received = wait_for("the transfer", || {
        let sum = cri.shell(&sink, &format!("nc {address} 9000 < /dev/null | md5sum"))?;
        // Nothing listened yet: the sum of nothing.
        Ok(Some(sum).filter(|sum| !sum.starts_with("d41d8cd9")))
    })?;
    ensure!(sent == received, "sent {sent}, received {received}");
    // TCP mends what a card breaks; the driver has counted it.
    let broken = cri.shell(&sink, "cat /sys/class/net/eth0/statistics/rx_length_errors")?;
    ensure!(broken.trim() == "0", "{broken} frames came without their rest");
    cri.clean()
}

/// A pod that serves a page at its port 80 and at this port of the node.
fn run_web(cri: &Cri, name: &str, host_port: i32) -> Result<Pod> {
    let mut config = pod_config(name);
    config.port_mappings = vec![v1::PortMapping { host_port, container_port: 80, ..Default::default() }];
    let pod = cri.run_pod_with(config)?;
    cri.run_container(&pod, container_config("web", "web", &[]))?;
    Ok(pod)
}

/// Waits until the node has the page of a pod by one of its own addresses.
fn wait_for_page(at: &str) -> Result<()> {
    let fetch = format!("wget -q -T 5 -O - http://{at}/");
    let page = wait_for("the page by the host's port", || {
        let ran = Command::new("sh").args(["-c", &fetch]).output()?;
        Ok(ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).into_owned()))
    })?;
    ensure!(page.contains("Hello from a pod"), "{page}");
    Ok(())
}

fn host_port_leads_to_the_pod() -> Result<()> {
    let cri = cri()?;
    run_web(&cri, "port", 12080)?;
    wait_for_page("10.88.0.1:12080")?;
    cri.clean()
}

fn names_come_from_the_pods_dns_config() -> Result<()> {
    let cri = cri()?;
    let mut config = pod_config("dns");
    config.dns_config = Some(v1::DnsConfig {
        servers: vec!["10.96.0.10".into()],
        searches: vec!["cases.svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = cri.run_pod_with(config)?;
    let container = cri.run_container(&pod, container_config("c", "busybox", &["sleep", "1000"]))?;
    let expected = "search cases.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5";
    let mut lines: Vec<_> = expected.lines().collect();
    let seen = cri.shell(&container, "cat /etc/resolv.conf")?;
    let mut seen_lines: Vec<_> = seen.lines().collect();
    lines.sort_unstable();
    seen_lines.sort_unstable();
    ensure!(lines == seen_lines, "{seen}");
    ensure!(
        cri.shell(&container, "cat /etc/hosts")?.contains("dns"),
        "the pod's own name is not in /etc/hosts"
    );
    cri.clean()
}

fn without_cni_configuration_the_pod_is_refused_and_status_says_why() -> Result<()> {
    let cri = cri()?;
    let (there, aside) = ("/etc/cni/net.d/10-isopod.conflist", "/tmp/10-isopod.conflist");
    fs::copy(there, aside)?;
    fs::remove_file(there)?;
    let before = held::by_pods()?;
    let refused = cri.run_pod("no-network");
    let status = cri.wait(cri.service().status(v1::StatusRequest { verbose: false }));
    fs::copy(aside, there)?;
    let refused = refused.expect_err("there is no network");
    ensure!(refused.message().contains("put a .conflist file there"), "{refused:?}");
    let conditions = status?.status.unwrap_or_default().conditions;
    let network = conditions.iter().find(|c| c.r#type == "NetworkReady");
    ensure!(network.is_some_and(|c| !c.status && !c.message.is_empty()), "{conditions:?}");
    held::nothing_more_than(&before, "at the end")
}

fn missing_plugin_is_named() -> Result<()> {
    let cri = cri()?;
    let before = held::by_pods()?;
    let first = "/etc/cni/net.d/00-case.conflist";
    fs::write(first, r#"{"cniVersion":"1.0.0","name":"case","plugins":[{"type":"absent-plugin"}]}"#)?;
    let refused = cri.run_pod("no-plugin");
    fs::remove_file(first)?;
    let refused = refused.expect_err("the plugin is missing");
    ensure!(refused.message().contains("absent-plugin"), "{refused:?}");
    ensure!(refused.code() != Code::InvalidArgument, "it is not the client's fault: {refused:?}");
    held::nothing_more_than(&before, "at the end")
}

/// Plugins that entered the other namespace would take its interface along, and an unmount that followed the
/// link its mount.
fn link_in_place_of_a_namespace_leads_to_no_other_one() -> Result<()> {
    let cri = cri()?;
    let server = cri.run_pod("bystander")?;
    cri.run_container(&server, container_config("web", "web", &[]))?;
    let address = cri.pod_status(&server.id)?.network.unwrap_or_default().ip;
    let pod = cri.run_pod("linked")?;
    let [own, others] = [&pod.id, &server.id].map(|id| format!("/run/netns/isopod-{id}"));
    ensure!(Command::new("umount").arg(&own).status()?.success(), "{own} is no mount");
    fs::remove_file(&own)?;
    symlink(&others, &own)?;
    cri.remove_pod(&pod.id)?;
    ensure!(fs::symlink_metadata(&own).is_err(), "the link stays");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(mounts.contains(&format!(" {others} ")), "another pod's namespace is unmounted");
    let fetch = format!("wget -q -T 5 -O - http://{address}/");
    let page = wait_for("the page of the other pod", || {
        let ran = Command::new("sh").args(["-c", &fetch]).output()?;
        Ok(ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).into_owned()))
    })?;
    ensure!(page.contains("Hello from a pod"), "{page}");
    cri.clean()
}
