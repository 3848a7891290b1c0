"""What it takes to bring an older copy to its master's state: which chunks it has already, which it is to get, and where.

Both have what was shipped to the copy, in read-only volumes: what these map tells where in the copy a chunk of the master's
lies. All else that the master holds now goes where nothing of the copy's lies, so that the copy is as it was until LVM takes
the new text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.copies.shipped import Shipped, Sums, read_all, read_sums
from pocketcloud.copies.source import Source
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.kit.aside import aside
from pocketcloud.kit.evidence import component, read_pool
from pocketcloud.kit.manifest import read_manifest
from pocketcloud.kit.plugged import Plugged
from pocketcloud.kit.remains import put_to_rest
from pocketcloud.model.kit import Manifest
from pocketcloud.model.sizes import size_text
from pocketcloud.scratch import scratch
from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.lvm_copy import read_group
from pocketcloud.storage.lvm_sync import Change, changed_group, number, section, thin_sections
from pocketcloud.storage.lvm_text import Section
from pocketcloud.storage.shipped import records
from pocketcloud.storage.thin_metadata import DumpReader, PoolMap, ThinDevice, aligned, remapped, without
from pocketcloud.storage.thin_volumes import BALLAST, NAME, STATE
from pocketcloud.system import Runner

# (first chunk of the master's pool, length, first chunk of the copy's pool)
Table = list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Older:
    """A plugged copy that is not attached, as it is: its manifest, what was shipped to it and the digests of that, LVM's text
    and rows, what its pool maps, and the labs on it."""

    copy: Plugged
    manifest: Manifest
    shipped: Shipped
    sums: Sums
    group: Section
    rows: tuple[LogicalVolume, ...]
    pool: PoolMap
    labs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Renewed:
    """What an older copy is to become. `known` is where it has chunks of the master's, `runs` all that the master has, `new`
    what the copy is to get, in chunks of the master's, `table` where each of the master's is to lie in it; `kept` are the labs
    that stay as they are in it."""

    older: Older
    known: Table
    runs: list[tuple[int, int]]
    new: list[tuple[int, int]]
    table: Table
    pool: PoolMap
    change: Change
    kept: tuple[str, ...]

    def new_table(self) -> Table:
        """Where what it is to get goes."""
        return [part for first, length in self.new for part in _part(self.table, first, length)]

    def in_use(self) -> Table:
        """Of what it has already, what the master still has use for."""
        return [part for first, length in without(self.runs, self.new) for part in _part(self.known, first, length)]


# -- looking at a copy


def older_copy(copy: Plugged, master: str, run: Runner) -> tuple[Manifest, Older | None]:
    """Look at a plugged copy that is not attached; None if nothing tells what the kit of the id `master` shipped to it. Raises
    Refused if it cannot be relied on."""
    lvm, vg = Lvm([copy.device], run), copy.group.name
    metadata = read_pool(lvm, vg, run)
    if metadata.check.code or metadata.needs_check:
        raise Refused(
            f"the pool of kit {copy.name} on {copy.device} is damaged: {metadata.check.said or 'it needs a check'}",
            hint=f"pocketcloud kit repair {copy.device}; or copy it anew",
        )
    with component(lvm, vg) as device:
        reader = DumpReader()
        run(["thin_dump", device], on_line=lambda line: reader.feed(line.encode()) if line.lstrip().startswith("<") else None)
        pool = reader.end()
    rows = lvm.volumes(vg)
    with scratch(run) as folder:
        group = read_group(lvm, vg, Path(folder, "group"))
    with looked_into(copy, run) as tree:
        manifest = read_manifest(tree)
        shipped = next((told for told in read_all(tree) if told.kit == master), None)
        sums = read_sums(tree, shipped.generation) if shipped else None
        labs = {path.parent.name for path in (tree / "labs").glob("*/lab.json")}
    if manifest.id != copy.id:
        raise Refused(
            f"the kit on {copy.device} tells two ids: its volume group {copy.id}, its manifest {manifest.id}",
            hint=f"pocketcloud kit attach {copy.device}, then pocketcloud kit detach {copy.name}",
        )
    # One that was being made has volumes and no record yet.
    labs |= {parts[1] for row in rows if (parts := (row.tagged(NAME) or "").split("."))[0] == "lab" and len(parts) > 1}
    if shipped is None or sums is None:
        return manifest, None
    return manifest, Older(copy, manifest, shipped, sums, group, rows, pool, tuple(sorted(labs)))


@contextmanager
def looked_into(copy: Plugged, run: Runner) -> Iterator[Path]:
    """The tree of a plugged kit that is not attached, to be read."""
    lvm, vg = Lvm([copy.device], run), copy.group.name
    lvm.activate(vg, STATE)
    try:
        with aside(Path("/dev", vg, STATE), run, read_only=True) as tree:
            yield tree
    finally:
        put_to_rest(lvm, vg, but=[row.name for row in lvm.volumes(vg) if row.name != STATE])


# -- what it is to become


def renewed(source: Source, master: Shipped, older: Older, kept: Collection[str]) -> Renewed:
    """What the copy is to become; `master` is what the master says that it shipped to it, `kept` are labs of the copy's that
    stay.

    Raises Refused if the copy tells otherwise, NoSpace if there is no room beside what is on it."""
    if master != older.shipped:
        raise Refused(
            f"kit {older.copy.name} tells otherwise than kit {source.kit.name} what was shipped to it: it was changed",
            hint="copy it anew: pocketcloud kit clone",
        )
    if older.pool.chunk != source.pool.chunk:
        raise Refused(f"kit {older.copy.name} has other chunks than kit {source.kit.name}", hint="copy it anew")
    known = _known(source, older)
    runs = source.runs
    new = without(runs, [(first, length) for first, length, _ in known])
    table = _whole(known, new, older)
    mine = _volumes_of(older, kept)
    pool, thin = _merged(source, older, mine, table, set(kept))
    change = changed_group(older.group, older.copy.group.name, thin, pool.transaction)
    return Renewed(older, known, runs, new, table, pool, change, tuple(sorted(kept)))


def _known(source: Source, older: Older) -> Table:
    """Where in the copy lie chunks that the master still has."""
    holders = older.shipped.holders
    here = records(source.all_rows, older.shipped.generation, holders)
    there = records(older.rows, older.shipped.generation, holders)
    found = []
    for uuid in here.keys() & there.keys():
        mine, other = source.whole.devices.get(here[uuid].thin_id), older.pool.devices.get(there[uuid].thin_id)
        if mine and other:
            found += [(data, length, place) for _, data, place, length in aligned(mine, other)]
    table: Table = []
    for first, length, place in sorted(found):
        end = sum(table[-1][:2]) if table else 0
        if first < end:
            begin, _, at = table[-1]
            if at - begin != place - first:
                raise Refused(
                    f"kit {older.copy.name} does not have together what was shipped together",
                    hint="copy it anew: pocketcloud kit clone",
                )
            first, length, place = end, first + length - end, place + end - first
        if length > 0:
            table.append((first, length, place))
    return table


def _whole(known: Table, new: list[tuple[int, int]], older: Older) -> Table:
    """Where all is to lie: what is new goes where nothing of the copy's lies."""
    free = without([(0, older.pool.chunks)], older.pool.allocated())
    needed, room = sum(length for _, length in new), sum(length for _, length in free)
    if needed > room:
        raise NoSpace(
            f"there is no room for what is new beside what is on kit {older.copy.name}: it takes"
            f" {size_text(needed * older.pool.chunk)}, {size_text(room * older.pool.chunk)} are free",
            hint="copy it anew: pocketcloud kit clone; or remove labs on it",
        )
    placed: Table = []
    holes = iter(free)
    at, left = next(holes, (0, 0))
    for first, length in new:
        while length:
            if not left:
                at, left = next(holes)
            taken = min(length, left)
            placed.append((first, taken, at))
            first, length, at, left = first + taken, length - taken, at + taken, left - taken
    return sorted([*known, *placed])


