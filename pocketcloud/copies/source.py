"""A kit as the source of copies: what its pool maps at one moment, and a handle to read its data by."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.kit import Kit
from pocketcloud.storage.devmapper import METADATA_BLOCK, node_name, pool_status
from pocketcloud.storage.lvm import LogicalVolume, Lvm, complaint
from pocketcloud.storage.lvm_copy import read_group
from pocketcloud.storage.lvm_text import Section
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.metadata_snapshot import metadata_snapshot
from pocketcloud.storage.thin_metadata import DumpReader, PoolMap
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, POOL
from pocketcloud.system import CommandFailed, Runner


@dataclass(frozen=True)
class Source:
    """A kit whose labs are down, at one moment: what its pool maps, LVM's text of its volume group, the metadata in use (bytes),
    the ids of volumes whose content is nothing (`empty`), and a handle of the pool's data, open with O_DIRECT."""

    kit: Kit
    pool: PoolMap
    group: Section
    used_metadata: int
    empty: frozenset[int]
    handle: int

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """What is to be read, in chunks, in the order of the disk."""
        return self.pool.allocated(self.empty)

    @property
    def bytes(self) -> int:
        """How much that is."""
        return sum(length for _, length in self.runs) * self.pool.chunk


@contextmanager
def source_of(kit: Kit, run: Runner) -> Iterator[Source]:
    """Take an attached kit on LVM as a source. The caller holds its labs and bases; `content` may be in use, and what is copied
    is what it held when this began. Raises NotFound, Refused if volumes are in use, NoSpace if the pool is too full."""
    lvm = Lvm(kit.devices, run)
    folder = kit.path / "volumes"
    store = ThinPool(kit.vg, kit.devices, folder, run)
    with store.content_of_now() as frozen:
        rows = lvm.volumes(kit.vg)
        _check_idle(kit, rows)
        status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
        if status is None:
            raise NotFound(f"the pool of kit {kit.name} is not active", hint="pocketcloud kit attach")
        pool = _map(kit, folder, run)
        with tempfile.TemporaryDirectory(prefix="pocketcloud-") as aside:
            group = read_group(lvm, kit.vg, Path(aside, "group"))
        numbers = {row.name: row.thin_id for row in rows if row.thin}
        unlisted = set(pool.devices) - set(numbers.values())
        if unlisted:
            raise Refused(
                f"the pool of kit {kit.name} has volumes that LVM does not know: {sorted(unlisted)[:5]}",
                hint="pocketcloud kit repair",
            )
        _leave_out(group, {row.name for row in rows if row.thin_id == frozen})
        pool = replace(pool, devices={number: device for number, device in pool.devices.items() if number != frozen})
        empty = frozenset(number for name, number in numbers.items() if name == BALLAST)
        handle = _opened(Path("/dev/mapper", node_name(kit.vg, f"{POOL}_tdata")))
        try:
            yield Source(kit, pool, group, status.metadata_used * METADATA_BLOCK, empty, handle)
        finally:
            os.close(handle)


def _check_idle(kit: Kit, rows: tuple[LogicalVolume, ...]) -> None:
    busy = [row.tagged("pc:name") or row.name for row in rows if row.thin and row.open and row.name not in (CONTENT, BALLAST)]
    if busy:
        raise Refused(
            f"volumes of kit {kit.name} are in use: {', '.join(sorted(busy)[:5])}",
            hint="stop what uses them: pocketcloud lab list shows the labs that are up, pocketcloud lab down LAB stops one",
        )


def _map(kit: Kit, folder: Path, run: Runner) -> PoolMap:
    reader = DumpReader()

    def feed(line: str) -> None:
        # What the tool complains of comes among it.
        if line.lstrip().startswith("<"):
            reader.feed(line.encode())

    with metadata_snapshot(kit.vg, run, folder) as metadata:
        try:
            run(["thin_dump", "--metadata-snap", metadata], on_line=feed)
        except CommandFailed as failed:
            raise Refused(
                f"what the pool of kit {kit.name} maps cannot be read: {complaint(failed)}", hint="pocketcloud kit repair"
            ) from failed
    return reader.end()


def _leave_out(group: Section, names: set[str]) -> None:
    volumes = group["logical_volumes"]
    if isinstance(volumes, dict):
        for name in names:
            volumes.pop(name, None)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(
            f"{path} cannot be read: {error.strerror}", hint="is the kit's disk still plugged in? dmesg says more"
        ) from error
