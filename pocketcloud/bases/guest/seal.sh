#!/bin/sh
# Runs as root in a throw-away guest, after all else: takes away what must not be the same in two machines, and what only the
# build needed, then gives the disk back what is not used. What cloud-init wrote for this guest goes, too.
set -u

# Who writes logs is to write no more. What journald still gets, it keeps in memory.
for service in rsyslog syslog auditd chronyd cron crond packagekit unattended-upgrades apt-daily.timer apt-daily-upgrade.timer; do
  systemctl stop "$service" 2>/dev/null || :
done
journalctl --relinquish-var 2>/dev/null || :

: >/etc/machine-id
if [ -f /var/lib/dbus/machine-id ] && [ ! -L /var/lib/dbus/machine-id ]; then
  ln -sf /etc/machine-id /var/lib/dbus/machine-id
fi
rm -f /etc/hostname /etc/machine-info /etc/.pwd.lock /etc/ssh/ssh_host_*
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /etc/udev/rules.d/70-persistent-* /etc/lvm/devices/system.devices
# A link leads to what the machine itself makes; a file is this guest's.
if [ -f /etc/resolv.conf ] && [ ! -L /etc/resolv.conf ]; then : >/etc/resolv.conf; fi

rm -rf /var/lib/cloud /run/cloud-init
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-*
rm -f /etc/NetworkManager/system-connections/* /etc/NetworkManager/conf.d/30-cloud-init-* /etc/sysconfig/network-scripts/ifcfg-e*
rm -f /etc/NetworkManager/conf.d/99-cloud-init.conf /etc/sudoers.d/90-cloud-init-users /etc/ssh/sshd_config.d/50-cloud-init.conf
rm -f /var/lib/NetworkManager/* /var/lib/dhcp/* /var/lib/dhclient/* 2>/dev/null || :

if command -v apt-get >/dev/null; then
  apt-get -q clean || :
  rm -rf /var/lib/apt/lists
  mkdir -p /var/lib/apt/lists/partial
  rm -f /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old
fi
if command -v dnf >/dev/null; then
  dnf -q clean all || :
  rm -rf /var/cache/dnf/* /var/cache/libdnf5/* /var/lib/dnf/history*
fi
if command -v subscription-manager >/dev/null; then
  subscription-manager unregister 2>/dev/null || :
  subscription-manager clean 2>/dev/null || :
fi
rm -f /root/anaconda-ks.cfg /root/original-ks.cfg
rm -rf /root/.bash_history /root/.ssh /root/.cache /var/log/anaconda

find /var/log -type f \( -name btmp -o -name wtmp -o -name lastlog -o -name faillog \) -exec truncate -s 0 {} +
find /var/log -type f ! -name btmp ! -name wtmp ! -name lastlog ! -name faillog -delete
find /var/log/journal -mindepth 1 -delete 2>/dev/null || :
find /tmp /var/tmp -xdev -mindepth 1 -delete 2>/dev/null || :

sync
# Not every file system can, and none has to.
fstrim --all --verbose || :
