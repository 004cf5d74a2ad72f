# Pools on real LVM, NFS and iSCSI, in the guest lab. Boot 1 makes them; boot 2 sees what a reboot leaves. TAP on stdout.
export SPINDLE_POOLS=/run/job/out/keep
spindle() { node /run/job/spindle/dist/cli/main.cjs "$@"; }

# How often two processes race for the same volume.
ROUNDS=$(cat /run/job/rounds)

count=0
failed=0
# pass NAME COMMAND...: it succeeds. refuse NAME CODE COMMAND...: it fails with exit code 1, one line, and this error code.
pass() {
  local name=$1
  shift
  count=$((count + 1))
  if "$@" >/tmp/said 2>&1; then echo "ok $count - $name"; else
    echo "not ok $count - $name"
    sed 's/^/#   /' /tmp/said
    failed=1
  fi
}
refuse() {
  local name=$1 wanted=$2 code=0
  shift 2
  count=$((count + 1))
  SPINDLE_DEBUG=1 "$@" >/tmp/said 2>&1 || code=$?
  if [ $code = 1 ] && [ "$(grep -vc -e '^    ' -e ' warning: ' /tmp/said)" = 1 ] && grep -qx "    code: $wanted" /tmp/said; then echo "ok $count - $name"; else
    echo "not ok $count - $name (exit $code, wanted $wanted)"
    sed 's/^/#   /' /tmp/said
    failed=1
  fi
}
both() { # COMMAND...: two of it at once; how many of them succeed is in `wins`
  local pid
  wins=0
  SPINDLE_DEBUG=1 "$@" >/tmp/one-said 2>&1 &
  pid=$!
  if SPINDLE_DEBUG=1 "$@" >/tmp/other-said 2>&1; then wins=1; fi
  if wait $pid; then wins=$((wins + 1)); fi
  cat /tmp/one-said /tmp/other-said >>/tmp/all-said
}
says() { # PATTERN COMMAND...: the output holds it
  local pattern=$1
  shift
  "$@" | tee /tmp/output | grep -q -- "$pattern" || { cat /tmp/output; return 1; }
}
within() { # SECONDS COMMAND...
  local start=$SECONDS limit=$1 code=0
  shift
  "$@" || code=$?
  [ $((SECONDS - start)) -le "$limit" ] || { echo "took $((SECONDS - start)) s"; return 3; }
  return $code
}
fill() { head -c "$2" /dev/urandom >"$1"; }

export_nfs() {
  mkdir -p /srv/exp /var/lib/nfs/rpc_pipefs /var/lib/nfs/v4recovery
  truncate -s 64M /tmp/exported
  mke2fs -q -F -t ext4 /tmp/exported
  mount -o loop /tmp/exported /srv/exp
  modprobe nfsd
  mount -t nfsd nfsd /proc/fs/nfsd
  mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
  rpcbind -w
  rpc.nfsd -G 10 -L 10 2
  exportfs -i -o rw,no_root_squash,insecure,no_subtree_check,fsid=1 127.0.0.1:/srv/exp
  rpc.mountd
  echo Y >/proc/fs/nfsd/v4_end_grace
}

serve_iscsi() {
  tgtd
  until tgtadm --lld iscsi --op show --mode sys >/dev/null 2>&1; do sleep 0.2; done
  truncate -s 32M /tmp/lun1
  tgtadm --lld iscsi --op new --mode target --tid 1 -T iqn.2024-01.lab:t1
  tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b /tmp/lun1
  tgtadm --lld iscsi --op bind --mode target --tid 1 -I ALL
  tgtadm --lld iscsi --op new --mode account --user joe --password secretsecret12
  tgtadm --lld iscsi --op bind --mode account --tid 1 --user joe
  echo InitiatorName=iqn.2024-01.lab:init >/etc/iscsi/initiatorname.iscsi
  mkdir -p /run/lock/iscsi
  modprobe iscsi_tcp
  iscsid
}

pv0=/dev/disk/by-id/virtio-pv0
pv1=/dev/disk/by-id/virtio-pv1

