"""Reads the header of a qcow2 file: its size and its backing file's name, without starting a process.

Source: QEMU's docs/interop/qcow2.rst, "Header".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"QFI\xfb"
_FORMAT = ">4sIQIIQ"


@dataclass(frozen=True, slots=True)
class Header:
    """`size` in bytes is what a guest sees; `backing` the name written in the file, empty if there is none."""

    size: int
    backing: str


def read_header(path: Path) -> Header | None:
    """The header of the file; None if it is no qcow2 file. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(struct.calcsize(_FORMAT))
        if len(head) < struct.calcsize(_FORMAT):
            return None
        magic, version, offset, length, _cluster_bits, size = struct.unpack(_FORMAT, head)
        if magic != _MAGIC or version not in (2, 3) or length > 1023:
            return None
        file.seek(offset)
        return Header(size, file.read(length).decode(errors="surrogateescape") if offset else "")
