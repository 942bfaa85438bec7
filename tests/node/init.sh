#!/bin/busybox sh
# shellcheck shell=dash
# PID 1 of the node: set the node up as a Kubernetes node would be, run the job, hand over its exit status.
#
# /node is a directory of the machine (virtiofs): `settings` and `job` come in by it, `exit`, `logs/` and `out/` go out.
# What this prints goes to the node's console, which a failed run shows. Busybox's shell runs its own tools without starting programs
# of the machine's: that takes a third of the time where the CPU is emulated.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /
# ISOPOD (absent, installed or serving), REGISTRY (the storage, or nothing), JOB_TTY (a device, or nothing), JOB_TTY_SIZE,
# MODULES (in order), MODULES_DIRECTORY (all of the kernel's), NEAR and COLD (yes or no), ISOPOD_* (paths of
# the machine)
JOB_TTY=
# shellcheck source=/dev/null
. /node/settings

# finish STATUS: the only way out of the node; the machine kills it when it sees the status
finish() {
  cp /run/node/*.log /node/logs/ 2>/dev/null
  echo "$1" >/node/exit.new
  mv /node/exit.new /node/exit
  sleep 60
}

# 125, as in `docker run`: the job was not reached
fail() {
  echo "node: $*"
  echo "node: $*" >"$ERRORS"
  finish 125
}

file_systems() {
  mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /dev/pts /dev/shm
  mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
  local dir
  for dir in /dev/shm /run /tmp /var/lib/isopod; do
    mkdir -p "$dir"
    mount -t tmpfs -o mode=1777 tmpfs "$dir"
  done
  chmod 755 /run /var/lib/isopod
  mkdir -p /run/lock /run/netns /run/node
  ln -sfn /proc/self/fd /dev/fd
  ln -sfn /proc/self/fd/0 /dev/stdin
  ln -sfn /proc/self/fd/1 /dev/stdout
  ln -sfn /proc/self/fd/2 /dev/stderr
  # mount propagation into containers needs shared mounts, as systemd makes them
  mount --make-rshared /
}

# as systemd does it: all controllers for the children, each service in a group of its own
cgroups() {
  sed 's/[^ ]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
  mkdir /sys/fs/cgroup/node.job /sys/fs/cgroup/node.services
}

# shellcheck disable=SC2153  # MODULES is a setting
load_modules() {
  local module own
  # where modprobe looks for what is loaded on demand, unless the kernel is the machine's own
  own=/lib/modules/$(uname -r)
  if [ "$MODULES_DIRECTORY" != "$own" ]; then
    mkdir -p "$own"
    mount --bind "$MODULES_DIRECTORY" "$own"
  fi
  for module in $MODULES; do
    insmod "$module"
  done
}

kernel_settings() {
  echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
  echo 1 >/proc/sys/net/ipv4/ip_forward
  ip link set lo up
  hostname node
}

# port NAME: the device of one of the byte streams to the machine
port() {
  grep -l "^$1\$" /sys/class/virtio-ports/*/name | sed 's|/sys/class/virtio-ports/\(.*\)/name|/dev/\1|'
}

load_modules &
modules=$!
file_systems
STDOUT=$(port stdout) STDERR=$(port stderr)
ERRORS=${JOB_TTY:-$STDERR}
cgroups
kernel_settings
wait $modules
[ -c /dev/kvm ] || fail "no /dev/kvm: see what insmod said on the console"

# shellcheck source=tests/node/services.sh
. /node/services.sh

case $ISOPOD in installed | serving) install_isopod ;; esac
if [ -n "$REGISTRY" ]; then start_registry; fi
if [ "$ISOPOD" = serving ]; then start_daemon; fi

if [ -n "$JOB_TTY" ]; then
  (
    # shellcheck disable=SC2086,SC2153  # rows N cols M, or nothing
    stty sane $JOB_TTY_SIZE
    in_cgroup node.job setsid -c /bin/sh /node/job
  ) <>"$JOB_TTY" >&0 2>&0
  finish $?
fi

# a port can be open only once, a pipe as often as the job likes
mkfifo /run/node/stdout /run/node/stderr
cat /run/node/stdout >"$STDOUT" &
copies=$!
cat /run/node/stderr >"$STDERR" &
copies="$copies $!"
ERRORS=/run/node/stderr
(in_cgroup node.job /bin/sh /node/job) </dev/null >/run/node/stdout 2>/run/node/stderr &
job=$!
wait $job
status=$?
# what the job left running holds its pipes: without this the copies below would not end
echo 1 >/sys/fs/cgroup/node.job/cgroup.kill
# shellcheck disable=SC2086  # two numbers
wait $copies
finish $status
