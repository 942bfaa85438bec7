#!/usr/bin/env bash
# Make the container images of the tests from local files, without network, and print the directory that holds one OCI layout
# per image (README.md says what each is for). Needs root, as layers hold files of several owners. Same input, same digests.
# Usage: build.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../../guest-image/cache.sh"
# shellcheck source=tests/images/oci-layout.sh
source "$here/oci-layout.sh"
# shellcheck source=tests/images/trees.sh
source "$here/trees.sh"

# image NAME CONFIG FORMAT TREE...: an amd64 image with one layer per tree
image() {
  local name=$1 config=$2 format=$3 tree
  shift 3
  local layers=()
  layout_begin "$out/$name"
  for tree in "$@"; do
    layers+=("$(add_layer "$out/$name" "$tree" "$format")")
  done
  layout_end "$out/$name" "$(add_manifest "$out/$name" amd64 "$config" "${layers[@]}")"
  say "  image $name"
}

# one image for two architectures; the arm64 one holds no program, it is there to be passed over
multi_image() {
  local layout=$out/multi config='{"Cmd":["/bin/sh"]}' amd64 arm64
  layout_begin "$layout"
  amd64=$(add_manifest "$layout" amd64 "$config" "$(add_layer "$layout" busybox gzip)")
  arm64=$(add_manifest "$layout" arm64 "$config" "$(add_layer "$layout" web gzip)")
  # arm64 first: a runtime that takes the first is found out
  layout_end "$layout" "$(add_index "$layout" "$arm64" "$amd64")"
  say "  image multi"
}

programs() {
  local name
  mkdir programs
  for name in clocks effective-uid kernel-features net-peer pause read-file use-up; do
    gcc -static -Os -s -o "programs/$name" "$here/$name.c"
  done
  # its text moves, which it tells of
  gcc -static-pie -fPIE -Os -s -o programs/random-state "$here/random-state.c"
  # without a C library: there need be no 32-bit one on the machine
  gcc -m32 -static -nostdlib -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables -Os -s \
    -o programs/thirty-two-bit "$here/thirty-two-bit.c"
}

trees() {
  mkdir busybox features changes web user large net probe pause kernel
  busybox_tree busybox "$busybox"
  features_tree features programs
  changes_tree changes
  web_tree web
  user_tree user
  large_tree large programs
  net_tree net programs
  probe_tree probe programs
  kernel_tree kernel programs
  local number
  for number in {1..45}; do
    mkdir "many-$number"
    many_tree "many-$number" "$number"
  done
  install -m 755 programs/pause pause/pause
}

build() {
  out=$1
  umask 022
  ((EUID == 0)) || die "the layers hold files of several owners: run this as root"
  programs
  trees
  local shell='{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/sh"]}'
  image busybox "$shell" gzip busybox features changes
  image web '{"ExposedPorts":{"80/tcp":{}},"Cmd":["/usr/sbin/httpd","-f","-v","-p","80","-h","/www"]}' gzip busybox web
  # shellcheck disable=SC2016  # expanded in the container
  image user '{"User":"keeper","Env":["GREETING=hello from the image"],"WorkingDir":"/home/keeper","Entrypoint":["/bin/sh","-c"],
    "Cmd":["id; pwd; echo $GREETING; exec sleep 3600"],"StopSignal":"SIGINT","Labels":{"test.isopod.kind":"user"}}' gzip busybox user
  image gzip "$shell" gzip busybox web
  image zstd "$shell" zstd busybox web
  image uncompressed "$shell" tar busybox web
  image large "$shell" gzip busybox large
  image net "$shell" gzip busybox net
  image probe "$shell" gzip busybox probe
  image kernel "$shell" gzip busybox kernel
  image many "$shell" gzip busybox many-{1..45}
  image pause '{"Entrypoint":["/pause"]}' gzip pause
  multi_image
}

busybox=$("$here/../tools/busybox.sh")/busybox
cached images "$(key_of "$busybox" "$here"/{build,oci-layout,trees}.sh "${MACHINE_PROGRAMS[@]}" "$here"/{clocks,effective-uid,kernel-features,net-peer,pause,random-state,read-file,thirty-two-bit,use-up}.c)" build
