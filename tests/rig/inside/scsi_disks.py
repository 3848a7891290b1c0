"""SCSI disks in memory (scsi_debug), which fail, hang and go as they are told to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketcloud.system import run

DRIVER = Path("/sys/bus/pseudo/drivers/scsi_debug")
"""Where the driver takes what its disks are to do: `opts`, `every_nth`, `ndelay`."""


@contextmanager
def scsi_disk(**options: int) -> Iterator[Path]:
    """A disk that says it has four GiB, and keeps much less: nothing may ever become a kit on it."""
    words = [f"{key}={value}" for key, value in {"dev_size_mb": 64, "virtual_gb": 4, **options}.items()]
    run(["modprobe", "scsi_debug", *words])
    try:
        until = time.monotonic() + 20
        while not (found := list(Path("/dev").glob("sd?"))):
            assert time.monotonic() < until
            time.sleep(0.05)
        yield found[0]
    finally:
        for _ in range(100):
            if run(["rmmod", "scsi_debug"], codes=(0, 1)).code == 0:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("something still holds the disk")


@contextmanager
def whole_disk() -> Iterator[Path]:
    """An empty SCSI disk, whose memory is the same each time: User-Mode Linux does not get over so much being given back."""
    if not DRIVER.exists():
        run(["modprobe", "scsi_debug", "dev_size_mb=3200", "add_host=0"])
    (DRIVER / "add_host").write_text("1")
    try:
        until = time.monotonic() + 20
        while not (found := list(Path("/dev").glob("sd?"))):
            assert time.monotonic() < until
            time.sleep(0.05)
        wiped(found[0])
        yield found[0]
    finally:
        for key in ("opts", "every_nth", "ndelay"):
            (DRIVER / key).write_text("0")
        (DRIVER / "add_host").write_text("-1")
        for _ in range(100):
            if Path("/sys/module/scsi_debug/refcnt").read_text().strip() == "0":
                break
            time.sleep(0.1)
        else:
            raise AssertionError("something still holds the disk")


def wiped(disk: Path) -> None:
    run(["wipefs", "--all", "--force", *sorted(Path("/dev").glob(f"{disk.name}?")), disk])
    run(["blockdev", "--rereadpt", disk])
