"""The metadata of a thin pool as values: which chunks of the pool each of its volumes maps, read from and written as the XML
of `thin_dump` and `thin_restore`, and what differs between two volumes, as `thin_delta` tells it.

Chunks are counted from the start of the pool's data, or of the volume. The text may come from elsewhere (an imported stream):
its reader takes nothing on trust, neither that runs are in order nor that they end within the pool.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO
from xml.parsers import expat

from pocketcloud.errors import Refused

# On disk an id of a volume has 24 bits, a time 24, and a chunk's place 40 (drivers/md/dm-thin-metadata.c).
_LARGEST_ID, _LARGEST_TIME, _LARGEST_CHUNK = (1 << 24) - 1, (1 << 24) - 1, (1 << 40) - 1
_SECTOR = 512
_FIELDS = 4
# More than the largest metadata of a pool holds (15.81 GiB).
_MOST_RUNS = 1 << 26
_LAST = True


@dataclass(frozen=True, slots=True)
class Run:
    """`length` chunks of a volume from `origin` on, which lie together in the pool from `data` on; `time` is the pool's count
    of snapshots when they were written."""

    origin: int
    data: int
    length: int
    time: int


@dataclass(frozen=True, slots=True)
class ThinDevice:
    """A thin volume as the pool has it. `runs` are kept packed, as a pool can have millions."""

    id: int
    transaction: int = 0
    created: int = 0
    snapped: int = 0
    packed: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def runs(self) -> Iterator[Run]:
        """The runs, by where they lie in the volume."""
        packed = self.packed
        return (Run(*packed[at : at + _FIELDS]) for at in range(0, len(packed), _FIELDS))

    @property
    def mapped(self) -> int:
        """How many chunks it maps."""
        return sum(self.packed[2::_FIELDS])


@dataclass(frozen=True, slots=True)
class PoolMap:
    """All volumes of a pool by their id, `chunk` in bytes, `chunks` how many the pool has (0 if that is not told)."""

    chunk: int
    chunks: int
    time: int
    transaction: int
    devices: Mapping[int, ThinDevice]

    def allocated(self, but: Iterable[int] = ()) -> list[tuple[int, int]]:
        """What is mapped in the pool, each chunk once, in the order of the disk: (first chunk, length). Without the volumes
        `but`, unless others share what they have."""
        left = set(but)
        begun = (
            zip(device.packed[1::_FIELDS], device.packed[2::_FIELDS], strict=True)
            for number, device in self.devices.items()
            if number not in left
        )
        return _joined(sorted(run for runs in begun for run in runs))

    def digest(self) -> str:
        """What tells this map from others, as a hexadecimal digest: the chunk's size, the volumes, and what they map."""
        told = hashlib.blake2b(digest_size=32)
        told.update(f"{self.chunk} {self.transaction} {self.time}\n".encode())
        for number, device in sorted(self.devices.items()):
            told.update(f"{number} {device.transaction} {device.created} {device.snapped} {len(device.packed)}\n".encode())
            packed = device.packed
            if packed.itemsize != 8 or array("H", [1]).tobytes() != b"\1\0":
                packed = array("Q", packed)
                packed.byteswap()
            told.update(packed.tobytes())
        return told.hexdigest()

    def moved(self, places: Mapping[int, int], chunks: int) -> PoolMap:
        """The map for a pool of `chunks` chunks where what began at a key of `places` begins at its value: `places` tells of
        each run of `allocated()` where it goes."""
        begins = sorted(places)
        return replace(
            self, chunks=chunks, devices={number: _moved(device, begins, places) for number, device in self.devices.items()}
        )


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, length in runs:
        if found and begin <= found[-1][0] + found[-1][1]:
            first, known = found[-1]
            found[-1] = (first, max(known, begin + length - first))
        else:
            found.append((begin, length))
    return found


def _moved(device: ThinDevice, begins: list[int], places: Mapping[int, int]) -> ThinDevice:
    packed = array("Q", device.packed)
    for at in range(1, len(packed), _FIELDS):
        begin = begins[bisect_right(begins, packed[at]) - 1]
        packed[at] += places[begin] - begin
    return replace(device, packed=packed)


