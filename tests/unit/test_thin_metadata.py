"""Maps of thin pools: read and written as the pool tools themselves do, which are run on files."""

from __future__ import annotations

import contextlib
import subprocess
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcloud.errors import Refused
from pocketcloud.storage.thin_metadata import PoolMap, Run, ThinDevice, read_delta, read_dump, write_dump

CHUNK = 64 << 10
CHUNKS = 4096
_SIZES = f'data_block_size="{CHUNK >> 9}" nr_data_blocks="{CHUNKS}"'
HEAD = f'<superblock uuid="" time="3" transaction="9" flags="0" version="2" {_SIZES}>'
DEVICE = '<device dev_id="1" mapped_blocks="{}" transaction="0" creation_time="0" snap_time="0">'


def text_of(pool: PoolMap) -> str:
    parts: list[str] = []
    write_dump(pool, parts.append)
    return "".join(parts)


def read(text: str, step: int = 997) -> PoolMap:
    data = text.encode()
    return read_dump(data[at : at + step] for at in range(0, len(data), step))


def restored(pool: PoolMap, path: Path) -> Path:
    """A file with the pool's metadata, made by thin_restore."""
    told, metadata = path / "map.xml", path / "metadata"
    told.write_text(text_of(pool))
    with metadata.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["thin_restore", "-i", told, "-o", metadata], check=True, capture_output=True)
    return metadata


def same(one: PoolMap, two: PoolMap) -> bool:
    return one.digest() == two.digest() and (one.chunk, one.chunks) == (two.chunk, two.chunks)


@st.composite
def devices(draw: st.DrawFn, number: int, snapshots: int = 3) -> ThinDevice:
    packed = array("Q")
    origin = 0
    for _ in range(draw(st.integers(0, 6))):
        origin += draw(st.integers(0, 5))
        length = draw(st.integers(1, 40))
        data = draw(st.integers(0, CHUNKS - length))
        time = draw(st.integers(0, snapshots))
        packed.extend((origin, data, length, time))
        origin += length
    return ThinDevice(number, draw(st.integers(0, 9)), draw(st.integers(0, 3)), draw(st.integers(0, 3)), packed)


@st.composite
def pools(draw: st.DrawFn) -> PoolMap:
    numbers = draw(st.lists(st.integers(1, 50), unique=True, max_size=5))
    found = {number: draw(devices(number)) for number in sorted(numbers)}
    return PoolMap(CHUNK, CHUNKS, 3, 9, found)


@settings(max_examples=200, deadline=None)
@given(pools())
def test_what_is_written_is_read(pool: PoolMap) -> None:
    assert same(read(text_of(pool)), pool)


@settings(max_examples=25, deadline=None)
@given(pool=pools())
def test_the_tools_read_and_write_the_same(pool: PoolMap, tmp_path_factory: pytest.TempPathFactory) -> None:
    metadata = restored(pool, tmp_path_factory.mktemp("metadata"))
    again = read(subprocess.run(["thin_dump", metadata], check=True, capture_output=True, text=True).stdout)
    # The tools write neighbouring runs as one.
    for number, device in pool.devices.items():
        assert expanded(again.devices[number]) == expanded(device)
        assert again.devices[number].mapped == device.mapped
    assert again.allocated() == pool.allocated()


def expanded(device: ThinDevice) -> list[Run]:
    return [Run(run.origin + step, run.data + step, 1, run.time) for run in device.runs for step in range(run.length)]


@settings(max_examples=200, deadline=None)
@given(pools(), st.sets(st.integers(1, 50)))
def test_each_chunk_is_read_once_and_in_order(pool: PoolMap, without: set[int]) -> None:
    chunks = {
        run.data + step
        for number, device in pool.devices.items()
        if number not in without
        for run in device.runs
        for step in range(run.length)
    }
    found = pool.allocated(without)
    assert [begin + step for begin, length in found for step in range(length)] == sorted(chunks)
    assert all(later[0] > earlier[0] + earlier[1] for earlier, later in pairwise(found))


@settings(max_examples=200, deadline=None)
@given(pools())
def test_a_map_moves_together_and_keeps_what_is_shared(pool: PoolMap) -> None:
    places, at = {}, 0
    for begin, length in pool.allocated():
        places[begin] = at
        at += length
    moved = pool.moved(places, max(at, 1))
    assert moved.allocated() == ([(0, at)] if at else [])
    where: dict[int, int] = {}
    for number, device in pool.devices.items():
        for before, after in zip(expanded(device), expanded(moved.devices[number]), strict=True):
            assert (before.origin, before.time) == (after.origin, after.time)
            assert where.setdefault(before.data, after.data) == after.data
    assert len(set(where.values())) == len(where)


def test_what_differs_is_what_the_tool_finds(tmp_path: Path) -> None:
    base = array("Q", (0, 0, 10, 0, 20, 30, 3, 1))
    changed = array("Q", (0, 0, 10, 0, 20, 40, 1, 2, 21, 31, 1, 1, 50, 60, 2, 2))
    pool = PoolMap(CHUNK, CHUNKS, 3, 9, {1: ThinDevice(1, packed=base), 2: ThinDevice(2, packed=changed)})
    metadata = restored(pool, tmp_path)
    told = subprocess.run(["thin_delta", "--thin1", "1", "--thin2", "2", metadata], check=True, capture_output=True).stdout
    assert read_delta(told) == [(20, 1), (22, 1), (50, 2)]


def test_named_parts_are_read() -> None:
    """Newer tools write what volumes share once, and refer to it."""
    shared = '<def name="a"><range_mapping origin_begin="0" data_begin="5" length="4" time="0"/></def>'
    own = '<single_mapping origin_block="9" data_block="1" time="1"/>'
    text = f'{HEAD}{shared}{DEVICE.format(5)}<ref name="a"/>{own}</device></superblock>'
    assert list(read(text).devices[1].runs) == [Run(0, 5, 4, 0), Run(9, 1, 1, 1)]


BAD = {
    "nothing": "",
    "no XML": "superblock",
    "cut short": HEAD + DEVICE.format(0),
    "another text": "<html></html>",
    "a number that is none": HEAD.replace('"3"', '"three"') + "</superblock>",
    "a number that is too large": HEAD.replace('time="3"', f'time="{1 << 24}"') + "</superblock>",
    "a volume twice": HEAD + (DEVICE.format(0) + "</device>") * 2 + "</superblock>",
    "a wrong sum": HEAD + DEVICE.format(7) + "</device></superblock>",
    "past the end": HEAD
    + DEVICE.format(1)
    + f'<single_mapping origin_block="0" data_block="{CHUNKS}" time="0"/></device></superblock>',
    "not in order": HEAD
    + DEVICE.format(2)
    + '<single_mapping origin_block="1" data_block="1" time="0"/>' * 2
    + "</device></superblock>",
    "a part that is not there": HEAD + DEVICE.format(0) + '<ref name="x"/></device></superblock>',
    "entities": '<!DOCTYPE superblock [<!ENTITY a "b">]>' + HEAD + "</superblock>",
    "an odd place": HEAD + '<range_mapping origin_begin="0" data_begin="0" length="1" time="0"/></superblock>',
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_map_is_refused(what: str) -> None:
    with pytest.raises(Refused, match="the map of the pool cannot be used"):
        read(BAD[what])


@settings(max_examples=300, deadline=None)
@given(pools(), st.data())
def test_flipped_bytes_never_end_in_anything_but_a_refusal(pool: PoolMap, data: st.DataObject) -> None:
    text = bytearray(text_of(pool).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Refused):
        read_dump([bytes(text)])
