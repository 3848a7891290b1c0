"""What is to be copied, in pieces: where each lies in the source, and where it goes in a target. Values only."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

# Large enough that a disk behind USB works at its full rate, small enough that a ring of them is little memory.
LARGEST = 4 << 20
_LEAST_CHUNK = 64 << 10  # all chunks of thin pools are a multiple of it


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes from the byte `begin` of the source on."""

    begin: int
    length: int


def unit_of(chunk: int) -> int:
    """In what units, in bytes, the content of a pool in chunks of `chunk` bytes is hashed: chunks, if a piece can have one."""
    return chunk if chunk <= LARGEST else _LEAST_CHUNK


def _step(chunk: int) -> int:
    unit = unit_of(chunk)
    return LARGEST // unit * unit


def cut(runs: Iterable[tuple[int, int]], unit: int) -> Iterator[Piece]:
    """Cut runs of `unit` bytes (first, length), in their order, into pieces."""
    for first, length in runs:
        begin, end = first * unit, (first + length) * unit
        yield from (Piece(at, min(_step(unit), end - at)) for at in range(begin, end, _step(unit)))


def aims(runs: Iterable[tuple[int, int]], unit: int, places: Mapping[int, int], offset: int) -> array[int]:
    """Where each piece that `cut` makes of the runs goes in a target, in bytes: a run goes to `places`, counted in units from
    the byte `offset` on."""
    return array(
        "Q",
        (offset + places[first] * unit + step for first, length in runs for step in range(0, length * unit, _step(unit))),
    )


def placed(runs: Sequence[tuple[int, int]], chunks: int) -> dict[int, int] | None:
    """Where runs of chunks go in a pool of `chunks`: where they are, if they fit; else those past its end into what is free
    before it, a run in one place. None if there is no room for them all."""
    places = {first: first for first, length in runs if first + length <= chunks}
    free, at = [], 0  # (length, first)
    for first, length in runs:
        if first in places:
            free.append((first - at, at))
            at = first + length
    free.append((chunks - at, at))
    free.sort()
    for first, length in sorted(((f, n) for f, n in runs if f not in places), key=lambda run: -run[1]):
        # The smallest hole that takes it, so that large ones are kept for large runs.
        smallest = bisect_left(free, (length, 0))
        if smallest == len(free):
            return _packed(runs, chunks)
        room, begin = free.pop(smallest)
        places[first] = begin
        insort(free, (room - length, begin + length))
    return places


def _packed(runs: Sequence[tuple[int, int]], chunks: int) -> dict[int, int] | None:
    """One after the other."""
    places, at = {}, 0
    for first, length in runs:
        places[first] = at
        at += length
    return places if at <= chunks else None
