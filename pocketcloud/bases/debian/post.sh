#!/bin/sh
# Runs the step of a definition's `post:` that lies in the file `step`, in the new system and in the user namespace: with /proc,
# /sys and the devices that programs expect, in mount and process namespaces of its own, so that nothing of it goes on.
set -eu

# Where no service manager runs, systemctl only writes links, and packages start nothing.
export SYSTEMD_OFFLINE=1 DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 HOME=/root
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset TMPDIR

mount --rbind /proc root/proc
mount --rbind /sys root/sys
mount -t tmpfs -o mode=755 tmpfs root/dev
for device in null zero full random urandom; do
    : > "root/dev/$device"
    mount --bind "/dev/$device" "root/dev/$device"
done
ln -s /proc/self/fd root/dev/fd
# Sealing puts back what it is.
rm -f root/etc/resolv.conf
cat /etc/resolv.conf > root/etc/resolv.conf

# From a file, so that the step can read its own input, and nobody reads it in a list of processes.
cp step root/.step
code=0
chroot root sh -eu /.step < /dev/null || code=$?
rm -f root/.step
exit "$code"
