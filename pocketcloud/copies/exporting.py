"""`kit export`: a kit whose labs are down, written as one stream (docs/kit-stream.md)."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from pocketcloud.copies.incoming import ending
from pocketcloud.copies.pieces import LARGEST, Piece, cut, unit_of
from pocketcloud.copies.pouring import Digests, digest
from pocketcloud.copies.shipped import sums_of
from pocketcloud.copies.source import Source, source_of, write_content
from pocketcloud.copies.stream import Kind, StreamWriter, packed
from pocketcloud.copies.stream_content import (
    Header,
    header_text,
    manifest_text,
    map_bytes,
    read_header,
    read_manifest_section,
    read_map_bytes,
    read_shipped,
    read_volumes,
    runs_of,
    shipped_text,
    volumes_of,
    volumes_text,
)
from pocketcloud.copies.stream_tree import tree_pieces
from pocketcloud.errors import NoSpace, Refused
from pocketcloud.model.kit import Kit
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import Runner

_MOST_THREADS = 4
Tell = Callable[[int, int], None]


def export(kit: Kit, handle: int, run: Runner, *, now: str, stop: threading.Event, tell: Tell) -> int:
    """Write an attached kit on LVM, whose labs are down, to the open file `handle`; how many bytes that were. `tell` gets the
    bytes read and those there are to read. The caller holds what makes kits, and the kit's labs and bases.

    Raises as `source_of` does, NoSpace, Refused if nobody reads any more or the kit cannot be told, and InterruptedError.
    """
    out = _Out(handle)
    with source_of(kit, run, now=now) as source:
        parts = _told(source)
        writer = StreamWriter(out.write)
        for kind, content in parts:
            writer.put(kind, content)
        pieces, unit = tuple(cut(source.runs, source.pool.chunk)), unit_of(source.pool.chunk)
        digests = _pour(source, pieces, unit, writer, stop, tell)
        write_content(source, sums_of((piece.begin // unit, told) for piece, told in zip(pieces, digests, strict=True)))
        for piece in tree_pieces(source.kit.path):
            writer.put(Kind.TREE, piece)
        writer.put(Kind.END, ending(writer.count, source.bytes))
    return out.written


def _told(source: Source) -> list[tuple[Kind, bytes]]:
    """The sections before the data. They are read as whoever imports them reads them: nobody shall wait for hours to learn that
    it was no use."""
    volumes = volumes_of(source.group, source.rows)
    # The tool does not tell of a pool that is in use how large it is.
    size = next(row.size for row in source.rows if row.name == POOL)
    pool, manifest = replace(source.pool, chunks=size // source.pool.chunk), source.kit.manifest
    header = Header(
        pool.chunk, manifest.sector_size, len(volumes), runs_of(pool), source.bytes, source.used_metadata, source.files
    )
    head, text, shipped, rows, told = (
        header_text(header), manifest_text(manifest), shipped_text(source.shipped), volumes_text(volumes), map_bytes(pool),
    )  # fmt: skip
    try:
        read_map_bytes(told, read_header(head), read_volumes(rows, header))
        read_manifest_section(text, header)
        read_shipped(shipped)
    except Refused as error:
        raise Refused(
            f"kit {source.kit.name} cannot be told in a stream: {error.message.partition(': ')[2]}",
            hint=f"pocketcloud kit repair {source.kit.name}; to a disk: pocketcloud kit clone {source.kit.name} DISK",
        ) from error
    return [(Kind.HEAD, head), (Kind.KIT, text), (Kind.SHIP, shipped), (Kind.VOLS, rows), (Kind.MAP, told)]


def _pour(source: Source, pieces: Sequence[Piece], unit: int, writer: StreamWriter, stop: threading.Event, tell: Tell) -> Digests:
    """Write all data, packed by several threads, in its order; the digests of its pieces."""
    digests: list[bytes] = []
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    waiting: deque[tuple[Piece, Future[tuple[bytes, bytes]]]] = deque()
    done, total = 0, source.bytes

    def put_first() -> None:
        nonlocal done
        piece, work = waiting.popleft()
        stored, told = work.result()
        writer.put_packed(Kind.DATA, stored, piece.length)
        digests.append(told)
        done += piece.length
        tell(done, total)

    with ThreadPoolExecutor(threads) as pool:
        for piece, content in _read(source.handle, pieces):
            if stop.is_set():
                raise InterruptedError
            waiting.append((piece, pool.submit(_worked, content, unit)))
            if len(waiting) > 2 * threads:
                put_first()
        while waiting:
            put_first()
    return digests


def _worked(content: bytes, unit: int) -> tuple[bytes, bytes]:
    return packed(content), digest(content, unit)


def _read(handle: int, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, bytes]]:
    with mmap.mmap(-1, LARGEST) as memory, memoryview(memory) as view:
        for piece in pieces:
            try:
                with view[: piece.length] as data:
                    count = os.preadv(handle, [data], piece.begin)
                    content = data.tobytes()
            except OSError as error:
                raise _unreadable(piece, error.strerror) from error
            if count != piece.length:
                raise _unreadable(piece, "it ends there")
            yield piece, content


def _unreadable(piece: Piece, why: str | None) -> Refused:
    return Refused(
        f"the kit cannot be read at byte {piece.begin} of its pool: {why}",
        hint="is its disk still plugged in? dmesg says more",
    )


class _Out:
    """Where the stream goes."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.written = 0

    def write(self, content: bytes) -> None:
        """Write all of it. Raises Refused if nobody takes it any more, NoSpace."""
        with memoryview(content) as view:
            at = 0
            while at < len(view):
                try:
                    with view[at:] as rest:
                        at += os.write(self._handle, rest)
                except OSError as error:
                    raise _not_taken(error) from error
        self.written += len(content)


def _not_taken(error: OSError) -> NoSpace | Refused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace("there is no space left for the stream", hint="export to another disk; `-` writes to a pipe")
    if isinstance(error, BrokenPipeError):
        return Refused("whoever read the stream is gone: what was sent of it is of no use", hint="see why, and export again")
    return Refused(f"the stream cannot be written: {error.strerror}", hint="see what takes it; dmesg says more of disks")
