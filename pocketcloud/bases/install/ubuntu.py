"""Ubuntu's installer (subiquity) on its live server disc: its boot line, its words, and its kernel's place on the disc.

Outside facts: without the word `autoinstall` it asks before it touches a disk; after a failure it runs `error-commands`, prints
one line, and waits (subiquity's documentation, "Zero-touch deployment" and "Troubleshooting"; subiquity/client/client.py); its
events go to the consoles as `start: subiquity/...` and `finish: ...` (reporting, type print). It copies the system of the source
that the answer names from the disc, whose packages a list beside it names; kernel, boot loader, `packages:` and updates come from
the mirror (subiquity/server/controllers/install.py, curtin/commands/curthooks.py). It looks at mirrors only where there is a
default route (subiquity/server/controllers/network.py).
"""

from __future__ import annotations

import re

from pocketcloud.bases.install.signs import KERNEL, Signs, any_of, stage
from pocketcloud.model.base import Arch

MEMORY = 3072
"""MiB. Its documentation's examples have 2048, with a disc of 2020."""
KERNEL_PATH, INITRD_PATH = "/casper/vmlinuz", "/casper/initrd"
LABEL = "CIDATA"
MANIFEST_PATH = "/casper/ubuntu-server-minimal.manifest"
"""The list of packages of the system that the answer has copied from the disc."""

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+", re.ASCII)
_INSTALLS = ("linux-generic", "openssh-server", "unattended-upgrades", "efibootmgr", "e2fsprogs", "dosfstools", "shim-signed")
_BOOTED = {
    Arch.X86_64: ("grub-efi-amd64", "grub-efi-amd64-signed"),
    Arch.AARCH64: ("grub-efi-arm64", "grub-efi-arm64-signed"),
}

SIGNS = Signs(
    failures=any_of(
        (
            *KERNEL,
            r"An error occurred\. Press enter to start a shell",
            r"Continue with autoinstall\?",
            r"subiquity/Install/install: FAIL",
            r"Malformed autoinstall",
            r"Unable to find a medium containing a live file system",
        )
    ),
    stages=(
        stage(r"pocketcloud: (?P<what>.+)", "in the new system: {what}", 0.96),
        stage(r"subiquity/Shutdown", "the installer is done", 0.99),
        stage(r"subiquity/Late/", "running the last commands", 0.95),
        stage(r"run_unattended_upgrades", "installing the updates", 0.85),
        stage(r"postinstall/install_(?P<what>\S+)", "installing {what}", 0.75),
        stage(r"subiquity/Install/install/postinstall", "configuring the new system", 0.70),
        stage(r"curthooks", "installing kernel and boot loader", 0.55),
        stage(r"acquiring and extracting image|/extract", "unpacking the new system", 0.25),
        stage(r"subiquity/Install/install/.*partitioning", "partitioning the disk", 0.20),
        stage(r"subiquity/Install/install", "installing", 0.18),
        stage(r"start: subiquity/", "the installer starts", 0.12),
        stage(r"cloud-init.* running", "the installer's system starts", 0.08),
        stage(r"Linux version", "its kernel starts", 0.01),
    ),
)


def installs(arch: Arch) -> tuple[str, ...]:
    """The packages that the installer puts onto a disk of itself, whatever its answer says, beside those on its disc."""
    return (*_INSTALLS, *_BOOTED[arch])


def on_disc(manifest: str) -> tuple[str, ...]:
    """The names of the packages in such a list: a name, a tab and a version a line; `snap:NAME` is no package, and behind a colon
    stands an architecture."""
    names = (line.partition("\t")[0].partition(":")[0] for line in manifest.splitlines() if not line.startswith("snap:"))
    return tuple(dict.fromkeys(name for name in names if _NAME.fullmatch(name)))


def words(console: str) -> str:
    """The kernel's words."""
    return f"autoinstall console=tty0 console={console}"
