"""The sections of a kit's stream: how they are framed, packed and hashed. docs/kit-stream.md has the format byte by byte.

What is read may come from a stranger: no length is believed beyond what its kind may have, and nothing is unpacked beyond what
was said. Each section's hash takes in the one before, so none is left out, repeated or moved. What sections mean is told in
stream_content.py and stream_tree.py.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from pocketcloud.copies.pieces import LARGEST
from pocketcloud.errors import Refused

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, DecompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError
else:
    from backports.zstd import CompressionParameter, DecompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError

MAGIC = b"pocketcloud kit\n"
VERSION = 1
HEAD = struct.Struct("<4sIII")
DIGEST = 32
_START = struct.Struct("<16sI")
# Faster than disks behind USB are, and zeros and text still shrink to a fraction.
_LEVEL = 1
# Of what zstd looks back on when it unpacks: 8 MiB.
_WINDOW = 23
_ASKED = 1 << 20
_AGAIN = "send it again; a stream is whole only with its last section"


class Kind(StrEnum):
    """What a section is, by its four letters, in the order of the stream. There are as many of `DATA` and `TREE` as needed."""

    HEAD = "HEAD"
    KIT = "KIT "
    SHIP = "SHIP"
    VOLS = "VOLS"
    MAP = "MAP "
    DATA = "DATA"
    TREE = "TREE"
    END = "END "


LIMITS = {
    Kind.HEAD: 4 << 10,
    Kind.KIT: 64 << 10,
    Kind.SHIP: 1 << 20,
    Kind.VOLS: 2 << 20,
    Kind.MAP: 20 << 20,
    Kind.DATA: LARGEST,
    Kind.TREE: 1 << 20,
    Kind.END: 4 << 10,
}
"""How many bytes the content of a section of each kind has at most."""


class Readable(Protocol):
    """What a stream is read from: fewer bytes than asked for may come, none at its end."""

    def read(self, size: int, /) -> bytes | None: ...


def damaged(what: str) -> Refused:
    """The error for a stream that cannot be used."""
    return Refused(f"the stream cannot be used: {what}", hint=_AGAIN)


def packed(content: bytes) -> bytes:
    """The content of a section as it is stored."""
    # The default looks back further than a section is long.
    options: dict[int, int] = {CompressionParameter.compression_level: _LEVEL, CompressionParameter.window_log: 21}
    return ZstdCompressor(options=options).compress(content, ZstdCompressor.FLUSH_FRAME)


def _unpacked(stored: bytes, length: int) -> bytes:
    reader = ZstdDecompressor(options={DecompressionParameter.window_log_max: _WINDOW})
    try:
        content = reader.decompress(stored, length + 1)
    except (ZstdError, EOFError) as error:
        raise damaged(f"a section does not unpack: {error}") from None
    if not reader.eof or reader.unused_data or len(content) != length:
        raise damaged("a section is not as long as it says")
    return content


def stored_limit(length: int) -> int:
    """What content of so many bytes may take as it is stored: zstd adds little to what does not shrink."""
    return length + (length >> 8) + 512


def _chained(before: bytes, head: bytes, stored: bytes) -> bytes:
    told = hashlib.blake2b(before, digest_size=DIGEST)
    told.update(head)
    told.update(stored)
    return told.digest()


class StreamWriter:
    """Writes sections with `write`, which takes all that it is given."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        start = _START.pack(MAGIC, VERSION)
        self._chain = hashlib.blake2b(start, digest_size=DIGEST).digest()
        self.count = 0
        self._write(start)

    def put(self, kind: Kind, content: bytes) -> None:
        """Write a section. Raises Refused for one that is too long for its kind."""
        if len(content) > LIMITS[kind]:
            raise Refused(
                f"the kit has more than a stream can tell ({kind.strip()} has {len(content)} bytes)",
                hint="remove volumes that are not needed, or copy it: pocketcloud kit clone",
            )
        self.put_packed(kind, packed(content), len(content))

    def put_packed(self, kind: Kind, stored: bytes, length: int) -> None:
        """Write a section that is packed already; `length` is that of its content."""
        head = HEAD.pack(kind.encode(), self.count, len(stored), length)
        self._chain = _chained(self._chain, head, stored)
        for part in (head, stored, self._chain):
            self._write(part)
        self.count += 1


class StreamReader:
    """Reads sections, each with one of the kinds that are expected. `read` counts bytes of the stream."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self.read = 0
        self.count = 0
        start = self._exactly(_START.size)
        magic, version = _START.unpack(start)
        if magic != MAGIC:
            raise Refused("that is no stream of a kit", hint="pocketcloud kit export KIT FILE makes one")
        if version != VERSION:
            raise Refused(f"the stream is of format {version}, this version reads {VERSION}", hint="install a newer pocketcloud")
        self._chain = hashlib.blake2b(start, digest_size=DIGEST).digest()

    def next(self, *kinds: Kind) -> tuple[Kind, bytes]:
        """The next section: its kind, which is one of `kinds`, and its content. Raises Refused for what is damaged."""
        head = self._exactly(HEAD.size)
        name, number, stored_length, length = HEAD.unpack(head)
        kind = next((each for each in kinds if each.encode() == name), None)
        if kind is None or number != self.count:
            wanted = " or ".join(each.strip() for each in kinds)
            raise damaged(f"section {self.count} should be {wanted}, it is {name!r} with number {number}")
        if length > LIMITS[kind] or stored_length > stored_limit(length):
            raise damaged(f"section {self.count} ({kind.strip()}) is longer than it may be")
        stored = self._exactly(stored_length)
        self._chain = _chained(self._chain, head, stored)
        if self._exactly(DIGEST) != self._chain:
            raise damaged(f"section {self.count} ({kind.strip()}) is not what was written: its hash is another")
        self.count += 1
        return kind, _unpacked(stored, length)

    def end(self) -> None:
        """Raises Refused if anything follows."""
        if self._read(1):
            raise damaged("something follows its end")

    def _exactly(self, length: int) -> bytes:
        parts, left = [], length
        while left:
            part = self._read(min(left, _ASKED))
            if not part:
                raise damaged(f"it is cut short, after {self.read} bytes")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _read(self, length: int) -> bytes:
        try:
            part = self._file.read(length) or b""
        except OSError as error:
            raise damaged(f"it cannot be read: {error.strerror}") from error
        self.read += len(part)
        return part
