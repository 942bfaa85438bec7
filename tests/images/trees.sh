# shellcheck shell=bash
# The file trees that become layers. Each function fills the directory it is given. Sourced by build.sh.

# A small Linux: busybox under all its names as hard links, so that masking one path does not mask the others.
busybox_tree() {
  local root=$1 busybox=$2 path
  install -d -m 755 "$root"/{bin,dev,etc,home,lib,proc,run,sbin,sys,usr,usr/bin,usr/sbin,var,var/log}
  install -d -m 1777 "$root"/{tmp,var/tmp}
  install -d -m 700 "$root/root"
  install -m 755 "$busybox" "$root/bin/busybox"
  while read -r path; do
    ln -f "$root/bin/busybox" "$root/$path"
  done < <("$busybox" --list-full | grep -v '^linuxrc$')
  printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'daemon:x:1:1:daemon:/usr/sbin:/bin/false' 'nobody:x:65534:65534:nobody:/:/bin/false' >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'daemon:x:1:' 'nogroup:x:65534:' >"$root/etc/group"
}

# What a layer format may carry; the next layer removes and changes some of it.
features_tree() {
  local root=$1 programs=$2
  install -d -m 755 "$root"/{data,data/removed-directory,data/opaque,data/replaced,usr,usr/bin}
  echo first >"$root/data/kept"
  echo first >"$root/data/changed"
  echo first >"$root/data/removed"
  echo first >"$root/data/removed-directory/file"
  echo first >"$root/data/opaque/old"
  echo first >"$root/data/replaced/file"
  echo linked >"$root/data/hard-a"
  ln "$root/data/hard-a" "$root/data/hard-b"
  ln -s kept "$root/data/relative-link"
  ln -s /data/kept "$root/data/absolute-link"
  ln -s /etc/does-not-exist "$root/data/dangling-link"
  mkfifo "$root/data/fifo"
  : >"$root/data/empty"
  # a path longer than a plain tar header holds, and names that are not ASCII or have spaces
  local long
  long=$(printf 'n%.0s' {1..120})
  install -d "$root/data/$long"
  echo long >"$root/data/$long/$long"
  echo utf-8 >"$root/data/grüße 世界"
  truncate -s 1M "$root/data/zeros"
  echo private >"$root/data/owned"
  chown 1000:2000 "$root/data/owned"
  chmod 640 "$root/data/owned"
  echo attributes >"$root/data/xattr"
  setfattr -n user.isopod -v value "$root/data/xattr"
  install -m 4755 "$programs/effective-uid" "$root/usr/bin/effective-uid"
  install -m 755 "$programs/effective-uid" "$root/usr/bin/with-capability"
  # file capability, version 2: cap_net_raw permitted and effective
  setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 "$root/usr/bin/with-capability"
}

# Whiteouts of the image specification, and changes in place.
changes_tree() {
  local root=$1
  install -d -m 755 "$root/data" "$root/data/opaque"
  : >"$root/data/.wh.removed"
  : >"$root/data/.wh.removed-directory"
  : >"$root/data/opaque/.wh..wh..opq"
  echo second >"$root/data/opaque/new"
  echo second >"$root/data/changed"
  # a file where there was a directory
  echo second >"$root/data/replaced"
}

web_tree() {
  local root=$1
  install -d -m 755 "$root/www"
  echo 'Hello from a pod.' >"$root/www/index.html"
}

# Users that only this image knows: a runtime must read them from the image.
user_tree() {
  local root=$1
  install -d -m 755 "$root/etc"
  install -d -m 750 -o 1500 -g 1600 "$root/home/keeper"
  printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'keeper:x:1500:1600:keeper:/home/keeper:/bin/sh' >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'keepers:x:1600:' 'divers:x:1700:keeper' >"$root/etc/group"
}

# 64 MiB that no compression makes smaller and that is the same in each build, and a program that times reading it.
large_tree() {
  local root=$1 programs=$2
  install -d -m 755 "$root"/{data,usr,usr/bin}
  install -m 755 "$programs/read-file" "$root/usr/bin/read-file"
  head -c 64M /dev/zero | openssl enc -aes-128-ctr -K 00000000000000000000000000000000 -iv 00000000000000000000000000000000 >"$root/data/large"
}

# The pod's end of connections that are measured.
net_tree() {
  local root=$1 programs=$2
  install -d -m 755 "$root"/{usr,usr/bin}
  install -m 755 "$programs/net-peer" "$root/usr/bin/net-peer"
}

# Programs that tell what two guests must not have in common, and what they must.
probe_tree() {
  local root=$1 programs=$2
  install -d -m 755 "$root"/{usr,usr/bin}
  install -m 755 "$programs"/{clocks,random-state} "$root/usr/bin/"
}

# Programs that use what the guest's kernel offers.
kernel_tree() {
  local root=$1 programs=$2
  install -d -m 755 "$root"/{usr,usr/bin}
  install -m 755 "$programs"/{kernel-features,thirty-two-bit,use-up} "$root/usr/bin/"
  local program
  for program in "${MACHINE_PROGRAMS[@]}"; do
    machine_program "$root/node" "$program"
  done
  # the matches and targets that iptables loads
  install -d -m 755 "$root/node/xtables"
  install -m 644 "$XTABLES"/*.so "$root/node/xtables/"
}

# programs of the machine that use the kernel's network in ways that busybox does not
MACHINE_PROGRAMS=(/usr/sbin/{nft,tc,ip,xtables-legacy-multi,xtables-nft-multi,mke2fs})
XTABLES=/usr/lib/x86_64-linux-gnu/xtables

# machine_program DIRECTORY PROGRAM: the program with its libraries and its loader, to be run by that loader
machine_program() {
  local root=$1 program=$2 library
  install -d -m 755 "$root" "$root/lib"
  install -m 755 "$program" "$root/"
  while read -r library; do
    case $library in
      */ld-linux-*) install -m 755 "$library" "$root/" ;;
      *) install -m 644 "$library" "$root/lib/" ;;
    esac
  done < <(ldd "$program" | grep -o '/[^ ]*')
}

# One of many small layers: its own file, and one that each layer above it replaces.
many_tree() {
  local root=$1 number=$2
  install -d -m 755 "$root/many"
  echo "$number" >"$root/many/$number"
  echo "$number" >"$root/many/last"
}
