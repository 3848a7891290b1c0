#!/bin/sh
# Runs inside the new system, in a user namespace, last of all: takes away what must not be the same in two machines, and
# what only the build needed.
set -eu

: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
ln -s /etc/machine-id /var/lib/dbus/machine-id
rm -f /etc/hostname /etc/machine-info /etc/.pwd.lock
rm -f /etc/ssh/ssh_host_*
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -rf /var/lib/cloud /run/cloud-init
ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf

rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -rf /var/lib/apt/lists /var/cache/apt
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial
rm -f /var/cache/debconf/*-old /var/lib/dpkg/*-old

# Logs are gone; those that programs expect to find are empty.
find /var/log -type f \( -name btmp -o -name wtmp -o -name lastlog -o -name faillog \) -exec truncate -s 0 {} +
find /var/log -type f ! -name btmp ! -name wtmp ! -name lastlog ! -name faillog -delete
find /var/log/journal -mindepth 1 -delete 2>/dev/null || :
find /tmp /var/tmp /run -mindepth 1 -delete
rm -rf /root/.bash_history /root/.ssh /root/.cache
