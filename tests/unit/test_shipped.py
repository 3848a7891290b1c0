"""What a kit shipped: chunks that two maps share, digests of what lies where, and a volume's content wherever it lies."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketcloud.copies import shipped
from pocketcloud.copies.pieces import aims, cut, unit_of
from pocketcloud.copies.shipped import Kept, Shipped, ShippedBase, Sums, content_of, read_sums, sums_of, write_sums
from pocketcloud.errors import Refused
from pocketcloud.storage.thin_metadata import ThinDevice, aligned, remapped, without

MIB = 1 << 20
MAP = st.dictionaries(st.integers(0, 40), st.integers(0, 60), max_size=20)


def device(mapped: dict[int, int]) -> ThinDevice:
    """A volume that maps these chunks, runs joined where they are."""
    packed: array[int] = array("Q")
    for origin, data in sorted(mapped.items()):
        if packed and packed[-4] + packed[-2] == origin and packed[-3] + packed[-2] == data:
            packed[-2] += 1
        else:
            packed.extend((origin, data, 1, 0))
    return ThinDevice(1, packed=packed)


def chunks(runs: list[tuple[int, int]]) -> set[int]:
    return {first + step for first, length in runs for step in range(length)}


def digest(chunk: int) -> bytes:
    return hashlib.blake2b(str(chunk).encode(), digest_size=16).digest()


def all_sums() -> Sums:
    return sums_of((chunk, digest(chunk)) for chunk in range(100))


@given(MAP, MAP)
def test_aligned_is_what_both_map(one: dict[int, int], two: dict[int, int]) -> None:
    found = {
        origin + step: (data + step, other + step)
        for origin, data, other, length in aligned(device(one), device(two))
        for step in range(length)
    }
    assert found == {origin: (one[origin], two[origin]) for origin in one.keys() & two.keys()}


RUNS = st.sets(st.integers(0, 60)).map(lambda there: [(first, 1) for first in sorted(there)])


@given(RUNS, RUNS)
def test_without_leaves_what_is_in_none_of_the_others(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    joined = [(run.origin, run.length) for run in device({first: first for first, _ in one}).runs]
    others = [(run.origin, run.length) for run in device({first: first for first, _ in two}).runs]
    found = without(joined, others)
    assert chunks(found) == chunks(one) - chunks(two)
    assert found == sorted(found)
    assert sum(length for _, length in found) == len(chunks(found))


@given(MAP, st.integers(0, 50))
def test_a_volume_is_remapped_chunk_by_chunk(mapped: dict[int, int], where: int) -> None:
    table = [(first, 7, 1000 - first * 10 + where) for first in range(0, 70, 7)]
    moved = remapped(device(mapped), table, 5)
    found = {run.origin + step: run.data + step for run in moved.runs for step in range(run.length)}
    assert found == {origin: table[data // 7][2] + data % 7 for origin, data in mapped.items()}
    assert moved.id == 5


@given(MAP, st.permutations(range(61)))
def test_content_is_known_wherever_it_lies(mapped: dict[int, int], places: list[int]) -> None:
    moved = {origin: places[data] for origin, data in mapped.items()}
    there = sums_of((places[chunk], digest(chunk)) for chunk in range(61))
    assert content_of(device(moved), 1, there) == content_of(device(mapped), 1, all_sums()) != ""
    for origin in mapped:
        other = sums_of((chunk, digest(chunk + 1 if chunk == mapped[origin] else chunk)) for chunk in range(100))
        assert content_of(device(mapped), 1, other) != content_of(device(mapped), 1, all_sums())
        shifted = {key + (key >= origin): value for key, value in mapped.items()}
        assert content_of(device(shifted), 1, all_sums()) != content_of(device(mapped), 1, all_sums())
    without_it = sums_of((chunk, digest(chunk)) for chunk in range(100) if chunk not in mapped.values())
    assert (content_of(device(mapped), 1, without_it) == "") == bool(mapped)


@given(st.sets(st.integers(0, 90)), st.integers(0, 90), st.integers(0, 30))
def test_digests_are_found_and_come_back(there: set[int], first: int, count: int) -> None:
    sums = sums_of((chunk, digest(chunk)) for chunk in there)
    assert sums.count() == len(there)
    assert all(sums.of(chunk) == (digest(chunk) if chunk in there else None) for chunk in range(95))
    wanted = b""
    for chunk in range(first, first + count):
        if chunk not in there:
            break
        wanted += digest(chunk)
    assert sums.part(first, count) == wanted


def test_digests_are_kept_in_a_file_and_damage_is_none(tmp_path: Path) -> None:
    sums = sums_of((chunk, digest(chunk)) for chunk in (1, 2, 3, 7, 8, 50))
    write_sums(tmp_path, "abc", sums)
    assert read_sums(tmp_path, "abc") == sums
    assert read_sums(tmp_path, "other") is None
    path = tmp_path / shipped.FOLDER / "abc.sums"
    whole = path.read_bytes()
    for cut_at in range(1, len(whole)):
        path.write_bytes(whole[:cut_at])
        found = read_sums(tmp_path, "abc")
        assert found is None or found.runs == sums.runs[: len(found.runs)]
    path.write_bytes(whole[24:] + whole[:24])
    assert read_sums(tmp_path, "abc") is None


def test_words_of_generations_are_read_youngest_first_and_damage_is_told(tmp_path: Path) -> None:
    old = Shipped("aa", "kit", "2026-11-20T00:00:00+00:00", (Kept("base.x", "u1", "u1", "digest"),))
    new = Shipped("bb", "kit", "2026-11-21T00:00:00+00:00", bases=(ShippedBase("x", "x86_64", "d", "base.x"),), labs=("demo",))
    for one in (old, new):
        shipped.write(tmp_path, one)
        write_sums(tmp_path, one.generation, Sums(()))
    assert shipped.read_all(tmp_path) == (new, old)
    shipped.drop(tmp_path, but=["bb"])
    assert sorted(path.name for path in (tmp_path / shipped.FOLDER).iterdir()) == ["bb.json", "bb.sums"]
    (tmp_path / shipped.FOLDER / "bb.json").write_text("{")
    with pytest.raises(Refused, match="damaged"):
        shipped.read_all(tmp_path)


@pytest.mark.parametrize("chunk", [64 << 10, 192 << 10, MIB, 3 * MIB, 4 * MIB, 5 * MIB, 64 * MIB])
def test_pieces_hold_whole_units_of_any_chunk(chunk: int) -> None:
    runs = [(0, 3), (7, 1), (9, 40)]
    unit, pieces = unit_of(chunk), tuple(cut(runs, chunk))
    assert chunk % unit == 0
    assert all(piece.begin % unit == 0 and piece.length % unit == 0 and 0 < piece.length <= 4 * MIB for piece in pieces)
    assert sum(piece.length for piece in pieces) == 44 * chunk
    assert list(aims(runs, chunk, {0: 0, 7: 7, 9: 9}, 0)) == [piece.begin for piece in pieces]
