"""Reads and writes what a volume holds, whatever its store keeps it in. The caller has made it active; nobody else uses it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pocketcloud.storage.nbd import served
from pocketcloud.system import Runner

# <linux/fs.h>: _IO(0x12, 119).
_BLKDISCARD = 0x1277
_ZEROES_AT_ONCE = 4 << 20


class VolumeData(Protocol):
    """An open volume. All of its verbs raise OSError."""

    def read(self, begin: int, length: int) -> memoryview:
        """The bytes from `begin` on."""
        ...

    def write(self, begin: int, data: memoryview) -> None:
        """Write `data` from the byte `begin` on."""
        ...

    def zero(self, begin: int, length: int) -> None:
        """Have it read as zeros there, whatever its parent has."""
        ...

    def flush(self) -> None:
        """Have the disk hold what was written."""
        ...


@contextmanager
def opened(path: Path, form: str, run: Runner, *, writable: bool = False, chunk: int = 0) -> Iterator[VolumeData]:
    """A volume by its path and format. `chunk` is that of the pool, in bytes, where it lies in one. Raises Refused, OSError."""
    if form != "raw":
        with served(path, form, run, writable=writable) as image:
            yield image
        return
    handle = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    try:
        yield _Device(handle, chunk)
    finally:
        os.close(handle)


class _Device:
    """A thin volume's node."""

    def __init__(self, handle: int, chunk: int) -> None:
        self._handle = handle
        self._chunk = chunk

    def read(self, begin: int, length: int) -> memoryview:
        data = bytearray(length)
        done = 0
        with memoryview(data) as view:
            while done < length:
                with view[done:] as rest:
                    count = os.preadv(self._handle, [rest], begin + done)
                if count == 0:
                    raise OSError(errno.EIO, f"it ends at byte {begin + done}")
                done += count
        return memoryview(data)

    def write(self, begin: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                done += os.pwrite(self._handle, rest, begin + done)

    def zero(self, begin: int, length: int) -> None:
        """Whole chunks are given back, and read as zeros; a part of one takes writing."""
        end = begin + length
        first, last = -(-begin // self._chunk) * self._chunk, end // self._chunk * self._chunk
        if not self._chunk or first >= last:
            self._write_zeros(begin, end)
            return
        self._write_zeros(begin, first)
        self.flush()
        fcntl.ioctl(self._handle, _BLKDISCARD, struct.pack("QQ", first, last - first))
        self._write_zeros(last, end)

    def flush(self) -> None:
        os.fsync(self._handle)

    def _write_zeros(self, begin: int, end: int) -> None:
        zeros = memoryview(bytes(min(_ZEROES_AT_ONCE, max(end - begin, 0))))
        for at in range(begin, end, _ZEROES_AT_ONCE):
            self.write(at, zeros[: min(_ZEROES_AT_ONCE, end - at)])
