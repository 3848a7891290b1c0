"""What a volume has that its parent does not: by the tables of its qcow2 image, or by the map of its pool.

Copied by that alone, from parents to their clones, volumes share in another store what they shared in this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.storage.thin_metadata import Run, ThinDevice
from pocketcloud.system import Runner


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a volume from the byte `begin` on; `zero` ones are nothing but zeros, where the parent has something
    else. `at` is where those of a thin volume lie in the pool's data."""

    begin: int
    length: int
    zero: bool = False
    at: int = 0

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.begin + self.length


def taken(extents: Iterable[Extent]) -> int:
    """The bytes that are not only zeros."""
    return sum(extent.length for extent in extents if not extent.zero)


def of_image(image: Path, below: int, run: Runner) -> list[Extent]:
    """What a qcow2 image has of its own, in order; `below` is its parent's size in bytes, 0 without one: behind that all is
    zeros anyway. Raises CommandFailed, Refused."""
    found: list[Extent] = []

    def line(text: str) -> None:
        row = text.strip().strip("[],")
        if row.startswith("{"):
            _add(found, _extent(row, image), below)

    # The overlay's own clusters are those of depth 0; what neither it nor what it stands on has is zeros, and told as that.
    run(["qemu-img", "map", "--output=json", "-f", "qcow2", "--", image], on_line=line)
    return found


def _extent(row: str, image: Path) -> Extent | None:
    try:
        told = json.loads(row)
        if told["depth"] != 0:
            return None
        return Extent(int(told["start"]), int(told["length"]), bool(told["zero"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"qemu-img tells of {image} what is not understood: {row[:200]}") from error


def _add(found: list[Extent], extent: Extent | None, below: int) -> None:
    if extent is None:
        return
    if extent.zero:
        extent = replace(extent, length=min(extent.end, below) - extent.begin)
    if extent.length <= 0:
        return
    last = found[-1] if found else None
    if last is not None and last.end == extent.begin and last.zero == extent.zero:
        found[-1] = replace(last, length=last.length + extent.length)
    else:
        found.append(extent)


def of_thin(own: ThinDevice, parent: ThinDevice | None, chunk: int, size: int) -> list[Extent]:
    """What a thin volume of `size` bytes maps otherwise than its parent does, in chunks of `chunk` bytes; chunks that the parent
    alone maps are zeros in it."""
    mine, theirs = list(own.runs), list(parent.runs) if parent else []
    found = [
        Extent(run.origin * chunk, run.length * chunk, at=run.data * chunk) for run in _but(mine, theirs, shared=_same_place)
    ]
    found += [Extent(run.origin * chunk, run.length * chunk, zero=True) for run in _but(theirs, mine, shared=_anywhere)]
    cut = (replace(extent, length=min(extent.length, size - extent.begin)) for extent in found)
    return sorted((extent for extent in cut if extent.length > 0), key=lambda extent: extent.begin)


def _same_place(one: Run, other: Run) -> bool:
    return one.data - one.origin == other.data - other.origin


def _anywhere(_one: Run, _other: Run) -> bool:
    return True


def _but(runs: Sequence[Run], others: Sequence[Run], *, shared: Callable[[Run, Run], bool]) -> Iterator[Run]:
    """The parts of runs that are not shared with others; both are in order."""
    first = 0
    for run in runs:
        begin, end = run.origin, run.origin + run.length
        while first < len(others) and others[first].origin + others[first].length <= begin:
            first += 1
        at = first
        while at < len(others) and others[at].origin < end and begin < end:
            other = others[at]
            if shared(run, other):
                yield from _part(run, begin, min(end, other.origin))
                begin = max(begin, other.origin + other.length)
            at += 1
        yield from _part(run, begin, end)


def _part(run: Run, begin: int, end: int) -> Iterator[Run]:
    if begin < end:
        yield replace(run, origin=begin, data=run.data + begin - run.origin, length=end - begin)
