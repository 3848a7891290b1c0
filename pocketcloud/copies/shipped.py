"""What a kit shipped to its copies, by its own words: `shipped/GENERATION.json` in the tree of the kit and of its copies, and
the digests of the content beside it. The content itself is kept by storage/shipped.py.

Digests lie in GENERATION.sums: for each run of units (first, count: 64 bits each, least byte first) its digests.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pocketcloud.copies.pouring import DIGEST
from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument, Refused
from pocketcloud.files import write_whole
from pocketcloud.storage.thin_metadata import ThinDevice

FOLDER = "shipped"
_RUN = struct.Struct("<QQ")
_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Kept:
    """A volume: its name, LVM's UUID of it, that of what holds its content as it was shipped (itself, if it was sealed for
    good, else a snapshot), and what that content is known by: empty until it was read."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: str
    uuid: str
    holder: str
    content: str = ""


@dataclass(frozen=True, slots=True)
class ShippedBase:
    """A base: its name, its machines' architecture, the digest of what it was built from, and its volume."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: str
    arch: str
    digest: str
    volume: str


@dataclass(frozen=True, slots=True)
class Shipped:
    """A generation: what was shipped at one moment. `kit` is the id of who shipped it, `made` when, ISO 8601 in UTC; `files` is
    what the files in the volume `content` are known by. The `number` counts them: clocks of hosts differ."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    generation: str
    kit: str
    made: str
    volumes: tuple[Kept, ...] = ()
    bases: tuple[ShippedBase, ...] = ()
    labs: tuple[str, ...] = ()
    files: str = ""
    number: int = 0

    @property
    def holders(self) -> dict[str, str]:
        """What holds each volume's content, by UUIDs."""
        return {kept.uuid: kept.holder for kept in self.volumes}


def fresh_generation() -> str:
    """A name for a generation."""
    return secrets.token_hex(4)


def read_all(tree: Path) -> tuple[Shipped, ...]:
    """The generations that a tree tells of, the youngest first. Raises Refused for one that is damaged."""
    found = []
    for path in sorted((tree / FOLDER).glob("*.json")):
        try:
            found.append(parse_json(path.read_bytes().decode(errors="replace"), Shipped, str(path)))
        except BadDocument as error:
            raise Refused(
                f"what the kit says of its copies is damaged: {error.message.splitlines()[0]}",
                hint=f"move it away, and copies are made whole next time: mv {path} {path}.damaged",
            ) from error
    return tuple(sorted(found, key=lambda shipped: (shipped.number, shipped.made), reverse=True))


def write(tree: Path, shipped: Shipped) -> None:
    """Write what was shipped."""
    (tree / FOLDER).mkdir(exist_ok=True)
    write_whole(tree / FOLDER / f"{shipped.generation}.json", dump_json(shipped))


def drop(tree: Path, but: Iterable[str]) -> None:
    """Remove the words of all generations but these."""
    left = set(but)
    for path in (tree / FOLDER).glob("*"):
        if path.name.partition(".")[0] not in left:
            path.unlink(missing_ok=True)


# -- digests


@dataclass(frozen=True)
class Sums:
    """The digests of what a pool holds, by units: runs of them (first, digests of DIGEST bytes each), in order."""

    runs: tuple[tuple[int, bytes], ...]

    @cached_property
    def _begins(self) -> list[int]:
        return [first for first, _ in self.runs]

    def of(self, unit: int) -> bytes | None:
        """The digest of one unit; None if there is none."""
        at = bisect_right(self._begins, unit) - 1
        if at < 0:
            return None
        first, digests = self.runs[at]
        return digests[(unit - first) * DIGEST : (unit - first + 1) * DIGEST] or None

    def part(self, first: int, count: int) -> bytes:
        """The digests of some units in a row; shorter where one is missing."""
        at = max(bisect_right(self._begins, first) - 1, 0)
        found: list[bytes] = []
        while at < len(self.runs) and count > 0:
            begin, digests = self.runs[at]
            end, at = begin + len(digests) // DIGEST, at + 1
            if begin > first:
                break
            taken = min(end - first, count)
            if taken > 0:
                found.append(digests[(first - begin) * DIGEST : (first - begin + taken) * DIGEST])
                first, count = first + taken, count - taken
        return b"".join(found)

    def count(self) -> int:
        """How many units there are digests of."""
        return sum(len(digests) for _, digests in self.runs) // DIGEST


def sums_of(parts: Iterable[tuple[int, bytes]]) -> Sums:
    """Put together the digests of parts (first unit, digests), in whatever order."""
    joined: list[tuple[int, list[bytes]]] = []
    end = -1
    for first, digests in sorted(parts, key=lambda part: part[0]):
        if first == end:
            joined[-1][1].append(digests)
        else:
            joined.append((first, [digests]))
        end = first + len(digests) // DIGEST
    return Sums(tuple((first, b"".join(digests)) for first, digests in joined))


def content_of(device: ThinDevice, units: int, sums: Sums) -> str:
    """What the content of a thin volume is known by, wherever in a pool it lies: where it maps chunks, of `units` units each,
    and the digests of these. Empty if one is missing."""
    mapped: list[tuple[int, int]] = []
    told = hashlib.blake2b(digest_size=32)
    for run in device.runs:
        digests = sums.part(run.data * units, run.length * units)
        if len(digests) != run.length * units * DIGEST:
            return ""
        told.update(digests)
        if mapped and sum(mapped[-1]) == run.origin:
            mapped[-1] = (mapped[-1][0], mapped[-1][1] + run.length)
        else:
            mapped.append((run.origin, run.length))
    for place in mapped:
        told.update(_RUN.pack(*place))
    return told.hexdigest()


def write_sums(tree: Path, generation: str, sums: Sums) -> None:
    """Write the digests of a generation, as they lie in this kit."""
    (tree / FOLDER).mkdir(exist_ok=True)
    text = b"".join(part for first, digests in sums.runs for part in (_RUN.pack(first, len(digests) // DIGEST), digests))
    write_whole(_sums_file(tree, generation), text)


def read_sums(tree: Path, generation: str) -> Sums | None:
    """The digests of a generation; None if there are none that are whole."""
    try:
        text = _sums_file(tree, generation).read_bytes()
        return Sums(tuple(_runs(text)))
    except (FileNotFoundError, struct.error, ValueError):
        return None


def _runs(text: bytes) -> Iterator[tuple[int, bytes]]:
    at = end = 0
    while at < len(text):
        first, count = _RUN.unpack_from(text, at)
        at += _RUN.size
        digests = text[at : at + count * DIGEST]
        if first < end or not count or len(digests) != count * DIGEST:
            raise ValueError("the digests are damaged")
        yield first, digests
        at += len(digests)
        end = first + count


def _sums_file(tree: Path, generation: str) -> Path:
    return tree / FOLDER / f"{generation}.sums"
