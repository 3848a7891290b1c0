"""The note that an unfinished copy carries: of what it is a copy, who it is going to be, and how far it got.

It lies in the area where LVM keeps its text, far behind the text of any kit, while there is no label yet that would make LVM
look: a disk with the note and without the label is an unfinished copy, and nothing attaches it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass

from pocketcloud.documents import dump_json, parse_json
from pocketcloud.errors import BadDocument
from pocketcloud.model.names import Name
from pocketcloud.storage.lvm_layout import Layout

# From the start of the device; LVM's area ends at 9 MiB, and its text of a kit with thousands of volumes before 4.
_PLACE = 8 << 20
_SIZE = 4096
_MAGIC = b"pocketcloud copy"
_HEAD = struct.Struct("<16s16sI")
_DIGEST = 16


@dataclass(frozen=True, slots=True)
class Unfinished:
    """`source` is the id of the kit that is copied and `digest` that of its pool's map; `id` and `name` are the copy's. `layout`
    says where things lie, `pieces` how many of them are on the disk for sure."""

    source: str
    digest: str
    id: str
    name: Name
    layout: Layout
    pieces: int = 0


def write_note(handle: int, note: Unfinished) -> None:
    """Write the note, and all that was written before it, to the disk. `handle` may be open with O_DIRECT."""
    text = dump_json(note).encode()
    if len(text) > _SIZE - _HEAD.size:
        raise ValueError("the note is too long")
    os.fdatasync(handle)
    _write(handle, _HEAD.pack(_MAGIC, _sum(text), len(text)) + text)


def strike_note(handle: int) -> None:
    """Write zeros over the note."""
    _write(handle, b"")


def read_note(handle: int) -> Unfinished | None:
    """The note on a disk; None if there is none, or none that is whole."""
    with mmap.mmap(-1, _SIZE) as memory:
        try:
            if os.preadv(handle, [memory], _PLACE) < _SIZE:
                return None
        except OSError:
            return None
        block = memory[:]
    magic, told, length = _HEAD.unpack_from(block)
    text = block[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(text) != length or _sum(text) != told:
        return None
    try:
        return parse_json(text.decode(errors="replace"), Unfinished, "the note of an unfinished copy")
    except BadDocument:
        return None


def _write(handle: int, block: bytes) -> None:
    with mmap.mmap(-1, _SIZE) as memory:
        memory.write(block)
        with memoryview(memory) as view:
            os.pwrite(handle, view, _PLACE)
    os.fdatasync(handle)


def _sum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=_DIGEST).digest()
