"""The space of a kit: how full its store is, who holds how much of it, and what there is to warn of.

What is counted here is data; cli/kit_space.py shows it. How full is too full stands in storage/watermarks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from pocketcloud.errors import PocketcloudError, Refused
from pocketcloud.model.base import Base
from pocketcloud.model.inventory import Volume
from pocketcloud.model.kit import Kit
from pocketcloud.model.sizes import size_text
from pocketcloud.plan.drafting import belongs_to
from pocketcloud.records import InstanceFiles, instances, read_record
from pocketcloud.storage import Storage, Usage
from pocketcloud.storage.ballast import is_filled
from pocketcloud.storage.devmapper import node_name, pool_status
from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.thin_shares import Share, thin_shares
from pocketcloud.storage.thin_volumes import BALLAST, CONTENT, POOL, SHIPPED, STATE
from pocketcloud.storage.watermarks import REFUSE_DATA, REFUSE_METADATA, WARN_DATA, WARN_METADATA, percent, warning
from pocketcloud.system import Runner, run

_OWN = frozenset({POOL, STATE, CONTENT, BALLAST})
_FREE_UP = "pocketcloud kit status shows what holds space; lab destroy, base remove and kit verify --forget give it back"


class Role(StrEnum):
    """What volumes are to the kit."""

    BASE = "base"
    LAB = "lab"
    SNAPSHOT = "snapshot"
    SPARE = "spare"
    LEFTOVER = "leftover"
    CONTENT = "content"
    BALLAST = "ballast"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Gauge:
    """How full something is; `used` and `size` in bytes, the marks in percent (0: none)."""

    name: str
    used: int
    size: int
    warn: int = 0
    refuse: int = 0

    @property
    def percent(self) -> int:
        """Whole percent, rounded up."""
        return percent(self.used, self.size)


@dataclass(frozen=True, slots=True)
class Holding:
    """What one holder has in the store, in bytes: `size` is what guests see; `exclusive` what comes back at least when only it
    is removed; `shared` what others have too, counted once for each of its volumes. None where it could not be counted."""

    role: Role
    name: str
    volumes: tuple[str, ...]
    size: int
    exclusive: int | None
    shared: int | None


@dataclass(frozen=True, slots=True)
class KitSpace:
    """The space of a kit. `reserve` are the bytes that its volume group keeps free, `ballast` whether that is there and full
    (None where the store has none); `uncounted` why nobody's holdings are known; `strangers` logical volumes in the kit's
    volume group that are not ours."""

    gauges: tuple[Gauge, ...]
    holdings: tuple[Holding, ...]
    warnings: tuple[str, ...]
    uncounted: str = ""
    reserve: int = 0
    ballast: bool | None = None
    strangers: tuple[str, ...] = ()

    @property
    def leftovers(self) -> tuple[str, ...]:
        """The volumes that nobody needs any more."""
        return tuple(volume for held in self.holdings if held.role is Role.LEFTOVER for volume in held.volumes)


Counted = Callable[[Volume], tuple[int | None, int | None]]
"""What a volume holds alone and what it shares, in bytes."""


def kit_space(kit: Kit, storage: Storage, bases: Sequence[Base], run: Runner = run) -> KitSpace:
    """Count the kit's space. A pool in trouble is told of in `warnings`; raises only where its volumes cannot be read."""
    volumes = storage.volumes()
    warnings = [line for line in (space_warning(kit, run),) if line]
    gauges: tuple[Gauge, ...] = ()
    try:
        gauges = gauges_of(kit, storage.usage())
    except PocketcloudError as error:
        warnings = warnings or [_line(error)]
    if not kit.vg:
        return KitSpace(gauges, holdings(kit, volumes, bases, layered(volumes)), tuple(warnings))
    lvm = Lvm(kit.devices, run)
    rows = lvm.volumes(kit.vg)
    group = next((group for group in lvm.groups() if group.name == kit.vg), None)
    shares: Mapping[int, Share] = {}
    uncounted = ""
    try:
        shares = thin_shares(kit.vg, run, kit.path / "volumes")
    except PocketcloudError as error:
        uncounted = _line(error)
    ids = {row.name: row.thin_id for row in rows}

    def counted(volume: Volume) -> tuple[int | None, int | None]:
        share = shares.get(ids.get(volume.path.name, -1))
        return (share.exclusive, share.shared) if share else (None, None)

    known = {volume.path.name for volume in volumes}
    return KitSpace(
        gauges=gauges,
        holdings=(*holdings(kit, volumes, bases, counted), *_own_holdings(rows, shares)),
        warnings=tuple(warnings),
        uncounted=uncounted,
        reserve=group.free if group else 0,
        ballast=is_filled(kit.vg, run, rows),
        strangers=tuple(row.name for row in rows if _is_strange(row, known)),
    )


def space_warning(kit: Kit, run: Runner = run) -> str:
    """The line that warns of a kit that fills up, for any command; empty if there is nothing to warn of, or no answer."""
    if not kit.vg:
        return ""
    with suppress(PocketcloudError):
        status = pool_status(f"{node_name(kit.vg, POOL)}-tpool", run)
        told = warning(status) if status else ""
        if told:
            remedy = "pocketcloud kit repair" if "failed" in told or "check" in told or "read-only" in told else _FREE_UP
            return f"the pool of kit {kit.name}: {told}. {remedy}"
    return ""