def _part(table: Table, first: int, length: int) -> Iterator[tuple[int, int, int]]:
    at = bisect_right(table, (first, 1 << 62, 0)) - 1
    end = first + length
    while first < end:
        begin, count, place = table[at]
        taken = min(end, begin + count) - first
        yield first, taken, place + first - begin
        first, at = first + taken, at + 1


def _volumes_of(older: Older, labs: Collection[str]) -> dict[str, Section]:
    """The thin volumes of labs on the copy, in LVM's text, and all they stand on."""
    thin = thin_sections(older.group)
    names = {row.name: row.tagged(NAME) or "" for row in older.rows}
    found = {name for name in thin if any(names.get(name, "").startswith(f"lab.{lab}.") for lab in labs)}
    left = list(found)
    while left:
        origin = _segment(thin[left.pop()]).get("origin")
        if isinstance(origin, str) and origin in thin and origin not in found:
            found.add(origin)
            left.append(origin)
    return {name: thin[name] for name in found}


def _merged(
    source: Source, older: Older, mine: Mapping[str, Section], table: Table, labs: Collection[str]
) -> tuple[PoolMap, dict[str, Section]]:
    """The pool's map and the thin volumes: the master's but those of `labs`, the copy's own that are kept, and its ballast."""
    names = {row.name: row.tagged(NAME) or "" for row in source.rows}
    thin = {
        name: volume
        for name, volume in thin_sections(source.group).items()
        if name != BALLAST and not any(names.get(name, "").startswith(f"lab.{lab}.") for lab in labs)
    }
    devices = {
        number_of: remapped(source.pool.devices[number_of], table, number_of)
        for number_of in (_device(volume) for volume in thin.values())
    }
    uuids = {str(volume.get("id")) for volume in thin.values()}
    own = {name: volume for name, volume in mine.items() if str(volume.get("id")) not in uuids}
    if BALLAST in thin_sections(older.group):
        own[BALLAST] = thin_sections(older.group)[BALLAST]
    free = max(devices, default=0) + 1
    for step, (name, volume) in enumerate(sorted(own.items())):
        if name in thin:
            raise Refused(
                f"kit {older.copy.name} has a volume {name} of its own, and the master another",
                hint="copy it anew: pocketcloud kit clone",
            )
        before = older.pool.devices.get(_device(volume), ThinDevice(0) if name == BALLAST else None)
        if before is None:
            raise Refused(f"the pool of kit {older.copy.name} has no volume {name}", hint="pocketcloud kit repair")
        created = min(before.transaction, source.pool.transaction)
        devices[free + step] = replace(before, id=free + step, transaction=created)
        segment = {**_segment(volume), "device_id": free + step, "transaction_id": created}
        thin[name] = {**volume, "segment1": segment}
    for name, volume in thin.items():
        if (origin := _segment(volume).get("origin")) is not None and origin not in thin:
            thin[name] = {**volume, "segment1": {key: value for key, value in _segment(volume).items() if key != "origin"}}
    time = max(source.pool.time, older.pool.time)
    return replace(source.pool, chunks=older.pool.chunks, time=time, devices=devices), thin


def _segment(volume: Section) -> Section:
    return section(volume, "segment1")


def _device(volume: Section) -> int:
    return number(_segment(volume), "device_id")
