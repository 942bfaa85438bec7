#!/bin/busybox sh
# shellcheck shell=dash
# /init of the node's initramfs: make the machine's own root file system, read-only below a tmpfs, the root of the node,
# and hand over to init.sh. Busybox's shell has mount, insmod and the like built in: nothing else is reachable yet.

die() {
  echo "node: $*"
  echo o >/proc/sysrq-trigger
  sleep 60
}

mkdir -p /proc /sys /dev /lower /layers /root
# the shell finds its own tools by /proc/self/exe
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

while read -r module; do
  insmod "/modules/$module" || die "insmod $module failed"
done </modules.order

mount -t virtiofs -o ro root /lower || die "cannot mount the machine's root (virtiofs 'root')"
mount -t tmpfs -o size=80% upper /layers
mkdir /layers/upper /layers/work
mount -t overlay -o lowerdir=/lower,upperdir=/layers/upper,workdir=/layers/work overlay /root || die "cannot mount the overlay root"

mkdir -p /root/node
mount -t virtiofs run /root/node || die "cannot mount the run directory (virtiofs 'run')"
mount -o move /dev /root/dev
mount -o move /sys /root/sys
mount -o move /proc /root/proc
exec /bin/busybox switch_root /root /bin/busybox sh /node/init.sh
