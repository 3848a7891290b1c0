"""How the volumes of a kit are written in LVM: their names, their tags, and the words of the commands that make them.

A volume is a thin volume with the tag `pc:name=NAME`; names of logical volumes are derived from that and never read back.
Others of its tags: `pc:kept`, sealed for good; `pc:making=MAKER`, not whole yet; `pc:next`, about to take the place of the
volume of its name; `pc:spare`, made in advance; the rest are the marks it was made with. What has `pc:shipped=GENERATION` and
`pc:of=UUID` is no volume: it keeps what the logical volume of that UUID held when copies of the kit were made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.model.inventory import Volume
from pocketcloud.storage import Marks
from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.lvm import LogicalVolume

POOL, STATE, CONTENT, BALLAST = "pool", "state", "content", "ballast"
NAME, KEPT, MAKING, NEXT, SPARE = "pc:name", "pc:kept", "pc:making", "pc:next", "pc:spare"
EXTENT = 4 << 20
SHIPPED, OF = "pc:shipped", "pc:of"
_RESERVED = frozenset({NAME, KEPT, MAKING, NEXT, SPARE, SHIPPED, OF})
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")
_LOGICAL = re.compile(r"(v|h|s)(\.[a-z0-9][a-z0-9_-]*)+")
_MARK = re.compile(r"[A-Za-z0-9._:-]*")
_LONGEST = 200
# Of the 127 characters of a device-mapper name; dashes in it are doubled, and LVM adds suffixes to some.
_LONGEST_NODE = 110
# Parts of names that LVM keeps for itself (lvm(8), VALID NAMES).
_TAKEN = re.compile("_(cdata|cmeta|corig|iorig|mimage|mlog|pmspare|rimage|rmeta|tdata|tmeta|vdata|vorigin|wcorig)")


def volume_of(vg: str, name: str) -> str:
    """The logical volume of the volume `name`: its own name where that fits, else a digest of it. Raises Refused for what is
    no name."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        raise Refused(f"{name[:60]!r} is not a name of a volume: a-z, 0-9, '-' and '_', joined by dots")
    logical = f"v.{name}"  # so it is none of the whole names that LVM keeps for itself
    if len(node_name(vg, logical)) > _LONGEST_NODE or _TAKEN.search(name):
        logical = f"h.{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"
    return logical


def is_name(text: str) -> bool:
    """Whether a volume may be named so."""
    return len(text) <= _LONGEST and bool(_NAME.fullmatch(text))


def is_logical(text: str) -> bool:
    """Whether a logical volume may be named so that is a volume, or keeps what one was shipped with."""
    return len(text) <= _LONGEST_NODE and bool(_LOGICAL.fullmatch(text)) and not _TAKEN.search(text)


def path_of(vg: str, logical: str) -> Path:
    """Where the node of a logical volume is, or will be when it is active."""
    return Path("/dev", vg, logical)


def volumes_in(vg: str, rows: Iterable[LogicalVolume]) -> tuple[Volume, ...]:
    """The volumes among the rows of a VG, by name."""
    rows = tuple(rows)
    ours = [row for row in rows if row.thin and row.tagged(NAME) and row.tagged(MAKING) is None]
    settled = {row.tagged(NAME) for row in ours if NEXT not in row.tags}
    # A replacement counts from when the old one is gone.
    ours = [row for row in ours if NEXT not in row.tags or row.tagged(NAME) not in settled]
    names = {row.name: row.tagged(NAME) for row in ours}
    parents = {row.origin for row in ours if SPARE not in row.tags}
    found = [
        Volume(
            name=row.tagged(NAME) or "",
            path=path_of(vg, row.name),
            format="raw",
            size=row.size,
            used=None,
            sealed=KEPT in row.tags or row.name in parents,
            parent=names.get(row.origin),
            spare=SPARE in row.tags,
            marks=marks_of(row),
            kept=KEPT in row.tags,
        )
        for row in ours
    ]
    return tuple(sorted(found, key=lambda volume: volume.name))


def named(rows: Iterable[LogicalVolume], name: str) -> LogicalVolume | None:
    """The row of the volume `name`, a spare one too; None if there is none."""
    return next((row for row in rows if row.thin and row.tagged(NAME) == name and NEXT not in row.tags), None)


def mark_tags(marks: Marks | None) -> list[str]:
    """Marks as tags. Raises ValueError for what LVM would not take as a tag."""
    tags = []
    for key, value in sorted((marks or {}).items()):
        tag = f"pc:{key}"
        if tag in _RESERVED or not _MARK.fullmatch(f"{key}{value}"):
            raise ValueError(f"{key}={value!r} cannot mark a volume")
        tags.append(f"{tag}={value}")
    return tags


def marks_of(row: LogicalVolume) -> dict[str, str]:
    """The marks that a volume was made with."""
    pairs = (tag.removeprefix("pc:").partition("=") for tag in row.tags if tag.startswith("pc:") and "=" in tag)
    return {key: value for key, _, value in sorted(pairs) if f"pc:{key}" not in _RESERVED}


def create_words(vg: str, logical: str, size: int, *tags: str) -> tuple[str, ...]:
    """The command that makes an empty thin volume, inactive."""
    added = [word for tag in tags for word in ("--addtag", tag)]
    return ("lvcreate", "-an", "-kn", "-V", f"{whole_extents(size)}b", "--thinpool", POOL, "-n", logical, *added, vg)


def snapshot_words(vg: str, source: str, logical: str, *tags: str) -> tuple[str, ...]:
    """The command that makes a clone, writable and inactive."""
    # -kn: a thin snapshot would otherwise be left out of every activation, silently.
    added = [word for tag in tags for word in ("--addtag", tag)]
    return ("lvcreate", "-s", "-an", "-kn", "-prw", "-n", logical, *added, f"{vg}/{source}")


def whole_extents(size: int) -> int:
    """Sizes are whole extents (kits are made with LVM's default of 4 MiB)."""
    return -(-size // EXTENT) * EXTENT
