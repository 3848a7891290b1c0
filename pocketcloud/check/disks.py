"""Disks that a kit could lie on: SSD or not, how quick, by which USB path, TRIM, write cache, sectors. Nothing is written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.check.judgement import Check, Surroundings
from pocketcloud.errors import PocketcloudError
from pocketcloud.model.disk import BlockDevice, BlockDevices, Measured
from pocketcloud.model.judgement import State
from pocketcloud.model.sizes import size_text
from pocketcloud.verdict import Remark, Topic, verdict

_GROUP = "storage"
_AT_MOST = 4
# The worst first: a check of several remarks is as bad as its worst.
_WORST = (State.FAIL, State.WARN, State.UNKNOWN, State.OK)
_NO_DISK = re.compile(r"(ram|zram|loop|nbd|fd|sr|md|dm-|mtdblock|rbd)\d*|mmcblk\d+(boot\d|rpmb)")


def judge(here: Surroundings) -> Iterator[Check]:
    """Each disk by topic, as `medium:sdb`; only those that were asked for, if any were."""
    why = "A kit lies on a disk, and a lab is as quick as that."
    try:
        devices = here.disks
    except PocketcloudError as failure:
        evidence = f"the disks cannot be listed: {failure.message.splitlines()[0]}"
        yield Check("disks", _GROUP, State.UNKNOWN, evidence, why, (_sentence(failure.hint),) if failure.hint else ())
        return
    disks = chosen(devices, here.devices)
    if not disks:
        asked = ", ".join(map(str, here.devices))
        evidence = f"{asked}: no such disk" if asked else "no disk is to be seen here"
        yield Check("disks", _GROUP, State.UNKNOWN, evidence, why, ("lsblk",))
    for number, disk in enumerate(disks):
        measured, why_not, instead = _measured(here, disk, number)
        yield from _of_disk(disk, verdict(disk, measured), why_not, instead, asked=bool(here.devices))


def _measured(here: Surroundings, disk: BlockDevice, number: int) -> tuple[Measured | None, str, str]:
    """What was measured of a disk, or why nothing was, and what would help."""
    if here.measure is None:
        return None, "--no-measure", ""
    if not here.devices and number >= _AT_MOST:
        return None, f"only {_AT_MOST} disks are measured unasked; --device {disk.path}", ""
    try:
        measured = here.measure(disk)
    except PocketcloudError as failure:
        return None, failure.message, failure.hint
    return measured, "" if measured else "it cannot be read past the kernel's cache", ""


def chosen(devices: BlockDevices, asked: tuple[Path, ...]) -> tuple[BlockDevice, ...]:
    """The disks that are meant, each once: those asked for by any of their names or partitions, else all that could carry a
    kit."""
    if asked:
        found = [device for path in asked if (device := devices.get(path)) is not None]
        return tuple({disk.name: disk for disk in map(devices.disk_of, found)}.values())
    return tuple(device for device in devices if device.kind == "disk" and device.size and not _NO_DISK.fullmatch(device.name))


def _of_disk(disk: BlockDevice, remarks: tuple[Remark, ...], not_measured: str, instead: str, *, asked: bool) -> Iterator[Check]:
    about = ", ".join(word for word in (disk.model, size_text(disk.size), disk.transport) if word)
    for topic in Topic:
        of_topic = [remark for remark in remarks if remark.topic is topic]
        if not of_topic:
            continue
        state = next(state for state in _WORST if any(remark.state is state for remark in of_topic))
        if state is State.FAIL and not asked:
            state = State.WARN  # labs may run on another disk
        evidence = f"{disk.path} ({about}): {'; '.join(remark.text for remark in of_topic)}"
        if topic is Topic.SPEED and not_measured:
            evidence += f" ({not_measured})"
        remedy = tuple(line for remark in of_topic if remark.state is not State.OK for line in remark.remedy)
        if topic is Topic.SPEED and instead:
            remedy = (_sentence(instead),)
        yield Check(f"{topic}:{disk.name}", _GROUP, state, evidence, topic.why, remedy)


def _sentence(hint: str) -> str:
    return f"{hint[0].upper()}{hint[1:]}"
