//! Cases about what the guest's kernel offers to containers: docs/guest-kernel.md has the list.

use anyhow::{Context, Result, ensure};
use isopod_protocols::cri as v1;
use isopod_tests::cri::{Cri, Pod, container_config};
use isopod_tests::node::{Isopod, Settings};
use isopod_tests::{cases, node_programs};
use std::process::ExitCode;

fn main() -> ExitCode {
    let settings = Settings { isopod: Isopod::Serving, registry: true, ..Settings::default() };
    isopod_tests::case::run(
        settings,
        cases!["guest_kernel":
            thirty_two_bit_program_runs_with_and_without_the_default_profile,
            unprivileged_container_has_sctp_mptcp_af_alg_and_kernel_tls,
            guest_has_no_vsock_to_itself,
            huge_pages_are_made_as_far_as_limits_allow,
            privileged_container_makes_a_tun_interface_and_mounts_fuse,
            privileged_container_mounts_overlay_also_in_a_user_namespace,
            privileged_container_loads_nftables_and_iptables,
            privileged_container_makes_tunnels_and_queues,
            new_network_namespace_has_no_interface_but_the_loopback,
            privileged_container_mounts_images_of_file_systems,
            kernel_has_each_file_system_and_balancer_of_the_list,
        ],
    )
}

fn cri() -> Result<Cri> {
    let cri = Cri::connect()?;
    cri.pull(node_programs::IMAGE)?;
    Ok(cri)
}

/// A container under the runtime's default seccomp profile.
fn default_profile() -> v1::LinuxContainerSecurityContext {
    let profile = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
        ..v1::SecurityProfile::default()
    };
    v1::LinuxContainerSecurityContext { seccomp: Some(profile), ..Default::default() }
}

fn config(name: &str, command: &[&str], context: v1::LinuxContainerSecurityContext) -> v1::ContainerConfig {
    let mut config = container_config(name, node_programs::IMAGE, command);
    config.linux = Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    config
}

/// A privileged container.
fn privileged(cri: &Cri) -> Result<(Pod, String)> {
    let context = v1::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    let pod = cri.run_pod("privileged")?;
    let container = cri.run_container(&pod, config("c", &["sleep", "100000"], context))?;
    Ok((pod, container))
}

fn thirty_two_bit_program_runs_with_and_without_the_default_profile() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("i386")?;
    for (name, context) in [("plain", Default::default()), ("profile", default_profile())] {
        let container = cri.run_container(&pod, config(name, &["thirty-two-bit"], context))?;
        let status = cri.wait_exited(&container)?;
        let log = cri.log(&container)?;
        ensure!(status.exit_code == 7 && log.contains("32 bit"), "{name}: {status:?}, {log}");
    }
    cri.clean()
}

fn unprivileged_container_has_sctp_mptcp_af_alg_and_kernel_tls() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("sockets")?;
    let container = cri.run_container(&pod, config("c", &["sleep", "100000"], default_profile()))?;
    for feature in ["sctp", "mptcp", "af-alg", "ktls"] {
        let said = cri.shell(&container, &format!("kernel-features {feature}")).context(feature)?;
        ensure!(said == "ok", "{feature}: {said}");
    }
    cri.clean()
}

/// Under no profile: the default one refuses such sockets altogether.
fn guest_has_no_vsock_to_itself() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("vsock")?;
    let container = cri.run_container(&pod, config("c", &["sleep", "100000"], Default::default()))?;
    let said = cri.shell(&container, "kernel-features no-vsock-to-itself")?;
    ensure!(said == "ok", "{said}");
    cri.clean()
}

fn huge_pages_are_made_as_far_as_limits_allow() -> Result<()> {
    let cri = cri()?;
    let pod = cri.run_pod("huge")?;
    // The last one finds pages that the first one was offered: what says nothing of them may have none.
    for (name, limit, expected) in
        [("enough", Some(16 << 20), 0), ("too-few", Some(4 << 20), 1), ("none", None, 1)]
    {
        let page = limit.map(|limit| v1::HugepageLimit { page_size: "2MB".into(), limit });
        let resources = v1::LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            hugepage_limits: page.into_iter().collect(),
            ..Default::default()
        };
        let mut config = config(name, &["kernel-features", "huge-pages"], Default::default());
        config.linux.get_or_insert_default().resources = Some(resources);
        let container = cri.run_container(&pod, config)?;
        let status = cri.wait_exited(&container)?;
        ensure!(status.exit_code == expected, "{name}: {status:?}, {}", cri.log(&container)?);
    }
    cri.clean()
}

