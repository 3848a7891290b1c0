"""Telling the disk what a pool does not use: removed volumes' chunks are freed in the pool's metadata alone, and nothing is
discarded for them. It is made up for while the pool is inactive, as it is in a detach.

Not by `thin_trim`: that of version 0.9.0, which Debian 12 has, discards the chunk before each free run too, which is in use
(seen with 0.9.0-2 on the last chunk of a volume). So the free runs are read out of `thin_dump`, and used only if they agree
with what the kernel said of the pool.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketcloud.storage.devmapper import node_name
from pocketcloud.storage.lvm import Lvm, environment
from pocketcloud.storage.thin_volumes import POOL
from pocketcloud.system import CommandFailed, Runner

_METADATA, _DATA = f"{POOL}_tmeta", f"{POOL}_tdata"
_OWN = "-free"
_BLKDISCARD = 0x1277  # linux/fs.h: _IO(0x12, 119)
_SECTOR = 512
_SUPERBLOCK = re.compile(r'<superblock [^>]*data_block_size="([0-9]+)"[^>]*nr_data_blocks="([0-9]+)"')
_MAPPING = re.compile(r'<(single|range)_mapping [^>]*data_(?:block|begin)="([0-9]+)"(?: length="([0-9]+)")?')


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """What of a pool no volume uses: `runs` are start and length in chunks of `chunk` bytes, `total` chunks has the pool and
    `used` of them are mapped."""

    chunk: int
    total: int
    used: int
    runs: tuple[tuple[int, int], ...]


def read_free(dump: str) -> FreeSpace:
    """The free space of a pool out of the XML of `thin_dump`, which may have shared mappings by reference (from 1.0 on).
    Raises ValueError where it is not whole, or contradicts itself."""
    head = _SUPERBLOCK.search(dump)
    if head is None or "</superblock>" not in dump:
        raise ValueError("the dump is not whole")
    sectors, total = int(head[1]), int(head[2])
    used = bytearray(total)
    for found in _MAPPING.finditer(dump):
        begin, length = int(found[2]), int(found[3] or 1) if found[1] == "range" else 1
        if begin + length > total or (found[1] == "range" and not found[3]):
            raise ValueError("a mapping lies outside of the pool")
        used[begin : begin + length] = b"\1" * length
    runs = tuple((run.start(), run.end() - run.start()) for run in re.finditer(rb"\0+", used))
    return FreeSpace(sectors * _SECTOR, total, used.count(1), runs)


def discard_free(vg: str, lvm: Lvm, run: Runner, used: int, within: float = 30.0) -> int:
    """Discard the free chunks of a kit's pool, which has to be inactive; how many bytes the disk was told of. `used` is the
    number of chunks in use that the kernel gave before (PoolStatus.data_used): where the metadata say otherwise, nothing is
    done. Nor is it on a disk that takes no discards. After `within` seconds the rest, the smaller runs, is left for the
    next time: nothing needs it."""
    # LVM activates parts of an inactive pool by themselves, read-only and one in a command, and keeps it inactive meanwhile.
    forget_killed(vg, run)
    try:
        for part in (_METADATA, _DATA):
            lvm.command("lvchange", "-ay", f"{vg}/{part}")
        with _writable(node_name(vg, _DATA), f"{vg}{_OWN}", run) as data:
            if not _takes_discards(data):
                return 0
            free = read_free(run(["thin_dump", Path("/dev/mapper", node_name(vg, _METADATA))]).out)
            if free.used != used or free.chunk * free.total != os.lseek(data, 0, os.SEEK_END):
                return 0
            return _discard(data, free, within)
    except (CommandFailed, ValueError, OSError):
        return 0
    finally:
        for part in (_METADATA, _DATA):
            lvm.command("lvchange", "-an", f"{vg}/{part}", codes=range(256))


def forget_killed(vg: str, run: Runner) -> None:
    """Remove the node of an earlier run that was killed just when it had made it; without it the kit's device is not free."""
    if Path("/dev/mapper", f"{vg}{_OWN}").exists():
        run(["dmsetup", "remove", "--", f"{vg}{_OWN}"], codes=(0, 1), env=environment())


def _discard(data: int, free: FreeSpace, within: float) -> int:
    until, told = time.monotonic() + within, 0
    for start, length in sorted(free.runs, key=lambda found: -found[1]):
        if time.monotonic() > until:
            break
        try:
            fcntl.ioctl(data, _BLKDISCARD, struct.pack("QQ", start * free.chunk, length * free.chunk))
        except OSError:
            break  # a disk that does not take what it announced
        told += length * free.chunk
    return told


@contextlib.contextmanager
def _writable(node: str, name: str, run: Runner) -> Iterator[int]:
    """An open device like the read-only `node`, over the same extents, that can be written to. It goes when it is closed, so
    that a kill leaves none."""
    table = run(["dmsetup", "table", "--", node], env=environment()).out
    run(["dmsetup", "create", name], stdin=table.encode(), env=environment())
    handle = -1
    try:
        handle = os.open(f"/dev/mapper/{name}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        run(["dmsetup", "remove", "--deferred", "--", name], env=environment())
    try:
        yield handle
    finally:
        os.close(handle)


def _takes_discards(data: int) -> bool:
    folder = Path("/sys/class/block") / f"dm-{os.minor(os.fstat(data).st_rdev)}"
    return int((folder / "queue/discard_max_bytes").read_text()) > 0
