"""What kits on disks and in loop files need: LVM, the tools of thin pools, the kernel's target; and the host's LVM settings, of
which some are believed to matter here and do not. Kits in folders need none of it, so nothing here fails."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import PocketcloudError
from pocketcloud.host.files import text
from pocketcloud.model.judgement import State

_GROUP = "lvm"
_WHY = "Kits on disks and in loop files are LVM thin pools; kits in folders do without."
# `--devices` and autoactivation per volume group came then (WHATS_NEW of lvm2).
_OLDEST = (2, 3, 12)
_TIMEOUT = 10.0
# thin_dump's --skip-mappings, with which pools are looked into (git history of thin-provisioning-tools: 0.7.0).
_OLDEST_THIN = (0, 7, 0)
_DEVICES_FILE = "etc/lvm/devices/system.devices"
_SETTINGS = ("devices/use_devicesfile", "devices/issue_discards", "activation/thin_pool_autoextend_threshold", "devices/scan_lvs")


def judge(here: Surroundings) -> Iterator[Check]:
    """LVM and its version, the thin tools, dm-thin, and what the host's lvm.conf says of four things."""
    yield _lvm(here)
    yield _thin_tools(here)
    yield _target(here)
    yield from _settings(here)


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
    found = re.search(r"LVM version:\s*(\d{1,9})\.(\d{1,9})\.(\d{1,9})", _said(here, "lvm", "version"))
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
    lacking = [
        tool for tool in ("thin_check", "thin_dump", "thin_ls", "thin_metadata_size", "thin_repair") if here.find(tool) is None
    ]
    if lacking:
        evidence = f"not installed: {', '.join(lacking)}"
        fix = here.installing("thin-tools")
        return Check("thin-tools", _GROUP, State.WARN, evidence, why, here.install("thin-tools"), fix)
    said = _said(here, "thin_check", "-V")
    found = re.search(r"\d{1,9}(?:\.\d{1,9})+", said)
    if found is None:
        return Check("thin-tools", _GROUP, State.UNKNOWN, "`thin_check -V` tells no version", why, ("thin_check -V",))
    if tuple(map(int, found[0].split("."))) < _OLDEST_THIN:
        oldest = ".".join(map(str, _OLDEST_THIN))
        evidence = f"thin-provisioning-tools {found[0]}; {oldest} is the oldest whose thin_dump can leave the mappings out"
        return Check("thin-tools", _GROUP, State.WARN, evidence, why, ("Use a newer release of the distribution",))
    return Check("thin-tools", _GROUP, State.OK, f"thin-provisioning-tools {found[0]}", why)


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


def _settings(here: Surroundings) -> Iterator[Check]:
    """The host's lvm.conf, which is not ours: each of our commands brings the settings that it needs (storage/lvm.py)."""
    ids = ("lvm-devices-file", "lvm-discards", "lvm-autoextend", "lvm-scan")
    why = "The host's LVM settings are for its own volumes; what is believed of them is seldom true of kits."
    if here.find("lvmconfig") is None:
        yield from (Check(name, _GROUP, State.NOT_APPLICABLE, "lvmconfig is not installed", why) for name in ids)
        return
    said = _said(here, "lvmconfig", "--typeconfig", "full", *_SETTINGS)
    values = dict(re.findall(r"^(\w+)=(\d{1,9})$", said, re.MULTILINE))
    ask = ("lvmconfig --typeconfig full",)
    for name, setting, judged in zip(ids, _SETTINGS, (_devices_file, _discards, _autoextend, _scan), strict=True):
        value = values.get(setting.rpartition("/")[2])
        if value is None:
            yield Check(name, _GROUP, State.UNKNOWN, f"lvmconfig does not tell {setting}", why, ask)
        else:
            yield judged(here, int(value))


def _devices_file(here: Surroundings, value: int) -> Check:
    """lvmdevices(8): with the file, commands see only the devices in it; `--devices` goes before it."""
    why = "With a devices file (Fedora and EL have one) LVM does not see disks that were plugged in since, and says nothing."
    listed = text(here.root, _DEVICES_FILE)
    if not value or not listed:
        return Check(
            "lvm-devices-file", _GROUP, State.OK, f"not used (use_devicesfile {value}, {'no' if not listed else 'a'} file)", why
        )
    number = sum(row.startswith("IDTYPE=") for row in listed.splitlines())
    evidence = (
        f"used, with {number} devices; kits need not be among them: our commands name their device, as `pvs --devices DISK` does"
    )
    return Check("lvm-devices-file", _GROUP, State.OK, evidence, why)


def _discards(_here: Surroundings, value: int) -> Check:
    """lvm.conf(5), issue_discards: about space of physical volumes that a linear volume leaves; a thin pool has `--discards`."""
    why = "It is often switched on for SSDs, and says nothing of thin volumes: their discards go through the pool."
    evidence = f"issue_discards is {value}: that is about removed linear volumes; a kit's pool passes discards on by itself"
    return Check("lvm-discards", _GROUP, State.OK, evidence, why)


def _autoextend(_here: Surroundings, value: int) -> Check:
    why = "A pool that runs full stops its machines; who relies on LVM to make it larger finds out then."
    how = "off" if value >= 100 else f"from {value} % on"
    evidence = f"autoextend is {how}; a kit's pool has its whole disk from the start, and pocketcloud warns before it is full"
    return Check("lvm-autoextend", _GROUP, State.OK, evidence, why)


def _scan(_here: Surroundings, value: int) -> Check:
    """lvm.conf(5), scan_lvs: whether LVM looks for physical volumes inside of logical ones."""
    why = "A machine's disk is a volume of the kit; where LVM looks into it, the machine's own volume groups turn up on the host."
    if not value:
        return Check("lvm-scan", _GROUP, State.OK, "scan_lvs is 0: LVM does not look inside of machines' disks", why)
    remedy = ("Set scan_lvs = 0 in the section devices of /etc/lvm/lvm.conf, unless volume groups are stacked here",)
    return Check("lvm-scan", _GROUP, State.WARN, "scan_lvs is 1: LVM looks inside of machines' disks", why, remedy)