def remapped(device: ThinDevice, table: Sequence[tuple[int, int, int]], number: int) -> ThinDevice:
    """The volume as number `number` of another pool: what lies in a run of `table` (first chunk, length, first chunk there),
    which is in order and has all that the volume maps, lies there."""
    begins = [first for first, _, _ in table]
    packed: array[int] = array("Q")
    for run in device.runs:
        at, end = run.data, run.data + run.length
        while at < end:
            first, length, there = table[bisect_right(begins, at) - 1]
            if not first <= at < first + length:
                raise ValueError(f"chunk {at} has no place")
            taken = min(end, first + length) - at
            packed.extend((run.origin + at - run.data, there + at - first, taken, run.time))
            at += taken
    return replace(device, id=number, packed=packed)


def aligned(one: ThinDevice, two: ThinDevice) -> Iterator[tuple[int, int, int, int]]:
    """What both volumes map: (first chunk of the volumes, where that of the first lies in the pool, the second's, length)."""
    others = two.runs
    other = next(others, None)
    for run in one.runs:
        while other and other.origin + other.length <= run.origin:
            other = next(others, None)
        while other and other.origin < run.origin + run.length:
            begin, end = max(run.origin, other.origin), min(run.origin + run.length, other.origin + other.length)
            yield begin, run.data + begin - run.origin, other.data + begin - other.origin, end - begin
            if other.origin + other.length > end:
                break
            other = next(others, None)


