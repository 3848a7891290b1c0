"""`kit import`: a disk becomes the kit that a stream tells of, with an identity of its own.

It is a copy like others (clone.py): the label that makes it a kit comes last, when the stream was whole and the disk was read
again. Until then the disk is an unfinished copy, which nothing attaches, and the next import begins anew.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pocketcloud.copies.clone import Copied, Wanted, clone_of
from pocketcloud.copies.incoming import Incoming
from pocketcloud.copies.pieces import LARGEST, Piece
from pocketcloud.copies.pouring import Digests, Outlet, digest
from pocketcloud.copies.source import Source, Stream
from pocketcloud.copies.stream_content import group_of, row_of
from pocketcloud.copies.stream_tree import unpack_tree
from pocketcloud.events import Event
from pocketcloud.kit.attached import Places
from pocketcloud.kit.manifest import write_manifest
from pocketcloud.model.kit import Kit
from pocketcloud.model.profile import Medium
from pocketcloud.model.sizes import MIB
from pocketcloud.scratch import scratch
from pocketcloud.system import Runner

# File systems count otherwise than archives do.
_SLACK = 64 * MIB


def import_kit(
    incoming: Incoming,
    wanted: Wanted,
    places: Places,
    run: Runner,
    *,
    now: str,
    stop: threading.Event,
    tell: Callable[[Event], None],
) -> Copied:
    """Make the kit of a stream on a disk whose erasure was confirmed; what became of it. The caller holds what makes kits.

    Raises Refused for a stream that is damaged or hostile, NoSpace, InterruptedError when `stop` was set."""
    with scratch(run) as aside:
        tree = Path(aside, "tree")
        tree.mkdir()
        (done,) = clone_of(_source(incoming, tree), [wanted], places, run, now=now, stop=stop, tell=tell)
    return done


def _source(incoming: Incoming, tree: Path) -> Source:
    rows = tuple(map(row_of, incoming.volumes))
    return Source(
        kit=Kit(incoming.manifest, tree, Medium.DIR),
        shipped=incoming.shipped,
        pool=incoming.pool,
        rows=rows,
        group=group_of(incoming.volumes, incoming.pool.chunk, incoming.pool.transaction),
        used_metadata=incoming.header.metadata,
        empty=incoming.empty,
        handle=-1,
        whole=incoming.pool,
        all_rows=rows,
        files=incoming.header.files,
        stream=_stream(incoming, tree),
    )


def _stream(incoming: Incoming, tree: Path) -> Stream:
    def poured(pieces: Sequence[Piece], outlet: Outlet, *, unit: int, stop: threading.Event, tick: Callable[[], None]) -> Digests:
        digests = [b""] * len(pieces)
        with mmap.mmap(-1, LARGEST) as memory, memoryview(memory) as view:
            for index, piece in enumerate(pieces):
                if stop.is_set():
                    raise InterruptedError
                content = incoming.data(piece)
                # O_DIRECT wants memory that is aligned.
                with view[: piece.length] as data:
                    data[:] = content
                    if not _written(outlet, data, outlet.aims[index]):
                        return digests
                digests[index] = digest(content, unit)
                outlet.done = index + 1
                outlet.at += piece.length
                tick()
        unpack_tree(incoming.tree(), tree, 2 * incoming.header.files + _SLACK, tick)
        write_manifest(tree, incoming.manifest)
        return digests

    return poured


def _written(outlet: Outlet, data: memoryview, aim: int) -> bool:
    at = 0
    try:
        while at < len(data):
            with data[at:] as rest:
                count = os.pwrite(outlet.handle, rest, aim + at)
            if count == 0:
                raise OSError("it takes no more")
            at += count
    except OSError as error:
        outlet.fault = error.strerror or str(error)
        return False
    outlet.written += len(data)
    return True
