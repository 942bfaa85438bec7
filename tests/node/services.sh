# shellcheck shell=dash
# Sourced by init.sh: the services of a Kubernetes node that a job may ask for. Each is up when its function returns.

# await WHAT SECONDS LOG PID COMMAND...: until COMMAND succeeds
await() {
  local what=$1 log=$3 pid=$4 tries=$(($2 * 20))
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

start_daemon() {
  mkdir -p /etc/isopod /etc/cni/net.d /opt/cni/bin /run/isopod
  cp /node/config.toml /etc/isopod/config.toml
  cp /node/cni.conflist /etc/cni/net.d/10-isopod.conflist
  printf 'runtime-endpoint: unix:///run/isopod/isopod.sock\nimage-endpoint: unix:///run/isopod/isopod.sock\ntimeout: 120\n' >/etc/crictl.yaml
  mount --bind "$TOOLS" /opt/cni/bin
  (in_cgroup node.services "$ISOPOD" serve --config /etc/isopod/config.toml) >/run/node/isopod.log 2>&1 </dev/null &
  await "isopod serve" 60 /run/node/isopod.log $! test -S /run/isopod/isopod.sock
}

start_registry() {
  mkdir -p /run/node/registry
  printf 'version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: /run/node/registry}, delete: {enabled: true}}\nhttp: {addr: 127.0.0.1:5000}\n' \
    >/run/node/registry.yml
  (in_cgroup node.services docker-registry serve /run/node/registry.yml) >/run/node/registry.log 2>&1 </dev/null &
  await "docker-registry" 60 /run/node/registry.log $! nc -z 127.0.0.1 5000
}
