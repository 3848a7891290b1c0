"""A kit as the source of copies: what its pool maps at one moment, and a handle to read its data by."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pocketcloud.bases.records import built
from pocketcloud.copies.ledger import read_ledger
from pocketcloud.copies.pieces import Piece, unit_of
from pocketcloud.copies.pouring import Digests, Outlet
from pocketcloud.copies.shipped import (
    Kept,
    Shipped,
    ShippedBase,
    Sums,
    content_of,
    drop,
    fresh_generation,
    read_all,
    write,
    write_sums,
)
from pocketcloud.errors import NotFound, Refused
from pocketcloud.kit.device import CONTENT_FOLDER
from pocketcloud.model.kit import Kit
from pocketcloud.records import instances
from pocketcloud.scratch import scratch
from pocketcloud.storage.devmapper import METADATA_BLOCK, node_name, pool_status
from pocketcloud.storage.lvm import LogicalVolume, Lvm, complaint
from pocketcloud.storage.lvm_copy import read_group
from pocketcloud.storage.lvm_text import Section
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.metadata_snapshot import metadata_snapshot
from pocketcloud.storage.shipped import forget, keep, sealed_for_good, snapshots_of, to_be_kept
from pocketcloud.storage.thin_metadata import DumpReader, PoolMap
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, NAME, POOL, SHIPPED
from pocketcloud.system import CommandFailed, Runner


class Stream(Protocol):
    """Pieces of data that come one after the other, for one outlet; then the kit's files. As `pour` does it."""

    def __call__(
        self, pieces: Sequence[Piece], outlet: Outlet, *, unit: int, stop: threading.Event, tick: Callable[[], None]
    ) -> Digests: ...


@dataclass(frozen=True)
class Source:
    """A kit whose labs are down, at one moment: the generation that keeps it, what its pool maps, LVM's rows and text of its
    volume group, the metadata in use (bytes), the ids of volumes whose content is nothing (`empty`), and a handle of the pool's
    data, open with O_DIRECT. `whole` and `all_rows` have what keeps the generation before, too, which is not copied.
    `files` are the bytes that the kit's own files take; `tree` is held by who reads or writes them while several copies are made.
    Where the data comes from a `stream`, that is in place of the handle, and can be had once."""

    kit: Kit
    shipped: Shipped
    pool: PoolMap
    rows: tuple[LogicalVolume, ...]
    group: Section
    used_metadata: int
    empty: frozenset[int]
    handle: int
    whole: PoolMap
    all_rows: tuple[LogicalVolume, ...]
    files: int
    tree: threading.Lock = field(default_factory=threading.Lock)
    stream: Stream | None = None

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """What is to be read, in chunks, in the order of the disk."""
        return self.pool.allocated(self.empty)

    @property
    def bytes(self) -> int:
        """How much that is."""
        return sum(length for _, length in self.runs) * self.pool.chunk


def write_content(source: Source, sums: Sums, *, anew: bool = False) -> None:
    """Write down, with the kit's own words of the generation, the digests of all it holds. Raises Refused where these are not
    those that were written down before, unless they are taken `anew`."""
    there = {row.uuid: source.pool.devices[row.thin_id] for row in source.rows if row.thin_id in source.pool.devices}
    units = source.pool.chunk // unit_of(source.pool.chunk)
    volumes = tuple(
        replace(kept, content=content_of(there[kept.holder], units, sums)) if kept.holder in there else kept
        for kept in source.shipped.volumes
    )
    pairs = zip(source.shipped.volumes, volumes, strict=True)
    odd = [now.name for before, now in pairs if before.content and now.content not in ("", before.content)]
    if odd and not anew:
        raise Refused(
            f"kit {source.kit.name} no longer holds what was copied from it before, in {', '.join(odd[:5])}: its disk is failing,"
            " or somebody has written behind its back",
            hint=f"see what is wrong: pocketcloud kit verify {source.kit.name}; to take it as it is: the same with --record",
        )
    write_sums(source.kit.path, source.shipped.generation, sums)
    write(source.kit.path, replace(source.shipped, volumes=volumes))


