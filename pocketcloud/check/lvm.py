"""What kits on disks and in loop files need: LVM, the tools of thin pools, the kernel's target; and the host's LVM settings, of
which some are believed to matter here and do not. Kits in folders need none of it, so nothing here fails."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import PocketcloudError
from pocketcloud.model.judgement import State

_GROUP = "lvm"
_WHY = "Kits on disks and in loop files are LVM thin pools; kits in folders do without."
# `--devices` and autoactivation per volume group came then (WHATS_NEW of lvm2).
_OLDEST = (2, 3, 12)
_TIMEOUT = 10.0
_SETTINGS = {
    "use_devicesfile": "the devices file is {}: every LVM command of ours names its device, so it does not matter",
    "issue_discards": "issue_discards is {}: it is about lvremove of linear volumes; a thin pool passes discards on by itself",
    "thin_pool_autoextend_threshold": "autoextend at {} %: a kit's pool fills its disk from the start, so nothing is left",
    "scan_lvs": "scan_lvs is {}: where it is 1, LVM looks for volume groups inside of guests' disks; ours are told not to",
}
_SECTIONS = {"thin_pool_autoextend_threshold": "activation"}


def judge(here: Surroundings) -> Iterator[Check]:
    """LVM and its version, the thin tools, dm-thin, and what the host's lvm.conf says."""
    yield _lvm(here)
    yield _thin_tools(here)
    yield _target(here)
    yield _settings(here)


def _said(here: Surroundings, *words: str) -> str:
    """What a tool says; empty where it does not answer."""
    try:
        done = here.run(words, codes=range(256), timeout=_TIMEOUT, env={"LVM_SUPPRESS_FD_WARNINGS": "1"})
    except PocketcloudError:
        return ""
    return done.out + done.err


def _lvm(here: Surroundings) -> Check:
    if here.find("lvm") is None:
        return Check("lvm2", _GROUP, State.WARN, "lvm is not installed", _WHY, here.install("lvm"), here.installing("lvm"))
    found = re.search(r"LVM version:\s*(\d+)\.(\d+)\.(\d+)", _said(here, "lvm", "version"))
    if found is None:
        return Check("lvm2", _GROUP, State.UNKNOWN, "`lvm version` tells no version", _WHY, ("lvm version",))
    number = tuple(map(int, found.groups()))
    if number < _OLDEST:
        oldest = f"{_OLDEST[0]}.{_OLDEST[1]:02}.{_OLDEST[2]}"
        evidence = f"lvm2 {found[0].split()[-1]}; {oldest} is the oldest that can be kept to one device"
        return Check("lvm2", _GROUP, State.WARN, evidence, _WHY, ("Use a newer release of the distribution",))
    return Check("lvm2", _GROUP, State.OK, f"lvm2 {found[0].split()[-1]}", _WHY)


def _thin_tools(here: Surroundings) -> Check:
    why = "LVM activates no thin pool that thin_check has not looked at, and a full pool is counted and repaired with its kin."
    lacking = [tool for tool in ("thin_check", "thin_dump", "thin_ls", "thin_repair") if here.find(tool) is None]
    if lacking:
        evidence = f"not installed: {', '.join(lacking)}"
        fix = here.installing("thin-tools")
        return Check("thin-tools", _GROUP, State.WARN, evidence, why, here.install("thin-tools"), fix)
    lines = _said(here, "thin_check", "-V").split()
    return Check("thin-tools", _GROUP, State.OK, f"thin-provisioning-tools {lines[0] if lines else '(no version told)'}", why)


def _target(here: Surroundings) -> Check:
    why = "The kernel's device-mapper target `thin-pool` is what a kit on a disk is attached with."
    if (here.root / "sys/module/dm_thin_pool").is_dir():
        return Check("dm-thin", _GROUP, State.OK, "the module dm_thin_pool is loaded", why)
    if here.find("modprobe") is None:
        return Check("dm-thin", _GROUP, State.UNKNOWN, "dm_thin_pool is not loaded, and there is no modprobe", why)
    try:
        code = here.run(["modprobe", "--dry-run", "dm-thin-pool"], codes=range(256), timeout=_TIMEOUT).code
    except PocketcloudError:
        code = 1
    if code == 0:
        return Check("dm-thin", _GROUP, State.OK, f"Linux {here.facts.kernel} has the module dm-thin-pool", why)
    evidence = f"Linux {here.facts.kernel} has no module dm-thin-pool: kits on disks cannot be attached here, kits in folders can"
    return Check(
        "dm-thin", _GROUP, State.WARN, evidence, why, ("Use the distribution's own kernel, and its package of all modules",)
    )


def _settings(here: Surroundings) -> Check:
    why = "The host's lvm.conf is not ours: each of our commands brings the settings that it needs."
    if here.find("lvmconfig") is None:
        return Check("lvm-settings", _GROUP, State.NOT_APPLICABLE, "lvmconfig is not installed", why)
    names = [f"{_SECTIONS.get(name, 'devices')}/{name}" for name in _SETTINGS]
    values = dict(re.findall(r"^(\w+)=(\S+)$", _said(here, "lvmconfig", "--typeconfig", "full", *names), re.MULTILINE))
    told = [text.format(values[name]) for name, text in _SETTINGS.items() if name in values]
    if not told:
        return Check("lvm-settings", _GROUP, State.UNKNOWN, "lvmconfig tells no settings", why, ("lvmconfig --typeconfig full",))
    return Check("lvm-settings", _GROUP, State.OK, "; ".join(told), why)
