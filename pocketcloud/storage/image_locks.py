"""Who has an image open: QEMU says so with byte locks on the file, which can be asked for without taking any.

QEMU (block/file-posix.c, since 2.10) holds a shared open-file-description lock on byte 100 + N for each permission N it
uses, and on byte 200 + N for each that it does not grant to others: 0 consistent read, 1 write, 2 write unchanged, 3 resize.
qemu-img and libvirt's guests do so alike; a program that takes no locks is not seen.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_USED, _BARRED = 100, 200
_WRITE, _RESIZE, _PERMISSIONS = 1, 3, 4


def is_open(path: Path) -> bool:
    """Whether a QEMU has the image open in whatever way, as a backing file too."""
    return any(_locked(path, base, _PERMISSIONS) for base in (_USED, _BARRED))


def is_written(path: Path) -> bool:
    """Whether a QEMU has the image open for writing."""
    return _locked(path, _USED + _WRITE, 1) or _locked(path, _USED + _RESIZE, 1)


def _locked(path: Path, start: int, length: int) -> bool:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer: bytes = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, question)
    finally:
        os.close(handle)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
