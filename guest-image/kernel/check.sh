#!/usr/bin/env bash
# Boot the guest kernel in QEMU, without KVM, and try what pods need of it; a few seconds, for a look after each bump.
# Usage: kernel/check.sh
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=guest-image/cache.sh
source "$here/../cache.sh"

vmlinux=$("$here/build.sh")
mkfs=$("$here/../erofs-utils/build.sh")/mkfs.erofs
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install -d "$work"/root/{bin,dev,proc,sys,run,tmp,mnt,etc,sbin}
install -m 755 "$(command -v busybox)" "$work/root/bin/busybox"
install -m 755 "$here/check-init.sh" "$work/root/sbin/init"
# an i386 program without a C library, as there need be no 32-bit one here: exits with 7
gcc -m32 -static -nostdlib -ffreestanding -fno-pic -x c -o "$work/root/bin/thirty-two-bit" - \
  <<<'void _start(void) { __asm__("int $0x80" : : "a"(1), "b"(7)); }'
"$mkfs" --quiet "$work/disk" "$work/root"
sectors=$(($(stat -c %s "$work/disk") / 512))
# a second extent behind the root, as the extent disk has it: scratch space with ext4
truncate -s 16M "$work/scratch"
PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q "$work/scratch"
cat "$work/scratch" >>"$work/disk"

extents="guest-root,,0,ro,0 $sectors linear /dev/vda 0;scratch,,1,rw,0 32768 linear /dev/vda $sectors"
# the emulated clock is the machine's own: without its frequency the guest now and then measures it wrong and waits for ever
khz=$(awk -F: '/^cpu MHz/ {printf "%d", $2 * 1000; exit}' /proc/cpuinfo)
timeout 300 qemu-system-x86_64 -M microvm,x-option-roms=off -accel tcg -cpu max -m 256 -nodefaults -no-user-config -display none \
  -serial stdio -no-reboot -global virtio-mmio.force-legacy=false \
  -drive "id=disk,if=none,format=raw,file=$work/disk" -device virtio-blk-device,drive=disk \
  -device virtio-serial-device -device virtconsole,chardev=none -chardev null,id=none \
  -device virtio-rng-device -device virtio-balloon-device,free-page-reporting=on \
  -kernel "$vmlinux" -append "console=ttyS0 panic=-1 reboot=t no_timer_check tsc_early_khz=$khz tsc=reliable pci=off \
    dummy.numdummies=0 dm-mod.create=\"$extents\" root=/dev/dm-0 rootfstype=erofs ro" </dev/null | sed -u 's/\r//' | tee "$work/console" >&2

grep -q '^all is well$' "$work/console" || die "the guest kernel does not do all that a pod needs"