lvm_pool() {
  pass 'lvm: define' spindle pool-define-as lv logical --source-dev $pv0 --source-name vg0
  refuse 'lvm: start before build' POOL_GONE spindle pool-start lv
  pass 'lvm: build' spindle pool-build lv
  refuse 'lvm: build again' EXISTS spindle pool-build lv
  pass 'lvm: start' spindle pool-start lv
  pass 'lvm: autostart' spindle pool-autostart lv
  pass 'lvm: info' says '^Capacity: *508.00 MiB' spindle pool-info lv
  pass 'lvm: sources are found' says '<name>vg0</name>' spindle find-storage-pool-sources logical
  pass 'lvm: linear volume' spindle vol-create-as lv lin 64M
  pass 'lvm: it is mapped' test -b /dev/vg0/lin
  pass 'lvm: eager volume' spindle vol-create-as lv eager 16M --allocation-policy thick-eager
  pass 'lvm: thin volume' spindle vol-create-as lv thin 1G --allocation 0
  pass 'lvm: thin is of a thin pool' says spindle_thin lvs --noheadings -o pool_lv vg0/thin
  pass 'lvm: thin takes nothing yet' says '^Allocation: *0.00 B' spindle vol-info thin --pool lv
  refuse 'lvm: one name, one volume' EXISTS spindle vol-create-as lv lin 64M
  refuse 'lvm: no space' NO_SPACE spindle vol-create-as lv large 900M
  fill /tmp/data 64M
  pass 'lvm: write through the device' dd if=/tmp/data of=/dev/vg0/lin bs=1M conv=fsync status=none
  pass 'lvm: clone' spindle vol-clone lin copy --pool lv
  pass 'lvm: the clone is equal' cmp /tmp/data /dev/vg0/copy
  pass 'lvm: snapshot below' spindle vol-create-as lv snap 16M --backing-vol lin
  pass 'lvm: its XML' says '<path>/dev/vg0/lin</path>' spindle vol-dumpxml snap --pool lv
  refuse 'lvm: a volume below another one stays' IN_USE spindle vol-delete lin --pool lv
  refuse 'lvm: a snapshot has the size of what is below' UNSUPPORTED spindle vol-resize snap 128M --pool lv
  pass 'lvm: both are there' test -b /dev/vg0/lin -a -b /dev/vg0/snap
  pass 'lvm: delete snapshot' spindle vol-delete snap --pool lv
  pass 'lvm: grow' spindle vol-resize copy 80M --pool lv
  pass 'lvm: grown' test "$(blockdev --getsize64 /dev/vg0/copy)" = $((80 * 1048576))
  pass 'lvm: grow to what it has' spindle vol-resize copy 80M --pool lv
  pass 'lvm: grow thin' spindle vol-resize thin 2G --pool lv
  pass 'lvm: wipe' spindle vol-wipe copy --pool lv
  pass 'lvm: wiped' cmp -n $((80 * 1048576)) /dev/zero /dev/vg0/copy
  pass 'lvm: upload' spindle vol-upload thin /tmp/data --pool lv --offset 1048576
  pass 'lvm: download' spindle vol-download thin /tmp/back --pool lv --offset 1048576 --length 67108864
  pass 'lvm: what came back is equal' cmp /tmp/data /tmp/back
  pass 'lvm: the key is the UUID' test "$(spindle vol-key lin --pool lv | head -n 1)" = "$(lvs --noheadings -o lv_uuid vg0/lin | tr -d ' ')"
  node /run/job/spindle/dist/cli/main.cjs vol-create-as lv half 128M --allocation-policy thick-eager >/dev/null 2>&1 &
  local pid=$!
  until lvs --noheadings -o lv_name vg0 | grep -q spindle_new_; do sleep 0.1; done
  kill -9 $pid
  wait $pid 2>/dev/null
  pass 'lvm: what was killed is no volume' test "$(spindle vol-list lv -q | grep -c -e half -e spindle_new)" = 0
  pass 'lvm: refresh' spindle pool-refresh lv
  pass 'lvm: and nothing is left of it' test "$(lvs --noheadings -o lv_name vg0 | grep -c spindle_new_)" = 0
  pass 'lvm: reserve' spindle pool-guard lv 8M
  pass 'lvm: the reserve is no volume' test "$(spindle vol-list lv -q | grep -c guard)" = 0
  pass 'lvm: release' spindle pool-guard lv --release
  pass 'lvm: delete' spindle vol-delete copy --pool lv
  pass 'lvm: destroy' spindle pool-destroy lv
  pass 'lvm: nothing is mapped' test ! -e /dev/vg0/lin
  pass 'lvm: start again' spindle pool-start lv
  pass 'lvm: data is there' cmp /tmp/data /dev/vg0/lin
  sha256sum </dev/vg0/lin >"$SPINDLE_POOLS/lin.sum"
}