fn privileged_container_makes_a_tun_interface_and_mounts_fuse() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    for feature in ["tun", "fuse"] {
        let said = cri.shell(&container, &format!("kernel-features {feature}")).context(feature)?;
        ensure!(said == "ok", "{feature}: {said}");
    }
    cri.clean()
}

fn privileged_container_mounts_overlay_also_in_a_user_namespace() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    // Nothing is mounted below this directory: a user namespace must not look below mounts that it did not make.
    let mount = "mount -t tmpfs t /tmp && mkdir /tmp/u /tmp/w /tmp/m && mount -t overlay o -o lowerdir=/node,upperdir=/tmp/u,\
        workdir=/tmp/w$MORE /tmp/m && rm /tmp/m/nft && ! ls /tmp/m/nft && ls /node/nft";
    cri.shell(&container, &format!("MORE=; unshare -m sh -c '{mount}'"))?;
    cri.shell(&container, &format!("MORE=,userxattr; export MORE; unshare -r -m sh -c '{mount}'"))?;
    cri.clean()
}

const RULESET: &str = r"
table inet case {
  set blocked { type ipv4_addr; flags interval; auto-merge; elements = { 192.0.2.0/24 } }
  map ports { type inet_service : verdict; elements = { 25 : drop } }
  counter hits { }
  chain input {
    type filter hook input priority 0; policy accept;
    ct state established,related accept
    ip saddr @blocked counter drop
    tcp dport vmap @ports
    tcp dport 80 limit rate 10/second counter name hits accept
    tcp dport 81 ct count over 10 reject with tcp reset
    udp dport 53 queue flags bypass to 0
    meta l4proto sctp log group 1
    quota over 1 mbytes drop
    fib saddr . iif oif missing drop
    socket transparent 1 mark set 1
  }
  chain forward {
    type filter hook forward priority 0;
    tcp flags syn tcp option maxseg size set rt mtu
    ip protocol tcp flow add @fast
  }
  flowtable fast { hook ingress priority 0; devices = { lo }; }
  chain nat {
    type nat hook output priority -100;
    tcp dport 8080 redirect to :80
    ip daddr 192.0.2.9 dnat ip to 192.0.2.10
  }
  chain post {
    type nat hook postrouting priority 100;
    masquerade random
  }
}
table netdev case {
  chain in { type filter hook ingress device lo priority 0; ip daddr 192.0.2.1 drop; }
}
table bridge case {
  chain forward { type filter hook forward priority 0; ether type arp accept; ct state new accept; }
}
table arp case {
  chain in { type filter hook input priority 0; arp operation request accept; }
}
";

/// A rule per match or target that service meshes, Docker, CNI plugins and kube-proxy write.
const IPTABLES: [&str; 14] = [
    "-t nat -A PREROUTING -p tcp -m comment --comment mesh -m addrtype --dst-type LOCAL -j REDIRECT --to-ports 15006",
    "-t nat -A OUTPUT -m owner --uid-owner 1337 -j RETURN",
    "-t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully",
    "-t nat -A POSTROUTING -s 192.0.2.0/24 -j NETMAP --to 198.51.100.0/24",
    "-t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-mark 1",
    "-t mangle -A PREROUTING -p tcp -j TPROXY --on-port 15001 --tproxy-mark 1/1",
    "-t mangle -A POSTROUTING -p udp --dport 68 -j CHECKSUM --checksum-fill",
    "-t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "-t raw -A PREROUTING -p udp -m multiport --dports 53,54 -j CT --notrack",
    "-A INPUT -m statistic --mode random --probability 0.5 -j DROP",
    "-A INPUT -m conntrack --ctstate NEW -m connlimit --connlimit-above 5 -m recent --set -j NFLOG --nflog-group 1",
    "-A INPUT -p sctp -m iprange --src-range 192.0.2.1-192.0.2.9 -m string --algo bm --string x -j NFQUEUE --queue-num 0",
    "-A INPUT -m hashlimit --hashlimit-name h --hashlimit-upto 5/s -m physdev --physdev-is-bridged -m length --length 1:9 -j ACCEPT",
    "-A INPUT -m bpf --bytecode '1,6 0 0 65535' -m u32 --u32 '0=1' -m time --timestart 01:00 -j REJECT",
];

