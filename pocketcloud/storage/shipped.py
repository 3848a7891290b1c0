"""What a kit held when copies of it were made, kept in its pool and in theirs.

A volume that is sealed for good tells that by itself. Of what can be written to there is a read-only snapshot of that moment:
LVM calls it by the generation, which all of one moment share. So what has changed since then, here or in a copy, shows in the
pool's map alone, and the chunks of a generation stay where they are for as long as its snapshots do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pocketcloud.storage.lvm import LogicalVolume, Lvm
from pocketcloud.storage.lvm_thin import ThinPool
from pocketcloud.storage.thin_volumes import BALLAST, KEPT, MAKING, NEXT, OF, SHIPPED, SPARE


def snapshots_of(rows: Iterable[LogicalVolume], generation: str) -> dict[str, LogicalVolume]:
    """The snapshots of a generation, by the UUID of what each was made of."""
    return {row.tagged(OF) or "": row for row in rows if row.tagged(SHIPPED) == generation}


def sealed_for_good(rows: Iterable[LogicalVolume]) -> dict[str, LogicalVolume]:
    """The volumes that are sealed for good, by their UUIDs."""
    return {row.uuid: row for row in rows if row.thin and KEPT in row.tags and row.tagged(MAKING) is None}


def to_be_kept(rows: Iterable[LogicalVolume]) -> list[LogicalVolume]:
    """What a generation needs snapshots of: `content`, and volumes that are not sealed for good. What the ballast holds is
    nothing, and spares hold what they stand on."""
    return [row for row in rows if row.thin and row.name != BALLAST and not row.tags & {KEPT, SPARE, NEXT} and not _passing(row)]


def generations(rows: Iterable[LogicalVolume]) -> set[str]:
    """The generations of which there are snapshots."""
    return {generation for row in rows if (generation := row.tagged(SHIPPED))}


def keep(store: ThinPool, vg: str, lvm: Lvm, generation: str) -> tuple[LogicalVolume, ...]:
    """Make the snapshots of a generation; the rows afterwards. One that is killed leaves some of them, which `forget` removes.
    Raises NoSpace if the pool is too full for new volumes."""
    with store.held() as rows:
        rows = store.check_room(rows, reserve=False)
        wanted = to_be_kept(rows)
        named = {f"s.{generation}.{number}": row for number, row in enumerate(wanted)}
        store.make([_words(vg, name, row, generation) for name, row in named.items()], set(named))
        return lvm.volumes(vg)


def forget(store: ThinPool, vg: str, lvm: Lvm, but: Sequence[str]) -> None:
    """Remove the snapshots of all generations but these."""
    with store.held() as rows:
        going = [row.name for row in rows if (generation := row.tagged(SHIPPED)) and generation not in but]
        if going:
            lvm.command("lvremove", "-f", *(f"{vg}/{name}" for name in going))


def records(rows: Sequence[LogicalVolume], generation: str, kept: Mapping[str, str]) -> dict[str, LogicalVolume]:
    """What still holds a generation's content, by the UUID of the volume that it is the content of. `kept` are the generation's
    own words: the volume's UUID, and that of what held its content then."""
    there = {row.uuid: row for row in (*sealed_for_good(rows).values(), *snapshots_of(rows, generation).values())}
    return {volume: there[holder] for volume, holder in kept.items() if holder in there}


def _words(vg: str, name: str, row: LogicalVolume, generation: str) -> tuple[str, ...]:
    tags = ("--addtag", f"{SHIPPED}={generation}", "--addtag", f"{OF}={row.uuid}")
    return ("lvcreate", "-s", "-an", "-kn", "-pr", "-n", name, *tags, f"{vg}/{row.name}")


def _passing(row: LogicalVolume) -> bool:
    return row.tagged(MAKING) is not None or row.tagged(SHIPPED) is not None
