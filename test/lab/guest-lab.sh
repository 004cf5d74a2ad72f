#!/usr/bin/env bash
# The guest lab: runs jobs in a small Linux guest under QEMU without KVM, where the kernel has what a build machine lacks:
# device mapper, an NFS server, iSCSI. See README.md beside this file.
#   guest-lab.sh test [JOB...]   builds the guest if its parts changed, and runs jobs (default: all); TAP on stdout
#   guest-lab.sh build           builds the guest
# Needs root on Debian bookworm, and the packages mmdebstrap, qemu-system-x86, e2fsprogs, kmod. What it cannot run it says
# and exits with 77, or with 1 under SPINDLE_REQUIRE_JUDGES=1.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
lab="$project/.cache/lab"
spindle() { node "$project/dist/cli/main.cjs" "$@"; }

modules="virtio_pci virtio_blk virtio_scsi virtio_rng sd_mod sg loop nbd dm_mod dm_thin_pool dm_snapshot dm_zero dm_mirror
  iscsi_tcp nfs nfsv3 nfsv4 nfsd xfs overlay configfs"
packages=lvm2,thin-provisioning-tools,nfs-kernel-server,nfs-common,tgt,open-iscsi,udev,kmod,iproute2,e2fsprogs,xfsprogs,procps,libstdc++6
suite=bookworm

missing() {
  echo "1..0 # skip the guest lab needs $1"
  [ "${SPINDLE_REQUIRE_JUDGES:-}" = 1 ] && exit 1
  exit 77
}

need() {
  [ "$(id -u)" = 0 ] || missing root
  local program
  for program in qemu-system-x86_64 mmdebstrap mke2fs depmod modprobe dpkg-deb; do
    command -v "$program" >/dev/null || missing "$program"
  done
}

# Where packages come from: this machine's own sources.
sources() {
  local file
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    if [ -s "$file" ]; then
      echo "$file"
      return
    fi
  done
  missing 'a file of apt sources'
}

init() {
  cat <<'INIT'
#!/bin/bash
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mountpoint -q /dev || mount -t devtmpfs dev /dev
ln -sfn /proc/self/fd /dev/fd; ln -sf /proc/self/fd/0 /dev/stdin; ln -sf /proc/self/fd/1 /dev/stdout; ln -sf /proc/self/fd/2 /dev/stderr
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/udev /run/lvm
mount -t tmpfs tmpfs /tmp
ip link set lo up; hostname lab
modprobe -a virtio_pci virtio_blk virtio_scsi sd_mod loop dm_mod
/lib/systemd/systemd-udevd --daemon 2>/dev/null
udevadm trigger --action=add --subsystem-match=block --subsystem-match=misc --subsystem-match=mem; udevadm settle
mkdir -p /run/job/out; tar -C /run/job -xf /dev/disk/by-id/virtio-job; cd /run/job
echo 'lab: the job begins'
bash ./run.sh 2>out/errors </dev/null | tee out/log; rc=${PIPESTATUS[0]}
echo $rc > out/rc; dmesg > out/dmesg; sync
tar -C /run/job -cf /dev/disk/by-id/virtio-result out; sync
echo o > /proc/sysrq-trigger; sleep 10
INIT
}

