"""Reads the head of a qcow2 file: enough to list a store without a process per file. Pure but for the one read.

Source of the format: docs/interop/qcow2.txt of QEMU ("Header"); all numbers are big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"QFI\xfb"
# magic, version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method
_FIELDS = struct.Struct(">4sIQIIQI")
_INCOMPATIBLE_AT = 72
_DATA_FILE = 1 << 2
_LONGEST_NAME = 1023
_READ = 4096


class NotQcow2(ValueError):
    """The file is not a qcow2 image, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Header:
    """`size` in bytes is what a guest sees; `backing` is the backing file's name as it is written there, None without one;
    `data_file`: its content is in another file; `encrypted`: it is not to be read without a key."""

    version: int
    size: int
    backing: str | None
    data_file: bool = False
    encrypted: bool = False


def read_header(path: Path) -> Header:
    """The header of the image at `path`. Raises NotQcow2, or OSError if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(_READ)
        if len(head) < _INCOMPATIBLE_AT:
            raise NotQcow2(f"{path}: {len(head)} bytes are no image")
        magic, version, offset, length, _, size, method = _FIELDS.unpack_from(head)
        if magic != MAGIC or version not in (2, 3):
            raise NotQcow2(f"{path}: not a qcow2 image of version 2 or 3")
        incompatible = int.from_bytes(head[_INCOMPATIBLE_AT : _INCOMPATIBLE_AT + 8], "big") if version == 3 else 0
        more = {"data_file": bool(incompatible & _DATA_FILE), "encrypted": method != 0}
        if not offset:
            return Header(version, size, None, **more)
        if length > _LONGEST_NAME:
            raise NotQcow2(f"{path}: the backing file's name has {length} bytes")
        file.seek(offset)
        name = file.read(length)
    if len(name) < length:
        raise NotQcow2(f"{path}: it ends before its backing file's name")
    return Header(version, size, name.decode(errors="surrogateescape"), **more)
