"""Gives the disk of a kit back: the kit's marks are wiped from it, and where the kit had the whole disk, its partition table.

The same interlocks as for making one: what is in use cannot be chosen, the serial is typed back, the disk is held while it
is written and looked at once more just before. Only what LVM finds to be the very kit that was shown is wiped. Nothing is
removed from inside the kit first, so a damaged one can be erased too, and an interrupted run leaves a kit or none.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.errors import NotFound, Refused
from pocketcloud.host import kits as host
from pocketcloud.host.disks import read_block_devices
from pocketcloud.kit.attached import Places, attached_kits
from pocketcloud.kit.device import put_down
from pocketcloud.kit.evidence import Target
from pocketcloud.kit.identity import KIT, kit_group, tag
from pocketcloud.kit.interlocks import check_target, claimed, contents, described
from pocketcloud.kit.plugged import PARTITION_NAME
from pocketcloud.kit.remains import clear
from pocketcloud.model.disk import BlockDevice, BlockDevices
from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.thin_volumes import NAME
from pocketcloud.system import Runner

_ANY = range(256)


@dataclass(frozen=True, slots=True)
class Erasure:
    """A kit that is to be erased, and what of: `carrier` is its physical volume, `whole` what is given back, the disk where
    the kit has it for itself, else the carrier; `kit_id` is checked again before the first write."""

    target: Target
    kit_id: str
    devices: BlockDevices
    whole: BlockDevice
    carrier: BlockDevice
    volumes: tuple[LogicalVolume, ...]
    kit_sources: tuple[str, ...]

    @property
    def file(self) -> Path | None:
        """The file of a kit in a file."""
        return Path(self.carrier.backing_file) if self.carrier.backing_file else None


def plan_erasure(target: Target, places: Places, run: Runner) -> Erasure:
    """What erasing the kit would do. A kit that was left active is made inactive for that, and what is left of an earlier
    plug of its disk taken down. Raises NotFound if it is not plugged in, Refused if it is attached or in use."""
    if target.device is None:
        raise NotFound(f"the disk of kit {target.name} is not plugged in", hint="plug it in, then run again")
    attached = attached_kits(places)
    if mine := next((kit for kit in attached if target.device in kit.devices), None):
        raise Refused(f"kit {mine.name} is attached", hint=f"pocketcloud kit detach {mine.name}")
    clear(target.uuid, target.device, target.name, run)
    lvm = Lvm([target.device], run)
    put_down(lvm, target.vg, places.mounts / target.name, run)
    devices = read_block_devices(run=run)
    carrier = devices.get(host.kernel_name(target.device))
    if carrier is None:
        raise NotFound(f"{target.device} is not there any more", hint="plug it in, then run again")
    return Erasure(
        target,
        tag(kit_group(lvm, target.device), KIT) or "",
        devices,
        _whole(devices, carrier, run),
        carrier,
        lvm.volumes(target.vg),
        tuple(str(device) for kit in attached for device in kit.devices),
    )


def _whole(devices: BlockDevices, carrier: BlockDevice, run: Runner) -> BlockDevice:
    """The disk, where the kit's partition is the only one and has the name that `kit init` gives it; else the carrier."""
    disk = devices.disk_of(carrier)
    if disk.name == carrier.name:
        return carrier
    table = run(["sfdisk", "--json", disk.path], codes=_ANY)
    names = [part.get("name") for part in json.loads(table.out)["partitiontable"]["partitions"]] if table.code == 0 else []
    return disk if names == [PARTITION_NAME] else carrier


def shown(erasure: Erasure) -> tuple[str, ...]:
    """What would be lost, and by which commands, a line each."""
    names = [name for row in erasure.volumes if (name := row.tagged(NAME))]
    bases = sorted(name.removeprefix("base.") for name in names if name.startswith("base."))
    labs = sorted({lab for row in erasure.volumes if (lab := row.tagged("pc:lab"))})
    lines = [
        f"kit {erasure.target.name} ({erasure.kit_id}) on {described(erasure.devices, erasure.whole)}",
        f"its bases: {', '.join(bases) or 'none'}",
        f"its labs: {', '.join(labs) or 'none'}",
        *contents(erasure.devices, erasure.whole),
    ]
    return (*lines, *(f"    {shlex.join(map(str, words))}" for words in _commands(erasure)))


def confirm(erasure: Erasure, erase_serial: str | None, ask_serial: Callable[[str], str] | None) -> None:
    """Have it confirmed, by the serial. Raises Refused or UsageError (see interlocks.check_target)."""
    check_target(
        erasure.devices,
        erasure.whole,
        erase_serial=erase_serial,
        ask_serial=ask_serial,
        kit_sources=erasure.kit_sources,
        ours=(erasure.carrier.name,),
        file=erasure.file,
    )


def erase(erasure: Erasure, run: Runner, *, discard: bool) -> tuple[str, ...]:
    """Erase a kit whose erasure was confirmed; notes for people. With `discard` the device is told that all of it is free,
    which a kit's file always is. Raises Refused if it is in use, or not the disk or the kit any more that was shown."""
    notes = []
    with claimed(erasure.whole, lambda: read_block_devices(run=run)):
        _check_same(erasure, run)
        for words in _commands(erasure):
            run(words)
        if discard or erasure.file:
            done = run(["blkdiscard", "--force", erasure.whole.path], codes=_ANY)
            if done.code:
                notes.append(f"{erasure.whole.path} does not take TRIM: {' '.join(done.err.split())}")
    if erasure.whole.name != erasure.carrier.name:
        run(["blockdev", "--rereadpt", erasure.whole.path], codes=_ANY)
    return tuple(notes)


def _commands(erasure: Erasure) -> list[list[str]]:
    # Forced, because wipefs is not alone on a disk that we hold ourselves. LVM's label and with it the kit go first.
    paths = dict.fromkeys([str(erasure.carrier.path), str(erasure.whole.path)])
    return [["wipefs", "--all", "--force", path] for path in paths]


def _check_same(erasure: Erasure, run: Runner) -> None:
    device = erasure.carrier.path
    group = kit_group(Lvm([device], run), device)
    if (group.uuid, tag(group, KIT) or "") != (erasure.target.uuid, erasure.kit_id):
        raise Refused(
            f"{device} does not hold the kit any more that was shown; nothing was changed",
            hint="run the command again and look at what it shows",
        )
