"""Streams of strangers: whatever they hold, nothing but our own errors, in bounded memory, and nothing written elsewhere."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pocketcloud.copies.stream import LIMITS, Kind
from pocketcloud.copies.stream_content import MOST_RUNS, header_text, volumes_text
from pocketcloud.model.sizes import MIB
from tests.streams import CHUNK, VOLUMES, Part, apart, header, small_stream, together

TOP = Path(__file__).resolve().parents[2]
MOST_MEMORY = 200 * 10**6


def cases(count: int, seed: int, *files: Path) -> dict[str, object]:
    """Read so many cases, and files, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stream_cases", str(count), str(seed), *map(str, files)],
        cwd=TOP, capture_output=True, text=True, check=False, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(told, dict)
    return told


def fuzzed(count: int, number: int = 0) -> None:
    told = cases(count, (int.from_bytes(os.environ.get("POCKETCLOUD_SEED", "").encode()) or 1) + number)
    assert told["cases"] == count
    assert isinstance(told["peak"], int)
    assert told["peak"] < MOST_MEMORY, told
    said = told["told"]
    assert isinstance(said, dict)
    # What lies behind the hashes was reached.
    assert any("archive of files" in text for text in said), said
    assert any("map" in text for text in said), said
    assert any("volume" in text for text in said), said


def test_streams_of_strangers_are_refused() -> None:
    fuzzed(300)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_many_streams_of_strangers_are_refused(number: int) -> None:
    """20000 together. Hypothesis keeps something of each case, so that a process has some of them only."""
    fuzzed(2000, number)


# -- as large as may be


def _with(kind: bytes, content: bytes, parts: list[Part]) -> list[Part]:
    return [replace(part, content=content) if part.kind == kind else part for part in parts]


def _map_of_most_runs() -> tuple[bytes, bytes, bytes]:
    """Header, volumes and map of a volume that maps every other chunk."""
    runs = array("Q")
    for at in range(MOST_RUNS):
        runs.extend((2 * at, 2 * at, 1, 0))
    volumes = (replace(VOLUMES[0], size=2 * MOST_RUNS * CHUNK),)
    told = struct.pack("<QQQQ", 0, 4, 2 * MOST_RUNS, 1) + struct.pack("<QQQQQ", 1, 0, 0, 0, MOST_RUNS) + runs.tobytes()
    return header_text(header(volumes=1, runs=MOST_RUNS, data=MOST_RUNS * CHUNK)), volumes_text(volumes), told


def heavy() -> Iterator[tuple[str, bytes, str]]:
    """Streams that make the most of what they may say: a name, the stream, and what is said against it."""
    parts = apart(small_stream())
    head, volumes, told = _map_of_most_runs()
    large = _with(b"MAP ", told, _with(b"VOLS", volumes, _with(b"HEAD", head, parts)))
    yield "runs", together(large), "a piece of data has"
    for name, unit in (
        ("lists", b"[],"),
        ("objects", b'{"a":{}},'),
        ("numbers", b"1,"),
        ("texts", b'"a",'),
        ("nested", b'[{"a":[]}],'),
    ):
        content = b'{"volumes":[' + unit * ((LIMITS[Kind.VOLS] - 20) // len(unit)) + b"0]}"
        yield name, together(_with(b"VOLS", content, parts)), "as many volumes"
    one = json.loads(volumes_text(VOLUMES[:1]))["volumes"][0]
    many = [
        one | {"name": f"v.a{number}", "thin_id": number + 1, "uuid": f"{number:06}-aaaa-bbbb-cccc-dddd-eeee-ffffff"}
        for number in range(8000)
    ]
    content = json.dumps({"volumes": many}, separators=(",", ":")).encode()
    yield (
        "volumes",
        together(_with(b"HEAD", header_text(header(volumes=8000)), _with(b"VOLS", content, parts))),
        "not those of a kit",
    )
    tree = next(part for part in parts if part.kind == b"TREE")
    at = parts.index(tree)
    yield "zeros", together([*parts[:at], *[replace(tree, content=bytes(MIB))] * 50, *parts[at:]]), "its end tells of more"
    names = b"".join(_folder(f"{number:05}" + "x" * 90) for number in range(70_000))
    pieces = [replace(tree, content=names[begin : begin + MIB]) for begin in range(0, len(names), MIB)]
    wide = _with(b"HEAD", header_text(header(files=1 << 30)), parts)
    yield "folders", together([*wide[:at], *pieces, *wide[at:]]), "more than 65536 files"


def _folder(name: str) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o700
    return info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.slow
def test_the_largest_that_may_be_takes_bounded_memory(tmp_path: Path) -> None:
    wanted = {}
    for name, stream, said in heavy():
        (tmp_path / name).write_bytes(stream)
        wanted[name] = said
    told = cases(0, 1, *(tmp_path / name for name in wanted))
    assert isinstance(told["peak"], int)
    assert told["peak"] < MOST_MEMORY, told
    found = told["heavy"]
    assert isinstance(found, dict)
    assert {name: found[name] for name, words in wanted.items() if words not in found[name]} == {}
