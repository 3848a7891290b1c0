"""`kit verify`: what a kit holds, against what it held when it was copied, or became a copy.

All that was shipped is read, each chunk once and past the page cache. What people have changed since is no fault: it lies beside
what was shipped, and the pool's map tells it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain
from pathlib import Path

from pocketcloud.bases.records import built
from pocketcloud.copies.pieces import cut, unit_of
from pocketcloud.copies.pouring import summed
from pocketcloud.copies.shipped import Kept, Shipped, Sums, content_of, drop, read_all, read_sums, sums_of
from pocketcloud.copies.source import on_disk, read_map, source_of, write_content
from pocketcloud.errors import NotFound, Refused
from pocketcloud.model.kit import Kit
from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.shipped import forget as forget_snapshots
from pocketcloud.storage.shipped import records, to_be_kept
from pocketcloud.storage.thin_metadata import PoolMap, ThinDevice, aligned, without
from pocketcloud.storage.thin_volumes import KEPT, NAME, POOL
from pocketcloud.system import Runner


class Held(StrEnum):
    """What became of a volume that was shipped."""

    INTACT = "intact"
    DAMAGED = "damaged"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Proof:
    """A shipped volume: `bases` are those that lie in it, `damaged` bytes of it that are not what was shipped; `changed` bytes
    that whoever uses the kit has changed since in the volume of this name."""

    volume: str
    held: Held
    bases: tuple[str, ...] = ()
    damaged: int = 0
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Verified:
    """What a kit was found to hold. `generation`, `shipped_by` (a kit's id) and `made` (ISO 8601 in UTC) say against what it was
    held; `added` are volumes, with the bytes they have for themselves, that were not shipped; `read` is in bytes."""

    generation: str
    shipped_by: str
    made: str
    proofs: tuple[Proof, ...]
    added: tuple[tuple[str, int], ...]
    read: int

    @property
    def faults(self) -> tuple[str, ...]:
        """The volumes that are not what was shipped, or are bases that the kit still names and that are gone."""
        gone = (proof for proof in self.proofs if proof.held is Held.GONE and proof.bases)
        return tuple(proof.volume for proof in (*(p for p in self.proofs if p.held is Held.DAMAGED), *gone))

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


def verify(kit: Kit, run: Runner, *, stop: threading.Event, tell: Callable[[int, int], None]) -> Verified:
    """Read what an attached kit on LVM holds of what was shipped last; `tell` gets the bytes read and those there are to read.
    The caller holds its labs and bases, which may be up.

    Raises NotFound if nothing was ever shipped, Refused if the pool's map cannot be read, InterruptedError."""
    with on_disk(kit):
        return _verified(kit, run, stop, tell)


def _verified(kit: Kit, run: Runner, stop: threading.Event, tell: Callable[[int, int], None]) -> Verified:
    shipped = _last(kit)
    lvm = Lvm(kit.devices, run)
    rows = lvm.volumes(kit.vg)
    pool = read_map(kit, run)
    holders = records(rows, shipped.generation, shipped.holders)
    devices = {uuid: pool.devices[row.thin_id] for uuid, row in holders.items() if row.thin_id in pool.devices}
    sums = _read(kit, replace(pool, devices={device.id: device for device in devices.values()}), stop, tell)
    known = read_sums(kit.path, shipped.generation)
    now = {row.uuid: row for row in rows if row.thin}
    named = {base.volume for base in built(kit)}
    proofs = tuple(_proof(kept, devices.get(kept.uuid), now, pool, sums, known, shipped, named) for kept in shipped.volumes)
    return Verified(
        shipped.generation,
        shipped.kit,
        shipped.made,
        proofs,
        _added(rows, pool, shipped),
        sums.count() * unit_of(pool.chunk),
    )


def record(kit: Kit, run: Runner, *, now: str, stop: threading.Event, tell: Callable[[int, int], None]) -> None:
    """Read a kit whose labs are down, and write down what it holds, as if copies of it were made now."""
    with source_of(kit, run, now=now) as source:
        pieces, unit = tuple(cut(source.runs, source.pool.chunk)), unit_of(source.pool.chunk)
        digests = summed(source.handle, pieces, unit=unit, stop=stop, tell=lambda done: tell(done, source.bytes))
        if not all(digests):
            first = next(piece for piece, told in zip(pieces, digests, strict=True) if not told)
            raise Refused(
                f"kit {kit.name} cannot be read at byte {first.begin} of its pool",
                hint="its disk is failing; see dmesg, and save what can be saved",
            )
        write_content(
            source, sums_of((piece.begin // unit, told) for piece, told in zip(pieces, digests, strict=True)), anew=True
        )


def forget(kit: Kit, run: Runner) -> int:
    """Give up all that an attached kit on LVM keeps of what was shipped, so that its copies, or itself as one, are copied whole
    the next time; how many bytes of the pool came back. The caller holds its labs and bases. Cut off, the same again ends it."""
    store = ThinPool(kit.vg, kit.devices, kit.path / "volumes", run)
    before = store.usage().used
    # What holds content and is told by nobody is removed later; words without their content would be taken for damage.
    drop(kit.path, but=())
    forget_snapshots(store, kit.vg, Lvm(kit.devices, run), but=())
    return max(before - store.usage().used, 0)


def _last(kit: Kit) -> Shipped:
    known = [shipped for shipped in read_all(kit.path) if any(kept.content for kept in shipped.volumes)]
    if not known:
        raise NotFound(
            f"kit {kit.name} is no copy, and none was made of it: there is nothing to hold it against",
            hint=f"write down what it holds now: pocketcloud kit verify {kit.name} --record",
        )
    return known[0]


def _read(kit: Kit, pool: PoolMap, stop: threading.Event, tell: Callable[[int, int], None]) -> Sums:
    pieces, unit = tuple(cut(pool.allocated(), pool.chunk)), unit_of(pool.chunk)
    total = sum(piece.length for piece in pieces)
    path = Path("/dev/mapper", node_name(kit.vg, f"{POOL}_tdata"))
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        digests = summed(handle, pieces, unit=unit, stop=stop, tell=lambda done: tell(done, total))
    finally:
        os.close(handle)
    if gone := [str(device) for device in kit.devices if not device.exists()]:
        raise Refused(
            f"{gone[0]}, the disk of kit {kit.name}, is not there any more", hint="plug it in again, and attach the kit"
        )
    return sums_of((piece.begin // unit, told) for piece, told in zip(pieces, digests, strict=True) if told)


def _proof(
    kept: Kept,
    device: ThinDevice | None,
    now: Mapping[str, LogicalVolume],
    pool: PoolMap,
    sums: Sums,
    known: Sums | None,
    shipped: Shipped,
    named: Collection[str],
) -> Proof:
    bases = tuple(f"{base.name} {base.arch}" for base in shipped.bases if base.volume == kept.name)
    if device is None:
        # One that was removed is no fault; one that the kit still counts on is.
        return Proof(kept.name, Held.GONE, bases if kept.name in named else ())
    units = pool.chunk // unit_of(pool.chunk)
    row = now.get(kept.uuid)
    changed = 0
    if row and row.thin_id in pool.devices and row.thin_id != device.id:
        changed = _differing(device, pool.devices[row.thin_id]) * pool.chunk
    if kept.content and content_of(device, units, sums) == kept.content:
        return Proof(kept.name, Held.INTACT, bases, changed=changed)
    damaged = sum(
        known is None or (told := sums.of(unit)) is None or told != known.of(unit)
        for unit in chain.from_iterable(range(run.data * units, (run.data + run.length) * units) for run in device.runs)
    )
    return Proof(kept.name, Held.DAMAGED, bases, damaged * unit_of(pool.chunk), changed)


def _differing(one: ThinDevice, two: ThinDevice) -> int:
    """How many chunks the second volume has otherwise than the first, or no more."""
    both = same = 0
    for _, data, other, length in aligned(one, two):
        both += length
        same += length if data == other else 0
    return one.mapped + two.mapped - both - same


def _added(rows: Iterable[LogicalVolume], pool: PoolMap, shipped: Shipped) -> tuple[tuple[str, int], ...]:
    rows = tuple(rows)
    there = {kept.uuid for kept in shipped.volumes}
    new = [row for row in (*to_be_kept(rows), *(row for row in rows if row.thin and KEPT in row.tags)) if row.uuid not in there]
    before = pool.allocated({row.thin_id for row in new})
    found = []
    for row in new:
        own = replace(pool, devices={row.thin_id: pool.devices[row.thin_id]}).allocated() if row.thin_id in pool.devices else []
        found.append((row.tagged(NAME) or row.name, sum(length for _, length in without(own, before)) * pool.chunk))
    return tuple(sorted(found))
