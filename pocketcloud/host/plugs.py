"""Disks that come and go: which are there now, and waiting until that may have changed.

What tells of a change is never believed, only looked after: events can be lost, and where udev is not at work there are the
kernel's own, or none at all, so that every few seconds somebody looks in any case.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcloud.host.files import line, number
from pocketcloud.host.usb import read_path
from pocketcloud.model.usb import UsbPath
from pocketcloud.system import Runner, which

_ROOT = Path("/")
_SECTOR = 512
# Not disks that anybody plugs in.
_PASSED_OVER = ("loop", "dm-", "md", "zram", "sr", "fd", "nbd", "mtdblock")


@dataclass(frozen=True, slots=True)
class Plug:
    """A disk as it was plugged in: its kernel name, and the number of the plug, which no other disk gets before the computer
    starts anew (`diskseq` in Linux's ABI/stable/sysfs-block; 0 before Linux 5.15); its size in bytes."""

    name: str
    sequence: int
    size: int


def plugged_disks(root: Path = _ROOT) -> frozenset[Plug]:
    """The disks that are there and have a medium."""
    found = set()
    for folder in (root / "sys/block").glob("*"):
        size = (number(line(folder, "size")) or 0) * _SECTOR
        if size and not folder.name.startswith(_PASSED_OVER):
            found.add(Plug(folder.name, number(line(folder, "diskseq")) or 0, size))
    return frozenset(found)


def usb_path(name: str, root: Path = _ROOT) -> UsbPath | None:
    """How a disk hangs on USB, by its kernel name; None if it does not, or is gone."""
    with contextlib.suppress(OSError):
        return read_path((root / "sys/block" / name).resolve(strict=True), root)
    return None


def settled(run: Runner) -> None:
    """Wait until udev has done with what is plugged in, where it is at work."""
    if which("udevadm"):
        run(["udevadm", "settle", "--timeout=10"], codes=range(256))


class Watch:
    """Waits until disks may have come or gone; to be made before the first look."""

    def __init__(self) -> None:
        self._poll = _events()

    def wait(self, seconds: float) -> None:
        """Wait for an event, or so many seconds."""
        try:
            if self._poll is not None:
                self._poll(seconds)
                return
        except OSError:  # events were lost, of which the next look knows nothing
            self._poll = _events()
        time.sleep(seconds)


def _events() -> Callable[[float], Any] | None:
    """What waits for the next event: udev's, which come when it has done with a disk, else the kernel's; None without either."""
    with contextlib.suppress(ImportError, OSError):
        import pyudev

        context = pyudev.Context()
        monitor = pyudev.Monitor.from_netlink(context, source="udev" if Path("/run/udev/control").exists() else "kernel")
        monitor.filter_by("block", "disk")
        monitor.start()
        return lambda seconds: monitor.poll(timeout=seconds)
    return None
