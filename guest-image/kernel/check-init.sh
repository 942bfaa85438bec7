#!/bin/busybox sh
# shellcheck shell=dash
# PID 1 of check.sh's guest: tries things one by one and says which do not work.
PATH=/run/bin
failed=0

try() {
  what=$1
  shift
  if "$@" >/run/log 2>&1; then
    echo "ok: $what"
  else
    echo "NOT OK: $what: $(cat /run/log)"
    failed=1
  fi
}

overlay() {
  mkdir -p /run/o/upper /run/o/work /run/o/root &&
    mount -t overlay overlay -o lowerdir=/,upperdir=/run/o/upper,workdir=/run/o/work /run/o/root &&
    mv /run/o/root/mnt /run/o/root/renamed && rm -r /run/o/root/etc && ! ls /run/o/root/etc
}

controllers() {
  mount -t cgroup2 cgroup2 /sys/fs/cgroup || return
  for controller in cpuset cpu io memory hugetlb pids; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || return
  done
  mkdir /sys/fs/cgroup/pod && cat /sys/fs/cgroup/pod/memory.events /sys/fs/cgroup/pod/memory.pressure
}

namespaces() { for name in cgroup ipc mnt net pid time user uts; do [ -e "/proc/self/ns/$name" ] || return; done; }

devices() { for name in mapper/control vsock net/tun fuse hwrng loop-control hvc0 ptmx; do [ -e "/dev/$name" ] || { echo "no /dev/$name"; return 1; }; done; }

thirty_two_bit() {
  /bin/thirty-two-bit
  [ $? = 7 ]
}

# each word of the list begins a line of the file, or ends it behind "nodev"
listed() {
  file=$1
  shift
  for name in "$@"; do grep -qE "(^|[[:space:]])$name([[:space:]]|\$)" "$file" || { echo "no $name in $file"; return 1; }; done
}

# drivers make interfaces of their own where nothing tells them not to
only_the_loopback() { [ "$(echo /sys/class/net/*)" = /sys/class/net/lo ] || { ls /sys/class/net; return 1; }; }

tunnels() { for type in wireguard ifb; do ip link add name "$type" type "$type" || return; done; }

links() {
  ip link add name pair0 type veth peer name pair1 && ip link add name bridge0 type bridge && ip link add name dummy0 type dummy &&
    ip link add link dummy0 name vlan0 type vlan id 5 && ip link add link dummy0 name mac0 type macvlan
}

/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox mkdir /run/bin
/bin/busybox --install -s /run/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
# the kernel has mounted /dev already

try "several extents of one disk" mount -t ext4 /dev/dm-1 /mnt
try "overlayfs over EROFS: write, rename a directory, whiteout" overlay
try "cgroup v2 with all controllers" controllers
try "namespaces" namespaces
try "devices" devices
try "no interface that nobody asked for" only_the_loopback
try "network links" links
try "tunnels" tunnels
try "32-bit programs" thirty_two_bit
try "sockets" listed /proc/net/protocols TCP UDP UNIX PACKET AF_VSOCK SCTP SCTPv6 MPTCP MPTCPv6 ALG XDP
try "ciphers and digests" listed /proc/crypto aes sha1 sha256 sha512 sha3-256 md5 ghash chacha20 crc32c
try "filesystems" listed /proc/filesystems erofs ext4 overlay tmpfs fuse virtiofs nfs nfs4 squashfs iso9660 vfat
try "iptables' matches" listed /proc/net/ip_tables_matches comment conntrack owner set statistic string multiport recent socket u32
try "iptables' targets" listed /proc/net/ip_tables_targets REDIRECT MASQUERADE TPROXY MARK CT NFLOG NFQUEUE TCPMSS CHECKSUM SET
try "IPVS" grep -q "IP Virtual Server" /proc/net/ip_vs
try "seccomp filters" grep -q errno /proc/sys/kernel/seccomp/actions_avail
try "compiled BPF" grep -q 1 /proc/sys/net/core/bpf_jit_enable
try "CPU mitigations" grep -q Mitigation /sys/devices/system/cpu/vulnerabilities/spectre_v2
try "free page reporting" sh -c 'dmesg | grep -q "Free page reporting enabled"'
[ "$failed" = 0 ] && echo "all is well"
reboot -f
