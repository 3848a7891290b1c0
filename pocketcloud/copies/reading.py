"""A kit as the source of copies that are made volume by volume: what each has that its parent does not, and how that is read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from pocketcloud.copies.pieces import LARGEST
from pocketcloud.copies.source import check_idle, opened_data, read_map
from pocketcloud.errors import Refused
from pocketcloud.model.inventory import Volume
from pocketcloud.model.kit import Kit
from pocketcloud.storage import open_storage
from pocketcloud.storage.extents import Extent, of_image, of_thin
from pocketcloud.storage.image_locks import is_written
from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.thin_metadata import PoolMap
from pocketcloud.storage.thin_volumes import NAME, NEXT, volumes_in
from pocketcloud.storage.volume_data import opened
from pocketcloud.system import Runner


class Reading(Protocol):
    """A kit that is read, whichever store it has. Nobody writes to its volumes meanwhile."""

    @property
    def kit(self) -> Kit:
        """The kit."""
        ...

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """Its volumes, but for spare ones."""
        ...

    def extents(self, volume: Volume) -> list[Extent]:
        """What a volume has that its parent does not, in order. Raises Refused."""
        ...

    def pieces(self, volume: Volume, extents: Sequence[Extent]) -> Iterator[tuple[Extent, memoryview | None]]:
        """The content of extents, in order, in pieces of a few MiB; None for zeros. What was given is overwritten by the next.
        Raises Refused, OSError."""
        ...


@contextmanager
def reading_of(kit: Kit, run: Runner) -> Iterator[Reading]:
    """Read an attached kit whose labs are down. The caller holds its labs and bases. Raises Refused if a volume is in use, or
    if the pool cannot be read."""
    if not kit.vg:
        yield _Images(kit, run)
        return
    rows = Lvm(kit.devices, run).volumes(kit.vg)
    check_idle(kit, rows)
    pool = read_map(kit, run)
    handle = opened_data(kit)
    try:
        yield _Thin(kit, rows, pool, handle)
    finally:
        os.close(handle)


def levels(volumes: Sequence[Volume]) -> list[list[Volume]]:
    """Volumes by what they stand on: those on nothing, then those on these, and so on. Raises Refused if a parent is missing."""
    left = {volume.name: volume for volume in volumes}
    found: list[list[Volume]] = []
    done: set[str | None] = {None}
    while left:
        level = [volume for volume in left.values() if volume.parent in done]
        if not level:
            orphan = next(iter(left.values()))
            raise Refused(
                f"volume {orphan.name} stands on {orphan.parent}, which is not there",
                hint="remove what needs it, or repair the kit",
            )
        found.append(level)
        done |= {volume.name for volume in level}
        left = {name: volume for name, volume in left.items() if name not in done}
    return found


def cut(extents: Sequence[Extent]) -> Iterator[Extent]:
    """Extents in pieces that fit into a buffer."""
    for extent in extents:
        for step in range(0, extent.length, LARGEST):
            length = min(LARGEST, extent.length - step)
            yield Extent(extent.begin + step, length, extent.zero, extent.at + step)


class _Images:
    """A kit in a folder."""

    def __init__(self, kit: Kit, run: Runner) -> None:
        self.kit = kit
        self.volumes = tuple(volume for volume in open_storage(kit).volumes() if not volume.spare)
        self._sizes = {volume.name: volume.size for volume in self.volumes}
        self._run = run
        if busy := [volume.name for volume in self.volumes if is_written(volume.path)]:
            raise Refused(
                f"volumes of kit {kit.name} are in use: {', '.join(sorted(busy)[:5])}",
                hint="stop what uses them: pocketcloud lab list shows the labs that are up, pocketcloud lab down LAB stops one",
            )

    def extents(self, volume: Volume) -> list[Extent]:
        return of_image(volume.path, self._sizes.get(volume.parent or "", 0), self._run)

    def pieces(self, volume: Volume, extents: Sequence[Extent]) -> Iterator[tuple[Extent, memoryview | None]]:
        with opened(volume.path, volume.format, self._run) as data:
            for piece in cut(extents):
                yield piece, None if piece.zero else data.read(piece.begin, piece.length)


class _Thin:
    """A kit on LVM: its pool's data is read where the pool's map says that it lies, so no volume has to be active."""

    def __init__(self, kit: Kit, rows: Sequence[LogicalVolume], pool: PoolMap, handle: int) -> None:
        self.kit = kit
        self.volumes = tuple(volume for volume in volumes_in(kit.vg, rows) if not volume.spare)
        self._chunk = pool.chunk
        self._handle = handle
        named = ((row.tagged(NAME), row) for row in rows if row.thin and NEXT not in row.tags)
        self._devices = {name: pool.devices[row.thin_id] for name, row in named if row.thin_id in pool.devices}

    def extents(self, volume: Volume) -> list[Extent]:
        parent = None if volume.parent is None else self._devices[volume.parent]
        return of_thin(self._devices[volume.name], parent, self._chunk, volume.size)

    def pieces(self, volume: Volume, extents: Sequence[Extent]) -> Iterator[tuple[Extent, memoryview | None]]:
        with mmap.mmap(-1, LARGEST) as memory, memoryview(memory) as whole:
            for piece in cut(extents):
                if piece.zero:
                    yield piece, None
                    continue
                with whole[: piece.length] as data:
                    if os.preadv(self._handle, [data], piece.at) != piece.length:
                        raise Refused(f"volume {volume.name} cannot be read at byte {piece.begin}: the pool's data is cut short")
                    yield piece, data