lvm_faults() {
  truncate -s 32M /tmp/one /tmp/two
  local one two
  one=$(losetup --find --show /tmp/one)
  two=$(losetup --find --show /tmp/two)
  pass 'lvm: a group of two disks' spindle pool-define-as two logical --source-dev "$one" --source-dev "$two" --source-name vg1
  pass 'lvm: built' spindle pool-build two
  losetup --detach "$two"
  udevadm settle
  pvscan --cache >/dev/null 2>&1
  refuse 'lvm: a disk is missing' POOL_GONE spindle pool-start two
  two=$(losetup --find --show /tmp/two)
  udevadm settle
  pass 'lvm: the disk is back' spindle pool-start two
  pass 'lvm: stop' spindle pool-destroy two
  # Two processes at once.
  pass 'lvm: start for the race' spindle pool-start two
  local wins round
  for round in $(seq "$ROUNDS"); do
    both spindle vol-create-as two "race$round" 4M
    pass "lvm: of two that make a volume, one wins ($round)" test $wins = 1
    pass "lvm: the other is told that it exists ($round)" grep -qx '    code: EXISTS' /tmp/one-said /tmp/other-said
    both spindle vol-resize "race$round" 4M --delta --pool two
    pass "lvm: two that grow it both count ($round)" test "$wins $(blockdev --getsize64 /dev/vg1/race$round)" = "$wins $((4194304 * (1 + wins)))" -a $wins -gt 0
    both spindle vol-delete "race$round" --pool two
    pass "lvm: of two that delete it, one wins ($round)" test $wins = 1
    pass "lvm: it is gone, and nothing else ($round)" test -z "$(lvs --noheadings -o lv_name vg1)"
    pass "lvm: nobody crashed ($round)" test "$(grep -c 'internal error' /tmp/all-said)" = 0
  done
  pass 'lvm: stopped' spindle pool-destroy two
  pass 'lvm: delete the group' spindle pool-delete two
  pass 'lvm: it is gone' test "$(vgs --noheadings -o vg_name | grep -c vg1)" = 0
  pass 'lvm: undefine' spindle pool-undefine two
}

fs_pool() {
  truncate -s 32M /tmp/fsdisk
  local disk free
  disk=$(losetup --find --show /tmp/fsdisk)
  pass 'fs: define' spindle pool-define-as fsd fs --source-dev "$disk" --source-format ext4 --target /mnt/fsd
  refuse 'fs: start before build' TOOL_FAILED spindle pool-start fsd
  pass 'fs: build' spindle pool-build fsd --no-overwrite
  refuse 'fs: build again' EXISTS spindle pool-build fsd --no-overwrite
  pass 'fs: start' spindle pool-start fsd
  pass 'fs: volume' spindle vol-create-as fsd v 4M --allocation 0
  fill /tmp/small 4M
  pass 'fs: upload' spindle vol-upload v /tmp/small --pool fsd
  refuse 'fs: no space for a volume' NO_SPACE spindle vol-create-as fsd large 200M
  refuse 'fs: no space for an image' NO_SPACE spindle vol-create-as fsd large 200M --format qcow2 --allocation-policy thick-eager
  refuse 'fs: no space to grow' NO_SPACE spindle vol-resize v 200M --allocate --pool fsd
  # What is not kept for root: less than the copy needs is left.
  free=$(stat -f -c '%a' /mnt/fsd)
  pass 'fs: fill it' fallocate -l $(((free - 64) * $(stat -f -c %S /mnt/fsd))) /mnt/fsd/rest
  refuse 'fs: no space for a copy' NO_SPACE spindle vol-clone v copy --pool fsd
  pass 'fs: nothing is left of what failed' test "$(ls -A /mnt/fsd | tr '\n' ' ')" = 'lost+found rest v '
  pass 'fs: the volume is as it was' cmp /tmp/small /mnt/fsd/v
  pass 'fs: delete makes room' spindle vol-delete rest --pool fsd
  pass 'fs: for the copy' spindle vol-clone v copy --pool fsd
  pass 'fs: destroy' spindle pool-destroy fsd
  pass 'fs: unmounted' test "$(grep -c /mnt/fsd /proc/mounts)" = 0
  pass 'fs: undefine' spindle pool-undefine fsd
}

