"""Streams that were damaged, cut, or made by somebody who means harm, read in a process of their own that measures its memory.

`python -m tests.stream_cases COUNT SEED FILE...` reads each file, then so many cases that hypothesis makes of a small stream that
is whole, most of them with the right hashes, so that what lies behind these is reached. It fails on any error that is none of
ours, and on anything that is written outside of the folder for the kit's files. It prints what became of the cases as JSON.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import struct
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from backports import zstd
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pocketcloud.copies.incoming import Incoming
from pocketcloud.copies.stream_tree import unpack_tree
from pocketcloud.errors import PocketcloudError
from pocketcloud.model.sizes import MIB
from tests.streams import Part, apart, small_stream, together

Parts = list[Part]
Op = Callable[[bytes], bytes]
# Far above what the process takes from the start, and far below what a stream can say.
_ADDRESSES = 400 * MIB
_KINDS = (b"HEAD", b"KIT ", b"SHIP", b"VOLS", b"MAP ", b"DATA", b"TREE", b"END ", b"EVIL")
_DEEP = "[" * 3000
_VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2**24, 2**31, 2**40, 2**50, 2**53 + 1, 2**63, 2**64, 10**400, 1.5, 1e308, float("nan"), True, None, "", "x", "..",
    "../../etc/x", "/etc/passwd", "a" * 70_000, "\ud800", "pool", "pool_tmeta", "v.x_tdata", 'v.x" {', "pc:name=../x",
    "pc:x\n", "é",
    "00000000-0000-0000-0000-000000000000", [], {}, [[]], [{}] * 500, [1] * 3000, {"a": {"b": []}}, ["pc:kept"] * 100, "lvm", 512,
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 4, 10, 199, 200, 201, 2**24, 2**32, 2**40, 2**40 + 1, 2**63, 2**64 - 1)
_NAMES = (
    "../x", "/etc/x", "labs/../../x", "labs/./x", "labs//x", "no/such", "keys", "keys/id", "keys/id/x", "kit.json", "copies.json",
    "shipped", "shipped/x", "volumes/.x", "lost+found", ".", "..", "", "a\nb", "link/x", "x" * 99, "/".join("d" * 40),
    "C:\\x", "labs/x",
)  # fmt: skip
_TYPES = b"0123456789xgLKSDMVXA\0"
_SIZES = (0, 1, 511, 512, 513, 2**20, 2**33, 2**33 + 1, 2**40, 2**80, -1)


def _zeros(count: int, window: int = 20) -> bytes:
    """A frame of so many MiB of zeros, made in little memory."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: window}
    packer = zstd.ZstdCompressor(options=options)
    return b"".join([packer.compress(bytes(MIB)) for _ in range(count)]) + packer.flush()


_BOMBS = (
    _zeros(1),
    _zeros(4),
    _zeros(256),
    _zeros(16, window=27),
    zstd.compress(b"x") * 2,
    b"",
    b"\x28\xb5\x2f\xfd",
    b"no frame",
)

# -- what is done to bytes


def _flip(at: int, bit: int, data: bytes) -> bytes:
    if not data:
        return data
    at %= len(data)
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def _cut(at: int, data: bytes) -> bytes:
    return data[: at % (len(data) + 1)]


def _insert(at: int, more: bytes, data: bytes) -> bytes:
    at %= len(data) + 1
    return data[:at] + more + data[at:]


def _again(at: int, length: int, data: bytes) -> bytes:
    at %= len(data) + 1
    return data[: at + length] + data[at:]


places = st.integers(0, 1 << 20)
raw_ops: st.SearchStrategy[Op] = st.one_of(
    st.builds(lambda at, bit: partial(_flip, at, bit), places, st.integers(0, 7)),
    st.builds(lambda at: partial(_cut, at), places),
    st.builds(lambda at, more: partial(_insert, at, more), places, st.binary(min_size=1, max_size=20)),
    st.builds(lambda at, length: partial(_again, at, length), places, st.integers(1, 600)),
)

# -- what is done to what a section says


