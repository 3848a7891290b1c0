"""A kit's stream as it comes: what it says of the kit first, then the data in the order of the pool, then the kit's files.

It needs no device and writes nothing. Whoever has read up to its end has read a stream that was whole, and as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pocketcloud.copies.pieces import Piece, cut
from pocketcloud.copies.stream import Kind, Readable, StreamReader, damaged
from pocketcloud.copies.stream_content import (
    read_header,
    read_manifest_section,
    read_map_bytes,
    read_shipped,
    read_volumes,
)
from pocketcloud.storage.thin_volumes import BALLAST


class Incoming:
    """A stream, read up to its data. Raises Refused for what is damaged, hostile or no stream, here and in each method.

    `header`, `manifest`, `shipped`, `volumes` and `pool` are what it says; `empty` the ids of volumes that hold nothing.
    """

    def __init__(self, file: Readable) -> None:
        self._sections = StreamReader(file)
        self.header = read_header(self._content(Kind.HEAD))
        self.manifest = read_manifest_section(self._content(Kind.KIT), self.header)
        self.shipped = read_shipped(self._content(Kind.SHIP))
        self.volumes = read_volumes(self._content(Kind.VOLS), self.header)
        self.pool = read_map_bytes(self._content(Kind.MAP), self.header, self.volumes)
        self.empty = frozenset(volume.thin_id for volume in self.volumes if volume.name == BALLAST)
        self._runs = self.pool.allocated(self.empty)
        if sum(length for _, length in self._runs) * self.pool.chunk != self.header.data:
            raise damaged("its map has not as much data as its header says")

    @property
    def read(self) -> int:
        """How many bytes of the stream were read."""
        return self._sections.read

    def pieces(self) -> Iterator[Piece]:
        """The pieces of data, in the order in which they come."""
        return cut(self._runs, self.pool.chunk)

    def data(self, piece: Piece) -> bytes:
        """The next piece."""
        content = self._content(Kind.DATA)
        if len(content) != piece.length:
            raise damaged(f"a piece of data has {len(content)} bytes where it should have {piece.length}")
        return content

    def tree(self) -> Iterator[bytes]:
        """The archive of the kit's files, up to the end of the stream."""
        while True:
            kind, content = self._sections.next(Kind.TREE, Kind.END)
            if kind is Kind.END:
                break
            yield content
        if content != ending(self._sections.count - 1, self.header.data):
            raise damaged("its end tells of more or less than came")
        self._sections.end()

    def _content(self, kind: Kind) -> bytes:
        return self._sections.next(kind)[1]


def ending(sections: int, data: int) -> bytes:
    """The content of the last section: how many came before it, and the bytes of data."""
    return json.dumps({"sections": sections, "data": data}, separators=(",", ":")).encode()