nfs_pool() {
  pass 'nfs: exports are found' says '<dir path="/srv/exp"/>' spindle find-storage-pool-sources-as netfs 127.0.0.1
  pass 'nfs: define' spindle pool-define-as nfs netfs --source-host 127.0.0.1 --source-path /srv/exp --source-format nfs --source-protocol-ver 4.2 --target /mnt/nfs
  pass 'nfs: start with build' spindle pool-start nfs --build
  pass 'nfs: it is mounted as said' says '127.0.0.1:/srv/exp /mnt/nfs nfs4 rw,nosuid,nodev,noexec.*vers=4.2' cat /proc/mounts
  pass 'nfs: autostart' spindle pool-autostart nfs
  pass 'nfs: raw volume' spindle vol-create-as nfs raw.img 8M --allocation 0
  pass 'nfs: qcow2 volume' spindle vol-create-as nfs disk.qcow2 1G --format qcow2
  pass 'nfs: on the server' test -s /srv/exp/disk.qcow2
  pass 'nfs: nothing else on the server' test "$(ls -A /srv/exp | grep -c spindle-new)" = 0
  fill /tmp/small 4M
  pass 'nfs: upload' spindle vol-upload raw.img /tmp/small --pool nfs
  pass 'nfs: the server has it' cmp -n 4194304 /tmp/small /srv/exp/raw.img
  pass 'nfs: clone' spindle vol-clone raw.img clone.img --pool nfs
  pass 'nfs: the clone is equal' cmp /srv/exp/raw.img /srv/exp/clone.img
  pass 'nfs: grow' spindle vol-resize raw.img 12M --pool nfs
  pass 'nfs: grow qcow2' spindle vol-resize disk.qcow2 2G --pool nfs
  pass 'nfs: check qcow2' spindle check /mnt/nfs/disk.qcow2
  pass 'nfs: thick in place' spindle vol-allocate raw.img thick-eager --pool nfs
  pass 'nfs: wipe' spindle vol-wipe clone.img --pool nfs
  pass 'nfs: wiped' cmp -n 8388608 /dev/zero /srv/exp/clone.img
  pass 'nfs: download' spindle vol-download raw.img /tmp/back --pool nfs --length 4194304
  pass 'nfs: what came back is equal' cmp /tmp/small /tmp/back
  refuse 'nfs: no space' NO_SPACE spindle vol-create-as nfs large.img 200M --allocation-policy thick-eager
  pass 'nfs: nothing is left of it' test "$(ls -A /srv/exp | grep -c -e large -e spindle-new)" = 0
  local wins round
  for round in $(seq "$ROUNDS"); do
    both spindle vol-create-as nfs "race$round" 1M --allocation 0
    pass "nfs: of two that make a volume, one wins ($round)" test $wins = 1
    both spindle vol-resize "race$round" 1M --delta --pool nfs
    pass "nfs: two that grow it both count ($round)" test "$(stat -c %s "/srv/exp/race$round")" = $((1048576 * (1 + wins))) -a $wins -gt 0
    both spindle vol-delete "race$round" --pool nfs
    pass "nfs: of two that delete it, one wins ($round)" test $wins = 1
    pass "nfs: it is gone, and nothing is left ($round)" test "$(ls -A /srv/exp | grep -c -e race -e spindle-new)" = 0
    pass "nfs: nobody crashed ($round)" test "$(grep -c 'internal error' /tmp/all-said)" = 0
  done
  # NFS before 4.2 cannot reserve space.
  mkdir /srv/exp/older
  pass 'nfs 4.1: define' spindle pool-define-as nfs41 netfs --source-host 127.0.0.1 --source-path /srv/exp/older --source-format nfs --source-protocol-ver 4.1 --target /mnt/nfs41
  pass 'nfs 4.1: start with build' spindle pool-start nfs41 --build
  pass 'nfs 4.1: it is mounted as said' says '127.0.0.1:/srv/exp/older /mnt/nfs41 nfs4 .*vers=4.1' cat /proc/mounts
  pass 'nfs 4.1: volume' spindle vol-create-as nfs41 whole 4M
  pass 'nfs 4.1: it has all of its space' test "$(stat -c %b /srv/exp/older/whole)" -ge 8192
  pass 'nfs 4.1: thin' spindle vol-create-as nfs41 sparse 4M --allocation 0
  pass 'nfs 4.1: it has no space' test "$(stat -c %b /srv/exp/older/sparse)" -lt 64
  pass 'nfs 4.1: thick in place' spindle vol-allocate sparse thick-lazy --pool nfs41
  pass 'nfs 4.1: it has its space' test "$(stat -c %b /srv/exp/older/sparse)" -ge 8192
  pass 'nfs 4.1: delete' spindle vol-delete whole --pool nfs41
  pass 'nfs 4.1: delete the other' spindle vol-delete sparse --pool nfs41
  pass 'nfs 4.1: destroy' spindle pool-destroy nfs41
  pass 'nfs 4.1: undefine' spindle pool-undefine nfs41
  rmdir /srv/exp/older
  rpc.nfsd 0
  refuse 'nfs: the server is gone' POOL_GONE within 60 spindle vol-list nfs
  refuse 'nfs: told by refresh, which stops the pool' POOL_GONE within 60 spindle pool-refresh nfs
  pass 'nfs: inactive' says '^State: *inactive' spindle pool-info nfs
  rpc.nfsd -G 10 -L 10 2
  echo Y >/proc/fs/nfsd/v4_end_grace
  pass 'nfs: start when it is back' spindle pool-start nfs
  pass 'nfs: volumes are there' says ' disk.qcow2 ' spindle vol-list nfs
  pass 'nfs: destroy' spindle pool-destroy nfs
  pass 'nfs: unmounted' test "$(grep -c /mnt/nfs /proc/mounts)" = 0
}

