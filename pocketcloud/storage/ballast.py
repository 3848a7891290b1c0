"""The ballast: a thin volume, written full, whose space is the way out of a full pool; and the reserve of metadata.

The driver gives the ballast up when a reset has to work on a full pool (lvm_thin.py); here it is filled, and made anew when
there is room again. The reserve of metadata are the extents that every kit leaves free in its volume group.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from pocketcloud.errors import NoSpace
from pocketcloud.storage.devmapper import PoolMode, PoolStatus, node_name, pool_status
from pocketcloud.storage.lvm import LogicalVolume, Lvm, complaint, environment
from pocketcloud.storage.thin_volumes import BALLAST, POOL
from pocketcloud.storage.watermarks import MIB, REFUSE_METADATA, WARN_DATA, ballast_size, percent
from pocketcloud.system import CommandFailed, Runner

_BLOCK = 4 * MIB
# Written at a time before others of us may have the store: a tenth of a second or so.
_SLICE = 64 * MIB
_SECTOR = 512
_EXTENT = 4 * MIB


def fill_ballast(vg: str, lvm: Lvm, run: Runner, folder: Path | None = None) -> bool:
    """Write the ballast full, so that its space is really taken; whether it is full then. One that is full already costs a
    look. With `folder` (that of the kit's volumes) the store is held, a slice at a time; without, nobody else uses it yet.

    Raises NoSpace if the pool is full before the ballast is: then the ballast is gone.
    """
    try:
        with _held(folder):
            if not any(row.name == BALLAST for row in lvm.volumes(vg)):
                return False
            lvm.activate(vg, BALLAST)
            full = _is_full(vg, run)
        at = 0
        while not full:
            with _held(folder):
                end = _write(Path("/dev", vg, BALLAST), at, at + _SLICE)
                full, at = end is None, end or at
        with _held(folder):
            if any(row.name == BALLAST for row in lvm.volumes(vg)):
                lvm.command("lvchange", "-an", f"{vg}/{BALLAST}")
    except FileNotFoundError:
        return False  # given up meanwhile: somebody needed its space
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        with _held(folder):
            lvm.command("lvremove", "-f", f"{vg}/{BALLAST}", codes=range(256))
        raise NoSpace(
            f"the pool of volume group {vg} has no room for its ballast", hint="remove labs or bases that are not needed"
        ) from error
    return True


def restore_ballast(vg: str, lvm: Lvm, run: Runner, folder: Path) -> bool:
    """Make the ballast anew if it was given up, or fill it where that was interrupted, if the pool has room again; whether it
    is there and full afterwards. For the end of what frees space: trim, reset, destroy."""
    with _held(folder):
        rows = lvm.volumes(vg)
        pool = next((row for row in rows if row.name == POOL), None)
        status = pool_status(f"{node_name(vg, POOL)}-tpool", run)
        if pool is None or status is None:
            return False
        there = any(row.name == BALLAST for row in rows)
        if not there:
            if not _fits(status, pool):
                return False
            size = f"{ballast_size(pool.size)}b"
            lvm.command("lvcreate", "-an", "-kn", "-V", size, "--thinpool", POOL, "-n", BALLAST, vg)
    return fill_ballast(vg, lvm, run, folder)


def extend_metadata(vg: str, lvm: Lvm, run: Runner) -> bool:
    """Enlarge the pool's metadata from the extents that the volume group keeps free; whether that could be done. LVM enlarges
    the spare of it by as much. The caller holds the store. By a quarter at least: little by little would not be worth it."""
    status = pool_status(f"{node_name(vg, POOL)}-tpool", run)
    group = next((group for group in lvm.groups() if group.name == vg), None)
    metadata = next((row for row in lvm.volumes(vg) if row.name == f"{POOL}_tmeta"), None)
    if status is None or status.needs_check or group is None or metadata is None:
        return False
    more = min(metadata.size, group.free // 2) // _EXTENT * _EXTENT
    if more < metadata.size // 4 or more <= 0:
        return False
    try:
        lvm.command("lvextend", "--poolmetadatasize", f"+{more}b", f"{vg}/{POOL}")
    except CommandFailed as failed:
        raise NoSpace(f"the metadata of volume group {vg}'s pool cannot be enlarged: {complaint(failed)}") from failed
    return True


def is_filled(vg: str, run: Runner, rows: tuple[LogicalVolume, ...]) -> bool:
    """Whether there is a ballast and nobody is filling it: it is active only for that."""
    row = next((row for row in rows if row.name == BALLAST), None)
    return row is not None and (not row.active or _is_full(vg, run))


def _fits(status: PoolStatus, pool: LogicalVolume) -> bool:
    """Whether the pool is below its warning marks with the ballast in it."""
    if status.mode is not PoolMode.WRITING or status.needs_check or not status.data_total:
        return False
    chunks = -(-ballast_size(pool.size) * status.data_total // pool.size)
    data = percent(status.data_used + chunks, status.data_total)
    return data < WARN_DATA and percent(status.metadata_used, status.metadata_total) < REFUSE_METADATA


def _is_full(vg: str, run: Runner) -> bool:
    """Whether all of the active ballast is mapped: `START LENGTH thin MAPPED_SECTORS HIGHEST` (the kernel's
    Documentation/admin-guide/device-mapper/thin-provisioning.rst)."""
    fields = run(["dmsetup", "status", "--", node_name(vg, BALLAST)], codes=(0, 1), env=environment()).out.split()
    return len(fields) >= 4 and fields[2] == "thin" and fields[3] == fields[1]


def _write(path: Path, start: int, end: int) -> int | None:
    """Write bytes `start` to `end` of a device past the page cache; where to go on, None at its end. What is written does not
    look like zeros, which some stores below would take for nothing."""
    handle = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
        with mmap.mmap(-1, _BLOCK) as block:
            block.write(os.urandom(_BLOCK))
            with memoryview(block) as view:
                while start < min(end, size):
                    start += os.pwrite(handle, view[: min(_BLOCK, size - start) // _SECTOR * _SECTOR], start)
        os.fsync(handle)
    finally:
        os.close(handle)
    return start if start < size else None


@contextlib.contextmanager
def _held(folder: Path | None) -> Iterator[None]:
    """Hold the store as its driver does."""
    if folder is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
