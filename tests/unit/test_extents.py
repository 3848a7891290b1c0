"""What volumes have that their parents do not, by a pool's map and by the tables of images."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest

from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.storage.extents import Extent, of_image, of_thin, taken
from pocketcloud.storage.qcow2 import Qcow2Directory
from pocketcloud.storage.thin_metadata import ThinDevice
from pocketcloud.storage.volume_data import opened
from pocketcloud.system import run

CHUNK = 64 * KIB


def device(number: int, *runs: tuple[int, int, int]) -> ThinDevice:
    """A thin volume of runs (first chunk of the volume, of the pool, length)."""
    return ThinDevice(number, packed=array("Q", [value for run in runs for value in (*run, 0)]))


def test_a_volume_on_nothing_has_all_that_it_maps() -> None:
    found = of_thin(device(1, (0, 10, 2), (5, 12, 1)), None, CHUNK, 8 * CHUNK)
    assert found == [Extent(0, 2 * CHUNK, at=10 * CHUNK), Extent(5 * CHUNK, CHUNK, at=12 * CHUNK)]


def test_shared_chunks_are_left_out_and_lost_ones_are_zeros() -> None:
    parent = device(1, (0, 10, 8), (12, 30, 2))
    child = device(2, (0, 10, 2), (2, 50, 1), (3, 13, 2), (6, 16, 2), (13, 31, 3))
    assert of_thin(child, parent, CHUNK, 16 * CHUNK) == [
        Extent(2 * CHUNK, CHUNK, at=50 * CHUNK),
        Extent(5 * CHUNK, CHUNK, zero=True),
        Extent(12 * CHUNK, CHUNK, zero=True),
        Extent(14 * CHUNK, 2 * CHUNK, at=32 * CHUNK),
    ]


def test_nothing_lies_behind_the_end() -> None:
    assert of_thin(device(1, (0, 7, 2)), None, CHUNK, CHUNK + 4096) == [Extent(0, CHUNK + 4096, at=7 * CHUNK)]


@pytest.mark.parametrize("number", range(200))
def test_a_parent_with_its_extents_is_the_child(number: int) -> None:
    """Played on chunks of which each is known by where it lies; generated maps, as fine as they can be."""
    chance = random.Random(number)  # noqa: S311 - keeps no secret
    length = 40

    def generated(like: dict[int, int]) -> dict[int, int]:
        found = {at: data for at, data in like.items() if chance.random() < 0.7}
        return found | {at: 1000 + chance.randrange(length) for at in range(length) if chance.random() < 0.2}

    def as_device(chunks: dict[int, int]) -> ThinDevice:
        runs: list[list[int]] = []
        for at, data in sorted(chunks.items()):
            if runs and runs[-1][0] + runs[-1][2] == at and runs[-1][1] + runs[-1][2] == data and chance.random() < 0.8:
                runs[-1][2] += 1
            else:
                runs.append([at, data, 1])
        return device(1, *((one, two, three) for one, two, three in runs))

    parent = generated({at: 500 + at for at in range(length)})
    child = generated(parent)
    played = dict(parent)
    for extent in of_thin(as_device(child), as_device(parent), CHUNK, length * CHUNK):
        for at in range(extent.begin // CHUNK, extent.end // CHUNK):
            if extent.zero:
                assert at in parent
                del played[at]
            else:
                data = (extent.at + at * CHUNK - extent.begin) // CHUNK
                assert parent.get(at) != data, "what is shared is not copied"
                played[at] = data
    assert played == child


def test_of_an_image_its_own_clusters_and_what_it_has_zeroed(tmp_path: Path) -> None:
    store = Qcow2Directory(tmp_path)
    store.create("base", 4 * MIB)
    with opened(*store.place("base"), run, writable=True) as data:
        data.write(MIB, memoryview(b"x" * MIB))
    store.clone("base", "lab", 8 * MIB)
    with opened(*store.place("lab"), run, writable=True) as data:
        data.write(5 * MIB, memoryview(b"y" * CHUNK))
        data.zero(MIB + CHUNK, CHUNK)
        data.flush()
        assert data.read(MIB, 3 * CHUNK) == b"x" * CHUNK + bytes(CHUNK) + b"x" * CHUNK
    assert of_image(store.place("base")[0], 0, run) == [Extent(MIB, MIB)]
    found = of_image(store.place("lab")[0], 4 * MIB, run)
    assert found == [Extent(MIB + CHUNK, CHUNK, zero=True), Extent(5 * MIB, CHUNK)]
    assert taken(found) == CHUNK