iscsi_pool() {
  pass 'iscsi: targets are found' says 'iqn.2024-01.lab:t1' spindle find-storage-pool-sources-as iscsi 127.0.0.1
  pass 'iscsi: define' spindle pool-define-as san iscsi --source-host 127.0.0.1 --source-dev iqn.2024-01.lab:t1 --target /dev/disk/by-path --auth-type chap --auth-username joe --secret-usage lab
  refuse 'iscsi: no secret' BAD_SECRET spindle pool-start san
  mkdir -p "$SPINDLE_POOLS/secrets"
  (umask 077; echo wrongwrong1234 >"$SPINDLE_POOLS/secrets/lab")
  refuse 'iscsi: a wrong secret' TOOL_FAILED spindle pool-start san
  (umask 077; echo secretsecret12 >"$SPINDLE_POOLS/secrets/lab")
  pass 'iscsi: start' spindle pool-start san
  pass 'iscsi: the LUN by a name that stays' says 'unit:0:0:1 .*/dev/disk/by-path/ip-127.0.0.1:3260-iscsi-iqn.2024-01.lab:t1-lun-1' spindle vol-list san
  pass 'iscsi: its capacity' says '^Capacity: *32.00 MiB' spindle vol-info unit:0:0:1 --pool san
  fill /tmp/lun 32M
  pass 'iscsi: upload' spindle vol-upload unit:0:0:1 /tmp/lun --pool san
  pass 'iscsi: the target has it' cmp /tmp/lun /tmp/lun1
  pass 'iscsi: download' spindle vol-download unit:0:0:1 /tmp/back --pool san
  pass 'iscsi: what came back is equal' cmp /tmp/lun /tmp/back
  pass 'iscsi: wipe' spindle vol-wipe unit:0:0:1 --pool san
  pass 'iscsi: wiped' cmp -n 33554432 /dev/zero /tmp/lun1
  refuse 'iscsi: the server makes volumes' UNSUPPORTED spindle vol-create-as san x 1M
  refuse 'iscsi: and resizes them' UNSUPPORTED spindle vol-resize unit:0:0:1 64M --pool san
  truncate -s 16M /tmp/lun2
  tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 2 -b /tmp/lun2
  pass 'iscsi: refresh' spindle pool-refresh san
  pass 'iscsi: the new LUN is there' says 'unit:0:0:2' spindle vol-list san
  tgtadm --lld iscsi --op delete --mode logicalunit --tid 1 --lun 2
  fill /tmp/lun 16M
  refuse 'iscsi: a LUN that is gone' IO within 60 spindle vol-upload unit:0:0:2 /tmp/lun --pool san
  pass 'iscsi: the pool can be looked at' within 60 spindle pool-info san
  pass 'iscsi: and listed' says 'unit:0:0:1' within 60 spindle vol-list san
  pass 'iscsi: it is active' says '^san$' spindle pool-list --name
  pass 'iscsi: the other LUN is written' within 60 spindle vol-upload unit:0:0:1 /tmp/lun --pool san
  pass 'iscsi: whole' cmp -n 16777216 /tmp/lun /tmp/lun1
  pass 'iscsi: refresh without it' within 60 spindle pool-refresh san
  pass 'iscsi: destroy' spindle pool-destroy san
  pass 'iscsi: logged out' test "$(iscsiadm --mode session 2>&1 | grep -c t1)" = 0
  refuse 'iscsi: no volumes then' POOL_INACTIVE spindle vol-list san
  pass 'iscsi: undefine' spindle pool-undefine san
}

