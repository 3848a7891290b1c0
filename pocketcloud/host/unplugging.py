"""Switching a disk off, so that it can be pulled: what udisks does at "power off", by sysfs alone.

Outside facts: deleting a SCSI disk writes its cache out and, where it is to be, stops it (Linux's drivers/scsi/sd.c,
sd_shutdown); `remove` of a USB device lets go of it and switches its port off where it can be (ABI/testing/sysfs-bus-usb).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pocketcloud.host.usb import read_path
from pocketcloud.system import Runner

_ROOT = Path("/")


def switch_off(name: str, run: Runner, root: Path = _ROOT) -> bool:
    """Write out what is left of a disk, by its kernel name, and switch it off with its adapter, unless another disk hangs on
    that; whether it is off. A disk that is no SCSI disk, as all on USB are, is only written out."""
    run(["blockdev", "--flushbufs", f"/dev/{name}"], codes=range(256))
    with contextlib.suppress(OSError):
        place = (root / "sys/block" / name).resolve(strict=True)
        usb = read_path(place, root)
        (place / "device/delete").write_text("1")
        if usb is not None and not _disks_below(root, usb.disk.name):
            with contextlib.suppress(OSError):
                (root / "sys/bus/usb/devices" / usb.disk.name / "remove").write_text("1")
        return True
    return False


def _disks_below(root: Path, device: str) -> bool:
    """Whether disks hang on a USB device; some adapters have several."""
    for folder in (root / "sys/block").glob("*"):
        with contextlib.suppress(OSError):
            if f"/{device}/" in str(folder.resolve(strict=True)):
                return True
    return False
