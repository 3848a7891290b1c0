"""The programs that labs and bases are made with: is each there, in which version, and what installs it here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.check.fixes import Action, Command, lines
from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import PocketcloudError
from pocketcloud.host.packages import Family, capabilities, family
from pocketcloud.model.base import Arch
from pocketcloud.model.judgement import State

_GROUP = "tools"
_FIRMWARE_FOLDERS = ("etc/qemu/firmware", "usr/share/qemu/firmware")
# Firmware features can be switched off by name from this one on (libvirt's formatdomain, <firmware>).
_OLDEST_LIBVIRT = (8, 6, 0)
_LIBVIRT_WHY = "libvirt defines, starts and saves the machines and their networks."


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: any of `commands` will do; `capability` is its row in packages.tsv; `absent` is how bad it is without it;
    `version` the option that makes it say its version (empty: not asked, for those that have none or are slow)."""

    commands: tuple[str, ...]
    capability: str
    absent: State
    version: str = ""


# Bases can come ready with a kit, so what only builds them is a warning.
_TOOLS = (
    Tool(("qemu-img",), "qemu-img", State.FAIL, "--version"),
    Tool(("dnsmasq",), "dnsmasq", State.FAIL, "--version"),
    Tool(("nft", "iptables"), "firewall", State.FAIL, "--version"),
    Tool(("ip",), "iproute2", State.WARN, "-V"),
    Tool(("ssh",), "ssh-client", State.WARN, "-V"),
    Tool(("virsh",), "libvirt-client", State.WARN),
    Tool(("mmdebstrap",), "bootstrap", State.WARN, "--version"),
    Tool(("sfdisk",), "fdisk", State.WARN, "--version"),
    Tool(("mke2fs",), "e2fsprogs", State.WARN, "-V"),
    Tool(("mkfs.vfat",), "dosfstools", State.WARN),
    Tool(("mcopy",), "mtools", State.WARN, "--version"),
)


def judge(here: Surroundings) -> Iterator[Check]:
    """libvirt, the emulator, its firmware, and the table above."""
    yield _libvirt(here)
    yield _emulator(here)
    yield _firmware(here)
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
    return Check(name, _GROUP, State.OK, _said(here, path, tool.version), _why(tool.capability))


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


# -- libvirt ----------------------------------------------------------------------------------------------------------


def _libvirt(here: Surroundings) -> Check:
    facts, failure = here.daemon.facts, here.daemon.failure
    if facts is not None:
        evidence = f"{facts.uri} answers: libvirt {facts.libvirt}, QEMU {facts.qemu}"
        numbers = tuple(int(part) for part in facts.libvirt.split(".") if part.isdigit())
        if numbers < _OLDEST_LIBVIRT:
            oldest = ".".join(str(number) for number in _OLDEST_LIBVIRT)
            evidence = f"{evidence}; {oldest} is the oldest that can be told which firmware is meant"
            return Check("libvirt", _GROUP, State.FAIL, evidence, _LIBVIRT_WHY, ("Use a newer release of the distribution",))
        return Check("libvirt", _GROUP, State.OK, evidence, _LIBVIRT_WHY)
    evidence = failure.message if failure else "no answer"
    if here.daemon.silent:
        restart = "systemctl restart libvirtd" if here.facts.systemd else "Restart libvirtd"
        return Check("libvirt", _GROUP, State.UNKNOWN, evidence, _LIBVIRT_WHY, (restart,))
    if not any(here.find(daemon) for daemon in ("libvirtd", "virtqemud")):
        evidence = f"neither libvirtd nor virtqemud is installed ({evidence})"
        installing = here.installing("libvirt")
        fix = (*installing, *_start(here)) if installing else ()
        remedy = (*here.install("libvirt"), *lines(_start(here)))
        return Check("libvirt", _GROUP, State.FAIL, evidence, _LIBVIRT_WHY, remedy, fix)
    hint = (f"{failure.hint[0].upper()}{failure.hint[1:]}",) if failure and failure.hint else ()
    return Check("libvirt", _GROUP, State.FAIL, evidence, _LIBVIRT_WHY, (*lines(_start(here)), *hint), _start(here))


def _start(here: Surroundings) -> tuple[Action, ...]:
    """The commands that start libvirt's daemon. Fedora and EL split it into one per task; Debian and Ubuntu have one."""
    modular = family(here.facts.distribution) in (Family.FEDORA, Family.EL)
    if here.facts.systemd:
        units = ("virtqemud.socket", "virtnetworkd.socket", "virtlogd.socket") if modular else ("libvirtd",)
        return (Command(("systemctl", "enable", "--now", *units)),)
    daemons = ("virtlogd", *(("virtnetworkd", "virtqemud") if modular else ("libvirtd",)))
    return tuple(Command((daemon, "-d")) for daemon in daemons)


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
    return Check("qemu", _GROUP, State.OK, _said(here, path, "--version"), _why("qemu"))


def _firmware(here: Surroundings) -> Check:
    why = _why("firmware")
    arch = here.facts.arch
    if arch is None:
        return Check("firmware", _GROUP, State.NOT_APPLICABLE, f"none is known for {here.facts.machine}", why)
    found = sorted(file for file in _descriptors(here.root) if _fits(file, arch, here.root))
    if not found:
        folders = " or ".join(f"/{folder}" for folder in _FIRMWARE_FOLDERS)
        evidence = f"no UEFI firmware for {arch} is described in {folders} and there"
        return Check("firmware", _GROUP, State.FAIL, evidence, why, here.install("firmware"), here.installing("firmware"))
    names = ", ".join(file.stem for file in found)
    return Check("firmware", _GROUP, State.OK, f"UEFI firmware for {arch}: {names}", why)


def _descriptors(root: Path) -> Iterator[Path]:
    for folder in _FIRMWARE_FOLDERS:
        yield from (root / folder).glob("*.json")


def _fits(descriptor: Path, arch: Arch, root: Path) -> bool:
    """Whether a descriptor (QEMU's docs/interop/firmware.json) names UEFI firmware for `arch` whose file is there: Debian 12
    describes one for aarch64 that its package does not hold."""
    try:
        said = json.loads(descriptor.read_text(encoding="utf-8"))
        uefi = "uefi" in said["interface-types"]
        targets = {target["architecture"] for target in said["targets"]}
        mapping = said["mapping"]
        file = mapping["executable"]["filename"] if mapping["device"] == "flash" else mapping["filename"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return uefi and arch in targets and (root / str(file).lstrip("/")).is_file()
