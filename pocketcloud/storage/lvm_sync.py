"""A copy's volume group as it is to be after it was brought to its source's state: drawn up as LVM's own text, like a copy's.

Nothing that the group has now is written over before LVM takes the new text, which it does in one step: the pool's new metadata
goes where the spare metadata was, and `state` where nothing was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pocketcloud.errors import NoSpace, Refused
from pocketcloud.storage.lvm_copy import Places
from pocketcloud.storage.lvm_text import Section, Value, write_text
from pocketcloud.storage.thin_volumes import EXTENT, POOL, STATE

_SECTOR = 512
_SPARE, _METADATA, _DATA = "lvol0_pmspare", f"{POOL}_tmeta", f"{POOL}_tdata"


@dataclass(frozen=True, slots=True)
class Change:
    """What LVM is to take: its text; where state, data and metadata begin then, in bytes of the device; the sizes, in bytes, of
    state and metadata."""

    text: str
    places: Places
    state: int
    metadata: int


def thin_sections(group: Section) -> dict[str, Section]:
    """The thin volumes in LVM's text of a group, by the names of their logical volumes."""
    volumes = section(group, "logical_volumes")
    return {name: volume for name in volumes if _kind(volume := section(volumes, name)) == "thin"}


def changed_group(group: Section, name: str, thin: Mapping[str, Section], transaction: int) -> Change:
    """The group `name` with these thin volumes, in a pool that expects that `transaction`.

    Raises NoSpace if there is no room for a second `state`, Refused if the group does not lie as a kit's does."""
    volumes = section(group, "logical_volumes")
    device, carrier = next(iter(section(group, "physical_volumes").items()))
    if not isinstance(carrier, dict) or len(section(group, "physical_volumes")) != 1:
        raise Refused(f"volume group {name} lies on several disks")
    spare = next((name for name in volumes if name.endswith("_pmspare")), _SPARE)
    volumes = {_SPARE if name == spare else name: volume for name, volume in volumes.items()}
    foreign = [
        key for key in volumes if key not in (STATE, POOL, _DATA, _METADATA, _SPARE) and _kind(section(volumes, key)) != "thin"
    ]
    if foreign:
        raise Refused(f"volume group {name} has volumes that are no kit's: {', '.join(foreign)}", hint="move them elsewhere")
    if _SPARE not in volumes:
        raise NoSpace(f"volume group {name} has no spare metadata")
    if any(key.startswith("message") for key in section(section(volumes, POOL), "segment1")):
        raise Refused(
            f"the pool of volume group {name} was left in the middle of a change", hint="attach the kit, then detach it"
        )
    parts = {part: _extents(volumes, part) for part in (STATE, _DATA, _METADATA, _SPARE)}
    if parts[_METADATA][1] != parts[_SPARE][1]:
        raise NoSpace(f"volume group {name} has no spare metadata of the size of its pool's")
    state = _hole(sorted(_used(volumes)), parts[STATE][1], number(carrier, "pe_count"))
    if state is None:
        raise NoSpace(f"volume group {name} has no room for a second {STATE}")
    extents = {**parts, STATE: (state, parts[STATE][1]), _METADATA: parts[_SPARE], _SPARE: parts[_METADATA]}
    own: dict[str, Value] = {part: _put(section(volumes, part), device, extents[part]) for part in parts}
    pool = section(volumes, POOL)
    own[POOL] = {**pool, "segment1": {**section(pool, "segment1"), "transaction_id": transaction}}
    made: Section = {**group, "seqno": number(group, "seqno") + 1, "logical_volumes": {**own, **thin}}
    begin = number(carrier, "pe_start") * _SECTOR
    places = Places(*(begin + extents[part][0] * EXTENT for part in (STATE, _DATA, _METADATA)))
    text = write_text({"contents": "Text Format Volume Group", "version": 1, "description": "a kit, up to date", name: made})
    return Change(text, places, extents[STATE][1] * EXTENT, extents[_METADATA][1] * EXTENT)


def section(within: Section, key: str) -> Section:
    """A part of LVM's text. Raises Refused if there is none."""
    found = within.get(key)
    if not isinstance(found, dict):
        raise Refused(f"LVM's description of the volume group cannot be used: it has no {key}")
    return found


def number(within: Section, key: str) -> int:
    """A number in LVM's text. Raises Refused if there is none."""
    found = within.get(key)
    if not isinstance(found, int):
        raise Refused(f"LVM's description of the volume group cannot be used: {key} is no number")
    return found


def _kind(volume: Section) -> str:
    segment = volume.get("segment1")
    return str(segment.get("type", "")) if isinstance(segment, dict) else ""


def _extents(volumes: Section, name: str) -> tuple[int, int]:
    """Where a volume lies: its first extent, and how many. Raises NoSpace if that is not in one piece."""
    volume = section(volumes, name)
    found = list(_pieces(volume))
    if len(found) != 1:
        raise NoSpace(f"{name} lies in {len(found)} pieces")
    return found[0]


def _pieces(volume: Section) -> Iterator[tuple[int, int]]:
    for at in range(1, number(volume, "segment_count") + 1):
        segment = section(volume, f"segment{at}")
        stripes = segment.get("stripes")
        if isinstance(stripes, list) and len(stripes) == 2 and isinstance(stripes[1], int):
            yield stripes[1], number(segment, "extent_count")


def _used(volumes: Section) -> Iterator[tuple[int, int]]:
    for name in volumes:
        yield from _pieces(section(volumes, name))


def _hole(used: list[tuple[int, int]], length: int, count: int) -> int | None:
    at = 0
    for first, taken in [*used, (count, 0)]:
        if first - at >= length:
            return at
        at = max(at, first + taken)
    return None


def _put(volume: Section, device: str, extents: tuple[int, int]) -> Section:
    stripes: list[int | str] = [device, extents[0]]
    return {**volume, "segment1": {**section(volume, "segment1"), "extent_count": extents[1], "stripes": stripes}}