@contextmanager
def on_disk(kit: Kit) -> Iterator[None]:
    """Raise Refused in place of what the system says of a kit's disk that was pulled, or fails."""
    try:
        yield
    except InterruptedError:
        raise
    except OSError as error:
        raise Refused(
            f"kit {kit.name} cannot be read or written: {error.strerror or error}",
            hint="is its disk still plugged in? dmesg says more",
        ) from error


@contextmanager
def source_of(kit: Kit, run: Runner, *, now: str) -> Iterator[Source]:
    """Take an attached kit on LVM as a source; what it holds is kept in its pool as a generation, the last one if nothing has
    changed since. The caller holds its labs and bases; `content` may be in use, and what is copied is what it held when this
    began. Raises NotFound, Refused if volumes are in use, NoSpace if the pool is too full."""
    with on_disk(kit), _source(kit, run, now) as source:
        yield source


@contextmanager
def _source(kit: Kit, run: Runner, now: str) -> Iterator[Source]:
    lvm = Lvm(kit.devices, run)
    folder = kit.path / "volumes"
    store = ThinPool(kit.vg, kit.devices, folder, run)
    check_idle(kit, lvm.volumes(kit.vg))
    status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
    if status is None:
        raise NotFound(f"the pool of kit {kit.name} is not active", hint="pocketcloud kit attach")
    shipped, rows, pool = _generation(kit, store, lvm, run, now)
    with scratch(run) as aside:
        group = read_group(lvm, kit.vg, Path(aside, "group"))
    numbers = {row.name: row.thin_id for row in rows if row.thin}
    unlisted = set(pool.devices) - set(numbers.values())
    lacking = sorted(name for name, number in numbers.items() if number not in pool.devices)
    if lacking:
        raise Refused(f"the pool of kit {kit.name} lacks volumes that LVM knows: {lacking[:5]}", hint="pocketcloud kit repair")
    if unlisted:
        raise Refused(
            f"the pool of kit {kit.name} has volumes that LVM does not know: {sorted(unlisted)[:5]}",
            hint="pocketcloud kit repair",
        )
    left = {row.name for row in rows if row.tagged(SHIPPED) not in (None, shipped.generation)}
    _leave_out(group, left)
    empty = frozenset(number for name, number in numbers.items() if name == BALLAST)
    handle = opened_data(kit)
    try:
        taken = _as_shipped(pool, rows, shipped.generation, {numbers[name] for name in left})
        there = tuple(row for row in rows if row.name not in left)
        yield Source(
            kit, shipped, taken, there, group, status.metadata_used * METADATA_BLOCK, empty, handle, pool, rows, _taken(kit.path)
        )
    finally:
        os.close(handle)


def _taken(tree: Path) -> int:
    told = os.statvfs(tree)
    return (told.f_blocks - told.f_bfree) * told.f_frsize


def _generation(kit: Kit, store: ThinPool, lvm: Lvm, run: Runner, now: str) -> tuple[Shipped, tuple[LogicalVolume, ...], PoolMap]:
    """The last generation if it is what the kit holds now, else one that is made."""
    known = read_all(kit.path)
    rows, pool = lvm.volumes(kit.vg), read_map(kit, run)
    bases = tuple(ShippedBase(base.name, base.arch, base.digest, base.volume) for base in built(kit))
    labs = tuple(map(str, instances(kit)))
    last = known[0] if known else None
    files = _files(kit.path / CONTENT_FOLDER)
    told = (kit.id, bases, labs, files)
    if last and (last.kit, last.bases, last.labs, last.files) == told and _is_of_now(last, rows, pool):
        return last, rows, pool
    # What a kill left has no words. Older ones go, so that they take no more space: but for the last, the last that was read
    # whole, the last that a copy is known to have, and what this kit itself was shipped with.
    copied = {entry.generation for entry in read_ledger(kit).copies}
    read = (told for told in known if any(kept.content for kept in told.volumes))
    sent = (told for told in known if told.generation in copied)
    got = (told for told in known if told.kit == kit.manifest.derived_from)
    earlier = [told.generation for told in (last, next(read, None), next(sent, None), next(got, None)) if told]
    forget(store, kit.vg, lvm, but=earlier)
    drop(kit.path, but=earlier)
    generation = fresh_generation()
    rows = keep(store, kit.vg, lvm, generation)
    holders = snapshots_of(rows, generation)
    found = {**sealed_for_good(rows), **{row.uuid: row for row in to_be_kept(rows)}}
    volumes = tuple(Kept(_name(row), uuid, holders.get(uuid, row).uuid) for uuid, row in found.items())
    shipped = Shipped(
        generation,
        kit.id,
        now,
        tuple(sorted(volumes, key=lambda kept: kept.name)),
        bases,
        labs,
        files,
        number=(last.number if last else 0) + 1,
    )
    write(kit.path, shipped)
    return shipped, rows, read_map(kit, run)


