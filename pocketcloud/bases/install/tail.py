"""A log that grows, followed as `tail -F` does: virtlogd renames a full one and begins another (virtlogd.conf, max_size)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PIECE = 1 << 18


class Tail:
    """What is new in a file since the last look. A file that is not there, or not yet, is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1
        self._inode = 0

    def read(self) -> bytes:
        """The next piece, of 256 KiB at most; empty where there is nothing new."""
        if self._handle < 0 and not self._open():
            return b""
        while True:
            if os.fstat(self._handle).st_size < os.lseek(self._handle, 0, os.SEEK_CUR):
                os.lseek(self._handle, 0, os.SEEK_SET)  # begun anew in its place
            if piece := os.read(self._handle, _PIECE):
                return piece
            if not self._renewed():
                return b""

    def _open(self) -> bool:
        with contextlib.suppress(OSError):
            self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self._inode = os.fstat(self._handle).st_ino
            return True
        return False

    def _renewed(self) -> bool:
        """Whether another file has the name now; it is then opened. The old one has been read to its end."""
        try:
            if self._path.lstat().st_ino == self._inode:
                return False
        except OSError:
            return False
        old = self._handle
        self._handle = -1
        opened = self._open()
        os.close(old)
        return opened

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
