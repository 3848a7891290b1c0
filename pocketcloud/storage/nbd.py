"""Reads and writes what a qcow2 image shows to a guest: through qemu-nbd, which knows the format, over a socket of its own.

The few requests of the NBD protocol that this takes (github.com/NetworkBlockDevice/nbd, doc/proto.md), one at a time.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pocketcloud.errors import Refused
from pocketcloud.scratch import scratch
from pocketcloud.system import CommandFailed, Runner

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_EXPORT = struct.Struct(">QH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_FIXED_NEWSTYLE, _NO_ZEROES, _EXPORT_NAME = 1, 2, 1
_ASK, _ANSWER = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _ZEROES = 0, 1, 2, 3, 6
# What a request may carry (32 MiB), and may zero, whose length has 32 bits.
_LONGEST, _LONGEST_ZEROES = 32 << 20, 1 << 30
_APPEARS_WITHIN = 60.0


class NbdVolume:
    """An image that is open: `size` is what a guest sees, in bytes. All of its verbs raise OSError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        magic, option, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (magic, option) != (b"NBDMAGIC", b"IHAVEOPT") or not flags & _FIXED_NEWSTYLE:
            raise OSError(errno.EPROTO, "this is no NBD server")
        self._no_zeroes = flags & _NO_ZEROES
        connection.sendall(struct.pack(">I", _FIXED_NEWSTYLE | self._no_zeroes) + _OPTION.pack(b"IHAVEOPT", _EXPORT_NAME, 0))
        self.size, _ = _EXPORT.unpack(self._receive(_EXPORT.size))
        if not self._no_zeroes:
            self._receive(124)

    def read(self, begin: int, length: int) -> memoryview:
        """The bytes from `begin` on."""
        parts = [self._ask(_READ, at, count, reads=True) for at, count in _cut(begin, length, _LONGEST)]
        return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))

    def write(self, begin: int, data: memoryview) -> None:
        """Write `data` from the byte `begin` on."""
        for at, count in _cut(begin, len(data), _LONGEST):
            with data[at - begin : at - begin + count] as part:
                self._ask(_WRITE, at, count, part)

    def zero(self, begin: int, length: int) -> None:
        """Have it read as zeros there, whatever its parent has."""
        for at, count in _cut(begin, length, _LONGEST_ZEROES):
            self._ask(_ZEROES, at, count)

    def flush(self) -> None:
        """Have the disk hold what was written."""
        self._ask(_FLUSH, 0, 0)

    def leave(self) -> None:
        """Say that no more comes."""
        self._connection.sendall(_REQUEST.pack(_ASK, 0, _DISCONNECT, 0, 0, 0))

    def _ask(self, kind: int, begin: int, length: int, data: memoryview | None = None, *, reads: bool = False) -> bytes:
        self._connection.sendall(_REQUEST.pack(_ASK, 0, kind, begin, begin, length))
        if data is not None:
            self._connection.sendall(data)
        magic, error, handle = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _ANSWER or handle != begin:
            raise OSError(errno.EPROTO, "the NBD server does not answer what was asked")
        if error:
            raise OSError(error, os.strerror(error))
        return self._receive(length) if reads else b""

    def _receive(self, length: int) -> bytes:
        memory = bytearray(length)
        with memoryview(memory) as view:
            done = 0
            while done < length:
                with view[done:] as rest:
                    count = self._connection.recv_into(rest)
                if count == 0:
                    raise OSError(errno.EPIPE, "qemu-nbd has ended")
                done += count
        return bytes(memory)


@contextmanager
def served(image: Path, form: str, run: Runner, *, writable: bool = False) -> Iterator[NbdVolume]:
    """An image in QEMU's format `form`, open. Raises Refused where it cannot be: QEMU's own locks keep out who would write what
    a guest uses. Killed, we leave nothing behind: qemu-nbd ends with us."""
    with scratch(run) as aside:
        place = Path(aside, "socket")
        words: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", f"--socket={place}", f"--format={form}"]
        words += ["--discard=unmap"] if writable else ["--read-only"]
        failed: list[CommandFailed] = []

        def serve() -> None:
            try:
                run([*words, "--", image])
            except CommandFailed as error:
                failed.append(error)

        server = threading.Thread(target=serve, name=f"serve {image.name}", daemon=True)
        server.start()
        with _connected(place, server, failed, image) as connection:
            volume = NbdVolume(connection)
            yield volume
            volume.leave()
        server.join()
        if failed:
            raise _not_served(image, failed)


@contextmanager
def _connected(place: Path, server: threading.Thread, failed: list[CommandFailed], image: Path) -> Iterator[socket.socket]:
    until = time.monotonic() + _APPEARS_WITHIN
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(str(place))
                break
            if not server.is_alive() or time.monotonic() > until:
                raise _not_served(image, failed)
            time.sleep(0.005)
        yield connection


def _not_served(image: Path, failed: list[CommandFailed]) -> Refused:
    said = (failed[0].completed.err or failed[0].completed.out).strip().splitlines() if failed else []
    return Refused(f"{image} cannot be opened: {said[-1] if said else 'qemu-nbd does not answer'}", hint="is it in use?")


def _cut(begin: int, length: int, longest: int) -> Iterator[tuple[int, int]]:
    return ((at, min(longest, begin + length - at)) for at in range(begin, begin + length, longest))