def _is_of_now(shipped: Shipped, rows: tuple[LogicalVolume, ...], pool: PoolMap) -> bool:
    snapshots, sealed, written = snapshots_of(rows, shipped.generation), sealed_for_good(rows), to_be_kept(rows)
    names = {kept.uuid: kept.name for kept in shipped.volumes}
    if names != {row.uuid: _name(row) for row in (*sealed.values(), *written)}:
        return False
    if any(shipped.holders[uuid] != uuid for uuid in sealed):
        return False
    for row in written:
        snapshot = snapshots.get(row.uuid)
        if snapshot is None or snapshot.uuid != shipped.holders[row.uuid] or snapshot.size != row.size:
            return False
        # Every snapshot of a mounted file system has it write a little: its files tell whether it is the same.
        if row.name != CONTENT and pool.devices[snapshot.thin_id].packed != pool.devices[row.thin_id].packed:
            return False
    return True


def _files(tree: Path) -> str:
    """What the files in a file system are known by: their names, sizes, and when they changed."""
    found = hashlib.blake2b(digest_size=16)
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in [".", *sorted(files)]:
            path = Path(folder, name)
            told = path.lstat()
            words = f"{path.relative_to(tree)}\0{told.st_ino} {told.st_size} {told.st_ctime_ns}\n"
            found.update(words.encode(errors="surrogateescape"))
    return found.hexdigest()


def _as_shipped(pool: PoolMap, rows: tuple[LogicalVolume, ...], generation: str, left: set[int]) -> PoolMap:
    """The map at the generation's moment: what is in use has gone on since."""
    snapshots = snapshots_of(rows, generation)
    devices = {number: device for number, device in pool.devices.items() if number not in left}
    for row in rows:
        if row.uuid in snapshots and row.thin_id in devices:
            devices[row.thin_id] = replace(devices[row.thin_id], packed=devices[snapshots[row.uuid].thin_id].packed)
    return replace(pool, devices=devices)


def _name(row: LogicalVolume) -> str:
    return row.tagged(NAME) or row.name


def check_idle(kit: Kit, rows: tuple[LogicalVolume, ...]) -> None:
    """Raise Refused if volumes of the kit are in use."""
    busy = [_name(row) for row in rows if row.thin and row.open and row.name not in (CONTENT, BALLAST)]
    if busy:
        raise Refused(
            f"volumes of kit {kit.name} are in use: {', '.join(sorted(busy)[:5])}",
            hint="stop what uses them: pocketcloud lab list shows the labs that are up, pocketcloud lab down LAB stops one",
        )


def read_map(kit: Kit, run: Runner) -> PoolMap:
    """What the pool of an attached kit maps at this moment. Raises Refused if it cannot be read."""
    reader = DumpReader()

    def feed(line: str) -> None:
        # What the tool complains of comes among it.
        if line.lstrip().startswith("<"):
            reader.feed(line.encode())

    with metadata_snapshot(kit.vg, run, kit.path / "volumes") as metadata:
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


def opened_data(kit: Kit) -> int:
    """A handle of the data of an attached kit's pool, open with O_DIRECT. Raises Refused."""
    path = Path("/dev/mapper", node_name(kit.vg, f"{POOL}_tdata"))
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(
            f"{path} cannot be read: {error.strerror}", hint="is the kit's disk still plugged in? dmesg says more"
        ) from error