first_boot() {
  mkdir -p "$SPINDLE_POOLS"
  lvm_pool
  lvm_faults
  fs_pool
  export_nfs
  nfs_pool
  serve_iscsi
  iscsi_pool
  # Both are active when the power goes.
  pass 'start for the reboot' spindle pool-start nfs
  sync
}

second_boot() {
  cp -a /run/job/keep "$SPINDLE_POOLS"
  pass 'boot: what was active is not' test -z "$(spindle pool-list -q)"
  pass 'boot: though its state is still there' test -s "$SPINDLE_POOLS/run/lv.xml"
  export_nfs
  pass 'boot: autostart' says 'Pools started: lv, nfs' spindle pool-start --autostarted
  pass 'boot: both are active' test "$(spindle pool-list --name | grep -c -e lv -e nfs)" = 2
  pass 'boot: data is there' test "$(sha256sum </dev/vg0/lin)" = "$(cat "$SPINDLE_POOLS/lin.sum")"
  pass 'boot: again, nothing to do' spindle pool-start --autostarted
  pass 'boot: stop' spindle pool-destroy lv
  pass 'boot: delete' spindle pool-delete lv
  pass 'boot: no group is left' test -z "$(vgs --noheadings 2>/dev/null)"
  pass 'boot: undefine' spindle pool-undefine lv
  pass 'boot: stop nfs' spindle pool-destroy nfs
  pass 'boot: delete nfs' spindle pool-delete nfs
  pass 'boot: its directory is gone' test ! -e /mnt/nfs
}

if [ "$(cat boot)" = 1 ]; then first_boot; else second_boot; fi
echo "1..$count"
exit $failed