fn privileged_container_loads_nftables_and_iptables() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    let nft = node_programs::command("nft");
    cri.shell(
        &container,
        &format!("cat > /tmp/rules <<'EOF'\n{RULESET}\nEOF\n{nft} -f /tmp/rules && {nft} list ruleset"),
    )?;
    for legacy in [false, true] {
        let program = if legacy { "xtables-legacy-multi iptables" } else { "xtables-nft-multi iptables" };
        let iptables = format!("XTABLES_LIBDIR=/node/xtables {}", node_programs::command(program));
        let script: String = IPTABLES.iter().map(|rule| format!("{iptables} {rule} || exit 1\n")).collect();
        cri.shell(&container, &script).with_context(|| format!("legacy: {legacy}"))?;
    }
    cri.clean()
}

fn privileged_container_makes_tunnels_and_queues() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    let (ip, tc) = (node_programs::command("ip"), node_programs::command("tc"));
    let links = [
        "name wg0 type wireguard",
        "name vx0 type vxlan id 7 dev lo dstport 4789",
        "name gen0 type geneve id 7 remote 192.0.2.1",
        "name tunl7 type ipip remote 192.0.2.1 local 192.0.2.2",
        "name gre7 type gre remote 192.0.2.1 local 192.0.2.2",
        "name tap7 type gretap remote 192.0.2.1 local 192.0.2.2",
        "name sit7 type sit remote 192.0.2.1 local 192.0.2.2",
        "name ip67 type ip6tnl remote fd00::1 local fd00::2",
        "name ifb7 type ifb",
        "name br7 type bridge vlan_filtering 1",
    ];
    for link in links {
        cri.shell(&container, &format!("{ip} link add {link}")).context(link)?;
    }
    let queues = [
        "qdisc add dev ifb7 root handle 1: hfsc default 1",
        "qdisc replace dev ifb7 root cake bandwidth 10mbit",
        "qdisc replace dev ifb7 root netem delay 10ms loss 1%",
        "qdisc replace dev ifb7 root sfq",
        "qdisc add dev br7 clsact",
        "filter add dev br7 ingress protocol ip flower dst_ip 192.0.2.1 action police rate 1mbit burst 10k drop",
        "filter add dev br7 ingress matchall action mirred egress redirect dev ifb7",
        "filter add dev br7 egress protocol ip pref 9 flower action skbedit mark 1 action pedit ex munge ip ttl set 9 action csum ip",
    ];
    for queue in queues {
        cri.shell(&container, &format!("{tc} {queue}")).context(queue)?;
    }
    cri.clean()
}

/// Drivers of tunnels make interfaces of their own where nothing tells them not to.
fn new_network_namespace_has_no_interface_but_the_loopback() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    let pods = cri.shell(&container, "ls /sys/class/net")?;
    ensure!(pods == "eth0\nlo", "the pod has {pods:?}");
    let fresh = cri.shell(&container, "unshare -n cat /proc/net/dev | sed -n 's/ *\\([^ ]*\\):.*/\\1/p'")?;
    ensure!(fresh == "lo", "a new namespace has {fresh:?}");
    cri.clean()
}

fn privileged_container_mounts_images_of_file_systems() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    let ext4 = node_programs::command("mke2fs");
    let script = format!(
        "mkdir /mnt && mount -t tmpfs t /mnt && cd /mnt && mkdir v e && truncate -s 8M vfat ext4 && mkfs.vfat vfat && {ext4} -q -t ext4 -F ext4 \
        && mount -o loop vfat v && mount -o loop ext4 e && echo kept > v/file && cp v/file e/file && cat e/file"
    );
    let kept = cri.shell(&container, &script)?;
    ensure!(kept == "kept", "{kept}");
    cri.clean()
}

fn kernel_has_each_file_system_and_balancer_of_the_list() -> Result<()> {
    let cri = cri()?;
    let (_, container) = privileged(&cri)?;
    let known = cri.shell(&container, "cat /proc/filesystems")?;
    for name in ["nfs", "nfs4", "squashfs", "iso9660", "vfat", "erofs", "ext4", "overlay", "fuse", "virtiofs"]
    {
        ensure!(known.split_whitespace().any(|word| word == name), "no {name} in {known:?}");
    }
    let balancer = cri.shell(&container, "cat /proc/net/ip_vs")?;
    ensure!(balancer.contains("IP Virtual Server"), "{balancer}");
    let configuration = cri.shell(&container, "zcat /proc/config.gz")?;
    for option in ["IA32_EMULATION", "IP_SCTP", "MPTCP_IPV6", "XDP_SOCKETS", "TCP_MD5SIG"] {
        ensure!(configuration.contains(&format!("CONFIG_{option}=y")), "no CONFIG_{option}");
    }
    cri.clean()
}