def without(runs: Iterable[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What of the runs (first, length), which are in order, is in none of the others, which are, too."""
    found, at = [], 0
    for first, length in runs:
        end = first + length
        while at < len(others) and sum(others[at]) <= first:
            at += 1
        look = at
        while first < end:
            begin, count = others[look] if look < len(others) else (end, 0)
            if begin >= end:
                found.append((first, end - first))
                break
            if begin > first:
                found.append((first, begin - first))
            first = max(first, begin + count)
            look += 1
    return found


# -- the text of thin_dump


class DumpReader:
    """Reads the XML of `thin_dump` as it comes, in bounded memory but for the runs themselves."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        # Nothing that a tool writes declares entities, and what a stranger declares could grow without end.
        self._parser.EntityDeclHandler = self._refuse
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._within: list[str] = []
        self._pool: PoolMap | None = None
        self._devices: dict[int, ThinDevice] = {}
        self._named: dict[str, array[int]] = {}
        self._into: array[int] | None = None
        self._told = 0
        self._runs = 0

    def feed(self, text: bytes) -> None:
        """Take the next part. Raises Refused for what is no map."""
        try:
            self._parser.Parse(text)
        except expat.ExpatError as error:
            raise _damaged(f"it is no XML: {error}") from None

    def end(self) -> PoolMap:
        """The map, when all parts were fed. Raises Refused if it is not whole."""
        try:
            self._parser.Parse(b"", _LAST)
        except expat.ExpatError as error:
            raise _damaged(f"it is cut short: {error}") from None
        if self._pool is None:
            raise _damaged("it has no superblock")
        return replace(self._pool, devices=self._devices)

    def _refuse(self, *_: object) -> None:
        raise _damaged("it declares what no metadata needs")

    def _begin(self, name: str, told: dict[str, str]) -> None:
        above = self._within[-1] if self._within else ""
        match above, name:
            case "", "superblock":
                self._pool = PoolMap(
                    chunk=_number(told, "data_block_size", 1 << 22) * _SECTOR,
                    chunks=_number(told, "nr_data_blocks", _LARGEST_CHUNK),
                    time=_number(told, "time", _LARGEST_TIME),
                    transaction=_number(told, "transaction", (1 << 64) - 1),
                    devices={},
                )
            case "superblock", "def":
                self._into = self._named[_text(told, "name")] = array("Q")
            case "superblock", "device":
                number = _number(told, "dev_id", _LARGEST_ID)
                if number in self._devices:
                    raise _damaged(f"it has volume {number} twice")
                device = ThinDevice(
                    number,
                    _number(told, "transaction", (1 << 64) - 1),
                    _number(told, "creation_time", _LARGEST_TIME),
                    _number(told, "snap_time", _LARGEST_TIME),
                )
                self._devices[number] = device
                self._into = device.packed
                self._told = _number(told, "mapped_blocks", _LARGEST_CHUNK)
            case "device" | "def", "range_mapping":
                self._add(
                    _number(told, "origin_begin", _LARGEST_CHUNK),
                    _number(told, "data_begin", _LARGEST_CHUNK),
                    _number(told, "length", _LARGEST_CHUNK),
                    _number(told, "time", _LARGEST_TIME),
                )
            case "device" | "def", "single_mapping":
                self._add(
                    _number(told, "origin_block", _LARGEST_CHUNK),
                    _number(told, "data_block", _LARGEST_CHUNK),
                    1,
                    _number(told, "time", _LARGEST_TIME),
                )
            case "device", "ref":
                named = self._named.get(_text(told, "name"))
                if named is None or self._into is None:
                    raise _damaged("it refers to a part that it does not have")
                for at in range(0, len(named), _FIELDS):
                    self._add(*named[at : at + _FIELDS])
            case _:
                raise _damaged(f"it has {name[:40]!r} in {above[:40]!r}")
        self._within.append(name)

    def _add(self, origin: int, data: int, length: int, time: int) -> None:
        if self._into is None or self._pool is None:
            raise _damaged("it maps chunks of no volume")
        self._runs += 1
        if self._runs > _MOST_RUNS:
            raise _damaged("it has more runs than a pool can have")
        into = self._into
        if length == 0 or (into and origin < into[-4] + into[-2]):
            raise _damaged(f"its runs are not in order, at chunk {origin}")
        if data + length > (self._pool.chunks or _LARGEST_CHUNK):
            raise _damaged(f"chunk {data} lies past the pool's end")
        into.extend((origin, data, length, time))

    def _end(self, name: str) -> None:
        self._within.pop()
        if name == "device":
            (device,) = (found for found in self._devices.values() if found.packed is self._into)
            if device.mapped != self._told:
                raise _damaged(f"volume {device.id} tells {self._told} chunks and maps {device.mapped}")
        if name in ("device", "def"):
            self._into = None


def _damaged(what: str) -> Refused:
    return Refused(f"the map of the pool cannot be used: {what}", hint="pocketcloud kit repair looks at a kit's pool")


def _text(told: Mapping[str, str], name: str) -> str:
    if name not in told:
        raise _damaged(f"{name!r} is missing")
    return told[name]


def _number(told: Mapping[str, str], name: str, most: int) -> int:
    text = _text(told, name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 20 and int(text) <= most):
        raise _damaged(f"{name} is {text[:40]!r}")
    return int(text)


def read_dump(parts: Iterable[bytes]) -> PoolMap:
    """The map that the XML of `thin_dump` tells, which comes in parts. Raises Refused for what is none."""
    reader = DumpReader()
    for part in parts:
        reader.feed(part)
    return reader.end()


def write_dump(pool: PoolMap, write: Callable[[str], object]) -> None:
    """Write the map as `thin_restore` reads it."""
    write(
        f'<superblock uuid="" time="{pool.time}" transaction="{pool.transaction}" flags="0" version="2"'
        f' data_block_size="{pool.chunk // _SECTOR}" nr_data_blocks="{pool.chunks}">\n'
    )
    for number, device in sorted(pool.devices.items()):
        write(
            f'<device dev_id="{number}" mapped_blocks="{device.mapped}" transaction="{device.transaction}"'
            f' creation_time="{device.created}" snap_time="{device.snapped}">\n'
        )
        for run in device.runs:
            write(
                f'<range_mapping origin_begin="{run.origin}" data_begin="{run.data}" length="{run.length}" time="{run.time}"/>\n'
            )
        write("</device>\n")
    write("</superblock>\n")


# -- the text of thin_delta


def read_delta(text: IO[bytes] | bytes) -> list[tuple[int, int]]:
    """Where the second volume is not as the first, out of the XML of `thin_delta`: (first chunk of the volume, length), in
    order. What only the first has counts, too: it reads as zeros in the second. Raises Refused for what is no such text."""
    found: list[tuple[int, int]] = []

    def begin(name: str, told: dict[str, str]) -> None:
        if name in ("different", "left_only", "right_only"):
            found.append((_number(told, "begin", _LARGEST_CHUNK), _number(told, "length", _LARGEST_CHUNK)))

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    try:
        if isinstance(text, bytes):
            parser.Parse(text, _LAST)
        else:
            parser.ParseFile(text)
    except expat.ExpatError as error:
        raise _damaged(f"what differs is told in no XML: {error}") from None
    return _joined(found)
