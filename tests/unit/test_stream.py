"""A kit's stream, without disks: what is written is read, what is changed is found, and the group is put together anew."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

from pocketcloud.copies.incoming import Incoming
from pocketcloud.copies.stream_content import group_of, map_bytes, volumes_text
from pocketcloud.copies.stream_tree import tree_pieces
from pocketcloud.errors import Refused
from pocketcloud.model.sizes import KIB
from pocketcloud.storage.lvm_text import read_text, write_text
from tests.streams import (
    MANIFEST,
    POOL,
    SHIPPED,
    VOLUMES,
    Part,
    apart,
    data_of,
    furnish_tree,
    header,
    read_whole,
    small_stream,
    together,
)


class Dripping:
    """A pipe that gives a few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int, /) -> bytes:
        return self._file.read(min(size, 7))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    incoming = read_whole(small_stream(), tmp_path)
    assert (incoming.header, incoming.manifest, incoming.shipped) == (header(), MANIFEST, SHIPPED)
    assert (incoming.volumes, incoming.pool, incoming.empty) == (VOLUMES, POOL, frozenset({2}))
    assert (tmp_path / "keys/id").read_text() == "secret\n"
    assert (tmp_path / "keys/id").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    holes = (tmp_path / "nvram/holes").stat()
    assert (holes.st_size, holes.st_blocks) == (256 * KIB, 0)
    assert not (tmp_path / "kit.json").exists()


def test_a_pipe_may_give_little_at_a_time() -> None:
    incoming = Incoming(Dripping(small_stream()))
    assert [incoming.data(piece) == data_of(piece.begin, piece.length) for piece in incoming.pieces()] == [True] * 3


@pytest.mark.parametrize("at", range(0, 8000, 411))
def test_a_flipped_bit_and_a_cut_are_found(tmp_path: Path, at: int) -> None:
    whole = small_stream()
    at = min(at, len(whole) - 1)
    for name, stream in (("cut", whole[:at]), ("flipped", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])):
        (tmp_path / name).mkdir()
        with pytest.raises(Refused, match="stream"):
            read_whole(stream, tmp_path / name)


def test_nothing_may_follow_or_be_left_out(tmp_path: Path) -> None:
    parts = apart(small_stream())
    for number, wrong in enumerate(([*parts, parts[-1]], [*parts[:5], *parts[6:]], [*parts[:-2], parts[-1]], [parts[0], *parts])):
        tree = tmp_path / str(number)
        tree.mkdir()
        with pytest.raises(Refused, match="cannot be used"):
            read_whole(together(wrong), tree)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "pool_tmeta"}, "a volume named"),
        ({"name": 'v.x" { }'}, "a volume named"),
        ({"tags": ('pc:name=x"]',)}, "a tag that is none"),
        ({"tags": ("other",)}, "a tag that is none"),
        ({"uuid": "x"}, "has no id"),
        ({"size": 5}, "is of 5 bytes"),
        ({"origin": "v.none"}, "cloned from none"),
        ({"thin_id": 1 << 24}, "has no id"),
        ({"transaction": 1 << 40}, "made after the pool"),
    ],
)
def test_volumes_are_looked_at(tmp_path: Path, change: dict[str, object], why: str) -> None:
    volumes = [*VOLUMES[:-1], replace(VOLUMES[-1], **change)]  # type: ignore[arg-type] # what a stranger writes
    parts = [replace(part, content=volumes_text(volumes)) if part.kind == b"VOLS" else part for part in apart(small_stream())]
    with pytest.raises(Refused, match=why):
        read_whole(together(parts), tmp_path)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ((0, 199, 2, 0), "past the end"),
        ((0, 10, 0, 0), "not in order"),
        ((600, 10, 1, 0), "past the end"),
        ((0, 10, 3, 1 << 24), "not in order"),
    ],
)
def test_maps_are_looked_at(tmp_path: Path, runs: tuple[int, ...], why: str) -> None:
    device = POOL.devices[4]
    bad = replace(POOL, devices={**POOL.devices, 4: replace(device, packed=device.packed[:0] + type(device.packed)("Q", runs))})
    parts = [replace(part, content=map_bytes(bad)) if part.kind == b"MAP " else part for part in apart(small_stream())]
    with pytest.raises(Refused, match=why):
        read_whole(together(parts), tmp_path)


def test_lvm_gets_nothing_but_what_was_looked_at() -> None:
    group = group_of(VOLUMES, POOL.chunk, POOL.transaction)
    assert read_text(write_text(group)) == group
    volumes = group["logical_volumes"]
    assert isinstance(volumes, dict)
    assert sorted(volumes) == sorted(
        ["state", "pool", "lvol0_pmspare", "pool_tmeta", "pool_tdata", *(volume.name for volume in VOLUMES)]
    )


def test_what_cannot_travel_is_named(tmp_path: Path) -> None:
    furnish_tree(tmp_path)
    (tmp_path / "media/link").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="neither file nor folder"):
        list(tree_pieces(tmp_path))


def test_a_newer_format_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="format 2"):
        read_whole(together([Part(b"HEAD", b"")], version=2), tmp_path)


@pytest.mark.parametrize("words", [("export", "usb", "-"), ("import", "-", "/dev/null")])
def test_streams_are_nothing_for_a_terminal(words: tuple[str, ...]) -> None:
    asked = pexpect.spawn(sys.executable, ["-m", "pocketcloud", "kit", *words], encoding="utf-8", timeout=60)
    asked.expect(pexpect.EOF)
    asked.close()
    assert asked.exitstatus == 2, asked.before
    assert "terminal" in (asked.before or "")
