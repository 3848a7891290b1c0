"""What copying a kit to disks would do to each: `kit clone --dry-run`. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.copies.clone import Wanted, note_on
from pocketcloud.copies.source import read_map
from pocketcloud.copies.target import sector_of
from pocketcloud.errors import NoSpace, NotFound
from pocketcloud.kit.interlocks import contents, described
from pocketcloud.model.kit import Kit
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import size_text
from pocketcloud.storage.devmapper import METADATA_BLOCK, node_name, pool_status
from pocketcloud.storage.lvm_copy import fitting_layout
from pocketcloud.storage.lvm_layout import Layout
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import Runner


@dataclass(frozen=True, slots=True)
class Planned:
    """What would become of a disk: the copy's name, what is `lost`, whether an unfinished copy is gone on with, how many bytes
    would be read of the kit and written at most, the layout of the kit to be, and what speaks against it (`fault`)."""

    kit: Name
    device: Path
    disk: str
    serial: str
    port: str
    lost: tuple[str, ...]
    resumed: bool
    bytes: int
    layout: Layout | None = None
    fault: str = ""


def planned(kit: Kit, wanted: Sequence[Wanted], run: Runner) -> tuple[Planned, ...]:
    """What copying an attached kit on LVM to disks would do, in their order. Raises NotFound if its pool is not active, Refused
    if that cannot be read."""
    status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
    if status is None:
        raise NotFound(f"the pool of kit {kit.name} is not active", hint="pocketcloud kit attach")
    pool = read_map(kit, run)
    used = sum(length for _, length in pool.allocated()) * pool.chunk
    found = []
    for each in wanted:
        devices, target = each.chosen.devices, each.chosen.target
        disk, note = devices.disk_of(target), note_on(each.chosen)
        resumed = note is not None and note.source == kit.id
        layout, fault = None, ""
        try:
            layout = fitting_layout(each.chosen.room, pool.chunk, status.metadata_used * METADATA_BLOCK, run)
            if used > layout.pool:
                fault = f"what is used, up to {size_text(used)}, may not fit: its pool would have {size_text(layout.pool)}"
        except NoSpace as error:
            fault = error.message
        if kit.manifest.sector_size and sector_of(target.path) != kit.manifest.sector_size:
            fault = f"it has sectors of {sector_of(target.path)} bytes, the kit is of {kit.manifest.sector_size}"
        lost = () if resumed else contents(devices, target)
        found.append(
            Planned(
                each.name, target.path, described(devices, target), disk.serial, disk.port, lost, resumed, used, layout, fault
            )
        )
    return tuple(found)
