"""The lower bound for a reset of thin volumes: the kernel's own messages and tables, by ioctl, without any process or LVM.

Numbers and structures are those of linux/dm-ioctl.h; what the messages mean stands in the kernel's
Documentation/admin-guide/device-mapper/thin-provisioning.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_HEADER = struct.Struct("=3IIIIiIIIQ128s129s7x")
_SPEC = struct.Struct("=QQiI16s")
_CREATE, _SUSPEND, _LOAD, _MESSAGE = 3, 6, 9, 14
_SUSPENDED = 2
_ROOM = 4096


class BareMapper:
    """/dev/mapper/control."""

    def __init__(self) -> None:
        self._control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)

    def _ask(self, number: int, name: str, payload: bytes = b"", targets: int = 0, flags: int = 0) -> None:
        header = _HEADER.pack(4, 0, 0, _ROOM, _HEADER.size, targets, 0, flags, 0, 0, 0, name.encode(), b"")
        buffer = bytearray((header + payload).ljust(_ROOM, b"\0"))
        fcntl.ioctl(self._control, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | number, buffer)

    def message(self, name: str, text: str) -> None:
        """Send a message to the target of a device."""
        self._ask(_MESSAGE, name, struct.pack("=Q", 0) + text.encode() + b"\0")

    def load(self, name: str, sectors: int, kind: str, parameters: str) -> None:
        """Give a device a new table, which counts from its next resume."""
        text = parameters.encode() + b"\0"
        text = text.ljust(-(-len(text) // 8) * 8, b"\0")
        self._ask(_LOAD, name, _SPEC.pack(0, sectors, 0, _SPEC.size + len(text), kind.encode()) + text, targets=1)

    def suspend(self, name: str) -> None:
        """Suspend a device."""
        self._ask(_SUSPEND, name, flags=_SUSPENDED)

    def resume(self, name: str) -> None:
        """Resume it, with its new table if it has one."""
        self._ask(_SUSPEND, name)

    def create(self, name: str, sectors: int, kind: str, parameters: str) -> None:
        """Make a device, and its node in /dev/mapper where nobody else does."""
        self._ask(_CREATE, name)
        self.load(name, sectors, kind, parameters)
        self.resume(name)


class BareReset:
    """A pool and the disks of `machines` machines on a device, reset by swapping the table under each."""

    SECTORS = 655360

    def __init__(self, device: Path, machines: int) -> None:
        self._dm, self._machines, self._current = BareMapper(), machines, 1001
        self._dm.create("bare-meta", 32768, "linear", f"{device} 0")
        self._dm.create("bare-data", self.SECTORS, "linear", f"{device} 32768")
        self._dm.create("bare", self.SECTORS, "thin-pool", f"{_number('bare-meta')} {_number('bare-data')} 128 0")
        self._dm.message("bare", "create_thin 0")
        for number in range(machines):
            self._dm.message("bare", f"create_snap {number + 1} 0")
            self._dm.message("bare", f"create_snap {number + self._current} {number + 1}")
            self._dm.create(f"bare-vm{number}", 131072, "thin", self._table(number + self._current))

    def _table(self, number: int) -> str:
        return f"{_number('bare')} {number}"

    def swap(self) -> None:
        """Until the last is usable."""
        new = self._current + 1000
        for number in range(self._machines):
            self._dm.message("bare", f"create_snap {new + number} {number + 1}")
            self._dm.load(f"bare-vm{number}", 131072, "thin", self._table(new + number))
            self._dm.suspend(f"bare-vm{number}")
            self._dm.resume(f"bare-vm{number}")

    def drop(self) -> None:
        """What is left for later."""
        for number in range(self._machines):
            self._dm.message("bare", f"delete {self._current + number}")
        self._current += 1000


def _number(name: str) -> str:
    """The device number, as a table may have it in place of a node."""
    for folder in Path("/sys/block").glob("dm-*"):
        if (folder / "dm/name").read_text().strip() == name:
            return (folder / "dev").read_text().strip()
    raise LookupError(f"no device-mapper device is called {name}")
