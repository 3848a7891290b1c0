#!/bin/sh
# Runs inside the new system, in a user namespace, when all packages are there. Before it stand the values:
# ROOT_ID, ESP_ID (file systems), CONSOLE (ttyS0), KERNEL (more words for it, each after a space), SUITE, MIRROR, SECURITY (may be
# empty).
set -eu

cat > /etc/fstab <<END
UUID=$ROOT_ID / ext4 defaults,errors=remount-ro 0 0
UUID=$ESP_ID /boot/efi vfat umask=0077,noauto,x-systemd.automount 0 0
END
mkdir -p /boot/efi /boot/grub

# update-grub in the machine reads this; the first grub.cfg is made by hand, because grub-probe finds no device in here.
cat > /etc/default/grub.d/pocketcloud.cfg <<END
GRUB_TIMEOUT=0
GRUB_RECORDFAIL_TIMEOUT=0
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX="console=tty0 console=$CONSOLE,115200 net.ifnames=0$KERNEL"
GRUB_TERMINAL=console
GRUB_DISABLE_OS_PROBER=true
GRUB_DISABLE_RECOVERY=true
END
cat > /boot/grub/grub.cfg <<END
# Made with the base; update-grub replaces it.
set timeout=0
menuentry 'Debian GNU/Linux' {
    search --no-floppy --fs-uuid --set=root $ROOT_ID
    linux /vmlinuz root=UUID=$ROOT_ID ro console=tty0 console=$CONSOLE,115200 net.ifnames=0$KERNEL quiet
    initrd /initrd.img
}
END
# An upgraded boot loader must also go where firmware without boot entries looks.
echo "grub-efi-$(dpkg --print-architecture) grub2/force_efi_extra_removable boolean true" | debconf-set-selections

rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
cat > /etc/apt/sources.list.d/debian.sources <<END
Types: deb
URIs: $MIRROR
Suites: $SUITE $SUITE-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
if [ -n "$SECURITY" ]; then
    cat >> /etc/apt/sources.list.d/debian.sources <<END

Types: deb
URIs: $SECURITY
Suites: $SUITE-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
fi

echo 'LANG=C.UTF-8' > /etc/default/locale
printf '127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n' > /etc/hosts

systemctl enable systemd-networkd.service systemd-resolved.service ssh.service pocketcloud-online.service
systemctl mask systemd-networkd-wait-online.service
# A lab machine has better to do than to look for upgrades or to check what a reset brings back anyway.
systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service
# Before version 24.3 each stage of cloud-init is a process of its own, and Python's start is most of what it costs.
# The config stage has no modules left (90-pocketcloud.cfg). Later, one process runs all stages and waits for each.
if [ ! -e /lib/systemd/system/cloud-init-main.service ]; then
    systemctl mask cloud-config.service
fi
