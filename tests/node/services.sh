# shellcheck shell=dash
# Sourced by init.sh: what makes the node a Kubernetes node. Each service is up when its function returns.

# Isopod where a package would put it, crictl and its like, and a pod network of the standard CNI plugins
install_isopod() {
  mkdir -p /usr/lib/isopod /etc/isopod /etc/cni/net.d /opt/cni/bin
  local place="ln -sf"
  if [ "$NEAR" = yes ]; then
    place="cp -L"
    mount -t tmpfs tmpfs /usr/lib/isopod
    mount -t tmpfs tmpfs /opt/cni/bin
    bring_near
  fi
  $place "$ISOPOD_VMM" /usr/lib/isopod/isopod-vmm
  $place "$ISOPOD_KERNEL" /usr/lib/isopod/vmlinux
  $place "$ISOPOD_ROOT_IMAGE" /usr/lib/isopod/guest-root.erofs
  $place "$ISOPOD_ISOPOD" /usr/lib/isopod/isopod
  # what cases start that order faults; a package would not have it
  mkdir -p /usr/lib/isopod/with-faults
  ln -sf "$ISOPOD_WITH_FAULTS" /usr/lib/isopod/with-faults/isopod
  $place "$ISOPOD_TOOLS/crictl" /usr/lib/isopod/crictl
  ln -sf /usr/lib/isopod/isopod /usr/lib/isopod/crictl /usr/local/bin/
  for plugin in bridge host-local loopback portmap ptp; do
    $place "$ISOPOD_TOOLS/$plugin" /opt/cni/bin/
  done
  cp /node/config.toml /etc/isopod/config.toml
  if [ "$COLD" = yes ]; then sed -i '/^\[vm\]$/a template = "off"' /etc/isopod/config.toml; fi
  cp /node/cni.conflist /etc/cni/net.d/10-isopod.conflist
  cp /node/crictl.yaml /etc/crictl.yaml
}

# What the bridge plugin runs several times per pod (nft at its start, iptables too at its end), into the node's memory. Each
# opening of one of the machine's files asks its file server and waits: milliseconds that no node with a disk of its own has, and
# under counted time a jump to the next timer
bring_near() {
  local file
  for file in /usr/sbin/nft /usr/sbin/iptables $(libraries /usr/sbin/nft /usr/sbin/iptables) /etc/ld.so.cache \
    /etc/iproute2/group /etc/iproute2/rt_realms \
    /usr/lib/x86_64-linux-gnu/xtables/libxt_comment.so /usr/lib/x86_64-linux-gnu/xtables/lib*_MASQUERADE.so; do
    [ -e "$file" ] || continue
    cp -L "$file" "$file.near"
    mv "$file.near" "$file"
  done
  # nft looks for these as well, which most machines do not have
  touch /etc/connlabel.conf /etc/iproute2/rt_marks
}

# libraries PROGRAM...: the files that they load, each once
libraries() {
  ldd "$@" | sed -n 's|.*[[:space:]]\(/[^ ]*\) (.*|\1|p' | sort -u
}

start_daemon() {
  (in_cgroup node.services /usr/lib/isopod/isopod serve) >/run/node/isopod.log 2>&1 </dev/null &
  await "isopod serve" 60 /run/node/isopod.log $! test -S /run/isopod/isopod.sock
}

start_registry() {
  cat >/run/node/registry.yml <<EOF
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $REGISTRY}}
http: {addr: 127.0.0.1:5000}
EOF
  (in_cgroup node.services docker-registry serve /run/node/registry.yml) >/run/node/registry.log 2>&1 </dev/null &
  await "docker-registry" 60 /run/node/registry.log $! wget -q -O /dev/null http://127.0.0.1:5000/v2/
}

# await WHAT SECONDS LOG PID COMMAND...: until COMMAND succeeds
await() {
  local what=$1 tries=$(($2 * 20)) log=$3 pid=$4
  shift 4
  until "$@" 2>/dev/null; do
    tries=$((tries - 1))
    if [ $tries = 0 ] || ! kill -0 "$pid" 2>/dev/null; then
      fail "$what did not come up; the end of its log:
$(tail -n 20 "$log")"
    fi
    sleep 0.05
  done
}

# in_cgroup GROUP COMMAND...: replaces the (sub)shell
in_cgroup() {
  echo 0 >"/sys/fs/cgroup/$1/cgroup.procs"
  shift
  exec "$@"
}
