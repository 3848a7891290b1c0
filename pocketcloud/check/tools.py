"""The programs that labs and bases are made with: is each there, in which version, and what installs it here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import PocketcloudError
from pocketcloud.host import firmware
from pocketcloud.host.packages import capabilities
from pocketcloud.model.judgement import State

_GROUP = "tools"
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})+")
_NEWER = ("Use a newer release of the distribution",)
# Machines have a balloon that gives free pages back (`free-page-reporting` of virtio-balloon, QEMU's ChangeLog 5.1).
_OLDEST_QEMU = (5, 1)


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: any of `commands` will do; `capability` is its row in packages.tsv; `absent` is how bad it is without it;
    `version` the option that makes it say its version (empty: not asked, for those that have none or are slow); `oldest` the
    first version that does (empty: all do), `what` goes on from "is the first" and says why."""

    commands: tuple[str, ...]
    capability: str
    absent: State
    version: str = ""
    oldest: tuple[int, ...] = ()
    what: str = ""


# Bases can come ready with a kit, so what only builds them is a warning. Sources of the oldest versions: QEMU's ChangeLog 5.0;
# libvirt's src/util/virdnsmasq.c (DNSMASQ_MIN_MAJOR, _MINOR); mmdebstrap's changelog; util-linux' v2.33-ReleaseNotes (setpriv
# comes with it, and lies beside sfdisk); e2fsprogs' RelNotes/v1.43. Tools without one do since before libvirt 8.6.
_TOOLS = (
    Tool(("qemu-img",), "qemu-img", State.FAIL, "--version", (5, 0), "with `convert --target-is-zero`, which fills thin volumes"),
    Tool(("dnsmasq",), "dnsmasq", State.FAIL, "--version", (2, 67), "that libvirt takes"),
    Tool(("nft", "iptables"), "firewall", State.FAIL, "--version"),
    Tool(("ip",), "iproute2", State.WARN, "-V"),
    Tool(("ssh",), "ssh-client", State.WARN, "-V"),
    Tool(("virsh",), "libvirt-client", State.WARN),
    Tool(("git",), "git", State.WARN, "--version"),
    Tool(
        ("mmdebstrap",), "bootstrap", State.WARN, "--version", (0, 7, 4), "with unshare mode for root, in which bases are built"
    ),
    Tool(
        ("sfdisk",), "fdisk", State.WARN, "--version", (2, 33), "with `setpriv --pdeathsig`, which ends a build with its parent"
    ),
    Tool(("mke2fs",), "e2fsprogs", State.WARN, "-V", (1, 43), "with `-d` and `offset`, which fill an image without mounting it"),
    Tool(("gpgv",), "signatures", State.WARN, "--version"),
    Tool(("mkfs.vfat",), "dosfstools", State.WARN),
    Tool(("mcopy",), "mtools", State.WARN, "--version"),
)


def judge(here: Surroundings) -> Iterator[Check]:
    """The emulator, its firmware, what seeds are written with, and the table above."""
    yield _emulator(here)
    yield _firmware(here)
    yield _seeds()
    for tool in _TOOLS:
        yield _present(here, tool)


def _why(capability: str) -> str:
    purpose = capabilities()[capability].needed_for
    return f"{purpose[0].upper()}{purpose[1:]}."


def _present(here: Surroundings, tool: Tool) -> Check:
    name = tool.commands[0]
    path = next((found for command in tool.commands if (found := here.find(command))), None)
    if path is None:
        evidence = f"{' or '.join(tool.commands)} is not installed"
        fix = here.installing(tool.capability)
        return Check(name, _GROUP, tool.absent, evidence, _why(tool.capability), here.install(tool.capability), fix)
    said = _said(here, path, tool.version)
    return _new_enough(name, said, tool.oldest, tool.what, tool.absent, _why(tool.capability))


def _said(here: Surroundings, path: Path, option: str) -> str:
    """The path of a tool and the first line it says to `option`; a tool that does not answer is still there."""
    if not option:
        return str(path)
    try:
        done = here.run([path, option], timeout=10)
    except PocketcloudError as failure:
        return f"{path}: {failure.message.splitlines()[0]}"
    lines = (done.out.strip() or done.err.strip()).splitlines()
    return f"{path}: {lines[0]}" if lines else str(path)


def _new_enough(name: str, said: str, oldest: tuple[int, ...], what: str, too_old: State, why: str) -> Check:
    """The judgement over what a tool said of its version."""
    if not oldest:
        return Check(name, _GROUP, State.OK, said, why)
    needed = f"{'.'.join(map(str, oldest))} is the first {what}"
    found = _NUMBER.search(said.partition(": ")[2])
    if found is None:
        return Check(name, _GROUP, State.UNKNOWN, f"{said}: it tells no version; {needed}", why)
    if tuple(map(int, found[0].split("."))) < oldest:
        return Check(name, _GROUP, too_old, f"{said}: {needed}", why, _NEWER)
    return Check(name, _GROUP, State.OK, said, why)


def _seeds() -> Check:
    """The disk that tells cloud-init in a machine who it is: no genisoimage, xorriso or cloud-localds has a part in it."""
    why = "Each machine finds its name, keys and addresses on a small disk at its first start."
    try:
        evidence = f"pocketcloud writes it by itself, with pycdlib {version('pycdlib')}; no tool of cloud-init's is needed here"
    except PackageNotFoundError:
        remedy = ("Install pocketcloud anew, with what it depends on",)
        return Check("cloud-init", _GROUP, State.FAIL, "Python's package pycdlib, which writes it, is not there", why, remedy)
    return Check("cloud-init", _GROUP, State.OK, evidence, why)


# -- QEMU and its firmware --------------------------------------------------------------------------------------------


def _emulator(here: Surroundings) -> Check:
    arch = here.facts.arch
    if arch is None:
        return Check("qemu", _GROUP, State.NOT_APPLICABLE, f"no emulator is known for {here.facts.machine}", _why("qemu"))
    name = f"qemu-system-{arch}"
    path = here.find(name)
    # EL has one emulator, outside of PATH, under a name without the architecture.
    if path is None and (kvm := here.root / "usr/libexec/qemu-kvm").is_file():
        path = kvm
    if path is None:
        fix = here.installing("qemu")
        return Check("qemu", _GROUP, State.FAIL, f"{name} is not installed", _why("qemu"), here.install("qemu"), fix)
    said = _said(here, path, "--version")
    return _new_enough("qemu", said, _OLDEST_QEMU, "with a balloon that gives free pages back", State.FAIL, _why("qemu"))


def _firmware(here: Surroundings) -> Check:
    why = _why("firmware")
    arch = here.facts.arch
    if arch is None:
        return Check("firmware", _GROUP, State.NOT_APPLICABLE, f"none is known for {here.facts.machine}", why)
    found = firmware.described(here.root, arch)
    if not found:
        folders = " or ".join(f"/{folder}" for folder in firmware.FOLDERS)
        evidence = f"no UEFI firmware for {arch} is described in {folders} and there"
        return Check("firmware", _GROUP, State.FAIL, evidence, why, here.install("firmware"), here.installing("firmware"))
    return Check("firmware", _GROUP, State.OK, f"UEFI firmware for {arch}: {', '.join(found)}", why)