def gauges_of(kit: Kit, usage: Usage) -> tuple[Gauge, ...]:
    """The gauges of a store, with its marks; a folder has those of its file system, which others fill too, and so no marks."""
    if not kit.vg:
        return (Gauge("space", usage.size - usage.free, usage.size),)
    return (
        Gauge("data", usage.used, usage.size, WARN_DATA, REFUSE_DATA),
        Gauge("metadata", usage.metadata_used, usage.metadata_size, WARN_METADATA, REFUSE_METADATA),
    )


def layered(volumes: Iterable[Volume]) -> Counted:
    """How volumes that stand on each other share: what one holds by itself all share that stand on it, directly or not."""
    by_name = {volume.name: volume for volume in volumes}
    parents = {volume.parent for volume in by_name.values()}

    def counted(volume: Volume) -> tuple[int | None, int | None]:
        below, current, seen = 0, volume.parent, {volume.name}
        while current in by_name and current not in seen:
            seen.add(current)
            below += by_name[current].used or 0
            current = by_name[current].parent
        own = volume.used or 0
        return (0, own + below) if volume.name in parents else (own, below)

    return counted


def holdings(kit: Kit, volumes: Sequence[Volume], bases: Sequence[Base], counted: Counted) -> tuple[Holding, ...]:
    """Who holds the volumes: bases, labs, their snapshots, spares, and nobody. What a lab's volumes stand on without being
    named any more is the lab's."""
    owners = _owners(kit, volumes, bases)
    groups: dict[tuple[Role, str], list[Volume]] = {}
    for volume in volumes:
        groups.setdefault(owners[volume.name], []).append(volume)
    order = list(Role)
    found = []
    for (role, name), theirs in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
        figures = [counted(volume) for volume in theirs]
        size = sum(volume.size for volume in theirs)
        exclusive, shared = (_sum(figure[part] for figure in figures) for part in (0, 1))
        found.append(Holding(role, name, tuple(volume.name for volume in theirs), size, exclusive, shared))
    return tuple(found)


def _owners(kit: Kit, volumes: Sequence[Volume], bases: Sequence[Base]) -> dict[str, tuple[Role, str]]:
    owners: dict[str, tuple[Role, str]] = {
        volume: (Role.BASE, f"{base.name} ({base.arch})") for base in bases for volume in base.volumes
    }
    labs = instances(kit)
    whole = set()
    for lab in labs:
        try:
            record = read_record(InstanceFiles(kit, lab))
        except Refused:
            whole.add(lab)  # nobody knows what a damaged record names: nothing of the lab is a leftover
            continue
        if record is None:
            continue
        for machine in record.machines.values():
            owners.update((volume, (Role.LAB, lab)) for volume in machine.disks.values())
        for name, snapshot in record.snapshots.items():
            theirs = [volume for part in snapshot.machines.values() for volume in part.disks.values()]
            owners.update((volume, (Role.SNAPSHOT, f"{lab}@{name}")) for volume in theirs if volume not in owners)
    below = _below(volumes, owners)
    for volume in volumes:
        if volume.name not in owners:
            owners[volume.name] = _owner_of_unnamed(volume, labs, whole, below)
    return owners


def _owner_of_unnamed(volume: Volume, labs: Iterable[str], whole: Collection[str], below: Collection[str]) -> tuple[Role, str]:
    lab = next((lab for lab in labs if belongs_to(volume.name, lab)), "")
    if volume.spare:
        return Role.SPARE, lab or volume.name
    if lab and (lab in whole or volume.name in below):
        return Role.LAB, lab
    if volume.name in below:
        return Role.BASE, volume.name  # an older build, which labs stand on
    return Role.LEFTOVER, volume.name


def _below(volumes: Sequence[Volume], named: Collection[str]) -> set[str]:
    """What the named volumes stand on."""
    parents = {volume.name: volume.parent for volume in volumes}
    found: set[str] = set()
    for name in named:
        current = parents.get(name)
        while current is not None and current not in found:
            found.add(current)
            current = parents.get(current)
    return found


def _own_holdings(rows: Iterable[LogicalVolume], shares: Mapping[int, Share]) -> list[Holding]:
    roles = {CONTENT: Role.CONTENT, BALLAST: Role.BALLAST}
    found = []
    for row in rows:
        if row.name in roles and row.thin:
            share = shares.get(row.thin_id)
            figures = (share.exclusive, share.shared) if share else (None, None)
            found.append(Holding(roles[row.name], row.name, (row.name,), row.size, *figures))
    kept = [row for row in rows if row.tagged(SHIPPED)]
    if kept:
        counted = [share for row in kept if (share := shares.get(row.thin_id))]
        figures = (sum(s.exclusive for s in counted), sum(s.shared for s in counted)) if counted else (None, None)
        names = tuple(row.name for row in kept)
        found.append(Holding(Role.SHIPPED, "what copies were made of", names, sum(row.size for row in kept), *figures))
    return sorted(found, key=lambda held: held.name, reverse=True)


def _is_strange(row: LogicalVolume, known: Collection[str]) -> bool:
    """Whether a logical volume is none of ours: neither the kit's own, nor a volume, nor marked, nor a hidden part of LVM's."""
    if row.name in _OWN | set(known) or any(tag.startswith("pc:") for tag in row.tags):
        return False
    return row.thin or not row.name.startswith((f"{POOL}_", "lvol"))


def _sum(figures: Iterable[int | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


def _line(error: PocketcloudError) -> str:
    return f"{error.message}. {error.hint}" if error.hint else error.message


def summary(space: KitSpace) -> str:
    """The store in half a line: `112 GiB free of 256 GiB`."""
    return next((f"{size_text(max(0, g.size - g.used))} free of {size_text(g.size)}" for g in space.gauges), "unknown")