def _json(at: int, value: object, key: bool, data: bytes) -> bytes:
    """Put a value into a place of JSON text, or drop that place, or name it otherwise."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return data
    value = deepcopy(value)
    if not isinstance(told, (dict, list)):
        return json.dumps(value).encode()
    spots: list[tuple[Any, Any]] = []
    waiting = [told]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        spots += [(holder, spot) for spot in keys]
        waiting += [holder[spot] for spot in keys if isinstance(holder[spot], (dict, list))]
    if not spots:
        return json.dumps(value).encode()
    holder, spot = spots[at % len(spots)]
    if key and isinstance(holder, dict):
        holder["new" if value is None else str(value)] = holder.pop(spot)
    else:
        holder[spot] = value
    return json.dumps(told).encode()


def _number(at: int, value: int, data: bytes) -> bytes:
    """Put a number of 64 bits into a place of the map."""
    if len(data) < 8:
        return data
    at = at % (len(data) // 8) * 8
    return data[:at] + struct.pack("<Q", value) + data[at + 8 :]


def _member(at: int, name: str, kind: int, size: int, link: str, data: bytes) -> bytes:
    """Put a header of tar, whose checksum is right, into a place of the archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = bytes([kind]), max(size, 0), link, 0o6777
    try:
        header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    except (ValueError, OverflowError):
        return data
    if size < 0:
        header = _summed(header[:124] + b"\xff" * 12 + header[136:])
    at = at % (len(data) // 512 + 1) * 512
    return data[:at] + header + data[at:]


def _header(at: int, place: int, more: bytes, data: bytes) -> bytes:
    """Write over a part of a header of tar, and make its checksum right."""
    at = at % max(len(data) // 512, 1) * 512
    block = bytearray(data[at : at + 512])
    place %= 500
    block[place : place + len(more)] = more
    return data[:at] + _summed(bytes(block[:512].ljust(512, b"\0"))) + data[at + 512 :]


def _summed(block: bytes) -> bytes:
    total = sum(block[:148]) + 8 * 32 + sum(block[156:512])
    return block[:148] + b"%06o\0 " % total + block[156:]


values = st.sampled_from(_VALUES)
content_ops: dict[bytes, st.SearchStrategy[Op]] = {
    **dict.fromkeys(
        (b"HEAD", b"KIT ", b"SHIP", b"VOLS", b"END "),
        st.one_of(
            st.builds(lambda at, value, key: partial(_json, at, value, key), places, values, st.booleans()),
            st.sampled_from([_DEEP.encode(), b"{}", b"[]", b"null", b"{" * 5000]).map(lambda text: lambda _: text),
            raw_ops,
        ),
    ),
    b"MAP ": st.one_of(
        st.builds(lambda at, value: partial(_number, at, value), places, st.sampled_from(_NUMBERS) | st.integers(0, 2**64 - 1)),
        raw_ops,
    ),
    b"DATA": raw_ops,
    b"TREE": st.one_of(
        st.builds(
            lambda at, name, kind, size, link: partial(_member, at, name, kind, size, link),
            places, st.sampled_from(_NAMES), st.sampled_from(_TYPES), st.sampled_from(_SIZES), st.sampled_from(_NAMES),
        ),
        st.builds(lambda at, place, more: partial(_header, at, place, more), places, places, st.binary(min_size=1, max_size=12)),
        raw_ops,
    ),
}  # fmt: skip


@st.composite
def hostile(draw: st.DrawFn, whole: bytes) -> bytes:
    """A stream made of one that is whole."""
    if draw(st.integers(0, 5)) == 0:
        stream = whole
        for op in draw(st.lists(raw_ops, min_size=1, max_size=3)):
            stream = op(stream)
        return stream
    parts = apart(whole)
    for _ in range(draw(st.integers(1, 3))):
        if not parts:
            break
        # Kinds alike, as most sections have data.
        kind = draw(st.sampled_from(sorted({part.kind for part in parts})))
        at = draw(st.sampled_from([at for at, part in enumerate(parts) if part.kind == kind]))
        parts = _changed(draw, parts, at)
    if draw(st.integers(0, 40)) == 0:
        return together(parts, version=draw(st.sampled_from([0, 2, 2**32 - 1])))
    return together(parts)


def _changed(draw: st.DrawFn, parts: Parts, at: int) -> Parts:
    part = parts[at]
    match draw(st.integers(0, 15)):
        case 0:
            return parts[:at] + parts[at + 1 :]
        case 1:
            return parts[: at + 1] + [part] * draw(st.sampled_from([1, 2, 40])) + parts[at + 1 :]
        case 2:
            other = draw(st.integers(0, len(parts) - 1))
            parts = list(parts)
            parts[at], parts[other] = parts[other], parts[at]
            return parts
        case 3:
            changed = replace(part, kind=draw(st.sampled_from(_KINDS)))
        case 4:
            changed = replace(part, number=draw(st.integers(0, 2**32 - 1)))
        case 5:
            limits = st.sampled_from([0, len(part.content) + 1, MIB, 4 * MIB, 20 * MIB, 2**31, 2**32 - 1])
            field = draw(st.sampled_from(["length", "stored_length"]))
            value = draw(limits | st.integers(0, 2**32 - 1))
            changed = replace(part, length=value) if field == "length" else replace(part, stored_length=value)
        case 6:
            length = draw(st.sampled_from([0, 1, len(part.content), MIB, 4 * MIB, 20 * MIB]))
            changed = replace(part, stored=draw(st.sampled_from(_BOMBS)), length=length)
        case _:
            strategy = content_ops.get(part.kind, raw_ops)
            changed = replace(part, content=draw(strategy)(part.content), stored=None)
    return [*parts[:at], changed, *parts[at + 1 :]]


# -- reading, watched

_inside = ""
_CHANGES = re.compile(
    r"os\.(mkdir|symlink|link|rename|remove|rmdir|truncate|chmod|chown|mknod|utime|exec|system)|subprocess|socket"
)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Nothing is made, changed or started but in the folder for the kit's files."""
    if not _inside:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    if not writes and not _CHANGES.match(event):
        return
    where = args[0] if args and isinstance(args[0], (str, bytes, os.PathLike)) else ""
    if isinstance(args[0], int) and event in ("open", "os.chmod", "os.truncate"):  # by a handle, which was opened before
        where = f"/proc/self/fd/{args[0]}"
    if not where or not os.path.realpath(os.fsdecode(where)).startswith(f"{_inside}/"):
        os.write(2, f"{event} {args} is outside of {_inside}\n".encode())
        os._exit(3)


def read_case(stream: io.BufferedIOBase | io.BytesIO, outer: Path) -> str:
    """Read a stream as `kit import` does; what it says against it."""
    global _inside
    said = "whole"
    with tempfile.TemporaryDirectory(dir=outer) as folder:
        tree = Path(folder, "tree")
        tree.mkdir()
        _inside = os.path.realpath(tree)
        try:
            incoming = Incoming(stream)
            for piece in incoming.pieces():
                incoming.data(piece)
            unpack_tree(incoming.tree(), tree, 2 * incoming.header.files + MIB)
        except PocketcloudError as error:
            said = error.message
            said.encode()
        finally:
            _inside = ""
        assert os.listdir(folder) == ["tree"]  # noqa: PTH208 - as short as can be
        assert not any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in tree.rglob("*"))
    return said


def main(count: int, number: int, files: list[str]) -> None:
    """Read all; print what became of it."""
    whole, told = small_stream(), Counter[str]()
    sys.addaudithook(_watch)
    space = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index] # it is there
    resource.setrlimit(resource.RLIMIT_AS, (space + _ADDRESSES, space + _ADDRESSES))
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder)
        heavy = {}
        for file in files:
            with Path(file).open("rb") as stream:
                heavy[Path(file).name] = read_case(stream, outer)

        @seed(number)
        @settings(
            max_examples=max(count, 1),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(hostile(whole))
        def case(stream: bytes) -> None:
            told[re.sub(r"[0-9]+|'.*'|b'.*|\"[^\"]*\"", "N", read_case(io.BytesIO(stream), outer))] += 1

        if count:
            case()
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index] # it is there
    print(json.dumps({"cases": sum(told.values()), "peak": peak, "heavy": heavy, "told": dict(told.most_common())}))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
