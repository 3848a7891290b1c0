"""Debian's installer: its boot line, its words, and where its kernel comes from.

Outside facts: the preseed is taken from the initramfs' root by itself (installation guide, appendix B.2.1); a failure never
switches the machine off, but asks (the three texts of cdebconf's text frontend, seen in Debian 12); the mirror's folder is that
of the installation guide, 4.2; the list of its sums is itself in the suite's signed Release.
"""

from __future__ import annotations

import re
from pathlib import Path

from pocketcloud.bases.install.signs import KERNEL, Signs, any_of, stage
from pocketcloud.model.base import Arch

MEMORY = 1024
"""MiB: with 768 it asks whether to go on with so little."""
ANSWER = "preseed.cfg"
IMAGES = "main/installer-{arch}/current/images"
"""Where the installer's images are below a suite's folder, by Debian's name of the architecture."""
NETBOOT = "netboot/debian-installer/{arch}"
SUMS = "SHA256SUMS"
STARTED = ("linux", "initrd.gz")
"""What is started, in NETBOOT."""
_RELEASE_SUM = re.compile(r"^ ([0-9a-f]{64}) +\d+ (\S+)$", re.M)
_IMAGE_SUM = re.compile(r"^([0-9a-f]{64}) [ *](?:\./)?(\S+)$", re.M)
# What the installer's own steps put onto the disk, by apt-install or of themselves; found by reading them (Debian 12 and 13).
_INSTALLS = (
    "busybox", "ca-certificates", "console-setup", "dosfstools", "e2fsprogs", "eject", "grub-common", "initramfs-tools",
    "installation-report", "keyboard-configuration", "laptop-detect", "locales", "os-prober", "pciutils", "popularity-contest",
    "qemu-guest-agent", "shim-signed", "tasksel", "udev", "usbutils", "zstd",
)  # fmt: skip
_BOOTED = {
    Arch.X86_64: ("linux-image-amd64", "grub-efi-amd64", "grub-efi-amd64-signed", "grub-pc-bin"),
    Arch.AARCH64: ("linux-image-arm64", "grub-efi-arm64", "grub-efi-arm64-signed"),
}
_SCREEN = r"[ .]*\.\.\."

SIGNS = Signs(
    failures=any_of((*KERNEL, r"!! ERROR", r"\[Press enter to continue\]", r"Press enter to continue", r"Prompt: '\?' for help")),
    stages=(
        stage(r"pocketcloud: (?P<what>.+)", "in the new system: {what}", 0.96),
        stage(rf"Finishing the installation{_SCREEN}.*?(?P<percent>\d+)%\D*$", "finishing the installation", 0.93, 0.99),
        stage(r"Finishing the installation", "finishing the installation", 0.93),
        stage(r"(?:Installing|Running) .*(?:GRUB|grub)", "installing the boot loader", 0.90),
        stage(rf"Select and install software{_SCREEN}.*?(?P<percent>\d+)%\D*$", "installing the packages", 0.50, 0.90),
        stage(r"Select and install software", "installing the packages", 0.50),
        stage(r"Configuring apt", "configuring apt", 0.46),
        stage(rf"Installing the base system{_SCREEN}.*?(?P<percent>\d+)%\D*$", "installing the base system", 0.20, 0.46),
        stage(r"Installing the base system", "installing the base system", 0.20),
        stage(r"(?:Starting up the partitioner|Partitions formatting|Partition disks)", "partitioning the disk", 0.16),
        stage(r"Loading additional components", "loading the installer's components", 0.08, 0.15),
        stage(r"Detecting network hardware|Configuring the network", "configuring the network", 0.05),
        stage(r"Starting system log daemon|debian-installer", "the installer starts", 0.03),
        stage(r"Linux version", "its kernel starts", 0.01),
    ),
)


def words(console: str) -> str:
    """The kernel's words. What stands after `---` would be kept by the new system."""
    return f"auto=true priority=critical DEBIAN_FRONTEND=text console=tty0 console={console} ---"


def packaged(root: Path, version: str, arch: Arch) -> tuple[Path, Path] | None:
    """The kernel and initramfs of the package debian-installer-VERSION-netboot-ARCH on the host at `root`, None without it."""
    folder = root / f"usr/lib/debian-installer/images/{version}/{arch.debian}/text/debian-installer/{arch.debian}"
    kernel, initrd = folder / "linux", folder / "initrd.gz"
    return (kernel, initrd) if kernel.is_file() and initrd.is_file() else None


def installs(arch: Arch) -> tuple[str, ...]:
    """The packages that the installer puts onto a disk of itself, whatever its answer says, beside those that are `important`."""
    return (*_INSTALLS, *_BOOTED[arch])


def sums_in(release: bytes) -> dict[str, str]:
    """The SHA-256 sums (hex) that a release file names, by path below the suite's folder; signatures around it do not matter."""
    return {path: sha256 for sha256, path in _RELEASE_SUM.findall(release.decode(errors="replace"))}


def image_sums(listed: bytes) -> dict[str, str]:
    """The SHA-256 sums (hex) in the list of the installer's images, by path below IMAGES."""
    return {path: sha256 for sha256, path in _IMAGE_SUM.findall(listed.decode(errors="replace"))}
