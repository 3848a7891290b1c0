#!/bin/sh
# Runs as root in a throw-away guest, from its seed's disc: packages, patches and steps of a definition, then seal.sh, then the
# report, then off. Beside it lie `build` (what a success is reported with), `packages` and what packages.sh reads besides,
# `patch-N`, `post-N`.
set -u
here=$(dirname "$0")
exec </dev/null >/dev/console 2>&1

# udev gives the port its name a moment after the kernel has it.
port=/dev/virtio-ports/org.pocketcloud.install.0
tries=0
while [ ! -e "$port" ] && [ "$tries" -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done

number=0
total=$(find "$here" \( -name packages -o -name 'patch-*' -o -name 'post-*' \) -type f | wc -l)
step=''
begin() {
  step=$1 number=$((number + 1))
  echo "pocketcloud: $number/$((total + 1)) $step"
}
failed() {
  echo "pocketcloud: $step failed"
  sleep 1 # so that what it said is out before the report is read
  echo "FAIL $step" >"$port"
  sync
  poweroff -f
  exit 1
}

apply_patch() {
  command -v patch >/dev/null || { echo "patch is not in this system: add it to \`packages:\`"; return 1; }
  # All of it or nothing.
  patch -d / -p1 --forward --batch --dry-run -i "$1" && patch -d / -p1 --forward --batch --no-backup-if-mismatch -i "$1"
}

if [ -e "$here/packages" ]; then
  begin packages
  sh "$here/packages.sh" || failed
fi
for file in "$here"/patch-*; do
  [ -e "$file" ] || continue
  begin "patch ${file##*-}"
  apply_patch "$file" || failed
done
for file in "$here"/post-*; do
  [ -e "$file" ] || continue
  begin "post ${file##*-}"
  (cd / && exec sh -e "$file") || failed
done
# For those who compare: no reason to fail.
used=$(df -P -k / /boot 2>/dev/null | sort -u | awk '$2 ~ /^[0-9]/ { sum += $3 } END { printf "%.0f", sum * 1024 }') &&
  echo "USED $used" >"$port"
begin sealing
sh -e "$here/seal.sh" || failed
# Files that are gone and still open would stay behind as orphans: whoever is left goes. We do not get the signal (kill(2)), and
# cloud-init's service lets its children be (KillMode=process).
sync
kill -s KILL -- -1
sleep 1
cat "$here/build" >"$port"
# Nothing may be written any more: a service's last word would be in every machine. `u` makes all file systems read-only, clean,
# in its own time.
sync
echo u >/proc/sysrq-trigger
tries=0
while grep -Eq '^/dev/[^ ]+ [^ ]+ [^ ]+ rw' /proc/mounts && [ "$tries" -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done
sleep 1
poweroff -f -f || echo o >/proc/sysrq-trigger
