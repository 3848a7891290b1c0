"""A small kit's stream, and its sections taken apart, for the tests that read streams."""

from __future__ import annotations

import hashlib
import io
import struct
import tempfile
from array import array
from dataclasses import dataclass, replace
from pathlib import Path

from pocketcloud.copies.incoming import Incoming, ending
from pocketcloud.copies.pieces import cut
from pocketcloud.copies.shipped import Kept, Shipped, ShippedBase
from pocketcloud.copies.stream import Kind, StreamWriter, packed
from pocketcloud.copies.stream_content import (
    Header,
    StreamVolume,
    header_text,
    manifest_text,
    map_bytes,
    runs_of,
    shipped_text,
    volumes_text,
)
from pocketcloud.copies.stream_tree import tree_pieces, unpack_tree
from pocketcloud.model.kit import KIT_SCHEMA, TREE, Manifest
from pocketcloud.model.names import Name
from pocketcloud.model.sizes import KIB, MIB
from pocketcloud.storage.thin_metadata import PoolMap, ThinDevice

CHUNK = 64 * KIB
START = struct.Struct("<16sI")
HEAD = struct.Struct("<4sIII")
UUIDS = tuple(f"{number:06}-aaaa-bbbb-cccc-dddd-eeee-ffffff" for number in range(9))
MANIFEST = Manifest(
    KIT_SCHEMA, "26b7713e-b031-4237-ba25-69d068d61277", Name("usb"), "2026-11-21T00:00:00+00:00", "0.1.0", "lvm", 512,
    arch="x86_64", made_on={"lvm": "2.03.16"},
)  # fmt: skip
SHIPPED = Shipped(
    "cb028f1e", MANIFEST.id, MANIFEST.created, (Kept("base.one", UUIDS[3], UUIDS[3]), Kept("content", UUIDS[1], UUIDS[4])),
    (ShippedBase("debian-12", "x86_64", "ab" * 16, "base.one"),), ("demo",), "cd" * 8, 7,
)  # fmt: skip
VOLUMES = (
    StreamVolume("content", UUIDS[1], 32 * MIB, 1, 0, "", writable=True, tags=()),
    StreamVolume("ballast", UUIDS[2], 8 * MIB, 2, 1, "", writable=True, tags=()),
    StreamVolume("v.base.one", UUIDS[3], 16 * MIB, 3, 2, "", writable=False, tags=("pc:kept", "pc:name=base.one")),
    StreamVolume(
        "s.cb028f1e.0", UUIDS[4], 32 * MIB, 4, 3, "content", writable=False, tags=(f"pc:of={UUIDS[1]}", "pc:shipped=cb028f1e")
    ),
)
MAPPED = {1: (0, 10, 3, 0, 40, 20, 2, 1), 2: (0, 60, 4, 0), 3: (5, 30, 2, 0), 4: (0, 10, 3, 0)}
POOL = PoolMap(
    CHUNK, 200, 3, 4, {number: ThinDevice(number, number - 1, 0, 1, array("Q", runs)) for number, runs in MAPPED.items()}
)


def furnish_tree(tree: Path) -> Path:
    """The files of a small kit."""
    for name in TREE:
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "kit.json").write_text("{}")
    (tree / "keys").chmod(0o700)
    (tree / "keys/id").write_text("secret\n")
    (tree / "keys/id").chmod(0o600)
    (tree / "labs/demo").mkdir()
    (tree / "labs/demo/lab.json").write_text('{"lab": "demo"}\n' * 40)
    with (tree / "nvram/holes").open("wb") as file:
        file.truncate(256 * KIB)
    return tree


def data_of(begin: int, length: int) -> bytes:
    """What the pool has there."""
    return b"".join(hashlib.blake2b(str(at).encode()).digest() for at in range(begin // 4096, (begin + length) // 4096)) * 64


def header(**changes: int) -> Header:
    """Its header."""
    return replace(Header(CHUNK, 512, len(VOLUMES), runs_of(POOL), 7 * CHUNK, 64 * KIB, MIB), **changes)


def small_stream() -> bytes:
    """A stream that is whole."""
    out: list[bytes] = []
    writer = StreamWriter(out.append)
    writer.put(Kind.HEAD, header_text(header()))
    writer.put(Kind.KIT, manifest_text(MANIFEST))
    writer.put(Kind.SHIP, shipped_text(SHIPPED))
    writer.put(Kind.VOLS, volumes_text(VOLUMES))
    writer.put(Kind.MAP, map_bytes(POOL))
    for piece in cut(POOL.allocated({2}), CHUNK):
        writer.put(Kind.DATA, data_of(piece.begin, piece.length))
    with tempfile.TemporaryDirectory() as folder:
        for part in tree_pieces(furnish_tree(Path(folder))):
            writer.put(Kind.TREE, part)
    writer.put(Kind.END, ending(writer.count, 7 * CHUNK))
    return b"".join(out)


@dataclass(frozen=True, slots=True)
class Part:
    """A section as it lies in a stream; what is None is as it should be."""

    kind: bytes
    content: bytes
    stored: bytes | None = None
    number: int | None = None
    length: int | None = None
    stored_length: int | None = None


def apart(stream: bytes) -> list[Part]:
    """The sections of a stream that is whole."""
    from backports import zstd

    at, found = START.size, []
    while at < len(stream):
        kind, _, stored, _ = HEAD.unpack_from(stream, at)
        at += HEAD.size
        found.append(Part(kind, zstd.decompress(stream[at : at + stored])))
        at += stored + 32
    return found


def together(parts: list[Part], magic: bytes = b"pocketcloud kit\n", version: int = 1) -> bytes:
    """A stream of sections, with the hashes that it should have, whatever they hold."""
    start = START.pack(magic, version)
    chain, found = hashlib.blake2b(start, digest_size=32).digest(), [start]
    for number, part in enumerate(parts):
        stored = packed(part.content) if part.stored is None else part.stored
        head = HEAD.pack(
            part.kind,
            number if part.number is None else part.number,
            len(stored) if part.stored_length is None else part.stored_length,
            len(part.content) if part.length is None else part.length,
        )
        chain = hashlib.blake2b(chain + head + stored, digest_size=32).digest()
        found += [head, stored, chain]
    return b"".join(found)


def read_whole(stream: bytes, tree: Path) -> Incoming:
    """Read a stream as `kit import` does, without a disk. Raises Refused."""
    incoming = Incoming(io.BytesIO(stream))
    for piece in incoming.pieces():
        incoming.data(piece)
    unpack_tree(incoming.tree(), tree, 2 * incoming.header.files + MIB)
    return incoming
