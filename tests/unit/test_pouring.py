"""Pouring onto many at once, on files: what is written, who leaves, what is read again. Slow disks: tests/rig/inside."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcloud.copies.pieces import LARGEST, Piece, aims, cut, placed
from pocketcloud.copies.pouring import Checked, Outlet, check, digest, pour
from pocketcloud.errors import Refused

UNIT = 64 << 10
SIZE = 12 << 20
RUNS = [(0, 3), (5, 1), (10, 100), (150, 40)]
PIECES = tuple(cut(RUNS, UNIT))
OFFSET = 1 << 20
AIMS = aims(RUNS, UNIT, {first: first for first, _ in RUNS}, OFFSET)


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "source"
    path.write_bytes(random.Random(1).randbytes(SIZE))  # noqa: S311 - keeps no secret
    with opened(path) as handle:
        yield handle


def blank(path: Path, size: int = SIZE + (1 << 20)) -> Path:
    path.write_bytes(b"\xee" * size)
    return path


def wanted(source: int) -> bytes:
    """What a target holds afterwards: the pieces, and what was there."""
    whole = bytearray(b"\xee" * (SIZE + (1 << 20)))
    for piece, aim in zip(PIECES, AIMS, strict=True):
        whole[aim : aim + piece.length] = os.pread(source, piece.length, piece.begin)
    return bytes(whole)


def test_all_get_the_pieces_and_nothing_else(source: int, tmp_path: Path) -> None:
    with ExitStack() as stack:
        paths = [blank(tmp_path / f"target{number}") for number in range(3)]
        outlets = [Outlet(path.name, stack.enter_context(opened(path)), AIMS) for path in paths]
        digests = pour(source, PIECES, outlets, unit=UNIT, stop=threading.Event())
        assert all(path.read_bytes() == wanted(source) for path in paths)
        assert list(digests) == [digest(os.pread(source, piece.length, piece.begin), UNIT) for piece in PIECES]
        assert [(outlet.done, outlet.fault) for outlet in outlets] == [(len(PIECES), "")] * 3
        assert {outlet.written for outlet in outlets} == {sum(length for _, length in RUNS) * UNIT}
        for outlet in outlets:
            checked = Checked()
            check(outlet.handle, PIECES, AIMS, digests, checked, unit=UNIT, stop=threading.Event())
            assert (checked.done, checked.wrong, checked.fault) == (len(PIECES), [], "")
            assert checked.read == outlet.written


def test_one_that_fails_leaves_and_the_others_go_on(source: int, tmp_path: Path) -> None:
    with ExitStack() as stack:
        good = blank(tmp_path / "good")
        outlets = [
            Outlet("full", stack.enter_context(opened(Path("/dev/full"))), AIMS),
            Outlet("good", stack.enter_context(opened(good)), AIMS),
            Outlet("read-only", stack.enter_context(opened(blank(tmp_path / "ro"), os.O_RDONLY)), AIMS),
        ]
        pour(source, PIECES, outlets, unit=UNIT, stop=threading.Event())
        assert good.read_bytes() == wanted(source)
        assert [bool(outlet.fault) for outlet in outlets] == [True, False, True]
        assert "space" in outlets[0].fault


def test_when_none_is_left_it_ends(source: int) -> None:
    with opened(Path("/dev/full")) as handle:
        outlet = Outlet("full", handle, AIMS * 30)
        pour(source, PIECES * 30, [outlet], unit=UNIT, stop=threading.Event())
        assert outlet.fault
        assert outlet.done == 0


@pytest.mark.parametrize("begin", [0, 1, 3, len(PIECES)])
def test_going_on_writes_what_is_not_there(source: int, tmp_path: Path, begin: int) -> None:
    """What an earlier run wrote is looked at: a flip in it is mended, and what is whole is not written again."""
    path = blank(tmp_path / "target")
    with opened(path) as handle:
        pour(source, PIECES[:begin], [Outlet("first", handle, AIMS)], unit=UNIT, stop=threading.Event())
        if begin > 1:
            os.pwrite(handle, b"flip", AIMS[1] + 7)
        outlet = Outlet("again", handle, AIMS, begin=begin)
        digests = pour(source, PIECES, [outlet], unit=UNIT, stop=threading.Event())
        assert path.read_bytes() == wanted(source)
        assert all(digests)
        rewritten = PIECES[begin:] + (PIECES[1:2] if begin > 1 else ())
        assert outlet.written == sum(piece.length for piece in rewritten)


def test_a_source_that_ends_is_told(source: int, tmp_path: Path) -> None:
    with opened(blank(tmp_path / "target")) as handle, pytest.raises(Refused, match="the source ends at byte"):
        pour(
            source,
            [*PIECES, Piece(SIZE - UNIT, 2 * UNIT)],
            [Outlet("target", handle, [*AIMS, 0])],
            unit=UNIT,
            stop=threading.Event(),
        )
    path = tmp_path / "target"
    with (
        opened(path) as handle,
        opened(path, os.O_WRONLY) as unreadable,
        pytest.raises(Refused, match="cannot be read at byte 0"),
    ):
        pour(unreadable, PIECES, [Outlet("target", handle, AIMS)], unit=UNIT, stop=threading.Event())


def test_it_stops_when_told(source: int, tmp_path: Path) -> None:
    stop = threading.Event()
    with opened(blank(tmp_path / "target")) as handle, pytest.raises(InterruptedError):
        pour(source, PIECES * 40, [Outlet("target", handle, AIMS * 40)], unit=UNIT, stop=stop, tick=stop.set)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("write ")], "its handle is closed now"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(PIECES) - 1), st.integers(0, 1 << 30), st.integers(1, 255))
def test_every_flip_is_found(tmp_path_factory: pytest.TempPathFactory, index: int, where: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "target"
    content = random.Random(2).randbytes(SIZE + (1 << 20))  # noqa: S311 - keeps no secret
    path.write_bytes(content)
    digests = [digest(content[aim : aim + piece.length], UNIT) for piece, aim in zip(PIECES, AIMS, strict=True)]
    at = AIMS[index] + where % PIECES[index].length
    with opened(path) as handle:
        os.pwrite(handle, bytes([content[at] ^ flip]), at)
        checked = Checked()
        check(handle, PIECES, AIMS, digests, checked, unit=UNIT, stop=threading.Event())
    assert checked.wrong == [((at - AIMS[index]) // UNIT * UNIT + AIMS[index], UNIT)], "the very chunk"


def test_a_target_that_is_cut_short_is_wrong_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_bytes(bytes(AIMS[-1]))
    with opened(path) as handle:
        checked = Checked()
        digests = [digest(bytes(piece.length), UNIT) for piece in PIECES]
        check(handle, PIECES, AIMS, digests, checked, unit=UNIT, stop=threading.Event())
    assert checked.wrong == [(AIMS[-1], PIECES[-1].length)]


@st.composite
def all_runs(draw: st.DrawFn) -> list[tuple[int, int]]:
    found, at = [], 0
    for _ in range(draw(st.integers(0, 8))):
        at += draw(st.integers(1, 20))
        length = draw(st.integers(1, 90))
        found.append((at, length))
        at += length
    return found


@settings(max_examples=300, deadline=None)
@given(all_runs(), st.integers(0, 600))
def test_runs_find_a_place_each_where_there_is_room(runs: list[tuple[int, int]], chunks: int) -> None:
    places = placed(runs, chunks)
    if sum(length for _, length in runs) > chunks:
        assert places is None
        return
    assert places is not None
    taken = sorted((places[first], length) for first, length in runs)
    assert all(begin + length <= chunks for begin, length in taken)
    assert all(one[0] + one[1] <= two[0] for one, two in pairwise(taken))
    if all(first + length <= chunks for first, length in runs):
        assert all(places[first] == first for first, _ in runs)


@settings(max_examples=200, deadline=None)
@given(all_runs())
def test_pieces_are_the_runs_in_the_order_of_the_disk(runs: list[tuple[int, int]]) -> None:
    pieces = list(cut(runs, UNIT))
    there = {first: first for first, _ in runs}
    assert [aim - piece.begin for aim, piece in zip(aims(runs, UNIT, there, 7 * UNIT), pieces, strict=True)] == [7 * UNIT] * len(
        pieces
    )
    assert all(0 < piece.length <= LARGEST for piece in pieces)
    covered = [unit for piece in pieces for unit in range(piece.begin // UNIT, (piece.begin + piece.length) // UNIT)]
    assert covered == [first + step for first, length in runs for step in range(length)]