build() {
  local key
  key=$({ echo "$modules $packages $suite"; init; declare -f build; node --version; } | sha256sum | cut -c1-16)
  [ -s "$lab/root.qcow2" ] && [ "$(cat "$lab/key" 2>/dev/null)" = "$key" ] && return
  echo "# building the guest" >&2
  rm -rf "$lab"
  mkdir -p "$lab/k"
  cd "$lab"
  local kernel version
  kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/{print $2; exit}')
  version=${kernel#linux-image-}
  (cd k && apt-get -qq download "$kernel" && dpkg-deb -x ./*.deb . && rm ./*.deb && depmod -b . "$version") >&2
  cp "k/boot/vmlinuz-$version" vmlinuz
  mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --include="$packages" "$suite" root "$(sources)" >&2
  local module
  for module in $modules; do modprobe -d "$PWD/k" -S "$version" --show-depends "$module"; done |
    awk '$1=="insmod"{print $2}' | sed "s#^$PWD/k/##" | sort -u >modules
  tar -C k -cf - -T modules "lib/modules/$version/modules.order" "lib/modules/$version/modules.builtin" \
    "lib/modules/$version/modules.builtin.modinfo" | tar -C root --keep-directory-symlink -xf -
  depmod -b root "$version"
  install -m755 "$(command -v node)" root/usr/local/bin/node
  ln -sf /proc/self/mounts root/etc/mtab
  mkdir -p root/lab
  init >root/lab/init
  chmod 755 root/lab/init
  # The guest's disk is an image of spindle's own making, from the empty file to the qcow2 that is booted.
  spindle create -q -f raw root.img 500M
  mke2fs -q -F -t ext4 -O ^has_journal -m 0 -N 30000 -d root root.img
  spindle convert -O qcow2 root.img root.qcow2
  spindle check root.qcow2 >&2
  rm -rf k root root.img modules
  echo "$key" >key
  cd - >/dev/null
}

boot() { # processors, directory of this run
  timeout --foreground "${LAB_TIME:-1800}" qemu-system-x86_64 -M q35 -accel tcg -cpu Nehalem -smp "$1" -m 1024 \
    -nodefaults -nic none -display none -no-reboot -serial file:"$2/console" -kernel "$lab/vmlinuz" \
    -append "console=ttyS0 quiet root=/dev/nvme0n1 rw init=/lab/init panic=-1 mitigations=off" \
    -drive if=none,id=root,file="$lab/root.qcow2",format=qcow2,snapshot=on,cache=unsafe -device nvme,drive=root,serial=root \
    -drive if=none,id=job,file="$2/job.tar",format=raw,readonly=on -device virtio-blk-pci,drive=job,serial=job \
    -drive if=none,id=res,file="$2/result",format=raw,cache=unsafe -device virtio-blk-pci,drive=res,serial=result \
    -drive if=none,id=pv0,file="$2/pv0.qcow2",format=qcow2,cache=unsafe,discard=unmap -device virtio-blk-pci,drive=pv0,serial=pv0 \
    -drive if=none,id=pv1,file="$2/pv1.qcow2",format=qcow2,cache=unsafe,discard=unmap -device virtio-blk-pci,drive=pv1,serial=pv1
}

# A disk of the job and one for its results carry plain archives. Its data disks keep what they hold from one boot to the next.
job() {
  local name=$1 out boots cpus rc
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  out="$lab/out-$name"
  rm -rf "$out"
  mkdir -p "$out" "$work/job/spindle/node_modules/fs-ext/build/Release" "$work/job/spindle/native"
  cp -r "$here/$name/." "$work/job/"
  cp -r "$project/dist" "$project/package.json" "$work/job/spindle/"
  cp "$project"/native/*.node "$work/job/spindle/native/" 2>/dev/null || true
  cp "$project"/node_modules/fs-ext/{package.json,fs-ext.js} "$work/job/spindle/node_modules/fs-ext/"
  cp "$project"/node_modules/fs-ext/build/Release/*.node "$work/job/spindle/node_modules/fs-ext/build/Release/"
  echo "${LAB_ROUNDS:-1}" >"$work/job/rounds"
  spindle create -q -f qcow2 "$work/pv0.qcow2" 512M
  spindle create -q -f qcow2 "$work/pv1.qcow2" 512M
  for boots in 1 2; do
    echo "$boots" >"$work/job/boot"
    tar -C "$work/job" -cf "$work/job.tar" .
    truncate -s %1M "$work/job.tar"
    rc=125
    # Rarely QEMU without KVM loses its way with two processors while it boots: once more with one. A job that began is
    # never begun again.
    for cpus in 2 1; do
      rm -f "$work/result"
      truncate -s 64M "$work/result"
      boot "$cpus" "$work" || echo "# qemu ended with $?" >&2
      cp "$work/console" "$out/console-$boots"
      mkdir -p "$out/boot-$boots"
      if tar -C "$out/boot-$boots" --strip-components=1 -xf "$work/result" 2>/dev/null && [ -s "$out/boot-$boots/rc" ]; then
        rc=$(cat "$out/boot-$boots/rc")
        break
      fi
      if grep -q 'lab: the job begins' "$out/console-$boots"; then break; fi
      echo "# job $name did not begin with $cpus processors" >&2
    done
    cat "$out/boot-$boots/log" 2>/dev/null || echo "not ok - job $name left no result of boot $boots"
    if [ "$rc" != 0 ]; then
      echo "# the end of the console:"
      tail -n 40 "$out/console-$boots" | tr -d '\r' | sed 's/^/#   /'
    fi
    # What the first boot leaves in `keep` is there in the second: as files of a disk would be.
    if [ "$rc" = 0 ] && [ -d "$out/boot-$boots/keep" ]; then cp -r "$out/boot-$boots/keep" "$work/job/keep"; fi
    [ "$rc" = 0 ] || break
  done
  rm -rf "$work"
  return "$rc"
}

case "${1:-test}" in
build)
  need
  build
  ;;
test)
  need
  shift || true
  build
  failed=0
  [ $# -gt 0 ] || set -- pools
  for name in "$@"; do
    start=$SECONDS
    job "$name" || failed=1
    echo "# job $name: $((SECONDS - start)) s"
  done
  exit "$failed"
  ;;
*)
  echo "usage: $0 build | test [JOB...]" >&2
  exit 2
  ;;
esac
