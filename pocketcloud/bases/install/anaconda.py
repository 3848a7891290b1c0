"""Anaconda, the installer of Fedora and of Enterprise Linux: its boot line, its words, its kernel in a tree or on a disc.

Outside facts: options are those of Anaconda's docs/user-guide/boot-options.rst; `inst.notmux` makes the console plain lines, for
exactly this (anaconda issue 958); the failure texts are Anaconda's own and those that lorax (pylorax/monitor.py) and
kickstart-tests (functions.sh) have gathered; the stages are the texts of pyanaconda's tasks (installation_tasks.py).
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pocketcloud.bases.install.signs import KERNEL, Signs, any_of, stage

MEMORY_FETCHED, MEMORY_DISC = 4096, 2560
"""MiB for the machine: the installer's own system lies in its memory where it comes over the network (kickstart-tests: 3700), and
on its disc where there is one (2048)."""
ANSWER = "ks.cfg"
LABEL = "OEMDRV"
"""Anaconda takes /ks.cfg from a file system of this label by itself, if no `inst.ks` names another."""

_QUIET = (
    "inst.text inst.cmdline inst.notmux inst.noshell inst.nosave=all inst.geoloc=0 inst.lang=en_US.UTF-8"
    " rd.shell=0 rd.emergency=poweroff"
)
_FAILURES = (
    # lorax and kickstart-tests
    r"Traceback \(",
    r"traceback script\(s\) have been run",
    r"Out of memory:",
    r"Call Trace:",
    r"insufficient disk space:",
    r"Not enough disk space to download",
    r"crashed on signal",
    r"packaging: Missed: NoSuchPackage",
    r"packaging: Installation failed",
    r"This is a fatal error",
    r"Error in POSTIN scriptlet",
    r"Payload setup error:",
    r"Some packages, groups or modules are broken",
    r"Transaction check error:",
    r"The following problem occurred on line",
    r"storage configuration failed:",
    r"Not enough space in file systems",
    r"dumped core",
    # Anaconda without anybody to ask, and its first stage in the initramfs
    r"non-interactive cmdline mode",
    r"Running in cmdline mode, no interactive debugging allowed",
    r"The installer will now terminate",
    r"Error code -?\d+ running the kickstart script",
    r"Anaconda installer errors begin",
    r"Cannot enable the following services because they are not installed",
    r"Entering emergency mode",
)
_IGNORED = (r"CRIT systemd-coredump:", r"unknown configuration item", r"Deprecated Driver is detected")

SIGNS = Signs(
    failures=any_of((*KERNEL, *_FAILURES)),
    ignored=any_of(_IGNORED),
    log="org.fedoraproject.anaconda.log.0",
    stages=(
        stage(r"pocketcloud: (?P<what>.+)", "in the new system: {what}", 0.96),
        stage(r"Complete!|Installation complete", "the installer is done", 0.99),
        stage(r"Running post-installation scripts", "running the post-installation scripts", 0.95),
        stage(r"Storing configuration files and kickstarts", "storing configuration files", 0.93),
        stage(r"Generating initramfs", "generating the initramfs", 0.90),
        stage(r"Configuring installed system", "configuring the new system", 0.87),
        stage(r"Performing post-installation setup tasks", "post-installation setup", 0.84),
        stage(r"Installing boot loader", "installing the boot loader", 0.81),
        stage(r"Configuring (?P<what>\S+\.(?:x86_64|aarch64|noarch))", "configuring {what}", 0.78),
        stage(r"Installing (?P<what>\S+) \((?P<n>\d+)/(?P<of>\d+)\)", "installing {what} ({n}/{of})", 0.30, 0.75),
        stage(r"Downloading (?P<of>\d+) RPMs, .*\((?P<percent>\d+)%\)", "downloading {of} packages", 0.07, 0.30),
        stage(r"Starting package installation process", "preparing the packages", 0.06),
        stage(r"Starting automated install", "the installer reads its answers", 0.05),
        stage(r"[Aa]naconda .* started|Starting installer", "the installer starts", 0.04),
        stage(r"Welcome to |dracut", "the installer's system starts", 0.02),
        stage(r"Linux version", "its kernel starts", 0.01),
    ),
)


def words(console: str, *, tree: str, disc: str, answer: str, proxy: str = "") -> str:
    """The kernel's words. `tree`: the URL that the installer's own system comes from, by the `proxy` if there is one, else `disc`
    is the label of the disc it is on; `answer`: the path of the kickstart in the initramfs, empty: the disk OEMDRV has it."""
    said = [f"inst.ks=file:{answer}"] if answer else []
    if disc:
        said.append(f"inst.stage2=hd:LABEL={_escaped(disc)}")
    elif "@" not in urlsplit(tree).netloc:
        said.append(f"inst.stage2={tree}")
    if proxy:
        said.append(f"inst.proxy={proxy}")
    # An address with a password is left to the kickstart, which says it too: these words can be read by anybody (ps, virsh).
    return " ".join([*said, _QUIET, *([] if disc else ["ip=dhcp"]), f"console=tty0 console={console}"])


def _escaped(label: str) -> str:
    """As udev writes labels into /dev/disk/by-label: what is no letter, digit or one of a few marks as \\xNN."""
    return re.sub(r"[^A-Za-z0-9#+\-.:=@_]", lambda found: "".join(f"\\x{byte:02x}" for byte in found[0].encode()), label)
