"""Disks in memory."""

from __future__ import annotations

from pathlib import Path

from pocketcloud.model.sizes import GIB, KIB
from pocketcloud.system import run


def ram_disks(count: int = 2, size: int = 4 * GIB, partitions: int = 8) -> None:
    """Empty disks /dev/ram0 and so on, of `size` bytes each, which take only what is written; those of tests before are gone."""
    run(["rmmod", "brd"], codes=(0, 1))
    run(["modprobe", "brd", f"rd_nr={count}", f"rd_size={size // KIB}", f"max_part={partitions}"])
    sizes = [int(Path(f"/sys/block/ram{number}/size").read_text()) * 512 for number in range(count)]
    assert sizes == [size] * count, "disks of a test before are still in use"
