"""The volume group of a kit's copy: the source's volumes, by their names, tags and ids in the pool, on a device of another size.

It is drawn up as LVM's own text, so that the copy's content can be written past LVM, to places known beforehand, and the label
that makes LVM see a volume group comes last (`pvcreate --restorefile`, `vgcfgrestore`). UUIDs of the group and of the device are
new, so that copy and original can be plugged into one computer; those of volumes count within a group only and stay.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.sizes import size_text
from pocketcloud.storage.lvm import Lvm
from pocketcloud.storage.lvm_layout import Layout, layout_for
from pocketcloud.storage.lvm_text import Section, Value, read_text, write_text
from pocketcloud.storage.thin_volumes import EXTENT, POOL, STATE, whole_extents
from pocketcloud.system import Runner

# As format_commands makes them: the data begins behind LVM's area of 8 MiB and what rounds it up to a MiB.
PE_START = 9 << 20
_SECTOR = 512
_SPARE, _METADATA, _DATA = "lvol0_pmspare", f"{POOL}_tmeta", f"{POOL}_tdata"
_SIGNS = string.digits + string.ascii_letters
_GROUPS = (6, 4, 4, 4, 4, 4, 6)
# Of the metadata in use: room for the copy's own snapshots, and for the tools packing it less tightly.
_METADATA_ROOM = 2


@dataclass(frozen=True, slots=True)
class Places:
    """Where on the copy's device its parts begin, in bytes."""

    state: int
    data: int
    metadata: int


@dataclass(frozen=True, slots=True)
class CopiedGroup:
    """A volume group to be: its name, the UUID of its physical volume, LVM's text of it, and where its parts lie."""

    name: str
    pv_uuid: str
    text: str
    layout: Layout
    places: Places

    @property
    def chunks(self) -> int:
        """How many chunks its pool has."""
        return self.layout.pool // self.layout.chunk


def fresh_uuid() -> str:
    """A UUID as LVM makes them."""
    return "-".join("".join(secrets.choice(_SIGNS) for _ in range(length)) for length in _GROUPS)


def read_group(lvm: Lvm, vg: str, file: Path) -> Section:
    """LVM's own description of a volume group; `file` takes it meanwhile. Raises CommandFailed, Refused."""
    lvm.command("vgcfgbackup", "-f", file, vg)
    return _part(read_text(file.read_text()), vg)


def fitting_layout(size: int, chunk: int, used_metadata: int, run: Runner) -> Layout:
    """The layout of a copy on a partition of `size` bytes, whose pool's metadata has room for `used_metadata` bytes twice.
    Raises NoSpace if the partition is too small for a kit."""
    layout = layout_for(size, chunk, run)
    metadata = max(layout.metadata, whole_extents(_METADATA_ROOM * used_metadata))
    more = 2 * (metadata - layout.metadata)
    if more >= layout.pool:
        raise NoSpace(f"{size_text(size)} is too small for a pool of this kit's volumes", hint="choose a larger disk")
    return replace(layout, metadata=metadata, pool=layout.pool - more)


def copied_group(source: Section, name: str, tags: Sequence[str], layout: Layout, size: int) -> CopiedGroup:
    """The group of a copy named `name` with `tags`, on a device of `size` bytes, of the group `source`.

    Raises Refused if the source has volumes that are no kit's."""
    # After a repair LVM calls the spare otherwise.
    volumes = {_SPARE if key.endswith("_pmspare") else key: told for key, told in _part(source, "logical_volumes").items()}
    extents, found = {}, 0
    for volume, bytes_ in ((STATE, layout.state), (_DATA, layout.pool), (_METADATA, layout.metadata), (_SPARE, layout.metadata)):
        extents[volume] = (found, bytes_ // EXTENT)
        found += bytes_ // EXTENT
    foreign = [key for key, volume in volumes.items() if key not in (*extents, POOL) and _kind(volume) != "thin"]
    if foreign:
        raise Refused(f"volume group has volumes that are no kit's: {', '.join(sorted(foreign)[:5])}", hint="move them elsewhere")
    pv_uuid = fresh_uuid()
    count = (size - PE_START) // EXTENT
    made: Section = {
        **{key: value for key, value in source.items() if key not in ("physical_volumes", "logical_volumes", "tags")},
        "id": fresh_uuid(),
        "seqno": 1,
        "tags": list(tags),
        "physical_volumes": {
            "pv0": {
                "id": pv_uuid,
                "device": "unknown",
                "status": ["ALLOCATABLE"],
                "flags": [],
                "dev_size": size // _SECTOR,
                "pe_start": PE_START // _SECTOR,
                "pe_count": count,
            }
        },
        "logical_volumes": dict(_volumes(volumes, extents)),
    }
    _set_segment(_part(_part(made, "logical_volumes"), POOL), extent_count=extents[_DATA][1])
    text = write_text({"contents": "Text Format Volume Group", "version": 1, "description": "a kit's copy", name: made})
    begin = {volume: PE_START + first * EXTENT for volume, (first, _) in extents.items()}
    return CopiedGroup(name, pv_uuid, text, layout, Places(begin[STATE], begin[_DATA], begin[_METADATA]))


def _volumes(volumes: Mapping[str, Value], extents: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, Value]]:
    for name, told in volumes.items():
        volume = dict(told) if isinstance(told, dict) else {}
        if name in extents:
            first, count = extents[name]
            volume = {key: value for key, value in volume.items() if not key.startswith("segment")}
            volume["segment_count"] = 1
            volume["segment1"] = {
                "start_extent": 0,
                "extent_count": count,
                "type": "striped",
                "stripe_count": 1,
                "stripes": ["pv0", first],
            }
        yield name, volume


def _set_segment(volume: Section, **values: int) -> None:
    volume["segment1"] = {**_part(volume, "segment1"), **values}


def _kind(volume: Value) -> str:
    segment = volume.get("segment1") if isinstance(volume, dict) else None
    return str(segment.get("type", "")) if isinstance(segment, dict) else ""


def _part(section: Section, key: str) -> Section:
    found = section.get(key)
    if not isinstance(found, dict):
        raise Refused(f"LVM's description of the volume group cannot be used: it has no {key}")
    return found
