"""What is to be copied, in pieces: where each lies in the source, where it goes, how long it is. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

# Large enough that a disk behind USB works at its full rate, small enough that a ring of them is little memory.
LARGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes, at `source` there and at `target` here; all in bytes from the start of the device."""

    source: int
    target: int
    length: int


def cut(runs: Iterable[tuple[int, int]], unit: int, places: dict[int, int] | None = None, offset: int = 0) -> Iterator[Piece]:
    """Cut runs of `unit` bytes (first, length), in their order, into pieces. In the target they begin at `offset` plus their
    place: where `places` has them go, in units, else where they are in the source."""
    for first, length in runs:
        begin, left = first * unit, length * unit
        to = offset + (first if places is None else places[first]) * unit
        while left:
            size = min(left, LARGEST)
            yield Piece(begin, to, size)
            begin, to, left = begin + size, to + size, left - size


def placed(runs: Sequence[tuple[int, int]], chunks: int) -> dict[int, int] | None:
    """Where runs of chunks go in a pool of `chunks`: where they are, if they fit; else those past its end into what is free
    before it, a run in one place. None if there is no room for them all."""
    places = {first: first for first, length in runs if first + length <= chunks}
    free, at = [], 0
    for first, length in runs:
        if first in places:
            free.append((at, first - at))
            at = first + length
    free.append((at, chunks - at))
    for first, length in sorted(((f, n) for f, n in runs if f not in places), key=lambda run: -run[1]):
        # The smallest hole that takes it, so that large ones are kept for large runs.
        fitting = [hole for hole in free if hole[1] >= length]
        if not fitting:
            return _packed(runs, chunks)
        begin, room = min(fitting, key=lambda hole: hole[1])
        free.remove((begin, room))
        places[first] = begin
        free.append((begin + length, room - length))
    return places


def _packed(runs: Sequence[tuple[int, int]], chunks: int) -> dict[int, int] | None:
    """One after the other."""
    places, at = {}, 0
    for first, length in runs:
        places[first] = at
        at += length
    return places if at <= chunks else None
