#!/bin/sh
# Runs as root in a throw-away guest, after all else: takes away what must not be the same in two machines, and what only the
# build needed, then gives the disk back what is not used. What cloud-init wrote for this guest goes, too.
set -u

# Nobody is to write any more, nor to hold open what goes. Timers, sockets and paths first: they would start services again.
# What runs this (cloud-init) stays, and what systemctl itself speaks to. journald keeps what it still gets in memory.
journalctl --relinquish-var 2>/dev/null || :
if command -v systemctl >/dev/null; then
  for kind in timer,path,socket service; do
    units=$(systemctl list-units --plain --no-legend --type="$kind" --state=running,listening,waiting,elapsed | cut -d' ' -f1 |
      grep -Ev '^(cloud-|dbus|systemd-journald|user@|pocketcloud)' || :)
    # shellcheck disable=SC2086
    [ -z "$units" ] || timeout 120 systemctl stop $units 2>/dev/null || :
  done
fi

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
