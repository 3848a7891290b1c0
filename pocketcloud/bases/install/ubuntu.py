"""Ubuntu's installer (subiquity) on its live server disc: its boot line, its words, and its kernel's place on the disc.

Outside facts: without the word `autoinstall` it asks before it touches a disk; after a failure it runs `error-commands`, prints
one line, and waits (subiquity's documentation, "Zero-touch deployment" and "Troubleshooting"; subiquity/client/client.py); its
events go to the consoles as `start: subiquity/...` and `finish: ...` (reporting, type print).
"""

from __future__ import annotations

from pocketcloud.bases.install.signs import KERNEL, Signs, any_of, stage

MEMORY = 3072
"""MiB. Its documentation's examples have 2048, with a disc of 2020."""
KERNEL_PATH, INITRD_PATH = "/casper/vmlinuz", "/casper/initrd"
LABEL = "CIDATA"

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


def words(console: str) -> str:
    """The kernel's words."""
    return f"autoinstall console=tty0 console={console}"
